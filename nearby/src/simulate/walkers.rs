//! People who walk, cycle and drive around a city centre, each with about twenty friends among them.

use crate::simulate::api::{Api, TokenSource};
use crate::simulate::client::Step;
use crate::simulate::crowd::{Crowd, Outcome};
use crate::simulate::statistics::Moment;
use indicatif::{ProgressBar, ProgressStyle};
use nearby_schemas::UserId;
use nearby_schemas::nearness::EARTH_RADIUS_M;
use nearby_service::Stop;
use nearby_service::auth::Tokens;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The live map starts here too: New York, Empire State Building.
const CENTRE: Step = Step { lat: 40.7484, lon: -73.9857 };
/// Walkers start within this distance of the centre, and turn back at it.
const REACH_M: f64 = 9_000.0;
/// On foot, by bicycle, by car.
const SPEEDS_MPS: [f64; 3] = [1.4, 4.5, 12.0];
/// Friends a walker has to each side in the ring of all walkers.
const NEIGHBOURS: u32 = 5;
/// And so many more, anywhere, who do not know it back.
const STRANGERS: u32 = 10;
/// Whom the live map shows as "me", and how many walkers it knows.
const MAP_USER: UserId = UserId(1);
const MAP_FRIENDS: u32 = 60;
/// The same people every time.
const SEED: u64 = 8_000;
const REPORT_RATES_EVERY: Duration = Duration::from_secs(10);

/// A crowd of walkers.
#[derive(Clone, Debug)]
pub struct Walkers {
    pub count: u32,
    pub first_user: i64,
    pub report_interval: Duration,
}

impl Default for Walkers {
    fn default() -> Walkers {
        Walkers { count: 0, first_user: 2, report_interval: Duration::from_secs(1) }
    }
}

/// Metres east and north of the centre, and the way there.
struct Walker {
    east_m: f64,
    north_m: f64,
    heading: f64,
    speed_mps: f64,
}

/// Walkers for `nearby run --walkers`: until the stop, with the rates in the log.
pub async fn run_in_process(walkers: Walkers, url: &str, tokens: Tokens, stop: Stop) -> anyhow::Result<()> {
    let api = Api::new(url, TokenSource::Signed(tokens))?;
    walkers.befriend(&api).await?;
    let crowd = Crowd::connect(&api, walkers.users(), &stop).await?;
    tracing::info!(walkers = walkers.count, "walking; open {url} to see them");
    let statistics = std::sync::Arc::clone(&crowd.statistics);
    let reporting = async {
        let mut since = Moment::default();
        statistics.rates(&mut since);
        loop {
            tokio::time::sleep(REPORT_RATES_EVERY).await;
            tracing::info!("walkers: {}", statistics.rates(&mut since));
        }
    };
    tokio::select! {
        walked = walkers.walk(&crowd, &stop) => walked,
        () = reporting => Ok(()),
    }
}

impl Walkers {
    /// Walkers for `nearby simulate`: for a while, with a progress bar.
    pub async fn run(self, api: Api, duration: Duration, settle: Duration, stop: Stop) -> anyhow::Result<Outcome> {
        self.befriend(&api).await?;
        let crowd = Crowd::connect(&api, self.users(), &stop).await?;
        let bar = ProgressBar::new(duration.as_secs());
        bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} s  {msg}")?);
        let statistics = std::sync::Arc::clone(&crowd.statistics);
        let progress = async {
            let mut since = Moment::default();
            for _ in 0..duration.as_secs() {
                tokio::time::sleep(Duration::from_secs(1)).await;
                bar.inc(1);
                bar.set_message(statistics.rates(&mut since));
            }
        };
        tokio::select! {
            walked = self.walk(&crowd, &stop) => walked?,
            () = progress => {}
        }
        bar.finish_and_clear();
        Ok(crowd.end(settle, &stop).await)
    }

    fn users(&self) -> impl Iterator<Item = UserId> + use<> {
        let first = self.first_user;
        (0..self.count).map(move |index| UserId(first + i64::from(index)))
    }

    /// Gives everybody their friends; the live map's user knows some walkers, and they know it.
    async fn befriend(&self, api: &Api) -> anyhow::Result<()> {
        let mut rng = StdRng::seed_from_u64(SEED);
        let user = |index: u32| UserId(self.first_user + i64::from(index % self.count));
        let mut lists: BTreeMap<UserId, BTreeSet<UserId>> = BTreeMap::new();
        for index in 0..self.count {
            let friends = lists.entry(user(index)).or_default();
            for step in 1..=NEIGHBOURS {
                friends.insert(user(index + step));
                friends.insert(user(index + self.count - step % self.count));
            }
            friends.extend((0..STRANGERS).map(|_| user(rng.random_range(0..self.count))));
            friends.remove(&user(index));
        }
        if self.first_user > MAP_USER.0 {
            let known: BTreeSet<UserId> = (0..MAP_FRIENDS.min(self.count)).map(user).collect();
            for friend in &known {
                lists.entry(*friend).or_default().insert(MAP_USER);
            }
            lists.insert(MAP_USER, known);
        }
        let lists = lists.into_iter().map(|(user, friends)| (user, friends.into_iter().collect())).collect();
        api.replace_friend_lists(&lists).await
    }

    /// Everybody reports once per interval, evenly spread over it, until the stop.
    async fn walk(&self, crowd: &Crowd, stop: &Stop) -> anyhow::Result<()> {
        let mut rng = StdRng::seed_from_u64(SEED + 1);
        let mut walkers: Vec<(UserId, Walker)> = self.users().map(|user| (user, Walker::random(&mut rng))).collect();
        let mut pace = tokio::time::interval(self.report_interval / self.count);
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
        loop {
            for (user, walker) in &mut walkers {
                if stop.run_until_cancelled(pace.tick()).await.is_none() {
                    return Ok(());
                }
                walker.walk(self.report_interval.as_secs_f64(), &mut rng);
                crowd.report(*user, walker.step()).await?;
            }
        }
    }
}

impl Walker {
    fn random(rng: &mut StdRng) -> Walker {
        // The square root spreads people evenly over the disc.
        let (distance, angle) = (REACH_M * rng.random::<f64>().sqrt(), rng.random::<f64>() * std::f64::consts::TAU);
        Walker {
            east_m: distance * angle.cos(),
            north_m: distance * angle.sin(),
            heading: rng.random::<f64>() * std::f64::consts::TAU,
            speed_mps: SPEEDS_MPS[rng.random_range(0..SPEEDS_MPS.len())],
        }
    }

    fn walk(&mut self, seconds: f64, rng: &mut StdRng) {
        self.heading += (rng.random::<f64>() - 0.5) * 0.6;
        if self.east_m.hypot(self.north_m) > REACH_M {
            self.heading = (-self.north_m).atan2(-self.east_m);
        }
        self.east_m += self.heading.cos() * self.speed_mps * seconds;
        self.north_m += self.heading.sin() * self.speed_mps * seconds;
    }

    fn step(&self) -> Step {
        let lat = CENTRE.lat + (self.north_m / EARTH_RADIUS_M).to_degrees();
        let lon = CENTRE.lon + (self.east_m / (EARTH_RADIUS_M * CENTRE.lat.to_radians().cos())).to_degrees();
        Step { lat, lon }
    }
}
