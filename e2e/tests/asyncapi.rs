//! `schemas/asyncapi.yaml` is held true: by AsyncAPI's own schema, and by frames that were recorded from a running server. Each
//! kind of frame has to be seen, and each fits what the file says of it; `e2e/python/frames.py` compares.

use anyhow::{Context, ensure};
use nearby_e2e::nearby::{Nearby, token, token_with};
use nearby_e2e::ws::Socket;
use nearby_e2e::{http, ports, programs};
use serde_json::{Value, json};
use std::time::Duration;

const SECRET: &str = "a secret for the tests alone";
/// The first start on a machine downloads Postgres.
const READY: Duration = Duration::from_secs(120);
const STEP: Duration = Duration::from_secs(10);

/// A socket whose frames are kept.
struct Recorded {
    socket: Socket,
    lines: String,
}

impl Recorded {
    fn keep(&mut self, direction: &str, frame: &Value) {
        self.lines += &format!("{}\n", json!({"direction": direction, "text": frame.to_string()}));
    }

    async fn send(&mut self, frame: Value) -> anyhow::Result<()> {
        self.keep("sent", &frame);
        self.socket.send(&frame).await
    }

    /// Up to a frame of this type in which this holds.
    async fn until(&mut self, kind: &str, holds: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        loop {
            let frame = self.socket.next_frame(STEP).await.with_context(|| format!("{kind} after {}", self.lines))?;
            self.keep("received", &frame);
            if frame["type"] == kind && holds(&frame) {
                return Ok(frame);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn recorded_frames_fit_the_file() -> anyhow::Result<()> {
    let listen = format!("127.0.0.1:{}", ports::free_port()?);
    let mut nearby = Nearby::start(&["run", "--listen", &listen], &[("NEARBY_JWT_SECRET", SECRET)])?;
    let base = nearby.wait_ready(READY)?.http;
    let lists = json!({"lists": {"1": ["2"], "2": ["1"]}});
    let lists_url = format!("{base}/v1/friend-lists");
    http::post_json(&token(SECRET, 0, "friends:write")?, &lists_url, &lists).await?.expect_status(202)?;
    let report = async |place: Value| {
        http::post_json(&token(SECRET, 2, "")?, &format!("{base}/v1/locations"), &place).await?.expect_status(202)
    };

    let url = format!("{}/v1/stream", base.replacen("http", "ws", 1));
    let socket = Socket::connect(&url, &token_with(SECRET, &["--user", "1", "--scope", "ingest:any"])?).await?;
    let mut client = Recorded { socket, lines: String::new() };
    client.until("snapshot", |_| true).await?;
    let place = json!({"type": "location", "lat": 40, "lon": -73.5, "accuracy_m": 12, "speed_mps": 0.5, "heading_deg": 359.5,
        "precision": "exact", "user_id": "1", "ref": "a"});
    client.send(place).await?;
    client.until("accepted", |frame| frame["ref"] == "a").await?;
    report(json!({"lat": 40.01, "lon": -73.5})).await?;
    client.until("update", |frame| frame["moved"][0]["id"] == "2").await?;
    report(json!({"lat": 41, "lon": -73.5})).await?;
    client.until("update", |frame| frame["left"][0]["reason"] == "distance").await?;
    report(json!({"lat": 40.01, "lon": -73.5})).await?;
    client.until("update", |frame| frame["moved"][0]["id"] == "2").await?;
    // A second socket's snapshot shows a friend.
    let second = Socket::connect(&url, &token(SECRET, 1, "")?).await?;
    let mut second = Recorded { socket: second, lines: String::new() };
    second.until("snapshot", |frame| frame["friends"][0]["id"] == "2").await?;
    client.send(json!({"type": "unshare", "ref": 7})).await?;
    client.until("update", |frame| frame["left"][0]["reason"] == "own_location").await?;
    client.send(json!({"type": "auth", "token": token(SECRET, 1, "")?, "ref": 1.5})).await?;
    client.until("accepted", |frame| frame["ref"] == 1.5).await?;
    // What is refused is no good frame, so only the refusal is recorded.
    for (frame, code) in [("{", "bad_json"), (r#"{"type":"location","lat":91,"lon":0,"ref":9}"#, "out_of_range")] {
        client.socket.send_text(frame).await?;
        client.until("error", |frame| frame["code"] == code).await?;
    }
    let (ended, _) = nearby.terminate()?;
    ensure!(ended.success(), "{ended}");
    client.until("drain", |_| true).await?;

    let root = programs::root();
    let schema = programs::asyncapi_schema()?;
    let args = [root.to_str().context("a path")?, schema.to_str().context("a path")?];
    let said = programs::python_with("frames.py", &args, &format!("{}{}", client.lines, second.lines))?;
    let seen: Value = serde_json::from_str(&said)?;
    let kinds = seen.as_object().context("counts by kind")?;
    ensure!(
        kinds.len() == 9 && kinds.values().all(|count| count.as_u64() > Some(0)),
        "not every kind was seen: {seen}"
    );
    Ok(())
}
