//! `GET /v1/dev/wire`: what a user's other connections look like from here, as server-sent events; for development.

use crate::gateway::Gateway;
use crate::polling::COMMENT_INTERVAL;
use crate::wire::WATCHED_PING_INTERVAL;
use futures_util::stream;
use http::{HeaderMap, StatusCode};
use nearby_service::auth::Caller;
use nearby_service::http::Routes;
use nearby_service::problem::Problem;
use std::convert::Infallible;
use std::sync::Arc;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use warp::reply::Response;
use warp::{Filter, Reply};

/// Who watches learns what this request looked like here.
pub fn tap_request(gateway: &Gateway, caller: &Caller, path: &str, headers: HeaderMap) {
    let Some(wire) = &gateway.wire else { return };
    if let Ok(mut request) = http::Request::get(path).body(()) {
        *request.headers_mut() = headers;
        wire.tap(caller.user, &request);
    }
}

/// `GET /v1/dev/wire`.
pub fn routes(gateway: &Arc<Gateway>) -> Routes {
    let shared = Arc::clone(gateway);
    let path = warp::path!("v1" / "dev" / "wire").and(warp::get()).and(warp::header::headers_cloned());
    path.map(move |headers: HeaderMap| {
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
