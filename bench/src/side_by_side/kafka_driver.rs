//! Moves as records of Kafka, by the cheapest producer there is: it is nobody's cost. And what viewers are told, read.

use super::driver::{Pace, open_loop};
use super::heard::Counters;
use super::truth::Count;
use crate::workload::Move;
use anyhow::Context;
use nearby_service::append::Outgoing;
use nearby_service::kafka::Kafka;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::util::Timeout;
use rdkafka::{Offset, TopicPartitionList};
use std::sync::Arc;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(100);
/// Counts are handed over as often.
const ADD_INTERVAL: Duration = Duration::from_millis(10);
/// Reports between two looks at the clock.
const TOGETHER: usize = 1_000;
const FLUSH_LIMIT: Duration = Duration::from_secs(60);

/// A producer that stays connected.
pub struct Driver(ThreadedProducer<DefaultProducerContext>);

impl Driver {
    pub fn new(brokers: &str) -> anyhow::Result<Driver> {
        let mut config = ClientConfig::new();
        // As ingests write; an idempotent producer has no more requests under way, so reports gather while a broker is busy.
        config.set("linger.ms", "1").set("max.in.flight.requests.per.connection", "5");
        config.set("bootstrap.servers", brokers).set("delivery.report.only.error", "true");
        Ok(Driver(config.set("queue.buffering.max.messages", "2000000").create()?))
    }

    /// Writes them at this pace, and as fast as it goes for at most so long: how many that were. `record` gets when one is due, or 0.
    pub fn drive(
        &self,
        moves: &[Move],
        pace: Pace,
        limit: Duration,
        record: impl Fn(Move, i64) -> Outgoing,
    ) -> anyhow::Result<usize> {
        let send = |made, due_us| {
            let made = record(made, due_us);
            let mut sent: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&made.topic);
            sent.partition = made.partition;
            sent.key = made.key.as_deref();
            sent.payload = made.value.as_deref();
            self.0.send(sent).map_err(|(error, _)| error).context("handing a report to the producer")
        };
        let (began, mut written) = (Instant::now(), 0);
        match pace {
            Pace::Fastest => {
                for together in moves.chunks(TOGETHER) {
                    together.iter().try_for_each(|made| send(*made, 0))?;
                    written += together.len();
                    if began.elapsed() >= limit {
                        break;
                    }
                }
            }
            Pace::PerSecond(rate_per_s) => {
                open_loop(moves, rate_per_s, |due| due.iter().try_for_each(|(made, due_us)| send(*made, *due_us)))?;
                written = moves.len();
            }
        }
        self.0.flush(Timeout::After(FLUSH_LIMIT)).context("writing reports")?;
        Ok(written)
    }
}

/// Reads these partitions until the process is killed: what each record tells is counted, and served there. Says `ready` once it reads.
pub fn read_topics(
    brokers: &str,
    partitions: &[(String, i32)],
    listen: &str,
    mut told_in: impl FnMut(&[u8], &mut Vec<u64>) -> anyhow::Result<Count>,
) -> anyhow::Result<()> {
    let mut config = Kafka::at(brokers.to_owned(), "").reader_config();
    let consumer: BaseConsumer = config.set("enable.partition.eof", "false").create()?;
    let mut list = TopicPartitionList::new();
    for (topic, partition) in partitions {
        list.add_partition_offset(topic, *partition, Offset::Beginning)?;
    }
    consumer.assign(&list)?;
    let counters = Arc::new(Counters::default());
    counters.serve(listen)?;
    println!("ready");
    let (mut heard, mut told, mut latencies_us, mut added) = (0, Count::default(), Vec::new(), Instant::now());
    loop {
        if let Some(record) = consumer.poll(POLL) {
            heard += 1;
            told += told_in(record?.payload().context("a record without bytes")?, &mut latencies_us)?;
        }
        if added.elapsed() >= ADD_INTERVAL {
            counters.add(std::mem::take(&mut heard), std::mem::take(&mut told), &mut latencies_us);
            added = Instant::now();
        }
    }
}
