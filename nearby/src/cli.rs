//! The command line. Every setting is a flag and an environment variable `NEARBY_…`.

use crate::{capacity, dead_letters, embedded, friends, history, replay, run, services, simulate, tail, token, topics};
use clap::{Parser, Subcommand};

/// Shows people which friends are within 8 km, as they move.
#[derive(Parser)]
#[command(name = "nearby", version, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Everything in one process; without --brokers and --database-url with embedded Kafka and Postgres
    Run(Box<run::RunSettings>),
    /// Reports, friend lists and gateway discovery over HTTP
    Ingest(services::IngestCommand),
    /// Joins reports with friend lists and tells the gateways
    Processor(services::ProcessorCommand),
    /// A gateway: clients' WebSockets, server-sent events and polling
    Pusher(services::PusherCommand),
    /// Writes history to Postgres
    Sink(services::SinkCommand),
    /// Create, check or clean the Kafka topics
    #[command(subcommand)]
    Topics(topics::TopicsCommand),
    /// Load friend lists
    #[command(subcommand)]
    Friends(friends::FriendsCommand),
    /// Print the records of a topic, decoded, as lines of JSON
    Tail(tail::TailSettings),
    /// Run the engine again over a recorded range of the log, or compare two such runs
    Replay(Box<replay::ReplaySettings>),
    /// What nobody could use: list it, or write it back
    #[command(subcommand)]
    DeadLetters(dead_letters::DeadLettersCommand),
    /// People's data in the history: keep, erase, export
    #[command(subcommand)]
    History(history::HistoryCommand),
    /// Machines for given users, friends and rate, from measured costs
    Capacity(capacity::CapacitySettings),
    /// Simulated clients over the public API: walkers, or recorded check-ins and taxis
    Simulate(simulate::SimulateSettings),
    /// Print a token
    Token(token::TokenSettings),
    /// Keeps the embedded database for `nearby run`
    #[command(hide = true)]
    EmbeddedDatabase(embedded::database_keeper::KeeperSettings),
}
