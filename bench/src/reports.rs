//! Reports as they are in the log.

use crate::cluster::keyed;
use crate::workload::{Move, user_id};
use nearby_schemas::codec::Codec;
use nearby_schemas::{LocationEvent, Place, Position, Source, TimestampMs};
use nearby_service::append::Outgoing;

/// Length, attributes, two deltas, two lengths, number of headers (Kafka's record format, version 2).
const RECORD_BYTES: f64 = 8.0;

/// Bytes of a report in the log: key, value, and what Kafka puts around each record of a batch.
pub fn report_bytes() -> f64 {
    let place = Place { lat_e7: 377_700_000, lon_e7: -1_224_100_000 };
    let record = report("", &Codec::new(), (1, place));
    let bytes = |part: Option<Vec<u8>>| part.map_or(0, |bytes| bytes.len());
    (bytes(record.key) + bytes(record.value)) as f64 + RECORD_BYTES
}

/// A move as a record.
pub fn report(topic: &str, codec: &Codec<LocationEvent>, made: Move) -> Outgoing {
    report_at(topic, codec, made, TimestampMs::now())
}

/// A move at this time as a record.
pub fn report_at(topic: &str, codec: &Codec<LocationEvent>, (user, place): Move, now: TimestampMs) -> Outgoing {
    let position = Position {
        lat_e7: place.lat_e7,
        lon_e7: place.lon_e7,
        accuracy_m: Some(12.0),
        speed_mps: Some(1.5),
        heading_deg: None,
    };
    let event = LocationEvent {
        user_id: user_id(user),
        reported_at: now,
        received_at: now,
        position: Some(position),
        source: Source::Http,
    };
    keyed(topic, user_id(user), codec.encode(&event))
}
