//! Settings of the sink. Every one is a flag and an environment variable.

use std::time::Duration;

/// How the sink batches.
#[derive(Clone, Debug, clap::Args)]
pub struct SinkSettings {
    /// Records that are written to Postgres in one transaction at most
    #[arg(long, env = "NEARBY_BATCH_ROWS_MAX", default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    pub batch_rows_max: u32,
    /// A record waits at most this long for others to be written with it, in milliseconds
    #[arg(long, env = "NEARBY_BATCH_AGE_MS", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub batch_age_ms: u32,
    /// Records that are read ahead of Postgres at most, per topic; then reading waits
    #[arg(long, env = "NEARBY_BACKLOG_ROWS_MAX", default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1_000..=10_000_000))]
    pub backlog_rows_max: u32,
}

impl Default for SinkSettings {
    fn default() -> SinkSettings {
        SinkSettings { batch_rows_max: 5_000, batch_age_ms: 200, backlog_rows_max: 50_000 }
    }
}

impl SinkSettings {
    pub(crate) fn rows_max(&self) -> usize {
        usize::try_from(self.batch_rows_max).unwrap_or(usize::MAX)
    }

    pub(crate) fn age_max(&self) -> Duration {
        Duration::from_millis(u64::from(self.batch_age_ms))
    }

    pub(crate) fn backlog_max(&self) -> usize {
        usize::try_from(self.backlog_rows_max).unwrap_or(usize::MAX)
    }
}
