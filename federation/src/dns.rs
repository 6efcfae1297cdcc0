//! Names to addresses, services to hosts and ports. Answers are cached by the resolver for as long as they say.

use std::net::IpAddr;

use async_trait::async_trait;
use tokio::net::lookup_host;

/// Addresses of one name that are tried.
pub const ADDRESSES_MAX: usize = 16;
/// Hosts of one service that are tried.
pub const SERVICES_MAX: usize = 8;
/// A host that offers a service, of an SRV record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The host, without the dot at its end.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Smaller ones are tried first.
    pub priority: u16,
    /// How often it is chosen among those of its priority.
    pub weight: u16,
}

/// A name could not be resolved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} cannot be resolved: {problem}")]
pub struct DnsError {
    /// Which name.
    pub name: String,
    /// Why not.
    pub problem: String,
}

/// Answers of the domain name system.
#[async_trait]
pub trait Dns: Send + Sync + 'static {
    /// The addresses of a host, at least one.
    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, DnsError>;
    /// The hosts of a service such as `_matrix-fed._tcp.example.org`; none if there is no such service.
    async fn services(&self, name: &str) -> Result<Vec<Service>, DnsError>;
}

/// The system's library.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemDns;

impl SystemDns {
    /// As this machine is configured.
    pub fn new() -> Self {
        Self
    }
}

#[async_trait]
impl Dns for SystemDns {
    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, DnsError> {
        let failed = |problem: String| DnsError { name: host.to_owned(), problem };
        let found = lookup_host((host, 0)).await.map_err(|error| failed(error.to_string()))?;
        let addresses: Vec<IpAddr> = found.map(|address| address.ip()).take(ADDRESSES_MAX).collect();
        if addresses.is_empty() { Err(failed("it has no address".to_owned())) } else { Ok(addresses) }
    }

    async fn services(&self, _: &str) -> Result<Vec<Service>, DnsError> {
        Ok(Vec::new())
    }
}

/// The services in the order in which they are to be tried (RFC 2782): by priority, then by chance and weight.
/// `chance` gives a number below its argument.
pub fn in_order(mut services: Vec<Service>, mut chance: impl FnMut(u32) -> u32) -> Vec<Service> {
    // A lone dot says that the service is decidedly not offered.
    services.retain(|service| !service.host.is_empty() && service.port != 0);
    services.sort_by_key(|service| (service.priority, service.weight));
    let mut ordered = Vec::with_capacity(services.len().min(SERVICES_MAX));
    while !services.is_empty() && ordered.len() < SERVICES_MAX {
        let first = services[0].priority;
        let peers = services.iter().take_while(|service| service.priority == first);
        let total: u32 = peers.clone().map(|service| u32::from(service.weight)).sum();
        let chosen = chance(total.saturating_add(1));
        let mut sum = 0;
        let place = peers.clone().position(|service| {
            sum += u32::from(service.weight);
            sum >= chosen
        });
        ordered.push(services.remove(place.unwrap_or(0)));
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(host: &str, priority: u16, weight: u16) -> Service {
        Service { host: host.to_owned(), port: 1, priority, weight }
    }

    fn hosts(services: &[Service]) -> Vec<&str> {
        services.iter().map(|service| service.host.as_str()).collect()
    }

    #[test]
    fn services_are_tried_by_priority_and_weight() {
        let all =
            vec![service("late", 20, 0), service("light", 10, 1), service("heavy", 10, 9), service("", 1, 0)];
        assert_eq!(hosts(&in_order(all.clone(), |_| 0)), ["light", "heavy", "late"]);
        assert_eq!(hosts(&in_order(all.clone(), |below| below - 1)), ["heavy", "light", "late"]);
        let heavy_first =
            (0..11).filter(|n| in_order(all.clone(), |b| (*n).min(b - 1))[0].host == "heavy").count();
        assert_eq!(heavy_first, 9, "nine of eleven draws, as the weights say");
        let many = (0..40).map(|n| service(&n.to_string(), n, 0)).collect();
        assert_eq!(in_order(many, |_| 0).len(), SERVICES_MAX);
        assert!(in_order(vec![service("", 0, 0)], |_| 0).is_empty(), "a lone dot");
    }
}
