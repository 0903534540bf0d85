//! A roaming geofence: Tile38 tells of everybody who comes near anybody, and one gateway picks out friends.
//!
//! Its fence is a square, so the gateway measures once more, between the two places that it is told. One gateway, because each further one
//! would hear of every pair again.

use super::driver::{Due, Pace, now_us, open_loop};
use super::heard::{Counters, Heard};
use super::loads::{Input, Loads, Workload};
use super::measured::{Gauge, Peer};
use super::redis::Connection;
use super::resp::{Reply, command};
use super::truth::{Count, RADIUS_M};
use crate::workload::Move;
use anyhow::{Context, bail, ensure};
use nearby_e2e::nearby::Nearby;
use nearby_e2e::ports::free_port;
use nearby_e2e::process::{Home, Launch, Tied};
use nearby_schemas::Place;
use nearby_schemas::nearness::{distance_m, to_decimetres};
use std::collections::HashMap;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

const START_LIMIT: Duration = Duration::from_secs(60);
const STILL_LIMIT: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(5);
/// Reports that are sent together; a mark in the channel follows them.
const TOGETHER: usize = 50;
/// Marks that the gateway has not heard yet: so Tile38's buffers stay small.
const MARKS_AHEAD_MAX: u64 = 4;
/// It gets fewer reports than other slow peers, by so much, and a steady rate that it can hold.
pub const SLOWER: usize = 10;
pub const RATE_PER_S: u64 = 50;
const CHANNEL: &[u8] = b"near";
const MARK: &[u8] = b"mark";

/// Settings of the hidden `tile38-gateway`.
#[derive(clap::Args)]
pub struct GatewaySettings {
    #[arg(long)]
    tile38: String,
    #[arg(long)]
    workload: Workload,
    #[command(flatten)]
    input: Input,
    /// Where the counters are
    #[arg(long)]
    listen: String,
}

/// Tile38 and its gateway.
pub struct Tile38 {
    // Ended first.
    gateway: Nearby,
    heard_at: String,
    server: Tied,
    _home: Home,
    setter: Connection,
    marks: u64,
}

impl Tile38 {
    pub fn start(loads: &Loads) -> anyhow::Result<Tile38> {
        let (home, port) = (Home::new("tile38")?, free_port()?.to_string());
        let mut program = Command::new("tile38-server");
        program.args(["-h", "127.0.0.1", "-p", &port, "--appendonly", "no", "-d"]).arg(home.path());
        let launch = Launch { command: program, user: None, home: &home, last_signal: "KILL" };
        let mut server = Tied::start(launch).context("starting tile38-server, which has to be on the PATH")?;
        let (address, begun) = (format!("127.0.0.1:{port}"), Instant::now());
        let mut setter = loop {
            server.check_running()?;
            match Connection::open(&address) {
                Ok(connection) => break connection,
                Err(error) => ensure!(begun.elapsed() < START_LIMIT, error),
            }
            std::thread::sleep(POLL);
        };
        let moves: Vec<Due> = (0..).zip(&loads.places).map(|(user, place)| ((user, *place), 0)).collect();
        moves.chunks(TOGETHER).try_for_each(|together| set(&mut setter, together))?;
        // Of all who are in `people`, any two within the radius of each other.
        let (radius_m, mut out) = (format!("{RADIUS_M}"), Vec::new());
        let fence: [&[u8]; 6] = [b"people", b"FENCE", b"ROAM", b"people", b"*", radius_m.as_bytes()];
        command(&mut out, &[&[b"SETCHAN", CHANNEL, b"NEARBY"], &fence[..]].concat());
        setter.send(&out)?;
        number(&mut setter)?;
        let listen = format!("127.0.0.1:{}", free_port()?);
        let input = loads.input.arguments(loads.workload);
        let mut arguments = vec!["tile38-gateway", "--tile38", &address, "--listen", &listen];
        arguments.extend(input.iter().map(String::as_str));
        let mut gateway = Nearby::start_program(&std::env::current_exe()?, &arguments, &[])?;
        gateway.wait_line("ready", START_LIMIT)?;
        Ok(Tile38 { gateway, heard_at: listen, server, _home: home, setter, marks: 0 })
    }

    fn report(&mut self, moves: &[Due]) -> anyhow::Result<()> {
        set(&mut self.setter, moves)?;
        let mut out = Vec::new();
        command(&mut out, &[b"PUBLISH", CHANNEL, MARK]);
        self.setter.send(&out)?;
        number(&mut self.setter)?;
        self.marks += 1;
        Ok(())
    }

    fn wait_until_ahead(&self, marks_max: u64) -> anyhow::Result<()> {
        let begun = Instant::now();
        while self.marks - Heard::at(&self.heard_at)?.heard > marks_max {
            ensure!(begun.elapsed() < STILL_LIMIT, "the gateway does not hear: {}", self.gateway.stderr());
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}

/// Sets where they are, and hears that it was done.
fn set(setter: &mut Connection, moves: &[Due]) -> anyhow::Result<()> {
    let mut out = Vec::new();
    for ((user, place), due_us) in moves {
        let degrees = |e7: i32| format!("{:.7}", f64::from(e7) / 1e7);
        let (id, lat, lon) = (user.to_string(), degrees(place.lat_e7), degrees(place.lon_e7));
        let (due, point) = (due_us.to_string(), [&b"POINT"[..], lat.as_bytes(), lon.as_bytes()]);
        let field = [&b"FIELD"[..], b"due", due.as_bytes()];
        command(&mut out, &[&[&b"SET"[..], b"people", id.as_bytes()], &field[..], &point[..]].concat());
    }
    setter.send(&out)?;
    for _ in moves {
        setter.next(|reply| match reply {
            Reply::Status(b"OK") => Ok(()),
            other => bail!("Tile38 answered {other:?}"),
        })?;
    }
    Ok(())
}

fn number(setter: &mut Connection) -> anyhow::Result<i64> {
    setter.next(|reply| match reply {
        Reply::Integer(number) => Ok(number),
        other => bail!("Tile38 answered {other:?}"),
    })
}

impl Peer for Tile38 {
    fn drive(&mut self, moves: &[Move], pace: Pace) -> anyhow::Result<Duration> {
        match pace {
            Pace::Fastest => {
                for together in moves.chunks(TOGETHER) {
                    let together: Vec<Due> = together.iter().map(|made| (*made, 0)).collect();
                    self.report(&together)?;
                    self.wait_until_ahead(MARKS_AHEAD_MAX)?;
                }
            }
            Pace::PerSecond(rate) => open_loop(moves, rate, |due| self.report(due))?,
        }
        self.wait_until_ahead(0)?;
        Ok(Duration::ZERO)
    }

    fn heard(&mut self) -> anyhow::Result<Heard> {
        Heard::at(&self.heard_at)
    }

    /// Each mark has been waited for, and what was told before it is told.
    fn quiet(&self) -> Duration {
        Duration::ZERO
    }

    fn heard_at(&self) -> &str {
        &self.heard_at
    }

    fn gauges(&self) -> anyhow::Result<Vec<Gauge>> {
        Ok(vec![Gauge::of("tile38-server", self.server.pid())?, Gauge::of("gateway", self.gateway.pid())?])
    }
}

/// The gateway until it is killed.
pub fn gateway(settings: &GatewaySettings) -> anyhow::Result<()> {
    let loads = Loads::new(settings.workload, &settings.input)?;
    let mut pairs = Pairs::new(&loads.places, &loads.friends);
    drop(loads);
    let (mut connection, mut out) = (Connection::open(&settings.tile38)?, Vec::new());
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
