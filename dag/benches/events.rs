//! What an event costs: building, reading, checking. Prints microseconds of CPU for each; `cargo bench -p hearth-dag`.

use std::{hint::black_box, sync::OnceLock, time::Instant};

use hearth_dag::{
    Create, Draft, Keypair, Pdu, Place, PowerLevels, ReceivedPdu, RoomRules, ServerKeys, Signer, VerifyKey,
    check, check_with,
};
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedEventId, RoomId, RoomVersionId, UInt, UserId,
    events::{StateEventType, TimelineEventType},
    server_name, user_id,
};
use serde_json::{json, value::to_raw_value};

fn measure(what: &str, mut once: impl FnMut(u32)) {
    const ROUNDS: u32 = 20_000;
    (0..ROUNDS / 10).for_each(&mut once);
    let start = used_ns();
    (0..ROUNDS).for_each(&mut once);
    println!("{what:<44} {:8.2} µs", (used_ns() - start) as f64 / 1e3 / f64::from(ROUNDS));
}

/// CPU time of this thread where the system tells it, so that a busy machine does not count; else the time of day.
fn used_ns() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let cpu = schedstat.split(' ').next().and_then(|ns| ns.parse().ok());
    cpu.unwrap_or_else(|| START.get_or_init(Instant::now).elapsed().as_nanos() as u64)
}

struct Maker {
    rules: &'static RoomRules,
    key: Keypair,
}

impl Maker {
    fn make(
        &self,
        room_id: Option<&RoomId>,
        sender: &UserId,
        kind: &str,
        state_key: Option<&str>,
        content: &serde_json::Value,
        references: &[OwnedEventId],
    ) -> Pdu {
        let draft = Draft {
            sender: sender.to_owned(),
            kind: TimelineEventType::from(kind),
            state_key: state_key.map(str::to_owned),
            content: to_raw_value(content).expect("a JSON value"),
            redacts: None,
        };
        let place = Place {
            room_id,
            prev_events: &references[..references.len().min(1)],
            auth_events: references,
            depth: 7,
            origin_server_ts: MilliSecondsSinceUnixEpoch(UInt::from(1_700_000_000_u32)),
            hashes: None,
        };
        draft.build(self.rules, &place, &self.key).expect("within the limits")
    }
}

fn main() {
    let rules = RoomRules::of(&RoomVersionId::V11).expect("a known version");
    let key = Keypair::new(server_name!("example.org").to_owned(), "a_AbCd", &[9; 32]).expect("a valid key");
    let mut keys = ServerKeys::default();
    let public = VerifyKey::new(&key.public_key(), None).expect("a valid key");
    keys.insert(key.server_name().to_owned(), key.key_id().to_owned(), public);
    let maker = Maker { rules, key };
    let room_id = RoomId::parse("!abcdefghijklmnop:example.org").expect("a room ID");
    let alice = user_id!("@alice:example.org");

    let create =
        maker.make(Some(&room_id), alice, "m.room.create", Some(""), &json!({ "room_version": "11" }), &[]);
    let users: serde_json::Map<_, _> =
        (0..50).map(|index| (format!("@user{index}:example.org"), json!(50))).collect();
    let levels =
        json!({ "users": users, "users_default": 100, "events": { "m.room.name": 50, "m.reaction": 0 } });
    let power = maker.make(Some(&room_id), alice, "m.room.power_levels", Some(""), &levels, &[]);
    let join = json!({ "membership": "join", "displayname": "Alice" });
    let join = maker.make(Some(&room_id), alice, "m.room.member", Some(alice.as_str()), &join, &[]);
    let references = [create.event_id().to_owned(), power.event_id().to_owned(), join.event_id().to_owned()];

    let body = "A message of usual length, as people write them all day. ".repeat(3);
    let content = json!({ "msgtype": "m.text", "body": body });
    let message = maker.make(Some(&room_id), alice, "m.room.message", None, &content, &references);
    println!("message event of {} bytes", message.json().len());

    measure("build, hash, sign a message", |_| {
        black_box(maker.make(Some(&room_id), alice, "m.room.message", None, &content, &references));
    });
    let signing = message.json().as_bytes();
    measure("  of that the signature alone", |_| {
        black_box(maker.key.sign(signing));
    });
    measure("read a stored message", |_| {
        black_box(
            Pdu::from_stored(rules, message.event_id().to_owned(), message.bytes().clone()).expect("stored"),
        );
    });
    measure("receive a message (format, event ID)", |_| {
        black_box(ReceivedPdu::parse(rules, message.json()).expect("well-formed"));
    });
    let received = ReceivedPdu::parse(rules, message.json()).expect("well-formed");
    measure("verify a message (signature, hash)", |_| {
        black_box(received.clone().verify(rules, &keys).expect("signed"));
    });
    let state = |kind: &StateEventType, _: &str| match kind {
        StateEventType::RoomCreate => Some(create.clone()),
        StateEventType::RoomPowerLevels => Some(power.clone()),
        StateEventType::RoomMember => Some(join.clone()),
        _ => None,
    };
    measure("authorize a message", |_| check(rules, &message, state).expect("allowed"));
    let facts = Create::of(rules, &create).expect("well-formed");
    let levels = PowerLevels::of(rules, &facts, Some(&power)).expect("well-formed");
    measure("authorize a message, levels at hand", |_| {
        check_with(rules, &message, &facts, &levels, true, state).expect("allowed");
    });
    measure("read power levels of 50 users", |_| {
        black_box(PowerLevels::of(rules, &facts, Some(&power)).expect("well-formed"));
    });
}
