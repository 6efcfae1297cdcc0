//! The network of a simulation: what is lost, late, repeated or parted is decided by its seed.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use hearth_federation::{Limits, Network, NetworkError, x_matrix::XMatrix};
use http::{Request, Response};
use parking_lot::Mutex;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use ruma::ServerName;
use tokio::time::sleep;

use crate::node::Answering;

pub struct Net(Mutex<Inside>);

struct Inside {
    rng: StdRng,
    servers: HashMap<String, Answering>,
    alone: HashSet<String>,
    rough: bool,
    lost: usize,
    repeated: usize,
}

/// What becomes of one request.
struct Fate {
    lost: bool,
    answer_lost: bool,
    repeated: bool,
    there_ms: u64,
    back_ms: u64,
}

impl Net {
    pub fn new(seed: u64) -> Arc<Self> {
        let rng = StdRng::seed_from_u64(seed);
        let (servers, alone) = Default::default();
        Arc::new(Self(Mutex::new(Inside { rng, servers, alone, rough: false, lost: 0, repeated: 0 })))
    }

    pub fn adds(&self, name: &str, server: Answering) {
        self.0.lock().servers.insert(name.to_owned(), server);
    }

    pub fn is_rough(&self, rough: bool) {
        self.0.lock().rough = rough;
    }

    /// From now on, nothing gets to or from this server.
    pub fn parts(&self, name: &str) {
        self.0.lock().alone.insert(name.to_owned());
    }

    pub fn heals(&self) {
        self.0.lock().alone.clear();
    }

    /// How many requests or answers were lost, and how many repeated.
    pub fn counts(&self) -> (usize, usize) {
        let inside = self.0.lock();
        (inside.lost, inside.repeated)
    }

    fn is_parted(&self, from: &str, to: &str) -> bool {
        let inside = self.0.lock();
        inside.alone.contains(from) || inside.alone.contains(to)
    }

    fn fate(&self) -> Fate {
        let inside = &mut *self.0.lock();
        let rng = &mut inside.rng;
        if !inside.rough {
            return Fate { lost: false, answer_lost: false, repeated: false, there_ms: 1, back_ms: 1 };
        }
        let fate = Fate {
            lost: rng.random_bool(0.05),
            answer_lost: rng.random_bool(0.05),
            repeated: rng.random_bool(0.05),
            there_ms: rng.random_range(1..300),
            back_ms: rng.random_range(1..300),
        };
        inside.lost += usize::from(fate.lost || fate.answer_lost);
        inside.repeated += usize::from(fate.repeated);
        fate
    }
}

/// Who sent a request; questions for keys are not signed.
fn origin_of(request: &Request<Bytes>) -> String {
    let header = request.headers().get(http::header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let signed = header.and_then(|header| XMatrix::parse(header).ok());
    signed.map(|signed| signed.origin.to_string()).unwrap_or_default()
}

#[async_trait]
impl Network for Net {
    async fn send(
        &self,
        to: &ServerName,
        request: Request<Bytes>,
        _: Limits,
    ) -> Result<Response<Bytes>, NetworkError> {
        let (origin, fate) = (origin_of(&request), self.fate());
        sleep(Duration::from_millis(fate.there_ms)).await;
        let server = self.0.lock().servers.get(to.as_str()).cloned();
        let Some(server) = server.filter(|_| !fate.lost && !self.is_parted(&origin, to.as_str())) else {
            return Err(NetworkError::Timeout);
        };
        if fate.repeated {
            let (server, origin, request) = (server.clone(), origin.clone(), request.clone());
            tokio::spawn(async move {
                sleep(Duration::from_millis(fate.back_ms)).await;
                server.answers(&origin, request).await;
            });
        }
        let answer = server.answers(&origin, request).await;
        sleep(Duration::from_millis(fate.back_ms)).await;
        if fate.answer_lost || self.is_parted(&origin, to.as_str()) {
            return Err(NetworkError::Timeout);
        }
        Ok(answer)
    }

    async fn fetch(&self, _: &str, _: Limits) -> Result<Response<Bytes>, NetworkError> {
        Err(NetworkError::Timeout)
    }
}
