//! A place among those who fetch for rooms, and the time that one has who holds it.
//! * Places are shared by the servers that handed us what waits. None is held while somebody else is waited for: a
//!   policy server, or a place of another kind.
//! * The time is for the work: what is waited for places and policy servers is no part of it.

use std::{
    future::{Future, pending},
    hash::Hash,
    pin::pin,
    time::Duration,
};

use parking_lot::Mutex;
use ruma::{OwnedServerName, ServerName};
use tokio::{sync::Notify, time::Instant};

use crate::shares::{Share, Shares};

/// A place among those who fetch.
pub(super) struct Place<'a> {
    places: &'a Shares<OwnedServerName>,
    /// The server that handed us what is fetched for.
    origin: OwnedServerName,
    time: &'a WorkTime,
    share: Option<Share<OwnedServerName>>,
}

impl<'a> Place<'a> {
    /// Waits for one.
    pub(super) async fn take(
        places: &'a Shares<OwnedServerName>,
        origin: &ServerName,
        time: &'a WorkTime,
    ) -> Self {
        let mut place = Self { places, origin: origin.to_owned(), time, share: None };
        place.take_again().await;
        place
    }

    /// Does something for which others need not wait, and which is no part of the work.
    pub(super) async fn outside<T>(&mut self, waiting: impl Future<Output = T>) -> T {
        self.share = None;
        let done = self.time.without(waiting).await;
        self.take_again().await;
        done
    }

    /// Does a part of the work in a place of another kind.
    pub(super) async fn elsewhere<K: Clone + Eq + Hash, T>(
        &mut self,
        other: impl Future<Output = Share<K>>,
        work: impl Future<Output = T>,
    ) -> T {
        self.share = None;
        let other = self.time.without(other).await;
        let done = work.await;
        drop(other);
        self.take_again().await;
        done
    }

    async fn take_again(&mut self) {
        self.share = Some(self.time.without(self.places.wait(self.origin.clone(), 1)).await);
    }
}

/// Time that goes on only while there is work.
pub(super) struct WorkTime {
    time: Mutex<Time>,
    changed: Notify,
}

struct Time {
    left: Duration,
    /// Since when it goes on, if it does.
    since: Option<Instant>,
}

impl WorkTime {
    /// So much, from now on.
    pub(super) fn new(most: Duration) -> Self {
        Self { time: Mutex::new(Time { left: most, since: Some(Instant::now()) }), changed: Notify::new() }
    }

    /// Does something as long as there is time.
    pub(super) async fn limit<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        loop {
            let end = self.end();
            let is_over = async {
                match end {
                    Some(end) => tokio::time::sleep_until(end).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                biased;
                done = &mut work => return Some(done),
                () = self.changed.notified() => {}
                () = is_over => return None,
            }
        }
    }

    /// Waits for something that is no part of the work.
    async fn without<T>(&self, waiting: impl Future<Output = T>) -> T {
        {
            let mut time = self.time.lock();
            let passed = time.since.take().map_or(Duration::ZERO, |since| since.elapsed());
            time.left = time.left.saturating_sub(passed);
        }
        self.changed.notify_one();
        let done = waiting.await;
        self.time.lock().since = Some(Instant::now());
        self.changed.notify_one();
        done
    }

    /// When it is over, if it goes on.
    fn end(&self) -> Option<Instant> {
        let time = self.time.lock();
        time.since.map(|since| since + time.left)
    }
}

#[cfg(test)]
mod tests {
    use ruma::server_name;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waiting_for_a_place_takes_nothing_of_the_time() {
        let (places, others) = (Shares::new(1), Shares::new(1));
        let second = Duration::from_secs(1);
        let time = WorkTime::new(second * 10);
        let held = others.take((), 1);
        let freed = async {
            tokio::time::sleep(second * 100).await;
            drop(held);
        };
        let work = time.limit(async {
            let mut place = Place::take(&places, server_name!("a.test"), &time).await;
            tokio::time::sleep(second * 4).await;
            place.outside(tokio::time::sleep(second * 50)).await;
            place.elsewhere(others.wait((), 1), async { tokio::time::sleep(second * 5).await }).await;
            assert!(place.share.is_some());
        });
        let (done, ()) = tokio::join!(work, freed);
        assert!(done.is_some());
        let began = Instant::now();
        let place = Place::take(&places, server_name!("a.test"), &time).await;
        assert!(time.limit(pending::<()>()).await.is_none());
        assert_eq!(began.elapsed(), second, "what was left");
        drop(place);
    }
}
