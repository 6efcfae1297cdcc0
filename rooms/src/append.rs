//! From a draft or a PDU to rows: an event gets its number, its place, its index rows, and changes the state.
//! * Everything that an event brings is written in its own commit.
//! * Refusals come before the first write.

use std::collections::BTreeMap;
use std::sync::Arc;

use hearth_dag::{Draft, Pdu, Place, auth_keys, check_with, redact};
use hearth_store::{Positioned, StreamPosition};
use ruma::events::{StateEventType, TimelineEventType};
use ruma::{MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedServerName, ServerName, UInt, UserId};

use crate::content::{self, ContentFacts, MemberContent};
use crate::errors::WriteError;
use crate::event_row::{EventHeader, EventRow, MAX_INLINE_BODY, Relation, SentBy};
use crate::events::StoredEvent;
use crate::forks::DUMMY_EVENT;
use crate::head::kind_of;
use crate::ids::{EventKey, EventSn, SnapshotId, StateKeySn, TimelineOrder, user_topic};
use crate::kind::Kind;
use crate::tables::*;
use crate::turn::Turn;

/// Prev events of an event of ours. What a head has beyond them stays an extremity: the next event refers to it.
const PREV_EVENTS_MAX: usize = 20;

/// An event of ours, about to be made.
pub(crate) struct Sending {
    pub(crate) draft: Draft,
    pub(crate) sent_by: Option<SentBy>,
    /// When it is said to be made, if not now.
    pub(crate) timestamp_ms: Option<u64>,
}

impl From<Draft> for Sending {
    fn from(draft: Draft) -> Self {
        Sending { draft, sent_by: None, timestamp_ms: None }
    }
}

/// An event that could be appended to the head.
pub(crate) struct Made {
    pub(crate) pdu: Pdu,
    pub(crate) auth_events: Vec<EventSn>,
    /// Its sender may mention the whole room.
    pub(crate) mentions_room_allowed: bool,
}

/// An event that was made.
#[derive(Clone, Debug)]
pub(crate) struct Appended {
    pub(crate) sn: EventSn,
    pub(crate) event_id: OwnedEventId,
    /// Its position, to be resolved by the commit.
    pub(crate) slot: StreamPosition,
}

/// An event to be stored, with all that is known of it.
pub(crate) struct NewEvent {
    pub(crate) pdu: Pdu,
    /// It is stored as an outlier, under this number.
    pub(crate) known: Option<EventSn>,
    pub(crate) status: Status,
    /// It goes into the timeline, at the commit's next position.
    pub(crate) live: bool,
    /// It is ours to send to the room's other servers.
    pub(crate) is_ours: bool,
    pub(crate) partial: bool,
    pub(crate) hash_failed: bool,
    pub(crate) prev_events: Vec<EventSn>,
    pub(crate) auth_events: Vec<EventSn>,
    pub(crate) snapshot_before: Option<SnapshotId>,
    pub(crate) replaces: Option<EventSn>,
    pub(crate) sent_by: Option<SentBy>,
    pub(crate) also_to: Vec<OwnedServerName>,
    pub(crate) mentions_room_allowed: bool,
}

impl Membership {
    /// That of a member event.
    pub fn of(pdu: &Pdu) -> Option<Self> {
        use ruma::events::room::member::MembershipState;
        Some(match pdu.membership()? {
            MembershipState::Join => Membership::Join,
            MembershipState::Invite => Membership::Invite,
            MembershipState::Knock => Membership::Knock,
            MembershipState::Leave => Membership::Leave,
            MembershipState::Ban => Membership::Ban,
            _ => return None,
        })
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Membership::Join => "join",
            Membership::Invite => "invite",
            Membership::Knock => "knock",
            Membership::Leave => "leave",
            Membership::Ban => "ban",
        }
    }
}

impl Turn {
    /// Makes an event of a draft on the head, if the rules allow it, and moves the head to it. One that the operation
    /// brought back from the room's policy server takes its place.
    pub(crate) async fn append(&mut self, sending: Sending) -> Result<Appended, WriteError> {
        let signed = self.signed_for(&sending.draft).await?;
        let signed_ms = signed.as_ref().map(|event| event.origin_server_ts().get().into());
        let draft = &sending.draft;
        let mut made =
            self.make(draft, signed_ms.or(sending.timestamp_ms), draft.sender.server_name()).await?;
        if let Some(signed) = signed {
            if signed.event_id() != made.pdu.event_id() {
                return self.append_beside(signed, sending).await;
            }
            made.pdu = signed;
        }
        self.check_policy(&made.pdu).await?;
        self.append_checked(made.pdu, made.auth_events, sending.sent_by, made.mentions_room_allowed).await
    }

    /// An event of a draft on the head, if the rules allow it, signed by a server of ours. Nothing is written.
    pub(crate) async fn make(
        &mut self,
        draft: &Draft,
        timestamp_ms: Option<u64>,
        signed_by: &ServerName,
    ) -> Result<Made, WriteError> {
        let room = self.room();
        let is_create = draft.kind == TimelineEventType::RoomCreate;
        let wanted = auth_keys(
            room.rules,
            &draft.kind,
            &draft.sender,
            draft.state_key.as_deref(),
            draft.content.get(),
        )?;
        let mut auth: Vec<(StateEventType, String, Arc<StoredEvent>)> = Vec::with_capacity(wanted.len());
        for (kind, state_key) in wanted {
            if let Some(event) = self.state(&kind_of(&kind), &state_key).await? {
                auth.push((kind, state_key, event));
            }
        }
        let auth_ids: Vec<OwnedEventId> =
            auth.iter().map(|(.., event)| event.header.event_id.clone()).collect();
        let hashes = self.reference_hashes(&auth).await?;
        let signer = self.rooms.servers().signer_for(signed_by).ok_or(WriteError::NotResident)?;
        let timestamp = timestamp_ms.unwrap_or(self.now_ms);
        let pdu = draft.build(
            room.rules,
            &Place {
                room_id: (!is_create || !room.rules.room_id_is_create_event).then_some(&room.room_id),
                prev_events: &self.head.extremities[..self.head.extremities.len().min(PREV_EVENTS_MAX)],
                auth_events: &auth_ids,
                depth: if is_create {
                    1
                } else {
                    i64::try_from(self.head.row.depth).unwrap_or(i64::MAX).saturating_add(1)
                },
                origin_server_ts: MilliSecondsSinceUnixEpoch(UInt::new_saturating(timestamp)),
                hashes: hashes.as_ref(),
            },
            signer,
        )?;
        let mut mentions_room_allowed = false;
        if !is_create {
            let (create, power, has_power) = self.facts().await?;
            let state = |kind: &StateEventType, state_key: &str| {
                let held = auth.iter().find(|(of, key, _)| of == kind && key == state_key);
                held.map(|(.., event)| event.pdu.clone())
            };
            check_with(room.rules, &pdu, &create, &power, has_power, state)?;
            mentions_room_allowed = power.user(&draft.sender).reaches(power.notification("room"));
        }
        let auth_events = auth.iter().map(|(.., event)| event.sn).collect();
        Ok(Made { pdu, auth_events, mentions_room_allowed })
    }

    /// Stores an event whose prev events are the head's extremities, and moves the head to it.
    pub(crate) async fn append_checked(
        &mut self,
        pdu: Pdu,
        auth_events: Vec<EventSn>,
        sent_by: Option<SentBy>,
        mentions_room_allowed: bool,
    ) -> Result<Appended, WriteError> {
        let before = self.head.row.snapshot;
        let replaced = match pdu.state_key() {
            Some(state_key) => self.state(&Kind::from(pdu.kind()), state_key).await?,
            None => None,
        };
        let event_id = pdu.event_id().to_owned();
        let depth = u64::try_from(pdu.depth()).unwrap_or(0);
        let new = NewEvent {
            pdu,
            known: None,
            status: Status::Accepted,
            live: true,
            is_ours: true,
            partial: self.head.row.partial_state,
            hash_failed: false,
            prev_events: self.head.row.extremities.iter().copied().take(PREV_EVENTS_MAX).collect(),
            auth_events,
            snapshot_before: Some(before),
            replaces: replaced.as_ref().map(|event| event.sn),
            sent_by,
            also_to: Vec::new(),
            mentions_room_allowed,
        };
        let (stored, slot) = self.store_event(new).await?;
        if let Some(key) = stored.header.state_key {
            self.set_state_event(key, &stored, replaced.as_deref(), slot).await?;
        }
        let head = self.change_head();
        let referred = head.row.extremities.len().min(PREV_EVENTS_MAX);
        head.row.extremities.drain(..referred);
        head.extremities.drain(..referred);
        head.row.extremities.push(stored.sn);
        head.extremities.push(event_id.clone());
        head.row.depth = head.row.depth.max(depth);
        if head.row.extremities.len() == 1 {
            // All that was merged is in the state before this event.
            self.forget_merged();
        }
        if stored.header.kind == "m.room.redaction" {
            self.apply_redaction(&stored).await?;
        }
        self.settle_residency().await?;
        Ok(Appended { sn: stored.sn, event_id, slot })
    }

    /// The rows of a new event. Says its number and, for a live one, its position.
    pub(crate) async fn store_event(
        &mut self,
        mut new: NewEvent,
    ) -> Result<(Arc<StoredEvent>, StreamPosition), WriteError> {
        let room = self.room();
        // One that was held already may have been redacted before it got its place.
        let redacted_by = match new.known {
            Some(known) => self.status(known).await?.redacted_by,
            None => None,
        };
        if redacted_by.is_some() {
            new.pdu = redact(room.rules, &new.pdu);
        }
        let pdu = &new.pdu;
        let sn = match new.known {
            Some(known) => known,
            None => self.change_head().next_event(),
        };
        let kind = Kind::from(pdu.kind());
        let slot = if new.live { self.commit.position() } else { StreamPosition::ZERO };
        let sender_key = self.intern(&(Kind::new("m.room.member"), pdu.sender().to_string())).await?;
        let state_key = match pdu.state_key() {
            Some(state_key) => Some(self.intern(&(kind.clone(), state_key.to_owned())).await?),
            None => None,
        };
        let facts = content::facts(kind.as_str(), pdu.content_json());
        let relation = match &facts.relation {
            Some(relates) => {
                let target = self.event_number(&relates.event_id).await?;
                Some(Relation { rel_type: relates.rel_type.clone(), target })
            }
            None => None,
        };
        let large = pdu.bytes().len() > MAX_INLINE_BODY;
        let timestamp = u64::from(pdu.origin_server_ts().get());
        let header = EventHeader {
            event_id: pdu.event_id().to_owned(),
            status: new.status,
            live: new.live,
            large,
            partial: new.partial,
            hash_failed: new.hash_failed,
            kind,
            state_key,
            sender: pdu.sender().to_owned(),
            origin_server_ts: timestamp,
            depth: u64::try_from(pdu.depth()).unwrap_or(0),
            prev_events: new.prev_events,
            auth_events: new.auth_events,
            snapshot_before: new.snapshot_before,
            relation,
            replaces: new.replaces,
            transaction: new.sent_by,
        };
        if large {
            self.put(&LARGE_BODIES, &(room.sn, sn), hearth_store::Blob(pdu.bytes().clone()));
        } else if redacted_by.is_some() {
            self.commit.delete(&LARGE_BODIES, &(room.sn, sn));
        }
        let body = if large { bytes::Bytes::new() } else { pdu.bytes().clone() };
        self.put_event(sn, EventRow { position: slot, header: header.clone(), body });
        self.put(&EVENT_NUMBERS, &(EventKey::new(pdu.event_id()), room.sn), sn);
        let stored = Arc::new(StoredEvent {
            sn,
            position: slot,
            header,
            changes: EventStatusRow::default(),
            pdu: new.pdu,
        });
        self.add_made(stored.clone());
        if !new.live {
            // Its number ends the run of its minute.
            self.change_head().row.minute = 0;
        }
        if new.partial {
            let number = self.change_head().row.next_queued;
            self.change_head().row.next_queued += 1;
            self.commit.put(&PARTIAL_EVENTS, &(room.sn, number), &sn);
        }
        if new.known.is_some() {
            // Readers that remember it as it was see by this row that it changed.
            let status = Some(new.status);
            let body_redacted = redacted_by.is_some();
            self.put_status(
                sn,
                EventStatusRow { status, redacted_by, body_redacted, ..EventStatusRow::default() },
            );
        } else if stored.header.state_key.is_some() {
            self.index_auth(&stored).await?;
        }
        if new.live {
            let what = if new.is_ours { StreamWhat::Local } else { StreamWhat::Remote };
            let row = StreamRow { room: room.sn, event: sn, what, also_to: new.also_to };
            self.commit.put(&STREAM, &slot, &row);
            if new.known.is_some() {
                // Its number is from another time: it makes a run of its own.
                self.change_head().row.minute = 0;
            }
            if stored.header.kind != DUMMY_EVENT {
                self.index_live(&stored, slot, sender_key, &facts, new.mentions_room_allowed).await?;
            }
        }
        Ok((stored, slot))
    }

    /// Timeline, minutes and relations of an event that stands at a position.
    async fn index_live(
        &mut self,
        stored: &StoredEvent,
        slot: StreamPosition,
        sender_key: StateKeySn,
        facts: &ContentFacts,
        mentions_room_allowed: bool,
    ) -> Result<(), WriteError> {
        let room = self.head.room.sn;
        let minute = (stored.header.origin_server_ts / 60_000) as u32;
        if minute != self.head.row.minute {
            self.change_head().row.minute = minute;
            self.commit.put(&MINUTES, &(room, minute, stored.sn), &());
        }
        let order = TimelineOrder::live(slot);
        self.index_at(stored, order, sender_key, facts, mentions_room_allowed).await
    }

    /// The rows of an event at its place in the timeline.
    pub(crate) async fn index_at(
        &mut self,
        stored: &StoredEvent,
        order: TimelineOrder,
        sender_key: StateKeySn,
        facts: &ContentFacts,
        mentions_room_allowed: bool,
    ) -> Result<(), WriteError> {
        let room = self.head.room.sn;
        let thread = match &stored.header.relation {
            Some(Relation { rel_type: RelType::Thread, target }) => *target,
            Some(Relation { target: Some(target), .. }) => self.thread_of(*target).await?,
            _ => None,
        };
        let mut mentions = Vec::new();
        for user in &facts.mentioned {
            let key = (Kind::new("m.room.member"), user.clone());
            mentions.extend(self.key_number(&key).await?);
        }
        let note =
            Note { kind: facts.note, mentions_room: facts.mentions_room && mentions_room_allowed, mentions };
        self.commit.put(
            &TIMELINE,
            &(room, order),
            &TimelineRow { event: stored.sn, sender: sender_key, note, thread },
        );
        if let Some(relates) = &facts.relation {
            self.index_relation(stored, relates, order).await?;
        }
        Ok(())
    }

    /// A state event takes its place in the head's state.
    pub(crate) async fn set_state_event(
        &mut self,
        key: StateKeySn,
        stored: &Arc<StoredEvent>,
        replaced: Option<&StoredEvent>,
        slot: StreamPosition,
    ) -> Result<(), WriteError> {
        let room = self.head.room.sn;
        let after = self.snapshots.apply(self.head.row.snapshot, &[(key, Some(stored.sn))]).await?;
        let partial = self.head.row.partial_state;
        self.commit.put(&HEAD_SNAPSHOTS, &(room, slot), &SnapshotRow { snapshot: after, partial });
        let kind = stored.header.kind.clone();
        let state_key = stored.pdu.state_key().unwrap_or_default().to_owned();
        let head = self.change_head();
        head.row.snapshot = after;
        head.state_changed(&kind);
        head.remember_state((kind, state_key), Some(stored.clone()));
        if key.is_member() {
            let before = replaced.and_then(|event| Membership::of(&event.pdu));
            self.set_member(key, stored, before, slot).await?;
        }
        Ok(())
    }

    /// The rows of a membership that is now current, and the counts.
    pub(crate) async fn set_member(
        &mut self,
        key: StateKeySn,
        stored: &StoredEvent,
        before: Option<Membership>,
        slot: StreamPosition,
    ) -> Result<(), WriteError> {
        let room = self.head.room.sn;
        let Some(user) = stored.pdu.state_key().and_then(|user| <&UserId>::try_from(user).ok()) else {
            return Ok(());
        };
        let membership = Membership::of(&stored.pdu).unwrap_or(Membership::Leave);
        self.count(before, membership);
        let (was, is) = (before == Some(Membership::Join), membership == Membership::Join);
        self.joins_changed |= match self.rooms.is_local(user) {
            true => was && !is,
            false => is && !was && self.head.row.joined == 1,
        };
        let content = self.put_member(user, key, stored, slot);
        let row = MembershipRow {
            membership,
            event: Some(stored.sn),
            sender: stored.header.sender.clone(),
            before,
            forgotten: false,
            is_direct: content.is_direct.unwrap_or(false),
        };
        self.put(&MEMBERSHIPS, &(user.to_string(), room), Positioned { position: slot, value: row });
        if self.rooms.is_local(user) {
            let change = MembershipChange { room, membership, before, forgotten: false };
            self.commit.put(&MEMBERSHIP_CHANGES, &(user.to_string(), slot), &change);
            self.commit.touch(user_topic(user));
        }
        Ok(())
    }

    /// The row of a member. Gives what its content says.
    pub(crate) fn put_member(
        &mut self,
        user: &UserId,
        key: StateKeySn,
        stored: &StoredEvent,
        slot: StreamPosition,
    ) -> MemberContent {
        let content = MemberContent::of(&stored.pdu);
        let member = MemberRow {
            membership: Membership::of(&stored.pdu).unwrap_or(Membership::Leave),
            event: stored.sn,
            key,
            display_name: content.displayname.clone(),
            avatar_url: content.avatar_url.clone(),
        };
        let key = (self.head.room.sn, user.to_string());
        self.put(&MEMBERS, &key, Positioned { position: slot, value: member });
        content
    }

    /// A membership is gone from the state, as if it had never been.
    pub(crate) async fn unset_member(
        &mut self,
        event: Option<EventSn>,
        before: Option<Membership>,
        slot: StreamPosition,
    ) -> Result<(), WriteError> {
        let Some(event) = event else { return Ok(()) };
        let event = self.event(event).await?;
        let Some(user) = event.pdu.state_key().and_then(|user| UserId::parse(user).ok()) else {
            return Ok(());
        };
        self.count(before, Membership::Leave);
        self.joins_changed |= before == Some(Membership::Join) && self.rooms.is_local(&user);
        self.forget_member(&user, before, slot);
        Ok(())
    }

    /// The rows of a user of whom the state says nothing any more.
    pub(crate) fn forget_member(&mut self, user: &UserId, before: Option<Membership>, slot: StreamPosition) {
        let room = self.head.room.sn;
        self.delete(&MEMBERS, &(room, user.to_string()));
        let row = MembershipRow {
            membership: Membership::Leave,
            event: None,
            sender: user.to_owned(),
            before,
            forgotten: false,
            is_direct: false,
        };
        self.put(&MEMBERSHIPS, &(user.to_string(), room), Positioned { position: slot, value: row });
        if self.rooms.is_local(user) {
            let change = MembershipChange { room, membership: Membership::Leave, before, forgotten: false };
            self.commit.put(&MEMBERSHIP_CHANGES, &(user.to_string(), slot), &change);
            self.commit.touch(user_topic(user));
        }
    }

    /// Puts other bytes in the place of a stored event's.
    pub(crate) async fn replace_body(&mut self, held: &StoredEvent, pdu: &Pdu) -> Result<(), WriteError> {
        let key = (self.head.room.sn, held.sn);
        let Some(mut row) = self.get(&EVENTS, &key).await? else { return Ok(()) };
        row.header.hash_failed = false;
        row.header.large = pdu.bytes().len() > MAX_INLINE_BODY;
        row.body = if row.header.large { bytes::Bytes::new() } else { pdu.bytes().clone() };
        if row.header.large {
            self.put(&LARGE_BODIES, &key, hearth_store::Blob(pdu.bytes().clone()));
        }
        self.put_event(held.sn, row);
        let status = self.status(held.sn).await?;
        self.put_status(held.sn, status);
        Ok(())
    }

    pub(crate) fn count(&mut self, before: Option<Membership>, after: Membership) {
        let row = &mut self.change_head().row;
        match before {
            Some(Membership::Join) => row.joined = row.joined.saturating_sub(1),
            Some(Membership::Invite) => row.invited = row.invited.saturating_sub(1),
            _ => {}
        }
        match after {
            Membership::Join => row.joined += 1,
            Membership::Invite => row.invited += 1,
            _ => {}
        }
    }

    /// In versions 1 and 2 a reference carries the hash of what it refers to.
    async fn reference_hashes(
        &self,
        auth: &[(StateEventType, String, Arc<StoredEvent>)],
    ) -> Result<Option<BTreeMap<OwnedEventId, String>>, WriteError> {
        let room = &self.head.room;
        if !room.rules.event_references_have_hashes {
            return Ok(None);
        }
        let mut hashes = BTreeMap::new();
        for (.., event) in auth {
            hashes.insert(event.header.event_id.clone(), event.pdu.reference_hash(room.rules));
        }
        for event in &self.head.row.extremities {
            let event = self.event(*event).await?;
            hashes.insert(event.header.event_id.clone(), event.pdu.reference_hash(room.rules));
        }
        Ok(Some(hashes))
    }
}
