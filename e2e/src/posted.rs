//! Reports that are posted to the ingest, a thousand a request, each request until it is acknowledged; and which of them were.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};

use crate::cluster::SECRET;
use crate::history::Report;
use crate::http;
use crate::nearby::token;

const USERS: usize = 5_000;
const AT_ONCE: usize = 1_000;
/// Between two tries of what was not acknowledged.
const RETRY: Duration = Duration::from_millis(200);
const DAY_MS: i64 = 86_400_000;
/// Everybody's reports begin on one of so many days, the first of which is so long ago: they are late, and go into partitions of
/// days gone by.
const DAYS: usize = 3;
const BEGAN_AGO_MS: i64 = 6 * DAY_MS;
/// From one report of a user to the next.
const STEP_MS: i64 = 20_000;

/// The reports, by number.
#[derive(Debug)]
pub struct Posted {
    url: String,
    token: String,
    pause: Duration,
    began_ms: i64,
    next: AtomicUsize,
    /// The first numbers of the requests that were answered with 202.
    acknowledged: Mutex<BTreeSet<usize>>,
    refused: AtomicUsize,
    stop: AtomicBool,
}

impl Posted {
    /// Nothing yet. Whoever posts rests for `pause` after each request.
    pub fn new(ingest: &str, pause: Duration) -> anyhow::Result<Posted> {
        let now_ms = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
        Ok(Posted {
            url: format!("{ingest}/v1/locations"),
            token: token(SECRET, 0, "ingest:any")?,
            pause,
            began_ms: now_ms - BEGAN_AGO_MS,
            next: AtomicUsize::new(0),
            acknowledged: Mutex::default(),
            refused: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        })
    }

    /// Posts one request after the other until [`stop`](Posted::stop). Several tasks may.
    pub async fn post_on(self: Arc<Posted>) -> anyhow::Result<()> {
        while !self.stop.load(Ordering::Relaxed) {
            self.post().await?;
            tokio::time::sleep(self.pause).await;
        }
        Ok(())
    }

    /// Nothing more is posted than what is under way.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Posts one request until it is acknowledged.
    pub async fn post(&self) -> anyhow::Result<()> {
        let bearer = format!("Bearer {}", self.token);
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        let first = self.next.fetch_add(AT_ONCE, Ordering::Relaxed);
        let body = self.body(first);
        loop {
            let answer =
                http::request("POST", &self.url, &headers, body.clone()).await.context("the ingest answers")?;
            match answer.status {
                202 => break,
                503 => {
                    self.refused.fetch_add(AT_ONCE, Ordering::Relaxed);
                    tokio::time::sleep(RETRY).await;
                }
                other => bail!("status {other}: {}", answer.text()),
            }
        }
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).insert(first);
        Ok(())
    }

    /// How many reports were answered with 503, each time.
    pub fn refused(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }

    /// How many were acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).len() * AT_ONCE
    }

    fn body(&self, first: usize) -> String {
        let mut body = String::from("[");
        for number in first..first + AT_ONCE {
            let (user, at_ms, lat_e7, lon_e7) = self.report(number);
            let (lat, lon) = (f64::from(lat_e7) / 1e7, f64::from(lon_e7) / 1e7);
            let comma = if number == first { "" } else { "," };
            // Writing to a String does not fail.
            write!(body, "{comma}{{\"user_id\":\"{user}\",\"lat\":{lat},\"lon\":{lon},\"reported_at_ms\":{at_ms}}}")
                .ok();
        }
        body.push(']');
        body
    }

    /// User and time tell the number; the place is as good as random.
    fn report(&self, number: usize) -> (i64, i64, i32, i32) {
        let (user, round) = (number % USERS, number / USERS);
        let mixed = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let lat_e7 = (mixed >> 32) % 1_800_000_001;
        let lon_e7 = (mixed & 0xffff_ffff) % 3_600_000_001;
        let at_ms = self.began_ms + (user % DAYS) as i64 * DAY_MS + round as i64 * STEP_MS;
        (user as i64, at_ms, (lat_e7 as i64 - 900_000_000) as i32, (lon_e7 as i64 - 1_800_000_000) as i32)
    }

    /// Holds that every acknowledged report is among these, as it was sent. How often the most frequent one is there.
    pub fn are_all_among<'a>(&self, logged: impl Iterator<Item = &'a Report>) -> anyhow::Result<usize> {
        let mut times = vec![0_u8; self.next.load(Ordering::Relaxed)];
        for report in logged {
            let user = usize::try_from(report.user)?;
            let round = (report.reported_at_ms - self.began_ms - (user % DAYS) as i64 * DAY_MS) / STEP_MS;
            let number = usize::try_from(round)? * USERS + user;
            let found = report.place.map(|place| (report.user, report.reported_at_ms, place.lat_e7, place.lon_e7));
            ensure!(number < times.len() && found == Some(self.report(number)), "nobody sent {report:?}");
            times[number] = times[number].saturating_add(1);
        }
        let acknowledged = self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        for first in acknowledged.iter() {
            if let Some(missing) = (*first..first + AT_ONCE).find(|number| times[*number] == 0) {
                bail!("acknowledged, and not in the log: {:?}", self.report(missing));
            }
        }
        Ok(times.into_iter().max().unwrap_or(0).into())
    }
}
