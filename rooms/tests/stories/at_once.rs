//! Events of a peer that are handed over all at once: each is decided while those before it are on their way.

use futures_util::{
    future::{join, join_all},
    poll,
};
use hearth_rooms::*;
use hearth_store::{Order, Store};
use ruma::OwnedRoomId;
use serde_json::json;

use crate::gate::Gate;
use crate::peers::*;
use crate::support::{World, user};

/// A room of a peer that our user has entered.
async fn story() -> (World, Peer, OwnedRoomId) {
    let (world, peer) = (World::new().await, Peer::new("peer.test").await);
    let room = peer.room("bob", Preset::PublicChat).await;
    world.rooms.enter_room(peer.let_in(&room, &user("alice")).await).await.unwrap();
    (world, peer, room)
}

#[tokio::test]
async fn events_that_are_handed_over_at_once_do_not_wait_for_the_disk_of_each_other() {
    let (gate, store) = Gate::before(&Store::memory().await).await;
    let (world, peer) = (World::on(store), Peer::new("peer.test").await);
    let room = peer.room("bob", Preset::PublicChat).await;
    world.rooms.enter_room(peer.let_in(&room, &user("alice")).await).await.unwrap();
    for number in 0..60 {
        peer.say(&room, "bob", &number.to_string()).await;
    }
    let timeline = peer.timeline(&room).await;
    let mut events: Vec<_> = timeline[timeline.len() - 60..].iter().map(built).collect();
    // One comes twice.
    events.push(events[59].clone());
    gate.close();
    let all = join_all(events.iter().map(|event| world.rooms.receive(event)));
    let mut all = std::pin::pin!(all);
    for _ in 0..10_000 {
        assert!(poll!(&mut all).is_pending(), "nothing is answered before it is on the disk");
        tokio::task::yield_now().await;
    }
    assert_eq!(gate.held(), 60, "all are decided before the first is on the disk");
    gate.let_through(60).await;
    let positions: Vec<_> = all
        .await
        .into_iter()
        .map(|received| match received.unwrap() {
            Received::Accepted(position) => position,
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(positions[..60].is_sorted() && positions[59] == positions[60], "{positions:?}");
    assert_eq!(world.head(&room).await.extremities.len(), 1);
    assert_eq!(state_of(&world.rooms, &room).await, state_of(&peer.rooms, &room).await);
}

#[tokio::test]
async fn what_waits_for_an_event_is_found_though_both_are_on_their_way() {
    let (world, peer, room) = story().await;
    let info = peer.rooms.room(&room).await.unwrap().unwrap();
    let state = state_of(&peer.rooms, &room).await;
    let bob = peer.user("bob");
    let first = peer.make(&room, Say::message(&bob, "first")).await;
    for number in 0..20 {
        let text = format!("to be redacted {number}");
        let target = forge(&room, info.rules, Say::message(&bob, &text), &[&first], &state);
        let say = |kind, content| Say { sender: &bob, kind, state_key: None, content };
        let redaction = say("m.room.redaction", json!({ "redacts": target.event_id() }));
        let redaction = forge(&room, info.rules, redaction, &[&first], &state);
        let about = json!({ "rel_type": "m.annotation", "event_id": target.event_id(), "key": "x" });
        let reaction = say("m.reaction", json!({ "m.relates_to": about }));
        let reaction = forge(&room, info.rules, reaction, &[&first], &state);
        let events = [&first, &redaction, &reaction, &target].map(built);
        for received in join_all(events.iter().map(|event| world.rooms.receive(event))).await {
            assert!(matches!(received.unwrap(), Received::Accepted(_)));
        }
        assert!(world.by_id(&room, &target.event_id().to_owned()).await.is_redacted());
    }
    let waiting =
        world.store.range(&tables::RELATIONS_WAITING, tables::RELATIONS_WAITING.all(), Order::Forward, 10);
    assert_eq!(waiting.await.unwrap(), []);
}

#[tokio::test]
async fn a_gap_is_closed_by_what_comes_while_it_opens() {
    let (world, peer, room) = story().await;
    peer.say(&room, "bob", "before").await;
    let last = peer.say(&room, "bob", "last").await;
    let state = peer.state_before(&room, &last).await;
    for pdu in &state {
        world.rooms.receive_outlier(&built(pdu)).await.unwrap();
    }
    let timeline = peer.timeline(&room).await;
    let [before, last] = &timeline[timeline.len() - 2..] else { panic!("two events were said") };
    let (before, last, state) = (built(before), built(last), ids(&state));
    let opens = world.rooms.receive_with_state(&last, &state);
    let (opened, closed) = join(opens, world.rooms.receive(&before)).await;
    let Received::Accepted(at) = opened.unwrap() else { panic!("it has its state") };
    assert!(matches!(closed.unwrap(), Received::Accepted(_)));
    let gap = world.last_gap(&room).await.unwrap();
    assert!(gap.at < TimelineOrder::live(at), "only that before our join is left");
}

#[tokio::test]
async fn events_that_waited_do_not_wait_for_the_disk_of_each_other() {
    const MANY: usize = 30;
    let (gate, store) = Gate::before(&Store::memory().await).await;
    let (world, peer) = (World::on(store), Peer::new("peer.test").await);
    let room = peer.room("bob", Preset::PublicChat).await;
    world.rooms.enter_room(peer.let_in(&room, &user("alice")).await).await.unwrap();
    for number in 0..MANY {
        peer.say(&room, "bob", &number.to_string()).await;
    }
    let timeline = peer.timeline(&room).await;
    let events = &timeline[timeline.len() - MANY..];
    // The newest first.
    for event in events.iter().rev() {
        world.rooms.enqueue(&built(event), &peer.name).await.unwrap();
    }
    gate.close();
    let mut all = std::pin::pin!(world.rooms.receive_queued(&room));
    for _ in 0..10_000 {
        assert!(poll!(&mut all).is_pending());
        tokio::task::yield_now().await;
    }
    assert_eq!(gate.held(), MANY, "all are decided before the first is on the disk");
    gate.let_through(MANY).await;
    gate.refuse(false);
    let decided: Vec<_> = all.await.unwrap().into_iter().map(|(event, _)| event).collect();
    assert_eq!(decided, ids(events));
    assert!(world.rooms.queued_events(&room).await.unwrap().is_empty());
    assert_eq!(state_of(&world.rooms, &room).await, state_of(&peer.rooms, &room).await);
}
