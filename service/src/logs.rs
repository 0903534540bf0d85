//! Logs go to standard error; standard output is for what a program reads.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What can happen to each of very many records is told at most so often: standard error may be slow, and records should not be.
const TOLD_INTERVAL: Duration = Duration::from_secs(1);

/// Starts logging at level `info`, or as `NEARBY_LOG` says (the syntax of `RUST_LOG`). Call once, first.
pub fn start() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("NEARBY_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,rdkafka=warn,librdkafka=warn,sqlx=warn"));
    // At `trace` warp repeats the parts of paths, whatever clients have put there.
    let filter = filter.add_directive("warp=warn".parse().expect("a directive"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
}

/// Whether to tell of something that may happen very often; metrics count all of it.
pub struct Seldom {
    told: Mutex<Option<Told>>,
}

struct Told {
    at: Instant,
    left_out: u64,
}

impl Seldom {
    /// Nothing has been told yet.
    pub const fn new() -> Seldom {
        Seldom { told: Mutex::new(None) }
    }

    /// How many times were left out before this one, if this one may be told.
    pub fn may_tell(&self) -> Option<u64> {
        self.may_tell_at(Instant::now())
    }

    fn may_tell_at(&self, now: Instant) -> Option<u64> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(told) = told.as_mut().filter(|told| now.saturating_duration_since(told.at) < TOLD_INTERVAL) {
            told.left_out += 1;
            return None;
        }
        Some(told.replace(Told { at: now, left_out: 0 }).map_or(0, |before| before.left_out))
    }
}

impl Default for Seldom {
    fn default() -> Seldom {
        Seldom::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_many_is_told_with_how_many_were_not() {
        let (seldom, start) = (Seldom::new(), Instant::now());
        let told: Vec<Option<u64>> = [0, 1, 999, 1_000, 1_001, 5_000, 6_000]
            .map(|ms| seldom.may_tell_at(start + Duration::from_millis(ms)))
            .into();
        assert_eq!(told, [Some(0), None, None, Some(2), None, Some(1), Some(0)]);
    }
}
