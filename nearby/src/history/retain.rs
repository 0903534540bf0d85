//! `nearby history retain`: whole days of the history go when they are older than so many.
//!
//! A day is a partition of `location_history`. It is detached without blocking who reads or writes the others, and then
//! dropped; what an interrupted run left half done is finished by the next one.

use super::{
    CLOCKS_APART_MS_MAX, DatabaseSettings, DayTable, State, TIMED_OUT, Wait, about_bytes, code, grouped, maintain,
    tables,
};
use crate::moments::{Rfc3339, moment};
use anyhow::{Context, bail};
use nearby_schemas::TimestampMs;
use nearby_sink::days::{self, Day};
use sqlx::{AssertSqlSafe, Executor, PgConnection};
use std::time::{Duration, Instant};

const DAY_MS: i64 = 86_400_000;
const DAYS_MIN: i64 = 1;
/// The sink takes reports that are up to 8 days late; a day that is gone it makes anew.
const DAYS_BEFORE_NONE_COMES: i64 = 9;
const DAYS_MAX: i64 = 36_500;
/// How long a step may wait for others' locks at once: whoever comes after us in the queue waits as long. Half of Postgres'
/// `deadlock_timeout`: if we and somebody else ever wait for each other, it is we who give way, and not who Postgres would choose.
const LOCK_TIMEOUT: Duration = Duration::from_millis(500);
const LOCK_RETRY: Duration = Duration::from_secs(1);
/// Counting the rows of a day may take so long; then Postgres' own estimate has to do.
const COUNT_LIMIT: Duration = Duration::from_secs(30);

/// Settings of `nearby history retain`.
#[derive(clap::Args)]
pub struct RetainSettings {
    #[command(flatten)]
    database: DatabaseSettings,
    /// Days to keep: what was reported earlier is removed, by whole UTC days. A report may be 8 days late: with less than 9, run it again
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
        _ => Err(format!("a number of days, from {DAYS_MIN} to {DAYS_MAX}")),
    }
}

/// A day that goes.
#[derive(Debug)]
struct Table {
    of: DayTable,
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
    let oldest_kept_day = Day::of(oldest_kept);
    let wait_max = Duration::from_secs(settings.lock_wait_s.into());
    let mut gone = Gone::default();
    let mut tables = tables(&mut connection).await?;
    // As long as one is half detached, Postgres detaches no other.
    tables.sort_by_key(|table| table.state != State::Detaching);
    for of in tables {
        let day = day_of(&of.name);
        if day.is_none_or(|day| day >= oldest_kept_day) {
            if let Some(stays) = keep(&mut connection, &of, day, settings.dry_run, wait_max).await? {
                println!("{stays}");
            }
            continue;
        }
        let (rows, bytes) = (count(&mut connection, &of).await?, size(&mut connection, &of).await?);
        let table = Table { of, rows, bytes };
        if !settings.dry_run {
            detach(&mut connection, &table.of, After::Goes, wait_max).await?;
        }
        println!("{}", line(&table, settings.dry_run));
        gone.add(&table);
    }
    let first_kept = TimestampMs(oldest_kept.0.div_euclid(DAY_MS) * DAY_MS);
    println!("{}; what was reported since {} is kept", gone.text(settings.dry_run), Rfc3339(first_kept));
    if settings.days < DAYS_BEFORE_NONE_COMES {
        println!("reports may be up to 8 days late: those that come for a day that is gone stay until the next run");
    }
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
fn day_of(name: &str) -> Option<Day> {
    let digits = name.strip_prefix("location_history_")?;
    let (year, rest) = digits.split_at_checked(4)?;
    let (month, day) = rest.split_at_checked(2)?;
    let day = Day::of(moment(&format!("{year}-{month}-{day}T00:00:00Z")).ok()?);
    (day.partition_name() == name).then_some(day)
}

/// What stays, if there is something to say. A detachment that somebody has begun is the only one that Postgres goes on with: of a
/// day it is undone, as far as it can be, and otherwise finished.
async fn keep(
    connection: &mut PgConnection,
    table: &DayTable,
    day: Option<Day>,
    dry_run: bool,
    wait_max: Duration,
) -> anyhow::Result<Option<String>> {
    let DayTable { name, state, .. } = table;
    let would = if dry_run { "would be" } else { "is" };
    match (day, state) {
        (Some(_), State::Attached) => Ok(None),
        (Some(_), State::Detached) => {
            Ok(Some(format!("{name} stays, but is not in the history: somebody has detached it")))
        }
        (Some(day), State::Detaching) => {
            if !dry_run {
                let attaching = days::create(connection, &[day].into()).await;
                attaching.with_context(|| format!("attaching {name}, which is to stay and was half detached"))?;
            }
            Ok(Some(format!(
                "{name} stays: an earlier run had begun to remove it, and it {would} in the history again"
            )))
        }
        (None, State::Detaching) => {
            if !dry_run {
                detach(connection, table, After::Stays, wait_max).await?;
            }
            let finished = format!("detaching it, which somebody had begun, {would} finished");
            Ok(Some(format!("{name} stays: by its name it is no day's partition; {finished}")))
        }
        (None, _) => Ok(Some(format!("{name} stays: by its name it is no day's partition"))),
    }
}

async fn count(connection: &mut PgConnection, DayTable { name, sql, .. }: &DayTable) -> anyhow::Result<Rows> {
    let limit = format!("SET statement_timeout = {}", COUNT_LIMIT.as_millis());
    connection.execute(AssertSqlSafe(limit)).await.context("asking Postgres")?;
    let counting = AssertSqlSafe(format!("SELECT count(*) FROM {sql}"));
    let counted = sqlx::query_scalar(counting).fetch_one(&mut *connection).await;
    connection.execute("SET statement_timeout = 0").await.context("asking Postgres")?;
    match counted {
        Ok(rows) => Ok(Rows::Counted(rows)),
        Err(error) if code(&error).as_deref() == Some(TIMED_OUT) => {
            let estimate: f32 = sqlx::query_scalar("SELECT reltuples FROM pg_class WHERE oid = to_regclass($1)")
                .bind(sql)
                .fetch_one(connection)
                .await
                .with_context(|| format!("asking for the rows of {name}"))?;
            #[expect(clippy::cast_possible_truncation, reason = "an estimate of a number of rows")]
            Ok(Rows::About(estimate.max(0.0) as i64))
        }
        Err(error) => Err(error).with_context(|| format!("counting the rows of {name}")),
    }
}

async fn size(connection: &mut PgConnection, DayTable { name, sql, .. }: &DayTable) -> anyhow::Result<i64> {
    let size = sqlx::query_scalar("SELECT pg_total_relation_size(to_regclass($1))");
    size.bind(sql).fetch_one(connection).await.with_context(|| format!("asking for the size of {name}"))
}

/// What becomes of a table that is detached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Goes,
    Stays,
}

/// Detaches it, as soon as others' locks let it.
async fn detach(
    connection: &mut PgConnection,
    table: &DayTable,
    after: After,
    wait_max: Duration,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + wait_max;
    while !detach_in_turn(connection, table, after).await.with_context(|| format!("removing {}", table.name))? {
        if Instant::now() >= deadline {
            bail!(
                "{} is in use by others after {} s: run this again later, or end who has held it longest \
                 (pg_stat_activity, xact_start)",
                table.name,
                wait_max.as_secs()
            );
        }
        tokio::time::sleep(LOCK_RETRY).await;
    }
    Ok(())
}

/// In turn with sinks that attach days. False if somebody has it in use: detaching may have got half way, and then nobody
/// begins to read it any more.
async fn detach_in_turn(connection: &mut PgConnection, table: &DayTable, after: After) -> Result<bool, sqlx::Error> {
    if !days::take_turn(connection, LOCK_RETRY).await? {
        return Ok(false);
    }
    let detached = detach_now(connection, table, after).await;
    let ended = days::end_turn(connection).await;
    match detached {
        Err(error) if days::is_contended(&error) => ended.map(|()| false),
        Err(error) => Err(error),
        Ok(()) => ended.map(|()| true),
    }
}

async fn detach_now(
    connection: &mut PgConnection,
    DayTable { sql, .. }: &DayTable,
    after: After,
) -> Result<(), sqlx::Error> {
    // As it is by now: an earlier try got half way, or a sink has attached it again.
    let asking = "SELECT inhdetachpending FROM pg_inherits WHERE inhrelid = to_regclass($1)";
    let is_detaching: Option<bool> = sqlx::query_scalar(asking).bind(sql).fetch_optional(&mut *connection).await?;
    if let Some(is_detaching) = is_detaching {
        let how = if is_detaching { "FINALIZE" } else { "CONCURRENTLY" };
        let step = format!("ALTER TABLE nearby.location_history DETACH PARTITION {sql} {how}");
        connection.execute(AssertSqlSafe(step)).await?;
    }
    if after == After::Goes {
        connection.execute(AssertSqlSafe(format!("DROP TABLE IF EXISTS {sql}"))).await?;
    }
    Ok(())
}

/// `location_history_20261001: 2026-10-01, 1,234 rows, 0.2 MB removed`
fn line(table: &Table, dry_run: bool) -> String {
    let Table { of: DayTable { name, state, .. }, rows, bytes } = table;
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
    fn at_least_one_day_is_kept() {
        assert_eq!((days("1"), days("36500")), (Ok(1), Ok(36_500)));
        for text in ["0", "-1", "36501", "a week", ""] {
            assert!(days(text).is_err_and(|because| because.contains("from 1 to")), "{text}");
        }
    }

    #[test]
    fn what_is_removed_is_named() {
        let name = "location_history_20261001".to_owned();
        let of = |state| DayTable { name: name.clone(), sql: format!("nearby.{name}"), state };
        let table = |state, rows| Table { of: of(state), rows, bytes: 1_540_000 };
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
        assert_eq!(day_of("location_history_20261001"), Some(Day::of(TimestampMs(1_790_812_800_000))));
        for name in [
            "location_history_2026100",
            "location_history_2026100x",
            "location_history_20261301",
            "location_history_+0261001",
            "location_history_old",
            "other_20261001",
        ] {
            assert_eq!(day_of(name), None, "{name}");
        }
    }
}
