//! What other servers may ask of this one. For now: its keys and its version.

use http::Method;
use serde_json::json;

use crate::http::{Auth, RawJson, Route, Routes, Specimen};

/// The endpoints of the federation listener. The client listener serves them too: one port may do for both.
pub fn routes(routes: &mut Routes) {
    let version = Route::at(Method::GET, "/_matrix/federation/v1/version", Auth::None);
    routes.add(version.specimen(Specimen::path("")).to(version_of_this_server));
}

/// `GET /_matrix/federation/v1/version`
async fn version_of_this_server() -> RawJson {
    json!({ "server": { "name": "Hearth", "version": env!("CARGO_PKG_VERSION") } }).to_string().into()
}
