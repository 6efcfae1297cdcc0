//! `/sync`: what is new for a user, told at once or as soon as there is something.
//! * A sync looks, and if there is nothing, waits and looks again: it has subscribed before it looked ([`tracker`]), so
//!   that nothing can come between.
//! * It reads up to a position that is on the disk, and its token names that position: the next sync begins there.
//! * Answers are written as bytes of events that were serialised once; nothing here builds JSON values of events.

mod apart;
mod as_of;
mod joined;
mod lazy;
mod presence;
mod request;
mod room_state;
pub mod tracker;
mod unread;
mod write;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::{Arc, Weak},
};

use bytes::Bytes;
use hearth_rooms::{
    Membership, RoomSn,
    read::{Device, FilterDefinition, FilterError, Reader, SyncToken},
};
use hearth_store::{Store, StoreError, StreamPosition};
use hearth_users::{AccountDataChanges, Users, Volatile};
use parking_lot::Mutex;
use quick_cache::{Weighter, sync::Cache};
use ruma::{OwnedUserId, RoomId};
use tokio::{
    sync::broadcast::{self, error::RecvError},
    time::Instant,
};

pub use self::request::{MAX_TIMEOUT, StateWanted, SyncRequest};
use self::{
    lazy::{LazyMembers, Sending},
    presence::Arrivals,
    tracker::{Active, Place, Tracker},
    unread::Unread,
    write::{List, Style, push_content_event, push_events},
};

/// Bytes of JSON of the filters that are kept parsed.
const FILTER_BYTES: u64 = 2 * 1024 * 1024;
/// What a filter takes beside its JSON, about.
const FILTER_OVERHEAD: u64 = 1024;
/// Users whose presence is looked at for one answer.
const MAX_PRESENCE: usize = 5_000;
/// Sections of `rooms`, by their names.
type Sections = BTreeMap<&'static str, Vec<u8>>;

/// Serves `/sync`. Cheap to clone.
#[derive(Clone)]
pub struct ClientSync {
    inner: Arc<Inner>,
}

/// The parts of a [`ClientSync`].
pub struct Inner {
    store: Store,
    reader: Reader,
    users: Users,
    tracker: Tracker,
    unread: Unread,
    lazy: LazyMembers,
    filters: Cache<Box<str>, Arc<FilterDefinition>, FilterWeight>,
    clock: hearth_users::Clock,
    boot: u32,
}

impl std::ops::Deref for ClientSync {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.inner
    }
}

#[derive(Clone)]
struct FilterWeight;

impl Weighter<Box<str>, Arc<FilterDefinition>> for FilterWeight {
    fn weight(&self, json: &Box<str>, _: &Arc<FilterDefinition>) -> u64 {
        FILTER_OVERHEAD + json.len() as u64
    }
}

/// Why a sync is refused.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    #[error("the token is from the future of this server")]
    FutureToken,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// One look at what is new.
struct Round<'a> {
    request: &'a SyncRequest,
    active: &'a Active,
    since: Option<SyncToken>,
    next: SyncToken,
    ignored: Arc<BTreeSet<OwnedUserId>>,
    /// What changed of the user's account data.
    own: AccountDataChanges,
    sent: &'a Sending,
    now_ms: u64,
    arrivals: Mutex<Arrivals>,
}

impl<'a> Round<'a> {
    fn style(&self) -> Style<'a> {
        let device = Device { user: self.request.user.as_str(), device: self.request.device.as_str() };
        Style { filter: &self.request.filter, device, now_ms: self.now_ms }
    }
}

impl ClientSync {
    /// Begins to follow what happens. `boot` tells this process from all others.
    pub fn start(store: Store, reader: Reader, users: Users, clock: hearth_users::Clock, boot: u32) -> Self {
        let tracker = Tracker::start(store.clone(), reader.clone());
        let inner = Inner {
            unread: Unread::new(reader.clone(), users.clone()),
            lazy: LazyMembers::new(),
            filters: Cache::with_weighter(1_000, FILTER_BYTES, FilterWeight),
            store,
            reader,
            users,
            tracker,
            clock,
            boot,
        };
        let sync = Self { inner: Arc::new(inner) };
        tokio::spawn(follow_volatile(Arc::downgrade(&sync.inner), sync.users.volatile_changes()));
        sync
    }

    /// Who follows changes for those who sync, for others who wait for them too.
    pub fn tracker(&self) -> &Tracker {
        &self.tracker
    }

    /// The filter that a query string names, if it came before: clients send the same one with every poll.
    pub fn known_filter(&self, in_query: &str) -> Option<Arc<FilterDefinition>> {
        self.filters.get(in_query)
    }

    /// A filter given as JSON in a query string, parsed once.
    pub fn filter_in_query(&self, in_query: &str, json: &str) -> Result<Arc<FilterDefinition>, FilterError> {
        let filter = Arc::new(FilterDefinition::parse(json)?);
        self.filters.insert(in_query.into(), filter.clone());
        Ok(filter)
    }

    /// A filter given as JSON, parsed once.
    pub fn parse_filter(&self, json: &str) -> Result<Arc<FilterDefinition>, FilterError> {
        // No value in a query string holds this sign: what is encoded and what is not stay apart.
        let name = format!("&{json}");
        match self.known_filter(&name) {
            Some(filter) => Ok(filter),
            None => self.filter_in_query(&name, json),
        }
    }

    /// The token of now: what a client that knows everything would sync from.
    pub async fn now(&self) -> SyncToken {
        let (typing, presence) = (self.users.typing().counter(), self.users.presence().counter());
        let position = self.tracker.caught_up().await;
        let (epoch, boot) = (self.store.epoch(), self.boot);
        SyncToken { epoch, position, boot, typing, presence, to_device: position }
    }

    /// Answers a request, when there is something to tell or its time is up.
    pub async fn sync(&self, request: &SyncRequest) -> Result<Vec<u8>, SyncError> {
        let deadline = Instant::now() + request.timeout.min(MAX_TIMEOUT);
        let _here = self.users.presence().syncing(&request.user, &request.set_presence);
        let device = (request.user.clone(), request.device.clone());
        let sent = self.lazy.of(&device, request.since);
        let mut since = request.since;
        // What the token names was received, whether or not there is anything new.
        let mut arrived = since.filter(|_| request.to_device);
        loop {
            let active = self.tracker.active(&request.user).await?;
            let mut wakening = active.wakening();
            let mut next = self.now().await;
            since = self.usable(since, next)?;
            if let Some(arrived) = arrived.take().and(since) {
                let (user, device) = (&request.user, &request.device);
                self.users.device_messages_arrived(user, device, arrived.to_device).await?;
            }
            if !request.to_device {
                next.to_device = since.map_or(StreamPosition::ZERO, |since| since.to_device);
            }
            let known = since.filter(|_| !request.full_state);
            let may_be_new = known.is_none_or(|since| self.may_be_new(request, &active, since, next));
            let news = match may_be_new {
                // In a box, so that a poll that only waits is small.
                true => Box::pin(self.look(request, &active, since, next, &sent)).await?,
                false => None,
            };
            // The list was given up meanwhile, so it may lack what came: nothing was learnt from it.
            if active.is_stale() {
                continue;
            }
            if news.is_some() || known.is_none() || Instant::now() >= deadline {
                let (json, next) = news.unwrap_or_else(|| (nothing_new(next), next));
                sent.answered(next);
                return Ok(json);
            }
            // Nothing up to here concerns this client: the next look begins behind it.
            since = Some(next);
            tokio::select! {
                biased;
                () = wakening.wait() => {}
                () = tokio::time::sleep_until(deadline) => {}
            }
        }
    }

    /// Whether a look could find anything. Says so for nothing at times, and never the other way round: whatever a look
    /// reads either moves the tracker's lists or has a counter in the token.
    fn may_be_new(&self, request: &SyncRequest, active: &Active, since: SyncToken, next: SyncToken) -> bool {
        since.boot != self.boot
            || since.position < self.tracker.started_at()
            || (request.to_device && since.to_device < since.position)
            || since.typing < next.typing
            || (since.presence < next.presence && self.wants_presence(request))
            || active.may_have_changed_after(since.position)
    }

    /// Checks a token against the store. One from before a backup was restored may name what is no longer there: the
    /// client begins anew.
    fn usable(&self, since: Option<SyncToken>, next: SyncToken) -> Result<Option<SyncToken>, SyncError> {
        let Some(since) = since else { return Ok(None) };
        if since.position <= next.position {
            return Ok(Some(since));
        }
        if since.epoch < next.epoch { Ok(None) } else { Err(SyncError::FutureToken) }
    }

    /// What is new, as an answer with the token that ends it; `None` if nothing is.
    async fn look(
        &self,
        request: &SyncRequest,
        active: &Active,
        since: Option<SyncToken>,
        next: SyncToken,
        sent: &Sending,
    ) -> Result<Option<(Vec<u8>, SyncToken)>, StoreError> {
        sent.begin();
        let user = &request.user;
        let mut next = next;
        let mut messages = Vec::new();
        if request.to_device {
            let seen = since.map(|since| since.to_device);
            let told = self.users.device_messages(user, &request.device, seen, next.position).await?;
            (messages, next.to_device) = (told.messages, told.upto);
        }
        let after = since.map(|since| since.position);
        let own = self.users.account_data_changes(user, after, next.position).await?;
        let ignored = self.users.ignored_users(user).await?;
        let now_ms = (self.clock)();
        let arrivals = Mutex::default();
        let round = Round { request, active, since, next, ignored, own, sent, now_ms, arrivals };
        let sections = self.sections(&round).await?;
        let mut json = Vec::with_capacity(256 + sections.values().map(Vec::len).sum::<usize>());
        json.push(b'{');
        let mut list = List::new(&mut json);
        let mut is_news = !sections.is_empty();
        if !sections.is_empty() {
            let out = list.key("rooms");
            out.push(b'{');
            let mut rooms = List::new(out);
            for (section, body) in &sections {
                let out = rooms.key(section);
                out.push(b'{');
                out.extend_from_slice(body);
                out.push(b'}');
            }
            out.push(b'}');
        }
        is_news |= push_account_data(&round, &mut list);
        is_news |= push_to_device(&messages, &mut list);
        is_news |= self.push_presence(&round, &mut list).await?;
        if !is_news {
            return Ok(None);
        }
        push_end(&mut list, next);
        json.push(b'}');
        Ok(Some((json, next)))
    }

    /// The rooms in which something is new, by how the user stands to them.
    async fn sections(&self, round: &Round<'_>) -> Result<Sections, StoreError> {
        let mut sections = Sections::new();
        for (room, place) in self.changed_rooms(round).await? {
            let Some(info) = self.reader.room(room).await? else { continue };
            let room_id: &RoomId = &info.room_id;
            if !round.request.filter.room.wants_room(room_id.as_str()) {
                continue;
            }
            let Some(place) = self.as_of(round, room, place).await? else { continue };
            let section = match place.membership {
                Membership::Join => "join",
                Membership::Invite => "invite",
                Membership::Knock => "knock",
                Membership::Leave | Membership::Ban => "leave",
            };
            let out = sections.entry(section).or_default();
            let start = out.len();
            let mut list = List::going_on(out);
            let out = list.key(room_id.as_str());
            let written = match place.membership {
                Membership::Join => self.joined(round, room, room_id, place, out).await?,
                Membership::Invite | Membership::Knock => self.outside(round, room, place, out).await?,
                Membership::Leave | Membership::Ban => self.left(round, room, room_id, place, out).await?,
            };
            if !written {
                out.truncate(start);
            }
        }
        sections.retain(|_, body| !body.is_empty());
        Ok(sections)
    }

    /// The rooms that may have something new, each once.
    async fn changed_rooms(&self, round: &Round<'_>) -> Result<Vec<(RoomSn, Place)>, StoreError> {
        let Some(since) = round.since else { return Ok(round.active.places()) };
        let mut rooms = self.forgotten(round, since.position).await?;
        if round.request.full_state {
            rooms.extend(round.active.places());
            return Ok(rooms);
        }
        rooms.extend(round.active.changed_after(since.position));
        let mut known: HashSet<RoomSn> = rooms.iter().map(|(room, _)| *room).collect();
        let typing = self.users.typing();
        let seen = if since.boot == self.boot { since.typing } else { 0 };
        let mut others: Vec<RoomSn> = Vec::new();
        if typing.counter() > seen {
            match typing.rooms_since(seen) {
                Some(rooms) => {
                    for room_id in rooms {
                        others.extend(self.reader.room_sn(&room_id).await?);
                    }
                }
                None => others.extend(round.active.places().into_iter().map(|(room, _)| room)),
            }
        }
        for room_id in round.own.rooms.keys() {
            others.extend(self.reader.room_sn(room_id).await?);
        }
        others.extend(self.rooms_with_receipts(round, since.position).await?);
        for room in others {
            if known.insert(room)
                && let Some(place) = round.active.place(room)
            {
                rooms.push((room, place));
            }
        }
        Ok(rooms)
    }

    /// Receipts move the tracker's lists while it runs; what came before it started is asked for.
    async fn rooms_with_receipts(
        &self,
        round: &Round<'_>,
        since: StreamPosition,
    ) -> Result<Vec<RoomSn>, StoreError> {
        if since >= self.tracker.started_at() {
            return Ok(Vec::new());
        }
        let mut rooms = Vec::new();
        for (room, place) in round.active.places() {
            if place.is_joined()
                && let Some(info) = self.reader.room(room).await?
                && self.users.receipts_changed_since(&info.room_id, since)
            {
                rooms.push(room);
            }
        }
        Ok(rooms)
    }

    fn wants_presence(&self, request: &SyncRequest) -> bool {
        let filter = &request.filter.presence;
        self.users.presence().enabled() && !filter.passes_none() && filter.wants_type("m.presence")
    }

    async fn shares_room(&self, mine: &HashSet<RoomSn>, user: &OwnedUserId) -> Result<bool, StoreError> {
        let rooms = self.rooms_of(user).await?;
        Ok(rooms.iter().any(|room| mine.contains(room)))
    }

    async fn rooms_of(&self, user: &OwnedUserId) -> Result<Vec<RoomSn>, StoreError> {
        if let Some(rooms) = self.tracker.joined_rooms(user) {
            return Ok(rooms);
        }
        let rows = self.reader.memberships_of(user).await?;
        let joined = rows.into_iter().filter(|(_, row)| row.value.membership == Membership::Join);
        Ok(joined.map(|(room, _)| room).collect())
    }

    async fn wake_for_typing(&self, room: &RoomId) -> Result<(), StoreError> {
        if let Some(room) = self.reader.room_sn(room).await? {
            self.tracker.wake_room(room);
        }
        Ok(())
    }

    async fn wake_for_presence(&self, user: &OwnedUserId) -> Result<(), StoreError> {
        let rooms = self.rooms_of(user).await?;
        self.tracker.wake_around(user, &rooms);
        Ok(())
    }
}

/// Wakes those who wait for what is not in the store.
async fn follow_volatile(sync: Weak<Inner>, mut changes: broadcast::Receiver<Volatile>) {
    loop {
        let change = changes.recv().await;
        // Held only while something happens, so that a server that was dropped is gone.
        let Some(sync) = sync.upgrade().map(|inner| ClientSync { inner }) else { return };
        let outcome = match change {
            Ok(Volatile::Typing(room)) => sync.wake_for_typing(&room).await,
            Ok(Volatile::Presence(user)) => sync.wake_for_presence(&user).await,
            Err(RecvError::Lagged(_)) => {
                sync.tracker.wake_all();
                Ok(())
            }
            Err(RecvError::Closed) => return,
        };
        if let Err(error) = outcome {
            tracing::error!(%error, "who waits for typing or presence cannot be found");
        }
    }
}

/// An answer that has nothing to tell.
fn nothing_new(next: SyncToken) -> Vec<u8> {
    let mut json = vec![b'{'];
    push_end(&mut List::new(&mut json), next);
    json.push(b'}');
    json
}

/// What every answer ends with. Encryption comes with its own chapter; clients count on its fields being there.
fn push_end(list: &mut List<'_>, next: SyncToken) {
    list.key("device_one_time_keys_count").extend_from_slice(b"{}");
    list.key("device_unused_fallback_key_types").extend_from_slice(b"[]");
    hearth_rooms::read::push_str(list.key("next_batch"), &next.to_string());
}

fn push_account_data(round: &Round<'_>, list: &mut List<'_>) -> bool {
    let filter = &round.request.filter.account_data;
    let wanted: Vec<_> = round.own.global.iter().filter(|(kind, _)| filter.wants_type(kind)).collect();
    if wanted.is_empty() {
        return false;
    }
    push_events(list.key("account_data"), |events| {
        for (kind, content) in wanted {
            push_content_event(events.next(), kind, content.get());
        }
    })
}

fn push_to_device(messages: &[Bytes], list: &mut List<'_>) -> bool {
    if messages.is_empty() {
        return false;
    }
    push_events(list.key("to_device"), |events| {
        for message in messages {
            events.next().extend_from_slice(message);
        }
    })
}
