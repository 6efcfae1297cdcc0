//! One room from its 1,000th to its 100,000th event: time, CPU, disk and memory.

use crate::{
    Result,
    client::{Client, User, flood},
    report::{Bound, Report, median},
    server::{Server, bytes_on_disk},
};

/// Events timed one after the other at each age.
const TIMED: u64 = 1_000;
const FILLERS: usize = 32;

pub async fn run(report: &mut Report) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("data");
    let server = Server::start(&data).await?;
    report.add("idle server: RSS in MiB", server.rss_mib()?, Bound::None);
    let client = Client::new(&server.base)?;
    let user = client.register("alice").await?;
    let room = user.create_room().await?;
    let rooms = [room];
    let users = [user];

    flood(&users, &rooms, 1_000, FILLERS).await?;
    let young = timed(&server, &users[0], &rooms[0]).await?;
    flood(&users, &rooms, 50_000 - 1_000 - TIMED, FILLERS).await?;
    settle().await;
    let half = bytes_on_disk(&data)?;
    flood(&users, &rooms, 50_000 - TIMED, FILLERS).await?;
    let old = timed(&server, &users[0], &rooms[0]).await?;
    settle().await;
    let bytes = (bytes_on_disk(&data)? - half) / 50_000.0;

    report.add("event at the 1,000th: p50 in ms", young.p50_ms, Bound::None);
    report.add("event at the 100,000th: p50 in ms", old.p50_ms, Bound::None);
    report.add(
        "event at the 100,000th against the 1,000th: time",
        old.p50_ms / young.p50_ms,
        Bound::AtMost(1.3),
    );
    report.add("event at the 100,000th against the 1,000th: CPU", old.cpu_ms / young.cpu_ms, Bound::None);
    report.add("stored bytes per message, second 50,000", bytes, Bound::None);
    report.add("after 100,000 events: RSS in MiB", server.rss_mib()?, Bound::AtMost(120.0));
    server.stop().await?;
    Ok(())
}

struct Timed {
    p50_ms: f64,
    cpu_ms: f64,
}

async fn timed(server: &Server, user: &User, room: &str) -> Result<Timed> {
    let cpu = server.cpu_ms()?;
    let mut times = Vec::new();
    for _ in 0..TIMED {
        times.push(user.send(room).await?.as_secs_f64() * 1e3);
    }
    Ok(Timed { p50_ms: median(times), cpu_ms: (server.cpu_ms()? - cpu) / TIMED as f64 })
}

/// Time for the store to write what it holds back.
async fn settle() {
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
}
