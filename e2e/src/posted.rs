//! Reports that are posted to the ingest, a thousand a request, and after each request a withdrawal, each until it is acknowledged;
//! and which of them were.

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

/// So many of the users withdraw, in turn, each at times at which nobody reports.
const WITHDRAWING: usize = 16;
const WITHDRAWN_MS: i64 = STEP_MS / 2;

/// The reports, by number, and the withdrawals, by that of their request.
#[derive(Debug)]
pub struct Posted {
    ingest: String,
    token: String,
    /// Of those who withdraw.
    tokens: Vec<String>,
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
            ingest: ingest.to_owned(),
            token: token(SECRET, 0, "ingest:any")?,
            tokens: (0..WITHDRAWING as i64).map(|user| token(SECRET, user, "")).collect::<Result<_, _>>()?,
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

    /// Posts one request until it is acknowledged, and then a withdrawal.
    pub async fn post(&self) -> anyhow::Result<()> {
        let first = self.next.fetch_add(AT_ONCE, Ordering::Relaxed);
        self.send("POST", "locations", &self.token, self.body(first), AT_ONCE).await?;
        let (user, at_ms) = self.withdrawal(first);
        let body = format!("{{\"reported_at_ms\":{at_ms}}}");
        self.send("DELETE", "location", &self.tokens[user], body, 1).await?;
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).insert(first);
        Ok(())
    }

    async fn send(&self, method: &str, path: &str, token: &str, body: String, count: usize) -> anyhow::Result<()> {
        let (url, bearer) = (format!("{}/v1/{path}", self.ingest), format!("Bearer {token}"));
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        loop {
            let answer = http::request(method, &url, &headers, body.clone()).await.context("the ingest answers")?;
            match answer.status {
                202 => return Ok(()),
                503 => {
                    self.refused.fetch_add(count, Ordering::Relaxed);
                    tokio::time::sleep(RETRY).await;
                }
                other => bail!("status {other}: {}", answer.text()),
            }
        }
    }

    /// How many reports were answered with 503, each time.
    pub fn refused(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }

    /// How many were acknowledged, but for the withdrawals.
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

    /// User and time of the withdrawal that follows a request tell its number.
    fn withdrawal(&self, first: usize) -> (usize, i64) {
        let request = first / AT_ONCE;
        let (user, round) = (request % WITHDRAWING, request / WITHDRAWING);
        (user, self.began_ms + (user % DAYS) as i64 * DAY_MS + round as i64 * STEP_MS + WITHDRAWN_MS)
    }

    /// Holds that every acknowledged report and withdrawal is among these, as it was sent. How often the most frequent one is there.
    pub fn are_all_among<'a>(&self, logged: impl Iterator<Item = &'a Report>) -> anyhow::Result<usize> {
        let posted = self.next.load(Ordering::Relaxed);
        let (mut times, mut withdrawn) = (vec![0_u8; posted], vec![0_u8; posted / AT_ONCE]);
        for report in logged {
            let since_ms = report.reported_at_ms - self.began_ms - report.user % DAYS as i64 * DAY_MS;
            let (Ok(user), Ok(round)) = (usize::try_from(report.user), usize::try_from(since_ms / STEP_MS)) else {
                bail!("nobody sent {report:?}");
            };
            let found = report.place.map(|place| (report.user, report.reported_at_ms, place.lat_e7, place.lon_e7));
            let number = round * USERS + user;
            let request = round * WITHDRAWING + user;
            let is_sent = match found {
                Some(_) => number < times.len() && found == Some(self.report(number)),
                None => {
                    request < withdrawn.len() && self.withdrawal(request * AT_ONCE) == (user, report.reported_at_ms)
                }
            };
            ensure!(is_sent, "nobody sent {report:?}");
            let seen = if found.is_some() { &mut times[number] } else { &mut withdrawn[request] };
            *seen = seen.saturating_add(1);
        }
        let acknowledged = self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        for first in acknowledged.iter() {
            if let Some(missing) = (*first..first + AT_ONCE).find(|number| times[*number] == 0) {
                bail!("acknowledged, and not in the log: {:?}", self.report(missing));
            }
            if withdrawn[first / AT_ONCE] == 0 {
                bail!("an acknowledged withdrawal that is not in the log: {:?}", self.withdrawal(*first));
            }
        }
        Ok(times.into_iter().chain(withdrawn).max().unwrap_or(0).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Place;

    /// Two requests, both acknowledged, and what the log has of them: the withdrawals are the last two.
    fn acknowledged() -> (Posted, Vec<Report>) {
        let posted = Posted {
            ingest: String::new(),
            token: String::new(),
            tokens: Vec::new(),
            pause: Duration::ZERO,
            began_ms: 1_767_571_200_000,
            next: AtomicUsize::new(2 * AT_ONCE),
            acknowledged: Mutex::new([0, AT_ONCE].into()),
            refused: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        };
        let reports = (0..2 * AT_ONCE).map(|number| {
            let (user, reported_at_ms, lat_e7, lon_e7) = posted.report(number);
            let place = Place { lat_e7, lon_e7, accuracy_m: None, speed_mps: None, heading_deg: None };
            Report { user, reported_at_ms, received_at_ms: 0, place: Some(place) }
        });
        let withdrawals = [0, AT_ONCE].map(|first| {
            let (user, reported_at_ms) = posted.withdrawal(first);
            Report { user: user as i64, reported_at_ms, received_at_ms: 0, place: None }
        });
        let logged = reports.chain(withdrawals).collect();
        (posted, logged)
    }

    #[test]
    fn what_was_acknowledged_has_to_be_in_the_log() {
        let (posted, mut logged) = acknowledged();
        let judged = |logged: &[Report]| posted.are_all_among(logged.iter()).map_err(|error| error.to_string());
        assert_eq!(judged(&logged), Ok(1));
        logged.push(logged[7]);
        logged.push(logged[7]);
        assert_eq!(judged(&logged), Ok(3));
        let without = |at: usize| {
            let mut logged = logged.clone();
            logged.remove(at);
            judged(&logged).expect_err("something is missing")
        };
        assert!(without(8).starts_with("acknowledged, and not in the log: "));
        assert!(without(2 * AT_ONCE).starts_with("an acknowledged withdrawal that is not in the log: "));
        assert!(without(2 * AT_ONCE + 1).starts_with("an acknowledged withdrawal that is not in the log: "));
    }

    #[test]
    fn nothing_else_may_be_in_the_log() {
        let (posted, logged) = acknowledged();
        for changed in [
            Report { reported_at_ms: logged[7].reported_at_ms + 1, ..logged[7] },
            Report { user: logged[7].user + 1, ..logged[7] },
            Report { user: -1, ..logged[7] },
            Report { place: None, ..logged[7] },
            Report { place: logged[8].place, ..logged[7] },
            Report { place: logged[7].place, ..logged[2 * AT_ONCE] },
            Report { reported_at_ms: logged[2 * AT_ONCE].reported_at_ms + STEP_MS, ..logged[2 * AT_ONCE] },
        ] {
            let all = logged.iter().chain([&changed]);
            let judged = posted.are_all_among(all).map_err(|error| error.to_string());
            assert!(judged.as_ref().is_err_and(|said| said.starts_with("nobody sent ")), "{changed:?}: {judged:?}");
        }
    }
}
