//! What the server lets an account do.

use std::sync::Arc;

use axum::extract::State;
use hearth_dag::RoomRules;
use ruma::api::client::discovery::get_capabilities;
use serde_json::{Map, json};

use crate::{
    config::Config,
    http::{JsonResult, LocalUser, RawJson, Route, Routes, Specimen},
};

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    routes.add(Route::of::<get_capabilities::v3::Request>().specimen(Specimen::path("")).to(capabilities));
}

/// `GET /_matrix/client/v3/capabilities`
async fn capabilities(State(config): State<Arc<Config>>, _: LocalUser) -> JsonResult {
    let available: Map<_, _> =
        RoomRules::all().iter().map(|rules| (rules.version.to_string(), "stable".into())).collect();
    RawJson::of(&json!({
        "capabilities": {
            "m.room_versions": { "default": config.default_room_version, "available": available },
            "m.change_password": { "enabled": true },
            "m.set_displayname": { "enabled": true },
            "m.set_avatar_url": { "enabled": true },
            "m.3pid_changes": { "enabled": false },
            "m.get_login_token": { "enabled": true },
            "m.profile_fields": { "enabled": true },
            "m.forget_forced_upon_leave": { "enabled": false },
            "m.account_moderation": { "suspend": false, "lock": false },
        }
    }))
}
