//! Discovery: which versions and features this server has, and where it is to be found.

use std::sync::Arc;

use axum::extract::State;
use http::Method;
use ruma::api::client::discovery::get_supported_versions;
use serde_json::json;

use crate::{
    config::Config,
    http::{Auth, JsonResult, MatrixError, RawJson, Route, Routes, Specimen},
};

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    const NOTHING: Specimen = Specimen::path("");
    routes.add(Route::of::<get_supported_versions::Request>().specimen(NOTHING).to(versions));
    let well_known = |path| Route::at(Method::GET, path, Auth::None).specimen(NOTHING);
    routes.add(well_known("/.well-known/matrix/client").to(well_known_client));
    routes.add(well_known("/.well-known/matrix/server").to(well_known_server));
    routes.add(well_known("/.well-known/matrix/support").to(well_known_support));
}

/// Versions of the specification whose every endpoint that clients look for works here. Old ones stay: clients refuse
/// servers without any that they know.
const VERSIONS: &[&str] = &[
    "r0.0.1", "r0.1.0", "r0.2.0", "r0.3.0", "r0.4.0", "r0.5.0", "r0.6.0", "r0.6.1", "v1.1", "v1.2", "v1.3",
    "v1.4", "v1.5", "v1.6", "v1.7", "v1.8", "v1.9", "v1.10", "v1.11", "v1.12",
];

/// Features beyond the claimed versions. A value is true or false; clients also look at false ones.
const FEATURES: &[(&str, bool)] = &[
    ("org.matrix.msc2285.stable", true),
    ("org.matrix.msc3030.stable", true),
    ("org.matrix.msc3440.stable", true),
    ("org.matrix.msc3771", true),
    ("org.matrix.msc3773", true),
    ("org.matrix.msc3827.stable", true),
    ("org.matrix.msc3856.stable", true),
    ("org.matrix.msc3916.stable", true),
    ("org.matrix.msc3952_intentional_mentions", true),
    ("org.matrix.msc3981", true),
    ("org.matrix.msc4222", true),
    ("uk.half-shot.msc2666.query_mutual_rooms", true),
    ("uk.half-shot.msc2666.query_mutual_rooms.stable", true),
    ("uk.tcpip.msc4133", true),
    ("uk.tcpip.msc4133.stable", true),
    ("org.matrix.simplified_msc3575", false),
    ("org.matrix.msc4140", false),
    ("org.matrix.msc4354", false),
    ("org.matrix.msc4306", false),
    ("org.matrix.msc4108", false),
];

/// The answer to `/versions`, which is the same for all.
pub fn versions_json() -> Vec<u8> {
    let features: serde_json::Map<_, _> =
        FEATURES.iter().map(|(name, on)| ((*name).to_owned(), (*on).into())).collect();
    json!({ "versions": VERSIONS, "unstable_features": features }).to_string().into_bytes()
}

/// `GET /_matrix/client/versions`
async fn versions() -> RawJson {
    versions_json().into()
}

/// `GET /.well-known/matrix/client`
async fn well_known_client(State(config): State<Arc<Config>>) -> JsonResult {
    let url = config.public_base_url.as_deref().ok_or_else(no_well_known)?;
    RawJson::of(&json!({ "m.homeserver": { "base_url": url } }))
}

/// `GET /.well-known/matrix/server`
async fn well_known_server(State(config): State<Arc<Config>>) -> JsonResult {
    let server = config.well_known_server().ok_or_else(no_well_known)?;
    RawJson::of(&json!({ "m.server": server }))
}

/// `GET /.well-known/matrix/support`
async fn well_known_support(State(config): State<Arc<Config>>) -> JsonResult {
    let support = &config.support;
    if support.contacts.is_empty() && support.page.is_none() {
        return Err(no_well_known());
    }
    let mut answer = json!({ "contacts": support.contacts });
    if let Some(page) = &support.page {
        answer["support_page"] = page.as_str().into();
    }
    RawJson::of(&answer)
}

fn no_well_known() -> MatrixError {
    MatrixError::not_found("this server does not say where it is; see public_base_url in its configuration")
}
