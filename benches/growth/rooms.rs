//! What an incremental `/sync` costs a user in 10 and in 1,000 rooms where nothing happens.

use std::time::Instant;

use crate::{
    Result,
    client::{Client, User},
    report::{Bound, Report, median},
    server::Server,
};

const SYNCS: usize = 1_000;
const TURNS: usize = 5;

pub async fn run(report: &mut Report) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = Server::start(&dir.path().join("data")).await?;
    let client = Client::new(&server.base)?;
    let few = user_with_rooms(&client, "few", 10).await?;
    let many = user_with_rooms(&client, "many", 1_000).await?;
    let mut since = [few.sync(None).await?, many.sync(None).await?];

    let (mut times, mut cpu) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for _ in 0..TURNS {
        for (n, user) in [&few, &many].into_iter().enumerate() {
            let before = server.cpu_ms()?;
            for _ in 0..SYNCS {
                let start = Instant::now();
                since[n] = user.sync(Some(&since[n])).await?;
                times[n].push(start.elapsed().as_secs_f64() * 1e3);
            }
            cpu[n].push((server.cpu_ms()? - before) / SYNCS as f64);
        }
    }
    let [few_ms, many_ms] = times.map(median);
    let [few_cpu, many_cpu] = cpu.map(median);
    report.add("incremental sync in 10 idle rooms: p50 in ms", few_ms, Bound::None);
    report.add("incremental sync in 1,000 idle rooms: p50 in ms", many_ms, Bound::None);
    report.add("incremental sync, 1,000 rooms against 10: time", many_ms / few_ms, Bound::AtMost(1.5));
    report.add("incremental sync, 1,000 rooms against 10: CPU", many_cpu / few_cpu, Bound::AtMost(1.5));
    server.stop().await?;
    Ok(())
}

async fn user_with_rooms(client: &Client, name: &str, rooms: usize) -> Result<User> {
    let user = client.register(name).await?;
    for _ in 0..rooms {
        user.create_room().await?;
    }
    Ok(user)
}
