//! Whose requests make us fetch keys, before anything of them is believed.
//! * Whoever asks from one address may hold as many places as are free, and no more: one asker gets half of them, two
//!   a third each, and somebody new always finds one. Servers that never answer tie down those who named them.
//! * Nobody waits in line: who finds no place is told to come again.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use parking_lot::Mutex;

/// Places of all askers together.
pub const STRANGERS_AT_ONCE: usize = 100;

/// Who has how many places.
#[derive(Debug, Default)]
pub(super) struct Strangers(Mutex<HashMap<IpAddr, usize>>);

/// A place that is taken.
#[derive(Debug)]
pub(super) struct Visit {
    strangers: Arc<Strangers>,
    from: IpAddr,
}

impl Strangers {
    /// A place for somebody who asks from this address.
    pub(super) fn enter(self: &Arc<Self>, from: IpAddr) -> Option<Visit> {
        let from = network_of(from);
        let mut taken = self.0.lock();
        let free = STRANGERS_AT_ONCE.saturating_sub(taken.values().sum());
        let held = taken.get(&from).copied().unwrap_or(0);
        if held >= free {
            return None;
        }
        taken.insert(from, held + 1);
        Some(Visit { strangers: self.clone(), from })
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut taken = self.strangers.0.lock();
        if let Some(held) = taken.get_mut(&self.from) {
            *held -= 1;
            if *held == 0 {
                taken.remove(&self.from);
            }
        }
    }
}

/// Whoever has one address of the sixth version has very many.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 72 << 72).into()),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(strangers: &Arc<Strangers>, from: &str) -> Vec<Visit> {
        std::iter::from_fn(|| strangers.enter(from.parse().unwrap())).collect()
    }

    #[test]
    fn somebody_new_always_finds_a_place() {
        let strangers = Arc::<Strangers>::default();
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
        let strangers = Arc::<Strangers>::default();
        let _held = enter(&strangers, "2001:db8::1");
        assert!(strangers.enter("2001:db8::ffff:2".parse().unwrap()).is_none());
        assert!(strangers.enter("2001:db8:1::1".parse().unwrap()).is_some());
        let _mapped = enter(&strangers, "::ffff:192.0.2.1");
        assert!(strangers.enter("192.0.2.1".parse().unwrap()).is_none());
    }
}
