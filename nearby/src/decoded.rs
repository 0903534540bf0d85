//! Records of any topic as JSON, for people: fields as in the Avro schemas, ids of users as strings, as in the client protocol.

use nearby_schemas::batch::FriendMovedBatch;
use nearby_schemas::codec::{Codec, DecodeError, Record};
use nearby_schemas::codecs::Codecs;
use nearby_schemas::topics::Topics;
use nearby_schemas::{FriendList, GatewayHeartbeat, GatewayId, LocationEvent, Session};
use serde_json::{Map, Value};
use std::fmt::Write;

/// Fields that hold ids of users, wherever they are.
const IDS: [&str; 5] = ["user_id", "friend", "friends", "viewer", "viewers"];
/// Bytes of a record that nobody can read are shown up to so many.
const SHOWN_BYTES_MAX: usize = 256;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    LocationEvent,
    FriendList,
    Session,
    GatewayHeartbeat,
    FriendMovedBatch,
}

impl Kind {
    const ALL: [Kind; 5] =
        [Kind::LocationEvent, Kind::FriendList, Kind::Session, Kind::GatewayHeartbeat, Kind::FriendMovedBatch];

    /// What a topic of this deployment holds; none for `dead-letters`, which holds everything, and for other topics.
    pub fn of_topic(topic: &str, topics: &Topics) -> Option<Kind> {
        let named = [
            (topics.location_events(), Kind::LocationEvent),
            (topics.friend_lists(), Kind::FriendList),
            (topics.sessions(), Kind::Session),
            (topics.gateways(), Kind::GatewayHeartbeat),
        ];
        let kind = named.iter().find(|(name, _)| name == topic).map(|(_, kind)| *kind);
        kind.or_else(|| gateway_of(topic, topics).map(|_| Kind::FriendMovedBatch))
    }

    /// The name of its schema.
    pub fn name(self) -> &'static str {
        match self {
            Kind::LocationEvent => "LocationEvent",
            Kind::FriendList => "FriendList",
            Kind::Session => "Session",
            Kind::GatewayHeartbeat => "GatewayHeartbeat",
            Kind::FriendMovedBatch => "FriendMovedBatch",
        }
    }
}

/// Whose topic it is, if it is a gateway's.
pub fn gateway_of(topic: &str, topics: &Topics) -> Option<GatewayId> {
    let any = GatewayId::new("x").map(|any| topics.friend_moved(&any)).unwrap_or_default();
    let gateway = topic.strip_prefix(any.strip_suffix('x')?)?;
    GatewayId::new(gateway).ok()
}

/// Reads records of every kind.
pub struct Decoder {
    reports: Codec<LocationEvent>,
    lists: Codec<FriendList>,
    sessions: Codec<Session>,
    heartbeats: Codec<GatewayHeartbeat>,
    batches: Codec<FriendMovedBatch>,
}

impl Decoder {
    /// Building it parses every known schema: once is enough.
    pub fn new(codecs: &Codecs) -> Decoder {
        Decoder {
            reports: codecs.codec(),
            lists: codecs.codec(),
            sessions: codecs.codec(),
            heartbeats: codecs.codec(),
            batches: codecs.codec(),
        }
    }

    /// The record's kind and value; where the kind is not known, whatever kind it can be read as.
    ///
    /// # Errors
    /// Why nobody can read it.
    pub fn decode(&self, kind: Option<Kind>, bytes: &[u8]) -> Result<(Kind, Value), String> {
        if let Some(kind) = kind {
            let read = self.read(kind, bytes).map_err(|error| error.to_string());
            return read.map(|value| (kind, value));
        }
        let mut because = None;
        for kind in Kind::ALL {
            match self.read(kind, bytes) {
                Ok(value) => return Ok((kind, value)),
                // It says so for all kinds but one; what that one says tells more.
                Err(error @ DecodeError::UnknownSchema { .. }) => drop(because.get_or_insert(error)),
                Err(error) => because = Some(error),
            }
        }
        Err(because.map(|error| error.to_string()).unwrap_or_default())
    }

    fn read(&self, kind: Kind, bytes: &[u8]) -> Result<Value, DecodeError> {
        match kind {
            Kind::LocationEvent => json(&self.reports, bytes),
            Kind::FriendList => json(&self.lists, bytes),
            Kind::Session => json(&self.sessions, bytes),
            Kind::GatewayHeartbeat => json(&self.heartbeats, bytes),
            Kind::FriendMovedBatch => json(&self.batches, bytes),
        }
    }
}

fn json<R: Record>(codec: &Codec<R>, bytes: &[u8]) -> Result<Value, DecodeError> {
    let mut value = serde_json::to_value(codec.decode(bytes)?).expect("records have no map and so no odd keys");
    readable(&mut value);
    Ok(value)
}

/// Ids become strings, because readers in JavaScript lose integers above 2^53; floats lose the digits that single precision
/// never had.
fn readable(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                if IDS.contains(&name.as_str()) { id_as_text(field) } else { readable(field) }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(readable),
        Value::Number(number) if number.is_f64() => {
            #[expect(clippy::cast_possible_truncation, reason = "every float of a record is one of single precision")]
            let shortest = number.as_f64().map(|wide| (wide as f32).to_string());
            if let Some(shortest) = shortest.and_then(|text| text.parse::<f64>().ok()) {
                *value = Value::from(shortest);
            }
        }
        _ => {}
    }
}

fn id_as_text(field: &mut Value) {
    match field {
        Value::Number(id) => *field = Value::String(id.to_string()),
        Value::Array(items) => items.iter_mut().for_each(id_as_text),
        other => readable(other),
    }
}

/// A key or a header's value: as text, or, if it is none, as its bytes.
pub fn text_or_bytes(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => Value::String(text.to_owned()),
        Err(_) => Value::Object(Map::from_iter([("hex".to_owned(), Value::String(hex(bytes)))])),
    }
}

/// The first bytes in hexadecimal digits; an ellipsis where there are more.
pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len().min(SHOWN_BYTES_MAX) + 3);
    for byte in bytes.iter().take(SHOWN_BYTES_MAX) {
        write!(text, "{byte:02x}").expect("a string takes everything");
    }
    if bytes.len() > SHOWN_BYTES_MAX {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearby_schemas::batch::{Event, FriendLeft, FriendMoved, LeftReason, Section, SeenFriend, ViewerDistance};
    use nearby_schemas::batch::{ViewerMoved, ViewerSnapshot};
    use nearby_schemas::{Epoch, Place, Position, Source, TimestampMs, UserId};

    fn shown(kind: Option<Kind>, bytes: &[u8]) -> String {
        match Decoder::new(&Codecs::default()).decode(kind, bytes) {
            Ok((kind, value)) => format!("{} {value}", kind.name()),
            Err(reason) => format!("not readable: {reason}"),
        }
    }

    fn report() -> Vec<u8> {
        let position = Position {
            lat_e7: 407_484_000,
            lon_e7: -739_857_000,
            accuracy_m: Some(12.3),
            speed_mps: None,
            heading_deg: Some(270.0),
        };
        Codec::new().encode(&LocationEvent {
            user_id: UserId::MAX,
            reported_at: TimestampMs(1_795_374_428_209),
            received_at: TimestampMs(1_795_374_428_210),
            position: Some(position),
            source: Source::Http,
        })
    }

    #[test]
    fn ids_are_text_and_floats_are_short() {
        expect_test::expect![[r#"LocationEvent {"position":{"accuracy_m":12.3,"heading_deg":270.0,"lat_e7":407484000,"lon_e7":-739857000,"speed_mps":null},"received_at":1795374428210,"reported_at":1795374428209,"source":"HTTP","user_id":"9223372036854775807"}"#]]
            .assert_eq(&shown(Some(Kind::LocationEvent), &report()));
        let list = FriendList { user_id: UserId(1), friends: vec![UserId(2), UserId(3)], changed_at: TimestampMs(4) };
        expect_test::expect![[r#"FriendList {"changed_at":4,"friends":["2","3"],"user_id":"1"}"#]]
            .assert_eq(&shown(Some(Kind::FriendList), &Codec::new().encode(&list)));
    }

    #[test]
    fn every_event_of_a_batch_is_readable() {
        let (viewer, friend, updated_at) = (UserId(1), UserId(2), TimestampMs(5));
        let seen = SeenFriend { friend, lat_e7: 1, lon_e7: 2, updated_at, distance_dm: 3 };
        let viewers = vec![ViewerDistance { viewer, distance_dm: 3 }];
        let events = vec![
            Event::FriendMoved(FriendMoved { friend, lat_e7: 1, lon_e7: 2, updated_at, viewers }),
            Event::FriendLeft(FriendLeft { friend, reason: LeftReason::OwnLocation, viewers: vec![viewer] }),
            Event::ViewerMoved(ViewerMoved { viewer, lat_e7: 1, lon_e7: 2 }),
            Event::ViewerSnapshot(ViewerSnapshot {
                viewer,
                place: Some(Place { lat_e7: 1, lon_e7: 2 }),
                friends: vec![seen],
            }),
        ];
        let sections = vec![Section { partition: 7, epoch: Epoch(8), events }];
        let bytes = Codec::new().encode(&FriendMovedBatch { emitted_at: TimestampMs(9), sections });
        expect_test::expect![[r#"FriendMovedBatch {"emitted_at":9,"sections":[{"epoch":8,"events":[{"FriendMoved":{"friend":"2","lat_e7":1,"lon_e7":2,"updated_at":5,"viewers":[{"distance_dm":3,"viewer":"1"}]}},{"FriendLeft":{"friend":"2","reason":"OWN_LOCATION","viewers":["1"]}},{"ViewerMoved":{"lat_e7":1,"lon_e7":2,"viewer":"1"}},{"ViewerSnapshot":{"friends":[{"distance_dm":3,"friend":"2","lat_e7":1,"lon_e7":2,"updated_at":5}],"place":{"lat_e7":1,"lon_e7":2},"viewer":"1"}}],"partition":7}]}"#]]
            .assert_eq(&shown(Some(Kind::FriendMovedBatch), &bytes));
        assert_eq!(shown(None, &bytes), shown(Some(Kind::FriendMovedBatch), &bytes), "it says itself what it is");
    }

    #[test]
    fn what_nobody_can_read_says_why() {
        let says = |kind, bytes: &[u8]| shown(kind, bytes).strip_prefix("not readable: ").map(str::to_owned);
        let said = |kind, bytes: &[u8]| says(kind, bytes).expect("nobody can read it");
        assert!(said(None, b"hello").contains("it does not start with C3 01"));
        assert!(said(Some(Kind::Session), &report()).contains("unknown schema"), "a report is no session");
        assert!(said(None, &report()[..12]).contains("malformed"));
        assert!(
            said(None, &[0xC3, 1, 0, 0, 0, 0, 0, 0, 0, 0]).contains("unknown schema (fingerprint 0000000000000000)")
        );
        assert!(said(None, &[0, 0, 0, 0, 7, 1]).contains("schema id 7"));
        assert!(says(None, b"").is_some());
    }

    #[test]
    fn what_a_topic_holds_follows_from_its_name() {
        let topics = Topics::new("t.");
        assert_eq!(Kind::of_topic("t.sessions", &topics), Some(Kind::Session));
        assert_eq!(Kind::of_topic("t.friend-moved-g1-a", &topics), Some(Kind::FriendMovedBatch));
        for other in ["sessions", "t.dead-letters", "t.friend-moved-", "shadow.friend-moved-replay"] {
            assert_eq!(Kind::of_topic(other, &topics), None, "{other}");
        }
        assert_eq!(gateway_of("t.friend-moved-g1-a", &topics), GatewayId::new("g1-a").ok());
    }

    #[test]
    fn bytes_that_are_no_text_are_shown_in_digits() {
        assert_eq!(text_or_bytes(b"42").to_string(), r#""42""#);
        assert_eq!(text_or_bytes(&[0xff, 0]).to_string(), r#"{"hex":"ff00"}"#);
        assert_eq!(hex(&[0; 257]), format!("{}…", "0".repeat(512)));
    }
}
