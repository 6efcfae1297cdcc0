//! Which endpoints there are: every one of the chapters that this server has, and none of those that it has not.

use hearth::testing::{Answer, TestServer};
use http::Method;

/// The endpoints of the chapters that are here, as the specification lists them.
const HERE: &str = "\
    GET /.well-known/matrix/client
    GET /.well-known/matrix/support
    GET /_matrix/client/v3/capabilities
    GET /_matrix/client/versions
    POST /_matrix/client/v1/login/get_token
    GET /_matrix/client/v3/auth/{authType}/fallback/web
    GET /_matrix/client/v3/login
    POST /_matrix/client/v3/login
    POST /_matrix/client/v3/logout
    POST /_matrix/client/v3/logout/all
    POST /_matrix/client/v3/refresh
    GET /_matrix/static/client/login/
    GET /_matrix/client/v1/register/m.login.registration_token/validity
    POST /_matrix/client/v3/register
    GET /_matrix/client/v3/register/available
    POST /_matrix/client/v3/register/email/requestToken
    POST /_matrix/client/v3/register/msisdn/requestToken
    POST /_matrix/client/v3/account/deactivate
    POST /_matrix/client/v3/account/password
    POST /_matrix/client/v3/account/password/email/requestToken
    POST /_matrix/client/v3/account/password/msisdn/requestToken
    GET /_matrix/client/v3/account/whoami
    GET /_matrix/client/v3/account/3pid
    POST /_matrix/client/v3/account/3pid
    POST /_matrix/client/v3/account/3pid/add
    POST /_matrix/client/v3/account/3pid/bind
    POST /_matrix/client/v3/account/3pid/delete
    POST /_matrix/client/v3/account/3pid/email/requestToken
    POST /_matrix/client/v3/account/3pid/msisdn/requestToken
    POST /_matrix/client/v3/account/3pid/unbind
    POST /_matrix/client/v3/delete_devices
    GET /_matrix/client/v3/devices
    DELETE /_matrix/client/v3/devices/{deviceId}
    GET /_matrix/client/v3/devices/{deviceId}
    PUT /_matrix/client/v3/devices/{deviceId}
    GET /_matrix/client/v3/user/{userId}/account_data/{type}
    PUT /_matrix/client/v3/user/{userId}/account_data/{type}
    GET /_matrix/client/v3/user/{userId}/rooms/{roomId}/account_data/{type}
    PUT /_matrix/client/v3/user/{userId}/rooms/{roomId}/account_data/{type}
    GET /_matrix/client/v3/user/{userId}/rooms/{roomId}/tags
    DELETE /_matrix/client/v3/user/{userId}/rooms/{roomId}/tags/{tag}
    PUT /_matrix/client/v3/user/{userId}/rooms/{roomId}/tags/{tag}
    GET /_matrix/client/v1/room_summary/{roomIdOrAlias}
    GET /_matrix/client/v3/directory/list/room/{roomId}
    PUT /_matrix/client/v3/directory/list/room/{roomId}
    DELETE /_matrix/client/v3/directory/room/{roomAlias}
    GET /_matrix/client/v3/directory/room/{roomAlias}
    PUT /_matrix/client/v3/directory/room/{roomAlias}
    GET /_matrix/client/v3/publicRooms
    POST /_matrix/client/v3/publicRooms
    GET /_matrix/client/v3/rooms/{roomId}/aliases
    POST /_matrix/client/v3/join/{roomIdOrAlias}
    GET /_matrix/client/v3/joined_rooms
    POST /_matrix/client/v3/knock/{roomIdOrAlias}
    POST /_matrix/client/v3/rooms/{roomId}/ban
    POST /_matrix/client/v3/rooms/{roomId}/forget
    POST /_matrix/client/v3/rooms/{roomId}/invite
    POST /_matrix/client/v3/rooms/{roomId}/join
    POST /_matrix/client/v3/rooms/{roomId}/kick
    POST /_matrix/client/v3/rooms/{roomId}/leave
    POST /_matrix/client/v3/rooms/{roomId}/unban
    GET /_matrix/client/v3/presence/{userId}/status
    PUT /_matrix/client/v3/presence/{userId}/status
    GET /_matrix/client/v3/profile/{userId}
    DELETE /_matrix/client/v3/profile/{userId}/{keyName}
    GET /_matrix/client/v3/profile/{userId}/{keyName}
    PUT /_matrix/client/v3/profile/{userId}/{keyName}
    POST /_matrix/client/v3/rooms/{roomId}/read_markers
    POST /_matrix/client/v3/rooms/{roomId}/receipt/{receiptType}/{eventId}
    GET /_matrix/client/v1/rooms/{roomId}/relations/{eventId}
    GET /_matrix/client/v1/rooms/{roomId}/relations/{eventId}/{relType}
    GET /_matrix/client/v1/rooms/{roomId}/relations/{eventId}/{relType}/{eventType}
    GET /_matrix/client/v1/rooms/{roomId}/timestamp_to_event
    POST /_matrix/client/v3/createRoom
    GET /_matrix/client/v3/rooms/{roomId}/context/{eventId}
    GET /_matrix/client/v3/rooms/{roomId}/event/{eventId}
    GET /_matrix/client/v3/rooms/{roomId}/joined_members
    GET /_matrix/client/v3/rooms/{roomId}/members
    GET /_matrix/client/v3/rooms/{roomId}/messages
    PUT /_matrix/client/v3/rooms/{roomId}/redact/{eventId}/{txnId}
    PUT /_matrix/client/v3/rooms/{roomId}/send/{eventType}/{txnId}
    GET /_matrix/client/v3/rooms/{roomId}/state
    GET /_matrix/client/v3/rooms/{roomId}/state/{eventType}
    PUT /_matrix/client/v3/rooms/{roomId}/state/{eventType}
    GET /_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}
    PUT /_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}
    GET /_matrix/client/v3/sync
    POST /_matrix/client/v3/user/{userId}/filter
    GET /_matrix/client/v3/user/{userId}/filter/{filterId}
    GET /_matrix/client/v3/events
    GET /_matrix/client/v3/events/{eventId}
    GET /_matrix/client/v3/initialSync
    GET /_matrix/client/v3/rooms/{roomId}/initialSync
    GET /_matrix/client/v1/rooms/{roomId}/threads
    PUT /_matrix/client/v3/rooms/{roomId}/typing/{userId}
    GET /_matrix/client/v1/mutual_rooms
    POST /_matrix/client/v3/user_directory/search
    GET /_matrix/client/v3/pushrules/
    GET /_matrix/client/v3/pushrules/global/
    DELETE /_matrix/client/v3/pushrules/global/{kind}/{ruleId}
    GET /_matrix/client/v3/pushrules/global/{kind}/{ruleId}
    PUT /_matrix/client/v3/pushrules/global/{kind}/{ruleId}
    GET /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/actions
    PUT /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/actions
    GET /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/enabled
    PUT /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/enabled
";

/// Chapters that are still to come: clients look for a fall-back where they find `M_UNRECOGNIZED`.
const NOT_HERE: &str = "\
    GET /_matrix/client/v3/keys/changes
    POST /_matrix/client/v3/keys/claim
    POST /_matrix/client/v3/keys/device_signing/upload
    POST /_matrix/client/v3/keys/query
    POST /_matrix/client/v3/keys/signatures/upload
    POST /_matrix/client/v3/keys/upload
    DELETE /_matrix/client/v3/room_keys/keys
    GET /_matrix/client/v3/room_keys/keys
    PUT /_matrix/client/v3/room_keys/keys
    DELETE /_matrix/client/v3/room_keys/keys/{roomId}
    GET /_matrix/client/v3/room_keys/keys/{roomId}
    PUT /_matrix/client/v3/room_keys/keys/{roomId}
    DELETE /_matrix/client/v3/room_keys/keys/{roomId}/{sessionId}
    GET /_matrix/client/v3/room_keys/keys/{roomId}/{sessionId}
    PUT /_matrix/client/v3/room_keys/keys/{roomId}/{sessionId}
    GET /_matrix/client/v3/room_keys/version
    POST /_matrix/client/v3/room_keys/version
    DELETE /_matrix/client/v3/room_keys/version/{version}
    GET /_matrix/client/v3/room_keys/version/{version}
    PUT /_matrix/client/v3/room_keys/version/{version}
    GET /_matrix/client/v1/auth_metadata
    POST /_matrix/client/v3/rooms/{roomId}/report
    POST /_matrix/client/v3/rooms/{roomId}/report/{eventId}
    POST /_matrix/client/v3/users/{userId}/report
    POST /_matrix/client/v3/search
    GET /_matrix/client/v1/rooms/{roomId}/hierarchy
    GET /_matrix/client/v3/login/sso/redirect
    GET /_matrix/client/v3/login/sso/redirect/{idpId}
    GET /_matrix/client/v3/thirdparty/location
    GET /_matrix/client/v3/thirdparty/location/{protocol}
    GET /_matrix/client/v3/thirdparty/protocol/{protocol}
    GET /_matrix/client/v3/thirdparty/protocols
    GET /_matrix/client/v3/thirdparty/user
    GET /_matrix/client/v3/thirdparty/user/{protocol}
    PUT /_matrix/client/v3/sendToDevice/{eventType}/{txnId}
    POST /_matrix/client/v3/rooms/{roomId}/upgrade
    GET /_matrix/client/v3/notifications
    GET /_matrix/client/v3/pushers
    POST /_matrix/client/v3/pushers/set
";

async fn ask(server: &TestServer, line: &str) -> Answer {
    let (method, path) = line.trim().split_once(' ').unwrap();
    let filled = path.split('/').map(|part| match part {
        "{authType}" => "m.login.dummy",
        part if part.starts_with('{') => "x",
        part => part,
    });
    let path = filled.collect::<Vec<_>>().join("/");
    server.request(Method::from_bytes(method.as_bytes()).unwrap(), &path, None, None).await
}

fn is_unrecognized(answer: &Answer) -> bool {
    answer.json()["errcode"] == "M_UNRECOGNIZED"
}

#[tokio::test]
async fn every_endpoint_of_the_chapters_that_are_here_is_known() {
    let server = TestServer::with(|config| config.public_base_url = Some("https://hearth.test".into())).await;
    let mut missing = Vec::new();
    for line in HERE.lines() {
        if is_unrecognized(&ask(&server, line).await) {
            missing.push(line);
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[tokio::test]
async fn what_is_not_here_is_not_pretended() {
    let server = TestServer::start().await;
    let mut pretended = Vec::new();
    for line in NOT_HERE.lines() {
        if !is_unrecognized(&ask(&server, line).await) {
            pretended.push(line);
        }
    }
    assert!(pretended.is_empty(), "{}", pretended.join("\n"));
}
