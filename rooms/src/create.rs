//! Making a room: all its first events in one commit, in the order of the specification.
//! * create, the creator's join, power levels, canonical alias, preset, initial state, name, topic, invites.
//! * Only what does not fit into one commit (some sixty events and more) follows in further ones.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use async_trait::async_trait;
use hearth_dag::{Draft, RoomRules};
use hearth_store::{Commit, CommitError, StoreError, StreamPosition};
use ruma::events::TimelineEventType;
use ruma::{OwnedRoomAliasId, OwnedRoomId, OwnedUserId, RoomId, RoomVersionId};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value, json};
use std::sync::Arc;

use crate::errors::WriteError;
use crate::events::RoomInfo;
use crate::head::Head;
use crate::lane::Act;
use crate::membership::Profile;
use crate::rooms::Rooms;
use crate::tables::{
    ALIASES, AliasRow, HEADS, PUBLIC_ROOMS, PublicRoomRow, ROOM_ALIASES, ROOM_NUMBERS, ROOMS, Residency,
    RoomRow,
};
use crate::turn::Turn;

/// Events of a new room beside those that every room has.
const INITIAL_STATE_MAX: usize = 200;
/// Users that may be invited while a room is made.
const INVITES_MAX: usize = 100;
/// More rows and bytes than one state event has.
const ROWS_OF_AN_EVENT: usize = 40;
const BYTES_OF_AN_EVENT: usize = 100_000;
/// Characters of a random room id.
const ROOM_ID_LENGTH: usize = 18;
/// How often a room is made again because its numbers or its alias were taken meanwhile.
const TRIES: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    PrivateChat,
    TrustedPrivateChat,
    PublicChat,
}

/// A state event that a room begins with.
#[derive(Clone, Debug)]
pub struct InitialState {
    pub kind: String,
    pub state_key: String,
    pub content: Box<RawValue>,
}

#[derive(Clone, Debug)]
pub struct CreateRoom {
    pub creator: OwnedUserId,
    /// Whose server's name the room id has, where it has one.
    pub profile: Profile,
    pub version: RoomVersionId,
    pub preset: Preset,
    /// Listed in the public directory.
    pub listed: bool,
    pub creation_content: Map<String, Value>,
    pub power_level_content_override: Map<String, Value>,
    pub initial_state: Vec<InitialState>,
    pub alias: Option<OwnedRoomAliasId>,
    pub name: Option<String>,
    pub topic: Option<String>,
    pub is_direct: bool,
    /// Whom to invite, with their profile as far as it is known.
    pub invite: Vec<(OwnedUserId, Profile)>,
}

impl CreateRoom {
    /// A private room of the default version without anything special.
    pub fn new(creator: OwnedUserId) -> Self {
        CreateRoom {
            creator,
            profile: Profile::default(),
            version: RoomRules::default_version(),
            preset: Preset::PrivateChat,
            listed: false,
            creation_content: Map::new(),
            power_level_content_override: Map::new(),
            initial_state: Vec::new(),
            alias: None,
            name: None,
            topic: None,
            is_direct: false,
            invite: Vec::new(),
        }
    }
}

#[derive(Debug)]
pub struct CreatedRoom {
    pub room_id: OwnedRoomId,
    pub position: StreamPosition,
    /// Users of other servers, whom their servers have yet to be asked to sign for.
    pub remote_invites: Vec<OwnedUserId>,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum CreateError {
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("room version {0} is not known")]
    UnsupportedVersion(RoomVersionId),
    #[error("the alias {0} is taken")]
    AliasTaken(OwnedRoomAliasId),
    #[error("the alias {0} is not one of this server")]
    AliasElsewhere(OwnedRoomAliasId),
    #[error("{0}")]
    BadRequest(String),
    #[error("the initial state cannot stand: {0}")]
    BadState(WriteError),
}

impl From<StoreError> for CreateError {
    fn from(error: StoreError) -> Self {
        CreateError::Write(error.into())
    }
}

impl Rooms {
    /// Makes a room. `also` is written in the same commit.
    pub async fn create(&self, create: &CreateRoom, also: Commit) -> Result<CreatedRoom, CreateError> {
        let rules = RoomRules::of(&create.version);
        let rules = rules.ok_or_else(|| CreateError::UnsupportedVersion(create.version.clone()))?;
        create.check(self)?;
        for _ in 0..TRIES {
            let mut turn = self.new_room(create, rules).await?;
            let (mut drafts, remote_invites) = create.fill(&mut turn).await?;
            append_what_fits(&mut turn, &mut drafts).await.map_err(CreateError::BadState)?;
            let room = turn.room();
            match self.found(turn, also.clone()).await {
                Ok(mut committed) => {
                    while !drafts.is_empty() {
                        let more = AppendMore(drafts);
                        let done = self.decide(&room, &more, &Commit::new()).await?;
                        drafts = done.output;
                        committed = done.committed.unwrap_or(committed);
                    }
                    let room_id = room.room_id.clone();
                    return Ok(CreatedRoom { room_id, position: committed.last(), remote_invites });
                }
                Err(CommitError::Conflict) => {}
                Err(CommitError::Store(error)) => return Err(error.into()),
            }
        }
        Err(WriteError::Busy.into())
    }

    /// A turn on a room that has its create event and nothing else.
    async fn new_room(&self, create: &CreateRoom, rules: &'static RoomRules) -> Result<Turn, CreateError> {
        let sn = self.new_room_number().await?;
        let draft = create.create_event(rules)?;
        let server = create.creator.server_name();
        let text = format!("!{}:{server}", self.chance().text(ROOM_ID_LENGTH));
        let room_id = RoomId::parse(text).map_err(|error| CreateError::BadRequest(error.to_string()))?;
        let info = |room_id| Arc::new(RoomInfo { sn, room_id, version: create.version.clone(), rules });
        let mut turn = Turn::new(self.clone(), Head::new(info(room_id)));
        if rules.room_id_is_create_event {
            // The room id is known with the event: it is built once to learn it.
            let signer = self.servers().signer_for(server).ok_or(WriteError::NotResident)?;
            let place = hearth_dag::Place {
                room_id: None,
                prev_events: &[],
                auth_events: &[],
                depth: 1,
                origin_server_ts: ruma::MilliSecondsSinceUnixEpoch(ruma::UInt::new_saturating(turn.now_ms)),
                hashes: None,
            };
            let pdu = draft.build(rules, &place, signer).map_err(WriteError::from)?;
            turn.head.room = info(pdu.room_id().to_owned());
        }
        let room = turn.room();
        let head = turn.change_head();
        head.row.residency = Residency::Resident;
        turn.commit.expect_absent(&HEADS, &sn);
        let id = room.room_id.to_string();
        turn.commit.expect_absent(&ROOM_NUMBERS, &id);
        turn.put(&ROOM_NUMBERS, &id, sn);
        turn.put(&ROOMS, &sn, RoomRow { room_id: room.room_id.clone(), version: create.version.clone() });
        turn.append(draft.into()).await.map_err(CreateError::BadState)?;
        Ok(turn)
    }
}

impl CreateRoom {
    fn check(&self, rooms: &Rooms) -> Result<(), CreateError> {
        if self.initial_state.len() > INITIAL_STATE_MAX {
            return Err(CreateError::BadRequest(format!(
                "more than {INITIAL_STATE_MAX} initial state events"
            )));
        }
        if self.invite.len() > INVITES_MAX {
            return Err(CreateError::BadRequest(format!("more than {INVITES_MAX} invites")));
        }
        if let Some(alias) = &self.alias
            && !rooms.servers().is_local(alias.server_name())
        {
            return Err(CreateError::AliasElsewhere(alias.clone()));
        }
        Ok(())
    }

    /// Lets the creator in. Gives all further events, and users whose servers have to be asked.
    async fn fill(&self, turn: &mut Turn) -> Result<(VecDeque<Draft>, Vec<OwnedUserId>), CreateError> {
        let rules = turn.head.room.rules;
        let member = self.profile.member_content("join", None);
        let join = self.draft("m.room.member", self.creator.as_str(), member)?;
        turn.append(join.into()).await.map_err(CreateError::BadState)?;
        let mut state: VecDeque<Draft> = VecDeque::new();
        let has = |kind: &str| {
            self.initial_state.iter().any(|event| event.kind == kind && event.state_key.is_empty())
        };
        if !has("m.room.power_levels") || !self.power_level_content_override.is_empty() {
            state.push_back(self.draft("m.room.power_levels", "", self.power_levels(rules)?)?);
        }
        if let Some(alias) = &self.alias {
            state.push_back(self.draft("m.room.canonical_alias", "", json!({ "alias": alias }))?);
        }
        for (kind, content) in self.preset.events() {
            if !has(kind) {
                state.push_back(self.draft(kind, "", content)?);
            }
        }
        for event in &self.initial_state {
            if event.kind == "m.room.create" || event.kind == "m.room.member" {
                return Err(CreateError::BadRequest(format!("{} cannot be initial state", event.kind)));
            }
            state.push_back(Draft {
                sender: self.creator.clone(),
                kind: TimelineEventType::from(event.kind.as_str()),
                state_key: Some(event.state_key.clone()),
                content: event.content.clone(),
                redacts: None,
            });
        }
        if let Some(name) = &self.name {
            state.push_back(self.draft("m.room.name", "", json!({ "name": name }))?);
        }
        if let Some(topic) = &self.topic {
            let content = json!({
                "topic": topic,
                "m.topic": { "m.text": [{ "body": topic, "mimetype": "text/plain" }] },
            });
            state.push_back(self.draft("m.room.topic", "", content)?);
        }
        if let Some(alias) = &self.alias {
            self.take_alias(turn, alias).await?;
        }
        if self.listed {
            let row = PublicRoomRow { published_by: Some(self.creator.clone()) };
            let room = turn.head.room.sn;
            turn.put(&PUBLIC_ROOMS, &room, row);
        }
        let remote = self.invites(turn, &mut state)?;
        Ok((state, remote))
    }

    fn invites(&self, turn: &Turn, state: &mut VecDeque<Draft>) -> Result<Vec<OwnedUserId>, CreateError> {
        let mut remote = Vec::new();
        let mut seen = BTreeSet::new();
        for (user, profile) in &self.invite {
            if *user == self.creator {
                return Err(CreateError::BadRequest("the creator cannot be invited".to_owned()));
            }
            if !turn.rooms.is_local(user) {
                remote.push(user.clone());
                continue;
            }
            if !seen.insert(user) {
                continue;
            }
            let mut content = profile.member_content("invite", None);
            if self.is_direct {
                content["is_direct"] = Value::Bool(true);
            }
            state.push_back(self.draft("m.room.member", user.as_str(), content)?);
        }
        Ok(remote)
    }

    async fn take_alias(&self, turn: &mut Turn, alias: &OwnedRoomAliasId) -> Result<(), CreateError> {
        let key = alias.to_string();
        if turn.get(&ALIASES, &key).await?.is_some() {
            return Err(CreateError::AliasTaken(alias.clone()));
        }
        let room = turn.head.room.sn;
        turn.commit.expect_absent(&ALIASES, &key);
        turn.put(&ALIASES, &key, AliasRow { room, creator: self.creator.clone() });
        turn.put(&ROOM_ALIASES, &(room, key), ());
        Ok(())
    }

    fn create_event(&self, rules: &RoomRules) -> Result<Draft, CreateError> {
        let mut content = self.creation_content.clone();
        content.insert("room_version".to_owned(), json!(self.version));
        if rules.inner.authorization.use_room_create_sender {
            content.remove("creator");
        } else {
            content.insert("creator".to_owned(), json!(self.creator));
        }
        if rules.inner.authorization.additional_room_creators && self.preset == Preset::TrustedPrivateChat {
            // Whoever is trusted with everything is a creator, as no level is as high as theirs.
            let named = content.get("additional_creators").and_then(Value::as_array).cloned();
            let mut creators = named.unwrap_or_default();
            for (user, _) in &self.invite {
                let user = json!(user);
                if !creators.contains(&user) {
                    creators.push(user);
                }
            }
            if !creators.is_empty() {
                content.insert("additional_creators".to_owned(), Value::Array(creators));
            }
        }
        if let Some(named) = content.get("additional_creators")
            && rules.inner.authorization.additional_room_creators
            && !is_list_of_users(named)
        {
            return Err(CreateError::BadRequest("additional_creators is not a list of user ids".to_owned()));
        }
        self.draft("m.room.create", "", Value::Object(content))
    }

    fn power_levels(&self, rules: &RoomRules) -> Result<Value, CreateError> {
        let mut users = BTreeMap::new();
        if !rules.creators_have_infinite_power {
            users.insert(self.creator.clone(), 100);
            if self.preset == Preset::TrustedPrivateChat {
                users.extend(self.invite.iter().map(|(user, _)| (user.clone(), 100)));
            }
        }
        // With creators above all levels, replacing the room is theirs alone unless they raise someone.
        let tombstone = if rules.creators_have_infinite_power { 150 } else { 100 };
        let mut content = json!({
            "ban": 50,
            "events": {
                "m.room.avatar": 50,
                "m.room.canonical_alias": 50,
                "m.room.encryption": 100,
                "m.room.history_visibility": 100,
                "m.room.name": 50,
                "m.room.power_levels": 100,
                "m.room.server_acl": 100,
                "m.room.tombstone": tombstone,
            },
            "events_default": 0,
            "invite": if self.preset == Preset::PublicChat { 50 } else { 0 },
            "kick": 50,
            "notifications": { "room": 50 },
            "redact": 50,
            "state_default": 50,
            "users": users,
            "users_default": 0,
        });
        for (key, value) in &self.power_level_content_override {
            content[key.as_str()] = value.clone();
        }
        Ok(content)
    }

    fn draft(&self, kind: &str, state_key: &str, content: Value) -> Result<Draft, CreateError> {
        let content = to_raw_value(&content).map_err(|error| CreateError::BadRequest(error.to_string()))?;
        Ok(Draft {
            sender: self.creator.clone(),
            kind: TimelineEventType::from(kind),
            state_key: Some(state_key.to_owned()),
            content,
            redacts: None,
        })
    }
}

/// Events that did not fit into the commit that made the room.
struct AppendMore(VecDeque<Draft>);

#[async_trait]
impl Act for AppendMore {
    type Output = VecDeque<Draft>;
    type Error = WriteError;

    async fn decide(&self, turn: &mut Turn) -> Result<VecDeque<Draft>, WriteError> {
        let mut drafts = self.0.clone();
        append_what_fits(turn, &mut drafts).await?;
        Ok(drafts)
    }
}

async fn append_what_fits(turn: &mut Turn, drafts: &mut VecDeque<Draft>) -> Result<(), WriteError> {
    // The first one always fits into an empty commit.
    while turn.commit.has_room_for(ROWS_OF_AN_EVENT, BYTES_OF_AN_EVENT) {
        let Some(draft) = drafts.pop_front() else { break };
        turn.append(draft.into()).await?;
    }
    Ok(())
}

impl Preset {
    /// Where guests are not welcome nothing says so: that is what the absence of the event means, and what other servers'
    /// rooms look like.
    fn events(self) -> Vec<(&'static str, Value)> {
        let (join_rule, guests) = match self {
            Preset::PrivateChat | Preset::TrustedPrivateChat => ("invite", Some("can_join")),
            Preset::PublicChat => ("public", None),
        };
        let guests = guests.map(|guests| ("m.room.guest_access", json!({ "guest_access": guests })));
        [
            ("m.room.join_rules", json!({ "join_rule": join_rule })),
            ("m.room.history_visibility", json!({ "history_visibility": "shared" })),
        ]
        .into_iter()
        .chain(guests)
        .collect()
    }
}

fn is_list_of_users(value: &Value) -> bool {
    let is_user = |value: &Value| value.as_str().is_some_and(|user| ruma::UserId::parse(user).is_ok());
    value.as_array().is_some_and(|users| users.iter().all(is_user))
}
