//! Records as Kafka has them: written and read without any of the project's own code.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, OwnedMessage};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

const LIMIT: Duration = Duration::from_secs(20);

/// Writes one record where Java's default partitioner would; returns its partition.
pub async fn write(brokers: &str, topic: &str, key: &str, value: &[u8]) -> anyhow::Result<i32> {
    let mut config = ClientConfig::new();
    write_with(config.set("partitioner", "murmur2_random"), brokers, topic, key, value).await
}

/// Writes one record where librdkafka's default partitioner would; returns its partition.
pub async fn write_by_default(brokers: &str, topic: &str, key: &str, value: &[u8]) -> anyhow::Result<i32> {
    write_with(&mut ClientConfig::new(), brokers, topic, key, value).await
}

async fn write_with(
    config: &mut ClientConfig,
    brokers: &str,
    topic: &str,
    key: &str,
    value: &[u8],
) -> anyhow::Result<i32> {
    let producer: FutureProducer = config.set("bootstrap.servers", brokers).create()?;
    let record = FutureRecord::to(topic).key(key).payload(value);
    let delivery = producer.send(record, LIMIT).await;
    Ok(delivery.map_err(|(error, _)| error).with_context(|| format!("write to {topic}"))?.partition)
}

/// Every record that is in a topic now, by partition. Blocks.
pub fn read_all(brokers: &str, topic: &str) -> anyhow::Result<Vec<OwnedMessage>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "tests")
        // A fetch under way has to end before another partition is read.
        .set("fetch.wait.max.ms", "10")
        .create()?;
    let metadata = consumer.fetch_metadata(Some(topic), LIMIT)?;
    let partitions = metadata.topics().first().context("the topic's metadata")?.partitions();
    ensure!(!partitions.is_empty(), "there is no topic {topic}");
    let mut records = Vec::new();
    for partition in partitions.iter().map(rdkafka::metadata::MetadataPartition::id) {
        let (first, end) = consumer.fetch_watermarks(topic, partition, LIMIT)?;
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(topic, partition, Offset::Beginning)?;
        consumer.assign(&assignment)?;
        let mut next = first;
        let start = Instant::now();
        while next < end {
            if let Some(record) = consumer.poll(Duration::from_millis(100)) {
                let record = record?.detach();
                next = record.offset() + 1;
                records.push(record);
            } else {
                // The last record need not sit at the end: compaction may have taken it.
                next = next
                    .max(consumer.position()?.elements().first().and_then(|at| at.offset().to_raw()).unwrap_or(next));
            }
            if start.elapsed() > LIMIT {
                bail!("{topic}/{partition} was not read to its end {end} within {LIMIT:?}");
            }
        }
    }
    Ok(records)
}

/// The reasons in the headers of the dead letters that are there now. Blocks.
pub fn dead_letter_reasons(brokers: &str, topic: &str) -> anyhow::Result<Vec<String>> {
    let reason = |letter: &OwnedMessage| {
        let headers = letter.headers()?;
        let reason = headers.iter().find(|header| header.key == "reason")?.value?;
        Some(String::from_utf8_lossy(reason).into_owned())
    };
    let letters = read_all(brokers, topic)?;
    letters.iter().map(|letter| reason(letter).context("a dead letter has a reason")).collect()
}
