//! The costs that `nearby capacity` plans with, measured one by one; and what it says of three other loads, beside what they take.

use crate::cluster::Cluster;
use crate::cpu;
use crate::edge::Edge;
use crate::pipeline::{self, Cost, Load, Processor, Served};
use crate::sink;
use crate::sockets;
use crate::workload::World;
use anyhow::{Context, ensure};
use nearby_client::{Api, Connection, Heard};
use nearby_e2e::nearby::Nearby;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;
use tokio::task::JoinSet;

const CENTRES: u32 = 20;
const USERS: u32 = 20_000;
const MANY_USERS: u32 = 1_000_000;
const FRIENDS: u32 = 40;
/// Below this nobody is near.
const RADIUS_NOBODY_M: u32 = 1;
/// Steady rates: some costs are a second's, the others a report's.
const SLOW_PER_S: u64 = 50_000;
const FAST_PER_S: u64 = 150_000;
/// A rate of its own, for what is predicted.
const CHECKED_PER_S: u64 = 100_000;
/// Every batch of a gateway takes a request.
const FEW_GATEWAYS: usize = 2;
const MANY_GATEWAYS: usize = 400;
const WARM_UP: Duration = Duration::from_secs(15);
const STEADY: Duration = Duration::from_secs(15);
/// Lists of so many users, with so many friends, are weighed.
const LISTS: u32 = 200_000;
const LIST_FRIENDS: u32 = 400;
const SOCKETS: usize = 1_000;
const SOCKETS_TIME: Duration = Duration::from_secs(6);
const REPORTERS: i64 = 50;
const REPORTS_EACH: usize = 2_000;
const RESTORED: Duration = Duration::from_secs(5);
const ROWS: usize = 300_000;
/// A prediction that is further off is wrong.
const OFF_MAX: f64 = 0.25;
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
    if !settings.check_only {
        // Costs that do not predict are not kept.
        measured.set_extension("new");
        let coefficients = measure().await?;
        let text = serde_json::to_string_pretty(&coefficients).context("the costs as JSON")?;
        println!("{text}");
        std::fs::write(&measured, text + "\n")?;
    }
    check(&measured.display().to_string()).await?;
    if !settings.check_only {
        std::fs::rename(&measured, &settings.coefficients)?;
    }
    Ok(())
}

async fn cost(load: Load, gateways: usize, rate_per_s: u64) -> anyhow::Result<Cost> {
    let mut served = Served::start(&load, gateways).await?;
    // The broker's virtual machine compiles what runs often, and only then.
    served.warm_up(rate_per_s, WARM_UP).await?;
    let cost = served.cost(rate_per_s, STEADY).await?;
    served.end()?;
    println!("  {load}, {gateways} gateways, {rate_per_s} reports/s: {cost:.3?}");
    Ok(cost)
}

/// What costs by the second, in CPU-seconds, and what by the report, in CPU-microseconds.
#[derive(Clone, Copy)]
struct Line {
    each_second: f64,
    each_report: f64,
}

impl Line {
    /// Through the costs of a report at both rates.
    fn through(slow_us: f64, fast_us: f64) -> Line {
        let (slow, fast) = (SLOW_PER_S as f64, FAST_PER_S as f64);
        let each_report = (fast_us * fast - slow_us * slow) / (fast - slow);
        Line { each_second: (slow_us - each_report) * slow * 1e-6, each_report }
    }
}

async fn measure() -> anyhow::Result<Value> {
    let of = |users, friends| Load { users, friends, ..Load::W };
    println!("what a report costs, in CPU-microseconds");
    let nobody = Load { connected: 0.0, ..of(USERS, 0) };
    let heard = [cost(nobody, FEW_GATEWAYS, SLOW_PER_S).await?, cost(nobody, FEW_GATEWAYS, FAST_PER_S).await?];
    let twice = Load { processors: 2, ..nobody };
    let twice = [cost(twice, FEW_GATEWAYS, SLOW_PER_S).await?, cost(twice, FEW_GATEWAYS, FAST_PER_S).await?];
    let far = Load { radius_m: RADIUS_NOBODY_M, ..of(USERS, FRIENDS) };
    let tested = cost(far, FEW_GATEWAYS, FAST_PER_S).await?;
    let few = cost(of(USERS, FRIENDS), FEW_GATEWAYS, FAST_PER_S).await?;
    let large = cost(of(MANY_USERS, FRIENDS), FEW_GATEWAYS, FAST_PER_S).await?;
    let few_slow = cost(of(USERS, FRIENDS), FEW_GATEWAYS, SLOW_PER_S).await?;
    let many = cost(of(USERS, FRIENDS), MANY_GATEWAYS, SLOW_PER_S).await?;

    let through = |of: fn(&Cost) -> f64| Line::through(of(&heard[0]), of(&heard[1]));
    let (processor, broker) = (through(|cost| cost.processors_us), through(|cost| cost.broker_us));
    let second_reader = |at: usize| twice[at].broker_us - heard[at].broker_us;
    let reader = Line::through(second_reader(0), second_reader(1));
    // Two loads with as many notices, and very different numbers of batches.
    let of_batch = |of: fn(&Cost) -> f64| (of(&many) - of(&few_slow)) / (many.batches - few_slow.batches);
    let (batch, request) = (of_batch(|cost| cost.processors_us), of_batch(|cost| cost.broker_us));
    // Both have a notice of the reporter's own place; a report tests its friends, and as a viewer's all of those again.
    let tell = (few.processors_us - tested.processors_us) / (few.notices - tested.notices);
    let own_place = tested.notices * tell + tested.batches * batch;
    let test = (tested.processors_us - heard[1].processors_us - own_place) / f64::from(2 * FRIENDS);
    let cache = (large.processors_us - heard[1].processors_us) / (few.processors_us - heard[1].processors_us);
    let notice = (few.broker_us - heard[1].broker_us - few.batches * request) / few.notices;

    let memory = memory().await?;
    let (frames, frame) = sockets::gateway_sends(SOCKETS, SOCKETS_TIME).await?;
    let socket_bytes = sockets::idle_bytes(10 * SOCKETS).await?;
    let report = report_cpu_us().await?;
    let rows = sink::cost(ROWS).await?;
    let (per_friend, frame) = (friend_bytes(&frame)?, frame.len() as f64);
    Ok(json!({
        "measured": machine()?,
        "processor": {
            "awake_cpu_s": positive("awake", processor.each_second)?,
            "hear_cpu_s": positive("hear", processor.each_report)?,
            "read_cpu_s": positive("read", heard[1].reading_us)?,
            "test_cpu_s": positive("test", test)?,
            "tell_cpu_s": positive("tell", tell)?,
            "batch_cpu_s": positive("batch", batch)?,
            "cache_factor": positive("cache", cache)?,
            "base_bytes": memory.base.round(),
            "list_bytes": positive("a list", memory.list)?,
            "index_bytes": positive("the index", memory.index)?,
            "slot_bytes": positive("a slot", memory.slot)?,
            "restore_cpu_s": positive("restore", memory.restore_us)?,
        },
        "broker": {
            "awake_cpu_s": positive("awake", broker.each_second - reader.each_second)?,
            "reader_cpu_s": positive("a reader", reader.each_second)?,
            "report_cpu_s": positive("a report", broker.each_report - reader.each_report)?,
            "read_cpu_s": positive("reading", reader.each_report)?,
            "notice_cpu_s": positive("a notice", notice)?,
            "request_cpu_s": positive("a request", request)?,
            "report_bytes": positive("a report", pipeline::report_bytes())?,
            "notice_bytes": positive("a notice", many.notice_bytes)?,
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

/// Of a frame that tells of one friend, what is that friend's.
fn friend_bytes(frame: &str) -> anyhow::Result<f64> {
    let (from, to) = (frame.find("[{").context("a friend")?, frame.find("}]").context("its end")?);
    Ok((to - from) as f64)
}

/// Three digits. Costs are differences of runs: one that is none was not measured.
fn positive(what: &str, cost: f64) -> anyhow::Result<f64> {
    ensure!(cost.is_finite() && cost > 0.0, "the cost of {what} came out as {cost}: the machine was not quiet");
    let digits = 10_f64.powi(2 - cost.log10().floor() as i32);
    Ok((cost * digits).round() / digits)
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
async fn memory() -> anyhow::Result<Memory> {
    let mut world = World::new(MANY_USERS, CENTRES);
    let cluster = Cluster::start(1).await?;
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
async fn check(coefficients: &str) -> anyhow::Result<()> {
    let load = |users, friends| Load { users, friends, ..Load::W };
    let loads = [
        (load(20_000, 40), 100),
        (Load { connected: 0.25, ..load(80_000, 200) }, 10),
        (Load { processors: 2, engine_threads: 2, ..load(40_000, 20) }, 10),
    ];
    let mut far_off = Vec::new();
    println!("\npredictions, beside what was measured; CPU-seconds per million reports");
    for (load, gateways) in loads {
        let measured = cost(load, gateways, CHECKED_PER_S).await?;
        let predicted = predict(coefficients, &load, gateways, measured)?;
        let measured = [("processors", measured.processors_us), ("broker", measured.broker_us)];
        for ((what, measured), predicted) in measured.into_iter().zip(predicted) {
            let off = predicted / measured - 1.0;
            println!("    {what:<12} predicted {predicted:.2}, measured {measured:.2}: {:+.0} %", off * 100.0);
            if off.abs() > OFF_MAX {
                far_off.push(format!("{what} of {load}, {gateways} gateways"));
            }
        }
    }
    ensure!(far_off.is_empty(), "the model is wrong about: {}", far_off.join("; "));
    Ok(())
}

/// What `nearby capacity` says of processors and of the broker, which here has neither sinks nor gateways to read from it.
fn predict(coefficients: &str, load: &Load, gateways: usize, measured: Cost) -> anyhow::Result<[f64; 2]> {
    // Without the notice of the reporter's own place.
    let near = ((measured.notices - load.connected) / f64::from(load.friends) / load.connected).clamp(1e-6, 1.0);
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
        ("--coefficients", coefficients.to_owned()),
    ];
    let flags = settings.iter().flat_map(|(flag, value)| [*flag, value.as_str()]);
    let arguments: Vec<&str> = ["capacity", "--json"].into_iter().chain(flags).collect();
    let mut nearby = Nearby::start(&arguments, &[])?;
    let status = nearby.finish(Duration::from_secs(10))?;
    ensure!(status.success(), "{}", nearby.stderr());
    let plan: Value = serde_json::from_str(&nearby.stdout().join("\n"))?;
    let figure = |path: &str| plan.pointer(path).and_then(Value::as_f64).with_context(|| format!("no {path}"));
    // The bench writes reports many in a request.
    let cores = figure("/broker_cost/awake_cores")?
        + figure("/broker_cost/taken_cores")?
        + figure("/broker_cost/reader_cores")? * load.processors as f64;
    Ok([figure("/processor_cpu_s_per_million_reports")?, cores / CHECKED_PER_S as f64 * 1e6])
}

fn machine() -> anyhow::Result<String> {
    let info = std::fs::read_to_string("/proc/cpuinfo")?;
    let model =
        info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("?", |(_, name)| name);
    let cores = std::thread::available_parallelism()?;
    let day = std::process::Command::new("date").args(["-u", "+%F"]).output().context("the date")?;
    Ok(format!("{}, {model}, {cores} cores, Kafka on the same", String::from_utf8_lossy(&day.stdout).trim()))
}
