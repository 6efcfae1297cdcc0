//! Searching for people, and the rooms shared with somebody.
//! * Found are those who share a room with the searcher and those who are in a public room; the operator may let
//!   everybody find all users.
//! * A search looks at so many people and so many memberships; what it did not look at is told by `limited`.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use axum::extract::State;
use hearth_rooms::{Membership, RoomSn, read::Reader};
use hearth_store::StoreError;
use hearth_users::{CANDIDATES_MAX, SEARCH_LIMIT_MAX, Users};
use ruma::{
    OwnedMxcUri, UserId,
    api::client::{membership::get_mutual_rooms, user_directory::search_users},
};
use serde_json::{Map, Value as Json, json};

use super::sharing::{joined_rooms, shared_rooms};
use crate::{
    config::Config,
    http::{
        ApiResult, JsonResult, LocalUser, MatrixError, RateClass, RawJson, Route, Routes, Ruma, Specimen,
    },
    summaries::Summaries,
};

/// Memberships looked at for one search.
const MEMBERSHIPS_MAX: usize = 20_000;
/// Shared rooms told in one answer.
const MUTUAL_MAX: usize = 100;

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    routes.add(
        Route::of::<search_users::v3::Request>()
            .rate(RateClass::Other)
            .specimen(Specimen::path("").body(r#"{"search_term":"ann"}"#, r#"{"search_term":1}"#))
            .to(search),
    );
    routes.add(
        Route::of::<get_mutual_rooms::v1::Request>()
            .also_at("/_matrix/client/unstable/uk.half-shot.msc2666/user/mutual_rooms")
            .rate(RateClass::Other)
            .specimen(Specimen::path("").query("user_id=$other"))
            .to(mutual_rooms),
    );
}

/// `POST /_matrix/client/v3/user_directory/search`
async fn search(
    State(users): State<Users>,
    State(reader): State<Reader>,
    State(summaries): State<Summaries>,
    State(config): State<Arc<Config>>,
    user: LocalUser,
    Ruma(request): Ruma<search_users::v3::Request>,
) -> ApiResult<search_users::v3::Response> {
    let limit = usize::try_from(u64::from(request.limit)).unwrap_or(usize::MAX).clamp(1, SEARCH_LIMIT_MAX);
    let all = config.user_directory.search_all_users;
    let candidates = if all { limit } else { CANDIDATES_MAX };
    let found = users.search_people(&request.search_term, &[], candidates).await?;
    let mut sight = Sight::of(&reader, &summaries, &user.user_id).await?;
    let mut limited = found.limited;
    let mut people = Vec::new();
    for person in found.people {
        let seen = match all {
            true => true,
            false => sight.sees(&person.user_id).await?,
        };
        if sight.is_tired() || (seen && people.len() == limit) {
            limited = true;
            break;
        }
        if seen {
            let mut shown = search_users::v3::User::new(person.user_id);
            shown.display_name = person.display_name;
            shown.avatar_url = person.avatar_url.map(OwnedMxcUri::from);
            people.push(shown);
        }
    }
    Ok(Ruma(search_users::v3::Response::new(people, limited)))
}

/// Whom somebody sees: looked up person by person, each room once.
struct Sight<'a> {
    reader: &'a Reader,
    summaries: &'a Summaries,
    searcher: &'a UserId,
    mine: HashSet<RoomSn>,
    public: HashMap<RoomSn, bool>,
    looked_at: usize,
}

impl<'a> Sight<'a> {
    async fn of(
        reader: &'a Reader,
        summaries: &'a Summaries,
        searcher: &'a UserId,
    ) -> Result<Self, StoreError> {
        let mine = joined_rooms(reader, searcher).await?.into_iter().collect();
        Ok(Self { reader, summaries, searcher, mine, public: HashMap::new(), looked_at: 0 })
    }

    /// Whether so much was looked at that the search had better end.
    fn is_tired(&self) -> bool {
        self.looked_at > MEMBERSHIPS_MAX
    }

    async fn sees(&mut self, other: &UserId) -> Result<bool, StoreError> {
        let theirs = self.reader.memberships_of(other).await?;
        self.looked_at += theirs.len();
        let joined = theirs.iter().filter(|(_, row)| row.value.membership == Membership::Join);
        let joined: Vec<RoomSn> = joined.map(|(room, _)| *room).collect();
        // Nobody shares a room with themselves.
        if other != self.searcher && joined.iter().any(|room| self.mine.contains(room)) {
            return Ok(true);
        }
        for room in joined {
            if self.is_public(room).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether anybody may join the room, or read it without.
    async fn is_public(&mut self, room: RoomSn) -> Result<bool, StoreError> {
        if let Some(public) = self.public.get(&room) {
            return Ok(*public);
        }
        self.looked_at += 1;
        let summary = self.summaries.of(room).await?;
        let public = summary.is_some_and(|room| room.join_rule == "public" || room.world_readable);
        self.public.insert(room, public);
        Ok(public)
    }
}

/// `GET /_matrix/client/v1/mutual_rooms`
async fn mutual_rooms(
    State(reader): State<Reader>,
    user: LocalUser,
    Ruma(request): Ruma<get_mutual_rooms::v1::Request>,
) -> JsonResult {
    let from = match request.from.as_deref() {
        None => 0,
        Some(from) => from.parse().map_err(|_| MatrixError::invalid_param("from is not of this endpoint"))?,
    };
    let shared = shared_rooms(&reader, &user.user_id, &request.user_id).await?;
    let mut joined = Vec::new();
    for room in shared.iter().skip(from).take(MUTUAL_MAX) {
        joined.extend(reader.room(*room).await?.map(|row| row.room_id.clone()));
    }
    let mut answer =
        Map::from_iter([("joined".to_owned(), json!(joined)), ("count".to_owned(), json!(shared.len()))]);
    if shared.len() > from.saturating_add(MUTUAL_MAX) {
        answer.insert("next_batch".to_owned(), json!((from + MUTUAL_MAX).to_string()));
    }
    RawJson::of(&Json::Object(answer))
}
