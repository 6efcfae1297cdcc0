//! What a worker remembers of what a policy server said, and that it has nothing to say for the moment.
//! * An event of which nothing is heard stays in its room's queue and is asked about again, later each time. Nothing of
//!   this is on the disk: a restart begins to wait anew.
//! * No event waits for ever: after [`POLICY_PATIENCE`] it counts as not recommended, which is what the specification says
//!   of an event without the signature. So do the oldest ones while they take more than half of the queue: what is
//!   soft-failed is held, and what finds no place in the queue is not.
//! * That nobody was asked, because our own places were taken, counts against no event.
//! * It is asked once about an event that still waits for others when it was signed or refused.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use hearth_dag::Pdu;
use hearth_rooms::{QUEUED_BYTES_MAX, QUEUED_EVENTS_MAX, Unsigned, Verdicts};
use parking_lot::Mutex;
use ruma::{EventId, OwnedEventId, OwnedServerName};
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

/// What is known of a room's events that wait for its policy server.
#[derive(Debug, Default)]
pub(super) struct Silence {
    /// Of these nothing is heard.
    events: HashMap<OwnedEventId, Waits>,
    /// These were signed or refused by that server, and still wait.
    heard: HashMap<OwnedEventId, Option<Pdu>>,
    server: Option<OwnedServerName>,
    /// Times in a row that it was asked, and nothing was heard.
    times: u32,
    rests_until: Option<Instant>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Waits {
    /// Since when nothing is heard, though the policy server was asked.
    since: Option<Instant>,
    /// When it was last put off by us.
    put_off: Option<Instant>,
    failed: u32,
}

/// An event of the queue, and its size.
pub(super) type Queued<'a> = (&'a Pdu, usize);

type Heard = Vec<(OwnedEventId, Option<Pdu>)>;

/// How long a policy server is left alone that gave no answer so often.
pub(super) fn asked_again_after(times: u32) -> Duration {
    ASKED_AGAIN.saturating_mul(1 << times.saturating_sub(1).min(16)).min(ASKED_AGAIN_LONGEST)
}

impl Silence {
    /// What the policy server of a room says of those `ready` events that lack its signature, if it says anything. Of
    /// `queue`, all that waits in the room, the oldest come first.
    pub(super) async fn judge(
        silence: &Mutex<Self>,
        policy: &Policy,
        of: &Unsigned,
        ready: &[&Pdu],
        queue: &[Queued<'_>],
    ) -> Option<Verdicts> {
        let (known, open, put_off) = silence.lock().sort(of, ready);
        let judgement = match put_off {
            None => policy.judge(of, open.into_iter()).await,
            Some(why) => {
                let lacking = open.into_iter().filter(|event| of.beside(event).is_some());
                let unheard = lacking.map(|event| (event.event_id().to_owned(), why)).collect();
                Judgement { unheard, ..Judgement::default() }
            }
        };
        silence.lock().conclude(known, judgement, queue)
    }

    /// How long until the policy server is asked again; nothing if it is now.
    pub(super) fn pause(&self) -> Option<Duration> {
        let left = self.rests_until?.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    /// Whether nothing was heard of an event that waits, and may still be. Who is over that patience and lacks something
    /// else besides is given up like others.
    pub(super) fn is_about(&self, event: &EventId) -> bool {
        let lately = |then: Option<Instant>| then.is_some_and(|then| then.elapsed() < POLICY_PATIENCE);
        self.events.get(event).is_some_and(|waits| lately(waits.since) || lately(waits.put_off))
    }

    /// Whether there is such an event.
    pub(super) fn is_any(&self) -> bool {
        self.events.keys().any(|event| self.is_about(event))
    }

    /// Forgets those that wait no more.
    pub(super) fn keep(&mut self, waits: impl Fn(&EventId) -> bool) {
        self.events.retain(|event, _| waits(event));
        self.heard.retain(|event, _| waits(event));
        if self.events.is_empty() && self.heard.is_empty() {
            *self = Self::default();
        }
    }

    /// What it said before, about what it may be asked, and why it is not to be asked now.
    fn sort<'a>(&mut self, of: &Unsigned, ready: &[&'a Pdu]) -> (Heard, Vec<&'a Pdu>, Option<Unheard>) {
        if self.server.as_ref() != Some(&of.server.name) {
            self.heard.clear();
            self.server = Some(of.server.name.clone());
        }
        let (mut known, mut open) = (Vec::new(), Vec::new());
        for event in ready {
            match self.heard.get(event.event_id()) {
                // It may have another key by now.
                Some(said) if said.as_ref().is_none_or(|signed| of.beside(signed).is_none()) => {
                    known.push((event.event_id().to_owned(), said.clone()));
                }
                _ => open.push(*event),
            }
        }
        // One over which it fails every time is asked about last, and stands in the way of no other.
        open.sort_by_key(|event| self.events.get(event.event_id()).map_or(0, |waits| waits.failed));
        let silent = if self.times > 0 { Unheard::NotAsked } else { Unheard::PutOff };
        (known, open, self.pause().map(|_| silent))
    }

    /// What is to be done with events of which something was said, or of which it is waited no longer for that.
    fn conclude(&mut self, known: Heard, judgement: Judgement, queue: &[Queued<'_>]) -> Option<Verdicts> {
        self.note(&judgement);
        let (mut verdicts, mut is_any) = (Verdicts::default(), false);
        for (event, said) in known.into_iter().chain(judgement.heard) {
            is_any = true;
            match &said {
                Some(signed) => verdicts.recommend(signed.clone()),
                None => verdicts.refuse(event.clone()),
            }
            self.heard.insert(event, said);
        }
        let in_vain = judgement.unheard.into_iter().filter(|(_, why)| *why != Unheard::PutOff);
        let in_vain: HashSet<OwnedEventId> = in_vain.map(|(event, _)| event).collect();
        for event in self.over(queue).into_iter().filter(|event| in_vain.contains(event)) {
            is_any = true;
            self.events.remove(&event);
            verdicts.refuse(event);
        }
        is_any.then_some(verdicts)
    }

    fn note(&mut self, judgement: &Judgement) {
        let now = Instant::now();
        for (event, _) in &judgement.heard {
            self.events.remove(event);
        }
        let (mut was_asked, mut was_put_off, mut wish) = (!judgement.heard.is_empty(), false, None);
        for (event, why) in &judgement.unheard {
            let waits = self.events.entry(event.clone()).or_default();
            match why {
                Unheard::PutOff => {
                    (waits.put_off, was_put_off) = (Some(now), true);
                    continue;
                }
                Unheard::NotAsked => {}
                Unheard::Failed => (waits.failed, was_asked) = (waits.failed.saturating_add(1), true),
                Unheard::Limited(after) => (wish, was_asked) = (wish.max(*after), true),
            }
            waits.since.get_or_insert(now);
        }
        if !was_asked {
            if was_put_off && self.pause().is_none() {
                self.rests_until = Some(now + ASKED_AGAIN);
            }
            return;
        }
        self.times = if judgement.heard.is_empty() { self.times.saturating_add(1) } else { 0 };
        let wish = wish.unwrap_or_default().min(LIMITED_LONGEST);
        let pause = asked_again_after(self.times).max(wish);
        self.rests_until = (!judgement.unheard.is_empty()).then(|| now + pause);
    }

    /// Those of the queue for which it is waited no longer.
    fn over(&self, queue: &[Queued<'_>]) -> Vec<OwnedEventId> {
        let since = |event: &Pdu| self.events.get(event.event_id()).and_then(|waits| waits.since);
        let mut over = Vec::new();
        // What waits for something else is not theirs to make room for.
        let own = queue.iter().filter(|(event, _)| since(event).is_some());
        let (mut events, mut bytes) =
            own.fold((0, 0), |(events, bytes), (_, size)| (events + 1, bytes + size));
        for (event, size) in queue {
            let Some(since) = since(event) else { continue };
            let crowded = events > QUEUED_EVENTS_MAX / 2 || bytes > QUEUED_BYTES_MAX / 2;
            if crowded || since.elapsed() >= POLICY_PATIENCE {
                over.push(event.event_id().to_owned());
                events -= 1;
                bytes = bytes.saturating_sub(*size);
            }
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use hearth_dag::{Draft, Keypair, Place, RoomRules};
    use ruma::{RoomVersionId, UInt, server_name};
    use serde_json::value::RawValue;

    use super::*;

    fn event() -> Pdu {
        let rules = RoomRules::of(&RoomVersionId::V11).unwrap();
        let draft = Draft {
            sender: "@bob:a.test".try_into().unwrap(),
            kind: "m.room.message".into(),
            state_key: None,
            content: RawValue::from_string("{}".to_owned()).unwrap(),
            redacts: None,
        };
        let place = Place {
            room_id: Some(<&ruma::RoomId>::try_from("!r:a.test").unwrap()),
            prev_events: &[],
            auth_events: &[],
            depth: 1,
            origin_server_ts: ruma::MilliSecondsSinceUnixEpoch(UInt::new(1).unwrap()),
            hashes: None,
        };
        let key = Keypair::new(server_name!("a.test").to_owned(), "1", &[1; 32]).unwrap();
        draft.build(rules, &place, &key).unwrap()
    }

    fn unheard(event: &Pdu, why: Unheard) -> Judgement {
        Judgement { unheard: vec![(event.event_id().to_owned(), why)], ..Judgement::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_about_which_nobody_was_asked_is_not_refused() {
        let (event, mut silence) = (event(), Silence::default());
        let queue = [(&event, 100)];
        for _ in 0..40 {
            assert!(silence.conclude(Vec::new(), unheard(&event, Unheard::PutOff), &queue).is_none());
            assert!(silence.is_about(event.event_id()) && silence.is_any(), "nor is it given up");
            assert_eq!(silence.pause(), Some(ASKED_AGAIN), "it is asked soon");
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        // From here on it is waited for an answer.
        assert!(silence.conclude(Vec::new(), unheard(&event, Unheard::Failed), &queue).is_none());
        tokio::time::sleep(POLICY_PATIENCE).await;
        assert!(silence.conclude(Vec::new(), unheard(&event, Unheard::PutOff), &queue).is_none());
        assert!(silence.conclude(Vec::new(), unheard(&event, Unheard::NotAsked), &queue).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_put_off_long_ago_is_given_up_like_others() {
        let (event, mut silence) = (event(), Silence::default());
        silence.conclude(Vec::new(), unheard(&event, Unheard::PutOff), &[(&event, 100)]);
        tokio::time::sleep(POLICY_PATIENCE).await;
        assert!(!silence.is_any());
    }
}
