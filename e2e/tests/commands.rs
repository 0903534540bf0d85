//! The commands for data engineers and operators on real Kafka: topics, tail, dead letters.

use anyhow::{Context, ensure};
use nearby_e2e::kafka::Kafka;
use nearby_e2e::nearby::{Ended, Nearby, run, token};
use nearby_e2e::{http, ports};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, OwnedHeaders, OwnedMessage};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::util::Timeout;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use serde_json::{Value, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SECRET: &str = "a secret for the tests alone";
const READY: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(20);
const DAY_MS: i64 = 86_400_000;

/// A cluster, and what a test does in it under a prefix of its own.
struct Cluster {
    kafka: Kafka,
    prefix: &'static str,
    producer: FutureProducer,
}

impl Cluster {
    fn start(prefix: &'static str) -> anyhow::Result<Cluster> {
        let kafka = Kafka::start()?;
        let producer = ClientConfig::new().set("bootstrap.servers", kafka.bootstrap()).create()?;
        Ok(Cluster { kafka, prefix, producer })
    }

    /// Runs a command whose words are parted by spaces.
    fn nearby(&self, args: &str) -> anyhow::Result<Ended> {
        run(&args.split(' ').collect::<Vec<_>>(), &self.settings(&self.kafka.bootstrap()))
    }

    fn settings<'a>(&self, brokers: &'a str) -> [(&'static str, &'a str); 3] {
        [("NEARBY_BROKERS", brokers), ("NEARBY_TOPIC_PREFIX", self.prefix), ("NEARBY_JWT_SECRET", SECRET)]
    }

    fn name(&self, topic: &str) -> String {
        format!("{}{topic}", self.prefix)
    }

    async fn make(&self, topic: &str, partitions: i32, settings: &[(&str, &str)]) -> anyhow::Result<()> {
        let admin: AdminClient<_> = ClientConfig::new().set("bootstrap.servers", self.kafka.bootstrap()).create()?;
        let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
        let new = settings.iter().fold(new, |new, (key, value)| new.set(key, value));
        for made in admin.create_topics([&new], &AdminOptions::new()).await? {
            made.map_err(|(name, reason)| anyhow::anyhow!("{name}: {reason}"))?;
        }
        Ok(())
    }

    /// Writes a record; says at which offset.
    async fn write(&self, topic: &str, partition: i32, record: Written<'_>) -> anyhow::Result<i64> {
        let mut writing: FutureRecord<'_, [u8], [u8]> = FutureRecord::to(topic).partition(partition).key(record.key);
        (writing.payload, writing.timestamp, writing.headers) = (record.value, record.time_ms, record.headers);
        let written = self.producer.send(writing, Timeout::After(SOON)).await;
        written.map(|delivery| delivery.offset).map_err(|(error, _)| error.into())
    }

    /// The record at an offset.
    fn record(&self, topic: &str, partition: i32, offset: i64) -> anyhow::Result<OwnedMessage> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", self.kafka.bootstrap())
            .set("group.id", "test")
            .set("auto.offset.reset", "error")
            .create()?;
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(offset))?;
        consumer.assign(&list)?;
        Ok(consumer.poll(SOON).context("nothing came")??.detach())
    }

    fn topics(&self) -> anyhow::Result<Vec<String>> {
        let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", self.kafka.bootstrap()).create()?;
        let metadata = consumer.fetch_metadata(None, SOON)?;
        let mut names: Vec<String> = metadata.topics().iter().map(|topic| topic.name().to_owned()).collect();
        names.sort();
        Ok(names)
    }

    /// An ingest with one report and one friend list behind it; their topics have one partition.
    async fn with_records(&self) -> anyhow::Result<Nearby> {
        let created = self.nearby("topics create --partitions 1")?;
        ensure!(created.code == Some(0), "{created:?}");
        let listen = format!("127.0.0.1:{}", ports::free_port()?);
        let mut ingest = Nearby::start(&["ingest", "--listen", &listen], &self.settings(&self.kafka.bootstrap()))?;
        let url = ingest.wait_line("ready ", READY)?;
        let report = json!({"lat": 40.0, "lon": -73.0, "accuracy_m": 12.3});
        http::post_json(&token(SECRET, 7, "")?, &format!("{url}/v1/locations"), &report).await?.expect_status(202)?;
        let lists = json!({"lists": {"7": ["9223372036854775807"]}});
        let lists_url = format!("{url}/v1/friend-lists");
        http::post_json(&token(SECRET, 7, "friends:write")?, &lists_url, &lists).await?.expect_status(202)?;
        Ok(ingest)
    }
}

#[derive(Default)]
struct Written<'a> {
    key: &'a [u8],
    value: Option<&'a [u8]>,
    time_ms: Option<i64>,
    headers: Option<OwnedHeaders>,
}

fn headers(pairs: &[(&str, &str)]) -> Option<OwnedHeaders> {
    Some(
        pairs
            .iter()
            .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: Some(*value) })),
    )
}

fn now_ms() -> anyhow::Result<i64> {
    Ok(i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?)
}

fn lines(text: &str) -> anyhow::Result<Vec<Value>> {
    text.lines().map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_check_names_every_difference_and_changes_none() -> anyhow::Result<()> {
    let cluster = Cluster::start("odd.")?;
    let lists = [("cleanup.policy", "delete"), ("min.compaction.lag.ms", "5")];
    cluster.make("odd.location-events", 3, &[("cleanup.policy", "compact"), ("retention.ms", "1000")]).await?;
    cluster.make("odd.friend-lists", 5, &lists).await?;
    cluster.make("odd.sessions", 4, &[("cleanup.policy", "compact"), ("segment.ms", "900000")]).await?;
    cluster.make("odd.gateways", 2, &[("cleanup.policy", "compact,delete")]).await?;
    let expected = "odd.location-events: 3 partitions, expected 4\n\
                    odd.location-events: cleanup.policy is compact, expected delete\n\
                    odd.location-events: retention.ms is 1000, expected 604800000\n\
                    odd.location-events: message.timestamp.type is CreateTime, expected LogAppendTime\n\
                    odd.friend-lists: 5 partitions, expected 4\n\
                    odd.friend-lists: cleanup.policy is delete, expected compact\n\
                    odd.friend-lists: min.compaction.lag.ms is 5, expected 604800000\n\
                    odd.sessions: segment.ms is 900000, expected 600000\n\
                    odd.gateways: 2 partitions, expected 1\n\
                    odd.gateways: cleanup.policy is compact,delete, expected compact\n\
                    odd.gateways: message.timestamp.type is CreateTime, expected LogAppendTime\n\
                    odd.dead-letters: missing\n";
    for _ in 0..2 {
        let ended = cluster.nearby("topics check --partitions 4")?;
        ensure!(ended.code == Some(1) && ended.stdout == expected, "{ended:?}");
        ensure!(ended.stderr.contains("12 differences; nothing was changed"), "{ended:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_clean_removes_those_of_gateways_lost_for_a_day() -> anyhow::Result<()> {
    let cluster = Cluster::start("t.")?;
    // By the writer's clock, so that a test need not wait for a day.
    cluster.make("t.gateways", 1, &[("cleanup.policy", "compact")]).await?;
    for topic in ["t.friend-moved-alive", "t.friend-moved-dead", "t.friend-moved-left", "t.friend-moved-silent"] {
        cluster.make(topic, 1, &[]).await?;
    }
    // Neither is this deployment's, and the last one was never written to.
    cluster.make("friend-moved-dead", 1, &[]).await?;
    cluster.make("t.friend-moved-unknown", 1, &[]).await?;
    let (now, long_ago) = (now_ms()?, now_ms()? - 2 * DAY_MS);
    let beat = |key: &'static [u8], value, time_ms| Written { key, value, time_ms: Some(time_ms), headers: None };
    cluster.write("t.gateways", 0, beat(b"dead", Some(b"x"), long_ago)).await?;
    cluster.write("t.gateways", 0, beat(b"left", None, long_ago)).await?;
    cluster.write("t.friend-moved-silent", 0, beat(b"", Some(b"x"), long_ago)).await?;

    // By the newest heartbeat nobody has been lost for long yet.
    let ended = cluster.nearby("topics clean")?;
    ensure!(ended.code == Some(0) && ended.stdout.ends_with("0 of 5 gateway topics removed\n"), "{ended:?}");

    cluster.write("t.gateways", 0, beat(b"alive", Some(b"x"), now)).await?;
    let before = cluster.topics()?;
    let tried = cluster.nearby("topics clean --dry-run")?;
    ensure!(cluster.topics()? == before, "a dry run removes nothing");
    let ended = cluster.nearby("topics clean")?;
    let said = |would: &str, text: &str| {
        let names: Vec<String> =
            text.lines().map(|line| line.split(": ").next().unwrap_or_default().to_owned()).collect();
        let expected = [
            format!("t.friend-moved-dead {would}removed"),
            format!("t.friend-moved-left {would}removed"),
            format!("t.friend-moved-silent {would}removed"),
            "t.friend-moved-unknown stays".to_owned(),
            format!("3 of 5 gateway topics {would}removed"),
        ];
        names == expected
    };
    ensure!(tried.code == Some(0) && said("would be ", &tried.stdout), "{tried:?}");
    ensure!(ended.code == Some(0) && said("", &ended.stdout), "{ended:?}");
    let left: Vec<String> = cluster.topics()?.into_iter().filter(|name| name.contains("friend-moved")).collect();
    ensure!(left == ["friend-moved-dead", "t.friend-moved-alive", "t.friend-moved-unknown"], "{left:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_shows_every_topic_decoded() -> anyhow::Result<()> {
    let cluster = Cluster::start("t.")?;
    let ingest = cluster.with_records().await?;
    let reports = cluster.name("location-events");
    let bad = Written { key: b"7", value: Some(b"hello"), ..Written::default() };
    cluster.write(&reports, 0, bad).await?;
    cluster.write(&cluster.name("friend-lists"), 0, Written { key: b"7", ..Written::default() }).await?;

    // With the prefix or without, from the beginning, up to what is there.
    for topic in ["location-events", "t.location-events"] {
        let ended = cluster.nearby(&format!("tail {topic} --from beginning --no-follow"))?;
        ensure!(ended.code == Some(0), "{ended:?}");
        let said = lines(&ended.stdout)?;
        ensure!(said.len() == 2, "{ended:?}");
        ensure!(said[0]["type"] == "LocationEvent" && said[0]["key"] == "7" && said[0]["offset"] == 0, "{said:?}");
        ensure!(
            said[0]["value"]["user_id"] == "7" && said[0]["value"]["position"]["lat_e7"] == 400_000_000,
            "{said:?}"
        );
        ensure!(said[0]["value"]["position"]["accuracy_m"] == 12.3, "{said:?}");
        ensure!((said[0]["appended_at"].as_i64().context("a time")? - now_ms()?).abs() < 600_000, "{said:?}");
        ensure!(said[1]["type"] == "undecodable" && said[1]["hex"] == "68656c6c6f", "{said:?}");
        ensure!(said[1]["reason"].as_str().is_some_and(|reason| reason.contains("C3 01")), "{said:?}");
    }
    let lists = lines(&cluster.nearby("tail friend-lists --from beginning --count 2 --partition 0")?.stdout)?;
    ensure!(lists[0]["value"]["friends"] == json!(["9223372036854775807"]), "{lists:?}");
    ensure!(lists[1]["type"] == "tombstone" && lists[1]["created_at"].is_i64(), "{lists:?}");

    // From a moment on, in both ways to write it.
    let appended = lines(&cluster.nearby("tail location-events --from 0 --count 1")?.stdout)?;
    let after = appended[0]["appended_at"].as_i64().context("a time")? + 1;
    let ended = cluster.nearby(&format!("tail location-events --from {after} --count 1"))?;
    ensure!(lines(&ended.stdout)?[0]["offset"] == 1, "{ended:?}");
    let ended = cluster.nearby("tail location-events --from 2100-01-01T00:00:00Z --no-follow")?;
    ensure!(ended.code == Some(0) && ended.stdout.is_empty(), "{ended:?}");

    // What is not there is said to be missing, and what there is.
    let ended = cluster.nearby("tail nothing")?;
    ensure!(ended.code == Some(2) && ended.stderr.contains("there is no topic nothing or t.nothing"), "{ended:?}");
    ensure!(ended.stderr.contains("t.friend-lists"), "{ended:?}");
    let ended = cluster.nearby("tail location-events --partition 9")?;
    ensure!(ended.code == Some(2) && ended.stderr.contains("no partition 9"), "{ended:?}");

    // Follows from the end until it is told to stop.
    let brokers = cluster.kafka.bootstrap();
    let mut following = Nearby::start(&["tail", "location-events"], &cluster.settings(&brokers))?;
    while !following.stderr().contains("Ctrl-C ends") {
        ensure!(following.is_running()?, "{}", following.stderr());
        std::thread::sleep(Duration::from_millis(20));
    }
    cluster.write(&reports, 0, Written { key: b"8", value: Some(b"later"), ..Written::default() }).await?;
    let line: Value = serde_json::from_str(&format!("{{{}", following.wait_line("{", SOON)?))?;
    ensure!(line["offset"] == 2 && line["key"] == "8", "{line}");
    let (status, _) = following.terminate()?;
    ensure!(status.success(), "{status}: {}", following.stderr());
    drop(ingest);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_shows_gateways_their_topics_and_dead_letters() -> anyhow::Result<()> {
    let cluster = Cluster::start("")?;
    let ingest = cluster.with_records().await?;
    let brokers = cluster.kafka.bootstrap();
    let listen = format!("127.0.0.1:{}", ports::free_port()?);
    let mut pusher = Nearby::start(&["pusher", "--listen", &listen], &cluster.settings(&brokers))?;
    pusher.wait_line("ready ", READY)?;
    let beats = lines(&cluster.nearby("tail gateways --from beginning --count 1")?.stdout)?;
    ensure!(beats[0]["type"] == "GatewayHeartbeat", "{beats:?}");
    let gateway = beats[0]["value"]["gateway"].as_str().context("a gateway")?.to_owned();

    // The gateway buries what it cannot read, and the ingest what is no heartbeat.
    let topic = format!("friend-moved-{gateway}");
    cluster.write(&topic, 0, Written { key: b"", value: Some(b"no batch"), ..Written::default() }).await?;
    let batches = lines(&cluster.nearby(&format!("tail {topic} --from beginning --count 1"))?.stdout)?;
    ensure!(batches[0]["type"] == "undecodable", "{batches:?}");
    let letters = lines(&cluster.nearby("tail dead-letters --from beginning --count 1")?.stdout)?;
    ensure!(letters[0]["headers"]["topic"] == topic && letters[0]["headers"]["offset"] == "0", "{letters:?}");
    let listed = lines(&cluster.nearby(&format!("dead-letters list --topic {topic}"))?.stdout)?;
    let origin = json!({"topic": topic, "partition": 0, "offset": 0});
    ensure!(listed.len() == 1 && listed[0]["origin"] == origin && listed[0]["size_bytes"] == 8, "{listed:?}");
    let redriven = cluster.nearby("dead-letters redrive --all --yes")?;
    ensure!(
        redriven.code == Some(0) && redriven.stdout.contains("its gateway has asked for snapshots"),
        "{redriven:?}"
    );
    drop((ingest, pusher));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_listed_and_redriven_once() -> anyhow::Result<()> {
    let cluster = Cluster::start("t.")?;
    let ingest = cluster.with_records().await?;
    let (reports, lists, letters) =
        (cluster.name("location-events"), cluster.name("friend-lists"), cluster.name("dead-letters"));
    let good = cluster.record(&reports, 0, 0)?.payload().context("a value")?.to_vec();
    // A value that is too large for a letter, and still in its place.
    let large = vec![7; 950_000];
    let at = cluster.write(&reports, 0, Written { key: b"8", value: Some(&large), ..Written::default() }).await?;
    ensure!(at == 1, "{at}");
    for value in [b"old", b"new"] {
        cluster.write(&lists, 0, Written { key: b"7", value: Some(value), ..Written::default() }).await?;
    }
    let letter = |topic: &str, offset: &str, reason: &str| {
        headers(&[("topic", topic), ("partition", "0"), ("offset", offset), ("reason", reason)])
    };
    let left_out = "x (value of 950000 bytes left out)";
    for (key, value, headers) in [
        (&b"7"[..], Some(&good[..]), letter(&reports, "100", "unknown schema")),
        // The same once more, as a second reader would bury it.
        (b"7", Some(&good), letter(&reports, "100", "unknown schema")),
        (b"8", None, letter(&reports, "1", left_out)),
        // Gone from its place, and a list that a newer one has replaced.
        (b"9", None, letter(&reports, "5000", left_out)),
        (b"7", Some(b"old"), letter(&lists, "1", "broken")),
        (b"10", Some(b"new"), letter(&lists, "60", "broken")),
    ] {
        cluster.write(&letters, 0, Written { key, value, headers, ..Written::default() }).await?;
    }

    let listed = lines(&cluster.nearby("dead-letters list --topic location-events")?.stdout)?;
    ensure!(listed.len() == 4, "{listed:?}");
    ensure!(listed[0]["reason"] == "unknown schema" && listed[0]["key"] == "7", "{listed:?}");
    ensure!(listed[0]["size_bytes"] == good.len() && listed[0]["redriven_to"].is_null(), "{listed:?}");
    let future = cluster.nearby("dead-letters list --since 2100-01-01T00:00:00Z")?;
    ensure!(future.code == Some(0) && future.stdout.is_empty(), "{future:?}");

    // Without --yes nothing is written.
    let tried = cluster.nearby("dead-letters redrive --all")?;
    ensure!(tried.code == Some(1), "{tried:?}");
    ensure!(tried.stdout.contains("3 would be redriven, 2 left; --yes does it"), "{tried:?}");
    ensure!(tried.stdout.contains("t.location-events/0/5000 NOT redriven: its value was too large"), "{tried:?}");
    ensure!(tried.stdout.contains("t.friend-lists/0/1 left: the topic has a newer record"), "{tried:?}");
    let count = || -> anyhow::Result<usize> {
        Ok(cluster.nearby("tail location-events --from beginning --no-follow")?.stdout.lines().count())
    };
    ensure!(count()? == 2, "a dry run writes nothing");

    let chosen = cluster.nearby("dead-letters redrive --topic location-events --partition 0 --offset 100 --yes")?;
    ensure!(chosen.code == Some(0), "{chosen:?}");
    ensure!(chosen.stdout.contains("t.location-events/0/100 redriven to t.location-events/0/2"), "{chosen:?}");
    let redriven = cluster.record(&reports, 0, 2)?;
    ensure!(redriven.payload() == Some(&good[..]) && redriven.key() == Some(b"7"), "key and bytes are the same");

    // The others, and none again.
    let all = cluster.nearby("dead-letters redrive --all --yes")?;
    ensure!(all.code == Some(1) && all.stdout.contains("2 redriven, 3 left\n"), "{all:?}");
    ensure!(all.stdout.contains("t.location-events/0/100 left: redriven before, to t.location-events/0/2"), "{all:?}");
    ensure!(cluster.record(&reports, 0, 3)?.payload() == Some(&large[..]), "fetched from its origin");
    let again = cluster.nearby("dead-letters redrive --all --yes")?;
    ensure!(again.code == Some(1) && again.stdout.contains("0 redriven, 5 left\n"), "{again:?}");
    ensure!(count()? == 4, "each went back once");
    let listed = lines(&cluster.nearby("dead-letters list --topic t.location-events")?.stdout)?;
    let now_at = json!({"topic": "t.location-events", "partition": 0, "offset": 2});
    ensure!(listed.len() == 4 && listed[0]["redriven_to"] == now_at, "marks are no letters: {listed:?}");

    // One that comes back is not sent round and round, unless somebody names it.
    let back = Written { key: b"7", value: Some(&good), headers: letter(&reports, "2", "again"), time_ms: None };
    cluster.write(&letters, 0, back).await?;
    let again = cluster.nearby("dead-letters redrive --all --yes")?;
    ensure!(again.stdout.contains("t.location-events/0/2 left: redriven from t.location-events/0/100"), "{again:?}");
    let named = cluster.nearby("dead-letters redrive --topic location-events --partition 0 --offset 2 --yes")?;
    ensure!(named.code == Some(0) && named.stdout.contains("1 redriven, 0 left"), "{named:?}");
    drop(ingest);
    Ok(())
}
