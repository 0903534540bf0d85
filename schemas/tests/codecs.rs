//! Both wire formats, and schemas that only a registry knows.

use nearby_schemas::codec::{Codec, DecodeError};
use nearby_schemas::codecs::{Codecs, RecordType};
use nearby_schemas::*;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// A newer schema: `source` is gone, `battery` is new, `received_at` comes first.
const NEWER: &str = r#"{"type":"record","name":"LocationEvent","namespace":"nearby.v1","fields":[
  {"name":"received_at","type":"long","default":0},
  {"name":"user_id","type":"long","default":0},
  {"name":"battery","type":["null","int"],"default":null},
  {"name":"reported_at","type":"long","default":0},
  {"name":"position","type":["null",{"type":"record","name":"Position","fields":[
    {"name":"lat_e7","type":"int","default":0},{"name":"lon_e7","type":"int","default":0}]}],"default":null}]}"#;

/// `NEWER` of user 42: received_at 2, battery 50, reported_at 1, at (1, -2).
const NEWER_DATUM: [u8; 8] = [4, 84, 2, 100, 2, 2, 2, 3];

/// A registry that has these schemas, and counts how often it is asked.
fn registry(schemas: &[(u32, &str)], own_id: Option<u32>) -> (Codecs, Arc<AtomicUsize>) {
    let schemas: BTreeMap<u32, Arc<str>> = schemas.iter().map(|(id, text)| (*id, Arc::from(*text))).collect();
    let schemas = Mutex::new(schemas);
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let look_up = move |id| {
        counter.fetch_add(1, Ordering::Relaxed);
        schemas.lock().expect("not poisoned").get(&id).cloned().ok_or("the registry does not know it".to_owned())
    };
    let ids = own_id.map(|id| (RecordType::LocationEvent, id)).into_iter().collect();
    (Codecs::with_registry(ids, Arc::new(look_up)), asked)
}

fn event() -> LocationEvent {
    let position =
        Position { lat_e7: 377_700_000, lon_e7: -5, accuracy_m: Some(12.0), speed_mps: None, heading_deg: None };
    LocationEvent {
        user_id: UserId(42),
        reported_at: TimestampMs(1),
        received_at: TimestampMs(2),
        position: Some(position),
        source: Source::Http,
    }
}

fn confluent(id: u32, datum: &[u8]) -> Vec<u8> {
    [&[0][..], &id.to_be_bytes(), datum].concat()
}

#[test]
fn each_format_is_written_as_told_and_both_are_read() {
    let plain = Codec::<LocationEvent>::new();
    let (codecs, asked) = registry(&[], Some(0x0102_0304));
    let codec = codecs.codec::<LocationEvent>();
    let (single_object, framed) = (plain.encode(&event()), codec.encode(&event()));
    assert_eq!(framed, confluent(0x0102_0304, &single_object[10..]));
    assert_eq!(codec.decode(&framed).expect("its own"), event());
    assert_eq!(codec.decode(&single_object).expect("the other format"), event());
    assert_eq!(asked.load(Ordering::Relaxed), 0, "its own id needs no look-up");
    assert!(matches!(plain.decode(&framed), Err(DecodeError::NeedsRegistry { schema_id: 0x0102_0304 })));
    for length in 0..framed.len() {
        assert!(codec.decode(&framed[..length]).is_err(), "cut to {length} bytes it is still read");
    }
    assert!(matches!(codec.decode(&[framed, vec![0]].concat()), Err(DecodeError::Trailing(1))));
}

#[test]
fn a_record_without_an_id_is_written_as_a_single_object() {
    let (codecs, _) = registry(&[], Some(7));
    let list = FriendList { user_id: UserId(1), friends: vec![], changed_at: TimestampMs(0) };
    assert_eq!(codecs.codec().encode(&list), Codec::new().encode(&list));
}

#[test]
fn an_id_is_looked_up_once() {
    let own = RecordType::LocationEvent.schema();
    // As Java's Avro would print it: no documentation, no white space.
    let (codecs, asked) = registry(&[(7, own), (8, NEWER)], None);
    let codec = codecs.codec::<LocationEvent>();
    let datum = &codec.encode(&event())[10..];
    for _ in 0..3 {
        assert_eq!(codec.decode(&confluent(7, datum)).expect("the current schema"), event());
        let newer = codec.decode(&confluent(8, &NEWER_DATUM)).expect("a newer schema");
        let position = Position { lat_e7: 1, lon_e7: -2, accuracy_m: None, speed_mps: None, heading_deg: None };
        assert_eq!(newer, LocationEvent { position: Some(position), source: Source::Unknown, ..event() });
    }
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    assert!(matches!(codec.decode(&confluent(8, &NEWER_DATUM[..7])), Err(DecodeError::Malformed(_))));
}

#[test]
fn what_cannot_be_read_says_why() {
    let session = RecordType::Session.schema();
    let wrong_type =
        NEWER.replace(r#""user_id","type":"long","default":0"#, r#""user_id","type":"string","default":"""#);
    let (codecs, asked) = registry(&[(1, session), (2, &wrong_type), (3, "{"), (4, r#"{"type":"map"}"#)], None);
    let codec = codecs.codec::<LocationEvent>();
    let refusal = |id| codec.decode(&confluent(id, &NEWER_DATUM)).expect_err("refused").to_string();
    // Every field has a default: a session would pass for the withdrawal of some user if only fields were looked at.
    for (id, reason) in [
        (1, "our schema cannot read it"),
        (2, "our schema cannot read it"),
        (3, "it does not parse"),
        (4, "it does not parse"),
        (5, "the registry does not know it"),
    ] {
        let told = refusal(id);
        assert!(told.starts_with(&format!("written with schema id {id}: {reason}")), "{told}");
    }
    let before = asked.load(Ordering::Relaxed);
    refusal(1);
    refusal(5);
    assert_eq!(asked.load(Ordering::Relaxed), before + 1, "what is known to be unreadable is not asked for again");
}
