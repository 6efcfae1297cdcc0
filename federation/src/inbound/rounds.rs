//! A round of a room's worker: what can be decided of its queue is, and what lacks something is fetched for.
//! * What was acknowledged leaves the queue by a decision, or when what it rests on could not be had for
//!   [`GIVEN_UP_AFTER`]; how much else happens in the room meanwhile does not matter.
//! * The places of those who fetch are shared by the servers that handed us what waits. No place of any kind is held
//!   while a policy server is waited for.

use std::{
    collections::{BTreeSet, HashMap},
    future::Future,
    time::Duration,
};

use hearth_rooms::{Received, Rooms, Unsigned, Wanted, WriteError};
use ruma::{EventId, OwnedEventId, OwnedServerName, RoomId};
use tokio::time::Instant;

use super::{
    Inbound,
    silence::{Queued, Silence},
    workers::Workers,
};
use crate::shares::Share;

/// How long it is fetched in one round. What came until then stays.
const ROUND_TIME: Duration = Duration::from_secs(180);
/// What an event rests on is looked for so long; then it is given up, and asked for again when another event names it.
pub const GIVEN_UP_AFTER: Duration = Duration::from_secs(15 * 60);
/// Rounds in which something came, one after another without a pause.
pub const ROUNDS_MAX: u32 = 20;
/// After so many rounds it is no longer tried to close a gap event by event: the state behind it is asked for.
const DEEP_AFTER: u32 = 1;
/// How long it is waited after the first round without anything; four times as long after each further one.
const PAUSE: Duration = Duration::from_secs(10);
/// How long at most.
const PAUSE_LONGEST: Duration = Duration::from_secs(5 * 60);

/// What a round came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Round {
    /// Nothing waits in the room.
    Empty,
    /// There may be more to do at once.
    Progress,
    /// Nothing can be done for so long, unless something comes for the room.
    Pause(Duration),
}

/// What a worker remembers of its rounds.
#[derive(Debug, Default)]
pub(super) struct Efforts {
    /// Rounds in which something came, since something began to be lacking.
    rounds: u32,
    /// The last rounds, in which nothing came.
    tries: u32,
    waiting: HashMap<OwnedEventId, Waits>,
    pub(super) silence: Silence,
}

/// An event of the queue, as long as this worker has known it.
#[derive(Debug, Clone, Copy)]
struct Waits {
    since: Instant,
    fetched: u32,
}

impl Efforts {
    /// A pause was ended by something new.
    pub(super) fn was_woken(&mut self) {
        // It was no wait for the servers that failed.
        self.tries = self.tries.saturating_sub(1);
    }

    /// A round failed, or brought nothing.
    pub(super) fn in_vain(&mut self) -> Round {
        self.tries = self.tries.saturating_add(1);
        let lacking = PAUSE.saturating_mul(4u32.saturating_pow(self.tries - 1)).min(PAUSE_LONGEST);
        Round::Pause(self.silence.pause().map_or(lacking, |pause| pause.min(lacking)))
    }

    /// How often an event was fetched for.
    pub(super) fn fetched(&self, event: &EventId) -> u32 {
        self.waiting.get(event).map_or(0, |waits| waits.fetched)
    }

    /// An event is fetched for.
    pub(super) fn fetches(&mut self, event: &EventId) {
        if let Some(waits) = self.waiting.get_mut(event) {
            waits.fetched = waits.fetched.saturating_add(1);
        }
    }

    /// This is what waits now.
    fn see(&mut self, waiting: &BTreeSet<OwnedEventId>) {
        self.waiting.retain(|event, _| waiting.contains(event));
        let now = Instant::now();
        for event in waiting {
            self.waiting.entry(event.clone()).or_insert(Waits { since: now, fetched: 0 });
        }
        self.silence.keep(|event| waiting.contains(event));
    }

    fn is_old(&self, event: &EventId) -> bool {
        self.waiting.get(event).is_some_and(|waits| waits.since.elapsed() >= GIVEN_UP_AFTER)
    }
}

/// A place among the rooms that are fetched for.
pub(super) struct Place<'a> {
    workers: &'a Workers,
    /// The servers that handed us what waits.
    origins: Vec<OwnedServerName>,
    share: Option<Share<OwnedServerName>>,
}

impl<'a> Place<'a> {
    async fn take(workers: &'a Workers, wanted: &[Wanted]) -> Self {
        let origins: BTreeSet<_> = wanted.iter().flat_map(|wanted| &wanted.origins).cloned().collect();
        let origins: Vec<_> = origins.into_iter().collect();
        let share = Some(workers.places.wait_for_any(&origins, 1).await);
        Self { workers, origins, share }
    }

    /// Does something for which others need not wait.
    pub(super) async fn outside<T>(&mut self, work: impl Future<Output = T>) -> T {
        self.share = None;
        let done = work.await;
        self.share = Some(self.workers.places.wait_for_any(&self.origins, 1).await);
        done
    }
}

impl Inbound {
    /// Decides what can be decided, joins forks, and fetches what is lacking.
    pub(super) async fn round(&self, room: &RoomId, efforts: &mut Efforts) -> Result<Round, WriteError> {
        let rooms = &self.0.rooms;
        let any_decided = self.decide_queued(room, &mut efforts.silence).await?;
        self.join_forks(room).await?;
        let wanted = rooms.wanted(room).await?;
        let waiting = rooms.queued_events(room).await?;
        let waiting: BTreeSet<_> = waiting.iter().map(|(pdu, _)| pdu.pdu().event_id().to_owned()).collect();
        efforts.see(&waiting);
        if waiting.is_empty() {
            return Ok(Round::Empty);
        }
        if wanted.is_empty() {
            efforts.rounds = 0;
            return self.without_fetching(room, any_decided, &waiting, efforts).await;
        }
        let lacking: BTreeSet<_> = wanted.iter().flat_map(|wanted| &wanted.by).cloned().collect();
        if self.give_up(room, &lacking, efforts).await? {
            return Ok(Round::Progress);
        }
        let mut place = Place::take(&self.0.workers, &wanted).await;
        let deep = efforts.rounds.saturating_add(efforts.tries) > DEEP_AFTER;
        let fetching = self.fetch(room, &wanted, deep, &mut place, efforts);
        let came = tokio::time::timeout(ROUND_TIME, fetching).await.unwrap_or(Ok(false))?;
        drop(place);
        if !came {
            return Ok(efforts.in_vain());
        }
        efforts.tries = 0;
        efforts.rounds = efforts.rounds.saturating_add(1);
        // Whoever always has something more to give takes no more than its part of the time.
        let is_long = efforts.rounds.is_multiple_of(ROUNDS_MAX);
        Ok(if is_long { Round::Pause(PAUSE) } else { Round::Progress })
    }

    /// What becomes of a room in which nothing is lacking, and something waits all the same.
    async fn without_fetching(
        &self,
        room: &RoomId,
        any_decided: bool,
        waiting: &BTreeSet<OwnedEventId>,
        efforts: &mut Efforts,
    ) -> Result<Round, WriteError> {
        if !any_decided && let Some(pause) = efforts.silence.pause() {
            efforts.tries = 0;
            return Ok(Round::Pause(pause));
        }
        // What follows an event of which nothing is heard is not given up before that.
        if any_decided || (!efforts.silence.is_any() && self.give_up(room, waiting, efforts).await?) {
            efforts.tries = 0;
            return Ok(Round::Progress);
        }
        // The room is too busy, or its next commit too large.
        Ok(efforts.in_vain())
    }

    /// Decides what is ready, with what the room's policy server says of it. Says whether anything was decided.
    async fn decide_queued(&self, room: &RoomId, silence: &mut Silence) -> Result<bool, WriteError> {
        let decided = self.receive_queued(&self.0.rooms, room).await?;
        let needs = decided.iter().find_map(|(_, received)| match received {
            Received::NeedsPolicySignature(unsigned) => Some(unsigned),
            _ => None,
        });
        let any = decided.iter().any(|(_, received)| is_decided(received));
        let Some(unsigned) = needs else { return Ok(any) };
        let Some(judged) = self.judge_queued(room, unsigned, silence).await? else { return Ok(any) };
        let decided = self.receive_queued(&judged, room).await?;
        Ok(any || decided.iter().any(|(_, received)| is_decided(received)))
    }

    async fn receive_queued(
        &self,
        rooms: &Rooms,
        room: &RoomId,
    ) -> Result<Vec<(OwnedEventId, Received)>, WriteError> {
        let _place = self.0.workers.deciding.acquire().await;
        rooms.receive_queued(room).await
    }

    /// What the room's policy server says of all events that may come in now, if it says anything.
    async fn judge_queued(
        &self,
        room: &RoomId,
        unsigned: &Unsigned,
        silence: &mut Silence,
    ) -> Result<Option<Rooms>, WriteError> {
        let wanted = self.0.rooms.wanted(room).await?;
        let lacking: BTreeSet<&OwnedEventId> = wanted.iter().flat_map(|wanted| &wanted.by).collect();
        let queued = self.0.rooms.queued_events(room).await?;
        let queued: Vec<_> = queued.iter().map(|(pdu, _)| pdu.pdu()).collect();
        let ready: Vec<_> =
            queued.iter().copied().filter(|event| !lacking.contains(&event.event_id().to_owned())).collect();
        let queue: Vec<Queued<'_>> = queued.iter().map(|event| (*event, event.json().len())).collect();
        let judgement = silence.judge(&self.0.policy, unsigned, &ready, &queue).await;
        Ok((!judgement.heard.is_empty()).then(|| self.0.rooms.with_verdicts(judgement.verdicts)))
    }

    async fn join_forks(&self, room: &RoomId) -> Result<(), WriteError> {
        let Some(info) = self.0.rooms.room(room).await? else { return Ok(()) };
        if !self.has_many_forks(&info).await? {
            return Ok(());
        }
        let merge = |rooms: Rooms| async move {
            let _place = self.0.workers.deciding.acquire().await;
            rooms.merge_forks(room).await
        };
        match self.0.policy.signing(merge).await {
            Ok(_) => Ok(()),
            Err(WriteError::NotResident | WriteError::Forbidden(_) | WriteError::Policy(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Gives those of some events up that have waited long enough, but for what waits for a policy server. Says whether
    /// there was one.
    async fn give_up(
        &self,
        room: &RoomId,
        events: &BTreeSet<OwnedEventId>,
        efforts: &Efforts,
    ) -> Result<bool, WriteError> {
        let old = |event: &&OwnedEventId| efforts.is_old(event) && !efforts.silence.is_about(event);
        let mut any = false;
        for event in events.iter().filter(old) {
            tracing::info!(room_id = %room, event_id = %event, "what an event rests on cannot be had");
            self.0.rooms.unqueue(room, event).await?;
            any = true;
        }
        Ok(any)
    }
}

/// Whether an event of the queue waits no more.
fn is_decided(received: &Received) -> bool {
    !matches!(received, Received::NeedsPolicySignature(_))
}
