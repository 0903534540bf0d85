//! With a schema registry: the whole story, both wire formats in one topic, schemas of others, and a registry that goes away.

use anyhow::{Context, ensure};
use nearby_e2e::flow::{Deployment, STEP, two_friends_meet};
use nearby_e2e::nearby::{Nearby, token};
use nearby_e2e::schema_registry::{Rules, SchemaRegistry};
use nearby_e2e::{http, kafka::Kafka, ports, postgres, postgres::Postgres, records, ws::Socket};
use rdkafka::Message;
use serde_json::json;
use std::time::{Duration, Instant, SystemTime};

const SECRET: &str = "a secret for the tests alone";
const READY: Duration = Duration::from_secs(60);
/// Both have letters that a URL cannot hold as they are.
const LOGIN: [(&str, &str); 2] = [("us er", "us%20er"), ("p@ss:wörd", "p%40ss:w%C3%B6rd")];

/// What a newer producer would write: `source` is gone, `battery` is new.
const NEWER: &str = r#"{"type":"record","name":"LocationEvent","namespace":"nearby.v1","fields":[
  {"name":"user_id","type":"long","default":0},{"name":"battery","type":"int","default":0},
  {"name":"reported_at","type":"long","default":0},{"name":"received_at","type":"long","default":0},
  {"name":"position","type":["null",{"type":"record","name":"Position","fields":[
    {"name":"lat_e7","type":"int","default":0},{"name":"lon_e7","type":"int","default":0}]}],"default":null}]}"#;

/// One Kafka and one Postgres for all; each deployment has its own topics and users.
#[tokio::test(flavor = "multi_thread")]
async fn deployments_with_a_schema_registry() -> anyhow::Result<()> {
    let kafka = Kafka::start()?;
    let postgres = Postgres::start()?;
    let (brokers, database) = (kafka.bootstrap(), postgres.url());
    four_services_tell_the_story(&brokers, &database).await?;
    formats_may_be_mixed_and_the_registry_away(&brokers, &database).await?;
    without_a_registry_its_format_is_a_dead_letter(&brokers, &database).await
}

async fn four_services_tell_the_story(brokers: &str, database: &str) -> anyhow::Result<()> {
    let registry = SchemaRegistry::start(Rules { password: Some(LOGIN), ..Rules::default() }).await?;
    let url = registry.url();
    let envs = [
        ("NEARBY_JWT_SECRET", SECRET),
        ("NEARBY_TOPIC_PREFIX", "r."),
        ("NEARBY_BROKERS", brokers),
        ("NEARBY_SCHEMA_REGISTRY_URL", &url),
    ];
    let mut create = Nearby::start(&["topics", "create", "--partitions", "4"], &envs)?;
    ensure!(create.finish(READY)?.success(), "{}", create.stderr());
    let start = |service: &str, more: &[&str]| {
        let listen = format!("127.0.0.1:{}", ports::free_port()?);
        Nearby::start(&[&[service, "--listen", &listen], more].concat(), &envs)
    };
    let mut services = [
        start("processor", &[])?,
        start("pusher", &[])?,
        start("sink", &["--database-url", database])?,
        start("ingest", &[])?,
    ];
    let mut ingest = String::new();
    for service in &mut services {
        ingest = service.wait_line("ready ", READY)?;
    }
    let logs = |services: &[Nearby]| services.iter().map(Nearby::stderr).collect::<Vec<_>>().join("\n");
    let told = two_friends_meet(&deployment(ingest, database), 100).await;
    told.with_context(|| logs(&services))?;

    let subjects = [
        "nearby.v1.FriendMovedBatch",
        "r.friend-lists-value",
        "r.gateways-value",
        "r.location-events-value",
        "r.sessions-value",
    ];
    ensure!(registry.subjects().await? == json!(subjects), "{}", registry.subjects().await?);
    for topic in ["friend-lists", "gateways", "location-events", "sessions"] {
        let id = registry.newest(&format!("r.{topic}-value")).await?;
        let values = records::read_all(brokers, &format!("r.{topic}"))?;
        let values: Vec<&[u8]> = values.iter().filter_map(Message::payload).collect();
        ensure!(!values.is_empty(), "{topic} is not empty");
        ensure!(
            values.iter().all(|value| value.starts_with(&confluent(id, &[]))),
            "{topic} has id {id}: {values:02x?}"
        );
    }
    for service in &mut services {
        let (status, _) = service.terminate()?;
        ensure!(status.success(), "{status}: {}", service.stderr());
    }
    let logs = logs(&services);
    ensure!(!logs.contains("w%C3") && !logs.contains("wörd"), "a password is printed: {logs}");
    Ok(())
}

async fn formats_may_be_mixed_and_the_registry_away(brokers: &str, database: &str) -> anyhow::Result<()> {
    let mut registry = SchemaRegistry::start(Rules::default()).await?;
    let mut nearby = run(brokers, database, "mixed.", &["--schema-registry-url", &registry.url()])?;
    let addresses = nearby.wait_ready(READY)?;
    let mut watch = Watch::open(addresses.http.clone(), brokers, "mixed.location-events", 301).await?;
    let own_id = registry.newest("mixed.location-events-value").await?;
    let newer_id = registry.register("mixed.location-events-value", NEWER).await?;

    // Ben's reports, each 0.001 degrees farther north: as single object, in Confluent's format, with a schema that only the
    // registry knows.
    let single_object = single_object_of(&watch.datum(1));
    watch.see(1, &single_object).await?;
    watch.see(2, &confluent(own_id, &watch.datum(2))).await?;
    watch.see(3, &confluent(newer_id, &watch.newer_datum(3))).await?;
    watch.see(4, &confluent(own_id, &watch.datum(4))).await?;

    // What the registry does not know, and what is another record, is a dead letter.
    let session_id = registry.newest("mixed.sessions-value").await?;
    watch.write(&confluent(9_999, &watch.datum(5))).await?;
    watch.write(&confluent(session_id, &[84, 4, 103, 49, 0])).await?;
    watch.see(6, &single_object_of(&watch.datum(6))).await?;
    history(database, 302, 5).await?;
    let mut reasons = records::dead_letter_reasons(brokers, "mixed.dead-letters")?;
    reasons.sort();
    ensure!(reasons.len() == 2, "{reasons:?}");
    ensure!(
        reasons[0].starts_with(&format!("written with schema id {session_id}: our schema cannot read it")),
        "{reasons:?}"
    );
    ensure!(reasons[1] == "written with schema id 9999: the schema registry does not know it", "{reasons:?}");

    // A good record whose schema cannot be had now is waited for, and so is what comes behind it.
    let newest_id = registry.register("mixed.location-events-value", &NEWER.replace("battery", "charge")).await?;
    registry.shut().await?;
    watch.write(&confluent(newest_id, &watch.newer_datum(7))).await?;
    watch.write(&single_object_of(&watch.datum(8))).await?;
    let readyz = format!("{}/readyz", addresses.http);
    let deadline = Instant::now() + STEP;
    let missing = loop {
        let answer = http::get(&readyz).await?;
        if answer.status == 503 {
            break answer.text();
        }
        ensure!(Instant::now() < deadline, "readiness says nothing of the registry: {}", nearby.stderr());
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    ensure!(missing.contains("schema-registry") && missing.contains(&newest_id.to_string()), "{missing}");
    tokio::time::sleep(Duration::from_secs(3)).await;
    ensure!(postgres::psql(database, &rows_of(302))?.trim() == "5", "nothing overtakes the record that waits");
    registry.open().await?;
    watch.wait_for(8).await?;
    history(database, 302, 7).await?;
    ensure!(http::get(&readyz).await?.status == 200, "ready again");
    ensure!(records::dead_letter_reasons(brokers, "mixed.dead-letters")?.len() == 2, "no good record was given up");
    let log = nearby.stderr();
    ensure!(log.matches("no longer ready").count() == 1, "said once: {log}");

    // A reader that waits does not hold up the end.
    let lost_id = registry.register("mixed.location-events-value", &NEWER.replace("battery", "power")).await?;
    registry.shut().await?;
    watch.write(&confluent(lost_id, &watch.newer_datum(9))).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (status, took) = nearby.terminate()?;
    ensure!(status.success() && took < Duration::from_secs(10), "{status} after {took:?}: {}", nearby.stderr());
    ensure!(records::dead_letter_reasons(brokers, "mixed.dead-letters")?.len() == 2, "nor at the end");
    registry.open().await?;
    let mut again = run(brokers, database, "mixed.", &["--schema-registry-url", &registry.url()])?;
    again.wait_ready(READY)?;
    history(database, 302, 8).await
}

async fn without_a_registry_its_format_is_a_dead_letter(brokers: &str, database: &str) -> anyhow::Result<()> {
    let mut nearby = run(brokers, database, "none.", &[])?;
    let addresses = nearby.wait_ready(READY)?;
    let mut watch = Watch::open(addresses.http, brokers, "none.location-events", 501).await?;
    watch.write(&confluent(1, &watch.datum(1))).await?;
    watch.see(2, &single_object_of(&watch.datum(2))).await?;
    history(database, 502, 1).await?;
    let reasons = records::dead_letter_reasons(brokers, "none.dead-letters")?;
    ensure!(
        reasons == ["in Confluent's wire format (schema id 1), but no schema registry is configured"],
        "{reasons:?}"
    );
    Ok(())
}

/// Embedded Kafka: it fails before anything is started.
#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_does_not_answer_or_refuses_ends_the_start() -> anyhow::Result<()> {
    let refuses = Rules { refused: "sessions-value", password: Some(LOGIN) };
    let mut registry = SchemaRegistry::start(refuses).await?;
    let host = registry.url().split_once('@').context("it has a login")?.1.to_owned();
    let refusal = format!(
        "the schema registry at http://{host} refuses our schema for the subject sessions-value: it answers 409 Conflict: Schema \
         being registered is incompatible with an earlier schema"
    );
    fails(&registry.url(), 1, &refusal)?;
    fails(
        &format!("http://us%20er:guessed@{host}"),
        1,
        "cannot be used: it answers 403 Forbidden: User not authorized",
    )?;
    registry.shut().await?;
    fails(&registry.url(), 1, &format!("the schema registry at http://{host} cannot be used: error sending request"))?;
    fails("localhost:8081/p%40ss:w%C3%B6rd", 2, "--schema-registry-url: has to start with http:// or https://")?;
    fails("https://us er:w%C3%B6rd", 2, "--schema-registry-url: invalid international domain name")
}

fn fails(url: &str, code: i32, message: &str) -> anyhow::Result<()> {
    let listen = format!("127.0.0.1:{}", ports::free_port()?);
    let mut nearby = Nearby::start(&["run", "--listen", &listen, "--schema-registry-url", url], &[])?;
    let status = nearby.finish(READY)?;
    let log = nearby.stderr();
    ensure!(status.code() == Some(code) && log.contains(message), "{status}: {log}\ndoes not say: {message}");
    ensure!(!log.contains("w%C3") && !log.contains("wörd"), "a password is printed: {log}");
    Ok(())
}

fn run(brokers: &str, database: &str, prefix: &str, more: &[&str]) -> anyhow::Result<Nearby> {
    let listen = format!("127.0.0.1:{}", ports::free_port()?);
    let args = ["run", "--listen", &listen, "--brokers", brokers, "--database-url", database, "--topic-prefix", prefix];
    Nearby::start(&[&args, more].concat(), &[("NEARBY_JWT_SECRET", SECRET), ("NEARBY_PARTITIONS", "4")])
}

fn deployment(ingest: String, database: &str) -> Deployment {
    let token = Box::new(|user, scopes: &str| token(SECRET, user, scopes));
    Deployment { ingest, database: database.to_owned(), token }
}

/// Anna's socket, and Ben's reports as records.
struct Watch {
    socket: Socket,
    brokers: String,
    topic: String,
    ben: i64,
    now_ms: i64,
}

impl Watch {
    async fn open(http: String, brokers: &str, topic: &str, anna: i64) -> anyhow::Result<Watch> {
        let ben = anna + 1;
        let lists = json!({"lists": {anna.to_string(): [ben.to_string()]}});
        let lists_url = format!("{http}/v1/friend-lists");
        http::post_json(&token(SECRET, 0, "friends:write")?, &lists_url, &lists).await?.expect_status(202)?;
        let mut socket =
            Socket::connect(&format!("{}/v1/stream", http.replace("http", "ws")), &token(SECRET, anna, "")?).await?;
        socket.send(&json!({"type": "location", "lat": 0.0, "lon": 0.0, "ref": 1})).await?;
        socket.wait_frame("accepted", STEP).await?;
        let now_ms = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_millis();
        let (brokers, topic) = (brokers.to_owned(), topic.to_owned());
        Ok(Watch { socket, brokers, topic, ben, now_ms: i64::try_from(now_ms)? })
    }

    /// `LocationEvent` of Ben's report number `n`.
    fn datum(&self, n: i64) -> Vec<u8> {
        let times = [self.ben, self.now_ms + n, self.now_ms + n, 1, n * 10_000, 0, 0, 0, 0, 0];
        times.into_iter().flat_map(long).collect()
    }

    /// The same with the schema `NEWER`.
    fn newer_datum(&self, n: i64) -> Vec<u8> {
        [self.ben, 50, self.now_ms + n, self.now_ms + n, 1, n * 10_000, 0].into_iter().flat_map(long).collect()
    }

    async fn write(&self, value: &[u8]) -> anyhow::Result<()> {
        records::write(&self.brokers, &self.topic, &self.ben.to_string(), value).await.map(drop)
    }

    /// Writes Ben's report number `n`, which Anna has to be told.
    async fn see(&mut self, n: i64, value: &[u8]) -> anyhow::Result<()> {
        self.write(value).await?;
        self.wait_for(n).await
    }

    async fn wait_for(&mut self, n: i64) -> anyhow::Result<()> {
        loop {
            let seen = self.socket.wait_friend(self.ben, STEP).await.with_context(|| format!("report {n}"))?;
            if seen["updated_at_ms"] == self.now_ms + n {
                let lat = seen["lat"].as_f64().context("a latitude")?;
                ensure!((lat * 1000.0 - n as f64).abs() < 1e-6, "{seen}");
                return Ok(());
            }
        }
    }
}

fn rows_of(user: i64) -> String {
    format!("select count(*) from nearby.location_history where user_id = {user}")
}

async fn history(database: &str, user: i64, rows: usize) -> anyhow::Result<()> {
    let deadline = Instant::now() + STEP;
    loop {
        let found = postgres::psql(database, &rows_of(user))?;
        if found.trim() == rows.to_string() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "history has {found:?} rows of {user}, expected {rows}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn confluent(id: u32, datum: &[u8]) -> Vec<u8> {
    [&[0][..], &id.to_be_bytes(), datum].concat()
}

fn single_object_of(datum: &[u8]) -> Vec<u8> {
    [&[0xC3, 0x01][..], &hex("e2a247bb418f7e5b"), datum].concat()
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).filter_map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

/// Avro's int and long.
fn long(value: i64) -> Vec<u8> {
    let mut rest = ((value << 1) ^ (value >> 63)).cast_unsigned();
    let mut bytes = Vec::new();
    while rest >= 0x80 {
        bytes.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    bytes.push(rest as u8);
    bytes
}
