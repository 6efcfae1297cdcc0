//! History that is not here: fetched from other servers of the room when somebody reads on past a gap.
//! * What comes is believed as little as anything else: signatures are checked here, the rules in `rooms`.
//! * A gap is filled in once for all who wait for it, and a room by one fill at a time. So many rooms are filled in at
//!   once, few of them for one user; servers, rounds, events, states and time of a fill are bounded. Who reads gets what
//!   is here when the rest cannot be had.
//! * Where nobody could fill a gap in, nobody is asked again for a moment.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use hearth_dag::{Pdu, VerifiedPdu};
use hearth_rooms::{
    BACKFILL_MAX, Filled, Filling, Gap, RoomInfo, TimelineOrder, WriteError, tables::TIMELINE,
};
use hearth_store::StoreError;
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, ServerName, UserId};
use tokio::{sync::watch, time::Instant};

use crate::{
    client::{Client, EventNear, Json, RequestError},
    membership::{Entries, Parts, RemoteRooms, candidates},
    turns::{TurnLimits, Turns},
};

/// Whoever reads waits so long for history of other servers.
pub const HISTORY_TIME: Duration = Duration::from_secs(20);
/// A fill goes on for so long, whoever still waits for it: the time of one slow server, and some more for others.
pub const FILL_TIME: Duration = Duration::from_secs(120);
/// Rooms that are filled in at once. Each may hold an answer of [`HEAVY`](crate::client::HEAVY) bytes in memory: events, an
/// auth chain, the ids of a state. Whole states are larger, up to [`JOIN`](crate::client::JOIN): there are fewer of them.
pub const FILLS_AT_ONCE: usize = 8;
/// Of these, for one user: who reads in rooms of servers that never answer holds up nobody else.
pub const FILLS_OF_A_USER: usize = 2;
/// Fills that are under way or wait, of all rooms and users.
pub const FILLS_MAX: usize = 200;
/// Of these, begun by one user: more would find no place in the line either.
pub const FILLS_BEGUN_BY_A_USER: usize = FILLS_OF_A_USER + FILLS_WAITING_OF_A_USER;
const FILLS_WAITING_OF_A_USER: usize = 10;
/// A gap that nobody could fill in is left alone for so long: a reader's client asks again and again.
pub const GAP_RESTS: Duration = Duration::from_secs(60);
/// Gaps of which it is remembered that nobody could fill them in.
const GAPS_KEPT: usize = 2000;
/// States that are asked for in one fill; events that need more than that are left out of it.
pub const STATES_MAX: usize = 10;
/// Of these, fetched whole.
const WHOLE_STATES_MAX: usize = 3;
/// Fills and questions of users: places and the line before them.
const TURNS: TurnLimits = TurnLimits {
    at_once: FILLS_AT_ONCE,
    each: FILLS_OF_A_USER,
    waiting_each: FILLS_WAITING_OF_A_USER,
    waiting: FILLS_MAX,
    patience: HISTORY_TIME,
};
/// Whole states that are fetched at once, in all fills: one for one user.
const WHOLE_STATES: TurnLimits = TurnLimits {
    at_once: 2,
    each: 1,
    waiting_each: FILLS_OF_A_USER,
    waiting: FILLS_AT_ONCE,
    patience: FILL_TIME,
};
/// Events that are asked for at once.
const EVENTS_AT_ONCE: usize = 100;
/// Servers that are asked about one gap.
const SERVERS_MAX: usize = 4;
/// How often one server is asked for what its events rest on.
const ROUNDS_MAX: usize = 6;
/// Events that are fetched one by one; where more are missing, the whole state is asked for.
const SINGLE_EVENTS_MAX: usize = 30;
/// Auth chains that are asked for to fill in one gap.
const CHAINS_MAX: usize = 5;
/// Servers that are asked for the event nearest to a time.
const TIME_SERVERS_MAX: usize = 3;

/// Why one server's events do not fill a gap in.
#[derive(Debug, thiserror::Error)]
enum Unfilled {
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("it has nothing that leads to the gap")]
    Nothing,
    #[error("what its events rest on cannot be had from it")]
    Rootless,
    #[error("what its events rest on is too much")]
    TooMuch,
}

impl From<StoreError> for Unfilled {
    fn from(error: StoreError) -> Self {
        Self::Write(error.into())
    }
}

type Place = (OwnedRoomId, TimelineOrder);
type Outcome = Result<bool, StoreError>;

/// What is being filled in, and what could not be.
pub(crate) struct Histories {
    rooms: Entries,
    under_way: Mutex<HashMap<Place, Begun>>,
    failed: Cache<Place, Instant>,
    turns: Turns<OwnedUserId>,
    whole_states: Turns<OwnedUserId>,
}

/// A fill that is under way, and who began it.
struct Begun {
    by: OwnedUserId,
    filling: watch::Receiver<Option<Outcome>>,
}

impl Default for Histories {
    fn default() -> Self {
        Self {
            rooms: Entries::default(),
            under_way: Mutex::default(),
            failed: Cache::new(GAPS_KEPT),
            turns: Turns::new(TURNS),
            whole_states: Turns::new(WHOLE_STATES),
        }
    }
}

impl Histories {
    /// A fill of a gap, by this user; nothing if there are enough, or it is under way, or of no use now.
    fn begin(
        self: &Arc<Self>,
        place: &Place,
        user: &UserId,
    ) -> Option<(watch::Sender<Option<Outcome>>, UnderWay)> {
        let rests = self.failed.get(place).is_some_and(|since| since.elapsed() < GAP_RESTS);
        let mut all = self.under_way.lock();
        let of_user = all.values().filter(|begun| begun.by == user).count();
        let is_full = all.len() >= FILLS_MAX || of_user >= FILLS_BEGUN_BY_A_USER;
        if rests || is_full || all.contains_key(place) {
            return None;
        }
        let (done, filling) = watch::channel(None);
        all.insert(place.clone(), Begun { by: user.to_owned(), filling });
        Some((done, UnderWay(self.clone(), place.clone())))
    }
}

/// That a gap is being filled in.
struct UnderWay(Arc<Histories>, Place);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.lock().remove(&self.1);
    }
}

impl RemoteRooms {
    /// Fetches what is missing at a gap, for a user who reads there. Says whether the timeline changed.
    pub async fn fill_in(&self, room: &RoomId, user: &UserId, gap: &Gap) -> Result<bool, StoreError> {
        let Some(mut filling) = self.filling(room, user, gap) else { return Ok(false) };
        match tokio::time::timeout(HISTORY_TIME, filling.wait_for(Option::is_some)).await {
            Ok(Ok(filled)) => filled.clone().unwrap_or(Ok(false)),
            // It takes longer, or the server stops.
            Ok(Err(_)) | Err(_) => Ok(false),
        }
    }

    /// The fill of a gap, begun if there is none; nothing if it is of no use to begin one now.
    fn filling(&self, room: &RoomId, user: &UserId, gap: &Gap) -> Option<watch::Receiver<Option<Outcome>>> {
        let histories = &self.parts().histories;
        let place = (room.to_owned(), gap.at);
        let Some((done, under_way)) = histories.begin(&place, user) else {
            return histories.under_way.lock().get(&place).map(|begun| begun.filling.clone());
        };
        let filling = done.subscribe();
        let (parts, user, gap) = (self.parts().clone(), user.to_owned(), gap.clone());
        self.spawn(async move {
            let UnderWay(histories, place) = &under_way;
            let filling = parts.fill_in_turn(&place.0, &user, &gap);
            let filled = tokio::time::timeout(FILL_TIME, filling).await.unwrap_or(Ok(Some(false)));
            if matches!(filled, Ok(Some(false))) {
                histories.failed.insert(place.clone(), Instant::now());
            }
            done.send_replace(Some(filled.map(|filled| filled.unwrap_or(false))));
        });
        Some(filling)
    }

    /// The event nearest to a time, as other servers of the room know it.
    pub async fn event_near(
        &self,
        room: &RoomId,
        user: &UserId,
        ts_ms: u64,
        forwards: bool,
    ) -> Result<Option<EventNear>, StoreError> {
        let parts = self.parts();
        let servers = candidates(&parts.federation, &parts.rooms, room, user, &[]).await?;
        let client = self.federation().client().speaking_as(user.server_name());
        let Ok(_turn) = parts.histories.turns.take(user.to_owned()).await else { return Ok(None) };
        let mut nearest: Option<EventNear> = None;
        let asking = async {
            for server in servers.iter().take(TIME_SERVERS_MAX) {
                match client.timestamp_to_event(server, room, ts_ms, forwards).await {
                    Ok(event) => {
                        // What lies in the other direction is no answer.
                        let fits = if forwards {
                            event.origin_server_ts >= ts_ms
                        } else {
                            event.origin_server_ts <= ts_ms
                        };
                        if fits {
                            nearest = Some(event);
                            return;
                        }
                    }
                    Err(error) => tracing::debug!(room_id = %room, %server, %error, "no event near a time"),
                }
            }
        };
        // Who waits gets what is here.
        let _ = tokio::time::timeout(HISTORY_TIME, asking).await;
        Ok(nearest)
    }
}

impl Parts {
    /// Fills a gap in when it is this one's turn; nothing if that did not come.
    async fn fill_in_turn(
        &self,
        room: &RoomId,
        user: &UserId,
        gap: &Gap,
    ) -> Result<Option<bool>, StoreError> {
        // Events of a room whose members are not known would have to be decided again.
        self.was_partial(room).await?;
        // Whoever waits for others at the same room holds no place.
        let _room = self.histories.rooms.of(room).await;
        let Ok(_turn) = self.histories.turns.take(user.to_owned()).await else { return Ok(None) };
        self.fill_in(room, user, gap).await.map(Some)
    }

    async fn fill_in(&self, room: &RoomId, user: &UserId, gap: &Gap) -> Result<bool, StoreError> {
        // Another reader may have filled it in, or a part of it.
        let Some(gap) = self.rooms.last_gap(room, gap.at).await?.filter(|now| now.at.anchor == gap.at.anchor)
        else {
            return Ok(true);
        };
        let Some(info) = self.rooms.room(room).await? else { return Ok(false) };
        let named = self.server_behind(&info, &gap).await?;
        let servers = candidates(&self.federation, &self.rooms, room, user, named.as_slice()).await?;
        for server in servers.iter().take(SERVERS_MAX) {
            match self.fill_in_from(&info, user, server, &gap).await {
                Ok(placed) => {
                    tracing::debug!(room_id = %room, %server, placed, "history was filled in");
                    return Ok(true);
                }
                Err(Unfilled::Write(WriteError::Store(error))) => return Err(error),
                Err(error) => tracing::debug!(room_id = %room, %server, %error, "a gap stays open"),
            }
        }
        Ok(false)
    }

    /// The server of whoever sent the event behind a gap: it has what is before it.
    async fn server_behind(&self, info: &RoomInfo, gap: &Gap) -> Result<Option<OwnedServerName>, StoreError> {
        let Some(event) = self.rooms.store().get(&TIMELINE, &(info.sn, gap.at)).await? else {
            return Ok(None);
        };
        let event = self.rooms.events().load(info, event.event).await?;
        Ok(Some(event.pdu.sender().server_name().to_owned()))
    }

    async fn fill_in_from(
        &self,
        info: &RoomInfo,
        user: &UserId,
        server: &ServerName,
        gap: &Gap,
    ) -> Result<usize, Unfilled> {
        let room = &info.room_id;
        let client = self.federation.client().speaking_as(user.server_name());
        let told = client.backfill(server, room, &gap.missing, EVENTS_AT_ONCE).await?;
        let mut events: Vec<Filling> =
            self.believed(info, server, told).await?.into_iter().map(plain).collect();
        events.truncate(BACKFILL_MAX);
        if events.is_empty() {
            return Err(Unfilled::Nothing);
        }
        let mut source =
            Source { parts: self, info, user, server, client: &client, states: 0, whole_states: 0 };
        for _ in 0..ROUNDS_MAX {
            match self.rooms.receive_backfill(room, gap.at, &events).await? {
                Filled::Done { placed: 0, gap: Some(still) } if still == *gap => {
                    return Err(Unfilled::Nothing);
                }
                Filled::Done { placed, .. } => return Ok(placed),
                Filled::NeedsState(before) => {
                    for event in before {
                        if source.states >= STATES_MAX {
                            events.retain(|filling| *filling.event.pdu().event_id() != event);
                            continue;
                        }
                        let state = source.state_before(&event).await?;
                        let filling =
                            events.iter_mut().find(|filling| *filling.event.pdu().event_id() == event);
                        filling.ok_or(Unfilled::Rootless)?.state_before = Some(state);
                    }
                }
                Filled::Missing(missing) => {
                    source.fetch_chains(&missing, events.iter().map(|filling| filling.event.pdu())).await?;
                }
            }
        }
        Err(Unfilled::Rootless)
    }
}

fn plain(event: VerifiedPdu) -> Filling {
    Filling { event, state_before: None }
}

/// A server that is asked for what its events rest on.
struct Source<'a> {
    parts: &'a Parts,
    info: &'a RoomInfo,
    user: &'a UserId,
    server: &'a ServerName,
    client: &'a Client,
    /// How many states it was asked for, and how many of them whole.
    states: usize,
    whole_states: usize,
}

impl Source<'_> {
    /// The state before an event, all of it held as outliers.
    async fn state_before(&mut self, event: &OwnedEventId) -> Result<Vec<OwnedEventId>, Unfilled> {
        let room = &self.info.room_id;
        self.states += 1;
        let ids = self.client.state_ids(self.server, room, event).await?;
        let all: BTreeSet<&OwnedEventId> = ids.pdu_ids.iter().chain(&ids.auth_chain_ids).collect();
        let mut missing = Vec::new();
        for id in all {
            if self.parts.rooms.events().number(self.info.sn, id).await?.is_none() {
                missing.push(id.clone());
            }
        }
        if missing.len() > SINGLE_EVENTS_MAX {
            if self.whole_states >= WHOLE_STATES_MAX {
                return Err(Unfilled::TooMuch);
            }
            self.whole_states += 1;
            let turn = self.parts.histories.whole_states.take(self.user.to_owned()).await;
            let _turn = turn.map_err(|_| Unfilled::TooMuch)?;
            let state = self.client.state(self.server, room, event).await?;
            self.hold(state.auth_chain.into_iter().chain(state.pdus).collect()).await?;
        } else {
            let mut told = Vec::with_capacity(missing.len());
            for id in &missing {
                told.push(self.client.event(self.server, id).await?);
            }
            self.hold(told).await?;
        }
        // What could not be believed or is not allowed is not part of the state.
        let mut state = Vec::with_capacity(ids.pdu_ids.len());
        for id in ids.pdu_ids {
            if self.parts.rooms.events().number(self.info.sn, &id).await?.is_some() {
                state.push(id);
            }
        }
        Ok(state)
    }

    /// The auth chains of those events that name one of these.
    async fn fetch_chains(
        &self,
        missing: &[OwnedEventId],
        events: impl Iterator<Item = &Pdu>,
    ) -> Result<(), Unfilled> {
        let mut open: BTreeSet<&OwnedEventId> = missing.iter().collect();
        let mut asked = 0;
        for event in events {
            if !event.auth_events().iter().any(|auth| open.contains(auth)) {
                continue;
            }
            asked += 1;
            if asked > CHAINS_MAX {
                break;
            }
            let chain = self.client.event_auth(self.server, &self.info.room_id, event.event_id()).await?;
            self.hold(chain).await?;
            open.retain(|missing| !event.auth_events().contains(missing));
        }
        if asked == 0 { Err(Unfilled::Rootless) } else { Ok(()) }
    }

    /// Keeps events as outliers, each after those that allow it.
    async fn hold(&self, told: Vec<Json>) -> Result<(), Unfilled> {
        let events = self.parts.believed(self.info, self.server, told).await?;
        let events: Vec<&VerifiedPdu> =
            events.iter().filter(|event| event.pdu().room_id() == self.info.room_id).collect();
        for place in auth_first(&events) {
            // One that is refused is kept as such, or not at all.
            self.parts.rooms.receive_outlier(events[place]).await?;
        }
        Ok(())
    }
}

/// The places of events in an order in which each comes after its auth events, but for those in a loop.
fn auth_first(events: &[&VerifiedPdu]) -> Vec<usize> {
    let places: std::collections::HashMap<_, _> =
        events.iter().enumerate().map(|(place, event)| (event.pdu().event_id(), place)).collect();
    let mut order = Vec::with_capacity(events.len());
    let mut seen = vec![false; events.len()];
    for start in 0..events.len() {
        let mut open = vec![(start, false)];
        while let Some((place, is_done)) = open.pop() {
            if is_done {
                order.push(place);
                continue;
            }
            if std::mem::replace(&mut seen[place], true) {
                continue;
            }
            open.push((place, true));
            let auth = events[place].pdu().auth_events().iter().filter_map(|event| places.get(&**event));
            open.extend(auth.filter(|place| !seen[**place]).map(|place| (*place, false)));
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use ruma::{room_id, user_id};

    use super::*;

    fn place(number: u64) -> Place {
        let at = TimelineOrder { anchor: hearth_store::StreamPosition::new(number), sub: 0 };
        (room_id!("!r:a.test").to_owned(), at)
    }

    #[test]
    fn one_user_begins_so_many_fills_and_others_theirs() {
        let histories = Arc::new(Histories::default());
        let (alice, bob) = (user_id!("@alice:a.test"), user_id!("@bob:a.test"));
        let mut begun: Vec<_> =
            (0..FILLS_MAX as u64).filter_map(|number| histories.begin(&place(number), alice)).collect();
        assert_eq!(begun.len(), FILLS_BEGUN_BY_A_USER);
        assert!(histories.begin(&place(1_000), bob).is_some());
        begun.pop();
        assert!(histories.begin(&place(1_001), alice).is_some(), "one has ended");
    }

    #[tokio::test(start_paused = true)]
    async fn one_user_has_one_whole_state_at_a_time() {
        let histories = Histories::default();
        let (alice, bob) = (user_id!("@alice:a.test").to_owned(), user_id!("@bob:a.test").to_owned());
        let _held = histories.whole_states.take(alice.clone()).await.unwrap();
        let next = histories.whole_states.take(alice);
        assert!(tokio::time::timeout(Duration::from_secs(1), next).await.is_err());
        histories.whole_states.take(bob).await.unwrap();
    }
}
