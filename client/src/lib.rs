//! A client of Nearby, client protocol version 1: what `nearby simulate` and the benches connect with.
//!
//! [`Api`] is the HTTP side, [`Connection`] one socket with the view that it is told. Who loses a connection waits [`backoff`], asks
//! for a gateway again ([`Api::gateway`]) and connects anew; tokens are the caller's business. It does not hide a friend at
//! `visible_until_ms` by itself: it has no clock. See [`View::hide_expired`].

mod api;
mod connection;
mod view;

pub use api::Api;
pub use connection::{Connection, Heard};
pub use view::{Friend, Left, View};

use std::time::Duration;

/// The n-th attempt waits a random time up to this · 2ⁿ ("full jitter"), so that many clients do not come back as one.
pub const BACKOFF: Duration = Duration::from_millis(500);
/// But never up to more than this.
pub const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// A call that has not been answered by then is given up; a gateway and Kafka may take 10 s of that.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// So is a socket that is not open by then.
pub const OPEN_WITHIN: Duration = Duration::from_secs(10);
/// A gateway that was not heard for so long is gone, whatever the network says: it sends a ping every 30 s.
pub const SILENCE_MAX: Duration = Duration::from_secs(75);

/// How long to wait before the n-th attempt, from 0; `random` is from 0 to 1.
pub fn backoff(attempt: u32, random: f64) -> Duration {
    BACKOFF.saturating_mul(2_u32.saturating_pow(attempt)).min(BACKOFF_MAX).mul_f64(random.clamp(0.0, 1.0))
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address is none.
    #[error("{0}: expected http://HOST:PORT")]
    BadUrl(String),
    /// The token does not fit into a header.
    #[error("the token does not fit into a header")]
    BadToken,
    /// The server cannot be reached, or went away.
    #[error("{0}: {1}")]
    Unreachable(String, #[source] std::io::Error),
    /// It is reached, and does not speak HTTP.
    #[error("{0}: {1}")]
    Http(String, #[source] hyper::Error),
    /// It said nothing for so long.
    #[error("{0}: nothing was heard for {1:?}")]
    Silent(String, Duration),
    /// It refused.
    #[error("{call}: {status} {body}")]
    Refused {
        /// Method and address.
        call: String,
        /// The status.
        status: u16,
        /// The problem document.
        body: serde_json::Value,
    },
    /// The socket failed, or the handshake.
    #[error("the socket: {0}")]
    Socket(#[from] Box<tokio_tungstenite::tungstenite::Error>),
    /// The server closed the socket.
    #[error("the server closed the socket with {code} {reason}")]
    Closed {
        /// The close code; 1006 without a close frame.
        code: u16,
        /// A stable code, or empty.
        reason: String,
    },
    /// The server sent what is no frame of the protocol.
    #[error("a frame of the server: {0}: {1}")]
    Frame(String, #[source] serde_json::Error),
}

impl ClientError {
    /// When a gateway that refuses the handshake wants to be asked again.
    pub fn retry_after(&self) -> Option<Duration> {
        let ClientError::Socket(error) = self else { return None };
        let tokio_tungstenite::tungstenite::Error::Http(response) = error.as_ref() else { return None };
        let seconds = response.headers().get("retry-after")?.to_str().ok()?.parse().ok()?;
        Some(Duration::from_secs(seconds))
    }
}

/// What comes of this, if it comes in time.
async fn within<T>(
    limit: Duration,
    what: &str,
    done: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    let in_time = tokio::time::timeout(limit, done).await;
    in_time.unwrap_or_else(|_| Err(ClientError::Silent(what.to_owned(), limit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_wait_up_to_a_limit_that_doubles() {
        let waits: Vec<u128> = (0..7).map(|attempt| backoff(attempt, 1.0).as_millis()).collect();
        assert_eq!(waits, [500, 1_000, 2_000, 4_000, 8_000, 10_000, 10_000]);
        assert_eq!(backoff(u32::MAX, 1.0), BACKOFF_MAX);
        assert_eq!(backoff(3, 0.0), Duration::ZERO);
        assert_eq!(backoff(1, 0.25).as_millis(), 250);
    }
}
