//! Unread counts: what the push rules say about the events behind a user's receipts.
//! * Counted on reading, from the rows of the timeline: they hold what the predefined rules ask, so that an event is
//!   looked at only for users who changed their rules.
//! * What was counted is kept with the place up to which it was; the next count goes on from there. A receipt or
//!   changed rules begin anew.

use std::{collections::BTreeMap, sync::Arc};

use hearth_rooms::{
    EventSn, RoomSn, StateKeySn, TimelineOrder,
    read::{Copy, Direction, Reader, Stretch, Tail, TimelineToken},
    tables::{Note, NoteKind, TimelineRow},
};
use hearth_store::{StoreError, StreamPosition};
use hearth_users::Users;
use quick_cache::sync::Cache;
use ruma::{
    OwnedUserId, RoomId, UserId,
    events::{receipt::ReceiptThread, room::power_levels::RoomPowerLevelsEventContent},
    push::{PushConditionPowerLevelsCtx, Ruleset},
    room_version_rules::RoomPowerLevelsRules,
};
use serde_json::value::RawValue;

use crate::push::{Decision, Event, Room, Rules, Summary};

/// Counts that are kept.
const KEPT: usize = 50_000;
/// Events that are counted behind a receipt at most: nobody needs to know by how much it is more.
const MAX_COUNTED: usize = 5_000;
/// Threads that are counted by themselves at most.
const MAX_THREADS: usize = 200;
/// Rows read at a time.
const BATCH: usize = 500;

/// Counts of all users.
pub struct Unread {
    reader: Reader,
    users: Users,
    kept: Cache<(OwnedUserId, RoomSn), Arc<Counted>>,
}

/// Notifications and highlights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub notifications: u32,
    pub highlights: u32,
}

/// A user's counts in a room.
#[derive(Clone, Debug)]
pub struct Counted {
    /// Outside of threads.
    pub main: Counts,
    pub threads: BTreeMap<EventSn, Counts>,
    /// When the user's newest receipt was set.
    pub read: StreamPosition,
    upto: StreamPosition,
    member: Option<StateKeySn>,
    ruleset: Arc<Ruleset>,
    rules: Arc<Rules>,
    marks: Arc<Marks>,
}

/// Up to where the user has read.
#[derive(Debug, Default)]
struct Marks {
    main: Option<TimelineOrder>,
    threads: BTreeMap<EventSn, TimelineOrder>,
    everywhere: Option<TimelineOrder>,
}

/// Who counts where.
#[derive(Clone, Copy)]
pub struct Where<'a> {
    pub user: &'a UserId,
    pub room: RoomSn,
    pub room_id: &'a RoomId,
    pub tail: &'a Tail,
    pub upto: StreamPosition,
}

impl Counts {
    fn add(&mut self, decision: Decision) {
        self.notifications += u32::from(decision.notify);
        self.highlights += u32::from(decision.highlight);
    }

    fn plus(self, other: Counts) -> Counts {
        Counts {
            notifications: self.notifications + other.notifications,
            highlights: self.highlights + other.highlights,
        }
    }
}

impl Counted {
    /// All threads and what is outside of them.
    pub fn total(&self) -> Counts {
        self.threads.values().fold(self.main, |sum, counts| sum.plus(*counts))
    }
}

impl Marks {
    /// The place from which anything may be unread.
    fn earliest(&self) -> TimelineOrder {
        let main = self.main.max(self.everywhere);
        main.unwrap_or(TimelineOrder::START)
    }

    fn is_read(&self, order: TimelineOrder, thread: Option<EventSn>) -> bool {
        let mark = match thread {
            None => self.main,
            Some(root) => self.threads.get(&root).copied(),
        };
        mark.max(self.everywhere).is_some_and(|mark| order <= mark)
    }
}

impl Unread {
    pub fn new(reader: Reader, users: Users) -> Self {
        Self { reader, users, kept: Cache::new(KEPT) }
    }

    /// The counts as of `upto`.
    pub async fn count(&self, at: Where<'_>) -> Result<Arc<Counted>, StoreError> {
        let key = (at.user.to_owned(), at.room);
        let rules = self.users.push_rules(at.user).await?;
        let kept = self.kept.get(&key).filter(|kept| {
            kept.upto <= at.upto
                && Arc::ptr_eq(&kept.ruleset, &rules.ruleset)
                && !self.users.receipts_changed_since(at.room_id, kept.upto)
                && !redacts_after(at.tail, kept.upto)
        });
        let counted = match kept {
            Some(kept)
                if kept.upto >= at.tail.last_order().map_or(StreamPosition::ZERO, |order| order.anchor) =>
            {
                return Ok(kept);
            }
            Some(kept) => self.go_on(at, (*kept).clone()).await?,
            None => {
                let begun = self.begin(at, rules.ruleset.clone(), rules.is_default).await?;
                self.go_on(at, begun).await?
            }
        };
        let counted = Arc::new(counted);
        self.kept.insert(key, counted.clone());
        Ok(counted)
    }

    async fn begin(
        &self,
        at: Where<'_>,
        ruleset: Arc<Ruleset>,
        is_default: bool,
    ) -> Result<Counted, StoreError> {
        let held = self.kept.get(&(at.user.to_owned(), at.room));
        let rules = match held {
            Some(held) if Arc::ptr_eq(&held.ruleset, &ruleset) => held.rules.clone(),
            _ if is_default => Arc::new(Rules::Predefined),
            _ => Arc::new(Rules::of(at.user, (*ruleset).clone())),
        };
        let member = self.reader.state_key(at.room, "m.room.member", at.user.as_str()).await?;
        let mut marks = Marks::default();
        let mut read = StreamPosition::ZERO;
        for receipt in self.users.own_receipts(at.room_id, at.user).await? {
            read = read.max(receipt.position);
            let Some(event) = self.reader.event_sn(at.room, &receipt.event_id).await? else { continue };
            let Some(event) = self.reader.event(at.room, event).await? else { continue };
            let Some(order) = event.order else { continue };
            match &receipt.thread {
                ReceiptThread::Main => marks.main = marks.main.max(Some(order)),
                ReceiptThread::Thread(root) => {
                    if let Some(root) = self.reader.event_sn(at.room, root).await? {
                        let mark = marks.threads.entry(root).or_insert(order);
                        *mark = order.max(*mark);
                    }
                }
                _ => marks.everywhere = marks.everywhere.max(Some(order)),
            }
        }
        // Nothing is unread of what happened before the user came.
        let membership = self.reader.membership_of(at.user, at.room).await?;
        if let Some(event) = membership.and_then(|row| row.value.event) {
            marks.everywhere = marks.everywhere.max(self.reader.joined_at(at.room, event).await?);
        }
        Ok(Counted {
            main: Counts::default(),
            threads: BTreeMap::new(),
            read,
            upto: StreamPosition::ZERO,
            member,
            ruleset,
            rules,
            marks: Arc::new(marks),
        })
    }

    async fn go_on(&self, at: Where<'_>, mut counted: Counted) -> Result<Counted, StoreError> {
        let newest = TimelineOrder::live(at.upto);
        let after = counted.marks.earliest().max(TimelineOrder::live(counted.upto));
        counted.upto = at.upto;
        if after >= at.tail.complete_after {
            let new = at.tail.events.iter().filter(|placed| placed.order > after && placed.order <= newest);
            let new = new.filter(|placed| !placed.event.client.redacted);
            self.add(at, &mut counted, new.map(|placed| (placed.order, placed.row.clone())).collect())
                .await?;
            return Ok(counted);
        }
        // Backwards, so that the bound leaves out what is oldest.
        let mut up_to = newest;
        for _ in 0..MAX_COUNTED.div_ceil(BATCH) {
            let stretch = Stretch { after, up_to };
            let mut rows = self.reader.timeline_rows(at.room, stretch, Direction::Backward, BATCH).await?;
            let complete = rows.len() < BATCH;
            if let Some((last, _)) = rows.last() {
                up_to = TimelineToken::before(*last).0;
            }
            let events: Vec<EventSn> = rows.iter().map(|(_, row)| row.event).collect();
            let redacted = self.reader.redacted(at.room, &events).await?;
            rows.retain(|(_, row)| !redacted.contains(&row.event));
            self.add(at, &mut counted, rows).await?;
            if complete {
                break;
            }
        }
        Ok(counted)
    }

    async fn add(
        &self,
        at: Where<'_>,
        counted: &mut Counted,
        rows: Vec<(TimelineOrder, TimelineRow)>,
    ) -> Result<(), StoreError> {
        let unread = rows.into_iter().filter(|(order, row)| {
            Some(row.sender) != counted.member && !counted.marks.is_read(*order, row.thread)
        });
        let unread: Vec<TimelineRow> = unread.map(|(_, row)| row).collect();
        let mut own = None;
        for row in unread {
            let decision = match (&*counted.rules, predefined(&row.note, counted.member)) {
                (Rules::Predefined, Some(decision)) => decision,
                _ => {
                    if own.is_none() {
                        own = Some(self.room(at).await?);
                    }
                    let Some(room) = &own else { continue };
                    self.decide(at, &counted.rules, room, row.event).await?
                }
            };
            if !decision.notify {
                continue;
            }
            match row.thread {
                Some(root) if counted.threads.len() < MAX_THREADS || counted.threads.contains_key(&root) => {
                    counted.threads.entry(root).or_default().add(decision);
                }
                _ => counted.main.add(decision),
            }
        }
        Ok(())
    }

    /// What a user's rules say about an event, by looking at it.
    async fn decide(
        &self,
        at: Where<'_>,
        rules: &Rules,
        room: &Room,
        event: EventSn,
    ) -> Result<Decision, StoreError> {
        let Some(event) = self.reader.event(at.room, event).await? else { return Ok(Decision::SILENT) };
        let mut json = Vec::new();
        event.client.write(&mut json, Copy { room_id: Some(at.room_id.as_str()), ..Copy::default() });
        let json = String::from_utf8(json).ok().and_then(|json| RawValue::from_string(json).ok());
        let Some(json) = json else { return Ok(Decision::SILENT) };
        Ok(rules.decide(&Event::new(&Summary::of(&json), &json), room))
    }

    async fn room(&self, at: Where<'_>) -> Result<Room, StoreError> {
        #[derive(serde::Deserialize)]
        struct Member {
            displayname: Option<String>,
        }
        let snapshot = at.tail.snapshot;
        let member = self.reader.state_event(at.room, snapshot, "m.room.member", at.user.as_str()).await?;
        let name = member.and_then(|event| event.client.content_as::<Member>()?.displayname);
        let name = name.unwrap_or_else(|| at.user.localpart().to_owned());
        let levels = self.power_levels(at).await?;
        Ok(Room::new(at.room_id.to_owned(), u64::from(at.tail.joined), at.user.to_owned(), name, levels))
    }

    async fn power_levels(&self, at: Where<'_>) -> Result<Option<PushConditionPowerLevelsCtx>, StoreError> {
        #[derive(serde::Deserialize, Default)]
        struct Create {
            #[serde(default)]
            additional_creators: Vec<OwnedUserId>,
        }
        let event = self.reader.state_event(at.room, at.tail.snapshot, "m.room.power_levels", "").await?;
        let content: Option<RoomPowerLevelsEventContent> =
            event.and_then(|event| serde_json::from_str(event.client.content()).ok());
        let (Some(content), Some(room)) = (content, self.reader.room(at.room).await?) else {
            return Ok(None);
        };
        let Some(rules) = room.version.rules() else { return Ok(None) };
        let create = self.reader.state_event(at.room, at.tail.snapshot, "m.room.create", "").await?;
        let creators = create.map(|create| {
            let named = serde_json::from_str::<Create>(create.client.content()).unwrap_or_default();
            let sender = OwnedUserId::try_from(&*create.client.sender).ok();
            sender.into_iter().chain(named.additional_creators).collect::<Vec<_>>()
        });
        let rules = RoomPowerLevelsRules::new(&rules.authorization, creators.into_iter().flatten());
        Ok(Some(PushConditionPowerLevelsCtx::new(
            content.users,
            content.users_default,
            content.notifications,
            rules,
        )))
    }
}

/// Whether a redaction came after a position: then what was counted may be gone.
fn redacts_after(tail: &Tail, position: StreamPosition) -> bool {
    let new = tail.events.iter().rev().take_while(|placed| placed.order.anchor > position);
    new.into_iter().any(|placed| *placed.event.client.kind == *"m.room.redaction")
}

/// What the predefined rules say, from what the timeline notes; none where the event itself must be looked at.
fn predefined(note: &Note, member: Option<StateKeySn>) -> Option<Decision> {
    let mentioned = note.mentions_room || member.is_some_and(|member| note.mentions.contains(&member));
    Some(match note.kind {
        NoteKind::Notice | NoteKind::Member => Decision::SILENT,
        NoteKind::Other => return None,
        NoteKind::Tombstone => Decision::HIGHLIGHT,
        _ if mentioned => Decision::HIGHLIGHT,
        NoteKind::Message | NoteKind::Encrypted | NoteKind::Call => Decision::NOTIFY,
        NoteKind::Quiet | NoteKind::Reaction | NoteKind::ServerAcl | NoteKind::Edit => Decision::SILENT,
    })
}
