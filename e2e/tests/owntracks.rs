//! The OwnTracks app, as its users have it: messages over HTTP with Basic authentication, friends in the answers.

use anyhow::ensure;
use base64::{Engine, engine::general_purpose::STANDARD};
use nearby_e2e::http::{self, Response};
use nearby_e2e::nearby::{Nearby, token};
use nearby_e2e::{ports, postgres};
use serde_json::{Value, json};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const SECRET: &str = "a secret for the tests alone";
/// The first start on a machine downloads Postgres.
const READY: Duration = Duration::from_secs(120);
const STEP: Duration = Duration::from_secs(10);
const ANNA: i64 = 9001;
const BEN: i64 = 9002;

struct App {
    base: String,
    authorization: String,
}

impl App {
    fn of(base: &str, user: i64, scopes: &str) -> anyhow::Result<App> {
        let credentials = STANDARD.encode(format!("phone:{}", token(SECRET, user, scopes)?));
        Ok(App { base: base.to_owned(), authorization: format!("Basic {credentials}") })
    }

    /// As the Android app does it.
    async fn post(&self, message: &str) -> anyhow::Result<Response> {
        let headers = [
            ("authorization", self.authorization.as_str()),
            ("content-type", "application/json"),
            ("x-limit-u", "somebody"),
            ("x-limit-d", "phone"),
            ("user-agent", "Owntracks-Android/gms/420504003"),
        ];
        http::request("POST", &format!("{}/owntracks", self.base), &headers, message.to_owned()).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_app_reports_and_sees_friends() -> anyhow::Result<()> {
    let listen = format!("127.0.0.1:{}", ports::free_port()?);
    let mut nearby = Nearby::start(&["run", "--listen", &listen], &[("NEARBY_JWT_SECRET", SECRET)])?;
    let addresses = nearby.wait_ready(READY)?;
    let base = addresses.http;
    let lists = json!({"lists": {ANNA.to_string(): [BEN.to_string()], BEN.to_string(): [ANNA.to_string()]}});
    let friends_url = format!("{base}/v1/friend-lists");
    http::post_json(&token(SECRET, 0, "friends:write")?, &friends_url, &lists).await?.expect_status(202)?;

    let tst = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let message = |lat: f64| {
        json!({
            "_type": "location", "lat": lat, "lon": 8.5, "tst": tst, "acc": 12, "alt": 120, "vac": 4, "vel": 36, "cog": 270,
            "tid": "xx", "batt": 55, "bs": 1, "conn": "w", "t": "u", "m": 1, "created_at": tst, "topic": "owntracks/b/c",
            // Not of the app: nobody reports for another one here, scope or not.
            "user_id": "77",
        })
        .to_string()
    };
    let ben = App::of(&base, BEN, "ingest:any")?;
    let nobody = ben.post(&message(50.0)).await?.expect_status(200)?;
    ensure!(nobody.json()? == json!([]), "nobody is near yet: {}", nobody.text());
    ensure!(nobody.header("content-type") == Some("application/json"));
    ensure!(nobody.header("cache-control") == Some("no-store"));

    let anna = App::of(&base, ANNA, "")?;
    // The first answer has him, unless the machine is slow; then the next one has.
    let (deadline, expected) = (Instant::now() + STEP, friend(BEN, 50.0, tst));
    loop {
        let friends = anna.post(&message(50.01)).await?.expect_status(200)?.json()?;
        if friends == expected {
            break;
        }
        ensure!(friends == json!([]) && Instant::now() < deadline, "{friends} is not {expected}");
    }

    for ignored in ["", r#"{"_type":"waypoint","lat":50,"lon":8}"#, r#"{"_type":"encrypted","data":"aGVsbG8"}"#] {
        let answer = anna.post(ignored).await?.expect_status(200)?;
        ensure!(answer.json()? == json!([]), "{ignored}: {}", answer.text());
    }
    let ancient = r#"{"_type":"location","lat":1,"lon":1,"tst":1600000000}"#;
    ensure!(
        anna.post(ancient).await?.expect_status(200)?.json()? == json!([]),
        "a phone that was off for a week goes on"
    );
    let fault = anna.post(r#"{"_type":"location","lat":91,"lon":1}"#).await?.expect_status(400)?.json()?;
    ensure!(fault["errors"] == json!([{"index": 0, "field": "lat", "code": "out_of_range"}]), "{fault}");

    for authorization in ["Basic cGhvbmU6bm9uc2Vuc2U=", "Basic cGhvbmU=", "Basic ?", "Bearer x", ""] {
        let stranger = App { base: base.clone(), authorization: authorization.to_owned() };
        let refused = stranger.post(&message(50.0)).await?.expect_status(401)?;
        ensure!(refused.json()?["code"] == if authorization.is_empty() { "missing_token" } else { "bad_token" });
        ensure!(refused.header("www-authenticate") == Some("Basic realm=\"nearby\""), "{authorization}");
    }

    let rows = "select user_id, speed_mps, accuracy_m from nearby.location_history where lat = 50 or user_id = 77";
    let deadline = Instant::now() + STEP;
    loop {
        let found = postgres::psql(&addresses.database, rows)?;
        if found.trim() == format!("{BEN}|10|12") {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "history has {found:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_ignored_and_polls_count_in_the_user_s_rate() -> anyhow::Result<()> {
    let listen = format!("127.0.0.1:{}", ports::free_port()?);
    let args = ["run", "--listen", &listen, "--user-rate-per-s", "1", "--user-burst", "10"];
    let mut nearby = Nearby::start(&args, &[("NEARBY_JWT_SECRET", SECRET)])?;
    let base = nearby.wait_ready(READY)?.http;
    let ancient = r#"{"_type":"location","lat":1,"lon":1,"tst":1600000000}"#;
    for (user, message) in (1..).zip(["", r#"{"_type":"waypoint"}"#, ancient, "{"]) {
        let app = App::of(&base, user, "")?;
        let answered = until_too_many(async || app.post(message).await).await?;
        ensure!(answered >= 10, "{message}: {answered} answers, the burst is 10");
    }
    let (url, token) = (format!("{base}/v1/nearby"), token(SECRET, 9, "")?);
    let answered = until_too_many(async || http::get_as(&token, &url).await).await?;
    ensure!(answered >= 10, "{answered} polls, the burst is 10");
    // One a second is within this rate for ever; the default is ten.
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        http::get_as(&token, &url).await?.expect_status(200)?;
    }
    Ok(())
}

/// How often this is answered before it is too often.
async fn until_too_many(ask: impl AsyncFn() -> anyhow::Result<Response>) -> anyhow::Result<u32> {
    for answered in 0..200 {
        let answer = ask().await?;
        if answer.status == 429 {
            ensure!(answer.json()?["code"] == "rate_limited" && answer.header("retry-after") == Some("1"));
            return Ok(answered);
        }
    }
    anyhow::bail!("it never is too often");
}

fn friend(id: i64, lat: f64, tst: u64) -> Value {
    let id = id.to_string();
    json!([{"_type": "location", "tid": id, "topic": format!("owntracks/{id}/phone"), "lat": lat, "lon": 8.5, "tst": tst}])
}
