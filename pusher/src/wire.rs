//! What crosses the wire between a client and this gateway, told to that client: `GET /v1/dev/wire`, for development.
//!
//! A page sees neither the head of its own request nor pings, and of a close only its code. What the server saw of all that
//! is told here, to whoever has a token of the same user, while they listen. Tokens are told as their length. Nobody
//! listens: nothing is done.

use nearby_schemas::{TimestampMs, UserId};
use nearby_service::problem::Problem;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::broadcast::{self, Receiver, Sender};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use warp::reply::Response;

/// A socket that is listened to is pinged so often, so that there is something to see.
pub const WATCHED_PING_INTERVAL: Duration = Duration::from_secs(3);
/// Users who may be listened to at once.
const USERS_MAX: usize = 16;
/// What a slow listener may have before it; older things are skipped, and counted.
const QUEUE_MAX: usize = 256;
/// Longer frames are cut when they are shown.
const TEXT_SHOWN_MAX: usize = 2_000;

/// Who is listened to.
#[derive(Default)]
pub struct Wire {
    listeners: Mutex<BTreeMap<UserId, Sender<Arc<str>>>>,
    connections: AtomicU64,
}

impl Wire {
    /// Listens to all that this user sends and gets from now on.
    ///
    /// # Errors
    /// 503 when as many as may are listened to.
    pub fn listen(&self, user: UserId) -> Result<Receiver<Arc<str>>, Problem> {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.retain(|_, told| told.receiver_count() > 0);
        if listeners.len() >= USERS_MAX && !listeners.contains_key(&user) {
            return Err(Problem::unavailable("overloaded", "too many users are listened to"));
        }
        Ok(listeners.entry(user).or_insert_with(|| broadcast::channel(QUEUE_MAX).0).subscribe())
    }

    /// A tap on a new connection or request of this user, if somebody listens.
    pub fn tap<B>(&self, user: UserId, request: &http::Request<B>) -> Option<Tap> {
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let told = listeners.get(&user).filter(|told| told.receiver_count() > 0)?.clone();
        let connection = self.connections.fetch_add(1, Ordering::Relaxed) + 1;
        let tap = Tap { told, connection, path: request.uri().path().to_owned(), pinged_at: Mutex::default() };
        let first = format!("{} {} HTTP/1.1", request.method(), request.uri());
        tap.head("request", first, request.headers());
        Some(tap)
    }
}

/// Tells of one connection.
pub struct Tap {
    told: Sender<Arc<str>>,
    connection: u64,
    path: String,
    pinged_at: Mutex<Option<Instant>>,
}

impl Tap {
    /// The answer's head.
    pub fn response(&self, response: &Response) {
        let status = response.status();
        let first = format!("HTTP/1.1 {} {}", status.as_str(), status.canonical_reason().unwrap_or_default());
        self.head("response", first, response.headers());
    }

    /// A message that is sent now, or was received; of a fragmented one, the whole.
    pub fn message(&self, direction: &'static str, message: &Message) {
        let mut about = json!({"direction": direction, "bytes": message.len()});
        let mut pinged_at = self.pinged_at.lock().unwrap_or_else(PoisonError::into_inner);
        about["frame_bytes"] = json!(frame_bytes(message.len(), direction == "received"));
        let opcode = match message {
            Message::Text(text) => {
                about["text"] = json!(shown(text));
                "text"
            }
            Message::Binary(_) => "binary",
            Message::Ping(_) => {
                if direction == "sent" {
                    *pinged_at = Some(Instant::now());
                }
                "ping"
            }
            Message::Pong(_) => {
                if let Some(pinged_at) = pinged_at.take().filter(|_| direction == "received") {
                    about["after_ms"] = json!(pinged_at.elapsed().as_secs_f64() * 1000.0);
                }
                "pong"
            }
            Message::Close(frame) => return self.close(direction, frame.as_ref()),
            Message::Frame(_) => "other",
        };
        about["opcode"] = json!(opcode);
        self.tell("frame", about);
    }

    /// A close frame; with none, the code is 1005, as in the standard.
    pub fn close(&self, direction: &'static str, frame: Option<&CloseFrame>) {
        let (code, reason) = frame.map_or((1005, ""), |frame| (frame.code.into(), frame.reason.as_str()));
        let bytes = if frame.is_some() { 2 + reason.len() } else { 0 };
        let frame_bytes = frame_bytes(bytes, direction == "received");
        let about = json!({"direction": direction, "opcode": "close", "bytes": bytes, "frame_bytes": frame_bytes,
            "code": code, "reason": reason});
        self.tell("frame", about);
    }

    /// The connection has ended.
    pub fn ended(&self) {
        self.tell("ended", json!({}));
    }

    fn head(&self, what: &str, first: String, headers: &http::HeaderMap) {
        // The name, a colon, a blank and a line break.
        let line_bytes = |(name, value): (&http::HeaderName, &http::HeaderValue)| name.as_str().len() + value.len() + 4;
        let bytes = first.len() + 2 + headers.iter().map(line_bytes).sum::<usize>() + 2;
        let header = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
            format!("{name}: {}", without_secrets(name.as_str(), &String::from_utf8_lossy(value.as_bytes())))
        };
        let lines: Vec<String> = std::iter::once(first).chain(headers.iter().map(header)).collect();
        self.tell(what, json!({"lines": lines, "bytes": bytes}));
    }

    fn tell(&self, what: &str, mut about: Value) {
        about["what"] = json!(what);
        about["path"] = json!(self.path);
        about["connection"] = json!(self.connection);
        about["at_ms"] = json!(TimestampMs::now().0);
        // Whoever listened may be gone.
        self.told.send(about.to_string().into()).ok();
    }
}

/// A frame with this payload, as RFC 6455 has it: clients mask theirs.
pub(crate) fn frame_bytes(payload: usize, masked: bool) -> usize {
    let length = match payload {
        0..=125 => 0,
        126..=65_535 => 2,
        _ => 8,
    };
    2 + length + if masked { 4 } else { 0 } + payload
}

/// A header's value, with the length in place of what lets its bearer in.
fn without_secrets(name: &str, value: &str) -> String {
    let hidden = |secret: &str| format!("… ({} characters, not shown)", secret.chars().count());
    match name {
        "authorization" => match value.split_once(' ') {
            Some((scheme, secret)) => format!("{scheme} {}", hidden(secret)),
            None => hidden(value),
        },
        "cookie" | "proxy-authorization" => hidden(value),
        "sec-websocket-protocol" => {
            let offer = |offer: &str| match offer.trim().strip_prefix("bearer.") {
                Some(token) => format!("bearer.{}", hidden(token)),
                None => offer.trim().to_owned(),
            };
            value.split(',').map(offer).collect::<Vec<_>>().join(", ")
        }
        _ => value.to_owned(),
    }
}

/// A frame's text, unless it holds a token.
fn shown(text: &str) -> String {
    let holds_token = match serde_json::from_str::<Value>(text) {
        Ok(frame) => frame.get("token").is_some(),
        Err(_) => text.contains("token"),
    };
    if holds_token {
        return format!("({} characters with a token, not shown)", text.chars().count());
    }
    match text.char_indices().nth(TEXT_SHOWN_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(headers: &[(&str, &str)]) -> http::Request<()> {
        let request = headers
            .iter()
            .fold(http::Request::get("/v1/stream"), |request, (name, value)| request.header(*name, *value));
        request.body(()).expect("a request")
    }

    fn next(heard: &mut Receiver<Arc<str>>) -> Value {
        serde_json::from_str(&heard.try_recv().expect("something was told")).expect("JSON")
    }

    #[test]
    fn only_who_listens_to_the_same_user_is_told() {
        let wire = Wire::default();
        assert!(wire.tap(UserId(1), &request(&[])).is_none(), "nobody listens");
        let mut heard = wire.listen(UserId(1)).expect("there is room");
        assert!(wire.tap(UserId(2), &request(&[])).is_none(), "nobody listens to this one");
        wire.tap(UserId(1), &request(&[])).expect("somebody listens");
        assert_eq!(next(&mut heard)["lines"], json!(["GET /v1/stream HTTP/1.1"]));
        drop(heard);
        assert!(wire.tap(UserId(1), &request(&[])).is_none(), "nobody listens any more");
    }

    #[test]
    fn no_token_is_told() {
        let wire = Wire::default();
        let mut heard = wire.listen(UserId(1)).expect("there is room");
        let token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI0MiJ9.c2lnbmF0dXJl";
        let headers = [
            ("authorization", format!("Bearer {token}")),
            ("sec-websocket-protocol", format!("nearby.v1,bearer.{token}")),
            ("cookie", token.to_owned()),
        ];
        let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
        let tap = wire.tap(UserId(1), &request(&headers)).expect("somebody listens");
        let head = next(&mut heard);
        assert!(head["lines"][2] == "sec-websocket-protocol: nearby.v1, bearer.… (50 characters, not shown)", "{head}");
        assert_eq!(head["bytes"], 27 + 74 + 93 + 60, "of what was really sent");
        let escaped = format!(r#"{{"type":"auth","\u0074oken":"{token}"}}"#);
        for text in [format!(r#"{{"token":"{token}"}}"#), escaped, format!(r#"{{"token":"{token}"#)] {
            tap.message("received", &Message::text(text));
        }
        for told in [head, next(&mut heard), next(&mut heard), next(&mut heard)] {
            assert!(!told.to_string().contains("eyJ"), "{told}");
        }
    }

    #[test]
    fn frames_are_as_long_as_the_standard_says() {
        for (payload, sent, received) in [(0, 2, 6), (125, 127, 131), (126, 130, 134), (65_536, 65_546, 65_550)] {
            assert_eq!((frame_bytes(payload, false), frame_bytes(payload, true)), (sent, received));
        }
    }

    #[test]
    fn users_are_few_and_leave_room_when_they_go() {
        let wire = Wire::default();
        let mut heard: Vec<_> = (0..16).map(|user| wire.listen(UserId(user)).expect("there is room")).collect();
        assert_eq!(wire.listen(UserId(16)).err().map(|problem| problem.code), Some("overloaded"));
        wire.listen(UserId(0)).expect("a second listener of the same user");
        heard.pop();
        wire.listen(UserId(16)).expect("one has gone");
    }
}
