//! What other servers are refused, in the specification's words.

use hearth_federation::{
    inbound::{AnswerError, InviteLimit},
    turns::Crowded,
};
use hearth_rooms::{
    OutOfBandError,
    serve::{HandshakeError, InviteRefusal, QueryError},
};
use http::StatusCode;
use ruma::RoomVersionId;

use crate::http::MatrixError;

/// The asking server does not know the room's version, or we do not.
pub(super) fn incompatible_version(message: impl Into<String>, version: &RoomVersionId) -> MatrixError {
    MatrixError::new(StatusCode::BAD_REQUEST, "M_INCOMPATIBLE_ROOM_VERSION", message)
        .with("room_version", version.as_str())
}

impl From<HandshakeError> for MatrixError {
    fn from(error: HandshakeError) -> Self {
        let message = error.to_string();
        let bad = |errcode| Self::new(StatusCode::BAD_REQUEST, errcode, message.clone());
        match error {
            HandshakeError::UnknownRoom => Self::not_found(message),
            HandshakeError::IncompatibleVersion { room_version } => {
                incompatible_version(message, &room_version)
            }
            HandshakeError::UnableToAuthorise => bad("M_UNABLE_TO_AUTHORISE_JOIN"),
            HandshakeError::UnableToGrant => bad("M_UNABLE_TO_GRANT_JOIN"),
            HandshakeError::Forbidden(_) | HandshakeError::UserOfOtherServer => Self::forbidden(message),
            HandshakeError::Invalid(_) => Self::bad_json(message),
            HandshakeError::UnknownReferences => Self::unknown(message),
            HandshakeError::Write(error) => error.into(),
        }
    }
}

impl From<Crowded> for MatrixError {
    fn from(crowded: Crowded) -> Self {
        Self::limit_exceeded(crowded.retry_after)
    }
}

impl<E: Into<MatrixError>> From<AnswerError<E>> for MatrixError {
    fn from(error: AnswerError<E>) -> Self {
        match error {
            AnswerError::Crowded(crowded) => crowded.into(),
            AnswerError::Work(error) => error.into(),
        }
    }
}

impl From<InviteLimit> for MatrixError {
    fn from(limit: InviteLimit) -> Self {
        match limit {
            InviteLimit::Crowded(crowded) => crowded.into(),
            InviteLimit::Store(error) => error.into(),
        }
    }
}

impl From<QueryError> for MatrixError {
    fn from(error: QueryError) -> Self {
        let message = error.to_string();
        match error {
            QueryError::UnknownRoom | QueryError::UnknownEvent | QueryError::NoPlace => {
                Self::not_found(message)
            }
            QueryError::NotInRoom => Self::forbidden(message),
            QueryError::TooLarge => Self::too_large(message),
            QueryError::Store(error) => error.into(),
        }
    }
}

impl From<InviteRefusal> for MatrixError {
    fn from(error: InviteRefusal) -> Self {
        let message = error.to_string();
        match error {
            InviteRefusal::Invalid(_) => Self::bad_json(message),
            InviteRefusal::NotOurUser(_) => Self::not_found(message),
        }
    }
}

impl From<OutOfBandError> for MatrixError {
    fn from(error: OutOfBandError) -> Self {
        let message = error.to_string();
        match error {
            OutOfBandError::Write(error) => error.into(),
            OutOfBandError::UnsupportedVersion(version) => incompatible_version(message, &version),
            OutOfBandError::NotForUs => Self::bad_json(message),
            OutOfBandError::InRoom | OutOfBandError::NothingToEnd => Self::forbidden(message),
        }
    }
}
