//! Places for work that is costly: so many at once, of these so many for one asker, and a short line behind them.
//! * The line of an asker is bounded, and so is the time in it: who cannot be served soon is told when to come again.
//! * An asker's own places come first, so that those who ask in masses wait for themselves and not in others' way.

use std::{collections::HashMap, hash::Hash, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many may do something.
#[derive(Debug, Clone, Copy)]
pub struct TurnLimits {
    /// At once, of all askers.
    pub at_once: usize,
    /// At once, of one asker.
    pub each: usize,
    /// In line, of one asker.
    pub waiting_each: usize,
    /// In line, of all askers.
    pub waiting: usize,
    /// How long one waits in line.
    pub patience: Duration,
}

/// Nobody is told to come again later than this.
const RETRY_AT_MOST: Duration = Duration::from_secs(15);

/// Too many do it already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too much of this is under way")]
pub struct Crowded {
    /// When to come again.
    pub retry_after: Duration,
}

/// Places and the lines before them. Cheap to clone.
#[derive(Debug)]
pub struct Turns<K>(Arc<Inner<K>>);

#[derive(Debug)]
struct Inner<K> {
    limits: TurnLimits,
    places: Arc<Semaphore>,
    askers: Mutex<Askers<K>>,
}

#[derive(Debug)]
struct Askers<K> {
    present: usize,
    by: HashMap<K, Asker>,
}

#[derive(Debug)]
struct Asker {
    present: usize,
    places: Arc<Semaphore>,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub struct Turn<K: Eq + Hash> {
    _place: OwnedSemaphorePermit,
    _own: OwnedSemaphorePermit,
    _present: Present<K>,
}

#[derive(Debug)]
struct Present<K: Eq + Hash> {
    turns: Arc<Inner<K>>,
    who: K,
}

impl<K> Clone for Turns<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Clone + Eq + Hash> Turns<K> {
    /// Places by these limits.
    pub fn new(limits: TurnLimits) -> Self {
        Self(Arc::new(Inner {
            limits,
            places: Arc::new(Semaphore::new(limits.at_once)),
            askers: Mutex::new(Askers { present: 0, by: HashMap::new() }),
        }))
    }

    /// A place, at once or after a while in line.
    pub async fn take(&self, who: K) -> Result<Turn<K>, Crowded> {
        let limits = &self.0.limits;
        let crowded = Crowded { retry_after: limits.patience.min(RETRY_AT_MOST) };
        let (present, own) = self.enter(who).ok_or(crowded)?;
        let waiting = async {
            let own = own.acquire_owned().await.ok()?;
            let place = self.0.places.clone().acquire_owned().await.ok()?;
            Some((own, place))
        };
        match tokio::time::timeout(limits.patience, waiting).await {
            Ok(Some((own, place))) => Ok(Turn { _place: place, _own: own, _present: present }),
            Ok(None) | Err(_) => Err(crowded),
        }
    }

    /// Into the line.
    fn enter(&self, who: K) -> Option<(Present<K>, Arc<Semaphore>)> {
        let limits = &self.0.limits;
        let mut askers = self.0.askers.lock();
        let present = askers.by.get(&who).map_or(0, |asker| asker.present);
        if askers.present >= limits.at_once.saturating_add(limits.waiting)
            || present >= limits.each.saturating_add(limits.waiting_each)
        {
            return None;
        }
        askers.present += 1;
        let new = || Asker { present: 0, places: Arc::new(Semaphore::new(limits.each)) };
        let asker = askers.by.entry(who.clone()).or_insert_with(new);
        asker.present += 1;
        let own = asker.places.clone();
        Some((Present { turns: self.0.clone(), who }, own))
    }
}

impl<K: Eq + Hash> Drop for Present<K> {
    fn drop(&mut self) {
        let mut askers = self.turns.askers.lock();
        askers.present = askers.present.saturating_sub(1);
        let Some(asker) = askers.by.get_mut(&self.who) else { return };
        asker.present = asker.present.saturating_sub(1);
        if asker.present == 0 {
            askers.by.remove(&self.who);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: TurnLimits =
        TurnLimits { at_once: 3, each: 2, waiting_each: 1, waiting: 10, patience: Duration::from_secs(10) };

    #[tokio::test(start_paused = true)]
    async fn one_asker_leaves_places_to_others() {
        let turns = Turns::new(LIMITS);
        let held = [turns.take("a").await.unwrap(), turns.take("a").await.unwrap()];
        let waiting = tokio::spawn({
            let turns = turns.clone();
            async move { turns.take("a").await.map(drop) }
        });
        tokio::task::yield_now().await;
        assert_eq!(turns.take("a").await.unwrap_err().retry_after, LIMITS.patience, "the line is full");
        let other = turns.take("b").await.unwrap();
        drop(held);
        waiting.await.unwrap().unwrap();
        drop(other);
        assert_eq!(turns.0.askers.lock().present, 0);
        assert!(turns.0.askers.lock().by.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever() {
        let turns = Turns::new(LIMITS);
        let _held = [turns.take("a").await.unwrap(), turns.take("a").await.unwrap()];
        let started = tokio::time::Instant::now();
        turns.take("a").await.unwrap_err();
        assert_eq!(started.elapsed(), LIMITS.patience);
        let _last = turns.take("b").await.unwrap();
        turns.take("c").await.unwrap_err();
        assert_eq!(turns.0.askers.lock().by.len(), 2, "who left the line is forgotten");
    }
}
