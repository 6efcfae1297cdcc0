//! E-mail addresses and phone numbers of accounts: there are none here, and whoever asks for them is told so.
//! * The capability `m.3pid_changes` is off, so that clients need not ask.
//! * Nothing can be validated, so nothing can be added; what was never added is not found.

use http::{Method, StatusCode};
use ruma::api::client::account::{
    ThirdPartyIdRemovalStatus, add_3pid, bind_3pid, delete_3pid, get_3pids,
    request_3pid_management_token_via_email as email_to_add,
    request_3pid_management_token_via_msisdn as phone_to_add,
    request_password_change_token_via_email as email_to_change_password,
    request_password_change_token_via_msisdn as phone_to_change_password,
    request_registration_token_via_email as email_to_register,
    request_registration_token_via_msisdn as phone_to_register, unbind_3pid,
};
use serde::Deserialize;
use serde_json::json;

use crate::http::{
    ApiResult, Auth, JsonBody, JsonResult, LocalUser, MatrixError, RateClass, RawJson, Route, Routes, Ruma,
    Specimen,
};

const EMAIL: &str = r#"{"client_secret":"s","email":"a@b.test","send_attempt":1}"#;
const WRONG_EMAIL: &str = r#"{"client_secret":"s","email":1,"send_attempt":1}"#;
const PHONE: &str = r#"{"client_secret":"s","country":"GB","phone_number":"7700900001","send_attempt":1}"#;
const WRONG_PHONE: &str = r#"{"client_secret":"s","country":"GB","phone_number":7,"send_attempt":1}"#;

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    const NOTHING: Specimen = Specimen::path("");
    let email = NOTHING.body(EMAIL, WRONG_EMAIL);
    let phone = NOTHING.body(PHONE, WRONG_PHONE);
    let bound =
        NOTHING.body(r#"{"medium":"email","address":"a@b.test"}"#, r#"{"medium":"email","address":1}"#);
    let validated = NOTHING.body(r#"{"client_secret":"s","sid":"1"}"#, r#"{"client_secret":"s","sid":1}"#);
    routes.add(Route::of::<get_3pids::v3::Request>().specimen(NOTHING).to(list));
    let asking = |route: Route, specimen| route.rate(RateClass::Login).specimen(specimen);
    // ruma has left out the oldest way to add an address.
    routes.add(
        Route::at(Method::POST, "/_matrix/client/v3/account/3pid", Auth::Token)
            .specimen(NOTHING.body(
                r#"{"three_pid_creds":{"client_secret":"s","sid":"1","id_server":"id.test"}}"#,
                r#"{"three_pid_creds":{"client_secret":"s","sid":1,"id_server":"id.test"}}"#,
            ))
            .to(add_as_of_old),
    );
    routes.add(asking(Route::of::<email_to_add::v3::Request>(), email).to(add_by_email));
    routes.add(asking(Route::of::<phone_to_add::v3::Request>(), phone).to(add_by_phone));
    routes.add(asking(Route::of::<email_to_register::v3::Request>(), email).to(register_by_email));
    routes.add(asking(Route::of::<phone_to_register::v3::Request>(), phone).to(register_by_phone));
    routes.add(asking(Route::of::<email_to_change_password::v3::Request>(), email).to(password_by_email));
    routes.add(asking(Route::of::<phone_to_change_password::v3::Request>(), phone).to(password_by_phone));
    routes.add(Route::of::<add_3pid::v3::Request>().specimen(validated).to(add));
    routes.add(
        Route::of::<bind_3pid::v3::Request>()
            .specimen(NOTHING.body(
                r#"{"client_secret":"s","sid":"1","id_server":"id.test","id_access_token":"t"}"#,
                r#"{"client_secret":"s","sid":1,"id_server":"id.test","id_access_token":"t"}"#,
            ))
            .to(bind),
    );
    routes.add(Route::of::<delete_3pid::v3::Request>().specimen(bound).to(delete));
    routes.add(Route::of::<unbind_3pid::v3::Request>().specimen(bound).to(unbind));
}

/// `GET /_matrix/client/v3/account/3pid`
async fn list(_: LocalUser) -> JsonResult {
    RawJson::of(&json!({ "threepids": [] }))
}

#[derive(Deserialize)]
struct OldAddition {
    #[serde(rename = "three_pid_creds")]
    _credentials: Credentials,
}

#[derive(Deserialize)]
struct Credentials {
    #[serde(rename = "client_secret")]
    _client_secret: String,
    #[serde(rename = "sid")]
    _sid: String,
}

/// `POST /_matrix/client/v3/account/3pid`
async fn add_as_of_old(_: LocalUser, JsonBody(_): JsonBody<OldAddition>) -> JsonResult {
    Err(denied())
}

/// `POST /_matrix/client/v3/account/3pid/email/requestToken`
async fn add_by_email(Ruma(_): Ruma<email_to_add::v3::Request>) -> ApiResult<email_to_add::v3::Response> {
    Err(denied())
}

/// `POST /_matrix/client/v3/account/3pid/msisdn/requestToken`
async fn add_by_phone(Ruma(_): Ruma<phone_to_add::v3::Request>) -> ApiResult<phone_to_add::v3::Response> {
    Err(denied())
}

/// `POST /_matrix/client/v3/register/email/requestToken`
async fn register_by_email(
    Ruma(_): Ruma<email_to_register::v3::Request>,
) -> ApiResult<email_to_register::v3::Response> {
    Err(denied())
}

/// `POST /_matrix/client/v3/register/msisdn/requestToken`
async fn register_by_phone(
    Ruma(_): Ruma<phone_to_register::v3::Request>,
) -> ApiResult<phone_to_register::v3::Response> {
    Err(denied())
}

/// `POST /_matrix/client/v3/account/password/email/requestToken`
async fn password_by_email(
    Ruma(_): Ruma<email_to_change_password::v3::Request>,
) -> ApiResult<email_to_change_password::v3::Response> {
    Err(nobodys())
}

/// `POST /_matrix/client/v3/account/password/msisdn/requestToken`
async fn password_by_phone(
    Ruma(_): Ruma<phone_to_change_password::v3::Request>,
) -> ApiResult<phone_to_change_password::v3::Response> {
    Err(nobodys())
}

/// `POST /_matrix/client/v3/account/3pid/add`
async fn add(_: LocalUser, Ruma(_): Ruma<add_3pid::v3::Request>) -> ApiResult<add_3pid::v3::Response> {
    Err(denied())
}

/// `POST /_matrix/client/v3/account/3pid/bind`
async fn bind(_: LocalUser, Ruma(_): Ruma<bind_3pid::v3::Request>) -> ApiResult<bind_3pid::v3::Response> {
    Err(denied())
}

/// `POST /_matrix/client/v3/account/3pid/delete`
async fn delete(
    _: LocalUser,
    Ruma(_): Ruma<delete_3pid::v3::Request>,
) -> ApiResult<delete_3pid::v3::Response> {
    Err(nobodys())
}

/// `POST /_matrix/client/v3/account/3pid/unbind`
async fn unbind(
    _: LocalUser,
    Ruma(_): Ruma<unbind_3pid::v3::Request>,
) -> ApiResult<unbind_3pid::v3::Response> {
    // What a server has to say that does not know where an address was bound.
    Ok(Ruma(unbind_3pid::v3::Response::new(ThirdPartyIdRemovalStatus::NoSupport)))
}

fn denied() -> MatrixError {
    let message = "accounts of this server have no e-mail addresses and phone numbers";
    MatrixError::new(StatusCode::FORBIDDEN, "M_THREEPID_DENIED", message)
}

fn nobodys() -> MatrixError {
    let message = "no account of this server has this address";
    MatrixError::new(StatusCode::BAD_REQUEST, "M_THREEPID_NOT_FOUND", message)
}
