//! One socket, and the view that it is told.

use crate::{ClientError, Friend, Left, OPEN_WITHIN, SILENCE_MAX, View, within};
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message, http::HeaderValue};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

/// There may be very many clients in one process, and each hears little.
const READ_BUFFER_BYTES: usize = 4096;

/// A connected client.
#[derive(Debug)]
pub struct Connection {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// What it sees; kept by [`Connection::next`].
    pub view: View,
    reports: u64,
    heard_at: Instant,
    silence_max: Duration,
}

/// What came from the server.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    /// First of all.
    Welcome {
        /// The server's clock.
        server_time_ms: i64,
    },
    /// The view is another one.
    Snapshot,
    /// The view has changed.
    Update {
        /// How many friends have moved or left.
        changes: usize,
        /// Times of the reports that arrived with it.
        arrived_ms: Vec<i64>,
    },
    /// A report is in the log.
    Accepted {
        /// What [`Connection::report`] called it.
        reference: u64,
    },
    /// A frame was refused.
    Error {
        /// A stable code.
        code: String,
    },
    /// The gateway goes away; after that time there is another.
    Drain {
        /// So long.
        reconnect_after_ms: u64,
    },
    /// Of a newer server.
    Other,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Frame {
    Welcome {
        server_time_ms: i64,
    },
    Snapshot {
        friends: Vec<Friend>,
    },
    Update {
        #[serde(default)]
        moved: Vec<Friend>,
        #[serde(default)]
        left: Vec<Left>,
    },
    Accepted {
        #[serde(rename = "ref")]
        reference: u64,
    },
    Error {
        code: String,
    },
    Drain {
        reconnect_after_ms: u64,
    },
    #[serde(other)]
    Other,
}

impl Connection {
    /// Opens a socket at the address that [`crate::Api::gateway`] named.
    ///
    /// # Errors
    /// When the gateway refuses, or cannot be reached, or does not answer within [`OPEN_WITHIN`].
    pub async fn open(stream_url: &str, token: &str) -> Result<Connection, ClientError> {
        within(OPEN_WITHIN, stream_url, Connection::opened(stream_url, token)).await
    }

    async fn opened(stream_url: &str, token: &str) -> Result<Connection, ClientError> {
        let mut request = stream_url.into_client_request().map_err(Box::new)?;
        let offer = HeaderValue::try_from(format!("nearby.v1, bearer.{token}")).map_err(|_| ClientError::BadToken)?;
        request.headers_mut().insert("Sec-WebSocket-Protocol", offer);
        let config = WebSocketConfig::default().read_buffer_size(READ_BUFFER_BYTES);
        let connecting = tokio_tungstenite::connect_async_with_config(request, Some(config), true);
        let (socket, _) = connecting.await.map_err(Box::new)?;
        let heard_at = Instant::now();
        Ok(Connection { socket, view: View::default(), reports: 0, heard_at, silence_max: SILENCE_MAX })
    }

    /// Reports a place, and returns what [`Heard::Accepted`] will call it.
    ///
    /// # Errors
    /// When the socket is gone, or takes nothing for [`SILENCE_MAX`].
    pub async fn report(&mut self, lat: f64, lon: f64, reported_at_ms: i64) -> Result<u64, ClientError> {
        self.reports += 1;
        let report = serde_json::json!({"type": "location", "lat": lat, "lon": lon,
            "reported_at_ms": reported_at_ms, "ref": self.reports});
        let sent = async { Ok(self.socket.send(Message::text(report.to_string())).await.map_err(Box::new)?) };
        within(self.silence_max, "the socket", sent).await?;
        Ok(self.reports)
    }

    /// What comes next; pings are answered meanwhile. May be dropped while it waits, and called again.
    ///
    /// # Errors
    /// When the server closes, goes away, says nothing for [`SILENCE_MAX`], or sends nonsense.
    pub async fn next(&mut self) -> Result<Heard, ClientError> {
        loop {
            let Ok(message) = timeout_at(self.heard_at + self.silence_max, self.socket.next()).await else {
                return Err(ClientError::Silent("the socket".to_owned(), self.silence_max));
            };
            self.heard_at = Instant::now();
            match message {
                Some(Ok(Message::Text(text))) => return self.hear(&text),
                Some(Ok(Message::Close(Some(frame)))) => {
                    return Err(ClientError::Closed { code: frame.code.into(), reason: frame.reason.to_string() });
                }
                Some(Ok(_)) => {}
                Some(Err(Error::ConnectionClosed)) | None => {
                    return Err(ClientError::Closed { code: 1006, reason: String::new() });
                }
                Some(Err(error)) => return Err(Box::new(error).into()),
            }
        }
    }

    /// Closes in order.
    ///
    /// # Errors
    /// When the socket is gone already.
    pub async fn close(mut self) -> Result<View, ClientError> {
        self.socket.close(None).await.map_err(Box::new)?;
        Ok(self.view)
    }

    fn hear(&mut self, text: &str) -> Result<Heard, ClientError> {
        let frame = serde_json::from_str(text).map_err(|error| ClientError::Frame(text.to_owned(), error))?;
        Ok(match frame {
            Frame::Welcome { server_time_ms } => Heard::Welcome { server_time_ms },
            Frame::Snapshot { friends } => {
                self.view.replace(friends);
                Heard::Snapshot
            }
            Frame::Update { moved, left } => {
                let changes = moved.len() + left.len();
                Heard::Update { changes, arrived_ms: self.view.update(moved, &left) }
            }
            Frame::Accepted { reference } => Heard::Accepted { reference },
            Frame::Error { code } => Heard::Error { code },
            Frame::Drain { reconnect_after_ms } => Heard::Drain { reconnect_after_ms },
            Frame::Other => Heard::Other,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use tokio::net::TcpListener;
    use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};

    const SILENCE: Duration = Duration::from_millis(500);

    #[tokio::test]
    async fn a_gateway_that_does_not_shake_hands_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let url = format!("ws://{}/v1/stream", listener.local_addr().expect("bound"));
        // The system accepts for it.
        let opening = tokio::time::timeout(2 * OPEN_WITHIN, Connection::open(&url, "token")).await;
        let refused = opening.expect("it is given up").expect_err("nobody answers");
        assert!(matches!(refused, ClientError::Silent(_, OPEN_WITHIN)), "{refused}");
    }

    #[tokio::test]
    async fn a_gateway_that_falls_silent_is_gone_and_one_that_pings_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let url = format!("ws://{}/v1/stream", listener.local_addr().expect("bound"));
        let server = tokio::spawn(async move {
            let (socket, _) = listener.accept().await.expect("a client");
            // A client that has offered subprotocols wants one of them.
            #[expect(clippy::result_large_err, reason = "it is the callback's type")]
            let choose = |_: &Request, mut response: Response| {
                response.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static("nearby.v1"));
                Ok(response)
            };
            let mut socket = tokio_tungstenite::accept_hdr_async(socket, choose).await.expect("a handshake");
            for _ in 0..8 {
                tokio::time::sleep(SILENCE / 4).await;
                socket.send(Message::Ping(Bytes::new())).await.expect("sent");
            }
            socket.send(Message::text(r#"{"type":"snapshot","friends":[]}"#)).await.expect("sent");
            socket
        });
        let mut connection = Connection::open(&url, "token").await.expect("opens");
        connection.silence_max = SILENCE;
        assert_eq!(connection.next().await.expect("it was heard all the time"), Heard::Snapshot);
        let gone = connection.next().await.expect_err("nothing comes any more");
        assert!(matches!(gone, ClientError::Silent(_, SILENCE)), "{gone}");
        drop(server.await);
    }
}
