//! The same view without a WebSocket: `GET /v1/nearby` by polling and `GET /v1/events` by server-sent events.

use crate::delivery::Outgoing;
use crate::frames;
use crate::gateway::Gateway;
use crate::hub::Connection;
use crate::wire::WATCHED_PING_INTERVAL;
use futures_util::stream;
use http::{HeaderValue, StatusCode, header};
use nearby_schemas::{TimestampMs, UserId};
use nearby_service::auth::Caller;
use nearby_service::http::Routes;
use nearby_service::problem::Problem;
use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::time::{Instant, sleep_until, timeout_at};
use warp::reply::Response;
use warp::{Filter, Reply};

/// A poller's session lasts so long past its last call.
const POLL_SESSION: Duration = Duration::from_secs(60);
/// The first call waits at most so long for its snapshot.
const FIRST_SNAPSHOT_WAIT: Duration = Duration::from_secs(5);
/// An idle event stream carries a comment so often.
const COMMENT_INTERVAL: Duration = Duration::from_secs(15);

/// Sessions of users who poll, with the time at which each ends.
#[derive(Default)]
pub struct Pollers {
    sessions: Mutex<HashMap<UserId, (Arc<Connection>, Instant)>>,
}

impl Pollers {
    /// The user's session, opened if need be, and prolonged.
    fn session(&self, gateway: &Gateway, user: UserId) -> Result<Arc<Connection>, Problem> {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let ends_at = Instant::now() + POLL_SESSION;
        if let Some((connection, end)) = sessions.get_mut(&user) {
            *end = ends_at;
            return Ok(Arc::clone(connection));
        }
        gateway.has_room()?;
        let connection = Arc::new(gateway.hub.connect(user));
        sessions.insert(user, (Arc::clone(&connection), ends_at));
        Ok(connection)
    }

    /// Ends the sessions whose time is over; all of them when the gateway drains.
    pub fn sweep(&self, gateway: &Gateway) {
        let now = Instant::now();
        let draining = gateway.draining.is_cancelled();
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|_, (_, ends_at)| *ends_at > now && !draining);
    }
}

/// `GET /v1/nearby` and `GET /v1/events`.
pub fn routes(gateway: &Arc<Gateway>, pollers: Arc<Pollers>) -> Routes {
    let shared = Arc::clone(gateway);
    let nearby = warp::path!("v1" / "nearby").and(warp::get()).and(warp::header::headers_cloned()).then(
        move |headers: http::HeaderMap| {
            let (gateway, pollers) = (Arc::clone(&shared), Arc::clone(&pollers));
            async move {
                let polled = match gateway.tokens.bearer(&headers) {
                    Ok(caller) => {
                        told(&gateway, &caller, "/v1/nearby", headers);
                        poll(&gateway, &pollers, caller.user).await
                    }
                    Err(problem) => Err(problem),
                };
                polled.unwrap_or_else(Problem::into_response)
            }
        },
    );
    let shared = Arc::clone(gateway);
    let events = warp::path!("v1" / "events").and(warp::get()).and(warp::header::headers_cloned()).map(
        move |headers: http::HeaderMap| {
            let opened = shared.tokens.bearer(&headers).and_then(|caller| {
                shared.has_room()?;
                told(&shared, &caller, "/v1/events", headers.clone());
                Ok(events(&shared, caller))
            });
            opened.unwrap_or_else(Problem::into_response)
        },
    );
    let routes = nearby.or(events).unify();
    if gateway.wire.is_some() { routes.or(wire(gateway)).unify().boxed() } else { routes.boxed() }
}

/// Who watches learns what this request looked like here.
fn told(gateway: &Gateway, caller: &Caller, path: &str, headers: http::HeaderMap) {
    let Some(wire) = &gateway.wire else { return };
    if let Ok(mut request) = http::Request::get(path).body(()) {
        *request.headers_mut() = headers;
        wire.tap(caller.user, &request);
    }
}

/// `GET /v1/dev/wire`: what this user's other connections look like from here.
fn wire(gateway: &Arc<Gateway>) -> Routes {
    let shared = Arc::clone(gateway);
    let path = warp::path!("v1" / "dev" / "wire").and(warp::get()).and(warp::header::headers_cloned());
    path.map(move |headers: http::HeaderMap| {
        let heard = shared.tokens.bearer(&headers).and_then(|caller| match &shared.wire {
            Some(wire) => wire.listen(caller.user),
            None => Err(Problem::new(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path")),
        });
        match heard {
            Ok(heard) => watched(&shared, heard),
            Err(problem) => problem.into_response(),
        }
    })
    .boxed()
}

fn watched(gateway: &Arc<Gateway>, heard: Receiver<Arc<str>>) -> Response {
    let first = format!(r#"{{"what":"watching","ping_interval_ms":{}}}"#, WATCHED_PING_INTERVAL.as_millis());
    let state = (Arc::clone(gateway), heard, Some(first));
    let frames = stream::unfold(state, |(gateway, mut heard, first)| async move {
        let next = match first {
            Some(first) => first,
            None => match gateway.draining.run_until_cancelled(heard.recv()).await? {
                Ok(next) => next.to_string(),
                Err(RecvError::Lagged(count)) => format!(r#"{{"what":"skipped","count":{count}}}"#),
                Err(RecvError::Closed) => return None,
            },
        };
        Some((Ok::<_, Infallible>(warp::sse::Event::default().data(next)), (gateway, heard, None)))
    });
    warp::sse::reply(warp::sse::keep_alive().interval(COMMENT_INTERVAL).stream(frames)).into_response()
}

async fn poll(gateway: &Gateway, pollers: &Pollers, user: UserId) -> Result<Response, Problem> {
    let connection = pollers.session(gateway, user)?;
    let deadline = Instant::now() + FIRST_SNAPSHOT_WAIT;
    loop {
        if let Some(view) = gateway.hub.view(user) {
            // Others may poll for the same user, and a notification wakes one.
            connection.wake.notify_one();
            // Pollers get the whole view: what the socket would have sent is of no use to them.
            gateway.hub.take(&connection);
            let mut response =
                Response::new(frames::outgoing(&Outgoing::Snapshot(view), &gateway.settings.rules).into());
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            return Ok(response);
        }
        if timeout_at(deadline, connection.wake.notified()).await.is_err() {
            let detail = "the snapshot did not come in time: the processors may be starting";
            let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "snapshot_timeout", detail);
            return Err(Problem { retry_after_s: Some(1), ..problem });
        }
    }
}

/// One event stream.
struct EventStream {
    gateway: Arc<Gateway>,
    caller: Caller,
    connection: Connection,
    welcomed: bool,
    next_flush: Instant,
    /// Something may be waiting to be sent.
    unsent: bool,
    ended: bool,
}

fn events(gateway: &Arc<Gateway>, caller: Caller) -> Response {
    let connection = gateway.hub.connect(caller.user);
    let state = EventStream {
        gateway: Arc::clone(gateway),
        caller,
        connection,
        welcomed: false,
        next_flush: Instant::now(),
        unsent: false,
        ended: false,
    };
    let frames = stream::unfold(state, |mut state| async move {
        let frame = state.next_frame().await?;
        Some((Ok::<_, Infallible>(warp::sse::Event::default().data(frame)), state))
    });
    let keep_alive = warp::sse::keep_alive().interval(COMMENT_INTERVAL);
    warp::sse::reply(keep_alive.stream(frames)).into_response()
}

impl EventStream {
    async fn next_frame(&mut self) -> Option<String> {
        let gateway = Arc::clone(&self.gateway);
        if !self.welcomed {
            self.welcomed = true;
            let session = self.connection.session();
            return Some(frames::welcome(&gateway.id, &session, &gateway.settings.rules, TimestampMs::now()));
        }
        if self.ended {
            return None;
        }
        let wake = Arc::clone(&self.connection.wake);
        loop {
            let unsent = self.unsent;
            let left_ms = u64::try_from(self.caller.expires_at.since_ms(TimestampMs::now())).unwrap_or(0);
            tokio::select! {
                () = gateway.draining.cancelled() => {
                    self.ended = true;
                    return Some(frames::drain(frames::reconnect_after_ms()));
                }
                () = tokio::time::sleep(Duration::from_millis(left_ms)) => {
                    self.ended = true;
                    return Some(frames::error("token_expired", "the token has expired", None));
                }
                () = wake.notified(), if !unsent => self.unsent = true,
                () = sleep_until(self.next_flush), if unsent => {
                    self.unsent = false;
                    if let Some(outgoing) = gateway.hub.take(&self.connection) {
                        self.next_flush = Instant::now() + gateway.settings.flush_interval;
                        return Some(frames::outgoing(&outgoing, &gateway.settings.rules));
                    }
                }
            }
        }
    }
}
