//! From bytes that a peer sent to an event whose signatures hold.
//! * [`ReceivedPdu`]: well-formed, within the limits, event ID computed; trusted by nobody.
//! * [`VerifiedPdu`]: signed by all who had to; redacted if its content hash did not hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use bytes::Bytes;
use ed25519_dalek::{Signature, Verifier, VerifyingKey};
use ruma::{
    EventId, MilliSecondsSinceUnixEpoch, OwnedServerName, RoomId, UserId,
    events::{TimelineEventType, room::member::MembershipState},
};
use serde::Deserialize;

use crate::{
    Pdu, Rejection, RoomRules, Signer,
    canonical::{Object, Value},
    hash, limits,
    pdu::create_event_of_room,
    redact,
    sign::decode_base64,
};

/// An event that is well-formed and nothing more.
#[derive(Debug, Clone)]
pub struct ReceivedPdu(Pdu);

/// An event that its servers signed.
#[derive(Debug, Clone)]
pub struct VerifiedPdu {
    pdu: Pdu,
    redacted: bool,
}

/// Public keys of servers, as far as they are known, by key ID.
#[derive(Debug, Clone, Default)]
pub struct ServerKeys(BTreeMap<OwnedServerName, BTreeMap<String, VerifyKey>>);

/// A public key of a server.
#[derive(Clone)]
pub struct VerifyKey {
    key: VerifyingKey,
    valid_until: Option<MilliSecondsSinceUnixEpoch>,
}

impl VerifyKey {
    /// A key from its 32 bytes. `valid_until` is what the server said, capped at seven days from when it was
    /// fetched; for an old key, when it expired.
    pub fn new(key: &[u8; 32], valid_until: Option<MilliSecondsSinceUnixEpoch>) -> Option<Self> {
        Some(Self { key: VerifyingKey::from_bytes(key).ok()?, valid_until })
    }

    /// A key from unpadded base64.
    pub fn from_base64(key: &str, valid_until: Option<MilliSecondsSinceUnixEpoch>) -> Option<Self> {
        Self::new(&decode_base64(key)?.try_into().ok()?, valid_until)
    }

    /// Whether a signature, in base64, is this key's over `message`.
    pub fn verifies(&self, message: &[u8], signature: &str) -> bool {
        decode_base64(signature)
            .and_then(|bytes| Signature::from_slice(&bytes).ok())
            .is_some_and(|signature| self.key.verify(message, &signature).is_ok())
    }
}

impl fmt::Debug for VerifyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyKey(valid until {:?})", self.valid_until)
    }
}

impl ServerKeys {
    /// Adds a key.
    pub fn insert(&mut self, server_name: OwnedServerName, key_id: String, key: VerifyKey) {
        self.0.entry(server_name).or_default().insert(key_id, key);
    }

    /// The keys of one server.
    pub fn of(&self, server_name: &ruma::ServerName) -> impl Iterator<Item = (&str, &VerifyKey)> {
        self.0.get(server_name).into_iter().flatten().map(|(key_id, key)| (&**key_id, key))
    }

    /// Whether a JSON object carries a valid signature of a server.
    pub fn verify_json(&self, server_name: &ruma::ServerName, object: &Object<'_>) -> Result<(), Rejection> {
        let mut message = String::new();
        object.write_without(&["signatures", "unsigned"], &mut message);
        self.verify(server_name, object, &message, None)
    }

    /// Whether an event carries a valid signature of a server, whether or not it must.
    pub fn verify_event(
        &self,
        server_name: &ruma::ServerName,
        rules: &RoomRules,
        pdu: &Pdu,
    ) -> Result<(), Rejection> {
        let object = pdu.to_object();
        let at = rules.inner.enforce_key_validity.then(|| pdu.origin_server_ts());
        self.verify(server_name, &object, &hash::signed_form(rules, &object), at)
    }

    fn verify(
        &self,
        server_name: &ruma::ServerName,
        object: &Object<'_>,
        message: &str,
        at: Option<MilliSecondsSinceUnixEpoch>,
    ) -> Result<(), Rejection> {
        let server = || server_name.to_owned();
        let signatures = object.get("signatures").and_then(Value::as_object);
        let of_server = signatures.and_then(|all| all.get(server_name.as_str())).and_then(Value::as_object);
        let of_server = of_server.ok_or_else(|| Rejection::MissingSignature { server: server() })?;
        let mut tried = false;
        for (key_id, key) in self.of(server_name) {
            let in_time = at.is_none_or(|at| key.valid_until.is_none_or(|until| until >= at));
            let Some(signature) = of_server.get(key_id).and_then(Value::as_str).filter(|_| in_time) else {
                continue;
            };
            if key.verifies(message.as_bytes(), signature) {
                return Ok(());
            }
            tried = true;
        }
        Err(match tried {
            true => Rejection::BadSignature { server: server() },
            false => Rejection::MissingSignature { server: server() },
        })
    }
}

impl ReceivedPdu {
    /// Checks the format and the limits of an event, and computes its ID.
    pub fn parse(rules: &RoomRules, json: &str) -> Result<Self, Rejection> {
        let mut object = Object::parse(json, rules.strict_canonical_json)?;
        // Nobody signs it, nobody needs it.
        object.remove("unsigned");
        if !rules.opaque_event_ids {
            // A courtesy of some servers; the ID is what the event hashes to.
            object.remove("event_id");
        }
        check_format(rules, &object)?;
        let canonical = object.to_canonical();
        limits::check_size(canonical.len())?;
        let event_id = match rules.opaque_event_ids {
            true => object.get("event_id").and_then(Value::as_str).unwrap_or_default().to_owned(),
            false => format!("${}", hash::reference_hash(rules, &object)),
        };
        let event_id =
            EventId::parse(event_id).map_err(|_| Rejection::MalformedField { field: "event ID" })?;
        let pdu = Pdu::from_stored(rules, event_id, Bytes::from(canonical))
            .map_err(|_| Rejection::MalformedField { field: "top level" })?;
        if rules.room_id_is_create_event
            && create_event_of_room(pdu.room_id()).is_some_and(|create| pdu.auth_events().contains(&create))
        {
            return Err(Rejection::UnexpectedAuthEvent(
                create_event_of_room(pdu.room_id()).expect("it was found above"),
            ));
        }
        Ok(Self(pdu))
    }

    /// The event, to look at.
    pub fn pdu(&self) -> &Pdu {
        &self.0
    }

    /// Refuses an event of another room than the one that it was handed over for.
    pub fn in_room(self, room_id: &RoomId) -> Result<Self, Rejection> {
        if self.0.room_id() == room_id { Ok(self) } else { Err(Rejection::WrongRoom) }
    }

    /// Checks signatures, then the content hash: without the right one, only what redaction leaves was signed.
    pub fn verify(self, rules: &RoomRules, keys: &ServerKeys) -> Result<VerifiedPdu, Rejection> {
        self.verify_for(rules, keys, |_| true)
    }

    fn verify_for(
        self,
        rules: &RoomRules,
        keys: &ServerKeys,
        is_wanted: impl Fn(&ruma::ServerName) -> bool,
    ) -> Result<VerifiedPdu, Rejection> {
        let object = self.0.to_object();
        let message = hash::signed_form(rules, &object);
        let at = rules.inner.enforce_key_validity.then(|| self.0.origin_server_ts());
        for server in required_signatures(rules, &self.0).iter().filter(|server| is_wanted(server)) {
            keys.verify(server, &object, &message, at)?;
        }
        Ok(self.check_hash(rules, &object))
    }

    /// As [`verify`](Self::verify), for an event that a server of ours has yet to sign: all other signatures are
    /// checked, ours is added. An event of that server's own users must be signed already. One that our signature makes
    /// too large is refused.
    pub fn verify_and_countersign(
        self,
        rules: &RoomRules,
        keys: &ServerKeys,
        signer: &dyn Signer,
    ) -> Result<VerifiedPdu, Rejection> {
        if self.0.sender().server_name() == signer.server_name() {
            return self.verify(rules, keys);
        }
        let verified = self.verify_for(rules, keys, |server| server != signer.server_name())?;
        let pdu = crate::draft::countersign(rules, &verified.pdu, signer);
        limits::check_size(pdu.bytes().len())?;
        Ok(VerifiedPdu { pdu, redacted: verified.redacted })
    }

    /// Takes an event whose signatures were checked elsewhere, such as one of an old store, and checks its hash.
    pub fn trust_signatures(self, rules: &RoomRules) -> VerifiedPdu {
        let object = self.0.to_object();
        self.check_hash(rules, &object)
    }

    fn check_hash(&self, rules: &RoomRules, object: &Object<'_>) -> VerifiedPdu {
        let claimed = object.get("hashes").and_then(Value::as_object).and_then(|hashes| hashes.get("sha256"));
        let actual = hash::content_hash(object);
        let holds = claimed.and_then(Value::as_str).and_then(decode_base64) == decode_base64(&actual);
        match holds {
            true => VerifiedPdu { pdu: self.0.clone(), redacted: false },
            false => VerifiedPdu { pdu: redact::redact(rules, &self.0), redacted: true },
        }
    }
}

impl VerifiedPdu {
    /// An event that was built here.
    pub fn built_here(pdu: Pdu) -> Self {
        Self { pdu, redacted: false }
    }

    /// The event.
    pub fn pdu(&self) -> &Pdu {
        &self.pdu
    }

    /// The event.
    pub fn into_pdu(self) -> Pdu {
        self.pdu
    }

    /// Whether this is only the redacted form, because the content hash did not hold.
    pub fn is_redacted(&self) -> bool {
        self.redacted
    }
}

/// The servers whose signature an event must have.
pub fn required_signatures(rules: &RoomRules, pdu: &Pdu) -> BTreeSet<OwnedServerName> {
    #[derive(Deserialize)]
    struct Content<'a> {
        third_party_invite: Option<serde::de::IgnoredAny>,
        #[serde(borrow)]
        join_authorised_via_users_server: Option<std::borrow::Cow<'a, str>>,
    }
    let mut servers = BTreeSet::new();
    let member: Option<Content<'_>> =
        (*pdu.kind() == TimelineEventType::RoomMember).then(|| pdu.content_as().ok()).flatten();
    let by_third_party = member.as_ref().is_some_and(|content| content.third_party_invite.is_some())
        && pdu.membership() == Some(MembershipState::Invite);
    // Such an invite may be sent on behalf of a user whose server does not take part.
    if !by_third_party {
        servers.insert(pdu.sender().server_name().to_owned());
    }
    if rules.inner.signatures.check_event_id_server {
        servers.extend(pdu.event_id().server_name().map(ToOwned::to_owned));
    }
    if rules.inner.signatures.check_join_authorised_via_users_server
        && pdu.membership() == Some(MembershipState::Join)
        && let Some(user_id) = member.and_then(|content| content.join_authorised_via_users_server)
        && let Ok(user_id) = <&UserId>::try_from(&*user_id)
    {
        servers.insert(user_id.server_name().to_owned());
    }
    servers
}

/// Each field is there, is what it must be, and is within its limit.
fn check_format(rules: &RoomRules, event: &Object<'_>) -> Result<(), Rejection> {
    let malformed = |field| Rejection::MalformedField { field };
    let text = |key: &str, field: &'static str| -> Result<Option<&str>, Rejection> {
        let Some(value) = event.get(key) else { return Ok(None) };
        let value = value.as_str().ok_or(malformed(field))?;
        if value.len() > limits::MAX_KEY_BYTES {
            Err(Rejection::FieldTooLong { field })
        } else {
            Ok(Some(value))
        }
    };
    let kind = text("type", "type")?.ok_or(malformed("type"))?;
    let sender = text("sender", "sender")?.ok_or(malformed("sender"))?;
    <&UserId>::try_from(sender).map_err(|_| malformed("sender"))?;
    text("state_key", "state key")?;
    match text("room_id", "room ID")? {
        Some(_) if kind == "m.room.create" && rules.room_id_is_create_event => {
            return Err(Rejection::CreateWithRoomId);
        }
        Some(room_id) => drop(<&RoomId>::try_from(room_id).map_err(|_| malformed("room ID"))?),
        None if kind == "m.room.create" && rules.room_id_is_create_event => {}
        None => return Err(malformed("room ID")),
    }
    if rules.opaque_event_ids {
        let event_id = text("event_id", "event ID")?.ok_or(malformed("event ID"))?;
        let event_id = <&EventId>::try_from(event_id).map_err(|_| malformed("event ID"))?;
        event_id.server_name().ok_or(malformed("event ID"))?;
    }
    let prev_events = check_references(rules, event, "prev_events").ok_or(malformed("prev events"))?;
    let auth_events = check_references(rules, event, "auth_events").ok_or(malformed("auth events"))?;
    if prev_events > limits::MAX_PREV_EVENTS {
        return Err(Rejection::TooManyPrevEvents);
    }
    if auth_events > limits::MAX_AUTH_EVENTS {
        return Err(Rejection::TooManyAuthEvents);
    }
    let depth = event.get("depth").and_then(Value::as_integer).ok_or(malformed("depth"))?;
    if !(0..=rules.max_depth).contains(&depth) {
        return Err(malformed("depth"));
    }
    event.get("origin_server_ts").and_then(Value::as_integer).ok_or(malformed("timestamp"))?;
    event.get("content").and_then(Value::as_object).ok_or(malformed("content"))?;
    event.get("signatures").and_then(Value::as_object).ok_or(malformed("signatures"))?;
    let hashes = event.get("hashes").and_then(Value::as_object).ok_or(malformed("hashes"))?;
    hashes.get("sha256").and_then(Value::as_str).ok_or(malformed("hashes"))?;
    Ok(())
}

/// How many references a key has, if all are well-formed.
fn check_references(rules: &RoomRules, event: &Object<'_>, key: &str) -> Option<usize> {
    let references = event.get(key)?.as_array()?;
    let well_formed = references.iter().all(|reference| {
        let event_id = match reference {
            Value::Array(pair) if rules.event_references_have_hashes => pair.first().and_then(Value::as_str),
            Value::String(event_id) if !rules.event_references_have_hashes => Some(&**event_id),
            _ => None,
        };
        event_id.is_some_and(|id| id.len() <= limits::MAX_KEY_BYTES && <&EventId>::try_from(id).is_ok())
    });
    well_formed.then_some(references.len())
}
