//! Relations between events: written when an event comes, corrected when one is redacted.

use hearth_store::{Order, Positioned};
use ruma::UserId;

use crate::content::{self, RelatesTo};
use crate::errors::WriteError;
use crate::event_row::Relation;
use crate::events::StoredEvent;
use crate::ids::{EventKey, EventSn, TimelineOrder};
use crate::tables::*;
use crate::turn::Turn;

/// How many replies are looked through for the last one that is not redacted.
const REPLIES_LOOKED_AT: usize = 64;

/// Relations that waited for one event and are looked at. Those beyond, and those for which the commit has no room, stay
/// unknown to it.
const RELATIONS_CONNECTED: usize = 200;

/// What makes two annotations of an event equal, as it stands in the key of [`ANNOTATIONS`].
pub fn annotation_key(sender: &UserId, kind: &str, key: &str) -> (u64, u64) {
    let hash = crate::send::short_hash(&[sender.as_str(), kind, key]);
    let (high, low) = hash.split_at(8);
    let number = |bytes: &[u8]| bytes.iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
    (number(high), number(low))
}

impl Turn {
    pub(crate) async fn index_relation(
        &mut self,
        stored: &StoredEvent,
        relates: &RelatesTo,
        order: TimelineOrder,
    ) -> Result<(), WriteError> {
        let room = self.head.room.sn;
        let Some(Relation { rel_type, target: Some(target) }) = &stored.header.relation else {
            self.put(&RELATIONS_WAITING, &(room, EventKey::new(&relates.event_id), stored.sn), ());
            return Ok(());
        };
        let target = *target;
        let row = RelationRow {
            event: stored.sn,
            rel_type: rel_type.clone(),
            kind: stored.header.kind.clone(),
            sender: stored.header.sender.clone(),
        };
        self.commit.put(&RELATIONS, &(room, target, order), &row);
        match rel_type {
            RelType::Annotation => {
                if let Some(key) = &relates.key {
                    let (a, b) = annotation_key(&stored.header.sender, stored.header.kind.as_str(), key);
                    self.put(&ANNOTATIONS, &(room, target, a, b), stored.sn);
                }
            }
            RelType::Thread => self.add_to_thread(target, stored, order).await?,
            _ => {}
        }
        Ok(())
    }

    /// An event came: the relations that waited for it get their rows.
    pub(crate) async fn connect_relations(&mut self, target: &StoredEvent) -> Result<(), WriteError> {
        let room = self.head.room.sn;
        let range = RELATIONS_WAITING.prefix(&(room, EventKey::new(&target.header.event_id)));
        let store = self.rooms.store().clone();
        for (key, ()) in store.range(&RELATIONS_WAITING, range, Order::Forward, RELATIONS_CONNECTED).await? {
            if !self.has_room() {
                break;
            }
            let related = self.event(key.2).await?;
            self.delete(&RELATIONS_WAITING, &key);
            let Some(order) = related.order() else { continue };
            let facts = content::facts(related.header.kind.as_str(), related.pdu.content_json());
            let Some(relates) = facts.relation else { continue };
            let mut known = StoredEvent::clone(&related);
            known.header.relation =
                Some(Relation { rel_type: relates.rel_type.clone(), target: Some(target.sn) });
            self.index_relation(&known, &relates, order).await?;
        }
        Ok(())
    }

    /// The thread that an event is in, if it is in one.
    pub(crate) async fn thread_of(&self, event: EventSn) -> Result<Option<EventSn>, WriteError> {
        let event = self.event(event).await?;
        Ok(match &event.header.relation {
            Some(Relation { rel_type: RelType::Thread, target }) => *target,
            _ => None,
        })
    }

    async fn add_to_thread(
        &mut self,
        root: EventSn,
        stored: &StoredEvent,
        order: TimelineOrder,
    ) -> Result<(), WriteError> {
        let room = self.head.room.sn;
        let thread = self.get(&THREADS, &(room, root)).await?;
        if let Some(Positioned { position, value }) = &thread
            && !order.is_live()
        {
            // History that is filled in: later replies were here before.
            let value = ThreadRow { count: value.count.saturating_add(1), ..value.clone() };
            self.put(&THREADS, &(room, root), Positioned { position: *position, value });
            let participant = stored.header.sender.to_string();
            self.commit.put(&THREAD_PARTICIPANTS, &(room, root, participant), &());
            return Ok(());
        }
        let count = match &thread {
            Some(Positioned { position, value }) => {
                // The place of a reply that is still on its way is not known; its row stays, and is passed over.
                if !position.is_slot() {
                    self.commit.delete(&THREAD_ORDER, &(room, TimelineOrder::live(*position)));
                }
                value.count
            }
            None => 0,
        };
        let row = ThreadRow { latest: stored.sn, count: count.saturating_add(1) };
        self.put(&THREADS, &(room, root), Positioned { position: order.anchor, value: row });
        self.commit.put(&THREAD_ORDER, &(room, order), &root);
        let participant = stored.header.sender.to_string();
        self.commit.put(&THREAD_PARTICIPANTS, &(room, root, participant), &());
        Ok(())
    }

    /// A related event was redacted: it no longer counts.
    pub(crate) async fn unrelate(
        &mut self,
        redacted: &StoredEvent,
        relates: &RelatesTo,
    ) -> Result<(), WriteError> {
        let room = self.head.room.sn;
        let Some(Relation { rel_type, target: Some(target) }) = &redacted.header.relation else {
            return Ok(());
        };
        let target = *target;
        match rel_type {
            RelType::Annotation => {
                if let Some(key) = &relates.key {
                    let (a, b) = annotation_key(&redacted.header.sender, redacted.header.kind.as_str(), key);
                    if self.get(&ANNOTATIONS, &(room, target, a, b)).await? == Some(redacted.sn) {
                        self.delete(&ANNOTATIONS, &(room, target, a, b));
                    }
                }
            }
            RelType::Thread => self.remove_from_thread(target, redacted).await?,
            _ => {}
        }
        Ok(())
    }

    async fn remove_from_thread(&mut self, root: EventSn, redacted: &StoredEvent) -> Result<(), WriteError> {
        let room = self.head.room.sn;
        let Some(thread) = self.get(&THREADS, &(room, root)).await? else { return Ok(()) };
        let Positioned { position, value: ThreadRow { latest, count } } = thread;
        let count = count.saturating_sub(1);
        if count == 0 {
            if !position.is_slot() {
                self.commit.delete(&THREAD_ORDER, &(room, TimelineOrder::live(position)));
            }
            self.delete(&THREADS, &(room, root));
            return Ok(());
        }
        let (position, latest) = match latest == redacted.sn {
            true => match self.last_reply(root, redacted.sn).await? {
                Some((order, event)) => {
                    self.commit.put(&THREAD_ORDER, &(room, order), &root);
                    (order.anchor, event)
                }
                None => (position, latest),
            },
            false => (position, latest),
        };
        self.put(&THREADS, &(room, root), Positioned { position, value: ThreadRow { latest, count } });
        Ok(())
    }

    /// The last reply of a thread that is in force, beside `except`.
    async fn last_reply(
        &self,
        root: EventSn,
        except: EventSn,
    ) -> Result<Option<(TimelineOrder, EventSn)>, WriteError> {
        let room = self.head.room.sn;
        let store = self.rooms.store();
        let range = RELATIONS.prefix(&(room, root));
        for ((.., order), row) in store.range(&RELATIONS, range, Order::Backward, REPLIES_LOOKED_AT).await? {
            if row.rel_type != RelType::Thread || row.event == except {
                continue;
            }
            if self.status(row.event).await?.redacted_by.is_none() {
                return Ok(Some((order, row.event)));
            }
        }
        Ok(None)
    }
}
