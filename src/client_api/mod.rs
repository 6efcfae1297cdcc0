//! The client-server API: a file is a chapter of the specification.
//! Each chapter lists its endpoints in `routes`; this file only gathers them.

pub mod account;
pub mod devices;
pub mod discovery;
pub mod login;
pub mod media;
pub mod registration;
pub mod uia;
mod user_errors;

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
    routes
}
