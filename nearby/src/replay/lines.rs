//! What viewers were told, as lines of JSON: one for each viewer and thing told, in the order of the batches. Pure.
//!
//! Moves and leaves of one friend that a batch tells to several viewers become as many lines: how things were packed may
//! differ between versions, and a line is what `diff` and `grep` understand.

use nearby_schemas::batch::{Event, FriendMovedBatch};
use nearby_schemas::nearness::UNITS_PER_DEGREE;
use nearby_schemas::{GatewayId, TimestampMs, UserId};
use std::fmt::Write;

/// Appends the lines of a batch.
pub fn write_lines(gateway: &GatewayId, batch: &FriendMovedBatch, out: &mut String) {
    let lines = Lines { gateway, emitted_at: batch.emitted_at };
    for event in batch.sections.iter().flat_map(|section| &section.events) {
        lines.event(event, out);
    }
}

struct Lines<'a> {
    gateway: &'a GatewayId,
    emitted_at: TimestampMs,
}

impl Lines<'_> {
    fn event(&self, event: &Event, out: &mut String) {
        match event {
            Event::FriendMoved(moved) => {
                for told in &moved.viewers {
                    self.begin(told.viewer, "moved", out);
                    put(out, format_args!(r#","friend":"{}""#, moved.friend));
                    place(moved.lat_e7, moved.lon_e7, out);
                    seen(moved.updated_at, told.distance_dm, out);
                    out.push_str("}\n");
                }
            }
            Event::FriendLeft(left) => {
                for viewer in &left.viewers {
                    self.begin(*viewer, "left", out);
                    let (friend, reason) = (left.friend, left.reason.as_str());
                    put(out, format_args!(r#","friend":"{friend}","reason":"{reason}"}}"#));
                    out.push('\n');
                }
            }
            Event::ViewerMoved(moved) => {
                self.begin(moved.viewer, "viewer_moved", out);
                place(moved.lat_e7, moved.lon_e7, out);
                out.push_str("}\n");
            }
            Event::ViewerSnapshot(snapshot) => {
                self.begin(snapshot.viewer, "snapshot", out);
                if let Some(at) = snapshot.place {
                    place(at.lat_e7, at.lon_e7, out);
                }
                out.push_str(r#","friends":["#);
                for (index, friend) in snapshot.friends.iter().enumerate() {
                    let comma = if index == 0 { "" } else { "," };
                    put(out, format_args!(r#"{comma}{{"friend":"{}""#, friend.friend));
                    place(friend.lat_e7, friend.lon_e7, out);
                    seen(friend.updated_at, friend.distance_dm, out);
                    out.push('}');
                }
                out.push_str("]}\n");
            }
        }
    }

    /// The name of a gateway has no character that JSON would escape.
    fn begin(&self, viewer: UserId, r#type: &str, out: &mut String) {
        let (emitted_at, gateway) = (self.emitted_at.0, self.gateway);
        put(
            out,
            format_args!(r#"{{"emitted_at":{emitted_at},"gateway":"{gateway}","viewer":"{viewer}","type":"{type}""#),
        );
    }
}

fn place(lat_e7: i32, lon_e7: i32, out: &mut String) {
    let degrees = |units: i32| f64::from(units) / UNITS_PER_DEGREE;
    put(out, format_args!(r#","lat":{},"lon":{}"#, degrees(lat_e7), degrees(lon_e7)));
}

fn seen(updated_at: TimestampMs, distance_dm: i32, out: &mut String) {
    put(out, format_args!(r#","updated_at":{},"distance_m":{}"#, updated_at.0, f64::from(distance_dm) / 10.0));
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a string takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearby_schemas::batch::{FriendLeft, FriendMoved, LeftReason, Section, SeenFriend};
    use nearby_schemas::batch::{ViewerDistance, ViewerMoved, ViewerSnapshot};
    use nearby_schemas::{Epoch, Place};

    #[test]
    fn a_line_for_each_viewer_and_thing_told() {
        let (friend, updated_at) = (UserId(9), TimestampMs(5));
        let told = |viewer, distance_dm| ViewerDistance { viewer: UserId(viewer), distance_dm };
        let seen =
            |friend| SeenFriend { friend: UserId(friend), lat_e7: 1, lon_e7: -20_000_000, updated_at, distance_dm: 0 };
        let place = Some(Place { lat_e7: 407_484_000, lon_e7: 0 });
        let events = vec![
            Event::FriendMoved(FriendMoved {
                friend,
                lat_e7: 407_484_000,
                lon_e7: -739_857_001,
                updated_at,
                viewers: vec![told(1, 10_676), told(2, 10)],
            }),
            Event::FriendLeft(FriendLeft { friend, reason: LeftReason::Inactive, viewers: vec![UserId(1)] }),
            Event::ViewerMoved(ViewerMoved { viewer: UserId::MAX, lat_e7: -1, lon_e7: 10_000_000 }),
            Event::ViewerSnapshot(ViewerSnapshot { viewer: UserId(3), place, friends: vec![seen(4), seen(5)] }),
            Event::ViewerSnapshot(ViewerSnapshot { viewer: UserId(3), place: None, friends: vec![] }),
        ];
        let sections = vec![Section { partition: 0, epoch: Epoch(1), events }];
        let mut text = String::new();
        let gateway = GatewayId::new("g1-a").expect("legal");
        write_lines(&gateway, &FriendMovedBatch { emitted_at: TimestampMs(7), sections }, &mut text);
        for line in text.lines() {
            serde_json::from_str::<serde_json::Value>(line).expect("JSON");
        }
        expect_test::expect![[r#"
            {"emitted_at":7,"gateway":"g1-a","viewer":"1","type":"moved","friend":"9","lat":40.7484,"lon":-73.9857001,"updated_at":5,"distance_m":1067.6}
            {"emitted_at":7,"gateway":"g1-a","viewer":"2","type":"moved","friend":"9","lat":40.7484,"lon":-73.9857001,"updated_at":5,"distance_m":1}
            {"emitted_at":7,"gateway":"g1-a","viewer":"1","type":"left","friend":"9","reason":"inactive"}
            {"emitted_at":7,"gateway":"g1-a","viewer":"9223372036854775807","type":"viewer_moved","lat":-0.0000001,"lon":1}
            {"emitted_at":7,"gateway":"g1-a","viewer":"3","type":"snapshot","lat":40.7484,"lon":0,"friends":[{"friend":"4","lat":0.0000001,"lon":-2,"updated_at":5,"distance_m":0},{"friend":"5","lat":0.0000001,"lon":-2,"updated_at":5,"distance_m":0}]}
            {"emitted_at":7,"gateway":"g1-a","viewer":"3","type":"snapshot","friends":[]}
        "#]].assert_eq(&text);
    }
}
