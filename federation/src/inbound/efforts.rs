//! What a room's worker remembers of what waits, and of the servers that handed it to us.
//! * Nobody chooses when they are fetched for: servers take turns, whoever had none for longest first, and of each the
//!   events come first that were fetched for least, as they came.
//! * A server for whose events nothing came rests longer each time, unless it hands us something new. What others
//!   handed us waits neither for that nor for its turn to end.
//! * How deep a gap is, is known of the events behind it, and of what was found in it.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use hearth_dag::VerifiedPdu;
use ruma::{EventId, OwnedEventId, OwnedServerName, ServerName};
use tokio::time::Instant;

use super::workers::PAUSE_AT_LEAST;

/// What an event rests on is looked for so long; then it is given up, and asked for again when another event names it.
pub const GIVEN_UP_AFTER: Duration = Duration::from_secs(15 * 60);
/// Turns of a server in which something came, one after another without a pause.
pub const ROUNDS_MAX: u32 = 20;
/// Servers for whose events it is fetched in one room at a time.
pub const FETCHES_OF_A_ROOM: usize = 4;
/// After so many turns it is no longer tried to close a gap event by event: the state behind it is asked for.
const DEEP_AFTER: u32 = 2;
/// How long it is waited after the first turn without anything; four times as long after each further one.
const PAUSE: Duration = Duration::from_secs(10);
/// How long at most.
pub(super) const PAUSE_LONGEST: Duration = Duration::from_secs(5 * 60);

/// An event of the queue that lacks others.
#[derive(Debug, Clone)]
pub(super) struct Lacking {
    pub(super) pdu: VerifiedPdu,
    /// Who handed it to us.
    pub(super) origin: OwnedServerName,
    /// It lacks events before it, not only such as authorise it.
    pub(super) as_prev: bool,
}

impl Lacking {
    pub(super) fn event_id(&self) -> &EventId {
        self.pdu.pdu().event_id()
    }
}

/// What is fetched in one go: for events that one server handed us.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) origin: OwnedServerName,
    /// Those of which it is tried to close the gap before them, and how often it was.
    pub(super) gaps: Vec<(Lacking, u32)>,
    /// All of them, those first that were fetched for least.
    pub(super) events: Vec<Lacking>,
}

/// What a turn came to.
#[derive(Debug, Default)]
pub(super) struct Fetched {
    /// Something came that was not here.
    pub(super) came: bool,
    /// It was tried to close the gap before these.
    pub(super) gaps: Vec<OwnedEventId>,
    /// The state before these was asked for.
    pub(super) states: Vec<OwnedEventId>,
    /// These were found in a gap that was tried so often.
    pub(super) found: Vec<(OwnedEventId, u32)>,
}

/// All that is remembered, as long as something waits.
#[derive(Debug, Default)]
pub(super) struct Efforts {
    waiting: HashMap<OwnedEventId, Waits>,
    origins: HashMap<OwnedServerName, Origin>,
    turns: u64,
}

/// An event of the queue, as long as this worker has known it.
#[derive(Debug, Clone, Copy)]
struct Waits {
    since: Instant,
    /// How often it was tried to close the gap before it.
    gaps: u32,
    /// How often the state before it was asked for.
    states: u32,
    is_tried: bool,
}

impl Waits {
    fn now() -> Self {
        Self { since: Instant::now(), gaps: 0, states: 0, is_tried: false }
    }
}

/// A server that handed us what waits.
#[derive(Debug, Default)]
struct Origin {
    /// The number of its last turn.
    last_turn: u64,
    is_fetched_for: bool,
    /// Turns in which something came, as long as something of it waits.
    rounds: u32,
    /// The last turns, in which nothing came.
    tries: u32,
    /// Until then, not even something new is fetched for.
    not_before: Option<Instant>,
    rests_until: Option<Instant>,
}

/// How long it is waited after so many times in vain.
pub(super) fn pause_after(tries: u32) -> Duration {
    PAUSE.saturating_mul(4u32.saturating_pow(tries.saturating_sub(1))).min(PAUSE_LONGEST)
}

impl Efforts {
    /// This is what waits now, as it came.
    pub(super) fn see(&mut self, queue: &[(VerifiedPdu, OwnedServerName)]) {
        let waiting: HashSet<&EventId> = queue.iter().map(|(pdu, _)| pdu.pdu().event_id()).collect();
        let origins: HashSet<&OwnedServerName> = queue.iter().map(|(_, origin)| origin).collect();
        self.waiting.retain(|event, _| waiting.contains(&**event));
        self.origins.retain(|server, origin| origin.is_fetched_for || origins.contains(server));
        for event in waiting {
            self.waiting.entry(event.to_owned()).or_insert_with(Waits::now);
        }
    }

    /// Whose turn it is now, and when it will be somebody else's.
    pub(super) fn turns(&mut self, lacking: &[Lacking]) -> (Vec<Turn>, Option<Instant>) {
        let now = Instant::now();
        let mut of_servers: Vec<(&OwnedServerName, Vec<&Lacking>)> = Vec::new();
        for event in lacking {
            match of_servers.iter_mut().find(|(origin, _)| **origin == event.origin) {
                Some((_, events)) => events.push(event),
                None => of_servers.push((&event.origin, vec![event])),
            }
        }
        of_servers.sort_by_key(|(origin, _)| self.origins.get(*origin).map_or(0, |origin| origin.last_turn));
        let running = self.origins.values().filter(|origin| origin.is_fetched_for).count();
        let mut places = FETCHES_OF_A_ROOM.saturating_sub(running);
        let (mut turns, mut next) = (Vec::new(), None);
        for (server, events) in of_servers {
            let has_new = events.iter().any(|event| !self.is_tried(event.event_id()));
            let origin = self.origins.entry(server.clone()).or_default();
            if origin.is_fetched_for {
                continue;
            }
            let begins = if has_new { origin.not_before } else { origin.rests_until };
            if let Some(begins) = begins.filter(|begins| *begins > now) {
                next = sooner(next, begins);
            } else if places > 0 {
                places -= 1;
                self.turns += 1;
                origin.last_turn = self.turns;
                origin.is_fetched_for = true;
                turns.push(self.turn(server, events));
            }
        }
        (turns, next)
    }

    fn turn(&self, server: &OwnedServerName, mut events: Vec<&Lacking>) -> Turn {
        let waits = |event: &Lacking| self.waiting.get(event.event_id()).copied().unwrap_or_else(Waits::now);
        // What was looked for in vain before stands in nobody's way.
        events.sort_by_key(|event| waits(event).states);
        let gaps = events.iter().map(|event| ((*event).clone(), waits(event).gaps));
        let gaps = gaps.filter(|(event, gaps)| event.as_prev && *gaps < DEEP_AFTER).collect();
        Turn { origin: server.clone(), gaps, events: events.into_iter().cloned().collect() }
    }

    /// A turn has ended. It is not waited for longer than `pause`, where something waits for a policy server too.
    pub(super) fn ended(&mut self, server: &ServerName, fetched: Fetched, pause: Option<Duration>) {
        for event in fetched.gaps {
            let waits = self.waiting.entry(event).or_insert_with(Waits::now);
            waits.gaps = waits.gaps.saturating_add(1);
            waits.is_tried = true;
        }
        for event in fetched.states {
            let waits = self.waiting.entry(event).or_insert_with(Waits::now);
            waits.states = waits.states.saturating_add(1);
            waits.is_tried = true;
        }
        for (event, gaps) in fetched.found {
            let waits = self.waiting.entry(event).or_insert_with(Waits::now);
            waits.gaps = waits.gaps.max(gaps);
        }
        let Some(origin) = self.origins.get_mut(server) else { return };
        let now = Instant::now();
        origin.is_fetched_for = false;
        (origin.not_before, origin.rests_until) = (None, None);
        if !fetched.came {
            origin.tries = origin.tries.saturating_add(1);
            let rest = pause_after(origin.tries);
            origin.not_before = Some(now + PAUSE_AT_LEAST);
            origin.rests_until = Some(now + pause.map_or(rest, |pause| pause.min(rest)).max(PAUSE_AT_LEAST));
            return;
        }
        origin.tries = 0;
        origin.rounds = origin.rounds.saturating_add(1);
        // Whoever always has something more to give takes no more than its part of the time.
        if origin.rounds.is_multiple_of(ROUNDS_MAX) {
            (origin.not_before, origin.rests_until) = (Some(now + PAUSE), Some(now + PAUSE));
        }
    }

    /// Whether an event has waited long enough.
    pub(super) fn is_old(&self, event: &EventId) -> bool {
        self.waiting.get(event).is_some_and(|waits| waits.since.elapsed() >= GIVEN_UP_AFTER)
    }

    /// Whether it has, and the state before it was asked for: none is given up because it was never its turn.
    pub(super) fn is_hopeless(&self, event: &Lacking) -> bool {
        let is_fetched_for = self.origins.get(&event.origin).is_some_and(|origin| origin.is_fetched_for);
        let was_its_turn = self.waiting.get(event.event_id()).is_some_and(|waits| waits.states > 0);
        !is_fetched_for && was_its_turn && self.is_old(event.event_id())
    }

    /// When the next one of these will have waited long enough.
    pub(super) fn next_old(&self, lacking: &[Lacking]) -> Option<Instant> {
        let now = Instant::now();
        let old = lacking.iter().filter_map(|event| self.waiting.get(event.event_id()));
        old.map(|waits| waits.since + GIVEN_UP_AFTER).filter(|old| *old > now).min()
    }

    fn is_tried(&self, event: &EventId) -> bool {
        self.waiting.get(event).is_some_and(|waits| waits.is_tried)
    }
}

/// The sooner one of two times.
pub(super) fn sooner(one: Option<Instant>, other: Instant) -> Option<Instant> {
    Some(one.map_or(other, |one| one.min(other)))
}
