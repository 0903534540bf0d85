//! The same view without a WebSocket: `GET /v1/nearby` by polling and `GET /v1/events` by server-sent events.

use crate::delivery::{Outgoing, Shown};
use crate::frames;
use crate::gateway::{Gateway, draining};
use crate::hub::Connection;
use crate::watching;
use futures_util::stream;
use http::{HeaderValue, header};
use nearby_schemas::{TimestampMs, UserId};
use nearby_service::auth::Caller;
use nearby_service::http::{ConnectionEnd, Routes};
use nearby_service::problem::Problem;
use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use warp::reply::Response;
use warp::{Filter, Reply};

/// A poller's session lasts so long past its last call.
const POLL_SESSION: Duration = Duration::from_secs(60);
/// The first call waits at most so long for its snapshot.
const FIRST_SNAPSHOT_WAIT: Duration = Duration::from_secs(5);
/// An idle event stream carries a comment so often.
pub(crate) const COMMENT_INTERVAL: Duration = Duration::from_secs(15);

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
        let connection = Arc::new(gateway.admit(user)?);
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

    /// All that the user sees, as soon as it is known, or nothing after the wait. Opens or prolongs the session.
    ///
    /// # Errors
    /// 503 if there is no room for a new session, or if the gateway drains meanwhile.
    pub async fn view(
        &self,
        gateway: &Gateway,
        user: UserId,
        wait: Duration,
    ) -> Result<Option<Vec<(UserId, Shown)>>, Problem> {
        // A gateway that ends waits for it: a session ends when nobody holds its connection any more, and its tombstone has to be written.
        gateway.tasks.track_future(self.known_view(gateway, user, wait)).await
    }

    async fn known_view(
        &self,
        gateway: &Gateway,
        user: UserId,
        wait: Duration,
    ) -> Result<Option<Vec<(UserId, Shown)>>, Problem> {
        let connection = self.session(gateway, user)?;
        let deadline = Instant::now() + wait;
        loop {
            if let Some(view) = gateway.hub.view(user) {
                // Others may poll for the same user, and a notification wakes one.
                connection.outlet.news.notify_one();
                // Pollers get the whole view: what the socket would have sent is of no use to them.
                gateway.hub.take(&connection.outlet, true);
                return Ok(Some(view));
            }
            tokio::select! {
                () = gateway.draining.cancelled() => return Err(draining()),
                woken = timeout_at(deadline, connection.outlet.news.notified()) => if woken.is_err() {
                    return Ok(None);
                },
            }
        }
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
                        watching::tap_request(&gateway, &caller, "/v1/nearby", headers);
                        poll(&gateway, &pollers, &caller).await
                    }
                    Err(problem) => Err(problem),
                };
                polled.unwrap_or_else(Problem::into_response)
            }
        },
    );
    let shared = Arc::clone(gateway);
    let events = warp::path!("v1" / "events").and(warp::get()).and(warp::header::headers_cloned());
    let events = events.and(warp::ext::optional()).map(move |headers: http::HeaderMap, end: Option<ConnectionEnd>| {
        let opened = shared.tokens.bearer(&headers).and_then(|caller| {
            shared.reports.count_other(&caller)?;
            let connection = shared.admit(caller.user)?;
            watching::tap_request(&shared, &caller, "/v1/events", headers.clone());
            Ok(tell(&shared, caller, connection, end))
        });
        opened.unwrap_or_else(Problem::into_response)
    });
    let routes = nearby.or(events).unify();
    if gateway.wire.is_some() { routes.or(watching::routes(gateway)).unify().boxed() } else { routes.boxed() }
}

async fn poll(gateway: &Gateway, pollers: &Pollers, caller: &Caller) -> Result<Response, Problem> {
    gateway.reports.count_other(caller)?;
    let Some(view) = pollers.view(gateway, caller.user, FIRST_SNAPSHOT_WAIT).await? else {
        let detail = "the snapshot did not come in time: the processors may be starting";
        return Err(Problem::unavailable("snapshot_timeout", detail));
    };
    let mut response = Response::new(frames::outgoing(&Outgoing::Snapshot(view), &gateway.settings.rules).into());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// One event stream.
struct EventStream {
    gateway: Arc<Gateway>,
    caller: Caller,
    connection: Connection,
    frames: mpsc::Sender<String>,
    next_flush: Instant,
    /// Something may be waiting to be sent.
    unsent: bool,
}

/// What follows a frame of an event stream.
enum Next {
    Frame(String),
    LastFrame(String),
}

fn tell(gateway: &Arc<Gateway>, caller: Caller, connection: Connection, end: Option<ConnectionEnd>) -> Response {
    // One frame waits for the connection to take it; everything else waits in the outbox, the newest of each friend.
    let (frames, told) = mpsc::channel(1);
    let stream = EventStream {
        gateway: Arc::clone(gateway),
        caller,
        connection,
        frames,
        next_flush: Instant::now(),
        unsent: false,
    };
    gateway.tasks.spawn(stream.tell(end));
    let events = stream::unfold(told, |mut told| async move {
        let frame = told.recv().await?;
        Some((Ok::<_, Infallible>(warp::sse::Event::default().data(frame)), told))
    });
    let keep_alive = warp::sse::keep_alive().interval(COMMENT_INTERVAL);
    let mut response = warp::sse::reply(keep_alive.stream(events)).into_response();
    // It ends with its answer: see `end_in_time`.
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// After its last frame the connection ends by itself, but not as long as the client takes nothing: then it is ended.
fn end_in_time(end: Option<ConnectionEnd>, limit: Duration) {
    let Some(ConnectionEnd(end)) = end else { return };
    tokio::spawn(async move {
        tokio::time::sleep(limit).await;
        end.cancel();
    });
}

impl EventStream {
    /// Tells the client what is new until either side ends. The answer's body alone would not notice a client that reads
    /// nothing, because nobody asks it for more.
    async fn tell(mut self, end: Option<ConnectionEnd>) {
        let (gateway, frames) = (Arc::clone(&self.gateway), self.frames.clone());
        let turn_to_go = gateway.turn_to_go();
        tokio::pin!(turn_to_go);
        let session = self.connection.session();
        let welcome = frames::welcome(&gateway.id, &session, &gateway.settings.rules, TimestampMs::now());
        let mut next = Next::Frame(welcome);
        loop {
            let (frame, last) = match next {
                Next::Frame(frame) => (frame, false),
                Next::LastFrame(frame) => (frame, true),
            };
            if frames.send(frame).await.is_err() {
                return;
            }
            if last {
                end_in_time(end, gateway.settings.slow_client);
                return;
            }
            // The next frame is made when there is a place for it, so that it says what is true then.
            match timeout(gateway.settings.slow_client, frames.reserve()).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) => return,
                Err(_) => {
                    metrics::counter!("nearby_pusher_closed_total", "reason" => "slow_client").increment(1);
                    if let Some(ConnectionEnd(end)) = end {
                        end.cancel();
                    }
                    return;
                }
            }
            next = tokio::select! {
                biased;
                () = frames.closed() => return,
                () = &mut turn_to_go => Next::LastFrame(frames::drain(frames::reconnect_after_ms())),
                next = self.next_frame() => next,
            };
        }
    }

    async fn next_frame(&mut self) -> Next {
        let outlet = Arc::clone(&self.connection.outlet);
        let left_ms = u64::try_from(self.caller.expires_at.since_ms(TimestampMs::now())).unwrap_or(0);
        let expiry = tokio::time::sleep(Duration::from_millis(left_ms));
        tokio::pin!(expiry);
        loop {
            let unsent = self.unsent;
            tokio::select! {
                () = &mut expiry => {
                    return Next::LastFrame(frames::error("token_expired", "the token has expired", None));
                }
                () = outlet.news.notified(), if !unsent => self.unsent = true,
                () = sleep_until(self.next_flush), if unsent => {
                    self.unsent = false;
                    if let Some(outgoing) = self.gateway.hub.take(&self.connection.outlet, true) {
                        self.next_flush = Instant::now() + self.gateway.settings.flush_interval;
                        return Next::Frame(frames::outgoing(&outgoing, &self.gateway.settings.rules));
                    }
                }
            }
        }
    }
}
