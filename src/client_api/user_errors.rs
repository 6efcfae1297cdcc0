//! What goes wrong with users, in the specification's words.

use hearth_users::{
    AccountDataError, AccountError, CreateAccountError, DeviceError, FilterError, NotInvitable,
    PasswordError, ProfileError, PushRuleError, RefreshError, SessionError, UsersError,
};
use http::StatusCode;

use crate::http::MatrixError;

impl From<UsersError> for MatrixError {
    fn from(error: UsersError) -> Self {
        match error {
            UsersError::Store(error) => error.into(),
            error @ UsersError::Busy => MatrixError::internal(error),
        }
    }
}

impl From<PasswordError> for MatrixError {
    fn from(error: PasswordError) -> Self {
        match error {
            PasswordError::TooLong => MatrixError::invalid_param(error.to_string()),
            PasswordError::Busy => MatrixError::limit_exceeded(std::time::Duration::from_secs(2)),
            error @ PasswordError::Broken(_) => MatrixError::internal(error),
        }
    }
}

impl From<AccountError> for MatrixError {
    fn from(error: AccountError) -> Self {
        match error {
            AccountError::Unknown => MatrixError::not_found("there is no such account"),
            AccountError::Password(error) => error.into(),
            AccountError::Users(error) => error.into(),
        }
    }
}

impl From<CreateAccountError> for MatrixError {
    fn from(error: CreateAccountError) -> Self {
        match error {
            CreateAccountError::InvalidUserId(_) => {
                Self::new(StatusCode::BAD_REQUEST, "M_INVALID_USERNAME", error.to_string())
            }
            CreateAccountError::InUse => {
                Self::new(StatusCode::BAD_REQUEST, "M_USER_IN_USE", "the user name is taken")
            }
            CreateAccountError::RegistrationToken => MatrixError::forbidden(error.to_string()),
            CreateAccountError::Users(error) => error.into(),
        }
    }
}

impl From<SessionError> for MatrixError {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Unknown => MatrixError::forbidden("there is no such account"),
            SessionError::InvalidDeviceId => MatrixError::invalid_param("not a device id"),
            SessionError::Users(error) => error.into(),
        }
    }
}

impl From<RefreshError> for MatrixError {
    fn from(error: RefreshError) -> Self {
        match error {
            RefreshError::Unknown => MatrixError::unknown_token("unknown refresh token"),
            RefreshError::Users(error) => error.into(),
        }
    }
}

impl From<DeviceError> for MatrixError {
    fn from(error: DeviceError) -> Self {
        match error {
            DeviceError::Unknown => MatrixError::not_found("there is no such device"),
            DeviceError::Users(error) => error.into(),
        }
    }
}

impl From<ProfileError> for MatrixError {
    fn from(error: ProfileError) -> Self {
        let message = error.to_string();
        match error {
            ProfileError::Unknown => MatrixError::not_found(message),
            ProfileError::KeyTooLarge => Self::new(StatusCode::BAD_REQUEST, "M_KEY_TOO_LARGE", message),
            ProfileError::TooLarge => Self::new(StatusCode::BAD_REQUEST, "M_PROFILE_TOO_LARGE", message),
            ProfileError::Invalid(_) => MatrixError::invalid_param(message),
            ProfileError::Users(error) => error.into(),
        }
    }
}

impl From<AccountDataError> for MatrixError {
    fn from(error: AccountDataError) -> Self {
        let message = error.to_string();
        match error {
            AccountDataError::Reserved(_) => Self::new(StatusCode::METHOD_NOT_ALLOWED, "M_BAD_JSON", message),
            AccountDataError::TooLarge => MatrixError::too_large(message),
            AccountDataError::NotAnObject => MatrixError::bad_json(message),
            AccountDataError::Users(error) => error.into(),
        }
    }
}

impl From<NotInvitable> for MatrixError {
    fn from(error: NotInvitable) -> Self {
        match error {
            NotInvitable::Unknown(_) => MatrixError::not_found(error.to_string()),
            NotInvitable::WantsNone(_) => {
                Self::new(StatusCode::FORBIDDEN, "M_INVITE_BLOCKED", error.to_string())
            }
            NotInvitable::Store(error) => error.into(),
        }
    }
}

impl From<FilterError> for MatrixError {
    fn from(error: FilterError) -> Self {
        match error {
            FilterError::TooLarge => MatrixError::too_large(error.to_string()),
            FilterError::Users(error) => error.into(),
        }
    }
}

impl From<PushRuleError> for MatrixError {
    fn from(error: PushRuleError) -> Self {
        let message = error.to_string();
        match error {
            PushRuleError::NotFound => MatrixError::not_found(message),
            PushRuleError::UnknownNeighbour => MatrixError::unknown(message),
            PushRuleError::Invalid(_) | PushRuleError::Predefined => MatrixError::invalid_param(message),
            PushRuleError::TooMany => MatrixError::too_large(message),
            PushRuleError::Users(error) => error.into(),
        }
    }
}
