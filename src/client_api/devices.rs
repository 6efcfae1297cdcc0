//! The own devices.

use axum::extract::State;
use hearth_users::Users;
use ruma::{
    MilliSecondsSinceUnixEpoch, UInt,
    api::client::device::{Device, delete_device, delete_devices, get_device, get_devices, update_device},
};

use super::uia::{UiaResult, WithBody, confirm_by_password};
use crate::http::{ApiResult, LocalUser, MatrixError, Route, Routes, Ruma, Specimen};

/// Devices removed by one request.
const DELETED_MAX: usize = 1_000;

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    let device = Specimen::path("$device");
    routes.add(Route::of::<get_devices::v3::Request>().specimen(Specimen::path("")).to(list));
    routes.add(Route::of::<get_device::v3::Request>().specimen(device).to(show));
    routes.add(
        Route::of::<update_device::v3::Request>()
            .specimen(device.body(r#"{"display_name":"phone"}"#, r#"{"display_name":1}"#))
            .to(rename),
    );
    routes.add(
        Route::of::<delete_device::v3::Request>().specimen(device.body("{}", r#"{"auth":1}"#)).to(delete),
    );
    routes.add(
        Route::of::<delete_devices::v3::Request>()
            .specimen(Specimen::path("").body(r#"{"devices":["$device"]}"#, r#"{"devices":1}"#))
            .to(delete_several),
    );
}

/// `GET /_matrix/client/v3/devices`
async fn list(State(users): State<Users>, user: LocalUser) -> ApiResult<get_devices::v3::Response> {
    let devices = users.devices(&user.user_id).await?;
    Ok(Ruma(get_devices::v3::Response::new(devices.into_iter().map(shown).collect())))
}

/// `GET /_matrix/client/v3/devices/{deviceId}`
async fn show(
    State(users): State<Users>,
    user: LocalUser,
    Ruma(request): Ruma<get_device::v3::Request>,
) -> ApiResult<get_device::v3::Response> {
    let device = users.device(&user.user_id, &request.device_id).await?;
    let device = device.ok_or_else(|| MatrixError::not_found("there is no such device"))?;
    Ok(Ruma(get_device::v3::Response::new(shown(device))))
}

/// `PUT /_matrix/client/v3/devices/{deviceId}`
async fn rename(
    State(users): State<Users>,
    user: LocalUser,
    Ruma(request): Ruma<update_device::v3::Request>,
) -> ApiResult<update_device::v3::Response> {
    match &request.display_name {
        Some(name) => users.rename_device(&user.user_id, &request.device_id, Some(name)).await?,
        None => {
            let known = users.device(&user.user_id, &request.device_id).await?;
            known.ok_or_else(|| MatrixError::not_found("there is no such device"))?;
        }
    }
    Ok(Ruma(update_device::v3::Response::new()))
}

/// `DELETE /_matrix/client/v3/devices/{deviceId}`
async fn delete(
    State(users): State<Users>,
    user: LocalUser,
    WithBody { request, body }: WithBody<delete_device::v3::Request>,
) -> UiaResult<delete_device::v3::Response> {
    let endpoint = format!("DELETE devices/{}", request.device_id);
    confirm_by_password(&users, &endpoint, &user.user_id, body, request.auth.as_ref()).await?;
    users.delete_devices(&user.user_id, &[request.device_id]).await?;
    Ok(Ruma(delete_device::v3::Response::new()))
}

/// `POST /_matrix/client/v3/delete_devices`
async fn delete_several(
    State(users): State<Users>,
    user: LocalUser,
    WithBody { request, body }: WithBody<delete_devices::v3::Request>,
) -> UiaResult<delete_devices::v3::Response> {
    if request.devices.len() > DELETED_MAX {
        return Err(MatrixError::invalid_param(format!("more than {DELETED_MAX} devices")).into());
    }
    confirm_by_password(&users, "POST delete_devices", &user.user_id, body, request.auth.as_ref()).await?;
    users.delete_devices(&user.user_id, &request.devices).await?;
    Ok(Ruma(delete_devices::v3::Response::new()))
}

fn shown(device: hearth_users::Device) -> Device {
    let mut shown = Device::new(device.device_id);
    shown.display_name = device.display_name;
    shown.last_seen_ip = device.last_seen_ip;
    shown.last_seen_ts =
        device.last_seen_ts.and_then(|ts| UInt::try_from(ts).ok()).map(MilliSecondsSinceUnixEpoch);
    shown
}
