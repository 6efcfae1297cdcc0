//! The two hashes of an event.
//! * The content hash covers all that the sender wrote; it fails when an event was redacted.
//! * The reference hash covers the redacted form; since version 3 it is the event's ID.

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use sha2::{Digest, Sha256};

use crate::{RoomRules, canonical::Object, redact::redact_object};

/// The content hash, in unpadded base64.
pub fn content_hash(event: &Object<'_>) -> String {
    let mut json = String::with_capacity(1024);
    event.write_without(&["hashes", "signatures", "unsigned"], &mut json);
    content_hash_of(&json)
}

/// The reference hash, in the base64 alphabet of the room version.
pub fn reference_hash(rules: &RoomRules, event: &Object<'_>) -> String {
    reference_hash_of(rules, &signed_form(rules, event))
}

/// What servers sign and the reference hash covers: the redacted event without `signatures` and `unsigned`.
pub(crate) fn signed_form(rules: &RoomRules, event: &Object<'_>) -> String {
    let mut redacted = event.clone();
    redact_object(rules, &mut redacted);
    let mut json = String::with_capacity(512);
    redacted.write_without(&["signatures", "unsigned"], &mut json);
    json
}

/// The content hash of an event's JSON that has no hashes and signatures.
pub(crate) fn content_hash_of(json: &str) -> String {
    STANDARD_NO_PAD.encode(Sha256::digest(json))
}

/// The reference hash of an event's signed form.
pub(crate) fn reference_hash_of(rules: &RoomRules, signed_form: &str) -> String {
    let digest = Sha256::digest(signed_form);
    // Versions 1 and 2 write it with the standard alphabet into references, version 3 into event IDs.
    if rules.url_safe_event_ids { URL_SAFE_NO_PAD.encode(digest) } else { STANDARD_NO_PAD.encode(digest) }
}
