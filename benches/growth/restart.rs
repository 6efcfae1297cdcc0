//! How long the server takes to come up on a store of 500,000 events.

use std::time::{Duration, Instant};

use crate::{
    Result,
    client::Client,
    fill,
    report::{Bound, Report},
    server::{Server, bytes_on_disk},
};

const EVENTS: usize = 500_000;
const ROOMS: usize = 20;
const MEMBERS: usize = 10;
const RESTART_BOUND_S: f64 = 20.0;

pub async fn run(report: &mut Report) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("data");
    let app = fill::open(&data).await?;
    let mut rooms = Vec::new();
    for _ in 0..ROOMS {
        rooms.push(fill::room_of(&app, MEMBERS).await?);
    }
    let start = Instant::now();
    fill::messages(&app, &rooms, EVENTS).await?;
    report.add("filling: events/s without HTTP", EVENTS as f64 / start.elapsed().as_secs_f64(), Bound::None);
    app.close().await;
    drop(app);
    report.add("store of 500,000 events: MiB", bytes_on_disk(&data)? / (1 << 20) as f64, Bound::None);

    let start = Instant::now();
    let server = Server::spawn(&data)?;
    let client = Client::new(&server.base)?;
    let mut health = None;
    // Any answer says that somebody is there; only 200 that clients are served.
    loop {
        if let Ok((status, _)) = client.get_status("/health").await {
            health.get_or_insert(start.elapsed());
            if status == 200 {
                break;
            }
        }
        if start.elapsed() > Duration::from_secs(120) {
            return Err("the server did not come up".into());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let health = health.unwrap_or(start.elapsed()).as_secs_f64();
    report.add("restart: s until /health answers", health, Bound::AtMost(2.0));
    report.add(
        "restart: s until clients are served",
        start.elapsed().as_secs_f64(),
        Bound::AtMost(RESTART_BOUND_S),
    );
    report.add("restart: RSS in MiB", server.rss_mib()?, Bound::None);
    server.stop().await?;
    Ok(())
}
