//! Records that nobody could use go to `dead-letters` with their origin and reason: never silently skipped, never blocking.

use crate::append::{Acknowledged, Appender, Outgoing};
use crate::consume::Record;
use rdkafka::message::{Header, OwnedHeaders};

/// A value that would not fit into a record together with the headers is left out; its origin says where it still is.
const VALUE_BYTES_MAX: usize = 900_000;

/// A record that nobody could use, and where it is.
#[derive(Clone, Copy, Debug)]
pub struct Original<'a> {
    /// Its topic.
    pub topic: &'a str,
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value; none in a tombstone.
    pub value: Option<&'a [u8]>,
}

impl<'a> From<&Record<'a>> for Original<'a> {
    fn from(record: &Record<'a>) -> Original<'a> {
        let (topic, partition, offset) = (record.topic(), record.partition(), record.offset());
        Original { topic, partition, offset, key: record.key(), value: record.value() }
    }
}

/// The original record and why it was refused, ready to be appended.
pub fn dead_letter(topic: String, record: Original<'_>, reason: &str) -> Outgoing {
    let value = record.value;
    let fits = value.is_none_or(|value| value.len() <= VALUE_BYTES_MAX);
    let omitted = value.filter(|_| !fits).map(|value| format!("{reason} (value of {} bytes left out)", value.len()));
    let reason = omitted.as_deref().unwrap_or(reason);
    let headers = [
        ("topic", record.topic.to_owned()),
        ("partition", record.partition.to_string()),
        ("offset", record.offset.to_string()),
        ("reason", reason.to_owned()),
    ];
    let headers = headers
        .iter()
        .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: Some(value) }));
    Outgoing {
        topic,
        partition: None,
        key: record.key.map(<[u8]>::to_vec),
        value: value.filter(|_| fits).map(<[u8]>::to_vec),
        headers: Some(headers),
    }
}

/// Counts, logs and appends a dead letter; the future ends when it is acknowledged.
pub fn bury<'a>(appender: &Appender, topic: String, record: impl Into<Original<'a>>, reason: &str) -> Acknowledged {
    let record = record.into();
    metrics::counter!("nearby_dead_letters_total", "topic" => record.topic.to_owned()).increment(1);
    tracing::warn!(
        topic = record.topic,
        partition = record.partition,
        offset = record.offset,
        reason,
        "a record goes to the dead letters"
    );
    appender.append_one(dead_letter(topic, record, reason))
}
