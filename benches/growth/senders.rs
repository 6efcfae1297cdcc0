//! One sender against 64: what group commit gives.

use std::time::Instant;

use crate::{
    Result,
    client::{Client, flood},
    report::{Bound, Report, median},
    server::Server,
};

const LONE_EVENTS: u64 = 1_000;
const CROWD: usize = 64;
const CROWD_EVENTS: u64 = 20_000;

pub async fn run(report: &mut Report) -> Result<()> {
    let lone = round(report, "1 sender", 1, LONE_EVENTS).await?;
    let crowd = round(report, "64 senders", CROWD, CROWD_EVENTS).await?;
    report.add("64 senders: events a flush", crowd.events_per_flush, Bound::AtLeast(8.0));
    let most = lone.flush_mean_ms + 1.0;
    report.add("1 sender: p50 in ms, against one flush and 1 ms", lone.p50_ms, Bound::AtMost(most));
    Ok(())
}

struct Outcome {
    p50_ms: f64,
    events_per_flush: f64,
    flush_mean_ms: f64,
}

async fn round(report: &mut Report, name: &str, senders: usize, count: u64) -> Result<Outcome> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("data");
    let server = Server::start(&data).await?;
    let client = Client::new(&server.base)?;
    let mut users = Vec::new();
    let mut rooms = Vec::new();
    for n in 0..senders.min(8) {
        let user = client.register(&format!("sender{n}")).await?;
        rooms.push(user.create_room().await?);
        users.push(user);
    }
    flood(&users, &rooms, 200, senders).await?;
    // What the set-up committed is told from what is measured by a stop between them.
    server.stop().await?;

    let server = Server::start(&data).await?;
    let client = Client::new(&server.base)?;
    let users: Vec<_> = users.iter().map(|user| user.on(&client)).collect();
    let (start, cpu) = (Instant::now(), server.cpu_ms()?);
    let times = flood(&users, &rooms, count, senders).await?;
    let wall = start.elapsed().as_secs_f64();
    let cpu = server.cpu_ms()? - cpu;
    let totals = server.stop().await?;

    let p50_ms = median(times.iter().map(|time| time.as_secs_f64() * 1e3).collect());
    report.add(&format!("{name}: events/s"), count as f64 / wall, Bound::None);
    report.add(&format!("{name}: CPU in ms per event"), cpu / count as f64, Bound::None);
    report.add(&format!("{name}: p50 in ms"), p50_ms, Bound::None);
    report.add(&format!("{name}: mean flush in ms"), totals.flush_mean_us / 1e3, Bound::None);
    Ok(Outcome {
        p50_ms,
        events_per_flush: count as f64 / totals.flushes.max(1.0),
        flush_mean_ms: totals.flush_mean_us / 1e3,
    })
}
