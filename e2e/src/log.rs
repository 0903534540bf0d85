//! What is in the log, read with an ordinary client: every report, and the epochs of owners.
//!
//! The bytes of a report are taken apart by hand, so that nothing is shared with who wrote them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

use crate::world::{Place, Report};

const REQUEST_LIMIT: Duration = Duration::from_secs(5);
const READ_LIMIT: Duration = Duration::from_secs(60);
const EPOCHS_INTERVAL: Duration = Duration::from_millis(200);
/// Avro's single-object marker, and the fingerprint of the schema after it.
const MARKER: [u8; 2] = [0xC3, 0x01];
const HEADER_BYTES: usize = 10;

/// Every report in `location-events`, with its user, in the order of each partition.
pub fn read_reports(brokers: &str, prefix: &str) -> anyhow::Result<Vec<(i64, Report)>> {
    let consumer = client(brokers, &format!("{prefix}reader-of-the-test"))?;
    let topic = format!("{prefix}location-events");
    let mut unread = TopicPartitionList::new();
    let count = partitions(&consumer, &topic)?;
    for partition in 0..count {
        unread.add_partition_offset(&topic, partition, Offset::Beginning)?;
    }
    consumer.assign(&unread)?;
    let (mut reports, mut ended, deadline) = (Vec::new(), 0, Instant::now() + READ_LIMIT);
    while ended < count {
        ensure!(Instant::now() < deadline, "{topic} has no end after {READ_LIMIT:?}");
        match consumer.poll(Duration::from_secs(1)) {
            Some(Ok(record)) => reports.push(decode(record.payload().unwrap_or_default())?),
            Some(Err(KafkaError::PartitionEOF(_))) => ended += 1,
            Some(Err(error)) => return Err(error).context("read the log"),
            None => {}
        }
    }
    Ok(reports)
}

fn decode(record: &[u8]) -> anyhow::Result<(i64, Report)> {
    ensure!(record.starts_with(&MARKER) && record.len() > HEADER_BYTES, "no Avro single object: {record:02x?}");
    let mut rest = &record[HEADER_BYTES..];
    let mut long = || -> anyhow::Result<i64> {
        let mut zigzag = 0_u64;
        for shift in (0..64).step_by(7) {
            let (byte, after) = rest.split_first().context("the record ends early")?;
            rest = after;
            zigzag |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok((zigzag >> 1) as i64 ^ -((zigzag & 1) as i64));
            }
        }
        bail!("a number is too long")
    };
    let (user, reported_at_ms, _received_at_ms) = (long()?, long()?, long()?);
    let place = match long()? {
        0 => None,
        _ => Some(Place { lat_e7: long()?.try_into()?, lon_e7: long()?.try_into()? }),
    };
    Ok((user, Report { reported_at_ms, place }))
}

/// Watches the epochs that owners commit, until it is asked what it has seen.
#[derive(Debug)]
pub struct EpochWatch {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Epochs>>,
    thread: JoinHandle<()>,
}

/// What was seen of the epochs.
#[derive(Clone, Debug, Default)]
pub struct Epochs {
    /// The newest of each partition.
    pub newest: BTreeMap<i32, i64>,
    /// How often the coordinator has answered.
    pub answers: usize,
    /// How often a partition had a new epoch.
    pub changes: usize,
    /// Epochs that went back, or got lost.
    pub back: Vec<String>,
}

impl EpochWatch {
    /// Asks the coordinator several times a second; while no broker answers it goes on asking.
    pub fn start(brokers: &str, prefix: &str) -> anyhow::Result<EpochWatch> {
        let topic = format!("{prefix}friend-lists");
        let consumer = client(brokers, &format!("{prefix}nearby-processors"))?;
        let count = partitions(&consumer, &topic)?;
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Epochs::default())));
        let (stopped, epochs) = (Arc::clone(&stop), Arc::clone(&seen));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Ok(committed) = committed(&consumer, &topic, count) {
                    epochs.lock().unwrap_or_else(PoisonError::into_inner).take(committed);
                }
                std::thread::sleep(EPOCHS_INTERVAL);
            }
        });
        Ok(EpochWatch { stop, seen, thread })
    }

    /// What was seen so far.
    pub fn seen(&self) -> Epochs {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the watch.
    pub fn end(self) -> anyhow::Result<Epochs> {
        self.stop.store(true, Ordering::Relaxed);
        let seen = self.seen();
        self.thread.join().map_err(|_| anyhow::anyhow!("the watch of the epochs has panicked"))?;
        Ok(seen)
    }
}

impl Epochs {
    fn take(&mut self, committed: BTreeMap<i32, Option<i64>>) {
        self.answers += 1;
        for (partition, epoch) in committed {
            let newest = self.newest.get(&partition).copied();
            match (newest, epoch) {
                (Some(before), None) => self.back.push(format!("partition {partition} had {before}, then none")),
                (Some(before), Some(now)) if now < before => {
                    self.back.push(format!("partition {partition} had {before}, then {now}"));
                }
                (_, Some(now)) if newest != Some(now) => {
                    self.changes += 1;
                    self.newest.insert(partition, now);
                }
                _ => {}
            }
        }
    }
}

fn committed(consumer: &BaseConsumer, topic: &str, count: i32) -> Result<BTreeMap<i32, Option<i64>>, KafkaError> {
    let mut list = TopicPartitionList::new();
    list.add_partition_range(topic, 0, count - 1);
    let committed = consumer.committed_offsets(list, REQUEST_LIMIT)?;
    let epoch = |metadata: &str| metadata.parse::<i64>().ok();
    let elements = committed.elements();
    elements.iter().map(|element| element.error().map(|()| (element.partition(), epoch(element.metadata())))).collect()
}

fn client(brokers: &str, group: &str) -> anyhow::Result<BaseConsumer> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("group.id", group).set("enable.auto.commit", "false");
    config.set("enable.partition.eof", "true").set("reconnect.backoff.max.ms", "1000");
    config.create().context("a client that reads")
}

fn partitions(consumer: &BaseConsumer, topic: &str) -> anyhow::Result<i32> {
    let metadata = consumer.fetch_metadata(Some(topic), REQUEST_LIMIT).context("ask for the topic")?;
    let count = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
    ensure!(count > 0, "{topic} is missing");
    Ok(count.try_into()?)
}
