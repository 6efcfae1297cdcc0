//! With which servers this one federates: all, those on a list, all but those on a list, or none.
//! A pattern may have `*` and `?`; without a port it holds for every port of the host. Case does not matter.

use std::sync::Arc;

use ruma::ServerName;

/// Whom to talk to.
#[derive(Debug, Clone)]
pub struct Access(Arc<Lists>);

#[derive(Debug)]
struct Lists {
    enabled: bool,
    /// Empty: all.
    allowed: Vec<String>,
    denied: Vec<String>,
}

/// Why a server is not talked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AccessDenied {
    /// Federation is switched off.
    #[error("this server does not federate")]
    Off,
    /// The other server is on the list of denied ones, or not on that of allowed ones.
    #[error("this server does not federate with that server")]
    Denied,
}

impl Access {
    /// By lists of patterns; an empty list of allowed ones means all.
    pub fn new(enabled: bool, allowed: &[String], denied: &[String]) -> Self {
        let lower = |list: &[String]| list.iter().map(|pattern| pattern.to_ascii_lowercase()).collect();
        Self(Arc::new(Lists { enabled, allowed: lower(allowed), denied: lower(denied) }))
    }

    /// With everybody.
    pub fn open() -> Self {
        Self::new(true, &[], &[])
    }

    /// Whether this server federates at all.
    pub fn is_on(&self) -> bool {
        self.0.enabled
    }

    /// Whether it talks to that server.
    pub fn check(&self, server: &ServerName) -> Result<(), AccessDenied> {
        if !self.0.enabled {
            return Err(AccessDenied::Off);
        }
        let name = server.as_str().to_ascii_lowercase();
        let host = server.host().to_ascii_lowercase();
        let listed =
            |list: &[String]| list.iter().any(|pattern| matches(pattern, &name) || matches(pattern, &host));
        if listed(&self.0.denied) || !(self.0.allowed.is_empty() || listed(&self.0.allowed)) {
            return Err(AccessDenied::Denied);
        }
        Ok(())
    }
}

/// Whether a text is of a pattern with `*` and `?`. Goes back to the last `*` only, so it takes no longer than the
/// product of both lengths.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => {
                let Some((at, from)) = star else { return false };
                star = Some((at, from + 1));
                p = at + 1;
                t = from + 1;
            }
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(allowed: &[&str], denied: &[&str], server: &str) -> bool {
        let list = |list: &[&str]| list.iter().map(|&pattern| pattern.to_owned()).collect::<Vec<_>>();
        let access = Access::new(true, &list(allowed), &list(denied));
        access.check(<&ServerName>::try_from(server).unwrap()).is_ok()
    }

    #[test]
    fn lists_say_who_is_talked_to() {
        for (allowed, denied, server, good) in [
            (&[][..], &[][..], "a.test", true),
            (&[], &["evil.test"], "a.test", true),
            (&[], &["evil.test"], "evil.test", false),
            (&[], &["Evil.test"], "eviL.test:8448", false),
            (&[], &["evil.test"], "not-evil.test", true),
            (&[], &["evil.test:1"], "evil.test", true),
            (&[], &["evil.test:1"], "evil.test:1", false),
            (&[], &["*.evil.test"], "a.b.evil.test", false),
            (&[], &["*.evil.test"], "evil.test", true),
            (&["*.test"], &["evil.test"], "evil.test", false),
            (&["*.test"], &["evil.test"], "a.test:1", true),
            (&["a.test"], &[], "b.test", false),
            (&["?.test"], &[], "b.test", true),
            (&["a*b*c"], &[], "axxbxbxc", true),
            (&["a*b*c"], &[], "axxbxbx", false),
            (&[], &["[::1]"], "[::1]:8448", false),
        ] {
            assert_eq!(check(allowed, denied, server), good, "{allowed:?} {denied:?} {server}");
        }
        let off = Access::new(false, &[], &[]);
        assert_eq!(off.check(<&ServerName>::try_from("a.test").unwrap()), Err(AccessDenied::Off));
        assert!(!off.is_on() && Access::open().is_on());
    }
}
