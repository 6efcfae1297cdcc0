//! The running server's parts. `FromRef` hands them out, so that a handler's signature names all it touches.

use std::{ops::Deref, path::PathBuf, sync::Arc};

use http::HeaderMap;

use crate::{
    config::Config,
    http::{LocalUser, MatrixError, Shutdown, client_address::ClientAddress, rate_limit::RateLimits},
};

/// All parts of a running server, cheap to clone.
#[derive(Clone)]
pub struct App(Arc<Parts>);

/// What a server is made of.
pub struct Parts {
    /// The configuration it was started with.
    pub config: Arc<Config>,
    /// How often who may do what.
    pub rate_limits: Arc<RateLimits>,
    /// Says when to stop.
    pub shutdown: Shutdown,
}

impl Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

macro_rules! hands_out {
    ($($field:ident: $part:ty),* $(,)?) => {$(
        impl axum::extract::FromRef<App> for $part {
            fn from_ref(app: &App) -> Self {
                app.0.$field.clone()
            }
        }
    )*};
}

hands_out! {
    config: Arc<Config>,
    rate_limits: Arc<RateLimits>,
    shutdown: Shutdown,
}

/// Why a server's parts did not come up.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file or folder cannot be used.
    #[error("{} cannot be used: {source}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

impl App {
    /// Opens the data folder and everything in it.
    pub async fn open(config: Arc<Config>, shutdown: Shutdown) -> Result<Self, OpenError> {
        let rate_limits = Arc::new(RateLimits::new(config.rates()));
        Ok(Self(Arc::new(Parts { config, rate_limits, shutdown })))
    }

    /// Brings everything to the disk.
    pub async fn close(&self) {}

    /// Whose token this is.
    pub async fn authenticate(
        &self,
        _token: &str,
        _client: ClientAddress,
        _headers: &HeaderMap,
        _also_locked: bool,
    ) -> Result<LocalUser, MatrixError> {
        Err(MatrixError::unknown_token("unknown access token"))
    }
}
