//! The list of a room's threads.

use axum::extract::State;
use hearth_rooms::read::Reader;
use hearth_users::Users;
use ruma::{OwnedRoomId, api::client::threads::get_threads};
use serde::Deserialize;

use super::{
    messages::page_limit,
    reading::{self, EventWriter, array, push_field},
};
use crate::http::{JsonResult, LocalUser, PathArgs, Query, RateClass, RawJson, Route, Routes, Specimen};

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    routes.add(
        Route::of::<get_threads::v1::Request>()
            .rate(RateClass::Other)
            .specimen(Specimen::path("$room").outsider(403, "M_FORBIDDEN"))
            .to(threads),
    );
}

/// Threads of a page if the client does not say.
const DEFAULT_LIMIT: u64 = 20;

#[derive(Deserialize, Default, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Include {
    #[default]
    All,
    Participated,
}

#[derive(Deserialize)]
struct ThreadsQuery {
    from: Option<String>,
    limit: Option<u64>,
    #[serde(default)]
    include: Include,
}

/// `GET /_matrix/client/v1/rooms/{roomId}/threads`
async fn threads(
    State(reader): State<Reader>,
    State(users): State<Users>,
    user: LocalUser,
    PathArgs((room_id,)): PathArgs<(OwnedRoomId,)>,
    Query(query): Query<ThreadsQuery>,
) -> JsonResult {
    let from = reading::optional_token(query.from.as_deref())?;
    let limit = page_limit(query.limit, &Default::default(), DEFAULT_LIMIT).max(1);
    let mut viewer = reading::reading_viewer(&reader, &users, &user, &room_id).await?;
    let participated = query.include == Include::Participated;
    let page = reader.threads(&mut viewer, participated, from, limit).await?;
    let writer = EventWriter::new(&user, &room_id);
    let bundles = reader.bundles(&viewer, &page.roots, writer.copy()).await?;
    let mut out = Vec::with_capacity(64 + 1024 * page.roots.len());
    out.extend_from_slice(b"{\"chunk\":");
    array(&page.roots, &mut out, |root, out| {
        let relations = bundles.get(&root.sn).map(Vec::as_slice);
        root.client.write(out, hearth_rooms::read::Copy { relations, ..writer.copy() });
    });
    if let Some(next) = page.next {
        push_field(&mut out, "next_batch", &next.to_string());
    }
    out.push(b'}');
    Ok(RawJson::from(out))
}
