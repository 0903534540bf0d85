//! Frames of client protocol 1 as JSON text.

use crate::delivery::{Outgoing, Shown};
use nearby_schemas::batch::LeftReason;
use nearby_schemas::nearness::UNITS_PER_DEGREE;
use nearby_schemas::{GatewayId, TimestampMs, UserId};
use rand::RngExt;
use serde::{Serialize, Serializer};
use serde_json::Value;

/// A client of a draining gateway comes back within this time of its farewell; farewells are spread by themselves.
const RECONNECT_WITHIN_MS: u64 = 250;
/// Version of the client protocol.
pub const PROTOCOL: u32 = 1;

/// What every client is told on arrival.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Friends within this distance are shown.
    pub radius_m: u32,
    /// A friend is hidden this long after the last report.
    pub inactive_after_s: u32,
}

#[derive(Serialize)]
struct Friend {
    #[serde(serialize_with = "as_text")]
    id: UserId,
    lat: f64,
    lon: f64,
    distance_m: f64,
    updated_at_ms: i64,
    visible_until_ms: i64,
}

#[derive(Serialize)]
struct Left {
    #[serde(serialize_with = "as_text")]
    id: UserId,
    reason: &'static str,
}

fn as_text<S: Serializer>(id: &UserId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

/// Serialized one by one: thousands of frames a second need no list of their own.
struct Friends<'a>(&'a [(UserId, Shown)], &'a Rules);

impl Serialize for Friends<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|entry| friend(entry, self.1)))
    }
}

impl Friends<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

struct Gone<'a>(&'a [(UserId, LeftReason)]);

impl Serialize for Gone<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|(id, reason)| Left { id: *id, reason: reason.as_str() }))
    }
}

impl Gone<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Frames from the server; the type comes first, so that a person who reads along knows what follows.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Frame<'a> {
    Welcome {
        protocol: u32,
        gateway: &'a str,
        session: &'a str,
        radius_m: u32,
        inactive_after_s: u32,
        server_time_ms: i64,
    },
    Snapshot {
        friends: Friends<'a>,
    },
    Update {
        #[serde(skip_serializing_if = "Friends::is_empty")]
        moved: Friends<'a>,
        #[serde(skip_serializing_if = "Gone::is_empty")]
        left: Gone<'a>,
    },
    Accepted {
        #[serde(rename = "ref")]
        reference: &'a Value,
    },
    Error {
        code: &'a str,
        detail: &'a str,
        #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
        reference: Option<&'a Value>,
    },
    Drain {
        reconnect_after_ms: u64,
    },
}

impl Frame<'_> {
    fn text(&self) -> String {
        serde_json::to_string(self).expect("finite numbers and strings are JSON")
    }
}

/// The first frame.
pub fn welcome(gateway: &GatewayId, session: &str, rules: &Rules, now: TimestampMs) -> String {
    let Rules { radius_m, inactive_after_s } = *rules;
    let (gateway, server_time_ms) = (gateway.as_str(), now.0);
    Frame::Welcome { protocol: PROTOCOL, gateway, session, radius_m, inactive_after_s, server_time_ms }.text()
}

/// A snapshot or an update.
pub fn outgoing(outgoing: &Outgoing, rules: &Rules) -> String {
    frame(outgoing, rules).text()
}

/// The longest head of a WebSocket frame from a server (RFC 6455, 5.2).
const HEAD_BYTES_MAX: usize = 10;
/// The first byte of a frame that is a whole text message.
const WHOLE_TEXT: u8 = 0x81;

/// A WebSocket frame.
pub struct WebSocketFrame<'a> {
    /// All of it.
    pub bytes: &'a [u8],
    /// What it says.
    pub text: &'a [u8],
}

/// The same as a WebSocket's frame, in place of what the buffer holds.
pub fn web_socket<'a>(buffer: &'a mut Vec<u8>, outgoing: &Outgoing, rules: &Rules) -> WebSocketFrame<'a> {
    buffer.clear();
    buffer.extend([0; HEAD_BYTES_MAX]);
    serde_json::to_writer(&mut *buffer, &frame(outgoing, rules)).expect("finite numbers and strings are JSON");
    let length = (buffer.len() - HEAD_BYTES_MAX) as u64;
    let bytes = length.to_be_bytes();
    // The head ends where the text begins.
    let begin = match length {
        0..=125 => {
            buffer[8..10].copy_from_slice(&[WHOLE_TEXT, bytes[7]]);
            8
        }
        126..=0xffff => {
            buffer[6..10].copy_from_slice(&[WHOLE_TEXT, 126, bytes[6], bytes[7]]);
            6
        }
        _ => {
            buffer[..2].copy_from_slice(&[WHOLE_TEXT, 127]);
            buffer[2..10].copy_from_slice(&bytes);
            0
        }
    };
    WebSocketFrame { bytes: &buffer[begin..], text: &buffer[HEAD_BYTES_MAX..] }
}

fn frame<'a>(outgoing: &'a Outgoing, rules: &'a Rules) -> Frame<'a> {
    match outgoing {
        Outgoing::Snapshot(shown) => Frame::Snapshot { friends: Friends(shown, rules) },
        Outgoing::Update { moved, left } => Frame::Update { moved: Friends(moved, rules), left: Gone(left) },
    }
}

/// A client's frame was accepted.
pub fn accepted(reference: &Value) -> String {
    Frame::Accepted { reference }.text()
}

/// A client's frame was refused.
pub fn error(code: &str, detail: &str, reference: Option<&Value>) -> String {
    Frame::Error { code, detail, reference }.text()
}

/// When a client of a draining gateway is to come back.
pub fn reconnect_after_ms() -> u64 {
    rand::rng().random_range(0..RECONNECT_WITHIN_MS)
}

/// The gateway is going away.
pub fn drain(reconnect_after_ms: u64) -> String {
    Frame::Drain { reconnect_after_ms }.text()
}

fn friend((id, shown): &(UserId, Shown), rules: &Rules) -> Friend {
    Friend {
        id: *id,
        lat: f64::from(shown.place.lat_e7) / UNITS_PER_DEGREE,
        lon: f64::from(shown.place.lon_e7) / UNITS_PER_DEGREE,
        distance_m: f64::from(shown.distance_dm) / 10.0,
        updated_at_ms: shown.updated_at.0,
        visible_until_ms: shown.updated_at.plus_ms(i64::from(rules.inactive_after_s) * 1000).0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use nearby_schemas::Place;
    use serde_json::json;

    const RULES: Rules = Rules { radius_m: 8000, inactive_after_s: 600 };

    fn shown() -> Shown {
        let place = Place { lat_e7: 377_701_234, lon_e7: -1_224_101_234 };
        Shown { place, updated_at: TimestampMs(1_700_000_000_000), distance_dm: 12_345 }
    }

    /// What tungstenite makes of it on the other side.
    #[test]
    fn a_frame_of_any_length_is_what_the_text_is() {
        use tokio_tungstenite::tungstenite::protocol::{Role, WebSocket};
        let mut buffer = vec![7; 3];
        let snapshots = [0, 1, 3, 1_000].map(|count| (0..count).map(|id| (UserId(id), shown())).collect());
        let snapshots = snapshots.map(Outgoing::Snapshot);
        // A digit more each, on both sides of the 125 bytes that need no length of their own.
        let gone = |digits| [1, 2, 10_i64.pow(digits)].map(|id| (UserId(id), LeftReason::Distance)).to_vec();
        let updates = (0..19).map(|digits| Outgoing::Update { moved: vec![], left: gone(digits) });
        let mut lengths = Vec::new();
        for message in snapshots.into_iter().chain(updates) {
            let framed = web_socket(&mut buffer, &message, &RULES);
            assert_eq!(framed.text, outgoing(&message, &RULES).as_bytes());
            let mut socket =
                WebSocket::from_raw_socket(std::io::Cursor::new(framed.bytes.to_vec()), Role::Client, None);
            assert_eq!(socket.read().expect("a message").into_data(), framed.text);
            assert_eq!(socket.get_ref().position(), framed.bytes.len() as u64, "nothing is left");
            assert_eq!(framed.bytes.len(), crate::wire::frame_bytes(framed.text.len(), false), "the shortest head");
            lengths.push(framed.text.len());
        }
        assert!([125, 126].iter().all(|length| lengths.contains(length)), "{lengths:?}");
        assert!(lengths.iter().any(|length| *length > 0xffff), "{lengths:?}");
    }

    #[test]
    fn frames_as_clients_see_them() {
        let moved = vec![(UserId(42), shown())];
        let left = vec![(UserId(7), LeftReason::OwnLocation)];
        let gateway = GatewayId::new("g1-abc").expect("legal");
        let frames = [
            welcome(&gateway, "s1", &RULES, TimestampMs(5)),
            outgoing(&Outgoing::Snapshot(vec![]), &RULES),
            outgoing(&Outgoing::Update { moved: moved.clone(), left: left.clone() }, &RULES),
            outgoing(&Outgoing::Update { moved, left: vec![] }, &RULES),
            accepted(&json!("r1")),
            error("bad_json", "not JSON", None),
            error("out_of_range", "lat", Some(&json!(7))),
            drain(250),
        ];
        expect![[r#"
            {"type":"welcome","protocol":1,"gateway":"g1-abc","session":"s1","radius_m":8000,"inactive_after_s":600,"server_time_ms":5}
            {"type":"snapshot","friends":[]}
            {"type":"update","moved":[{"id":"42","lat":37.7701234,"lon":-122.4101234,"distance_m":1234.5,"updated_at_ms":1700000000000,"visible_until_ms":1700000600000}],"left":[{"id":"7","reason":"own_location"}]}
            {"type":"update","moved":[{"id":"42","lat":37.7701234,"lon":-122.4101234,"distance_m":1234.5,"updated_at_ms":1700000000000,"visible_until_ms":1700000600000}]}
            {"type":"accepted","ref":"r1"}
            {"type":"error","code":"bad_json","detail":"not JSON"}
            {"type":"error","code":"out_of_range","detail":"lat","ref":7}
            {"type":"drain","reconnect_after_ms":250}"#]].assert_eq(&frames.join("\n"));
    }
}
