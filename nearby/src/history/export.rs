//! `nearby history export`.

use super::DatabaseSettings;
use anyhow::bail;

/// Settings of `nearby history export`.
#[derive(clap::Args)]
pub struct ExportSettings {
    #[command(flatten)]
    database: DatabaseSettings,
}

/// Not there yet.
pub async fn export(settings: ExportSettings) -> anyhow::Result<()> {
    settings.database.connect().await?;
    bail!("`nearby history export` is not there yet")
}
