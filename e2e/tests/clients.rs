//! The WebSocket and HTTP clients, against servers of a few lines.

use std::future::Future;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use nearby_e2e::http::{get, post_json};
use nearby_e2e::ws::{Closed, Refused, Socket};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::{WebSocketStream, accept_hdr_async};

const SOON: Duration = Duration::from_secs(10);

/// Serves one connection; returns HOST:PORT.
async fn serve<F: Future<Output = ()> + Send + 'static>(one: impl FnOnce(TcpStream) -> F + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound").to_string();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("the client connects");
        one(stream).await;
    });
    address
}

#[expect(clippy::result_large_err, reason = "tungstenite's callback returns a whole response")]
fn check_token(request: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
    if request.headers().get("sec-websocket-protocol").is_none_or(|offer| offer != "nearby.v1, bearer.good") {
        let mut refusal = ErrorResponse::new(Some("bad token".to_owned()));
        *refusal.status_mut() = tokio_tungstenite::tungstenite::http::StatusCode::UNAUTHORIZED;
        return Err(refusal);
    }
    response.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static("nearby.v1"));
    Ok(response)
}

async fn upgraded(stream: TcpStream) -> WebSocketStream<TcpStream> {
    accept_hdr_async(stream, check_token).await.expect("a good token")
}

#[tokio::test]
async fn a_socket_reads_frames_and_the_close() {
    let address = serve(|stream| async move {
        let mut socket = upgraded(stream).await;
        for frame in [json!({"type": "welcome"}), json!({"type": "snapshot", "friends": []})] {
            socket.send(Message::text(frame.to_string())).await.expect("send");
        }
        let heard = socket.next().await.expect("a frame").expect("no error");
        socket.send(Message::text(format!(r#"{{"type":"accepted","heard":{heard}}}"#))).await.expect("send");
        let close = CloseFrame { code: 1008.into(), reason: "token_expired".into() };
        socket.close(Some(close)).await.expect("close");
    })
    .await;
    let mut socket = Socket::connect(&format!("ws://{address}/v1/stream"), "good").await.expect("connect");
    assert_eq!(socket.next_frame(SOON).await.expect("a frame")["type"], "welcome");
    socket.send(&json!({"type": "location"})).await.expect("send");
    let accepted = socket.wait_frame("accepted", SOON).await.expect("it comes after the snapshot");
    assert_eq!(accepted["heard"], json!({"type": "location"}));
    let error = socket.next_frame(SOON).await.expect_err("it is closed");
    let closed = Closed { code: 1008, reason: "token_expired".into() };
    assert_eq!(error.downcast_ref(), Some(&closed));
}

#[tokio::test]
async fn a_socket_tells_a_silent_server_from_one_that_vanished() {
    let (drop_it, dropped) = tokio::sync::oneshot::channel::<()>();
    let address = serve(|stream| async move {
        let mut socket = upgraded(stream).await;
        socket.send(Message::text(r#"{"type":"welcome"}"#)).await.expect("send");
        dropped.await.expect("the test says when");
    })
    .await;
    let mut socket = Socket::connect(&format!("ws://{address}/v1/stream"), "good").await.expect("connect");
    let error = socket.wait_frame("update", Duration::from_millis(50)).await.expect_err("none comes");
    assert!(error.downcast_ref::<Closed>().is_none() && format!("{error:#}").contains("welcome"), "{error:#}");
    drop_it.send(()).expect("the server waits");
    assert_eq!(socket.wait_closed(SOON).await.expect("it vanishes").code, 1006);
}

#[tokio::test]
async fn a_refused_socket_shows_the_status() {
    let address = serve(|stream| async move {
        accept_hdr_async(stream, check_token).await.expect_err("a bad token");
    })
    .await;
    let error = Socket::connect(&format!("ws://{address}/v1/stream"), "bad").await.expect_err("401");
    assert_eq!(error.downcast_ref::<Refused>().map(|refused| refused.status), Some(401), "{error:#}");
}

#[tokio::test]
async fn a_post_arrives_whole_and_its_answer_is_read() {
    let (sender, received) = tokio::sync::oneshot::channel();
    let address = serve(|mut stream| async move {
        let mut request = Vec::new();
        while !request.ends_with(b"}") {
            stream.read_buf(&mut request).await.expect("read");
        }
        let answer = "HTTP/1.1 202 Accepted\r\ncontent-length: 14\r\nretry-after: 1\r\n\r\n{\"accepted\":1}";
        stream.write_all(answer.as_bytes()).await.expect("write");
        sender.send(String::from_utf8(request).expect("text")).expect("the test waits");
    })
    .await;
    let url = format!("http://{address}/v1/locations?a=b");
    let answer = post_json("good", &url, &json!({"lat": 1})).await.expect("an answer");
    let answer = answer.expect_status(202).expect("accepted");
    assert_eq!(answer.json().expect("JSON"), json!({"accepted": 1}));
    assert_eq!(answer.header("retry-after"), Some("1"));
    let request = received.await.expect("it arrived");
    assert!(request.starts_with("POST /v1/locations?a=b HTTP/1.1\r\n"), "{request}");
    for part in [&format!("host: {address}"), "authorization: Bearer good", "application/json", "\r\n\r\n{\"lat\":1}"] {
        assert!(request.contains(part), "{part} is not in {request}");
    }
}

#[tokio::test]
async fn a_failed_request_names_what_was_asked() {
    let error = get("http://127.0.0.1:1/healthz").await.expect_err("nobody listens there");
    assert!(format!("{error:#}").starts_with("GET http://127.0.0.1:1/healthz: connect: "), "{error:#}");
}
