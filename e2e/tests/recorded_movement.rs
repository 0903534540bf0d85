//! Real movement through real Kafka and Postgres: 106,827 check-ins of 5,853 people in New York, replayed by `nearby
//! simulate` on their own friend graph. At the end everybody has to see what brute force over the same files says, and the
//! history has to hold one row per accepted report. And taxis of San Francisco, among friends that are drawn.
//!
//! The judge shares no code with the pipeline: it parses the files itself and measures with vectors.

use anyhow::{Context, ensure};
use flate2::read::GzDecoder;
use nearby_e2e::kafka::Kafka;
use nearby_e2e::nearby::Nearby;
use nearby_e2e::ports;
use nearby_e2e::postgres::{self, Postgres};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const SECRET: &str = "a secret for the tests alone";
const RADIUS_M: f64 = 8_000.0;
/// Pairs this near to the radius may go either way: places are rounded to 1e-7 degree.
const DOUBT_M: f64 = 0.2;
const SPEED_UP: &str = "700000";
/// Views have to be right so long after the last report.
const SETTLE_S: &str = "15";
const READY: Duration = Duration::from_secs(60);
const REPLAY: Duration = Duration::from_secs(400);
/// The first 49 minutes of the day.
const TAXI_FIXES: usize = 20_000;
const HISTORY: Duration = Duration::from_secs(30);

#[test]
fn everybody_sees_what_brute_force_says_and_history_has_every_report() -> anyhow::Result<()> {
    let recorded = recorded()?;
    let (checkins, friends) = (recorded.join("checkins.tsv.gz"), recorded.join("friends.tsv.gz"));
    let expected = Truth::of(&checkins, &friends)?;

    let kafka = Kafka::start()?;
    let postgres = Postgres::start()?;
    let listen = format!("127.0.0.1:{}", ports::free_port()?);
    let (brokers, database) = (kafka.bootstrap(), postgres.url());
    let environment = [
        ("NEARBY_JWT_SECRET", SECRET),
        ("NEARBY_BROKERS", brokers.as_str()),
        ("NEARBY_DATABASE_URL", database.as_str()),
        ("NEARBY_URL", &format!("http://{listen}")),
        // A year and a half in a minute: people check in faster than they may in life.
        ("NEARBY_USER_RATE_PER_S", "100000"),
        ("NEARBY_USER_BURST", "100000"),
        ("NEARBY_INACTIVE_AFTER_S", "3600"),
    ];
    let mut nearby = Nearby::start(&["run", "--listen", &listen], &environment)?;
    nearby.wait_ready(READY)?;
    let mut load = Nearby::start(&["friends", "load", &friends.display().to_string()], &environment)?;
    ensure!(load.finish(READY)?.success(), "{}", load.stderr());
    let views = nearby.home().path().join("views.json");
    let (checkins, views_file) = (checkins.display().to_string(), views.display().to_string());
    let args =
        ["simulate", "--checkins", &checkins, "--speed-up", SPEED_UP, "--settle-s", SETTLE_S, "--views", &views_file];
    let started_at = Instant::now();
    let mut simulate = Nearby::start(&args, &environment)?;
    let reports =
        simulate.wait_line("reports ", REPLAY).map_err(|error| anyhow::anyhow!("{error:#}\n{}", nearby.stderr()))?;
    ensure!(simulate.finish(READY)?.success(), "{}", simulate.stderr());
    println!("{}\nin all {:.0} s", simulate.stdout().join("\n"), started_at.elapsed().as_secs_f64());

    let counted = format!("{0} sent, {0} accepted", expected.checkins);
    ensure!(reports.trim_start().starts_with(&counted), "every check-in was accepted: {reports}");
    let views: Value = serde_json::from_reader(std::fs::File::open(&views).context("the views")?)?;
    expected.judge(&views)?;
    history_has(&postgres, &expected)?;
    let (status, _) = nearby.terminate()?;
    ensure!(status.success(), "{status}: {}", nearby.stderr());
    Ok(())
}

#[test]
fn taxis_see_what_brute_force_says() -> anyhow::Result<()> {
    let all = gunzip(&recorded()?.join("../cabspotting-sf/cabs.txt.gz"))?;
    let hour: String = all.lines().take(TAXI_FIXES).map(|line| format!("{line}\n")).collect();
    let listen = format!("127.0.0.1:{}", ports::free_port()?);
    let environment = [
        ("NEARBY_JWT_SECRET", SECRET),
        ("NEARBY_URL", &format!("http://{listen}")),
        ("NEARBY_USER_RATE_PER_S", "100000"),
        ("NEARBY_USER_BURST", "100000"),
    ];
    let mut nearby = Nearby::start(&["run", "--listen", &listen], &environment)?;
    let database = nearby.wait_line("database ", READY)?.trim_start_matches("database ").to_owned();
    nearby.wait_ready(READY)?;
    let (file, views) = (nearby.home().path().join("cabs.txt"), nearby.home().path().join("views.json"));
    std::fs::write(&file, &hour)?;
    let (file, views_file) = (file.display().to_string(), views.display().to_string());
    let args = ["simulate", "--taxis", &file, "--taxi-friends", "12", "--speed-up", "400", "--views", &views_file];
    let mut simulate = Nearby::start(&args, &environment)?;
    let reports =
        simulate.wait_line("reports ", REPLAY).map_err(|error| anyhow::anyhow!("{error:#}\n{}", nearby.stderr()))?;
    ensure!(simulate.finish(READY)?.success(), "{}", simulate.stderr());
    println!("{}", simulate.stdout().join("\n"));
    let lists = postgres::psql(&database, "select user_id, array_to_string(friends, ',') from nearby.friend_lists")?;
    let expected = Truth::of_taxis(&hour, &lists)?;
    let counted = format!("{TAXI_FIXES} sent, {TAXI_FIXES} accepted");
    ensure!(reports.trim_start().starts_with(&counted), "every fix was accepted: {reports}");
    let (taxis, friendships) = (expected.friends.len(), expected.friends.values().map(BTreeSet::len).sum::<usize>());
    ensure!((10 * taxis..14 * taxis).contains(&friendships), "{friendships} friendships of {taxis} taxis, not 12 each");
    let views: Value = serde_json::from_reader(std::fs::File::open(&views).context("the views")?)?;
    expected.judge(&views)?;
    let (status, _) = nearby.terminate()?;
    ensure!(status.success(), "{status}: {}", nearby.stderr());
    Ok(())
}

fn history_has(postgres: &Postgres, expected: &Truth) -> anyhow::Result<()> {
    let question = "select count(*), count(distinct (topic, kafka_partition, kafka_offset)), count(distinct user_id), \
                    count(lat) from nearby.location_history";
    let (reports, users) = (expected.checkins, expected.places.len());
    let answer = format!("{reports}|{reports}|{users}|{reports}");
    let deadline = Instant::now() + HISTORY;
    loop {
        let found = postgres.psql(question)?;
        if found == answer {
            println!("history {found}");
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "history has {found}, expected {answer}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Where the recordings are; `make test` runs this test only if they are there.
fn recorded() -> anyhow::Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the project's folder")?;
    let recorded = std::env::var_os("RECORDED").map_or_else(|| root.join("../shared/data/gowalla-nyc"), PathBuf::from);
    ensure!(recorded.is_dir(), "{} is missing: recorded check-ins, see README", recorded.display());
    Ok(recorded)
}

/// What is true after the last check-in.
struct Truth {
    checkins: usize,
    places: BTreeMap<u64, (f64, f64)>,
    friends: BTreeMap<u64, BTreeSet<u64>>,
}

impl Truth {
    fn of(checkins: &Path, friends: &Path) -> anyhow::Result<Truth> {
        let mut latest: BTreeMap<u64, (String, f64, f64)> = BTreeMap::new();
        let text = gunzip(checkins)?;
        // A user's newest check-in comes first in the file: among equal times the first line is the last check-in.
        for line in text.lines() {
            let fields: Vec<&str> = line.split('\t').collect();
            let (user, time) = (fields[0].parse()?, fields[1].to_owned());
            let place = (fields[2].parse()?, fields[3].parse()?);
            if latest.get(&user).is_none_or(|(newest, _, _)| *newest < time) {
                latest.insert(user, (time, place.0, place.1));
            }
        }
        let mut lists: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
        for line in gunzip(friends)?.lines().skip(1) {
            let (user, friend) = line.split_once('\t').context("a friendship")?;
            lists.entry(user.parse()?).or_default().insert(friend.parse()?);
        }
        let places = latest.into_iter().map(|(user, (_, lat, lon))| (user, (lat, lon))).collect();
        Ok(Truth { checkins: text.lines().count(), places, friends: lists })
    }

    /// Of fixes in the order of times, and rows of friend lists. Taxis are numbered by name, from 2.
    fn of_taxis(text: &str, lists: &str) -> anyhow::Result<Truth> {
        let mut latest = BTreeMap::new();
        for line in text.lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            latest.insert(fields[0], (fields[1].parse()?, fields[2].parse()?));
        }
        let places = (2..).zip(latest.into_values()).collect();
        let mut friends = BTreeMap::new();
        for row in lists.lines() {
            let (user, list) = row.split_once('|').context("a friend list")?;
            let list = list.split(',').filter(|friend| !friend.is_empty()).map(str::parse);
            friends.insert(user.parse()?, list.collect::<Result<_, _>>()?);
        }
        Ok(Truth { checkins: text.lines().count(), places, friends })
    }

    /// Every view has whom it has to have, at the right distance, and nobody else.
    fn judge(&self, views: &Value) -> anyhow::Result<()> {
        let views = views.as_object().context("views by user")?;
        ensure!(views.len() == self.places.len(), "{} views of {} people", views.len(), self.places.len());
        let (mut near, mut doubtful, mut wrong) = (0, 0, Vec::new());
        for (user, here) in &self.places {
            let view = views[&user.to_string()].as_object().context("a view")?;
            let nobody = BTreeSet::new();
            let friends = self.friends.get(user).unwrap_or(&nobody);
            for stranger in view.keys().filter(|id| !id.parse().is_ok_and(|id| friends.contains(&id))) {
                wrong.push(format!("{user} sees {stranger}, who is no friend"));
            }
            for friend in friends.iter().filter(|friend| *friend != user) {
                let truth = self.places.get(friend).map(|there| distance_m(*here, *there));
                let seen = view.get(&friend.to_string()).and_then(|seen| seen[2].as_f64());
                match (truth, seen) {
                    (Some(truth), _) if (truth - RADIUS_M).abs() <= DOUBT_M => doubtful += 1,
                    (Some(truth), Some(seen)) if truth <= RADIUS_M && (truth - seen).abs() <= DOUBT_M => near += 1,
                    (Some(truth), None) if truth > RADIUS_M => {}
                    (None, None) => {}
                    _ => wrong.push(format!("{user} sees {friend} at {seen:?} m, truth {truth:?} m")),
                }
            }
        }
        println!("views {} people, {near} friends near, {doubtful} in doubt, {} wrong", views.len(), wrong.len());
        ensure!(near > 1_000, "the recording has friends near each other, not {near}");
        ensure!(wrong.is_empty(), "{} wrong: {:?}", wrong.len(), &wrong[..wrong.len().min(10)]);
        Ok(())
    }
}

/// By the angle between two unit vectors.
fn distance_m(a: (f64, f64), b: (f64, f64)) -> f64 {
    let vector = |(lat, lon): (f64, f64)| {
        let (lat, lon) = (lat.to_radians(), lon.to_radians());
        [lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()]
    };
    let ([ax, ay, az], [bx, by, bz]) = (vector(a), vector(b));
    let cross = [ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx];
    let sine = cross.iter().map(|part| part * part).sum::<f64>().sqrt();
    6_371_008.8 * sine.atan2(ax * bx + ay * by + az * bz)
}

fn gunzip(path: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    let file = std::fs::File::open(path).with_context(|| format!("{}", path.display()))?;
    GzDecoder::new(file).read_to_string(&mut text).with_context(|| format!("{}", path.display()))?;
    Ok(text)
}
