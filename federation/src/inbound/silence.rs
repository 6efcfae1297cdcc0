//! What a worker remembers of a policy server that has nothing to say for the moment.
//! * An event of which nothing is heard stays in its room's queue and is asked about again, later each time. Nothing of
//!   this is on the disk: a restart begins to wait anew.
//! * No event waits for ever: after [`POLICY_PATIENCE`] it counts as not recommended, which is what the specification says
//!   of an event without the signature. So do the oldest ones while they take more than half of the queue: what is
//!   soft-failed is held, and what finds no place in the queue is not.

use std::{collections::HashMap, time::Duration};

use hearth_rooms::{QUEUED_BYTES_MAX, QUEUED_EVENTS_MAX, Unsigned};
use ruma::{EventId, OwnedEventId};
use tokio::time::Instant;

use crate::policy::{Judgement, Policy, Unheard};

/// An event of which nothing is heard for so long counts as not recommended.
pub const POLICY_PATIENCE: Duration = Duration::from_secs(15 * 60);
/// When a policy server is asked again of which nothing is heard; twice as long after each further time.
pub const ASKED_AGAIN: Duration = Duration::from_secs(5);
/// How long at most.
const ASKED_AGAIN_LONGEST: Duration = Duration::from_secs(120);
/// One that wants to be asked more slowly is, but no longer than this.
const LIMITED_LONGEST: Duration = Duration::from_secs(60);

/// The events of a room of which nothing is heard.
#[derive(Debug, Default)]
pub(super) struct Silence {
    events: HashMap<OwnedEventId, Waits>,
    /// Times in a row that nothing was heard.
    times: u32,
    rests_until: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Waits {
    since: Instant,
    failed: u32,
}

/// An event of the queue, and its size.
pub(super) type Queued<'a> = (&'a hearth_dag::Pdu, usize);

impl Silence {
    /// What the policy server of a room says of those `ready` events that lack its signature. Of `queue`, all that waits
    /// in the room, the oldest come first.
    pub(super) async fn judge(
        &mut self,
        policy: &Policy,
        of: &Unsigned,
        ready: &[&hearth_dag::Pdu],
        queue: &[Queued<'_>],
    ) -> Judgement {
        let mut judgement = match self.pause() {
            None => {
                // One over which it fails every time is asked about last, and stands in the way of no other.
                let mut ready = ready.to_vec();
                ready.sort_by_key(|event| self.events.get(event.event_id()).map_or(0, |waits| waits.failed));
                policy.judge(of, ready.into_iter()).await
            }
            Some(_) => {
                let lacking = ready.iter().filter(|event| of.beside(event).is_some());
                let unheard = lacking.map(|event| (event.event_id().to_owned(), Unheard::NotAsked));
                Judgement { unheard: unheard.collect(), ..Judgement::default() }
            }
        };
        self.note(&judgement);
        for event in self.over(queue) {
            if judgement.unheard.iter().any(|(unheard, _)| *unheard == event) {
                self.events.remove(&event);
                judgement.verdicts.refuse(event.clone());
                judgement.heard.push(event);
            }
        }
        judgement
    }

    /// How long until the policy server is asked again; nothing if it is now.
    pub(super) fn pause(&self) -> Option<Duration> {
        let left = self.rests_until?.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    /// Whether nothing was heard of an event that waits, and may still be. Who is over that patience and lacks something
    /// else besides is given up like others.
    pub(super) fn is_about(&self, event: &EventId) -> bool {
        self.events.get(event).is_some_and(|waits| waits.since.elapsed() < POLICY_PATIENCE)
    }

    /// Whether there is such an event.
    pub(super) fn is_any(&self) -> bool {
        self.events.keys().any(|event| self.is_about(event))
    }

    /// Forgets those that wait no more.
    pub(super) fn keep(&mut self, waits: impl Fn(&EventId) -> bool) {
        self.events.retain(|event, _| waits(event));
        if self.events.is_empty() {
            *self = Self::default();
        }
    }

    fn note(&mut self, judgement: &Judgement) {
        let now = Instant::now();
        for event in &judgement.heard {
            self.events.remove(event);
        }
        let (mut was_asked, mut wish) = (!judgement.heard.is_empty(), None);
        for (event, why) in &judgement.unheard {
            let waits = self.events.entry(event.clone()).or_insert(Waits { since: now, failed: 0 });
            match why {
                Unheard::NotAsked => continue,
                Unheard::Failed => waits.failed = waits.failed.saturating_add(1),
                Unheard::Limited(after) => wish = wish.max(*after),
            }
            was_asked = true;
        }
        if !was_asked {
            return;
        }
        self.times = if judgement.heard.is_empty() { self.times.saturating_add(1) } else { 0 };
        let doubled = ASKED_AGAIN.saturating_mul(1 << self.times.saturating_sub(1).min(16));
        let wish = wish.unwrap_or_default().min(LIMITED_LONGEST);
        let pause = doubled.min(ASKED_AGAIN_LONGEST).max(wish);
        self.rests_until = (!judgement.unheard.is_empty()).then(|| now + pause);
    }

    /// Those of the queue for which it is waited no longer.
    fn over(&self, queue: &[Queued<'_>]) -> Vec<OwnedEventId> {
        let mut over = Vec::new();
        // What waits for something else is not theirs to make room for.
        let own = queue.iter().filter(|(event, _)| self.events.contains_key(event.event_id()));
        let (mut events, mut bytes) =
            own.fold((0, 0), |(events, bytes), (_, size)| (events + 1, bytes + size));
        for (event, size) in queue {
            let Some(waits) = self.events.get(event.event_id()) else { continue };
            let crowded = events > QUEUED_EVENTS_MAX / 2 || bytes > QUEUED_BYTES_MAX / 2;
            if crowded || waits.since.elapsed() >= POLICY_PATIENCE {
                over.push(event.event_id().to_owned());
                events -= 1;
                bytes = bytes.saturating_sub(*size);
            }
        }
        over
    }
}
