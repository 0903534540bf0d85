//! The textbook design: Redis, a channel a user, and gateways that subscribe for their viewers' friends and decide themselves.
//!
//! The gateways are the threads of one process, each with a connection and a table of its own. (Processes of their own would
//! only add their memory.) They subscribe for their viewers too, and so hear from Redis, in its order, where these are.

use super::driver::{Due, Pace, now_us, open_loop};
use super::heard::{Counters, Heard};
use super::loads::{Input, Loads, Workload};
use super::measured::{Gauge, Peer};
use super::resp::{Reply, command, reply};
use super::table::Table;
use crate::workload::{Move, user_id};
use anyhow::{Context, bail, ensure};
use nearby_e2e::nearby::Nearby;
use nearby_e2e::ports::free_port;
use nearby_e2e::process::{Home, Launch, Tied};
use nearby_schemas::Place;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// A million users with 400 friends each take minutes.
const START_LIMIT: Duration = Duration::from_secs(300);
const STILL_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);
const CHANNELS_AT_ONCE: usize = 1_000;
/// Publications that are sent together.
const TOGETHER: usize = 500;
/// Deliveries that may be under way: so Redis' buffers stay small.
const DELIVERIES_AHEAD_MAX: u64 = 200_000;
/// Of a connection; a reply is far smaller.
const BUFFER_BYTES: usize = 256 * 1024;

/// Settings of the hidden `redis-gateways`.
#[derive(clap::Args)]
pub struct GatewaySettings {
    #[arg(long)]
    redis: String,
    #[arg(long)]
    gateways: usize,
    #[arg(long)]
    workload: Workload,
    #[command(flatten)]
    input: Input,
    /// Where the counters are
    #[arg(long)]
    listen: String,
}

/// Redis and its gateways.
pub struct Redis {
    // Ended first.
    gateways: Nearby,
    heard_at: String,
    server: Tied,
    _home: Home,
    publisher: Connection,
    /// Deliveries that Redis has made.
    delivered: u64,
}

impl Redis {
    pub fn start(loads: &Loads, gateways: usize) -> anyhow::Result<Redis> {
        let (home, port) = (Home::new("redis")?, free_port()?.to_string());
        let mut program = Command::new("redis-server");
        program.args(["--bind", "127.0.0.1", "--port", &port, "--save", "", "--appendonly", "no"]);
        // A subscriber that is behind is waited for, not closed: the driver sees to it that none is far.
        program.args(["--client-output-buffer-limit", "pubsub", "0", "0", "0"]);
        let launch = Launch { command: program, user: None, home: &home, last_signal: "KILL" };
        let mut server = Tied::start(launch).context("redis-server: bench/setup.sh installs it")?;
        let (address, begun) = (format!("127.0.0.1:{port}"), Instant::now());
        let publisher = loop {
            server.check_running()?;
            match Connection::open(&address) {
                Ok(connection) => break connection,
                Err(error) => ensure!(begun.elapsed() < START_LIMIT, error),
            }
            std::thread::sleep(POLL);
        };
        let (listen, gateways) = (format!("127.0.0.1:{}", free_port()?), gateways.to_string());
        let input = loads.input.arguments(loads.workload);
        let mut arguments = vec!["redis-gateways", "--redis", &address, "--listen", &listen, "--gateways", &gateways];
        arguments.extend(input.iter().map(String::as_str));
        let mut gateways = Nearby::start_program(&std::env::current_exe()?, &arguments, &[])?;
        gateways.wait_line("ready", START_LIMIT)?;
        Ok(Redis { gateways, heard_at: listen, server, _home: home, publisher, delivered: 0 })
    }

    /// Publishes, and hears how many Redis delivers these to.
    fn publish(&mut self, moves: &[Due]) -> anyhow::Result<()> {
        let mut out = Vec::with_capacity(moves.len() * 80);
        for ((user, place), due_us) in moves {
            let channel = user_id(*user).to_string();
            command(&mut out, &[b"PUBLISH", channel.as_bytes(), &payload(*place, *due_us)]);
        }
        self.publisher.send(&out)?;
        for _ in moves {
            self.delivered += self.publisher.next(|reply| match reply {
                Reply::Integer(count) => Ok(count.cast_unsigned()),
                other => bail!("Redis answered {other:?}"),
            })?;
        }
        Ok(())
    }

    fn wait_until_ahead(&self, deliveries_max: u64) -> anyhow::Result<()> {
        let begun = Instant::now();
        while self.delivered - Heard::at(&self.heard_at)?.heard > deliveries_max {
            ensure!(begun.elapsed() < STILL_LIMIT, "the gateways do not hear: {}", self.gateways.stderr());
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}

impl Peer for Redis {
    fn drive(&mut self, moves: &[Move], pace: Pace) -> anyhow::Result<Duration> {
        match pace {
            Pace::Fastest => {
                for together in moves.chunks(TOGETHER) {
                    let together: Vec<Due> = together.iter().map(|made| (*made, 0)).collect();
                    self.publish(&together)?;
                    self.wait_until_ahead(DELIVERIES_AHEAD_MAX)?;
                }
            }
            Pace::PerSecond(rate) => open_loop(moves, rate, |due| self.publish(due))?,
        }
        self.wait_until_ahead(0)?;
        Ok(Duration::ZERO)
    }

    fn heard(&mut self) -> anyhow::Result<Heard> {
        Heard::at(&self.heard_at)
    }

    /// Each delivery has been waited for.
    fn quiet(&self) -> Duration {
        Duration::ZERO
    }

    fn heard_at(&self) -> &str {
        &self.heard_at
    }

    fn gauges(&self) -> anyhow::Result<Vec<Gauge>> {
        Ok(vec![Gauge::of("redis-server", self.server.pid())?, Gauge::of("gateways", self.gateways.pid())?])
    }
}

/// Gateways until they are killed.
pub fn gateways(settings: &GatewaySettings) -> anyhow::Result<()> {
    let loads = Arc::new(Loads::new(settings.workload, &settings.input)?);
    let counters = Arc::new(Counters::default());
    let (sender, ended) = mpsc::channel();
    let (subscribed, all_subscribed) = mpsc::channel();
    for gateway in 0..settings.gateways {
        let (loads, gateways) = (Arc::clone(&loads), settings.gateways);
        let connection = Connection::open(&settings.redis)?;
        let (counters, sender, subscribed) = (Arc::clone(&counters), sender.clone(), subscribed.clone());
        std::thread::spawn(move || {
            let table = Table::new(&loads.places, &loads.friends, gateway, gateways);
            drop(loads);
            // Nobody waits for the second that ends.
            drop(sender.send(hear(table, connection, &counters, &subscribed)));
        });
    }
    drop(loads);
    for _ in 0..settings.gateways {
        all_subscribed.recv_timeout(START_LIMIT).context("subscribing")?;
    }
    counters.serve(&settings.listen)?;
    println!("ready");
    ended.recv()?
}

/// One gateway.
fn hear(
    mut table: Table,
    mut connection: Connection,
    counters: &Counters,
    subscribed: &mpsc::Sender<()>,
) -> anyhow::Result<()> {
    let channels: Vec<String> = table.users().map(|user| user.to_string()).collect();
    for some in channels.chunks(CHANNELS_AT_ONCE) {
        let mut out = Vec::new();
        let parts: Vec<&[u8]> = std::iter::once(&b"SUBSCRIBE"[..]).chain(some.iter().map(String::as_bytes)).collect();
        command(&mut out, &parts);
        connection.send(&out)?;
        for _ in some {
            connection.next(|reply| match reply {
                Reply::Push([b"subscribe", ..]) => Ok(()),
                other => bail!("Redis answered {other:?}"),
            })?;
        }
    }
    subscribed.send(())?;
    let mut latencies_us = Vec::new();
    loop {
        let (mut heard, mut told) = (0, super::truth::Count::default());
        connection.each(|reply| {
            let Reply::Push([_, channel, payload]) = reply else { bail!("Redis said {reply:?}") };
            let (user, (place, due_us)) = (std::str::from_utf8(channel)?.parse()?, read_payload(payload)?);
            let now_told = table.hear(user, place);
            if due_us > 0 && now_told.notifications() > 0 {
                latencies_us.push((now_us() - due_us).max(0).cast_unsigned());
            }
            told += now_told;
            heard += 1;
            Ok(())
        })?;
        counters.add(heard, told, &mut latencies_us);
    }
}

/// A connection to whoever speaks Redis' protocol, and what was read of it: `buffer[used..read]` is not yet taken.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    used: usize,
    read: usize,
}

impl Connection {
    pub fn open(address: &str) -> anyhow::Result<Connection> {
        let stream = TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream, buffer: vec![0; BUFFER_BYTES], used: 0, read: 0 })
    }

    pub fn send(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        Ok(self.stream.write_all(bytes)?)
    }

    /// The next reply.
    pub fn next<T>(&mut self, act: impl Fn(Reply<'_>) -> anyhow::Result<T>) -> anyhow::Result<T> {
        loop {
            if let Some((found, length)) = reply(&self.buffer[self.used..self.read])? {
                self.used += length;
                return act(found);
            }
            self.more()?;
        }
    }

    /// Waits until more is there, and takes all of it.
    pub fn each(&mut self, mut act: impl FnMut(Reply<'_>) -> anyhow::Result<()>) -> anyhow::Result<()> {
        self.more()?;
        while let Some((found, length)) = reply(&self.buffer[self.used..self.read])? {
            act(found)?;
            self.used += length;
        }
        Ok(())
    }

    fn more(&mut self) -> anyhow::Result<()> {
        self.buffer.copy_within(self.used..self.read, 0);
        self.read -= std::mem::take(&mut self.used);
        let more = self.stream.read(&mut self.buffer[self.read..])?;
        ensure!(more > 0, "the server closed the connection");
        self.read += more;
        Ok(())
    }
}

/// Fixed and small, which favours this peer: latitude, longitude, when it was due (0: nobody asks).
fn payload(place: Place, due_us: i64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&place.lat_e7.to_le_bytes());
    bytes[4..8].copy_from_slice(&place.lon_e7.to_le_bytes());
    bytes[8..].copy_from_slice(&due_us.to_le_bytes());
    bytes
}

fn read_payload(bytes: &[u8]) -> anyhow::Result<(Place, i64)> {
    let bytes: &[u8; 16] = bytes.try_into().context("a payload of 16 bytes")?;
    let (lat, rest) = bytes.split_at(4);
    let (lon, due) = rest.split_at(4);
    let place = Place { lat_e7: i32::from_le_bytes(lat.try_into()?), lon_e7: i32::from_le_bytes(lon.try_into()?) };
    Ok((place, i64::from_le_bytes(due.try_into()?)))
}
