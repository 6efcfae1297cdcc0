//! History that is filled in before what follows it.

use hearth_dag::Pdu;
use hearth_rooms::*;
use ruma::{OwnedEventId, OwnedRoomId, UserId};
use serde_json::json;

use crate::peers::*;
use crate::support::{World, user};

/// A room of a peer with some history, which our user has just entered.
async fn entered(messages: usize) -> (World, Peer, OwnedRoomId) {
    let (world, peer) = (World::new().await, Peer::new("peer.test").await);
    let room = peer.room("bob", Preset::PublicChat).await;
    for number in 0..messages {
        peer.say(&room, "bob", &number.to_string()).await;
    }
    world.rooms.enter_room(peer.let_in(&room, &user("alice")).await).await.unwrap();
    (world, peer, room)
}

fn plain(events: &[Pdu]) -> Vec<Filling> {
    events.iter().map(|event| Filling { event: built(event), state_before: None }).collect()
}

/// Gives the state before an event, whose events come as outliers.
async fn with_state(world: &World, peer: &Peer, room: &OwnedRoomId, event: &Pdu) -> Filling {
    let state = peer.state_before(room, &event.event_id().to_owned()).await;
    for pdu in peer.auth_chain(room, &state).await.iter().rev().chain(&state) {
        world.rooms.receive_outlier(&built(pdu)).await.unwrap();
    }
    Filling { event: built(event), state_before: Some(ids(&state)) }
}

#[tokio::test]
async fn a_gap_closes_piece_by_piece() {
    let (world, peer, room) = entered(20).await;
    let history = peer.timeline(&room).await;
    let count = history.len() - 1;
    let length = world.stream_length().await;
    let state = state_of(&world.rooms, &room).await;
    let gap = world.last_gap(&room).await.unwrap();

    // The last ten, the newest first as peers give them: the state before the first of them is not known.
    let mut piece = history[count - 10..count].to_vec();
    piece.reverse();
    let oldest = history[count - 10].clone();
    let filled = world.rooms.receive_backfill(&room, gap.at, &plain(&piece)).await.unwrap();
    assert_eq!(filled, Filled::NeedsState(vec![oldest.event_id().to_owned()]));
    let mut fillings = plain(&piece);
    fillings[9].state_before = Some(vec![OwnedEventId::try_from("$nowhere").unwrap()]);
    let filled = world.rooms.receive_backfill(&room, gap.at, &fillings).await.unwrap();
    assert!(matches!(filled, Filled::Missing(missing) if missing.len() == 1));
    fillings[9] = with_state(&world, &peer, &room, &oldest).await;
    let filled = world.rooms.receive_backfill(&room, gap.at, &fillings).await.unwrap();
    let Filled::Done { placed: 10, gap: Some(next) } = filled else { panic!("{filled:?}") };
    assert!(next.at < gap.at);
    assert_eq!(next.missing, oldest.prev_events());
    assert_eq!(world.last_gap(&room).await, Some(next.clone()));
    assert_eq!(ids(&timeline(&world.rooms, &world.store, &room).await), ids(&history[count - 10..]));

    // Again: nothing happens.
    let filled = world.rooms.receive_backfill(&room, next.at, &fillings).await.unwrap();
    assert_eq!(filled, Filled::Done { placed: 0, gap: Some(next.clone()) });

    // The rest goes back to the create event, which needs no state; the order of the answer does not matter.
    let mut rest = plain(&history[..count - 10]);
    rest.rotate_left(5);
    let filled = world.rooms.receive_backfill(&room, next.at, &rest).await.unwrap();
    assert_eq!(filled, Filled::Done { placed: count - 10, gap: None });
    assert_eq!(world.last_gap(&room).await, None);
    assert_eq!(ids(&timeline(&world.rooms, &world.store, &room).await), ids(&history));
    assert_eq!(world.stream_length().await, length, "nothing of it is new");
    assert_eq!(state_of(&world.rooms, &room).await, state);
    let first = world.by_id(&room, &history[8].event_id().to_owned()).await;
    assert_eq!(first.status(), Status::Accepted);
    assert!(first.snapshot_before().is_some());
}

#[tokio::test]
async fn readers_see_what_was_filled_in_also_if_they_knew_it_as_an_outlier() {
    use hearth_rooms::read::{Direction, EventFilter, PageRequest};
    let (world, peer, room) = entered(3).await;
    let history = peer.timeline(&room).await;
    let info = world.rooms.room(&room).await.unwrap().unwrap();
    let reader = world.rooms.reader();
    // State events are here as outliers, and read as state.
    let snapshot = reader.head_snapshot(info.sn).await.unwrap().unwrap();
    assert!(!reader.full_state(info.sn, snapshot).await.unwrap().is_empty());
    let gap = world.last_gap(&room).await.unwrap();
    world.rooms.receive_backfill(&room, gap.at, &plain(&history)).await.unwrap();
    let mut viewer = reader.viewer(info.sn, &user("alice"), Default::default()).await.unwrap();
    let request =
        PageRequest { from: None, to: None, direction: Direction::Backward, limit: 100, past_gap: false };
    let page = reader.page(&mut viewer, &request, &EventFilter::default()).await.unwrap();
    let mut shown: Vec<String> =
        page.events.iter().map(|shown| shown.event.client.event_id.to_string()).collect();
    shown.reverse();
    assert_eq!(shown, ids(&history).iter().map(ToString::to_string).collect::<Vec<_>>());
    assert_eq!(page.gap, None);
}

#[tokio::test]
async fn refused_events_stay_apart_and_what_is_before_them_is_found() {
    let (world, peer) = (World::new().await, Peer::new("peer.test").await);
    let room = peer.room("bob", Preset::PublicChat).await;
    let info = peer.rooms.room(&room).await.unwrap().unwrap();
    let (bob, eve) = (peer.user("bob"), UserId::parse("@eve:evil.test").unwrap());
    let early = peer.timeline(&room).await;
    let state = state_of(&peer.rooms, &room).await;
    // Eve was never there; Bob's server takes her event for good, and goes on from it.
    let intruder = forge(&room, info.rules, Say::message(&eve, "hi"), &[early.last().unwrap()], &state);
    let after = forge(&room, info.rules, Say::message(&bob, "after"), &[&intruder], &state);
    let alice = user("alice");
    let join = forge(&room, info.rules, Say::member(&alice, &alice, "join"), &[&after], &state);
    let peers_state: Vec<Pdu> = early.iter().filter(|event| event.state_key().is_some()).cloned().collect();
    let answer = EnterRoom {
        room_id: room.clone(),
        version: info.version.clone(),
        join: built(&join),
        state: peers_state.iter().map(built).collect(),
        auth_chain: Vec::new(),
        origin: peer.name.clone(),
        members_omitted: None,
    };
    world.rooms.enter_room(answer).await.unwrap();
    let gap = world.last_gap(&room).await.unwrap();
    // Stray events that lead nowhere near the gap have no place.
    let stray = forge(&room, info.rules, Say::message(&bob, "stray"), &[early.last().unwrap()], &state);
    let told = Some(ids(&peers_state));
    let fillings: Vec<Filling> = [&after, &intruder, &stray]
        .map(|event| Filling { event: built(event), state_before: told.clone() })
        .into();
    let filled = world.rooms.receive_backfill(&room, gap.at, &fillings).await.unwrap();
    let Filled::Done { placed: 1, gap: Some(gap) } = filled else { panic!("{filled:?}") };
    assert_eq!(gap.missing, [early.last().unwrap().event_id().to_owned()]);
    assert_eq!(world.by_id(&room, &intruder.event_id().to_owned()).await.status(), Status::Rejected);
    let filled = world.rooms.receive_backfill(&room, gap.at, &plain(&early)).await.unwrap();
    assert_eq!(filled, Filled::Done { placed: early.len(), gap: None });
    let mut expected = ids(&early);
    expected.extend(ids(&[after, join]));
    assert_eq!(ids(&timeline(&world.rooms, &world.store, &room).await), expected);
}

#[tokio::test]
async fn redactions_and_threads_of_the_past_are_connected() {
    let (world, peer) = (World::new().await, Peer::new("peer.test").await);
    let room = peer.room("bob", Preset::PublicChat).await;
    let bob = peer.user("bob");
    let root = peer.say(&room, "bob", "root").await;
    let reply = |text: &str| {
        let relates = json!({ "rel_type": "m.thread", "event_id": root });
        let content = json!({ "body": text, "msgtype": "m.text", "m.relates_to": relates });
        Say { sender: &bob, kind: "m.room.message", state_key: None, content }
    };
    peer.send(&room, reply("one")).await;
    let secret = peer.say(&room, "bob", "secret").await;
    let content = json!({ "redacts": secret });
    peer.send(&room, Say { sender: &bob, kind: "m.room.redaction", state_key: None, content }).await;
    world.rooms.enter_room(peer.let_in(&room, &user("alice")).await).await.unwrap();
    let late = peer.pdu(&room, &peer.send(&room, reply("two")).await).await;
    let received = world.rooms.receive(&built(&late)).await.unwrap();
    let Received::Accepted(upto) = received else { panic!("{received:?}") };
    let info = world.rooms.room(&room).await.unwrap().unwrap();
    let tail = async || world.rooms.reader().tail(info.sn, upto, upto).await.unwrap().unwrap();
    assert!(tail().await.gap);
    let gap = world.last_gap(&room).await.unwrap();
    let mut history = peer.timeline(&room).await;
    // Its server gives the redacted form; another may still have the whole event.
    history.retain(|event| *event != late);
    let filled = world.rooms.receive_backfill(&room, gap.at, &plain(&history)).await.unwrap();
    assert!(matches!(filled, Filled::Done { gap: None, .. }), "{filled:?}");
    assert!(world.by_id(&room, &secret).await.is_redacted());
    assert!(!tail().await.gap, "who syncs anew sees that it is filled in");
    assert_eq!(tail().await.events.len(), history.len() + 1);
    let root = world.by_id(&room, &root).await.sn;
    let thread = world.store.get(&tables::THREADS, &(info.sn, root)).await.unwrap().unwrap().value;
    let late = world.by_id(&room, &late.event_id().to_owned()).await.sn;
    assert_eq!((thread.count, thread.latest), (2, late), "the last reply stays the last");
}

#[tokio::test]
async fn what_did_not_lead_to_the_gap_has_a_place_when_it_comes() {
    let (world, peer, room) = entered(3).await;
    let history = peer.timeline(&room).await;
    let info = peer.rooms.room(&room).await.unwrap().unwrap();
    let state = state_of(&peer.rooms, &room).await;
    let bob = peer.user("bob");
    let stray = forge(&room, info.rules, Say::message(&bob, "stray"), &[&history[history.len() - 3]], &state);
    let told = with_state(&world, &peer, &room, &history[history.len() - 2]).await.state_before;
    let gap = world.last_gap(&room).await.unwrap();
    let filling = Filling { event: built(&stray), state_before: told.clone() };
    let filled = world.rooms.receive_backfill(&room, gap.at, &[filling]).await.unwrap();
    assert!(matches!(filled, Filled::Done { placed: 0, gap: Some(_) }), "{filled:?}");
    let mut received = world.rooms.receive(&built(&stray)).await.unwrap();
    if matches!(received, Received::Missing { .. }) {
        received = world.rooms.receive_with_state(&built(&stray), &told.unwrap()).await.unwrap();
    }
    let Received::Accepted(position) = received else { panic!("{received:?}") };
    assert_eq!(ids(&timeline(&world.rooms, &world.store, &room).await).last().unwrap(), stray.event_id());
    let stored = world.by_id(&room, &stray.event_id().to_owned()).await;
    assert_eq!(stored.order(), Some(TimelineOrder::live(position)));
}

#[tokio::test]
async fn a_redaction_that_came_before_the_place_of_its_target_holds() {
    let (world, peer) = (World::new().await, Peer::new("peer.test").await);
    let room = peer.room("bob", Preset::PublicChat).await;
    let bob = peer.user("bob");
    let topic = Say::state(&bob, "m.room.topic", "", json!({ "topic": "secret" }));
    let topic = peer.send(&room, topic).await;
    let topic = peer.pdu(&room, &topic).await;
    world.rooms.enter_room(peer.let_in(&room, &user("alice")).await).await.unwrap();
    let content = json!({ "redacts": topic.event_id() });
    let redaction = Say { sender: &bob, kind: "m.room.redaction", state_key: None, content };
    let redaction = peer.pdu(&room, &peer.send(&room, redaction).await).await;
    assert!(matches!(world.rooms.receive(&built(&redaction)).await.unwrap(), Received::Accepted(_)));
    let id = topic.event_id().to_owned();
    assert!(world.by_id(&room, &id).await.is_redacted());
    // Its server gives the history with the whole event.
    let gap = world.last_gap(&room).await.unwrap();
    let mut history = peer.timeline(&room).await;
    history.retain(|event| event.event_id() != redaction.event_id());
    for event in &mut history {
        if event.event_id() == topic.event_id() {
            *event = topic.clone();
        }
    }
    let filled = world.rooms.receive_backfill(&room, gap.at, &plain(&history)).await.unwrap();
    assert!(matches!(filled, Filled::Done { gap: None, .. }), "{filled:?}");
    let world = World::on(world.store.clone());
    let stored = world.by_id(&room, &id).await;
    assert!(stored.is_redacted() && stored.order().is_some());
    assert!(!stored.pdu.json().contains("secret"));
    assert_eq!(world.state(&room, "m.room.topic", "").await, Some(json!({})));
}

#[tokio::test]
async fn however_much_waits_for_an_event_it_has_its_place() {
    let (world, peer) = (World::new().await, Peer::new("peer.test").await);
    let room = peer.room("bob", Preset::PublicChat).await;
    let bob = peer.user("bob");
    peer.join("carol", &room).await;
    let carol = peer.user("carol");
    let root = peer.say(&room, "bob", "root").await;
    let enter = peer.let_in(&room, &user("alice")).await;
    let join = enter.join.pdu().clone();
    world.rooms.enter_room(enter).await.unwrap();
    let info = peer.rooms.room(&room).await.unwrap().unwrap();
    let state = state_of(&peer.rooms, &room).await;
    let receive = async |say: Say<'_>| {
        let pdu = forge(&room, info.rules, say, &[&join], &state);
        assert!(matches!(world.rooms.receive(&built(&pdu)).await.unwrap(), Received::Accepted(_)));
    };
    for number in 0..230 {
        let relates = json!({ "rel_type": "m.thread", "event_id": root });
        let content = json!({ "body": number.to_string(), "msgtype": "m.text", "m.relates_to": relates });
        receive(Say { sender: &carol, kind: "m.room.message", state_key: None, content }).await;
    }
    // Carol has no right to any of hers; Bob wrote it.
    for number in 0..120 {
        let content = json!({ "redacts": root, "reason": number.to_string() });
        receive(Say { sender: &carol, kind: "m.room.redaction", state_key: None, content }).await;
    }
    let content = json!({ "redacts": root });
    receive(Say { sender: &bob, kind: "m.room.redaction", state_key: None, content }).await;
    let gap = {
        let at = world.by_id(&room, &join.event_id().to_owned()).await.order().unwrap();
        world.rooms.last_gap(&room, at).await.unwrap().unwrap()
    };
    let history: Vec<Pdu> = peer.timeline(&room).await;
    let history = &history[..history.len() - 1];
    let filled = world.rooms.receive_backfill(&room, gap.at, &plain(history)).await.unwrap();
    assert_eq!(filled, Filled::Done { placed: history.len(), gap: None });
    let root = world.by_id(&room, &root).await;
    assert!(root.is_redacted() && root.order().is_some());
    let info = world.rooms.room(&room).await.unwrap().unwrap();
    let thread = world.store.get(&tables::THREADS, &(info.sn, root.sn)).await.unwrap().unwrap().value;
    assert!(thread.count >= 50);
}
