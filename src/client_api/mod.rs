//! The client-server API: a file is a chapter of the specification.
//! Each chapter lists its endpoints in `routes`; this file only gathers them.

pub mod account;
pub mod context;
pub mod devices;
pub mod discovery;
pub mod login;
pub mod media;
pub mod messages;
pub mod reading;
pub mod registration;
pub mod relations;
pub mod rooms;
pub mod state;
pub mod threads;
pub mod uia;
mod user_errors;
mod writing;

use crate::http::Routes;

/// All endpoints that clients call.
pub fn routes() -> Routes {
    let mut routes = Routes::default();
    discovery::routes(&mut routes);
    login::routes(&mut routes);
    registration::routes(&mut routes);
    account::routes(&mut routes);
    devices::routes(&mut routes);
    media::routes(&mut routes);
    rooms::routes(&mut routes);
    state::routes(&mut routes);
    messages::routes(&mut routes);
    context::routes(&mut routes);
    relations::routes(&mut routes);
    threads::routes(&mut routes);
    routes
}
