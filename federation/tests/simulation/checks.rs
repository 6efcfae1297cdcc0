//! What has to hold in the end.
//! * What was acknowledged is where it is due, without anybody saying anything more.
//! * Servers that are in the room agree about its state. Where an event was soft-failed by one and not by another, the
//!   first one's state does not know it before an event of the other names it: by the specification it is no forward
//!   extremity there. Then each says one thing, once; after that they agree.
//! * A server is in the room for itself as for others. There are three ways to be otherwise, each with its proof.

use std::time::Duration;

use hearth_rooms::{Membership, Status};
use ruma::OwnedEventId;
use serde_json::json;
use tokio::time::sleep;

use crate::{
    run::{Run, SERVERS},
    world::name,
};

/// What is said once is everywhere after this time.
const HEARD_AFTER: Duration = Duration::from_secs(60);

impl Run {
    /// The end of a run: what does not hold.
    pub async fn ends(&mut self) -> Vec<String> {
        self.settles().await;
        let mut problems = self.missing().await;
        problems.extend(self.unfinished().await);
        if self.disagreements().await.is_empty() {
            self.counts.agreed_at_once += 1;
        } else {
            self.says_something().await;
        }
        problems.extend(self.disagreements().await);
        problems.extend(self.estranged().await);
        problems.extend(self.refused().await);
        problems
    }

    /// Each server that is there says something, so that all ends of the room are tied together.
    async fn says_something(&mut self) {
        for place in self.there().await.into_iter().rev() {
            let node = &self.nodes[place];
            let body = json!({ "msgtype": "m.text", "body": "end" });
            let _ = node.sends(&node.user("u0"), &self.room, "m.room.message", "", body).await;
            sleep(HEARD_AFTER).await;
        }
    }

    /// Those that are in the room as they see it and as the one sees it who made the room.
    async fn there(&self) -> Vec<usize> {
        let mut there = Vec::new();
        for (place, node) in self.nodes.iter().enumerate() {
            if node.is_resident(&self.room).await
                && self.nodes[0].sees(&self.room, &name(SERVERS[place])).await
            {
                there.push(place);
            }
        }
        there
    }

    /// What is due and is not there.
    async fn missing(&mut self) -> Vec<String> {
        let mut stays = Vec::new();
        for node in &mut self.nodes {
            stays.push(node.stay(&self.room).await);
        }
        let mut problems = Vec::new();
        for acknowledged in &self.acknowledged {
            for (place, stay) in &acknowledged.owed {
                if stays[*place].as_ref() != Some(stay) {
                    continue;
                }
                self.counts.owed += 1;
                let (event, from) = (&acknowledged.event, SERVERS[acknowledged.from]);
                let status = self.nodes[*place].status(&self.room, event).await;
                if matches!(status, None | Some(Status::Outlier)) {
                    problems.push(format!("{event} of {from} is {status:?} at {}", SERVERS[*place]));
                }
            }
        }
        problems
    }

    /// What should have come to an end.
    async fn unfinished(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let there = self.there().await;
        for place in &there {
            let (node, name) = (&self.nodes[*place], SERVERS[*place]);
            if !node.residency(&self.room).await.1 {
                problems.push(format!("{name} does not know all of the state"));
            }
            let waiting = node.waiting(&self.room).await;
            if waiting > 0 {
                problems.push(format!("{waiting} events wait at {name}"));
            }
            for other in &there {
                let store = &node.server().store;
                let behind = hearth_federation::sender::rooms_behind(store, SERVERS[*other]).await.unwrap();
                if behind > 0 {
                    problems.push(format!("{name} still owes something to {}", SERVERS[*other]));
                }
            }
            let status = node.server().sender.status();
            if status.queued > 0 || status.busy > 0 {
                problems.push(format!("{name} still sends: {status:?}"));
            }
        }
        problems
    }

    /// In what the states differ of those that are there.
    async fn disagreements(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let state = self.nodes[0].state(&self.room).await;
        for place in self.there().await {
            let other = self.nodes[place].state(&self.room).await;
            let keys: std::collections::BTreeSet<_> = state.keys().chain(other.keys()).collect();
            for key in keys.into_iter().filter(|key| state.get(*key) != other.get(*key)) {
                let (here, there) = (state.get(key), other.get(key));
                problems.push(format!("{key:?} is {here:?} at a.test, {there:?} at {}", SERVERS[place]));
            }
        }
        problems
    }

    /// Servers that are in the room for themselves and not for others, or the other way round, without a reason.
    async fn estranged(&mut self) -> Vec<String> {
        let mut problems = Vec::new();
        for (place, server) in SERVERS.iter().enumerate().skip(1) {
            let (one, other) = (&self.nodes[0], &self.nodes[place]);
            let (seen, is_in) =
                (one.sees(&self.room, &name(server)).await, other.is_resident(&self.room).await);
            if seen == is_in {
                continue;
            }
            let user = other.user("u0");
            let here = one.member(&self.room, &user).await;
            let there = other.member(&self.room, &user).await;
            let told = format!(
                "{server} is in the room for itself: {is_in} ({there:?}), for a.test: {seen} ({here:?})"
            );
            let out = |member: &Option<(OwnedEventId, Membership)>| match member {
                Some((event, Membership::Leave | Membership::Ban)) => Some(event.clone()),
                _ => None,
            };
            if seen {
                let Some((join, Membership::Join)) = &here else {
                    problems.push(told);
                    continue;
                };
                // A resident server let it in, and the answer that says so did not come: it cannot know.
                if !matches!(other.status(&self.room, join).await, Some(Status::Accepted)) {
                    self.counts.half_joined += 1;
                    continue;
                }
                match out(&there) {
                    None => problems.push(told),
                    Some(end) => match one.status(&self.room, &end).await {
                        Some(Status::SoftFailed | Status::Rejected) => self.counts.not_put_out_by_all += 1,
                        Some(Status::Accepted) => self.counts.put_in_again += 1,
                        status => problems.push(format!("{told}; what ended it is {status:?} at a.test")),
                    },
                }
            } else {
                let (Some((join, Membership::Join)), end) = (&there, out(&here)) else {
                    problems.push(told);
                    continue;
                };
                let join_here = one.status(&self.room, join).await;
                let end_there = match &end {
                    Some(end) => other.status(&self.room, end).await,
                    None => None,
                };
                match (end_there, join_here) {
                    (Some(Status::SoftFailed | Status::Rejected), _) => self.counts.not_put_out_by_all += 1,
                    // It was let in by a server that did not know, or not accept, what had put it out before.
                    (None, Some(Status::SoftFailed | Status::Rejected)) => {
                        self.counts.not_put_out_by_all += 1
                    }
                    (Some(Status::Accepted), _) => self.counts.put_in_again += 1,
                    _ => problems.push(format!("{told}; {end_there:?} there, its join {join_here:?} here")),
                }
            }
        }
        problems
    }

    /// What was acknowledged and is refused, and what was forged and is not.
    async fn refused(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let there = self.there().await;
        for acknowledged in self.acknowledged.iter().filter(|event| there.contains(&event.from)) {
            for place in &there {
                if self.nodes[*place].status(&self.room, &acknowledged.event).await == Some(Status::Rejected)
                {
                    let (event, from) = (&acknowledged.event, SERVERS[acknowledged.from]);
                    problems.push(format!("{event} of {from} is rejected at {}", SERVERS[*place]));
                }
            }
        }
        for node in &self.nodes {
            for event in &self.forged {
                let status = node.status(&self.room, event).await;
                if !matches!(status, None | Some(Status::Rejected)) {
                    problems.push(format!("the forged {event} is {status:?} at {}", node.name));
                }
            }
        }
        problems
    }
}
