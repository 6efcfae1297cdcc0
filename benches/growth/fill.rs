//! Large rooms, written through the same crates as the server's, without HTTP and accounts.

use std::{path::Path, sync::Arc};

use hearth::{app::App, config::Config, http::Shutdown};
use hearth_rooms::{CreateRoom, Join, Profile, Send};
use hearth_store::Commit;
use ruma::{OwnedRoomId, OwnedUserId, UserId};
use serde_json::{Map, json, value::to_raw_value};
use tokio::task::JoinSet;

use crate::Result;

/// Writers at work at once.
const WRITERS: usize = 256;

/// The server's parts on a data directory.
pub async fn open(data: &Path) -> Result<App> {
    let config = Config { data_dir: data.to_owned(), ..Config::default() };
    Ok(App::open(Arc::new(config), Shutdown::default()).await?)
}

pub fn user(n: usize) -> Result<OwnedUserId> {
    Ok(UserId::parse(format!("@member{n}:localhost"))?)
}

/// A public room of the first of `members` users, with all of them in it.
pub async fn room_of(app: &App, members: usize) -> Result<OwnedRoomId> {
    let mut create = CreateRoom::new(user(0)?);
    create.preset = hearth_rooms::Preset::PublicChat;
    let room = app.rooms.create(&create, Commit::new()).await?.room_id;
    let mut joins = JoinSet::new();
    for n in 1..members {
        if joins.len() >= WRITERS
            && let Some(done) = joins.join_next().await
        {
            done??;
        }
        let (rooms, room, user) = (app.rooms.clone(), room.clone(), user(n)?);
        joins.spawn(async move {
            let profile = Profile { display_name: Some(format!("Member {n}")), avatar_url: None };
            let join = Join { room, user, profile, reason: None, custom: Map::new() };
            rooms.join(&join, Commit::new()).await?;
            Result::Ok(())
        });
    }
    while let Some(done) = joins.join_next().await {
        done??;
    }
    Ok(room)
}

/// An event of a user.
pub fn event(
    room: &OwnedRoomId,
    sender: OwnedUserId,
    kind: &str,
    state_key: Option<String>,
    content: &serde_json::Value,
) -> Result<Send> {
    Ok(Send {
        room: room.clone(),
        sender,
        kind: kind.into(),
        state_key,
        content: to_raw_value(content)?,
        redacts: None,
        txn: None,
        timestamp_ms: None,
    })
}

/// Sends messages to rooms in turn.
pub async fn messages(app: &App, rooms: &[OwnedRoomId], count: usize) -> Result<()> {
    let mut sends = JoinSet::new();
    for n in 0..count {
        if sends.len() >= WRITERS
            && let Some(done) = sends.join_next().await
        {
            done??;
        }
        let body = format!("{:.<120}", format!("message {n} "));
        let content = json!({ "msgtype": "m.text", "body": body });
        let send = event(&rooms[n % rooms.len()], user(0)?, "m.room.message", None, &content)?;
        let rooms = app.rooms.clone();
        sends.spawn(async move { Result::Ok(rooms.send(&send, Commit::new()).await.map(|_| ())?) });
    }
    while let Some(done) = sends.join_next().await {
        done??;
    }
    Ok(())
}
