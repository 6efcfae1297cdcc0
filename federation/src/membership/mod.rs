//! Rooms that other servers hold: into them, out of them, inviting to ours. Here this server is the one that asks.
//! * Several servers are asked before a user is told no; each ask and the whole have an end.
//! * What is begun goes on when the user who asked for it has hung up: half a join helps nobody.
//! * Rooms whose members are not all known yet are completed in the background, also after a restart.

mod asking;
mod complete;
mod invite;
mod join;
mod knock;
mod leave;
mod places;
mod template;

use std::{collections::HashMap, future::Future, sync::Arc, time::Duration};

use hearth_rooms::{EnterError, MembershipError, OutOfBandError, Rooms, WriteError, serve::HandshakeError};
use hearth_store::StoreError;
use parking_lot::Mutex;
use ruma::{OwnedRoomId, OwnedServerName, RoomId, RoomVersionId, ServerName};
use tokio::{
    sync::{Notify, OwnedMutexGuard},
    task::JoinSet,
};

pub(crate) use self::asking::candidates;
pub use self::{
    asking::CANDIDATES_MAX,
    complete::{COMPLETIONS_AT_ONCE, RETRY_FIRST, RETRY_LONGEST},
    join::{JOIN_TIME, JOINS_AT_ONCE},
    places::{JOIN_BYTES, JOIN_BYTES_IN_ALL, JOINS_OF_A_USER, JOINS_THROUGH_A_SERVER, LARGE_JOINS_AT_ONCE},
};
use crate::{
    client::RemoteError, federation::Federation, history::Histories, lookups::Lookups, policy::Policy,
    turns::Crowded,
};

/// Who needs to know all members of a room waits for them so long.
pub const MEMBERS_TIME: Duration = Duration::from_secs(30);

/// What our users do in rooms of other servers. Cheap to clone; what runs in the background ends with the last clone.
#[derive(Clone)]
pub struct RemoteRooms {
    parts: Parts,
    lookups: Arc<Lookups>,
    tasks: Arc<Mutex<JoinSet<()>>>,
}

/// What the work itself needs.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) federation: Federation,
    pub(crate) rooms: Rooms,
    policy: Policy,
    /// Rooms that are being joined.
    entries: Arc<Entries>,
    /// History that is being fetched.
    pub(crate) histories: Arc<Histories>,
    /// A room is to be completed.
    partial: Arc<Notify>,
    /// A room was completed, or failed to be.
    completed: Arc<Notify>,
    /// Who may join now.
    joins: Arc<places::Places>,
}

/// Rooms in which something is under way: one after another, as the second may find it done.
#[derive(Default)]
pub(crate) struct Entries(Mutex<HashMap<OwnedRoomId, Arc<tokio::sync::Mutex<()>>>>);

impl Entries {
    pub(crate) async fn of(&self, room: &RoomId) -> OwnedMutexGuard<()> {
        let entry = {
            let mut entries = self.0.lock();
            entries.retain(|_, entry| Arc::strong_count(entry) > 1);
            entries.entry(room.to_owned()).or_default().clone()
        };
        entry.lock_owned().await
    }
}

/// Why other servers did not help.
#[derive(Debug, thiserror::Error)]
pub enum RemoteRoomError {
    /// No server is known that could be in the room.
    #[error("no server is known that is in this room and that this one talks to")]
    NobodyToAsk,
    /// None of the servers that were asked gave an answer that could be used.
    #[error("none of the {asked} servers that were asked could help; the last problem: {problem}")]
    NobodyHelps {
        /// How many.
        asked: usize,
        /// What went wrong with the last one.
        problem: String,
    },
    /// A server of the room says no.
    #[error("{server} refuses: {}", error.error)]
    Refused {
        /// Which one.
        server: OwnedServerName,
        /// What it said.
        error: RemoteError,
    },
    /// It took too long.
    #[error("the servers of the room took too long")]
    Timeout,
    /// The user has too much under way already.
    #[error("too many rooms are being joined")]
    Busy(#[from] Crowded),
    /// The room's version is none of ours.
    #[error("this server does not know room version {0}")]
    UnknownVersion(RoomVersionId),
    /// The room's rules, as far as they are known here.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// What came back cannot be kept.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The task that did it is gone.
    #[error("the server is stopping")]
    Stopping,
}

impl From<StoreError> for RemoteRoomError {
    fn from(error: StoreError) -> Self {
        Self::Write(error.into())
    }
}

impl From<OutOfBandError> for RemoteRoomError {
    fn from(error: OutOfBandError) -> Self {
        match error {
            OutOfBandError::Write(error) => error.into(),
            OutOfBandError::UnsupportedVersion(version) => Self::UnknownVersion(version),
            OutOfBandError::InRoom => MembershipError::InRoom.into(),
            OutOfBandError::NotForUs | OutOfBandError::NothingToEnd => MembershipError::NeverThere.into(),
        }
    }
}

impl From<HandshakeError> for RemoteRoomError {
    fn from(error: HandshakeError) -> Self {
        match error {
            HandshakeError::Write(error) => error.into(),
            HandshakeError::Forbidden(why) => WriteError::Forbidden(why).into(),
            other => Self::NobodyHelps { asked: 1, problem: other.to_string() },
        }
    }
}

/// Why the answer of one server could not be used.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("the template is {0}")]
    Template(&'static str),
    #[error("the answer is {0}")]
    Answer(&'static str),
    #[error(transparent)]
    Enter(#[from] EnterError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl RemoteRooms {
    /// Takes up what was left undone, and waits for what is asked.
    pub fn start(federation: Federation, rooms: Rooms) -> Self {
        let parts = Parts {
            policy: Policy::new(federation.clone(), rooms.clone()),
            federation,
            rooms,
            entries: Arc::default(),
            histories: Arc::default(),
            partial: Arc::default(),
            completed: Arc::default(),
            joins: Arc::default(),
        };
        let remote = Self { parts, lookups: Arc::default(), tasks: Arc::default() };
        if remote.parts.federation.access().is_on() {
            remote.tasks.lock().spawn(complete::complete_rooms(remote.parts.clone()));
        }
        remote
    }

    /// Other servers.
    pub fn federation(&self) -> &Federation {
        &self.parts.federation
    }

    /// Waits until all members of a room are known, or until its time is over. Who asks for members asks this first.
    pub async fn all_members(&self, room: &RoomId) -> Result<(), StoreError> {
        self.parts.was_partial(room).await.map(drop)
    }

    pub(crate) fn parts(&self) -> &Parts {
        &self.parts
    }

    pub(crate) fn lookups(&self) -> &Lookups {
        &self.lookups
    }

    /// Runs to its end, whether or not somebody waits for it. None if the server stops.
    pub(crate) async fn in_background<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let (done, result) = tokio::sync::oneshot::channel();
        self.spawn(async move {
            // Nobody may wait for it any more.
            let _ = done.send(work.await);
        });
        result.await.ok()
    }

    /// Runs as long as the server does, or until it is done.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock();
        // Those that ended leave the set.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(work);
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, RemoteRoomError>> + Send + 'static,
    ) -> Result<T, RemoteRoomError> {
        self.in_background(work).await.unwrap_or(Err(RemoteRoomError::Stopping))
    }
}

impl Parts {
    /// Waits until all members of a room are known, if they are not; then what was refused may be tried again.
    pub(crate) async fn was_partial(&self, room: &RoomId) -> Result<bool, StoreError> {
        let Some(room) = self.rooms.room(room).await? else { return Ok(false) };
        let until = tokio::time::Instant::now() + MEMBERS_TIME;
        let mut was_partial = false;
        loop {
            let completed = self.completed.notified();
            let head = self.rooms.head(room.sn).await?;
            if !head.is_some_and(|head| head.value.partial_state) {
                return Ok(was_partial);
            }
            was_partial = true;
            if tokio::time::timeout_at(until, completed).await.is_err() {
                return Ok(false);
            }
        }
    }

    /// The asking client, in the name of a user's server, for somebody who waits.
    fn client_for(&self, server: &ServerName) -> crate::client::Client {
        self.federation.client().speaking_as(server).even_if_failing()
    }
}

impl std::fmt::Debug for RemoteRooms {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("RemoteRooms")
    }
}
