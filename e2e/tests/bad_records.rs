//! Records that nobody can use, written by an ordinary producer into every topic of a running deployment on real Kafka:
//! each is refused by the broker or ends in the dead letters with its origin and its reason, is counted, and keeps nobody
//! from what comes after it.

use anyhow::{Context, ensure};
use nearby_e2e::flow::{Deployment, two_friends_meet};
use nearby_e2e::nearby::{Nearby, token};
use nearby_e2e::{http, kafka::Kafka, ports, postgres::Postgres};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Headers};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{Message, Offset, TopicPartitionList};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const SECRET: &str = "a secret for the tests alone";
const READY: Duration = Duration::from_secs(60);
/// For what passes through one service.
const STEP: Duration = Duration::from_secs(30);
/// A gateway that has read something bad asks for snapshots at most once a second, and once more for what came meanwhile.
const ASKED: Duration = Duration::from_secs(3);
const PARTITIONS: i32 = 4;
/// The user of bad records: nobody in the story.
const NOBODY: &str = "900001";

#[tokio::test(flavor = "multi_thread")]
async fn bad_records_in_every_topic_keep_nobody_from_the_good_ones() -> anyhow::Result<()> {
    let (kafka, postgres) = (Kafka::start()?, Postgres::start()?);
    let (brokers, database) = (kafka.bootstrap(), postgres.url());
    let envs = [("NEARBY_JWT_SECRET", SECRET), ("NEARBY_BROKERS", brokers.as_str())];
    let mut create = Nearby::start(&["topics", "create", "--partitions", &PARTITIONS.to_string()], &envs)?;
    ensure!(create.finish(READY)?.success(), create.stderr());
    let mut processor = Service::start("processor", &[], &envs)?;
    let mut pusher = Service::start("pusher", &["--gateway-name", "east"], &envs)?;
    let mut sink = Service::start("sink", &["--database-url", &database], &envs)?;
    let mut ingest = Service::start("ingest", &[], &envs)?;
    for service in [&mut processor, &mut pusher, &mut sink, &mut ingest] {
        service.wait_ready()?;
    }
    let story = Deployment {
        ingest: ingest.address.clone(),
        database,
        token: Box::new(|user, scopes| token(SECRET, user, scopes)),
    };
    two_friends_meet(&story, 100).await?;

    let gateway = http::get(&format!("{}/v1/gateway", ingest.address)).await?.expect_status(200)?.json()?;
    let gateway_topic = format!("friend-moved-{}", gateway["gateway"].as_str().context("a gateway has a name")?);
    let log = Log::new(&kafka)?;
    let good = log.first_value("location-events")?;
    let mut sent = BTreeMap::new();
    for bad in log.bad_records(&gateway_topic)? {
        if let Some(origin) = log.append(&bad).await? {
            sent.insert(origin, bad);
        }
    }
    // Who reads the reports needs no key, so this is a good one.
    let rows = "nearby_sink_rows_total{table=\"location_history\"}";
    let written = sink.metric(rows).await?;
    log.append(&Bad { value: Some(good), ..Bad::in_topic("location-events") }).await?;
    let buried = log.dead_letters(&sent)?;
    for (origin, bad) in &sent {
        ensure!(buried.contains_key(origin), "{origin:?} ({}) is in no dead letter: {}", bad.what, bad.reason);
    }

    let begun = Instant::now();
    while sink.metric(rows).await? != written + 1 {
        ensure!(begun.elapsed() < STEP, "a report without a key is not in the history: {}", sink.process.stderr());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }

    // Counted by who buries; the processor reads the sink's topics and the ingest's too, and counts what it cannot use.
    let count = |topic: &str| sent.keys().filter(|(of, ..)| of == topic).count();
    for (service, metric, topics) in [
        (&sink, "nearby_dead_letters_total", &["location-events", "friend-lists"][..]),
        (&processor, "nearby_dead_letters_total", &["sessions"]),
        (&ingest, "nearby_dead_letters_total", &["gateways"]),
        (&pusher, "nearby_dead_letters_total", &[&gateway_topic]),
        (&processor, "nearby_undecodable_records_total", &["location-events", "friend-lists", "gateways"]),
    ] {
        for topic in topics {
            let counted = service.metric(&format!("{metric}{{topic=\"{topic}\"}}")).await?;
            ensure!(counted == count(topic), "{metric} of {topic} is {counted}, not {}", count(topic));
        }
    }

    // What people write into the dead letters concerns nobody.
    log.append(&Bad { value: Some(b"?".to_vec()), ..Bad::in_topic("dead-letters") }).await?;

    // The good ones after them: in what runs, and in what starts now and reads the compacted topics from the beginning. The
    // story wants updates where a snapshot would do as well, so it waits until those that the gateway asked for are over.
    tokio::time::sleep(ASKED).await;
    two_friends_meet(&story, 200).await.context("after the bad records")?;
    let mut second = Service::start("processor", &[], &envs)?;
    second.wait_ready()?;
    let partitions = "nearby_processor_state{of=\"partitions\"}";
    let begun = Instant::now();
    while processor.metric(partitions).await? != 2 || second.metric(partitions).await? != 2 {
        ensure!(begun.elapsed() < STEP, "the second processor takes no partitions over: {}", second.process.stderr());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    two_friends_meet(&story, 300).await.context("after a second processor has come")?;
    for service in [&mut processor, &mut second, &mut pusher, &mut sink, &mut ingest] {
        let (status, _) = service.process.terminate()?;
        ensure!(status.success(), "{status}: {}", service.process.stderr());
    }
    Ok(())
}

struct Service {
    process: Nearby,
    address: String,
}

impl Service {
    fn start(name: &str, more: &[&str], envs: &[(&str, &str)]) -> anyhow::Result<Service> {
        let listen = format!("127.0.0.1:{}", ports::free_port()?);
        let process = Nearby::start(&[&[name, "--listen", &listen], more].concat(), envs)?;
        Ok(Service { process, address: format!("http://{listen}") })
    }

    fn wait_ready(&mut self) -> anyhow::Result<()> {
        self.process.wait_line("ready ", READY).map(drop)
    }

    async fn metric(&self, name: &str) -> anyhow::Result<usize> {
        let text = http::get(&format!("{}/metrics", self.address)).await?.expect_status(200)?.text();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        Ok(value.unwrap_or(0))
    }
}

/// Topic, partition, offset.
type Origin = (String, i32, i64);

/// A record that nobody can use.
struct Bad {
    what: &'static str,
    topic: String,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    /// What its dead letter says; empty where the broker refuses the record.
    reason: &'static str,
}

impl Bad {
    /// Nothing in it.
    fn in_topic(topic: &str) -> Bad {
        Bad { what: "of no kind", topic: topic.to_owned(), key: None, value: None, reason: "any" }
    }
}

struct Log {
    producer: FutureProducer,
    consumer: BaseConsumer,
}

impl Log {
    fn new(kafka: &Kafka) -> anyhow::Result<Log> {
        let mut config = kafka.client_config();
        // Whatever the broker lets pass: it measures what is compressed.
        config.set("message.max.bytes", "10000000").set("compression.type", "lz4").set("partitioner", "murmur2_random");
        let producer = config.create().context("a producer")?;
        let mut config = kafka.client_config();
        let consumer =
            config.set("group.id", "test").set("enable.auto.commit", "false").create().context("a consumer")?;
        Ok(Log { producer, consumer })
    }

    /// What can be wrong with a record, in every topic.
    fn bad_records(&self, gateway_topic: &str) -> anyhow::Result<Vec<Bad>> {
        let mut bad = Vec::new();
        let session_key = format!("{NOBODY}/g1-x");
        let topics = [
            ("location-events", NOBODY),
            ("friend-lists", NOBODY),
            ("sessions", &session_key),
            ("gateways", "g1-x"),
            (gateway_topic, ""),
        ];
        for (topic, key) in topics {
            let good = self.first_value(topic)?;
            let other = self.first_value(if topic == "gateways" { "friend-lists" } else { "gateways" })?;
            let compacted = ["friend-lists", "sessions", "gateways"].contains(&topic);
            let mut add = |what, key: Option<&str>, value: Option<Vec<u8>>, reason| {
                let (topic, key) = (topic.to_owned(), key.map(|key| key.as_bytes().to_vec()));
                bad.push(Bad { what, topic, key, value, reason });
            };
            let key = Some(key);
            add("text", key, Some(b"{\"user_id\":1}".to_vec()), "not an Avro single object");
            add("empty", key, Some(Vec::new()), "not an Avro single object");
            add("a header alone", key, Some(good[..10].to_vec()), "malformed");
            add("truncated", key, Some(good[..good.len() - 1].to_vec()), "malformed");
            add("too long", key, Some([&good[..], b"x"].concat()), "1 bytes too many");
            add("of another schema", key, Some(other), "written with an unknown schema");
            add("Confluent's", key, Some([&[0, 0, 0, 0, 7], &good[10..]].concat()), "Confluent's wire format");
            add("oversized", key, Some(vec![0xC3; 1_000_000]), "(value of 1000000 bytes left out)");
            add("oversized, compressed", key, Some(vec![0; 5_000_000]), "(value of 5000000 bytes left out)");
            let long_key = "9".repeat(5_000_000);
            add("oversized key", Some(&long_key), Some(b"x".to_vec()), "left out");
            if compacted {
                add("without a key", None, Some(good.clone()), "");
                add("a tombstone of nobody", Some("!"), None, "key");
                add(
                    "with another's key",
                    Some(if topic == "sessions" { "900002/g1-x" } else { "900002" }),
                    Some(good),
                    "key",
                );
            } else {
                add("without a value", key, None, "");
            }
        }
        // There the broker takes what has no key, and nobody needs one.
        for record in bad.iter_mut().filter(|record| record.what == "without a value") {
            record.reason = if record.topic == "location-events" { "no value" } else { "not an Avro single object" };
        }
        Ok(bad)
    }

    /// The origin of what the broker took, or nothing.
    async fn append(&self, bad: &Bad) -> anyhow::Result<Option<Origin>> {
        let mut record: FutureRecord<'_, [u8], [u8]> = FutureRecord::to(&bad.topic);
        record.key = bad.key.as_deref();
        record.payload = bad.value.as_deref();
        match self.producer.send(record, STEP).await {
            Ok(delivery) => {
                ensure!(!bad.reason.is_empty(), "the broker took a record {} in {}", bad.what, bad.topic);
                Ok(Some((bad.topic.clone(), delivery.partition, delivery.offset)))
            }
            Err((error, _)) => {
                ensure!(bad.reason.is_empty(), "the broker refuses a record {} in {}: {error}", bad.what, bad.topic);
                Ok(None)
            }
        }
    }

    /// Waits for the dead letters of these records, and compares each with its original.
    fn dead_letters(&self, sent: &BTreeMap<Origin, Bad>) -> anyhow::Result<BTreeMap<Origin, String>> {
        self.read_from_beginning("dead-letters", 1)?;
        let mut buried = BTreeMap::new();
        let begun = Instant::now();
        while buried.len() < sent.len() && begun.elapsed() < STEP {
            let Some(letter) = self.consumer.poll(Duration::from_millis(200)) else { continue };
            let letter = letter.context("read a dead letter")?;
            let header = |name| header(&letter, name);
            let origin = (header("topic")?, header("partition")?.parse()?, header("offset")?.parse()?);
            let reason = header("reason")?;
            let bad = sent.get(&origin).with_context(|| format!("a dead letter of {origin:?}: {reason}"))?;
            ensure!(reason.contains(bad.reason), "a record {} in {}: {reason}", bad.what, bad.topic);
            ensure!(reason.len() < 1000, "a reason of {} bytes", reason.len());
            let whole = |kept: Option<&[u8]>, original: &Option<Vec<u8>>| {
                kept == original.as_deref() || (kept.is_none() && reason.contains("left out"))
            };
            ensure!(whole(letter.key(), &bad.key), "a record {} in {} has lost its key", bad.what, bad.topic);
            ensure!(whole(letter.payload(), &bad.value), "a record {} in {} has lost its value", bad.what, bad.topic);
            buried.insert(origin, reason);
        }
        Ok(buried)
    }

    /// The value of some record that a service wrote.
    fn first_value(&self, topic: &str) -> anyhow::Result<Vec<u8>> {
        let metadata = self.consumer.fetch_metadata(Some(topic), STEP).context("metadata")?;
        self.read_from_beginning(topic, i32::try_from(metadata.topics()[0].partitions().len())?)?;
        let begun = Instant::now();
        while begun.elapsed() < STEP {
            let record = self.consumer.poll(Duration::from_millis(200)).transpose().context("read a good record")?;
            if let Some(value) = record.as_ref().and_then(Message::payload) {
                return Ok(value.to_vec());
            }
        }
        anyhow::bail!("{topic} has no record")
    }

    fn read_from_beginning(&self, topic: &str, partitions: i32) -> anyhow::Result<()> {
        let mut list = TopicPartitionList::new();
        for partition in 0..partitions {
            list.add_partition_offset(topic, partition, Offset::Beginning)?;
        }
        self.consumer.assign(&list).context("assign")
    }
}

fn header(letter: &BorrowedMessage<'_>, name: &str) -> anyhow::Result<String> {
    let headers = letter.headers().context("a dead letter has headers")?;
    let found = headers.iter().find(|header| header.key == name).and_then(|header| header.value);
    Ok(String::from_utf8(found.with_context(|| format!("a dead letter says its {name}"))?.to_vec())?)
}
