//! What the chapters that change rooms share: how a refusal of a room becomes an answer.

use hearth_dag::BuildError;
use hearth_federation::Policy;
use hearth_rooms::{PolicyRefusal, Send, SendError, Sent, WriteError};
use hearth_store::Commit;
use http::StatusCode;

use super::reading::not_in_room;
use crate::http::MatrixError;

/// Sends an event, with the signature of the room's policy server where it has one.
pub async fn send_event(policy: &Policy, send: &Send) -> Result<Sent, MatrixError> {
    let sent = policy.signing(|rooms| async move { rooms.send(send, Commit::new()).await });
    Ok(sent.await?)
}

impl From<WriteError> for MatrixError {
    fn from(error: WriteError) -> Self {
        match error {
            // Whoever is not in a room need not know whether there is one.
            WriteError::UnknownRoom | WriteError::NotResident => not_in_room(),
            WriteError::Forbidden(rejection) => Self::forbidden(rejection.to_string()),
            WriteError::Build(error) => error.into(),
            WriteError::Policy(refusal) => refusal.into(),
            // Its policy changed again and again while the event was being signed.
            WriteError::Busy | WriteError::Unsigned(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "M_UNKNOWN", "the room is too busy; try again")
            }
            WriteError::Unstorable => Self::too_large(error.to_string()),
            WriteError::Store(error) => error.into(),
        }
    }
}

/// The policy server's own words go on to the client. NOTSPEC: its code does only where it cannot do harm: clients log
/// their user out, or take this server for an older one, at what some codes say.
impl From<PolicyRefusal> for MatrixError {
    fn from(refusal: PolicyRefusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            PolicyRefusal::Refused { errcode: Some(code), retry_after_ms, .. }
                if code == "M_LIMIT_EXCEEDED" =>
            {
                let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "M_LIMIT_EXCEEDED", message);
                match retry_after_ms {
                    Some(ms) => error.with("retry_after_ms", ms),
                    None => error,
                }
            }
            PolicyRefusal::Refused { .. } => Self::forbidden(message),
            PolicyRefusal::Unreachable(_) | PolicyRefusal::BadSignature(_) => {
                Self::new(StatusCode::BAD_GATEWAY, "M_UNKNOWN", message)
            }
        }
    }
}

impl From<BuildError> for MatrixError {
    fn from(error: BuildError) -> Self {
        match error {
            BuildError::NotCanonical(_) => Self::bad_json(error.to_string()),
            BuildError::TooLarge { .. } | BuildError::FieldTooLong { .. } => {
                Self::too_large(error.to_string())
            }
            BuildError::TooManyPrevEvents | BuildError::TooManyAuthEvents => Self::internal(error),
        }
    }
}

impl From<SendError> for MatrixError {
    fn from(error: SendError) -> Self {
        let message = error.to_string();
        match error {
            SendError::Write(error) => error.into(),
            SendError::UnknownTarget => Self::not_found(message),
            SendError::NoTarget => Self::missing_param(message),
            SendError::CannotRedact | SendError::Reserved(_) => Self::forbidden(message),
            SendError::DuplicateAnnotation => Self::duplicate_annotation(message),
            SendError::ThreadOnRelated => Self::unknown(message),
            SendError::BadAlias(_) => Self::bad_alias(message),
            SendError::MalformedAlias(_) => Self::invalid_param(message),
        }
    }
}
