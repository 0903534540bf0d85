//! `nearby tail`: the records of a topic, decoded, as lines of JSON.

use crate::decoded::{Decoder, Kind, hex, text_or_bytes};
use crate::log::{Log, Quiet, Span};
use crate::moments::moment;
use crate::{BadSetting, wiring};
use anyhow::Context;
use nearby_schemas::TimestampMs;
use nearby_schemas::codecs::Codecs;
use nearby_schemas::topics::Topics;
use nearby_service::health::Readiness;
use nearby_service::kafka::Kafka;
use nearby_service::settings::KafkaSettings;
use nearby_service::{Stop, stop_on_signals};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Headers;
use rdkafka::{Message, Offset, Timestamp, TopicPartitionList};
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufWriter, ErrorKind, Write};
use std::time::Duration;

/// How long a quiet topic is waited for before the stop signal is looked at.
const QUIET_POLL: Duration = Duration::from_millis(100);
/// Topics that are named when the wanted one is not there.
const NAMED_MAX: usize = 30;

/// Settings of `nearby tail`.
#[derive(clap::Args)]
pub struct TailSettings {
    /// Topic, with its prefix or without
    #[arg(value_name = "TOPIC")]
    topic: String,
    #[command(flatten)]
    kafka: KafkaSettings,
    /// Where to begin: beginning, end, or a moment (RFC 3339, or milliseconds since 1970)
    #[arg(long, default_value = "end", value_name = "beginning|end|MOMENT", value_parser = from)]
    from: From,
    /// End after so many records
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// This partition alone
    #[arg(long, value_name = "PARTITION", value_parser = clap::value_parser!(i32).range(0..))]
    partition: Option<i32>,
    /// End when all is read that was there at the start; otherwise with Ctrl-C
    #[arg(long)]
    no_follow: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Beginning,
    End,
    Moment(TimestampMs),
}

fn from(text: &str) -> Result<From, String> {
    match text {
        "beginning" => Ok(From::Beginning),
        "end" => Ok(From::End),
        other => moment(other).map(From::Moment),
    }
}

/// Prints until there is no more to print, or nobody who wants it.
pub async fn tail(settings: TailSettings) -> anyhow::Result<()> {
    let mut kafka = Kafka::from_settings(&settings.kafka);
    wiring::connect_registry(&mut kafka, &settings.kafka.registry, &[], &Readiness::default()).await?;
    wiring::check_broker(&kafka).await?;
    let stop = Stop::new();
    stop_on_signals(stop.clone()).context("listening to signals")?;
    tokio::task::spawn_blocking(move || follow(&settings, &kafka, &stop)).await.context("reading the topic")?
}

fn follow(settings: &TailSettings, kafka: &Kafka, stop: &Stop) -> anyhow::Result<()> {
    let log = Log::open(kafka)?;
    let topic = find_topic(&log, kafka, &settings.topic)?;
    let mut spans = log.spans(&topic)?;
    if let Some(wanted) = settings.partition {
        let partitions = spans.len();
        spans.retain(|span| span.partition == wanted);
        if spans.is_empty() {
            return Err(BadSetting(format!("{topic} has no partition {wanted}: it has {partitions}, from 0 on")).into());
        }
    }
    let starts = match settings.from {
        From::Beginning => spans.iter().map(|span| span.from).collect(),
        From::End => spans.iter().map(|span| span.end).collect(),
        From::Moment(time) => log.offsets_at(&topic, &spans, time)?,
    };
    let consumer = assign(kafka, &topic, &spans, &starts)?;
    eprintln!("{topic}, {} partitions; Ctrl-C ends", spans.len());
    let describer = Describer::new(kafka.topics.clone(), &kafka.codecs, &topic);
    // Partitions whose end at the start was not reached yet.
    let ahead = |(span, start): (&Span, &i64)| (*start < span.end).then_some((span.partition, span.end));
    let mut unread: BTreeMap<i32, i64> = spans.iter().zip(&starts).filter_map(ahead).collect();
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut printed = 0;
    while !(stop.is_cancelled() || settings.no_follow && unread.is_empty()) {
        match consumer.poll(if out.buffer().is_empty() { QUIET_POLL } else { Duration::ZERO }) {
            Some(Ok(record)) => {
                let end = unread.get(&record.partition());
                let came_later = settings.no_follow && end.is_none_or(|end| record.offset() >= *end);
                if end.is_some_and(|end| record.offset() + 1 >= *end) {
                    unread.remove(&record.partition());
                }
                if came_later {
                    continue;
                }
                if wrote(writeln!(out, "{}", describer.describe(&record)?))?.is_none() {
                    return Ok(());
                }
                printed += 1;
                if settings.count.is_some_and(|count| printed >= count) {
                    break;
                }
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(unread.remove(&partition)),
            // The client goes on trying by itself.
            Some(Err(error)) => eprintln!("nearby: {error}"),
            None => {
                if wrote(out.flush())?.is_none() {
                    return Ok(());
                }
            }
        }
    }
    wrote(out.flush()).map(drop)
}

/// None when whoever read has seen enough, as `head` does.
pub fn wrote(result: std::io::Result<()>) -> anyhow::Result<Option<()>> {
    match result {
        Ok(()) => Ok(Some(())),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(None),
        Err(error) => Err(error).context("writing to standard output"),
    }
}

/// The topic that is meant: with this deployment's prefix, or as it is written.
fn find_topic(log: &Log, kafka: &Kafka, wanted: &str) -> anyhow::Result<String> {
    let topics = log.topics()?;
    let prefixed = format!("{}{wanted}", kafka.prefix);
    for name in [&prefixed, wanted] {
        if topics.contains_key(name) {
            return Ok(name.to_owned());
        }
    }
    let looked_for: BTreeSet<&str> = BTreeSet::from([prefixed.as_str(), wanted]);
    let looked_for: Vec<&str> = looked_for.into_iter().collect();
    let there: Vec<&str> = topics.keys().map(String::as_str).take(NAMED_MAX).collect();
    let more = if topics.len() > NAMED_MAX { ", …" } else { "" };
    let there = if there.is_empty() { "no topic at all".to_owned() } else { format!("{}{more}", there.join(", ")) };
    let brokers = &kafka.brokers;
    Err(BadSetting(format!("there is no topic {} at {brokers}; there is {there}", looked_for.join(" or "))).into())
}

fn assign(kafka: &Kafka, topic: &str, spans: &[Span], starts: &[i64]) -> anyhow::Result<BaseConsumer<Quiet>> {
    let mut config = kafka.reader_config();
    // What retention takes meanwhile is gone: the oldest that is left comes next.
    config.set("auto.offset.reset", "earliest");
    let consumer: BaseConsumer<Quiet> = config.create_with_context(Quiet)?;
    let mut list = TopicPartitionList::new();
    for (span, start) in spans.iter().zip(starts) {
        list.add_partition_offset(topic, span.partition, Offset::Offset(*start))?;
    }
    consumer.assign(&list)?;
    Ok(consumer)
}

/// Says what a record is.
struct Describer {
    decoder: Decoder,
    topics: Topics,
    kind: Option<Kind>,
    is_dead_letters: bool,
}

/// A record, as a line.
#[derive(Serialize)]
struct Line {
    partition: i32,
    offset: i64,
    /// By the broker's clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    appended_at: Option<i64>,
    /// By the clock of who wrote it, in topics whose times are the writers'.
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at: Option<i64>,
    key: Option<Value>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    headers: Map<String, Value>,
    #[serde(flatten)]
    what: What,
}

#[derive(Serialize)]
struct What {
    r#type: &'static str,
    value: Option<Value>,
    #[serde(flatten)]
    unreadable: Option<Unreadable>,
}

#[derive(Serialize)]
struct Unreadable {
    reason: String,
    size_bytes: usize,
    hex: String,
}

impl Describer {
    fn new(topics: Topics, codecs: &Codecs, topic: &str) -> Describer {
        let is_dead_letters = topics.dead_letters() == topic;
        Describer { decoder: Decoder::new(codecs), kind: Kind::of_topic(topic, &topics), topics, is_dead_letters }
    }

    fn describe(&self, record: &impl Message) -> anyhow::Result<String> {
        let mut headers = Map::new();
        for header in record.headers().into_iter().flat_map(Headers::iter) {
            headers.insert(header.key.to_owned(), header.value.map_or(Value::Null, text_or_bytes));
        }
        let (appended_at, created_at) = match record.timestamp() {
            Timestamp::LogAppendTime(ms) => (Some(ms), None),
            Timestamp::CreateTime(ms) => (None, Some(ms)),
            Timestamp::NotAvailable => (None, None),
        };
        let kind = match headers.get("topic").and_then(Value::as_str).filter(|_| self.is_dead_letters) {
            Some(origin) => Kind::of_topic(origin, &self.topics),
            None => self.kind,
        };
        let line = Line {
            partition: record.partition(),
            offset: record.offset(),
            appended_at,
            created_at,
            key: record.key().map(text_or_bytes),
            headers,
            what: self.what(kind, record.payload()),
        };
        serde_json::to_string(&line).context("a record as JSON")
    }

    fn what(&self, kind: Option<Kind>, bytes: Option<&[u8]>) -> What {
        let Some(bytes) = bytes else {
            // A letter without a value may be a tombstone that nobody understood, or one whose value was too large.
            let r#type = if self.is_dead_letters { "no value" } else { "tombstone" };
            return What { r#type, value: None, unreadable: None };
        };
        match self.decoder.decode(kind, bytes) {
            Ok((kind, value)) => What { r#type: kind.name(), value: Some(value), unreadable: None },
            Err(reason) => {
                let unreadable = Unreadable { reason, size_bytes: bytes.len(), hex: hex(bytes) };
                What { r#type: "undecodable", value: None, unreadable: Some(unreadable) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearby_schemas::codec::Codec;
    use nearby_schemas::{GatewayId, Session, UserId};
    use nearby_service::dead_letters::{Original, dead_letter};
    use rdkafka::message::OwnedMessage;

    fn record(topic: &str, key: &[u8], value: Option<Vec<u8>>, timestamp: Timestamp) -> OwnedMessage {
        OwnedMessage::new(value, Some(key.to_vec()), topic.to_owned(), timestamp, 3, 17, None)
    }

    fn original(record: &OwnedMessage) -> Original<'_> {
        let (topic, partition, offset) = (record.topic(), record.partition(), record.offset());
        Original { topic, partition, offset, key: record.key(), value: record.payload() }
    }

    fn describe(topic: &str, record: &OwnedMessage) -> String {
        Describer::new(Topics::new("t."), &Codecs::default(), topic).describe(record).expect("JSON")
    }

    #[test]
    fn a_record_a_tombstone_and_what_nobody_can_read() {
        let gateway = GatewayId::new("g1-a").expect("legal");
        let session = Codec::new().encode(&Session { user_id: UserId(7), gateway, ask: 2 });
        let open = record("t.sessions", b"7/g1-a", Some(session), Timestamp::CreateTime(5));
        expect_test::expect![[r#"{"partition":3,"offset":17,"created_at":5,"key":"7/g1-a","type":"Session","value":{"ask":2,"gateway":"g1-a","user_id":"7"}}"#]]
            .assert_eq(&describe("t.sessions", &open));
        let closed = record("t.sessions", b"7/g1-a", None, Timestamp::LogAppendTime(5));
        expect_test::expect![[
            r#"{"partition":3,"offset":17,"appended_at":5,"key":"7/g1-a","type":"tombstone","value":null}"#
        ]]
        .assert_eq(&describe("t.sessions", &closed));
        let odd = record("t.sessions", b"\xff", Some(b"hi".to_vec()), Timestamp::NotAvailable);
        expect_test::expect![[r#"{"partition":3,"offset":17,"key":{"hex":"ff"},"type":"undecodable","value":null,"reason":"not an Avro single object: it does not start with C3 01","size_bytes":2,"hex":"6869"}"#]]
            .assert_eq(&describe("t.sessions", &odd));
    }

    #[test]
    fn a_dead_letter_is_read_as_what_it_was() {
        let origin = record("t.sessions", b"7/g1-a", Some(b"hi".to_vec()), Timestamp::NotAvailable);
        let letter = dead_letter("t.dead-letters".to_owned(), original(&origin), "too short");
        let buried =
            OwnedMessage::new(letter.value, letter.key, letter.topic, Timestamp::CreateTime(5), 0, 1, letter.headers);
        expect_test::expect![[r#"{"partition":0,"offset":1,"created_at":5,"key":"7/g1-a","headers":{"offset":"17","partition":"3","reason":"too short","topic":"t.sessions"},"type":"undecodable","value":null,"reason":"not an Avro single object: it does not start with C3 01","size_bytes":2,"hex":"6869"}"#]]
            .assert_eq(&describe("t.dead-letters", &buried));
    }

    #[test]
    fn where_to_begin() {
        assert_eq!(from("beginning"), Ok(From::Beginning));
        assert_eq!(from("end"), Ok(From::End));
        assert_eq!(from("1970-01-01T00:00:01Z"), Ok(From::Moment(TimestampMs(1_000))));
        assert!(from("start").is_err());
    }
}
