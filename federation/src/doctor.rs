//! Why a server cannot be reached, in words: the way of a request, step by step, each with what it found.
//! * Everything is asked anew and nothing is kept: what a running server remembers does not count.
//! * The way is the one that [`crate::Https`] goes; a step that fails says what an operator can do about it.

use std::{
    fmt,
    time::{Duration, UNIX_EPOCH},
};

use bytes::Bytes;
use hearth_dag::Keypair;
use http::{HeaderMap, Request, Response, StatusCode, header};
use ruma::ServerName;

use crate::{
    discovery::{Discovery, Reach, Route},
    https::WELL_KNOWN_LIMITS,
    key_store::{BadKeys, KEY_RESPONSE_BYTES, KeyResponse},
    network::{Limits, Network, NetworkError},
    server_name::{self, Host},
};

/// The time for one question.
pub const STEP_LIMITS: Limits = Limits::new(20, KEY_RESPONSE_BYTES);
/// Clocks that differ by more than this are worth a word: signatures and keys are judged by time.
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);
/// Bytes of another server's words that are shown.
const SHOWN: usize = 200;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Good,
    /// Worth knowing; it works nevertheless.
    Hint,
    /// Other servers, or this one, fail here.
    Bad,
}

/// What one step found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub verdict: Verdict,
    /// In a sentence or two.
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.verdict {
            Verdict::Good => "ok  ",
            Verdict::Hint => "note",
            Verdict::Bad => "BAD ",
        };
        write!(f, "{word}  {}", self.text)
    }
}

/// Walks to servers and tells of the way.
pub struct Doctor<'a> {
    /// How servers are reached.
    pub network: &'a dyn Network,
    /// How they are found.
    pub discovery: &'a Discovery,
    /// The time here.
    pub now_ms: u64,
}

impl Doctor<'_> {
    /// The way to `server`. With `own`, its key, the server should be this one.
    pub async fn examine(&self, server: &ServerName, own: Option<&Keypair>) -> Vec<Finding> {
        let mut report = Report(Vec::new());
        self.delegation(server, &mut report).await;
        let route = match self.discovery.route(server).await {
            Ok(route) => route,
            Err(error) => {
                report.bad(explained(&error, server.as_str()));
                return report.0;
            }
        };
        let place = self.describe(&route, &mut report).await;
        let Some(answer) = self.ask(server, "/_matrix/key/v2/server", &place, &mut report).await else {
            return report.0;
        };
        self.keys(server, own, answer.body(), &mut report);
        self.clock(answer.headers(), &mut report);
        if let Some(answer) = self.ask(server, "/_matrix/federation/v1/version", &place, &mut report).await {
            let json: serde_json::Value = serde_json::from_slice(answer.body()).unwrap_or_default();
            let word = |field: &str| shown(json["server"][field].as_str().unwrap_or("?"));
            report.good(format!("It calls itself {} {}.", word("name"), word("version")));
        }
        report.0
    }

    /// `.well-known/matrix/server`, where the name has room for one.
    async fn delegation(&self, server: &ServerName, report: &mut Report) {
        let Ok(address) = server_name::parse(server.as_str()) else { return };
        let Host::Name(host) = address.host else {
            return report.hint(format!(
                "{server} is an IP address: its users cannot move to another one, and its certificate must name it."
            ));
        };
        if let Some(port) = address.port {
            return report.good(format!("{server} names its port, {port}: nothing is looked up."));
        }
        let url = format!("https://{host}/.well-known/matrix/server");
        match self.network.fetch(&url, WELL_KNOWN_LIMITS).await {
            Ok(answer) if answer.status() == StatusCode::OK => {
                let json: serde_json::Value = serde_json::from_slice(answer.body()).unwrap_or_default();
                match json["m.server"].as_str() {
                    Some(told) if server_name::parse(told).is_ok() => {
                        report.good(format!("{url} delegates to {}.", shown(told)));
                    }
                    Some(told) => report.bad(format!("{url} delegates to {:?}, which is no server name.", shown(told))),
                    None => report.bad(format!(
                        "{url} answers, but is not JSON with a field m.server: servers then look elsewhere."
                    )),
                }
            }
            Ok(answer) => report.hint(format!(
                "{url} answers {}: nothing is delegated, so servers look for SRV records of {host} and then for port 8448.",
                answer.status()
            )),
            Err(error) => report.hint(format!(
                "{url} cannot be had ({error}): nothing is delegated, so servers look for SRV records of {host} and \
                 then for port 8448."
            )),
        }
    }

    /// Where requests go, said and returned in words.
    async fn describe(&self, route: &Route, report: &mut Report) -> String {
        match route.reach {
            Reach::Port(port) => {
                let place = format!("{}:{port}", route.host);
                report.good(format!("Requests go to {place}, with a certificate for {}.", route.host));
                place
            }
            Reach::Services => {
                let services = self.discovery.services_of(&route.host.to_string()).await;
                let places = services.iter().map(|service| format!("{}:{}", service.host, service.port));
                let place = places.collect::<Vec<_>>().join(", ");
                report.good(format!(
                    "By SRV records requests go to {place}, with a certificate for {}.",
                    route.host
                ));
                place
            }
        }
    }

    async fn ask(
        &self,
        server: &ServerName,
        path: &'static str,
        place: &str,
        report: &mut Report,
    ) -> Option<Response<Bytes>> {
        let mut request = Request::new(Bytes::new());
        *request.uri_mut() = http::Uri::from_static(path);
        match self.network.send(server, request, STEP_LIMITS).await {
            Ok(answer) if answer.status() == StatusCode::OK => {
                report.good(format!("{place} answers {path}."));
                Some(answer)
            }
            Ok(answer) => {
                report.bad(format!(
                    "{place} answers {} to {path}. If a proxy stands there, it has to pass all of /_matrix on, \
                     undecoded; or federation is switched off.",
                    answer.status()
                ));
                None
            }
            Err(error) => {
                report.bad(explained(&error, place));
                None
            }
        }
    }

    fn keys(&self, server: &ServerName, own: Option<&Keypair>, body: &[u8], report: &mut Report) {
        let keys = std::str::from_utf8(body).map_err(|error| BadKeys::Json(error.to_string()));
        let keys = match keys.and_then(|json| KeyResponse::read(json, server, self.now_ms)) {
            Ok(keys) => keys,
            Err(BadKeys::OtherServer) => {
                return report.bad(format!(
                    "The keys there are those of another server: that one's configuration does not say \
                     server_name = \"{server}\", or the way leads to the wrong machine."
                ));
            }
            Err(error) => return report.bad(format!("The keys there cannot be used: {error}.")),
        };
        if keys.row.valid_until_ms <= self.now_ms {
            return report.bad(
                "The keys there have expired already: the clock of one of the two machines is wrong, or the answer \
                 is an old one that a proxy kept."
                    .to_owned(),
            );
        }
        let Some(own) = own else {
            return report.good("Its keys are signed by themselves, and are good.".to_owned());
        };
        let ours = own.public_key();
        if keys.row.keys.iter().any(|key| !key.old && key.public_key == ours) {
            report.good("The key there is the one of this server.".to_owned());
        } else {
            report.bad(format!(
                "The keys there are good, but not this server's: another server answers as {server}, or runs on \
                 another data folder."
            ));
        }
    }

    fn clock(&self, headers: &HeaderMap, report: &mut Report) {
        let date = headers.get(header::DATE).and_then(|date| date.to_str().ok());
        let there = date.and_then(|date| httpdate::parse_http_date(date).ok());
        let Some(there) = there.and_then(|there| there.duration_since(UNIX_EPOCH).ok()) else { return };
        let here = Duration::from_millis(self.now_ms);
        let apart = here.abs_diff(there);
        if apart > CLOCK_TOLERANCE {
            let which = if here > there { "ahead of" } else { "behind" };
            report.bad(format!(
                "The clock of this machine is {} s {which} the one there. One of them is wrong: keep time with NTP.",
                apart.as_secs()
            ));
        }
    }
}

struct Report(Vec<Finding>);

impl Report {
    fn good(&mut self, text: String) {
        self.0.push(Finding { verdict: Verdict::Good, text });
    }

    fn hint(&mut self, text: String) {
        self.0.push(Finding { verdict: Verdict::Hint, text });
    }

    fn bad(&mut self, text: String) {
        self.0.push(Finding { verdict: Verdict::Bad, text });
    }
}

/// What can be done about it.
fn explained(error: &NetworkError, place: &str) -> String {
    let advice = match error {
        NetworkError::Name(_) => "The name, or the one that it delegates to, has to be mended.",
        NetworkError::Dns(_) => "The name needs an A or AAAA record, or the delegation another name.",
        NetworkError::PrivateAddress { .. } => {
            "From outside it cannot be reached there; on a closed network, set allow_private_addresses."
        }
        NetworkError::Tls(_) => {
            "The certificate has to name the host above, and be signed by an authority that servers trust, with \
             the whole chain in its file; for an authority of one's own, set extra_root_certificates."
        }
        NetworkError::Connect(_) => {
            "Nobody listens there, or a firewall refuses: see federation.bind, the port's forwarding, and \
             /.well-known/matrix/server."
        }
        NetworkError::Timeout => "A firewall may drop the packets, or the machine is down or very slow.",
        NetworkError::TooLarge { .. } | NetworkError::Broken(_) | NetworkError::Redirect(_) => {
            "Something else than a Matrix server seems to answer there."
        }
        NetworkError::BadTarget => "The name cannot be part of an address.",
        NetworkError::Busy => "It was not asked.",
    };
    format!("{place}: {error}. {advice}")
}

/// Foreign words on the operator's terminal: short, and without control characters.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, net::IpAddr, sync::Arc};

    use async_trait::async_trait;
    use ruma::{OwnedServerName, server_name};

    use super::*;
    use crate::{
        dns::{Dns, DnsError, Service},
        published_keys,
        well_known::{FetchWellKnown, WellKnown},
    };

    const NOON: u64 = 1_700_000_000_000;

    /// A network with one server, which answers paths with a status, a date and a body.
    #[derive(Clone, Default)]
    struct World {
        answers: HashMap<&'static str, (u16, String)>,
        error: Option<NetworkError>,
        date_ms: u64,
    }

    #[async_trait]
    impl Dns for World {
        async fn addresses(&self, _: &str) -> Result<Vec<IpAddr>, DnsError> {
            Ok(Vec::new())
        }

        async fn services(&self, _: &str) -> Result<Vec<Service>, DnsError> {
            Ok(Vec::new())
        }
    }

    #[async_trait]
    impl FetchWellKnown for World {
        async fn fetch_well_known(&self, host: &str) -> Result<Response<Bytes>, NetworkError> {
            self.fetch(&format!("https://{host}/.well-known/matrix/server"), WELL_KNOWN_LIMITS).await
        }
    }

    #[async_trait]
    impl Network for World {
        async fn send(
            &self,
            _: &ServerName,
            request: Request<Bytes>,
            _: Limits,
        ) -> Result<Response<Bytes>, NetworkError> {
            if let Some(error) = &self.error {
                return Err(error.clone());
            }
            let (status, body) =
                self.answers.get(request.uri().path()).cloned().unwrap_or((404, String::new()));
            let date = UNIX_EPOCH + Duration::from_millis(self.date_ms);
            let answer =
                Response::builder().status(status).header(header::DATE, httpdate::fmt_http_date(date));
            Ok(answer.body(body.into()).unwrap())
        }

        async fn fetch(&self, url: &str, _: Limits) -> Result<Response<Bytes>, NetworkError> {
            match self.answers.get("well-known") {
                Some((status, body)) if url == "https://a.test/.well-known/matrix/server" => {
                    Ok(Response::builder().status(*status).body(body.clone().into()).unwrap())
                }
                _ => Err(NetworkError::Timeout),
            }
        }
    }

    fn key(seed: u8) -> Keypair {
        Keypair::new(server_name!("a.test").to_owned(), "1", &[seed; 32]).unwrap()
    }

    /// A server as it should be.
    fn healthy() -> World {
        let version = r#"{"server":{"name":"Hearth\u001b[2J","version":"9"}}"#;
        World {
            answers: HashMap::from([
                ("well-known", (200, r#"{"m.server":"m.a.test:443"}"#.to_owned())),
                ("/_matrix/key/v2/server", (200, published_keys(&key(1), NOON))),
                ("/_matrix/federation/v1/version", (200, version.to_owned())),
            ]),
            error: None,
            date_ms: NOON,
        }
    }

    async fn examined(world: World, own: Option<&Keypair>) -> String {
        let name: OwnedServerName = server_name!("a.test").to_owned();
        let discovery = Discovery::new(Arc::new(world.clone()), WellKnown::new(Arc::new(world.clone())));
        let doctor = Doctor { network: &world, discovery: &discovery, now_ms: NOON };
        let findings = doctor.examine(&name, own).await;
        findings.iter().map(Finding::to_string).collect::<Vec<_>>().join("\n")
    }

    #[tokio::test]
    async fn a_healthy_server_has_nothing_bad() {
        let report = examined(healthy(), Some(&key(1))).await;
        assert!(!report.contains("BAD") && !report.contains("note"), "{report}");
        for said in
            ["delegates to m.a.test:443", "go to m.a.test:443", "the one of this server", "Hearth[2J 9"]
        {
            assert!(report.contains(said), "{said}: {report}");
        }
    }

    #[tokio::test]
    async fn each_fault_has_its_words() {
        let broken = |change: fn(&mut World)| {
            let mut world = healthy();
            change(&mut world);
            world
        };
        for (world, said) in [
            (broken(|world| drop(world.answers.remove("well-known"))), "note  https://a.test/.well-known"),
            (
                broken(|world| drop(world.answers.insert("well-known", (200, "<html>".to_owned())))),
                "BAD   https://a.test/.well-known/matrix/server answers, but is not JSON",
            ),
            (
                broken(|world| world.error = Some(NetworkError::Connect("refused".to_owned()))),
                "see federation.bind",
            ),
            (
                broken(|world| world.error = Some(NetworkError::Tls("expired".to_owned()))),
                "extra_root_certificates",
            ),
            (
                broken(|world| drop(world.answers.remove("/_matrix/key/v2/server"))),
                "BAD   m.a.test:443 answers 404 Not Found to /_matrix/key/v2/server",
            ),
            (
                broken(|world| {
                    let keys = published_keys(&key(2), NOON);
                    world.answers.insert("/_matrix/key/v2/server", (200, keys));
                }),
                "not this server's",
            ),
            (
                broken(|world| {
                    let other = Keypair::new(server_name!("b.test").to_owned(), "1", &[3; 32]).unwrap();
                    let keys = published_keys(&other, NOON);
                    world.answers.insert("/_matrix/key/v2/server", (200, keys));
                }),
                "server_name = \"a.test\"",
            ),
            (
                broken(|world| {
                    let keys = published_keys(&key(1), NOON - 30 * 24 * 3600 * 1000);
                    world.answers.insert("/_matrix/key/v2/server", (200, keys));
                }),
                "have expired already",
            ),
            (broken(|world| world.date_ms = NOON + 300_000), "300 s behind"),
        ] {
            let report = examined(world, Some(&key(1))).await;
            assert!(report.contains(said), "{said}: {report}");
        }
    }
}
