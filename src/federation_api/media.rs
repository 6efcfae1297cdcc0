//! Media of local users, for other servers: the file behind a small part of JSON that says nothing yet.
//! * A server asks for media of this one only; what is copied here from others is for our users.
//! * Files leave in pieces, as they do to clients.

use std::sync::Arc;

use axum::{
    body::{Body, Bytes},
    extract::State,
    response::Response,
};
use futures_util::{StreamExt as _, stream};
use http::{Method, header};

use crate::{
    config::Config,
    http::{Auth, MatrixError, PathArgs, Query, RemoteServer, Route, Routes, Specimen},
    media::{
        Media,
        disposition::disposition,
        ids::{self, MediaKey},
        reading::Reader,
        wanted::{WantedFile, WantedThumbnail},
    },
};

/// The chapter's endpoints.
pub fn routes(routes: &mut Routes) {
    let download = Route::at(Method::GET, "/_matrix/federation/v1/media/download/{media_id}", Auth::Server);
    routes.add(download.specimen(Specimen::path("none")).to(download_content));
    let thumbnail = Route::at(Method::GET, "/_matrix/federation/v1/media/thumbnail/{media_id}", Auth::Server);
    routes.add(thumbnail.specimen(Specimen::path("none").query("width=32&height=32")).to(thumbnail_of));
}

/// `GET /_matrix/federation/v1/media/download/{mediaId}`
async fn download_content(
    State(media): State<Media>,
    State(config): State<Arc<Config>>,
    _: RemoteServer,
    PathArgs((id,)): PathArgs<(String,)>,
    Query(wanted): Query<WantedFile>,
) -> Result<Response, MatrixError> {
    let file = media.find(&key(&config, &id)?, wanted.patience()).await?;
    let kind = file.content_type.clone().unwrap_or_else(|| "application/octet-stream".to_owned());
    let reader = media.read(&file).await.map_err(MatrixError::internal)?;
    answer(reader, &kind, file.name)
}

/// `GET /_matrix/federation/v1/media/thumbnail/{mediaId}`
async fn thumbnail_of(
    State(media): State<Media>,
    State(config): State<Arc<Config>>,
    _: RemoteServer,
    PathArgs((id,)): PathArgs<(String,)>,
    Query(wanted): Query<WantedThumbnail>,
) -> Result<Response, MatrixError> {
    let frame = wanted.frame()?;
    let file = media.find(&key(&config, &id)?, wanted.file().patience()).await?;
    let small = media.thumbnail(&file, frame).await?;
    answer(small.reader, small.format.content_type(), Some(format!("thumbnail.{}", small.format.extension())))
}

fn key(config: &Config, id: &str) -> Result<MediaKey, MatrixError> {
    MediaKey::parse(config.server_name.as_str(), id)
        .map_err(|error| MatrixError::invalid_param(error.to_string()))
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
