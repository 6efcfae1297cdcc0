//! What other servers say to what our users want, in words for clients.
//! * A refusal goes on to the client with its code if that code means the same there: nothing that another server says
//!   can log a user out or make a client do anything but tell its user.
//! * A server that cannot be reached is a 502; a room that nobody is known to be in is a 404.

use std::time::Duration;

use hearth_federation::{NetworkError, RemoteError, RemoteRoomError, RequestError};
use http::StatusCode;

use crate::http::MatrixError;

/// Codes of other servers that mean the same to a client, with the status that goes with them.
const PASSED_ON: [(&str, StatusCode); 9] = [
    ("M_FORBIDDEN", StatusCode::FORBIDDEN),
    ("M_NOT_FOUND", StatusCode::NOT_FOUND),
    ("M_INVITE_BLOCKED", StatusCode::FORBIDDEN),
    ("M_BAD_STATE", StatusCode::FORBIDDEN),
    ("M_INVALID_PARAM", StatusCode::BAD_REQUEST),
    ("M_TOO_LARGE", StatusCode::PAYLOAD_TOO_LARGE),
    ("M_UNABLE_TO_AUTHORISE_JOIN", StatusCode::BAD_REQUEST),
    ("M_UNABLE_TO_GRANT_JOIN", StatusCode::BAD_REQUEST),
    ("M_UNSUPPORTED_ROOM_VERSION", StatusCode::BAD_REQUEST),
];

/// When to come again where too much is asked of other servers already: they answer within seconds, or not at all.
const BUSY: Duration = Duration::from_secs(5);

/// Another server failed, or says what no client can make use of.
fn bad_gateway(message: impl Into<String>) -> MatrixError {
    MatrixError::new(StatusCode::BAD_GATEWAY, "M_UNKNOWN", message)
}

fn refusal(server: &str, error: &RemoteError) -> MatrixError {
    let message = format!("{server} refuses: {}", error.error);
    let code = error.errcode.as_deref().unwrap_or_default();
    if code == "M_INCOMPATIBLE_ROOM_VERSION" {
        let version = error.body.get("room_version").and_then(serde_json::Value::as_str).unwrap_or_default();
        return MatrixError::new(StatusCode::BAD_REQUEST, "M_INCOMPATIBLE_ROOM_VERSION", message)
            .with("room_version", version);
    }
    match PASSED_ON.iter().find(|(passed, _)| *passed == code) {
        Some((code, status)) => MatrixError::new(*status, code, message),
        None if error.status == StatusCode::FORBIDDEN => MatrixError::forbidden(message),
        None => bad_gateway(message),
    }
}

impl From<RemoteRoomError> for MatrixError {
    fn from(error: RemoteRoomError) -> Self {
        let message = error.to_string();
        match error {
            RemoteRoomError::NobodyToAsk => Self::not_found(message),
            RemoteRoomError::NobodyHelps { .. } => bad_gateway(message),
            RemoteRoomError::Refused { server, error } => refusal(server.as_str(), &error),
            RemoteRoomError::Timeout => Self::new(StatusCode::GATEWAY_TIMEOUT, "M_UNKNOWN", message),
            RemoteRoomError::Busy(crowded) => Self::limit_exceeded(crowded.retry_after),
            RemoteRoomError::UnknownVersion(version) => {
                Self::new(StatusCode::BAD_REQUEST, "M_INCOMPATIBLE_ROOM_VERSION", message)
                    .with("room_version", version.as_str())
            }
            RemoteRoomError::Membership(error) => error.into(),
            RemoteRoomError::Write(error) => error.into(),
            RemoteRoomError::Stopping => Self::new(StatusCode::SERVICE_UNAVAILABLE, "M_UNKNOWN", message),
        }
    }
}

/// A question about something of another server, such as a profile.
impl From<RequestError> for MatrixError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Remote(error) => refusal("the other server", &error),
            RequestError::Store(error) => error.into(),
            RequestError::Network(NetworkError::Busy) => Self::limit_exceeded(BUSY),
            RequestError::Local(_) => Self::not_found("this server has no such thing"),
            RequestError::Access(error) => Self::forbidden(error.to_string()),
            error => bad_gateway(format!("the other server did not answer: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use ruma::server_name;
    use serde_json::json;

    use super::*;

    fn told(status: u16, errcode: Option<&str>) -> (u16, &'static str) {
        let error = RemoteError {
            status: StatusCode::from_u16(status).unwrap(),
            errcode: errcode.map(str::to_owned),
            error: "because".to_owned(),
            body: json!({ "room_version": "9" }),
        };
        let error = RemoteRoomError::Refused { server: server_name!("a.test").to_owned(), error };
        let error = MatrixError::from(error);
        assert!(error.message.contains("because"));
        assert_eq!(error.extra.contains_key("room_version"), error.errcode == "M_INCOMPATIBLE_ROOM_VERSION");
        (error.status.as_u16(), error.errcode)
    }

    #[test]
    fn only_what_means_the_same_to_a_client_goes_on() {
        assert_eq!(told(403, Some("M_FORBIDDEN")), (403, "M_FORBIDDEN"));
        assert_eq!(told(400, Some("M_FORBIDDEN")), (403, "M_FORBIDDEN"));
        assert_eq!(told(400, Some("M_INCOMPATIBLE_ROOM_VERSION")), (400, "M_INCOMPATIBLE_ROOM_VERSION"));
        assert_eq!(told(400, Some("M_UNABLE_TO_AUTHORISE_JOIN")), (400, "M_UNABLE_TO_AUTHORISE_JOIN"));
        assert_eq!(told(403, None), (403, "M_FORBIDDEN"));
        for code in ["M_UNKNOWN_TOKEN", "M_MISSING_TOKEN", "M_USER_LOCKED", "M_LIMIT_EXCEEDED", "nonsense"] {
            assert_eq!(told(401, Some(code)), (502, "M_UNKNOWN"), "{code}");
        }
    }
}
