//! What can be told of a room in a line: for the public list and for those who think of joining.

use std::sync::Arc;

use hearth_rooms::{RoomSn, Rooms, SnapshotId};
use hearth_store::StoreError;
use quick_cache::sync::Cache;
use serde::Serialize;
use serde_json::Value;

/// What can be told of a room in a line.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    pub room_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canonical_alias: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub avatar_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room_type: Option<String>,
    pub join_rule: String,
    pub world_readable: bool,
    pub guest_can_join: bool,
    pub num_joined_members: u32,
    #[serde(skip)]
    pub encryption: Option<String>,
    #[serde(skip)]
    pub allowed_room_ids: Vec<String>,
}

/// Rooms whose summaries are remembered.
const REMEMBERED: usize = 2_000;

/// Summaries of rooms, each remembered as long as the room's state stays.
#[derive(Clone)]
pub struct Summaries {
    rooms: Rooms,
    remembered: Arc<Cache<RoomSn, (SnapshotId, u32, Arc<Summary>)>>,
}

impl Summaries {
    /// Over these rooms.
    pub fn new(rooms: Rooms) -> Self {
        Self { rooms, remembered: Arc::new(Cache::new(REMEMBERED)) }
    }

    /// What can be told of a room now; `None` if its state is not held.
    pub async fn of(&self, room: RoomSn) -> Result<Option<Arc<Summary>>, StoreError> {
        let reader = self.rooms.reader();
        let Some(head) = self.rooms.head(room).await? else { return Ok(None) };
        let (snapshot, joined) = (head.value.snapshot, head.value.joined);
        if let Some((of, with, summary)) = self.remembered.get(&room)
            && of == snapshot
            && with == joined
        {
            return Ok(Some(summary));
        }
        let Some(row) = reader.room(room).await? else { return Ok(None) };
        let mut summary = Summary {
            room_id: row.room_id.to_string(),
            name: None,
            topic: None,
            canonical_alias: None,
            avatar_url: None,
            room_type: None,
            join_rule: "invite".into(),
            world_readable: false,
            guest_can_join: false,
            num_joined_members: joined,
            encryption: None,
            allowed_room_ids: Vec::new(),
        };
        for event in reader.other_state(room, snapshot).await? {
            if event.client.state_key.as_deref() == Some("") {
                let content: Value = event.client.content_as().unwrap_or_default();
                summary.take(&event.client.kind, &content);
            }
        }
        let summary = Arc::new(summary);
        self.remembered.insert(room, (snapshot, joined, summary.clone()));
        Ok(Some(summary))
    }
}

impl Summary {
    fn take(&mut self, kind: &str, content: &Value) {
        let text = |field: &str| content[field].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        match kind {
            "m.room.name" => self.name = text("name"),
            "m.room.topic" => self.topic = text("topic"),
            "m.room.canonical_alias" => self.canonical_alias = text("alias"),
            "m.room.avatar" => self.avatar_url = text("url"),
            "m.room.create" => self.room_type = text("type"),
            "m.room.encryption" => self.encryption = text("algorithm"),
            "m.room.guest_access" => self.guest_can_join = content["guest_access"] == "can_join",
            "m.room.history_visibility" => {
                self.world_readable = content["history_visibility"] == "world_readable";
            }
            "m.room.join_rules" => {
                self.join_rule = text("join_rule").unwrap_or_else(|| "invite".into());
                let allowed = content["allow"].as_array().into_iter().flatten();
                let rooms = allowed.filter(|condition| condition["type"] == "m.room_membership");
                let rooms = rooms.filter_map(|condition| condition["room_id"].as_str());
                self.allowed_room_ids = rooms.map(str::to_owned).collect();
            }
            _ => {}
        }
    }
}
