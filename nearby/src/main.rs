//! Nearby friends on Kafka: one binary for every service and tool.
//!
//! Exit codes: 0 ended in order; 2 a setting is wrong (flag, file, busy port); 1 anything else, such as a broker or a
//! database that cannot be reached.

mod capacity;
mod cli;
mod dead_letters;
mod decoded;
mod embedded;
mod friends;
mod history;
mod log;
mod page;
mod replay;
mod run;
mod services;
mod simulate;
mod tail;
mod token;
mod topics;
mod wiring;

use clap::Parser;
use cli::{Cli, Command};
use nearby_schemas::moments;
use nearby_service::kafka::ClusterError;
use std::process::ExitCode;

/// A setting is wrong: the person who started us has to change it.
#[derive(Debug)]
pub struct BadSetting(pub String);

impl std::fmt::Display for BadSetting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadSetting {}

/// A signal came before anything was started: an end in order.
#[derive(Debug, thiserror::Error)]
#[error("asked to stop while starting")]
pub struct StoppedAtStart;

fn main() -> ExitCode {
    let cli = Cli::parse();
    nearby_service::logs::start();
    nearby_service::metrics::start();
    end_with_any_panic();
    raise_file_limit();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.into()),
    };
    let result = runtime.block_on(dispatch(cli.command));
    // Threads that still talk to Kafka must not hold up the end.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<StoppedAtStart>() => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

async fn dispatch(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Run(settings) => run::run(*settings).await,
        Command::Ingest(settings) => services::ingest(settings).await,
        Command::Processor(settings) => services::processor(settings).await,
        Command::Pusher(settings) => services::pusher(settings).await,
        Command::Sink(settings) => services::sink(settings).await,
        Command::Topics(command) => topics::topics(command).await,
        Command::Friends(command) => friends::friends(command).await,
        Command::Replay(settings) => replay::replay(*settings).await,
        Command::Tail(settings) => tail::tail(settings).await,
        Command::DeadLetters(command) => dead_letters::dead_letters(command).await,
        Command::History(command) => history::history(command).await,
        Command::Capacity(settings) => capacity::capacity(&settings),
        Command::Simulate(settings) => simulate::simulate(settings).await,
        Command::Token(settings) => token::token(&settings),
        Command::EmbeddedDatabase(settings) => embedded::database_keeper::keep(settings).await,
    }
}

/// A thread or task that panics must not leave a process behind that looks alive. Stopping is safe: the log rebuilds us.
fn end_with_any_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

/// Sockets are files: the usual soft limit of 1,024 would end a gateway's welcome early.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// One line, with the whole chain of reasons.
fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("nearby: {error:#}");
    let no_client = matches!(error.downcast_ref(), Some(ClusterError::Settings(_)));
    ExitCode::from(if no_client || error.is::<BadSetting>() { 2 } else { 1 })
}
