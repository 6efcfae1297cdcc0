//! The client-server API: a file is a chapter of the specification.
//! Each chapter lists its endpoints in `routes`; this file only gathers them.

pub mod discovery;

use crate::http::Routes;

/// All endpoints that clients call.
pub fn routes() -> Routes {
    let mut routes = Routes::default();
    discovery::routes(&mut routes);
    routes
}
