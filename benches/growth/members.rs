//! What a state change costs in a room of 100 and in one of 20,000 members, and how much snapshot data it leaves.

use std::time::Instant;

use hearth::app::App;
use hearth_rooms::tables::STATE_NODES;
use hearth_store::{Commit, Order};
use ruma::OwnedRoomId;
use serde_json::json;

use crate::{
    Result, fill,
    report::{Bound, Report, median},
};

const SMALL: usize = 100;
const LARGE: usize = 20_000;
const CHANGES: usize = 200;
const TURNS: usize = 5;

pub async fn run(report: &mut Report) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let app = fill::open(&dir.path().join("data")).await?;
    let small = fill::room_of(&app, SMALL).await?;
    let start = Instant::now();
    let large = fill::room_of(&app, LARGE).await?;
    report.add(
        "20,000 joins of one room: joins/s",
        LARGE as f64 / start.elapsed().as_secs_f64(),
        Bound::None,
    );

    let mut times = [Vec::new(), Vec::new()];
    let before = [snapshot_bytes(&app, &small).await?, snapshot_bytes(&app, &large).await?];
    for turn in 0..TURNS {
        for (n, (room, members)) in [(&small, SMALL), (&large, LARGE)].into_iter().enumerate() {
            for change in 0..CHANGES {
                times[n].push(rename(&app, room, members, turn * CHANGES + change).await?);
            }
        }
    }
    let after = [snapshot_bytes(&app, &small).await?, snapshot_bytes(&app, &large).await?];
    let bytes: Vec<f64> = before.iter().zip(after).map(|(b, a)| (a - b) / (TURNS * CHANGES) as f64).collect();
    let [small_ms, large_ms] = times.map(median);
    report.add("state change, 100 members: p50 in ms", small_ms, Bound::None);
    report.add("state change, 20,000 members: p50 in ms", large_ms, Bound::None);
    report.add("state change, 20,000 members against 100", large_ms / small_ms, Bound::AtMost(2.0));
    report.add("snapshot bytes per change, 100 members", bytes[0], Bound::None);
    report.add("snapshot bytes per change, 20,000 members", bytes[1], Bound::AtMost(1.2 * 1024.0));
    app.close().await;
    Ok(())
}

/// A member takes another name.
async fn rename(app: &App, room: &OwnedRoomId, members: usize, n: usize) -> Result<f64> {
    // A stride over all members.
    let user = fill::user((n * 7919) % members)?;
    let content = json!({ "membership": "join", "displayname": format!("renamed {n}") });
    let send = fill::event(room, user.clone(), "m.room.member", Some(user.to_string()), &content)?;
    let start = Instant::now();
    app.rooms.send(&send, Commit::new()).await?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

/// The bytes of keys and values of a room's state nodes.
async fn snapshot_bytes(app: &App, room: &OwnedRoomId) -> Result<f64> {
    let room = app.rooms.room(room).await?.ok_or("the room is gone")?;
    let rows =
        app.store.range(&STATE_NODES, STATE_NODES.prefix(&room.sn), Order::Forward, usize::MAX).await?;
    Ok(rows.iter().map(|(_, node)| node.0.len() + 9).sum::<usize>() as f64)
}
