//! `nearby-bench side-by-side`: this pipeline beside what a user would pick instead, on the same input, machine and run.
//! `bench/peers/README.md` says what each peer is, its settings, and what it does not do.

mod driver;
mod heard;
mod kafka_driver;
mod machine;
mod measured;
pub mod ours;
mod polling;
pub mod redis;
mod resp;
pub mod streams;
mod svg;
mod table;
mod tables;
mod truth;

use anyhow::{Context, bail};
use driver::Loads;
use measured::{Row, measure};
use polling::Distance;
use serde_json::json;
use std::path::PathBuf;
use std::process::Command;
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
    /// Users, all of them connected
    #[arg(long, default_value_t = 20_000)]
    users: u32,
    /// Friends of each
    #[arg(long, default_value_t = 40)]
    friends: u32,
    /// Reports of a run, rounded up to whole rounds of all users
    #[arg(long, default_value_t = 400_000)]
    reports: usize,
    /// The same for Kafka Streams and polling, which take a hundred times as long
    #[arg(long, default_value_t = 100_000)]
    slow_reports: usize,
    /// Runs in each setting, in the same processes
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Steady reports a second, for latencies
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

/// Runs and prints.
pub async fn run(settings: &Settings) -> anyhow::Result<()> {
    let (machine, shared) = (machine::described(), machine::is_shared());
    machine.iter().for_each(|(name, value)| println!("{name}: {value}"));
    println!(
        "W: {} users, {} friends each, {} runs of {} reports",
        settings.users, settings.friends, settings.runs, settings.reports
    );
    let (mut rows, mut not_run) = (Vec::new(), Vec::new());
    for who in &settings.peers {
        // A peer that fails says so, and leaves the others their turn.
        if let Err(error) = one(*who, settings, &mut rows).await {
            let name = clap::ValueEnum::to_possible_value(who).context("every peer has a name")?;
            not_run.push(format!("NOT RUN: {}: {error:#}", name.get_name()));
        }
    }
    println!("{}", tables::tables(&rows));
    not_run.iter().for_each(|line| println!("{line}"));
    if shared {
        println!("measured while others used the machine");
    }
    if let Some(path) = &settings.json {
        let all = json!({
            "machine": machine::json(&machine),
            "measured_while_others_used_the_machine": shared,
            "workload": {"users": settings.users, "friends": settings.friends},
            "rows": tables::json(&rows),
            "not_run": not_run,
        });
        std::fs::write(path, serde_json::to_string_pretty(&all)? + "\n")
            .with_context(|| format!("writing {}", path.display()))?;
    }
    let subtitle = format!(
        "{} users, {} friends each, {} runs{}",
        settings.users,
        settings.friends,
        settings.runs,
        if shared { ", measured while others used the machine" } else { "" }
    );
    if let (Some(path), Some(picture)) = (&settings.svg, svg::picture(&rows, &subtitle)) {
        std::fs::write(path, picture).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

async fn one(who: Who, settings: &Settings, rows: &mut Vec<Row>) -> anyhow::Result<()> {
    match who {
        Who::Nearby => {
            for gateways in &settings.gateways {
                let mut loads = Loads::new(settings.users, settings.friends);
                let mut peer = ours::Ours::start(&loads, *gateways).await?;
                let row = row("nearby", *gateways);
                rows.push(block_in_place(|| measure(&mut peer, &mut loads, settings, settings.reports, row))?);
                peer.stop()?;
            }
        }
        Who::Redis => {
            for gateways in &settings.gateways {
                let mut loads = Loads::new(settings.users, settings.friends);
                let row = row("redis", *gateways);
                rows.push(block_in_place(|| {
                    let mut peer = redis::Redis::start(&loads, *gateways)?;
                    measure(&mut peer, &mut loads, settings, settings.reports, row)
                })?);
            }
        }
        Who::Streams => {
            for stores in [Stores::Memory, Stores::RocksDb] {
                let mut loads = Loads::new(settings.users, settings.friends);
                let mut peer = Streams::start(&loads, stores).await?;
                let row = Row { peer: "streams", setting: stores.name().to_owned(), ..Row::default() };
                rows.push(block_in_place(|| measure(&mut peer, &mut loads, settings, settings.slow_reports, row))?);
            }
        }
        Who::Polling => {
            for distance in [Distance::Haversine, Distance::PostGis] {
                rows.push(polling::run(settings, settings.slow_reports, distance).await?);
            }
        }
        Who::Tile38 => {
            let found = Command::new("tile38-server").arg("--version").output().is_ok();
            let there = if found {
                "tile38-server is there, but no code here drives it"
            } else {
                "tile38-server is not on the PATH"
            };
            bail!(
                "{there}. What it could not do anyway: it knows no friends, so that a roaming fence tells of strangers too, and its fence is a square"
            );
        }
    }
    Ok(())
}

fn row(peer: &'static str, gateways: usize) -> Row {
    Row { peer, setting: format!("{gateways} gateways"), ..Row::default() }
}
