//! What simulated clients experience, counted while it happens.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Latencies up to a minute are told apart by the millisecond.
const LATENCY_MS_MAX: usize = 60_000;

/// Counters of a crowd of clients.
#[derive(Debug)]
pub struct Statistics {
    started_at: Instant,
    /// Reports handed to sockets.
    pub sent: AtomicU64,
    /// Reports that the server acknowledged.
    pub accepted: AtomicU64,
    /// Friends moved or left, as told in frames.
    pub pushes: AtomicU64,
    /// Frames received.
    pub frames: AtomicU64,
    /// Sockets opened again after they were lost.
    pub reconnects: AtomicU64,
    refused: Mutex<BTreeMap<String, u64>>,
    /// Milliseconds from report to friend's socket, by number of occurrences.
    latencies: Mutex<Vec<u32>>,
    last_report: Mutex<Duration>,
}

/// A moment's counters, for rates.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moment {
    at: Duration,
    accepted: u64,
    pushes: u64,
}

impl Statistics {
    /// Starts counting.
    pub fn start() -> Statistics {
        Statistics {
            started_at: Instant::now(),
            sent: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
            pushes: AtomicU64::new(0),
            frames: AtomicU64::new(0),
            reconnects: AtomicU64::new(0),
            refused: Mutex::default(),
            latencies: Mutex::new(vec![0; LATENCY_MS_MAX + 1]),
            last_report: Mutex::default(),
        }
    }

    /// A report was sent.
    pub fn report_sent(&self) {
        self.sent.fetch_add(1, Ordering::Relaxed);
        *self.last_report.lock().unwrap_or_else(PoisonError::into_inner) = self.started_at.elapsed();
    }

    /// The server refused something.
    pub fn refused(&self, code: &str) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner).entry(code.to_owned()).or_default() += 1;
    }

    /// Reports that were answered, one way or the other.
    pub fn answered(&self) -> u64 {
        let refused: u64 = self.refused.lock().unwrap_or_else(PoisonError::into_inner).values().sum();
        self.accepted.load(Ordering::Relaxed) + refused
    }

    /// A friend's report arrived on a socket after so long.
    pub fn arrived_after_ms(&self, latency_ms: i64) {
        let index = usize::try_from(latency_ms).unwrap_or(0).min(LATENCY_MS_MAX);
        self.latencies.lock().unwrap_or_else(PoisonError::into_inner)[index] += 1;
    }

    /// One line about the time since `since`, which becomes now.
    pub fn rates(&self, since: &mut Moment) -> String {
        let now = Moment {
            at: self.started_at.elapsed(),
            accepted: self.accepted.load(Ordering::Relaxed),
            pushes: self.pushes.load(Ordering::Relaxed),
        };
        let seconds = (now.at - since.at).as_secs_f64().max(0.001);
        let per_second = |count: u64| {
            #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
            let rate = count as f64 / seconds;
            rate
        };
        let (reports, pushes) = (per_second(now.accepted - since.accepted), per_second(now.pushes - since.pushes));
        *since = now;
        format!("{reports:.0} reports/s, {pushes:.0} pushes/s, {}", self.latency())
    }

    /// All of it, for people.
    pub fn summary(&self) -> String {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let seconds = self.last_report.lock().unwrap_or_else(PoisonError::into_inner).as_secs_f64().max(0.001);
        let mut text = format!(
            "reports   {} sent, {} accepted, in {seconds:.1} s\npushes    {} in {} frames\nlatency   {}\nsockets   {} reconnects",
            load(&self.sent),
            load(&self.accepted),
            load(&self.pushes),
            load(&self.frames),
            self.latency(),
            load(&self.reconnects),
        );
        for (code, count) in self.refused.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            write!(text, "\nrefused   {count} {code}").expect("writing to a string");
        }
        text
    }

    fn latency(&self) -> String {
        let latencies = self.latencies.lock().unwrap_or_else(PoisonError::into_inner);
        let total: u64 = latencies.iter().map(|count| u64::from(*count)).sum();
        if total == 0 {
            return "no latency yet".to_owned();
        }
        let percentile = |permille: u64| {
            let rank = (total * permille).div_ceil(1000);
            let mut seen = 0;
            latencies.iter().position(|count| {
                seen += u64::from(*count);
                seen >= rank
            })
        };
        let shown: Vec<String> = [(500, "p50"), (950, "p95"), (990, "p99"), (1000, "max")]
            .iter()
            .map(|(permille, name)| format!("{name} {} ms", percentile(*permille).unwrap_or(LATENCY_MS_MAX)))
            .collect();
        shown.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_all_arrivals() {
        let statistics = Statistics::start();
        for latency_ms in 1..=100 {
            statistics.arrived_after_ms(latency_ms);
        }
        assert_eq!(statistics.latency(), "p50 50 ms, p95 95 ms, p99 99 ms, max 100 ms");
        statistics.arrived_after_ms(-3);
        statistics.arrived_after_ms(i64::MAX);
        assert!(statistics.latency().ends_with("max 60000 ms"));
    }

    #[test]
    fn refusals_count_as_answers() {
        let statistics = Statistics::start();
        statistics.accepted.fetch_add(2, Ordering::Relaxed);
        statistics.refused("rate_limited");
        assert_eq!(statistics.answered(), 3);
        assert!(statistics.summary().contains("refused   1 rate_limited"));
    }
}
