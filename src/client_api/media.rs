//! Content repository: uploads, downloads and thumbnails.
//! * Files are served with a token only. The older open paths are frozen: they know nothing that was uploaded here.
//! * Browsers never run what somebody uploaded: it is shown inline only if it is of a harmless kind, and in a sandbox.
//! * Bodies pass through in pieces, in both directions.

use std::time::Duration;

use axum::{
    body::Body,
    extract::{Request, State},
    response::Response,
};
use hearth_dag::LocalServers;
use hearth_pictures::PictureError;
use http::{HeaderMap, HeaderValue, StatusCode, header, response::Builder};
use ruma::api::client::{
    authenticated_media as current,
    media::{self as old, create_content, create_content_async, create_mxc_uri},
};
use serde::Deserialize;
use serde_json::json;

use crate::{
    http::{
        Auth, BodyLimit, JsonResult, LocalUser, MatrixError, Query, RateClass, RawJson, RequestFacts, Route,
        Routes, Specimen, body,
    },
    media::{
        About, FindError, Media, UploadError,
        disposition::disposition,
        files::ReceiveError,
        ids::MediaKey,
        range::{self, Wanted},
        reading::Reader,
        remote::{FetchError, RemoteMedia},
        tables::File,
        wanted::{NoThumbnail, WantedFile, WantedThumbnail},
    },
};

/// Specimens that the current and the frozen paths share.
const NOTHING: Specimen = Specimen::path("");
const UNKNOWN: Specimen = Specimen::path("$server none");
const UNKNOWN_NAMED: Specimen = Specimen::path("$server none name.txt");
const UNKNOWN_SMALL: Specimen = UNKNOWN.query("width=32&height=32");

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    let mut add = |route: Route| routes.add(route.rate(RateClass::Media));
    let upload = |route: Route| route.body_limit(BodyLimit::Upload).auth(Auth::Token);
    add(upload(Route::of::<create_content::v3::Request>())
        .specimen(Specimen::path("").query("filename=a.txt"))
        .to(upload_content));
    add(upload(Route::of::<create_content_async::v3::Request>())
        .specimen(Specimen::path("$server reserved"))
        .to(fill_content));
    add(Route::of::<create_mxc_uri::v1::Request>().specimen(NOTHING).to(create));

    let token = |route: Route| route.auth(Auth::Token);
    add(token(Route::of::<current::get_media_config::v1::Request>()).specimen(NOTHING).to(media_config));
    add(token(Route::of::<current::get_content::v1::Request>()).specimen(UNKNOWN).to(download));
    add(token(Route::of::<current::get_content_as_filename::v1::Request>())
        .specimen(UNKNOWN_NAMED)
        .to(download));
    add(token(Route::of::<current::get_content_thumbnail::v1::Request>())
        .specimen(UNKNOWN_SMALL)
        .to(thumbnail));
    frozen_routes(&mut add);
}

/// The paths before authenticated media.
#[allow(deprecated, reason = "older clients still ask here")]
fn frozen_routes(add: &mut impl FnMut(Route)) {
    add(Route::of::<old::get_media_config::v3::Request>()
        .auth(Auth::Token)
        .specimen(NOTHING)
        .to(media_config));
    let open = |route: Route| route.auth(Auth::None);
    add(open(Route::of::<old::get_content::v3::Request>()).specimen(UNKNOWN).to(frozen));
    add(open(Route::of::<old::get_content_as_filename::v3::Request>()).specimen(UNKNOWN_NAMED).to(frozen));
    add(open(Route::of::<old::get_content_thumbnail::v3::Request>()).specimen(UNKNOWN_SMALL).to(frozen));
}

#[derive(Deserialize)]
struct UploadQuery {
    filename: Option<String>,
}

/// `POST /_matrix/media/v3/upload`
async fn upload_content(State(media): State<Media>, sender: LocalUser, request: Request) -> JsonResult {
    let about = about(&request)?;
    let pieces = request.into_body().into_data_stream();
    let key = media.upload(&sender.user_id, about, pieces).await?;
    RawJson::of(&json!({ "content_uri": key.uri() }))
}

/// `POST /_matrix/media/v1/create`
async fn create(State(media): State<Media>, sender: LocalUser) -> JsonResult {
    let reserved = media.reserve(&sender.user_id).await?;
    RawJson::of(&json!({ "content_uri": reserved.key.uri(), "unused_expires_at": reserved.expires_ms }))
}

/// `PUT /_matrix/media/v3/upload/{serverName}/{mediaId}`
async fn fill_content(
    State(media): State<Media>,
    sender: LocalUser,
    facts: RequestFacts,
    request: Request,
) -> JsonResult {
    let key = key(&facts)?;
    let about = about(&request)?;
    let pieces = request.into_body().into_data_stream();
    media.fill(&sender.user_id, &key, about, pieces).await?;
    Ok(RawJson::EMPTY)
}

/// `GET /_matrix/client/v1/media/config`
async fn media_config(State(media): State<Media>, _sender: LocalUser) -> JsonResult {
    RawJson::of(&json!({ "m.upload.size": media.file_max() }))
}

/// `GET /_matrix/client/v1/media/download/{serverName}/{mediaId}[/{fileName}]`
async fn download(
    State(media): State<Media>,
    State(remote): State<RemoteMedia>,
    State(local): State<LocalServers>,
    _sender: LocalUser,
    facts: RequestFacts,
    Query(wanted): Query<WantedFile>,
    headers: HeaderMap,
) -> Result<Response, MatrixError> {
    let key = key(&facts)?;
    let file = find((&media, &remote, &local), &key, wanted).await?;
    let tag = entity_tag(&file, "");
    if is_known(&headers, &tag) {
        return Ok(known(&tag));
    }
    let name = facts.path_args.get(2).cloned().or_else(|| file.name.clone());
    let kind = file.content_type.as_deref().unwrap_or("application/octet-stream");
    let reader = media.read(&file).await.map_err(MatrixError::internal)?;
    answer(reader, kind, name, &tag, &headers)
}

/// `GET /_matrix/client/v1/media/thumbnail/{serverName}/{mediaId}`
async fn thumbnail(
    State(media): State<Media>,
    State(remote): State<RemoteMedia>,
    State(local): State<LocalServers>,
    _sender: LocalUser,
    facts: RequestFacts,
    Query(wanted): Query<WantedThumbnail>,
    headers: HeaderMap,
) -> Result<Response, MatrixError> {
    let frame = wanted.frame()?;
    let key = key(&facts)?;
    let file = find((&media, &remote, &local), &key, wanted.file()).await?;
    let tag = entity_tag(&file, &format!("-{}x{}-{:?}", frame.width, frame.height, frame.fit));
    if is_known(&headers, &tag) {
        return Ok(known(&tag));
    }
    let small = media.thumbnail(&file, frame).await?;
    let name = format!("thumbnail.{}", small.format.extension());
    answer(small.reader, small.format.content_type(), Some(name), &tag, &headers)
}

/// The file behind an address, of this server or another.
async fn find(
    (media, remote, local): (&Media, &RemoteMedia, &LocalServers),
    key: &MediaKey,
    wanted: WantedFile,
) -> Result<File, MatrixError> {
    match local.is_local(key.server()) {
        true => Ok(media.find(key, wanted.patience()).await?),
        false => Ok(remote.find(key, wanted.patience()).await?),
    }
}

/// The open paths of before: all media of this server are newer than their freeze.
async fn frozen(facts: RequestFacts) -> Result<RawJson, MatrixError> {
    key(&facts)?;
    Err(MatrixError::not_found("media are served to users with a token, under /_matrix/client/v1/media"))
}

fn key(facts: &RequestFacts) -> Result<MediaKey, MatrixError> {
    let part = |index: usize| facts.path_args.get(index).map_or("", String::as_str);
    MediaKey::parse(part(0), part(1)).map_err(|error| MatrixError::invalid_param(error.to_string()))
}

fn about(request: &Request) -> Result<About, MatrixError> {
    let query = request.uri().query().unwrap_or_default();
    let query: UploadQuery =
        serde_html_form::from_str(query).map_err(|error| MatrixError::from_query(&error.to_string()))?;
    let content_type = request.headers().get(header::CONTENT_TYPE);
    let content_type = content_type.and_then(|kind| kind.to_str().ok()).map(str::to_owned);
    Ok(About { content_type, name: query.filename })
}

/// A file never changes, so its name on the disk is its tag; two renderings of it have different ones.
fn entity_tag(file: &File, rendering: &str) -> String {
    format!("\"{}{rendering}\"", file.id)
}

fn is_known(headers: &HeaderMap, tag: &str) -> bool {
    let given = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    given.is_some_and(|given| {
        given.split(',').any(|one| matches!(one.trim(), "*") || one.trim().trim_start_matches("W/") == tag)
    })
}

fn known(tag: &str) -> Response {
    let response = safe(Response::builder().status(StatusCode::NOT_MODIFIED), tag);
    response.body(Body::empty()).unwrap_or_default()
}

/// What every answer with somebody's file carries.
fn safe(response: Builder, tag: &str) -> Builder {
    response
        .header(header::ETAG, tag)
        .header(header::CACHE_CONTROL, "private, max-age=31536000, immutable")
        .header(
            header::CONTENT_SECURITY_POLICY,
            "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf; \
             style-src 'unsafe-inline'; media-src 'self'; object-src 'self';",
        )
        .header("Cross-Origin-Resource-Policy", "cross-origin")
        .header(header::X_CONTENT_TYPE_OPTIONS, "nosniff")
        .header(header::X_FRAME_OPTIONS, "DENY")
        .header(header::REFERRER_POLICY, "no-referrer")
        .header(header::ACCEPT_RANGES, "bytes")
}

/// The file, or the part of it that the request wants.
fn answer(
    reader: Reader,
    kind: &str,
    name: Option<String>,
    tag: &str,
    headers: &HeaderMap,
) -> Result<Response, MatrixError> {
    let size = reader.size;
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    // A part of another version of the file is of no use; ours have one version only.
    let same_version = text(header::IF_RANGE).is_none_or(|version| version == tag);
    let wanted = match text(header::RANGE) {
        Some(range) if same_version => range::wanted(range, size),
        _ => Wanted::Whole,
    };
    let octets = HeaderValue::from_static("application/octet-stream");
    let response = safe(Response::builder(), tag)
        .header(header::CONTENT_TYPE, HeaderValue::from_str(kind).unwrap_or(octets))
        .header(header::CONTENT_DISPOSITION, disposition(kind, name).to_string());
    let (response, reader) = match wanted {
        Wanted::Whole => (response.header(header::CONTENT_LENGTH, size), reader),
        Wanted::Part(start, end) => {
            let response = response
                .status(StatusCode::PARTIAL_CONTENT)
                .header(header::CONTENT_LENGTH, end - start)
                .header(header::CONTENT_RANGE, format!("bytes {start}-{}/{size}", end - 1));
            (response, reader.part(start, end))
        }
        Wanted::Nothing => return Ok(unsatisfiable(size)),
    };
    response.body(Body::from_stream(reader.into_stream())).map_err(MatrixError::internal)
}

fn unsatisfiable(size: u64) -> Response {
    use axum::response::IntoResponse as _;
    let error = MatrixError::new(
        StatusCode::RANGE_NOT_SATISFIABLE,
        "M_UNKNOWN",
        format!("the file has {size} bytes, none of them in that range"),
    );
    let mut response = error.into_response();
    if let Ok(range) = HeaderValue::from_str(&format!("bytes */{size}")) {
        response.headers_mut().insert(header::CONTENT_RANGE, range);
    }
    response
}

impl From<UploadError> for MatrixError {
    fn from(error: UploadError) -> Self {
        let message = error.to_string();
        match error {
            UploadError::Receive(ReceiveError::TooLarge { .. }) => Self::too_large(message),
            UploadError::Receive(ReceiveError::BrokenOff(error)) => body::unreadable(&*error),
            UploadError::Receive(ReceiveError::DiskFull) => {
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "M_UNKNOWN", message)
            }
            UploadError::Receive(ReceiveError::Disk(error)) => Self::internal(error),
            UploadError::UserQuota(_) | UploadError::TotalQuota(_) | UploadError::NotYours => {
                Self::forbidden(message)
            }
            UploadError::TooManyReserved => Self::limit_exceeded(Duration::from_secs(60)),
            UploadError::Busy => Self::limit_exceeded(Duration::from_secs(1)),
            UploadError::NoSuchAddress => Self::not_found(message),
            UploadError::AlreadyFilled => {
                Self::new(StatusCode::CONFLICT, "M_CANNOT_OVERWRITE_MEDIA", message)
            }
            UploadError::Store(error) => Self::internal(error),
        }
    }
}

impl From<FindError> for MatrixError {
    fn from(error: FindError) -> Self {
        match error {
            FindError::NotFound => Self::not_found(error.to_string()),
            FindError::NotYetUploaded => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, "M_NOT_YET_UPLOADED", error.to_string())
            }
            FindError::Store(error) => Self::internal(error),
        }
    }
}

impl From<FetchError> for MatrixError {
    fn from(error: FetchError) -> Self {
        let message = error.to_string();
        match error {
            FetchError::NotFound => Self::not_found(message),
            FetchError::Forbidden | FetchError::Denied => Self::forbidden(message),
            FetchError::NotYetUploaded | FetchError::Timeout => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, "M_NOT_YET_UPLOADED", message)
            }
            FetchError::TooLarge => Self::new(StatusCode::BAD_GATEWAY, "M_TOO_LARGE", message),
            FetchError::Unreachable(_) => Self::new(StatusCode::BAD_GATEWAY, "M_UNKNOWN", message),
            FetchError::Busy => Self::limit_exceeded(Duration::from_secs(5)),
            FetchError::Kept(_) => Self::internal(error),
        }
    }
}

impl From<PictureError> for MatrixError {
    fn from(error: PictureError) -> Self {
        match error {
            PictureError::Unsupported | PictureError::Damaged(_) => Self::unknown(error.to_string()),
            PictureError::TooLarge => Self::too_large(error.to_string()),
            PictureError::Io(error) => Self::internal(error),
        }
    }
}

impl From<NoThumbnail> for MatrixError {
    fn from(error: NoThumbnail) -> Self {
        Self::invalid_param(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_the_client_has_is_recognised() {
        let mut headers = HeaderMap::new();
        assert!(!is_known(&headers, "\"a\""));
        headers.insert(header::IF_NONE_MATCH, HeaderValue::from_static("\"b\", W/\"a\""));
        assert!(is_known(&headers, "\"a\"") && !is_known(&headers, "\"c\""));
    }
}
