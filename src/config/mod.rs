//! What an operator can decide. Every option has a default, so that a server runs without any file.
//! * `config.example.toml` holds every option with its default and a sentence; a test compares it with this file.
//! * A file is TOML; `HEARTH_` variables override it (`HEARTH_LIMITS__UPLOAD_SIZE=20MiB`).
//! * An empty string or list means "not set".

mod load;
mod values;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use hearth_federation::{OldKeyError, OldVerifyKey};
use ipnet::IpNet;
use ruma::{OwnedServerName, RoomVersionId, server_name};
use serde::{Deserialize, Serialize};

use self::values::empty_is_none;
pub use self::{
    load::ConfigError,
    values::{ByteSize, Period},
};
use crate::http::{
    RateClass,
    rate_limit::{Rate, Rates},
};

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// The domain in user ids. Fixed for the life of the data.
    pub server_name: OwnedServerName,
    /// The folder of the store, the signing key and uploaded files.
    pub data_dir: PathBuf,
    /// Where clients connect, without TLS.
    pub bind: Vec<SocketAddr>,
    /// The address that clients are told, for the well-known files.
    #[serde(with = "empty_is_none")]
    pub public_base_url: Option<String>,
    /// Whose `X-Forwarded-For` counts.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether access tokens in the query string are accepted, as old clients and bridges send them.
    pub query_access_tokens: bool,
    /// Whether users see who is online.
    pub presence: bool,
    /// The version of new rooms.
    pub default_room_version: RoomVersionId,
    /// The file of the server's signing key; `signing.key` in the data folder if not set.
    #[serde(with = "empty_is_none")]
    pub signing_key: Option<PathBuf>,
    /// PEM files of certificate authorities to trust beside the usual ones.
    pub extra_root_certificates: Vec<PathBuf>,
    /// Whether requests made for users or peers may go to private addresses.
    pub allow_private_addresses: bool,
    /// TLS for clients, without a proxy.
    pub tls: Tls,
    /// How other servers reach this one.
    pub federation: Federation,
    /// Whom to ask for help, for the well-known file.
    pub support: Support,
    /// Who may make an account.
    pub registration: Registration,
    /// How long sessions last.
    pub sessions: Sessions,
    /// The list of public rooms.
    pub directory: Directory,
    /// Who finds whom.
    pub user_directory: UserDirectory,
    /// How large things may be.
    pub limits: Limits,
    /// How often things may be asked.
    pub rate_limits: RateLimits,
    /// The cost of checking a password.
    pub password: Password,
    /// The embedded store.
    pub storage: Storage,
    /// What is logged.
    pub log: Log,
}

/// A listener with TLS.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tls {
    /// Where clients connect with TLS.
    pub bind: Vec<SocketAddr>,
    /// The certificate chain, PEM.
    #[serde(with = "empty_is_none")]
    pub certificate: Option<PathBuf>,
    /// Its private key, PEM.
    #[serde(with = "empty_is_none")]
    pub key: Option<PathBuf>,
}

/// Options of federation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Federation {
    /// Where other servers connect.
    pub bind: Vec<SocketAddr>,
    /// The certificate chain of these listeners, PEM; without one they speak plain HTTP, for a proxy.
    #[serde(with = "empty_is_none")]
    pub certificate: Option<PathBuf>,
    /// Its private key, PEM.
    #[serde(with = "empty_is_none")]
    pub key: Option<PathBuf>,
    /// The host and port told in `/.well-known/matrix/server`; from `public_base_url` if not set.
    #[serde(with = "empty_is_none")]
    pub well_known_server: Option<String>,
    /// Whether this server talks to others at all.
    pub enabled: bool,
    /// Patterns of the servers to talk to; none: all.
    pub allowed_servers: Vec<String>,
    /// Patterns of the servers not to talk to.
    pub denied_servers: Vec<String>,
    /// Who is asked for the keys of servers that do not answer.
    pub trusted_key_servers: Vec<OwnedServerName>,
    /// Keys that this server signed with before.
    pub old_signing_keys: Vec<OldSigningKey>,
    /// How long to wait after a peer's first failure; doubled after each further one.
    pub retry_first: Period,
    /// How long to wait at most before a peer is tried again.
    pub retry_longest: Period,
}

/// A key that this server signed with before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OldSigningKey {
    /// Its ID, such as `ed25519:a_AbCd`.
    pub key_id: String,
    /// The public key in base64.
    pub public_key: String,
    /// When it was used last, in milliseconds since 1970.
    pub expired_ts: u64,
}

impl OldSigningKey {
    /// The key, checked.
    pub fn checked(&self) -> Result<OldVerifyKey, OldKeyError> {
        OldVerifyKey::new(&self.key_id, &self.public_key, self.expired_ts)
    }
}

/// Contacts of the server.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Support {
    /// People to turn to.
    pub contacts: Vec<Contact>,
    /// A page with help.
    #[serde(with = "empty_is_none")]
    pub page: Option<String>,
}

/// One of the people to turn to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contact {
    /// `m.role.admin` or `m.role.security`.
    pub role: String,
    /// Their user id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matrix_id: Option<ruma::OwnedUserId>,
    /// Their e-mail address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email_address: Option<String>,
}

/// Who may make an account.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Registration {
    /// Anybody may.
    pub open: bool,
    /// Whoever knows one of these may.
    pub tokens: Vec<String>,
    /// Terms that a new user must accept: where they are to be read.
    #[serde(with = "empty_is_none")]
    pub terms_url: Option<String>,
    /// What these terms are called.
    pub terms_name: String,
    /// Their version.
    pub terms_version: String,
}

/// How long sessions last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sessions {
    /// How long an access token is good when its client can refresh it.
    pub access_token_lifetime: Period,
    /// How long a refresh token is good; not set: until logout.
    #[serde(with = "empty_is_none")]
    pub refresh_token_lifetime: Option<Period>,
}

/// Who puts rooms into the list of public rooms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Publishers {
    /// Whoever has the power in the room to change its canonical alias.
    Everyone,
    /// Server administrators only.
    Admins,
}

/// The list of public rooms.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Directory {
    /// Who may publish rooms.
    pub publishers: Publishers,
    /// Whether other servers may read the list.
    pub over_federation: bool,
}

/// Who finds whom.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct UserDirectory {
    /// Everybody finds all users of the server, not only those in the same or in public rooms.
    pub search_all_users: bool,
}

/// How large things may be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// The body of an ordinary request.
    pub request_size: ByteSize,
    /// The body of a request that sends one event.
    pub event_request_size: ByteSize,
    /// One uploaded file.
    pub upload_size: ByteSize,
    /// All files of one user together; not set: no bound.
    #[serde(with = "empty_is_none")]
    pub media_quota: Option<ByteSize>,
    /// All files of the server together; not set: no bound.
    #[serde(with = "empty_is_none")]
    pub media_total_quota: Option<ByteSize>,
    /// All copies of other servers' files together; those asked for longest ago make room.
    pub media_cache_size: ByteSize,
    /// A copy that nobody asks for so long goes.
    pub media_cache_age: Period,
    /// Connections at once.
    pub connections: usize,
}

/// How often things may be asked, by class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RateLimits {
    /// The one switch for all.
    pub enabled: bool,
    /// New accounts from one address.
    pub registration: Rate,
    /// Logins from one address.
    pub login: Rate,
    /// Failing logins to one account.
    pub login_account: Rate,
    /// Messages, state and redactions of one user.
    pub messages: Rate,
    /// Joins and knocks of one user.
    pub joins: Rate,
    /// Invites of one user.
    pub invites: Rate,
    /// New rooms of one user.
    pub room_creation: Rate,
    /// Uploads, downloads and thumbnails of one user or address.
    pub media: Rate,
    /// Directory questions, profile changes and the like of one user.
    pub other: Rate,
}

/// The cost of argon2id. It can be raised, not lowered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Password {
    /// Memory of one hash.
    pub memory: ByteSize,
    /// Passes over that memory.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

/// The embedded store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Storage {
    /// The engine's cache; it occupies two to three times as much.
    pub cache_size: ByteSize,
    /// Writing stops when less than this is free on the disk.
    pub disk_reserve: ByteSize,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// What is logged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Log {
    /// The level, or directives such as `info,hearth_rooms=debug`.
    pub level: String,
    /// How the lines look.
    pub format: LogFormat,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            server_name: server_name!("localhost").to_owned(),
            data_dir: "./hearth-data".into(),
            bind: vec![SocketAddr::from(([127, 0, 0, 1], 8008))],
            public_base_url: None,
            trusted_proxies: Vec::new(),
            query_access_tokens: true,
            presence: true,
            default_room_version: RoomVersionId::V12,
            signing_key: None,
            extra_root_certificates: Vec::new(),
            allow_private_addresses: false,
            tls: Tls::default(),
            federation: Federation::default(),
            support: Support::default(),
            registration: Registration::default(),
            sessions: Sessions::default(),
            directory: Directory::default(),
            user_directory: UserDirectory::default(),
            limits: Limits::default(),
            rate_limits: RateLimits::default(),
            password: Password::default(),
            storage: Storage::default(),
            log: Log::default(),
        }
    }
}

impl Default for Federation {
    fn default() -> Self {
        Self {
            bind: Vec::new(),
            certificate: None,
            key: None,
            well_known_server: None,
            enabled: true,
            allowed_servers: Vec::new(),
            denied_servers: Vec::new(),
            trusted_key_servers: Vec::new(),
            old_signing_keys: Vec::new(),
            retry_first: Period::from_secs(30),
            retry_longest: Period::from_secs(24 * 3600),
        }
    }
}

impl Default for Registration {
    fn default() -> Self {
        Self {
            open: false,
            tokens: Vec::new(),
            terms_url: None,
            terms_name: "Terms of service".into(),
            terms_version: "1".into(),
        }
    }
}

impl Default for Sessions {
    fn default() -> Self {
        Self { access_token_lifetime: Period::from_secs(5 * 60), refresh_token_lifetime: None }
    }
}

impl Default for Directory {
    fn default() -> Self {
        Self { publishers: Publishers::Everyone, over_federation: false }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_size: ByteSize::mib(4),
            event_request_size: ByteSize::kib(256),
            upload_size: ByteSize::mib(50),
            media_quota: None,
            media_total_quota: None,
            media_cache_size: ByteSize::mib(1024),
            media_cache_age: Period::from_secs(30 * 24 * 3600),
            connections: 4096,
        }
    }
}

impl Default for RateLimits {
    fn default() -> Self {
        let rate = |per_second, burst| Rate { per_second, burst };
        Self {
            enabled: true,
            registration: rate(0.2, 5.0),
            login: rate(1.0, 20.0),
            login_account: rate(0.1, 10.0),
            messages: rate(10.0, 100.0),
            joins: rate(1.0, 30.0),
            invites: rate(1.0, 50.0),
            room_creation: rate(0.2, 20.0),
            media: rate(20.0, 200.0),
            other: rate(5.0, 100.0),
        }
    }
}

impl Default for Password {
    fn default() -> Self {
        Self { memory: ByteSize::mib(19), passes: 2, lanes: 1 }
    }
}

impl Default for Storage {
    fn default() -> Self {
        Self { cache_size: ByteSize::mib(16), disk_reserve: ByteSize::mib(256) }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::Text }
    }
}

impl Config {
    /// The configuration of a file (or of none) with the overrides of the environment.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        load::load(file, environment)
    }

    /// The configuration in TOML text, for tests and tools.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        load::parse(text)
    }

    /// Where the signing key lies.
    pub fn signing_key_path(&self) -> PathBuf {
        self.signing_key.clone().unwrap_or_else(|| self.data_dir.join("signing.key"))
    }

    /// Where commands reach the running server.
    pub fn admin_socket_path(&self) -> PathBuf {
        self.data_dir.join("admin.sock")
    }

    /// What `/.well-known/matrix/server` tells other servers.
    pub fn well_known_server(&self) -> Option<String> {
        if let Some(server) = &self.federation.well_known_server {
            return Some(server.clone());
        }
        let host = self.public_base_url.as_deref()?.strip_prefix("https://")?;
        let host = host.split('/').next().filter(|host| !host.is_empty())?;
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        Some(if has_port { host.to_owned() } else { format!("{host}:443") })
    }

    /// The rates in force.
    pub fn rates(&self) -> Rates {
        let rates = &self.rate_limits;
        if !rates.enabled {
            return Rates::off();
        }
        Rates::new([
            (RateClass::Registration, rates.registration),
            (RateClass::Login, rates.login),
            (RateClass::LoginAccount, rates.login_account),
            (RateClass::Message, rates.messages),
            (RateClass::Join, rates.joins),
            (RateClass::Invite, rates.invites),
            (RateClass::RoomCreation, rates.room_creation),
            (RateClass::Media, rates.media),
            (RateClass::Other, rates.other),
        ])
    }
}
