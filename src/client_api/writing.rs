//! What the chapters that change rooms share: how a refusal of a room becomes an answer.

use hearth_dag::BuildError;
use hearth_rooms::{SendError, WriteError};
use http::StatusCode;

use super::reading::not_in_room;
use crate::http::MatrixError;

impl From<WriteError> for MatrixError {
    fn from(error: WriteError) -> Self {
        match error {
            // Whoever is not in a room need not know whether there is one.
            WriteError::UnknownRoom | WriteError::NotResident => not_in_room(),
            WriteError::Forbidden(rejection) => Self::forbidden(rejection.to_string()),
            WriteError::Build(error) => error.into(),
            WriteError::Unstorable => Self::too_large(error.to_string()),
            WriteError::Busy => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "M_UNKNOWN", "the room is too busy; try again")
            }
            WriteError::Store(error) => error.into(),
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
