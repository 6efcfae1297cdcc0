//! One run: what its seed makes of servers, network and users.

use std::{sync::Arc, time::Duration};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId};
use serde_json::json;
use tokio::time::sleep;

use crate::{
    counts::Counts,
    network::Net,
    node::Node,
    world::{name, server::tokio_clock},
};

pub const SERVERS: [&str; 5] = ["a.test", "b.test", "c.test", "d.test", "e.test"];
/// Those that are in the room from the beginning. The others may come in later.
const FOUNDERS: usize = 3;
const STEPS: usize = 70;
/// After so long without any trouble, whatever is tried again was tried again.
const SETTLED_AFTER: Duration = Duration::from_secs(1_200);

/// An event that a server said it has.
pub struct Acknowledged {
    pub from: usize,
    pub event: OwnedEventId,
    /// Where it is due: at whoever the server saw in the room and who was there, for as long as that stay lasts.
    pub owed: Vec<(usize, OwnedEventId)>,
}

pub struct Run {
    pub net: Arc<Net>,
    pub nodes: Vec<Node>,
    pub room: OwnedRoomId,
    pub counts: Counts,
    pub acknowledged: Vec<Acknowledged>,
    pub forged: Vec<OwnedEventId>,
    rng: StdRng,
}

impl Run {
    pub async fn begin(seed: u64, is_printed: bool) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let net = Net::new(rng.random(), is_printed);
        let (clock, mut nodes) = (tokio_clock(), Vec::new());
        for name in SERVERS {
            nodes.push(Node::new(&net, &clock, name, rng.random()).await);
        }
        for node in &nodes {
            node.knows_the_keys_of(&SERVERS).await;
        }
        let version = ["6", "10", "11", "12"][rng.random_range(0..4)];
        let room = nodes[0].creates_a_room(version).await;
        let (counts, acknowledged, forged) = Default::default();
        let mut run = Self { net, nodes, room, counts, acknowledged, forged, rng };
        for place in 0..FOUNDERS {
            let who = if place == 0 { "u1" } else { "u0" };
            run.nodes[place].joins(who, &run.room, vec![name(SERVERS[0])]);
            assert_eq!(run.nodes[place].joined().await, Some(true));
            // All others hear of it.
            sleep(Duration::from_secs(5)).await;
        }
        run
    }

    pub async fn play(&mut self) {
        self.net.is_rough(true);
        for _ in 0..STEPS {
            match self.rng.random_range(0..40) {
                0 | 1 => self.parts(),
                2..5 => self.net.heals(),
                5 => self.ends_one().await,
                6 | 7 => self.starts_one().await,
                8..11 => self.lets_one_join().await,
                11 => self.forges().await,
                _ => self.act().await,
            }
            self.looks().await;
            let most = if self.rng.random_bool(0.1) { 8_000 } else { 400 };
            let pause = self.rng.random_range(0..most);
            sleep(Duration::from_millis(pause)).await;
        }
    }

    /// All trouble ends, and all that can happen by itself does.
    pub async fn settles(&mut self) {
        self.net.heals();
        self.net.is_rough(false);
        for node in &mut self.nodes {
            if !node.is_up() {
                node.starts().await;
            }
        }
        sleep(SETTLED_AFTER).await;
        for place in 0..self.nodes.len() {
            self.counts_join(place).await;
        }
    }

    /// One server is parted from all others, or one does not hear another.
    fn parts(&mut self) {
        self.counts.partitions += 1;
        let one = self.rng.random_range(0..SERVERS.len());
        if self.rng.random_bool(0.3) {
            let other = (one + self.rng.random_range(1..SERVERS.len())) % SERVERS.len();
            return self.net.cuts(SERVERS[one], SERVERS[other]);
        }
        for other in SERVERS.iter().filter(|other| **other != SERVERS[one]) {
            self.net.cuts(SERVERS[one], other);
            self.net.cuts(other, SERVERS[one]);
        }
    }

    async fn ends_one(&mut self) {
        let (place, is_told) = (self.rng.random_range(0..SERVERS.len()), self.rng.random_bool(0.4));
        if !self.nodes[place].is_up() {
            return self.nodes[place].starts().await;
        }
        self.net.notes(&format!("{} ends, told: {is_told}", SERVERS[place]));
        self.counts.broken_joins += usize::from(self.nodes[place].is_joining());
        self.counts_join(place).await;
        self.nodes[place].ends(is_told, &self.room).await;
        self.counts.restarts += usize::from(is_told);
        self.counts.crashes += usize::from(!is_told);
        // Most are back at once.
        if self.rng.random_bool(0.6) {
            let away = self.rng.random_range(0..1_000);
            sleep(Duration::from_millis(away)).await;
            self.nodes[place].starts().await;
        }
    }

    async fn starts_one(&mut self) {
        if let Some(node) = self.nodes.iter_mut().find(|node| !node.is_up()) {
            self.net.notes(&format!("{} starts", node.name));
            node.starts().await;
        }
    }

    /// A server that is not in the room tries to come in, for the first time or again.
    async fn lets_one_join(&mut self) {
        let mut outside = Vec::new();
        for (place, node) in self.nodes.iter().enumerate() {
            if node.is_up() && !node.is_joining() && !node.is_resident(&self.room).await {
                outside.push(place);
            }
        }
        if outside.is_empty() {
            return;
        }
        let place = outside[self.rng.random_range(0..outside.len())];
        self.counts_join(place).await;
        let through = self.rng.random_range(0..SERVERS.len());
        let mut via: Vec<OwnedServerName> = vec![name(SERVERS[through]), name(SERVERS[0])];
        via.dedup();
        self.net.notes(&format!("{} joins through {via:?}", SERVERS[place]));
        self.nodes[place].joins("u0", &self.room, via);
    }

    /// Notes what became of a join, if it is known.
    async fn counts_join(&mut self, place: usize) {
        if self.nodes[place].is_joining() {
            return;
        }
        match self.nodes[place].joined().await {
            Some(true) => self.counts.joins += 1,
            Some(false) => self.counts.refused_joins += 1,
            None => {}
        }
    }

    async fn forges(&mut self) {
        let place = self.rng.random_range(0..SERVERS.len());
        let text = self.rng.random_range(0..1_000).to_string();
        if !self.nodes[place].is_up() || !self.nodes[place].is_resident(&self.room).await {
            return;
        }
        let others: Vec<OwnedServerName> = SERVERS.iter().map(|server| name(server)).collect();
        if let Some(event) = self.nodes[place].forges(&self.room, &text, &others).await {
            self.net.notes(&format!("{} forges {event}", SERVERS[place]));
            self.counts.forged += 1;
            self.forged.push(event);
        }
    }

    fn somebody(&mut self) -> OwnedUserId {
        let node = self.rng.random_range(0..SERVERS.len());
        let user = if node == 0 && self.rng.random_bool(0.3) { "u1" } else { "u0" };
        self.nodes[node].user(user)
    }

    /// One user does something.
    async fn act(&mut self) {
        let place = self.rng.random_range(0..self.nodes.len());
        let who = self.nodes[place].user("u0");
        let text = self.rng.random_range(0..1_000).to_string();
        let other = self.somebody();
        let what = self.rng.random_range(0..100);
        // The one who made the room stays: somebody has to see the end of it.
        let stays = other == self.nodes[0].user("u0");
        if !self.nodes[place].is_up() || ((75..86).contains(&what) && stays) {
            return;
        }
        let member =
            |membership: &str| ("m.room.member", other.to_string(), json!({ "membership": membership }));
        let (kind, state_key, content) = match what {
            0..50 => ("m.room.message", String::new(), json!({ "msgtype": "m.text", "body": text })),
            50..75 => ("m.room.topic", String::new(), json!({ "topic": text })),
            75..83 => member("leave"),
            83..86 => member("ban"),
            86..92 => {
                let rule = ["public", "public", "invite"][what % 3];
                ("m.room.join_rules", String::new(), json!({ "join_rule": rule }))
            }
            _ => {
                let level = [0, 50, 60][what % 3];
                let Some(levels) = self.nodes[place].power_levels(&self.room, &other, level).await else {
                    return;
                };
                ("m.room.power_levels", String::new(), levels)
            }
        };
        let seen_before = self.seen_by(place).await;
        let state_before = self.nodes[place].state(&self.room).await;
        match self.nodes[place].sends(&who, &self.room, kind, &state_key, content).await {
            // What is so already is told as the event that made it so.
            Some(event) if state_before.values().any(|held| *held == event) => {}
            Some(event) => {
                let seen = self.seen_by(place).await;
                let mut owed = Vec::new();
                for other in seen.into_iter().filter(|other| seen_before.contains(other)) {
                    owed.extend(self.nodes[other].stay(&self.room).await.map(|stay| (other, stay)));
                }
                self.net.notes(&format!("{} sends {kind} {event}, due at {owed:?}", SERVERS[place]));
                self.counts.sent += 1;
                self.acknowledged.push(Acknowledged { from: place, event, owed });
            }
            None => self.counts.refused += 1,
        }
    }

    /// The other servers that one sees in the room.
    async fn seen_by(&self, place: usize) -> Vec<usize> {
        let mut seen = Vec::new();
        for (other, server) in SERVERS.iter().enumerate().filter(|(other, _)| *other != place) {
            if self.nodes[place].sees(&self.room, &name(server)).await {
                seen.push(other);
            }
        }
        seen
    }

    async fn looks(&mut self) {
        for (place, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.is_up()) {
            self.counts.forks += usize::from(place == 0 && node.ends_of(&self.room).await > 1);
            self.counts.partial += usize::from(!node.residency(&self.room).await.1);
        }
        for place in 0..self.nodes.len() {
            self.counts_join(place).await;
        }
    }

    pub async fn counts(&self) -> Counts {
        use hearth_rooms::Status;
        let (lost, repeated) = self.net.counts();
        let mut counts = Counts { lost, repeated, ..self.counts };
        for node in &self.nodes {
            for event in node.events(&self.room).await {
                match event.status() {
                    Status::Accepted => counts.accepted += 1,
                    Status::SoftFailed => counts.soft_failed += 1,
                    Status::Rejected => counts.rejected += 1,
                    Status::Outlier => {}
                }
            }
        }
        counts
    }

    pub fn trace(&self) -> u64 {
        self.net.trace()
    }

    pub async fn tells(&self) {
        for node in &self.nodes {
            node.tells(&self.room).await;
        }
    }
}
