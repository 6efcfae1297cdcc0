//! Events that wait for others, and events whose past cannot be had.

use hearth_dag::Pdu;
use hearth_rooms::*;
use ruma::{OwnedRoomId, ServerName};
use serde_json::json;

use crate::peers::*;
use crate::support::{World, user};

/// A room of a peer that our user has entered, and five events since: each follows the one before, and one names
/// another as an auth event.
async fn story() -> (World, Peer, OwnedRoomId, Vec<Pdu>) {
    let (world, peer) = (World::new().await, Peer::new("peer.test").await);
    let room = peer.room("bob", Preset::PublicChat).await;
    world.rooms.enter_room(peer.let_in(&room, &user("alice")).await).await.unwrap();
    let bob = peer.user("bob");
    peer.join("carol", &room).await;
    peer.say(&room, "carol", "one").await;
    peer.send(&room, Say::state(&bob, "m.room.topic", "", json!({ "topic": "two" }))).await;
    peer.say(&room, "carol", "three").await;
    peer.say(&room, "bob", "four").await;
    let timeline = peer.timeline(&room).await;
    let events = timeline[timeline.len() - 5..].to_vec();
    (world, peer, room, events)
}

fn permutations(count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![vec![]];
    }
    let shorter = permutations(count - 1);
    let insert = |order: &Vec<usize>, place| {
        let mut order = order.clone();
        order.insert(place, count - 1);
        order
    };
    shorter.iter().flat_map(|order| (0..count).map(move |place| insert(order, place))).collect()
}

#[tokio::test]
async fn events_wait_for_each_other_in_whatever_order_they_come() {
    for order in permutations(5).into_iter().step_by(7) {
        let (world, peer, room, events) = story().await;
        let mut decided = 0;
        for place in &order {
            let pdu = built(&events[*place]);
            match world.rooms.receive(&pdu).await.unwrap() {
                Received::Missing { .. } => {
                    assert!(world.rooms.enqueue(&pdu, &peer.name).await.unwrap());
                    assert!(!world.rooms.enqueue(&pdu, &peer.name).await.unwrap(), "it waits already");
                }
                Received::Accepted(_) => decided += 1,
                other => panic!("{other:?}"),
            }
            decided += world.rooms.receive_queued(&room).await.unwrap().len();
            let wanted = world.rooms.wanted(&room).await.unwrap();
            let is_held = |event: &ruma::EventId| events.iter().any(|pdu| pdu.event_id() == event);
            assert!(
                wanted
                    .iter()
                    .all(|wanted| is_held(&wanted.event_id) && wanted.origins == [peer.name.clone()])
            );
            assert_eq!(wanted.is_empty(), world.rooms.queued_events(&room).await.unwrap().is_empty());
        }
        assert_eq!(decided, 5, "in the order {order:?}");
        assert!(world.rooms.rooms_with_queues().await.unwrap().is_empty());
        assert_eq!(state_of(&world.rooms, &room).await, state_of(&peer.rooms, &room).await);
        assert_eq!(world.head(&room).await.extremities.len(), 1);
    }
}

#[tokio::test]
async fn what_waits_is_asked_for_and_survives_a_restart() {
    let (world, peer, room, events) = story().await;
    for place in [4, 3, 1] {
        world.rooms.enqueue(&built(&events[place]), &peer.name).await.unwrap();
    }
    let world = World::on(world.store.clone());
    assert_eq!(world.rooms.rooms_with_queues().await.unwrap(), [room.clone()]);
    let wanted = world.rooms.wanted(&room).await.unwrap();
    let mut named: Vec<_> = wanted.iter().map(|wanted| wanted.event_id.clone()).collect();
    let mut expected = ids(&[events[2].clone(), events[0].clone()]);
    named.sort();
    expected.sort();
    assert_eq!(named, expected);
    let carol = wanted.iter().find(|wanted| wanted.event_id == *events[0].event_id()).unwrap();
    assert!(carol.as_prev && carol.as_auth);
    assert_eq!(carol.by.len(), 2, "the messages of Carol");
    assert!(world.rooms.receive_queued(&room).await.unwrap().is_empty());
    world.rooms.receive(&built(&events[0])).await.unwrap();
    assert_eq!(world.rooms.receive_queued(&room).await.unwrap().len(), 1);
    world.rooms.unqueue(&room, events[4].event_id()).await.unwrap();
    world.rooms.receive(&built(&events[2])).await.unwrap();
    let decided = world.rooms.receive_queued(&room).await.unwrap();
    assert_eq!(decided.len(), 1, "one was given up");
    assert!(world.rooms.wanted(&room).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_queue_is_bounded_and_the_oldest_make_room() {
    let (world, peer, room, events) = story().await;
    let info = peer.rooms.room(&room).await.unwrap().unwrap();
    let state = state_of(&peer.rooms, &room).await;
    let carol = peer.user("carol");
    let mut flood = Vec::new();
    for number in 0..QUEUED_EVENTS_MAX + 5 {
        let say = Say::message(&carol, &number.to_string());
        flood.push(forge(&room, info.rules, say, &[&events[4]], &state));
    }
    for pdu in &flood {
        world.rooms.enqueue(&built(pdu), &peer.name).await.unwrap();
        // Repeats take no room.
        world.rooms.enqueue(&built(pdu), &peer.name).await.unwrap();
    }
    let queued: Vec<Pdu> =
        world.rooms.queued_events(&room).await.unwrap().into_iter().map(|(pdu, _)| pdu.into_pdu()).collect();
    assert_eq!(ids(&queued), ids(&flood[5..]));
}

#[tokio::test]
async fn a_flood_of_one_server_takes_no_place_in_the_queue_from_others() {
    let (world, peer, room, events) = story().await;
    let info = peer.rooms.room(&room).await.unwrap().unwrap();
    let state = state_of(&peer.rooms, &room).await;
    let carol = peer.user("carol");
    let other = ServerName::parse("other.test").unwrap();
    for number in 0..QUEUED_EVENTS_MAX + 20 {
        let say = Say::message(&carol, &number.to_string());
        let pdu = forge(&room, info.rules, say, &[&events[4]], &state);
        let origin = if number < 3 { &other } else { &peer.name };
        world.rooms.enqueue(&built(&pdu), origin).await.unwrap();
    }
    let queued = world.rooms.queued_events(&room).await.unwrap();
    assert_eq!(queued.len(), QUEUED_EVENTS_MAX);
    assert_eq!(queued.iter().filter(|(_, origin)| *origin == other).count(), 3);
}

#[tokio::test]
async fn an_event_whose_past_cannot_be_had_comes_with_its_state() {
    let (world, peer, room, events) = story().await;
    let last = &events[4];
    let state = peer.state_before(&room, &last.event_id().to_owned()).await;
    let received = world.rooms.receive_with_state(&built(last), &ids(&state)).await.unwrap();
    assert!(matches!(received, Received::Missing { prev, auth } if prev.is_empty() && auth.len() == 2));
    for pdu in &state {
        world.rooms.receive_outlier(&built(pdu)).await.unwrap();
    }
    let received = world.rooms.receive_with_state(&built(last), &ids(&state)).await.unwrap();
    let Received::Accepted(position) = received else { panic!("{received:?}") };
    let again = world.rooms.receive_with_state(&built(last), &ids(&state)).await.unwrap();
    assert_eq!(again, Received::Accepted(position));
    let gap = world.last_gap(&room).await.unwrap();
    assert_eq!((gap.at, &gap.missing[..]), (TimelineOrder::live(position), last.prev_events()));
    // Both our end and the event are extremities; together they have the room's state.
    assert_eq!(world.head(&room).await.extremities.len(), 2);
    assert_eq!(state_of(&world.rooms, &room).await, state_of(&peer.rooms, &room).await);
    let info = world.rooms.room(&room).await.unwrap().unwrap();
    let tail = world.rooms.reader().tail(info.sn, position, position).await.unwrap().unwrap();
    assert!(tail.gap && tail.events.len() == 1, "a sync stops there");

    // What was missing comes after all: the gap is gone, and what is followed already is no extremity.
    for pdu in &events[..4] {
        assert!(matches!(world.rooms.receive(&built(pdu)).await.unwrap(), Received::Accepted(_)));
    }
    let only = world.last_gap(&room).await.unwrap();
    assert!(only.at < gap.at, "that before our join is left");
    assert_eq!(
        world.head(&room).await.extremities,
        [world.by_id(&room, &last.event_id().to_owned()).await.sn]
    );
    assert_eq!(state_of(&world.rooms, &room).await, state_of(&peer.rooms, &room).await);
}

#[tokio::test]
async fn a_told_state_does_not_let_in_whom_the_rules_refuse() {
    let (world, peer, room, events) = story().await;
    let info = peer.rooms.room(&room).await.unwrap().unwrap();
    let eve = ruma::UserId::parse("@eve:evil.test").unwrap();
    let state = state_of(&peer.rooms, &room).await;
    // Eve invites herself into the state that she tells.
    let join = forge(&room, info.rules, Say::member(&eve, &eve, "invite"), &[&events[4]], &state);
    let refused = world.rooms.receive_outlier(&built(&join)).await;
    assert!(matches!(refused.unwrap(), Received::Rejected(Some(_)) | Received::Missing { .. }));
    let mut told = peer.state_before(&room, &events[0].event_id().to_owned()).await;
    for pdu in &told {
        world.rooms.receive_outlier(&built(pdu)).await.unwrap();
    }
    let known = with(&state, &join);
    let topic = Say::state(&eve, "m.room.topic", "", json!({ "topic": "mine" }));
    let topic = forge(&room, info.rules, topic, &[&join], &known);
    told.push(join);
    let before = state_of(&world.rooms, &room).await;
    let received = world.rooms.receive_with_state(&built(&topic), &ids(&told)).await.unwrap();
    assert!(matches!(received, Received::Rejected(Some(_)) | Received::Missing { .. }), "{received:?}");
    assert_eq!(state_of(&world.rooms, &room).await, before);
}

#[tokio::test]
async fn what_follows_a_refused_event_has_the_state_before_it() {
    let (world, peer, room, events) = story().await;
    for pdu in &events {
        world.rooms.receive(&built(pdu)).await.unwrap();
    }
    let info = peer.rooms.room(&room).await.unwrap().unwrap();
    let state = state_of(&peer.rooms, &room).await;
    let (bob, eve) = (peer.user("bob"), ruma::UserId::parse("@eve:evil.test").unwrap());
    let intruder = forge(&room, info.rules, Say::message(&eve, "hi"), &[&events[4]], &state);
    let after = forge(&room, info.rules, Say::message(&bob, "after"), &[&intruder], &state);
    // Refused as an outlier first: then nothing was known of the state before it.
    let refused = world.rooms.receive_outlier(&built(&intruder)).await.unwrap();
    assert!(matches!(refused, Received::Rejected(Some(_))));
    let waits = world.rooms.receive(&built(&after)).await.unwrap();
    assert!(matches!(waits, Received::Missing { prev, .. } if prev == [intruder.event_id().to_owned()]));
    let refused = world.rooms.receive(&built(&intruder)).await.unwrap();
    assert!(matches!(refused, Received::Rejected(Some(_))));
    assert!(matches!(world.rooms.receive(&built(&after)).await.unwrap(), Received::Accepted(_)));
}

#[tokio::test]
async fn a_forged_depth_does_not_end_the_room() {
    let (world, peer, room, events) = story().await;
    for pdu in &events {
        world.rooms.receive(&built(pdu)).await.unwrap();
    }
    let info = peer.rooms.room(&room).await.unwrap().unwrap();
    let state = state_of(&peer.rooms, &room).await;
    let bob = peer.user("bob");
    let deepest = info.rules.max_depth;
    let deep = forge_at(&room, info.rules, Say::message(&bob, "deep"), &[&events[4]], &state, deepest);
    assert!(matches!(world.rooms.receive(&built(&deep)).await.unwrap(), Received::Accepted(_)));
    let said = world.say("alice", &room, "still here").await.unwrap();
    let said = world.by_id(&room, &said.event_id).await.pdu.clone();
    assert_eq!((said.depth(), said.prev_events()), (deepest, &[deep.event_id().to_owned()][..]));
    for pdu in [&deep, &said] {
        assert!(matches!(peer.rooms.receive(&built(pdu)).await.unwrap(), Received::Accepted(_)));
    }
}
