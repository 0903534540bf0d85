//! The costs that `nearby capacity` plans with, fitted to loads that have some of each; and what it says of three other loads, beside what they take.

use crate::cluster::{Cluster, start_broker};
use crate::cpu;
use crate::edge::Edge;
use crate::least_squares;
use crate::pipeline::{self, Cost, Load, Processor, Served};
use crate::reports;
use crate::sink;
use crate::sockets;
use crate::workload::World;
use anyhow::{Context, ensure};
use nearby_client::{Api, Connection, Heard};
use nearby_e2e::kafka;
use nearby_e2e::nearby::Nearby;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

const CENTRES: u32 = 20;
const USERS: u32 = 20_000;
const MANY_USERS: u32 = 1_000_000;
const FRIENDS: u32 = 40;
/// Below this nobody is near.
const RADIUS_NOBODY_M: u32 = 1;
const HEARERS: usize = 2;
/// Steady rates: some costs are a second's, the others a report's.
const SLOW_PER_S: u64 = 50_000;
const FAST_PER_S: u64 = 150_000;
/// Of what costs little: hearing alone.
const FAR_APART_PER_S: [u64; 2] = [SLOW_PER_S, 300_000];
/// A rate of its own, for what is predicted.
const CHECKED_PER_S: u64 = 100_000;
/// Every batch of a gateway takes a request.
const FEW_GATEWAYS: usize = 2;
const MANY_GATEWAYS: usize = 400;
/// That of a processor with so many gateways, as in `processor/src/batch_interval.rs`.
const BATCH_INTERVAL_MAX_S: f64 = 0.050;
/// The broker's virtual machine compiles what runs often, and only then: one broker serves all loads, and has worked for a while before.
const BROKER_WARM_UP: Duration = Duration::from_secs(25);
const WARM_UP: Duration = Duration::from_secs(3);
const STEADY: Duration = Duration::from_secs(7);
/// Lists of so many users, with so many friends, are weighed.
const LISTS: u32 = 200_000;
const LIST_FRIENDS: u32 = 400;
const SOCKETS: usize = 10_000;
const SOCKETS_TIME: Duration = Duration::from_secs(6);
const REPORTS_IN_BULK: usize = 2_000_000;
const REPORTERS: i64 = 50;
const REPORTS_EACH: usize = 2_000;
const RESTORED: Duration = Duration::from_secs(5);
const ROWS: usize = 300_000;
/// A prediction that is further off is wrong.
const OFF_MAX: f64 = 0.25;
const BATCHES: &str = "thousand batches";
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
    let mut measured = settings.coefficients.clone();
    let mut bench = Bench::start().await?;
    if !settings.check_only {
        // Costs that do not predict are not kept.
        measured.set_extension("new");
        let coefficients = measure(&mut bench).await?;
        let text = serde_json::to_string_pretty(&coefficients).context("the costs as JSON")?;
        println!("{text}");
        std::fs::write(&measured, text + "\n")?;
    }
    check(&mut bench, &measured.display().to_string()).await?;
    if !settings.check_only {
        std::fs::rename(&measured, &settings.coefficients)?;
    }
    Ok(())
}

/// Loads on one broker, one after the other.
struct Bench {
    broker: Arc<kafka::Kafka>,
    loads: usize,
}

/// A load that was measured.
#[derive(Clone, Copy)]
struct Run {
    load: Load,
    gateways: usize,
    rate_per_s: f64,
    cost: Cost,
}

impl Bench {
    async fn start() -> anyhow::Result<Bench> {
        let mut bench = Bench { broker: start_broker().await?, loads: 0 };
        let cluster = bench.cluster(MANY_GATEWAYS / 10).await?;
        let mut served = Served::start(&Load::W, cluster).await?;
        served.warm_up(SLOW_PER_S, BROKER_WARM_UP / 2).await?;
        served.warm_up(FAST_PER_S, BROKER_WARM_UP / 2).await?;
        served.end()?;
        Ok(bench)
    }

    async fn cluster(&mut self, gateways: usize) -> anyhow::Result<Cluster> {
        self.loads += 1;
        Cluster::on(Arc::clone(&self.broker), &format!("load{}.", self.loads), gateways).await
    }

    async fn run(&mut self, load: Load, gateways: usize, rates_per_s: &[u64]) -> anyhow::Result<Vec<Run>> {
        let mut served = Served::start(&load, self.cluster(gateways).await?).await?;
        let mut runs = Vec::new();
        for rate_per_s in rates_per_s {
            served.warm_up(*rate_per_s, WARM_UP).await?;
            let cost = served.cost(*rate_per_s, STEADY).await?;
            println!("  {load}, {gateways} gateways, {rate_per_s} reports/s: {cost:.3?}");
            runs.push(Run { load, gateways, rate_per_s: *rate_per_s as f64, cost });
        }
        served.end()?;
        Ok(runs)
    }

    /// CPU-microseconds of the broker to take a report in and to hand it to a processor, many in a request.
    async fn in_bulk(&mut self, load: Load) -> anyhow::Result<(f64, f64)> {
        let mut served = Served::start(&load, self.cluster(FEW_GATEWAYS).await?).await?;
        served.warm_up(SLOW_PER_S, WARM_UP).await?;
        let (taken, handed) = served.broker_in_bulk_us(REPORTS_IN_BULK).await?;
        served.end()?;
        println!("  in bulk: the broker takes a report in for {taken:.3}, and hands it over for {handed:.3}");
        Ok((taken, handed))
    }
}

impl Run {
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

    /// How much of each of the broker's costs is in a report, but for those that are measured in bulk: two by the second, then notices and requests.
    fn broker_parts(&self) -> [f64; 4] {
        let requests = self.cost.batches + pipeline::REQUESTS_PER_S as f64 / self.rate_per_s;
        [self.second_us(), self.processors() * self.second_us(), self.cost.notices, requests]
    }

    /// And of the processors' but for reading: one by the second, one for each engine, then looks, notices and batches.
    fn processor_parts(&self) -> [f64; 5] {
        [self.processors() * self.second_us(), self.engines(), self.tests(), self.cost.notices, self.cost.batches]
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
        let [awake, hear, test, tell, batch] = least_squares::fit(&parts)?;
        let [awakes, hears, tests, tells, batches] = large.processor_parts();
        let but_join = awakes * awake + hears * hear + batches * batch;
        let cache = (took(large) - but_join) / (tests * test + tells * tell);
        Ok(ProcessorCosts { awake, hear: read + hear, test, tell, batch, cache })
    }
}

async fn measure(bench: &mut Bench) -> anyhow::Result<Value> {
    let of = |users, friends| Load { users, friends, ..Load::W };
    println!("what a report costs, in CPU-microseconds");
    let nobody = Load { connected: 0.0, ..of(USERS, 0) };
    let both = [SLOW_PER_S, FAST_PER_S];
    let mut runs = bench.run(nobody, FEW_GATEWAYS, &FAR_APART_PER_S).await?;
    let read = runs[1].cost.reading_us;
    runs.extend(bench.run(Load { processors: HEARERS, ..nobody }, FEW_GATEWAYS, &FAR_APART_PER_S).await?);
    let far = Load { radius_m: RADIUS_NOBODY_M, ..of(USERS, FRIENDS) };
    runs.extend(bench.run(far, FEW_GATEWAYS, &[FAST_PER_S]).await?);
    let few = bench.run(of(USERS, FRIENDS), FEW_GATEWAYS, &both).await?;
    let many = bench.run(of(USERS, FRIENDS), MANY_GATEWAYS, &both).await?;
    runs.extend_from_slice(&few);
    runs.extend_from_slice(&many);
    let large = bench.run(of(MANY_USERS, FRIENDS), FEW_GATEWAYS, &[FAST_PER_S]).await?[0];

    let processor = ProcessorCosts::of(&runs, &large, read)?;
    runs.push(large);
    let (taken, handed) = bench.in_bulk(nobody).await?;
    let took = |run: &Run| run.cost.broker_us - taken - run.processors() * handed;
    let parts: Vec<_> = runs.iter().map(|run| (run.broker_parts(), took(run))).collect();
    let [broker_awake, reader, notice, request] = least_squares::fit(&parts)?;
    let (round, round_gateway_core) = rounds(&few, &many)?;

    let memory = memory(bench.cluster(1).await?).await?;
    let (frames, frame) = sockets::gateway_sends(SOCKETS, SOCKETS_TIME).await?;
    let socket_bytes = sockets::idle_bytes(SOCKETS).await?;
    let report = report_cpu_us().await?;
    let rows = sink::cost(ROWS).await?;
    let (per_friend, frame) = (friend_bytes(&frame)?, frame.len() as f64);
    Ok(json!({
        "measured": machine()?,
        "processor": {
            "awake_cpu_s": fitted(processor.awake),
            "hear_cpu_s": fitted(processor.hear),
            "read_cpu_s": positive("read", read)?,
            "test_cpu_s": fitted(processor.test),
            "tell_cpu_s": fitted(processor.tell),
            "batch_cpu_s": fitted(processor.batch),
            "round_s": fitted(round),
            "round_gateway_core_s": fitted(round_gateway_core),
            "cache_factor": positive("cache", processor.cache)?,
            "base_bytes": memory.base.round(),
            "list_bytes": positive("a list", memory.list)?,
            "index_bytes": positive("the index", memory.index)?,
            "slot_bytes": positive("a slot", memory.slot)?,
            "restore_cpu_s": positive("restore", memory.restore_us)?,
        },
        "broker": {
            "awake_cpu_s": fitted(broker_awake),
            "reader_cpu_s": fitted(reader),
            "report_cpu_s": positive("taking a report", taken)?,
            "read_cpu_s": positive("handing a report over", handed)?,
            "notice_cpu_s": fitted(notice),
            "request_cpu_s": fitted(request),
            "report_bytes": positive("a report", reports::report_bytes())?,
            "notice_bytes": positive("a notice", many[0].cost.notice_bytes)?,
        },
        "gateway": {
            "frame_cpu_s": positive("a frame", frames.cpu_us)?,
            "report_cpu_s": positive("a report", report)?,
            "socket_bytes": socket_bytes.round(),
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
    let mut world = World::new(MANY_USERS, CENTRES);
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
        slot: (known - base) / f64::from(MANY_USERS),
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

/// Three loads that no cost was measured with.
async fn check(bench: &mut Bench, coefficients: &str) -> anyhow::Result<()> {
    let load = |users, friends| Load { users, friends, ..Load::W };
    let loads = [
        (load(20_000, 40), 100),
        (Load { connected: 0.25, ..load(80_000, 200) }, 10),
        (Load { processors: 2, engine_threads: 2, ..load(40_000, 20) }, 10),
    ];
    let mut far_off = Vec::new();
    println!("\npredictions, beside what was measured; CPU-seconds per million reports");
    for (load, gateways) in loads {
        let measured = bench.run(load, gateways, &[CHECKED_PER_S]).await?[0].cost;
        let predicted = predict(coefficients, &load, gateways, measured)?;
        let measured =
            [("processors", measured.processors_us), ("broker", measured.broker_us), (BATCHES, measured.batches * 1e3)];
        for ((what, measured), predicted) in measured.into_iter().zip(predicted) {
            let off = predicted / measured - 1.0;
            println!("    {what:<18} predicted {predicted:.2}, measured {measured:.2}: {:+.0} %", off * 100.0);
            // Batches are no end in themselves: what they cost is in the other two.
            if what != BATCHES && off.abs() > OFF_MAX {
                far_off.push(format!("{what} of {load}, {gateways} gateways"));
            }
        }
    }
    ensure!(far_off.is_empty(), "the model is wrong about: {}", far_off.join("; "));
    Ok(())
}

/// What `nearby capacity` says of processors and of the broker, which here has neither sinks nor gateways to read from it.
fn predict(coefficients: &str, load: &Load, gateways: usize, measured: Cost) -> anyhow::Result<[f64; 3]> {
    // Without the notice of the reporter's own place.
    let near = ((measured.notices - 1.0) / f64::from(load.friends) / load.connected).clamp(1e-6, 1.0);
    let interval_s = f64::from(load.users) * load.connected / CHECKED_PER_S as f64;
    let settings = [
        ("--users", load.users.to_string()),
        ("--friends", load.friends.to_string()),
        ("--connected", load.connected.to_string()),
        ("--engine-threads", load.engine_threads.to_string()),
        ("--near", near.to_string()),
        ("--interval-s", interval_s.to_string()),
        ("--gateways", gateways.to_string()),
        ("--processors", load.processors.to_string()),
        ("--replicas", "1".to_owned()),
        ("--cores", std::thread::available_parallelism()?.to_string()),
        ("--coefficients", coefficients.to_owned()),
    ];
    let flags = settings.iter().flat_map(|(flag, value)| [*flag, value.as_str()]);
    let arguments: Vec<&str> = ["capacity", "--json"].into_iter().chain(flags).collect();
    let mut nearby = Nearby::start(&arguments, &[])?;
    let status = nearby.finish(Duration::from_secs(10))?;
    ensure!(status.success(), "{}", nearby.stderr());
    let plan: Value = serde_json::from_str(&nearby.stdout().join("\n"))?;
    let figure = |path: &str| plan.pointer(path).and_then(Value::as_f64).with_context(|| format!("no {path}"));
    // The bench writes reports in few requests.
    let costs: Value = serde_json::from_str(&std::fs::read_to_string(coefficients)?)?;
    let request_us = costs.pointer("/broker/request_cpu_s").and_then(Value::as_f64).context("what a request costs")?;
    let cores = pipeline::REQUESTS_PER_S as f64 * request_us / 1e6
        + figure("/broker_cost/awake_cores")?
        + figure("/broker_cost/taken_cores")?
        + figure("/broker_cost/reader_cores")? * load.processors as f64;
    let each = |per_s: f64| per_s / CHECKED_PER_S as f64 * 1e6;
    Ok([figure("/processor_cpu_s_per_million_reports")?, each(cores), each(figure("/batches_per_s")?) / 1e3])
}

fn machine() -> anyhow::Result<String> {
    let info = std::fs::read_to_string("/proc/cpuinfo")?;
    let model =
        info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("?", |(_, name)| name);
    let cores = std::thread::available_parallelism()?;
    let day = std::process::Command::new("date").args(["-u", "+%F"]).output().context("the date")?;
    Ok(format!("{}, {model}, {cores} cores, Kafka on the same", String::from_utf8_lossy(&day.stdout).trim()))
}
