//! `make bench`: what the pipeline costs on a real broker of its own, beside bare loops that do the least that it has to.
//!
//! Figures are CPU-seconds per million reports, of whole processes or of their threads, because the machine's other users
//! disturb these less than time; `latency` alone is about time. Everything runs on this machine and ends with the bench.

mod capacity;
mod cluster;
mod cpu;
mod edge;
mod history;
mod latency;
mod least_squares;
mod pipeline;
mod predictions;
mod processor;
mod reports;
mod restore;
mod side_by_side;
mod sink;
mod sockets;
mod stages;
mod transports;
#[path = "../../engine/benches/workload/mod.rs"]
mod workload;

use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Consume, decode, join, encode and produce apart, each beside a bare loop
    Stages(stages::Settings),
    /// One processor process on a broker: catching up, and at a steady rate
    Processor(pipeline::Settings),
    /// From a report to the friend's socket, over the public API, open-loop
    Latency(latency::Settings),
    /// A gateway's memory of an idle connection, and its frames a second beside a bare server
    Sockets(sockets::Settings),
    /// The same view by WebSocket, by server-sent events and by polling: bytes, requests, CPU, staleness
    Transports(transports::Settings),
    /// What `sockets` compares with
    #[command(hide = true)]
    BareServer(sockets::BareSettings),
    /// This pipeline beside what a user would pick instead: same input, same machine, same run
    SideBySide(side_by_side::Settings),
    /// Gateways of the peer `redis`
    #[command(hide = true)]
    RedisGateways(side_by_side::redis::GatewaySettings),
    /// Gateway of the peer `tile38`
    #[command(hide = true)]
    Tile38Gateway(side_by_side::tile38::GatewaySettings),
    /// What gateways of the peer `streams` read
    #[command(hide = true)]
    StreamsGateways(side_by_side::streams::GatewaySettings),
    /// What gateways of `nearby` read
    #[command(hide = true)]
    GatewayTopics(side_by_side::ours::GatewaySettings),
    /// A sink beside a bare binary COPY of the very same rows into the very same table
    Sink(sink::Settings),
    /// The costs that `nearby capacity` plans with, and what it says of other loads beside what they take
    Capacity(capacity::Settings),
    /// How long a processor needs to restore friend lists
    Restore(restore::Settings),
    /// What an analyst waits for: the views on millions of rows, and what indexes cost
    History(history::Settings),
}

fn main() -> anyhow::Result<()> {
    let bench = Cli::parse().bench;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    // Thousands of clients, or a server that is compared with ours, may have all cores; the others only wait for processes.
    if !matches!(
        bench,
        Bench::Sockets(_)
            | Bench::Transports(_)
            | Bench::Latency(_)
            | Bench::Capacity(_)
            | Bench::BareServer(_)
            | Bench::SideBySide(_)
    ) {
        runtime.worker_threads(1);
    }
    runtime.enable_all().build()?.block_on(run(bench))
}

async fn run(bench: Bench) -> anyhow::Result<()> {
    match bench {
        Bench::Stages(settings) => stages::run(&settings).await,
        Bench::Processor(settings) => pipeline::run(&settings).await,
        Bench::Latency(settings) => latency::run(&settings).await,
        Bench::Sockets(settings) => sockets::run(&settings).await,
        Bench::Transports(settings) => transports::run(&settings).await,
        Bench::BareServer(settings) => sockets::bare_server(&settings).await,
        Bench::Capacity(settings) => capacity::run(&settings).await,
        Bench::Restore(settings) => restore::run(&settings).await,
        Bench::History(settings) => history::run(&settings).await,
        Bench::SideBySide(settings) => side_by_side::run(&settings).await,
        Bench::RedisGateways(settings) => side_by_side::redis::gateways(&settings),
        Bench::Tile38Gateway(settings) => side_by_side::tile38::gateway(&settings),
        Bench::StreamsGateways(settings) => side_by_side::streams::gateways(&settings),
        Bench::GatewayTopics(settings) => side_by_side::ours::gateways(&settings),
        Bench::Sink(settings) => sink::run(&settings).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn no_two_flags_have_one_name() {
        Cli::command().debug_assert();
    }
}
