//! A room full of forks comes in every order to the same state: what a peer made of it as it grew, each of us makes of
//! it in whatever order its events arrive, with repeats and restarts between.

use hearth_dag::Pdu;
use hearth_rooms::*;
use ruma::{OwnedRoomId, OwnedUserId};
use serde_json::{Value, json};

use crate::peers::*;
use crate::support::{World, user};

/// Events of a room beside those that it is made of.
const EVENTS: usize = 60;

/// Numbers that look random and are the same each time (splitmix64).
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % sides as u64) as usize
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.throw(from.len())]
    }

    fn shuffle<T>(&mut self, all: &mut [T]) {
        for last in (1..all.len()).rev() {
            all.swap(last, self.throw(last + 1));
        }
    }
}

/// A room in which Alice is, as it was made by a peer.
struct Story {
    peer: Peer,
    room: OwnedRoomId,
    enter: EnterRoom,
    /// Its events since Alice came, each after those that it follows; the last follows all others.
    events: Vec<Pdu>,
}

impl Story {
    async fn new(dice: &mut Dice) -> Self {
        let peer = Peer::new("peer.test").await;
        let room = peer.room("bob", Preset::PublicChat).await;
        peer.join("carol", &room).await;
        peer.join("dora", &room).await;
        let enter = peer.let_in(&room, &user("alice")).await;
        let mut story = Story { peer, room, events: vec![enter.join.pdu().clone()], enter };
        for _ in 0..EVENTS {
            match dice.throw(5) {
                0 => story.merges(dice).await,
                _ => story.goes_on(dice).await,
            }
        }
        story.ends().await;
        story.events.remove(0);
        story
    }

    /// Somebody does something after one of the last events, whether or not they may.
    async fn goes_on(&mut self, dice: &mut Dice) {
        let recent = self.events.len().min(8);
        let parent = dice.pick(&self.events[self.events.len() - recent..]).clone();
        let users: Vec<OwnedUserId> = ["bob", "carol", "dora"].map(|name| self.peer.user(name)).into();
        let (by, about) = (dice.pick(&users).clone(), dice.pick(&users[1..]).clone());
        let number = self.events.len();
        let member =
            |membership: &str| ("m.room.member", about.to_string(), json!({ "membership": membership }));
        let levels =
            |power: usize| json!({ "users": { &about: power * 50 }, "state_default": 50, "ban": 50 });
        let (kind, state_key, content): (&str, String, Value) = match dice.throw(9) {
            0 | 1 => ("m.room.topic", String::new(), json!({ "topic": number })),
            2 => ("m.room.name", String::new(), json!({ "name": number })),
            3 => ("m.room.power_levels", String::new(), levels(dice.throw(3))),
            4 => member("leave"),
            5 => member("ban"),
            6 => member("invite"),
            7 => ("m.room.member", by.to_string(), json!({ "membership": "join", "reason": number })),
            _ => {
                let rule = if dice.throw(2) == 0 { "invite" } else { "public" };
                ("m.room.join_rules", String::new(), json!({ "join_rule": rule }))
            }
        };
        let say = Say { sender: &by, kind, state_key: Some(&state_key), content };
        let state = self.state_after(&parent).await;
        let pdu = forge(&self.room, self.rules(), say, &[&parent], &state);
        self.takes(pdu).await;
    }

    /// Bob follows several events at once.
    async fn merges(&mut self, dice: &mut Dice) {
        let mut prev: Vec<Pdu> = Vec::new();
        for _ in 0..2 + dice.throw(3) {
            let event = dice.pick(&self.events).clone();
            if !prev.contains(&event) {
                prev.push(event);
            }
        }
        self.bob_follows(prev, "and so").await;
    }

    /// Bob follows all that nobody follows, as many at a time as an event may.
    async fn ends(&mut self) {
        loop {
            let is_followed = |event: &Pdu| {
                self.events.iter().any(|other| other.prev_events().contains(&event.event_id().to_owned()))
            };
            let mut ends: Vec<Pdu> =
                self.events.iter().filter(|event| !is_followed(event)).cloned().collect();
            let is_last = ends.len() <= 20;
            ends.truncate(20);
            self.bob_follows(ends, "the end").await;
            if is_last {
                return;
            }
        }
    }

    async fn bob_follows(&mut self, prev: Vec<Pdu>, text: &str) {
        let state = self.state_after(&prev[0]).await;
        let prev: Vec<&Pdu> = prev.iter().collect();
        let bob = self.peer.user("bob");
        let pdu = forge(&self.room, self.rules(), Say::message(&bob, text), &prev, &state);
        self.takes(pdu).await;
    }

    async fn takes(&mut self, pdu: Pdu) {
        let received = self.peer.rooms.receive(&built(&pdu)).await.unwrap();
        assert!(!matches!(received, Received::Missing { .. } | Received::Outlier), "{received:?}");
        self.events.push(pdu);
    }

    fn rules(&self) -> &'static hearth_dag::RoomRules {
        hearth_dag::RoomRules::of(&self.enter.version).unwrap()
    }

    async fn state_after(&self, event: &Pdu) -> State {
        let id = event.event_id().to_owned();
        let mut state = State::new();
        for pdu in self.peer.state_before(&self.room, &id).await {
            state = with(&state, &pdu);
        }
        let info = self.peer.rooms.room(&self.room).await.unwrap().unwrap();
        let held = self.peer.rooms.events().by_id(&info, &id).await.unwrap().unwrap();
        match event.state_key().is_some() && held.status() != Status::Rejected {
            true => with(&state, event),
            false => state,
        }
    }
}

/// All events come to Alice's server, in an order of the dice.
async fn arrive(story: &Story, dice: &mut Dice) -> World {
    let mut world = World::new().await;
    world.rooms.enter_room(story.enter.clone()).await.unwrap();
    let mut arriving: Vec<&Pdu> = story.events.iter().collect();
    for _ in 0..EVENTS / 4 {
        arriving.push(dice.pick(&story.events));
    }
    dice.shuffle(&mut arriving);
    for pdu in arriving {
        match dice.throw(4) {
            0 => drop(world.rooms.enqueue(&built(pdu), &story.peer.name).await.unwrap()),
            _ => {
                if let Received::Missing { .. } = world.rooms.receive(&built(pdu)).await.unwrap() {
                    world.rooms.enqueue(&built(pdu), &story.peer.name).await.unwrap();
                }
            }
        }
        match dice.throw(12) {
            0 => world = World::on(world.store.clone()),
            1..4 => drop(world.rooms.receive_queued(&story.room).await.unwrap()),
            _ => {}
        }
    }
    while !world.rooms.receive_queued(&story.room).await.unwrap().is_empty() {}
    assert!(world.rooms.rooms_with_queues().await.unwrap().is_empty());
    world
}

#[tokio::test]
async fn in_every_order_a_room_comes_to_the_same_state() {
    let (mut forks, mut refused) = (0, 0);
    for seed in 0..6 {
        let mut dice = Dice(seed);
        let story = Story::new(&mut dice).await;
        let expected = state_of(&story.peer.rooms, &story.room).await;
        let info = story.peer.rooms.room(&story.room).await.unwrap().unwrap();
        forks += story.events.iter().filter(|event| event.prev_events().len() > 1).count();
        for order in 0..3 {
            let world = arrive(&story, &mut dice).await;
            let what = format!("seed {seed}, order {order}");
            assert_eq!(state_of(&world.rooms, &story.room).await, expected, "{what}");
            let last = world.by_id(&story.room, &story.events.last().unwrap().event_id().to_owned()).await;
            assert_eq!(world.head(&story.room).await.extremities, [last.sn], "{what}");
            let shown = ids(&timeline(&world.rooms, &world.store, &story.room).await);
            for event in &story.events {
                let id = event.event_id().to_owned();
                let theirs = story.peer.rooms.events().by_id(&info, &id).await.unwrap().unwrap();
                let ours = world.by_id(&story.room, &id).await;
                let is_rejected = |event: &StoredEvent| event.status() == Status::Rejected;
                assert_eq!(is_rejected(&ours), is_rejected(&theirs), "{what}: {id}");
                assert_eq!(shown.contains(&id), ours.status() == Status::Accepted, "{what}: {id}");
                refused += usize::from(is_rejected(&ours));
            }
            assert_eq!(world.member_rows(&story.room).await.len(), {
                let is_member = |(kind, _): &&(String, String)| kind == "m.room.member";
                expected.keys().filter(is_member).count()
            });
        }
    }
    assert!(forks > 50 && refused > 200, "{forks} forks, {refused} refused");
}
