//! Where a request comes from. `X-Forwarded-For` counts only as far as the proxies that wrote it are trusted.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use ipnet::IpNet;

/// The address that rate limits and device lists see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClientAddress(pub IpAddr);

impl ClientAddress {
    /// The right-most address of the forwarding chain that is not a trusted proxy's.
    pub fn of(peer: SocketAddr, headers: &HeaderMap, trusted_proxies: &[IpNet]) -> Self {
        let mut address = peer.ip().to_canonical();
        if trusted_proxies.is_empty() {
            return Self(address);
        }
        let hops = headers.get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok());
        let chain: Vec<&str> = hops.flat_map(|value| value.split(',')).collect();
        for hop in chain.iter().rev() {
            if !trusted_proxies.iter().any(|proxy| proxy.contains(&address)) {
                break;
            }
            let Some(before) = parse(hop.trim()) else { break };
            address = before.to_canonical();
        }
        Self(address)
    }
}

/// An address with or without a port or brackets.
fn parse(hop: &str) -> Option<IpAddr> {
    let bare = hop.trim_start_matches('[').trim_end_matches(']');
    bare.parse().ok().or_else(|| hop.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(peer: &str, forwarded: &[&str], trusted: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append("x-forwarded-for", value.parse().unwrap());
        }
        let trusted: Vec<IpNet> = trusted.iter().map(|net| net.parse().unwrap()).collect();
        ClientAddress::of(peer.parse().unwrap(), &headers, &trusted).0.to_string()
    }

    #[test]
    fn strangers_cannot_choose_their_address() {
        assert_eq!(seen("203.0.113.9:1000", &["10.1.1.1"], &["127.0.0.0/8"]), "203.0.113.9");
        assert_eq!(seen("203.0.113.9:1000", &["10.1.1.1"], &[]), "203.0.113.9");
    }

    #[test]
    fn trusted_proxies_are_skipped_from_the_right() {
        let trusted = ["127.0.0.0/8", "10.0.0.0/8", "::1/128"];
        assert_eq!(seen("127.0.0.1:1", &["198.51.100.7, 10.0.0.2"], &trusted), "198.51.100.7");
        assert_eq!(seen("127.0.0.1:1", &["1.2.3.4, 198.51.100.7", "10.0.0.2"], &trusted), "198.51.100.7");
        assert_eq!(seen("[::1]:1", &["[2001:db8::1]:443"], &trusted), "2001:db8::1");
        assert_eq!(seen("127.0.0.1:1", &["nonsense"], &trusted), "127.0.0.1");
    }
}
