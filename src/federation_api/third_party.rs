//! Invites of people who are known by an address only.

use axum::extract::State;
use hearth_dag::LocalServers;
use hearth_federation::{
    Inbound,
    inbound::{BoundInvite, ThirdPartyError},
};
use hearth_rooms::{Rooms, serve::ThirdPartyInvite};
use hearth_users::Users;
use http::{Method, StatusCode};
use ruma::{OwnedRoomId, OwnedUserId};
use serde::Deserialize;

use super::gate::room_for;
use crate::http::{
    Auth, JsonBody, JsonResult, MatrixError, PathArgs, RateClass, RawJson, RemoteServer, Route, Routes,
    Specimen,
};

/// Invites of one address that are looked at.
const INVITES_MAX: usize = 10;

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    let path = "/_matrix/federation/v1/exchange_third_party_invite/{room_id}";
    let specimen = Specimen::path("$room").body(r#"{"type":"m.room.member"}"#, r#"{"type":5}"#);
    routes.add(Route::at(Method::PUT, path, Auth::Server).specimen(specimen).to(exchange));
    // The specification says PUT; identity servers use POST.
    for method in [Method::PUT, Method::POST] {
        let specimen = Specimen::path("").body(
            r#"{"medium":"email","address":"a@b.test","mxid":"$me","invites":[]}"#,
            r#"{"medium":"email","address":"a@b.test","mxid":"$me","invites":{}}"#,
        );
        let bound = Route::at(method, "/_matrix/federation/v1/3pid/onbind", Auth::None);
        routes.add(bound.rate(RateClass::Other).specimen(specimen).to(self::bound));
    }
}

/// `PUT /_matrix/federation/v1/exchange_third_party_invite/{roomId}`
async fn exchange(
    State(rooms): State<Rooms>,
    State(inbound): State<Inbound>,
    server: RemoteServer,
    PathArgs((room,)): PathArgs<(OwnedRoomId,)>,
    JsonBody(invite): JsonBody<ThirdPartyInvite>,
) -> JsonResult {
    room_for(&rooms, &room, &server.origin).await?;
    inbound.exchange_third_party_invite(&server.origin, &room, &invite).await?;
    Ok(RawJson::EMPTY)
}

#[derive(Deserialize)]
struct Bound {
    mxid: OwnedUserId,
    invites: Vec<BoundInvite>,
}

/// `PUT /_matrix/federation/v1/3pid/onbind`: an identity server tells that an address is a user's. What it signed is
/// checked by the rules of the room.
async fn bound(
    State(inbound): State<Inbound>,
    State(users): State<Users>,
    State(local): State<LocalServers>,
    JsonBody(bound): JsonBody<Bound>,
) -> JsonResult {
    if !local.is_local(bound.mxid.server_name()) || !users.is_active(&bound.mxid).await? {
        return Err(MatrixError::not_found("there is no such user here"));
    }
    for invite in bound.invites.iter().filter(|invite| invite.mxid == bound.mxid).take(INVITES_MAX) {
        if let Err(error) = inbound.third_party_bound(invite).await {
            tracing::debug!(room_id = %invite.room_id, user_id = %invite.mxid, %error, "a third-party invite failed");
        }
    }
    Ok(RawJson::EMPTY)
}

impl From<ThirdPartyError> for MatrixError {
    fn from(error: ThirdPartyError) -> Self {
        let message = error.to_string();
        match error {
            ThirdPartyError::Handshake(error) => error.into(),
            ThirdPartyError::Request(_) | ThirdPartyError::Answer(_) => {
                Self::new(StatusCode::BAD_GATEWAY, "M_UNKNOWN", message)
            }
        }
    }
}
