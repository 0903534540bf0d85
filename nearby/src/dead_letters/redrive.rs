//! Writing the records of dead letters back to where they came from.
//!
//! A record goes back with its key and its bytes to the partition in which it was: there it keeps its order with what else its
//! user has written since. Its mark is written after the broker has acknowledged it, so a crash in between ends in a second
//! copy at the next run, never in a loss. A transaction would join the two, but its markers take offsets, and the sink stops
//! at an offset that `location-events` does not show.

use super::letters::{Letter, Letters, Origin, Plan, Selection, mark};
use super::{prefixed, read};
use crate::log::{Log, LogError, Merged, Span};
use crate::wiring;
use anyhow::{Context, bail};
use nearby_service::kafka::Kafka;
use nearby_service::settings::KafkaSettings;
use rdkafka::Message;
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::util::Timeout;
use std::collections::BTreeMap;

/// Settings of `nearby dead-letters redrive`.
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("which").required(true).args(["topic", "all"]))]
pub struct RedriveSettings {
    #[command(flatten)]
    kafka: KafkaSettings,
    /// Those that came from this topic, with its prefix or without
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// Of these, those that came from this partition
    #[arg(long, value_name = "PARTITION", requires = "topic")]
    partition: Option<i32>,
    /// Of these, the one that came from this offset
    #[arg(long, value_name = "OFFSET", requires = "partition")]
    offset: Option<i64>,
    /// Every letter
    #[arg(long)]
    all: bool,
    /// Really do it
    #[arg(long)]
    yes: bool,
}

/// The bytes of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Bytes {
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
}

/// What has come of a run.
#[derive(Default)]
struct Tally {
    redriven: usize,
    left: usize,
    failed: usize,
}

/// Redrives, or says what would be redriven.
pub async fn redrive(settings: RedriveSettings) -> anyhow::Result<()> {
    let kafka = Kafka::from_settings(&settings.kafka);
    wiring::check_broker(&kafka).await?;
    let topic = settings.topic.clone().map(|topic| prefixed(&kafka, topic));
    let selection = Selection { topic, partition: settings.partition, offset: settings.offset, since: None };
    let runtime = tokio::runtime::Handle::current();
    let done = tokio::task::spawn_blocking(move || {
        let redriving = Redriving { log: Log::open(&kafka)?, kafka, runtime, really: settings.yes };
        redriving.run(&selection)
    });
    done.await.context("redriving")?
}

struct Redriving {
    kafka: Kafka,
    log: Log,
    runtime: tokio::runtime::Handle,
    really: bool,
}

impl Redriving {
    fn run(&self, selection: &Selection) -> anyhow::Result<()> {
        let letters = read(&self.log, &self.kafka)?;
        let newest = self.newest_of_keys(&letters, selection)?;
        let producer: FutureProducer = self.kafka.writer_config().create().context("a Kafka producer")?;
        let mut tally = Tally::default();
        for (letter, plan) in letters.plan(selection, &self.kafka.topics) {
            let name = letter.origin.as_ref().map_or_else(|| format!("letter {}", letter.offset), Origin::to_string);
            match (plan, &letter.origin) {
                (Plan::Done(now_at), _) => {
                    tally.left += 1;
                    println!("{name} left: redriven before, to {now_at}");
                }
                (Plan::Leave(because), _) => {
                    tally.left += 1;
                    println!("{name} left: {because}");
                }
                (Plan::Redrive { unless_newer: true }, Some(origin)) if newest.has_newer(letter, origin) => {
                    tally.left += 1;
                    println!("{name} left: the topic has a newer record with this key, which counts");
                }
                (Plan::Redrive { .. }, origin) => {
                    match origin.as_ref().map(|origin| self.redrive(letter, origin, &producer)) {
                        Some(Ok(done)) => {
                            tally.redriven += 1;
                            println!("{name} {done}");
                        }
                        Some(Err(error)) => {
                            tally.failed += 1;
                            println!("{name} NOT redriven: {error:#}");
                        }
                        None => {}
                    }
                }
            }
        }
        let Tally { redriven, left, failed } = tally;
        let (would, hint) = if self.really { ("", "") } else { ("would be ", "; --yes does it") };
        println!("{redriven} {would}redriven, {left} left{hint}");
        if failed > 0 {
            bail!("{failed} dead letters cannot be redriven");
        }
        Ok(())
    }

    /// Writes one back; says what was done.
    fn redrive(&self, letter: &Letter, origin: &Origin, producer: &FutureProducer) -> anyhow::Result<String> {
        let spans = match self.log.spans(&origin.topic) {
            Err(LogError::Missing(_)) => bail!("its topic is missing"),
            spans => spans?,
        };
        if spans.get(usize::try_from(origin.partition).unwrap_or(usize::MAX)).is_none() {
            bail!("its topic has only {} partitions now", spans.len());
        }
        let bytes = if letter.left_out {
            let found = self.record_at(origin)?;
            found.context("its value was too large for a letter, and its origin does not have it any more")?
        } else {
            let topic = self.kafka.topics.dead_letters();
            let found = self.record_at(&Origin { topic, partition: letter.partition, offset: letter.offset })?;
            found.context("the letter is gone: retention has come upon it")?
        };
        let size =
            bytes.value.as_ref().map_or_else(|| "a tombstone".to_owned(), |value| format!("{} bytes", value.len()));
        if !self.really {
            return Ok(format!("would be redriven, {size}: {}", letter.reason));
        }
        let offset = self.append(producer, &origin.topic, origin.partition, &bytes, None)?;
        let now_at = Origin { offset, ..origin.clone() };
        let marking = Bytes { value: None, ..bytes };
        let marked = self.append(
            producer,
            &self.kafka.topics.dead_letters(),
            letter.partition,
            &marking,
            Some(mark(origin, &now_at)),
        );
        marked.with_context(|| {
            format!("it is at {now_at} now, but its mark is not written, so do not redrive it again")
        })?;
        Ok(format!("redriven to {now_at}, {size}"))
    }

    /// Waits for the broker's word, and says at which offset it put the record.
    fn append(
        &self,
        producer: &FutureProducer,
        topic: &str,
        partition: i32,
        bytes: &Bytes,
        headers: Option<OwnedHeaders>,
    ) -> anyhow::Result<i64> {
        let mut record: FutureRecord<'_, [u8], [u8]> = FutureRecord::to(topic).partition(partition);
        (record.key, record.payload, record.headers) = (bytes.key.as_deref(), bytes.value.as_deref(), headers);
        match self.runtime.block_on(producer.send(record, Timeout::Never)) {
            Ok(delivery) => Ok(delivery.offset),
            Err((error, _)) => Err(error).with_context(|| format!("writing to {topic}/{partition}")),
        }
    }

    /// The record at one offset, if it is still there.
    fn record_at(&self, at: &Origin) -> anyhow::Result<Option<Bytes>> {
        let spans = self.log.spans(&at.topic)?;
        let there = spans.iter().find(|span| span.partition == at.partition);
        if there.is_none_or(|span| !(span.from..span.end).contains(&at.offset)) {
            return Ok(None);
        }
        let span = Span { partition: at.partition, from: at.offset, end: at.offset + 1 };
        let reading = self.log.read(&at.topic, &[span], |record| Bytes {
            key: record.key().map(<[u8]>::to_vec),
            value: record.payload().map(<[u8]>::to_vec),
        })?;
        // Where compaction has removed it, a later one would come, which the span does not want.
        Ok(Merged::new(vec![reading])?.next()?.map(|record| record.what))
    }

    /// For topics whose last record counts: the newest offset of every key that a wanted letter has.
    fn newest_of_keys(&self, letters: &Letters, selection: &Selection) -> anyhow::Result<Newest> {
        let mut newest = Newest::default();
        let mut firsts: BTreeMap<(&str, i32), i64> = BTreeMap::new();
        for (letter, plan) in letters.plan(selection, &self.kafka.topics) {
            let (Plan::Redrive { unless_newer: true }, Some(origin)) = (plan, &letter.origin) else { continue };
            let first = firsts.entry((&origin.topic, origin.partition)).or_insert(origin.offset);
            *first = origin.offset.min(*first);
            newest.of.insert(key(letter, origin), origin.offset);
        }
        for ((topic, partition), first) in firsts {
            let spans = match self.log.spans(topic) {
                // That is said when it comes to the letter.
                Err(LogError::Missing(_)) => continue,
                spans => spans?,
            };
            let Some(span) = spans.into_iter().find(|span| span.partition == partition) else { continue };
            let span = Span { from: span.from.max(first), ..span };
            let reading = self.log.read(topic, &[span], |record| record.key().map(<[u8]>::to_vec))?;
            let mut reading = Merged::new(vec![reading])?;
            while let Some(record) = reading.next()? {
                if let Some(newest) = newest.of.get_mut(&(topic.to_owned(), partition, record.what)) {
                    *newest = (*newest).max(record.offset);
                }
            }
        }
        Ok(newest)
    }
}

/// By topic, partition and key.
#[derive(Default)]
struct Newest {
    of: BTreeMap<(String, i32, Option<Vec<u8>>), i64>,
}

impl Newest {
    fn has_newer(&self, letter: &Letter, origin: &Origin) -> bool {
        self.of.get(&key(letter, origin)).is_some_and(|newest| *newest > origin.offset)
    }
}

fn key(letter: &Letter, origin: &Origin) -> (String, i32, Option<Vec<u8>>) {
    (origin.topic.clone(), origin.partition, letter.key.clone())
}
