//! The partitions of `location_history`, one per UTC day: created apart, then attached, so that nobody who reads waits.

use nearby_schemas::TimestampMs;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

const DAY_MS: i64 = 86_400_000;
/// Whoever attaches or detaches partitions takes turns by this key, sinks and `nearby history retain`.
const ADVISORY_LOCK: i64 = 0x6e65_6172_6279_0001;
/// How often the turn is asked for, and how long; then the batch is tried again, and a log line says why.
const TURN_POLL: Duration = Duration::from_millis(20);
const TURN_LIMIT: Duration = Duration::from_secs(5);
/// How long others' locks and snapshots are waited for at once.
const LOCK_TIMEOUT: &str = "SET LOCAL lock_timeout = '4s'";
/// Somebody else's lock or a deadlock ends a try, of which there are so many at once: together they take less than a batch may
/// (`DATABASE_LIMIT` of the pipeline), or the last would end without its reason.
const TRIES_MAX: u32 = 3;
const RETRY: Duration = Duration::from_millis(200);

/// A UTC day, counted from 1970-01-01.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Day(i64);

impl Day {
    /// The day of a moment.
    pub fn of(time: TimestampMs) -> Day {
        Day(time.0.div_euclid(DAY_MS))
    }

    /// The day after.
    pub fn next(self) -> Day {
        Day(self.0 + 1)
    }

    /// Year, month and day of the month. Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms",
    /// `civil_from_days`.
    fn civil(self) -> (i64, i64, i64) {
        let shifted = self.0 + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        (year_of_era + era * 400 + i64::from(month <= 2), month, day)
    }

    /// `location_history_YYYYMMDD`.
    pub fn partition_name(self) -> String {
        let (year, month, day) = self.civil();
        format!("location_history_{year:04}{month:02}{day:02}")
    }

    /// The first moment, as Postgres reads it.
    fn starts(self) -> String {
        let (year, month, day) = self.civil();
        format!("{year:04}-{month:02}-{day:02} 00:00:00+00")
    }
}

/// Whether Postgres ended a statement because of others' locks: `lock_not_available`, `deadlock_detected`. It may work the next time.
pub fn is_contended(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|refusal| refusal.code());
    matches!(code.as_deref(), Some("55P03" | "40P01"))
}

/// Waits for the turn to attach or detach partitions; it lasts until [`end_turn`] or the connection's end. False: not within
/// the limit.
///
/// By asking again and again: who waits for a lock keeps a snapshot meanwhile, and finishing an interrupted detachment waits for
/// all snapshots. That would be a deadlock.
pub async fn take_turn(connection: &mut PgConnection, limit: Duration) -> Result<bool, sqlx::Error> {
    let asked = Instant::now();
    loop {
        let ask = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)").bind(ADVISORY_LOCK);
        if ask.fetch_one(&mut *connection).await? {
            return Ok(true);
        }
        if asked.elapsed() >= limit {
            return Ok(false);
        }
        tokio::time::sleep(TURN_POLL).await;
    }
}

/// Lets others have their turn.
pub async fn end_turn(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT pg_advisory_unlock($1)").bind(ADVISORY_LOCK).execute(connection).await.map(drop)
}

/// Creates the partitions of these days, unless they are there. Any number of connections may do this at once.
///
/// `nearby history retain` may have been interrupted while it removed one: half detached it takes no rows, so it is
/// detached wholly, and attached again with the rows that it has. The next run removes it.
pub async fn create(connection: &mut PgConnection, days: &BTreeSet<Day>) -> Result<(), sqlx::Error> {
    for _ in 1..TRIES_MAX {
        match create_in_turn(connection, days).await {
            Err(error) if is_contended(&error) => tracing::info!(%error, "others have the history locked: tries again"),
            ended => return ended,
        }
        tokio::time::sleep(RETRY).await;
    }
    create_in_turn(connection, days).await
}

async fn create_in_turn(connection: &mut PgConnection, days: &BTreeSet<Day>) -> Result<(), sqlx::Error> {
    if !take_turn(connection, TURN_LIMIT).await? {
        let because = format!("others attach or detach days of the history for {} s already", TURN_LIMIT.as_secs());
        return Err(sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, because)));
    }
    let created = create_now(connection, days).await;
    let ended = end_turn(connection).await;
    created.and(ended)
}

async fn create_now(connection: &mut PgConnection, days: &BTreeSet<Day>) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin().await?;
    transaction.execute(LOCK_TIMEOUT).await?;
    let partitions: Vec<(String, bool)> = sqlx::query_as(
        "SELECT c.relname::text, i.inhdetachpending FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid \
         WHERE i.inhparent = 'nearby.location_history'::regclass",
    )
    .fetch_all(&mut *transaction)
    .await?;
    let is_detaching: BTreeMap<String, bool> = partitions.into_iter().collect();
    for day in days {
        let (name, from, to) = (day.partition_name(), day.starts(), day.next().starts());
        let finish = match is_detaching.get(&name) {
            Some(false) => continue,
            Some(true) => format!("ALTER TABLE nearby.location_history DETACH PARTITION nearby.{name} FINALIZE; "),
            None => String::new(),
        };
        let statements = format!(
            "{finish}CREATE TABLE IF NOT EXISTS nearby.{name} (LIKE nearby.location_history INCLUDING ALL); \
             ALTER TABLE nearby.location_history ATTACH PARTITION nearby.{name} FOR VALUES FROM ('{from}') TO ('{to}');"
        );
        // Its parts are numbers.
        transaction.execute(AssertSqlSafe(statements)).await?;
        tracing::info!(partition = name, "created a partition of the history");
    }
    transaction.commit().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_bounds() {
        for (ms, name, starts) in [
            (0, "location_history_19700101", "1970-01-01 00:00:00+00"),
            (-1, "location_history_19691231", "1969-12-31 00:00:00+00"),
            (951_782_400_000, "location_history_20000229", "2000-02-29 00:00:00+00"),
            (1_767_225_599_999, "location_history_20251231", "2025-12-31 00:00:00+00"),
            (1_767_225_600_000, "location_history_20260101", "2026-01-01 00:00:00+00"),
            (253_402_300_799_999, "location_history_99991231", "9999-12-31 00:00:00+00"),
        ] {
            let day = Day::of(TimestampMs(ms));
            assert_eq!((day.partition_name().as_str(), day.starts().as_str()), (name, starts), "{ms}");
        }
    }
}
