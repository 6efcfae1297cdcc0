//! Invites to users of ours: checked, signed and kept.
//! * Where we are in the room, only the signature is given: the invite comes as an event of the room.
//! * Elsewhere the user is shown what came along of the room, until they join or leave.
//! * Servers invite, and users are invited, only so often.

use axum::extract::State;
use hearth_dag::{ReceivedPdu, RoomRules, VerifiedPdu};
use hearth_federation::{Federation, Inbound, KeyNeeds};
use hearth_rooms::{
    OutOfBand, OutOfBandError, Rooms,
    serve::{ReceivedInvite, SignedInvite},
};
use hearth_users::Users;
use http::Method;
use ruma::{OwnedEventId, OwnedRoomId, RoomVersionId};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{errors::incompatible_version, gate::check_acl};
use crate::http::{Auth, JsonBody, JsonResult, MatrixError, PathArgs, RemoteServer, Route, Routes, Specimen};

/// State events that may come with an invite.
const STATE_MAX: usize = 100;

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    let second = Route::at(Method::PUT, "/_matrix/federation/v2/invite/{room_id}/{event_id}", Auth::Server);
    let specimen = Specimen::path("$room $event").body(
        r#"{"room_version":"12","event":{},"invite_room_state":[]}"#,
        r#"{"room_version":12,"event":{},"invite_room_state":[]}"#,
    );
    routes.add(second.specimen(specimen).to(invite));
    let first = Route::at(Method::PUT, "/_matrix/federation/v1/invite/{room_id}/{event_id}", Auth::Server);
    let specimen = Specimen::path("$room $event").body(r#"{"type":"m.room.member"}"#, r#"{"unsigned":5}"#);
    routes.add(first.specimen(specimen).to(invite_v1));
}

#[derive(Deserialize)]
struct Invite {
    room_version: RoomVersionId,
    event: Box<RawValue>,
    #[serde(default)]
    invite_room_state: Vec<Box<RawValue>>,
}

/// `PUT /_matrix/federation/v2/invite/{roomId}/{eventId}`
async fn invite(
    State(rooms): State<Rooms>,
    State(users): State<Users>,
    State(federation): State<Federation>,
    State(inbound): State<Inbound>,
    server: RemoteServer,
    PathArgs(args): PathArgs<(OwnedRoomId, OwnedEventId)>,
    JsonBody(invite): JsonBody<Invite>,
) -> JsonResult {
    let signed = receive(Parts { rooms, users, federation, inbound }, &server, args, &invite).await?;
    Ok(format!(r#"{{"event":{}}}"#, signed.pdu.json()).into())
}

/// `PUT /_matrix/federation/v1/invite/{roomId}/{eventId}`: for rooms of the first two versions, which look alike.
async fn invite_v1(
    State(rooms): State<Rooms>,
    State(users): State<Users>,
    State(federation): State<Federation>,
    State(inbound): State<Inbound>,
    server: RemoteServer,
    PathArgs(args): PathArgs<(OwnedRoomId, OwnedEventId)>,
    JsonBody(event): JsonBody<Box<RawValue>>,
) -> JsonResult {
    #[derive(Deserialize, Default)]
    struct Unsigned {
        #[serde(default)]
        invite_room_state: Vec<Box<RawValue>>,
    }
    #[derive(Deserialize)]
    struct Event {
        #[serde(default)]
        unsigned: Unsigned,
    }
    let read: Event = serde_json::from_str(event.get()).map_err(|error| MatrixError::from_json(&error))?;
    let held = rooms.room(&args.0).await?;
    let room_version = held.map_or(RoomVersionId::V1, |room| room.version.clone());
    if !matches!(room_version, RoomVersionId::V1 | RoomVersionId::V2) {
        return Err(incompatible_version(
            "rooms of this version have another form of invites",
            &room_version,
        ));
    }
    let invite = Invite { room_version, event, invite_room_state: read.unsigned.invite_room_state };
    let signed = receive(Parts { rooms, users, federation, inbound }, &server, args, &invite).await?;
    Ok(format!(r#"[200,{{"event":{}}}]"#, signed.pdu.json()).into())
}

/// What an invite is checked with.
struct Parts {
    rooms: Rooms,
    users: Users,
    federation: Federation,
    inbound: Inbound,
}

async fn receive(
    Parts { rooms, users, federation, inbound }: Parts,
    server: &RemoteServer,
    (room, event): (OwnedRoomId, OwnedEventId),
    invite: &Invite,
) -> Result<SignedInvite, MatrixError> {
    inbound.may_invite(&server.origin)?;
    let bad = |rejection: hearth_dag::Rejection| MatrixError::bad_json(rejection.to_string());
    let version = &invite.room_version;
    let rules = RoomRules::of(version)
        .ok_or_else(|| incompatible_version("this server does not know that room version", version))?;
    if let Some(held) = rooms.room(&room).await? {
        check_acl(&rooms, &held, &server.origin).await?;
    }
    let pdu = ReceivedPdu::parse(rules, invite.event.get()).map_err(bad)?;
    let room_state = &invite.invite_room_state[..invite.invite_room_state.len().min(STATE_MAX)];
    let mut needs = KeyNeeds::new().because_of(&server.origin);
    needs.add_pdu(rules, &pdu);
    needs.add_signed(&server.origin, &pdu.pdu().to_object(), 0);
    if rules.room_id_is_create_event {
        for event in room_state {
            // What cannot be read is refused when it is checked.
            if let Ok(event) = ReceivedPdu::parse(rules, event.get()) {
                needs.add_pdu(rules, &event);
            }
        }
    }
    let keys = federation.keys().keys_for(&needs).await?;
    let signed = rooms.sign_invite(ReceivedInvite {
        origin: &server.origin,
        room: &room,
        event: &event,
        rules,
        pdu,
        room_state,
        keys: &keys,
    })?;
    users.check_invitable(&signed.user).await?;
    inbound.may_be_invited(&signed.user, &room).await?;
    let told = OutOfBand {
        room_id: room,
        version: version.clone(),
        event: VerifiedPdu::built_here(signed.pdu.clone()),
        state: room_state.to_vec(),
    };
    match rooms.receive_out_of_band(&told).await {
        // It will come as an event of the room.
        Ok(_) | Err(OutOfBandError::InRoom) => Ok(signed),
        Err(error) => Err(error.into()),
    }
}
