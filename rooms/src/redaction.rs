//! Redactions: found by their target's id, in force at once, and later in the bytes too.
//! * A redaction may come before its target; its right is checked when both are there. Until then it is kept with those
//!   that have the same right: however many have none, they stand before no other.
//! * The mark on the target is written in the commit that brings both together; readers go by the mark.
//! * A follower then replaces the stored body by its redacted form. This goes one way and may be repeated.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use hearth_dag::limits::MAX_KEY_BYTES;
use hearth_dag::{PowerLevels, redact};
use hearth_store::{Commit, Order, StoreError};

use crate::content;
use crate::errors::WriteError;
use crate::event_row::MAX_INLINE_BODY;
use crate::events::StoredEvent;
use crate::head::read_facts;
use crate::ids::{EventKey, EventSn, RoomSn, SnapshotId, late_members_topic};
use crate::kind::Kind;
use crate::lane::Act;
use crate::rooms::Rooms;
use crate::send::may_redact;
use crate::tables::*;
use crate::transactions::SWEEP_EVERY;
use crate::turn::Turn;

/// Targets that the follower takes up at once.
const AT_ONCE: usize = 100;
/// Redactions with one right to a target that are looked at when it comes. What holds for one of them holds for all.
const REDACTIONS_ALIKE: usize = 10;
/// The right to redact everything; other rights are names of servers.
const EVERYTHING: &str = "";
/// How long the follower waits after a failure.
const PAUSE: Duration = Duration::from_secs(5);

impl Turn {
    /// A redaction is in the room: marks its target, or waits for it.
    pub(crate) async fn apply_redaction(&mut self, redaction: &StoredEvent) -> Result<(), WriteError> {
        // No event has a longer id.
        let target_id = redaction.pdu.redacts().filter(|target| target.as_str().len() <= MAX_KEY_BYTES);
        let Some(target_id) = target_id.map(ToOwned::to_owned) else { return Ok(()) };
        let room = self.head.room.sn;
        let key = (room, EventKey::new(&target_id), redaction.sn);
        let Some(target) = self.event_number(&target_id).await? else {
            let power = self.power_at(redaction).await?;
            let right = match power.user(redaction.pdu.sender()).reaches(power.redact()) {
                true => EVERYTHING.to_owned(),
                false => server_of(&self.room(), &redaction.pdu),
            };
            self.put(&REDACTIONS_WAITING, &(room, key.1, right, redaction.sn), ());
            return Ok(());
        };
        let row = match self.redact(redaction, target).await? {
            true => RedactionRow::InForce,
            false => RedactionRow::Refused,
        };
        self.put(&REDACTIONS, &key, row);
        Ok(())
    }

    /// An event came: applies the first of the redactions that waited for it and has a right to it. However many
    /// have none, they write nothing.
    pub(crate) async fn apply_waiting_redactions(&mut self, target: &StoredEvent) -> Result<(), WriteError> {
        let (room, id) = (self.room(), EventKey::new(&target.header.event_id));
        for right in [EVERYTHING.to_owned(), server_of(&room, &target.pdu)] {
            let range = REDACTIONS_WAITING.prefix(&(room.sn, id.clone(), right));
            let store = self.rooms.store();
            let waiting = store.range(&REDACTIONS_WAITING, range, Order::Forward, REDACTIONS_ALIKE).await?;
            for (key, ()) in waiting {
                let redaction = self.event(key.3).await?;
                if self.redact(&redaction, target.sn).await? {
                    self.delete(&REDACTIONS_WAITING, &key);
                    self.put(&REDACTIONS, &(room.sn, id.clone(), redaction.sn), RedactionRow::InForce);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Marks `target` as redacted, if the redaction has a right to it. Says whether it has.
    async fn redact(&mut self, redaction: &StoredEvent, target: EventSn) -> Result<bool, WriteError> {
        let room = self.room();
        let power = self.power_at(redaction).await?;
        let target = self.event(target).await?;
        if target.header.kind == "m.room.create" || !may_redact(&room, &redaction.pdu, &target.pdu, &power) {
            return Ok(false);
        }
        let mut status = self.status(target.sn).await?;
        if status.redacted_by.is_some() {
            return Ok(true);
        }
        let facts = content::facts(target.header.kind.as_str(), target.pdu.content_json());
        if let Some(relates) = &facts.relation {
            self.unrelate(&target, relates).await?;
        }
        status.redacted_by = Some(redaction.sn);
        self.put_status(target.sn, status);
        self.commit.put(&TO_REDACT, &(room.sn, target.sn), &());
        if target.header.kind == "m.room.member" {
            self.hide_profile(&target).await?;
        }
        self.head.state_changed(&target.header.kind);
        Ok(true)
    }

    /// The power levels before an event: they say what a redaction may, whatever they became later.
    async fn power_at(&mut self, event: &StoredEvent) -> Result<Arc<PowerLevels>, WriteError> {
        let snapshot = event.snapshot_before().unwrap_or(self.head.row.snapshot);
        if snapshot.rest == self.head.row.snapshot.rest {
            return Ok(self.facts().await?.1);
        }
        let create = self.state_event_at(snapshot, "m.room.create").await?;
        let power = self.state_event_at(snapshot, "m.room.power_levels").await?;
        let facts = read_facts(&self.room(), create.as_deref(), power.as_deref())?;
        match facts.power {
            Some(power) => Ok(power),
            None => Ok(self.facts().await?.1),
        }
    }

    async fn state_event_at(
        &mut self,
        snapshot: SnapshotId,
        kind: &str,
    ) -> Result<Option<Arc<StoredEvent>>, WriteError> {
        let Some(key) = self.key_number(&(Kind::new(kind), String::new())).await? else { return Ok(None) };
        match self.snapshots.lookup(snapshot, key).await? {
            Some(event) => Ok(Some(self.event(event).await?)),
            None => Ok(None),
        }
    }

    /// Names and pictures of a redacted member event leave the list of members.
    async fn hide_profile(&mut self, target: &StoredEvent) -> Result<(), WriteError> {
        let room = self.head.room.sn;
        let Some(user) = target.pdu.state_key() else { return Ok(()) };
        let key = (room, user.to_owned());
        if let Some(mut row) = self.get(&MEMBERS, &key).await?
            && row.value.event == target.sn
        {
            row.value.display_name = None;
            row.value.avatar_url = None;
            self.put(&MEMBERS, &key, row);
        }
        Ok(())
    }
}

/// The server whose events an event may redact that has no power, and that has power over it in the same way.
fn server_of(room: &crate::events::RoomInfo, pdu: &hearth_dag::Pdu) -> String {
    let of_id = pdu.event_id().server_name().filter(|_| room.rules.redaction_auth_rule);
    of_id.unwrap_or(pdu.sender().server_name()).as_str().to_owned()
}

/// Replaces the body of one event by its redacted form.
struct Replace {
    target: EventSn,
}

#[async_trait]
impl Act for Replace {
    type Output = ();
    type Error = WriteError;

    fn anywhere(&self) -> bool {
        true
    }

    async fn decide(&self, turn: &mut Turn) -> Result<(), WriteError> {
        let room = turn.room();
        let key = (room.sn, self.target);
        let row = turn.get(&EVENTS, &key).await?;
        let mut status = turn.status(self.target).await?;
        let Some(mut row) = row else { return Ok(()) };
        if row.position.is_slot() {
            // Its own commit is not done; the follower comes again.
            return Err(WriteError::Busy);
        }
        if status.redacted_by.is_some() && !status.body_redacted {
            let event = turn.event(self.target).await?;
            // Redacting what is redacted changes nothing.
            let redacted = redact(room.rules, &event.pdu);
            status.body_redacted = true;
            turn.commit.delete(&LARGE_BODIES, &key);
            row.header.large = redacted.bytes().len() > MAX_INLINE_BODY;
            row.body = redacted.bytes().clone();
            if row.header.large {
                turn.put(&LARGE_BODIES, &key, hearth_store::Blob(redacted.bytes().clone()));
                row.body = Bytes::new();
            }
            turn.put_event(self.target, row);
            turn.put_status(self.target, status);
        }
        turn.commit.delete(&TO_REDACT, &key);
        Ok(())
    }
}

impl Rooms {
    /// Starts the follower that makes redactions lasting and tells late members, beginning with what a process before
    /// this one left. It ends with the last other clone.
    pub(crate) fn follow_redactions(self) {
        let rooms = self;
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let weak = rooms.downgrade();
        let store = rooms.store().clone();
        drop(rooms);
        runtime.spawn(async move {
            // Something was redacted, or members are late.
            let late = late_members_topic();
            let mut watch = store.watch_for(move |wake| {
                wake.keys.iter().any(|key| key.first() == Some(&REDACTIONS.space().0))
                    || wake.touched.iter().any(|(topic, _)| *topic == late)
            });
            let mut swept = tokio::time::Instant::now();
            loop {
                let Some(rooms) = weak.upgrade() else { return };
                let told = rooms.tell_all_late_members().await;
                if let Err(error) = &told {
                    tracing::warn!(%error, "telling members of ours what a room says of them failed; trying again");
                }
                let done = rooms.replace_redacted().await;
                if let Err(error) = &done {
                    tracing::warn!(%error, "replacing the bodies of redacted events failed; trying again");
                }
                drop(rooms);
                if told.is_err() || done.is_err() {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
                loop {
                    tokio::select! {
                        wake = watch.next() => match wake {
                            None => return,
                            Some(_) => break,
                        },
                        () = tokio::time::sleep_until(swept + SWEEP_EVERY) => {
                            swept = tokio::time::Instant::now();
                            let Some(rooms) = weak.upgrade() else { return };
                            rooms.sweep_transactions().await;
                        }
                    }
                }
            }
        });
    }

    /// Replaces the bodies of all redacted events. Says how many there were.
    pub async fn replace_redacted(&self) -> Result<usize, WriteError> {
        let mut count = 0;
        loop {
            let waiting: Vec<(RoomSn, EventSn)> = self.to_redact().await?;
            if waiting.is_empty() {
                return Ok(count);
            }
            for (room, target) in waiting {
                let Some(info) = self.room_of(room).await? else { continue };
                self.settled(room).await;
                self.decide(&info, &Replace { target }, &Commit::new()).await?;
                count += 1;
            }
        }
    }

    async fn to_redact(&self) -> Result<Vec<(RoomSn, EventSn)>, StoreError> {
        let rows = self.store().range(&TO_REDACT, TO_REDACT.all(), Order::Forward, AT_ONCE).await?;
        Ok(rows.into_iter().map(|(key, ())| key).collect())
    }
}

/// The event that redacts another one, if a redaction is in force.
pub async fn redacted_because(
    rooms: &Rooms,
    room: &crate::events::RoomInfo,
    event: &StoredEvent,
) -> Result<Option<Arc<StoredEvent>>, StoreError> {
    match event.changes.redacted_by {
        Some(redaction) => rooms.events().load(room, redaction).await.map(Some),
        None => Ok(None),
    }
}
