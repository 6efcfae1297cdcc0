//! Room tags: the account data `m.tag` of a room, edited tag by tag.

use std::collections::BTreeMap;

use bytes::Bytes;
use hearth_store::StoreError;
use ruma::{RoomId, UserId};
use serde_json::{Map, Value as Json, json};

use crate::{ACCOUNT_DATA_MAX, AccountDataError, Users};

/// What is said about a tag; at least its `order`, between 0 and 1, where it has one.
pub type TagInfo = Map<String, Json>;

const TAGS: &str = "m.tag";
const TAG_MAX: usize = 255;

impl Users {
    /// The user's tags of a room.
    pub async fn tags(&self, user: &UserId, room: &RoomId) -> Result<BTreeMap<String, TagInfo>, StoreError> {
        let row = self.read_account_data(user, Some(room), TAGS).await?;
        Ok(tags_of(row.as_ref().map(|row| &*row.value.0)).into_iter().collect())
    }

    /// Puts a tag on a room, over what it said before.
    pub async fn set_tag(
        &self,
        user: &UserId,
        room: &RoomId,
        tag: &str,
        info: TagInfo,
    ) -> Result<(), AccountDataError> {
        if tag.len() > TAG_MAX {
            return Err(AccountDataError::TooLarge);
        }
        let edit = |before: Option<&[u8]>| {
            let mut tags = tags_of(before);
            tags.insert(tag.to_owned(), info.clone());
            content(&tags).map(Some)
        };
        self.edit_account_data(user, Some(room), TAGS, edit).await.map(drop)
    }

    /// Takes a tag off a room. One that is not there is no change.
    pub async fn remove_tag(&self, user: &UserId, room: &RoomId, tag: &str) -> Result<(), AccountDataError> {
        let edit = |before: Option<&[u8]>| {
            let mut tags = tags_of(before);
            match tags.remove(tag) {
                Some(_) => content(&tags).map(Some),
                None => Ok(None),
            }
        };
        self.edit_account_data(user, Some(room), TAGS, edit).await.map(drop)
    }
}

/// The tags in a content; what is not one is passed over.
fn tags_of(content: Option<&[u8]>) -> BTreeMap<String, TagInfo> {
    let content: Json = content.and_then(|bytes| serde_json::from_slice(bytes).ok()).unwrap_or(Json::Null);
    let tags = content["tags"].as_object().cloned().unwrap_or_default();
    let tags = tags.into_iter().map(|(tag, info)| match info {
        Json::Object(info) => (tag, info),
        _ => (tag, Map::new()),
    });
    tags.collect()
}

fn content(tags: &BTreeMap<String, TagInfo>) -> Result<Bytes, AccountDataError> {
    let content = json!({ "tags": tags }).to_string();
    if content.len() > ACCOUNT_DATA_MAX {
        return Err(AccountDataError::TooLarge);
    }
    Ok(content.into())
}
