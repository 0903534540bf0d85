//! Frames of client protocol 1 as JSON text.

use crate::delivery::{Outgoing, Shown};
use nearby_schemas::batch::LeftReason;
use nearby_schemas::nearness::UNITS_PER_DEGREE;
use nearby_schemas::{GatewayId, TimestampMs, UserId};
use rand::RngExt;
use serde::Serialize;
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
    id: String,
    lat: f64,
    lon: f64,
    distance_m: f64,
    updated_at_ms: i64,
    visible_until_ms: i64,
}

#[derive(Serialize)]
struct Left {
    id: String,
    reason: &'static str,
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
        friends: Vec<Friend>,
    },
    Update {
        #[serde(skip_serializing_if = "Vec::is_empty")]
        moved: Vec<Friend>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        left: Vec<Left>,
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
    let friends = |shown: &[(UserId, Shown)]| shown.iter().map(|entry| friend(entry, rules)).collect();
    match outgoing {
        Outgoing::Snapshot(shown) => Frame::Snapshot { friends: friends(shown) },
        Outgoing::Update { moved, left } => {
            Frame::Update { moved: friends(moved), left: left.iter().map(gone).collect() }
        }
    }
    .text()
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
        id: id.to_string(),
        lat: f64::from(shown.place.lat_e7) / UNITS_PER_DEGREE,
        lon: f64::from(shown.place.lon_e7) / UNITS_PER_DEGREE,
        distance_m: f64::from(shown.distance_dm) / 10.0,
        updated_at_ms: shown.updated_at.0,
        visible_until_ms: shown.updated_at.plus_ms(i64::from(rules.inactive_after_s) * 1000).0,
    }
}

fn gone((id, reason): &(UserId, LeftReason)) -> Left {
    Left { id: id.to_string(), reason: reason.as_str() }
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
