//! Holds one of the harness's servers until it is killed: for a look by hand, and for the tests that kill it with
//! `kill -9` and then look for what is left behind.

use std::io::Write;
use std::process::Command;

use anyhow::{Context, bail};
use nearby_e2e::chromium::Page;
use nearby_e2e::kafka::Kafka;
use nearby_e2e::nearby::Nearby;
use nearby_e2e::postgres::Postgres;
use nearby_e2e::process::{Home, Launch, Tied};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let what = std::env::args().nth(1).unwrap_or_default();
    match what.as_str() {
        "kafka" => {
            let kafka = Kafka::start()?;
            hold(kafka.home(), &kafka.bootstrap()).await
        }
        "postgres" => {
            let postgres = Postgres::start()?;
            hold(postgres.home(), &postgres.url()).await
        }
        "chromium" => {
            let page = Page::open("data:text/html,hello").await?;
            hold(page.home(), &page.pid().to_string()).await
        }
        "sleep" => {
            let home = Home::new("sleep")?;
            let mut command = Command::new("sleep");
            command.arg("600");
            let sleep = Tied::start(Launch { command, user: None, home: &home, last_signal: "KILL" })?;
            hold(&home, &sleep.pid().to_string()).await
        }
        "watched-sleep" => {
            let sleep = Nearby::start_program("sleep".as_ref(), &["600"], &[])?;
            hold(sleep.home(), &sleep.pid().to_string()).await
        }
        _ => bail!("usage: stand kafka|postgres|chromium|sleep|watched-sleep"),
    }
}

/// Says where the server is and what its folder is, then waits for ever.
async fn hold(home: &Home, address: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{address}\t{}", home.path().display()).context("write to standard output")?;
    stdout.flush().context("write to standard output")?;
    drop(stdout);
    std::future::pending().await
}
