//! The parts of federation, put together, and the gate through which requests of other servers come in.
//! A request is believed when a key of its origin signed it for one of our names, method, path and body included.

use std::{net::IpAddr, sync::Arc};

use hearth_dag::{LocalServers, VerifyKey, canonical::NotCanonical};
use hearth_store::{Store, StoreError};
use ruma::{OwnedServerName, ServerName};

use crate::{
    access::{Access, AccessDenied},
    client::Client,
    destinations::{Destinations, Patience},
    joining::Joining,
    key_store::{Clock, KeyLookupError, KeyStore, KeyStoreOptions, OwnKeys},
    network::Network,
    verify::Checkers,
    x_matrix::{BadHeader, SignedParts, XMatrix, is_x_matrix, signed_content},
};

/// Signatures of one request that are tried: a server with several keys may send several headers.
pub const SIGNATURES_MAX: usize = 3;

/// What federation needs to know.
pub struct FederationOptions {
    /// Where keys and failing servers are kept.
    pub store: Store,
    /// How servers are reached.
    pub network: Arc<dyn Network>,
    /// Our names and who signs for them.
    pub local_servers: LocalServers,
    /// The keys of our names; the first one's server speaks for us where nobody says which.
    pub own_keys: Vec<OwnKeys>,
    /// Whom to talk to.
    pub access: Access,
    /// Who is asked for the keys of servers that do not answer.
    pub trusted_key_servers: Vec<OwnedServerName>,
    /// How long to wait after failures.
    pub patience: Patience,
    /// The time.
    pub clock: Clock,
}

/// What this server is to other servers. Cheap to clone.
#[derive(Clone)]
pub struct Federation {
    local_servers: LocalServers,
    access: Access,
    keys: KeyStore,
    destinations: Destinations,
    client: Client,
    checkers: Checkers,
    joining: Joining,
}

/// What a request says of its sender, with the sender's keys; not yet believed.
#[derive(Debug, Clone)]
pub struct Claim {
    origin: OwnedServerName,
    signed: Vec<(XMatrix, VerifyKey)>,
}

/// Why a server's request is refused.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// There is no header of the scheme `X-Matrix`.
    #[error("the request is not signed: the header Authorization with X-Matrix is missing")]
    Unsigned,
    /// The header cannot be read.
    #[error(transparent)]
    Header(#[from] BadHeader),
    /// It is for another server.
    #[error("the request is for another server")]
    Destination,
    /// Several headers that do not agree.
    #[error("the request has signatures of several servers")]
    Origins,
    /// Nobody else has our name.
    #[error("the request says to come from this server itself")]
    FromUs,
    /// The body is not JSON, which is what is signed.
    #[error("the request's body is not JSON: {0}")]
    Body(#[from] NotCanonical),
    /// The key cannot be had.
    #[error(transparent)]
    Key(KeyLookupError),
    /// The signature is not that key's over this request.
    #[error("the request's signature does not hold")]
    Signature,
    /// Too many keys are being fetched for requests that came from there.
    #[error("too many requests of unknown servers come from there")]
    Busy,
    /// By the operator's lists.
    #[error(transparent)]
    Access(#[from] AccessDenied),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Claim {
    /// Who says to have sent the request.
    pub fn origin(&self) -> &ServerName {
        &self.origin
    }
}

impl Federation {
    /// Federation of these parts.
    pub fn new(options: FederationOptions) -> Self {
        let speaking_as = options.own_keys.first().map(|own| own.server_name().to_owned());
        let destinations = Destinations::new(options.store.clone(), options.clock.clone(), options.patience);
        let client = Client::new(
            options.network.clone(),
            options.local_servers.clone(),
            speaking_as,
            options.access.clone(),
            destinations.clone(),
        );
        let keys = KeyStore::new(KeyStoreOptions {
            store: options.store,
            network: options.network,
            own: options.own_keys,
            access: options.access.clone(),
            trusted_key_servers: options.trusted_key_servers,
            clock: options.clock,
        });
        Self {
            local_servers: options.local_servers,
            access: options.access,
            keys,
            destinations,
            client,
            checkers: Checkers::new(),
            joining: Joining::default(),
        }
    }

    /// Servers' keys.
    pub fn keys(&self) -> &KeyStore {
        &self.keys
    }

    /// What can be asked of other servers.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Which servers fail.
    pub fn destinations(&self) -> &Destinations {
        &self.destinations
    }

    /// With whom we federate.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// Our names.
    pub fn local_servers(&self) -> &LocalServers {
        &self.local_servers
    }

    pub(crate) fn joining(&self) -> &Joining {
        &self.joining
    }

    pub(crate) fn checkers(&self) -> &Checkers {
        &self.checkers
    }

    /// Reads the `Authorization` headers of a request, fetches the keys that they name, and refuses what can be refused
    /// without the body: who has no key makes us hold none.
    pub async fn claim<'a>(
        &self,
        from: IpAddr,
        headers: impl Iterator<Item = &'a str>,
    ) -> Result<Claim, Refused> {
        let signatures = self.signatures(headers)?;
        let origin = signatures[0].origin.clone();
        let (mut signed, mut unknown) = (Vec::new(), Refused::Unsigned);
        for signature in signatures {
            match self.keys.request_key(from, &origin, &signature.key_id).await {
                Ok(key) => signed.push((signature, key)),
                Err(KeyLookupError::Store(error)) => return Err(error.into()),
                Err(KeyLookupError::Busy) => return Err(Refused::Busy),
                Err(error) => unknown = Refused::Key(error),
            }
        }
        if signed.is_empty() { Err(unknown) } else { Ok(Claim { origin, signed }) }
    }

    /// The signatures of a request, at least one, all of one server with which we federate.
    fn signatures<'a>(&self, headers: impl Iterator<Item = &'a str>) -> Result<Vec<XMatrix>, Refused> {
        if !self.access.is_on() {
            return Err(AccessDenied::Off.into());
        }
        let mut signatures: Vec<XMatrix> = Vec::new();
        for header in headers.filter(|header| is_x_matrix(header)).take(SIGNATURES_MAX) {
            let signature = XMatrix::parse(header)?;
            let for_us = |destination: &OwnedServerName| self.local_servers.is_local(destination);
            if signature.destination.as_ref().is_some_and(|destination| !for_us(destination)) {
                return Err(Refused::Destination);
            }
            if signatures.first().is_some_and(|first| first.origin != signature.origin) {
                return Err(Refused::Origins);
            }
            signatures.push(signature);
        }
        let origin = &signatures.first().ok_or(Refused::Unsigned)?.origin;
        if self.local_servers.is_local(origin) {
            return Err(Refused::FromUs);
        }
        self.access.check(origin)?;
        Ok(signatures)
    }

    /// Checks a claim against the whole request, and gives the server that sent it. One that fails is tried early for it.
    pub async fn verify(
        &self,
        claim: &Claim,
        method: &str,
        target: &str,
        body: &[u8],
    ) -> Result<OwnedServerName, Refused> {
        let content = signed_content(body)?;
        let request = SignedParts { method, target, content: content.as_deref() };
        let holds = claim.signed.iter().any(|(signature, key)| match &signature.destination {
            Some(destination) => signature.is_signed_by(key, &request, destination),
            // Older servers do not say in the header which name they signed for.
            None => self.local_servers.names().any(|name| signature.is_signed_by(key, &request, name)),
        });
        if !holds {
            return Err(Refused::Signature);
        }
        self.destinations.heard_from(&claim.origin).await?;
        Ok(claim.origin.clone())
    }
}
