//! A roaming geofence: Tile38 tells of everybody who comes near anybody, and one gateway picks out friends.
//!
//! Its fence is a square, so the gateway measures once more, between the two places that it is told. One gateway, because each further one
//! would hear of every pair again.

use super::driver::{Due, now_us};
use super::fed::{Connection, Fed, Feed, Server};
use super::heard::Counters;
use super::loads::{Input, Loads, Workload};
use super::resp::{Reply, command};
use super::truth::{Count, RADIUS_M};
use anyhow::{Context, bail};
use nearby_schemas::Place;
use nearby_schemas::nearness::{distance_m, to_decimetres};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

const START_LIMIT: Duration = Duration::from_secs(60);
const STILL_LIMIT: Duration = Duration::from_secs(300);
/// Reports that are sent together; a mark in the channel follows them.
const TOGETHER: usize = 50;
/// Marks that the gateway has not heard yet: so Tile38's buffers stay small.
const MARKS_AHEAD_MAX: u64 = 4;
/// It gets fewer reports than other slow peers, by so much, and a steady rate that it can hold.
pub const SLOWER: usize = 25;
pub const RATE_PER_S: u64 = 50;
const CHANNEL: &[u8] = b"near";
const MARK: &[u8] = b"mark";

/// Settings of the hidden `tile38-gateway`.
#[derive(clap::Args)]
pub struct GatewaySettings {
    #[arg(long)]
    server: String,
    #[arg(long)]
    workload: Workload,
    #[command(flatten)]
    input: Input,
    /// Where the counters are
    #[arg(long)]
    listen: String,
}

/// Tile38 and its gateway.
pub fn start(loads: &Loads) -> anyhow::Result<Fed> {
    let mut server = Server::start("tile38-server", |command, port, home| {
        command.args(["-h", "127.0.0.1", "-p", port, "--appendonly", "no", "-d"]).arg(home.path());
    })?;
    let connection = &mut server.connection;
    let moves: Vec<Due> = (0..).zip(&loads.places).map(|(user, place)| ((user, *place), 0)).collect();
    moves.chunks(TOGETHER).try_for_each(|together| set(connection, together))?;
    // Of all who are in `people`, any two within the radius of each other.
    let (radius_m, mut out) = (format!("{RADIUS_M}"), Vec::new());
    let fence: [&[u8]; 6] = [b"people", b"FENCE", b"ROAM", b"people", b"*", radius_m.as_bytes()];
    command(&mut out, &[&[b"SETCHAN", CHANNEL, b"NEARBY"], &fence[..]].concat());
    connection.send(&out)?;
    connection.number()?;
    let feed = Feed {
        together: TOGETHER,
        ahead_max: MARKS_AHEAD_MAX,
        send: report,
        start_limit: START_LIMIT,
        still_limit: STILL_LIMIT,
    };
    Fed::start((server, feed), loads, ("gateway", &["tile38-gateway"]))
}

/// Sets where they are; one mark follows.
fn report(connection: &mut Connection, moves: &[Due]) -> anyhow::Result<u64> {
    set(connection, moves)?;
    let mut out = Vec::new();
    command(&mut out, &[b"PUBLISH", CHANNEL, MARK]);
    connection.send(&out)?;
    connection.number()?;
    Ok(1)
}

/// Sets where they are, and hears that it was done.
fn set(connection: &mut Connection, moves: &[Due]) -> anyhow::Result<()> {
    let mut out = Vec::new();
    for ((user, place), due_us) in moves {
        let degrees = |e7: i32| format!("{:.7}", f64::from(e7) / 1e7);
        let (id, lat, lon) = (user.to_string(), degrees(place.lat_e7), degrees(place.lon_e7));
        let (due, point) = (due_us.to_string(), [&b"POINT"[..], lat.as_bytes(), lon.as_bytes()]);
        let field = [&b"FIELD"[..], b"due", due.as_bytes()];
        command(&mut out, &[&[&b"SET"[..], b"people", id.as_bytes()], &field[..], &point[..]].concat());
    }
    connection.send(&out)?;
    for _ in moves {
        connection.next(|reply| match reply {
            Reply::Status(b"OK") => Ok(()),
            other => bail!("Tile38 answered {other:?}"),
        })?;
    }
    Ok(())
}

/// The gateway until it is killed.
pub fn gateway(settings: &GatewaySettings) -> anyhow::Result<()> {
    let loads = Loads::new(settings.workload, &settings.input)?;
    let mut pairs = Pairs::new(&loads.places, &loads.friends);
    drop(loads);
    let (mut connection, mut out) = (Connection::open(&settings.server)?, Vec::new());
    command(&mut out, &[b"SUBSCRIBE", CHANNEL]);
    connection.send(&out)?;
    connection.next(|reply| match reply {
        Reply::Push([b"subscribe", ..]) => Ok(()),
        other => bail!("Tile38 answered {other:?}"),
    })?;
    let counters = Arc::new(Counters::default());
    counters.serve(&settings.listen)?;
    println!("ready");
    let mut latencies_us = Vec::new();
    loop {
        let (mut heard, mut told) = (0, Count::default());
        connection.each(|reply| {
            let Reply::Push([_, _, payload]) = reply else { bail!("Tile38 said {reply:?}") };
            if payload == MARK {
                heard += 1;
                return Ok(());
            }
            let message = Message::read(payload).with_context(|| String::from_utf8_lossy(payload).into_owned())?;
            let now_told = pairs.hear(&message);
            if message.due_us > 0 && now_told.notifications() > 0 {
                latencies_us.push((now_us() - message.due_us).max(0).cast_unsigned());
            }
            told += now_told;
            Ok(())
        })?;
        counters.add(heard, told, &mut latencies_us);
    }
}

/// That somebody who moved is in somebody's square, or no longer.
#[derive(Debug, PartialEq)]
struct Message {
    mover: u32,
    other: u32,
    distance_m: f64,
    /// In the square.
    is_nearby: bool,
    /// 0: nobody asks.
    due_us: i64,
}

impl Message {
    /// Out of the JSON, of which the order is always the same: parsing all of it would take longer.
    fn read(json: &[u8]) -> Option<Message> {
        let json = std::str::from_utf8(json).ok()?;
        let (_, rest) = json.split_once("\"id\":\"")?;
        let (mover, rest) = rest.split_once('"')?;
        let (about_mover, rest) = rest.split_once(":{\"key\":")?;
        let (_, rest) = rest.split_once("\"id\":\"")?;
        let (other, about_other) = rest.split_once('"')?;
        let due = |text: &str| text.split(['}', ',']).next()?.parse::<f64>().ok();
        let due_us = about_mover.split_once("\"due\":").map_or(Some(0.0), |(_, text)| due(text))?;
        Some(Message {
            mover: mover.parse().ok()?,
            other: other.parse().ok()?,
            distance_m: distance_m(place(about_mover)?, place(about_other)?),
            is_nearby: about_mover.ends_with("\"nearby\""),
            due_us: due_us as i64,
        })
    }
}

/// Where somebody is, out of a GeoJSON point.
fn place(json: &str) -> Option<Place> {
    let (_, rest) = json.split_once("\"coordinates\":[")?;
    let (lon, lat) = rest.split(']').next()?.split_once(',')?;
    Place::from_degrees(lat.parse().ok()?, lon.parse().ok()?).ok()
}

/// Who is a friend of whom, in both directions, and whether they are near each other. Pure.
struct Pairs {
    friends: HashMap<(u32, u32), bool>,
}

impl Pairs {
    fn new(places: &[Place], friends: &[Vec<u32>]) -> Pairs {
        let pairs = (0..).zip(friends).flat_map(|(user, list)| list.iter().map(move |friend| (user, *friend)));
        let is_near = |user: u32, friend: u32| distance_m(places[user as usize], places[friend as usize]) <= RADIUS_M;
        let pairs = pairs.filter(|(user, friend)| user < friend);
        Pairs { friends: pairs.map(|(user, friend)| ((user, friend), is_near(user, friend))).collect() }
    }

    /// What the two are told.
    fn hear(&mut self, message: &Message) -> Count {
        let (first, second) = (message.mover.min(message.other), message.mover.max(message.other));
        let mut count = Count::default();
        let Some(was_near) = self.friends.get_mut(&(first, second)) else { return count };
        let is_near = message.is_nearby && message.distance_m <= RADIUS_M;
        if is_near {
            // The one who moved is told, too, if they were apart.
            let told = if *was_near { 1 } else { 2 };
            (0..told).for_each(|_| count.show(to_decimetres(message.distance_m)));
        } else if *was_near {
            count.left += 2;
        }
        *was_near = is_near;
        count
    }
}

#[cfg(test)]
mod tests {
    use super::super::truth::Truth;
    use super::*;
    use crate::workload::World;

    /// As a Tile38 of 2026 sends them.
    #[test]
    fn a_message_is_read_with_and_without_a_time() {
        let start = r#"{"command":"set","group":"6b0ce4d0686c820337ce825c","detect":"roam","hook":"near","key":"people","time":"2026-11-30T02:52:00.086054418Z","id":"2","object":{"type":"Point","coordinates":[-73.9,40.72]}"#;
        let other =
            r#"{"key":"people","id":"1","object":{"type":"Point","coordinates":[-73.9,40.7]},"meters":2223.898}}"#;
        let distance_m = distance_m(at(40.72), at(40.7));
        assert!((distance_m - 2_223.9).abs() < 0.1);
        let nearby = Message { mover: 2, other: 1, distance_m, is_nearby: true, due_us: 1_764_471_600_000_001 };
        let with_time = format!(r#"{start},"fields":{{"due":1764471600000001}},"nearby":{other}"#);
        assert_eq!(Message::read(with_time.as_bytes()).as_ref(), Some(&nearby));
        let left = format!(r#"{start},"faraway":{other}"#);
        assert_eq!(Message::read(left.as_bytes()), Some(Message { is_nearby: false, due_us: 0, ..nearby }));
        assert_eq!(Message::read(b"mark"), None);
    }

    fn at(lat: f64) -> Place {
        Place::from_degrees(lat, -73.9).expect("on the globe")
    }

    /// As Tile38 tells: of whoever is in the square around the new place, and of whoever was in that around the old one.
    #[test]
    fn of_squares_and_strangers_remain_friends_in_the_radius() {
        let mut world = World::new(200, 4);
        let friends = Arc::new(world.friendships(20));
        let mut places = world.places.clone();
        let (mut truth, mut pairs) = (Truth::new(places.clone(), Arc::clone(&friends)), Pairs::new(&places, &friends));
        let (mut told, mut expected) = (Count::default(), Count::default());
        // As good as a square: it is larger than the circle.
        let is_in_square = |a: Place, b: Place| distance_m(a, b) <= 1.4 * RADIUS_M;
        for _ in 0..5 {
            let moves = world.round();
            expected += truth.count(&moves);
            for (mover, new) in moves {
                let old = std::mem::replace(&mut places[mover as usize], new);
                for other in (0..200).filter(|other| *other != mover) {
                    let place = places[other as usize];
                    let is_nearby = is_in_square(new, place);
                    if is_nearby || is_in_square(old, place) {
                        told += pairs.hear(&Message {
                            mover,
                            other,
                            distance_m: distance_m(new, place),
                            is_nearby,
                            due_us: 0,
                        });
                    }
                }
            }
        }
        assert_eq!(told, expected);
        assert!(told.left > 0, "nobody left: no test");
    }
}
