//! From a server name to where its requests go, as the specification resolves server names.
//! * The certificate that is wanted is that of the name before any DNS record: SRV only moves the connection.
//! * The `Host` header is the name as it was written, by the server's name or by its delegation.

use std::sync::Arc;

use rand::Rng as _;
use ruma::ServerName;

use crate::{
    dns::{Dns, Service, in_order},
    network::NetworkError,
    server_name::{self, Address, Host},
    well_known::WellKnown,
};

/// The port of servers that name none.
pub const DEFAULT_PORT: u16 = 8448;

/// Where the requests to a server go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Whose certificate is wanted.
    pub host: Host,
    /// What to connect to.
    pub reach: Reach,
    /// The `Host` header.
    pub host_header: String,
}

/// What to connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// The host itself, at this port.
    Port(u16),
    /// What the host's SRV records name, see [`Discovery::services_of`].
    Services,
}

/// Finds servers.
#[derive(Clone)]
pub struct Discovery {
    dns: Arc<dyn Dns>,
    well_known: Arc<WellKnown>,
}

impl Discovery {
    /// By these means.
    pub fn new(dns: Arc<dyn Dns>, well_known: WellKnown) -> Self {
        Self { dns, well_known: Arc::new(well_known) }
    }

    /// Where the requests to a server go.
    pub async fn route(&self, server: &ServerName) -> Result<Route, NetworkError> {
        let text = server.as_str();
        let address = server_name::parse(text)?;
        // Steps 1 and 2: an IP literal, or a port.
        if matches!(address.host, Host::Ip(_)) || address.port.is_some() {
            return Ok(direct(address, text.to_owned()));
        }
        // Step 3: what the host delegates to; else steps 4 to 6 with the host itself.
        let Host::Name(name) = &address.host else { return Ok(direct(address, text.to_owned())) };
        match self.well_known.delegated(name).await {
            Some(delegated) => {
                let header = match delegated.port {
                    Some(port) => format!("{}:{port}", delegated.host),
                    None => delegated.host.to_string(),
                };
                Ok(self.by_services((*delegated).clone(), header).await)
            }
            None => Ok(self.by_services(address, text.to_owned()).await),
        }
    }

    /// SRV records if there are any, where neither an IP literal nor a port says more.
    async fn by_services(&self, address: Address, host_header: String) -> Route {
        if let (Host::Name(name), None) = (&address.host, address.port)
            && !self.services_of(name).await.is_empty()
        {
            return Route { host: address.host, reach: Reach::Services, host_header };
        }
        direct(address, host_header)
    }

    /// The hosts and ports of a host's SRV records, in the order in which they are to be tried.
    pub async fn services_of(&self, host: &str) -> Vec<Service> {
        for kind in ["_matrix-fed", "_matrix"] {
            match self.dns.services(&format!("{kind}._tcp.{host}")).await {
                Ok(services) if services.is_empty() => {}
                Ok(services) => return in_order(services, chance),
                // Many name servers fail where they should say that there is nothing.
                Err(error) => tracing::debug!(%error, "no answer about SRV records"),
            }
        }
        Vec::new()
    }

    /// The name servers.
    pub fn dns(&self) -> &Arc<dyn Dns> {
        &self.dns
    }
}

fn direct(address: Address, host_header: String) -> Route {
    let port = address.port.unwrap_or(DEFAULT_PORT);
    Route { host: address.host, reach: Reach::Port(port), host_header }
}

#[allow(clippy::disallowed_methods, reason = "which of several equal hosts is tried first is left to chance")]
fn chance(below: u32) -> u32 {
    rand::rng().random_range(0..below.max(1))
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, net::IpAddr};

    use async_trait::async_trait;
    use bytes::Bytes;
    use http::Response;
    use ruma::OwnedServerName;

    use super::*;
    use crate::{dns::DnsError, well_known::FetchWellKnown};

    /// Hosts with their delegations, services with their hosts.
    #[derive(Default, Clone)]
    struct World {
        delegations: HashMap<&'static str, &'static str>,
        services: HashMap<&'static str, (&'static str, u16)>,
    }

    #[async_trait]
    impl Dns for World {
        async fn addresses(&self, _: &str) -> Result<Vec<IpAddr>, DnsError> {
            panic!("the connection asks for addresses, not the discovery")
        }

        async fn services(&self, name: &str) -> Result<Vec<Service>, DnsError> {
            if name.ends_with("broken.test") {
                return Err(DnsError { name: name.to_owned(), problem: "SERVFAIL".to_owned() });
            }
            let found = self.services.get(name).map(|(host, port)| Service {
                host: (*host).to_owned(),
                port: *port,
                priority: 0,
                weight: 0,
            });
            Ok(found.into_iter().collect())
        }
    }

    #[async_trait]
    impl FetchWellKnown for World {
        async fn fetch_well_known(&self, host: &str) -> Result<Response<Bytes>, NetworkError> {
            let server = self.delegations.get(host).ok_or(NetworkError::Timeout)?;
            Ok(Response::new(format!(r#"{{"m.server":"{server}"}}"#).into()))
        }
    }

    async fn route(world: &World, name: &str) -> (String, Reach, String) {
        let discovery = Discovery::new(Arc::new(world.clone()), WellKnown::new(Arc::new(world.clone())));
        let name: OwnedServerName = name.try_into().unwrap();
        let route = discovery.route(&name).await.unwrap();
        (route.host.to_string(), route.reach, route.host_header)
    }

    fn to(host: &str, reach: Reach, header: &str) -> (String, Reach, String) {
        (host.to_owned(), reach, header.to_owned())
    }

    // The steps of "Resolving server names", in their order.
    #[tokio::test]
    async fn every_step_of_the_specification() {
        let world = World {
            delegations: HashMap::from([
                ("ip.test", "1.2.3.4"),
                ("ip-port.test", "[2001:db8::1]:99"),
                ("port.test", "m.port.test:99"),
                ("host.test", "m.host.test"),
                ("srv.test", "m.srv.test"),
                ("old-srv.test", "m.old-srv.test"),
            ]),
            services: HashMap::from([
                ("_matrix-fed._tcp.m.srv.test", ("elsewhere.test", 1)),
                ("_matrix._tcp.m.srv.test", ("wrong.test", 1)),
                ("_matrix._tcp.m.old-srv.test", ("elsewhere.test", 1)),
                ("_matrix-fed._tcp.plain-srv.test", ("elsewhere.test", 1)),
                ("_matrix._tcp.plain-old-srv.test", ("elsewhere.test", 1)),
                ("_matrix-fed._tcp.with-port.test", ("wrong.test", 1)),
                ("_matrix-fed._tcp.srv.test", ("wrong.test", 1)),
            ]),
        };
        for (name, wanted) in [
            // 1
            ("1.2.3.4", to("1.2.3.4", Reach::Port(8448), "1.2.3.4")),
            ("[::1]:99", to("[::1]", Reach::Port(99), "[::1]:99")),
            // 2
            ("with-port.test:443", to("with-port.test", Reach::Port(443), "with-port.test:443")),
            // 3.1
            ("ip.test", to("1.2.3.4", Reach::Port(8448), "1.2.3.4")),
            ("ip-port.test", to("[2001:db8::1]", Reach::Port(99), "[2001:db8::1]:99")),
            // 3.2
            ("port.test", to("m.port.test", Reach::Port(99), "m.port.test:99")),
            // 3.3, and the old form 3.4: the certificate stays that of the delegated name
            ("srv.test", to("m.srv.test", Reach::Services, "m.srv.test")),
            ("old-srv.test", to("m.old-srv.test", Reach::Services, "m.old-srv.test")),
            // 3.5
            ("host.test", to("m.host.test", Reach::Port(8448), "m.host.test")),
            // 4 and 5
            ("plain-srv.test", to("plain-srv.test", Reach::Services, "plain-srv.test")),
            ("plain-old-srv.test", to("plain-old-srv.test", Reach::Services, "plain-old-srv.test")),
            // 6
            ("Nothing.test", to("nothing.test", Reach::Port(8448), "Nothing.test")),
            ("broken.test", to("broken.test", Reach::Port(8448), "broken.test")),
        ] {
            assert_eq!(route(&world, name).await, wanted, "{name}");
        }
        let discovery = Discovery::new(Arc::new(world.clone()), WellKnown::new(Arc::new(world)));
        assert_eq!(discovery.services_of("m.srv.test").await[0].host, "elsewhere.test");
        assert_eq!(discovery.services_of("m.old-srv.test").await[0].host, "elsewhere.test");
    }
}
