//! Any bytes from a peer are an event of each room version, or are refused. What was taken can be read again from the
//! store and is the same event; nobody's signature makes it verified.
#![no_main]

use bytes::Bytes;
use hearth_dag::{Pdu, ReceivedPdu, RoomRules, ServerKeys};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((version, json)) = data.split_first() else { return };
    let Ok(json) = std::str::from_utf8(json) else { return };
    let all = RoomRules::all();
    let rules = all[usize::from(*version) % all.len()];
    let Ok(received) = ReceivedPdu::parse(rules, json) else { return };
    let pdu = received.pdu();
    let stored = Pdu::from_stored(rules, pdu.event_id().to_owned(), Bytes::copy_from_slice(pdu.bytes()));
    let stored = stored.expect("what was received can be read again");
    assert_eq!(stored.json(), pdu.json());
    assert_eq!(stored.reference_hash(rules), pdu.reference_hash(rules));
    assert!(received.verify(rules, &ServerKeys::default()).is_err());
});
