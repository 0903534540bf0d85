//! One simulated person: a WebSocket that reports and keeps the view that it is told.

use crate::simulate::api::Api;
use crate::simulate::statistics::Statistics;
use anyhow::Context;
use futures_util::{SinkExt, StreamExt};
use nearby_schemas::{TimestampMs, UserId};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message, http::HeaderValue};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

/// A lost socket is opened again after up to so long.
const RECONNECT_WITHIN_MS: u64 = 1_000;

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// A place to report, in degrees.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub lat: f64,
    pub lon: f64,
}

/// What a client sees of a friend.
#[derive(Clone, Debug, Deserialize)]
pub struct SeenFriend {
    id: String,
    pub lat: f64,
    pub lon: f64,
    pub distance_m: f64,
    updated_at_ms: i64,
}

/// Friends by id.
pub type View = BTreeMap<String, SeenFriend>;

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Frame {
    Welcome,
    Snapshot {
        friends: Vec<SeenFriend>,
    },
    Update {
        #[serde(default)]
        moved: Vec<SeenFriend>,
        #[serde(default)]
        left: Vec<Left>,
    },
    Accepted,
    Error {
        code: String,
    },
    Drain {
        reconnect_after_ms: u64,
    },
}

#[derive(Deserialize)]
struct Left {
    id: String,
}

/// A simulated person.
pub struct Client {
    api: Api,
    user: UserId,
    statistics: Arc<Statistics>,
    view: View,
    reports_sent: u64,
    /// How long to wait before the next connection, where the server has said so.
    pause: Option<Duration>,
}

impl Client {
    pub fn new(api: Api, user: UserId, statistics: Arc<Statistics>) -> Client {
        Client { api, user, statistics, view: View::new(), reports_sent: 0, pause: None }
    }

    /// Says on `connected` when the first snapshot is there; reports each step; ends with its view when the steps end.
    pub async fn run(mut self, mut steps: mpsc::Receiver<Step>, connected: mpsc::Sender<()>) -> (UserId, View) {
        let mut connected = Some(connected);
        loop {
            match self.session(&mut steps, &mut connected).await {
                Ok(()) => return (self.user, self.view),
                Err(error) => {
                    tracing::debug!(user = self.user.0, "reconnecting: {error:#}");
                    self.statistics.reconnects.fetch_add(1, Ordering::Relaxed);
                    let pause = self.pause.take().unwrap_or_else(|| random_ms(RECONNECT_WITHIN_MS));
                    tokio::time::sleep(pause).await;
                    if steps.is_closed() && steps.is_empty() {
                        return (self.user, self.view);
                    }
                }
            }
        }
    }

    async fn session(
        &mut self,
        steps: &mut mpsc::Receiver<Step>,
        connected: &mut Option<mpsc::Sender<()>>,
    ) -> anyhow::Result<()> {
        let mut socket = self.connect().await?;
        loop {
            tokio::select! {
                step = steps.recv() => match step {
                    Some(step) => self.report(&mut socket, step).await?,
                    None => {
                        socket.close(None).await.context("closing")?;
                        return Ok(());
                    }
                },
                message = socket.next() => {
                    let message = message.context("the server closed the socket")??;
                    if let Message::Text(text) = message {
                        let snapshot = self.hear(&text)?;
                        if snapshot && let Some(connected) = connected.take() {
                            connected.send(()).await.context("the crowd is gone")?;
                        }
                    }
                }
            }
        }
    }

    async fn connect(&mut self) -> anyhow::Result<Socket> {
        let url = self.api.stream_url().await?;
        let token = self.api.token(self.user, false).await?;
        let mut request = url.as_str().into_client_request().context("the gateway's address")?;
        let offer = HeaderValue::try_from(format!("nearby.v1, bearer.{token}")).context("the token")?;
        request.headers_mut().insert("Sec-WebSocket-Protocol", offer);
        let config = WebSocketConfig::default().read_buffer_size(4096);
        match tokio_tungstenite::connect_async_with_config(request, Some(config), true).await {
            Ok((socket, _)) => Ok(socket),
            Err(error) => {
                self.pause = retry_after(&error).map(|pause| pause + random_ms(RECONNECT_WITHIN_MS));
                Err(error.into())
            }
        }
    }

    async fn report(&mut self, socket: &mut Socket, step: Step) -> anyhow::Result<()> {
        self.reports_sent += 1;
        let frame = serde_json::json!({
            "type": "location",
            "lat": step.lat,
            "lon": step.lon,
            "reported_at_ms": TimestampMs::now().0,
            "ref": self.reports_sent,
        });
        socket.send(Message::text(frame.to_string())).await.context("reporting")?;
        self.statistics.report_sent();
        Ok(())
    }

    /// Takes in a frame; true if it was a snapshot.
    fn hear(&mut self, text: &str) -> anyhow::Result<bool> {
        self.statistics.frames.fetch_add(1, Ordering::Relaxed);
        match serde_json::from_str(text).with_context(|| format!("a frame of the server: {text}"))? {
            Frame::Welcome => {}
            Frame::Drain { reconnect_after_ms } => self.pause = Some(Duration::from_millis(reconnect_after_ms)),
            Frame::Snapshot { friends } => {
                self.view = friends.into_iter().map(|friend| (friend.id.clone(), friend)).collect();
                return Ok(true);
            }
            Frame::Update { moved, left } => {
                self.statistics.pushes.fetch_add((moved.len() + left.len()) as u64, Ordering::Relaxed);
                let now = TimestampMs::now();
                for friend in moved {
                    // A new distance alone, because we moved, is no arrival of the friend's report.
                    let known = self.view.get(&friend.id).map(|known| known.updated_at_ms);
                    if known.is_some_and(|known| known != friend.updated_at_ms) {
                        self.statistics.arrived_after_ms(now.0 - friend.updated_at_ms);
                    }
                    self.view.insert(friend.id.clone(), friend);
                }
                for friend in left {
                    self.view.remove(&friend.id);
                }
            }
            Frame::Accepted => {
                self.statistics.accepted.fetch_add(1, Ordering::Relaxed);
            }
            Frame::Error { code } => self.statistics.refused(&code),
        }
        Ok(false)
    }
}

/// When a gateway that refuses the handshake wants to be asked again.
fn retry_after(error: &Error) -> Option<Duration> {
    let Error::Http(response) = error else { return None };
    let seconds = response.headers().get("retry-after")?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

fn random_ms(below: u64) -> Duration {
    Duration::from_millis(rand::RngExt::random_range(&mut rand::rng(), 0..below))
}
