//! The costs that `nearby capacity` plans with, fitted to loads that have some of each; and what it says of three other loads, beside what they take.

use crate::cluster::Cluster;
use crate::cpu;
use crate::edge::Edge;
use crate::least_squares;
use crate::pipeline::{self, Cost, FAST_PER_S, Load, SLOW_PER_S, Served, TOPICS_WARM_UP, WARM_UP};
use crate::predictions;
use crate::processor::Processor;
use crate::reports;
use crate::sink;
use crate::sockets::{self, Gateway};
use crate::workload::World;
use anyhow::{Context, ensure};
use nearby_client::{Api, Connection, Heard};
use nearby_e2e::kafka;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

const CENTRES: u32 = 20;
const USERS: u32 = 20_000;
const MANY_USERS: u32 = 1_000_000;
const FRIENDS: u32 = 40;
/// Telling many of a report costs less for each of them.
const CROWD: u32 = 160;
const CROWDED_PER_S: u64 = 80_000;
/// Below this nobody is near.
const RADIUS_NOBODY_M: u32 = 1;
const HEARERS: usize = 2;
/// Of what costs little: hearing alone.
const FAR_APART_PER_S: [u64; 2] = [SLOW_PER_S, 300_000];
/// A rate of its own, for what is predicted.
const CHECKED_PER_S: u64 = 100_000;
/// Every batch of a gateway takes a request.
const FEW_GATEWAYS: usize = 2;
const MANY_GATEWAYS: usize = 400;
/// That of a processor with so many gateways, as in `processor/src/batch_interval.rs`.
const BATCH_INTERVAL_MAX_S: f64 = 0.050;
const STEADY: Duration = Duration::from_secs(6);
/// Places of so many users, and lists of so many, with so many friends, are weighed.
const PLACES: u32 = 1_000_000;
const LISTS: u32 = 200_000;
const LIST_FRIENDS: u32 = 400;
const SOCKETS: usize = 5_000;
const SOCKETS_TIME: Duration = Duration::from_secs(6);
const REPORTS_IN_BULK: usize = 2_000_000;
const REPORTERS: i64 = 50;
const REPORTS_EACH: usize = 2_000;
const RESTORED: Duration = Duration::from_secs(3);
const ROWS: usize = 300_000;
/// IPv4, TCP with its timestamps, on Ethernet, of a frame and of the acknowledgement of two.
const PACKET_BYTES: f64 = 66.0 * 1.5;

/// Settings of `nearby-bench capacity`.
#[derive(clap::Args)]
pub struct Settings {
    /// Where the costs are written, or, with --check-only, read
    #[arg(long, default_value = "bench/coefficients.json")]
    coefficients: PathBuf,
    /// Measure no costs: compare predictions from those that there are
    #[arg(long)]
    check_only: bool,
}

/// Measures, writes, and compares.
pub async fn run(settings: &Settings) -> anyhow::Result<()> {
    let mut bench = Bench { broker: pipeline::warm_broker().await?, loads: 0 };
    println!("what a report costs, in CPU-microseconds");
    if settings.check_only {
        return predictions::compare(&bench.checked().await?, &settings.coefficients);
    }
    // What others do on the machine changes by the minute: what is predicted is measured before and after what it is predicted from.
    let before = bench.checked().await?;
    let fit = Fit::of(&mut bench).await?;
    let after = bench.checked().await?;
    let checked: Vec<Run> = before.iter().zip(&after).map(|(before, after)| before.mean(after)).collect();
    // Costs that do not predict are not kept.
    let measured = settings.coefficients.with_extension("new");
    let text = serde_json::to_string_pretty(&fit.with_others(&mut bench).await?).context("the costs as JSON")?;
    println!("{text}");
    std::fs::write(&measured, text + "\n")?;
    predictions::compare(&checked, &measured)?;
    std::fs::rename(&measured, &settings.coefficients)?;
    Ok(())
}

/// Loads on one broker, one after the other.
struct Bench {
    broker: Arc<kafka::Kafka>,
    loads: usize,
}

/// A load that was measured.
#[derive(Clone, Copy)]
pub struct Run {
    pub load: Load,
    pub gateways: usize,
    pub rate_per_s: f64,
    pub cost: Cost,
}

impl Bench {
    async fn cluster(&mut self, gateways: usize) -> anyhow::Result<Cluster> {
        self.loads += 1;
        Cluster::on(Arc::clone(&self.broker), &format!("load{}.", self.loads), gateways).await
    }

    async fn run(&mut self, load: Load, gateways: usize, rates_per_s: &[u64]) -> anyhow::Result<Vec<Run>> {
        let mut served = Served::start(&load, self.cluster(gateways).await?).await?;
        let runs = at(&mut served, load, gateways, rates_per_s).await?;
        served.end().await?;
        Ok(runs)
    }

    /// Three loads that no cost is measured with.
    async fn checked(&mut self) -> anyhow::Result<Vec<Run>> {
        let load = |users, friends| Load { users, friends, ..Load::W };
        let mut runs = self.run(load(20_000, 40), 100, &[CHECKED_PER_S]).await?;
        runs.extend(self.run(Load { connected: 0.25, ..load(80_000, 200) }, 10, &[CHECKED_PER_S]).await?);
        let threads = Load { processors: 2, engine_threads: 2, ..load(40_000, 20) };
        runs.extend(self.run(threads, 10, &[CHECKED_PER_S]).await?);
        Ok(runs)
    }

    /// The same of people whom nobody hears; and CPU-microseconds of the broker to take a report in and to hand it to a processor, many in a
    /// request.
    async fn run_unheard(&mut self, load: Load, rates_per_s: &[u64]) -> anyhow::Result<(Vec<Run>, (f64, f64))> {
        let mut served = Served::start(&load, self.cluster(FEW_GATEWAYS).await?).await?;
        let runs = at(&mut served, load, FEW_GATEWAYS, rates_per_s).await?;
        let (taken, handed) = served.broker_in_bulk_us(REPORTS_IN_BULK).await?;
        served.end().await?;
        println!("  in bulk: the broker takes a report in for {taken:.3}, and hands it over for {handed:.3}");
        Ok((runs, (taken, handed)))
    }
}

/// What is served, at steady rates.
async fn at(served: &mut Served, load: Load, gateways: usize, rates_per_s: &[u64]) -> anyhow::Result<Vec<Run>> {
    let mut runs = Vec::new();
    let mut warm_up = if gateways > FEW_GATEWAYS { TOPICS_WARM_UP } else { WARM_UP };
    for rate_per_s in rates_per_s {
        served.warm_up(*rate_per_s, std::mem::replace(&mut warm_up, WARM_UP)).await?;
        let cost = served.cost(*rate_per_s, STEADY).await?;
        println!("  {load}, {gateways} gateways, {rate_per_s} reports/s: {cost:.3?}");
        runs.push(Run { load, gateways, rate_per_s: *rate_per_s as f64, cost });
    }
    Ok(runs)
}

impl Run {
    /// Of two runs of one load.
    fn mean(&self, other: &Run) -> Run {
        let mean = |of: fn(&Cost) -> f64| f64::midpoint(of(&self.cost), of(&other.cost));
        let cost = Cost {
            processors_us: mean(|cost| cost.processors_us),
            reading_us: mean(|cost| cost.reading_us),
            broker_us: mean(|cost| cost.broker_us),
            notices: mean(|cost| cost.notices),
            batches: mean(|cost| cost.batches),
            notice_bytes: mean(|cost| cost.notice_bytes),
        };
        Run { cost, ..*self }
    }

    fn processors(&self) -> f64 {
        self.load.processors as f64
    }

    fn engines(&self) -> f64 {
        self.processors() * self.load.engine_threads as f64
    }

    /// CPU-microseconds a report of what costs a CPU-second a second.
    fn second_us(&self) -> f64 {
        1e6 / self.rate_per_s
    }

    /// Looks at a friend for each report: those who have its user as one, and, for a viewer, its own.
    fn tests(&self) -> f64 {
        f64::from(self.load.friends) * (self.load.connected + 1.0)
    }

    /// Engines that tell anybody of a report, if viewers are spread over them evenly: as the model has it.
    fn telling(&self) -> f64 {
        self.engines() * (1.0 - (1.0 - 1.0 / self.engines()).powf(self.cost.notices))
    }

    /// How much of each of the broker's costs is in a report, but for those that are measured in bulk: two by the second, then notices and requests.
    fn broker_parts(&self) -> [f64; 4] {
        let requests = self.cost.batches + pipeline::REQUESTS_PER_S as f64 / self.rate_per_s;
        [self.second_us(), self.processors() * self.second_us(), self.cost.notices, requests]
    }

    /// And of the processors' but for reading: one by the second, one for each engine and one for each that tells of it, then looks, notices and
    /// batches.
    fn processor_parts(&self) -> [f64; 6] {
        let Cost { notices, batches, .. } = self.cost;
        [self.processors() * self.second_us(), self.engines(), self.telling(), self.tests(), notices, batches]
    }

    /// Seconds between two batches of a gateway from an engine.
    fn interval_s(&self) -> f64 {
        self.engines() * self.gateways as f64 / (self.cost.batches * self.rate_per_s)
    }
}

/// In CPU-microseconds, but for the factor.
struct ProcessorCosts {
    awake: f64,
    hear: f64,
    told: f64,
    test: f64,
    tell: f64,
    batch: f64,
    cache: f64,
}

impl ProcessorCosts {
    /// From loads with few viewers and one with many.
    fn of(runs: &[Run], large: &Run, read: f64) -> anyhow::Result<ProcessorCosts> {
        let took = |run: &Run| run.cost.processors_us - run.processors() * read;
        let parts: Vec<_> = runs.iter().map(|run| (run.processor_parts(), took(run))).collect();
        let [awake, hear, told, test, tell, batch] = least_squares::fit(&parts)?;
        let [awakes, hears, tolds, tests, tells, batches] = large.processor_parts();
        let but_join = awakes * awake + hears * hear + batches * batch;
        let cache = (took(large) - but_join) / (tolds * told + tests * test + tells * tell);
        Ok(ProcessorCosts { awake, hear: read + hear, told, test, tell, batch, cache })
    }
}

/// The costs of processors and of the broker.
struct Fit {
    read: f64,
    processor: ProcessorCosts,
    /// Of the broker: to take a report in, and to hand it to a processor.
    taken: f64,
    handed: f64,
    /// The rest of it, in the order of [`Run::broker_parts`].
    broker: [f64; 4],
    rounds: (f64, f64),
    notice_bytes: f64,
}

impl Fit {
    async fn of(bench: &mut Bench) -> anyhow::Result<Fit> {
        let of = |users, friends| Load { users, friends, ..Load::W };
        let nobody = Load { connected: 0.0, ..of(USERS, 0) };
        let both = [SLOW_PER_S, FAST_PER_S];
        let (mut runs, (taken, handed)) = bench.run_unheard(nobody, &FAR_APART_PER_S).await?;
        let read = runs[1].cost.reading_us;
        runs.extend(bench.run(Load { processors: HEARERS, ..nobody }, FEW_GATEWAYS, &FAR_APART_PER_S).await?);
        let far = Load { radius_m: RADIUS_NOBODY_M, ..of(USERS, FRIENDS) };
        runs.extend(bench.run(far, FEW_GATEWAYS, &[FAST_PER_S]).await?);
        let few = bench.run(of(USERS, FRIENDS), FEW_GATEWAYS, &[FAST_PER_S]).await?;
        let many = bench.run(of(USERS, FRIENDS), MANY_GATEWAYS, &both).await?;
        runs.extend_from_slice(&few);
        runs.extend_from_slice(&many);
        runs.extend(bench.run(of(USERS, CROWD), FEW_GATEWAYS, &[CROWDED_PER_S]).await?);
        let large = bench.run(of(MANY_USERS, FRIENDS), FEW_GATEWAYS, &[FAST_PER_S]).await?[0];

        let processor = ProcessorCosts::of(&runs, &large, read)?;
        runs.push(large);
        let took = |run: &Run| run.cost.broker_us - taken - run.processors() * handed;
        let parts: Vec<_> = runs.iter().map(|run| (run.broker_parts(), took(run))).collect();
        let (broker, rounds) = (least_squares::fit(&parts)?, rounds(&few, &many[1..])?);
        Ok(Fit { read, processor, taken, handed, broker, rounds, notice_bytes: many[0].cost.notice_bytes })
    }

    /// All costs: also memory, the gateway's and the sink's.
    async fn with_others(&self, bench: &mut Bench) -> anyhow::Result<Value> {
        let Fit { read, processor, taken, handed, broker: [broker_awake, reader, notice, request], .. } = self;
        let memory = memory(bench.cluster(1).await?).await?;
        let Gateway { figures: frames, frame, idle_bytes } = sockets::gateway_sends(SOCKETS, SOCKETS_TIME).await?;
        let report = report_cpu_us().await?;
        let rows = sink::cost(ROWS).await?;
        let (per_friend, frame) = (friend_bytes(&frame)?, frame.len() as f64);
        Ok(json!({
            "measured": machine()?,
            "processor": {
                "awake_cpu_s": fitted(processor.awake),
                "hear_cpu_s": fitted(processor.hear),
                "read_cpu_s": positive("read", *read)?,
                "told_cpu_s": fitted(processor.told),
                "test_cpu_s": fitted(processor.test),
                "tell_cpu_s": fitted(processor.tell),
                "batch_cpu_s": fitted(processor.batch),
                "round_s": fitted(self.rounds.0),
                "round_gateway_core_s": fitted(self.rounds.1),
                "cache_factor": positive("cache", processor.cache)?,
                "base_bytes": memory.base.round(),
                "list_bytes": positive("a list", memory.list)?,
                "index_bytes": positive("the index", memory.index)?,
                "slot_bytes": positive("a slot", memory.slot)?,
                "restore_cpu_s": positive("restore", memory.restore_us)?,
            },
            "broker": {
                "awake_cpu_s": fitted(*broker_awake),
                "reader_cpu_s": fitted(*reader),
                "report_cpu_s": positive("taking a report", *taken)?,
                "read_cpu_s": positive("handing a report over", *handed)?,
                "notice_cpu_s": fitted(*notice),
                "request_cpu_s": fitted(*request),
                "report_bytes": positive("a report", reports::report_bytes())?,
                "notice_bytes": positive("a notice", self.notice_bytes)?,
            },
            "gateway": {
                "frame_cpu_s": positive("a frame", frames.cpu_us)?,
                "report_cpu_s": positive("a report", report)?,
                "socket_bytes": idle_bytes.round(),
                "frame_bytes": (frame - per_friend + PACKET_BYTES).round(),
                "friend_bytes": per_friend,
            },
            "sink": {
                "row_cpu_s": positive("a row", rows.client_s)?,
                "postgres_row_cpu_s": positive("a row in Postgres", rows.postgres_s)?,
                "row_bytes": positive("a row", rows.bytes)?,
            },
        }))
    }
}

/// Seconds between two batches of a gateway when there are few gateways, and what each gateway adds to it on a single core: more gateways,
/// longer rounds. Nothing, if the interval that a processor waits anyway hides it.
fn rounds(few: &[Run], many: &[Run]) -> anyhow::Result<(f64, f64)> {
    let [few, many] = [few, many].map(|runs| runs.iter().map(Run::interval_s).sum::<f64>() / runs.len() as f64);
    if many < 1.1 * BATCH_INTERVAL_MAX_S {
        return Ok((few, 0.0));
    }
    let cores = std::thread::available_parallelism()?.get() as f64;
    Ok((few, (many - few) / (MANY_GATEWAYS - FEW_GATEWAYS) as f64 * cores))
}

/// Of a frame that tells of one friend, what is that friend's.
fn friend_bytes(frame: &str) -> anyhow::Result<f64> {
    let (from, to) = (frame.find("[{").context("a friend")?, frame.find("}]").context("its end")?);
    Ok((to - from) as f64)
}

/// Three digits. One of several in a sum may be too small to be seen.
fn fitted(cost: f64) -> f64 {
    if cost == 0.0 {
        return 0.0;
    }
    let digits = 10_f64.powi(2 - cost.log10().floor() as i32);
    (cost * digits).round() / digits
}

/// Three digits. Costs are differences of runs: one that is none was not measured.
fn positive(what: &str, cost: f64) -> anyhow::Result<f64> {
    ensure!(cost.is_finite() && cost > 0.0, "the cost of {what} came out as {cost}: the machine was not quiet");
    Ok(fitted(cost))
}

struct Memory {
    base: f64,
    slot: f64,
    list: f64,
    index: f64,
    /// CPU-microseconds to read a friend in a list.
    restore_us: f64,
}

/// Resident memory of processors that hold more and more.
async fn memory(cluster: Cluster) -> anyhow::Result<Memory> {
    let mut world = World::new(PLACES, CENTRES);
    let (base, base_s) = resident(&cluster).await?;
    cluster.report_all(&world).await?;
    let (known, known_s) = resident(&cluster).await?;
    let lists: Vec<Vec<u32>> = (0..LISTS).map(|user| world.acquaintances(user, LIST_FRIENDS)).collect();
    cluster.write_lists(&lists).await?;
    let (with_lists, with_lists_s) = resident(&cluster).await?;
    cluster.open_sessions(LISTS).await?;
    let (connected, _) = resident(&cluster).await?;
    let friends = lists.iter().map(Vec::len).sum::<usize>() as f64;
    println!(
        "  memory: {base} bytes, {known} with places, {with_lists} with lists, {connected} with sessions; {base_s}, {known_s}, {with_lists_s} s"
    );
    Ok(Memory {
        base,
        slot: (known - base) / f64::from(PLACES),
        list: (with_lists - known) / friends,
        index: (connected - with_lists) / friends,
        restore_us: (with_lists_s - known_s) / friends * 1e6,
    })
}

/// Of a processor that has restored what is there; and its CPU-seconds.
async fn resident(cluster: &Cluster) -> anyhow::Result<(f64, f64)> {
    let mut processor = Processor::start(cluster, &Load::W)?;
    // Older places come after it serves.
    tokio::time::sleep(RESTORED).await;
    let pid = processor.program.pid();
    let figures = (cpu::resident_bytes(pid)? as f64, cpu::of_process(pid)?);
    processor.program.terminate()?;
    Ok(figures)
}

/// CPU-microseconds of a gateway for a report by WebSocket, acknowledged.
async fn report_cpu_us() -> anyhow::Result<f64> {
    let edge = Edge::start(&["--user-rate-per-s", "100000", "--user-burst", "100000"])?;
    let api = Api::new(&edge.cluster.ingest.url)?;
    let mut reporters = Vec::new();
    for user in 1..=REPORTERS {
        reporters.push(Connection::open(&api.gateway().await?, &edge.token(user)?).await?);
    }
    let pid = edge.gateway.nearby.pid();
    let spent = cpu::of_process(pid)?;
    let mut reporting = JoinSet::new();
    for mut connection in reporters {
        reporting.spawn(async move {
            for step in 0..REPORTS_EACH {
                connection.report(50.0 + step as f64 * 1e-5, 8.0, crate::latency::now_ms()?).await?;
                loop {
                    match connection.next().await? {
                        Heard::Accepted { .. } => break,
                        Heard::Error { code } => anyhow::bail!("refused: {code}"),
                        _ => {}
                    }
                }
            }
            connection.close().await?;
            anyhow::Ok(())
        });
    }
    while let Some(reported) = reporting.join_next().await {
        reported??;
    }
    let reports = REPORTERS as f64 * REPORTS_EACH as f64;
    Ok((cpu::of_process(pid)? - spent) / reports * 1e6)
}

fn machine() -> anyhow::Result<String> {
    let info = std::fs::read_to_string("/proc/cpuinfo")?;
    let model =
        info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("?", |(_, name)| name);
    let cores = std::thread::available_parallelism()?;
    let day = std::process::Command::new("date").args(["-u", "+%F"]).output().context("the date")?;
    Ok(format!("{}, {model}, {cores} cores, Kafka on the same", String::from_utf8_lossy(&day.stdout).trim()))
}
