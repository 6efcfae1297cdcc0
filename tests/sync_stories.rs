//! Stories of clients that sync, in one process, without HTTP.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod sync_world;

use std::{collections::BTreeSet, time::Duration};

use hearth_rooms::{
    Removal,
    read::{Direction, SyncToken},
};
use hearth_store::StreamPosition;
use serde_json::{Value, json};
use sync_world::{Client, World, ids, room_of};

fn timeline(answer: &Value, room: &str) -> Vec<String> {
    ids(&room_of(answer, "join", room)["timeline"]["events"])
}

fn state_types(section: &Value, key: &str) -> BTreeSet<(String, String)> {
    let events = section[key]["events"].as_array().cloned().unwrap_or_default();
    let name = |event: &Value, field: &str| event[field].as_str().unwrap_or_default().to_owned();
    events.iter().map(|event| (name(event, "type"), name(event, "state_key"))).collect()
}

fn pair(kind: &str, key: &str) -> (String, String) {
    (kind.to_owned(), key.to_owned())
}

#[tokio::test]
async fn a_first_sync_shows_the_room_and_the_next_one_what_is_new() {
    let world = World::new().await;
    let (alice, bob) = (world.client("alice"), world.client("bob"));
    let room = alice.creates_a_public_room().await;
    let hello = alice.says(&room, "hello").await;
    bob.joins(&room).await;

    let first = bob.syncs(None, json!({})).await;
    let section = room_of(&first, "join", &room);
    assert!(timeline(&first, &room).contains(&hello));
    assert_eq!(section["summary"]["m.joined_member_count"], 2);
    assert_eq!(section["summary"]["m.heroes"], json!(["@alice:hearth.test"]));
    assert!(first["account_data"]["events"].to_string().contains("m.push_rules"));
    assert_eq!(first["device_one_time_keys_count"], json!({}));
    assert_eq!(first["device_unused_fallback_key_types"], json!([]));

    let quiet = bob.syncs(Some(&first), json!({})).await;
    assert_eq!(quiet.get("rooms"), None, "{quiet}");
    let again = alice.says(&room, "again").await;
    let news = bob.syncs(Some(&quiet), json!({})).await;
    assert_eq!(timeline(&news, &room), [again.clone()]);
    let section = room_of(&news, "join", &room);
    assert_eq!(section["timeline"]["limited"], false);
    assert_eq!(section["unread_notifications"], json!({"highlight_count": 0, "notification_count": 1}));
    assert_eq!(section["timeline"]["events"][0]["unsigned"]["membership"], "join");
    assert_eq!(section["timeline"]["events"][0].get("room_id"), None);
    // The same token gives the same data.
    let repeated = bob.syncs(Some(&quiet), json!({})).await;
    assert_eq!(timeline(&repeated, &room), [again]);
}

#[tokio::test]
async fn the_sender_alone_sees_the_transaction_id() {
    let world = World::new().await;
    let (alice, bob) = (world.client("alice"), world.client("bob"));
    let room = alice.creates_a_public_room().await;
    bob.joins(&room).await;
    let phone = alice.on_device("PHONE");
    let hello = alice.says(&room, "hello").await;
    for (client, expected) in [(&alice, true), (&phone, false), (&bob, false)] {
        let answer = client.syncs(None, json!({})).await;
        let events = room_of(&answer, "join", &room)["timeline"]["events"].clone();
        let event =
            events.as_array().unwrap().iter().find(|event| event["event_id"] == *hello).unwrap().clone();
        assert_eq!(event["unsigned"].get("transaction_id").is_some(), expected, "{event}");
    }
}

#[tokio::test]
async fn a_gap_is_limited_and_state_in_it_is_told() {
    let world = World::new().await;
    let (alice, bob) = (world.client("alice"), world.client("bob"));
    let room = alice.creates_a_public_room().await;
    bob.joins(&room).await;
    let filter = json!({"room": {"timeline": {"limit": 3}}});
    let first = bob.syncs(None, filter.clone()).await;
    alice.sets(&room, "m.room.topic", "", json!({"topic": "in the gap"})).await;
    for n in 0..5 {
        alice.says(&room, &format!("message {n}")).await;
    }
    alice.sets(&room, "m.room.name", "", json!({"name": "in the timeline"})).await;
    let news = bob.syncs(Some(&first), filter.clone()).await;
    let section = room_of(&news, "join", &room);
    assert_eq!(section["timeline"]["limited"], true);
    assert_eq!(timeline(&news, &room).len(), 3);
    assert_eq!(state_types(&section, "state"), [pair("m.room.topic", "")].into());
    assert!(section["summary"]["m.joined_member_count"].is_number(), "the name changed: {section}");

    let after = bob
        .syncs_with(Some(&first), filter, |request| request.state = hearth::sync::StateWanted::After)
        .await;
    let section = room_of(&after, "join", &room);
    assert_eq!(
        state_types(&section, "state_after"),
        [pair("m.room.topic", ""), pair("m.room.name", "")].into()
    );
    assert_eq!(section.get("state"), None);
}

#[tokio::test]
async fn sync_and_messages_together_show_every_event_once() {
    let world = World::new().await;
    let (alice, bob) = (world.client("alice"), world.client("bob"));
    let room = alice.creates_a_public_room().await;
    bob.joins(&room).await;
    let filter = json!({"room": {"timeline": {"limit": 4}}});
    let mut seed = 7u64;
    let mut random = move |below: u64| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) % below
    };
    let mut answer = bob.syncs(None, filter.clone()).await;
    let mut known: Vec<String> = bob.pages_back(&room, &answer, None).await;
    known.extend(timeline(&answer, &room));
    for round in 0..40 {
        for n in 0..random(12) {
            match random(5) {
                0 => alice.sets(&room, "m.room.topic", "", json!({"topic": format!("{round} {n}")})).await,
                _ => alice.says(&room, &format!("{round} {n}")).await,
            };
        }
        let next = bob.syncs(Some(&answer), filter.clone()).await;
        let section = room_of(&next, "join", &room);
        if section["timeline"]["limited"] == true {
            let stop: BTreeSet<String> = known.iter().cloned().collect();
            known.extend(bob.pages_back(&room, &next, Some(&stop)).await);
        }
        known.extend(timeline(&next, &room));
        answer = next;
    }
    let all = alice.whole_history(&room).await;
    assert_eq!(known, all);
}

#[tokio::test]
async fn pages_meet_in_both_directions() {
    let world = World::new().await;
    let alice = world.client("alice");
    let room = alice.creates_a_public_room().await;
    for n in 0..30 {
        alice.says(&room, &format!("{n}")).await;
    }
    let forward = alice.walks(&room, Direction::Forward, 7).await;
    let mut backward = alice.walks(&room, Direction::Backward, 5).await;
    backward.reverse();
    assert_eq!(forward, backward);
    assert!(forward.len() > 30);
}

#[tokio::test]
async fn lazily_loaded_members_come_once() {
    let world = World::new().await;
    let (alice, bob, carol) = (world.client("alice"), world.client("bob"), world.client("carol"));
    let room = alice.creates_a_public_room().await;
    bob.joins(&room).await;
    carol.joins(&room).await;
    for n in 0..12 {
        alice.says(&room, &format!("{n}")).await;
    }
    let filter = json!({"room": {"state": {"lazy_load_members": true}, "timeline": {"limit": 10}}});
    let first = bob.syncs(None, filter.clone()).await;
    let members = |answer: &Value| -> BTreeSet<String> {
        let types = state_types(&room_of(answer, "join", &room), "state");
        types.into_iter().filter(|(kind, _)| kind == "m.room.member").map(|(_, key)| key).collect()
    };
    // Who spoke, oneself, and who names the room; all three, as it has no name.
    assert_eq!(members(&first).len(), 3);
    alice.says(&room, "again").await;
    let news = bob.syncs(Some(&first), filter.clone()).await;
    assert_eq!(members(&news), BTreeSet::new());
    // From an older token everything is sent again.
    let repeated = bob.syncs(Some(&first), filter.clone()).await;
    assert_eq!(members(&repeated), ["@alice:hearth.test".to_owned()].into());
    let redundant =
        json!({"room": {"state": {"lazy_load_members": true, "include_redundant_members": true}}});
    let news = bob.syncs(Some(&first), redundant).await;
    assert_eq!(members(&news), ["@alice:hearth.test".to_owned()].into());
}

#[tokio::test]
async fn invites_knocks_leaves_and_bans_have_their_sections() {
    let world = World::new().await;
    let (alice, bob, carol) = (world.client("alice"), world.client("bob"), world.client("carol"));
    let room = alice.creates_a_private_room().await;
    let start = bob.syncs(None, json!({})).await;
    alice.invites(&room, &bob).await;
    let invited = bob.syncs(Some(&start), json!({})).await;
    let stripped = room_of(&invited, "invite", &room)["invite_state"]["events"].clone();
    assert!(stripped.to_string().contains("m.room.create"), "{stripped}");
    assert!(stripped.as_array().unwrap().iter().all(|event| event.get("event_id").is_none()));
    let quiet = bob.syncs(Some(&invited), json!({})).await;
    assert_eq!(quiet.get("rooms"), None);

    bob.joins(&room).await;
    let joined = bob.syncs(Some(&invited), json!({})).await;
    let section = room_of(&joined, "join", &room);
    assert_eq!(section["timeline"]["limited"], true);
    let known = state_types(&section, "state");
    let shown = section["timeline"]["events"]
        .as_array()
        .unwrap()
        .iter()
        .any(|event| event["type"] == "m.room.create");
    assert!(shown || known.contains(&pair("m.room.create", "")), "the whole state: {section}");

    let last = alice.says(&room, "the last that bob sees").await;
    alice.removes(&room, &bob, Removal::Kick).await;
    alice.says(&room, "bob is gone").await;
    let kicked = bob.syncs(Some(&joined), json!({})).await;
    let section = room_of(&kicked, "leave", &room);
    let events = ids(&section["timeline"]["events"]);
    assert_eq!(events.len(), 2, "{section}");
    assert_eq!(events[0], last);
    assert_eq!(bob.syncs(Some(&kicked), json!({})).await.get("rooms"), None);

    // Old rooms come only when asked for.
    assert_eq!(room_of(&bob.syncs(None, json!({})).await, "leave", &room), Value::Null);
    let old = bob.syncs(None, json!({"room": {"include_leave": true}})).await;
    assert!(ids(&room_of(&old, "leave", &room)["timeline"]["events"]).contains(&last));
    bob.forgets(&room).await;
    let forgotten = bob.syncs(None, json!({"room": {"include_leave": true}})).await;
    assert_eq!(room_of(&forgotten, "leave", &room), Value::Null);

    let start = carol.syncs(None, json!({})).await;
    alice.removes(&room, &carol, Removal::Ban).await;
    let banned = carol.syncs(Some(&start), json!({})).await;
    assert_eq!(room_of(&banned, "leave", &room)["timeline"]["events"].as_array().unwrap().len(), 1);

    let knocking = alice.creates_a_room_to_knock_at().await;
    carol.knocks(&knocking).await;
    let knocked = carol.syncs(Some(&banned), json!({})).await;
    assert!(room_of(&knocked, "knock", &knocking)["knock_state"].to_string().contains("m.room.create"));
}

#[tokio::test]
async fn other_devices_hear_that_a_room_was_left_also_if_it_is_forgotten_at_once() {
    let world = World::new().await;
    let (alice, bob) = (world.client("alice"), world.client("bob"));
    let (room, private) = (alice.creates_a_public_room().await, alice.creates_a_private_room().await);
    bob.joins(&room).await;
    alice.invites(&private, &bob).await;
    let first = bob.syncs(None, json!({})).await;
    for room in [&room, &private] {
        bob.leaves(room).await;
        alice.says(room, "without bob").await;
        bob.forgets(room).await;
        alice.says(room, "nobody remembers").await;
    }
    let news = bob.syncs(Some(&first), json!({})).await;
    let whole =
        bob.syncs_with(Some(&first), json!({}), |request| request.full_state = true).await["rooms"].clone();
    for room in [&room, &private] {
        let events = room_of(&news, "leave", room)["timeline"]["events"].clone();
        let last = events.as_array().unwrap().last().unwrap();
        assert_eq!((&last["state_key"], &last["content"]["membership"]), (&json!(bob.user), &json!("leave")));
        assert!(!whole["leave"][room].is_null(), "{whole}");
    }
    assert_eq!(bob.syncs(Some(&news), json!({})).await.get("rooms"), None, "once");
    // Those who heard of the leaving hear nothing of the forgetting.
    bob.joins(&room).await;
    let back = bob.syncs(Some(&news), json!({})).await;
    bob.leaves(&room).await;
    let left = bob.syncs(Some(&back), json!({})).await;
    assert!(!room_of(&left, "leave", &room).is_null());
    bob.forgets(&room).await;
    assert_eq!(bob.syncs(Some(&left), json!({})).await.get("rooms"), None);
    // And whoever is back by then hears of that.
    bob.joins(&room).await;
    let back = bob.syncs(Some(&left), json!({})).await;
    assert!(room_of(&back, "leave", &room).is_null() && !room_of(&back, "join", &room).is_null());
}

#[tokio::test]
async fn who_left_and_came_back_gets_the_state_anew() {
    let world = World::new().await;
    let (alice, bob) = (world.client("alice"), world.client("bob"));
    let room = alice.creates_a_public_room().await;
    bob.joins(&room).await;
    let first = bob.syncs(None, json!({})).await;
    bob.leaves(&room).await;
    alice.sets(&room, "m.room.topic", "", json!({"topic": "without bob"})).await;
    for n in 0..15 {
        alice.says(&room, &format!("{n}")).await;
    }
    bob.joins(&room).await;
    let back = bob.syncs(Some(&first), json!({})).await;
    let section = room_of(&back, "join", &room);
    assert_eq!(section["timeline"]["limited"], true);
    let state = state_types(&section, "state");
    assert!(
        state.contains(&pair("m.room.topic", "")) && state.contains(&pair("m.room.create", "")),
        "{state:?}"
    );
}

#[tokio::test]
async fn history_before_the_join_is_hidden_where_the_room_says_so() {
    let world = World::new().await;
    let (alice, bob) = (world.client("alice"), world.client("bob"));
    for (visibility, sees_before, sees_invited) in [
        ("shared", true, true),
        ("invited", false, true),
        ("joined", false, false),
        ("world_readable", true, true),
    ] {
        let room = alice.creates_a_private_room().await;
        alice.sets(&room, "m.room.history_visibility", "", json!({"history_visibility": visibility})).await;
        let before = alice.says(&room, "before").await;
        alice.invites(&room, &bob).await;
        let invited = alice.says(&room, "while invited").await;
        bob.joins(&room).await;
        let after = alice.says(&room, "after").await;
        let answer = bob.syncs(None, json!({"room": {"timeline": {"limit": 50}}})).await;
        let seen = timeline(&answer, &room);
        assert_eq!(seen.contains(&before), sees_before, "{visibility}");
        assert_eq!(seen.contains(&invited), sees_invited, "{visibility}");
        assert!(seen.contains(&after));
        let walked = bob.walks(&room, Direction::Backward, 100).await;
        assert_eq!(walked.contains(&before), sees_before, "{visibility}");
        assert_eq!(walked.contains(&invited), sees_invited, "{visibility}");
        bob.leaves(&room).await;
        let hidden = alice.says(&room, "bob is gone").await;
        let walked = bob.walks(&room, Direction::Backward, 100).await;
        assert_eq!(walked.contains(&hidden), visibility == "world_readable", "{visibility}");
        assert!(walked.contains(&after), "{visibility}");
        // Who was never there sees a world-readable room only.
        let carol = world.client("carol");
        let strange = carol.walks(&room, Direction::Backward, 100).await;
        assert_eq!(!strange.is_empty(), visibility == "world_readable", "{visibility}");
    }
}

#[tokio::test]
async fn ignored_users_are_not_heard() {
    let world = World::new().await;
    let (alice, bob, carol) = (world.client("alice"), world.client("bob"), world.client("carol"));
    let room = alice.creates_a_public_room().await;
    bob.joins(&room).await;
    carol.joins(&room).await;
    bob.ignores(&alice).await;
    let first = bob.syncs(None, json!({})).await;
    alice.says(&room, "not heard").await;
    let heard = carol.says(&room, "heard").await;
    alice.sets(&room, "m.room.topic", "", json!({"topic": "state is still told"})).await;
    let private = alice.creates_a_private_room().await;
    alice.invites(&private, &bob).await;
    let news = bob.syncs(Some(&first), json!({})).await;
    let seen = timeline(&news, &room);
    assert_eq!((seen.len(), &seen[0]), (2, &heard), "{news}");
    assert_eq!(room_of(&news, "invite", &private), Value::Null);
}

#[tokio::test]
async fn receipts_typing_and_account_data_arrive() {
    let world = World::new().await;
    let (alice, bob) = (world.client("alice"), world.client("bob"));
    let room = alice.creates_a_public_room().await;
    bob.joins(&room).await;
    let hello = alice.says(&room, "hello").await;
    let first = bob.syncs(None, json!({})).await;
    assert_eq!(room_of(&first, "join", &room)["unread_notifications"]["notification_count"], 1);

    bob.reads(&room, &hello).await;
    let read = bob.syncs(Some(&first), json!({})).await;
    let section = room_of(&read, "join", &room);
    assert_eq!(section["unread_notifications"]["notification_count"], 0, "a receipt alone resets the count");
    assert!(section["ephemeral"].to_string().contains(&hello));

    alice.types(&room, true);
    let typing = bob.syncs(Some(&read), json!({})).await;
    let events = room_of(&typing, "join", &room)["ephemeral"]["events"].clone();
    assert_eq!(events, json!([{"type": "m.typing", "content": {"user_ids": ["@alice:hearth.test"]}}]));
    alice.types(&room, false);
    let stopped = bob.syncs(Some(&typing), json!({})).await;
    assert!(room_of(&stopped, "join", &room)["ephemeral"].to_string().contains("\"user_ids\":[]"));

    bob.notes("org.example", None, json!({"a": 1})).await;
    bob.notes("m.tag", Some(&room), json!({"tags": {}})).await;
    let noted = bob.syncs(Some(&stopped), json!({})).await;
    assert_eq!(noted["account_data"]["events"], json!([{"type": "org.example", "content": {"a": 1}}]));
    let tags = room_of(&noted, "join", &room)["account_data"]["events"].clone();
    assert_eq!(tags, json!([{"type": "m.tag", "content": {"tags": {}}}]));
    let nothing = json!({"account_data": {"types": []}, "room": {"account_data": {"types": []}, "ephemeral": {"types": []}}});
    let filtered = bob.syncs(Some(&stopped), nothing).await;
    assert_eq!((filtered.get("account_data"), filtered.get("rooms")), (None, None));
}

#[tokio::test]
async fn a_filter_chooses_events_and_fields() {
    let world = World::new().await;
    let alice = world.client("alice");
    let room = alice.creates_a_public_room().await;
    let hello = alice.says(&room, "hello").await;
    alice.sets(&room, "org.example.state", "", json!({})).await;
    let only = json!({"room": {"timeline": {"types": ["m.room.mess*"]}, "state": {"types": []}},
        "event_fields": ["type", "content.body", "event_id"]});
    let answer = alice.syncs(None, only).await;
    let events = room_of(&answer, "join", &room)["timeline"]["events"].clone();
    assert_eq!(events, json!([{"type": "m.room.message", "content": {"body": "hello"}, "event_id": hello}]));
    let none = json!({"room": {"not_rooms": [room]}});
    assert_eq!(alice.syncs(None, none).await.get("rooms"), None);
    let federation = json!({"event_format": "federation"});
    let answer = alice.syncs(None, federation).await;
    let event = room_of(&answer, "join", &room)["timeline"]["events"][0].clone();
    assert!(event.get("auth_events").is_some() && event.get("unsigned").is_none(), "{event}");
}

#[tokio::test]
async fn a_redacted_event_is_shown_redacted_and_no_longer_counts() {
    let world = World::new().await;
    let (alice, bob) = (world.client("alice"), world.client("bob"));
    let room = alice.creates_a_public_room().await;
    bob.joins(&room).await;
    let first = bob.syncs(None, json!({})).await;
    let secret = alice.says(&room, "secret").await;
    let news = bob.syncs(Some(&first), json!({})).await;
    assert_eq!(room_of(&news, "join", &room)["unread_notifications"]["notification_count"], 1);
    let redaction = alice.redacts(&room, &secret).await;
    let news = bob.syncs(Some(&news), json!({})).await;
    let section = room_of(&news, "join", &room);
    let event = section["timeline"]["events"][0].clone();
    assert_eq!((&event["redacts"], &event["content"]["redacts"]), (&json!(secret), &json!(secret)));
    assert_eq!(section["unread_notifications"]["notification_count"], 0);
    let fresh = bob.syncs(None, json!({})).await;
    let events = room_of(&fresh, "join", &room)["timeline"]["events"].clone();
    let event = events.as_array().unwrap().iter().find(|event| event["event_id"] == *secret).unwrap().clone();
    assert_eq!(event["content"], json!({}));
    assert_eq!(event["unsigned"]["redacted_because"]["event_id"], redaction);
}

#[tokio::test]
async fn mentions_and_threads_are_counted_by_themselves() {
    let world = World::new().await;
    let (alice, bob) = (world.client("alice"), world.client("bob"));
    let room = alice.creates_a_public_room().await;
    bob.joins(&room).await;
    let root = bob.says(&room, "root").await;
    let first = bob.syncs(None, json!({})).await;
    alice
        .sends(
            &room,
            json!({"msgtype": "m.text", "body": "hi", "m.mentions": {"user_ids": ["@bob:hearth.test"]}}),
        )
        .await;
    alice
        .sends(&room, json!({"msgtype": "m.text", "body": "reply", "m.relates_to": {"rel_type": "m.thread", "event_id": root}}))
        .await;
    let news = bob.syncs(Some(&first), json!({})).await;
    let counts = room_of(&news, "join", &room)["unread_notifications"].clone();
    assert_eq!(counts, json!({"highlight_count": 1, "notification_count": 2}));
    let by_thread = json!({"room": {"timeline": {"unread_thread_notifications": true}}});
    let news = bob.syncs(Some(&first), by_thread).await;
    let section = room_of(&news, "join", &room);
    assert_eq!(section["unread_notifications"], json!({"highlight_count": 1, "notification_count": 1}));
    assert_eq!(
        section["unread_thread_notifications"],
        json!({root: {"highlight_count": 0, "notification_count": 1}})
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_wake_up_is_lost() {
    const ROOMS: usize = 4;
    const EVENTS: usize = 60;
    let world = World::new().await;
    let alice = world.client("alice");
    let mut rooms = Vec::new();
    for _ in 0..ROOMS {
        rooms.push(alice.creates_a_public_room().await);
    }
    let mut listeners = Vec::new();
    for n in 0..6 {
        let client = world.client(&format!("listener{n}"));
        for room in &rooms {
            client.joins(room).await;
        }
        let mut answer = client.syncs(None, json!({})).await;
        listeners.push(tokio::spawn(async move {
            let mut seen = Vec::new();
            while seen.len() < ROOMS * EVENTS {
                let next = client.waits(&answer, Duration::from_secs(20)).await;
                let joined = next["rooms"]["join"].as_object().cloned().unwrap_or_default();
                assert!(!joined.is_empty(), "woken for nothing, or not at all, after {} events", seen.len());
                for section in joined.values() {
                    assert_eq!(section["timeline"]["limited"], false);
                    let events = section["timeline"]["events"].as_array().unwrap().iter();
                    let messages = events.filter(|event| event["type"] == "m.room.message");
                    seen.extend(messages.map(|event| event["event_id"].as_str().unwrap().to_owned()));
                }
                answer = next;
            }
            let once: BTreeSet<String> = seen.iter().cloned().collect();
            assert_eq!((once.len(), seen.len()), (ROOMS * EVENTS, ROOMS * EVENTS));
        }));
    }
    let mut senders = Vec::new();
    for room in rooms {
        let alice: Client = alice.clone();
        senders.push(tokio::spawn(async move {
            for n in 0..EVENTS {
                alice.says(&room, &format!("{n}")).await;
                if n % 7 == 0 {
                    tokio::time::sleep(Duration::from_millis(n as u64 % 5)).await;
                }
            }
        }));
    }
    for task in senders.into_iter().chain(listeners) {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn a_waiting_sync_is_woken_by_what_concerns_it_only() {
    let world = World::new().await;
    let (alice, bob) = (world.client("alice"), world.client("bob"));
    let (shared, other) = (alice.creates_a_public_room().await, alice.creates_a_public_room().await);
    bob.joins(&shared).await;
    let first = bob.syncs(None, json!({})).await;
    let token = first["next_batch"].clone();
    let waiting = tokio::spawn({
        let (bob, first) = (bob.clone(), first.clone());
        async move { bob.waits(&first, Duration::from_secs(10)).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    alice.says(&other, "bob is not here").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!waiting.is_finished());
    let hello = alice.says(&shared, "bob is here").await;
    let news = waiting.await.unwrap();
    assert_eq!(timeline(&news, &shared), [hello]);
    // Who waits in vain gets a token that goes on from there.
    let empty = bob.waits(&news, Duration::from_millis(30)).await;
    assert_eq!(empty.get("rooms"), None);
    assert_ne!(empty["next_batch"], token);
}

#[tokio::test]
async fn tokens_hold_over_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let (token, room, missed);
    {
        let world = World::on_disk(directory.path()).await;
        let (alice, bob) = (world.client("alice"), world.client("bob"));
        room = alice.creates_a_public_room().await;
        bob.joins(&room).await;
        token = bob.syncs(None, json!({})).await;
        missed = alice.says(&room, "before the restart").await;
        world.close().await;
    }
    let world = World::on_disk(directory.path()).await;
    let (alice, bob) = (world.client("alice"), world.client("bob"));
    let news = bob.syncs(Some(&token), json!({})).await;
    assert_eq!(timeline(&news, &room), [missed]);
    let later = alice.says(&room, "after the restart").await;
    assert_eq!(timeline(&bob.syncs(Some(&news), json!({})).await, &room), [later]);
    let mut token: SyncToken = news["next_batch"].as_str().unwrap().parse().unwrap();
    token.position = StreamPosition::new(99_999_999);
    let future = json!({"next_batch": token.to_string()});
    assert!(bob.is_refused(&future).await, "a token of the future is no token");
    world.close().await;
}

#[tokio::test]
async fn a_declined_invite_shows_the_leave_also_behind_the_timeline() {
    let world = World::new().await;
    let (alice, bob) = (world.client("alice"), world.client("bob"));
    let room = alice.creates_a_private_room().await;
    alice.invites(&room, &bob).await;
    let invited = bob.syncs(None, json!({})).await;
    assert!(room_of(&invited, "invite", &room).is_object(), "{invited}");
    bob.leaves(&room).await;

    let before = bob.syncs(Some(&invited), json!({})).await;
    let section = room_of(&before, "leave", &room);
    assert_eq!(section["timeline"]["events"][0]["content"]["membership"], "leave", "{before}");
    assert_eq!(section["state"], json!({"events": []}));

    let after = |request: &mut hearth::sync::SyncRequest| request.state = hearth::sync::StateWanted::After;
    let after = bob.syncs_with(Some(&invited), json!({}), after).await;
    let section = room_of(&after, "leave", &room);
    let state = &section["state_after"]["events"];
    assert_eq!((&state[0]["content"]["membership"], &state[1]), (&json!("leave"), &Value::Null), "{after}");
    assert_eq!(ids(state), ids(&section["timeline"]["events"]));
    assert_eq!(section.get("state"), None);
}

#[tokio::test]
async fn messages_that_have_arrived_wait_no_longer_also_where_nothing_is_new() {
    let world = World::new().await;
    let alice = world.client("alice");
    alice.logs_in().await;
    let first = alice.syncs(None, json!({})).await;
    world.brings("1", &alice).await;
    let told = alice.syncs(Some(&first), json!({})).await;
    assert_eq!(told["to_device"]["events"].as_array().unwrap().len(), 1);
    let again = alice.syncs(Some(&first), json!({})).await;
    assert_eq!(again["to_device"], told["to_device"], "the answer may have been lost");
    assert_eq!(world.waiting().await, 1);
    // An old endpoint takes nothing away.
    alice.syncs_with(Some(&told), json!({}), |request| request.to_device = false).await;
    assert_eq!(world.waiting().await, 1);
    let quiet = alice.waits(&told, Duration::from_millis(1)).await;
    assert_eq!((quiet.get("to_device"), world.waiting().await), (None, 0));
}
