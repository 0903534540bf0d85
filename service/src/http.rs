//! The HTTP edge: an accept loop around warp's routes that leaves WebSocket upgrades to their owner.
//!
//! warp neither exposes WebSocket buffers nor knows upgraded sockets when it ends, so the connection belongs to us and warp
//! only routes. What is true of every response (caching, cross-origin rules, errors of routing) is said here.

use crate::addresses::Addresses;
use crate::hosts::{BaseUrl, Hosts};
use crate::problem::{Problem, json};
use crate::settings::AccessSettings;
use crate::tls::Tls;
use crate::{Stop, health::Readiness};
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use warp::filters::BoxedFilter;
use warp::reply::Response;
use warp::{Filter, Rejection, Reply};

/// Routes that always answer.
pub type Routes = BoxedFilter<(Response,)>;
/// Takes over requests for `/v1/stream`.
pub type StreamHandler = Arc<dyn Fn(http::Request<Incoming>) -> BoxFuture<'static, Response> + Send + Sync>;

/// Ends the connection of a request at once, whatever is still to be sent. It is among the request's extensions: who answers
/// without end has to end what nobody reads.
#[derive(Clone, Debug)]
pub struct ConnectionEnd(pub Stop);

/// A client has so long to send its request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests under way when the stop comes have so long to end.
const END_TIMEOUT: Duration = Duration::from_secs(3);
/// A client has so long to shake hands for TLS.
const TLS_TIMEOUT: Duration = Duration::from_secs(10);
/// A longer head is refused with 431, and so are more than 100 lines, which is hyper's default. A token is some hundred bytes, a cookie of the same host may be 4 KiB.
pub const HEAD_BYTES_MAX: usize = 32 * 1024;
const STREAM_PATH: &str = "/v1/stream";
/// Always answered: who asks may share an address with a crowd (a node that translates addresses), and no crowd may make us look dead.
const PROBE_PATHS: [&str; 2] = ["/healthz", "/readyz"];
/// Takes some work to answer; who asks knows us by address.
const METRICS_PATH: &str = "/metrics";

/// Who may come in, and how.
#[derive(Clone)]
pub struct Door {
    hosts: Hosts,
    addresses: Option<Addresses>,
    tls: Option<Tls>,
    connections_max: usize,
}

impl Door {
    /// For a listener that clients know by the advertised address, if there is one.
    ///
    /// # Errors
    /// What is wrong with the certificate, or that no thread can be started.
    pub fn new(
        listen: SocketAddr,
        advertised: Option<&BaseUrl>,
        access: &AccessSettings,
        allowed_origins: &[String],
    ) -> Result<Door, String> {
        let tls = match (&access.tls_cert, &access.tls_key) {
            (Some(certificate), Some(key)) => {
                Some(Tls::from_files(certificate, key).map_err(|error| format!("--tls-cert, --tls-key: {error}"))?)
            }
            _ => None,
        };
        let trusted = access.trusted_proxies.clone();
        let addresses = Addresses::start(access.address_rate_per_s, access.address_burst, trusted);
        Ok(Door {
            hosts: Hosts::new(listen, advertised, &access.allowed_hosts, allowed_origins.to_vec()),
            addresses: Some(addresses.map_err(|error| format!("starting a thread: {error}"))?),
            tls,
            connections_max: access.http_connections_max as usize,
        })
    }

    /// For what only operators see, and for tests: under any name, as often as one likes, on so many connections.
    pub fn unguarded(connections_max: usize) -> Door {
        Door { hosts: Hosts::any(), addresses: None, tls: None, connections_max }
    }

    /// How addresses behind it begin.
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// Whether a request may come in.
    fn check(&self, peer: IpAddr, request: &http::Request<Incoming>) -> Result<(), Problem> {
        let path = request.uri().path();
        if PROBE_PATHS.contains(&path) {
            return Ok(());
        }
        if let Some(addresses) = &self.addresses {
            addresses.take(peer, request.headers())?;
        }
        if path == METRICS_PATH {
            return Ok(());
        }
        self.hosts.check_host(request.uri(), request.headers())?;
        if path == STREAM_PATH { self.hosts.check_origin(request.headers()) } else { Ok(()) }
    }
}

/// What all connections share.
struct Edge<Service> {
    door: Door,
    routes: Service,
    stream: Option<StreamHandler>,
    stop: Stop,
}

/// Serves until the stop; then takes no new connections and lets requests end.
pub async fn serve(listener: TcpListener, routes: Routes, stream: Option<StreamHandler>, door: Door, stop: Stop) {
    let places = Arc::new(Semaphore::new(door.connections_max));
    let routes = warp::service(routes.recover(rejected).unify());
    let edge = Arc::new(Edge { door, routes, stream, stop: stop.clone() });
    let connections = tokio_util::task::TaskTracker::new();
    loop {
        // Who comes when all places are taken waits in the system's queue, which is bounded, too.
        let Some(Ok(place)) = stop.run_until_cancelled(Arc::clone(&places).acquire_owned()).await else { break };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let (socket, peer) = match accepted {
            Ok((socket, peer)) => (socket, peer.ip()),
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
        let edge = Arc::clone(&edge);
        connections.spawn(async move {
            match &edge.door.tls {
                None => connection(socket, peer, &edge).await,
                Some(tls) => match tokio::time::timeout(TLS_TIMEOUT, tls.acceptor().accept(socket)).await {
                    Ok(Ok(socket)) => connection(socket, peer, &edge).await,
                    Ok(Err(error)) => tracing::debug!(%error, "TLS"),
                    Err(_) => tracing::debug!("TLS: no handshake in time"),
                },
            }
            drop(place);
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(END_TIMEOUT, connections.wait()).await.is_err() {
        tracing::warn!("some requests did not end in time");
    }
}

/// One connection, until it ends or becomes a WebSocket.
async fn connection<Io, Service>(socket: Io, peer: IpAddr, edge: &Arc<Edge<Service>>)
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    Service: tower_service::Service<http::Request<Incoming>, Response = Response, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    Service::Future: Send,
{
    let (end, shared) = (ConnectionEnd(Stop::new()), Arc::clone(edge));
    let ended_by_answer = end.0.clone();
    let service = hyper::service::service_fn(move |mut request: http::Request<Incoming>| {
        let edge = Arc::clone(&shared);
        request.extensions_mut().insert(end.clone());
        async move { Ok::<Response, Infallible>(answer(&edge, peer, request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_header_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(socket), service)
        .with_upgrades();
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = ended_by_answer.cancelled() => return,
        () = edge.stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection");
    }
}

async fn answer<Service>(edge: &Edge<Service>, peer: IpAddr, mut request: http::Request<Incoming>) -> Response
where
    Service: tower_service::Service<http::Request<Incoming>, Response = Response, Error = Infallible> + Clone,
{
    let api = request.uri().path().starts_with("/v1/") || request.uri().path() == "/owntracks";
    let origin = edge.door.hosts.cross_origin(request.headers());
    // Answered like GET; hyper leaves the body out.
    if request.method() == Method::HEAD {
        *request.method_mut() = Method::GET;
    }
    let preflight = origin.is_some() && request.method() == Method::OPTIONS;
    let methods = methods(request.uri().path());
    let mut response = match (edge.door.check(peer, &request), &edge.stream) {
        (Err(problem), _) => {
            metrics::counter!("nearby_turned_away_total", "code" => problem.code).increment(1);
            problem.into_response()
        }
        (Ok(()), _) if preflight => Response::default(),
        (Ok(()), Some(stream)) if request.uri().path() == STREAM_PATH => stream(request).await,
        (Ok(()), _) => match edge.routes.clone().call(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        },
    };
    if response.status() == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(methods));
    }
    decorate(response.headers_mut(), api, origin);
    response
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
        let mut response = Response::new(crate::metrics::render().into());
        let content_type = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
        response
    });
    health.or(ready).unify().or(metrics).unify().boxed()
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
