//! Files of other servers: fetched, kept, shown small, and given to other servers.

use std::{io::Cursor, sync::atomic::Ordering, time::Duration};

use axum::body::Body;
use hearth::{
    config::Config,
    media::remote::{FAILED_TIME, UNREACHABLE_TIMES},
    testing::{Answer, TestNetwork, TestServer, TestUser},
};
use hearth_store::Store;
use http::{Method, Request, header};
use image::{ImageFormat, RgbImage};
use ruma::OwnedServerName;
use tempfile::TempDir;

fn name(name: &str) -> OwnedServerName {
    name.try_into().unwrap()
}

/// A server with a folder of its own for its files.
async fn server_in(network: &TestNetwork, server: &str) -> (TempDir, TestServer) {
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config { server_name: name(server), ..Config::default() };
    config.data_dir = folder.path().to_owned();
    config.limits.upload_size = "64 KiB".parse().unwrap();
    config.rate_limits.enabled = false;
    (folder, TestServer::on(config, Store::memory().await, network.clone()).await)
}

/// The address of a new file without its scheme.
async fn upload(user: &TestUser, file_name: &str, kind: &str, body: impl Into<Body>) -> String {
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("/_matrix/media/v3/upload?filename={file_name}"))
        .header(header::AUTHORIZATION, format!("Bearer {}", user.token))
        .header(header::CONTENT_TYPE, kind);
    let answer = user.server.send(request.body(body.into()).unwrap()).await.ok();
    answer["content_uri"].as_str().unwrap().strip_prefix("mxc://").unwrap().to_owned()
}

async fn download(user: &TestUser, address: &str) -> Answer {
    user.get(&format!("/_matrix/client/v1/media/download/{address}")).await
}

fn text<'a>(answer: &'a Answer, name: &header::HeaderName) -> &'a str {
    answer.headers.get(name).map_or("", |value| value.to_str().unwrap())
}

#[tokio::test]
async fn a_file_of_another_server_is_fetched_once_and_stays() {
    let network = TestNetwork::default();
    let ((_a, far), (_b, near)) =
        (server_in(&network, "far.test").await, server_in(&network, "near.test").await);
    let (alice, bob) = (far.user("alice").await, near.user("bob").await);
    let page = "<script>alert(1)</script>\r\n--";
    let address = upload(&alice, "a%0D%0Ab%20%C3%A4.html", "text/html", page).await;
    let all = futures_util::future::join_all((0..5).map(|_| download(&bob, &address))).await;
    network.cut(&name("far.test"));
    for answer in all.into_iter().chain([download(&bob, &address).await]) {
        assert_eq!((answer.status.as_u16(), &answer.body[..]), (200, page.as_bytes()));
        assert_eq!(text(&answer, &header::CONTENT_TYPE), "text/html");
        assert_eq!(
            text(&answer, &header::CONTENT_DISPOSITION),
            "attachment; filename*=utf-8''ab%20%C3%A4.html"
        );
        assert!(text(&answer, &header::CONTENT_SECURITY_POLICY).starts_with("sandbox;"));
    }
}

#[tokio::test]
async fn pictures_of_other_servers_are_made_small_here() {
    let network = TestNetwork::default();
    let ((_a, far), (_b, near)) =
        (server_in(&network, "far.test").await, server_in(&network, "near.test").await);
    let (alice, bob) = (far.user("alice").await, near.user("bob").await);
    let mut png = Vec::new();
    RgbImage::new(640, 400).write_to(&mut Cursor::new(&mut png), ImageFormat::Png).unwrap();
    let address = upload(&alice, "a.png", "image/png", png).await;
    let small = format!("/_matrix/client/v1/media/thumbnail/{address}?width=96&height=96&method=crop");
    let answer = bob.get(&small).await;
    assert_eq!(answer.status, 200);
    let picture = image::load_from_memory(&answer.body).unwrap();
    assert_eq!((picture.width(), picture.height()), (96, 96));
    network.cut(&name("far.test"));
    assert_eq!(download(&bob, &address).await.status, 200, "the whole picture is here now");
}

#[tokio::test]
async fn what_cannot_be_had_is_refused_and_not_asked_for_at_once_again() {
    let network = TestNetwork::default();
    let ((_a, far), (_b, near)) =
        (server_in(&network, "far.test").await, server_in(&network, "near.test").await);
    let (alice, bob) = (far.user("alice").await, near.user("bob").await);
    download(&bob, "far.test/none").await.refused(404, "M_NOT_FOUND");
    download(&bob, "gone.test/none").await.refused(502, "M_UNKNOWN");
    download(&bob, "far.test/a.b").await.refused(400, "M_INVALID_PARAM");
    let address = upload(&alice, "a", "text/plain", "words").await;
    network.refuse(&name("far.test"), "/_matrix/");
    download(&bob, &address).await.refused(404, "M_NOT_FOUND");
    network.refuse_nothing();
    download(&bob, &address).await.refused(404, "M_NOT_FOUND");
    // Whoever has no token gets nothing, and makes nobody ask.
    let path = format!("/_matrix/client/v1/media/download/{address}");
    near.request(Method::GET, &path, None, None).await.refused(401, "M_MISSING_TOKEN");
}

/// Many files are named of a server that nobody reaches: after a few it is left alone for a while.
#[tokio::test]
async fn a_server_that_cannot_be_reached_is_not_asked_for_each_of_its_files() {
    let network = TestNetwork::default();
    let (_folder, near) = server_in(&network, "near.test").await;
    let bob = near.user("bob").await;
    let asked = network.slow(&name("gone.test"), "/_matrix/", Duration::ZERO);
    for file in 0..20 {
        download(&bob, &format!("gone.test/file{file}")).await.refused(502, "M_UNKNOWN");
    }
    assert_eq!(asked.asked.load(Ordering::SeqCst), UNREACHABLE_TIMES as usize);
    tokio::time::pause();
    tokio::time::advance(FAILED_TIME).await;
    tokio::time::resume();
    download(&bob, "gone.test/other").await.refused(502, "M_UNKNOWN");
    assert_eq!(asked.asked.load(Ordering::SeqCst), UNREACHABLE_TIMES as usize + 1, "it may be there again");
}

#[tokio::test]
async fn other_servers_get_what_was_uploaded_here_and_no_copies() {
    let network = TestNetwork::default();
    let ((_a, far), (_b, near)) =
        (server_in(&network, "far.test").await, server_in(&network, "near.test").await);
    let (alice, bob) = (far.user("alice").await, near.user("bob").await);
    let address = upload(&alice, "a.txt", "text/plain", "words").await;
    download(&bob, &address).await;
    let (_, id) = address.split_once('/').unwrap();
    let client = near.app.federation.client();
    let medium = client.download(&name("far.test"), id, 1000).await.unwrap();
    assert_eq!((medium.content_type.as_deref(), &medium.bytes[..]), (Some("text/plain"), &b"words"[..]));
    assert_eq!(medium.content_disposition.as_deref(), Some("inline; filename=a.txt"));
    assert!(client.download(&name("far.test"), id, 4).await.is_err(), "more than was asked for");
    let thumbnail = client.thumbnail(&name("far.test"), id, (32, 32), "crop", None, 1000).await;
    assert_eq!(thumbnail.unwrap_err().remote().unwrap().status, 400, "text has none");
    // The server that has a copy of it has no such file of its own.
    let copy = far.app.federation.client().download(&name("near.test"), id, 1000).await;
    assert_eq!(copy.unwrap_err().remote().unwrap().status, 404);
}
