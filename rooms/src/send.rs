//! Sending: messages, state, redactions.
//! * A transaction id is written in its event's own commit: a repeat, also a concurrent one, finds the event.
//! * State that is there already makes no new event.

use async_trait::async_trait;
use hearth_dag::canonical::to_canonical;
use hearth_dag::{BuildError, Draft, Level, redaction_applies};
use hearth_store::{Commit, StoreError, StreamPosition};
use ruma::events::TimelineEventType;
use ruma::{OwnedEventId, OwnedRoomAliasId, OwnedRoomId, OwnedUserId};
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::append::Sending;
use crate::content;
use crate::errors::WriteError;
use crate::event_row::SentBy;
use crate::kind::Kind;
use crate::lane::{Act, Done};
use crate::relations::annotation_key;
use crate::rooms::Rooms;
use crate::tables::{ALIASES, ANNOTATIONS, Membership, RelType, TRANSACTIONS, TxnKey, TxnRow};
use crate::turn::Turn;

/// A request's own id: its repeats are the same request.
#[derive(Clone, Debug)]
pub struct Txn {
    pub user: OwnedUserId,
    pub device: String,
    /// The endpoint's path, which is the scope of transaction ids.
    pub path: String,
    pub id: String,
}

/// An event that a user sends.
#[derive(Clone, Debug)]
pub struct Send {
    pub room: OwnedRoomId,
    pub sender: OwnedUserId,
    pub kind: TimelineEventType,
    /// Makes it a state event.
    pub state_key: Option<String>,
    pub content: Box<RawValue>,
    /// Of a redaction. One that stands in the content of an `m.room.redaction` is found by itself.
    pub redacts: Option<OwnedEventId>,
    pub txn: Option<Txn>,
    /// When it was made, if an application service says so.
    pub timestamp_ms: Option<u64>,
}

/// An event that is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    pub event_id: OwnedEventId,
    /// None if the event had been there before.
    pub position: Option<StreamPosition>,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum SendError {
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("the event to redact is not known in this room")]
    UnknownTarget,
    #[error("a redaction names no event")]
    NoTarget,
    #[error("the sender may not redact this event")]
    CannotRedact,
    #[error("the same annotation was sent before")]
    DuplicateAnnotation,
    #[error("a thread cannot start at an event that is itself related to another")]
    ThreadOnRelated,
    #[error("the alias {0} does not lead to this room")]
    BadAlias(String),
    #[error("{0} is not a room alias")]
    MalformedAlias(String),
    #[error("{0} cannot be sent by clients")]
    Reserved(String),
}

impl From<StoreError> for SendError {
    fn from(error: StoreError) -> Self {
        SendError::Write(error.into())
    }
}

/// Sixteen bytes that stand for some texts, each bounded by its length.
pub(crate) fn short_hash(parts: &[&str]) -> [u8; 16] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    let digest: [u8; 32] = hash.finalize().into();
    let mut short = [0; 16];
    short.copy_from_slice(&digest[..16]);
    short
}

impl Txn {
    fn key(&self) -> TxnKey {
        short_hash(&[self.user.as_str(), &self.device, &self.path, &self.id])
    }
}

impl Rooms {
    /// Sends an event. `also` is written in the same commit.
    pub async fn send(&self, send: &Send, also: Commit) -> Result<Sent, SendError> {
        if send.kind == TimelineEventType::RoomCreate {
            return Err(SendError::Reserved(send.kind.to_string()));
        }
        let room = self.room(&send.room).await?.ok_or(WriteError::UnknownRoom)?;
        let Done { output, committed } = self.decide(&room, send, &also).await?;
        let position = match (output.1, committed) {
            (Some(slot), Some(committed)) => Some(committed.resolve(slot)),
            _ => None,
        };
        Ok(Sent { event_id: output.0, position })
    }

    /// The event that a transaction made, if it did.
    pub async fn sent_before(&self, txn: &Txn) -> Result<Option<OwnedEventId>, StoreError> {
        let Some(row) = self.store().get(&TRANSACTIONS, &txn.key()).await? else { return Ok(None) };
        let Some(room) = self.room_of(row.room).await? else { return Ok(None) };
        self.settled(row.room).await;
        Ok(Some(self.events().load(&room, row.event).await?.header.event_id.clone()))
    }
}

#[async_trait]
impl Act for Send {
    type Output = (OwnedEventId, Option<StreamPosition>);
    type Error = SendError;

    async fn decide(&self, turn: &mut Turn) -> Result<Self::Output, SendError> {
        if let Some(txn) = &self.txn
            && let Some(row) = turn.get(&TRANSACTIONS, &txn.key()).await?
        {
            return Ok((turn.event(row.event).await?.header.event_id.clone(), None));
        }
        let kind = Kind::from(&self.kind);
        if let Some(state_key) = &self.state_key {
            if let Some(same) = self.same_state(turn, &kind, state_key).await? {
                return Ok((same, None));
            }
            if kind == "m.room.member" && self.invites_remote_user(turn, state_key) {
                return Err(SendError::Reserved("an invite to a user of another server".to_owned()));
            }
            if kind == "m.room.canonical_alias" && state_key.is_empty() {
                self.check_aliases(turn, &kind).await?;
            }
        }
        let redacts = self.target()?;
        if let Some(target) = &redacts {
            self.check_redaction(turn, target).await?;
        }
        self.check_relation(turn, &kind).await?;
        let draft = Draft {
            sender: self.sender.clone(),
            kind: self.kind.clone(),
            state_key: self.state_key.clone(),
            content: self.content.clone(),
            redacts,
        };
        let sent_by = self
            .txn
            .as_ref()
            .map(|txn| SentBy { device_id: txn.device.clone(), transaction_id: txn.id.clone() });
        let sending = Sending { draft, sent_by, timestamp_ms: self.timestamp_ms };
        let appended = turn.append(sending).await?;
        if let Some(txn) = &self.txn {
            turn.commit.expect_absent(&TRANSACTIONS, &txn.key());
            turn.put(&TRANSACTIONS, &txn.key(), TxnRow { room: turn.head.room.sn, event: appended.sn });
        }
        Ok((appended.event_id, Some(appended.slot)))
    }
}

impl Send {
    /// The current state event, if it says the same and its sender is the same user.
    async fn same_state(
        &self,
        turn: &mut Turn,
        kind: &Kind,
        state_key: &str,
    ) -> Result<Option<OwnedEventId>, SendError> {
        let Some(current) = turn.state(kind, state_key).await? else { return Ok(None) };
        if current.header.sender != self.sender
            || turn.membership(&self.sender).await? != Some(Membership::Join)
        {
            return Ok(None);
        }
        let room = turn.room();
        let content = to_canonical(self.content.get(), room.rules.strict_canonical_json);
        let content = content.map_err(|error| WriteError::Build(BuildError::NotCanonical(error)))?;
        Ok((content == current.pdu.content_json()).then(|| current.header.event_id.clone()))
    }

    /// Such an invite is signed by the other server first.
    fn invites_remote_user(&self, turn: &Turn, state_key: &str) -> bool {
        #[derive(Deserialize)]
        struct Content {
            membership: String,
        }
        let content: Option<Content> = serde_json::from_str(self.content.get()).ok();
        let is_invite = content.is_some_and(|content| content.membership == "invite");
        let is_remote = |user: &ruma::UserId| !turn.rooms.is_local(user);
        is_invite && <&ruma::UserId>::try_from(state_key).is_ok_and(is_remote)
    }

    /// The event that a redaction is about.
    fn target(&self) -> Result<Option<OwnedEventId>, SendError> {
        #[derive(Deserialize)]
        struct Content {
            #[serde(default)]
            redacts: Option<OwnedEventId>,
        }
        if self.kind != TimelineEventType::RoomRedaction || self.state_key.is_some() {
            return Ok(None);
        }
        let in_content = || serde_json::from_str::<Content>(self.content.get()).ok()?.redacts;
        let target = self.redacts.clone().or_else(in_content);
        target.map(Some).ok_or(SendError::NoTarget)
    }

    async fn check_redaction(&self, turn: &mut Turn, target: &OwnedEventId) -> Result<(), SendError> {
        let number = turn.event_number(target).await?;
        let (_, power, _) = turn.facts().await?;
        let has_power = power.user(&self.sender) >= Level::Finite(power.redact());
        let Some(number) = number else {
            // Other servers of the room may have it; here it is redacted when it comes.
            let is_shared = turn.rooms.servers_in_room(&turn.head.room).await?.len() > 1;
            return if is_shared && has_power { Ok(()) } else { Err(SendError::UnknownTarget) };
        };
        let may = turn.event(number).await?.header.sender == self.sender || has_power;
        // A server's users may take back one another's events only with power: the rule for servers is looser.
        if may { Ok(()) } else { Err(SendError::CannotRedact) }
    }

    async fn check_relation(&self, turn: &mut Turn, kind: &Kind) -> Result<(), SendError> {
        let facts = content::facts(kind.as_str(), self.content.get());
        let Some(relates) = facts.relation else { return Ok(()) };
        let Some(target) = turn.event_number(&relates.event_id).await? else { return Ok(()) };
        match relates.rel_type {
            RelType::Annotation => {
                let Some(key) = &relates.key else { return Ok(()) };
                let (a, b) = annotation_key(&self.sender, kind.as_str(), key);
                let row = (turn.head.room.sn, target, a, b);
                match turn.get(&ANNOTATIONS, &row).await? {
                    Some(_) => Err(SendError::DuplicateAnnotation),
                    None => Ok(()),
                }
            }
            RelType::Thread if turn.event(target).await?.header.relation.is_some() => {
                Err(SendError::ThreadOnRelated)
            }
            _ => Ok(()),
        }
    }

    /// Aliases that are new in a canonical alias event must lead to the room.
    async fn check_aliases(&self, turn: &mut Turn, kind: &Kind) -> Result<(), SendError> {
        let named = aliases_of(self.content.get());
        let before = match turn.state(kind, "").await? {
            Some(event) => aliases_of(event.pdu.content_json()),
            None => Vec::new(),
        };
        for alias in named {
            if before.contains(&alias) {
                continue;
            }
            let parsed = OwnedRoomAliasId::try_from(alias.clone());
            let parsed = parsed.map_err(|_| SendError::MalformedAlias(alias.clone()))?;
            if !turn.rooms.servers().is_local(parsed.server_name()) {
                // Whether an alias of another server leads here is for that server to say.
                return Err(SendError::BadAlias(alias));
            }
            let row = turn.get(&ALIASES, &alias).await?;
            if row.is_none_or(|row| row.room != turn.head.room.sn) {
                return Err(SendError::BadAlias(alias));
            }
        }
        Ok(())
    }
}

/// All that a canonical alias event names.
fn aliases_of(content: &str) -> Vec<String> {
    #[derive(Deserialize, Default)]
    struct Content {
        #[serde(default)]
        alias: Option<String>,
        #[serde(default)]
        alt_aliases: Vec<String>,
    }
    let content: Content = serde_json::from_str(content).unwrap_or_default();
    content.alias.into_iter().filter(|alias| !alias.is_empty()).chain(content.alt_aliases).collect()
}

/// Whether a redaction that is in the room has a right to its target; see `redaction.rs`.
pub(crate) fn may_redact(
    room: &crate::events::RoomInfo,
    redaction: &hearth_dag::Pdu,
    target: &hearth_dag::Pdu,
    power: &hearth_dag::PowerLevels,
) -> bool {
    redaction_applies(room.rules, redaction, target, power)
}
