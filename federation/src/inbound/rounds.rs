//! What a room's worker does, step by step: what can be decided of the room's queue is, and beside that it is fetched
//! what events lack, the policy server is asked, and forks are joined.
//! * Nothing that takes time holds up a step: what can be decided is decided meanwhile.
//! * What was acknowledged leaves the queue by a decision, or when what it rests on could not be had for
//!   [`GIVEN_UP_AFTER`](super::GIVEN_UP_AFTER); how much else happens in the room meanwhile does not matter.
//! * A policy server that gave no answer is left alone for a while, whatever it is wanted for.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use hearth_dag::{Pdu, VerifiedPdu};
use hearth_rooms::{Received, Rooms, Unsigned, Wanted, WriteError};
use parking_lot::Mutex;
use ruma::{EventId, OwnedEventId, OwnedRoomId, OwnedServerName, RoomId};
use tokio::{
    task::{JoinError, JoinSet},
    time::Instant,
};

use super::{
    Inbound,
    efforts::{Efforts, Fetched, Lacking, PAUSE_LONGEST, Turn, pause_after, sooner},
    fetch::Fetch,
    place::{Place, WorkTime},
    silence::{Queued, Silence, asked_again_after},
    workers::{Bell, PAUSE_AT_LEAST},
};

/// How long it is fetched in one turn, without the time for which it is waited. What came until then stays.
const TURN_TIME: Duration = Duration::from_secs(180);

/// What a step came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing waits in the room.
    Empty,
    /// There may be more to do at once.
    Again,
    /// Nothing can be done until then, unless something comes for the room, or what is under way ends.
    Wait(Instant),
}

/// The work in one room.
pub(super) struct Work {
    room: OwnedRoomId,
    bell: Arc<Bell>,
    /// The bell rang since the last step.
    has_rung: bool,
    /// When the last step was made, if it was in vain.
    in_vain: Option<Instant>,
    /// Steps in vain, one after another, in a room in which nothing is lacking.
    tries: u32,
    efforts: Efforts,
    silence: Arc<Mutex<Silence>>,
    forks: Forks,
    is_judging: bool,
    /// When the policy server's verdicts were last asked for in vain.
    judged: Option<Instant>,
    /// Tasks of their own: none of them may hold what a step waits for, and wait for the step itself.
    under_way: JoinSet<Done>,
}

/// The joining of forks.
#[derive(Debug, Default)]
struct Forks {
    /// Something came since it was last tried.
    is_due: bool,
    is_under_way: bool,
    /// How often the policy server did not sign the event that joins them.
    refused: u32,
    rest_until: Option<Instant>,
}

/// What ended that was under way.
enum Done {
    Fetched(OwnedServerName, Fetched),
    /// The policy server was asked. Says whether anything was decided.
    Judged(bool),
    Joined(Joined),
}

/// What became of the forks of a room.
enum Joined {
    Some,
    /// They are few, or nobody of ours may join them.
    Nothing,
    /// The policy server has not signed what joins them.
    Refused,
}

impl Work {
    pub(super) fn new(room: OwnedRoomId, bell: Arc<Bell>) -> Self {
        Self {
            room,
            bell,
            has_rung: true,
            in_vain: None,
            tries: 0,
            efforts: Efforts::default(),
            silence: Arc::default(),
            forks: Forks::default(),
            is_judging: false,
            judged: None,
            under_way: JoinSet::new(),
        }
    }

    /// Waits for the next step: until then at most, or until something comes or ends. Steps in vain are some time apart,
    /// however often something comes.
    pub(super) async fn wait(&mut self, mut until: Instant) {
        loop {
            let rung = self.in_vain.map_or_else(Instant::now, |step| step + PAUSE_AT_LEAST);
            let next = if self.has_rung { rung } else { until };
            tokio::select! {
                Some(done) = self.under_way.join_next() => match self.ended(done) {
                    true => return,
                    false => until = next_verdicts(self).map_or(until, |next| until.min(next)),
                },
                () = self.bell.rings(), if !self.has_rung => self.rung(),
                () = tokio::time::sleep_until(next) => return,
            }
        }
    }

    fn rung(&mut self) {
        self.has_rung = true;
        // It was no wait for the room.
        self.tries = self.tries.saturating_sub(1);
    }

    /// Says whether that may have changed anything.
    fn ended(&mut self, done: Result<Done, JoinError>) -> bool {
        let done = match done.map_err(JoinError::try_into_panic) {
            Ok(done) => done,
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            // The runtime ends.
            Err(Err(_)) => return true,
        };
        match done {
            Done::Fetched(origin, fetched) => {
                let pause = self.silence.lock().pause();
                self.efforts.ended(&origin, fetched, pause);
            }
            Done::Judged(any) => {
                self.is_judging = false;
                self.judged = (!any).then(Instant::now);
                return any;
            }
            Done::Joined(Joined::Some) => self.forks = Forks { is_due: true, ..Forks::default() },
            Done::Joined(Joined::Nothing) => {
                self.forks = Forks { is_due: self.forks.is_due, ..Forks::default() };
            }
            Done::Joined(Joined::Refused) => {
                let refused = self.forks.refused.saturating_add(1);
                let rest_until = Some(Instant::now() + asked_again_after(refused));
                self.forks = Forks { is_due: true, is_under_way: false, refused, rest_until };
            }
        }
        true
    }

    /// After a step in vain, or one that failed.
    pub(super) fn next_try(&mut self) -> Instant {
        let now = Instant::now();
        self.in_vain = Some(now);
        self.tries = self.tries.saturating_add(1);
        now + pause_after(self.tries)
    }

    /// Those of some events that have waited long enough, but for what waits for a policy server.
    fn hopeless(&self, lacking: &[Lacking]) -> Vec<OwnedEventId> {
        let silence = self.silence.lock();
        let hopeless = lacking.iter().filter(|event| self.efforts.is_hopeless(event));
        let hopeless = hopeless.filter(|event| !silence.is_about(event.event_id()));
        hopeless.map(|event| event.event_id().to_owned()).collect()
    }

    fn see(&mut self, queue: &[(VerifiedPdu, OwnedServerName)]) {
        self.efforts.see(queue);
        let waiting: HashSet<&EventId> = queue.iter().map(|(pdu, _)| pdu.pdu().event_id()).collect();
        self.silence.lock().keep(|event| waiting.contains(event));
    }
}

impl Inbound {
    /// Decides what can be decided, and begins what else is to be done.
    pub(super) async fn step(&self, work: &mut Work) -> Result<Step, WriteError> {
        let (rooms, room) = (&self.0.rooms, work.room.clone());
        work.forks.is_due |= std::mem::take(&mut work.has_rung);
        let mut decided = self.receive_queued(rooms, &room).await?;
        let any_decided = decided.iter().any(|(_, received)| is_decided(received));
        work.in_vain = (!any_decided).then(Instant::now);
        if any_decided {
            work.tries = 0;
        }
        self.join_forks(work).await?;
        let queue = rooms.queued_events(&room).await?;
        let lacking = lacking(&rooms.wanted(&room).await?, &queue);
        work.see(&queue);
        if queue.is_empty() {
            return Ok(match next_joining(work) {
                Some(next) => Step::Wait(next),
                None if work.forks.is_under_way => Step::Wait(Instant::now() + PAUSE_LONGEST),
                None => Step::Empty,
            });
        }
        let held_up = held_up(&queue, &lacking);
        let is_stuck = held_up.len() < queue.len();
        let is_unsigned = |received: &Received| matches!(received, Received::NeedsPolicySignature(_));
        let unsigned = decided.iter().position(|(_, received)| is_unsigned(received));
        let unsigned = unsigned.map(|place| decided.swap_remove(place).1);
        let needs_signature = unsigned.is_some();
        if let Some(Received::NeedsPolicySignature(unsigned)) = unsigned {
            self.ask_for_verdicts(work, unsigned, &queue, held_up);
        }
        let hopeless = work.hopeless(&lacking);
        if !hopeless.is_empty() {
            self.unqueue(&room, &hopeless).await?;
            return Ok(Step::Again);
        }
        let (turns, mut until) = work.efforts.turns(&lacking);
        for turn in turns {
            self.fetch_for(work, turn);
        }
        for time in [work.efforts.next_old(&lacking), next_joining(work)].into_iter().flatten() {
            until = sooner(until, time);
        }
        if needs_signature {
            until = next_verdicts(work).into_iter().fold(until, sooner);
        } else if is_stuck {
            let next = self.nothing_lacking(work, any_decided, &queue, lacking.is_empty()).await?;
            let Step::Wait(time) = next else { return Ok(next) };
            until = sooner(until, time);
        }
        Ok(Step::Wait(until.unwrap_or_else(|| Instant::now() + PAUSE_LONGEST)))
    }

    /// What becomes of a room in which something waits that lacks nothing. If nothing is lacking at all, that is given up
    /// in its time.
    async fn nothing_lacking(
        &self,
        work: &mut Work,
        any_decided: bool,
        queue: &[(VerifiedPdu, OwnedServerName)],
        at_all: bool,
    ) -> Result<Step, WriteError> {
        if any_decided {
            return Ok(Step::Again);
        }
        let (pause, is_any) = {
            let silence = work.silence.lock();
            (silence.pause(), silence.is_any())
        };
        if let Some(pause) = pause {
            work.tries = 0;
            return Ok(Step::Wait(Instant::now() + pause));
        }
        let old = queue.iter().map(|(pdu, _)| pdu.pdu().event_id());
        let old: Vec<_> = old.filter(|event| work.efforts.is_old(event)).map(ToOwned::to_owned).collect();
        // What follows an event of which nothing is heard is not given up before that.
        if at_all && !is_any && !old.is_empty() {
            self.unqueue(&work.room, &old).await?;
            return Ok(Step::Again);
        }
        // The room is too busy, or its next commit too large.
        Ok(Step::Wait(work.next_try()))
    }

    async fn receive_queued(
        &self,
        rooms: &Rooms,
        room: &RoomId,
    ) -> Result<Vec<(OwnedEventId, Received)>, WriteError> {
        let _place = self.0.workers.deciding.acquire().await;
        rooms.receive_queued(room).await
    }

    /// Asks the room's policy server about all events that may come in now, and decides them by what it says.
    fn ask_for_verdicts(
        &self,
        work: &mut Work,
        unsigned: Box<Unsigned>,
        queue: &[(VerifiedPdu, OwnedServerName)],
        held_up: HashSet<OwnedEventId>,
    ) {
        if work.is_judging || work.judged.is_some_and(|judged| judged.elapsed() < PAUSE_AT_LEAST) {
            return;
        }
        work.is_judging = true;
        let queue: Vec<Pdu> = queue.iter().map(|(pdu, _)| pdu.pdu().clone()).collect();
        let (inbound, room, silence) = (self.clone(), work.room.clone(), work.silence.clone());
        work.under_way.spawn(async move {
            let ready: Vec<&Pdu> = queue.iter().filter(|event| !held_up.contains(event.event_id())).collect();
            let sizes: Vec<Queued<'_>> = queue.iter().map(|event| (event, event.json().len())).collect();
            let policy = &inbound.0.policy;
            let Some(verdicts) = Silence::judge(&silence, policy, &unsigned, &ready, &sizes).await else {
                return Done::Judged(false);
            };
            let judged = inbound.0.rooms.with_verdicts(verdicts);
            match inbound.receive_queued(&judged, &room).await {
                Ok(decided) => Done::Judged(decided.iter().any(|(_, received)| is_decided(received))),
                Err(error) => {
                    tracing::warn!(room_id = %room, %error, "events cannot be decided by their verdicts");
                    Done::Judged(false)
                }
            }
        });
    }

    /// Joins the forks of the room, if there are many.
    async fn join_forks(&self, work: &mut Work) -> Result<(), WriteError> {
        let forks = &mut work.forks;
        let rests = forks.rest_until.is_some_and(|rest_until| rest_until > Instant::now());
        if !forks.is_due || forks.is_under_way || rests || work.silence.lock().pause().is_some() {
            return Ok(());
        }
        let info = self.0.rooms.room(&work.room).await?;
        let has_many = match info {
            Some(info) => self.has_many_forks(&info).await?,
            None => false,
        };
        if !has_many {
            *forks = Forks::default();
            return Ok(());
        }
        (forks.is_due, forks.is_under_way, forks.rest_until) = (false, true, None);
        let (inbound, room) = (self.clone(), work.room.clone());
        work.under_way.spawn(async move {
            let merge = |rooms: Rooms| {
                let (inbound, room) = (inbound.clone(), room.clone());
                async move {
                    let _place = inbound.0.workers.deciding.acquire().await;
                    rooms.merge_forks(&room).await
                }
            };
            Done::Joined(match inbound.0.policy.signing(merge).await {
                Ok(Some(_)) => Joined::Some,
                Ok(None) | Err(WriteError::NotResident | WriteError::Forbidden(_)) => Joined::Nothing,
                Err(WriteError::Policy(_)) => Joined::Refused,
                Err(error) => {
                    tracing::warn!(room_id = %room, %error, "the forks of a room cannot be joined");
                    Joined::Nothing
                }
            })
        });
        Ok(())
    }

    /// Fetches for the events of a server, as soon as there is a place.
    fn fetch_for(&self, work: &mut Work, turn: Turn) {
        let (inbound, origin) = (self.clone(), turn.origin.clone());
        let fetch = Fetch {
            room: work.room.clone(),
            turn,
            fetched: Mutex::default(),
            silence: work.silence.clone(),
            bell: work.bell.clone(),
        };
        work.under_way.spawn(async move {
            let time = WorkTime::new(TURN_TIME);
            let mut place = Place::take(&inbound.0.workers.places, &origin, &time).await;
            let done = time.limit(inbound.fetch(&fetch, &mut place)).await;
            drop(place);
            if let Some(Err(error)) = done {
                tracing::warn!(room_id = %fetch.room, %origin, %error, "fetching for a room failed");
            }
            Done::Fetched(origin, fetch.fetched.into_inner())
        });
    }

    async fn unqueue(&self, room: &RoomId, events: &[OwnedEventId]) -> Result<(), WriteError> {
        for event in events {
            tracing::info!(room_id = %room, event_id = %event, "what an event rests on cannot be had");
            self.0.rooms.unqueue(room, event).await?;
        }
        Ok(())
    }
}

/// When the policy server may be asked again about events, if it is not being asked.
fn next_verdicts(work: &Work) -> Option<Instant> {
    let pause = work.silence.lock().pause().unwrap_or_default();
    let soonest = work.judged.map_or_else(Instant::now, |judged| judged + PAUSE_AT_LEAST);
    (!work.is_judging).then(|| soonest.max(Instant::now() + pause))
}

/// When it is tried again to join forks, if it is to be.
fn next_joining(work: &Work) -> Option<Instant> {
    let pause = work.silence.lock().pause().unwrap_or_default();
    let soonest = work.forks.rest_until.unwrap_or_else(Instant::now);
    let waits = work.forks.is_due && !work.forks.is_under_way;
    waits.then(|| soonest.max(Instant::now() + pause))
}

/// The events of a queue that lack others.
fn lacking(wanted: &[Wanted], queue: &[(VerifiedPdu, OwnedServerName)]) -> Vec<Lacking> {
    let mut as_prev: HashMap<&EventId, bool> = HashMap::new();
    for wanted in wanted {
        for event in &wanted.by {
            *as_prev.entry(&**event).or_default() |= wanted.as_prev;
        }
    }
    let lacking = queue.iter().filter_map(|(pdu, origin)| {
        let as_prev = *as_prev.get(pdu.pdu().event_id())?;
        Some(Lacking { pdu: pdu.clone(), origin: origin.clone(), as_prev })
    });
    lacking.collect()
}

/// Those that lack others, and what follows them: whatever is said of it, it waits.
fn held_up(queue: &[(VerifiedPdu, OwnedServerName)], lacking: &[Lacking]) -> HashSet<OwnedEventId> {
    let mut followers: HashMap<&EventId, Vec<&EventId>> = HashMap::new();
    for (pdu, _) in queue {
        let pdu = pdu.pdu();
        for named in pdu.prev_events().iter().chain(pdu.auth_events()) {
            followers.entry(&**named).or_default().push(pdu.event_id());
        }
    }
    let mut open: Vec<&EventId> = lacking.iter().map(Lacking::event_id).collect();
    let mut held_up = HashSet::new();
    while let Some(event) = open.pop() {
        if held_up.insert(event.to_owned()) {
            open.extend(followers.get(event).into_iter().flatten());
        }
    }
    held_up
}

/// Whether an event of the queue waits no more.
fn is_decided(received: &Received) -> bool {
    !matches!(received, Received::NeedsPolicySignature(_))
}
