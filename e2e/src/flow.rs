//! One story that any deployment has to tell: two friends meet, part, and leave their tracks in the history.

use crate::{http, postgres, ws::Socket};
use anyhow::{Context, ensure};
use serde_json::{Value, json};
use std::time::Duration;

/// The longest that any step of the story may take.
pub const STEP: Duration = Duration::from_secs(10);

/// A token for a user with scopes.
pub type TokenMaker = Box<dyn Fn(i64, &str) -> anyhow::Result<String>>;

/// Where the deployment listens, and who may do what.
pub struct Deployment {
    /// `http://…` of the ingest.
    pub ingest: String,
    /// `postgresql://…` of the history.
    pub database: String,
    /// Makes tokens that the deployment accepts.
    pub token: TokenMaker,
}

/// Tells the story with the users `first` and `first + 1`; every figure in it is checked.
pub async fn two_friends_meet(deployment: &Deployment, first: i64) -> anyhow::Result<()> {
    let (anna, ben) = (first, first + 1);
    let token = |user, scopes| (deployment.token)(user, scopes);
    let lists = json!({"lists": {anna.to_string(): [ben.to_string()], ben.to_string(): [anna.to_string()]}});
    let lists_url = format!("{}/v1/friend-lists", deployment.ingest);
    http::post_json(&token(0, "friends:write")?, &lists_url, &lists).await?.expect_status(202)?;

    let gateway = http::get(&format!("{}/v1/gateway", deployment.ingest)).await?.expect_status(200)?.json()?;
    let stream_url = gateway["url"].as_str().context("a gateway has a url")?;
    let mut socket = Socket::connect(stream_url, &token(anna, "")?).await?;
    let welcome = socket.next_frame(STEP).await?;
    ensure!(welcome["type"] == "welcome" && welcome["protocol"] == 1, "first comes welcome: {welcome}");
    ensure!(welcome["gateway"] == gateway["gateway"], "from the gateway that was named: {welcome}");
    let snapshot = socket.next_frame(STEP).await?;
    ensure!(snapshot == json!({"type": "snapshot", "friends": []}), "then an empty snapshot: {snapshot}");

    // Anna reports over her socket, Ben by HTTP: they are 1,111.95 m apart on a meridian.
    socket.send(&json!({"type": "location", "lat": 40.0, "lon": -73.0, "ref": "a"})).await?;
    let accepted = socket.wait_frame("accepted", STEP).await?;
    ensure!(accepted["ref"] == "a", "the ref comes back: {accepted}");
    let reports = format!("{}/v1/locations", deployment.ingest);
    let report = json!({"lat": 40.01, "lon": -73.0, "accuracy_m": 5});
    let answer = http::post_json(&token(ben, "")?, &reports, &report).await?.expect_status(202)?;
    ensure!(answer.json()? == json!({"accepted": 1}), "one report is accepted: {}", answer.text());
    let friend = socket.wait_friend(ben, STEP).await?;
    ensure!(friend["lat"] == 40.01 && friend["lon"] == -73.0, "{friend}");
    ensure!(friend["distance_m"] == 1112.0, "to a decimetre: {friend}");
    let visible_ms = friend["visible_until_ms"].as_i64().zip(friend["updated_at_ms"].as_i64());
    ensure!(visible_ms.is_some_and(|(until, updated)| until - updated == 600_000), "{friend}");

    // Anna moves: the same friend at a new distance, and the same time of report.
    socket.send(&json!({"type": "location", "lat": 40.02, "lon": -73.0})).await?;
    let moved = socket.wait_friend(ben, STEP).await?;
    ensure!(moved["distance_m"] == 1112.0, "{moved}");
    ensure!(moved["updated_at_ms"] == friend["updated_at_ms"], "{moved}");

    // Polling shows the same view.
    let nearby_url = format!("{}/v1/nearby", gateway["http_url"].as_str().context("a gateway has an http_url")?);
    let polled = http::get_as(&token(anna, "")?, &nearby_url).await?.expect_status(200)?.json()?;
    ensure!(polled["type"] == "snapshot" && polled["friends"] == json!([moved]), "{polled} is not {moved}");

    // Ben goes far away, comes back, and stops sharing.
    let far = json!([{"lat": 41.0, "lon": -73.0}, {"lat": 40.03, "lon": -73.0}]);
    http::post_json(&token(ben, "")?, &reports, &far[0]).await?.expect_status(202)?;
    ensure!(left(&mut socket).await? == json!([{"id": ben.to_string(), "reason": "distance"}]));
    http::post_json(&token(ben, "")?, &reports, &far[1]).await?.expect_status(202)?;
    socket.wait_friend(ben, STEP).await?;
    let withdrawal = format!("{}/v1/location", deployment.ingest);
    http::send_json("DELETE", &token(ben, "")?, &withdrawal, &json!({})).await?.expect_status(202)?;
    ensure!(left(&mut socket).await? == json!([{"id": ben.to_string(), "reason": "unshared"}]));
    socket.close().await?;

    // Everything is in the history: Anna's two reports, Ben's three and his withdrawal.
    let rows = format!(
        "select user_id - {first}, count(*), count(lat), count(distinct (topic, kafka_partition, kafka_offset)) \
         from nearby.location_history where user_id in ({anna}, {ben}) group by 1 order by 1"
    );
    let expected = "0|2|2|2\n1|4|3|4";
    let deadline = std::time::Instant::now() + STEP;
    loop {
        let found = postgres::psql(&deployment.database, &rows)?;
        if found.trim() == expected {
            return Ok(());
        }
        ensure!(std::time::Instant::now() < deadline, "history has {found:?}, expected {expected:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn left(socket: &mut Socket) -> anyhow::Result<Value> {
    loop {
        let update = socket.wait_frame("update", STEP).await?;
        if let Some(left) = update.get("left") {
            return Ok(left.clone());
        }
    }
}
