//! Ports for servers that must know theirs before they start, and keep it over a restart.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Mutex, PoisonError};

use anyhow::bail;

/// Below the ports that systems lend to outgoing connections (32768 and up on Linux), because such a connection could
/// take the port of a server that is down for a restart.
const CANDIDATES: std::ops::Range<u16> = 10_000..32_000;
const TRIES_MAX: usize = 1000;

static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A port of 127.0.0.1 that nobody listens on, and that this process has not given out before.
pub fn free_port() -> anyhow::Result<u16> {
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..TRIES_MAX {
        let port = rand::random_range(CANDIDATES);
        if !given.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            given.insert(port);
            return Ok(port);
        }
    }
    bail!("found no free port on 127.0.0.1 in {CANDIDATES:?} within {TRIES_MAX} tries")
}
