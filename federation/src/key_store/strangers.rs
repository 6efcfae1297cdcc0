//! Whose requests make us fetch keys, before anything of them is believed.
//! * Whoever asks from one address may hold as many places as are free, and no more ([`Shares`]): servers that never
//!   answer tie down those who named them.
//! * Nobody waits in line: who finds no place is told to come again.

use std::net::IpAddr;

use crate::shares::{Share, Shares, network_of};

/// Places of all askers together.
pub const STRANGERS_AT_ONCE: usize = 100;

/// Who has how many places.
#[derive(Debug)]
pub(super) struct Strangers(Shares<IpAddr>);

/// A place that is taken.
pub(super) type Visit = Share<IpAddr>;

impl Default for Strangers {
    fn default() -> Self {
        Self(Shares::new(STRANGERS_AT_ONCE))
    }
}

impl Strangers {
    /// A place for somebody who asks from this address.
    pub(super) fn enter(&self, from: IpAddr) -> Option<Visit> {
        self.0.take(network_of(from), 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(strangers: &Strangers, from: &str) -> Vec<Visit> {
        std::iter::from_fn(|| strangers.enter(from.parse().unwrap())).collect()
    }

    #[test]
    fn somebody_new_always_finds_a_place() {
        let strangers = Strangers::default();
        let first = enter(&strangers, "192.0.2.1");
        assert_eq!(first.len(), STRANGERS_AT_ONCE / 2);
        let more: Vec<_> = (2..6).map(|last| enter(&strangers, &format!("192.0.2.{last}"))).collect();
        assert!(more.iter().all(|places| !places.is_empty()), "{more:?}");
        assert!(strangers.enter("192.0.2.77".parse().unwrap()).is_some());
        drop(first);
        assert!(!enter(&strangers, "192.0.2.2").is_empty(), "places come back");
    }

    #[test]
    fn a_network_is_one_asker() {
        let strangers = Strangers::default();
        let _held = enter(&strangers, "2001:db8::1");
        assert!(strangers.enter("2001:db8::ffff:2".parse().unwrap()).is_none());
        assert!(strangers.enter("2001:db8:1::1".parse().unwrap()).is_some());
        let _mapped = enter(&strangers, "::ffff:192.0.2.1");
        assert!(strangers.enter("192.0.2.1".parse().unwrap()).is_none());
    }
}
