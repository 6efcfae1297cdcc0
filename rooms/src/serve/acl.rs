//! `m.room.server_acl`: which servers may take part in a room.
//! * A value read once per ACL event. Names are compared without port and without regard to case.
//! * A malformed list is an empty one; without an entry in `allow` that fits, a server is denied.

use std::collections::HashSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hearth_store::StoreError;
use quick_cache::sync::Cache;
use ruma::ServerName;
use serde_json::Value;

use crate::events::RoomInfo;
use crate::ids::{EventSn, NodeRef, RoomSn};
use crate::kind::Kind;
use crate::rooms::Rooms;

/// Rooms whose ACL is remembered.
const REMEMBERED: usize = 2_000;

/// Which servers may take part in a room.
#[derive(Debug, Default)]
pub struct Acl(Option<Lists>);

#[derive(Debug)]
struct Lists {
    ip_literals: bool,
    allow: Patterns,
    deny: Patterns,
}

/// Plain names apart from patterns, as lists of thousands of names are common.
#[derive(Debug, Default)]
struct Patterns {
    names: HashSet<String>,
    globs: Vec<Vec<char>>,
}

impl Patterns {
    fn of(value: Option<&Value>) -> Self {
        let mut patterns = Patterns::default();
        for entry in value.and_then(Value::as_array).into_iter().flatten() {
            let Some(entry) = entry.as_str() else { continue };
            let entry = entry.to_lowercase();
            if entry.contains(['*', '?']) {
                patterns.globs.push(entry.chars().collect());
            } else {
                patterns.names.insert(entry);
            }
        }
        patterns
    }

    fn matches(&self, host: &str) -> bool {
        if self.names.contains(host) {
            return true;
        }
        if self.globs.is_empty() {
            return false;
        }
        let host: Vec<char> = host.chars().collect();
        self.globs.iter().any(|glob| glob_matches(glob, &host))
    }
}

impl Acl {
    /// That of a room without an ACL event: everybody may.
    pub fn open() -> Self {
        Acl(None)
    }

    /// What the content of an ACL event says. What is not an object says nothing, which denies everybody.
    pub fn of_content(content: &str) -> Self {
        let content: Value = serde_json::from_str(content).unwrap_or_default();
        Acl(Some(Lists {
            ip_literals: content["allow_ip_literals"].as_bool().unwrap_or(true),
            allow: Patterns::of(content.get("allow")),
            deny: Patterns::of(content.get("deny")),
        }))
    }

    /// Whether a server may take part.
    pub fn allows(&self, server: &ServerName) -> bool {
        // If there is no m.room.server_acl event in the room state, allow.
        let Some(lists) = &self.0 else { return true };
        let host = host_of(server.as_str()).to_lowercase();
        // If the server name is an IP address literal, and allow_ip_literals is present and false, deny.
        if !lists.ip_literals && is_ip_literal(&host) {
            return false;
        }
        // If the server name matches an entry in the deny list, deny; if one in the allow list, allow; else deny.
        !lists.deny.matches(&host) && lists.allow.matches(&host)
    }
}

/// A server name without its port.
fn host_of(server: &str) -> &str {
    if server.starts_with('[') {
        return server.find(']').map_or(server, |end| &server[..=end]);
    }
    server.split_once(':').map_or(server, |(host, _)| host)
}

fn is_ip_literal(host: &str) -> bool {
    match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').unwrap_or(rest).parse::<Ipv6Addr>().is_ok(),
        None => host.parse::<Ipv4Addr>().is_ok(),
    }
}

/// `*` stands for any characters or none, `?` for one. No recursion: time is at most the product of both lengths.
fn glob_matches(glob: &[char], text: &[char]) -> bool {
    let (mut at, mut place) = (0, 0);
    // Where to go on when what follows the last star does not fit.
    let mut retry: Option<(usize, usize)> = None;
    while place < text.len() {
        match glob.get(at) {
            Some('*') => {
                retry = Some((at + 1, place));
                at += 1;
            }
            Some(wanted) if *wanted == '?' || *wanted == text[place] => {
                at += 1;
                place += 1;
            }
            _ => match &mut retry {
                Some((after_star, from)) => {
                    *from += 1;
                    (at, place) = (*after_star, *from);
                }
                None => return false,
            },
        }
    }
    glob[at..].iter().all(|rest| *rest == '*')
}

pub(super) type AclCache = Cache<RoomSn, Arc<Remembered>>;

pub(super) fn new_cache() -> AclCache {
    Cache::new(REMEMBERED)
}

/// The ACL of a room in one state, and in the form that its event had.
pub(super) struct Remembered {
    state: NodeRef,
    event: Option<(EventSn, bool)>,
    acl: Arc<Acl>,
}

impl Rooms {
    /// Which servers may take part in a room now.
    pub async fn acl(&self, room: &RoomInfo) -> Result<Arc<Acl>, StoreError> {
        let Some(head) = self.head(room.sn).await? else { return Ok(Arc::new(Acl::open())) };
        let snapshot = head.value.snapshot;
        let cache = &self.serving().acls;
        let held = cache.get(&room.sn);
        let number = match held.as_ref().filter(|held| held.state == snapshot.rest) {
            Some(held) => held.event.map(|(event, _)| event),
            None => match self.state_key(room.sn, &Kind::new("m.room.server_acl"), "").await? {
                Some(key) => self.snapshots().lookup(room.sn, snapshot, key).await?,
                None => None,
            },
        };
        let event = match number {
            Some(number) => Some(self.events().load(room, number).await?),
            None => None,
        };
        // A redaction changes what the event says, and not the state.
        let form = event.as_ref().map(|event| (event.sn, event.is_redacted()));
        let known = held.filter(|held| held.event == form);
        if let Some(held) = &known
            && held.state == snapshot.rest
        {
            return Ok(held.acl.clone());
        }
        let acl = match (known, event) {
            (Some(held), _) => held.acl.clone(),
            (None, Some(event)) => Arc::new(Acl::of_content(event.pdu.content_json())),
            (None, None) => Arc::new(Acl::open()),
        };
        let remembered = Remembered { state: snapshot.rest, event: form, acl: acl.clone() };
        cache.insert(room.sn, Arc::new(remembered));
        Ok(acl)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(content: &str, server: &str) -> bool {
        Acl::of_content(content).allows(<&ServerName>::try_from(server).unwrap())
    }

    #[test]
    fn lists_are_asked_in_the_order_of_the_specification() {
        let all = r#"{"allow":["*"],"deny":["evil.com","*.evil.com","b?d.org"]}"#;
        // (content, server, allowed)
        let cases = [
            (all, "good.com", true),
            (all, "evil.com", false),
            (all, "EVIL.com", false),
            (all, "evil.com:8448", false),
            (all, "evil.com:1234", false),
            (all, "deep.below.Evil.com", false),
            (all, "notevil.com", true),
            (all, "bad.org", false),
            (all, "baad.org", true),
            (r#"{"allow":["*.Org","one.com"]}"#, "matrix.org", true),
            (r#"{"allow":["*.Org","one.com"]}"#, "one.com:443", true),
            (r#"{"allow":["*.Org","one.com"]}"#, "org", false),
            (r#"{"allow":["a*b*c"]}"#, "axxbxxc", true),
            (r#"{"allow":["a*b*c"]}"#, "axxbxx", false),
        ];
        for (content, server, allowed) in cases {
            assert_eq!(allows(content, server), allowed, "{content} {server}");
        }
    }

    #[test]
    fn address_literals_can_be_denied() {
        let denied = r#"{"allow":["*"],"allow_ip_literals":false}"#;
        for server in ["1.2.3.4", "1.2.3.4:8448", "[2001:db8::1]", "[2001:db8::1]:8448"] {
            assert!(!allows(denied, server), "{server}");
            assert!(allows(r#"{"allow":["*"],"allow_ip_literals":"no"}"#, server), "{server}");
            assert!(allows(r#"{"allow":["*"]}"#, server), "{server}");
        }
        assert!(allows(denied, "1.2.3.com"));
        assert!(!allows(r#"{"allow":["*"],"deny":["[2001:db8::*"]}"#, "[2001:db8::1]:8448"));
    }

    #[test]
    fn what_is_malformed_denies() {
        for content in ["{}", "[]", "null", r#"{"allow":"*"}"#, r#"{"allow":[1,null]}"#, r#"{"deny":[]}"#] {
            assert!(!allows(content, "good.com"), "{content}");
        }
        assert!(allows(r#"{"allow":[1,"*"],"deny":"good.com"}"#, "good.com"));
        assert!(Acl::open().allows(ruma::server_name!("good.com")));
    }

    #[test]
    fn a_hostile_pattern_takes_no_time() {
        let pattern = format!("{}b", "*a".repeat(200));
        let content = serde_json::json!({ "allow": [pattern] }).to_string();
        assert!(!allows(&content, &"a".repeat(230)));
    }
}
