//! What other servers may ask of this one, a file per chapter of the specification.
//! * A handler that names `RemoteServer` is only reached by requests that a server signed for us.
//! * Questions about a room go through `gate`: the room's ACL is asked before anything is told or taken.

mod errors;
mod events;
mod gate;
mod invites;
mod keys;
mod listing;
mod media;
mod membership;
mod people;
mod queries;
mod third_party;
mod transactions;

use http::Method;
use serde_json::json;

use crate::{
    app::App,
    http::{Auth, RawJson, Route, Routes, Specimen},
};

/// Goes on in the background with what a stop of the server interrupted.
pub fn resume(app: App) {
    app.sender.start();
    tokio::spawn(async move {
        if let Err(error) = app.inbound.resume().await {
            tracing::error!(%error, "the events that wait for others could not be read");
        }
    });
}

/// What listeners for other servers answer. Those for clients do too: one port may do for both.
pub fn routes(routes: &mut Routes) {
    keys::routes(routes);
    queries::routes(routes);
    events::routes(routes);
    membership::routes(routes);
    invites::routes(routes);
    listing::routes(routes);
    people::routes(routes);
    third_party::routes(routes);
    transactions::routes(routes);
    media::routes(routes);
    let version = Route::at(Method::GET, "/_matrix/federation/v1/version", Auth::None);
    routes.add(version.specimen(Specimen::path("")).to(version_of_this_server));
}

/// `GET /_matrix/federation/v1/version`
async fn version_of_this_server() -> RawJson {
    json!({ "server": { "name": "Hearth", "version": env!("CARGO_PKG_VERSION") } }).to_string().into()
}
