//! One peer in one setting, measured: runs as fast as it goes, then a steady rate.

use super::Settings;
use super::driver::Pace;
use super::heard::{Heard, Latency};
use super::loads::Loads;
use super::truth::Count;
use crate::cpu;
use crate::workload::{Figures, Move};
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(20);

/// Servers that are given moves and tell viewers.
pub trait Peer {
    /// Hands the moves over, and returns when the servers have taken them all; for how long of that they were kept still.
    fn drive(&mut self, moves: &[Move], pace: Pace) -> anyhow::Result<Duration>;
    /// What its viewers were told so far.
    fn heard(&mut self) -> anyhow::Result<Heard>;
    /// If it has taken all, and nothing more is heard for so long, all is told. (A machine that has much to do pauses for seconds.)
    fn quiet(&self) -> Duration {
        Duration::from_secs(2)
    }
    /// Where latencies are asked for.
    fn heard_at(&self) -> &str;
    /// Its server processes.
    fn gauges(&self) -> anyhow::Result<Vec<Gauge>>;
}

/// What a kind of process has spent so far, and holds now.
#[derive(Clone, Debug)]
pub struct Gauge {
    pub kind: &'static str,
    pub cpu_s: f64,
    pub resident_bytes: u64,
}

impl Gauge {
    pub fn of(kind: &'static str, pid: u32) -> anyhow::Result<Gauge> {
        Ok(Gauge { kind, cpu_s: cpu::of_process(pid)?, resident_bytes: cpu::resident_bytes(pid)? })
    }
}

/// As fast as it goes, once.
#[derive(Clone, Debug)]
pub struct Run {
    pub reports: u64,
    pub seconds: f64,
    /// By kind of process.
    pub cpu_s: Vec<(&'static str, f64)>,
    pub told: Count,
    pub truth: Count,
}

/// A line of the tables.
#[derive(Clone, Debug, Default)]
pub struct Row {
    pub peer: &'static str,
    pub setting: String,
    pub runs: Vec<Run>,
    /// At the end of the runs, by kind of process.
    pub resident_bytes: Vec<(&'static str, u64)>,
    /// 0 before it is measured: at that of all.
    pub rate_per_s: u64,
    pub latency: Option<Latency>,
    /// What was told at that rate, and what had to be.
    pub steady: Option<(Count, Count)>,
    /// Staleness of another kind, and anything else that has to be known.
    pub note: String,
}

impl Run {
    /// A line at once: the tables come at the end.
    pub fn print(&self, row: &Row) {
        println!(
            "  {} {}: {:.2} CPU-seconds per million, {:.0} reports/s, told {:+.3} % of brute force's",
            row.peer,
            row.setting,
            self.cpu_s_per_million(),
            self.reports_per_s(),
            self.told.difference_percent(self.truth)
        );
    }

    pub fn cpu_s_per_million(&self) -> f64 {
        per_million(&self.cpu_s, self.reports)
    }

    pub fn of_kind_per_million(&self, kind: &str) -> f64 {
        let of_kind = self.cpu_s.iter().filter(|(name, _)| *name == kind).map(|(_, seconds)| seconds);
        of_kind.sum::<f64>() / millions(self.reports)
    }

    pub fn reports_per_s(&self) -> f64 {
        millions(self.reports) * 1e6 / self.seconds
    }
}

impl Row {
    /// Of all runs: CPU-seconds of all server processes per million reports.
    pub fn cpu_s_per_million(&self) -> Figures {
        Figures::new(self.runs.iter().map(Run::cpu_s_per_million).collect())
    }

    pub fn of_kind_per_million(&self, kind: &str) -> Figures {
        Figures::new(self.runs.iter().map(|run| run.of_kind_per_million(kind)).collect())
    }

    pub fn reports_per_s(&self) -> Figures {
        Figures::new(self.runs.iter().map(Run::reports_per_s).collect())
    }

    /// What was told in all runs, and what had to be.
    pub fn told_and_truth(&self) -> (Count, Count) {
        self.runs.iter().fold((Count::default(), Count::default()), |(mut told, mut truth), run| {
            told += run.told;
            truth += run.truth;
            (told, truth)
        })
    }
}

/// Runs a peer that has been started.
pub fn measure(
    peer: &mut impl Peer,
    loads: &mut Loads,
    settings: &Settings,
    reports: usize,
    row: Row,
) -> anyhow::Result<Row> {
    let rate_per_s = if row.rate_per_s > 0 { row.rate_per_s } else { settings.rate_per_s };
    let mut row = Row { rate_per_s, ..row };
    // Connecting, and what a virtual machine compiles, happen once.
    let (moves, _) = loads.run(reports, settings.runs + 1);
    driven(peer, &moves, Pace::Fastest)?;
    for _ in 0..settings.runs {
        let (moves, truth) = loads.run(reports, settings.runs + 1);
        let Driven { took, cpu_s, resident_bytes, told } = driven(peer, &moves, Pace::Fastest)?;
        let run = Run { reports: moves.len() as u64, seconds: took.as_secs_f64(), cpu_s, told, truth };
        run.print(&row);
        row.runs.push(run);
        row.resident_bytes = resident_bytes;
    }
    if settings.latency_s > 0 {
        let second = usize::try_from(rate_per_s)?;
        let (moves, truth) = loads.steady(second * (1 + usize::try_from(settings.latency_s)?));
        let before = peer.heard()?.told;
        // Caches and connections are warm after a second at this rate.
        let (first, measured) = moves.split_at(second);
        let pace = Pace::PerSecond(rate_per_s);
        peer.drive(first, pace)?;
        Latency::take_from(peer.heard_at())?;
        peer.drive(measured, pace)?;
        row.steady = Some((settled(peer)?.heard.told - before, truth));
        row.latency = Some(Latency::take_from(peer.heard_at())?);
    }
    Ok(row)
}

/// What came of some moves.
pub struct Driven {
    /// Until the last was told, without the time for which the servers were kept still.
    pub took: Duration,
    /// By kind of process, as is what they held at the end.
    pub cpu_s: Vec<(&'static str, f64)>,
    pub resident_bytes: Vec<(&'static str, u64)>,
    pub told: Count,
}

/// Hands moves over, and waits until all is told.
pub fn driven(peer: &mut impl Peer, moves: &[Move], pace: Pace) -> anyhow::Result<Driven> {
    let (before, heard, began) = (peer.gauges()?, peer.heard()?, Instant::now());
    let stood_still = peer.drive(moves, pace)?;
    let last = settled(peer)?;
    let kinds = before.iter().zip(&last.gauges);
    Ok(Driven {
        took: last.at.duration_since(began) - stood_still,
        cpu_s: kinds.map(|(before, after)| (after.kind, after.cpu_s - before.cpu_s)).collect(),
        resident_bytes: last.gauges.iter().map(|gauge| (gauge.kind, gauge.resident_bytes)).collect(),
        told: last.heard.told - heard.told,
    })
}

/// When the last was told, and what was then.
struct Last {
    at: Instant,
    heard: Heard,
    gauges: Vec<Gauge>,
}

/// Waits until nothing more is told.
fn settled(peer: &mut impl Peer) -> anyhow::Result<Last> {
    let mut last = Last { at: Instant::now(), heard: peer.heard()?, gauges: peer.gauges()? };
    while last.at.elapsed() < peer.quiet() {
        std::thread::sleep(POLL);
        let heard = peer.heard()?;
        if heard != last.heard {
            last = Last { at: Instant::now(), heard, gauges: peer.gauges()? };
        }
    }
    Ok(last)
}

/// CPU-seconds of all kinds of processes for a million of these reports.
pub fn per_million(cpu_s: &[(&'static str, f64)], reports: u64) -> f64 {
    cpu_s.iter().map(|(_, seconds)| seconds).sum::<f64>() / millions(reports)
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
pub fn millions(count: u64) -> f64 {
    count as f64 / 1e6
}
