//! What an analyst waits for: questions to the views on millions of rows, with the settings that Postgres comes with, and what
//! the indexes of the history cost.

use anyhow::Context;
use nearby_e2e::movement::Movement;
use nearby_e2e::postgres::Postgres;
use std::time::Instant;

/// 2026-01-05, a Monday.
const FIRST_DAY: i64 = 20_458;

/// Settings of `nearby-bench history`.
#[derive(clap::Args)]
pub struct Settings {
    /// People
    #[arg(long, default_value_t = 20_000)]
    users: u32,
    /// Days that they report
    #[arg(long, default_value_t = 10)]
    days: u32,
    /// Reports of each on each day
    #[arg(long, default_value_t = 50)]
    fixes_per_day: u32,
    /// Then print the address of the database, and keep it until a line is read
    #[arg(long)]
    keep: bool,
}

/// Runs and prints.
pub async fn run(settings: &Settings) -> anyhow::Result<()> {
    let postgres = Postgres::start()?;
    nearby_sink::connect(&postgres.url()).await?.migrate().await?;
    let Settings { users, days, fixes_per_day, .. } = *settings;
    load(&postgres, Movement { users, days, fixes_per_day, first_day: FIRST_DAY, seed: 1 })?;
    if settings.keep {
        println!("database {}", postgres.url());
        std::io::stdin().read_line(&mut String::new()).context("waiting")?;
    }
    Ok(())
}

fn load(postgres: &Postgres, movement: Movement) -> anyhow::Result<()> {
    let began = Instant::now();
    postgres.psql(&movement.partitions_sql())?;
    for day in 0..movement.days {
        postgres.psql(&movement.day_sql(day))?;
    }
    postgres.psql(&movement.friends_sql())?;
    postgres.psql("vacuum analyze nearby.location_history; analyze nearby.friend_lists")?;
    println!("loaded in {:.0} s", began.elapsed().as_secs_f64());
    Ok(())
}
