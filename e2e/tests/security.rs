//! Who may do what, on `nearby run`: nobody reports for or sees another one without the scope, and nothing that was said on any
//! route, a token or a place, is in any log.

use anyhow::{Context, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use nearby_e2e::nearby::{Nearby, token};
use nearby_e2e::ws::{Refused, Socket};
use nearby_e2e::{http, ports, postgres};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const SECRET: &str = "a secret for the tests alone";
const API: &str = include_str!("../../schemas/openapi.yaml");
/// The first start on a machine downloads Postgres.
const READY: Duration = Duration::from_secs(120);
const STEP: Duration = Duration::from_secs(15);

/// Friends of each other, some hundred metres apart.
const ANNA: i64 = 7_700_001;
const BEN: i64 = 7_700_002;
/// Nobody's friend.
const MALLORY: i64 = 7_700_666;

/// No clock shows such seconds, so a log that has one of these has a place.
const LAT: &str = "78.2345678";
const LON: &str = "115.6543219";
const PLACE_SPELLINGS: [&str; 6] = ["78.23456", "782345678", "7.82345", "115.65432", "1156543219", "1.15654"];

/// Who may call a route.
#[derive(Clone, Copy, Debug, PartialEq)]
enum For {
    /// Anybody: it says nothing of anybody.
    All,
    /// Whoever has a token, for themselves.
    Holders,
    /// Whoever has a token with the scope `friends:write`.
    FriendsWrite,
}

/// Every route of the API.
const ROUTES: [(&str, &str, For); 12] = [
    ("GET", "/v1/gateway", For::All),
    ("GET", "/v1/stream", For::Holders),
    ("GET", "/v1/events", For::Holders),
    ("GET", "/v1/nearby", For::Holders),
    ("POST", "/v1/locations", For::Holders),
    ("DELETE", "/v1/location", For::Holders),
    ("PUT", "/v1/users/{id}/friends", For::FriendsWrite),
    ("POST", "/v1/friend-lists", For::FriendsWrite),
    ("POST", "/owntracks", For::Holders),
    ("GET", "/healthz", For::All),
    ("GET", "/readyz", For::All),
    ("GET", "/metrics", For::All),
];

/// A running server, and everything secret that was said to it.
struct World {
    base: String,
    database: String,
    said: BTreeSet<String>,
}

impl World {
    fn token(&mut self, user: i64, scopes: &str) -> anyhow::Result<String> {
        let token = token(SECRET, user, scopes)?;
        self.said.insert(token.clone());
        Ok(token)
    }

    async fn call(&mut self, method: &str, path: &str, token: &str, body: &str) -> anyhow::Result<http::Response> {
        let (bearer, url) = (format!("Bearer {token}"), format!("{}{path}", self.base));
        let headers = if token.is_empty() { vec![] } else { vec![("authorization", bearer.as_str())] };
        http::request(method, &url, &headers, body.to_owned()).await
    }

    fn stream(&self, query: &str) -> String {
        format!("{}/v1/stream{query}", self.base.replacen("http", "ws", 1))
    }

    /// Waits until the history has this.
    async fn becomes(&self, sql: &str, expected: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + STEP;
        loop {
            let found = postgres::psql(&self.database, sql)?;
            if found.trim() == expected {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{sql}: {found:?} is not {expected:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_acts_for_themselves_and_nothing_of_it_is_logged() -> anyhow::Result<()> {
    let listen = format!("127.0.0.1:{}", ports::free_port()?);
    let envs = [("NEARBY_JWT_SECRET", SECRET), ("NEARBY_LOG", "trace")];
    let mut nearby = Nearby::start(&["run", "--listen", &listen], &envs)?;
    let addresses = nearby.wait_ready(READY)?;
    let mut world = World { base: addresses.http, database: addresses.database, said: BTreeSet::new() };
    let result = async {
        without_a_good_token(&mut world).await.context("without a good token")?;
        friends_meet(&mut world).await.context("friends meet")?;
        nobody_reports_for_another(&mut world).await.context("reporting for others")?;
        nobody_sees_another(&mut world).await.context("seeing others")?;
        with_the_scope(&mut world).await.context("with the scope")?;
        nonsense(&mut world).await.context("nonsense")
    };
    result.await.map_err(|error| anyhow::anyhow!("{error:#}"))?;
    let (status, _) = nearby.terminate()?;
    ensure!(status.success(), "{status}");
    let output = format!("{}\n{}", nearby.stdout().join("\n"), nearby.stderr());
    nothing_was_logged(&output, &world.said)
}

#[test]
fn the_table_has_every_route() {
    let paths: BTreeSet<&str> = API.lines().filter_map(|line| line.strip_prefix("  /")?.strip_suffix(':')).collect();
    let table: BTreeSet<&str> = ROUTES.iter().map(|(_, path, _)| path.trim_start_matches('/')).collect();
    let missing: Vec<_> = paths.difference(&table).collect();
    assert_eq!(missing, [&"v1/dev/token"], "which gives tokens away: it is off by default");
    assert!(table.is_subset(&paths), "{table:?}");
}

/// Every route for nobody, for a stranger's token, for one without the scope.
async fn without_a_good_token(world: &mut World) -> anyhow::Result<()> {
    let good = world.token(ANNA, "")?;
    let stranger = token("another secret of the tests", ANNA, "friends:write ingest:any")?;
    let (head, rest) = good.split_once('.').context("three parts")?;
    let unsigned = format!("eyJhbGciOiJub25lIn0.{}.", rest.split('.').next().context("three parts")?);
    let cut = format!("{head}.{}", &rest[..rest.len() - 4]);
    world.said.extend([stranger.clone(), unsigned.clone(), cut.clone()]);
    for (method, path, whom) in ROUTES {
        let path = path.replace("{id}", &ANNA.to_string());
        let mut expect = async |token: &str, status: u16, code: &str| {
            let answer = world.call(method, &path, token, "{}").await?;
            ensure!(answer.status == status, "{method} {path} {token}: {} {}", answer.status, answer.text());
            let said = answer.json()?["code"].as_str().unwrap_or_default().to_owned();
            ensure!(code.is_empty() || said == code, "{method} {path} {token}: {said}");
            Ok(())
        };
        if whom == For::All {
            let answer = world.call(method, &path, "", "").await?;
            ensure!(answer.status == 200, "{method} {path}: {}", answer.text());
            continue;
        }
        expect("", 401, "missing_token").await?;
        for bad in [stranger.as_str(), &unsigned, &cut, "nonsense"] {
            expect(bad, 401, "bad_token").await?;
        }
        if whom == For::FriendsWrite {
            expect(&good, 403, "missing_scope").await?;
            let other_scope = token(SECRET, ANNA, "ingest:any friends:read")?;
            expect(&other_scope, 403, "missing_scope").await?;
        }
    }
    let dev = world.call("GET", &format!("/v1/dev/token?user={ANNA}"), "", "").await?;
    ensure!(dev.status == 404, "development tokens are off: {}", dev.text());
    for bad in [stranger.as_str(), &unsigned, &cut, "nonsense"] {
        for refused in [
            Socket::connect(&world.stream(""), bad).await.err(),
            Socket::connect_with_header(&world.stream(""), bad).await.err(),
        ] {
            let refused: Refused = refused.context("it is refused")?.downcast()?;
            ensure!(refused.status == 401 && refused.body.contains("bad_token"), "{refused}");
        }
    }
    // The right token in the wrong place is none.
    let in_url = world.call("GET", &format!("/v1/nearby?token={good}&access_token={good}"), "", "").await?;
    ensure!(in_url.status == 401, "{}", in_url.text());
    Ok(())
}

async fn friends_meet(world: &mut World) -> anyhow::Result<()> {
    let graph = world.token(0, "friends:write")?;
    let lists =
        json!({"lists": {ANNA.to_string(): [BEN.to_string()], BEN.to_string(): [ANNA.to_string()]}}).to_string();
    world.call("POST", "/v1/friend-lists", &graph, &lists).await?.expect_status(202)?;
    for user in [ANNA, BEN] {
        let token = world.token(user, "")?;
        let body = format!(r#"{{"lat":{LAT},"lon":{LON}}}"#);
        world.call("POST", "/v1/locations", &token, &body).await?.expect_status(202)?;
    }
    sees(world, BEN, &[ANNA]).await
}

/// By polling: exactly these, where they were.
async fn sees(world: &mut World, user: i64, friends: &[i64]) -> anyhow::Result<()> {
    let (token, deadline) = (world.token(user, "")?, Instant::now() + STEP);
    let expected: Vec<Value> = friends.iter().map(|id| json!([id.to_string(), LAT, LON])).collect();
    loop {
        let view = world.call("GET", "/v1/nearby", &token, "").await?.expect_status(200)?.json()?;
        let shown = view["friends"].as_array().context("a snapshot")?.iter();
        let shown: Vec<Value> =
            shown.map(|friend| json!([friend["id"], friend["lat"].to_string(), friend["lon"].to_string()])).collect();
        if shown == expected {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{user} sees {view}, not {expected:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Every way in, as one who is somebody else, with every scope but the right one.
async fn nobody_reports_for_another(world: &mut World) -> anyhow::Result<()> {
    let report = format!(r#"{{"lat":{LAT},"lon":{LON},"user_id":"{ANNA}","sub":"{ANNA}"}}"#);
    for scopes in ["", "friends:write", "ingest:anybody xingest:any INGEST:ANY ingest any"] {
        let mallory = world.token(MALLORY, scopes)?;
        for body in [report.clone(), format!(r#"[{{"lat":{LAT},"lon":{LON}}},{report}]"#)] {
            let answer = world.call("POST", "/v1/locations", &mallory, &body).await?.expect_status(403)?;
            ensure!(answer.json()?["code"] == "missing_scope", "{}", answer.text());
        }
        let mut socket = Socket::connect(&world.stream(""), &mallory).await?;
        let frame = format!(r#"{{"type":"location",{}"#, &report[1..]);
        socket.send_text(&frame).await?;
        let error = socket.wait_frame("error", STEP).await?;
        ensure!(error["code"] == "missing_scope", "{error}");
        // These can only be about the one who says them.
        let unshare = format!(r#"{{"type":"unshare","user_id":"{ANNA}","ref":1}}"#);
        socket.send_text(&unshare).await?;
        socket.wait_frame("accepted", STEP).await?;
        let body = format!(r#"{{"user_id":"{ANNA}"}}"#);
        world.call("DELETE", &format!("/v1/location?user_id={ANNA}"), &mallory, &body).await?.expect_status(202)?;
        // Nobody becomes somebody else on an open socket.
        let anna = world.token(ANNA, "")?;
        socket.send(&json!({"type": "auth", "token": anna})).await?;
        let error = socket.wait_frame("error", STEP).await?;
        ensure!(error["code"] == "other_user", "{error}");
    }
    let mallory = world.token(MALLORY, "ingest:any")?;
    let credentials = STANDARD.encode(format!("{ANNA}:{mallory}"));
    let (basic, anna, url) = (format!("Basic {credentials}"), ANNA.to_string(), format!("{}/owntracks", world.base));
    world.said.insert(credentials);
    let headers = [("authorization", basic.as_str()), ("x-limit-u", anna.as_str())];
    let message = format!(
        r#"{{"_type":"location","lat":{LAT},"lon":{LON},"tid":"{ANNA}","topic":"owntracks/{ANNA}/phone","user_id":"{ANNA}"}}"#
    );
    let answer = http::request("POST", &url, &headers, message).await?.expect_status(200)?;
    ensure!(answer.json()? == json!([]), "she has no friends: {}", answer.text());

    // Anna's one report is all that there is of her, and Ben still sees it.
    let rows = |user: i64| format!("select count(*), count(lat) from nearby.location_history where user_id = {user}");
    world.becomes(&rows(MALLORY), "7|1").await?;
    world.becomes(&rows(ANNA), "1|1").await?;
    sees(world, BEN, &[ANNA]).await
}

/// Every way to a view, as one who is nobody's friend, and who names another one wherever one can.
async fn nobody_sees_another(world: &mut World) -> anyhow::Result<()> {
    let query = format!("?user={ANNA}&user_id={ANNA}&id={ANNA}");
    for scopes in ["", "ingest:any"] {
        let mallory = world.token(MALLORY, scopes)?;
        let list = json!({"friends": [ANNA.to_string()]}).to_string();
        let lists = json!({"lists": {MALLORY.to_string(): [ANNA.to_string()]}}).to_string();
        for (method, path, body) in [
            ("PUT", format!("/v1/users/{MALLORY}/friends"), list.clone()),
            ("PUT", format!("/v1/users/{ANNA}/friends"), list),
            ("POST", "/v1/friend-lists".to_owned(), lists),
        ] {
            let answer = world.call(method, &path, &mallory, &body).await?.expect_status(403)?;
            ensure!(answer.json()?["code"] == "missing_scope", "{}", answer.text());
        }
        let view = world.call("GET", &format!("/v1/nearby{query}"), &mallory, "").await?.expect_status(200)?.json()?;
        ensure!(view == json!({"type": "snapshot", "friends": []}), "{view}");
        let mut socket = Socket::connect(&world.stream(&query), &mallory).await?;
        let snapshot = socket.wait_frame("snapshot", STEP).await?;
        ensure!(snapshot == json!({"type": "snapshot", "friends": []}), "{snapshot}");
        let (bearer, url) = (format!("Bearer {mallory}"), format!("{}/v1/events{query}", world.base));
        let events = http::stream_until(&url, &[("authorization", &bearer)], "snapshot", STEP).await?;
        ensure!(events.contains(r#"{"type":"snapshot","friends":[]}"#), "{events}");
    }
    let rows = format!("select count(*) from nearby.friend_lists where user_id = {MALLORY}");
    world.becomes(&rows, "0").await?;
    sees(world, BEN, &[ANNA]).await
}

/// So that the refusals above are known to be about the scopes.
async fn with_the_scope(world: &mut World) -> anyhow::Result<()> {
    let service = world.token(MALLORY, "ingest:any friends:write")?;
    let report = format!(r#"{{"lat":{LAT},"lon":{LON},"user_id":"{BEN}"}}"#);
    world.call("POST", "/v1/locations", &service, &report).await?.expect_status(202)?;
    world.becomes(&format!("select count(*) from nearby.location_history where user_id = {BEN}"), "2").await?;
    let own = format!(r#"{{"lat":{LAT},"lon":{LON}}}"#);
    world.call("POST", "/v1/locations", &service, &own).await?.expect_status(202)?;
    let list = json!({"friends": [ANNA.to_string()]}).to_string();
    world.call("PUT", &format!("/v1/users/{MALLORY}/friends"), &service, &list).await?.expect_status(202)?;
    sees(world, MALLORY, &[ANNA]).await
}

/// Places where no place belongs, and what is refused because of one.
async fn nonsense(world: &mut World) -> anyhow::Result<()> {
    let anna = world.token(ANNA, "friends:write")?;
    let bodies = [
        format!(r#"{{"lat":{LAT},"lon":{LON}"#),
        format!(r#"{{"lat":"{LAT}","lon":{LON}}}"#),
        format!(r#"{{"lat":{LAT},"lon":{LON},"reported_at_ms":"{LAT}"}}"#),
        format!(r#"{{"lat":1{LAT},"lon":{LON},"precision":"{LON}"}}"#),
        format!(r#"[[{LAT},{LON}]]"#),
        format!(r#"{{"friends":["{LAT}"],"lists":{{"{LON}":[]}},"_type":"location","lat":9{LAT},"lon":{LON}}}"#),
        format!("lat={LAT}&lon={LON}"),
    ];
    for body in &bodies {
        for (method, path, whom) in ROUTES {
            if whom == For::All || method == "GET" {
                continue;
            }
            let path = path.replace("{id}", LAT);
            let answer = world.call(method, &path, &anna, body).await?;
            ensure!([200, 202, 400].contains(&answer.status), "{method} {path}: {}", answer.text());
        }
    }
    world.call("GET", &format!("/v1/{LAT}/{LON}?token={anna}"), &anna, "").await?.expect_status(404)?;
    let mut socket = Socket::connect_with_header(&world.stream(&format!("?lat={LAT}")), &anna).await?;
    for body in &bodies {
        socket.send_text(body).await?;
        socket.wait_frame("error", STEP).await?;
    }
    socket.send_text(&format!(r#"{{"type":"{LAT}","ref":"{LON}"}}"#)).await?;
    socket.wait_frame("error", STEP).await?;
    socket.send_text(&format!(r#"{{"type":"location","lat":{LAT},"lon":{LON},"ref":"{LAT}"}}"#)).await?;
    socket.wait_frame("accepted", STEP).await?;
    socket.send(&json!({"type": "auth", "token": anna, "ref": 1})).await?;
    socket.wait_frame("accepted", STEP).await?;
    socket.send(&json!({"type": "auth", "token": format!("{anna}x")})).await?;
    socket.wait_frame("error", STEP).await?;
    socket.send_text(&format!(r#"{{"type":"location","lat":{LAT},"padding":"{}"}}"#, LON.repeat(7_000))).await.ok();
    socket.wait_closed(STEP).await?;
    Ok(())
}

/// Tokens, their parts, passwords and places, as they were said or as they are stored.
fn nothing_was_logged(output: &str, said: &BTreeSet<String>) -> anyhow::Result<()> {
    ensure!(output.contains("TRACE") && output.contains("DEBUG"), "it logs all that it can:\n{output}");
    let parts = said.iter().flat_map(|token| token.split('.').chain([token.as_str()]));
    // The end of a token is its own; the beginning is that of many.
    let secrets: BTreeSet<&str> =
        parts.filter(|part| part.len() >= 12).chain(PLACE_SPELLINGS).chain([SECRET]).collect();
    ensure!(secrets.len() > 20, "{secrets:?}");
    let leaks: Vec<&str> = output.lines().filter(|line| secrets.iter().any(|secret| line.contains(*secret))).collect();
    ensure!(leaks.is_empty(), "{} lines have a secret, among them {:#?}", leaks.len(), &leaks[..leaks.len().min(20)]);
    Ok(())
}
