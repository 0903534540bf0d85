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
const SLOW_PER_S: u64 = 60_000;
const FAST_PER_S: u64 = 180_000;
/// A rate of its own, for what is predicted.
const CHECKED_PER_S: u64 = 100_000;
/// Every batch of a gateway takes a request.
const FEW_GATEWAYS: usize = 2;
const MANY_GATEWAYS: usize = 400;
const STEADY: Duration = Duration::from_secs(15);
/// Lists of so many users, with so many friends, are weighed.
const LISTS: u32 = 200_000;
const LIST_FRIENDS: u32 = 400;
const SOCKETS: usize = 1_000;
const SOCKETS_TIME: Duration = Duration::from_secs(6);
const REPORTERS: i64 = 50;
const REPORTS_EACH: usize = 2_000;
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
    if !settings.check_only {
        let coefficients = measure().await?;
        let text = serde_json::to_string_pretty(&coefficients).context("the costs as JSON")?;
        println!("{text}");
        std::fs::write(&settings.coefficients, text + "\n")?;
    }
    check(&settings.coefficients.display().to_string()).await
}

async fn cost(load: Load, gateways: usize, rate_per_s: u64) -> anyhow::Result<Cost> {
    let mut served = Served::start(&load, gateways).await?;
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
        let each_report = ((fast_us * fast - slow_us * slow) / (fast - slow)).max(0.0);
        Line { each_second: ((slow_us - each_report) * slow * 1e-6).max(0.0), each_report }
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
    let of_batch = |of: fn(&Cost) -> f64| ((of(&many) - of(&few_slow)) / (many.batches - few_slow.batches)).max(0.0);
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
    Ok(json!({
        "measured": machine()?,
        "processor": {
            "awake_cpu_s": rounded(processor.each_second),
            "hear_cpu_s": rounded(processor.each_report),
            "read_cpu_s": rounded(heard[1].reading_us),
            "test_cpu_s": rounded(test.max(0.0)),
            "tell_cpu_s": rounded(tell),
            "batch_cpu_s": rounded(batch),
            "cache_factor": rounded(cache.max(1.0)),
            "base_bytes": memory.base.round(),
            "list_bytes": rounded(memory.list),
            "index_bytes": rounded(memory.index),
            "position_bytes": rounded(memory.position),
        },
        "broker": {
            "awake_cpu_s": rounded((broker.each_second - reader.each_second).max(0.0)),
            "reader_cpu_s": rounded(reader.each_second),
            "report_cpu_s": rounded((broker.each_report - reader.each_report).max(0.0)),
            "read_cpu_s": rounded(reader.each_report),
            "notice_cpu_s": rounded(notice.max(0.0)),
            "request_cpu_s": rounded(request),
            "report_bytes": rounded(pipeline::report_bytes()),
            "notice_bytes": rounded(many.notice_bytes),
        },
        "gateway": {
            "frame_cpu_s": rounded(frames.cpu_us),
            "socket_bytes": socket_bytes.round(),
            "frame_bytes": (frame.len() as f64 + PACKET_BYTES).round(),
        },
        "ingest": { "report_cpu_s": rounded(report) },
        "sink": {
            "row_cpu_s": rounded(rows.client_s),
            "postgres_row_cpu_s": rounded(rows.postgres_s),
            "row_bytes": rounded(rows.bytes),
        },
    }))
}

struct Memory {
    base: f64,
    list: f64,
    index: f64,
    position: f64,
}

/// Resident memory of processors that hold more and more.
async fn memory() -> anyhow::Result<Memory> {
    let mut world = World::new(MANY_USERS, CENTRES);
    let cluster = Cluster::start(1).await?;
    let base = resident(&cluster).await?;
    cluster.report_all(&world).await?;
    let positions = resident(&cluster).await?;
    let lists: Vec<Vec<u32>> = (0..LISTS).map(|user| world.acquaintances(user, LIST_FRIENDS)).collect();
    cluster.write_lists(&lists).await?;
    let with_lists = resident(&cluster).await?;
    cluster.open_sessions(LISTS).await?;
    let connected = resident(&cluster).await?;
    let edges = lists.iter().map(Vec::len).sum::<usize>() as f64;
    Ok(Memory {
        base,
        position: (positions - base) / f64::from(MANY_USERS),
        list: (with_lists - positions) / edges,
        index: (connected - with_lists) / edges,
    })
}

/// Of a processor that has restored what is there.
async fn resident(cluster: &Cluster) -> anyhow::Result<f64> {
    let mut processor = Processor::start(cluster, &Load::W)?;
    // Older positions come after it serves.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let bytes = cpu::resident_bytes(processor.program.pid())?;
    processor.program.terminate()?;
    Ok(bytes as f64)
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
    let load = |processors, users, friends| Load { users, friends, processors, ..Load::W };
    let mut far_off = Vec::new();
    println!("\npredictions, beside what was measured; CPU-seconds per million reports");
    for (load, gateways) in [(load(1, 20_000, 40), 100), (load(1, 60_000, 100), 10), (load(2, 40_000, 20), 40)] {
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
    let near = ((measured.notices - 1.0) / f64::from(load.friends)).clamp(1e-6, 1.0);
    let interval_s = f64::from(load.users) / CHECKED_PER_S as f64;
    let settings = [
        ("--users", load.users.to_string()),
        ("--friends", load.friends.to_string()),
        ("--connected", "1".to_owned()),
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
    Ok(format!("{model}, {cores} cores, Kafka on the same"))
}

fn rounded(number: f64) -> f64 {
    let digits = 10_f64.powi(3 - number.abs().max(1e-9).log10().ceil() as i32);
    (number * digits).round() / digits
}
