//! Recorded movement, replayed by those who made it.

use crate::BadSetting;
use crate::simulate::api::Api;
use crate::simulate::client::Step;
use crate::simulate::crowd::{Crowd, Outcome};
use crate::simulate::statistics::Moment;
use indicatif::{ProgressBar, ProgressStyle};
use nearby_recorded::{Recorded, RecordedError};
use nearby_schemas::UserId;
use nearby_service::Stop;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// Connects everybody who reports, and replays, so many times faster than it was.
pub async fn run(recorded: Recorded, api: Api, speed_up: f64, settle: Duration, stop: Stop) -> anyhow::Result<Outcome> {
    if !speed_up.is_finite() || speed_up <= 0.0 {
        return Err(BadSetting(format!("--speed-up {speed_up}: has to be greater than 0")).into());
    }
    api.replace_friend_lists(&recorded.lists).await?;
    let users: BTreeSet<UserId> = recorded.fixes.iter().map(|fix| fix.user).collect();
    eprintln!("{} reports of {} people, {} friend lists", recorded.fixes.len(), users.len(), recorded.lists.len());
    let crowd = Crowd::connect(&api, users.into_iter(), &stop).await?;
    let bar = ProgressBar::new(recorded.fixes.len() as u64);
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} reports, {eta} to go  {msg}")?);
    let (started_at, mut since) = (Instant::now(), Moment::default());
    let first_s = recorded.fixes.first().map_or(0, |first| first.at_s);
    for (index, fix) in recorded.fixes.iter().enumerate() {
        #[expect(clippy::cast_precision_loss, reason = "seconds between reports are far below 2^52")]
        let after_s = (fix.at_s - first_s) as f64 / speed_up;
        let Ok(after) = Duration::try_from_secs_f64(after_s) else {
            return Err(BadSetting(format!("--speed-up {speed_up}: a report would be due after {after_s} s")).into());
        };
        if stop.run_until_cancelled(sleep_until(started_at + after)).await.is_none() {
            break;
        }
        crowd.report(fix.user, Step { lat: fix.lat, lon: fix.lon }).await?;
        bar.inc(1);
        if index % 1_000 == 999 {
            bar.set_message(crowd.statistics.rates(&mut since));
        }
    }
    bar.finish_and_clear();
    Ok(crowd.end(settle, &stop).await)
}

/// A file that cannot be opened is a setting that is wrong.
pub fn bad_file(error: RecordedError) -> anyhow::Error {
    match error {
        RecordedError::Open { .. } => BadSetting(error.to_string()).into(),
        other => other.into(),
    }
}
