//! The grammar of server names: a host and perhaps a port.
//! * An IP literal is told from a name here, once: what follows asks for a certificate of the one or the other.
//! * A name whose last part is a number is refused: some software reads it as an address written differently.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The longest server name that is looked at.
pub const SERVER_NAME_BYTES: usize = 255;

/// Whose certificate is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// An address; IPv6 stands in brackets in the text.
    Ip(IpAddr),
    /// A DNS name in lower case.
    Name(String),
}

/// A server name, read.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Address {
    /// The host.
    pub host: Host,
    /// The port, if the name has one.
    pub port: Option<u16>,
}

/// Why a text is no server name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadServerName {
    /// Nothing, or too much.
    #[error("a server name has 1 to {SERVER_NAME_BYTES} bytes")]
    Length,
    /// Not letters, digits, dots and dashes, and no IP address in brackets.
    #[error("the host is neither a DNS name nor an IP address")]
    Host,
    /// Not 1 to 65535.
    #[error("the port is not a number from 1 to 65535")]
    Port,
}

/// Reads a server name.
pub fn parse(text: &str) -> Result<Address, BadServerName> {
    if text.is_empty() || text.len() > SERVER_NAME_BYTES {
        return Err(BadServerName::Length);
    }
    if let Some(rest) = text.strip_prefix('[') {
        let (address, rest) = rest.split_once(']').ok_or(BadServerName::Host)?;
        let address: Ipv6Addr = address.parse().map_err(|_| BadServerName::Host)?;
        let port = match rest.strip_prefix(':') {
            Some(port) => Some(parse_port(port)?),
            None if rest.is_empty() => None,
            None => return Err(BadServerName::Host),
        };
        return Ok(Address { host: Host::Ip(address.into()), port });
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(parse_port(port)?)),
        None => (text, None),
    };
    Ok(Address { host: parse_host(host)?, port })
}

fn parse_port(text: &str) -> Result<u16, BadServerName> {
    let digits = (1..=5).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    let port = if digits { text.parse().ok() } else { None };
    port.filter(|port| *port != 0).ok_or(BadServerName::Port)
}

fn parse_host(text: &str) -> Result<Host, BadServerName> {
    if let Ok(address) = text.parse::<Ipv4Addr>() {
        return Ok(Host::Ip(address.into()));
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    let without_dot = text.strip_suffix('.').unwrap_or(text);
    let parts_are_there = without_dot.split('.').all(|part| !part.is_empty());
    if !text.bytes().all(allowed) || !parts_are_there {
        return Err(BadServerName::Host);
    }
    let last = without_dot.rsplit('.').next().unwrap_or_default();
    let hexadecimal = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    if last.bytes().all(|byte| byte.is_ascii_digit())
        || hexadecimal.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
    {
        return Err(BadServerName::Host);
    }
    Ok(Host::Name(text.to_ascii_lowercase()))
}

impl std::fmt::Display for Host {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ip(IpAddr::V6(address)) => write!(out, "[{address}]"),
            Self::Ip(IpAddr::V4(address)) => write!(out, "{address}"),
            Self::Name(name) => out.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(host: &str, port: Option<u16>) -> Result<Address, BadServerName> {
        Ok(Address { host: Host::Name(host.to_owned()), port })
    }

    fn ip(host: &str, port: Option<u16>) -> Result<Address, BadServerName> {
        Ok(Address { host: Host::Ip(host.parse().unwrap()), port })
    }

    // The examples of the specification's appendix, and what people write.
    #[test]
    fn names_addresses_and_ports_are_told_apart() {
        for (text, read) in [
            ("matrix.org", name("matrix.org", None)),
            ("Matrix.ORG:8888", name("matrix.org", Some(8888))),
            ("localhost:443", name("localhost", Some(443))),
            ("xn--bcher-kva.example", name("xn--bcher-kva.example", None)),
            ("a.example.", name("a.example.", None)),
            ("1.2.3.4", ip("1.2.3.4", None)),
            ("1.2.3.4:1234", ip("1.2.3.4", Some(1234))),
            ("[1234:5678::abcd]", ip("1234:5678::abcd", None)),
            ("[::1]:8448", ip("::1", Some(8448))),
            ("[::ffff:1.2.3.4]", ip("::ffff:1.2.3.4", None)),
        ] {
            assert_eq!(parse(text), read, "{text}");
        }
    }

    #[test]
    fn what_is_no_server_name_is_refused() {
        for (text, why) in [
            ("", BadServerName::Length),
            (&"a".repeat(256), BadServerName::Length),
            (":8448", BadServerName::Host),
            ("a b", BadServerName::Host),
            ("a/b", BadServerName::Host),
            ("user@host", BadServerName::Host),
            ("under_score", BadServerName::Host),
            ("bücher.example", BadServerName::Host),
            ("a..b", BadServerName::Host),
            (".a", BadServerName::Host),
            (".", BadServerName::Host),
            ("::1", BadServerName::Port),
            ("[::1", BadServerName::Host),
            ("[::1]x", BadServerName::Host),
            ("[fe80::1%eth0]", BadServerName::Host),
            ("[1.2.3.4]", BadServerName::Host),
            ("a:0", BadServerName::Port),
            ("a:65536", BadServerName::Port),
            ("a:", BadServerName::Port),
            ("a:+80", BadServerName::Port),
            ("a:80:80", BadServerName::Port),
            // Addresses in disguise.
            ("2130706433", BadServerName::Host),
            ("127.1", BadServerName::Host),
            ("0x7f000001", BadServerName::Host),
            ("a.0x7f", BadServerName::Host),
            ("127.0.0.1.", BadServerName::Host),
            ("300.1.1.1", BadServerName::Host),
        ] {
            assert_eq!(parse(text), Err(why), "{text}");
        }
    }

    #[test]
    fn hosts_are_written_as_urls_have_them() {
        assert_eq!(parse("[::1]:1").unwrap().host.to_string(), "[::1]");
        assert_eq!(parse("127.0.0.1").unwrap().host.to_string(), "127.0.0.1");
        assert_eq!(parse("A.test").unwrap().host.to_string(), "a.test");
    }
}
