//! The presence of those who share a room with the user: who changed, and who came within sight.
//! * A client that was told of everybody when it first asked hears of changes only. So whoever it meets later, because the
//!   user or they joined a room, is told of with the answer that shows the join.

use std::collections::{BTreeSet, HashSet};

use hearth_rooms::{RoomSn, read::RoomEvent};
use hearth_store::StoreError;
use hearth_users::PresenceView;
use ruma::{OwnedUserId, UserId};

use super::{ClientSync, MAX_PRESENCE, Round, write::List};

/// Who came within sight of a user in the time of one answer.
#[derive(Default)]
pub(super) struct Arrivals {
    /// Rooms that the user came into.
    rooms: HashSet<RoomSn>,
    /// Who came into other rooms of the user's.
    users: BTreeSet<OwnedUserId>,
}

impl Arrivals {
    /// Notes a room that the user came into.
    pub(super) fn enter(&mut self, room: RoomSn) {
        self.rooms.insert(room);
    }

    /// Notes who joined by one of these events, at most as many as an answer tells the presence of.
    pub(super) fn note<'a>(&mut self, events: impl Iterator<Item = &'a RoomEvent>) {
        #[derive(serde::Deserialize)]
        struct Content<'a> {
            membership: &'a str,
        }
        for event in events.filter(|event| &*event.client.kind == "m.room.member") {
            let is_join =
                event.client.content_as().is_some_and(|content: Content<'_>| content.membership == "join");
            let user =
                event.client.state_key.as_deref().filter(|_| is_join && self.users.len() < MAX_PRESENCE);
            self.users.extend(user.and_then(|user| UserId::parse(user).ok()));
        }
    }

    fn is_empty(&self) -> bool {
        self.rooms.is_empty() && self.users.is_empty()
    }
}

impl ClientSync {
    /// Writes the presence of those who share a room with the user; whether there was any to tell.
    pub(super) async fn push_presence(
        &self,
        round: &Round<'_>,
        list: &mut List<'_>,
    ) -> Result<bool, StoreError> {
        if !self.wants_presence(round.request) {
            return Ok(false);
        }
        let (presence, filter) = (self.users.presence(), &round.request.filter.presence);
        let wanted = |user: &UserId| filter.wants_sender(user.as_str());
        let seen = round.since.filter(|since| since.boot == self.boot).map_or(0, |since| since.presence);
        let (changed, _) = presence.changes_since(seen, MAX_PRESENCE, wanted);
        let arrivals = std::mem::take(&mut *round.arrivals.lock());
        if changed.is_empty() && arrivals.is_empty() {
            return Ok(false);
        }
        let mine: HashSet<RoomSn> = round
            .active
            .places()
            .into_iter()
            .filter(|(_, place)| place.is_joined())
            .map(|(room, _)| room)
            .collect();
        let mut told = Vec::new();
        for (user, view) in changed {
            if user == round.request.user || self.shares_room(&mine, &user).await? {
                told.push((user, view));
            }
        }
        if !arrivals.is_empty() {
            let already: HashSet<OwnedUserId> = told.iter().map(|(user, _)| user.clone()).collect();
            let (known, _) = presence.changes_since(0, MAX_PRESENCE, wanted);
            for (user, view) in known {
                let is_met = user != round.request.user && !already.contains(&user);
                if is_met
                    && (arrivals.users.contains(&user) || self.shares_room(&arrivals.rooms, &user).await?)
                {
                    told.push((user, view));
                }
            }
        }
        told.retain(|(user, _)| !round.ignored.contains(user));
        if told.is_empty() {
            return Ok(false);
        }
        let out = list.key("presence");
        out.extend_from_slice(b"{\"events\":[");
        let mut events = List::new(out);
        for (user, view) in &told {
            events.next().extend_from_slice(event(user, view).to_string().as_bytes());
        }
        out.extend_from_slice(b"]}");
        Ok(true)
    }
}

fn event(user: &UserId, view: &PresenceView) -> serde_json::Value {
    let mut content = serde_json::json!({ "presence": view.presence.as_str() });
    if let Some(message) = &view.status_msg {
        content["status_msg"] = message.as_str().into();
    }
    if let Some(ago) = view.last_active_ago_ms {
        content["last_active_ago"] = ago.into();
    }
    content["currently_active"] = view.currently_active.into();
    serde_json::json!({ "type": "m.presence", "sender": user, "content": content })
}
