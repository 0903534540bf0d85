//! Programs of others, in Python and in Java, read every topic and write reports: those that `docs/data-engineers.md` shows.

use anyhow::{Context, ensure};
use nearby_e2e::flow::STEP;
use nearby_e2e::nearby::{Nearby, token};
use nearby_e2e::schema_registry::{Rules, SchemaRegistry};
use nearby_e2e::{http, kafka::Kafka, ports, postgres, postgres::Postgres, programs, records, ws::Socket};
use rdkafka::Message;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const SECRET: &str = "a secret for the tests alone";
const READY: Duration = Duration::from_secs(60);
const PARTITIONS: &str = "16";

/// One Kafka and one Postgres for both wire formats; topics and users of each deployment are its own.
#[tokio::test(flavor = "multi_thread")]
async fn python_and_java_are_at_home() -> anyhow::Result<()> {
    let kafka = Kafka::start()?;
    let postgres = Postgres::start()?;
    let registry = SchemaRegistry::start(Rules::default()).await?;
    let (brokers, database) = (kafka.bootstrap(), postgres.url());
    let scratch = ["topics", "create", "--brokers", &brokers, "--topic-prefix", "scratch.", "--partitions", PARTITIONS];
    ensure!(Nearby::start(&scratch, &[])?.finish(READY)?.success(), "topics to write nonsense into");
    Deployment::start(&brokers, &database, "plain.", 1000, None)?.check().await?;
    Deployment::start(&brokers, &database, "framed.", 2000, Some(registry.url()))?.check().await
}

#[test]
fn the_documents_show_the_programs_that_are_tested() -> anyhow::Result<()> {
    let document = std::fs::read_to_string(programs::root().join("docs/data-engineers.md"))?;
    for (path, language) in [
        ("e2e/python/read.py", "python"),
        ("e2e/python/write.py", "python"),
        ("e2e/java/ReadTopic.java", "java"),
        ("e2e/java/WriteLocation.java", "java"),
    ] {
        let program = std::fs::read_to_string(programs::root().join(path))?;
        ensure!(
            document.contains(&format!("```{language}\n{program}```")),
            "docs/data-engineers.md has not what {path} has"
        );
    }
    Ok(())
}

struct Deployment {
    nearby: Nearby,
    http: String,
    brokers: String,
    database: String,
    prefix: String,
    /// Anna's id; Ben's and Cem's follow.
    anna: i64,
    registry: Option<String>,
}

impl Deployment {
    fn start(
        brokers: &str,
        database: &str,
        prefix: &str,
        anna: i64,
        registry: Option<String>,
    ) -> anyhow::Result<Deployment> {
        let listen = format!("127.0.0.1:{}", ports::free_port()?);
        let mut args = vec![
            "run",
            "--listen",
            &listen,
            "--brokers",
            brokers,
            "--database-url",
            database,
            "--topic-prefix",
            prefix,
        ];
        args.extend(registry.iter().flat_map(|url| ["--schema-registry-url", url]));
        let mut nearby = Nearby::start(&args, &[("NEARBY_JWT_SECRET", SECRET), ("NEARBY_PARTITIONS", PARTITIONS)])?;
        let http = nearby.wait_ready(READY)?.http;
        let (brokers, database, prefix) = (brokers.to_owned(), database.to_owned(), prefix.to_owned());
        Ok(Deployment { nearby, http, brokers, database, prefix, anna, registry })
    }

    async fn check(mut self) -> anyhow::Result<()> {
        let told = async {
            let socket = self.others_write().await?;
            self.others_read()?;
            self.users_are_where_java_puts_them().await?;
            drop(socket);
            let letters = records::dead_letter_reasons(&self.brokers, &self.topic("dead-letters"))?;
            ensure!(letters.is_empty(), "{letters:?}");
            anyhow::Ok(())
        };
        told.await.with_context(|| format!("{}{}", self.prefix, self.nearby.stderr()))?;
        self.nearby.terminate().map(drop)
    }

    fn topic(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    async fn lists(&self, lists: Value) -> anyhow::Result<()> {
        let url = format!("{}/v1/friend-lists", self.http);
        let answer = http::post_json(&token(SECRET, 0, "friends:write")?, &url, &json!({"lists": lists})).await?;
        answer.expect_status(202).map(drop)
    }

    /// Java writes where Ben is, Python where Cem is: Anna sees it, and it is in the history.
    async fn others_write(&self) -> anyhow::Result<Socket> {
        let [anna, ben, cem] = [0, 1, 2].map(|nth| (self.anna + nth).to_string());
        self.lists(json!({&anna: [&ben, &cem]})).await?;
        let stream = format!("{}/v1/stream", self.http.replace("http", "ws"));
        let mut socket = Socket::connect(&stream, &token(SECRET, self.anna, "")?).await?;
        socket.send(&json!({"type": "location", "lat": 40.0, "lon": -73.0, "accuracy_m": 7.5, "ref": 1})).await?;
        socket.wait_frame("accepted", STEP).await?;

        self.see(&mut socket, &ben, 40.01, "java", None).await?;
        self.see(&mut socket, &cem, 40.02, "python", None).await?;
        // A pipeline with a registry takes both formats.
        if let Some(registry) = &self.registry {
            self.see(&mut socket, &ben, 40.03, "java", Some(registry)).await?;
            self.see(&mut socket, &cem, 40.04, "python", Some(registry)).await?;
        }
        Ok(socket)
    }

    async fn see(
        &self,
        socket: &mut Socket,
        user: &str,
        lat: f64,
        by: &str,
        registry: Option<&str>,
    ) -> anyhow::Result<()> {
        let (topic, lat_text) = (self.topic("location-events"), lat.to_string());
        let mut args = vec![self.brokers.as_str(), &topic, user, &lat_text, "-73"];
        args.extend(registry);
        let said = match by {
            "java" => programs::java("WriteLocation.java", &args, "")?,
            _ => programs::python("write.py", &args)?,
        };
        let said: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
        let seen = socket.wait_friend(user.parse()?, STEP).await.with_context(|| format!("{by} wrote"))?;
        ensure!(seen["lat"] == lat, "{by}: {seen}");
        let rows = format!(
            "select kafka_partition from nearby.location_history where user_id = {user} and round(lat::numeric, 2) = {lat}"
        );
        wait_for_rows(&self.database, &rows, &said["partition"].to_string()).await?;
        let home = records::write(&self.brokers, "scratch.location-events", user, &[]).await?;
        ensure!(said["partition"] == home, "{by} wrote to {said}, Java's default partitioner to {home}");
        if by == "python" {
            // It says where librdkafka's default would have put the user: so it does.
            let elsewhere = records::write_by_default(&self.brokers, "scratch.location-events", user, &[]).await?;
            ensure!(said["default_would_be"] == elsewhere, "{said}, but it is {elsewhere}");
        }
        Ok(())
    }

    /// Java and Python read the same out of every topic.
    fn others_read(&self) -> anyhow::Result<()> {
        let [ben, cem] = [1, 2].map(|nth| (self.anna + nth).to_string());
        let reports = self.read("location-events")?;
        let of = |user: &str, lat_e7: i64| {
            reports.iter().any(|record| record["key"] == user && record["value"]["position"]["lat_e7"] == lat_e7)
        };
        ensure!(of(&ben, 400_100_000) && of(&cem, 400_200_000), "{reports:?}");
        let mine = reports.iter().find(|record| record["value"]["user_id"] == self.anna).context("Anna's report")?;
        let position = json!({"lat_e7": 400_000_000, "lon_e7": -730_000_000, "accuracy_m": 7.5, "speed_mps": null, "heading_deg": null});
        ensure!(mine["value"]["position"] == position && mine["value"]["source"] == "WEBSOCKET", "{mine}");

        let lists = self.read("friend-lists")?;
        ensure!(
            lists.iter().any(|record| record["value"]["friends"] == json!([self.anna + 1, self.anna + 2])),
            "{lists:?}"
        );
        let beats = self.read("gateways")?;
        let gateway = beats[0]["key"].as_str().context("the gateway's id")?;
        ensure!(beats[0]["value"]["gateway"] == gateway && beats[0]["value"]["capacity"] == 50_000, "{beats:?}");
        let sessions = self.read("sessions")?;
        ensure!(sessions[0]["key"] == format!("{}/{gateway}", self.anna), "{sessions:?}");
        ensure!(sessions[0]["value"]["user_id"] == self.anna, "{sessions:?}");
        let batches = self.read(&format!("friend-moved-{gateway}"))?;
        let events: Vec<&Value> = batches
            .iter()
            .flat_map(|batch| batch["value"]["sections"].as_array().into_iter().flatten())
            .flat_map(|section| section["events"].as_array().into_iter().flatten())
            .collect();
        let moved = |event: &&Value| event["friend"] == self.anna + 1 && event["viewers"][0]["viewer"] == self.anna;
        ensure!(events.iter().any(moved), "{events:?}");
        ensure!(events.iter().any(|event| event["friends"] == json!([])), "the first snapshot: {events:?}");
        Ok(())
    }

    /// What both read, in the order of the log.
    fn read(&self, name: &str) -> anyhow::Result<Vec<Value>> {
        let topic = self.topic(name);
        let there = records::read_all(&self.brokers, &topic)?;
        let framed = there.iter().filter_map(Message::payload).filter(|value| value[0] == 0).count();
        ensure!((framed > 0) == self.registry.is_some(), "{topic}: {framed} records in Confluent's format");
        let mut args = vec![self.brokers.as_str(), &topic];
        args.extend(self.registry.as_deref());
        let parse = |printed: String| {
            let records = printed.lines().map(|line| {
                let record: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
                Ok(((record["partition"].to_string(), record["offset"].as_i64()), record))
            });
            records.collect::<anyhow::Result<BTreeMap<_, _>>>()
        };
        let python = parse(programs::python("read.py", &args)?).context("python")?;
        let java = parse(programs::java("ReadTopic.java", &args, "")?).context("java")?;
        ensure!(
            !there.is_empty() && python.len() >= there.len(),
            "{topic}: python reads {} of {}",
            python.len(),
            there.len()
        );
        for (at, record) in &python {
            // Java came later: more may have come, but nothing may be gone or different.
            ensure!(java.get(at) == Some(record), "{topic}: python {record}, java {:?}", java.get(at));
        }
        Ok(python.into_values().collect())
    }

    /// Java's default partitioner, and everything here that chooses a partition, agree. (The sink refuses a list that is not
    /// where `partition_of` says.)
    async fn users_are_where_java_puts_them(&self) -> anyhow::Result<()> {
        let users: Vec<i64> = (0..300).map(|n| n * 7_919).chain((0..63).map(|n| i64::MAX >> n)).collect();
        let lists: serde_json::Map<String, Value> = users.iter().map(|user| (user.to_string(), json!([]))).collect();
        self.lists(lists.into()).await?;
        let keys: String = users.iter().map(|user| format!("{user}\n")).collect();
        let said = programs::java("Partitions.java", &[&self.brokers, "scratch.location-events"], &keys)?;
        let java: BTreeMap<&str, &str> = said.lines().filter_map(|line| line.split_once(' ')).collect();
        ensure!(java.contains_key("0") && java.contains_key("9223372036854775807"), "{said}");
        let lists = records::read_all(&self.brokers, &self.topic("friend-lists"))?;
        let ours = |key: &str| lists.iter().find(|list| list.key() == Some(key.as_bytes())).map(Message::partition);
        for (key, partition) in &java {
            ensure!(ours(key) == Some(partition.parse()?), "user {key}: Java {partition}, we {:?}", ours(key));
        }
        let rows =
            format!("select count(*) from nearby.friend_lists where user_id in ({})", keys.trim().replace('\n', ","));
        wait_for_rows(&self.database, &rows, &java.len().to_string()).await
    }
}

async fn wait_for_rows(database: &str, query: &str, expected: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + STEP;
    loop {
        let found = postgres::psql(database, query)?;
        if found.trim() == expected {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{query}: {found:?}, expected {expected}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
