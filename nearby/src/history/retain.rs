//! `nearby history retain`: whole days of the history go when they are older than so many.
//!
//! A day is a partition of `location_history`. It is detached without blocking who reads or writes the others, and then
//! dropped; what an interrupted run left half done is finished by the next one.

use super::{
    CLOCKS_APART_MS_MAX, DatabaseSettings, State, TIMED_OUT, Wait, about_bytes, code, grouped, maintain, tables,
};
use crate::moments::Rfc3339;
use anyhow::{Context, bail};
use nearby_schemas::TimestampMs;
use nearby_sink::days::Day;
use sqlx::{AssertSqlSafe, Executor, PgConnection};
use std::time::{Duration, Instant};

const DAY_MS: i64 = 86_400_000;
/// The sink takes reports that are up to 8 days late; a day that is gone it would make anew.
const DAYS_MIN: i64 = 9;
const DAYS_MAX: i64 = 36_500;
/// How long a step may wait for others' locks at once: whoever comes after us in the queue waits as long.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);
const LOCK_RETRY: Duration = Duration::from_secs(1);
/// Counting the rows of a day may take so long; then Postgres' own estimate has to do.
const COUNT_LIMIT: Duration = Duration::from_secs(30);

/// Settings of `nearby history retain`.
#[derive(clap::Args)]
pub struct RetainSettings {
    #[command(flatten)]
    database: DatabaseSettings,
    /// Days to keep: what was reported earlier is removed, by whole UTC days; at least 9, as reports may be 8 days late
    #[arg(long, env = "NEARBY_RETAIN_DAYS", value_name = "N", value_parser = days)]
    days: i64,
    /// Remove nothing, only say what would be removed
    #[arg(long)]
    dry_run: bool,
    /// How long a day is waited for that others still read, in seconds
    #[arg(long, default_value_t = 60, value_name = "S", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    lock_wait_s: u32,
}

fn days(text: &str) -> Result<i64, String> {
    match text.parse() {
        Ok(days) if (DAYS_MIN..=DAYS_MAX).contains(&days) => Ok(days),
        Ok(days) if (0..DAYS_MIN).contains(&days) => Err(format!(
            "reports may be up to 8 days late, and the sink would make their day anew: at least {DAYS_MIN}"
        )),
        _ => Err(format!("a number of days, from {DAYS_MIN} to {DAYS_MAX}")),
    }
}

/// A table of one day.
#[derive(Debug)]
struct Table {
    name: String,
    state: State,
    rows: Rows,
    bytes: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rows {
    Counted(i64),
    About(i64),
}

/// Removes what is too old.
pub async fn retain(settings: RetainSettings) -> anyhow::Result<()> {
    let mut connection = settings.database.connect().await?;
    if !settings.dry_run {
        maintain(&mut connection, Wait::No).await?;
    }
    let lock_timeout = format!("SET lock_timeout = {}", LOCK_TIMEOUT.as_millis());
    connection.execute(AssertSqlSafe(lock_timeout)).await.context("asking Postgres")?;
    let oldest_kept = now(&mut connection).await?.plus_ms(-settings.days * DAY_MS);
    let limit = Day::of(oldest_kept).partition_name();
    let mut gone = Gone::default();
    let mut tables = tables(&mut connection).await?;
    // As long as one is half detached, Postgres detaches no other.
    tables.sort_by_key(|(_, state)| *state != State::Detaching);
    for (name, state) in tables {
        if !is_day(&name) {
            println!("{name} stays: by its name it is no day's partition");
            continue;
        }
        if name >= limit {
            continue;
        }
        let (rows, bytes) = (count(&mut connection, &name).await?, size(&mut connection, &name).await?);
        let table = Table { name, state, rows, bytes };
        if !settings.dry_run {
            remove(&mut connection, &table, Duration::from_secs(settings.lock_wait_s.into())).await?;
        }
        println!("{}", line(&table, settings.dry_run));
        gone.add(&table);
    }
    let first_kept = TimestampMs(oldest_kept.0.div_euclid(DAY_MS) * DAY_MS);
    println!("{}; what was reported since {} is kept", gone.text(settings.dry_run), Rfc3339(first_kept));
    Ok(())
}

/// Ours, if the database's is about the same: a machine with a wrong clock must remove nothing that it should not.
async fn now(connection: &mut PgConnection) -> anyhow::Result<TimestampMs> {
    let theirs: i64 = sqlx::query_scalar("SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint")
        .fetch_one(connection)
        .await
        .context("asking Postgres for the time")?;
    let ours = TimestampMs::now();
    if ours.since_ms(TimestampMs(theirs)).abs() > CLOCKS_APART_MS_MAX {
        bail!("it is {} here and {} at Postgres: nothing was removed", Rfc3339(ours), Rfc3339(TimestampMs(theirs)));
    }
    Ok(ours.min(TimestampMs(theirs)))
}

/// The sink names the partitions; any other was made by hand.
fn is_day(name: &str) -> bool {
    let digits = name.strip_prefix("location_history_").unwrap_or_default();
    digits.len() == 8 && digits.bytes().all(|byte| byte.is_ascii_digit())
}

async fn count(connection: &mut PgConnection, name: &str) -> anyhow::Result<Rows> {
    let limit = format!("SET statement_timeout = {}", COUNT_LIMIT.as_millis());
    connection.execute(AssertSqlSafe(limit)).await.context("asking Postgres")?;
    let counting = AssertSqlSafe(format!("SELECT count(*) FROM nearby.{name}"));
    let counted = sqlx::query_scalar(counting).fetch_one(&mut *connection).await;
    connection.execute("SET statement_timeout = 0").await.context("asking Postgres")?;
    match counted {
        Ok(rows) => Ok(Rows::Counted(rows)),
        Err(error) if code(&error).as_deref() == Some(TIMED_OUT) => {
            let estimate: f32 =
                sqlx::query_scalar("SELECT reltuples FROM pg_class WHERE oid = ('nearby.' || $1)::regclass")
                    .bind(name)
                    .fetch_one(connection)
                    .await
                    .with_context(|| format!("asking for the rows of {name}"))?;
            #[expect(clippy::cast_possible_truncation, reason = "an estimate of a number of rows")]
            Ok(Rows::About(estimate.max(0.0) as i64))
        }
        Err(error) => Err(error).with_context(|| format!("counting the rows of {name}")),
    }
}

async fn size(connection: &mut PgConnection, name: &str) -> anyhow::Result<i64> {
    let size = sqlx::query_scalar("SELECT pg_total_relation_size(('nearby.' || $1)::regclass)");
    size.bind(name).fetch_one(connection).await.with_context(|| format!("asking for the size of {name}"))
}

/// Detaches, then drops.
async fn remove(connection: &mut PgConnection, table: &Table, wait_max: Duration) -> anyhow::Result<()> {
    let name = &table.name;
    let detach = format!("ALTER TABLE nearby.location_history DETACH PARTITION nearby.{name} CONCURRENTLY");
    let finish = format!("ALTER TABLE nearby.location_history DETACH PARTITION nearby.{name} FINALIZE");
    let deadline = Instant::now() + wait_max;
    let mut state = table.state;
    loop {
        let step = match state {
            State::Attached => &detach,
            State::Detaching => &finish,
            State::Detached => &format!("DROP TABLE nearby.{name}"),
        };
        match connection.execute(AssertSqlSafe(step.clone())).await {
            Ok(_) if state == State::Detached => return Ok(()),
            Ok(_) => state = State::Detached,
            // Somebody still reads. Detaching may have got half way: then nobody begins to read it any more.
            Err(error) if code(&error).as_deref() == Some("55P03") => {
                if Instant::now() >= deadline {
                    bail!(
                        "{name} is in use by others after {} s: run this again later, or end who has held it longest \
                         (pg_stat_activity, xact_start)",
                        wait_max.as_secs()
                    );
                }
                tokio::time::sleep(LOCK_RETRY).await;
                let now = tables(connection).await?.into_iter().find(|(found, _)| found == name);
                state = now.map_or(state, |(_, state)| state);
            }
            Err(error) => return Err(error).with_context(|| format!("removing {name}")),
        }
    }
}

/// `location_history_20261001: 2026-10-01, 1,234 rows, 0.2 MB removed`
fn line(table: &Table, dry_run: bool) -> String {
    let Table { name, state, rows, bytes } = table;
    let digits = name.strip_prefix("location_history_").unwrap_or_default();
    let (year, rest) = digits.split_at_checked(4).unwrap_or_default();
    let (month, day) = rest.split_at_checked(2).unwrap_or_default();
    let rows = match rows {
        Rows::Counted(rows) => format!("{} rows", grouped(*rows)),
        Rows::About(rows) => format!("about {} rows", grouped(*rows)),
    };
    let state = match state {
        State::Attached => "",
        State::Detaching | State::Detached => " (an earlier run had begun)",
    };
    let would = if dry_run { "would be " } else { "" };
    format!("{name}: {year}-{month}-{day}, {rows}, {} {would}removed{state}", about_bytes(*bytes))
}

/// The sum.
#[derive(Debug, Default)]
struct Gone {
    days: usize,
    rows: i64,
    is_about: bool,
    bytes: i64,
}

impl Gone {
    fn add(&mut self, table: &Table) {
        let (rows, is_about) = match table.rows {
            Rows::Counted(rows) => (rows, false),
            Rows::About(rows) => (rows, true),
        };
        self.days += 1;
        self.rows += rows;
        self.is_about |= is_about;
        self.bytes += table.bytes;
    }

    fn text(&self, dry_run: bool) -> String {
        let (would, about) = (if dry_run { "would be " } else { "" }, if self.is_about { "about " } else { "" });
        let (rows, bytes) = (grouped(self.rows), about_bytes(self.bytes));
        format!("{} days with {about}{rows} rows, {bytes}, {would}removed", self.days)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_days_than_reports_may_be_late_are_refused() {
        assert_eq!((days("9"), days("36500")), (Ok(9), Ok(36_500)));
        assert!(days("8").is_err_and(|because| because.contains("8 days late")));
        for text in ["-1", "36501", "a week", ""] {
            assert!(days(text).is_err_and(|because| because.contains("from 9 to")), "{text}");
        }
    }

    #[test]
    fn what_is_removed_is_named() {
        let table = |state, rows| Table { name: "location_history_20261001".to_owned(), state, rows, bytes: 1_540_000 };
        let counted = table(State::Attached, Rows::Counted(1_234));
        assert_eq!(line(&counted, false), "location_history_20261001: 2026-10-01, 1,234 rows, 1.5 MB removed");
        let estimated = table(State::Detached, Rows::About(9));
        assert_eq!(
            line(&estimated, true),
            "location_history_20261001: 2026-10-01, about 9 rows, 1.5 MB would be removed (an earlier run had begun)"
        );
        let mut gone = Gone::default();
        gone.add(&counted);
        assert_eq!(gone.text(false), "1 days with 1,234 rows, 1.5 MB, removed");
        gone.add(&estimated);
        assert_eq!(gone.text(true), "2 days with about 1,243 rows, 3.1 MB, would be removed");
    }

    #[test]
    fn days_are_told_by_their_names() {
        assert!(is_day("location_history_20261001"));
        for name in ["location_history_2026100", "location_history_2026100x", "location_history_old", "other_20261001"]
        {
            assert!(!is_day(name), "{name}");
        }
    }
}
