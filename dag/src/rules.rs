//! Room versions as data: each is its predecessor with a few fields changed.

use ruma::{
    RoomVersionId,
    room_version_rules::{
        EventIdFormatVersion, EventsReferenceFormatVersion, RoomVersionRules, StateResolutionVersion,
    },
};

use crate::limits::MAX_SAFE_INTEGER;

/// Everything that differs between room versions.
#[derive(Debug)]
pub struct RoomRules {
    /// The version these are the rules of.
    pub version: RoomVersionId,
    /// The version's rules as ruma describes them: event formats, authorization, redaction, signatures.
    pub inner: RoomVersionRules,
    /// How forks are resolved.
    pub state_resolution: StateResolution,
    /// Whether an event that is not canonical JSON (integers within ±(2^53 − 1), no floats) is refused.
    pub strict_canonical_json: bool,
    /// What a power level may look like.
    pub power_level_format: PowerLevelFormat,
    /// Deeper events are refused; the depth of new events is capped here.
    pub max_depth: i64,
    /// Whether the sender's server chooses the event ID, which then is part of the event.
    pub opaque_event_ids: bool,
    /// Whether prev and auth events are written as `[id, {"sha256": …}]` instead of plain IDs.
    pub event_references_have_hashes: bool,
    /// Whether event IDs are in the URL-safe alphabet (they are hashes since version 3).
    pub url_safe_event_ids: bool,
    /// Whether the room ID is the create event's hash; then the create event has no `room_id` and is in nobody's
    /// auth events.
    pub room_id_is_create_event: bool,
    /// Whether the creators have unlimited power, and may be several.
    pub creators_have_infinite_power: bool,
    /// Whether a redaction names its target in `content` instead of at the top level.
    pub redacts_in_content: bool,
    /// Whether redactions are held back by an authorization rule instead of by a check when both events are there.
    pub redaction_auth_rule: bool,
    /// Whether `knock` is a membership and a join rule.
    pub knocking: bool,
    /// Whether there is the join rule `restricted`.
    pub restricted_join_rule: bool,
    /// Whether there is the join rule `knock_restricted`.
    pub knock_restricted_join_rule: bool,
}

/// How the state of several forks becomes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateResolution {
    /// Version 1: by depth and event ID's hash.
    V1,
    /// Version 2: reverse topological power ordering, then mainline ordering.
    V2,
    /// Version 2.1: as version 2, from an empty state and with the conflicted state subgraph.
    V2_1,
}

/// What a power level may look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerLevelFormat {
    /// Integers, numbers with a fraction (cut off) or integers in strings.
    Any,
    /// Integers, or integers in strings.
    IntegerOrString,
    /// Integers.
    Integer,
}

const fn rules(version: RoomVersionId, inner: RoomVersionRules) -> RoomRules {
    let strict = inner.authorization.strict_canonical_json;
    RoomRules {
        state_resolution: match &inner.state_res {
            StateResolutionVersion::V2(v2) if v2.consider_conflicted_state_subgraph => StateResolution::V2_1,
            StateResolutionVersion::V2(_) => StateResolution::V2,
            _ => StateResolution::V1,
        },
        strict_canonical_json: strict,
        power_level_format: if inner.authorization.integer_power_levels {
            PowerLevelFormat::Integer
        } else if strict {
            PowerLevelFormat::IntegerOrString
        } else {
            PowerLevelFormat::Any
        },
        max_depth: if strict { MAX_SAFE_INTEGER } else { i64::MAX },
        opaque_event_ids: matches!(inner.event_id_format, EventIdFormatVersion::V1),
        event_references_have_hashes: matches!(
            inner.events_reference_format,
            EventsReferenceFormatVersion::V1
        ),
        url_safe_event_ids: matches!(inner.event_id_format, EventIdFormatVersion::V3),
        room_id_is_create_event: inner.authorization.room_create_event_id_as_room_id,
        creators_have_infinite_power: inner.authorization.explicitly_privilege_room_creators,
        redacts_in_content: inner.redaction.content_field_redacts,
        redaction_auth_rule: inner.authorization.special_case_room_redaction,
        knocking: inner.authorization.knocking,
        restricted_join_rule: inner.authorization.restricted_join_rule,
        knock_restricted_join_rule: inner.authorization.knock_restricted_join_rule,
        version,
        inner,
    }
}

static V1: RoomRules = rules(RoomVersionId::V1, RoomVersionRules::V1);
static V2: RoomRules = rules(RoomVersionId::V2, RoomVersionRules::V2);
static V3: RoomRules = rules(RoomVersionId::V3, RoomVersionRules::V3);
static V4: RoomRules = rules(RoomVersionId::V4, RoomVersionRules::V4);
static V5: RoomRules = rules(RoomVersionId::V5, RoomVersionRules::V5);
static V6: RoomRules = rules(RoomVersionId::V6, RoomVersionRules::V6);
static V7: RoomRules = rules(RoomVersionId::V7, RoomVersionRules::V7);
static V8: RoomRules = rules(RoomVersionId::V8, RoomVersionRules::V8);
static V9: RoomRules = rules(RoomVersionId::V9, RoomVersionRules::V9);
static V10: RoomRules = rules(RoomVersionId::V10, RoomVersionRules::V10);
static V11: RoomRules = rules(RoomVersionId::V11, RoomVersionRules::V11);
static V12: RoomRules = rules(RoomVersionId::V12, RoomVersionRules::V12);

impl RoomRules {
    /// The rules of `version`, or nothing if it is none of the twelve.
    pub fn of(version: &RoomVersionId) -> Option<&'static Self> {
        Self::all().into_iter().find(|rules| rules.version == *version)
    }

    /// All versions, oldest first.
    pub fn all() -> [&'static Self; 12] {
        [&V1, &V2, &V3, &V4, &V5, &V6, &V7, &V8, &V9, &V10, &V11, &V12]
    }

    /// The version that new rooms get unless someone asks for another.
    pub fn default_version() -> RoomVersionId {
        RoomVersionId::V12
    }
}
