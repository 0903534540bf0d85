//! Records that nobody could use go to `dead-letters` with their origin and reason: never silently skipped, never blocking.

use crate::append::{Acknowledged, Appender, Outgoing};
use rdkafka::Message;
use rdkafka::message::{Header, OwnedHeaders};

/// The original record and why it was refused, ready to be appended.
pub fn dead_letter(topic: String, record: &impl Message, reason: &str) -> Outgoing {
    let headers = [
        ("topic", record.topic().to_owned()),
        ("partition", record.partition().to_string()),
        ("offset", record.offset().to_string()),
        ("reason", reason.to_owned()),
    ];
    let headers = headers
        .iter()
        .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: Some(value) }));
    Outgoing {
        topic,
        partition: None,
        key: record.key().map(<[u8]>::to_vec),
        value: record.payload().map(<[u8]>::to_vec),
        headers: Some(headers),
    }
}

/// Counts, logs and appends a dead letter; the future ends when it is acknowledged.
pub fn bury(appender: &Appender, topic: String, record: &impl Message, reason: &str) -> Acknowledged {
    metrics::counter!("nearby_dead_letters_total", "topic" => record.topic().to_owned()).increment(1);
    tracing::warn!(
        topic = record.topic(),
        partition = record.partition(),
        offset = record.offset(),
        reason,
        "a record goes to the dead letters"
    );
    appender.append_one(dead_letter(topic, record, reason))
}
