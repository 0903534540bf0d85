//! Recorded movement, replayed by those who made it.

use crate::BadSetting;
use crate::simulate::api::Api;
use crate::simulate::client::Step;
use crate::simulate::crowd::{Crowd, Outcome};
use crate::simulate::statistics::Moment;
use anyhow::Context;
use flate2::read::MultiGzDecoder;
use indicatif::{ProgressBar, ProgressStyle};
use nearby_schemas::UserId;
use nearby_service::Stop;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::path::Path;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// Who was where and when, in the order in which it happened, and who is whose friend.
pub struct Recorded {
    pub fixes: Vec<Fix>,
    pub lists: BTreeMap<UserId, Vec<UserId>>,
}

/// Somebody was somewhere.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fix {
    pub at_s: i64,
    pub user: UserId,
    pub lat: f64,
    pub lon: f64,
}

impl Recorded {
    /// Connects everybody who reports, and replays, so many times faster than it was.
    pub async fn run(self, api: Api, speed_up: f64, settle: Duration, stop: Stop) -> anyhow::Result<Outcome> {
        if !speed_up.is_finite() || speed_up <= 0.0 {
            return Err(BadSetting(format!("--speed-up {speed_up}: has to be greater than 0")).into());
        }
        api.replace_friend_lists(&self.lists).await?;
        let users: BTreeSet<UserId> = self.fixes.iter().map(|fix| fix.user).collect();
        eprintln!("{} reports of {} people, {} friend lists", self.fixes.len(), users.len(), self.lists.len());
        let crowd = Crowd::connect(&api, users.into_iter(), &stop).await?;
        let bar = ProgressBar::new(self.fixes.len() as u64);
        bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} reports, {eta} to go  {msg}")?);
        let (started_at, mut since) = (Instant::now(), Moment::default());
        let first_s = self.fixes.first().map_or(0, |first| first.at_s);
        for (index, fix) in self.fixes.iter().enumerate() {
            #[expect(clippy::cast_precision_loss, reason = "seconds between reports are far below 2^52")]
            let after = Duration::from_secs_f64((fix.at_s - first_s) as f64 / speed_up);
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
}

/// Lines of a file, plain or gzip.
pub fn for_each_line(path: &Path, mut take: impl FnMut(&str) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let context = || format!("reading {}", path.display());
    let mut file = File::open(path).map_err(|error| BadSetting(format!("{}: {error}", path.display())))?;
    let mut magic = [0; 2];
    let gzip = file.read_exact(&mut magic).is_ok() && magic == [0x1f, 0x8b];
    file.rewind().with_context(context)?;
    let reader: Box<dyn Read> = if gzip { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    for line in BufReader::new(reader).lines() {
        take(&line.with_context(context)?).with_context(context)?;
    }
    Ok(())
}
