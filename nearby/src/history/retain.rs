//! `nearby history retain`.

use super::DatabaseSettings;
use anyhow::bail;

/// Settings of `nearby history retain`.
#[derive(clap::Args)]
pub struct RetainSettings {
    #[command(flatten)]
    database: DatabaseSettings,
}

/// Not there yet.
pub async fn retain(settings: RetainSettings) -> anyhow::Result<()> {
    settings.database.connect().await?;
    bail!("`nearby history retain` is not there yet")
}
