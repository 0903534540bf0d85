//! What an analyst waits for: questions to the views on millions of rows, with the settings that Postgres comes with; and what
//! the indexes of the history cost and bring.

use crate::cpu;
use anyhow::Context;
use nearby_e2e::movement::Movement;
use nearby_e2e::postgres::Postgres;
use std::time::Instant;

/// 2026-01-05, a Monday.
const FIRST_DAY: i64 = 20_458;

/// About one user, about a time, about everything.
const QUESTIONS: &[(&str, &str)] = &[
    ("latest position of one user", "select count(*) from nearby.latest_positions where user_id = 7"),
    ("days of one user", "select count(*), sum(distance_m) from nearby.user_days where user_id = 7"),
    ("stays of one user", "select count(*), sum(fixes) from nearby.stays where user_id = 7"),
    ("encounters of one user", "select count(*) from nearby.encounters_of(7)"),
    ("everybody's day", "select count(*), sum(distance_m) from nearby.user_days where day = '2026-01-07'"),
    ("cells in one hour", "select count(*), sum(users) from nearby.cell_hours where hour = '2026-01-07 20:00+00'"),
    (
        "cells in the hours of one day",
        "select count(*), sum(users) from nearby.cell_hours where hour >= '2026-01-07 00:00+00' and hour < '2026-01-08 00:00+00'",
    ),
    ("encounters in one slot", "select count(*) from nearby.encounters where slot = '2026-01-07 20:00+00'"),
    (
        "encounters of one day",
        "select count(*) from nearby.encounters where slot >= '2026-01-07 00:00+00' and slot < '2026-01-08 00:00+00'",
    ),
    (
        "everybody's day, by several processes",
        "select count(*), sum(distance_m) from nearby.user_days_between('2026-01-07', '2026-01-08')",
    ),
    (
        "cells in the hours of one day, by several processes",
        "select count(*), sum(users) from nearby.cell_hours_between('2026-01-07 00:00+00', '2026-01-08 00:00+00')",
    ),
    (
        "encounters of one day, by several processes",
        "select count(*) from nearby.encounters_between('2026-01-07 00:00+00', '2026-01-08 00:00+00')",
    ),
    ("latest_positions, all", "select count(*), sum(lat) from nearby.latest_positions"),
    ("user_days, all", "select count(*), sum(distance_m) from nearby.user_days"),
    ("cell_hours, all", "select count(*), sum(users) from nearby.cell_hours"),
    ("stays, all", "select count(*), sum(fixes) from nearby.stays"),
    ("encounters, all", "select count(*), sum(distance_m) from nearby.encounters"),
    (
        "encounters, all, by several processes",
        "select count(*), sum(distance_m) from nearby.encounters_between('-infinity', 'infinity')",
    ),
];

/// Indexes of one day's table.
const INDEXES: &[(&str, &str)] = &[
    ("none", ""),
    (
        "key (reported_at, topic, partition, offset)",
        "alter table one_day add primary key (reported_at, topic, kafka_partition, kafka_offset)",
    ),
    ("B-tree (user_id, reported_at)", "create index on one_day (user_id, reported_at)"),
    (
        "B-tree (user_id, reported_at) where lat is null",
        "create index on one_day (user_id, reported_at) where lat is null",
    ),
    ("BRIN (reported_at)", "create index on one_day using brin (reported_at)"),
    ("BRIN (user_id)", "create index on one_day using brin (user_id)"),
];
const OF_A_USER: &str = "select count(lat) from one_day where user_id = 7";
const OF_AN_HOUR: &str =
    "select count(lat) from one_day where reported_at >= '2026-01-07 20:00+00' and reported_at < '2026-01-07 21:00+00'";
const WITHDRAWN: &str = "select count(*) from one_day where lat is null";
/// Short questions are asked so often, and the shortest time counts.
const REPEATS: u32 = 5;

/// Settings of `nearby-bench history`.
#[derive(clap::Args)]
pub struct Settings {
    /// People
    #[arg(long, default_value_t = 20_000)]
    users: u32,
    /// Days that they report; at least 4
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(4..))]
    days: u32,
    /// Reports of each on each day
    #[arg(long, default_value_t = 50)]
    fixes_per_day: u32,
    /// Measure nothing: print the address of the database, and keep it until a line is read
    #[arg(long)]
    only_load: bool,
}

/// Runs and prints.
pub async fn run(settings: &Settings) -> anyhow::Result<()> {
    let postgres = Postgres::start()?;
    nearby_sink::connect(&postgres.url()).await?.migrate().await?;
    let Settings { users, days, fixes_per_day, .. } = *settings;
    load(&postgres, Movement { users, days, fixes_per_day, first_day: FIRST_DAY, seed: 1 })?;
    if settings.only_load {
        println!("database {}", postgres.url());
        std::io::stdin().read_line(&mut String::new()).context("waiting")?;
        return Ok(());
    }
    indexes(&postgres)?;
    println!("| question | seconds | CPU-seconds |\n| --- | --- | --- |");
    for (name, question) in QUESTIONS {
        let measured = measure(&postgres, question)?;
        println!("| {name} | {:.2} | {:.2} |", measured.seconds, measured.cpu_seconds);
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
    let rows = postgres.psql("select count(*) from nearby.location_history")?;
    println!("{rows} rows made and loaded in {:.0} s\n", began.elapsed().as_secs_f64());
    Ok(())
}

/// The same day's rows by binary COPY into a table with one index, and what is asked most.
fn indexes(postgres: &Postgres) -> anyhow::Result<()> {
    let file = postgres.home().path().join("data/one_day.copy");
    let file = file.display();
    let rows = postgres.psql(&format!(
        "copy (select * from nearby.location_history_20260107) to '{file}' (format binary); \
         select count(*) from nearby.location_history_20260107"
    ))?;
    println!("Each index alone on one day of {rows} rows:\n");
    println!(
        "| index | MiB | CPU-seconds of a binary COPY | one user, ms | one hour, ms | withdrawals, ms |\n| --- | --- | --- | --- | --- | --- |"
    );
    for (name, create) in INDEXES {
        postgres.psql(&format!("create table one_day (like nearby.location_history including comments); {create}"))?;
        let copied = measure(postgres, &format!("copy one_day from '{file}' (format binary)"))?;
        postgres.psql("vacuum analyze one_day")?;
        let mib: f64 = postgres.psql("select pg_indexes_size('one_day') / 1048576.0")?.parse().context("a size")?;
        let mut ms = Vec::new();
        for question in [OF_A_USER, OF_AN_HOUR, WITHDRAWN] {
            ms.push(format!("{:.1}", shortest_ms(postgres, question)?));
        }
        println!("| {name} | {mib:.2} | {:.2} | {} |", copied.cpu_seconds, ms.join(" | "));
        postgres.psql("drop table one_day")?;
    }
    println!();
    Ok(())
}

struct Measured {
    seconds: f64,
    cpu_seconds: f64,
}

/// On a connection of its own: what its processes used is known when they have ended.
fn measure(postgres: &Postgres, sql: &str) -> anyhow::Result<Measured> {
    let server = postgres.pid().context("the server runs")?;
    let (before, began) = (cpu::of_children_that_ended(server)?, Instant::now());
    postgres.psql(sql)?;
    let seconds = began.elapsed().as_secs_f64();
    std::thread::sleep(std::time::Duration::from_millis(300));
    Ok(Measured { seconds, cpu_seconds: cpu::of_children_that_ended(server)? - before })
}

/// By Postgres' own clock, without the way there and back.
fn shortest_ms(postgres: &Postgres, question: &str) -> anyhow::Result<f64> {
    let mut shortest = f64::MAX;
    for _ in 0..REPEATS {
        let plan = postgres
            .psql(&format!("set max_parallel_workers_per_gather = 0; explain (analyze, timing off) {question}"))?;
        let time = plan.lines().find_map(|line| line.strip_prefix("Execution Time: ")).context("a time")?;
        shortest = shortest.min(time.trim_end_matches(" ms").parse().context("milliseconds")?);
    }
    Ok(shortest)
}
