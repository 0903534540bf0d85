//! The history database: how to get in, and its schema.

use crate::days::is_contended;
use crate::error::SinkError;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, Executor, PgConnection, SqlSafeStr};
use std::str::FromStr;
use std::time::{Duration, Instant};

/// How long Postgres may take to let us in.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// For so long others' locks may keep a migration from its tables; then who started it has to say who they are.
const MIGRATION_LIMIT: Duration = Duration::from_secs(300);
const MIGRATION_RETRY: Duration = Duration::from_secs(1);
/// Everybody who comes after a migration waits behind it for as long.
const MIGRATION_SESSION: &str = "SET lock_timeout = '3s'";
/// A sink whose host vanishes in the middle of a transaction holds the offsets' rows for about half a minute, and one that
/// waits for them gives up before that. While Postgres waits for the rows of a COPY only TCP notices that a peer is gone.
const SESSION: &str = "SET idle_in_transaction_session_timeout = '30s'; SET lock_timeout = '20s'; \
                       SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3";

const MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, "history", include_str!("../migrations/0001_history.sql")),
    (2, "views", include_str!("../migrations/0002_views.sql")),
    (3, "analysts", include_str!("../migrations/0003_analysts.sql")),
    (4, "faster views", include_str!("../migrations/0004_faster_views.sql")),
    (5, "geography", include_str!("../migrations/0005_geography.sql")),
    (6, "listed by", include_str!("../migrations/0006_listed_by.sql")),
    (7, "halves", include_str!("../migrations/0007_halves.sql")),
    (8, "parts", include_str!("../migrations/0008_parts.sql")),
    (9, "same log", include_str!("../migrations/0009_same_log.sql")),
];

/// A Postgres database that was reached once. Clones are the same database.
#[derive(Clone, Debug)]
pub struct Database {
    options: PgConnectOptions,
}

/// Reaches the database at `postgresql://USER:PASSWORD@HOST:PORT/DATABASE`, or says within 5 s why not.
///
/// # Errors
/// [`SinkError::DatabaseUrl`], [`SinkError::DatabaseUnreachable`]; the password is in neither.
pub async fn connect(database_url: &str) -> Result<Database, SinkError> {
    if !database_url.starts_with("postgresql://") && !database_url.starts_with("postgres://") {
        return Err(SinkError::DatabaseUrl("it has to start with postgresql://".to_owned()));
    }
    let options = PgConnectOptions::from_str(database_url).map_err(|error| {
        let text = error.to_string();
        let text = text.replace("error with configuration: ", "");
        // A password with such a sign is cut at it, and its rest read as a port.
        let is_cut = text.contains("port number");
        let hint = if is_cut { "; in a password @ : / ? # are written %40 %3A %2F %3F %23" } else { "" };
        SinkError::DatabaseUrl(format!("{text}{hint}"))
    })?;
    let database = Database { options: options.application_name("nearby-sink").disable_statement_logging() };
    let connection = database.connection().await.map_err(|reason| database.unreachable(reason))?;
    drop(connection.close().await);
    Ok(database)
}

impl Database {
    /// Brings the schema `nearby` up to date. Any number of processes may do this at once.
    ///
    /// # Errors
    /// [`SinkError::DatabaseUnreachable`], [`SinkError::Migration`].
    pub async fn migrate(&self) -> Result<(), SinkError> {
        let began = Instant::now();
        loop {
            match self.migrate_once().await {
                // Another sink migrates, or somebody reads what is changed. Nothing of this migration is there yet.
                Err(SinkError::Migration { source, .. }) if is_busy(&source) && began.elapsed() < MIGRATION_LIMIT => {
                    tracing::warn!(%source, "others have what a migration changes locked: tries again");
                    tokio::time::sleep(MIGRATION_RETRY).await;
                }
                ended => return ended,
            }
        }
    }

    async fn migrate_once(&self) -> Result<(), SinkError> {
        // A connection of its own: should a migration fail, its lock ends with the connection.
        let mut connection = self.connection().await.map_err(|reason| self.unreachable(reason))?;
        connection.execute(MIGRATION_SESSION).await.map_err(|error| self.unreachable(one_line(&error)))?;
        let migrations = MIGRATIONS.iter().map(|(version, description, sql)| {
            Migration::new(*version, (*description).into(), MigrationType::Simple, (*sql).into_sql_str(), false)
        });
        let mut migrator = Migrator::with_migrations(migrations.collect());
        migrator.create_schema("nearby");
        migrator.dangerous_set_table_name("nearby._sqlx_migrations");
        let result = migrator.run_direct(None, &mut connection, false).await;
        drop(connection.close().await);
        result.map_err(|source| SinkError::Migration { server: self.server(), source })
    }

    /// A new connection, or why there is none.
    pub async fn connection(&self) -> Result<PgConnection, String> {
        let connect = async {
            let mut connection = PgConnection::connect_with(&self.options).await?;
            connection.execute(SESSION).await?;
            Ok::<_, sqlx::Error>(connection)
        };
        match tokio::time::timeout(CONNECT_LIMIT, connect).await {
            Ok(result) => result.map_err(|error| one_line(&error)),
            Err(_) => Err(format!("no answer within {} s", CONNECT_LIMIT.as_secs())),
        }
    }

    /// HOST:PORT/DATABASE.
    pub fn server(&self) -> String {
        let (host, port) = (self.options.get_host(), self.options.get_port());
        let database = self.options.get_database().unwrap_or(self.options.get_username());
        match self.options.get_socket() {
            Some(socket) => format!("{}/{database}", socket.display()),
            None => format!("{host}:{port}/{database}"),
        }
    }

    fn unreachable(&self, reason: String) -> SinkError {
        SinkError::DatabaseUnreachable { server: self.server(), reason }
    }
}

fn is_busy(error: &MigrateError) -> bool {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => is_contended(error),
        _ => false,
    }
}

/// What went wrong, without Postgres' details: those may hold a row's values.
pub(crate) fn one_line(error: &sqlx::Error) -> String {
    let text = match error {
        sqlx::Error::Database(refusal) => match refusal.code() {
            Some(code) => format!("{} ({code})", refusal.message()),
            None => refusal.message().to_owned(),
        },
        sqlx::Error::Io(error) => error.to_string(),
        other => other.to_string(),
    };
    text.replace('\n', " ")
}
