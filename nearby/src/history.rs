//! `nearby history`: people's data in the history database, looked after: what is too old, one person's, a copy to take away.

mod erase;
mod export;
mod plot;
mod remains;
mod retain;

use crate::{BadSetting, wiring};
use anyhow::{Context, bail};
use sqlx::{Executor, PgConnection};
use std::time::Duration;

/// Commands are told from the sink in `pg_stat_activity`.
const SESSION: &str = "SET application_name = 'nearby-history'; SET TimeZone = 'UTC'";

/// What to do about the history.
#[derive(clap::Subcommand)]
pub enum HistoryCommand {
    /// Remove the days that are older than so many, and name each
    Retain(retain::RetainSettings),
    /// Remove one person's rows and friend list, and say what remains elsewhere until when
    Erase(erase::EraseSettings),
    /// Write one person's data, or everybody's of a time range, to a file
    Export(export::ExportSettings),
    /// Pictures as SVG: how busy cells and hours were
    #[command(subcommand)]
    Plot(plot::PlotCommand),
}

/// Where the history is.
#[derive(clap::Args)]
pub struct DatabaseSettings {
    /// Postgres with the history, postgresql://USER:PASSWORD@HOST:PORT/DB
    #[arg(long, env = "NEARBY_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    database_url: String,
}

impl DatabaseSettings {
    /// A connection to a database that a sink has been at.
    pub async fn connect(&self) -> anyhow::Result<PgConnection> {
        let database = wiring::connect_database(&self.database_url).await?;
        let mut connection = database.connection().await.map_err(anyhow::Error::msg)?;
        connection.execute(SESSION).await.context("asking Postgres")?;
        let there: bool = sqlx::query_scalar("SELECT to_regclass('nearby.location_history') IS NOT NULL")
            .fetch_one(&mut connection)
            .await
            .context("asking Postgres for the history")?;
        if !there {
            let server = database.server();
            return Err(BadSetting(format!("there is no history in {server}: `nearby sink` makes it")).into());
        }
        Ok(connection)
    }
}

/// Of those who remove, one at a time: two would count each other's work.
const MAINTENANCE_LOCK: i64 = 0x6e65_6172_6279_0002;

const WAIT_POLL: Duration = Duration::from_millis(200);

/// What to do while somebody else removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    No,
    UntilFree,
}

/// Sees to it that nobody else removes from the history for as long as this connection lasts.
async fn maintain(connection: &mut PgConnection, wait: Wait) -> anyhow::Result<()> {
    if wait == Wait::UntilFree {
        // Not within Postgres: who waits for a lock keeps a snapshot meanwhile, and the other may have to wait for all snapshots.
        while !is_alone(connection).await? {
            tokio::time::sleep(WAIT_POLL).await;
        }
        return Ok(());
    }
    if !is_alone(connection).await? {
        bail!("another `nearby history` removes from this history just now: run this again later");
    }
    Ok(())
}

async fn is_alone(connection: &mut PgConnection) -> anyhow::Result<bool> {
    let asked =
        sqlx::query_scalar("SELECT pg_try_advisory_lock($1)").bind(MAINTENANCE_LOCK).fetch_one(connection).await;
    asked.context("asking Postgres whether another `nearby history` is at work")
}

/// Clocks that differ by more than this are wrong.
const CLOCKS_APART_MS_MAX: i64 = 3_600_000;
/// SQLSTATE of a statement that took longer than it may.
const TIMED_OUT: &str = "57014";

fn code(error: &sqlx::Error) -> Option<String> {
    Some(error.as_database_error()?.code()?.into_owned())
}

/// What keeps a day's table in the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Attached,
    /// A run was interrupted while it detached it.
    Detaching,
    /// A run was interrupted before it dropped it.
    Detached,
}

/// A table with rows of the history.
#[derive(Clone, Debug)]
struct DayTable {
    /// As it is called.
    name: String,
    /// With its schema, as SQL has it: somebody may have made one by hand, with any name.
    sql: String,
    state: State,
}

/// Every table of the history, by name: its partitions and theirs, and those that a run has only detached.
async fn tables(connection: &mut PgConnection) -> anyhow::Result<Vec<DayTable>> {
    let rows: Vec<(String, String, Option<bool>)> = sqlx::query_as(
        "WITH RECURSIVE part AS ( \
           SELECT inhrelid, inhdetachpending FROM pg_inherits WHERE inhparent = 'nearby.location_history'::regclass \
           UNION ALL SELECT i.inhrelid, false FROM part JOIN pg_inherits i ON i.inhparent = part.inhrelid) \
         SELECT c.relname::text, format('%I.%I', n.nspname, c.relname), part.inhdetachpending \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN part ON part.inhrelid = c.oid \
         WHERE c.relkind = 'r' \
           AND (part.inhrelid IS NOT NULL OR (n.nspname = 'nearby' AND c.relname ~ '^location_history_[0-9]{8}$')) \
         ORDER BY c.relname",
    )
    .fetch_all(connection)
    .await
    .context("listing the partitions of the history")?;
    let state = |pending| match pending {
        Some(false) => State::Attached,
        Some(true) => State::Detaching,
        None => State::Detached,
    };
    Ok(rows.into_iter().map(|(name, sql, pending)| DayTable { name, sql, state: state(pending) }).collect())
}

/// A number as people read it: 1,234,567.
fn grouped(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut text = String::from(if number < 0 { "-" } else { "" });
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A size as people read it, in powers of a thousand.
fn about_bytes(bytes: i64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "one digit after the point")]
    let mut size = bytes as f64 / 1_000.0;
    for unit in ["kB", "MB", "GB"] {
        if size < 1_000.0 {
            return format!("{size:.1} {unit}");
        }
        size /= 1_000.0;
    }
    format!("{size:.1} TB")
}

/// Does it.
pub async fn history(command: HistoryCommand) -> anyhow::Result<()> {
    match command {
        HistoryCommand::Retain(settings) => retain::retain(settings).await,
        HistoryCommand::Erase(settings) => erase::erase(settings).await,
        HistoryCommand::Export(settings) => export::export(settings).await,
        HistoryCommand::Plot(command) => plot::plot(command).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_sizes_are_readable() {
        let numbers = [0, 999, 1_000, 1_234_567, -1_000].map(grouped);
        assert_eq!(numbers, ["0", "999", "1,000", "1,234,567", "-1,000"]);
        let sizes = [0, 8_192, 999_949, 1_540_000, 2_000_000_000, 5_000_000_000_000].map(about_bytes);
        assert_eq!(sizes, ["0.0 kB", "8.2 kB", "999.9 kB", "1.5 MB", "2.0 GB", "5.0 TB"]);
    }
}
