//! Kafka Streams: `bench/peers/streams/Streams.java`, on the same broker as `nearby`, with its stores in memory or in RocksDB.

use super::driver::{Pace, now_us};
use super::heard::Heard;
use super::kafka_driver::{Driver, read_topics};
use super::loads::Loads;
use super::machine::made;
use super::measured::{Gauge, Peer};
use super::truth::Count;
use crate::cluster::{PARTITIONS, create, remove};
use crate::workload::{Move, user_id};
use anyhow::{Context, ensure};
use nearby_e2e::kafka::Kafka as Broker;
use nearby_e2e::nearby::Nearby;
use nearby_e2e::ports::free_port;
use nearby_e2e::process::Home;
use nearby_e2e::programs::root;
use nearby_schemas::partitioning::partition_of;
use nearby_schemas::topics::TopicSpec;
use nearby_service::append::{Appender, Outgoing};
use nearby_service::kafka::Kafka;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const DONE_LIMIT: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(50);
const START_LIMIT: Duration = Duration::from_secs(120);
const RECORDS_AT_ONCE: usize = 5_000;
/// Settings of the hidden `streams-gateways`.
#[derive(clap::Args)]
pub struct GatewaySettings {
    #[arg(long)]
    brokers: String,
    #[arg(long)]
    topic: String,
    /// Where the counters are
    #[arg(long)]
    listen: String,
}

/// Where it keeps what viewers see.
#[derive(Clone, Copy)]
pub enum Stores {
    Memory,
    RocksDb,
}

impl Stores {
    pub fn name(self) -> &'static str {
        match self {
            Stores::Memory => "memory",
            Stores::RocksDb => "rocksdb",
        }
    }
}

/// The processes.
pub struct Streams {
    // Ended first.
    streams: Nearby,
    gateways: Nearby,
    heard_at: String,
    driver: Driver,
    /// Its application id: it names the group and the topics.
    name: String,
    /// Of its group: what it has done.
    group: BaseConsumer,
    broker: Arc<Broker>,
    _state: Home,
}

impl Streams {
    /// On a broker that nobody else uses meanwhile.
    pub async fn start(broker: Arc<Broker>, loads: &Loads, stores: Stores) -> anyhow::Result<Streams> {
        let libraries = made("streams-libs").context("its jars are missing: bench/setup.sh fetches them")?;
        let brokers = broker.bootstrap();
        let kafka = Kafka::at(brokers.clone(), "");
        let name = format!("{}-{}", loads.workload.name(), stores.name());
        let [reports, lists, notifications] = ["reports", "lists", "notifications"].map(|of| format!("{name}-{of}"));
        create(&kafka, &[&reports, &lists, &notifications].map(|name| spec(name))).await?;
        write_lists(&kafka, &lists, loads).await?;
        let state = Home::new("streams")?;
        let (listen, threads) = (format!("127.0.0.1:{}", free_port()?), std::thread::available_parallelism()?);
        let (class_path, program) =
            (format!("{}/*", libraries.display()), root().join("bench/peers/streams/Streams.java"));
        let (program, folder) = (program.to_string_lossy(), state.path().to_string_lossy());
        let arguments = ["-cp", &class_path, &program, &brokers, &name, stores.name(), &folder, &threads.to_string()];
        let mut streams = Nearby::start_program(Path::new("java"), &arguments, &[])?;
        streams.wait_line("ready", START_LIMIT)?;
        let arguments = ["streams-gateways", "--brokers", &brokers, "--topic", &notifications, "--listen", &listen];
        let mut gateways = Nearby::start_program(&std::env::current_exe()?, &arguments, &[])?;
        gateways.wait_line("ready", START_LIMIT)?;
        let group = ClientConfig::new().set("bootstrap.servers", &brokers).set("group.id", &name).create()?;
        let driver = Driver::new(&brokers)?;
        let mut started = Streams { streams, gateways, heard_at: listen, driver, name, group, broker, _state: state };
        // Everybody has reported once.
        let places: Vec<Move> = (0..).zip(loads.places.iter().copied()).collect();
        started.drive(&places, Pace::Fastest)?;
        Ok(started)
    }
}

impl Streams {
    /// Ends it, and removes its topics.
    pub async fn stop(self) -> anyhow::Result<()> {
        let Streams { streams, gateways, driver, group, broker, name, .. } = self;
        drop((streams, gateways, driver, group));
        remove(&Kafka::at(broker.bootstrap(), ""), &format!("{name}-")).await
    }

    /// Up to the end; it commits once a second.
    fn wait_until_committed(&self, topic: &str) -> anyhow::Result<()> {
        let mut list = TopicPartitionList::new();
        let mut ends = Vec::new();
        let began = Instant::now();
        for partition in 0..PARTITIONS {
            list.add_partition(topic, partition);
            // A topic that has just been created may have no leader yet.
            ends.push(loop {
                match self.group.fetch_watermarks(topic, partition, REQUEST_TIMEOUT) {
                    Ok((_, end)) => break end,
                    Err(error) => ensure!(began.elapsed() < REQUEST_TIMEOUT, error),
                }
                std::thread::sleep(POLL);
            });
        }
        loop {
            let committed = self.group.committed_offsets(list.clone(), REQUEST_TIMEOUT)?;
            let is_done = |end: &i64, at: &Offset| *end == 0 || matches!(at, Offset::Offset(at) if at >= end);
            let offsets: Vec<Offset> = committed.elements().iter().map(TopicPartitionListElem::offset).collect();
            if ends.iter().zip(&offsets).all(|(end, at)| is_done(end, at)) {
                return Ok(());
            }
            ensure!(
                began.elapsed() < DONE_LIMIT,
                "{topic} is not done: {offsets:?} of {ends:?}: {}",
                self.streams.stderr()
            );
            std::thread::sleep(POLL);
        }
    }
}

impl Peer for Streams {
    fn drive(&mut self, moves: &[Move], pace: Pace) -> anyhow::Result<Duration> {
        let [reports, viewers] = ["reports", "viewers-repartition"].map(|of| format!("{}-{of}", self.name));
        let record = |(user, place): Move, due_us: i64| {
            let value = [&place.lat_e7.to_be_bytes()[..], &place.lon_e7.to_be_bytes(), &due_us.to_be_bytes()].concat();
            keyed(&reports, user, value)
        };
        // It reads while this writes, which takes no time beside it.
        self.driver.drive(moves, pace, Duration::MAX, record)?;
        for topic in [&reports, &viewers] {
            self.wait_until_committed(topic)?;
        }
        Ok(Duration::ZERO)
    }

    fn heard(&mut self) -> anyhow::Result<Heard> {
        Heard::at(&self.heard_at)
    }

    fn heard_at(&self) -> &str {
        &self.heard_at
    }

    fn gauges(&self) -> anyhow::Result<Vec<Gauge>> {
        let broker = self.broker.pid().context("the broker runs")?;
        Ok(vec![
            Gauge::of("streams", self.streams.pid())?,
            Gauge::of("broker", broker)?,
            Gauge::of("gateways", self.gateways.pid())?,
        ])
    }
}

/// Reads the notifications until it is killed.
pub fn gateways(settings: &GatewaySettings) -> anyhow::Result<()> {
    let partitions: Vec<(String, i32)> = (0..PARTITIONS).map(|partition| (settings.topic.clone(), partition)).collect();
    read_topics(&settings.brokers, &partitions, &settings.listen, |payload, latencies_us| {
        let (distance_dm, due_us) = notification(payload)?;
        let mut count = Count::default();
        match distance_dm {
            Some(distance_dm) => count.show(distance_dm),
            None => count.left += 1,
        }
        if due_us > 0 {
            latencies_us.push((now_us() - due_us).max(0).cast_unsigned());
        }
        Ok(count)
    })
}

/// Distance in decimetres, none when the friend left, and when the report was due.
fn notification(payload: &[u8]) -> anyhow::Result<(Option<i32>, i64)> {
    let payload: &[u8; 28] = payload.try_into().context("a notification has 28 bytes")?;
    let distance_dm = i32::from_be_bytes(payload[16..20].try_into()?);
    Ok(((distance_dm >= 0).then_some(distance_dm), i64::from_be_bytes(payload[20..].try_into()?)))
}

async fn write_lists(kafka: &Kafka, topic: &str, loads: &Loads) -> anyhow::Result<()> {
    let list = |(user, friends): (u32, &Vec<u32>)| {
        let value = friends.iter().flat_map(|friend| user_id(*friend).0.to_be_bytes()).collect();
        keyed(topic, user, value)
    };
    let records: Vec<Outgoing> = (0..).zip(loads.friends.iter()).map(list).collect();
    let appender = Appender::new(kafka)?;
    for together in records.chunks(RECORDS_AT_ONCE) {
        appender.append(together.iter().cloned()).await.map_err(|error| anyhow::anyhow!("{error}"))?;
    }
    Ok(())
}

fn keyed(topic: &str, user: u32, value: Vec<u8>) -> Outgoing {
    Outgoing {
        topic: topic.to_owned(),
        partition: Some(partition_of(user_id(user), PARTITIONS)),
        key: Some(user_id(user).0.to_be_bytes().to_vec()),
        value: Some(value),
        ..Outgoing::default()
    }
}

fn spec(name: &str) -> TopicSpec {
    TopicSpec { name: name.to_owned(), partitions: PARTITIONS, settings: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notification_is_a_distance_or_none() {
        let bytes = |distance: i32| [&[0; 16][..], &distance.to_be_bytes(), &77_i64.to_be_bytes()].concat();
        assert_eq!(notification(&bytes(12)).unwrap(), (Some(12), 77));
        assert_eq!(notification(&bytes(-1)).unwrap(), (None, 77));
        notification(&[0; 27]).unwrap_err();
    }
}
