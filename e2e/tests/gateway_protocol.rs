//! The gateway's side of client protocol 1, on `nearby run`: handshakes, refusals, limits, renewal, several sockets, and the
//! view without a WebSocket.

use anyhow::{Context, ensure};
use nearby_e2e::nearby::{Nearby, token, token_with};
use nearby_e2e::ws::{Closed, Refused, Socket};
use nearby_e2e::{http, ports};
use serde_json::{Value, json};
use std::time::Duration;

const SECRET: &str = "a secret for the tests alone";
const READY: Duration = Duration::from_secs(120);
const STEP: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_keeps_the_protocol() -> anyhow::Result<()> {
    let listen = format!("127.0.0.1:{}", ports::free_port()?);
    let mut nearby = Nearby::start(&["run", "--listen", &listen], &[("NEARBY_JWT_SECRET", SECRET)])?;
    let base = nearby.wait_ready(READY)?.http;
    let result = async {
        handshakes(&base).await.context("handshakes")?;
        frames_that_are_refused(&base).await.context("frames that are refused")?;
        frames_that_close(&base).await.context("frames that close")?;
        who_comes_again_and_again(&base).await.context("who comes again and again")?;
        renewal(&base).await.context("renewal")?;
        two_sockets_of_one_user(&base).await.context("two sockets of one user")?;
        events(&base).await.context("server-sent events")
    };
    result.await.map_err(|error| anyhow::anyhow!("{error:#}\n{}", nearby.stderr()))
}

fn stream(base: &str) -> String {
    format!("{}/v1/stream", base.replacen("http", "ws", 1))
}

/// A socket past its `welcome` and `snapshot`.
async fn connect(base: &str, user: i64) -> anyhow::Result<Socket> {
    let mut socket = Socket::connect(&stream(base), &token(SECRET, user, "")?).await?;
    socket.wait_frame("snapshot", STEP).await?;
    Ok(socket)
}

async fn handshakes(base: &str) -> anyhow::Result<()> {
    let mut socket = Socket::connect_with_header(&stream(base), &token(SECRET, 1, "")?).await?;
    ensure!(socket.next_frame(STEP).await?["type"] == "welcome", "the token may come in a header");
    for (bad, code) in [("nonsense", "bad_token"), ("", "bad_token")] {
        let error = Socket::connect(&stream(base), bad).await.err().context("a bad token is refused")?;
        let refused = error.downcast_ref::<Refused>().context("refused before the upgrade")?;
        ensure!(refused.status == 401 && refused.body.contains(code), "{bad:?}: {refused:?}");
    }
    // (headers, status, code): what is no WebSocket handshake.
    let bearer = format!("Bearer {}", token(SECRET, 1, "")?);
    let authorization = ("authorization", bearer.as_str());
    let upgrade = [("connection", "Upgrade"), ("upgrade", "websocket")];
    let key = ("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA==");
    let (version_8, version_13) = (("sec-websocket-version", "8"), ("sec-websocket-version", "13"));
    for (headers, status, code) in [
        (vec![], 401, "missing_token"),
        (vec![authorization], 426, "upgrade_required"),
        (vec![authorization, upgrade[0], upgrade[1], version_8, key], 400, "bad_handshake"),
        (vec![authorization, upgrade[0], upgrade[1], version_13], 400, "bad_handshake"),
    ] {
        let url = format!("{base}/v1/stream");
        let answer = http::request("GET", &url, &headers, Vec::new()).await?.expect_status(status)?;
        ensure!(answer.json()?["code"] == code, "{headers:?}: {}", answer.text());
        ensure!(answer.header("content-type") == Some("application/problem+json"), "{headers:?}");
        ensure!(answer.header("cache-control") == Some("no-store"), "{headers:?}");
    }
    Ok(())
}

/// Each gets its error, and the socket stays open.
async fn frames_that_are_refused(base: &str) -> anyhow::Result<()> {
    let mut socket = connect(base, 2).await?;
    let deep = format!("{{\"type\":\"unshare\",\"x\":{}{}}}", "[".repeat(40), "]".repeat(40));
    for (frame, code) in [
        ("{", "bad_json"),
        (deep.as_str(), "bad_json"),
        ("[]", "unknown_type"),
        (r#"{"type":"dance"}"#, "unknown_type"),
        (r#"{"type":"location","lat":91,"lon":0}"#, "out_of_range"),
        (r#"{"type":"location","lon":0}"#, "missing"),
        (r#"{"type":"location","lat":1,"lon":1e999}"#, "not_finite"),
        (r#"{"type":"location","lat":1,"lon":1,"reported_at_ms":1}"#, "too_old"),
        (r#"{"type":"location","lat":1,"lon":1,"reported_at_ms":99999999999999}"#, "in_future"),
        (r#"{"type":"location","lat":1,"lon":1,"precision":"vague"}"#, "unknown_precision"),
        (r#"{"type":"location","lat":1,"lon":1,"user_id":"9"}"#, "missing_scope"),
        (r#"{"type":"auth","token":"nonsense"}"#, "bad_token"),
    ] {
        socket.send_text(frame).await?;
        let error = socket.wait_frame("error", STEP).await?;
        ensure!(error["code"] == code && error["detail"].is_string(), "{frame}: {error}");
    }
    socket.send_binary(vec![1, 2, 3]).await?;
    ensure!(socket.wait_frame("error", STEP).await?["code"] == "binary_frame");
    for reference in [json!("mine"), json!(7)] {
        socket.send(&json!({"type": "location", "lat": 95, "lon": 0, "ref": reference})).await?;
        ensure!(socket.wait_frame("error", STEP).await?["ref"] == reference, "the ref comes back");
    }
    socket.send(&json!({"type": "location", "lat": 1, "lon": 1, "ref": "last"})).await?;
    ensure!(socket.wait_frame("accepted", STEP).await?["ref"] == "last", "the socket still works");
    Ok(())
}

async fn frames_that_close(base: &str) -> anyhow::Result<()> {
    let mut socket = connect(base, 3).await?;
    let padding = "x".repeat(64 * 1024);
    socket.send(&json!({"type": "unshare", "padding": padding})).await?;
    closed(&mut socket, 1009, "frame_too_large").await?;

    // Too many reports, and too much of anything else: nonsense, renewals with bad tokens, bytes, pings.
    let frames = [r#"{"type":"location","lat":1,"lon":1}"#, "{", r#"{"type":"auth","token":"x.y.z"}"#, "bytes", "ping"];
    for (user, frame) in (30..).zip(frames) {
        let mut socket = connect(base, user).await?;
        for _ in 0..300 {
            let sent = match frame {
                "bytes" => socket.send_binary(vec![0]).await,
                "ping" => socket.ping().await,
                _ => socket.send_text(frame).await,
            };
            // The server closes in the middle of it.
            if sent.is_err() {
                break;
            }
        }
        closed(&mut socket, 1008, "rate_limited").await.context(frame)?;
    }
    Ok(())
}

/// Each arrival costs a session in the log and a snapshot, and everybody shares the rate of arrivals.
async fn who_comes_again_and_again(base: &str) -> anyhow::Result<()> {
    for attempt in 0..1_000 {
        let Err(error) = Socket::connect(&stream(base), &token(SECRET, 40, "")?).await else { continue };
        let refused: Refused = error.downcast()?;
        ensure!(refused.status == 429 && refused.body.contains("rate_limited"), "attempt {attempt}: {refused:?}");
        ensure!(refused.retry_after_s.is_some_and(|after_s| after_s > 0), "{refused:?}");
        let bearer = format!("Bearer {}", token(SECRET, 40, "")?);
        let events =
            http::request("GET", &format!("{base}/v1/events"), &[("authorization", &bearer)], Vec::new()).await?;
        ensure!(events.expect_status(429)?.json()?["code"] == "rate_limited", "event streams are arrivals, too");
        connect(base, 41).await.context("others come in")?;
        return Ok(());
    }
    anyhow::bail!("a thousand sockets of one user were let in, one after the other")
}

async fn closed(socket: &mut Socket, code: u16, reason: &str) -> anyhow::Result<()> {
    let Closed { code: found, reason: said } = socket.wait_closed(STEP).await?;
    ensure!(found == code && said == reason, "closed with {found} {said:?}, expected {code} {reason:?}");
    Ok(())
}

async fn renewal(base: &str) -> anyhow::Result<()> {
    let short = |user: &str| token_with(SECRET, &["--user", user, "--valid-s", "3"]);
    let mut renewed = Socket::connect(&stream(base), &short("5")?).await?;
    let mut expiring = Socket::connect(&stream(base), &short("6")?).await?;
    renewed.send(&json!({"type": "auth", "token": token(SECRET, 7, "")?, "ref": 1})).await?;
    let error = renewed.wait_frame("error", STEP).await?;
    ensure!(error["code"] == "other_user", "nobody becomes somebody else: {error}");
    renewed.send(&json!({"type": "auth", "token": token(SECRET, 5, "")?, "ref": 2})).await?;
    ensure!(renewed.wait_frame("accepted", STEP).await?["ref"] == 2);
    closed(&mut expiring, 1008, "token_expired").await?;
    renewed.send(&json!({"type": "location", "lat": 1, "lon": 1, "ref": 3})).await?;
    ensure!(renewed.wait_frame("accepted", STEP).await?["ref"] == 3, "the renewed socket goes on");
    Ok(())
}

async fn two_sockets_of_one_user(base: &str) -> anyhow::Result<()> {
    befriend(base, 10, 11).await?;
    let mut first = connect(base, 10).await?;
    first.send(&json!({"type": "location", "lat": 50.0, "lon": 8.0, "ref": 0})).await?;
    first.wait_frame("accepted", STEP).await?;
    report(base, 11, 50.01).await?;
    first.wait_friend(11, STEP).await?;
    let mut second = Socket::connect(&stream(base), &token(SECRET, 10, "")?).await?;
    let snapshot = second.wait_frame("snapshot", STEP).await?;
    ensure!(snapshot["friends"][0]["id"] == "11", "the second socket sees what the first does: {snapshot}");
    first.close().await?;
    report(base, 11, 50.02).await?;
    let seen = second.wait_friend(11, STEP).await?;
    ensure!(seen["lat"] == 50.02, "the session goes on without the first socket: {seen}");
    Ok(())
}

/// The same frames as server-sent events.
async fn events(base: &str) -> anyhow::Result<()> {
    befriend(base, 20, 21).await?;
    report(base, 20, 50.0).await?;
    report(base, 21, 50.01).await?;
    let url = format!("{base}/v1/events");
    let bearer = format!("Bearer {}", token(SECRET, 20, "")?);
    let text = http::stream_until(&url, &[("authorization", &bearer)], "\"id\":\"21\"", STEP).await?;
    let frames: Vec<Value> = text
        .lines()
        .filter_map(|line| line.strip_prefix("data:"))
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let kinds: Vec<&str> = frames.iter().filter_map(|frame| frame["type"].as_str()).collect();
    // The friend's report and the session cross the log on different topics: either may be first.
    ensure!(kinds == ["welcome", "snapshot"] || kinds == ["welcome", "snapshot", "update"], "{text}");
    http::get(&url).await?.expect_status(401)?;
    Ok(())
}

async fn befriend(base: &str, one: i64, other: i64) -> anyhow::Result<()> {
    let lists = json!({"lists": {one.to_string(): [other.to_string()], other.to_string(): [one.to_string()]}});
    let url = format!("{base}/v1/friend-lists");
    http::post_json(&token(SECRET, 0, "friends:write")?, &url, &lists).await?.expect_status(202)?;
    Ok(())
}

async fn report(base: &str, user: i64, lat: f64) -> anyhow::Result<()> {
    let (url, place) = (format!("{base}/v1/locations"), json!({"lat": lat, "lon": 8.0}));
    http::post_json(&token(SECRET, user, "")?, &url, &place).await?.expect_status(202)?;
    Ok(())
}
