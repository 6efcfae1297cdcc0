//! Names to addresses, services to hosts and ports. Answers are cached by the resolver for as long as they say.

use std::{net::IpAddr, time::Duration};

use async_trait::async_trait;
use hickory_resolver::{
    TokioResolver,
    config::{LookupIpStrategy, ResolveHosts, ResolverOpts},
    proto::rr::RData,
};
use tokio::net::lookup_host;

/// Addresses of one name that are tried.
pub const ADDRESSES_MAX: usize = 16;
/// Hosts of one service that are tried.
pub const SERVICES_MAX: usize = 8;
/// Answers that are remembered.
const CACHED_ANSWERS: u64 = 8_192;
/// How long one name server has for an answer, and how often it is asked.
const ANSWER_TIME: Duration = Duration::from_secs(4);
const ATTEMPTS: usize = 2;
/// An answer is asked for again after this time at most; that there is none, after that.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);
const REMEMBERED_LACK: Duration = Duration::from_secs(300);

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

/// The name servers and the hosts file of this machine.
pub struct SystemDns {
    /// Not there where the machine names no name servers: then the system's library is asked.
    resolver: Option<TokioResolver>,
}

impl SystemDns {
    /// Reads the machine's configuration.
    pub fn new() -> Self {
        let resolver = TokioResolver::builder_tokio().and_then(|mut builder| {
            set(builder.options_mut());
            builder.build()
        });
        if let Err(error) = &resolver {
            tracing::warn!(%error, "no name servers are configured: SRV records cannot be asked for");
        }
        Self { resolver: resolver.ok() }
    }
}

fn set(options: &mut ResolverOpts) {
    options.cache_size = CACHED_ANSWERS;
    options.timeout = ANSWER_TIME;
    options.attempts = ATTEMPTS;
    options.positive_max_ttl = Some(REMEMBERED);
    options.negative_max_ttl = Some(REMEMBERED_LACK);
    options.use_hosts_file = ResolveHosts::Always;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
}

impl Default for SystemDns {
    fn default() -> Self {
        Self::new()
    }
}

/// Full names end with a dot, so that the machine's own domain is not tried behind them.
fn full(name: &str) -> String {
    if name.contains('.') && !name.ends_with('.') { format!("{name}.") } else { name.to_owned() }
}

#[async_trait]
impl Dns for SystemDns {
    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, DnsError> {
        let failed = |problem: String| DnsError { name: host.to_owned(), problem };
        let mut addresses: Vec<IpAddr> = match &self.resolver {
            Some(resolver) => {
                let found =
                    resolver.lookup_ip(full(host)).await.map_err(|error| failed(error.to_string()))?;
                found.iter().collect()
            }
            None => {
                let found = lookup_host((host, 0)).await.map_err(|error| failed(error.to_string()))?;
                found.map(|address| address.ip()).collect()
            }
        };
        addresses.truncate(ADDRESSES_MAX);
        if addresses.is_empty() { Err(failed("it has no address".to_owned())) } else { Ok(addresses) }
    }

    async fn services(&self, name: &str) -> Result<Vec<Service>, DnsError> {
        let Some(resolver) = &self.resolver else { return Ok(Vec::new()) };
        match resolver.srv_lookup(full(name)).await {
            Ok(found) => {
                let records = found.answers().iter().filter_map(|record| match &record.data {
                    RData::SRV(record) => Some(record),
                    _ => None,
                });
                let services = records.map(|record| Service {
                    host: record.target.to_ascii().trim_end_matches('.').to_owned(),
                    port: record.port,
                    priority: record.priority,
                    weight: record.weight,
                });
                Ok(services.collect())
            }
            Err(error) if error.is_no_records_found() || error.is_nx_domain() => Ok(Vec::new()),
            Err(error) => Err(DnsError { name: name.to_owned(), problem: error.to_string() }),
        }
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

    /// A name server that knows the services of `a.test` and the address of `m.a.test`, and nothing else.
    async fn name_server() -> SystemDns {
        use hickory_resolver::config::{NameServerConfig, ResolverConfig};
        let socket = tokio::net::UdpSocket::bind(("127.0.0.1", 0)).await.unwrap();
        let mut server = NameServerConfig::udp("127.0.0.1".parse().unwrap());
        server.connections[0].port = socket.local_addr().unwrap().port();
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let answer = answer_to(&buffer[..length]);
                socket.send_to(&answer, from).await.unwrap();
            }
        });
        let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
        let mut builder = TokioResolver::builder_with_config(config, Default::default());
        set(builder.options_mut());
        SystemDns { resolver: Some(builder.build().unwrap()) }
    }

    /// Labels with their lengths before them.
    fn in_labels(name: &str) -> Vec<u8> {
        let labels = name.split('.').flat_map(|label| [&[label.len() as u8][..], label.as_bytes()].concat());
        labels.chain([0]).collect()
    }

    fn answer_to(question: &[u8]) -> Vec<u8> {
        let end = 12 + question[12..].iter().position(|byte| *byte == 0).unwrap() + 1;
        let (name, kind) = (&question[12..end], question[end + 1]);
        let srv = |priority: u8, port: u16, host: &str| {
            let [high, low] = port.to_be_bytes();
            [&[0, priority, 0, 5, high, low][..], &in_labels(host)].concat()
        };
        let records = match kind {
            33 if name == in_labels("_matrix-fed._tcp.a.test") => {
                vec![srv(20, 1, "late.a.test"), srv(10, 8449, "m.a.test")]
            }
            1 if name == in_labels("m.a.test") => vec![vec![192, 0, 2, 7]],
            _ => Vec::new(),
        };
        let no_such_name = if records.is_empty() { 3 } else { 0 };
        let mut answer = question[..2].to_vec();
        answer.extend([0x81, 0x80 | no_such_name, 0, 1, 0, records.len() as u8, 0, 0, 0, 0]);
        answer.extend_from_slice(&question[12..end + 4]);
        for record in records {
            // The question's name, the type, the class IN, a minute.
            answer.extend([0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 60, 0, record.len() as u8]);
            answer.extend(record);
        }
        answer
    }

    #[tokio::test]
    async fn name_servers_are_asked_for_services_and_addresses() {
        let dns = name_server().await;
        let services = in_order(dns.services("_matrix-fed._tcp.a.test").await.unwrap(), |_| 0);
        assert_eq!(services[0], Service { host: "m.a.test".to_owned(), port: 8449, priority: 10, weight: 5 });
        assert_eq!(hosts(&services), ["m.a.test", "late.a.test"]);
        assert_eq!(dns.services("_matrix._tcp.a.test").await.unwrap(), [], "none is an answer too");
        assert_eq!(dns.addresses("m.a.test").await.unwrap(), ["192.0.2.7".parse::<IpAddr>().unwrap()]);
        assert_eq!(dns.addresses("b.test").await.unwrap_err().name, "b.test");
        assert!(!dns.addresses("localhost").await.unwrap().is_empty(), "what the machine knows itself");
    }

    #[test]
    fn only_full_names_get_a_dot() {
        assert_eq!(full("a.example"), "a.example.");
        assert_eq!(full("a.example."), "a.example.");
        assert_eq!(full("localhost"), "localhost");
    }
}
