//! Bodies that are refused, on a socket: the client sends all, then reads a clean answer.

use std::net::SocketAddr;

use hearth::testing::{TestServer, TestUser};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// More than the kernel takes while nobody reads, less than is read on after a refusal.
const LONG: usize = 24 << 20;
/// The same for a JSON request.
const LONG_JSON: usize = 7 << 20;
/// What is read on of a body without a token.
const STRANGERS: usize = 1 << 20;

async fn stage() -> (TestUser, SocketAddr) {
    let server = TestServer::with(|config| {
        config.limits.upload_size = "64 KiB".parse().unwrap();
        config.limits.request_size = "64 KiB".parse().unwrap();
    });
    let server = server.await;
    let address = server.listen().await;
    (server.user("alice").await, address)
}

/// Sends a head, then a body, announced or in chunks, and reads the answer, as the simplest clients do.
async fn exchange(socket: &mut TcpStream, head: &str, length: usize, chunked: bool) -> (u16, Value) {
    let how = if chunked { "Transfer-Encoding: chunked".into() } else { format!("Content-Length: {length}") };
    socket.write_all(format!("{head}Host: h\r\n{how}\r\n\r\n").as_bytes()).await.unwrap();
    let blanks = vec![b' '; length];
    for piece in blanks.chunks(64 * 1024) {
        if chunked {
            socket.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).await.unwrap();
        }
        socket.write_all(piece).await.unwrap();
        if chunked {
            socket.write_all(b"\r\n").await.unwrap();
        }
    }
    if chunked {
        socket.write_all(b"0\r\n\r\n").await.unwrap();
    }
    answer(socket).await
}

async fn answer(socket: &mut TcpStream) -> (u16, Value) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let length = head.split_once("content-length: ").unwrap().1.split("\r\n").next().unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    socket.read_exact(&mut body).await.unwrap();
    (head[9..12].parse().unwrap(), serde_json::from_slice(&body).unwrap())
}

#[track_caller]
fn is_refused(answer: &(u16, Value), status: u16, errcode: &str) {
    assert_eq!((answer.0, answer.1["errcode"].as_str()), (status, Some(errcode)), "{}", answer.1);
}

#[tokio::test]
async fn a_body_that_is_too_long_is_answered_when_it_was_sent() {
    let (alice, address) = stage().await;
    let token = format!("Authorization: Bearer {}\r\n", alice.token);
    let upload = format!("POST /_matrix/media/v3/upload HTTP/1.1\r\n{token}");
    let room = format!("POST /_matrix/client/v3/createRoom HTTP/1.1\r\n{token}");
    let login = "POST /_matrix/client/v3/login HTTP/1.1\r\n".to_owned();
    for (head, length) in [(&upload, LONG), (&room, LONG_JSON), (&login, STRANGERS + (64 << 10))] {
        for chunked in [false, true] {
            let mut socket = TcpStream::connect(address).await.unwrap();
            is_refused(&exchange(&mut socket, head, length, chunked).await, 413, "M_TOO_LARGE");
            // Nothing was left over: the connection serves on.
            let next = exchange(&mut socket, "GET /_matrix/client/v3/nothing HTTP/1.1\r\n", 0, false).await;
            is_refused(&next, 404, "M_UNRECOGNIZED");
        }
    }
}

#[tokio::test]
async fn other_refusals_reach_the_client_too() {
    let (alice, address) = stage().await;
    let mut socket = TcpStream::connect(address).await.unwrap();
    let stranger = "POST /_matrix/media/v3/upload HTTP/1.1\r\nAuthorization: Bearer nobodys\r\n";
    for chunked in [false, true] {
        is_refused(&exchange(&mut socket, stranger, STRANGERS, chunked).await, 401, "M_UNKNOWN_TOKEN");
    }
    // The address is looked up before the file is read.
    let unknown = format!(
        "PUT /_matrix/media/v3/upload/hearth.test/unknown HTTP/1.1\r\nAuthorization: Bearer {}\r\n",
        alice.token
    );
    is_refused(&exchange(&mut socket, &unknown, LONG, true).await, 404, "M_NOT_FOUND");
}

#[tokio::test]
async fn a_client_that_waits_to_be_asked_is_refused_without_its_body() {
    let (alice, address) = stage().await;
    let mut socket = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /_matrix/media/v3/upload HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {}\r\n\
         Expect: 100-continue\r\nContent-Length: {LONG}\r\n\r\n",
        alice.token
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    is_refused(&answer(&mut socket).await, 413, "M_TOO_LARGE");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_no_text_is_refused_also_where_nobody_reads_it() {
    let (_, address) = stage().await;
    let mut socket = TcpStream::connect(address).await.unwrap();
    let body = b"{\"username\":\"carol\",\"password\":\"secret\",\"more\":\"a\x81\"}";
    let head = format!(
        "POST /_matrix/client/v3/register HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.write_all(body).await.unwrap();
    let (status, refused) = answer(&mut socket).await;
    assert_eq!((status, &refused["errcode"]), (400, &"M_NOT_JSON".into()), "{refused}");
}
