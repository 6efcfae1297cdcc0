//! Asking one server after another until one gives what is wanted.
//! * Who does not answer soon is not waited for: the next is asked beside it, and the first good answer counts.
//! * Of all refusals the most telling one is kept: what the room says goes before who is not in it.

use std::{collections::VecDeque, future::Future, pin::Pin, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use hearth_rooms::{Membership, Rooms, tables::OUT_OF_BAND};
use hearth_store::StoreError;
use http::StatusCode;
use ruma::{OwnedServerName, OwnedUserId, RoomId, ServerName, UserId};

use serde::Deserialize;

use super::RemoteRoomError;
use crate::{
    client::{RemoteError, RequestError},
    federation::Federation,
};

/// Servers that are asked to do one thing.
pub const CANDIDATES_MAX: usize = 10;
/// Who has not answered after this time is not waited for alone.
const NEXT_AFTER: Duration = Duration::from_secs(2);

type Answer<T> = Result<T, RequestError>;
type Ask<'a, T> = Pin<Box<dyn Future<Output = (OwnedServerName, Answer<T>)> + Send + 'a>>;

/// A question that goes to several servers.
pub(super) struct Asking<'a, T> {
    waiting: VecDeque<OwnedServerName>,
    asked: FuturesUnordered<Ask<'a, T>>,
    ask: Box<dyn Fn(OwnedServerName) -> Ask<'a, T> + Send + 'a>,
    pub(super) failures: Failures,
}

/// What went wrong, as far as somebody wants to know.
#[derive(Default)]
pub(super) struct Failures {
    asked: usize,
    problem: String,
    refusal: Option<(OwnedServerName, RemoteError)>,
}

impl Failures {
    /// A server did not help.
    pub(super) fn note(&mut self, server: &ServerName, error: RequestError) {
        tracing::debug!(%server, %error, "a server of a room did not help");
        self.asked += 1;
        self.problem = format!("{server}: {error}");
        if let RequestError::Remote(error) = error
            && let new = weight(&error)
            && new > self.refusal.as_ref().map_or(0, |(_, held)| weight(held))
        {
            self.refusal = Some((server.to_owned(), error));
        }
    }

    /// What a server gave cannot be used.
    pub(super) fn unusable(&mut self, server: &ServerName, why: &super::Unusable) {
        tracing::info!(%server, %why, "what a server of a room gave cannot be used");
        self.asked += 1;
        self.problem = format!("{server}: {why}");
    }

    /// The end of it.
    pub(super) fn into_error(self) -> RemoteRoomError {
        match self.refusal {
            Some((server, error)) => RemoteRoomError::Refused { server, error },
            None if self.asked == 0 => RemoteRoomError::NobodyToAsk,
            None => RemoteRoomError::NobodyHelps { asked: self.asked, problem: self.problem },
        }
    }
}

/// How much a refusal tells. None at all if it is only that server's own trouble.
fn weight(error: &RemoteError) -> u8 {
    match (error.errcode.as_deref(), error.status) {
        (Some("M_FORBIDDEN"), _) => 5,
        (Some("M_INCOMPATIBLE_ROOM_VERSION" | "M_UNSUPPORTED_ROOM_VERSION"), _) => 4,
        (Some("M_UNABLE_TO_AUTHORISE_JOIN" | "M_UNABLE_TO_GRANT_JOIN"), _) => 3,
        (Some("M_NOT_FOUND"), _) => 1,
        (Some("M_UNRECOGNIZED" | "M_LIMIT_EXCEEDED" | "M_UNAUTHORIZED"), _) => 0,
        (Some(_), status) if status.is_client_error() => 2,
        (None, StatusCode::FORBIDDEN) => 2,
        _ => 0,
    }
}

impl<'a, T: Send + 'a> Asking<'a, T> {
    /// A question to these servers, in their order.
    pub(super) fn new<F>(
        servers: Vec<OwnedServerName>,
        ask: impl Fn(OwnedServerName) -> F + Send + 'a,
    ) -> Self
    where
        F: Future<Output = Answer<T>> + Send + 'a,
    {
        let ask = move |server: OwnedServerName| -> Ask<'a, T> {
            let answer = ask(server.clone());
            Box::pin(async move { (server, answer.await) })
        };
        Self {
            waiting: servers.into(),
            asked: FuturesUnordered::new(),
            ask: Box::new(ask),
            failures: Failures::default(),
        }
    }

    /// The next good answer; none when all were asked.
    pub(super) async fn next(&mut self) -> Option<(OwnedServerName, T)> {
        self.ask_one_more();
        loop {
            if self.asked.is_empty() && !self.ask_one_more() {
                return None;
            }
            tokio::select! {
                biased;
                Some((server, answer)) = self.asked.next() => match answer {
                    Ok(answer) => return Some((server, answer)),
                    Err(error) => {
                        self.failures.note(&server, error);
                        self.ask_one_more();
                    }
                },
                () = tokio::time::sleep(NEXT_AFTER), if !self.waiting.is_empty() => {
                    self.ask_one_more();
                }
            }
        }
    }

    fn ask_one_more(&mut self) -> bool {
        let Some(server) = self.waiting.pop_front() else { return false };
        self.asked.push((self.ask)(server));
        true
    }
}

/// The servers to ask about a room: those that were named, that of who invited the user, those that are known to be in
/// the room, and the one that the room's id names. Those that failed lately come last.
pub(crate) async fn candidates(
    federation: &Federation,
    rooms: &Rooms,
    room: &RoomId,
    user: &UserId,
    named: &[OwnedServerName],
) -> Result<Vec<OwnedServerName>, StoreError> {
    let mut all: Vec<OwnedServerName> = Vec::new();
    let mut add = |server: &ServerName| {
        let is_asked = all.len() >= CANDIDATES_MAX || all.iter().any(|held| held == server);
        if !is_asked
            && !federation.local_servers().is_local(server)
            && federation.access().check(server).is_ok()
        {
            all.push(server.to_owned());
        }
    };
    let held = rooms.room(room).await?;
    let row = match &held {
        Some(held) => rooms.membership_row(user, held.sn).await?,
        None => None,
    };
    // Whoever invited them is in the room, or was.
    let invited_by = row.as_ref().filter(|row| row.membership == Membership::Invite).map(|row| &row.sender);
    let invited_by = invited_by.map(|user| user.server_name());
    // Places are kept for these, however many servers are named.
    named.iter().take(CANDIDATES_MAX / 2).for_each(|server| add(server));
    invited_by.into_iter().for_each(&mut add);
    room.server_name().into_iter().for_each(&mut add);
    if let Some(held) = held {
        let key = (user.to_string(), held.sn);
        if let Some(told) = rooms.store().get(&OUT_OF_BAND, &key).await? {
            senders(&told.stripped_state).for_each(|user| add(user.server_name()));
        }
        rooms.servers_in_room(&held).await?.iter().for_each(&mut add);
    }
    let (mut ready, mut failing) = (Vec::new(), Vec::new());
    for server in all {
        match federation.destinations().failing(&server).await? {
            None => ready.push(server),
            Some(_) => failing.push(server),
        }
    }
    ready.append(&mut failing);
    Ok(ready)
}

/// Who made the state that came with an invite or with the answer to a knock: they are in the room, or were.
fn senders(stripped_state: &[String]) -> impl Iterator<Item = OwnedUserId> {
    #[derive(Deserialize)]
    struct Event {
        sender: OwnedUserId,
    }
    stripped_state
        .iter()
        .filter_map(|event| serde_json::from_str::<Event>(event).ok())
        .map(|event| event.sender)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refusal(status: u16, errcode: &str) -> RequestError {
        let body = json!({ "errcode": errcode });
        let status = StatusCode::from_u16(status).unwrap();
        RequestError::Remote(RemoteError {
            status,
            errcode: Some(errcode.to_owned()),
            error: String::new(),
            body,
        })
    }

    fn server(name: &str) -> OwnedServerName {
        name.try_into().unwrap()
    }

    #[test]
    fn the_most_telling_refusal_is_the_one_that_is_told() {
        let told = |all: &[(u16, &str)]| {
            let mut failures = Failures::default();
            for (status, errcode) in all {
                failures.note(&server("a.test"), refusal(*status, errcode));
            }
            match failures.into_error() {
                RemoteRoomError::Refused { error, .. } => error.errcode,
                RemoteRoomError::NobodyHelps { asked, .. } => Some(asked.to_string()),
                _ => None,
            }
        };
        assert_eq!(told(&[]), None);
        assert_eq!(told(&[(500, "M_UNKNOWN"), (401, "M_UNAUTHORIZED")]).as_deref(), Some("2"));
        assert_eq!(
            told(&[(404, "M_NOT_FOUND"), (403, "M_FORBIDDEN"), (400, "M_UNKNOWN")]).as_deref(),
            Some("M_FORBIDDEN")
        );
        assert_eq!(told(&[(400, "M_UNKNOWN"), (404, "M_NOT_FOUND")]).as_deref(), Some("M_UNKNOWN"));
        assert_eq!(told(&[(404, "M_NOT_FOUND"), (502, "M_UNKNOWN")]).as_deref(), Some("M_NOT_FOUND"));
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_slow_is_not_waited_for_alone() {
        let start = tokio::time::Instant::now();
        let servers = ["no.test", "slow.test", "no2.test", "good.test", "unasked.test"].map(server).to_vec();
        let mut asking = Asking::new(servers, |server| async move {
            match server.as_str() {
                "slow.test" => tokio::time::sleep(Duration::from_secs(30)).await,
                "good.test" => tokio::time::sleep(Duration::from_secs(1)).await,
                "unasked.test" => panic!("one had answered"),
                _ => return Err(refusal(404, "M_NOT_FOUND")),
            }
            Ok(server)
        });
        assert_eq!(asking.next().await.unwrap().0, "good.test");
        assert_eq!(start.elapsed(), NEXT_AFTER + Duration::from_secs(1));
        assert_eq!(asking.failures.asked, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_answer_is_taken_when_there_is_no_other() {
        let mut asking = Asking::new(["slow.test", "no.test"].map(server).to_vec(), |server| async move {
            if server == "no.test" {
                return Err(refusal(404, "M_NOT_FOUND"));
            }
            tokio::time::sleep(Duration::from_secs(20)).await;
            Ok(())
        });
        assert_eq!(asking.next().await.unwrap().0, "slow.test");
        assert!(asking.next().await.is_none());
    }
}
