//! Rules that hold on every path, and what a server says about itself.

use hearth::testing::TestServer;
use http::{Method, header};

#[tokio::test]
async fn unknown_paths_and_methods_are_told_apart() {
    let server = TestServer::start().await;
    let get = |path| server.request(Method::GET, path, None, None);
    get("/_matrix/client/v3/nonsense").await.refused(404, "M_UNRECOGNIZED");
    get("/").await.refused(404, "M_UNRECOGNIZED");
    let delete = server.request(Method::DELETE, "/_matrix/client/versions", None, None).await;
    delete.refused(405, "M_UNRECOGNIZED");
}

#[tokio::test]
async fn cors_headers_stand_on_every_answer_and_options_runs_no_logic() {
    let server = TestServer::start().await;
    for (method, path, status) in [
        (Method::GET, "/_matrix/client/versions", 200),
        (Method::GET, "/nowhere", 404),
        (Method::GET, "/health", 200),
        (Method::OPTIONS, "/_matrix/client/v3/sync", 204),
        (Method::OPTIONS, "/nowhere", 204),
    ] {
        let answer = server.request(method, path, None, None).await;
        assert_eq!(answer.status, status, "{path}");
        assert_eq!(answer.headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*", "{path}");
        assert!(answer.headers.contains_key(header::ACCESS_CONTROL_ALLOW_HEADERS), "{path}");
        if status != 204 {
            assert_eq!(answer.headers[header::CONTENT_TYPE], "application/json", "{path}");
        }
    }
}

#[tokio::test]
async fn versions_keep_the_old_ones_and_features_are_booleans() {
    let server = TestServer::start().await;
    let answer = server.request(Method::GET, "/_matrix/client/versions", None, None).await.ok();
    let versions = answer["versions"].as_array().unwrap();
    assert!(versions.contains(&"v1.1".into()) && versions.contains(&"v1.11".into()));
    assert!(answer["unstable_features"].as_object().unwrap().values().all(serde_json::Value::is_boolean));
}

#[tokio::test]
async fn well_known_files_follow_the_public_address() {
    let silent = TestServer::start().await;
    for file in ["client", "server", "support"] {
        let path = format!("/.well-known/matrix/{file}");
        silent.request(Method::GET, &path, None, None).await.refused(404, "M_NOT_FOUND");
    }
    let server = TestServer::with(|config| {
        config.public_base_url = Some("https://matrix.hearth.test".into());
        config.support.page = Some("https://hearth.test/help".into());
    })
    .await;
    let get = async |file| {
        server.request(Method::GET, &format!("/.well-known/matrix/{file}"), None, None).await.ok()
    };
    assert_eq!(get("client").await["m.homeserver"]["base_url"], "https://matrix.hearth.test");
    assert_eq!(get("server").await["m.server"], "matrix.hearth.test:443");
    assert_eq!(get("support").await["support_page"], "https://hearth.test/help");
}

#[tokio::test]
async fn the_key_server_signs_what_it_publishes() {
    let server = TestServer::start().await;
    for path in ["/_matrix/key/v2/server", "/_matrix/key/v2/server/ed25519:test"] {
        let keys = server.request(Method::GET, path, None, None).await.ok();
        assert_eq!(keys["server_name"], "hearth.test");
        assert!(keys["verify_keys"]["ed25519:test"]["key"].is_string());
        let object: ruma::CanonicalJsonObject = serde_json::from_value(keys.clone()).unwrap();
        let key = keys["verify_keys"]["ed25519:test"]["key"].as_str().unwrap();
        let key = ruma::serde::Base64::parse(key).unwrap();
        let of_server = [("ed25519:test".to_owned(), key)].into();
        let all = [("hearth.test".to_owned(), of_server)].into();
        ruma::signatures::verify_json(&all, &object).unwrap();
    }
}

#[tokio::test]
async fn an_internal_request_id_is_echoed() {
    let server = TestServer::start().await;
    let request = http::Request::get("/_matrix/client/versions").header("x-request-id", "abc");
    let answer = server.send(request.body(axum::body::Body::empty()).unwrap()).await;
    assert_eq!(answer.headers["x-request-id"], "abc");
}
