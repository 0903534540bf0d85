//! `nearby simulate`: people who use the public API as clients would, and what they experience.

mod api;
mod client;
mod crowd;
mod recorded;
mod statistics;
pub mod walkers;

use crate::BadSetting;
use anyhow::Context;
use nearby_recorded::{checkins, taxis};
use nearby_schemas::UserId;
use nearby_service::settings::SigningSettings;
use nearby_service::{Stop, stop_on_signals};
use std::path::PathBuf;
use std::time::Duration;

pub use api::{Api, TokenSource};
pub use recorded::bad_file;

/// 16 months in seven minutes.
const CHECKINS_SPEED_UP: f64 = 100_000.0;
/// A day in 24 minutes: each taxi reports about once a second.
const TAXIS_SPEED_UP: f64 = 60.0;

/// Settings of `nearby simulate`.
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("people").required(true).args(["walkers", "checkins", "taxis"]))]
pub struct SimulateSettings {
    /// Base address of the ingest, or of `nearby run`
    #[arg(long, env = "NEARBY_URL", default_value = "http://127.0.0.1:8080", value_name = "URL")]
    url: String,
    #[command(flatten)]
    signing: SigningSettings,
    /// So many people who walk around and see each other
    #[arg(long, env = "NEARBY_WALKERS", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    walkers: Option<u32>,
    /// Id of the first walker or taxi, the others follow; their friend lists are replaced
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(i64).range(0..))]
    first_user: i64,
    /// A walker reports this often, in milliseconds
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(10..=600_000))]
    report_interval_ms: u64,
    /// Walkers walk for so long, in seconds
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    duration_s: u64,
    /// Replay recorded check-ins instead: SNAP's format (user, time, latitude, longitude, place), plain or gzip
    #[arg(long, value_name = "FILE")]
    checkins: Option<PathBuf>,
    /// Friendships of the people who check in, SNAP's format (user, friend), plain or gzip
    #[arg(long, value_name = "FILE", requires = "checkins")]
    friends: Option<PathBuf>,
    /// Replay a recorded day of taxis instead: cabspotting's format (taxi, latitude, longitude, occupied, time), plain or gzip
    #[arg(long, value_name = "FILE")]
    taxis: Option<PathBuf>,
    /// Taxis have no recorded friends: each has so many of the others, on average, drawn pair by pair
    #[arg(long, default_value_t = 40, value_name = "COUNT", requires = "taxis", value_parser = clap::value_parser!(u32).range(0..=5_000))]
    taxi_friends: u32,
    /// Another seed, other friends of taxis
    #[arg(long, default_value_t = 1, requires = "taxis")]
    seed: u64,
    /// Recorded time passes so many times faster [default: 100000 for check-ins, 60 for taxis]
    #[arg(long)]
    speed_up: Option<f64>,
    /// Go on listening for so long after the last report, in seconds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(0..=3600))]
    settle_s: u64,
    /// At the end write here what every client sees, as JSON: {"user": {"friend": [lat, lon, distance_m]}}
    #[arg(long, value_name = "FILE")]
    views: Option<PathBuf>,
}

/// Runs the simulation and prints what came of it.
pub async fn simulate(settings: SimulateSettings) -> anyhow::Result<()> {
    let api = Api::new(&settings.url, TokenSource::new(&settings.signing)?)?;
    let stop = Stop::new();
    stop_on_signals(stop.clone()).context("listening to signals")?;
    let settle = Duration::from_secs(settings.settle_s);
    let crowd = match (&settings.checkins, &settings.taxis, settings.walkers) {
        (Some(file), ..) => {
            let people = checkins::load(file, settings.friends.as_deref()).map_err(bad_file)?;
            recorded::run(people, api, settings.speed_up.unwrap_or(CHECKINS_SPEED_UP), settle, stop).await?
        }
        (_, Some(file), _) => {
            let friendships = taxis::Friendships { mean: settings.taxi_friends, seed: settings.seed };
            let fleet = taxis::load(file, UserId(settings.first_user), friendships).map_err(bad_file)?;
            recorded::run(fleet, api, settings.speed_up.unwrap_or(TAXIS_SPEED_UP), settle, stop).await?
        }
        (_, _, Some(count)) => {
            let walkers = walkers::Walkers {
                count,
                first_user: settings.first_user,
                report_interval: Duration::from_millis(settings.report_interval_ms),
            };
            walkers.run(api, Duration::from_secs(settings.duration_s), settle, stop).await?
        }
        _ => return Err(BadSetting("give --walkers, --checkins or --taxis".to_owned()).into()),
    };
    println!("{}", crowd.statistics.summary());
    if let Some(path) = &settings.views {
        let text = serde_json::to_string(&crowd.views).context("the views as JSON")?;
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}
