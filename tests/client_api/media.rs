//! Media: uploads, downloads by parts, thumbnails, addresses that are filled later, and what is refused.

use axum::body::Body;
use hearth::testing::{Answer, TestServer, TestUser};
use http::{Method, Request, header};
use serde_json::json;
use tempfile::TempDir;

/// A server with a folder of its own for its files, and two users.
async fn stage() -> (TempDir, TestUser, TestUser) {
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::with(|config| {
        config.data_dir = folder.path().to_owned();
        config.limits.upload_size = "64 KiB".parse().unwrap();
        config.limits.media_quota = Some("100 KiB".parse().unwrap());
    });
    let server = server.await;
    (folder, server.user("alice").await, server.user("bob").await)
}

async fn send(
    user: &TestUser,
    method: Method,
    path: &str,
    headers: &[(header::HeaderName, &str)],
    body: impl Into<Body>,
) -> Answer {
    let mut request = Request::builder().method(method).uri(path);
    request = request.header(header::AUTHORIZATION, format!("Bearer {}", user.token));
    for (name, value) in headers {
        request = request.header(name, *value);
    }
    user.server.send(request.body(body.into()).unwrap()).await
}

async fn upload(user: &TestUser, name: &str, kind: &str, body: impl Into<Body>) -> Answer {
    let path = format!("/_matrix/media/v3/upload?filename={name}");
    send(user, Method::POST, &path, &[(header::CONTENT_TYPE, kind)], body).await
}

/// `server/media id` of an upload's answer.
fn address(answer: &Answer) -> String {
    let uri = answer.ok()["content_uri"].as_str().unwrap().to_owned();
    uri.strip_prefix("mxc://").unwrap().to_owned()
}

fn download_path(address: &str) -> String {
    format!("/_matrix/client/v1/media/download/{address}")
}

fn text<'a>(answer: &'a Answer, name: &header::HeaderName) -> &'a str {
    answer.headers.get(name).map_or("", |value| value.to_str().unwrap())
}

#[tokio::test]
async fn a_file_comes_back_as_it_was_with_headers_that_disarm_it() {
    let (_folder, alice, bob) = stage().await;
    let page = "<script>alert(1)</script>";
    let address = address(&upload(&alice, "a%20page.html", "text/html", page).await);
    assert!(address.starts_with("hearth.test/"));

    let answer = bob.get(&download_path(&address)).await;
    assert_eq!((answer.status.as_u16(), &answer.body[..]), (200, page.as_bytes()));
    assert_eq!(text(&answer, &header::CONTENT_TYPE), "text/html");
    assert_eq!(text(&answer, &header::CONTENT_DISPOSITION), "attachment; filename=\"a page.html\"");
    assert_eq!(text(&answer, &header::CONTENT_LENGTH), page.len().to_string());
    assert!(text(&answer, &header::CONTENT_SECURITY_POLICY).starts_with("sandbox; default-src 'none';"));
    assert_eq!(text(&answer, &header::X_CONTENT_TYPE_OPTIONS), "nosniff");
    assert_eq!(answer.headers["cross-origin-resource-policy"], "cross-origin");
    assert!(text(&answer, &header::CACHE_CONTROL).contains("immutable"));

    let renamed = bob.get(&format!("{}/%C3%A4.txt", download_path(&address))).await;
    assert_eq!(text(&renamed, &header::CONTENT_DISPOSITION), "attachment; filename*=utf-8''%C3%A4.txt");

    let plain = upload(&alice, "", "text/plain", "words").await;
    let plain = bob.get(&download_path(&self::address(&plain))).await;
    assert_eq!(text(&plain, &header::CONTENT_DISPOSITION), "inline");

    let config = bob.get("/_matrix/client/v1/media/config").await.ok();
    assert_eq!(config, json!({ "m.upload.size": 65536 }));
    assert_eq!(bob.get("/_matrix/media/v3/config").await.ok(), config);
}

#[tokio::test]
async fn a_part_of_a_file_is_served_and_a_known_file_is_not_sent_again() {
    let (_folder, alice, _) = stage().await;
    let path = download_path(&address(&upload(&alice, "n", "text/plain", "0123456789").await));
    let part = async |range: &str| send(&alice, Method::GET, &path, &[(header::RANGE, range)], "").await;

    let middle = part("bytes=2-4").await;
    assert_eq!((middle.status.as_u16(), &middle.body[..]), (206, &b"234"[..]));
    assert_eq!(text(&middle, &header::CONTENT_RANGE), "bytes 2-4/10");
    let end = part("bytes=-3").await;
    assert_eq!((end.status.as_u16(), &end.body[..]), (206, &b"789"[..]));
    let beyond = part("bytes=10-").await;
    beyond.refused(416, "M_UNKNOWN");
    assert_eq!(text(&beyond, &header::CONTENT_RANGE), "bytes */10");
    assert_eq!(&part("bytes=1-2,4-5").await.body[..], b"0123456789");

    let tag = text(&middle, &header::ETAG);
    let known = send(&alice, Method::GET, &path, &[(header::IF_NONE_MATCH, tag)], "").await;
    assert_eq!((known.status.as_u16(), known.body.len()), (304, 0));
    let if_range = |tag| [(header::RANGE, "bytes=0-0"), (header::IF_RANGE, tag)];
    let same = send(&alice, Method::GET, &path, &if_range(tag), "").await;
    assert_eq!(&same.body[..], b"0");
    let other = send(&alice, Method::GET, &path, &if_range("\"other\""), "").await;
    assert_eq!((other.status.as_u16(), &other.body[..]), (200, &b"0123456789"[..]));
}

#[tokio::test]
async fn media_are_for_users_and_the_open_paths_know_none() {
    let (_folder, alice, _) = stage().await;
    let address = address(&upload(&alice, "n", "image/png", picture(40, 30)).await);
    let server = &alice.server;
    let open = |path: String| async move { server.request(Method::GET, &path, None, None).await };
    open(download_path(&address)).await.refused(401, "M_MISSING_TOKEN");
    for version in ["r0", "v3"] {
        open(format!("/_matrix/media/{version}/download/{address}")).await.refused(404, "M_NOT_FOUND");
        open(format!("/_matrix/media/{version}/download/{address}/n")).await.refused(404, "M_NOT_FOUND");
        let thumbnail = format!("/_matrix/media/{version}/thumbnail/{address}?width=32&height=32");
        open(thumbnail).await.refused(404, "M_NOT_FOUND");
    }
    alice.get(&download_path("hearth.test/unknown")).await.refused(404, "M_NOT_FOUND");
    alice.get(&download_path("elsewhere.test/unknown")).await.refused(502, "M_UNKNOWN");
    alice.get(&download_path("hearth.test/..%2F..%2Fstore")).await.refused(400, "M_INVALID_PARAM");
    alice.get(&download_path("no%20server/a")).await.refused(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn an_address_can_be_reserved_and_filled_later_once_by_its_maker() {
    let (_folder, alice, bob) = stage().await;
    let reserved = alice.post("/_matrix/media/v1/create", json!({})).await;
    assert!(reserved.ok()["unused_expires_at"].as_u64().unwrap() > 1_600_000_000_000);
    let address = address(&reserved);
    let path = format!("/_matrix/media/v3/upload/{address}");
    let fill = |user, text: &'static str| send(user, Method::PUT, &path, &[], text);

    let waiting = format!("{}?timeout_ms=10", download_path(&address));
    bob.get(&waiting).await.refused(504, "M_NOT_YET_UPLOADED");
    fill(&bob, "not mine").await.refused(403, "M_FORBIDDEN");
    let (bob_waits, bob_path) = (bob.clone(), download_path(&address));
    let patient = tokio::spawn(async move { bob_waits.get(&bob_path).await });
    fill(&alice, "late").await.ok();
    let patient = patient.await.unwrap();
    assert_eq!(&patient.body[..], b"late");
    assert_eq!(text(&patient, &header::CONTENT_TYPE), "application/octet-stream");
    fill(&alice, "again").await.refused(409, "M_CANNOT_OVERWRITE_MEDIA");
    let unknown = "/_matrix/media/v3/upload/hearth.test/unknown";
    send(&alice, Method::PUT, unknown, &[], "x").await.refused(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn too_large_files_and_too_many_are_refused() {
    let (_folder, alice, bob) = stage().await;
    upload(&alice, "n", "text/plain", vec![b'x'; 65537]).await.refused(413, "M_TOO_LARGE");
    // The same without saying so beforehand.
    let pieces = (0..9).map(|_| Ok::<_, std::io::Error>(vec![b'x'; 8192]));
    let stream = Body::from_stream(futures_util::stream::iter(pieces));
    upload(&alice, "n", "text/plain", stream).await.refused(413, "M_TOO_LARGE");
    upload(&alice, "n", "text/plain", vec![b'x'; 65536]).await.ok();
    upload(&alice, "n", "text/plain", vec![b'x'; 65536]).await.refused(403, "M_FORBIDDEN");
    upload(&bob, "n", "text/plain", vec![b'x'; 65536]).await.ok();
}

fn picture(width: u32, height: u32) -> Vec<u8> {
    let mut png = std::io::Cursor::new(Vec::new());
    image::DynamicImage::new_rgb8(width, height).write_to(&mut png, image::ImageFormat::Png).unwrap();
    png.into_inner()
}

#[tokio::test]
async fn thumbnails_fit_what_was_asked_for_and_never_grow() {
    let (_folder, alice, bob) = stage().await;
    let large = address(&upload(&alice, "n", "image/png", picture(1000, 500)).await);
    let small = address(&upload(&alice, "n", "text/plain", picture(40, 20)).await);
    let thumbnail = async |address: &str, query: &str| {
        bob.get(&format!("/_matrix/client/v1/media/thumbnail/{address}?{query}")).await
    };
    for (address, query, expected) in [
        (&large, "width=320&height=240&method=scale", (320, 160)),
        (&large, "width=321&height=240", (640, 320)),
        (&large, "width=32&height=32&method=crop", (32, 32)),
        (&large, "width=90&height=90&method=crop&animated=true", (96, 96)),
        (&large, "width=4000&height=4000&method=scale", (1000, 500)),
        (&small, "width=320&height=240&method=scale&timeout_ms=5", (40, 20)),
        (&small, "width=32&height=32&method=crop", (20, 20)),
    ] {
        let answer = thumbnail(address, query).await;
        assert_eq!(answer.status, 200, "{query}");
        assert_eq!(text(&answer, &header::CONTENT_TYPE), "image/jpeg");
        assert_eq!(text(&answer, &header::CONTENT_DISPOSITION), "inline; filename=thumbnail.jpg");
        let picture = image::load_from_memory(&answer.body).unwrap();
        assert_eq!((picture.width(), picture.height()), expected, "{query}");
        assert_eq!(thumbnail(address, query).await.body, answer.body);
    }
    let file = address(&upload(&alice, "n", "image/png", "not a picture").await);
    thumbnail(&file, "width=32&height=32").await.refused(400, "M_UNKNOWN");
    thumbnail(&large, "width=0&height=32").await.refused(400, "M_INVALID_PARAM");
    thumbnail(&large, "width=a&height=32").await.refused(400, "M_INVALID_PARAM");
    thumbnail(&large, "width=32").await.refused(400, "M_MISSING_PARAM");
    thumbnail(&large, "width=32&height=32&method=bend").await.refused(400, "M_INVALID_PARAM");
    thumbnail("hearth.test/unknown", "width=32&height=32").await.refused(404, "M_NOT_FOUND");
}
