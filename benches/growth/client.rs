//! The few requests that the benches make.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::Result;

#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    next: Arc<AtomicU64>,
}

#[derive(Clone)]
pub struct User {
    client: Client,
    pub token: String,
}

impl Client {
    #[expect(clippy::disallowed_methods, reason = "this asks only the server that the bench has started")]
    pub fn new(base: &str) -> Result<Self> {
        // No other process has set one; a second call answers with an error that is no matter.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([])
            .timeout(Duration::from_secs(60))
            .pool_max_idle_per_host(256)
            .build()?;
        Ok(Self { http, base: base.to_owned(), next: Arc::default() })
    }

    /// A number not given before.
    fn fresh(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    pub async fn get_status(&self, path: &str) -> Result<(u16, String)> {
        let answer = self.http.get(format!("{}{path}", self.base)).send().await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    pub async fn register(&self, localpart: &str) -> Result<User> {
        let mut body = json!({ "username": localpart, "password": "a long and dull password" });
        let url = format!("{}/_matrix/client/v3/register", self.base);
        let challenge: Value = self.http.post(&url).json(&body).send().await?.json().await?;
        body["auth"] = json!({ "type": "m.login.dummy", "session": challenge["session"] });
        let answer: Value = self.http.post(&url).json(&body).send().await?.json().await?;
        let token = answer["access_token"].as_str().ok_or_else(|| format!("not registered: {answer}"))?;
        Ok(User { client: self.clone(), token: token.to_owned() })
    }
}

impl User {
    async fn call(&self, request: reqwest::RequestBuilder) -> Result<Value> {
        let answer = request.bearer_auth(&self.token).send().await?;
        let status = answer.status();
        let body: Value = answer.json().await?;
        if status.is_success() { Ok(body) } else { Err(format!("{status}: {body}").into()) }
    }

    pub async fn get(&self, path: &str) -> Result<Value> {
        self.call(self.client.http.get(format!("{}{path}", self.client.base))).await
    }

    pub async fn create_room(&self) -> Result<String> {
        let url = format!("{}/_matrix/client/v3/createRoom", self.client.base);
        let answer = self.call(self.client.http.post(url).json(&json!({ "preset": "public_chat" }))).await?;
        Ok(answer["room_id"].as_str().unwrap_or_default().to_owned())
    }

    /// Sends a message of 120 bytes of text; how long the answer took.
    pub async fn send(&self, room: &str) -> Result<Duration> {
        let number = self.client.fresh();
        let url = format!(
            "{}/_matrix/client/v3/rooms/{}/send/m.room.message/bench-{number}",
            self.client.base,
            escaped(room)
        );
        let body = format!("{:<120}", format!("message {number}")).replace(' ', ".");
        let content = json!({ "msgtype": "m.text", "body": body });
        let start = Instant::now();
        self.call(self.client.http.put(url).json(&content)).await?;
        Ok(start.elapsed())
    }

    /// One `/sync`; its token for the next.
    pub async fn sync(&self, since: Option<&str>) -> Result<String> {
        let since = since.map(|since| format!("&since={since}")).unwrap_or_default();
        let answer = self.get(&format!("/_matrix/client/v3/sync?timeout=0{since}")).await?;
        Ok(answer["next_batch"].as_str().unwrap_or_default().to_owned())
    }
}

/// Percent-encoded for a path.
pub fn escaped(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// Sends `count` messages with `concurrency` senders at once; the time of each.
pub async fn flood(
    users: &[User],
    rooms: &[String],
    count: u64,
    concurrency: usize,
) -> Result<Vec<Duration>> {
    let left = Arc::new(AtomicU64::new(count));
    let mut senders = tokio::task::JoinSet::new();
    for n in 0..concurrency {
        let (user, room, left) =
            (users[n % users.len()].clone(), rooms[n % rooms.len()].clone(), left.clone());
        senders.spawn(async move {
            let mut times = Vec::new();
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
            {
                times.push(user.send(&room).await?);
            }
            Result::Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(done) = senders.join_next().await {
        times.extend(done??);
    }
    Ok(times)
}

impl User {
    /// The same user at a server that was started again.
    pub fn on(&self, client: &Client) -> Self {
        Self { client: client.clone(), token: self.token.clone() }
    }
}
