//! The client-server API: a file is a chapter of the specification.
//! Each chapter lists its endpoints in `routes`; this file only gathers them.

pub mod account;
pub mod account_data;
pub mod capabilities;
pub mod context;
pub mod create_room;
pub mod devices;
pub mod directory;
pub mod discovery;
pub mod filter;
pub mod legacy_sync;
pub mod login;
pub mod login_page;
pub mod media;
pub mod membership;
pub mod messages;
pub mod openid;
mod pages;
pub mod presence;
pub mod profile;
pub mod public_rooms;
pub mod push_rules;
pub mod reading;
pub mod receipts;
pub mod registration;
pub mod relations;
mod remote;
pub mod rooms;
pub mod sharing;
pub mod state;
pub mod sync;
pub mod tags;
pub mod third_party_ids;
pub mod threads;
pub mod typing;
pub mod uia;
pub mod uia_pages;
pub mod user_directory;
mod user_errors;
mod writing;

use crate::{app::App, http::Routes};

/// Goes on in the background with what a stop of the server interrupted.
pub fn resume(app: App) {
    tokio::spawn(async move {
        if let Err(error) = account::resume_deactivations(&app).await {
            tracing::error!(%error, "interrupted deactivations could not be read");
        }
    });
}

/// All endpoints that clients call.
pub fn routes() -> Routes {
    let mut routes = Routes::default();
    discovery::routes(&mut routes);
    capabilities::routes(&mut routes);
    create_room::routes(&mut routes);
    membership::routes(&mut routes);
    directory::routes(&mut routes);
    public_rooms::routes(&mut routes);
    login::routes(&mut routes);
    login_page::routes(&mut routes);
    registration::routes(&mut routes);
    account::routes(&mut routes);
    third_party_ids::routes(&mut routes);
    uia_pages::routes(&mut routes);
    devices::routes(&mut routes);
    media::routes(&mut routes);
    rooms::routes(&mut routes);
    state::routes(&mut routes);
    messages::routes(&mut routes);
    context::routes(&mut routes);
    relations::routes(&mut routes);
    threads::routes(&mut routes);
    sync::routes(&mut routes);
    legacy_sync::routes(&mut routes);
    account_data::routes(&mut routes);
    filter::routes(&mut routes);
    openid::routes(&mut routes);
    presence::routes(&mut routes);
    profile::routes(&mut routes);
    push_rules::routes(&mut routes);
    receipts::routes(&mut routes);
    tags::routes(&mut routes);
    typing::routes(&mut routes);
    user_directory::routes(&mut routes);
    routes
}
