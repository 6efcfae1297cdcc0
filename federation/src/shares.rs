//! Something scarce that all askers share: places, or bytes.
//! * Whoever asks may hold as much as is free beside it, or one more: one asker gets half, the next one half of the rest,
//!   and of single places somebody new gets the last one.
//!   Whoever never gives anything back ties down a part, whatever the number of their requests; to leave nothing to
//!   somebody new takes several askers.
//! * Nobody has a place in a line that another could fill: who finds nothing is refused, or waits without one.

use std::{collections::HashMap, hash::Hash, net::IpAddr, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// What is shared. Cheap to clone.
#[derive(Debug)]
pub struct Shares<K>(Arc<Inner<K>>);

#[derive(Debug)]
struct Inner<K> {
    most: usize,
    taken: Mutex<Taken<K>>,
    freed: Notify,
}

#[derive(Debug)]
struct Taken<K> {
    all: usize,
    by: HashMap<K, usize>,
}

/// What one asker holds, until it is dropped.
#[derive(Debug)]
pub struct Share<K: Eq + Hash> {
    of: Arc<Inner<K>>,
    who: K,
    held: usize,
}

impl<K> Clone for Shares<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Clone + Eq + Hash> Shares<K> {
    /// So much for all.
    pub fn new(most: usize) -> Self {
        let taken = Mutex::new(Taken { all: 0, by: HashMap::new() });
        Self(Arc::new(Inner { most, taken, freed: Notify::new() }))
    }

    /// Nothing yet, for an asker who will take more bit by bit.
    pub fn open(&self, who: K) -> Share<K> {
        Share { of: self.0.clone(), who, held: 0 }
    }

    /// So much for an asker, if there is as much for them.
    pub fn take(&self, who: K, amount: usize) -> Option<Share<K>> {
        let mut share = self.open(who);
        share.grow(amount).then_some(share)
    }

    /// The same for somebody who can wait.
    pub async fn wait(&self, who: K, amount: usize) -> Share<K> {
        self.wait_until(|| self.take(who.clone(), amount)).await
    }

    /// One of several askers who want the same: so much for the first of them for whom there is as much.
    pub async fn wait_for_any(&self, who: &[K], amount: usize) -> Share<K> {
        self.wait_until(|| who.iter().find_map(|who| self.take(who.clone(), amount))).await
    }

    /// Tries now, and again whenever something is given back.
    async fn wait_until<T>(&self, mut attempt: impl FnMut() -> Option<T>) -> T {
        loop {
            let freed = self.0.freed.notified();
            tokio::pin!(freed);
            // From here on nothing that is given back goes unnoticed.
            freed.as_mut().enable();
            if let Some(got) = attempt() {
                return got;
            }
            freed.await;
        }
    }

    /// Whether there is as much for an asker now.
    pub fn has_left(&self, who: &K, amount: usize) -> bool {
        let taken = self.0.taken.lock();
        taken.leaves(self.0.most, who, amount)
    }

    /// A place of an asker in this and one of another in those, when both are there: nobody holds one of them while
    /// waiting for the other.
    pub async fn wait_for_both<L: Clone + Eq + Hash>(
        &self,
        who: K,
        others: &Shares<L>,
        other: L,
    ) -> (Share<K>, Share<L>) {
        loop {
            let (freed, other_freed) = (self.0.freed.notified(), others.0.freed.notified());
            tokio::pin!(freed, other_freed);
            freed.as_mut().enable();
            other_freed.as_mut().enable();
            // What is taken and given back at once would wake all who wait, and they one another: it is looked first.
            if self.has_left(&who, 1)
                && others.has_left(&other, 1)
                && let Some(share) = self.take(who.clone(), 1)
                && let Some(of_other) = others.take(other.clone(), 1)
            {
                return (share, of_other);
            }
            tokio::select! {
                () = freed => {}
                () = other_freed => {}
            }
        }
    }
}

impl<K: Eq + Hash> Taken<K> {
    fn leaves(&self, most: usize, who: &K, amount: usize) -> bool {
        let Some(left) = most.checked_sub(self.all.saturating_add(amount)) else { return false };
        let held = self.by.get(who).copied().unwrap_or(0);
        held.saturating_add(amount) <= left.saturating_add(1)
    }
}

impl<K: Clone + Eq + Hash> Share<K> {
    /// Takes more. Says whether there was as much.
    pub fn grow(&mut self, by: usize) -> bool {
        let mut taken = self.of.taken.lock();
        if !taken.leaves(self.of.most, &self.who, by) {
            return false;
        }
        taken.all += by;
        *taken.by.entry(self.who.clone()).or_default() += by;
        self.held += by;
        true
    }
}

impl<K: Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        if self.held == 0 {
            // Nobody who waits could take anything of it.
            return;
        }
        let mut taken = self.of.taken.lock();
        taken.all = taken.all.saturating_sub(self.held);
        if let Some(held) = taken.by.get_mut(&self.who) {
            *held = held.saturating_sub(self.held);
            if *held == 0 {
                taken.by.remove(&self.who);
            }
        }
        drop(taken);
        self.of.freed.notify_waiters();
    }
}

/// Whoever has one address of the sixth version has very many.
pub fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 72 << 72).into()),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_gets_half_and_somebody_new_always_some() {
        let shares = Shares::new(100);
        let mut first = shares.open("a");
        assert!(first.grow(30) && first.grow(20) && !first.grow(1));
        assert!(shares.take("a", 1).is_none(), "whichever way they ask");
        let second = shares.take("b", 25).unwrap();
        assert!(shares.take("b", 1).is_none() && shares.take("c", 12).is_some());
        drop((first, second));
        assert!(shares.take("b", 50).is_some(), "what is given back is free again");
        assert!(shares.take("b", 51).is_none());
        assert!(shares.0.taken.lock().by.is_empty(), "who holds nothing is forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_gets_what_is_given_back() {
        let shares = Shares::new(2);
        let held = shares.take("a", 1).unwrap();
        let waiting = tokio::spawn({
            let shares = shares.clone();
            async move { shares.wait("a", 1).await }
        });
        let other = shares.wait("b", 1).await;
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "the other one has what was left");
        drop(held);
        let got = waiting.await.unwrap();
        assert!(shares.take("c", 1).is_none());
        drop((got, other));
    }

    #[tokio::test(start_paused = true)]
    async fn one_of_several_who_want_the_same_is_enough() {
        let shares = Shares::new(4);
        let _held = [shares.take("a", 1).unwrap(), shares.take("a", 1).unwrap()];
        assert!(!shares.has_left(&"a", 1) && shares.has_left(&"b", 1));
        let got = shares.wait_for_any(&["a", "b"], 1).await;
        assert_eq!(got.who, "b");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_two_things_holds_none_of_them() {
        let (askers, servers) = (Shares::new(4), Shares::new(2));
        let held = servers.take("slow", 1).unwrap();
        let waiting: Vec<_> = (0..2)
            .map(|number| {
                let (askers, servers) = (askers.clone(), servers.clone());
                tokio::spawn(async move { drop(askers.wait_for_both(number, &servers, "slow").await) })
            })
            .collect();
        tokio::task::yield_now().await;
        assert_eq!(askers.0.taken.lock().all, 0);
        drop(held);
        for waiting in waiting {
            waiting.await.unwrap();
        }
        assert!(askers.0.taken.lock().by.is_empty() && servers.0.taken.lock().by.is_empty());
    }
}
