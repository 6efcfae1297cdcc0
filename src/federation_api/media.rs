//! Media of local users, for other servers: the file behind a small part of JSON that says nothing yet.
//! * A server asks for media of this one only; what is copied here from others is for our users.
//! * Files leave in pieces, as they do to clients.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{RawQuery, State},
    response::Response,
};
use futures_util::{StreamExt as _, stream};
use hearth_pictures::Fit;
use http::{Method, header};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    config::Config,
    http::{Auth, MatrixError, PathArgs, RemoteServer, Route, Routes, Specimen},
    media::{
        Media,
        disposition::disposition,
        ids::{self, MediaKey},
        reading::Reader,
        thumbnails,
    },
};

/// How long a request waits for a file that has not come yet, if it does not say, and at most.
const PATIENCE: Duration = Duration::from_secs(20);
const PATIENCE_MAX: Duration = Duration::from_secs(60);

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    let download = Route::at(Method::GET, "/_matrix/federation/v1/media/download/{media_id}", Auth::Server);
    routes.add(download.specimen(Specimen::path("none")).to(download_content));
    let thumbnail = Route::at(Method::GET, "/_matrix/federation/v1/media/thumbnail/{media_id}", Auth::Server);
    routes.add(thumbnail.specimen(Specimen::path("none").query("width=32&height=32")).to(thumbnail_of));
}

#[derive(Deserialize)]
struct DownloadQuery {
    timeout_ms: Option<u64>,
}

/// `GET /_matrix/federation/v1/media/download/{mediaId}`
async fn download_content(
    State(media): State<Media>,
    State(config): State<Arc<Config>>,
    _: RemoteServer,
    PathArgs((id,)): PathArgs<(String,)>,
    RawQuery(raw_query): RawQuery,
) -> Result<Response, MatrixError> {
    let query: DownloadQuery = query(raw_query.as_deref())?;
    let file = media.find(&key(&config, &id)?, patience(query.timeout_ms)).await?;
    let kind = file.content_type.clone().unwrap_or_else(|| "application/octet-stream".to_owned());
    let reader = media.read(&file).await.map_err(MatrixError::internal)?;
    answer(reader, &kind, file.name)
}

#[derive(Deserialize)]
struct ThumbnailQuery {
    width: u32,
    height: u32,
    method: Option<String>,
    timeout_ms: Option<u64>,
}

/// `GET /_matrix/federation/v1/media/thumbnail/{mediaId}`
async fn thumbnail_of(
    State(media): State<Media>,
    State(config): State<Arc<Config>>,
    _: RemoteServer,
    PathArgs((id,)): PathArgs<(String,)>,
    RawQuery(raw_query): RawQuery,
) -> Result<Response, MatrixError> {
    let query: ThumbnailQuery = query(raw_query.as_deref())?;
    if query.width == 0 || query.height == 0 {
        return Err(MatrixError::invalid_param("a thumbnail is at least one pixel wide and high"));
    }
    let fit = match query.method.as_deref() {
        None | Some("scale") => Fit::Scale,
        Some("crop") => Fit::Crop,
        Some(_) => return Err(MatrixError::invalid_param("the method is either crop or scale")),
    };
    let file = media.find(&key(&config, &id)?, patience(query.timeout_ms)).await?;
    let frame = thumbnails::frame_for(query.width, query.height, fit);
    let small = media.thumbnail(&file, frame).await?;
    answer(small.reader, small.format.content_type(), Some(format!("thumbnail.{}", small.format.extension())))
}

fn key(config: &Config, id: &str) -> Result<MediaKey, MatrixError> {
    MediaKey::parse(config.server_name.as_str(), id)
        .map_err(|error| MatrixError::invalid_param(error.to_string()))
}

fn query<T: DeserializeOwned>(raw: Option<&str>) -> Result<T, MatrixError> {
    serde_html_form::from_str(raw.unwrap_or_default())
        .map_err(|error| MatrixError::from_query(&error.to_string()))
}

fn patience(timeout_ms: Option<u64>) -> Duration {
    timeout_ms.map_or(PATIENCE, |timeout_ms| Duration::from_millis(timeout_ms).min(PATIENCE_MAX))
}

/// Two parts: JSON about the file, and the file.
fn answer(reader: Reader, kind: &str, name: Option<String>) -> Result<Response, MatrixError> {
    let boundary = ids::boundary();
    // What a user called the kind of a file goes into a header of its part.
    let is_header = kind.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    let shown = if is_header { kind } else { "application/octet-stream" };
    let head = format!(
        "--{boundary}\r\nContent-Type: application/json\r\n\r\n{{}}\r\n--{boundary}\r\n\
         Content-Type: {shown}\r\nContent-Disposition: {}\r\n\r\n",
        disposition(kind, name)
    );
    let tail = format!("\r\n--{boundary}--\r\n");
    let length = head.len() as u64 + reader.size + tail.len() as u64;
    let (head, tail) = (Ok(Bytes::from(head)), Ok(Bytes::from(tail)));
    let body = stream::iter([head]).chain(reader.into_stream()).chain(stream::iter([tail]));
    Response::builder()
        .header(header::CONTENT_TYPE, format!("multipart/mixed; boundary={boundary}"))
        .header(header::CONTENT_LENGTH, length)
        .body(Body::from_stream(body))
        .map_err(MatrixError::internal)
}
