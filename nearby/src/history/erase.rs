//! `nearby history erase`.

use super::DatabaseSettings;
use anyhow::bail;

/// Settings of `nearby history erase`.
#[derive(clap::Args)]
pub struct EraseSettings {
    #[command(flatten)]
    database: DatabaseSettings,
}

/// Not there yet.
pub async fn erase(settings: EraseSettings) -> anyhow::Result<()> {
    settings.database.connect().await?;
    bail!("`nearby history erase` is not there yet")
}
