//! `nearby history`: people's data in the history database, looked after: what is too old, one person's, a copy to take away.

mod erase;
mod export;
mod plot;
mod retain;

use crate::{BadSetting, wiring};
use anyhow::Context;
use sqlx::{Executor, PgConnection};

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

/// Does it.
pub async fn history(command: HistoryCommand) -> anyhow::Result<()> {
    match command {
        HistoryCommand::Retain(settings) => retain::retain(settings).await,
        HistoryCommand::Erase(settings) => erase::erase(settings).await,
        HistoryCommand::Export(settings) => export::export(settings).await,
        HistoryCommand::Plot(command) => plot::plot(command).await,
    }
}
