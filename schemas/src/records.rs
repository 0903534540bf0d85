//! The records of the log, one struct per `.avsc` file; names and order of the fields are those of the schema.

use crate::codec::{Invalid, Record};
use crate::codecs::RecordType;
use crate::nearness::Place;
use crate::varint;
use crate::{GatewayId, TimestampMs, UserId};
use serde::{Deserialize, Serialize};

/// One report of where a user is; without a position, that the user stopped sharing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LocationEvent {
    /// Who.
    pub user_id: UserId,
    /// When, by the client's clock.
    pub reported_at: TimestampMs,
    /// When a gateway accepted it.
    pub received_at: TimestampMs,
    /// Where; `None` withdraws the user from every viewer.
    pub position: Option<Position>,
    /// How it came in.
    pub source: Source,
}

/// A place and how well it is known.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// Latitude in 1e-7 degree.
    pub lat_e7: i32,
    /// Longitude in 1e-7 degree.
    pub lon_e7: i32,
    /// Radius of uncertainty in metres.
    pub accuracy_m: Option<f32>,
    /// Metres per second.
    pub speed_mps: Option<f32>,
    /// Degrees clockwise from true north.
    pub heading_deg: Option<f32>,
}

impl Position {
    /// The place alone.
    pub fn place(&self) -> Place {
        Place { lat_e7: self.lat_e7, lon_e7: self.lon_e7 }
    }
}

/// How a report came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Source {
    /// Written by somebody who did not say.
    Unknown,
    /// `POST /v1/locations`.
    Http,
    /// A `location` frame.
    WebSocket,
    /// `POST /owntracks`.
    OwnTracks,
}

/// In the order of the schema's symbols.
const SOURCES: [Source; 4] = [Source::Unknown, Source::Http, Source::WebSocket, Source::OwnTracks];

impl Record for LocationEvent {
    const TYPE: RecordType = RecordType::LocationEvent;
    const SCHEMA: &'static str = include_str!("../avro/location_event.avsc");
    const HISTORY: &'static [&'static str] = &[include_str!("../avro/history/location_event.v1.avsc")];

    fn read(mut datum: &[u8]) -> Option<LocationEvent> {
        let datum = &mut datum;
        let event = LocationEvent {
            user_id: UserId(varint::decode(datum)?),
            reported_at: TimestampMs(varint::decode(datum)?),
            received_at: TimestampMs(varint::decode(datum)?),
            position: read_optional(datum, |datum| {
                Some(Position {
                    lat_e7: read_int(datum)?,
                    lon_e7: read_int(datum)?,
                    accuracy_m: read_optional(datum, read_float)?,
                    speed_mps: read_optional(datum, read_float)?,
                    heading_deg: read_optional(datum, read_float)?,
                })
            })?,
            source: *SOURCES.get(usize::try_from(varint::decode(datum)?).ok()?)?,
        };
        datum.is_empty().then_some(event)
    }

    fn check(&self) -> Result<(), Invalid> {
        check_user(self.user_id)?;
        if let Some(position) = self.position {
            position.place().check().map_err(|_| Invalid("position"))?;
        }
        Ok(())
    }
}

/// Whom a user may see, in full.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FriendList {
    /// Whose list it is.
    pub user_id: UserId,
    /// The friends.
    pub friends: Vec<UserId>,
    /// When it was accepted.
    pub changed_at: TimestampMs,
}

impl FriendList {
    /// The longest list that is accepted.
    pub const FRIENDS_MAX: usize = 5_000;
}

impl Record for FriendList {
    const TYPE: RecordType = RecordType::FriendList;
    const SCHEMA: &'static str = include_str!("../avro/friend_list.avsc");
    const HISTORY: &'static [&'static str] = &[include_str!("../avro/history/friend_list.v1.avsc")];

    fn check(&self) -> Result<(), Invalid> {
        check_user(self.user_id)?;
        if self.friends.len() > Self::FRIENDS_MAX {
            return Err(Invalid("friends"));
        }
        self.friends.iter().try_for_each(|friend| check_user(*friend))
    }
}

/// A user is connected to a gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Who.
    pub user_id: UserId,
    /// Where.
    pub gateway: GatewayId,
    /// A value greater than the one before asks for a snapshot.
    pub ask: i64,
}

impl Session {
    /// The record's key, `user/gateway`.
    pub fn key(user: UserId, gateway: &GatewayId) -> String {
        format!("{user}/{gateway}")
    }

    /// User and gateway out of a key; a tombstone has nothing else.
    pub fn parse_key(key: &str) -> Option<(UserId, GatewayId)> {
        let (user, gateway) = key.split_once('/')?;
        Some((user.parse().ok()?, GatewayId::new(gateway).ok()?))
    }
}

impl Record for Session {
    const TYPE: RecordType = RecordType::Session;
    const SCHEMA: &'static str = include_str!("../avro/session.avsc");
    const HISTORY: &'static [&'static str] = &[include_str!("../avro/history/session.v1.avsc")];

    fn check(&self) -> Result<(), Invalid> {
        check_user(self.user_id)?;
        check_gateway(&self.gateway)
    }
}

/// A gateway is alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayHeartbeat {
    /// Id, new at each start.
    pub gateway: GatewayId,
    /// WebSocket address that clients are told.
    pub stream_url: String,
    /// Base address of its HTTP routes.
    pub http_url: String,
    /// Open sockets now.
    pub connections: i32,
    /// Sockets it is willing to hold.
    pub capacity: i32,
    /// Takes no new clients.
    pub draining: bool,
    /// When it started.
    pub started_at: TimestampMs,
    /// New sockets a second that it lets in; 0: it does not say.
    pub accept_rate_per_s: i32,
}

impl Record for GatewayHeartbeat {
    const TYPE: RecordType = RecordType::GatewayHeartbeat;
    const SCHEMA: &'static str = include_str!("../avro/gateway_heartbeat.avsc");
    const HISTORY: &'static [&'static str] = &[
        include_str!("../avro/history/gateway_heartbeat.v1.avsc"),
        include_str!("../avro/history/gateway_heartbeat.v2.avsc"),
    ];

    fn check(&self) -> Result<(), Invalid> {
        check_gateway(&self.gateway)
    }
}

fn read_int(datum: &mut &[u8]) -> Option<i32> {
    i32::try_from(varint::decode(datum)?).ok()
}

fn read_float(datum: &mut &[u8]) -> Option<f32> {
    let (float, rest) = datum.split_first_chunk()?;
    *datum = rest;
    Some(f32::from_le_bytes(*float))
}

/// A union of null and something.
fn read_optional<T>(datum: &mut &[u8], read: impl FnOnce(&mut &[u8]) -> Option<T>) -> Option<Option<T>> {
    match varint::decode(datum)? {
        0 => Some(None),
        1 => read(datum).map(Some),
        _ => None,
    }
}

pub(crate) fn check_user(user: UserId) -> Result<(), Invalid> {
    if user.0 < 0 { Err(Invalid("user id")) } else { Ok(()) }
}

fn check_gateway(gateway: &GatewayId) -> Result<(), Invalid> {
    GatewayId::new(gateway.as_str()).map(drop).map_err(|_| Invalid("gateway"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Codec;
    use apache_avro::Schema;
    use apache_avro::reader::datum::GenericDatumReader;
    use proptest::option;
    use proptest::prelude::*;

    fn positions() -> impl Strategy<Value = Position> {
        let float = || option::of(any::<f32>());
        (any::<i32>(), any::<i32>(), float(), float(), float()).prop_map(
            |(lat_e7, lon_e7, accuracy_m, speed_mps, heading_deg)| Position {
                lat_e7,
                lon_e7,
                accuracy_m,
                speed_mps,
                heading_deg,
            },
        )
    }

    fn events() -> impl Strategy<Value = LocationEvent> {
        let numbers = (any::<i64>(), 0..64_u32, any::<i64>(), any::<i64>());
        (numbers, option::of(positions()), prop::sample::select(SOURCES.as_slice())).prop_map(
            |((user_id, shift, reported_at, received_at), position, source)| LocationEvent {
                user_id: UserId(user_id >> shift),
                reported_at: TimestampMs(reported_at),
                received_at: TimestampMs(received_at),
                position,
                source,
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        /// What is read by hand is what apache-avro reads, whatever a stranger wrote; and everything that we wrote is read by hand.
        #[test]
        fn by_hand_as_by_the_library(
            event in events(),
            change in option::of((any::<prop::sample::Index>(), any::<u8>(), any::<bool>())),
        ) {
            let schema = Schema::parse_str(LocationEvent::SCHEMA).expect("parses");
            let library = GenericDatumReader::builder(&schema).human_readable(false).build().expect("resolves");
            let codec = Codec::<LocationEvent>::new();
            let mut datum = codec.encode(&event)[codec.header().len()..].to_vec();
            if let Some((at, byte, longer)) = change {
                let at = at.index(datum.len());
                datum[at] = byte;
                if longer {
                    datum.insert(at, byte | 0x80);
                }
            }
            let read = LocationEvent::read(&datum);
            if let Some(read) = read {
                let mut rest = datum.as_slice();
                let expected: LocationEvent = library.read_deser(&mut rest).expect("the library reads it too");
                // Not a number is equal to nothing.
                prop_assert_eq!(format!("{read:?}"), format!("{expected:?}"));
                prop_assert!(rest.is_empty());
            }
            prop_assert!(read.is_some() || change.is_some());
        }
    }
}
