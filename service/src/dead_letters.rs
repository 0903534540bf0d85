//! Records that nobody could use go to `dead-letters` with their origin and reason: never silently skipped, never blocking.

use crate::append::{Acknowledged, Appender, Outgoing};
use crate::consume::Record;
use crate::logs::Seldom;
use rdkafka::message::{Header, OwnedHeaders};

/// What would not fit into a record together with the headers is left out; its origin says where it still is.
const VALUE_BYTES_MAX: usize = 800_000;
const KEY_BYTES_MAX: usize = 100_000;
/// A reason may quote the record.
const REASON_BYTES_MAX: usize = 500;

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
    let mut reason = reason[..reason.floor_char_boundary(REASON_BYTES_MAX)].to_owned();
    let mut kept = |what, bytes: Option<&[u8]>, bytes_max| {
        let length = bytes.map_or(0, <[u8]>::len);
        if length > bytes_max {
            reason.push_str(&format!(" ({what} of {length} bytes left out)"));
        }
        bytes.filter(|_| length <= bytes_max).map(<[u8]>::to_vec)
    };
    let key = kept("key", record.key, KEY_BYTES_MAX);
    let value = kept("value", record.value, VALUE_BYTES_MAX);
    let headers = [
        ("topic", record.topic.to_owned()),
        ("partition", record.partition.to_string()),
        ("offset", record.offset.to_string()),
        ("reason", reason),
    ];
    let headers = headers
        .iter()
        .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: Some(value) }));
    Outgoing { topic, partition: None, key, value, headers: Some(headers) }
}

/// Counts and appends a dead letter, and logs one of many; the future ends when it is acknowledged.
pub fn bury<'a>(appender: &Appender, topic: String, record: impl Into<Original<'a>>, reason: &str) -> Acknowledged {
    let record = record.into();
    metrics::counter!("nearby_dead_letters_total", "topic" => record.topic.to_owned()).increment(1);
    static TOLD: Seldom = Seldom::new();
    if let Some(left_out) = TOLD.may_tell() {
        let Original { topic, partition, offset, .. } = record;
        tracing::warn!(topic, partition, offset, reason, left_out, "a record goes to the dead letters");
    }
    appender.append_one(dead_letter(topic, record, reason))
}
