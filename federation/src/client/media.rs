//! Media of other servers: the authenticated endpoints, which answer in two parts, and the older ones as a fall-back.

use bytes::Bytes;
use http::{HeaderMap, header};
use ruma::ServerName;

use super::{Call, Client, MEDIA_SECONDS, RequestError, path, with_query};
use crate::network::Limits;

/// What comes around a medium: the other part, boundaries, headers.
const AROUND_BYTES: usize = 64 * 1024;
/// A boundary has at most 70 characters (RFC 2046).
const BOUNDARY_BYTES: usize = 70;
/// The headers of a part.
const PART_HEADER_BYTES: usize = 8 * 1024;

/// A medium, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Medium {
    /// As the other server says.
    pub content_type: Option<String>,
    /// As the other server says: with the file's name.
    pub content_disposition: Option<String>,
    /// The bytes.
    pub bytes: Bytes,
}

/// Where the bytes of a medium are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MediumSource {
    /// Here.
    Bytes(Medium),
    /// At this address.
    Location(String),
}

/// How a thumbnail is to be.
#[derive(Debug, Clone, Copy)]
struct Thumbnail<'a> {
    width: u32,
    height: u32,
    method: &'a str,
    animated: Option<bool>,
}

impl Client {
    /// Downloads a medium of `server`, with at most `max_bytes`.
    pub async fn download(
        &self,
        server: &ServerName,
        media_id: &str,
        max_bytes: usize,
    ) -> Result<Medium, RequestError> {
        let new = path("/_matrix/federation/v1/media/download", &[media_id]);
        let old = path("/_matrix/media/v3/download", &[server.as_str(), media_id]);
        let old = with_query(old, [("allow_remote", "false"), ("allow_redirect", "true")]);
        self.medium(server, new, old, max_bytes).await
    }

    /// Downloads a thumbnail of a medium of `server`.
    pub async fn thumbnail(
        &self,
        server: &ServerName,
        media_id: &str,
        size: (u32, u32),
        method: &str,
        animated: Option<bool>,
        max_bytes: usize,
    ) -> Result<Medium, RequestError> {
        let thumbnail = Thumbnail { width: size.0, height: size.1, method, animated };
        let new = path("/_matrix/federation/v1/media/thumbnail", &[media_id]);
        let old = path("/_matrix/media/v3/thumbnail", &[server.as_str(), media_id]);
        let old = with_query(old, [("allow_remote", "false"), ("allow_redirect", "true")]);
        self.medium(server, thumbnail.behind(new, '?'), thumbnail.behind(old, '&'), max_bytes).await
    }

    async fn medium(
        &self,
        server: &ServerName,
        new: String,
        old: String,
        max_bytes: usize,
    ) -> Result<Medium, RequestError> {
        let limits = Limits::new(MEDIA_SECONDS, max_bytes.saturating_add(AROUND_BYTES));
        let source = match self.call(server, Call::get(new).limits(limits)).await {
            Ok(response) => read_parts(response.headers(), response.body())?,
            Err(RequestError::Remote(error)) if error.is_unrecognized() => {
                let limits = Limits::new(MEDIA_SECONDS, max_bytes);
                let response = self.call(server, Call::get(old).limits(limits)).await?;
                return Ok(medium_of(response.headers(), response.body().clone()));
            }
            Err(error) => return Err(error),
        };
        let medium = match source {
            MediumSource::Bytes(medium) => medium,
            MediumSource::Location(url) => {
                let limits = Limits::new(MEDIA_SECONDS, max_bytes);
                let response = self.inner.network.fetch(&url, limits).await?;
                if !response.status().is_success() {
                    return Err(RequestError::malformed("the medium is not where the server says"));
                }
                medium_of(response.headers(), response.body().clone())
            }
        };
        if medium.bytes.len() > max_bytes {
            return Err(crate::network::NetworkError::TooLarge { max_bytes }.into());
        }
        Ok(medium)
    }
}

impl Thumbnail<'_> {
    fn behind(&self, mut path: String, mark: char) -> String {
        use std::fmt::Write as _;
        let Self { width, height, method, .. } = self;
        // Writing into a string cannot fail.
        let _ = write!(path, "{mark}width={width}&height={height}&method={method}");
        if let Some(animated) = self.animated {
            let _ = write!(path, "&animated={animated}");
        }
        path
    }
}

fn medium_of(headers: &HeaderMap, bytes: Bytes) -> Medium {
    let text = |name| headers.get(name).and_then(|value: &http::HeaderValue| value.to_str().ok());
    Medium {
        content_type: text(header::CONTENT_TYPE).map(str::to_owned),
        content_disposition: text(header::CONTENT_DISPOSITION).map(str::to_owned),
        bytes,
    }
}

/// Reads `multipart/mixed`: a part with JSON that says nothing yet, and a part that is the medium or says where it is.
fn read_parts(headers: &HeaderMap, body: &Bytes) -> Result<MediumSource, RequestError> {
    let malformed = |what: &str| RequestError::malformed(format!("a medium without {what}"));
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let boundary = content_type.and_then(boundary_of).ok_or_else(|| malformed("a boundary"))?;
    let parts = split(body, &boundary).ok_or_else(|| malformed("two parts"))?;
    let [_, medium] = parts;
    let (headers, bytes) = part(&medium).ok_or_else(|| malformed("headers"))?;
    let header = |wanted: &str| {
        let found = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted));
        found.map(|(_, value)| value.clone())
    };
    if let Some(location) = header("location") {
        return Ok(MediumSource::Location(location));
    }
    Ok(MediumSource::Bytes(Medium {
        content_type: header("content-type"),
        content_disposition: header("content-disposition"),
        bytes,
    }))
}

/// The boundary of `multipart/mixed; boundary=…`.
fn boundary_of(content_type: &str) -> Option<String> {
    let (kind, parameters) = content_type.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/mixed") {
        return None;
    }
    let boundary = parameters.split(';').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("boundary").then(|| value.trim())
    })?;
    let boundary = boundary.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(boundary);
    let good = !boundary.is_empty() && boundary.len() <= BOUNDARY_BYTES && boundary.is_ascii();
    good.then(|| boundary.to_owned())
}

/// The first two parts, with their headers and without their boundaries.
fn split(body: &Bytes, boundary: &str) -> Option<[Bytes; 2]> {
    let first = format!("--{boundary}");
    let next = format!("\r\n--{boundary}");
    let mut start = match body.starts_with(first.as_bytes()) {
        true => first.len(),
        // What stands before the first boundary is for nobody.
        false => find(body, next.as_bytes())? + next.len(),
    };
    let mut parts = Vec::with_capacity(2);
    for _ in 0..2 {
        // White space may follow a boundary on its line.
        let line = find(&body[start..], b"\r\n")?;
        if body[start..start + line].iter().any(|byte| !matches!(byte, b' ' | b'\t')) {
            return None;
        }
        start += line;
        let length = find(&body[start..], next.as_bytes())?;
        parts.push(body.slice(start + 2..(start + length).max(start + 2)));
        start += length + next.len();
    }
    parts.try_into().ok()
}

/// The headers and the content of a part.
fn part(part: &Bytes) -> Option<(Vec<(String, String)>, Bytes)> {
    if let Some(content) = part.strip_prefix(b"\r\n") {
        return Some((Vec::new(), part.slice_ref(content)));
    }
    let head = &part[..part.len().min(PART_HEADER_BYTES)];
    let end = find(head, b"\r\n\r\n")?;
    let headers = std::str::from_utf8(&head[..end]).ok()?;
    let headers = headers.split("\r\n").filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        Some((name.trim().to_owned(), value.trim().to_owned()))
    });
    Some((headers.collect(), part.slice(end + 4..)))
}

/// Where `needle` stands first. One pass over a body of any size.
fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let (&first, rest) = needle.split_first()?;
    let mut from = 0;
    while let Some(at) = haystack[from..].iter().position(|byte| *byte == first) {
        let at = from + at;
        if haystack[at + 1..].starts_with(rest) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content_type: &str, body: &[u8]) -> Result<MediumSource, String> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, content_type.parse().unwrap());
        read_parts(&headers, &Bytes::copy_from_slice(body)).map_err(|error| error.to_string())
    }

    fn medium(content_type: Option<&str>, bytes: &[u8]) -> MediumSource {
        MediumSource::Bytes(Medium {
            content_type: content_type.map(str::to_owned),
            content_disposition: None,
            bytes: Bytes::copy_from_slice(bytes),
        })
    }

    #[test]
    fn the_second_part_is_the_medium() {
        // The specification's example.
        let body = b"--abcdef\r\nContent-Type: application/json\r\n\r\n{}\r\n--abcdef\r\nContent-Type: text/plain\r\n\r\nThis is media content\r\n--abcdef--\r\n";
        let expected = medium(Some("text/plain"), b"This is media content");
        assert_eq!(read("multipart/mixed; boundary=abcdef", body), Ok(expected.clone()));
        assert_eq!(read("Multipart/Mixed; charset=x; Boundary=\"abcdef\"", body), Ok(expected));
        // Without a first part's headers, with a preamble, blanks behind the boundary, and boundaries within the bytes.
        let body = b"preamble\r\n--b \t\r\n\r\n{}\r\n--b\r\n\r\na\r\n-b--b\r\n\r\n--b--";
        assert_eq!(read("multipart/mixed; boundary=b", body), Ok(medium(None, b"a\r\n-b--b\r\n")));
        // An empty one.
        let body = b"--b\r\n\r\n{}\r\n--b\r\nA: b\r\n\r\n\r\n--b--";
        assert_eq!(read("multipart/mixed; boundary=b", body), Ok(medium(None, b"")));
    }

    #[test]
    fn a_medium_may_be_elsewhere() {
        let body = b"--b\r\n\r\n{}\r\n--b\r\nlocation: https://cdn.test/x\r\n\r\n\r\n--b--";
        let elsewhere = MediumSource::Location("https://cdn.test/x".to_owned());
        assert_eq!(read("multipart/mixed; boundary=b", body), Ok(elsewhere));
    }

    #[test]
    fn what_is_not_in_two_parts_is_refused() {
        let good = "multipart/mixed; boundary=b";
        for (content_type, body, lacking) in [
            ("text/plain", &b""[..], "a boundary"),
            ("multipart/mixed", b"", "a boundary"),
            ("multipart/mixed; boundary=", b"", "a boundary"),
            (good, b"", "two parts"),
            (good, b"--b", "two parts"),
            (good, b"--b\r\n\r\n{}\r\n--b--", "two parts"),
            (good, b"--b\r\n\r\n{}\r\n--b\r\n\r\nno end", "two parts"),
            (good, b"--bc\r\n\r\n{}\r\n--bc\r\n\r\n\r\n--bc--", "two parts"),
            (good, b"--b\r\n\r\n{}\r\n--b\r\nno headers\r\n--b--", "headers"),
        ] {
            let error = read(content_type, body).unwrap_err();
            assert!(error.contains(lacking), "{error}");
        }
        assert!(boundary_of(&format!("multipart/mixed; boundary={}", "b".repeat(71))).is_none());
    }

    #[test]
    fn thumbnails_are_asked_for_as_they_are_to_be() {
        let thumbnail = Thumbnail { width: 1, height: 2, method: "crop", animated: Some(true) };
        assert_eq!(thumbnail.behind("/a".into(), '?'), "/a?width=1&height=2&method=crop&animated=true");
    }
}
