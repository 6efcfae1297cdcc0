//! Every endpoint of the route table refuses what is wrong with the right code, and changes nothing by it.
//! A new endpoint without a specimen fails here.

use axum::body::Body;
use hearth::{
    config::ByteSize,
    http::{Auth, BodyLimit, Route, Specimen, TRANSACTION_BYTES},
    server,
    testing::{Answer, TestPeer, TestServer, TestUser, encoded},
};
use http::{Method, Request, header};
use ruma::server_name;
use serde_json::json;

/// Somebody with a room, a member without power, and somebody who is not in it.
struct Stage {
    server: TestServer,
    me: TestUser,
    member: TestUser,
    outsider: TestUser,
    remote: TestPeer,
    values: Vec<(&'static str, String)>,
}

impl Stage {
    async fn set() -> Self {
        let server = TestServer::with(|config| {
            config.limits.upload_size = ByteSize::kib(64);
            config.federation.denied_servers = vec!["denied.test".to_owned()];
        });
        let server = server.await;
        let remote = server.network.peer(server_name!("remote.test"));
        let me = server.user("me").await;
        let member = server.user("other").await;
        let outsider = server.user("outsider").await;
        let third = server.user("third").await;
        let create =
            json!({ "preset": "private_chat", "room_alias_name": "stage", "invite": [member.user_id] });
        let room = me.creates_a_room(create).await;
        member.joins(&room).await;
        let event = me.says(&room, "hello").await;
        let values = vec![
            ("$me", me.user_id.to_string()),
            ("$other", member.user_id.to_string()),
            ("$third", third.user_id.to_string()),
            ("$room", room),
            ("$event", event),
            ("$alias", "#stage:hearth.test".to_owned()),
            ("$server", "hearth.test".to_owned()),
            ("$remote", "remote.test".to_owned()),
            ("$device", me.device_id.to_string()),
        ];
        let stage = Self { server, me, member, outsider, remote, values };
        // Its keys are fetched once, and not while something is refused.
        let hello = stage.remote.signs(server_name!("hearth.test"), &Method::GET, "/", b"");
        let claim = stage
            .server
            .app
            .federation
            .claim([127, 0, 0, 1].into(), [hello.as_str()].into_iter())
            .await
            .unwrap();
        stage.server.app.federation.verify(&claim, "GET", "/", b"").await.unwrap();
        stage
    }

    fn filled(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (name, value) in &self.values {
            text = text.replace(name, value);
        }
        text.replace("$txn", &self.server.fresh().to_string())
    }

    fn path(&self, route: &Route, specimen: &Specimen) -> String {
        let mut args = specimen.path.split_whitespace();
        let parts = route.paths[0].split('/').map(|part| match part.starts_with('{') {
            true => {
                let arg = args.next().unwrap_or_else(|| panic!("{route:?}: too few path parameters"));
                encoded(&self.filled(arg))
            }
            false => part.to_owned(),
        });
        let path = parts.collect::<Vec<_>>().join("/");
        assert_eq!(args.next(), None, "{route:?}: too many path parameters");
        if specimen.query.is_empty() { path } else { format!("{path}?{}", self.filled(specimen.query)) }
    }

    async fn ask(&self, route: &Route, specimen: &Specimen, token: Option<&str>, body: Vec<u8>) -> Answer {
        let path = self.path(route, specimen);
        let authorization = match route.auth {
            Auth::Server => Some(self.remote.signs(server_name!("hearth.test"), &route.method, &path, &body)),
            _ => token.map(|token| format!("Bearer {token}")),
        };
        self.ask_with(route, &path, authorization, body).await
    }

    async fn ask_with(
        &self,
        route: &Route,
        path: &str,
        authorization: Option<String>,
        body: Vec<u8>,
    ) -> Answer {
        let mut request = Request::builder().method(route.method.clone()).uri(path);
        if let Some(authorization) = authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        request = request.header(header::CONTENT_LENGTH, body.len());
        self.server.send(request.body(Body::from(body)).unwrap()).await
    }

    fn body(&self, specimen: &Specimen) -> Vec<u8> {
        specimen.body.map(|body| self.filled(body).into_bytes()).unwrap_or_default()
    }

    /// What must be refused of an endpoint for servers: requests that no server signed, or not this one.
    async fn unsigned(&self, route: &Route, specimen: &Specimen) -> Vec<(&'static str, Answer, u16, String)> {
        let (path, body) = (self.path(route, specimen), self.body(specimen));
        let us = server_name!("hearth.test");
        let sign = |peer: &TestPeer, to, path: &str| peer.signs(to, &route.method, path, &body);
        let denied = TestPeer::stranger(server_name!("denied.test"));
        let stranger = TestPeer::stranger(server_name!("stranger.test"));
        let forged = sign(&self.remote, us, &path).replace("sig=\"", "sig=\"AAAA");
        let own = TestPeer::stranger(us);
        let mut refused = Vec::new();
        for (what, authorization, status, errcode) in [
            ("no signature", None, 401, "M_UNAUTHORIZED"),
            ("a user's token", Some(format!("Bearer {}", self.me.token)), 401, "M_UNAUTHORIZED"),
            ("a damaged header", Some("X-Matrix origin=".to_owned()), 401, "M_UNAUTHORIZED"),
            ("a forged signature", Some(forged), 401, "M_UNAUTHORIZED"),
            ("another path's signature", Some(sign(&self.remote, us, "/")), 401, "M_UNAUTHORIZED"),
            (
                "another server's request",
                Some(sign(&self.remote, server_name!("b.test"), &path)),
                401,
                "M_UNAUTHORIZED",
            ),
            ("a server without keys", Some(sign(&stranger, us, &path)), 401, "M_UNAUTHORIZED"),
            ("our own name", Some(sign(&own, us, &path)), 401, "M_UNAUTHORIZED"),
            ("a denied server", Some(sign(&denied, us, &path)), 403, "M_FORBIDDEN"),
        ] {
            let answer = self.ask_with(route, &path, authorization, body.clone()).await;
            refused.push((what, answer, status, errcode.to_owned()));
        }
        refused
    }

    /// All that must be refused of one endpoint: what it is, the answer, and what it should be.
    async fn refusals(&self, route: &Route, specimen: &Specimen) -> Vec<(&'static str, Answer, u16, String)> {
        let good = self.body(specimen);
        let by_token = matches!(route.auth, Auth::Token | Auth::Optional);
        let mine = by_token.then_some(self.me.token.as_str());
        let mut refused = Vec::new();
        if route.auth == Auth::Server {
            refused.extend(self.unsigned(route, specimen).await);
        }
        if route.auth == Auth::Token {
            let answer = self.ask(route, specimen, None, good.clone()).await;
            refused.push(("no token", answer, 401, "M_MISSING_TOKEN".into()));
        }
        if by_token {
            let answer = self.ask(route, specimen, Some("nobodys"), good.clone()).await;
            refused.push(("a wrong token", answer, 401, "M_UNKNOWN_TOKEN".into()));
        }
        if specimen.body.is_some() {
            let answer = self.ask(route, specimen, mine, b"{\"a\":".to_vec()).await;
            refused.push(("bad JSON", answer, 400, "M_NOT_JSON".into()));
        }
        if let Some(wrong) = specimen.wrong {
            let answer = self.ask(route, specimen, mine, self.filled(wrong).into_bytes()).await;
            let errcode = answer.json()["errcode"].as_str().unwrap_or_default().to_owned();
            let fits = ["M_BAD_JSON", "M_INVALID_PARAM", "M_MISSING_PARAM"].contains(&&*errcode);
            refused.push(("a wrong type", answer, 400, if fits { errcode } else { "M_BAD_JSON".into() }));
        }
        let limits = &self.server.app.config.limits;
        let limit = match route.body_limit {
            BodyLimit::Json => limits.request_size,
            BodyLimit::Event => limits.event_request_size,
            BodyLimit::Upload => limits.upload_size,
            BodyLimit::Transaction => ByteSize::kib(TRANSACTION_BYTES as u64 / 1024),
        };
        if specimen.body.is_some() || route.body_limit == BodyLimit::Upload {
            let answer = self.ask(route, specimen, mine, vec![b' '; limit.bytes() + 1]).await;
            refused.push(("too large a body", answer, 413, "M_TOO_LARGE".into()));
        }
        if let Some((status, errcode)) = specimen.outsider {
            let answer = self.ask(route, specimen, Some(&self.outsider.token), good.clone()).await;
            refused.push(("an outsider", answer, status, errcode.into()));
        }
        if let Some((status, errcode)) = specimen.powerless {
            let answer = self.ask(route, specimen, Some(&self.member.token), good).await;
            refused.push(("a member without power", answer, status, errcode.into()));
        }
        refused
    }
}

#[tokio::test]
async fn every_endpoint_refuses_and_changes_nothing() {
    let stage = Stage::set().await;
    let mut wrong = Vec::new();
    for route in &server::routes().0 {
        let Some(specimen) = &route.specimen else {
            wrong.push(format!("{route:?} has no specimen"));
            continue;
        };
        let before = stage.server.digest().await;
        for (what, answer, status, errcode) in stage.refusals(route, specimen).await {
            let json = answer.json();
            let got = json["errcode"].as_str().unwrap_or("no errcode");
            if answer.status != status || got != errcode || !json["error"].is_string() {
                let got = format!("{} {got}", answer.status.as_u16());
                wrong.push(format!("{route:?}, {what}: {got} instead of {status} {errcode}"));
            }
        }
        if stage.server.digest().await != before {
            wrong.push(format!("{route:?} changed the store while it refused"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What an endpoint that takes JSON must say about it.
#[test]
fn endpoints_that_take_json_have_a_body_in_their_specimen() {
    // The last one takes what a web page's form sends.
    const WITHOUT: [&str; 5] = ["/logout", "/logout/all", "/forget", "/create", "/fallback/web"];
    let routes = server::routes().0;
    let lacking = routes.iter().filter(|route| {
        let takes_json =
            ["POST", "PUT"].contains(&route.method.as_str()) && route.body_limit != BodyLimit::Upload;
        let exempt = WITHOUT.iter().any(|end| route.paths[0].ends_with(end));
        takes_json && !exempt && route.specimen.is_none_or(|specimen| specimen.body.is_none())
    });
    assert_eq!(lacking.map(|route| format!("{route:?}")).collect::<Vec<_>>(), Vec::<String>::new());
}
