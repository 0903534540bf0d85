//! Kafka Streams: `bench/peers/streams/Streams.java`, on a broker of its own, with its stores in memory or in RocksDB.

use super::driver::{Loads, Pace, now_us};
use super::heard::Heard;
use super::kafka_driver::{drive, read_topics};
use super::machine::made;
use super::measured::{Gauge, Peer};
use super::truth::Count;
use crate::cluster::{PARTITIONS, create};
use crate::workload::{Move, user_id};
use anyhow::Context;
use nearby_e2e::kafka::Kafka as Broker;
use nearby_e2e::nearby::Nearby;
use nearby_e2e::ports::free_port;
use nearby_e2e::process::Home;
use nearby_e2e::programs::root;
use nearby_schemas::partitioning::partition_of;
use nearby_schemas::topics::TopicSpec;
use nearby_service::append::{Appender, Outgoing};
use nearby_service::kafka::Kafka;
use std::path::Path;
use std::time::Duration;

const REPORTS: &str = "streams-reports";
const LISTS: &str = "streams-lists";
const NOTIFICATIONS: &str = "streams-notifications";
const START_LIMIT: Duration = Duration::from_secs(120);
const RECORDS_AT_ONCE: usize = 5_000;
/// It may pause longer than others, while it commits or collects garbage.
const QUIET: Duration = Duration::from_secs(5);

/// Settings of the hidden `streams-gateways`.
#[derive(clap::Args)]
pub struct GatewaySettings {
    #[arg(long)]
    brokers: String,
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
    brokers: String,
    broker: Broker,
    _state: Home,
}

impl Streams {
    pub async fn start(loads: &Loads, stores: Stores) -> anyhow::Result<Streams> {
        let libraries = made("streams-libs").context("its jars are missing: bench/setup.sh fetches them")?;
        let broker = Broker::start()?;
        let brokers = broker.bootstrap();
        let kafka = Kafka::at(brokers.clone(), "");
        create(&kafka, &[REPORTS, LISTS, NOTIFICATIONS].map(topic)).await?;
        write_lists(&kafka, loads).await?;
        let state = Home::new("streams")?;
        let (listen, threads) = (format!("127.0.0.1:{}", free_port()?), std::thread::available_parallelism()?);
        let (class_path, program) =
            (format!("{}/*", libraries.display()), root().join("bench/peers/streams/Streams.java"));
        let (program, folder) = (program.to_string_lossy(), state.path().to_string_lossy());
        let arguments = ["-cp", &class_path, &program, &brokers, stores.name(), &folder, &threads.to_string()];
        let mut streams = Nearby::start_program(Path::new("java"), &arguments, &[])?;
        streams.wait_line("ready", START_LIMIT)?;
        let arguments = ["streams-gateways", "--brokers", &brokers, "--listen", &listen];
        let mut gateways = Nearby::start_program(&std::env::current_exe()?, &arguments, &[])?;
        gateways.wait_line("ready", START_LIMIT)?;
        let mut started = Streams { streams, gateways, heard_at: listen, brokers, broker, _state: state };
        // Everybody has reported once.
        let places: Vec<Move> = (0..).zip(loads.world.places.iter().copied()).collect();
        started.drive(&places, Pace::Fastest)?;
        Ok(started)
    }
}

impl Peer for Streams {
    fn drive(&mut self, moves: &[Move], pace: Pace) -> anyhow::Result<Duration> {
        let record = |(user, place): Move, due_us: i64| {
            let value = [&place.lat_e7.to_be_bytes()[..], &place.lon_e7.to_be_bytes(), &due_us.to_be_bytes()].concat();
            keyed(REPORTS, user, value)
        };
        // It reads while this writes, which takes no time beside it.
        drive(&self.brokers, moves, pace, Duration::MAX, record)?;
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

    fn quiet(&self) -> Duration {
        QUIET
    }
}

/// Reads the notifications until it is killed.
pub fn gateways(settings: &GatewaySettings) -> anyhow::Result<()> {
    let partitions: Vec<(String, i32)> =
        (0..PARTITIONS).map(|partition| (NOTIFICATIONS.to_owned(), partition)).collect();
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

async fn write_lists(kafka: &Kafka, loads: &Loads) -> anyhow::Result<()> {
    let list = |(user, friends): (u32, &Vec<u32>)| {
        let value = friends.iter().flat_map(|friend| user_id(*friend).0.to_be_bytes()).collect();
        keyed(LISTS, user, value)
    };
    let records: Vec<Outgoing> = (0..).zip(&loads.friends).map(list).collect();
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

fn topic(name: &str) -> TopicSpec {
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
