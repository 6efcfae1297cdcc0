//! What other servers may ask of this one. For now: its keys and its version.

use std::sync::Arc;

use axum::extract::State;
use hearth_dag::Keypair;
use hearth_federation::published_keys;
use http::Method;
use serde_json::json;

use crate::{
    clock,
    http::{Auth, RawJson, Route, Routes, Specimen},
};

/// What listeners for other servers answer. Those for clients do too: one port may do for both.
pub fn routes(routes: &mut Routes) {
    let keys = Route::at(Method::GET, "/_matrix/key/v2/server", Auth::None);
    routes.add(keys.also_at("/_matrix/key/v2/server/{key_id}").specimen(Specimen::path("")).to(server_keys));
    let version = Route::at(Method::GET, "/_matrix/federation/v1/version", Auth::None);
    routes.add(version.specimen(Specimen::path("")).to(version_of_this_server));
}

/// `GET /_matrix/federation/v1/version`
async fn version_of_this_server() -> RawJson {
    json!({ "server": { "name": "Hearth", "version": env!("CARGO_PKG_VERSION") } }).to_string().into()
}

/// `GET /_matrix/key/v2/server`; the key id in the old form of the path was never more than a hint.
async fn server_keys(State(key): State<Arc<Keypair>>) -> RawJson {
    published_keys(&key, clock::now_ms()).into()
}
