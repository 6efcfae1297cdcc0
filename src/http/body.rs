//! Request bodies: read up to the route's limit, and after a refusal read on for a while.
//! * A handler sees at most the limit; what is longer ends in an error that [`is_too_long`] knows.
//! * Most clients look for an answer only when they have sent all, and lose it if the connection is cut before. So
//!   whatever a refusal leaves of a body is read and thrown away, within the bounds of [`ReadOn`].
//! * What is read whole takes about as much memory as it has bytes, however small its pieces are.
//! * A body has to go on within [`PATIENCE`], and to come in at [`SLOWEST`] after that time is used up once: nobody holds
//!   a request open for nothing. Only the time counts in which somebody waits for it.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::{Body, Bytes, HttpBody};
use http::StatusCode;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep_until};

use super::{MatrixError, route::BodyLimit};

/// How long is waited for the next piece of a body, and in all before it is counted what came.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes in a second that a body has to bring after that: the slowest of phones do.
const SLOWEST: u64 = 1024;

/// How much of a refused body is read on, and for how long. Whoever sends more, or slower, gets the answer with the
/// connection's end.
#[derive(Debug, Clone, Copy)]
pub struct ReadOn {
    bytes: usize,
    time: Duration,
}

impl ReadOn {
    /// For requests without a token, and for those that are refused before their route is entered.
    pub const STRANGER: Self = Self { bytes: 1 << 20, time: Duration::from_secs(2) };

    /// For users, by what the route takes.
    pub const fn of(limit: BodyLimit) -> Self {
        match limit {
            BodyLimit::Json | BodyLimit::Event | BodyLimit::Transaction => {
                Self { bytes: 8 << 20, time: Duration::from_secs(10) }
            }
            BodyLimit::Upload => Self { bytes: 256 << 20, time: Duration::from_secs(10) },
        }
    }

    /// The same, with what the route would have read, where it read nothing.
    pub const fn and(self, limit: usize) -> Self {
        Self { bytes: self.bytes.saturating_add(limit), ..self }
    }
}

/// A body of which both know that it goes on: the handler, and who answers for it.
pub struct Rest(Arc<Mutex<Shared>>);

struct Shared {
    body: Body,
    /// Somebody has asked for it, so a client that waits to be asked has begun to send.
    begun: bool,
    bytes: u64,
    /// How long was waited for the pieces that came.
    waited: Duration,
    /// Since when the next one is waited for.
    waits_since: Option<Instant>,
    /// Made when there is something to wait for.
    deadline: Option<Pin<Box<Sleep>>>,
}

/// The rest of the body did not come.
#[derive(Debug, thiserror::Error)]
#[error("the rest of the request's body did not come in time")]
struct TooSlow;

/// Divides a body into what a handler may read, at most `limit` bytes, and what is left of it then.
pub fn divide(body: Body, limit: usize) -> (Body, Rest) {
    let shared = Arc::new(Mutex::new(Shared {
        body,
        begun: false,
        bytes: 0,
        waited: Duration::ZERO,
        waits_since: None,
        deadline: None,
    }));
    (Body::new(Limited::new(Handed(shared.clone()), limit)), Rest(shared))
}

impl Rest {
    /// Reads on. A client that `waits` to be asked for its body, and was not, has nothing under way.
    pub async fn discard(self, within: ReadOn, waits: bool) {
        let mut body = Handed(self.0);
        if body.is_end_stream() || (waits && !body.0.lock().begun) {
            return;
        }
        let reading = async {
            let mut left = within.bytes;
            while let Some(Ok(frame)) = body.frame().await {
                let length = frame.data_ref().map_or(0, Bytes::len);
                match left.checked_sub(length) {
                    Some(rest) => left = rest,
                    None => break,
                }
            }
        };
        let _ = tokio::time::timeout(within.time, reading).await;
    }
}

struct Handed(Arc<Mutex<Shared>>);

impl HttpBody for Handed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let shared = &mut *self.0.lock();
        shared.begun = true;
        if let Poll::Ready(frame) = Pin::new(&mut shared.body).poll_frame(context) {
            shared.waited += shared.waits_since.take().map_or(Duration::ZERO, |since| since.elapsed());
            if let Some(Ok(frame)) = &frame {
                shared.bytes += frame.data_ref().map_or(0, Bytes::len) as u64;
            }
            return Poll::Ready(frame);
        }
        let in_all = PATIENCE + Duration::from_secs(shared.bytes / SLOWEST);
        let since = *shared.waits_since.get_or_insert_with(Instant::now);
        let until = since + in_all.saturating_sub(shared.waited).min(PATIENCE);
        let deadline = shared.deadline.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if deadline.deadline() != until {
            deadline.as_mut().reset(until);
        }
        deadline.as_mut().poll(context).map(|()| Some(Err(axum::Error::new(TooSlow))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().body.size_hint()
    }
}

/// The whole of a body that a handler was given.
pub async fn whole(body: Body) -> Result<Bytes, MatrixError> {
    whole_if(body, |_| Ok(())).await
}

/// The same, where the bytes of each piece may be refused.
pub async fn whole_if(
    mut body: Body,
    mut may: impl FnMut(usize) -> Result<(), MatrixError>,
) -> Result<Bytes, MatrixError> {
    let mut whole = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| unreadable(&error))?;
        let Ok(piece) = frame.into_data() else { continue };
        may(piece.len())?;
        if whole.is_empty() && body.is_end_stream() {
            return Ok(piece);
        }
        whole.extend_from_slice(&piece);
    }
    Ok(whole.into())
}

/// The refusal of a body that is longer than its route's limit.
pub fn too_long() -> MatrixError {
    MatrixError::too_large("the request is too large")
}

/// The refusal of a body that could not be read: longer than its route's limit, too slow, or broken off.
pub fn unreadable(error: &(dyn std::error::Error + 'static)) -> MatrixError {
    let causes = || std::iter::successors(Some(error), |error| error.source());
    if causes().any(|cause| cause.is::<LengthLimitError>()) {
        return too_long();
    }
    let message = format!("the request's body could not be read: {error}");
    match causes().any(|cause| cause.is::<TooSlow>()) {
        true => MatrixError::new(StatusCode::REQUEST_TIMEOUT, "M_UNKNOWN", message),
        false => MatrixError::unknown(message),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use futures_util::{StreamExt as _, stream};

    use super::*;

    const KIB: usize = 1024;

    /// An endless body of pieces of 1 KiB, and a count of those that were taken.
    fn endless() -> (Body, Arc<AtomicUsize>) {
        let taken = Arc::new(AtomicUsize::new(0));
        let count = taken.clone();
        let pieces = stream::repeat(Bytes::from(vec![b' '; KIB])).map(move |piece| {
            count.fetch_add(1, Ordering::Relaxed);
            Ok::<_, Infallible>(piece)
        });
        (Body::from_stream(pieces), taken)
    }

    #[tokio::test]
    async fn no_more_than_the_bounds_is_read() {
        let (body, taken) = endless();
        let (handed, rest) = divide(body, 10 * KIB);
        assert_eq!(whole(handed).await.unwrap_err().status, http::StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(taken.load(Ordering::Relaxed), 11);
        rest.discard(ReadOn { bytes: 5 * KIB, time: Duration::from_secs(600) }, true).await;
        assert_eq!(taken.load(Ordering::Relaxed), 17);
    }

    #[tokio::test]
    async fn who_waits_to_be_asked_is_not_asked_after_a_refusal() {
        let (body, taken) = endless();
        let (handed, rest) = divide(body, 10 * KIB);
        drop(handed);
        rest.discard(ReadOn::STRANGER, true).await;
        assert_eq!(taken.load(Ordering::Relaxed), 0);
    }

    // A drop now and then does not keep a request open for ever; one who sends steadily may take long.
    #[tokio::test(start_paused = true)]
    async fn who_sends_too_slowly_is_refused() {
        let drops = |length: usize| {
            let drops = stream::repeat(Bytes::from(vec![b' '; length])).then(|drop| async move {
                tokio::time::sleep(Duration::from_secs(5)).await;
                Ok::<_, Infallible>(drop)
            });
            Body::from_stream(drops.take(100))
        };
        let started = Instant::now();
        let (handed, _) = divide(drops(10), 10 * KIB);
        assert_eq!(whole(handed).await.unwrap_err().status, StatusCode::REQUEST_TIMEOUT);
        assert_eq!(started.elapsed(), PATIENCE);
        // What came quickly buys no time to do nothing.
        let silent = stream::once(async { Ok::<_, Infallible>(Bytes::from(vec![b' '; 9 * KIB])) });
        let silent = Body::from_stream(silent.chain(stream::pending()));
        let started = Instant::now();
        let (handed, _) = divide(silent, 10 * KIB);
        assert_eq!(whole(handed).await.unwrap_err().status, StatusCode::REQUEST_TIMEOUT);
        assert_eq!(started.elapsed(), PATIENCE);
        let (handed, _) = divide(drops(5 * KIB), 500 * KIB);
        assert_eq!(whole(handed).await.unwrap().len(), 500 * KIB);
    }

    #[tokio::test]
    async fn a_body_within_the_limit_is_read_whole() {
        for pieces in [vec![], vec!["all"], vec!["in", "", "three"]] {
            let expected = pieces.concat();
            let pieces = stream::iter(pieces.into_iter().map(Ok::<_, Infallible>));
            let (handed, _) = divide(Body::from_stream(pieces), expected.len());
            assert_eq!(whole(handed).await.unwrap(), expected);
        }
    }
}
