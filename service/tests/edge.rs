//! The HTTP edge over real sockets: who is turned away, who is cut off, and that the others do not notice.

use nearby_service::Stop;
use nearby_service::health::Readiness;
use nearby_service::http::{Door, HEAD_BYTES_MAX, StreamHandler, operations, serve};
use nearby_service::problem::json;
use nearby_service::settings::AccessSettings;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use warp::Filter;

/// What the edge gives a client to send its head, and some more for a busy machine.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const SLACK: Duration = Duration::from_secs(10);

/// A running edge with one route and a stand-in for the gateway; ends when dropped.
struct World {
    address: SocketAddr,
    stop: Stop,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn access() -> AccessSettings {
    let number = |number| NonZeroU32::new(number).expect("not zero");
    AccessSettings {
        allowed_hosts: vec!["nearby.test".to_owned()],
        address_rate_per_s: number(1),
        address_burst: number(1_000),
        trusted_proxies: Vec::new(),
        http_connections_max: 100,
        tls_cert: None,
        tls_key: None,
    }
}

impl World {
    async fn start(access: &AccessSettings) -> World {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("bound");
        let door = Door::new(address, None, access, &["https://app.example".to_owned()]).expect("good settings");
        let hello = warp::path!("v1" / "hello").map(|| json(http::StatusCode::OK, &serde_json::json!("hello")));
        let routes = hello.boxed().or(operations(Readiness::default())).unify().boxed();
        let stream: StreamHandler =
            Arc::new(|_| Box::pin(async { json(http::StatusCode::IM_A_TEAPOT, &serde_json::json!("stream")) }));
        let stop = Stop::new();
        tokio::spawn(serve(listener, routes, Some(stream), door, stop.clone()));
        World { address, stop }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("connects")
    }

    /// The answer to a request with these header lines, on a connection of its own.
    async fn get(&self, path: &str, headers: &[&str]) -> String {
        get(self.connect().await, path, headers).await
    }
}

async fn get(mut socket: impl AsyncRead + AsyncWrite + Unpin, path: &str, headers: &[&str]) -> String {
    let head = format!("GET {path} HTTP/1.1\r\nconnection: close\r\n{}\r\n\r\n", headers.join("\r\n"));
    // It may be turned away before it has said everything.
    socket.write_all(head.as_bytes()).await.ok();
    to_the_end(&mut socket).await
}

async fn to_the_end(socket: &mut (impl AsyncRead + Unpin)) -> String {
    let mut answer = Vec::new();
    let read = timeout(HEADER_TIMEOUT + SLACK, socket.read_to_end(&mut answer)).await;
    // A connection that is cut off may be reset.
    read.expect("the connection ends").ok();
    String::from_utf8(answer).expect("text").to_lowercase()
}

#[tokio::test]
async fn strangers_are_turned_away() {
    let world = World::start(&access()).await;
    let own = format!("host: {}", world.address);
    for (path, headers, status, part) in [
        ("/v1/hello", vec![own.as_str()], 200, "\"hello\""),
        ("/v1/hello", vec!["host: nearby.test"], 200, "\"hello\""),
        ("/v1/hello", vec!["host: evil.example"], 421, "\"code\":\"wrong_host\""),
        ("/v1/hello", vec![&own, "host: evil.example"], 421, "cache-control: no-store"),
        ("/v1/hello", vec!["x: y"], 421, "application/problem+json"),
        ("http://evil.example/v1/hello", vec![&own], 421, "wrong_host"),
        ("/v1/stream", vec!["host: evil.example"], 421, "wrong_host"),
        ("/", vec!["host: evil.example"], 421, "wrong_host"),
        ("/healthz", vec!["host: 10.0.0.1:8080"], 200, "ok"),
        ("/readyz", vec!["host: pod"], 200, "true"),
        ("/metrics", vec!["x: y"], 200, "text/plain"),
        ("/v1/stream", vec![&own], 418, "stream"),
        (
            "/v1/stream",
            vec![&own, "origin: https://app.example"],
            418,
            "access-control-allow-origin: https://app.example",
        ),
        ("/v1/stream", vec![&own, "origin: https://evil.example"], 403, "\"code\":\"origin_not_allowed\""),
        ("/v1/stream", vec![&own, "origin: null"], 403, "origin_not_allowed"),
        ("/v1/hello", vec![&own, "origin: https://evil.example"], 200, "\"hello\""),
    ] {
        let answer = world.get(path, &headers).await;
        let first = format!("http/1.1 {status} ");
        assert!(answer.starts_with(&first) && answer.contains(part), "{path} {headers:?}: {answer}");
    }
    let same = format!("origin: http://{}", world.address);
    assert!(world.get("/v1/stream", &[&own, &same]).await.starts_with("http/1.1 418"));
    let answer = world.get("/v1/hello", &[&own, "origin: https://evil.example"]).await;
    assert!(!answer.contains("access-control"), "a stranger's page may not read it: {answer}");
}

#[tokio::test]
async fn an_address_has_a_rate() {
    let access = AccessSettings { address_burst: NonZeroU32::new(3).expect("not zero"), ..access() };
    let world = World::start(&access).await;
    let own = format!("host: {}", world.address);
    let mut refused = Vec::new();
    for path in ["/v1/hello", "/metrics"] {
        let (before, deadline) = (refused.len(), Instant::now() + Duration::from_secs(30));
        // On a busy machine a round of requests may take as long as the bucket takes to fill.
        while refused.len() == before {
            assert!(Instant::now() < deadline, "{path}: 3 at once and 1 a second, but all of 10 were answered");
            let headers = [own.as_str()];
            let answers = futures_util::future::join_all((0..10).map(|_| world.get(path, &headers))).await;
            refused.extend(answers.into_iter().filter(|answer| !answer.starts_with("http/1.1 200")));
        }
        let probe = world.get("/healthz", &[&own]).await;
        assert!(probe.starts_with("http/1.1 200"), "a probe is answered whatever else its address asks: {probe}");
    }
    for answer in refused {
        assert!(answer.starts_with("http/1.1 429") && answer.contains("\r\nretry-after: 1\r\n"), "{answer}");
        assert!(answer.contains("rate_limited") && answer.contains("from this address"), "{answer}");
    }
}

#[tokio::test]
async fn a_head_is_neither_long_nor_slow() {
    let world = World::start(&access()).await;
    let own = format!("host: {}", world.address);
    let long = format!("x: {}", "y".repeat(HEAD_BYTES_MAX));
    assert!(world.get("/v1/hello", &[&own, &long]).await.starts_with("http/1.1 431"));
    let many = vec!["x: y"; 101];
    assert!(world.get("/v1/hello", &many).await.starts_with("http/1.1 431"));
    let token = format!("authorization: bearer {}", "y".repeat(HEAD_BYTES_MAX / 2));
    assert!(world.get("/v1/hello", &[&own, &token]).await.starts_with("http/1.1 200"));

    // A byte a second for ever, nothing at all, and nothing after an answer.
    let (mut slow, mut silent, mut idle) = (world.connect().await, world.connect().await, world.connect().await);
    idle.write_all(format!("GET /v1/hello HTTP/1.1\r\n{own}\r\n\r\n").as_bytes()).await.expect("writes");
    let started = Instant::now();
    let drip = async {
        loop {
            if slow.write_all(b"G").await.is_err() || started.elapsed() > HEADER_TIMEOUT + SLACK {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            // The others do not notice.
            let asked = Instant::now();
            assert!(world.get("/v1/hello", &[&own]).await.starts_with("http/1.1 200"));
            assert!(asked.elapsed() < Duration::from_secs(5));
        }
    };
    let ((), _, _) = tokio::join!(drip, to_the_end(&mut silent), to_the_end(&mut idle));
    assert!(started.elapsed() < HEADER_TIMEOUT + SLACK, "one of them was held for {:?}", started.elapsed());
    assert!(started.elapsed() > HEADER_TIMEOUT / 2, "they were given time");
}

#[tokio::test]
async fn connections_are_bounded() {
    let world = World::start(&AccessSettings { http_connections_max: 2, ..access() }).await;
    let own = format!("host: {}", world.address);
    let held = [world.connect().await, world.connect().await];
    let mut third = world.connect().await;
    third
        .write_all(format!("GET /v1/hello HTTP/1.1\r\nconnection: close\r\n{own}\r\n\r\n").as_bytes())
        .await
        .expect("writes");
    let mut byte = [0];
    assert!(timeout(Duration::from_secs(2), third.read(&mut byte)).await.is_err(), "it waits for a place");
    drop(held);
    assert!(to_the_end(&mut third).await.starts_with("http/1.1 200"), "and gets one");
}

/// A certificate for localhost that vouches for itself.
fn make_certificate(folder: &Path, name: &str) {
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", &format!("/CN={name}"), "-addext", "subjectAltName=DNS:localhost"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-keyout", "key.pem", "-out", "certificate.pem"])
        .current_dir(folder)
        .output();
    let made = made.expect("openssl is installed");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

async fn tls(world: &World, folder: &Path) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    use rustls::pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    let certificate = rustls::pki_types::CertificateDer::from_pem_file(folder.join("certificate.pem"));
    roots.add(certificate.expect("a certificate")).expect("a root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("versions").with_root_certificates(roots).with_no_client_auth();
    let name = "localhost".try_into().expect("a name");
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, world.connect().await).await
}

#[tokio::test]
async fn tls_with_a_certificate_that_is_renewed() {
    let (folder, known) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let (folder, known) = (folder.path(), known.path());
    let keep = |file: &str| std::fs::copy(folder.join(file), known.join(file)).expect("copies");
    make_certificate(folder, "the first");
    keep("certificate.pem");
    let (tls_cert, tls_key) = (folder.join("certificate.pem"), folder.join("key.pem"));
    let access = AccessSettings { tls_cert: Some(tls_cert), tls_key: Some(tls_key.clone()), ..access() };
    let world = World::start(&access).await;
    let socket = tls(&world, known).await.expect("a handshake");
    assert!(get(socket, "/v1/hello", &["host: localhost"]).await.starts_with("http/1.1 200"));
    let plain = world.get("/v1/hello", &["host: localhost"]).await;
    assert!(!plain.contains("hello"), "without TLS there is nothing: {plain}");
    let (mut silent, started) = (world.connect().await, Instant::now());

    // A key that does not belong to the certificate changes nothing.
    let other = tempfile::tempdir().expect("a folder");
    make_certificate(other.path(), "another");
    std::fs::copy(other.path().join("key.pem"), &tls_key).expect("copies");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(tls(&world, known).await.is_ok(), "the old pair is still in use");

    make_certificate(folder, "the second");
    let deadline = Instant::now() + Duration::from_secs(20);
    while tls(&world, folder).await.is_err() {
        assert!(Instant::now() < deadline, "the new certificate is not in use");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(tls(&world, known).await.is_err(), "the old one is not any more");
    to_the_end(&mut silent).await;
    assert!(started.elapsed() < HEADER_TIMEOUT + SLACK, "a handshake that does not come is not waited for");

    let settings = AccessSettings { tls_key: Some(other.path().join("key.pem")), ..access };
    let refused = Door::new(world.address, None, &settings, &[]).err().expect("they do not fit");
    assert!(refused.starts_with("--tls-cert, --tls-key: the certificate and the key: "), "{refused}");
}
