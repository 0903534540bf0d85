//! One batch into Postgres: rows and offsets in one transaction, or nothing.

use crate::batch::{Advance, Item};
use crate::copy::{LIST_COLUMNS, REPORT_COLUMNS, Rows};
use crate::database::one_line;
use crate::days::{self, Day};
use crate::record::{Content, Log};
use nearby_schemas::{FriendList, TimestampMs, UserId};
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Executor};
use std::collections::{BTreeMap, BTreeSet};

/// Tells the session's staging table of friend lists from the rows of the transaction before.
const STAGE_LISTS: &str = "CREATE TEMPORARY TABLE IF NOT EXISTS changed_friend_lists \
                           (user_id bigint, friends bigint[], changed_at timestamptz) ON COMMIT DELETE ROWS";
const REMOVE_LISTS: &str = "DELETE FROM nearby.friend_lists AS list USING changed_friend_lists AS changed \
                            WHERE list.user_id = changed.user_id AND changed.friends IS NULL";
const PUT_LISTS: &str = "INSERT INTO nearby.friend_lists (user_id, friends, changed_at) \
                         SELECT user_id, friends, changed_at FROM changed_friend_lists WHERE friends IS NOT NULL \
                         ORDER BY user_id \
                         ON CONFLICT (user_id) DO UPDATE SET friends = excluded.friends, changed_at = excluded.changed_at";

/// How a transaction ended that did not fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// Rows and offsets are in the database.
    Rows(usize),
    /// Nothing is: of these partitions the database holds other offsets than this sink read.
    Lost(Vec<i32>),
}

/// The last record of a partition that is in the database: by it another log under the same name is found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Where it is.
    pub offset: i64,
    /// When it was appended.
    pub appended_at: TimestampMs,
}

/// Why a transaction failed, by what has to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum WriteError {
    /// Find the row that Postgres refuses.
    Refused(String),
    /// Try again later.
    Away(String),
    /// Stop: offsets and rows disagree.
    AlreadyInHistory(String),
}

/// A connection and what is known about the database behind it. After [`WriteError::Away`], begin a new one.
pub struct Session {
    connection: PgConnection,
    /// Days that have their partition.
    days: BTreeSet<Day>,
}

impl Session {
    /// Over a new connection.
    pub fn new(connection: PgConnection) -> Session {
        Session { connection, days: BTreeSet::new() }
    }

    /// The offsets that the database holds for a topic, and the record before each, as far as it is known.
    pub async fn offsets(&mut self, topic: &str) -> Result<(BTreeMap<i32, i64>, BTreeMap<i32, Mark>), WriteError> {
        let rows: Vec<(i32, i64, Option<i64>)> = sqlx::query_as(
            "SELECT kafka_partition, next_offset, \
             CASE WHEN last_offset = next_offset - 1 THEN last_timestamp_ms END \
             FROM nearby.sink_offsets WHERE topic = $1",
        )
        .bind(topic)
        .fetch_all(&mut self.connection)
        .await?;
        let mark = |(partition, next, appended_ms): &(i32, i64, Option<i64>)| {
            Some((*partition, Mark { offset: next - 1, appended_at: TimestampMs((*appended_ms)?) }))
        };
        let marks = rows.iter().filter_map(mark).collect();
        Ok((rows.into_iter().map(|(partition, next, _)| (partition, next)).collect(), marks))
    }

    /// Whether the database still answers.
    pub async fn check(&mut self) -> Result<(), WriteError> {
        Ok(self.connection.ping().await?)
    }

    /// Sees to it that these records have partitions of the history to go to, and those of tomorrow too.
    pub async fn ensure_days<'a>(
        &mut self,
        items: impl Iterator<Item = &'a Item>,
        now: TimestampMs,
    ) -> Result<(), WriteError> {
        let today = Day::of(now);
        let mut missing: BTreeSet<Day> = items
            .filter_map(|item| match item.content() {
                Some(Content::Reported(event, _)) => Some(Day::of(event.reported_at)),
                _ => None,
            })
            .collect();
        missing.extend([today, today.next()]);
        missing.retain(|day| !self.days.contains(day));
        if !missing.is_empty() {
            days::create(&mut self.connection, &missing).await?;
            self.days.append(&mut missing);
        }
        Ok(())
    }

    /// Writes records of one topic and advances its offsets, if the database still holds what this sink read.
    pub async fn write<'a>(
        &mut self,
        log: Log,
        topic: &str,
        items: impl Iterator<Item = &'a Item> + Send,
        advances: &[Advance],
    ) -> Result<Written, WriteError> {
        let mut transaction = self.connection.begin().await?;
        // First, as this is where another sink is met: the second one waits here and finds that it has lost.
        let lost = advance(&mut transaction, topic, advances).await?;
        if !lost.is_empty() {
            transaction.rollback().await?;
            return Ok(Written::Lost(lost));
        }
        let written = match log {
            Log::LocationEvents => copy_reports(&mut transaction, topic, items).await,
            Log::FriendLists => put_lists(&mut transaction, items).await,
        };
        match written {
            Ok(rows) => transaction.commit().await.map(|()| Written::Rows(rows)).map_err(WriteError::from),
            Err(error) => {
                transaction.rollback().await?;
                Err(error.into())
            }
        }
    }
}

/// Advances the offsets; returns the partitions whose offset is another than expected.
async fn advance(connection: &mut PgConnection, topic: &str, advances: &[Advance]) -> Result<Vec<i32>, sqlx::Error> {
    let mut advanced: BTreeSet<i32> = BTreeSet::new();
    let (known, new): (Vec<Advance>, Vec<Advance>) = advances.iter().partition(|advance| advance.held.is_some());
    let partitions = |advances: &[Advance]| advances.iter().map(|advance| advance.partition).collect::<Vec<i32>>();
    let next = |advances: &[Advance]| advances.iter().map(|advance| advance.next).collect::<Vec<i64>>();
    let appended_ms = |advances: &[Advance]| {
        advances.iter().map(|advance| advance.appended_at.map(|at| at.0)).collect::<Vec<Option<i64>>>()
    };
    if !known.is_empty() {
        let held: Vec<i64> = known.iter().filter_map(|advance| advance.held).collect();
        let rows: Vec<i32> = sqlx::query_scalar(
            "UPDATE nearby.sink_offsets AS o \
             SET next_offset = a.next, last_offset = a.next - 1, last_timestamp_ms = a.timestamp_ms \
             FROM unnest($2::int[], $3::bigint[], $4::bigint[], $5::bigint[]) AS a (kafka_partition, held, next, timestamp_ms) \
             WHERE o.topic = $1 AND o.kafka_partition = a.kafka_partition AND o.next_offset = a.held \
             RETURNING o.kafka_partition",
        )
        .bind(topic)
        .bind(partitions(&known))
        .bind(held)
        .bind(next(&known))
        .bind(appended_ms(&known))
        .fetch_all(&mut *connection)
        .await?;
        advanced.extend(rows);
    }
    if !new.is_empty() {
        let rows: Vec<i32> = sqlx::query_scalar(
            "INSERT INTO nearby.sink_offsets (topic, kafka_partition, next_offset, last_offset, last_timestamp_ms) \
             SELECT $1, kafka_partition, next, next - 1, timestamp_ms \
             FROM unnest($2::int[], $3::bigint[], $4::bigint[]) AS a (kafka_partition, next, timestamp_ms) \
             ON CONFLICT DO NOTHING RETURNING kafka_partition",
        )
        .bind(topic)
        .bind(partitions(&new))
        .bind(next(&new))
        .bind(appended_ms(&new))
        .fetch_all(&mut *connection)
        .await?;
        advanced.extend(rows);
    }
    Ok(partitions(advances).into_iter().filter(|partition| !advanced.contains(partition)).collect())
}

async fn copy_reports<'a>(
    connection: &mut PgConnection,
    topic: &str,
    items: impl Iterator<Item = &'a Item>,
) -> Result<usize, sqlx::Error> {
    let mut reports = items.filter_map(|item| match item.content() {
        Some(Content::Reported(event, cell)) => Some((&item.record, event, cell)),
        _ => None,
    });
    let encode = |rows: &mut Rows| {
        let (record, event, cell) = reports.next()?;
        rows.report(event, *cell, topic, record.partition, record.offset);
        Some(())
    };
    copy(connection, &format!("nearby.location_history ({REPORT_COLUMNS})"), encode).await
}

async fn put_lists<'a>(
    connection: &mut PgConnection,
    items: impl Iterator<Item = &'a Item>,
) -> Result<usize, sqlx::Error> {
    // The last list in the log wins.
    let mut changed: BTreeMap<UserId, Option<&FriendList>> = BTreeMap::new();
    for item in items {
        match item.content() {
            Some(Content::Listed(list)) => changed.insert(list.user_id, Some(list)),
            Some(Content::Unlisted(user)) => changed.insert(*user, None),
            Some(Content::Reported(..)) | None => None,
        };
    }
    connection.execute(STAGE_LISTS).await?;
    let encode = |rows: &mut Rows| {
        match changed.pop_first()? {
            (_, Some(list)) => rows.list(list),
            (user, None) => rows.no_list(user),
        }
        Some(())
    };
    let count = copy(connection, &format!("changed_friend_lists ({LIST_COLUMNS})"), encode).await?;
    connection.execute(REMOVE_LISTS).await?;
    connection.execute(PUT_LISTS).await?;
    Ok(count)
}

/// Copies the rows that `encode` adds one by one, until it has none.
async fn copy(
    connection: &mut PgConnection,
    into: &str,
    mut encode: impl FnMut(&mut Rows) -> Option<()>,
) -> Result<usize, sqlx::Error> {
    let mut copy = connection.copy_in_raw(&format!("COPY {into} FROM STDIN (FORMAT binary)")).await?;
    let mut rows = Rows::default();
    while encode(&mut rows).is_some() {
        if let Some(chunk) = rows.chunk() {
            copy.send(chunk).await?;
        }
    }
    let count = rows.count();
    copy.send(rows.finish()).await?;
    copy.finish().await?;
    Ok(count)
}

impl From<sqlx::Error> for WriteError {
    fn from(error: sqlx::Error) -> WriteError {
        let reason = one_line(&error);
        let Some(refusal) = error.as_database_error() else { return WriteError::Away(reason) };
        let code = refusal.code().unwrap_or_default();
        let constraint = refusal.constraint().unwrap_or_default();
        match code.get(..2) {
            _ if code == "23505" && constraint.starts_with("location_history_") && constraint.ends_with("_pkey") => {
                WriteError::AlreadyInHistory(reason)
            }
            // "No partition found for row" is a check violation of no constraint: somebody dropped the partition.
            _ if code == "23514" && constraint.is_empty() => WriteError::Away(reason),
            // Data exceptions, constraints, view checks; RAISE EXCEPTION is how a trigger refuses.
            Some("22" | "23" | "44") => WriteError::Refused(reason),
            _ if code == "P0001" => WriteError::Refused(reason),
            _ => WriteError::Away(reason),
        }
    }
}
