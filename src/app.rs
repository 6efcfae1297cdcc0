//! The running server's parts. `FromRef` hands them out, so that a handler's signature names all it touches.

use std::{
    io,
    ops::Deref,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hearth_dag::{Keypair, LocalServers, Signer};
use hearth_federation::{
    Access, Federation, FederationOptions, Https, HttpsError, HttpsOptions, Inbound, KeyError, Network,
    OldKeyError, OwnKeys, Patience, Policy, RemoteRooms, Sender, SenderOptions, dns::SystemDns,
    load_or_create_key,
};
use hearth_rooms::{Rooms, RoomsOptions, SystemClock, read::Reader};
use hearth_store::{Commit, CommitError, Store, StoreError, StoreOptions};
use hearth_users::{Options, PasswordCost, PresenceOptions, SessionEnd, Users};
use ruma::{OwnedServerName, ServerName};

use crate::{
    clock::now_ms,
    config::{ByteSize, Config, OldSigningKey},
    http::{LocalUser, MatrixError, Shutdown, client_address::ClientAddress, rate_limit::RateLimits},
    media::{self, Media, remote::RemoteMedia},
    summaries::Summaries,
    sync::ClientSync,
    tables::{SERVER, ServerRecord},
};

/// All parts of a running server, cheap to clone.
#[derive(Clone)]
pub struct App(Arc<Parts>);

/// What a server is made of.
pub struct Parts {
    /// The configuration it was started with.
    pub config: Arc<Config>,
    /// All that is kept.
    pub store: Store,
    /// Accounts, sessions and what belongs to users.
    pub users: Users,
    /// What happens in rooms.
    pub rooms: Rooms,
    /// What clients are shown of rooms.
    pub reader: Reader,
    /// What can be told of rooms in a line.
    pub summaries: Summaries,
    /// What is new for those who sync.
    pub sync: ClientSync,
    /// The server's signing key.
    pub key: Arc<Keypair>,
    /// Whose users are ours.
    pub local_servers: LocalServers,
    /// What this server is to other servers.
    pub federation: Federation,
    /// Asks the policy servers of rooms that have one.
    pub policy: Policy,
    /// What our users do in rooms of other servers.
    pub remote_rooms: RemoteRooms,
    /// What other servers send.
    pub inbound: Inbound,
    /// Sends what happens here to other servers.
    pub sender: Sender,
    /// Uploaded files.
    pub media: Media,
    /// Files of other servers.
    pub remote_media: RemoteMedia,
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
    store: Store,
    users: Users,
    rooms: Rooms,
    reader: Reader,
    summaries: Summaries,
    sync: ClientSync,
    key: Arc<Keypair>,
    local_servers: LocalServers,
    federation: Federation,
    policy: Policy,
    remote_rooms: RemoteRooms,
    inbound: Inbound,
    sender: Sender,
    media: Media,
    remote_media: RemoteMedia,
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
    /// The signing key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A key that was used before.
    #[error("{0} (key \"federation.old_signing_keys\")")]
    OldKey(#[from] OldKeyError),
    /// Other servers cannot be talked to.
    #[error(transparent)]
    Https(#[from] HttpsError),
    /// The store does not open.
    #[error("the store in {} does not open: {source}", path.display())]
    Store {
        /// Its folder.
        path: PathBuf,
        /// Why not.
        source: StoreError,
    },
    /// The first rows cannot be written.
    #[error("the store cannot be written: {0}")]
    Write(#[from] CommitError),
    /// The store cannot be read.
    #[error("the store cannot be read: {0}")]
    Read(#[from] StoreError),
    /// Another name than the data's.
    #[error(
        "this data belongs to the server {stored}; it cannot be served as {configured} (key \"server_name\")"
    )]
    OtherServer {
        /// Whose data it is.
        stored: String,
        /// What the configuration says.
        configured: OwnedServerName,
    },
}

impl App {
    /// Opens the data folder and everything in it.
    pub async fn open(config: Arc<Config>, shutdown: Shutdown) -> Result<Self, OpenError> {
        let folder = config.data_dir.clone();
        make_private_folder(&folder).map_err(|source| OpenError::File { path: folder.clone(), source })?;
        let key = load_or_create_key(&config.signing_key_path(), &config.server_name)?;
        let path = folder.join("store");
        let options = StoreOptions {
            cache_bytes: config.storage.cache_size.get(),
            disk_reserve: config.storage.disk_reserve.get(),
        };
        let opening = Store::open_sled(path.clone(), options);
        let store = with_progress("opening the store", opening)
            .await
            .map_err(|source| OpenError::Store { path, source })?;
        let network = Https::new(
            &HttpsOptions {
                extra_root_certificates: config.extra_root_certificates.clone(),
                allow_private_addresses: config.allow_private_addresses,
            },
            Arc::new(SystemDns::new()),
        )?;
        Self::on(config, store, key, Arc::new(network), shutdown).await
    }

    /// A server on this store and this network.
    pub async fn on(
        config: Arc<Config>,
        store: Store,
        key: Keypair,
        network: Arc<dyn Network>,
        shutdown: Shutdown,
    ) -> Result<Self, OpenError> {
        claim(&store, &config.server_name).await?;
        let key = Arc::new(key);
        let local_servers = LocalServers::new([key.clone() as Arc<dyn Signer>]);
        let federation = federation(&config, &store, &key, &local_servers, network)?;
        let folder = config.data_dir.join("media");
        let media = Media::open(store.clone(), media_options(&config, folder.clone()), Arc::new(now_ms));
        let media = media.map_err(|source| OpenError::File { path: folder, source })?;
        let rate_limits = Arc::new(RateLimits::new(config.rates()));
        let users = Users::open(store.clone(), user_options(&config));
        let options = RoomsOptions::default();
        let rooms = Rooms::new(store.clone(), local_servers.clone(), Arc::new(SystemClock), &options);
        let reader = rooms.reader().clone();
        let inbound = Inbound::new(federation.clone(), rooms.clone(), users.clone());
        // Two starts are never within a millisecond.
        let boot = (now_ms() & u64::from(u32::MAX)) as u32;
        let sender = Sender::new(SenderOptions {
            store: store.clone(),
            rooms: rooms.clone(),
            users: users.clone(),
            federation: federation.clone(),
            clock: Arc::new(now_ms),
            boot: now_ms(),
        });
        let sync = ClientSync::start(store.clone(), reader.clone(), users.clone(), Arc::new(now_ms), boot);
        Ok(Self(Arc::new(Parts {
            config,
            store,
            users,
            summaries: Summaries::new(rooms.clone()),
            sync,
            reader,
            key,
            local_servers,
            policy: Policy::new(federation.clone(), rooms.clone()),
            remote_rooms: RemoteRooms::start(federation.clone(), rooms.clone()),
            rooms,
            inbound,
            remote_media: RemoteMedia::new(media.clone(), federation.client().clone()),
            federation,
            sender,
            media,
            rate_limits,
            shutdown,
        })))
    }

    /// Brings everything to the disk. The store's files are free when the last clone of the app is gone.
    pub async fn close(&self) {
        self.sender.close().await;
        if let Err(error) = self.users.close().await {
            tracing::warn!(%error, "when devices were last seen could not be written");
        }
        let stats = self.store.stats();
        self.store.finish().await;
        tracing::info!(
            commits = stats.commits,
            flushes = stats.flushes,
            flush_mean_us = stats.flush_us / stats.flushes.max(1),
            "store closed"
        );
    }

    /// Whose token this is.
    pub async fn authenticate(
        &self,
        token: &str,
        client: ClientAddress,
        also_locked: bool,
    ) -> Result<LocalUser, MatrixError> {
        let who = self.users.authenticate(token).await.map_err(SessionEnd::Token)?;
        let account = who.account();
        if account.locked && !also_locked {
            return Err(SessionEnd::Locked.into());
        }
        self.users.seen(&who, client.0);
        Ok(LocalUser::of(who))
    }
}

/// What the configuration says of other servers.
fn federation(
    config: &Config,
    store: &Store,
    key: &Arc<Keypair>,
    local_servers: &LocalServers,
    network: Arc<dyn Network>,
) -> Result<Federation, OldKeyError> {
    let said = &config.federation;
    let old = said.old_signing_keys.iter().map(OldSigningKey::checked).collect::<Result<_, _>>()?;
    Ok(Federation::new(FederationOptions {
        store: store.clone(),
        network,
        local_servers: local_servers.clone(),
        own_keys: vec![OwnKeys { key: key.clone(), old }],
        access: Access::new(said.enabled, &said.allowed_servers, &said.denied_servers),
        trusted_key_servers: said.trusted_key_servers.clone(),
        patience: Patience { first: said.retry_first.duration(), longest: said.retry_longest.duration() },
        clock: Arc::new(now_ms),
    }))
}

/// What the configuration says of users.
fn user_options(config: &Config) -> Options {
    let mut options = Options::new(Arc::new(now_ms));
    options.access_token_lifetime = config.sessions.access_token_lifetime.duration();
    options.refresh_token_lifetime = config.sessions.refresh_token_lifetime.map(|period| period.duration());
    options.registration_tokens.clone_from(&config.registration.tokens);
    options.password_cost = PasswordCost {
        memory_kib: u32::try_from(config.password.memory.get() / 1024).unwrap_or(u32::MAX),
        passes: config.password.passes,
        lanes: config.password.lanes,
    };
    options.presence = PresenceOptions { enabled: config.presence, ..PresenceOptions::default() };
    options
}

/// What the configuration says of media.
fn media_options(config: &Config, folder: PathBuf) -> media::Options {
    let limits = &config.limits;
    media::Options {
        folder,
        file_max: limits.upload_size.get(),
        user_quota: limits.media_quota.map(ByteSize::get),
        total_quota: limits.media_total_quota.map(ByteSize::get),
        disk_reserve: config.storage.disk_reserve.get(),
        // The newest copy always has its place.
        copies_max: limits.media_cache_size.get().max(limits.upload_size.get()),
        copies_age: limits.media_cache_age.duration(),
    }
}

/// The data belongs to one server name for ever.
async fn claim(store: &Store, server_name: &ServerName) -> Result<(), OpenError> {
    if let Some(record) = store.get(&SERVER, &()).await? {
        if record.server_name != server_name.as_str() {
            let stored = record.server_name;
            return Err(OpenError::OtherServer { stored, configured: server_name.to_owned() });
        }
        return Ok(());
    }
    let mut first = Commit::new();
    first.expect_absent(&SERVER, &());
    first.put(&SERVER, &(), &ServerRecord { server_name: server_name.to_string() });
    store.commit(first).await?;
    Ok(())
}

/// What lies in the data folder is nobody else's business.
fn make_private_folder(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Waits for `work`, and says every few seconds that it still goes on.
async fn with_progress<T>(what: &'static str, work: impl Future<Output = T>) -> T {
    const EVERY: Duration = Duration::from_secs(3);
    tokio::pin!(work);
    let started = tokio::time::Instant::now();
    loop {
        match tokio::time::timeout(EVERY, work.as_mut()).await {
            Ok(done) => return done,
            Err(_) => tracing::info!(seconds = started.elapsed().as_secs(), "{what}: still at it"),
        }
    }
}
