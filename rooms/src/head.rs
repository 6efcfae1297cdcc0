//! The forward end of a room in memory: what the next event is decided on.
//! * It may be ahead of the store: its last commits can still be on their way.
//! * Bounded: the state that it remembers is dropped when there is too much, and read again.

use std::collections::HashMap;
use std::sync::Arc;

use hearth_dag::{Create, PowerLevels, Rejection};
use hearth_store::{Store, StoreError};
use ruma::OwnedEventId;
use ruma::events::StateEventType;

use crate::events::{Events, RoomInfo, StoredEvent};
use crate::ids::{EventSn, SnapshotId, StateKeySn};
use crate::kind::Kind;
use crate::policy::Named;
use crate::seams::random_number;
use crate::tables::{HEAD_VERSIONS, HEADS, HeadRow, MERGED_FORKS, MergedRow, Residency};

/// State events that a head remembers.
const REMEMBERED_STATE: usize = 96;
/// State keys whose numbers a head remembers.
const REMEMBERED_KEYS: usize = 256;

/// A type and a state key.
pub(crate) type StateKey = (Kind, String);

pub(crate) struct Head {
    pub(crate) room: Arc<RoomInfo>,
    pub(crate) row: HeadRow,
    /// What [`HEAD_VERSIONS`] holds; none for a room that is being made.
    pub(crate) version: Option<u64>,
    /// The upper half of the versions that this head writes: two nodes never write the same one.
    pub(crate) incarnation: u32,
    /// The ids of `row.extremities`.
    pub(crate) extremities: Vec<OwnedEventId>,
    /// What [`MERGED_FORKS`] holds.
    pub(crate) merged: Option<MergedRow>,
    pub(crate) facts: Facts,
    /// The policy server that the current state names.
    pub(crate) policy: Named,
    pub(crate) state: HashMap<StateKey, Option<Arc<StoredEvent>>>,
    pub(crate) keys: HashMap<StateKey, StateKeySn>,
}

/// What the current state says, read once.
#[derive(Clone, Default)]
pub(crate) struct Facts {
    pub(crate) create: Option<Arc<Create>>,
    pub(crate) power: Option<Arc<PowerLevels>>,
    pub(crate) has_power_event: bool,
}

impl HeadRow {
    /// That of a room without any event.
    pub fn empty() -> Self {
        HeadRow {
            residency: Residency::Outside,
            snapshot: SnapshotId::EMPTY,
            partial_state: false,
            extremities: Vec::new(),
            depth: 0,
            joined: 0,
            invited: 0,
            minute: 0,
            next_event: 1,
            next_member_key: 0,
            next_other_key: 0,
            next_record: 1,
            next_chain: 1,
            next_queued: 1,
        }
    }
}

impl Head {
    /// Of a room that nothing is known of yet.
    pub(crate) fn new(room: Arc<RoomInfo>) -> Self {
        Head {
            room,
            row: HeadRow::empty(),
            version: None,
            incarnation: random_number(),
            extremities: Vec::new(),
            merged: None,
            facts: Facts::default(),
            policy: Named::Unread,
            state: HashMap::new(),
            keys: HashMap::new(),
        }
    }

    /// As the store has it. Nothing of the room may be on its way to there.
    pub(crate) async fn load(
        store: &Store,
        events: &Events,
        room: Arc<RoomInfo>,
    ) -> Result<Option<Self>, StoreError> {
        // The version first: if the head changes in between, the commit on it is refused.
        let Some(version) = store.get(&HEAD_VERSIONS, &room.sn).await? else { return Ok(None) };
        let Some(row) = store.get(&HEADS, &room.sn).await? else { return Ok(None) };
        let row = row.value;
        let extremities = events.load_many(&room, &row.extremities).await?;
        let extremities = extremities.iter().map(|event| event.header.event_id.clone()).collect();
        let merged = store.get(&MERGED_FORKS, &room.sn).await?;
        Ok(Some(Head { row, version: Some(version), extremities, merged, ..Head::new(room) }))
    }

    /// Whether we take part: we decide, also on a state that we do not fully hold yet.
    pub(crate) fn is_resident(&self) -> bool {
        matches!(self.row.residency, Residency::Resident | Residency::Partial)
    }

    /// The version to write next.
    pub(crate) fn next_version(&self) -> u64 {
        let count = self.version.unwrap_or(0) as u32;
        u64::from(self.incarnation) << 32 | u64::from(count.wrapping_add(1))
    }

    pub(crate) fn remember_state(&mut self, key: StateKey, event: Option<Arc<StoredEvent>>) {
        if self.state.len() >= REMEMBERED_STATE {
            self.state.clear();
        }
        self.state.insert(key, event);
    }

    pub(crate) fn remember_key(&mut self, key: StateKey, number: StateKeySn) {
        if self.keys.len() >= REMEMBERED_KEYS {
            self.keys.clear();
        }
        self.keys.insert(key, number);
    }

    /// A state event was replaced or redacted: what was read out of it is to be read again.
    pub(crate) fn state_changed(&mut self, kind: &Kind) {
        match kind.as_str() {
            "m.room.create" => self.facts = Facts::default(),
            "m.room.power_levels" => self.facts.power = None,
            "m.room.policy" => self.policy = Named::Unread,
            _ => {}
        }
    }

    /// Everything that was read out of the state is to be read again.
    pub(crate) fn forget_state(&mut self) {
        self.state.clear();
        self.facts = Facts::default();
        self.policy = Named::Unread;
    }

    pub(crate) fn next_event(&mut self) -> EventSn {
        let event = EventSn(self.row.next_event);
        self.row.next_event += 1;
        event
    }
}

/// The create event and the power levels, read out of two state events.
pub(crate) fn read_facts(
    room: &RoomInfo,
    create: Option<&StoredEvent>,
    power: Option<&StoredEvent>,
) -> Result<Facts, Rejection> {
    let create = Create::of(room.rules, &create.ok_or(Rejection::NoCreateEvent)?.pdu)?;
    let levels = PowerLevels::of(room.rules, &create, power.map(|event| &event.pdu))?;
    Ok(Facts {
        create: Some(Arc::new(create)),
        power: Some(Arc::new(levels)),
        has_power_event: power.is_some(),
    })
}

pub(crate) fn kind_of(kind: &StateEventType) -> Kind {
    Kind::from(kind)
}
