//! Presence of our users, told to the servers that share a room with them. Nothing of it is kept over a restart.
//! * Changes of a second go together, the newest of each user.
//! * Who is there is told again from time to time: other servers take who they do not hear of for gone.
//! * A server that could not be told is told anew when it is back: of all who are there, and of those who left lately.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use hearth_store::StoreError;
use hearth_users::PresenceView;
use ruma::{OwnedServerName, OwnedUserId, UserId, presence::PresenceState};
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior};

use super::{Inner, edus::EduKey};

/// Changes of presence of this long go together.
const PRESENCE_EVERY: Duration = Duration::from_secs(1);
/// Users whose changed presence is told at a time, the latest.
const CHANGED_AT_ONCE: usize = 10_000;
/// Users whose presence is remembered as told, to be told again. Of more, only changes are told.
const TOLD_MAX: usize = 50_000;
/// Who is there is told again after this time.
const TELL_AGAIN: Duration = Duration::from_secs(25 * 60);
/// After this time other servers have found out for themselves that somebody is gone.
const GONE_IS_KNOWN: Duration = Duration::from_secs(60 * 60);
/// Users who are told again in a second.
const AGAIN_AT_ONCE: usize = 200;
/// Users of whom servers that are back are told in a second: they fit one transaction.
const RETOLD_AT_ONCE: usize = 50;
/// Rooms of a user that are looked at to find who sees their presence.
const ROOMS_OF_A_USER: usize = 1_000;

/// What others think of a user.
struct Told {
    at: Instant,
    is_there: bool,
}

/// Servers that are back, and the users of whom they are not yet told.
#[derive(Default)]
struct Round {
    servers: BTreeSet<OwnedServerName>,
    users: Vec<OwnedUserId>,
}

impl Inner {
    /// Tells who is there, at each change, from time to time, and to servers that are back.
    pub(super) async fn follow_presence(self: Arc<Self>) {
        if !self.users.presence().enabled() {
            return;
        }
        let local = self.federation.local_servers();
        let mut told: HashMap<OwnedUserId, Told> = HashMap::new();
        let (mut seen, mut round) = (0, Round::default());
        let mut tick = tokio::time::interval(PRESENCE_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let mut users: Vec<OwnedUserId> = Vec::new();
            if self.users.presence().counter() > seen {
                let ours = |user: &UserId| local.is_local(user.server_name());
                let (changed, upto) = self.users.presence().changes_since(seen, CHANGED_AT_ONCE, ours);
                users.extend(changed.into_iter().map(|(user, _)| user));
                seen = upto;
            }
            told.retain(|_, told| told.is_there || told.at.elapsed() < GONE_IS_KNOWN);
            let due = told.iter().filter(|(_, told)| told.is_there && told.at.elapsed() >= TELL_AGAIN);
            users.extend(due.map(|(user, _)| user.clone()).take(AGAIN_AT_ONCE));
            for user in users {
                let is_there = self.tell_presence(&user, None).await;
                if told.len() < TOLD_MAX || told.contains_key(&user) {
                    told.insert(user, Told { at: Instant::now(), is_there });
                }
            }
            if round.users.is_empty() {
                round.servers = self.state.lock().take_returned();
                if !round.servers.is_empty() {
                    round.users = told.keys().cloned().collect();
                }
            }
            let rest = round.users.len().saturating_sub(RETOLD_AT_ONCE);
            for user in round.users.split_off(rest) {
                self.tell_presence(&user, Some(&round.servers)).await;
            }
        }
    }

    /// Tells the servers that see a user, or those among them that are wanted, and says whether the user is there.
    async fn tell_presence(
        self: &Arc<Self>,
        user: &UserId,
        wanted: Option<&BTreeSet<OwnedServerName>>,
    ) -> bool {
        let view = self.users.presence().of(user);
        match self.servers_that_see(user).await {
            Ok(servers) => {
                let wanted = |server: &OwnedServerName| wanted.is_none_or(|wanted| wanted.contains(server));
                let servers: Vec<OwnedServerName> = servers.into_iter().filter(wanted).collect();
                let key = Arc::new(EduKey::Presence(user.to_owned()));
                self.tell(&servers, &[(key, Arc::new(presence_json(user, &view)))]);
            }
            Err(error) => tracing::warn!(%error, %user, "who sees a user cannot be read"),
        }
        view.presence != PresenceState::Offline
    }

    /// The other servers of the rooms that a user is in.
    async fn servers_that_see(&self, user: &UserId) -> Result<BTreeSet<OwnedServerName>, StoreError> {
        let mut servers = BTreeSet::new();
        for room in self.rooms.joined_rooms(user).await?.into_iter().take(ROOMS_OF_A_USER) {
            if let Some(info) = self.rooms.room_of(room).await? {
                servers.extend(self.others_in(&info).await?);
            }
        }
        Ok(servers)
    }
}

fn presence_json(user: &UserId, view: &PresenceView) -> serde_json::Value {
    let mut json = json!({
        "user_id": user,
        "presence": view.presence.as_str(),
        "currently_active": view.currently_active,
        "last_active_ago": view.last_active_ago_ms.unwrap_or_default(),
    });
    if let Some(message) = &view.status_msg {
        json["status_msg"] = message.as_str().into();
    }
    json
}
