//! The network of a simulation: what is lost, late, repeated or cut is decided by its seed, for each pair of servers by
//! itself. Whatever goes over it leaves its trace: runs with the same trace are the same run.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use hearth_federation::{Limits, Network, NetworkError};
use http::{Request, Response};
use parking_lot::Mutex;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use ruma::ServerName;
use tokio::time::{Instant, sleep, timeout};

use crate::{answering::Answering, disk::Power};

/// A message takes less than this on its way.
const DELAY_MS: u64 = 300;
/// One that is repeated comes again within this time.
const REPEATED_MS: u64 = 5_000;

pub struct Net(Mutex<Inside>);

struct Inside {
    seed: u64,
    begun: Instant,
    links: BTreeMap<(String, String), StdRng>,
    servers: BTreeMap<String, Listening>,
    /// From whom to whom nothing comes through.
    cut: BTreeSet<(String, String)>,
    rough: bool,
    lost: usize,
    repeated: usize,
    trace: DefaultHasher,
    is_printed: bool,
}

#[derive(Clone)]
struct Listening {
    answering: Answering,
    power: Arc<Power>,
}

/// What becomes of one request.
struct Fate {
    lost: bool,
    answer_lost: bool,
    repeated: Option<u64>,
    there_ms: u64,
    back_ms: u64,
}

impl Net {
    pub fn new(seed: u64, is_printed: bool) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Inside {
            seed,
            begun: Instant::now(),
            links: BTreeMap::new(),
            servers: BTreeMap::new(),
            cut: BTreeSet::new(),
            rough: false,
            lost: 0,
            repeated: 0,
            trace: DefaultHasher::new(),
            is_printed,
        })))
    }

    pub fn listens(&self, name: &str, answering: Answering, power: Arc<Power>) {
        self.0.lock().servers.insert(name.to_owned(), Listening { answering, power });
    }

    pub fn is_rough(&self, rough: bool) {
        self.0.lock().rough = rough;
    }

    /// From now on, nothing gets from one to the other.
    pub fn cuts(&self, from: &str, to: &str) {
        self.notes(&format!("{from} is cut from {to}"));
        self.0.lock().cut.insert((from.to_owned(), to.to_owned()));
    }

    pub fn heals(&self) {
        self.0.lock().cut.clear();
    }

    /// How many requests or answers were lost, and how many repeated.
    pub fn counts(&self) -> (usize, usize) {
        let inside = self.0.lock();
        (inside.lost, inside.repeated)
    }

    /// The same of two runs that were the same.
    pub fn trace(&self) -> u64 {
        self.0.lock().trace.finish()
    }

    /// What happens becomes part of the trace.
    pub fn notes(&self, what: &str) {
        let mut inside = self.0.lock();
        let now_ms = inside.begun.elapsed().as_millis();
        (now_ms, what).hash(&mut inside.trace);
        if inside.is_printed {
            println!("{now_ms:>8} {what}");
        }
    }

    fn is_cut(&self, from: &str, to: &str) -> bool {
        self.0.lock().cut.contains(&(from.to_owned(), to.to_owned()))
    }

    fn fate(&self, from: &str, to: &str) -> Fate {
        let inside = &mut *self.0.lock();
        if !inside.rough {
            return Fate { lost: false, answer_lost: false, repeated: None, there_ms: 1, back_ms: 1 };
        }
        let seed = inside.seed;
        let link = inside.links.entry((from.to_owned(), to.to_owned()));
        let rng = link.or_insert_with(|| {
            let mut hasher = DefaultHasher::new();
            (seed, from, to).hash(&mut hasher);
            StdRng::seed_from_u64(hasher.finish())
        });
        let fate = Fate {
            lost: rng.random_bool(0.07),
            answer_lost: rng.random_bool(0.07),
            repeated: rng.random_bool(0.07).then(|| rng.random_range(1..REPEATED_MS)),
            there_ms: rng.random_range(1..DELAY_MS),
            back_ms: rng.random_range(1..DELAY_MS),
        };
        inside.lost += usize::from(fate.lost || fate.answer_lost);
        inside.repeated += usize::from(fate.repeated.is_some());
        fate
    }
}

fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

/// The network as one run of a server sees it.
pub struct Wire {
    pub net: Arc<Net>,
    pub name: String,
    pub power: Arc<Power>,
}

#[async_trait]
impl Network for Wire {
    async fn send(
        &self,
        to: &ServerName,
        request: Request<Bytes>,
        limits: Limits,
    ) -> Result<Response<Bytes>, NetworkError> {
        self.power.is_needed().await;
        let (net, from, to) = (&self.net, self.name.as_str(), to.as_str());
        let asked = format!("{from} > {to} {} {:x}", request.uri(), digest(request.body()));
        net.notes(&asked);
        let fate = net.fate(from, to);
        sleep(Duration::from_millis(fate.there_ms)).await;
        if fate.lost || net.is_cut(from, to) {
            return Err(NetworkError::Timeout);
        }
        let server = net.0.lock().servers.get(to).cloned();
        let Some(Listening { answering, power }) = server.filter(|server| !server.power.is_off()) else {
            return Err(NetworkError::Connect("nobody listens".to_owned()));
        };
        if let Some(after_ms) = fate.repeated {
            let (net, answering, request) = (net.clone(), answering.clone(), request.clone());
            let from = from.to_owned();
            tokio::spawn(async move {
                sleep(Duration::from_millis(after_ms)).await;
                net.notes(&format!("repeated: {asked}"));
                answering.answers(&from, &request).await;
            });
        }
        let answer = tokio::select! {
            biased;
            () = power.gone() => Err(NetworkError::Broken("the server is gone".to_owned())),
            answer = timeout(limits.timeout, answering.answers(from, &request)) => {
                answer.map_err(|_| NetworkError::Timeout)
            }
        };
        sleep(Duration::from_millis(fate.back_ms)).await;
        if fate.answer_lost || net.is_cut(to, from) {
            return Err(NetworkError::Timeout);
        }
        let told = answer.as_ref().map(|answer| (answer.status(), digest(answer.body())));
        net.notes(&format!("{from} < {to} {} {told:x?}", request.uri().path()));
        answer
    }

    async fn fetch(&self, _: &str, _: Limits) -> Result<Response<Bytes>, NetworkError> {
        Err(NetworkError::Timeout)
    }
}
