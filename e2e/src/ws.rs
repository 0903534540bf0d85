//! A phone's end of the stream: JSON frames over a WebSocket.

use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::HeaderValue;
use http::header::HeaderName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::{Request, Response};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, client_async, connect_async};

const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// A connected client. Pings are answered while it reads.
#[derive(Debug)]
pub struct Socket(Stream);

type Stream = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// The server answered the upgrade with something else: `error.downcast_ref::<Refused>()`.
#[derive(Debug, thiserror::Error)]
#[error("the server refused the WebSocket with status {status}: {body}")]
pub struct Refused {
    /// The HTTP status.
    pub status: u16,
    /// The body, as text.
    pub body: String,
    /// The header `Retry-After`.
    pub retry_after_s: Option<u64>,
}

/// The server closed the socket: `error.downcast_ref::<Closed>()`. Without a close frame the code is 1006, as browsers
/// report it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server closed the WebSocket with code {code} and reason `{reason}`")]
pub struct Closed {
    /// The close code.
    pub code: u16,
    /// The reason.
    pub reason: String,
}

impl Socket {
    /// Connects as a browser does: the token is offered as a subprotocol beside `nearby.v1`, which the server must select.
    pub async fn connect(url: &str, token: &str) -> anyhow::Result<Socket> {
        let (socket, selected) = upgrade(url, "sec-websocket-protocol", &format!("nearby.v1, bearer.{token}")).await?;
        if selected.as_deref() != Some("nearby.v1") {
            bail!("the server selected the subprotocol {selected:?} instead of nearby.v1");
        }
        Ok(socket)
    }

    /// Connects as a phone does: the token is in the `Authorization` header.
    pub async fn connect_with_header(url: &str, token: &str) -> anyhow::Result<Socket> {
        let (socket, _) = upgrade(url, "authorization", &format!("Bearer {token}")).await?;
        Ok(socket)
    }

    /// Connects over a stream of the test's making.
    pub async fn over(stream: TcpStream, url: &str, token: &str) -> anyhow::Result<Socket> {
        let request = request(url, "authorization", &format!("Bearer {token}"))?;
        let (socket, _) = upgraded(url, client_async(request, MaybeTlsStream::Plain(stream)).await)?;
        Ok(socket)
    }

    /// The next frame; an error when the limit passes or the server closes first.
    pub async fn next_frame(&mut self, limit: Duration) -> anyhow::Result<Value> {
        self.frame_before(Instant::now() + limit).await.with_context(|| format!("wait {limit:?} for a frame"))
    }

    /// The next frame of this type; others before it are passed over, and named when it does not come.
    pub async fn wait_frame(&mut self, kind: &str, limit: Duration) -> anyhow::Result<Value> {
        let deadline = Instant::now() + limit;
        let mut passed = Vec::new();
        loop {
            let frame = self.frame_before(deadline).await;
            let frame =
                frame.with_context(|| format!("wait {limit:?} for a `{kind}` frame, having passed over {passed:?}"))?;
            if frame["type"] == kind {
                return Ok(frame);
            }
            passed.push(frame["type"].as_str().unwrap_or("(no type)").to_owned());
        }
    }

    /// The friend as the next frame that shows it does: an update, or a snapshot, which the server may send in its place at any
    /// time (a batch was lost, a processor took over). Frames before that are passed over, and shown when it does not come.
    pub async fn wait_friend(&mut self, friend: i64, limit: Duration) -> anyhow::Result<Value> {
        let (deadline, id) = (Instant::now() + limit, friend.to_string());
        let mut passed = Vec::new();
        loop {
            let frame = self.frame_before(deadline).await;
            let frame =
                frame.with_context(|| format!("wait {limit:?} for friend {id}, having passed over {passed:?}"))?;
            let mut shown = ["moved", "friends"].into_iter().filter_map(|key| frame[key].as_array()).flatten();
            if let Some(seen) = shown.find(|seen| seen["id"] == id) {
                return Ok(seen.clone());
            }
            passed.push(frame.to_string());
        }
    }

    /// Reads until the server closes, and returns how. Frames before that are passed over.
    pub async fn wait_closed(&mut self, limit: Duration) -> anyhow::Result<Closed> {
        let deadline = Instant::now() + limit;
        loop {
            if let Err(error) = self.frame_before(deadline).await {
                return error.downcast::<Closed>().with_context(|| format!("wait {limit:?} for the server to close"));
            }
        }
    }

    /// Sends a frame.
    pub async fn send(&mut self, frame: &Value) -> anyhow::Result<()> {
        self.send_text(&frame.to_string()).await
    }

    /// Sends text that need not be a frame.
    pub async fn send_text(&mut self, text: &str) -> anyhow::Result<()> {
        self.0.send(Message::text(text)).await.context("send text")
    }

    /// Sends bytes, which are no frame.
    pub async fn send_binary(&mut self, bytes: impl Into<Bytes>) -> anyhow::Result<()> {
        self.0.send(Message::binary(bytes)).await.context("send bytes")
    }

    /// Sends a ping.
    pub async fn ping(&mut self) -> anyhow::Result<()> {
        self.0.send(Message::Ping(Bytes::new())).await.context("send a ping")
    }

    /// Closes in order. To vanish without a word, drop it.
    pub async fn close(mut self) -> anyhow::Result<()> {
        self.0.close(None).await.context("close the WebSocket")
    }

    async fn frame_before(&mut self, deadline: Instant) -> anyhow::Result<Value> {
        loop {
            let vanished = || Closed { code: 1006, reason: String::new() };
            match timeout_at(deadline, self.0.next()).await.context("nothing came")? {
                Some(Ok(Message::Text(text))) => {
                    return serde_json::from_str(&text).with_context(|| format!("no JSON: {text}"));
                }
                Some(Ok(Message::Close(Some(frame)))) => {
                    bail!(Closed { code: frame.code.into(), reason: frame.reason.to_string() })
                }
                Some(Ok(Message::Close(None))) => bail!(Closed { code: 1005, reason: String::new() }),
                Some(Ok(Message::Binary(bytes))) => bail!("{} bytes where only text belongs", bytes.len()),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error).context(vanished()),
                None => bail!(vanished()),
            }
        }
    }
}

async fn upgrade(url: &str, header: &'static str, value: &str) -> anyhow::Result<(Socket, Option<String>)> {
    let answer = tokio::time::timeout(CONNECT_LIMIT, connect_async(request(url, header, value)?)).await;
    upgraded(url, answer.with_context(|| format!("{url} did not answer within {CONNECT_LIMIT:?}"))?)
}

fn request(url: &str, header: &'static str, value: &str) -> anyhow::Result<Request> {
    let mut request = url.into_client_request().with_context(|| format!("no address: {url}"))?;
    let value = HeaderValue::from_str(value).context("the token does not fit into a header")?;
    request.headers_mut().insert(HeaderName::from_static(header), value);
    Ok(request)
}

fn upgraded(url: &str, answer: Result<(Stream, Response), Error>) -> anyhow::Result<(Socket, Option<String>)> {
    match answer {
        Ok((socket, response)) => {
            let selected = response.headers().get("sec-websocket-protocol");
            let selected = selected.and_then(|selected| selected.to_str().ok()).map(str::to_owned);
            Ok((Socket(socket), selected))
        }
        Err(Error::Http(response)) => {
            let body = response.body().as_deref().unwrap_or_default();
            let retry_after = response.headers().get("retry-after");
            let retry_after_s = retry_after.and_then(|seconds| seconds.to_str().ok()?.parse().ok());
            let (status, body) = (response.status().as_u16(), String::from_utf8_lossy(body).into_owned());
            bail!(Refused { status, body, retry_after_s })
        }
        Err(error) => Err(error).with_context(|| format!("connect to {url}")),
    }
}
