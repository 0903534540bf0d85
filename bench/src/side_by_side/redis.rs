//! The textbook design: Redis, a channel a user, and gateways that subscribe for their viewers' friends and decide themselves.
//!
//! The gateways are the threads of one process, each with a connection and a table of its own. (Processes of their own would
//! only add their memory.) They subscribe for their viewers too, and so hear from Redis, in its order, where these are.

use super::driver::{Due, now_us};
use super::fed::{Connection, Fed, Feed, Server};
use super::heard::Counters;
use super::loads::{Input, Loads, Workload};
use super::resp::{Reply, command};
use super::table::Table;
use crate::workload::user_id;
use anyhow::{Context, bail};
use nearby_schemas::Place;
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// A million users with 400 friends each take minutes.
const START_LIMIT: Duration = Duration::from_secs(300);
const STILL_LIMIT: Duration = Duration::from_secs(60);
const CHANNELS_AT_ONCE: usize = 1_000;
/// Publications that are sent together.
const TOGETHER: usize = 500;
/// Deliveries that may be under way: so Redis' buffers stay small.
const DELIVERIES_AHEAD_MAX: u64 = 200_000;

/// Settings of the hidden `redis-gateways`.
#[derive(clap::Args)]
pub struct GatewaySettings {
    #[arg(long)]
    server: String,
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
pub fn start(loads: &Loads, gateways: usize) -> anyhow::Result<Fed> {
    let server = Server::start("redis-server", |command, port, _| {
        command.args(["--bind", "127.0.0.1", "--port", port, "--save", "", "--appendonly", "no"]);
        // A subscriber that is behind is waited for, not closed: the driver sees to it that none is far.
        command.args(["--client-output-buffer-limit", "pubsub", "0", "0", "0"]);
    });
    let feed = Feed {
        together: TOGETHER,
        ahead_max: DELIVERIES_AHEAD_MAX,
        send: publish,
        start_limit: START_LIMIT,
        still_limit: STILL_LIMIT,
    };
    let subcommand = ["redis-gateways", "--gateways", &gateways.to_string()];
    Fed::start((server.context("bench/setup.sh installs it")?, feed), loads, ("gateways", &subcommand))
}

/// Publishes, and hears how many Redis delivers these to.
fn publish(connection: &mut Connection, moves: &[Due]) -> anyhow::Result<u64> {
    let mut out = Vec::with_capacity(moves.len() * 80);
    for ((user, place), due_us) in moves {
        let channel = user_id(*user).to_string();
        command(&mut out, &[b"PUBLISH", channel.as_bytes(), &payload(*place, *due_us)]);
    }
    connection.send(&out)?;
    moves.iter().map(|_| connection.number()).sum()
}

/// Gateways until they are killed.
pub fn gateways(settings: &GatewaySettings) -> anyhow::Result<()> {
    let loads = Arc::new(Loads::new(settings.workload, &settings.input)?);
    let counters = Arc::new(Counters::default());
    let (sender, ended) = mpsc::channel();
    let (subscribed, all_subscribed) = mpsc::channel();
    for gateway in 0..settings.gateways {
        let (loads, gateways) = (Arc::clone(&loads), settings.gateways);
        let connection = Connection::open(&settings.server)?;
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
