//! Other servers: they sign, complete templates, and hand over PDUs; rooms of their own they have where a story needs it.
#![allow(dead_code, reason = "each story uses a part of it")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use hearth_dag::canonical::Object;
use hearth_dag::{
    Keypair, LocalServers, Pdu, ReceivedPdu, RoomRules, ServerKeys, Signer, VerifyKey, content_hash,
    countersign, reference_hash,
};
use hearth_rooms::serve::{AcceptedJoin, HandshakeError, Submitted, Template};
use hearth_rooms::*;
use hearth_store::Store;
use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomVersionId, ServerName, UserId};
use serde_json::{Value, json};

use crate::support::{TestClock, World};

pub struct Remote {
    pub name: OwnedServerName,
    key: Arc<Keypair>,
}

/// All keys that servers in stories have.
pub fn keys() -> ServerKeys {
    let mut keys = ServerKeys::default();
    let seeds = [("hearth.test", 7), ("peer.test", 9), ("third.test", 11)];
    for (name, seed) in seeds {
        let name = ServerName::parse(name).unwrap();
        let key = Keypair::new(name.clone(), "1", &[seed; 32]).unwrap();
        let public = VerifyKey::new(&key.public_key(), None).unwrap();
        keys.insert(name, "ed25519:1".to_owned(), public);
    }
    keys
}

pub fn peer() -> Remote {
    Remote::new("peer.test", 9)
}

pub fn third() -> Remote {
    Remote::new("third.test", 11)
}

pub fn all_versions() -> Vec<RoomVersionId> {
    RoomRules::all().iter().map(|rules| rules.version.clone()).collect()
}

impl Remote {
    fn new(name: &str, seed: u8) -> Self {
        let name = ServerName::parse(name).unwrap();
        let key = Keypair::new(name.clone(), "1", &[seed; 32]).unwrap();
        Remote { name, key: Arc::new(key) }
    }

    /// A server of its own.
    pub async fn rooms(&self) -> Rooms {
        let key: Arc<dyn Signer> = self.key.clone();
        let clock = Arc::new(TestClock(AtomicU64::new(1_700_000_000_000)));
        Rooms::new(Store::memory().await, LocalServers::new([key]), clock, &RoomsOptions::default())
    }

    pub fn user(&self, name: &str) -> OwnedUserId {
        UserId::parse(format!("@{name}:{}", self.name)).unwrap()
    }

    /// Hashes and signs an event.
    pub fn sign(&self, rules: &RoomRules, event: &Value) -> ReceivedPdu {
        let json = event.to_string();
        let object = Object::parse(&json, false).unwrap();
        let mut event = event.clone();
        event["hashes"] = json!({ "sha256": content_hash(&object) });
        event["signatures"] = json!({});
        let json = event.to_string();
        let object = Object::parse(&json, false).unwrap();
        let id = match event["event_id"].as_str() {
            Some(id) => id.to_owned(),
            None => format!("${}", reference_hash(rules, &object)),
        };
        let pdu =
            Pdu::from_stored(rules, OwnedEventId::try_from(id).unwrap(), Bytes::from(object.to_canonical()));
        let signed = countersign(rules, &pdu.unwrap(), &*self.key);
        ReceivedPdu::parse(rules, signed.json()).unwrap()
    }

    /// Completes a template, after a change.
    pub fn complete_with(&self, template: &Template, change: impl FnOnce(&mut Value)) -> ReceivedPdu {
        let rules = RoomRules::of(&template.room_version).unwrap();
        let mut event: Value = serde_json::from_str(template.event.get()).unwrap();
        event["origin"] = json!(self.name);
        if rules.opaque_event_ids {
            let sender = event["sender"].as_str().unwrap().replace(['@', ':'], "");
            event["event_id"] = json!(format!("${}{sender}:{}", event["depth"], self.name));
        }
        change(&mut event);
        self.sign(rules, &event)
    }

    pub fn complete(&self, template: &Template) -> ReceivedPdu {
        self.complete_with(template, |_| {})
    }

    pub async fn make_join(
        &self,
        world: &World,
        name: &str,
        room: &OwnedRoomId,
    ) -> Result<Template, HandshakeError> {
        world.rooms.make_join(&self.name, room, &self.user(name), &all_versions()).await
    }

    pub async fn submit_join(
        &self,
        world: &World,
        room: &OwnedRoomId,
        pdu: ReceivedPdu,
        omit_members: bool,
    ) -> Result<AcceptedJoin, HandshakeError> {
        let event = pdu.pdu().event_id().to_owned();
        let submitted = Submitted { origin: &self.name, room, event: &event, pdu, keys: &keys() };
        world.rooms.accept_join(submitted, omit_members).await
    }

    pub async fn join(&self, world: &World, name: &str, room: &OwnedRoomId) -> AcceptedJoin {
        let template = self.make_join(world, name, room).await.unwrap();
        self.submit_join(world, room, self.complete(&template), false).await.unwrap()
    }

    pub async fn leave(
        &self,
        world: &World,
        name: &str,
        room: &OwnedRoomId,
    ) -> Result<OwnedEventId, HandshakeError> {
        let template = world.rooms.make_leave(&self.name, room, &self.user(name)).await?;
        let pdu = self.complete(&template);
        let event = pdu.pdu().event_id().to_owned();
        let submitted = Submitted { origin: &self.name, room, event: &event, pdu, keys: &keys() };
        world.rooms.accept_leave(submitted).await.map(|()| event)
    }
}

/// Everything that some events rest on, the events themselves included, walked from event to event.
pub fn closure(pool: &[Pdu], from: &[Pdu]) -> BTreeSet<OwnedEventId> {
    let mut found = BTreeSet::new();
    let mut open: Vec<OwnedEventId> = from.iter().map(|pdu| pdu.event_id().to_owned()).collect();
    while let Some(event) = open.pop() {
        if found.insert(event.clone()) {
            let pdu = pool.iter().find(|pdu| pdu.event_id() == event);
            open.extend(pdu.expect("an event that others rest on").auth_events().iter().cloned());
        }
    }
    found
}

pub fn ids(pdus: &[Pdu]) -> BTreeSet<OwnedEventId> {
    pdus.iter().map(|pdu| pdu.event_id().to_owned()).collect()
}

/// The state keys of the events of a type.
pub fn of_kind(pdus: &[Pdu], kind: &str) -> BTreeSet<String> {
    let of_kind = pdus.iter().filter(|pdu| pdu.kind().to_string() == kind);
    of_kind.map(|pdu| pdu.state_key().unwrap().to_owned()).collect()
}
