//! `.well-known/matrix/server`: to whom a host delegates, and for how long that is known.
//! * What the answer says of its age counts, between [`KNOWN_MIN`] and [`KNOWN_MAX`]; without a word, [`KNOWN_DEFAULT`].
//! * Failures are remembered too, longer each time, up to [`FAILED_MAX`]. A delegation that cannot be asked for again
//!   stays in force until it is [`KNOWN_MAX`] old.
//! * A host is asked by one at a time; who comes meanwhile gets the same answer.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, header};
use quick_cache::sync::Cache;
use serde::Deserialize;
use tokio::time::Instant;

use crate::{
    network::NetworkError,
    server_name::{self, Address},
};

/// A delegation is believed this long if its answer does not say how long.
pub const KNOWN_DEFAULT: Duration = Duration::from_secs(24 * 3600);
/// At least this long.
pub const KNOWN_MIN: Duration = Duration::from_secs(5 * 60);
/// At most this long.
pub const KNOWN_MAX: Duration = Duration::from_secs(48 * 3600);
/// After the first failure to get an answer, the host is not asked for this long; doubled after each further one.
pub const FAILED_FIRST: Duration = Duration::from_secs(60);
/// A host that failed, or that delegates nothing, is asked again after this time at the latest.
pub const FAILED_MAX: Duration = Duration::from_secs(3600);
/// Hosts of which something is remembered.
pub const HOSTS_REMEMBERED: usize = 10_000;

/// Gets `https://HOST/.well-known/matrix/server`.
#[async_trait]
pub trait FetchWellKnown: Send + Sync + 'static {
    /// The answer, redirects followed, bounded in size and time.
    async fn fetch_well_known(&self, host: &str) -> Result<Response<Bytes>, NetworkError>;
}

/// What hosts delegate, as far as it is known.
pub struct WellKnown {
    fetcher: Arc<dyn FetchWellKnown>,
    known: Cache<String, Known>,
}

#[derive(Clone)]
struct Known {
    delegated: Option<Arc<Address>>,
    asked: Instant,
    until: Instant,
    /// Failures in a row.
    failures: u32,
}

/// What an answer says.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Delegated(Address, Duration),
    /// There is an answer, and it is no delegation.
    Nothing,
    /// There is no answer worth the name: perhaps there will be.
    Failed,
}

impl WellKnown {
    /// Nothing known yet.
    pub fn new(fetcher: Arc<dyn FetchWellKnown>) -> Self {
        Self { fetcher, known: Cache::new(HOSTS_REMEMBERED) }
    }

    /// To whom a host delegates, if to anybody.
    pub async fn delegated(&self, host: &str) -> Option<Arc<Address>> {
        let now = Instant::now();
        let before = self.known.get(host);
        if let Some(known) = before.as_ref().filter(|known| known.until > now) {
            return known.delegated.clone();
        }
        if before.is_some() {
            self.known.remove(host);
        }
        match self.known.get_value_or_guard_async(host).await {
            Ok(known) => known.delegated,
            Err(guard) => {
                let known = self.ask(host, before).await;
                let delegated = known.delegated.clone();
                // It fails only if the host was forgotten meanwhile.
                let _ = guard.insert(known);
                delegated
            }
        }
    }

    async fn ask(&self, host: &str, before: Option<Known>) -> Known {
        let answer = match self.fetcher.fetch_well_known(host).await {
            Ok(response) => read(&response),
            Err(error) => {
                tracing::debug!(host, %error, "no .well-known/matrix/server");
                Answer::Failed
            }
        };
        let now = Instant::now();
        let known =
            |delegated, period, failures| Known { delegated, asked: now, until: now + period, failures };
        match answer {
            Answer::Delegated(address, period) => known(Some(Arc::new(address)), period, 0),
            Answer::Nothing => known(None, FAILED_MAX, 0),
            Answer::Failed => {
                let failures = before.as_ref().map_or(0, |before| before.failures).saturating_add(1);
                let period = FAILED_FIRST.saturating_mul(1 << (failures - 1).min(16)).min(FAILED_MAX);
                let kept =
                    before.filter(|before| before.delegated.is_some() && now < before.asked + KNOWN_MAX);
                match kept {
                    Some(kept) => Known { until: now + period, failures, ..kept },
                    None => known(None, period, failures),
                }
            }
        }
    }
}

fn read(response: &Response<Bytes>) -> Answer {
    #[derive(Deserialize)]
    struct Body {
        #[serde(rename = "m.server")]
        server: String,
    }
    match response.status() {
        StatusCode::OK => {}
        status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
            return Answer::Failed;
        }
        _ => return Answer::Nothing,
    }
    let body: Result<Body, _> = serde_json::from_slice(response.body());
    match body.ok().and_then(|body| server_name::parse(&body.server).ok()) {
        Some(address) => Answer::Delegated(address, lifetime(response.headers())),
        None => Answer::Nothing,
    }
}

/// How long an answer may be kept: `Cache-Control`, else `Expires`, else the default.
fn lifetime(headers: &HeaderMap) -> Duration {
    let text = |name| headers.get(name).and_then(|value: &http::HeaderValue| value.to_str().ok());
    let control = text(header::CACHE_CONTROL).unwrap_or_default().to_ascii_lowercase();
    let directives = || control.split(',').map(str::trim);
    let said = if directives().any(|directive| directive == "no-store" || directive == "no-cache") {
        Some(Duration::ZERO)
    } else if let Some(seconds) = directives().find_map(|directive| directive.strip_prefix("max-age=")) {
        let age = text(header::AGE).and_then(|age| age.trim().parse::<u64>().ok()).unwrap_or_default();
        let seconds = seconds.trim_matches('"').parse::<u64>().ok();
        seconds.map(|seconds| Duration::from_secs(seconds.saturating_sub(age)))
    } else if let Some(expires) = text(header::EXPIRES) {
        let date = |text| httpdate::parse_http_date(text).ok();
        match (date(expires), text(header::DATE).and_then(date)) {
            (Some(expires), Some(sent)) => Some(expires.duration_since(sent).unwrap_or_default()),
            // A wrong date means that it has expired.
            (None, _) => Some(Duration::ZERO),
            (Some(_), None) => None,
        }
    } else {
        None
    };
    said.unwrap_or(KNOWN_DEFAULT).clamp(KNOWN_MIN, KNOWN_MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use parking_lot::Mutex;

    use super::*;

    /// Answers in their order, then fails.
    #[derive(Default)]
    struct Script {
        answers: Mutex<VecDeque<Response<Bytes>>>,
        asked: Mutex<usize>,
    }

    #[async_trait]
    impl FetchWellKnown for Script {
        async fn fetch_well_known(&self, _: &str) -> Result<Response<Bytes>, NetworkError> {
            *self.asked.lock() += 1;
            tokio::time::sleep(Duration::from_millis(1)).await;
            self.answers.lock().pop_front().ok_or(NetworkError::Timeout)
        }
    }

    fn answer(status: u16, body: &str, headers: &[(&str, &str)]) -> Response<Bytes> {
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        response.body(Bytes::copy_from_slice(body.as_bytes())).unwrap()
    }

    fn delegation(to: &str, headers: &[(&str, &str)]) -> Response<Bytes> {
        answer(200, &format!(r#"{{"m.server":"{to}"}}"#), headers)
    }

    fn well_known(answers: impl IntoIterator<Item = Response<Bytes>>) -> (Arc<Script>, WellKnown) {
        let script =
            Arc::new(Script { answers: Mutex::new(answers.into_iter().collect()), asked: Mutex::default() });
        (script.clone(), WellKnown::new(script))
    }

    async fn port(well_known: &WellKnown) -> Option<u16> {
        well_known.delegated("a.test").await.and_then(|address| address.port)
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_delegation_is_asked_for_once_in_its_lifetime() {
        let (script, well_known) = well_known([delegation("b.test:1", &[]), delegation("b.test:2", &[])]);
        assert_eq!(port(&well_known).await, Some(1));
        tokio::time::advance(KNOWN_DEFAULT - 2 * SECOND).await;
        assert_eq!(port(&well_known).await, Some(1));
        assert_eq!(*script.asked.lock(), 1);
        tokio::time::advance(3 * SECOND).await;
        assert_eq!(port(&well_known).await, Some(2));
    }

    #[tokio::test(start_paused = true)]
    async fn many_who_ask_at_once_are_one_question() {
        let (script, well_known) = well_known([delegation("b.test:1", &[])]);
        let all = futures_util::future::join_all((0..50).map(|_| port(&well_known))).await;
        assert_eq!(all, [Some(1); 50]);
        assert_eq!(*script.asked.lock(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_remembered_longer_each_time() {
        let (script, well_known) = well_known([]);
        let mut waits = Vec::new();
        for _ in 0..8 {
            let before = *script.asked.lock();
            let start = Instant::now();
            while *script.asked.lock() == before {
                assert_eq!(port(&well_known).await, None);
                tokio::time::advance(10 * SECOND).await;
            }
            waits.push(start.elapsed().as_secs() / 60);
        }
        assert_eq!(waits, [0, 1, 2, 4, 8, 16, 32, 60]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_delegates_nothing_is_left_alone_for_an_hour() {
        for answer in [answer(404, "", &[]), answer(200, "<html>", &[]), delegation("no name", &[])] {
            let (script, well_known) = well_known([answer, delegation("b.test:1", &[])]);
            assert_eq!(port(&well_known).await, None);
            tokio::time::advance(FAILED_MAX - SECOND).await;
            assert_eq!(port(&well_known).await, None);
            assert_eq!(*script.asked.lock(), 1);
            tokio::time::advance(2 * SECOND).await;
            assert_eq!(port(&well_known).await, Some(1));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_delegation_outlives_a_failure_but_not_for_ever() {
        let (_, well_known) = well_known([delegation("b.test:1", &[("cache-control", "max-age=600")])]);
        assert_eq!(port(&well_known).await, Some(1));
        tokio::time::advance(700 * SECOND).await;
        assert_eq!(port(&well_known).await, Some(1), "the host does not answer any more");
        tokio::time::advance(KNOWN_MAX).await;
        assert_eq!(port(&well_known).await, None);
    }

    #[test]
    fn lifetimes_are_read_from_headers() {
        let date = ("date", "Sun, 06 Nov 1994 08:00:00 GMT");
        for (headers, seconds) in [
            (vec![], 86_400),
            (vec![("cache-control", "public, Max-Age=7200")], 7_200),
            (vec![("cache-control", "max-age=7200"), ("age", "3600")], 3_600),
            (vec![("cache-control", "max-age=\"7200\""), date], 7_200),
            (vec![("cache-control", "max-age=99999999999")], 48 * 3600),
            (vec![("cache-control", "max-age=1")], 300),
            (vec![("cache-control", "max-age=lots")], 86_400),
            (vec![("cache-control", "no-store")], 300),
            (vec![date, ("expires", "Sun, 06 Nov 1994 09:00:00 GMT")], 3_600),
            (vec![date, ("expires", "0")], 300),
            (vec![("expires", "Sun, 06 Nov 1994 09:00:00 GMT")], 86_400),
        ] {
            let lifetime = lifetime(delegation("b.test", &headers).headers());
            assert_eq!(lifetime, Duration::from_secs(seconds), "{headers:?}");
        }
    }
}
