//! Events and state: sending them, and asking for those that are missing.

use std::collections::BTreeMap;

use ruma::{EventId, OwnedEventId, RoomId, ServerName};
use serde::Deserialize;
use serde_json::{json, value::RawValue};

use super::{Call, Client, HEAVY, Json, RequestError, path, with_query};
use crate::client::membership::JOIN_EVENTS_MAX;

/// Events that are taken from one answer to a question for history.
pub const PDUS_PER_ANSWER: usize = 500;
/// Events that are asked about in one question.
const ASKED_MAX: usize = 100;

/// What became of the events of a transaction.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct SendAnswer {
    /// By event: what went wrong, if something did.
    #[serde(default)]
    pub pdus: BTreeMap<OwnedEventId, PduAnswer>,
}

/// What became of one event.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct PduAnswer {
    /// Why it was not taken.
    pub error: Option<String>,
}

/// The state of a room before an event.
#[derive(Debug, Clone)]
pub struct State {
    /// The state events.
    pub pdus: Vec<Json>,
    /// What they rest on.
    pub auth_chain: Vec<Json>,
}

/// The same by IDs.
#[derive(Debug, Clone, Deserialize)]
pub struct StateIds {
    /// The state events.
    pub pdu_ids: Vec<OwnedEventId>,
    /// What they rest on.
    pub auth_chain_ids: Vec<OwnedEventId>,
}

/// An event near a moment.
#[derive(Debug, Clone, Deserialize)]
pub struct EventNear {
    /// Which.
    pub event_id: OwnedEventId,
    /// When it was sent, as its sender says.
    pub origin_server_ts: u64,
}

/// Under which name an answer has its events.
#[derive(Deserialize)]
struct Lists<'a> {
    #[serde(borrow)]
    pdus: Option<Vec<&'a RawValue>>,
    #[serde(borrow)]
    events: Option<Vec<&'a RawValue>>,
    #[serde(borrow)]
    auth_chain: Option<Vec<&'a RawValue>>,
}

type List = for<'a> fn(Lists<'a>) -> Option<Vec<&'a RawValue>>;

impl Client {
    /// `PUT send`: a transaction, whole as JSON. A server that does not take it counts as one that fails.
    pub async fn send_transaction(
        &self,
        server: &ServerName,
        txn_id: &str,
        transaction: &str,
    ) -> Result<SendAnswer, RequestError> {
        let path = path("/_matrix/federation/v1/send", &[txn_id]);
        let answer = self.call(server, Call::put(path, transaction).limits(HEAVY).must_succeed()).await?;
        // It was taken, whatever else is said: to send it again would change nothing.
        Ok(serde_json::from_slice(answer.body()).unwrap_or_default())
    }

    /// `GET event`: one event.
    pub async fn event(&self, server: &ServerName, event: &EventId) -> Result<Json, RequestError> {
        let path = path("/_matrix/federation/v1/event", &[event.as_str()]);
        let mut pdus = self.list(server, Call::get(path), |all| all.pdus, 1).await?;
        pdus.pop().ok_or_else(|| RequestError::malformed("no event"))
    }

    /// `GET state`: the state of a room before an event.
    pub async fn state(
        &self,
        server: &ServerName,
        room: &RoomId,
        before: &EventId,
    ) -> Result<State, RequestError> {
        #[derive(Deserialize)]
        struct Answer<'a> {
            #[serde(borrow)]
            pdus: Vec<&'a RawValue>,
            #[serde(borrow)]
            auth_chain: Vec<&'a RawValue>,
        }
        let path = path("/_matrix/federation/v1/state", &[room.as_str()]);
        let target = with_query(path, [("event_id", before.as_str())]);
        let json = self.json(server, Call::get(target).limits(super::JOIN)).await?;
        let answer: Answer<'_> = json.parse().map_err(RequestError::malformed)?;
        let parts = |parts: &[&RawValue]| json.parts(parts, JOIN_EVENTS_MAX).map_err(RequestError::malformed);
        Ok(State { pdus: parts(&answer.pdus)?, auth_chain: parts(&answer.auth_chain)? })
    }

    /// `GET state_ids`: the same by IDs.
    pub async fn state_ids(
        &self,
        server: &ServerName,
        room: &RoomId,
        before: &EventId,
    ) -> Result<StateIds, RequestError> {
        let path = path("/_matrix/federation/v1/state_ids", &[room.as_str()]);
        let target = with_query(path, [("event_id", before.as_str())]);
        let ids: StateIds = self.read(server, Call::get(target).limits(HEAVY)).await?;
        if ids.pdu_ids.len().max(ids.auth_chain_ids.len()) > JOIN_EVENTS_MAX {
            return Err(RequestError::malformed("too many events"));
        }
        Ok(ids)
    }

    /// `GET event_auth`: the auth chain of an event.
    pub async fn event_auth(
        &self,
        server: &ServerName,
        room: &RoomId,
        event: &EventId,
    ) -> Result<Vec<Json>, RequestError> {
        let path = path("/_matrix/federation/v1/event_auth", &[room.as_str(), event.as_str()]);
        self.list(server, Call::get(path).limits(HEAVY), |all| all.auth_chain, JOIN_EVENTS_MAX).await
    }

    /// `GET backfill`: events before these, the latest first.
    pub async fn backfill(
        &self,
        server: &ServerName,
        room: &RoomId,
        before: &[OwnedEventId],
        limit: usize,
    ) -> Result<Vec<Json>, RequestError> {
        let path = path("/_matrix/federation/v1/backfill", &[room.as_str()]);
        let limit = limit.min(PDUS_PER_ANSWER);
        let text = limit.to_string();
        let events = before.iter().take(ASKED_MAX).map(|event| ("v", event.as_str()));
        let target = with_query(path, events.chain([("limit", text.as_str())]));
        self.list(server, Call::get(target).limits(HEAVY), |all| all.pdus, PDUS_PER_ANSWER).await
    }

    /// `POST get_missing_events`: the events between those we have and those we heard of.
    pub async fn missing_events(
        &self,
        server: &ServerName,
        room: &RoomId,
        earliest: &[OwnedEventId],
        latest: &[OwnedEventId],
        limit: usize,
        min_depth: i64,
    ) -> Result<Vec<Json>, RequestError> {
        let path = path("/_matrix/federation/v1/get_missing_events", &[room.as_str()]);
        let body = json!({
            "earliest_events": &earliest[..earliest.len().min(ASKED_MAX)],
            "latest_events": &latest[..latest.len().min(ASKED_MAX)],
            "limit": limit.min(PDUS_PER_ANSWER),
            "min_depth": min_depth,
        });
        let body = body.to_string();
        let call = Call::post(path, &body).limits(HEAVY);
        self.list(server, call, |all| all.events, PDUS_PER_ANSWER).await
    }

    /// `GET timestamp_to_event`: the event closest to a moment, forwards or backwards.
    pub async fn timestamp_to_event(
        &self,
        server: &ServerName,
        room: &RoomId,
        ts_ms: u64,
        forwards: bool,
    ) -> Result<EventNear, RequestError> {
        let path = path("/_matrix/federation/v1/timestamp_to_event", &[room.as_str()]);
        let ts = ts_ms.to_string();
        let direction = if forwards { "f" } else { "b" };
        self.read(server, Call::get(with_query(path, [("ts", ts.as_str()), ("dir", direction)]))).await
    }

    async fn list(
        &self,
        server: &ServerName,
        call: Call<'_>,
        list: List,
        max: usize,
    ) -> Result<Vec<Json>, RequestError> {
        let json = self.json(server, call).await?;
        let answer: Lists<'_> = json.parse().map_err(RequestError::malformed)?;
        let pdus = list(answer).ok_or_else(|| RequestError::malformed("no list of events"))?;
        // More than was asked for is no reason to have none.
        json.parts(&pdus[..pdus.len().min(max)], max).map_err(RequestError::malformed)
    }
}
