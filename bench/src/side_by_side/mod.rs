//! `nearby-bench side-by-side`: this pipeline beside what a user would pick instead, on the same input, machine and run.
//! `bench/peers/README.md` says what each peer is, its settings, and what it does not do.

mod driver;
mod fed;
mod heard;
mod kafka_driver;
mod limits;
mod loads;
mod machine;
mod measured;
pub mod ours;
mod polling;
pub mod redis;
mod resp;
mod scale;
mod standing;
pub mod streams;
mod svg;
mod table;
mod tables;
pub mod tile38;
mod truth;

use anyhow::Context;
use loads::{Input, Loads, Workload};
use measured::{Row, measure};
use polling::Distance;
use serde_json::{Value, json};
use standing::Standing;
use std::path::PathBuf;
use streams::{Stores, Streams};
use tokio::task::block_in_place;

/// Settings of `nearby-bench side-by-side`.
#[derive(clap::Args)]
pub struct Settings {
    /// Whom to measure
    #[arg(long, value_delimiter = ',', default_value = "nearby,redis,streams,polling,tile38")]
    peers: Vec<Who>,
    /// Numbers of gateways, for the peers to whom that matters
    #[arg(long, value_delimiter = ',', default_value = "2,10,40,200")]
    gateways: Vec<usize>,
    /// What all of them are given
    #[arg(long, value_delimiter = ',', default_value = "w")]
    workload: Vec<Workload>,
    #[command(flatten)]
    input: Input,
    #[command(flatten)]
    scale: scale::ScaleSettings,
    /// Also bare loops that do the least of each stage
    #[arg(long)]
    limits: bool,
    /// Reports of a run; of a recording at most its part
    #[arg(long, default_value_t = 400_000)]
    reports: usize,
    /// The same for Kafka Streams and polling (and as many questions), which take a hundred times as long, and a 25th of it for Tile38, which takes thousands of times
    #[arg(long, default_value_t = 100_000)]
    slow_reports: usize,
    /// Runs in each setting, in the same processes
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Steady reports a second, for latencies; Tile38 has a rate of its own
    #[arg(long, default_value_t = 2_000)]
    rate_per_s: u64,
    /// How long these last, in seconds; 0 leaves them out
    #[arg(long, default_value_t = 10)]
    latency_s: u64,
    /// Write all figures to this file
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
    /// Draw the costs into this file
    #[arg(long, value_name = "PATH")]
    svg: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Who {
    /// This pipeline
    Nearby,
    /// Redis, a channel a user
    Redis,
    /// Kafka Streams, with its stores in memory and in RocksDB
    Streams,
    /// A table in Postgres that every viewer asks every 30 s
    Polling,
    /// A geofence that roams
    Tile38,
}

/// What came of a workload.
struct Measured {
    workload: Workload,
    described: String,
    rows: Vec<Row>,
    not_run: Vec<String>,
}

/// Runs and prints.
pub async fn run(settings: &Settings) -> anyhow::Result<()> {
    let (machine, shared) = (machine::described(), machine::is_shared());
    machine.iter().for_each(|(name, value)| println!("{name}: {value}"));
    let (mut all, mut held, mut not_held) = (Vec::new(), Vec::new(), Vec::new());
    let mut broker = Standing::default();
    for workload in &settings.workload {
        if *workload == Workload::Scale {
            (held, not_held) = scale::run(&settings.peers, &settings.scale, &mut broker).await?;
            println!("{}", scale::table(&held));
            not_held.iter().for_each(|line| println!("{line}"));
        } else {
            all.push(of_workload(*workload, settings, &mut broker).await);
        }
    }
    drop(broker);
    let limits = if settings.limits { limits::run(settings.runs).await? } else { Vec::new() };
    if settings.limits {
        println!("{}", limits::table(&limits));
    }
    if shared {
        println!("measured while others used the machine");
    }
    if let Some(path) = &settings.json {
        let workloads: Vec<Value> = all.iter().map(Measured::json).collect();
        let text = json!({
            "machine": machine::json(&machine),
            "measured_while_others_used_the_machine": shared,
            "workloads": workloads,
            "scale": {"peers": scale::json(&held), "not_run": not_held},
            "limits": limits::json(&limits),
        });
        std::fs::write(path, serde_json::to_string_pretty(&text)? + "\n")
            .with_context(|| format!("writing {}", path.display()))?;
    }
    if let Some(path) = &settings.svg {
        let others = if shared { ", measured while others used the machine" } else { "" };
        for (number, measured) in all.iter().enumerate() {
            let subtitle = format!("{}, {} runs{others}", measured.described, settings.runs);
            // Those after the first beside it, with their names.
            let ending = format!("{}.svg", measured.workload.name());
            let path = if number == 0 { path.clone() } else { path.with_extension(ending) };
            if let Some(picture) = svg::picture(&measured.rows, &subtitle) {
                std::fs::write(&path, picture).with_context(|| format!("writing {}", path.display()))?;
            }
        }
    }
    Ok(())
}

impl Measured {
    fn json(&self) -> Value {
        json!({"name": self.workload.name(), "described": self.described, "rows": tables::json(&self.rows), "not_run": self.not_run})
    }
}

/// All peers, one after the other; prints.
async fn of_workload(workload: Workload, settings: &Settings, broker: &mut Standing) -> Measured {
    let mut measured = Measured { workload, described: String::new(), rows: Vec::new(), not_run: Vec::new() };
    match Loads::new(workload, &settings.input) {
        Err(error) => measured.not_run.push(format!("NOT RUN: {}: {error:#}", workload.name())),
        Ok(loads) => {
            measured.described = loads.described();
            println!("\n{}; {} runs of at most {} reports", measured.described, settings.runs, settings.reports);
            for who in &settings.peers {
                // A peer that fails says so, and leaves the others their turn.
                if let Err(error) = one(*who, settings, &loads, broker, &mut measured.rows).await {
                    measured.not_run.push(format!("NOT RUN: {}: {error:#}", name(*who)));
                }
            }
            println!("{}", tables::tables(&measured.rows));
        }
    }
    measured.not_run.iter().for_each(|line| println!("{line}"));
    measured
}

fn name(who: Who) -> String {
    clap::ValueEnum::to_possible_value(&who).map_or(String::new(), |value| value.get_name().to_owned())
}

async fn one(
    who: Who,
    settings: &Settings,
    loads: &Loads,
    broker: &mut Standing,
    rows: &mut Vec<Row>,
) -> anyhow::Result<()> {
    match who {
        Who::Nearby => {
            let at_work = broker.go_on().await?;
            for gateways in &settings.gateways {
                let (mut loads, row) = (loads.again(), row("nearby", *gateways));
                let mut peer = ours::Ours::start(at_work.broker(), &loads, *gateways, 1).await?;
                rows.push(block_in_place(|| measure(&mut peer, &mut loads, settings, settings.reports, row))?);
                peer.stop().await?;
            }
        }
        Who::Redis => {
            for gateways in &settings.gateways {
                let (mut loads, row) = (loads.again(), row("redis", *gateways));
                rows.push(block_in_place(|| {
                    let mut peer = redis::start(&loads, *gateways)?;
                    measure(&mut peer, &mut loads, settings, settings.reports, row)
                })?);
            }
        }
        Who::Streams => {
            let at_work = broker.go_on().await?;
            for stores in [Stores::Memory, Stores::RocksDb] {
                let mut loads = loads.again();
                let mut peer = Streams::start(at_work.broker(), &loads, stores).await?;
                let row = Row { peer: "streams", setting: stores.name().to_owned(), ..Row::default() };
                rows.push(block_in_place(|| measure(&mut peer, &mut loads, settings, settings.slow_reports, row))?);
                peer.stop().await?;
            }
        }
        Who::Polling => {
            for distance in [Distance::Haversine, Distance::PostGis] {
                rows.push(polling::run(settings, loads.again(), settings.slow_reports, distance).await?);
            }
        }
        Who::Tile38 => {
            let mut loads = loads.again();
            let (setting, rate_per_s) = ("1 gateway".to_owned(), tile38::RATE_PER_S);
            let row = Row { peer: "tile38", setting, rate_per_s, ..Row::default() };
            rows.push(block_in_place(|| {
                let mut peer = tile38::start(&loads)?;
                measure(&mut peer, &mut loads, settings, settings.slow_reports / tile38::SLOWER, row)
            })?);
        }
    }
    Ok(())
}

fn row(peer: &'static str, gateways: usize) -> Row {
    Row { peer, setting: format!("{gateways} gateways"), ..Row::default() }
}
