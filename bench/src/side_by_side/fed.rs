//! A server that speaks Redis' protocol, fed by the bench, and the process of the gateways that it feeds.

use super::driver::{Due, Pace, open_loop};
use super::heard::Heard;
use super::loads::Loads;
use super::measured::{Gauge, Peer};
use super::resp::{Reply, reply};
use crate::workload::Move;
use anyhow::{Context, bail, ensure};
use nearby_e2e::nearby::Nearby;
use nearby_e2e::ports::free_port;
use nearby_e2e::process::{Home, Launch, Tied};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

const SERVER_START_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);
/// Of a connection; a reply is far smaller.
const BUFFER_BYTES: usize = 256 * 1024;

/// The server, and a connection to it.
pub struct Server {
    name: &'static str,
    pub address: String,
    process: Tied,
    _home: Home,
    pub connection: Connection,
}

/// How it is fed.
pub struct Feed {
    /// Reports that are sent together.
    pub together: usize,
    /// What the gateways have not heard yet, at most: so the server's buffers stay small.
    pub ahead_max: u64,
    /// Sends reports, and says how much the gateways will hear of them.
    pub send: fn(&mut Connection, &[Due]) -> anyhow::Result<u64>,
    /// The longest that the gateways may take to start, and to hear what was sent.
    pub start_limit: Duration,
    pub still_limit: Duration,
}

/// The server and its gateways.
pub struct Fed {
    // Ended first.
    gateways: Nearby,
    gateways_name: &'static str,
    heard_at: String,
    server: Server,
    feed: Feed,
    /// Of what the gateways hear.
    sent: u64,
}

impl Server {
    /// Starts a program, whose arguments may have to do with its port and its folder, and waits until it answers.
    pub fn start(name: &'static str, arguments: impl FnOnce(&mut Command, &str, &Home)) -> anyhow::Result<Server> {
        let (home, port) = (Home::new(name)?, free_port()?.to_string());
        let mut command = Command::new(name);
        arguments(&mut command, &port, &home);
        let launch = Launch { command, user: None, home: &home, last_signal: "KILL" };
        let mut process = Tied::start(launch)?;
        let (address, begun) = (format!("127.0.0.1:{port}"), Instant::now());
        let connection = loop {
            process.check_running().with_context(|| format!("{name} has to be on the PATH"))?;
            match Connection::open(&address) {
                Ok(connection) => break connection,
                Err(error) => ensure!(begun.elapsed() < SERVER_START_LIMIT, error),
            }
            std::thread::sleep(POLL);
        };
        Ok(Server { name, address, process, _home: home, connection })
    }
}

impl Fed {
    /// Starts the gateways: a subcommand of this program, with these arguments beside those that all have.
    pub fn start(
        (server, feed): (Server, Feed),
        loads: &Loads,
        (gateways_name, subcommand): (&'static str, &[&str]),
    ) -> anyhow::Result<Fed> {
        let heard_at = format!("127.0.0.1:{}", free_port()?);
        let input = loads.input.arguments(loads.workload);
        let mut arguments = subcommand.to_vec();
        arguments.extend(["--server", &server.address, "--listen", &heard_at]);
        arguments.extend(input.iter().map(String::as_str));
        let mut gateways = Nearby::start_program(&std::env::current_exe()?, &arguments, &[])?;
        gateways.wait_line("ready", feed.start_limit)?;
        Ok(Fed { gateways, gateways_name, heard_at, server, feed, sent: 0 })
    }

    fn send(&mut self, moves: &[Due]) -> anyhow::Result<()> {
        self.sent += (self.feed.send)(&mut self.server.connection, moves)?;
        Ok(())
    }

    fn wait_until_ahead(&self, ahead_max: u64) -> anyhow::Result<()> {
        let begun = Instant::now();
        while self.sent - Heard::at(&self.heard_at)?.heard > ahead_max {
            ensure!(begun.elapsed() < self.feed.still_limit, "the gateways do not hear: {}", self.gateways.stderr());
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}

impl Peer for Fed {
    fn drive(&mut self, moves: &[Move], pace: Pace) -> anyhow::Result<Duration> {
        match pace {
            Pace::Fastest => {
                for together in moves.chunks(self.feed.together) {
                    let together: Vec<Due> = together.iter().map(|made| (*made, 0)).collect();
                    self.send(&together)?;
                    self.wait_until_ahead(self.feed.ahead_max)?;
                }
            }
            Pace::PerSecond(rate) => open_loop(moves, rate, |due| self.send(due))?,
        }
        self.wait_until_ahead(0)?;
        Ok(Duration::ZERO)
    }

    fn heard(&mut self) -> anyhow::Result<Heard> {
        Heard::at(&self.heard_at)
    }

    /// All that was sent has been waited for, and what was told because of it is told.
    fn quiet(&self) -> Duration {
        Duration::ZERO
    }

    fn heard_at(&self) -> &str {
        &self.heard_at
    }

    fn gauges(&self) -> anyhow::Result<Vec<Gauge>> {
        let server = Gauge::of(self.server.name, self.server.process.pid())?;
        Ok(vec![server, Gauge::of(self.gateways_name, self.gateways.pid())?])
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

    /// The next reply, which is a number.
    pub fn number(&mut self) -> anyhow::Result<u64> {
        self.next(|reply| match reply {
            Reply::Integer(number) => Ok(number.cast_unsigned()),
            other => bail!("the server answered {other:?}"),
        })
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
