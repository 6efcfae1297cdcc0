//! The places from which transactions are sent, in lanes: who is slow or fails holds a place of those who are quick, or of
//! those who are not known yet, for as long as it takes to find that out, and no longer while others wait for it.
//! * A transaction to somebody quick that does not end in [`QUICK_WITHIN`] goes on in the slow lane, one to somebody new
//!   after `FIRST_CONTACT_WITHIN`. Where there is no place, it stays until others wait for its own; then it ends, and is
//!   begun again in the slow lane later.
//! * Those that failed when they were last tried, also before a start, have a lane of their own. So have the slow: one that
//!   stops answering holds a place of theirs until its transaction has failed, once.
//! * In each lane, those for whom there is only presence come last.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use ruma::{OwnedServerName, ServerName};
use tokio::{sync::Notify, time::timeout};

use super::Inner;
use crate::https::REQUESTS_AT_ONCE;

/// A destination is quick if it takes a transaction in this time.
pub const QUICK_WITHIN: Duration = Duration::from_secs(1);
/// How long the first transaction to a destination may take, with finding and connecting to it.
const FIRST_CONTACT_WITHIN: Duration = Duration::from_secs(3);

/// Whom a place is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// Those who took the last transaction in no time.
    Quick,
    /// Those to whom nothing was sent since the start.
    New,
    /// Those who take their time.
    Slow,
    /// Those that failed when they were last tried, by this process or one before.
    Trial,
}

/// How many lanes there are.
pub(super) const LANES: usize = Lane::ALL.len();

impl Lane {
    const ALL: [Lane; 4] = [Lane::Quick, Lane::New, Lane::Slow, Lane::Trial];

    /// Transactions under way at a time.
    pub(super) const fn places(self) -> usize {
        match self {
            Lane::Quick => 200,
            Lane::New => 100,
            Lane::Slow | Lane::Trial => 60,
        }
    }

    /// How long a place may be held without making way for others; for ever if nothing is said.
    const fn patience(self) -> Option<Duration> {
        match self {
            Lane::Quick => Some(QUICK_WITHIN),
            Lane::New => Some(FIRST_CONTACT_WITHIN),
            Lane::Slow | Lane::Trial => None,
        }
    }
}

/// Transactions under way at a time, in all lanes.
pub const SENDING_AT_ONCE: usize =
    Lane::Quick.places() + Lane::New.places() + Lane::Slow.places() + Lane::Trial.places();
// Else those who are quick would wait for the others after all.
const _: () = assert!(SENDING_AT_ONCE < REQUESTS_AT_ONCE);

#[derive(Default)]
struct Queue {
    first: VecDeque<OwnedServerName>,
    last: VecDeque<OwnedServerName>,
    running: usize,
    /// Of those that run, who were started and have not looked for somebody yet.
    coming: usize,
}

impl Queue {
    /// For how many there is nobody, not even on the way.
    fn unserved(&self) -> usize {
        (self.first.len() + self.last.len()).saturating_sub(self.coming)
    }
}

/// Who waits in which lane, and how many are being served.
#[derive(Default)]
pub(super) struct Lanes([Queue; LANES]);

impl Lanes {
    fn of(&mut self, lane: Lane) -> &mut Queue {
        &mut self.0[lane as usize]
    }

    /// A destination waits in a lane; `last`: behind all who do not.
    pub(super) fn push(&mut self, lane: Lane, server: OwnedServerName, last: bool) {
        let queue = self.of(lane);
        if last { queue.last.push_back(server) } else { queue.first.push_back(server) }
    }

    /// The next in a lane, and whether it stood with the last.
    pub(super) fn pop(&mut self, lane: Lane) -> Option<(OwnedServerName, bool)> {
        let queue = self.of(lane);
        let first = queue.first.pop_front().map(|server| (server, false));
        first.or_else(|| queue.last.pop_front().map(|server| (server, true)))
    }

    pub(super) fn running(&self) -> usize {
        self.0.iter().map(|queue| queue.running).sum()
    }

    /// The workers that should be started now; they count as running.
    pub(super) fn starting(&mut self) -> Vec<Lane> {
        let mut new = Vec::new();
        for lane in Lane::ALL {
            let queue = self.of(lane);
            let count = queue.unserved().min(lane.places().saturating_sub(queue.running));
            queue.running += count;
            queue.coming += count;
            new.extend(std::iter::repeat_n(lane, count));
        }
        new
    }

    /// The lanes in which somebody waits in vain, with their number.
    pub(super) fn crowded(&self) -> impl Iterator<Item = (Lane, usize)> {
        let unserved = Lane::ALL.into_iter().map(|lane| (lane, self.0[lane as usize].unserved()));
        unserved.filter(|(lane, unserved)| *unserved > 0 && lane.patience().is_some())
    }

    fn ends(&mut self, lane: Lane) {
        self.of(lane).running -= 1;
    }

    /// What is to be done with a transaction that takes long: go on among the slow, stay, or end.
    fn make_way(&mut self, lane: Lane) -> Way {
        let slow = self.of(Lane::Slow);
        if slow.running < Lane::Slow.places() {
            slow.running += 1;
            self.ends(lane);
            return Way::Moved;
        }
        if self.of(lane).unserved() == 0 {
            return Way::Stay;
        }
        self.ends(lane);
        Way::End
    }
}

/// Wakes transactions that take long when others want their places: a signal for each lane.
#[derive(Default)]
pub(super) struct Crowds([Notify; LANES]);

impl Crowds {
    /// So many want places of a lane.
    pub(super) fn want(&self, lane: Lane, count: usize) {
        for _ in 0..count.min(lane.places()) {
            self.0[lane as usize].notify_one();
        }
    }
}

enum Way {
    Stay,
    Moved,
    End,
}

/// A worker's place; it is given back with it.
pub(super) struct Place {
    inner: Arc<Inner>,
    lane: Option<Lane>,
    /// Nobody was looked for yet.
    is_new: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(lane) = self.lane.take() {
            self.inner.state.lock().lanes.ends(lane);
        }
    }
}

impl Place {
    /// One that is counted already.
    pub(super) fn new(inner: Arc<Inner>, lane: Lane) -> Self {
        Self { inner, lane: Some(lane), is_new: true }
    }

    /// The next destination that waits for it. Where there is none, the place is given back at once: who comes then
    /// finds it free.
    pub(super) fn next(&mut self) -> Option<OwnedServerName> {
        let lane = self.lane?;
        let closing = self.inner.is_closing();
        let mut state = self.inner.state.lock();
        if std::mem::take(&mut self.is_new) {
            state.lanes.of(lane).coming -= 1;
        }
        let next = if closing { None } else { state.next_ready(lane) };
        if next.is_none() {
            state.lanes.ends(lane);
            self.lane = None;
        }
        next
    }

    /// Waits for an answer without standing in the way of others. None: it was given up, to be begun again.
    pub(super) async fn wait<T>(
        &mut self,
        server: &ServerName,
        answer: impl Future<Output = T>,
    ) -> Option<T> {
        let mut answer = std::pin::pin!(answer);
        if let Ok(answer) = timeout(QUICK_WITHIN, &mut answer).await {
            self.inner.state.lock().belongs_to(server, Lane::Quick);
            return Some(answer);
        }
        self.inner.state.lock().belongs_to(server, Lane::Slow);
        if let Some(patience) = self.lane.and_then(Lane::patience)
            && let Ok(answer) = timeout(patience.saturating_sub(QUICK_WITHIN), &mut answer).await
        {
            return Some(answer);
        }
        while let Some(lane) = self.lane.filter(|lane| lane.patience().is_some()) {
            let way = self.inner.state.lock().lanes.make_way(lane);
            match way {
                Way::Moved => {
                    self.lane = Some(Lane::Slow);
                    self.inner.start_workers();
                }
                Way::End => {
                    self.lane = None;
                    self.inner.start_workers();
                    return None;
                }
                Way::Stay => tokio::select! {
                    answer = &mut answer => return Some(answer),
                    () = self.inner.crowds.0[lane as usize].notified() => {}
                },
            }
        }
        Some(answer.await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(n: usize) -> OwnedServerName {
        format!("s{n}.test").try_into().unwrap()
    }

    /// As many as there are places, each with a worker that has begun.
    fn full() -> Lanes {
        let mut lanes = Lanes::default();
        for n in 0..Lane::Quick.places() {
            lanes.push(Lane::Quick, name(n), false);
        }
        assert_eq!(lanes.starting().len(), Lane::Quick.places());
        assert!(lanes.starting().is_empty(), "each is served once");
        while lanes.pop(Lane::Quick).is_some() {}
        lanes.of(Lane::Quick).coming = 0;
        lanes
    }

    #[test]
    fn the_slow_make_way_only_for_those_who_wait() {
        let mut lanes = full();
        for _ in 0..Lane::Slow.places() {
            assert!(matches!(lanes.make_way(Lane::Quick), Way::Moved));
        }
        assert!(matches!(lanes.make_way(Lane::Quick), Way::Stay), "the slow have no more places than theirs");
        for n in 0..=Lane::Slow.places() {
            lanes.push(Lane::Quick, name(1_000 + n), false);
        }
        assert_eq!(lanes.starting(), vec![Lane::Quick; Lane::Slow.places()]);
        assert_eq!(lanes.crowded().collect::<Vec<_>>(), [(Lane::Quick, 1)]);
        assert!(matches!(lanes.make_way(Lane::Quick), Way::End));
        assert_eq!(lanes.starting(), [Lane::Quick]);
        assert!(matches!(lanes.make_way(Lane::Quick), Way::Stay), "for one who waits, one makes way");
        assert_eq!(lanes.running(), Lane::Quick.places() + Lane::Slow.places());
    }

    #[test]
    fn presence_comes_last() {
        let mut lanes = Lanes::default();
        lanes.push(Lane::Quick, name(1), true);
        lanes.push(Lane::Quick, name(2), false);
        assert_eq!(lanes.pop(Lane::Quick), Some((name(2), false)));
        assert_eq!(lanes.pop(Lane::Quick), Some((name(1), true)));
        assert_eq!(lanes.pop(Lane::Quick), None);
    }
}
