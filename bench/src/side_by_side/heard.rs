//! What gateway processes have heard and told, and how late: counted in them, asked for over TCP by the bench.

use super::truth::Count;
use anyhow::Context;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

const ASKS_FOR_COUNTS: u8 = b'c';
const ASKS_FOR_LATENCIES: u8 = b'l';

/// Counters of a process that its threads add to.
#[derive(Default)]
pub struct Counters {
    heard: AtomicU64,
    shown: AtomicU64,
    left: AtomicU64,
    distances_dm: AtomicI64,
    /// Once somebody has asked for them.
    keeps_latencies: AtomicBool,
    latencies_us: Mutex<Vec<u64>>,
}

/// What a process has heard and told so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Messages, or records.
    pub heard: u64,
    pub told: Count,
}

/// From when a report was due to when the gateway knew whom to tell, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    pub count: u64,
    pub p50_us: u64,
    pub p95_us: u64,
    pub p99_us: u64,
    pub max_us: u64,
}

impl Counters {
    /// Adds, and empties the latencies.
    pub fn add(&self, heard: u64, told: Count, latencies_us: &mut Vec<u64>) {
        self.shown.fetch_add(told.shown, Relaxed);
        self.left.fetch_add(told.left, Relaxed);
        self.distances_dm.fetch_add(told.distances_dm, Relaxed);
        self.heard.fetch_add(heard, Relaxed);
        if self.keeps_latencies.load(Relaxed) {
            self.latencies_us.lock().unwrap_or_else(PoisonError::into_inner).append(latencies_us);
        }
        latencies_us.clear();
    }

    /// Answers from a thread of its own as long as the process runs.
    pub fn serve(self: &Arc<Counters>, listen: &str) -> anyhow::Result<()> {
        let (listener, counters) = (TcpListener::bind(listen)?, Arc::clone(self));
        std::thread::spawn(move || {
            // The bench asks again, or ends the process.
            listener.incoming().flatten().for_each(|mut asker| drop(counters.answer(&mut asker)));
        });
        Ok(())
    }

    fn answer(&self, asker: &mut TcpStream) -> anyhow::Result<()> {
        let mut asked = [0];
        asker.read_exact(&mut asked)?;
        let numbers = if asked[0] == ASKS_FOR_LATENCIES {
            self.keeps_latencies.store(true, Relaxed);
            let mut taken = self.latencies_us.lock().unwrap_or_else(PoisonError::into_inner);
            let latency = Latency::of(std::mem::take(&mut *taken));
            format!("{} {} {} {} {}", latency.count, latency.p50_us, latency.p95_us, latency.p99_us, latency.max_us)
        } else {
            let [heard, shown, left] = [&self.heard, &self.shown, &self.left].map(|counter| counter.load(Relaxed));
            format!("{heard} {shown} {left} {}", self.distances_dm.load(Relaxed))
        };
        Ok(asker.write_all(numbers.as_bytes())?)
    }
}

impl Latency {
    pub fn of(mut latencies_us: Vec<u64>) -> Latency {
        latencies_us.sort_unstable();
        let quantile = |per_mille: usize| {
            let last = latencies_us.len().saturating_sub(1);
            latencies_us.get(last * per_mille / 1_000).copied().unwrap_or_default()
        };
        let [p50_us, p95_us, p99_us, max_us] = [500, 950, 990, 1_000].map(quantile);
        Latency { count: latencies_us.len() as u64, p50_us, p95_us, p99_us, max_us }
    }

    /// Those since the last call; the first one begins.
    pub fn take_from(address: &str) -> anyhow::Result<Latency> {
        let [count, p50_us, p95_us, p99_us, max_us] = ask(address, ASKS_FOR_LATENCIES)?.map(i64::cast_unsigned);
        Ok(Latency { count, p50_us, p95_us, p99_us, max_us })
    }
}

impl Heard {
    /// Of the process whose counters are served there.
    pub fn at(address: &str) -> anyhow::Result<Heard> {
        let [heard, shown, left, distances_dm] = ask(address, ASKS_FOR_COUNTS)?;
        let [heard, shown, left] = [heard, shown, left].map(i64::cast_unsigned);
        Ok(Heard { heard, told: Count { shown, left, distances_dm } })
    }
}

fn ask<const N: usize>(address: &str, what: u8) -> anyhow::Result<[i64; N]> {
    let mut answer = String::new();
    let mut stream = TcpStream::connect(address).context("asking a gateway process")?;
    stream.write_all(&[what])?;
    stream.read_to_string(&mut answer)?;
    let numbers: Vec<i64> = answer.split(' ').map(str::parse).collect::<Result<_, _>>().context(answer.clone())?;
    numbers.try_into().ok().with_context(|| format!("a gateway process answered {answer}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_what_was_there() {
        let latency = Latency::of((1..=1_001).rev().collect());
        assert_eq!(latency, Latency { count: 1_001, p50_us: 501, p95_us: 951, p99_us: 991, max_us: 1_001 });
        assert_eq!(Latency::of(Vec::new()), Latency::default());
    }

    #[test]
    fn counts_are_heard_over_tcp() {
        let counters = Arc::new(Counters::default());
        let address = format!("127.0.0.1:{}", nearby_e2e::ports::free_port().unwrap());
        counters.serve(&address).unwrap();
        let told = Count { shown: 3, left: 1, distances_dm: 70 };
        counters.add(0, Count::default(), &mut vec![9]);
        assert_eq!(Latency::take_from(&address).unwrap(), Latency::default(), "nobody had asked");
        counters.add(2, told, &mut vec![5, 7]);
        counters.add(1, told, &mut Vec::new());
        let twice = Count { shown: 6, left: 2, distances_dm: 140 };
        assert_eq!(Heard::at(&address).unwrap(), Heard { heard: 3, told: twice });
        assert_eq!(Latency::take_from(&address).unwrap().count, 2);
        assert_eq!(Latency::take_from(&address).unwrap(), Latency::default());
    }
}
