//! Bodies of servers' requests whose signature is not checked yet, for it covers the whole body.
//! * All of them together take so many bytes, counted as they come in. Of what is free, whoever sends from one address may
//!   hold as much as is left to others ([`Shares`]): one sender has half at most.
//! * The bytes are given back when the signature is checked, or the request refused; what is good is counted elsewhere
//!   from then on.

use std::{net::IpAddr, time::Duration};

use axum::body::{Body, Bytes};
use hearth_federation::shares::{Share, Shares, network_of};

use super::{MatrixError, body, client_address::ClientAddress};

/// Bytes of all unchecked bodies: eight of the largest transactions, or thousands of ordinary ones.
pub const UNSIGNED_BYTES: usize = 128 * 1024 * 1024;
/// When to come again: bodies come in, or are given up, within seconds.
const BUSY: Duration = Duration::from_secs(5);

/// The bytes of unchecked bodies, by where they come from.
pub struct Unsigned(Shares<IpAddr>);

impl Default for Unsigned {
    fn default() -> Self {
        Self(Shares::new(UNSIGNED_BYTES))
    }
}

impl Unsigned {
    /// Reads a body whole; what it takes is given back with the second part.
    pub async fn whole(
        &self,
        body: Body,
        from: ClientAddress,
    ) -> Result<(Bytes, Share<IpAddr>), MatrixError> {
        let mut share = self.0.open(network_of(from.0));
        let busy = || MatrixError::limit_exceeded(BUSY);
        let body = body::whole_if(body, |bytes| share.grow(bytes).then_some(()).ok_or_else(busy)).await?;
        Ok((body, share))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::{StreamExt as _, stream};
    use http::StatusCode;

    use super::*;

    const MIB: usize = 1 << 20;

    fn from(address: &str) -> ClientAddress {
        ClientAddress(address.parse().unwrap())
    }

    /// So many pieces of a mebibyte, and then nothing more and no end.
    fn stuck(pieces: usize) -> Body {
        let piece = Bytes::from(vec![b' '; MIB]);
        let pieces = stream::repeat(piece).take(pieces).map(Ok::<_, Infallible>);
        Body::from_stream(pieces.chain(stream::pending()))
    }

    #[tokio::test(start_paused = true)]
    async fn who_sends_much_and_signs_nothing_holds_up_nobody_else() {
        let unsigned = std::sync::Arc::new(Unsigned::default());
        let mut sending = Vec::new();
        for _ in 0..4 {
            let unsigned = unsigned.clone();
            sending.push(tokio::spawn(async move { unsigned.whole(stuck(15), from("192.0.2.1")).await }));
        }
        // Time passes when nobody has anything left to do: all have sent what they will.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let refused = unsigned.whole(Body::from(vec![b' '; 5 * MIB]), from("192.0.2.1")).await.err().unwrap();
        assert_eq!((refused.status, refused.errcode), (StatusCode::TOO_MANY_REQUESTS, "M_LIMIT_EXCEEDED"));
        assert!(refused.extra.contains_key("retry_after_ms"));
        let (body, share) = unsigned.whole(Body::from(vec![b' '; 5 * MIB]), from("192.0.2.2")).await.unwrap();
        assert_eq!(body.len(), 5 * MIB);
        drop(share);
        sending.into_iter().for_each(|sending| sending.abort());
        tokio::time::sleep(Duration::from_secs(1)).await;
        unsigned.whole(Body::from(vec![b' '; 60 * MIB]), from("192.0.2.1")).await.unwrap();
    }
}
