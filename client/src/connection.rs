//! One socket, and the view that it is told.

use crate::{ClientError, Friend, Left, View};
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use tokio::net::TcpStream;
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
    /// When the gateway refuses, or cannot be reached.
    pub async fn open(stream_url: &str, token: &str) -> Result<Connection, ClientError> {
        let mut request = stream_url.into_client_request().map_err(Box::new)?;
        let offer = HeaderValue::try_from(format!("nearby.v1, bearer.{token}")).map_err(|_| ClientError::BadToken)?;
        request.headers_mut().insert("Sec-WebSocket-Protocol", offer);
        let config = WebSocketConfig::default().read_buffer_size(READ_BUFFER_BYTES);
        let connecting = tokio_tungstenite::connect_async_with_config(request, Some(config), true);
        let (socket, _) = connecting.await.map_err(Box::new)?;
        Ok(Connection { socket, view: View::default(), reports: 0 })
    }

    /// Reports a place, and returns what [`Heard::Accepted`] will call it.
    ///
    /// # Errors
    /// When the socket is gone.
    pub async fn report(&mut self, lat: f64, lon: f64, reported_at_ms: i64) -> Result<u64, ClientError> {
        self.reports += 1;
        let report = serde_json::json!({"type": "location", "lat": lat, "lon": lon,
            "reported_at_ms": reported_at_ms, "ref": self.reports});
        self.socket.send(Message::text(report.to_string())).await.map_err(Box::new)?;
        Ok(self.reports)
    }

    /// What comes next; pings are answered meanwhile. May be dropped while it waits, and called again.
    ///
    /// # Errors
    /// When the server closes, goes away, or sends nonsense.
    pub async fn next(&mut self) -> Result<Heard, ClientError> {
        loop {
            match self.socket.next().await {
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
