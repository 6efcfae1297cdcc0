//! One state out of the states of several forks: finds the conflict, and feeds the steps of `dag`.
//! * Nothing is resolved where the forks' snapshots are one.
//! * What is in conflict comes from the differences of snapshots, the auth difference from the auth index.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use hearth_dag::resolve::{Conflict, Resolution, Step};
use hearth_dag::{StateKey, StateResolution};
use hearth_store::StoreError;
use ruma::OwnedEventId;

use crate::auth_index::Reach;
use crate::errors::WriteError;
use crate::head::kind_of;
use crate::ids::{EventSn, SnapshotId, StateKeySn};
use crate::tables::{AUTH_CHAIN_EVENTS, AUTH_CHAINS, ChainPlace, STATE_KEY_NAMES, Status};
use crate::turn::Turn;

/// Steps of one resolution. It needs about as many as the auth chain of its power levels is long.
const STEPS_MAX: usize = 10_000;
/// Events of a conflicted state subgraph that are looked at.
const SUBGRAPH_MAX: usize = 50_000;

impl Turn {
    /// The state that several forks have together.
    pub(crate) async fn resolve(&mut self, mut forks: Vec<SnapshotId>) -> Result<SnapshotId, WriteError> {
        let mut seen = Vec::new();
        forks.retain(|fork| {
            !seen.contains(fork) && {
                seen.push(*fork);
                true
            }
        });
        let Some(base) = forks.first().copied() else { return Ok(SnapshotId::EMPTY) };
        let mut keys: BTreeMap<StateKeySn, BTreeSet<EventSn>> = BTreeMap::new();
        for fork in &forks[1..] {
            for change in self.snapshots.diff(base, *fork).await? {
                keys.entry(change.key).or_default().extend(change.before.into_iter().chain(change.after));
            }
        }
        if keys.is_empty() {
            return Ok(base);
        }
        // A key may differ between two forks and be the first fork's in a third.
        for (key, events) in &mut keys {
            for fork in &forks {
                events.extend(self.snapshots.lookup(*fork, *key).await?);
            }
        }
        let mut names: HashMap<StateKey, StateKeySn> = HashMap::new();
        let mut conflict = Conflict::default();
        for (key, events) in &keys {
            let name = self.key_name(*key).await?;
            names.insert(name.clone(), *key);
            let mut ids = Vec::with_capacity(events.len());
            for event in events {
                ids.push(self.event(*event).await?.header.event_id.clone());
            }
            conflict.keys.insert(name, ids);
        }
        let rules = self.head.room.rules;
        if rules.state_resolution != StateResolution::V1 {
            conflict.auth_difference = self.auth_difference(&forks, &keys).await?;
        }
        if rules.state_resolution == StateResolution::V2_1 {
            conflict.subgraph = self.subgraph(keys.values().flatten().copied().collect()).await?;
        }
        let resolved = self.run(Resolution::new(rules, conflict), base, &keys).await?;
        let mut changes = Vec::with_capacity(keys.len());
        for (name, key) in names {
            let event = match resolved.get(&name) {
                Some(event) => self.event_number(event).await?,
                None => None,
            };
            changes.push((key, event));
        }
        changes.sort_unstable();
        Ok(self.snapshots.apply(base, &changes).await?)
    }

    async fn run(
        &mut self,
        mut resolution: Resolution,
        unconflicted: SnapshotId,
        conflicted: &BTreeMap<StateKeySn, BTreeSet<EventSn>>,
    ) -> Result<BTreeMap<StateKey, OwnedEventId>, WriteError> {
        for _ in 0..STEPS_MAX {
            match resolution.step() {
                Step::Done(state) => return Ok(state),
                Step::Events(wanted) => {
                    for event_id in wanted {
                        match self.event_number(&event_id).await? {
                            Some(number) => {
                                let event = self.event(number).await?;
                                resolution.event(event.pdu.clone(), event.status() == Status::Rejected);
                            }
                            None => resolution.missing(event_id),
                        }
                    }
                }
                Step::Unconflicted(wanted) => {
                    for key in wanted {
                        let number = self.key_number(&(kind_of(&key.0), key.1.clone())).await?;
                        let event = match number {
                            Some(number) if !conflicted.contains_key(&number) => {
                                self.snapshots.lookup(unconflicted, number).await?
                            }
                            _ => None,
                        };
                        let event_id = match event {
                            Some(event) => Some(self.event(event).await?.header.event_id.clone()),
                            None => None,
                        };
                        resolution.unconflicted(key, event_id);
                    }
                }
            }
        }
        tracing::error!(room_id = %self.head.room.room_id, "state resolution did not end");
        Err(WriteError::Busy)
    }

    pub(crate) async fn key_name(&self, key: StateKeySn) -> Result<StateKey, WriteError> {
        let row = self.get(&STATE_KEY_NAMES, &(self.head.room.sn, key)).await?;
        let row = row.ok_or_else(|| StoreError::Corrupt {
            table: STATE_KEY_NAMES.name(),
            key: format!("{} {key}", self.head.room.sn),
            reason: "it is missing".to_owned(),
        })?;
        Ok((ruma::events::StateEventType::from(row.kind.as_str()), row.state_key))
    }

    /// The events that the auth chains of some forks have, but not of all.
    async fn auth_difference(
        &self,
        forks: &[SnapshotId],
        conflicted: &BTreeMap<StateKeySn, BTreeSet<EventSn>>,
    ) -> Result<Vec<OwnedEventId>, WriteError> {
        let mut shared = Reach::new();
        for (key, event) in self.snapshots.all(forks[0]).await? {
            if !conflicted.contains_key(&key) {
                self.reach_from(&mut shared, event).await?;
            }
        }
        let mut reaches = Vec::with_capacity(forks.len());
        for fork in forks {
            let mut reach = shared.clone();
            for key in conflicted.keys() {
                if let Some(event) = self.snapshots.lookup(*fork, *key).await? {
                    self.reach_from(&mut reach, event).await?;
                }
            }
            reaches.push(reach);
        }
        let chains: BTreeSet<u32> = reaches.iter().flat_map(|reach| reach.keys().copied()).collect();
        let mut difference = Vec::new();
        for chain in chains {
            let ends = || reaches.iter().map(|reach| reach.get(&chain).copied().unwrap_or(0));
            for sequence in ends().min().unwrap_or(0) + 1..=ends().max().unwrap_or(0) {
                if let Some(event) =
                    self.get(&AUTH_CHAIN_EVENTS, &(self.head.room.sn, chain, sequence)).await?
                {
                    difference.push(self.event(event).await?.header.event_id.clone());
                }
            }
        }
        Ok(difference)
    }

    /// Events on a path of auth events from one conflicted event to another.
    async fn subgraph(&self, conflicted: BTreeSet<EventSn>) -> Result<Vec<OwnedEventId>, WriteError> {
        let mut goals: Vec<ChainPlace> = Vec::new();
        for event in &conflicted {
            goals.extend(self.get(&AUTH_CHAINS, &(self.head.room.sn, *event)).await?);
        }
        let mut found = BTreeSet::new();
        let mut seen = BTreeSet::new();
        let mut open: Vec<EventSn> = conflicted.iter().copied().collect();
        while let Some(event) = open.pop() {
            if !seen.insert(event) || seen.len() > SUBGRAPH_MAX {
                continue;
            }
            for below in self.event(event).await?.header.auth_events.clone() {
                let mut reach = Reach::new();
                self.reach_from(&mut reach, below).await?;
                let reaches = |goal: &ChainPlace| {
                    reach.get(&goal.chain).is_some_and(|sequence| *sequence >= goal.sequence)
                };
                if goals.iter().any(reaches) {
                    found.insert(below);
                    open.push(below);
                }
            }
        }
        found.extend(conflicted);
        let mut ids = Vec::with_capacity(found.len());
        for event in found {
            ids.push(self.event(event).await?.header.event_id.clone());
        }
        Ok(ids)
    }

    async fn reach_from(&self, reached: &mut Reach, event: EventSn) -> Result<(), WriteError> {
        if let Some(place) = self.get(&AUTH_CHAINS, &(self.head.room.sn, event)).await? {
            self.reach(reached, place).await?;
        }
        Ok(())
    }
}
