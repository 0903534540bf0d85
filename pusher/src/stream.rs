//! `GET /v1/stream`: one client's WebSocket, from the handshake to the close frame.

use crate::client_frame::{self, ClientFrame};
use crate::flusher::WebSocketLine;
use crate::frames;
use crate::gateway::Gateway;
use crate::handshake::{self, Accepted};
use crate::hub::Connection;
use crate::line::{Half, Line};
use crate::wire::{Tap, WATCHED_PING_INTERVAL};
use futures_util::{SinkExt, StreamExt};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use nearby_ingest::reports::Submitted;
use nearby_schemas::TimestampMs;
use nearby_service::auth::Caller;
use nearby_service::problem::Problem;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message, error::CapacityError};
use warp::reply::Response;

/// Larger frames close the socket.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;
/// Bytes read at once; many sockets are idle, so each holds little.
const READ_BUFFER_BYTES: usize = 1024;
/// A peer from whom nothing was heard is asked whether it is there.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// Nothing heard for so long: the peer is gone.
const SILENCE_MAX: Duration = Duration::from_secs(75);
/// Reports of one socket that may wait for the broker's word; the socket is not read beyond that.
const UNACKNOWLEDGED_MAX: usize = 256;
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

type Socket = WebSocketStream<Half<TokioIo<hyper::upgrade::Upgraded>>>;

/// Why a socket ends.
enum End {
    /// The peer closed, or is gone.
    Peer,
    /// We close, with this code and reason.
    Close(CloseCode, &'static str),
    /// The peer does not take what we send, not even a close frame.
    Stuck,
}

/// Answers the handshake; a socket then lives on in a task of its own.
pub async fn open(gateway: Arc<Gateway>, mut request: http::Request<Incoming>) -> Response {
    let Accepted { caller, connection, response } = match handshake::check(&gateway, &request) {
        Ok(accepted) => accepted,
        Err(problem) => return problem.into_response(),
    };
    let tap = gateway.wire.as_ref().and_then(|wire| wire.tap(caller.user, &request));
    if let Some(tap) = &tap {
        tap.response(&response);
    }
    let upgrade = hyper::upgrade::on(&mut request);
    let tasks = gateway.tasks.clone();
    tasks.spawn(async move {
        match upgrade.await {
            Ok(upgraded) => serve(gateway, upgraded, caller, connection, tap).await,
            Err(error) => tracing::debug!(%error, "handshake"),
        }
    });
    response
}

async fn serve(
    gateway: Arc<Gateway>,
    upgraded: hyper::upgrade::Upgraded,
    caller: Caller,
    connection: Connection,
    tap: Option<Tap>,
) {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_write_buffer_size(1024 * 1024)
        .max_message_size(Some(FRAME_BYTES_MAX))
        .max_frame_size(Some(FRAME_BYTES_MAX));
    let line = Line::new(TokioIo::new(upgraded), tap);
    let socket = WebSocketStream::from_raw_socket(Half(Arc::clone(&line)), Role::Server, Some(config)).await;
    let (answers, answered) = mpsc::channel(UNACKNOWLEDGED_MAX);
    let mut client = Client { caller, socket, connection, line, answers, heard_at: Instant::now(), gateway };
    let end = client.run(answered).await;
    // The session ends here, however long the farewell takes; and nothing comes after a farewell.
    let Client { socket, connection, line, .. } = client;
    drop(connection);
    line.set_open(false);
    close(socket, end, line.tap.as_ref()).await;
}

struct Client {
    gateway: Arc<Gateway>,
    caller: Caller,
    socket: Socket,
    connection: Connection,
    line: Arc<WebSocketLine>,
    /// Answers to reports, in the order in which the broker acknowledges them; silence is an answer too, as it frees a place.
    answers: mpsc::Sender<Option<String>>,
    heard_at: Instant,
}

impl Client {
    async fn run(&mut self, mut answered: mpsc::Receiver<Option<String>>) -> End {
        let session = self.connection.session();
        let gateway = Arc::clone(&self.gateway);
        let welcome = frames::welcome(&gateway.id, &session, &gateway.settings.rules, TimestampMs::now());
        if let Err(end) = self.send(welcome).await {
            return end;
        }
        gateway.hub.attach(&self.connection, &self.line);
        let line = Arc::clone(&self.line);
        let turn_to_go = gateway.turn_to_go();
        tokio::pin!(turn_to_go);
        let watched = self.line.tap.is_some();
        let mut ping = tokio::time::interval(if watched { WATCHED_PING_INTERVAL } else { PING_INTERVAL });
        ping.reset();
        loop {
            let expiry = tokio::time::sleep(until(self.caller.expires_at));
            let step = tokio::select! {
                biased;
                () = &mut turn_to_go => return self.drain().await,
                () = expiry => Err(End::Close(CloseCode::Policy, "token_expired")),
                () = line.stuck() => self.send_rest().await,
                Some(answer) = answered.recv() => match answer {
                    Some(answer) => self.send(answer).await,
                    None => Ok(()),
                },
                // Before what is heard, or who never stops talking is never asked whether it reads.
                _ = ping.tick() => self.ping().await,
                // Not read while too many reports wait for the broker's word.
                message = self.socket.next(), if self.answers.capacity() > 0 => self.heard(message).await,
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    async fn heard(&mut self, message: Option<Result<Message, Error>>) -> Result<(), End> {
        self.heard_at = Instant::now();
        if let (Some(tap), Some(Ok(message))) = (&self.line.tap, &message) {
            tap.message("received", message);
        }
        match message {
            Some(Ok(Message::Text(text))) => self.frame(text.as_str()).await,
            Some(Ok(Message::Binary(_))) => {
                self.count_other().await?;
                self.send(frames::error("binary_frame", "frames are JSON text", None)).await
            }
            // It is answered.
            Some(Ok(Message::Ping(_))) => self.count_other().await,
            Some(Ok(Message::Pong(_) | Message::Frame(_))) => Ok(()),
            Some(Ok(Message::Close(_))) | None => Err(End::Peer),
            Some(Err(Error::Capacity(CapacityError::MessageTooLong { .. }))) => {
                Err(End::Close(CloseCode::Size, "frame_too_large"))
            }
            Some(Err(Error::Utf8(_))) => Err(End::Close(CloseCode::Invalid, "bad_utf8")),
            Some(Err(Error::Protocol(_))) => Err(End::Close(CloseCode::Protocol, "protocol_error")),
            Some(Err(_)) => Err(End::Peer),
        }
    }

    async fn frame(&mut self, text: &str) -> Result<(), End> {
        let now = TimestampMs::now();
        let (frame, reference) = match client_frame::parse(text, now) {
            Ok(parsed) => parsed,
            Err(refused) => {
                self.count_other().await?;
                return self.send(frames::error(refused.code, &refused.detail, refused.reference.as_ref())).await;
            }
        };
        let reports = &self.gateway.reports;
        let submitted = match frame {
            ClientFrame::Location(report) => {
                reports.submit(&self.caller, vec![*report], nearby_schemas::Source::WebSocket, now)
            }
            ClientFrame::Unshare(at) => reports.withdraw(&self.caller, at, nearby_schemas::Source::WebSocket, now),
            ClientFrame::Auth(token) => {
                self.count_other().await?;
                return self.renew(&token, reference.as_ref()).await;
            }
        };
        match submitted {
            Ok(submitted) => {
                self.answer_later(submitted, reference);
                Ok(())
            }
            Err(problem) => self.refuse(&problem, reference.as_ref()).await,
        }
    }

    /// The broker's word is waited for elsewhere, so that the next report is not held up.
    fn answer_later(&mut self, submitted: Submitted, reference: Option<Value>) {
        let place = self.answers.clone().try_reserve_owned();
        let place = place.expect("the socket is only read while there is a place, and this task holds the receiver");
        tokio::spawn(async move {
            let answer = match submitted.await {
                Ok(_) => reference.map(|reference| frames::accepted(&reference)),
                Err(problem) => Some(frames::error(problem.code, &problem.detail, reference.as_ref())),
            };
            place.send(answer);
        });
    }

    /// A frame that is no report takes a place in the user's rate, too; renewals verify signatures.
    async fn count_other(&mut self) -> Result<(), End> {
        match self.gateway.reports.count_other(&self.caller) {
            Ok(()) => Ok(()),
            Err(problem) => self.refuse(&problem, None).await,
        }
    }

    async fn refuse(&mut self, problem: &Problem, reference: Option<&Value>) -> Result<(), End> {
        self.send(frames::error(problem.code, &problem.detail, reference)).await?;
        if problem.code == "rate_limited" {
            return Err(End::Close(CloseCode::Policy, "rate_limited"));
        }
        Ok(())
    }

    async fn renew(&mut self, token: &str, reference: Option<&Value>) -> Result<(), End> {
        match self.gateway.tokens.verify(token) {
            Ok(caller) if caller.user == self.caller.user => {
                self.caller = caller;
                match reference {
                    Some(reference) => self.send(frames::accepted(reference)).await,
                    None => Ok(()),
                }
            }
            Ok(_) => self.send(frames::error("other_user", "the token is somebody else's", reference)).await,
            Err(problem) => self.refuse(&problem, reference).await,
        }
    }

    async fn ping(&mut self) -> Result<(), End> {
        if self.heard_at.elapsed() > SILENCE_MAX {
            return Err(End::Peer);
        }
        self.send_message(Message::Ping(tokio_tungstenite::tungstenite::Bytes::new())).await
    }

    async fn drain(&mut self) -> End {
        self.line.set_open(false);
        match self.send(frames::drain(frames::reconnect_after_ms())).await {
            Ok(()) => End::Close(CloseCode::Restart, "restart"),
            Err(end) => end,
        }
    }

    async fn send(&mut self, text: String) -> Result<(), End> {
        self.send_message(Message::text(text)).await
    }

    async fn send_message(&mut self, message: Message) -> Result<(), End> {
        if let Some(tap) = &self.line.tap {
            tap.message("sent", &message);
        }
        let slow_client = self.gateway.settings.slow_client;
        progress(&self.line, slow_client, self.socket.send(message)).await
    }

    /// Sends what the flusher could not, which then goes on.
    async fn send_rest(&mut self) -> Result<(), End> {
        progress(&self.line, self.gateway.settings.slow_client, self.socket.flush()).await?;
        if self.line.take_passed_over() {
            self.connection.outlet.resume();
        }
        Ok(())
    }
}

/// Waits until it is sent, or the client has taken nothing for too long.
async fn progress(
    line: &WebSocketLine,
    slow_client: Duration,
    sending: impl Future<Output = Result<(), Error>>,
) -> Result<(), End> {
    tokio::pin!(sending);
    let mut patience = slow_client;
    loop {
        match timeout(patience, &mut sending).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(_)) => return Err(End::Peer),
            Err(_) => patience = slow_client.saturating_sub(line.without_progress()),
        }
        if patience.is_zero() {
            return Err(End::Stuck);
        }
    }
}

/// Says farewell, and waits a little for the peer's.
async fn close(mut socket: Socket, end: End, tap: Option<&Tap>) {
    let frame = match end {
        End::Peer => None,
        End::Close(code, reason) => Some((code, reason)),
        End::Stuck => Some((CloseCode::Again, "slow_client")),
    };
    if let Some((_, reason)) = frame {
        metrics::counter!("nearby_pusher_closed_total", "reason" => reason).increment(1);
    }
    let farewell = async {
        let frame = frame.map(|(code, reason)| CloseFrame { code, reason: reason.into() });
        if let (Some(tap), Some(_)) = (tap, &frame) {
            tap.close("sent", frame.as_ref());
        }
        if let Err(error) = socket.close(frame).await {
            // The peer closed first, most likely: reading on sends our answer to that.
            tracing::debug!(%error, "closing");
        }
        while let Some(Ok(message)) = socket.next().await {
            if let (Some(tap), Message::Close(frame)) = (tap, &message) {
                tap.close("received", frame.as_ref());
            }
        }
        // Bytes that nobody reads would have the connection reset, and the close frame lost: those of a frame that is too
        // big, say.
        // On the heap: an array would be part of every idle connection's task.
        let (stream, mut unread) = (socket.get_mut(), vec![0; READ_BUFFER_BYTES]);
        if stream.shutdown().await.is_ok() {
            while matches!(stream.read(&mut unread).await, Ok(1..)) {}
        }
    };
    if timeout(CLOSE_TIMEOUT, farewell).await.is_err() {
        tracing::debug!("a peer did not answer the close frame");
    }
    if let Some(tap) = tap {
        tap.ended();
    }
}

/// Time left until a moment of the wall clock.
fn until(moment: TimestampMs) -> Duration {
    Duration::from_millis(u64::try_from(moment.since_ms(TimestampMs::now())).unwrap_or(0))
}
