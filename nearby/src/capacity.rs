//! `nearby capacity`: machines for given users, friends and rate, from measured costs.

mod coefficients;
mod model;
#[cfg(test)]
mod model_tests;

use crate::BadSetting;
use anyhow::Context;
use coefficients::Coefficients;
use model::{Bottleneck, Load, Machines, Plan, Share};
use std::num::NonZeroU32;
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
    #[arg(long, default_value = "256")]
    partitions: NonZeroU32,
    /// Cores of a machine
    #[arg(long, default_value = "16")]
    cores: NonZeroU32,
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
    #[arg(long, default_value = "50000")]
    gateway_sockets: NonZeroU32,
    /// So many gateways, not as many as it takes
    #[arg(long)]
    gateways: Option<NonZeroU32>,
    /// So many processors, not as many as it takes
    #[arg(long)]
    processors: Option<NonZeroU32>,
    /// Engine threads of a processor; each knows everybody and hears every report
    #[arg(long, default_value = "1")]
    engine_threads: NonZeroU32,
    /// Copies of each record in Kafka
    #[arg(long, default_value = "3")]
    replicas: NonZeroU32,
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
        partitions: f64::from(settings.partitions.get()),
    };
    let machines = Machines {
        cores: f64::from(settings.cores.get()),
        memory_bytes: settings.memory_gib * GIB,
        network_bytes_per_s: settings.network_gbit_per_s * 1e9 / 8.0,
        usable: settings.usable,
        gateway_sockets: f64::from(settings.gateway_sockets.get()),
        engine_threads: f64::from(settings.engine_threads.get()),
        processors: settings.processors.map(|count| f64::from(count.get())),
        gateways: settings.gateways.map(|count| f64::from(count.get())),
        replicas: f64::from(settings.replicas.get()),
        retention_days: settings.retention_days,
    };
    let plan = model::plan(&coefficients, &load, &machines).map_err(|beyond| {
        BadSetting(format!(
            "{beyond}: run a cluster for each region, or put a filter by H3 cells in front (docs/operators.md, \"How many machines\")"
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
    let rows = [
        ("processor", &plan.processor),
        ("pusher", &plan.gateway),
        ("broker", &plan.broker),
        ("sink", &plan.sink),
        ("Postgres", &plan.postgres),
    ];
    lines.extend(rows.into_iter().map(|(name, share)| row(name, share)));
    lines.push(String::new());
    let copies = plan.processor.machines;
    lines.extend([
        format!(
            "lists       {} of all users, {} in each processor, which takes {:.0} s to read them at its start",
            bytes(plan.lists_bytes),
            bytes(plan.lists_bytes / copies),
            plan.restore_s
        ),
        format!(
            "index       {} of the connected, {} in each processor",
            bytes(plan.index_bytes),
            bytes(plan.index_bytes / copies)
        ),
        format!("known       {} in each processor: who reports, or is in a list of its", bytes(plan.known_bytes)),
        format!(
            "hearing     {:.0} % of the processors' time is what each of them adds: hearing everybody, batches of its own; half of it \
             with {} of them, beyond which more stop paying",
            plan.hearing * 100.0,
            count(plan.processors_half_hearing),
        ),
        format!(
            "requests    {:.1} of the brokers' cores are for reports that come in few to a request: only a longer linger or fewer \
             partitions would save these",
            plan.broker_cost.requests_cores
        ),
        "pusher      takes reports in by WebSocket too; its memory is that of idle sockets".to_owned(),
        "Postgres    one server; its disk is what a day adds".to_owned(),
        String::new(),
        "What more machines do not widen, of what is usable, the tightest first:".to_owned(),
    ]);
    for Bottleneck { what, taken } in &plan.bottlenecks {
        let does_it_fit = if *taken > 1.0 { "  DOES NOT FIT" } else { "" };
        lines.push(format!("  {:>4.0} %  {what}{does_it_fit}", taken * 100.0));
    }
    lines.join("\n") + "\n"
}

fn row(name: &str, share: &Share) -> String {
    let Share { machines, cores, memory_bytes, in_bytes_per_s, out_bytes_per_s, disk_bytes } = share;
    let or_none = |amount: f64, text: String| if amount == 0.0 { String::new() } else { text };
    format!(
        "{name:<12}{machines:>9.0}{cores:>9.1}{:>14}{:>13}{:>13}{:>12}",
        or_none(*memory_bytes, bytes(*memory_bytes)),
        or_none(*in_bytes_per_s, format!("{}/s", bytes(*in_bytes_per_s))),
        or_none(*out_bytes_per_s, format!("{}/s", bytes(*out_bytes_per_s))),
        or_none(*disk_bytes, bytes(*disk_bytes)),
    )
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
