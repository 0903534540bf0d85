//! The HTTP edge: an accept loop around warp's routes that leaves WebSocket upgrades to their owner.
//!
//! warp neither exposes WebSocket buffers nor knows upgraded sockets when it ends, so the connection belongs to us and warp
//! only routes. What is true of every response (caching, cross-origin rules, errors of routing) is said here.

use crate::problem::{Problem, json};
use crate::{Stop, health::Readiness, metrics};
use futures_util::{Stream, StreamExt, future::BoxFuture};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tower_service::Service as _;
use warp::filters::BoxedFilter;
use warp::reply::Response;
use warp::{Buf, Filter, Rejection, Reply};

/// Routes that always answer.
pub type Routes = BoxedFilter<(Response,)>;
/// Takes over requests for `/v1/stream`.
pub type StreamHandler = Arc<dyn Fn(http::Request<Incoming>) -> BoxFuture<'static, Response> + Send + Sync>;

/// A client has so long to send its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Larger bodies are refused with 413.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;
/// A client has so long to send its request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests under way when the stop comes have so long to end.
const END_TIMEOUT: Duration = Duration::from_secs(3);
const STREAM_PATH: &str = "/v1/stream";

/// Serves until the stop; then takes no new connections and lets requests end.
pub async fn serve(
    listener: TcpListener,
    routes: Routes,
    stream: Option<StreamHandler>,
    allowed_origins: Vec<String>,
    stop: Stop,
) {
    let routes = warp::service(routes.recover(rejected).unify());
    let origins: Arc<[String]> = allowed_origins.into();
    let connections = tokio_util::task::TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let socket = match accepted {
            Ok((socket, _)) => socket,
            Err(error) => {
                // Out of file descriptors, most likely: let some connections end first.
                tracing::warn!(%error, "accepting a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%error, "a connection ended before it began");
            continue;
        }
        let (routes, stream, origins) = (routes.clone(), stream.clone(), Arc::clone(&origins));
        let answer = hyper::service::service_fn(move |mut request: http::Request<Incoming>| {
            let (mut routes, stream, origins) = (routes.clone(), stream.clone(), Arc::clone(&origins));
            async move {
                let origin = cross_origin(request.headers(), &origins);
                // Answered like GET; hyper leaves the body out.
                if request.method() == Method::HEAD {
                    *request.method_mut() = Method::GET;
                }
                let api = request.uri().path().starts_with("/v1/") || request.uri().path() == "/owntracks";
                let preflight = origin.is_some() && request.method() == Method::OPTIONS;
                let methods = methods(request.uri().path());
                let mut response = match stream {
                    _ if preflight => Response::default(),
                    Some(stream) if request.uri().path() == STREAM_PATH => stream(request).await,
                    _ => routes.call(request).await?,
                };
                if response.status() == StatusCode::METHOD_NOT_ALLOWED {
                    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(methods));
                }
                decorate(response.headers_mut(), api, origin);
                Ok::<Response, Infallible>(response)
            }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(socket), answer)
            .with_upgrades();
        let stop = stop.clone();
        connections.spawn(async move {
            tokio::pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "connection");
            }
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(END_TIMEOUT, connections.wait()).await.is_err() {
        tracing::warn!("some requests did not end in time");
    }
}

/// `/healthz`, `/readyz` and `/metrics`.
pub fn operations(readiness: Readiness) -> Routes {
    let health = warp::path!("healthz").and(warp::get()).map(|| "ok\n".into_response());
    let ready = warp::path!("readyz").and(warp::get()).map(move || {
        let missing = readiness.missing();
        let status = if missing.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let missing: serde_json::Map<_, _> =
            missing.into_iter().map(|(part, because)| (part.to_owned(), because.into())).collect();
        json(status, &serde_json::json!({ "ready": status == StatusCode::OK, "missing": missing }))
    });
    let metrics = warp::path!("metrics").and(warp::get()).map(|| {
        let mut response = Response::new(metrics::render().into());
        let content_type = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
        response
    });
    health.or(ready).unify().or(metrics).unify().boxed()
}

/// The whole body, or 413 above [`BODY_BYTES_MAX`], or 408 when it does not come.
///
/// # Errors
/// `too_large`, `body_timeout`, or `bad_body` when the client went away in the middle.
pub async fn read_body(body: impl Stream<Item = Result<impl Buf, warp::Error>>) -> Result<Vec<u8>, Problem> {
    tokio::time::timeout(BODY_TIMEOUT, read_all(body)).await.unwrap_or_else(|_| {
        let detail = format!("the body did not come within {} s", BODY_TIMEOUT.as_secs());
        Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", detail))
    })
}

async fn read_all(body: impl Stream<Item = Result<impl Buf, warp::Error>>) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::new();
    tokio::pin!(body);
    while let Some(chunk) = body.next().await {
        let mut chunk = chunk.map_err(|_| Problem::bad_request("bad_body", "the body ended early"))?;
        if bytes.len() + chunk.remaining() > BODY_BYTES_MAX {
            let detail = format!("the body is larger than {BODY_BYTES_MAX} bytes");
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail));
        }
        while chunk.has_remaining() {
            let part = chunk.chunk();
            bytes.extend_from_slice(part);
            let length = part.len();
            chunk.advance(length);
        }
    }
    Ok(bytes)
}

/// What a path that exists can be asked, for 405 (RFC 9110, 15.5.6): warp only knows what it cannot.
fn methods(path: &str) -> &'static str {
    match path {
        "/v1/locations" | "/v1/friend-lists" | "/owntracks" => "POST",
        "/v1/location" => "DELETE",
        _ if path.starts_with("/v1/users/") => "PUT",
        _ => "GET, HEAD",
    }
}

/// The caller's origin if it is another one and allowed.
fn cross_origin(headers: &HeaderMap, allowed: &[String]) -> Option<HeaderValue> {
    let origin = headers.get(header::ORIGIN)?;
    allowed.iter().any(|allowed| origin == allowed.as_str()).then(|| origin.clone())
}

fn decorate(headers: &mut HeaderMap, api: bool, origin: Option<HeaderValue>) {
    if api {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some(origin) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::VARY, HeaderValue::from_static("origin"));
        let methods = HeaderValue::from_static("GET, POST, PUT, DELETE");
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
        let allowed = HeaderValue::from_static("authorization, content-type");
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("retry-after"));
    }
}

/// No route took the request.
async fn rejected(rejection: Rejection) -> Result<Response, Infallible> {
    let problem = if rejection.find::<warp::reject::MethodNotAllowed>().is_some() {
        Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path has no such method")
    } else if rejection.is_not_found() {
        Problem::new(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path")
    } else {
        Problem::bad_request("bad_request", "the request could not be read")
    };
    Ok(problem.into_response().into_response())
}
