//! What a simulated server answers to others, as the program's own endpoints do it.

use std::sync::Arc;

use bytes::Bytes;
use hearth_dag::{Keypair, Pdu, ReceivedPdu, RoomRules};
use hearth_federation::{Clock, Federation, Inbound, KeyNeeds, published_keys};
use hearth_rooms::{
    Rooms,
    serve::{Asked, MissingEvents, Submitted},
};
use http::{Request, Response, StatusCode};
use ruma::{OwnedEventId, OwnedRoomId, RoomId, ServerName, UserId};
use serde_json::{Value, json};

use crate::world::server::Server;

/// What of a server answers others.
#[derive(Clone)]
pub struct Answering {
    key: Arc<Keypair>,
    rooms: Rooms,
    federation: Federation,
    inbound: Inbound,
    clock: Clock,
}

/// A refusal: the status, and the error's code.
type Refusal = (StatusCode, &'static str);

const NOT_FOUND: Refusal = (StatusCode::NOT_FOUND, "M_NOT_FOUND");
const FORBIDDEN: Refusal = (StatusCode::FORBIDDEN, "M_FORBIDDEN");

fn list_of(pdus: &[Pdu]) -> String {
    format!("[{}]", pdus.iter().map(Pdu::json).collect::<Vec<_>>().join(","))
}

fn decoded(text: &str) -> Option<String> {
    Some(percent_encoding::percent_decode_str(text).decode_utf8().ok()?.into_owned())
}

impl Answering {
    pub fn of(server: &Server) -> Self {
        Self {
            key: server.key.clone(),
            rooms: server.rooms.clone(),
            federation: server.federation.clone(),
            inbound: server.inbound.clone(),
            clock: server.clock.clone(),
        }
    }

    pub async fn answers(&self, origin: &str, request: &Request<Bytes>) -> Response<Bytes> {
        let (status, body) = match self.answer(origin, request).await {
            Ok(body) => (StatusCode::OK, body),
            Err((status, code)) => (status, json!({ "errcode": code, "error": "no" }).to_string().into()),
        };
        Response::builder().status(status).body(body).unwrap()
    }

    async fn answer(&self, origin: &str, request: &Request<Bytes>) -> Result<Bytes, Refusal> {
        let path = decoded(request.uri().path()).ok_or(NOT_FOUND)?;
        if path.starts_with("/_matrix/key/") {
            return Ok(published_keys(&self.key, (self.clock)()).into());
        }
        let origin = <&ServerName>::try_from(origin).map_err(|_| NOT_FOUND)?;
        // Whoever asks may live.
        self.federation.destinations().heard_from(origin).await.map_err(|_| NOT_FOUND)?;
        let rest = path.strip_prefix("/_matrix/federation/").ok_or(NOT_FOUND)?;
        let mut parts = rest.splitn(4, '/').skip(1);
        let mut part = || parts.next().ok_or(NOT_FOUND);
        let (what, first, second) = (part()?, part()?, part().unwrap_or_default());
        match what {
            "send" => {
                self.inbound.transaction(origin, first, request.body().clone()).await.map_err(|_| NOT_FOUND)
            }
            "make_join" => self.make_join(origin, first, second).await,
            "send_join" => self.send_join(origin, first, second, request).await,
            _ => self.tell(origin, what, first, second, request).await.ok_or(NOT_FOUND),
        }
    }

    async fn make_join(&self, origin: &ServerName, room: &str, user: &str) -> Result<Bytes, Refusal> {
        let room = <&RoomId>::try_from(room).map_err(|_| NOT_FOUND)?;
        let user = <&UserId>::try_from(user).map_err(|_| NOT_FOUND)?;
        let versions: Vec<_> = RoomRules::all().iter().map(|rules| rules.version.clone()).collect();
        let template = self.rooms.make_join(origin, room, user, &versions).await.map_err(|_| FORBIDDEN)?;
        Ok(json!({ "room_version": template.room_version, "event": template.event }).to_string().into())
    }

    async fn send_join(
        &self,
        origin: &ServerName,
        room: &str,
        event: &str,
        request: &Request<Bytes>,
    ) -> Result<Bytes, Refusal> {
        let room = <&RoomId>::try_from(room).map_err(|_| NOT_FOUND)?;
        let event = OwnedEventId::try_from(event).map_err(|_| NOT_FOUND)?;
        let held = self.rooms.room(room).await.ok().flatten().ok_or(NOT_FOUND)?;
        let text = std::str::from_utf8(request.body()).map_err(|_| FORBIDDEN)?;
        let pdu = ReceivedPdu::parse(held.rules, text).map_err(|_| FORBIDDEN)?;
        let mut needs = KeyNeeds::new();
        needs.add_pdu(held.rules, &pdu);
        let keys = self.federation.keys().keys_for(&needs).await.map_err(|_| FORBIDDEN)?;
        let omit = request.uri().query().is_some_and(|query| query.contains("omit_members=true"));
        let submitted = Submitted { origin, room, event: &event, pdu, keys: &keys };
        let joined = self.rooms.accept_join(submitted, omit).await.map_err(|_| FORBIDDEN)?;
        let (state, chain) = (list_of(&joined.state), list_of(&joined.auth_chain));
        let (event, omitted) = (joined.event.json(), joined.members_omitted);
        let servers = json!(joined.servers_in_room.iter().collect::<Vec<_>>());
        let more = format!(r#""event":{event},"members_omitted":{omitted},"servers_in_room":{servers}"#);
        Ok(format!(r#"{{"state":{state},"auth_chain":{chain},{more}}}"#).into())
    }

    /// What servers tell of rooms.
    async fn tell(
        &self,
        origin: &ServerName,
        what: &str,
        first: &str,
        second: &str,
        request: &Request<Bytes>,
    ) -> Option<Bytes> {
        let room = OwnedRoomId::try_from(first);
        let query = request.uri().query().unwrap_or_default();
        let at = decoded(query.strip_prefix("event_id=").unwrap_or_default())?;
        match what {
            "event" => {
                let (_, pdu) = self.rooms.event_for_peer(origin, first.try_into().ok()?).await.ok()?;
                Some(format!(r#"{{"origin":"","origin_server_ts":1,"pdus":{}}}"#, list_of(&[pdu])).into())
            }
            "state_ids" => {
                let (room, event) = (room.ok()?, OwnedEventId::try_from(at).ok()?);
                let state =
                    self.rooms.state_ids_for_peer(Asked { origin, room: &room, event: &event }).await.ok()?;
                let ids = json!({ "auth_chain_ids": state.auth_chain_ids, "pdu_ids": state.pdu_ids });
                Some(ids.to_string().into())
            }
            "state" => {
                let (room, event) = (room.ok()?, OwnedEventId::try_from(at).ok()?);
                let state =
                    self.rooms.state_for_peer(Asked { origin, room: &room, event: &event }).await.ok()?;
                let (chain, pdus) = (list_of(&state.auth_chain), list_of(&state.pdus));
                Some(format!(r#"{{"auth_chain":{chain},"pdus":{pdus}}}"#).into())
            }
            "event_auth" => {
                let (room, event) = (room.ok()?, OwnedEventId::try_from(second).ok()?);
                let asked = Asked { origin, room: &room, event: &event };
                let chain = self.rooms.event_auth_for_peer(asked).await.ok()?;
                Some(format!(r#"{{"auth_chain":{}}}"#, list_of(&chain)).into())
            }
            "get_missing_events" => {
                let body: Value = serde_json::from_slice(request.body()).ok()?;
                let ids = |name: &str| serde_json::from_value(body[name].clone()).ok();
                let missing = MissingEvents {
                    earliest: ids("earliest_events")?,
                    latest: ids("latest_events")?,
                    limit: body["limit"].as_u64()? as usize,
                    min_depth: 0,
                };
                let pdus = self.rooms.missing_events_for_peer(origin, &room.ok()?, &missing).await.ok()?;
                Some(format!(r#"{{"events":{}}}"#, list_of(&pdus)).into())
            }
            _ => None,
        }
    }
}
