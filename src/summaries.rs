//! What can be told of a room in a line: for the public list and for those who think of joining.

use std::sync::Arc;

use hearth_rooms::{RoomSn, Rooms, SnapshotId};
use hearth_store::StoreError;
use quick_cache::sync::Cache;
use serde::{Deserialize, Serialize};
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

/// Which rooms of a list are looked for.
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Filter {
    #[serde(skip_serializing_if = "Option::is_none")]
    generic_search_term: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    room_types: Option<Vec<Option<String>>>,
}

impl Filter {
    /// Whether a room is among those that are looked for.
    pub fn matches(&self, summary: &Summary) -> bool {
        let type_fits = self
            .room_types
            .as_ref()
            .is_none_or(|types| types.iter().any(|wanted| wanted.as_deref() == summary.room_type.as_deref()));
        let term = self.generic_search_term.as_deref().unwrap_or_default().to_lowercase();
        let texts = [&summary.name, &summary.topic, &summary.canonical_alias];
        let mut texts = texts.into_iter().flatten();
        type_fits && (term.is_empty() || texts.any(|text| text.to_lowercase().contains(&term)))
    }
}

/// Rooms of a page at most, and where nobody says how many.
const PAGE_MAX: u64 = 500;
const PAGE_DEFAULT: u64 = 100;

/// A page of a list of rooms.
#[derive(Debug, Serialize)]
pub struct Page<'a> {
    chunk: &'a [Arc<Summary>],
    #[serde(skip_serializing_if = "Option::is_none")]
    next_batch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_batch: Option<String>,
    total_room_count_estimate: usize,
}

impl<'a> Page<'a> {
    /// The page of these rooms that begins at a token; `None` if the token is none of ours.
    pub fn of(found: &'a mut [Arc<Summary>], since: Option<&str>, limit: Option<u64>) -> Option<Self> {
        // Large rooms first; among equals the order must not change between two pages.
        found.sort_by(|a, b| {
            b.num_joined_members.cmp(&a.num_joined_members).then_with(|| a.room_id.cmp(&b.room_id))
        });
        let limit = usize::try_from(limit.unwrap_or(PAGE_DEFAULT).clamp(1, PAGE_MAX)).unwrap_or(1);
        let start = match since.filter(|since| !since.is_empty()) {
            Some(since) => since.strip_prefix('p')?.parse::<usize>().ok()?,
            None => 0,
        };
        let start = start.min(found.len());
        let end = start.saturating_add(limit).min(found.len());
        Some(Page {
            chunk: &found[start..end],
            next_batch: (end < found.len()).then(|| format!("p{end}")),
            prev_batch: (start > 0).then(|| format!("p{}", start.saturating_sub(limit))),
            total_room_count_estimate: found.len(),
        })
    }
}
