//! Receipts and read markers.

use hearth_users::{NewReceipt, Receipt, ReceiptKind, receipt_content};
use ruma::{EventId, RoomId, UserId, events::receipt::ReceiptThread, room_id, user_id};

use crate::World;

fn receipt(kind: ReceiptKind, event: &str, thread: ReceiptThread, place: u64) -> NewReceipt {
    NewReceipt { kind, event_id: EventId::parse(event).unwrap(), thread, ts: 7, order: Some((place, 0)) }
}

fn read(event: &str, place: u64) -> NewReceipt {
    receipt(ReceiptKind::Read, event, ReceiptThread::Unthreaded, place)
}

async fn set(world: &World, room: &RoomId, user: &UserId, receipts: &[NewReceipt]) -> bool {
    world.users.set_receipts(room, user, receipts, None).await.unwrap().is_some()
}

fn events(receipts: &[Receipt]) -> Vec<&str> {
    receipts.iter().map(|receipt| receipt.event_id.as_str()).collect()
}

// A receipt moves forward only, each thread and type for itself.
#[tokio::test]
async fn a_receipt_never_moves_backwards() {
    let world = World::new().await;
    let (room, alice) = (room_id!("!r:a.test"), user_id!("@alice:a.test"));
    assert!(set(&world, room, alice, &[read("$2", 2)]).await);
    assert!(!set(&world, room, alice, &[read("$1", 1)]).await);
    assert!(!set(&world, room, alice, &[read("$2", 2)]).await);
    let thread = ReceiptThread::Thread(EventId::parse("$root").unwrap());
    assert!(set(&world, room, alice, &[receipt(ReceiptKind::Read, "$1", ReceiptThread::Main, 1)]).await);
    assert!(set(&world, room, alice, &[receipt(ReceiptKind::Read, "$1", thread.clone(), 1)]).await);
    assert!(set(&world, room, alice, &[receipt(ReceiptKind::ReadPrivate, "$1", thread.clone(), 1)]).await);
    assert!(set(&world, room, alice, &[read("$3", 3)]).await);
    let own = world.users.own_receipts(room, alice).await.unwrap();
    assert_eq!(own.len(), 4);
    let unthreaded = own.iter().find(|one| one.thread == ReceiptThread::Unthreaded).unwrap();
    assert_eq!(unthreaded.event_id, "$3");
    assert!(own.iter().any(|one| one.thread == thread && one.kind == ReceiptKind::ReadPrivate));
}

// Others see what changed, once, and nothing private.
#[tokio::test]
async fn members_see_public_receipts() {
    let world = World::new().await;
    let (room, other_room) = (room_id!("!r:a.test"), room_id!("!s:a.test"));
    let (alice, bob) = (user_id!("@alice:a.test"), user_id!("@bob:a.test"));
    let start = world.store.watermark();
    set(&world, room, alice, &[read("$1", 1)]).await;
    let middle = world.store.watermark();
    let private = receipt(ReceiptKind::ReadPrivate, "$3", ReceiptThread::Unthreaded, 3);
    set(&world, room, alice, &[read("$2", 2), private]).await;
    let end = world.store.watermark();
    let users = &world.users;
    assert!(users.receipts_changed_since(room, middle) && !users.receipts_changed_since(other_room, start));
    assert_eq!(users.rooms_with_receipts_since(start, 10).unwrap().len(), 1);
    assert_eq!(users.rooms_with_receipts_since(end, 10).unwrap().len(), 0);
    assert_eq!(users.rooms_with_receipts(None, 10).await.unwrap(), ["!r:a.test"]);
    set(&world, other_room, bob, &[read("$1", 1)]).await;
    assert_eq!(users.rooms_with_receipts(None, 10).await.unwrap(), ["!r:a.test", "!s:a.test"]);
    assert_eq!(users.rooms_with_receipts(None, 1).await.unwrap(), ["!r:a.test"]);
    assert_eq!(users.rooms_with_receipts(Some("!r:a.test"), 10).await.unwrap(), ["!s:a.test"]);
    let seen = users.receipts_since(room, bob, Some(start), end).await.unwrap();
    assert_eq!(events(&seen), ["$2"], "the newest once, nothing private");
    assert_eq!(events(&users.receipts_since(room, alice, Some(start), end).await.unwrap()).len(), 2);
    assert_eq!(events(&users.receipts_since(room, bob, Some(start), middle).await.unwrap()), [] as [&str; 0]);
    assert_eq!(events(&users.receipts_since(room, bob, None, end).await.unwrap()), ["$2"]);
    let content = receipt_content(&seen);
    assert_eq!(content["$2"]["m.read"]["@alice:a.test"]["ts"], 7);
    assert!(content["$2"]["m.read"]["@alice:a.test"].get("thread_id").is_none());
}

// The read marker is account data of its room and moves with the receipts in one commit.
#[tokio::test]
async fn the_read_marker_is_account_data() {
    let world = World::new().await;
    let room = room_id!("!r:a.test");
    let alice = world.alice().await;
    let start = world.store.watermark();
    let event = EventId::parse("$1").unwrap();
    let users = &world.users;
    assert!(users.set_receipts(room, &alice, &[read("$1", 1)], Some(&event)).await.unwrap().is_some());
    assert!(users.set_receipts(room, &alice, &[read("$1", 1)], Some(&event)).await.unwrap().is_none());
    let changes = users.account_data_changes(&alice, Some(start), world.store.watermark()).await.unwrap();
    assert_eq!(changes.rooms[room]["m.fully_read"].get(), r#"{"event_id":"$1"}"#);
}
