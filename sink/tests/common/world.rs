//! A sink with all that is around it: librdkafka's mock cluster, or a real broker, and a real Postgres.

#![allow(dead_code, reason = "each test is a crate of its own and uses some of it")]

#[path = "mod.rs"]
mod common;

use common::migrated;
use nearby_e2e::kafka::Kafka as Broker;
use nearby_e2e::postgres::Postgres;
use nearby_schemas::codec::Codec;
use nearby_schemas::topics::Topics;
use nearby_schemas::{LocationEvent, Position, Source, TimestampMs, UserId};
use nearby_service::Stop;
use nearby_service::append::{Appender, Outgoing};
use nearby_service::health::Readiness;
use nearby_service::kafka::Kafka;
use nearby_sink::{Database, SinkError, SinkSettings, run};
use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Headers;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

pub const PARTITIONS: i32 = 4;
pub const LIMIT: Duration = Duration::from_secs(40);
pub const HISTORY: &str =
    "select count(*), count(distinct (topic, kafka_partition, kafka_offset)) from nearby.location_history";

pub struct World {
    pub postgres: Postgres,
    pub database: Database,
    pub kafka: Kafka,
    pub appender: Appender,
    _cluster: Cluster,
}

/// Lives as long as the world.
enum Cluster {
    Mock { _cluster: MockCluster<'static, DefaultProducerContext> },
    Real { _broker: Broker },
}

pub struct Running {
    pub stop: Stop,
    pub readiness: Readiness,
    pub task: JoinHandle<Result<(), SinkError>>,
}

impl World {
    pub async fn new() -> World {
        let cluster = MockCluster::new(1).expect("a mock cluster");
        for topic in Topics::default().standing(PARTITIONS) {
            cluster.create_topic(&topic.name, topic.partitions, 1).expect("a topic");
        }
        let kafka = Kafka::embedded_at(cluster.bootstrap_servers(), "");
        World::over(kafka, Cluster::Mock { _cluster: cluster }).await
    }

    /// With a real broker: the mock cluster takes 10 s and more for each change of a group.
    pub async fn with_real_broker() -> World {
        let broker = Broker::start().expect("Kafka starts");
        let kafka = Kafka::at(broker.bootstrap(), "");
        for topic in kafka.topics.standing(PARTITIONS) {
            kafka.create_topic(&topic).await.expect("a topic");
        }
        World::over(kafka, Cluster::Real { _broker: broker }).await
    }

    async fn over(kafka: Kafka, cluster: Cluster) -> World {
        let (postgres, database) = migrated().await;
        let appender = Appender::new(&kafka).expect("a producer");
        World { postgres, database, kafka, appender, _cluster: cluster }
    }

    /// A sink that is in a group of its own if the prefix is: then it fights with the others.
    pub fn sink(&self, prefix: &str, settings: SinkSettings) -> Running {
        let kafka = Kafka { prefix: prefix.to_owned(), ..self.kafka.clone() };
        let (stop, readiness) = (Stop::new(), Readiness::default());
        let task = tokio::spawn(run(settings, kafka, self.database.clone(), readiness.clone(), stop.clone()));
        Running { stop, readiness, task }
    }

    pub async fn append(&self, records: Vec<Outgoing>) {
        self.appender.append(records.into_iter()).await.expect("acknowledged");
    }

    pub async fn append_reports(&self, users: std::ops::Range<i64>) {
        let codec = Codec::new();
        self.append(users.map(|user| self.outgoing(user, Some(codec.encode(&report(user))))).collect()).await;
    }

    pub fn outgoing(&self, user: i64, value: Option<Vec<u8>>) -> Outgoing {
        let topic = self.kafka.topics.location_events();
        Outgoing { topic, key: Some(user.to_string().into_bytes()), value, ..Outgoing::default() }
    }

    pub fn psql(&self, sql: &str) -> String {
        self.postgres.psql(sql).unwrap_or_else(|error| error.to_string())
    }

    /// Waits until a query gives this answer.
    pub fn eventually(&self, sql: &str, expected: &str) {
        let start = Instant::now();
        while self.psql(sql) != expected {
            assert!(start.elapsed() < LIMIT, "{sql}: {} is not {expected}", self.psql(sql));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The first dead letters: key, and headers as KEY=VALUE.
    pub fn dead_letters(&self, count: usize) -> Vec<String> {
        let consumer: BaseConsumer = self.kafka.reader_config().create().expect("a consumer");
        let mut places = rdkafka::TopicPartitionList::new();
        let topic = self.kafka.topics.dead_letters();
        places.add_partition_offset(&topic, 0, rdkafka::Offset::Beginning).expect("a place");
        consumer.assign(&places).expect("assigned");
        let mut letters = Vec::new();
        while letters.len() < count {
            let Ok(letter) = consumer.poll(LIMIT).expect("a dead letter in time") else { continue };
            let headers = letter.headers().expect("headers").iter();
            let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
            let mut parts = vec![text(letter.key())];
            parts.extend(
                headers
                    .filter(|header| header.key == "topic" || header.key == "reason")
                    .map(|header| format!("{}={}", header.key, text(header.value))),
            );
            letters.push(parts.join(" "));
        }
        letters.sort();
        letters
    }
}

impl Running {
    pub async fn end(self) {
        self.stop.cancel();
        self.task.await.expect("no panic").expect("ended in order");
    }

    pub async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.is_err_and(|error| error.is_cancelled()), "it was still running");
    }
}

pub fn report(user: i64) -> LocationEvent {
    let now = TimestampMs::now();
    let (lat_e7, lon_e7) = (377_749_000, -1_224_194_000);
    let position = Position { lat_e7, lon_e7, accuracy_m: Some(5.0), speed_mps: None, heading_deg: None };
    LocationEvent {
        user_id: UserId(user),
        reported_at: now,
        received_at: now,
        position: Some(position),
        source: Source::Http,
    }
}

pub fn small() -> SinkSettings {
    SinkSettings { batch_rows_max: 100, batch_age_ms: 20, ..SinkSettings::default() }
}
