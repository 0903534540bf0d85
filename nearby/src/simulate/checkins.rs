//! Recorded check-ins, replayed by the people who made them, on their own friend graph.
//!
//! Formats as Stanford SNAP publishes them (`loc-gowalla`): check-ins `user, time, latitude, longitude, place`, friendships
//! `user, friend`, one line a direction, tab-separated, plain or gzip.

use crate::BadSetting;
use crate::moments::rfc3339_ms;
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

/// Check-ins in the order in which they happened, and who is whose friend.
pub struct Replay {
    checkins: Vec<Checkin>,
    lists: BTreeMap<UserId, Vec<UserId>>,
    speed_up: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Checkin {
    at_s: i64,
    user: UserId,
    lat: f64,
    lon: f64,
}

impl Replay {
    /// Reads the files.
    pub fn load(checkins: &Path, friends: Option<&Path>, speed_up: f64) -> anyhow::Result<Replay> {
        if !speed_up.is_finite() || speed_up <= 0.0 {
            return Err(BadSetting(format!("--speed-up {speed_up}: has to be greater than 0")).into());
        }
        let mut parsed = Vec::new();
        for_each_line(checkins, |line| {
            parsed.push(checkin(line).with_context(|| format!("not a check-in: {line:?}"))?);
            Ok(())
        })?;
        // Files list a user's newest check-in first: from the back, and stable, equal times keep their order.
        parsed.reverse();
        parsed.sort_by_key(|checkin| checkin.at_s);
        let lists = friends.map(friendships).transpose()?.unwrap_or_default();
        Ok(Replay { checkins: parsed, lists, speed_up })
    }

    /// Connects everybody who checks in or sees somebody who does, and replays.
    pub async fn run(self, api: Api, settle: Duration, stop: Stop) -> anyhow::Result<Outcome> {
        api.replace_friend_lists(&self.lists).await?;
        let users: BTreeSet<UserId> = self.checkins.iter().map(|checkin| checkin.user).collect();
        eprintln!("{} check-ins of {} people, {} friend lists", self.checkins.len(), users.len(), self.lists.len());
        let crowd = Crowd::connect(&api, users.into_iter(), &stop).await?;
        let bar = ProgressBar::new(self.checkins.len() as u64);
        bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} check-ins, {eta} to go  {msg}")?);
        let (started_at, mut since) = (Instant::now(), Moment::default());
        let first_s = self.checkins.first().map_or(0, |first| first.at_s);
        for (index, checkin) in self.checkins.iter().enumerate() {
            #[expect(clippy::cast_precision_loss, reason = "seconds between check-ins are far below 2^52")]
            let after = Duration::from_secs_f64((checkin.at_s - first_s) as f64 / self.speed_up);
            if stop.run_until_cancelled(sleep_until(started_at + after)).await.is_none() {
                break;
            }
            crowd.report(checkin.user, Step { lat: checkin.lat, lon: checkin.lon }).await?;
            bar.inc(1);
            if index % 1_000 == 999 {
                bar.set_message(crowd.statistics.rates(&mut since));
            }
        }
        bar.finish_and_clear();
        Ok(crowd.end(settle, &stop).await)
    }
}

/// Friend lists out of a file of friendships; lines that start with no number (headers, comments) are passed over.
pub fn friendships(path: &Path) -> anyhow::Result<BTreeMap<UserId, Vec<UserId>>> {
    let mut lists: BTreeMap<UserId, BTreeSet<UserId>> = BTreeMap::new();
    for_each_line(path, |line| {
        if line.starts_with(|first: char| first.is_ascii_digit()) {
            let (user, friend) = friendship(line).with_context(|| format!("not a friendship: {line:?}"))?;
            lists.entry(user).or_default().insert(friend);
        }
        Ok(())
    })?;
    Ok(lists.into_iter().map(|(user, friends)| (user, friends.into_iter().collect())).collect())
}

fn friendship(line: &str) -> Option<(UserId, UserId)> {
    let (user, friend) = line.split_once('\t')?;
    Some((user.parse().ok()?, friend.trim_end().parse().ok()?))
}

fn checkin(line: &str) -> Option<Checkin> {
    let mut fields = line.split('\t');
    let user = fields.next()?.parse().ok()?;
    let at_s = rfc3339_ms(fields.next()?)?.div_euclid(1_000);
    let (lat, lon) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(Checkin { at_s, user, lat, lon })
}

fn for_each_line(path: &Path, mut take: impl FnMut(&str) -> anyhow::Result<()>) -> anyhow::Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_in_line() {
        let parsed = checkin("7\t2010-03-18T12:34:56Z\t40.5\t-73.9\t99");
        assert_eq!(parsed, Some(Checkin { at_s: 1_268_915_696, user: UserId(7), lat: 40.5, lon: -73.9 }));
        assert_eq!(checkin("x\t2010-03-18T12:34:56Z\t40.5\t-73.9\t99"), None);
        assert_eq!(friendship("7\t8"), Some((UserId(7), UserId(8))));
    }
}
