//! How a user stood to a room at the position that an answer ends with.
//! * The tracker's lists are of now, which may be later: who left meanwhile was there up to then, and is shown the room as
//!   one who is in it; the leaving comes with the next answer. Each answer is written as if nothing had happened since.

use hearth_rooms::{RoomSn, tables::MembershipChange};
use hearth_store::{StoreError, StreamPosition};

use super::{ClientSync, Round, tracker::Place};

impl ClientSync {
    /// The user's place in a room as it was at the answer's end; none if there was none.
    pub(super) async fn as_of(
        &self,
        round: &Round<'_>,
        room: RoomSn,
        place: Place,
    ) -> Result<Option<Place>, StoreError> {
        if place.since <= round.next.position {
            return Ok(Some(place));
        }
        let after = round.since.map_or(StreamPosition::ZERO, |since| since.position);
        let changes = self.reader.membership_changes(&round.request.user, after, place.since).await?;
        Ok(round.stood(&changes, room))
    }
}

impl Round<'_> {
    /// The same from what changed since the client's last answer. That a room was forgotten says nothing of how the user
    /// stood to it.
    pub(super) fn stood(
        &self,
        changes: &[(StreamPosition, MembershipChange)],
        room: RoomSn,
    ) -> Option<Place> {
        let upto = self.next.position;
        let of_room = || changes.iter().filter(|(_, change)| change.room == room);
        let mut until_then = of_room().filter(|(at, change)| *at <= upto && !change.forgotten);
        if let Some((since, change)) = until_then.next_back() {
            return Some(Place { membership: change.membership, since: *since, changed: upto });
        }
        // Nothing in between: it was what the first change after that found.
        let (_, next) = of_room().find(|(at, _)| *at > upto)?;
        let membership = next.before.filter(|_| !next.forgotten)?;
        let since = self.since.map_or(StreamPosition::ZERO, |since| since.position);
        Some(Place { membership, since, changed: upto })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hearth_dag::{Keypair, LocalServers, Signer};
    use hearth_rooms::{
        CreateRoom, Invite, Join, Preset, Profile, Removal, Remove, Rooms, RoomsOptions, Send, SystemClock,
        read::{FilterDefinition, SyncToken},
    };
    use hearth_store::{Commit, Store};
    use hearth_users::{Options, Users};
    use ruma::{
        OwnedRoomId, OwnedServerName, OwnedUserId, events::TimelineEventType, presence::PresenceState,
    };
    use serde_json::{Map, Value, json, value::to_raw_value};

    use super::super::{ClientSync, StateWanted, SyncRequest};

    struct World {
        rooms: Rooms,
        sync: ClientSync,
        room: OwnedRoomId,
    }

    fn user(name: &str) -> OwnedUserId {
        format!("@{name}:hearth.test").try_into().unwrap()
    }

    impl World {
        async fn new(preset: Preset) -> Self {
            let store = Store::memory().await;
            let name: OwnedServerName = "hearth.test".try_into().unwrap();
            let key: Arc<dyn Signer> = Arc::new(Keypair::new(name, "1", &[7; 32]).unwrap());
            let clock = Arc::new(SystemClock);
            let options = RoomsOptions::default();
            let rooms = Rooms::new(store.clone(), LocalServers::new([key]), clock.clone(), &options);
            let now: hearth_users::Clock = Arc::new(move || hearth_rooms::Clock::now_ms(&*clock));
            let users = Users::open(store.clone(), Options::new(now.clone()));
            let sync = ClientSync::start(store, rooms.reader().clone(), users, now, 1);
            let create = CreateRoom { preset, ..CreateRoom::new(user("alice")) };
            let room = rooms.create(&create, Commit::new()).await.unwrap().room_id;
            let world = Self { rooms, sync, room };
            // From now on what happens is followed.
            world.sync.tracker.active(&user("bob")).await.unwrap();
            world
        }

        async fn joins(&self) {
            let (room, user) = (self.room.clone(), user("bob"));
            let join = Join { room, user, profile: Profile::default(), reason: None, custom: Map::new() };
            self.rooms.join(&join, Commit::new()).await.unwrap();
        }

        async fn is_invited(&self) {
            let (room, sender, user) = (self.room.clone(), user("alice"), user("bob"));
            let (profile, reason, is_direct) = (Profile::default(), None, false);
            let invite = Invite { room, sender, user, profile, reason, is_direct };
            self.rooms.invite(&invite, Commit::new()).await.unwrap();
        }

        async fn is_out(&self, by: &str, removal: Removal) {
            let (room, sender) = (self.room.clone(), user(by));
            let remove = Remove { room, sender, user: user("bob"), removal, reason: None };
            self.rooms.remove(&remove, Commit::new()).await.unwrap();
        }

        async fn forgets(&self) {
            self.rooms.forget(&user("bob"), &self.room).await.unwrap();
        }

        async fn hears(&self, text: &str) {
            let send = Send {
                room: self.room.clone(),
                sender: user("alice"),
                kind: TimelineEventType::RoomMessage,
                state_key: None,
                content: to_raw_value(&json!({ "msgtype": "m.text", "body": text })).unwrap(),
                redacts: None,
                txn: None,
                timestamp_ms: None,
            };
            self.rooms.send(&send, Commit::new()).await.unwrap();
        }

        /// A look that ends there, though the tracker knows of everything that has happened: the section that the room is
        /// in, and the texts or memberships of its timeline.
        async fn look(&self, since: Option<SyncToken>, next: SyncToken) -> Option<(String, Vec<String>)> {
            self.sync.now().await;
            let (user, filter) = (user("bob"), Arc::new(FilterDefinition::parse("{}").unwrap()));
            let request = SyncRequest {
                user: user.clone(),
                device: "PHONE".into(),
                filter,
                since,
                full_state: false,
                set_presence: PresenceState::Offline,
                timeout: std::time::Duration::ZERO,
                state: StateWanted::Before,
                to_device: true,
            };
            let active = self.sync.tracker.active(&user).await.unwrap();
            let sent = self.sync.lazy.of(&(user, request.device.clone()), since);
            let (json, _) = self.sync.look(&request, &active, since, next, &sent).await.unwrap()?;
            let answer: Value = serde_json::from_slice(&json).unwrap();
            let sections = answer["rooms"].as_object()?.clone();
            assert_eq!(sections.len(), 1, "{answer}");
            let (section, rooms) = sections.into_iter().next().unwrap();
            let events = rooms[self.room.as_str()]["timeline"]["events"].as_array().cloned();
            let shown = |event: Value| {
                let content = &event["content"];
                content["body"].as_str().or(content["membership"].as_str()).unwrap_or_default().to_owned()
            };
            Some((section, events.unwrap_or_default().into_iter().map(shown).collect()))
        }
    }

    fn told(section: &str, timeline: &[&str]) -> Option<(String, Vec<String>)> {
        Some((section.to_owned(), timeline.iter().map(|text| (*text).to_owned()).collect()))
    }

    #[tokio::test]
    async fn who_leaves_during_a_look_is_shown_the_room_and_then_the_leaving() {
        for forgets in [false, true] {
            let world = World::new(Preset::PublicChat).await;
            world.joins().await;
            let first = world.sync.now().await;
            world.hears("one").await;
            let second = world.sync.now().await;
            world.hears("two").await;
            world.is_out("bob", Removal::Leave).await;
            if forgets {
                world.forgets().await;
            }
            let third = world.sync.now().await;
            assert_eq!(world.look(Some(first), second).await, told("join", &["one"]), "{forgets}");
            assert_eq!(world.look(Some(second), third).await, told("leave", &["two", "leave"]), "{forgets}");
            assert_eq!(world.look(Some(third), world.sync.now().await).await, None);
            // Who looks for the first time was there, too.
            let (section, timeline) = world.look(None, second).await.unwrap_or_default();
            let wanted = if forgets { "" } else { "join" };
            assert_eq!(section, wanted);
            assert!(forgets || timeline.last().unwrap() == "one");
        }
    }

    #[tokio::test]
    async fn what_follows_a_leaving_hides_nothing_of_what_was_before() {
        let world = World::new(Preset::PublicChat).await;
        world.joins().await;
        let first = world.sync.now().await;
        world.hears("one").await;
        world.is_out("alice", Removal::Kick).await;
        let second = world.sync.now().await;
        world.is_out("alice", Removal::Ban).await;
        let third = world.sync.now().await;
        assert_eq!(world.look(Some(first), second).await, told("leave", &["one", "leave"]));
        let (section, _) = world.look(Some(second), third).await.unwrap();
        assert_eq!(section, "leave");

        let world = World::new(Preset::PublicChat).await;
        world.joins().await;
        let first = world.sync.now().await;
        world.hears("one").await;
        world.is_out("bob", Removal::Leave).await;
        let second = world.sync.now().await;
        world.joins().await;
        let third = world.sync.now().await;
        assert_eq!(world.look(Some(first), second).await, told("leave", &["one", "leave"]));
        let (section, timeline) = world.look(Some(second), third).await.unwrap();
        assert_eq!((&*section, timeline.last().unwrap().as_str()), ("join", "join"));
    }

    #[tokio::test]
    async fn what_is_yet_to_come_is_told_once() {
        let world = World::new(Preset::PrivateChat).await;
        let first = world.sync.now().await;
        world.is_invited().await;
        let second = world.sync.now().await;
        assert_eq!(world.look(Some(first), first).await, None);
        assert_eq!(world.look(Some(first), second).await, told("invite", &[]));
        world.is_out("bob", Removal::Leave).await;
        let third = world.sync.now().await;
        world.is_invited().await;
        let fourth = world.sync.now().await;
        assert_eq!(world.look(Some(first), second).await, told("invite", &[]), "it is an invite again");
        assert_eq!(world.look(Some(second), third).await, told("leave", &[]));
        assert_eq!(world.look(Some(third), fourth).await, told("invite", &[]));
        world.joins().await;
        let fifth = world.sync.now().await;
        assert_eq!(world.look(Some(third), fourth).await, None, "what came of it says all");
        let (section, timeline) = world.look(Some(fourth), fifth).await.unwrap();
        assert_eq!((&*section, timeline.last().unwrap().as_str()), ("join", "join"));
    }
}
