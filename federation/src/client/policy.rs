//! Asking a room's policy server to sign an event.

use std::time::Duration;

use hearth_dag::POLICY_KEY_ID;
use ruma::ServerName;

use super::{Call, Client, RequestError};
use crate::network::Limits;

/// It may look at what the event links to, so it has as long as an ordinary question. Its answer is a signature.
pub const POLICY: Limits = Limits { timeout: Duration::from_secs(30), max_bytes: 64 * 1024 };

impl Client {
    /// `POST /_matrix/policy/v1/sign`: the signature of a policy server on an event. None if the answer has none: servers
    /// of before the specification refuse so.
    pub async fn policy_sign(&self, server: &ServerName, pdu: &str) -> Result<Option<String>, RequestError> {
        let call = Call::post("/_matrix/policy/v1/sign".to_owned(), pdu).limits(POLICY);
        let answer: serde_json::Value = self.read(server, call).await?;
        Ok(answer[server.as_str()][POLICY_KEY_ID].as_str().map(str::to_owned))
    }
}
