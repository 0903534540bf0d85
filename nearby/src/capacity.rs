//! `nearby capacity`: machines for given users, friends and rate, from measured costs.

mod coefficients;
mod model;

use crate::BadSetting;
use anyhow::Context;
use coefficients::Coefficients;
use model::{Load, Machines, Plan, Share};
use std::path::PathBuf;

/// Measured by `make bench`, and kept with the source.
const MEASURED: &str = include_str!("../../bench/coefficients.json");
const GIB: f64 = 1_073_741_824.0;

/// Settings of `nearby capacity`.
#[derive(clap::Args)]
pub struct CapacitySettings {
    /// People who have a friend list
    #[arg(long, default_value_t = 100_000_000.0, value_parser = positive)]
    users: f64,
    /// Part of them who are connected at once
    #[arg(long, default_value_t = 0.1, value_parser = part)]
    connected: f64,
    /// Friends of each
    #[arg(long, default_value_t = 400.0, value_parser = positive)]
    friends: f64,
    /// Part of somebody's connected friends who are near; 1 is the most there can be
    #[arg(long, default_value_t = 0.25, value_parser = part)]
    near: f64,
    /// Each connected person reports this often, in seconds
    #[arg(long, default_value_t = 30.0, value_parser = positive)]
    interval_s: f64,
    /// Partitions of location-events, friend-lists and sessions
    #[arg(long, default_value_t = 256.0, value_parser = positive)]
    partitions: f64,
    /// Cores of a machine
    #[arg(long, default_value_t = 16.0, value_parser = positive)]
    cores: f64,
    /// Memory of a machine, in GiB
    #[arg(long, default_value_t = 64.0, value_parser = positive)]
    memory_gib: f64,
    /// Network of a machine, in gigabits a second each way
    #[arg(long, default_value_t = 25.0, value_parser = positive)]
    network_gbit_per_s: f64,
    /// Part of cores, memory and network that is planned with: the rest is for bursts, restarts and lost machines
    #[arg(long, default_value_t = 0.5, value_parser = part)]
    usable: f64,
    /// Sockets of a gateway, at most
    #[arg(long, default_value_t = 50_000.0, value_parser = positive)]
    gateway_sockets: f64,
    /// So many gateways, not as many as it takes
    #[arg(long, value_parser = positive)]
    gateways: Option<f64>,
    /// So many processors, not as many as it takes
    #[arg(long, value_parser = positive)]
    processors: Option<f64>,
    /// Copies of each record in Kafka
    #[arg(long, default_value_t = 3.0, value_parser = positive)]
    replicas: f64,
    /// How long location-events keeps reports, in days
    #[arg(long, default_value_t = 7.0, value_parser = positive)]
    retention_days: f64,
    /// Costs from this file, as `nearby-bench capacity` writes it, not those that came with the program
    #[arg(long, value_name = "FILE")]
    coefficients: Option<PathBuf>,
    /// Print the plan as JSON
    #[arg(long)]
    json: bool,
}

/// Works it out and prints it.
pub fn capacity(settings: &CapacitySettings) -> anyhow::Result<()> {
    let coefficients = coefficients(settings)?;
    let load = Load {
        users: settings.users,
        connected: settings.connected,
        friends: settings.friends,
        near: settings.near,
        interval_s: settings.interval_s,
        partitions: settings.partitions,
    };
    let machines = Machines {
        cores: settings.cores,
        memory_bytes: settings.memory_gib * GIB,
        network_bytes_per_s: settings.network_gbit_per_s * 1e9 / 8.0,
        usable: settings.usable,
        gateway_sockets: settings.gateway_sockets,
        processors: settings.processors,
        gateways: settings.gateways,
        replicas: settings.replicas,
        retention_days: settings.retention_days,
    };
    let plan = model::plan(&coefficients, &load, &machines).map_err(|beyond| {
        BadSetting(format!(
            "{beyond}: run a cluster for each region, or put a filter by H3 cells in front (docs/operators.md, capacity)"
        ))
    })?;
    if settings.json {
        println!("{}", serde_json::to_string_pretty(&plan).context("the plan as JSON")?);
    } else {
        print!("{}", text(&plan, &coefficients, settings));
    }
    Ok(())
}

fn coefficients(settings: &CapacitySettings) -> anyhow::Result<Coefficients> {
    let Some(path) = &settings.coefficients else {
        return serde_json::from_str(MEASURED).context("the costs that came with the program");
    };
    let text = std::fs::read_to_string(path).map_err(|error| BadSetting(format!("{}: {error}", path.display())))?;
    Ok(serde_json::from_str(&text).map_err(|error| BadSetting(format!("{}: {error}", path.display())))?)
}

fn text(plan: &Plan, coefficients: &Coefficients, settings: &CapacitySettings) -> String {
    let mut lines = vec![
        format!("costs       {}", coefficients.measured),
        format!(
            "load        {} reports/s; {} notices/s, {} if all connected friends were near; {} batches/s to {} gateways",
            count(plan.reports_per_s),
            count(plan.notices_per_s),
            count(plan.notices_per_s_max),
            count(plan.batches_per_s),
            count(plan.gateway.machines),
        ),
        format!(
            "machines    of {} cores, {} GiB, {} Gbit/s, used to {:.0} %",
            settings.cores,
            settings.memory_gib,
            settings.network_gbit_per_s,
            settings.usable * 100.0
        ),
        String::new(),
        format!("{:<12}{:>9}{:>9}{:>14}{:>13}{:>13}{:>12}", "", "machines", "cores", "memory", "in", "out", "disk"),
    ];
    let mut row = |name: &str, share: &Share| {
        let Share { machines, cores, memory_bytes, in_bytes_per_s, out_bytes_per_s, disk_bytes } = share;
        let or_none = |amount: f64, text: String| if amount == 0.0 { String::new() } else { text };
        lines.push(format!(
            "{name:<12}{machines:>9.0}{cores:>9.1}{:>14}{:>13}{:>13}{:>12}",
            or_none(*memory_bytes, bytes(*memory_bytes)),
            or_none(*in_bytes_per_s, format!("{}/s", bytes(*in_bytes_per_s))),
            or_none(*out_bytes_per_s, format!("{}/s", bytes(*out_bytes_per_s))),
            or_none(*disk_bytes, bytes(*disk_bytes)),
        ));
    };
    row("ingest", &plan.ingest);
    row("processor", &plan.processor);
    row("pusher", &plan.gateway);
    row("broker", &plan.broker);
    row("sink", &plan.sink);
    row("Postgres", &plan.postgres);
    lines.push(String::new());
    lines.push(format!(
        "requests    {:.1} of each copy's broker cores are for reports that come one in a request, which fewer, larger gateways would save",
        plan.broker_cost.requests_cores
    ));
    let copies = plan.processor.machines;
    lines.extend([
        format!("lists       {} of all users, {} of them in each processor", bytes(plan.lists_bytes), bytes(plan.lists_bytes / copies)),
        format!("index       {} of the connected, {} of it in each processor", bytes(plan.index_bytes), bytes(plan.index_bytes / copies)),
        format!("positions   {} in each processor", bytes(plan.positions_bytes)),
        format!(
            "hearing     {:.0} % of the processors' time; half of it with {} processors, beyond which more of them stop paying",
            plan.hearing * 100.0,
            count(plan.processors_half_hearing),
        ),
        "Postgres    its disk is what a day adds".to_owned(),
        String::new(),
        "What more machines do not widen, the tightest first:".to_owned(),
    ]);
    for bottleneck in &plan.bottlenecks {
        lines.push(format!("  {:>4.0} %  {}", bottleneck.taken * 100.0, bottleneck.what));
    }
    lines.join("\n") + "\n"
}

fn count(number: f64) -> String {
    match number {
        1e6.. => format!("{:.1} M", number / 1e6),
        1e4.. => format!("{:.0} k", number / 1e3),
        _ => format!("{number:.0}"),
    }
}

fn bytes(number: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut scaled = (number, units[0]);
    for unit in &units[1..] {
        if scaled.0 < 1_000.0 {
            break;
        }
        scaled = (scaled.0 / 1_024.0, unit);
    }
    format!("{:.1} {}", scaled.0, scaled.1)
}

fn positive(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if number.is_finite() && number > 0.0 { Ok(number) } else { Err("has to be greater than 0".to_owned()) }
}

fn part(text: &str) -> Result<f64, String> {
    let part = positive(text)?;
    if part <= 1.0 { Ok(part) } else { Err("has to be at most 1".to_owned()) }
}
