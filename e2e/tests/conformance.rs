//! Clients that others wrote are at home: Python's websockets, Node's ws, k6, curl; and `web/nearby.js` in Node. Chromium is in `page`
//! and `handshake`. Each says what it has seen, and it is the same for all.

use anyhow::{Context, ensure};
use nearby_e2e::nearby::{Nearby, token};
use nearby_e2e::{http, ports, programs};
use serde_json::{Value, json};
use std::process::Command;
use std::time::Duration;

const SECRET: &str = "a secret for the tests alone";
/// The first start on a machine downloads Postgres.
const READY: Duration = Duration::from_secs(120);
/// So long curl listens to what does not end; it then ends with this code.
const CURL_LISTENS: &str = "4";
const CURL_TIMED_OUT: i32 = 28;

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_others_are_at_home() -> anyhow::Result<()> {
    let listen = format!("127.0.0.1:{}", ports::free_port()?);
    let args = ["run", "--listen", &listen, "--dev-tokens"];
    let mut nearby = Nearby::start(&args, &[("NEARBY_JWT_SECRET", SECRET)])?;
    let base = nearby.wait_ready(READY)?.http;

    let expected = json!({"offered": true, "extensions": "", "subprotocol": "nearby.v1", "first": ["welcome", "snapshot"],
        "pong": true, "whole": "whole", "fragmented": "in three", "moved": [50.01, 1112], "closed": [1000, "enough"],
        "too big": [1009, "frame_too_large"], "bad token": 401});
    let (anna, ben) = pair(&base, 11).await?;
    let python = programs::python("websocket_client.py", &[&base, &anna, &ben]).context("Python's websockets")?;
    agrees(&python, &expected).context("Python's websockets")?;
    let (anna, ben) = pair(&base, 21).await?;
    let node = programs::node(&[], "websocket_client.mjs", &[&base, &anna, &ben]).context("Node's ws")?;
    agrees(&node, &expected).context("Node's ws")?;

    let (anna, ben) = pair(&base, 31).await?;
    let ours = programs::node(&[], "nearby_client.mjs", &[&base, &anna, &ben]).context("web/nearby.js")?;
    let expected = json!({"friends": [], "acknowledged": true, "refused": "out_of_range", "view": [[50.01, 1112]],
        "state": "closed"});
    agrees(&ours, &expected).context("web/nearby.js")?;

    programs::k6("clients.js", &[("URL", &base)]).context("k6")?;
    curl_listens(&base).await.context("curl")
}

/// Tokens of two who see each other.
async fn pair(base: &str, first: i64) -> anyhow::Result<(String, String)> {
    let (one, other) = (first.to_string(), (first + 1).to_string());
    let lists = json!({"lists": {&one: [&other], &other: [&one]}});
    let lists_url = format!("{base}/v1/friend-lists");
    http::post_json(&token(SECRET, 0, "friends:write")?, &lists_url, &lists).await?.expect_status(202)?;
    Ok((token(SECRET, first, "")?, token(SECRET, first + 1, "")?))
}

fn agrees(said: &str, expected: &Value) -> anyhow::Result<()> {
    let seen: Value = serde_json::from_str(said).with_context(|| said.to_owned())?;
    ensure!(seen == *expected, "it has seen {seen}, expected {expected}");
    Ok(())
}

/// Reports, polls, listens to server-sent events, and opens a WebSocket as far as curl of Debian 12 can: the answer's head and
/// the first frames, whose text is in the bytes.
async fn curl_listens(base: &str) -> anyhow::Result<()> {
    let (anna, ben) = pair(base, 41).await?;
    let (anna, ben) = (format!("Authorization: Bearer {anna}"), format!("Authorization: Bearer {ben}"));
    let url = |path: &str| format!("{base}{path}");
    for (who, place) in [(&anna, r#"{"lat":50,"lon":8}"#), (&ben, r#"{"lat":50.01,"lon":8}"#)] {
        let said = curl(&["-H", who, "-d", place, &url("/v1/locations")], 0)?;
        ensure!(said == r#"{"accepted":1}"#, "{said}");
    }
    let refused = curl(&["-H", &anna, "-d", "{", "-w", " %{http_code}", &url("/v1/locations")], 0)?;
    ensure!(refused.contains(r#""code":"bad_json""#) && refused.ends_with(" 400"), "{refused}");
    let polled: Value = serde_json::from_str(&curl(&["-H", &anna, &url("/v1/nearby")], 0)?)?;
    ensure!(polled["friends"][0]["id"] == "42" && polled["friends"][0]["distance_m"] == 1112.0, "{polled}");
    let listen = ["-N", "--max-time", CURL_LISTENS, "-H", &anna];
    let events = curl(&[&listen[..], &[&url("/v1/events")]].concat(), CURL_TIMED_OUT)?;
    ensure!(events.starts_with("data:{\"type\":\"welcome\"") && events.contains(r#""id":"42""#), "{events}");

    let handshake = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"];
    let key = ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Extensions: permessage-deflate"];
    let headers: Vec<&str> = handshake.into_iter().chain(key).flat_map(|header| ["-H", header]).collect();
    let stream = curl(&[&listen[..], &headers, &["-i", &url("/v1/stream")]].concat(), CURL_TIMED_OUT)?;
    let (head, frames) = stream.split_once("\r\n\r\n").context("an answer has a head")?;
    ensure!(head.starts_with("HTTP/1.1 101 Switching Protocols"), "{head}");
    // The key and its answer are those of RFC 6455, 1.3.
    let head = head.to_lowercase();
    ensure!(head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
    ensure!(!head.contains("sec-websocket-extensions"), "it was not asked to compress, and does not: {head}");
    ensure!(frames.contains(r#"{"type":"welcome""#) && frames.contains(r#""id":"42""#), "{frames}");
    Ok(())
}

fn curl(args: &[&str], code: i32) -> anyhow::Result<String> {
    let output = Command::new("curl").args(["-sS", "--http1.1"]).args(args).output().context("run curl")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.code() == Some(code), "{}: {said}{}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(said)
}
