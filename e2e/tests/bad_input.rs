//! What strangers send, to a running server: each gets its clear error, and nothing is lost. After every single one of them a good
//! report is accepted, on the same socket where the protocol keeps it open, and at the end history has all of those.

use anyhow::{Context, ensure};
use nearby_e2e::nearby::{Nearby, token};
use nearby_e2e::raw::{BINARY, CONTINUATION, FIN, PING, PONG, Raw, TEXT};
use nearby_e2e::ws::Socket;
use nearby_e2e::{http, ports, postgres};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const SECRET: &str = "a secret for the tests alone";
/// The first start on a machine downloads Postgres.
const READY: Duration = Duration::from_secs(120);
const STEP: Duration = Duration::from_secs(10);
const FRAME_BYTES_MAX: usize = 64 * 1024;
const USER: i64 = 5;

/// A server, and how many good reports it has accepted.
struct World {
    base: String,
    token: String,
    accepted: u32,
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_get_clear_errors_and_nothing_is_lost() -> anyhow::Result<()> {
    let listen = format!("127.0.0.1:{}", ports::free_port()?);
    let mut nearby =
        Nearby::start(&["run", "--listen", &listen, "--user-burst", "100000"], &[("NEARBY_JWT_SECRET", SECRET)])?;
    let addresses = nearby.wait_ready(READY)?;
    let mut world = World { base: addresses.http, token: token(SECRET, USER, "")?, accepted: 0 };
    world.frames().await.context("frames")?;
    world.messages().await.context("messages")?;
    world.broken_frames().await.context("broken frames")?;
    world.handshakes().await.context("handshakes")?;
    world.bodies().await.context("bodies")?;

    let count = format!("select count(*) from nearby.location_history where user_id = {USER}");
    let deadline = Instant::now() + STEP;
    loop {
        let found = postgres::psql(&addresses.database, &count)?;
        if found.trim() == world.accepted.to_string() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{found:?} in the history, {} were accepted", world.accepted);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

impl World {
    fn stream(&self) -> String {
        format!("{}/v1/stream", self.base.replacen("http", "ws", 1))
    }

    async fn good_frame(&mut self, socket: &mut Socket) -> anyhow::Result<()> {
        socket.send(&json!({"type": "location", "lat": 50, "lon": 8, "ref": "good"})).await?;
        let accepted = socket.wait_frame("accepted", STEP).await?;
        ensure!(accepted["ref"] == "good", "{accepted}");
        self.accepted += 1;
        Ok(())
    }

    async fn good_body(&mut self) -> anyhow::Result<()> {
        let url = format!("{}/v1/locations", self.base);
        let good = json!({"lat": 50, "lon": 8});
        http::post_json(&self.token, &url, &good).await?.expect_status(202)?;
        self.accepted += 1;
        Ok(())
    }

    /// Each is refused with its code, and a good one on the same socket is accepted.
    async fn frames(&mut self) -> anyhow::Result<()> {
        let mut socket = Socket::connect(&self.stream(), &self.token).await?;
        let refs = json!({"type": "location", "lat": 50, "lon": 8, "ref": "r".repeat(1000)});
        for (frame, code) in bad_frames() {
            socket.send_text(&frame).await?;
            let error = socket.wait_frame("error", STEP).await.with_context(|| frame.clone())?;
            ensure!(error["code"] == code, "{frame}: {error}, expected {code}");
            ensure!(error["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{frame}: {error}");
            self.good_frame(&mut socket).await.with_context(|| format!("after {frame}"))?;
        }
        socket.send(&refs).await?;
        ensure!(socket.wait_frame("accepted", STEP).await?["ref"] == refs["ref"], "a long ref is echoed whole");
        self.accepted += 1;
        Ok(())
    }

    /// Fragments are put together, whatever comes between them; a binary message is refused.
    async fn messages(&mut self) -> anyhow::Result<()> {
        let mut raw = Raw::upgrade(&self.base, &self.token, STEP).await?;
        raw.frame(TEXT, br#"{"type":"location","lat":50,"#).await?;
        raw.frame(FIN | PING, b"in between").await?;
        // In the middle of a character of two bytes.
        raw.frame(CONTINUATION, b"\"lon\":8,\"ref\":\"\xc3").await?;
        raw.frame(FIN | CONTINUATION, b"\xa9\"}").await?;
        let mut ponged = false;
        loop {
            let (first, payload) = raw.next().await?;
            ponged |= first == FIN | PONG && payload == b"in between";
            if payload.starts_with(br#"{"type":"accepted""#) {
                ensure!(String::from_utf8(payload)?.contains(r#""ref":"é""#), "the ref comes back");
                break;
            }
        }
        ensure!(ponged, "the ping was answered");
        self.accepted += 1;
        // One byte a frame, as many as a small message has.
        let text = br#"{"type":"location","lat":50,"lon":8,"ref":"bytes"}"#;
        for (index, byte) in text.iter().enumerate() {
            let first = if index == 0 { TEXT } else { CONTINUATION };
            raw.frame(if index + 1 == text.len() { first | FIN } else { first }, &[*byte]).await?;
        }
        until(&mut raw, "\"ref\":\"bytes\"").await?;
        self.accepted += 1;
        raw.frame(FIN | BINARY, br#"{"type":"location","lat":50,"lon":8}"#).await?;
        until(&mut raw, "binary_frame").await?;
        raw.frame(FIN | TEXT, b"").await?;
        until(&mut raw, "bad_json").await?;
        // As large as may be.
        let mut text = br#"{"type":"location","lat":50,"lon":8,"ref":"large""#.to_vec();
        text.resize(FRAME_BYTES_MAX - 1, b' ');
        text.push(b'}');
        raw.frame(FIN | TEXT, &text).await?;
        until(&mut raw, "\"ref\":\"large\"").await?;
        self.accepted += 1;
        Ok(())
    }

    /// Each closes the socket with its code, and the next socket is as good as ever.
    async fn broken_frames(&mut self) -> anyhow::Result<()> {
        let half = vec![b' '; FRAME_BYTES_MAX / 2 + 1];
        let over = vec![b' '; FRAME_BYTES_MAX + 1];
        let frame = nearby_e2e::raw::masked;
        let unmasked = [&[FIN | TEXT, 2][..], b"{}"].concat();
        let cases: [(&str, Vec<u8>, u16, &str); 13] = [
            ("a frame that is too big", frame(FIN | TEXT, &over), 1009, "frame_too_large"),
            ("a binary one", frame(FIN | BINARY, &over), 1009, "frame_too_large"),
            (
                "fragments that are too big together",
                [frame(TEXT, &half), frame(FIN | CONTINUATION, &half)].concat(),
                1009,
                "frame_too_large",
            ),
            ("a length of 2^63 - 1", [&[FIN | TEXT, 0xFF, 0x7F][..], &[0xFF; 11]].concat(), 1009, "frame_too_large"),
            ("text that is no UTF-8", frame(FIN | TEXT, b"{\"type\":\"\xff\"}"), 1007, "bad_utf8"),
            ("half a character", frame(FIN | TEXT, b"\xc3"), 1007, "bad_utf8"),
            ("a surrogate in UTF-8", frame(FIN | TEXT, b"\xed\xa0\x80"), 1007, "bad_utf8"),
            ("a frame without a mask", unmasked, 1002, "protocol_error"),
            ("a reserved bit", frame(FIN | 0x40 | TEXT, b"{}"), 1002, "protocol_error"),
            ("a reserved opcode", frame(FIN | 0x3, b"{}"), 1002, "protocol_error"),
            ("a fragment of nothing", frame(FIN | CONTINUATION, b"{}"), 1002, "protocol_error"),
            ("a ping in fragments", frame(PING, b"x"), 1002, "protocol_error"),
            ("a ping that is too long", frame(FIN | PING, &[b'x'; 126]), 1002, "protocol_error"),
        ];
        for (what, bytes, code, reason) in cases {
            let mut raw = Raw::upgrade(&self.base, &self.token, STEP).await?;
            until(&mut raw, "\"snapshot\"").await?;
            raw.frame(FIN | TEXT, br#"{"type":"location","lat":50,"lon":8,"ref":"before"}"#).await?;
            until(&mut raw, "\"accepted\"").await?;
            self.accepted += 1;
            raw.send(&bytes).await.with_context(|| what.to_owned())?;
            let closed = raw.closed().await.with_context(|| what.to_owned())?;
            ensure!(closed == (code, reason.to_owned()), "{what}: closed with {closed:?}, expected {code} {reason}");
            let mut socket = Socket::connect(&self.stream(), &self.token).await?;
            self.good_frame(&mut socket).await.with_context(|| format!("after {what}"))?;
        }
        Ok(())
    }

    /// Each is refused over HTTP, and says why.
    async fn handshakes(&mut self) -> anyhow::Result<()> {
        let bearer = format!("authorization: Bearer {}\r\n", self.token);
        let (upgrade, version) = ("connection: upgrade\r\nupgrade: websocket\r\n", "sec-websocket-version: 13\r\n");
        let key = "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        let host = self.base.trim_start_matches("http://");
        let get = |headers: &[&str]| format!("GET /v1/stream HTTP/1.1\r\nhost: {host}\r\n{}\r\n", headers.concat());
        let long = format!("x-long: {}\r\n", "x".repeat(1024 * 1024));
        let cases = [
            ("no token", get(&[upgrade, version, key]), "401", "missing_token"),
            ("garbage for a token", get(&["authorization: Bearer x\r\n", upgrade, version, key]), "401", "bad_token"),
            ("no key", get(&[&bearer, upgrade, version]), "400", "bad_handshake"),
            ("a short key", get(&[&bearer, upgrade, version, "sec-websocket-key: AAAA\r\n"]), "400", "bad_handshake"),
            ("version 12", get(&[&bearer, upgrade, "sec-websocket-version: 12\r\n", key]), "400", "bad_handshake"),
            ("no version", get(&[&bearer, upgrade, key]), "400", "bad_handshake"),
            (
                "another upgrade",
                get(&[&bearer, "connection: upgrade\r\nupgrade: h2c\r\n", version, key]),
                "426",
                "upgrade_required",
            ),
            ("no upgrade", get(&[&bearer, version, key]), "426", "upgrade_required"),
            (
                "an upgrade that the connection does not name",
                get(&[&bearer, "connection: keep-alive\r\nupgrade: websocket\r\n", version, key]),
                "426",
                "upgrade_required",
            ),
            (
                "another method",
                format!(
                    "POST /v1/stream HTTP/1.1\r\nhost: {host}\r\ncontent-length: 0\r\n{bearer}{upgrade}{version}{key}\r\n"
                ),
                "405",
                "method_not_allowed",
            ),
            // What is no HTTP at all has no body to explain it.
            ("no HTTP", "nonsense\r\n\r\n".to_owned(), "400", ""),
            ("TLS, where there is none", "\x16\x03\x01\x02\0\x01\0\x01\u{7f}\x03\x03\r\n\r\n".to_owned(), "400", ""),
            ("a head that is too long", get(&[&bearer, &long, upgrade, version, key]), "431", ""),
        ];
        for (what, request, status, code) in cases {
            let mut raw = Raw::connect(&self.base, STEP).await?;
            // The server may have answered before it was all sent.
            raw.send(request.as_bytes()).await.ok();
            let head = raw.head().await.with_context(|| what.to_owned())?;
            ensure!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{what}: {head}");
            if !code.is_empty() {
                ensure!(head.contains("content-type: application/problem+json"), "{what}: {head}");
                raw.until(code.as_bytes()).await.with_context(|| what.to_owned())?;
            }
            let mut socket = Socket::connect(&self.stream(), &self.token).await?;
            self.good_frame(&mut socket).await.with_context(|| format!("after {what}"))?;
        }
        Ok(())
    }

    /// The same faults in bodies.
    async fn bodies(&mut self) -> anyhow::Result<()> {
        let url = format!("{}/v1/locations", self.base);
        let bearer = format!("Bearer {}", self.token);
        let of_frames = bad_frames().into_iter().filter(|(frame, code)| {
            *code != "unknown_type"
                && !frame.contains("\"ref\"")
                && !frame.contains("unshare")
                && !frame.contains("auth")
        });
        let more = [
            (b"".to_vec(), "bad_json"),
            (b"\xff\xfe".to_vec(), "bad_json"),
            (b"\xef\xbb\xbf{\"lat\":1,\"lon\":1}".to_vec(), "bad_json"),
            (b"{\"lat\":1,\"lon\":1,\"x\":\"\xc3\"}".to_vec(), "bad_json"),
            (b"7".to_vec(), "wrong_type"),
            (b"[[]]".to_vec(), "wrong_type"),
            (b"[{\"lat\":1,\"lon\":1},{\"lat\":1,\"lon\":\"x\"}]".to_vec(), "wrong_type"),
            (format!("[{}{{}}]", "{},".repeat(1000)).into_bytes(), "too_many"),
        ];
        for (body, code) in of_frames.map(|(frame, code)| (frame.into_bytes(), code)).chain(more) {
            let shown = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
            let answer = http::request("POST", &url, &[("authorization", &bearer)], body).await?;
            let status = if code == "missing_scope" { 403 } else { 400 };
            let problem: Value = answer.expect_status(status).with_context(|| shown.clone())?.json()?;
            ensure!(problem["code"] == code && problem["detail"].is_string(), "{shown}: {problem}, expected {code}");
            self.good_body().await.with_context(|| format!("after {shown}"))?;
        }
        let big = " ".repeat(1024 * 1024 + 1);
        let answer = http::request("POST", &url, &[("authorization", &bearer)], big).await?;
        ensure!(answer.expect_status(413)?.json()?["code"] == "too_large");
        self.good_body().await
    }
}

/// Text that is no good frame, and the code of the refusal.
fn bad_frames() -> Vec<(String, &'static str)> {
    let nested = |levels: usize| {
        let (open, close) = ("[".repeat(levels - 1), "]".repeat(levels - 1));
        format!(r#"{{"type":"location","lat":1,"lon":1,"x":{open}{close}}}"#)
    };
    let with = |more: &str| format!(r#"{{"type":"location","lat":1,"lon":1,{more}}}"#);
    let now_ms =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_millis());
    let mut cases: Vec<(String, &'static str)> = [
        ("", "bad_json"),
        ("{", "bad_json"),
        ("{}}", "bad_json"),
        ("{'type':'location'}", "bad_json"),
        (r#"{"type":"location","lat":NaN,"lon":1}"#, "bad_json"),
        (r#"{"type":"location","lat":Infinity,"lon":1}"#, "bad_json"),
        (r#"{"type":"location","lat":+1,"lon":1}"#, "bad_json"),
        (r#"{"type":"location","lat":01,"lon":1}"#, "bad_json"),
        (r#"{"type":"location","lat":0x1,"lon":1}"#, "bad_json"),
        (r#"{"type":"location","lat":1,"lon":1,"x":"\ud800"}"#, "bad_json"),
        (r#"{"type":"location","lat":1e999,"lon":1}"#, "not_finite"),
        (r#"{"type":"location","lat":1,"lon":1,"x":-1e999}"#, "not_finite"),
        (r#"{"type":"location","lat":1e308,"lon":1}"#, "out_of_range"),
        (r#"{"type":"location","lat":90.0000001,"lon":1}"#, "out_of_range"),
        (r#"{"type":"location","lat":1,"lon":-180.0000001}"#, "out_of_range"),
        (r#"{"type":"location","lat":"1","lon":1}"#, "wrong_type"),
        (r#"{"type":"location","lat":null,"lon":1}"#, "wrong_type"),
        (r#"{"type":"location","lat":[1],"lon":1}"#, "wrong_type"),
        (r#"{"type":"location","lon":1}"#, "missing"),
        (r#"{"type":"unshare","reported_at_ms":"now"}"#, "wrong_type"),
        (r#"{"type":"auth"}"#, "missing"),
        (r#"{"type":"auth","token":"x"}"#, "bad_token"),
        ("[]", "unknown_type"),
        ("7", "unknown_type"),
        ("null", "unknown_type"),
        ("{}", "unknown_type"),
        (r#"{"type":null}"#, "unknown_type"),
        (r#"{"type":"Location","lat":1,"lon":1}"#, "unknown_type"),
        (r#"{"type":"dance"}"#, "unknown_type"),
    ]
    .map(|(text, code)| (text.to_owned(), code))
    .into();
    for (more, code) in [
        (r#""ref":{}"#, "wrong_type"),
        (r#""ref":true"#, "wrong_type"),
        (r#""accuracy_m":-1"#, "out_of_range"),
        (r#""accuracy_m":1e39"#, "out_of_range"),
        (r#""speed_mps":"fast""#, "wrong_type"),
        (r#""heading_deg":361"#, "out_of_range"),
        (r#""precision":"vague""#, "unknown_precision"),
        (r#""precision":1"#, "wrong_type"),
        (r#""user_id":9223372036854775808"#, "bad_id"),
        (r#""user_id":"9223372036854775808""#, "bad_id"),
        (r#""user_id":1e300"#, "bad_id"),
        (r#""user_id":-1"#, "bad_id"),
        (r#""user_id":"07""#, "bad_id"),
        (r#""user_id":1.5"#, "wrong_type"),
        (r#""user_id":"9""#, "missing_scope"),
        (r#""reported_at_ms":1"#, "too_old"),
        (r#""reported_at_ms":-9223372036854775808"#, "too_old"),
        (r#""reported_at_ms":9223372036854775807"#, "in_future"),
        (r#""reported_at_ms":1e300"#, "in_future"),
        (r#""reported_at_ms":1.5"#, "wrong_type"),
    ] {
        cases.push((with(more), code));
    }
    cases.push((with(&format!(r#""reported_at_ms":{}"#, now_ms + 120_000)), "in_future"));
    cases.extend([(nested(33), "bad_json"), (nested(10_000), "bad_json")]);
    cases
}

/// Reads up to a frame that holds this.
async fn until(raw: &mut Raw, text: &str) -> anyhow::Result<()> {
    loop {
        let (_, payload) = raw.next().await.with_context(|| format!("no frame with {text}"))?;
        if String::from_utf8_lossy(&payload).contains(text) {
            return Ok(());
        }
    }
}
