//! Several servers in one process, on a network that delays, loses, repeats and parts, with users who do what they may and
//! what they may not. When it is whole again, all servers in the room must know the same. A seed decides everything:
//! one that fails says which, and `SIMULATION_SEED` plays it again. `SIMULATION_SEEDS` says how many are played.
#![allow(clippy::unwrap_used)]

mod network;
mod node;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use hearth_rooms::{Residency, Status};
use network::Net;
use node::Node;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId};
use serde_json::json;
use tokio::time::sleep;

/// What happened in a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub sent: usize,
    pub refused: usize,
    pub forks: usize,
    pub soft_failed: usize,
    pub rejected: usize,
    pub partitions: usize,
    pub restarts: usize,
    pub lost: usize,
    pub repeated: usize,
    /// Servers that were put out by an event that did not last, and cannot know it.
    pub estranged: usize,
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.sent += other.sent;
        self.refused += other.refused;
        self.forks += other.forks;
        self.soft_failed += other.soft_failed;
        self.rejected += other.rejected;
        self.partitions += other.partitions;
        self.restarts += other.restarts;
        self.lost += other.lost;
        self.repeated += other.repeated;
        self.estranged += other.estranged;
    }
}

const SERVERS: [&str; 3] = ["a.test", "b.test", "c.test"];
const STEPS: usize = 40;
const SEEDS: u64 = 200;

struct Run {
    net: Arc<Net>,
    nodes: Vec<Node>,
    room: OwnedRoomId,
    rng: StdRng,
    counts: Counts,
    /// Events that a server said it has, by the server.
    acknowledged: Vec<(usize, OwnedEventId)>,
}

impl Run {
    async fn begin(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let net = Net::new(rng.random());
        let mut nodes = Vec::new();
        for name in SERVERS {
            nodes.push(Node::start(&net, name).await);
        }
        for node in &nodes {
            node.knows_all_keys().await;
        }
        let version = ["6", "10", "11", "12"][rng.random_range(0..4)];
        let room = nodes[0].creates_a_room(version).await;
        nodes[0].joins_here("u1", &room).await;
        for node in &nodes[1..] {
            node.joins_over("u0", &room, &nodes[0]).await;
            // The next one's answer names all who are there.
            sleep(Duration::from_secs(2)).await;
        }
        Self { net, nodes, room, rng, counts: Counts::default(), acknowledged: Vec::new() }
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
        let node = &self.nodes[place];
        let member =
            |membership: &str| ("m.room.member", other.to_string(), json!({ "membership": membership }));
        let (kind, state_key, content) = match what {
            0..50 => ("m.room.message", String::new(), json!({ "msgtype": "m.text", "body": text })),
            50..75 => ("m.room.topic", String::new(), json!({ "topic": text })),
            75..82 => member("leave"),
            82..86 => member("ban"),
            86..93 => {
                ("m.room.join_rules", String::new(), json!({ "join_rule": (["public", "invite"])[what % 2] }))
            }
            _ => {
                let level = [0, 50, 60][what % 3];
                (
                    "m.room.power_levels",
                    String::new(),
                    self.nodes[0].power_levels(&self.room, &other, level).await,
                )
            }
        };
        // The one who made the room stays: somebody has to see the end of it.
        if kind == "m.room.member" && other == self.nodes[0].user("u0") {
            return;
        }
        match node.sends(&who, &self.room, kind, &state_key, content).await {
            Some(event) => {
                self.counts.sent += 1;
                self.acknowledged.push((place, event));
            }
            None => self.counts.refused += 1,
        }
    }

    async fn play(&mut self) {
        self.net.is_rough(true);
        for _ in 0..STEPS {
            match self.rng.random_range(0..20) {
                0 => {
                    let alone = self.rng.random_range(0..SERVERS.len());
                    self.net.parts(SERVERS[alone]);
                    self.counts.partitions += 1;
                }
                1 | 2 => self.net.heals(),
                3 => {
                    let place = self.rng.random_range(0..SERVERS.len());
                    self.nodes[place].sender_restarts().await;
                    self.counts.restarts += 1;
                }
                _ => self.act().await,
            }
            self.counts.forks += usize::from(self.nodes[0].is_forked(&self.room).await);
            let pause = self.rng.random_range(0..400);
            sleep(Duration::from_millis(pause)).await;
        }
        self.net.heals();
        self.net.is_rough(false);
    }

    /// Everything arrives; then each says something, so that all ends of the room are tied together.
    async fn settle(&mut self) {
        sleep(Duration::from_secs(120)).await;
        for round in 0..2 {
            for node in self.nodes.iter().rev() {
                let body = json!({ "msgtype": "m.text", "body": format!("end {round}") });
                let _ = node.sends(&node.user("u0"), &self.room, "m.room.message", "", body).await;
                sleep(Duration::from_secs(30)).await;
            }
        }
    }

    /// What does not hold.
    async fn problems(&mut self) -> Vec<String> {
        let mut problems = Vec::new();
        let state: BTreeMap<_, _> = self.nodes[0].state(&self.room).await;
        let mut there = Vec::new();
        for (place, node) in self.nodes.iter().enumerate() {
            let seen_there = self.nodes[0].sees_server(&self.room, SERVERS[place]).await;
            let is_resident = node.residency(&self.room).await == Residency::Resident;
            if seen_there != is_resident {
                self.counts.estranged += 1;
                // Who was put out in a way that the others did not accept hears no more of them. That it was put out is
                // known on both sides all the same.
                let member = ("m.room.member".to_owned(), node.user("u0").to_string());
                let (knows, hears) =
                    if is_resident { (&self.nodes[0], node) } else { (node, &self.nodes[0]) };
                let known = knows.state(&self.room).await;
                let Some(event) = known.get(&member) else { continue };
                if hears.status(&self.room, event).await.is_none() {
                    problems.push(format!(
                        "{} is in the room: {seen_there}, and thinks: {is_resident}",
                        SERVERS[place]
                    ));
                }
            }
            if seen_there && is_resident {
                there.push(place);
            }
        }
        for place in &there {
            let other = self.nodes[*place].state(&self.room).await;
            for (key, event) in &state {
                if other.get(key) != Some(event) {
                    problems.push(format!(
                        "{key:?} is {event} at a.test, {:?} at {}",
                        other.get(key),
                        SERVERS[*place]
                    ));
                }
            }
            problems.extend(
                other
                    .keys()
                    .filter(|key| !state.contains_key(*key))
                    .map(|key| format!("{key:?} is only there")),
            );
        }
        for (from, event) in &self.acknowledged {
            for place in there.iter().filter(|_| there.contains(from)) {
                match self.nodes[*place].status(&self.room, event).await {
                    None => problems
                        .push(format!("{event} of {} is missing at {}", SERVERS[*from], SERVERS[*place])),
                    Some(Status::Rejected) => {
                        self.counts.rejected += 1;
                        problems.push(format!(
                            "{event} of {} is rejected at {}",
                            SERVERS[*from], SERVERS[*place]
                        ));
                    }
                    Some(Status::SoftFailed) => self.counts.soft_failed += 1,
                    Some(_) => {}
                }
            }
        }
        problems
    }
}

fn play(seed: u64) -> (Counts, Vec<String>) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut run = Run::begin(seed).await;
        run.play().await;
        run.settle().await;
        let problems = run.problems().await;
        if !problems.is_empty() && number("SIMULATION_SEED").is_some() {
            for node in &run.nodes {
                node.tells(&run.room).await;
            }
        }
        let (lost, repeated) = run.net.counts();
        (Counts { lost, repeated, ..run.counts }, problems)
    })
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}

#[test]
fn servers_agree_when_the_network_is_whole_again() {
    let seeds = match number("SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIMULATION_SEEDS").unwrap_or(SEEDS),
    };
    let count = seeds.end - seeds.start;
    let (mut total, mut failed) = (Counts::default(), Vec::new());
    for seed in seeds {
        let (counts, problems) = play(seed);
        total.add(counts);
        if !problems.is_empty() {
            println!("SIMULATION_SEED={seed} failed:\n  {}", problems.join("\n  "));
            failed.push(seed);
        }
    }
    println!("{count} seeds: {total:?}");
    if count >= SEEDS {
        // What nothing happens in shows nothing.
        let Counts { forks, soft_failed, partitions, restarts, lost, repeated, estranged, .. } = total;
        assert!(forks >= 400 && soft_failed >= 1 && partitions >= 200 && restarts >= 200);
        assert!(lost >= 300 && repeated >= 200 && estranged <= 50);
    }
    assert!(failed.is_empty(), "seeds that failed: {failed:?}");
}
