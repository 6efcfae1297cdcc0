//! The policy server of a room: a server in it that is shown each event and signs those that it recommends.
//! * Which server that is stands in the current state; a room that names none, or one that has left, has none.
//! * Rooms do not ask: an event that lacks the signature is handed back ([`Unsigned`]) before anything is written, and
//!   whoever asked comes again with what the policy server said ([`Verdicts`]). No lane waits for another server.
//! * An event of ours keeps its place while it is being signed: if the room goes on meanwhile, it goes in as a fork.
//! * NOTSPEC: history that is filled in is not shown to it, as nothing of the past is judged by the current state.
//! * What a room says of its policy server is read once, and again when its state may say something else.

use std::collections::HashMap;
use std::sync::Arc;

use hearth_dag::canonical::to_canonical;
use hearth_dag::{
    Draft, Pdu, Rejection, RoomRules, VerifiedPdu, VerifyKey, has_policy_signature, is_policy_event,
    policy_key, with_policy_signature,
};
use ruma::{EventId, OwnedEventId, OwnedServerName, ServerName};
use serde::Deserialize;

use crate::append::{Appended, Sending};
use crate::errors::WriteError;
use crate::kind::Kind;
use crate::lane::Act;
use crate::membership::MembershipError;
use crate::receive::{Receive, Received};
use crate::rooms::Rooms;
use crate::send::SendError;
use crate::serve::HandshakeError;
use crate::tables::SnapshotRow;
use crate::turn::Turn;

/// The policy server that a room names.
#[derive(Clone, Debug)]
pub struct PolicyServer {
    pub name: OwnedServerName,
    /// None if what stands in its place is no key: then no event is recommended.
    key: Option<VerifyKey>,
}

/// What a state says of the policy server, as far as it was read.
#[derive(Clone, Default)]
pub(crate) enum Named {
    #[default]
    Unread,
    Nobody,
    Server(Arc<PolicyServer>),
}

impl PolicyServer {
    /// What a policy event names. One that lacks a field names nobody.
    pub(crate) fn of(event: &Pdu) -> Option<Self> {
        #[derive(Deserialize)]
        struct Content {
            via: String,
            public_keys: Keys,
        }
        #[derive(Deserialize)]
        struct Keys {
            ed25519: String,
        }
        let Content { via, public_keys } = event.content_as().ok()?;
        let name = ServerName::parse(via).ok()?;
        Some(PolicyServer { name, key: policy_key(&public_keys.ed25519) })
    }

    fn has_signed(&self, rules: &RoomRules, event: &Pdu) -> bool {
        self.key.as_ref().is_some_and(|key| has_policy_signature(rules, event, &self.name, key))
    }
}

/// An event that lacks the signature of its room's policy server.
#[derive(Clone, Debug)]
pub struct Unsigned {
    pub server: Arc<PolicyServer>,
    pub event: Pdu,
    rules: &'static RoomRules,
}

impl PartialEq for Unsigned {
    fn eq(&self, other: &Self) -> bool {
        self.event.event_id() == other.event.event_id() && self.server.name == other.server.name
    }
}

impl Eq for Unsigned {}

impl Unsigned {
    /// The event with the policy server's signature, if that holds.
    pub fn signed(&self, signature: &str) -> Result<Pdu, Rejection> {
        let server = &self.server;
        let key = server.key.as_ref();
        let key = key.ok_or_else(|| Rejection::BadSignature { server: server.name.clone() })?;
        with_policy_signature(self.rules, &self.event, &server.name, key, signature)
    }

    /// Another event of the same room, if it lacks the signature too.
    pub fn beside(&self, event: &Pdu) -> Option<Self> {
        let goes_unsigned = is_policy_event(event.kind(), event.state_key());
        if goes_unsigned || self.server.has_signed(self.rules, event) {
            return None;
        }
        Some(Unsigned { server: self.server.clone(), event: event.clone(), rules: self.rules })
    }
}

/// Why the policy server's signature cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyRefusal {
    /// It was asked and said no.
    #[error("{server}, which checks the events of this room, refuses it: {error}")]
    Refused {
        server: OwnedServerName,
        errcode: Option<String>,
        error: String,
        /// When it may be asked again, if it says so.
        retry_after_ms: Option<u64>,
    },
    #[error("{0}, which checks the events of this room, cannot be reached")]
    Unreachable(OwnedServerName),
    #[error("{0}, which checks the events of this room, did not sign the event with the key of the room")]
    BadSignature(OwnedServerName),
}

/// What policy servers said of events.
#[derive(Debug, Default)]
pub struct Verdicts(HashMap<OwnedEventId, Option<Pdu>>);

impl Verdicts {
    /// The event is recommended: this is it, with the signature.
    pub fn recommend(&mut self, signed: Pdu) {
        self.0.insert(signed.event_id().to_owned(), Some(signed));
    }

    /// The event is not recommended.
    pub fn refuse(&mut self, event: OwnedEventId) {
        self.0.insert(event, None);
    }

    /// The event, if it is a single one.
    pub(crate) fn only_one(&self) -> Option<&EventId> {
        self.0.keys().next().filter(|_| self.0.len() == 1).map(|event| &**event)
    }
}

/// An error that may say no more than that the policy server's signature is missing.
pub trait MayLackSignature: From<WriteError> {
    /// The event that lacks it.
    fn unsigned(&self) -> Option<&Unsigned>;
}

impl MayLackSignature for WriteError {
    fn unsigned(&self) -> Option<&Unsigned> {
        match self {
            WriteError::Unsigned(unsigned) => Some(unsigned),
            _ => None,
        }
    }
}

impl MayLackSignature for SendError {
    fn unsigned(&self) -> Option<&Unsigned> {
        match self {
            SendError::Write(error) => error.unsigned(),
            _ => None,
        }
    }
}

impl MayLackSignature for MembershipError {
    fn unsigned(&self) -> Option<&Unsigned> {
        match self {
            MembershipError::Write(error) => error.unsigned(),
            _ => None,
        }
    }
}

impl MayLackSignature for HandshakeError {
    fn unsigned(&self) -> Option<&Unsigned> {
        match self {
            HandshakeError::Write(error) => error.unsigned(),
            _ => None,
        }
    }
}

impl Receive {
    /// An event on its way into a room, with what its policy server said of it.
    pub(crate) fn judged(pdu: &VerifiedPdu, verdicts: Option<&Verdicts>) -> Self {
        let mut receive = Receive::of(pdu);
        match verdicts.and_then(|verdicts| verdicts.0.get(receive.pdu.event_id())) {
            Some(Some(signed)) => receive.pdu = signed.clone(),
            Some(None) => receive.is_refused = true,
            None => {}
        }
        receive
    }
}

impl Turn {
    /// The room's policy server, if it has one that takes part.
    async fn policy_server(&mut self) -> Result<Option<Arc<PolicyServer>>, WriteError> {
        let named = match &self.head.policy {
            Named::Unread => {
                let event = self.state(&Kind::new("m.room.policy"), "").await?;
                let server = event.and_then(|event| PolicyServer::of(&event.pdu));
                // NOTSPEC: where one of our names is the policy server, it is other software that answers there. Whoever
                // receives the event asks it; we cannot ask ourselves.
                let server = server.filter(|server| !self.rooms.servers().is_local(&server.name));
                let named = server.map_or(Named::Nobody, |server| Named::Server(Arc::new(server)));
                self.head.policy = named.clone();
                named
            }
            named => named.clone(),
        };
        let Named::Server(server) = named else { return Ok(None) };
        // In a room that is being made there is nobody of another server yet.
        if self.head.version.is_none() {
            return Ok(None);
        }
        let state = SnapshotRow { snapshot: self.head.row.snapshot, partial: self.head.row.partial_state };
        let servers = self.rooms.servers_in(&self.head.room, &state).await?;
        Ok(servers.contains(&server.name).then_some(server))
    }

    /// Whether an event lacks the signature of the room's policy server.
    pub(crate) async fn lacks_signature(&mut self, event: &Pdu) -> Result<Option<Unsigned>, WriteError> {
        let Some(server) = self.policy_server().await? else { return Ok(None) };
        let rules = self.head.room.rules;
        if is_policy_event(event.kind(), event.state_key()) || server.has_signed(rules, event) {
            return Ok(None);
        }
        Ok(Some(Unsigned { server, event: event.clone(), rules }))
    }

    /// Refuses an event of ours that lacks it.
    pub(crate) async fn check_policy(&mut self, event: &Pdu) -> Result<(), WriteError> {
        match self.lacks_signature(event).await? {
            Some(unsigned) => Err(WriteError::Unsigned(Box::new(unsigned))),
            None => Ok(()),
        }
    }

    /// The signed event that this operation brought, if it is what the draft says and is not in the room yet.
    pub(crate) async fn signed_for(&self, draft: &Draft) -> Result<Option<Pdu>, WriteError> {
        let Some(verdicts) = self.rooms.verdicts() else { return Ok(None) };
        let strict = self.head.room.rules.strict_canonical_json;
        for event in verdicts.0.values().flatten() {
            let is_it = *event.room_id() == *self.head.room.room_id
                && *event.sender() == *draft.sender
                && *event.kind() == draft.kind
                && event.state_key() == draft.state_key.as_deref()
                && event.redacts() == draft.redacts.as_deref()
                && says(event, draft, strict);
            if is_it && self.event_number(event.event_id()).await?.is_none() {
                return Ok(Some(event.clone()));
            }
        }
        Ok(None)
    }

    /// An event of ours that was signed while the room went on: it takes its place beside what came meanwhile.
    pub(crate) async fn append_beside(
        &mut self,
        signed: Pdu,
        sending: Sending,
    ) -> Result<Appended, WriteError> {
        let event_id = signed.event_id().to_owned();
        let receive = Receive {
            ours_to_send: true,
            sent_by: sending.sent_by,
            ..Receive::of(&VerifiedPdu::built_here(signed))
        };
        match receive.decide(self).await? {
            Received::Accepted(slot) => {
                let sn = self.event_number(&event_id).await?.ok_or(WriteError::Busy)?;
                Ok(Appended { sn, event_id, slot })
            }
            Received::Rejected(Some(why)) | Received::SoftFailed(Some(why)) => Err(why.into()),
            Received::NeedsPolicySignature(unsigned) => Err(WriteError::Unsigned(unsigned)),
            _ => Err(WriteError::Busy),
        }
    }
}

/// Whether an event has the content of a draft. Where the version wants it there, a redaction's target is in it too.
fn says(event: &Pdu, draft: &Draft, strict: bool) -> bool {
    let Ok(wanted) = to_canonical(draft.content.get(), strict) else { return false };
    if wanted == event.content_json() {
        return true;
    }
    let content: Result<serde_json::Value, _> = serde_json::from_str(&wanted);
    let Ok(mut content) = content else { return false };
    if let Some(redacts) = &draft.redacts {
        content["redacts"] = serde_json::json!(redacts);
    }
    event.content_as::<serde_json::Value>().is_ok_and(|said| said == content)
}

impl Rooms {
    /// The same for an operation on events of which a policy server was asked: where it receives or makes one of them, it
    /// takes it as it was judged.
    #[must_use]
    pub fn with_verdicts(&self, verdicts: Verdicts) -> Self {
        self.judged(Arc::new(verdicts))
    }
}
