//! `nearby replay` on real Kafka: the same bytes each time, the truth, what it refuses, and what two replays tell differently.

use anyhow::{Context, ensure};
use nearby_e2e::kafka::Kafka;
use nearby_e2e::nearby::{Ended, Nearby, run, token};
use nearby_e2e::process::Home;
use nearby_e2e::ws::Socket;
use nearby_e2e::{http, ports};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SECRET: &str = "a secret for the tests alone";
const READY: Duration = Duration::from_secs(60);
const STEP: Duration = Duration::from_secs(20);
const RADIUS_M: f64 = 8_000.0;
/// Pairs this near to the radius may go either way: distances are told to a decimetre.
const DOUBT_M: f64 = 0.2;
const USERS: i64 = 40;
const FRIENDS: usize = 8;
const PARTITIONS: i32 = 4;
/// Append times are whole milliseconds: what comes after a pause is later.
const PAUSE: Duration = Duration::from_millis(20);

struct Deployment {
    kafka: Kafka,
    brokers: String,
    home: Home,
    ingest: Nearby,
    url: String,
}

impl Deployment {
    fn start() -> anyhow::Result<Deployment> {
        let kafka = Kafka::start()?;
        let brokers = kafka.bootstrap();
        let home = Home::new("replay")?;
        Deployment::create(&brokers)?;
        let listen = format!("127.0.0.1:{}", ports::free_port()?);
        let mut ingest = Nearby::start(&["ingest", "--listen", &listen], &settings(&brokers))?;
        let url = ingest.wait_line("ready ", READY)?;
        Ok(Deployment { kafka, brokers, home, ingest, url })
    }

    fn create(brokers: &str) -> anyhow::Result<()> {
        let created = run(&["topics", "create", "--partitions", &PARTITIONS.to_string()], &settings(brokers))?;
        ensure!(created.code == Some(0), "{created:?}");
        Ok(())
    }

    fn start_service(&self, service: &str) -> anyhow::Result<Nearby> {
        let listen = format!("127.0.0.1:{}", ports::free_port()?);
        let mut started = Nearby::start(&[service, "--listen", &listen], &settings(&self.brokers))?;
        started.wait_line("ready ", READY)?;
        Ok(started)
    }

    /// Runs a command whose words are parted by spaces.
    fn nearby(&self, args: &str) -> anyhow::Result<Ended> {
        run(&args.split(' ').collect::<Vec<_>>(), &settings(&self.brokers))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Replays into a file of that name.
    fn replay(&self, (from, to): (i64, i64), name: &str, more: &str) -> anyhow::Result<(Ended, String)> {
        let path = self.file(name);
        let ended = self.nearby(&format!("replay --from {from} --to {to} --output {}{more}", path.display()))?;
        ensure!(ended.code == Some(0), "{ended:?}");
        let mut text = String::new();
        let bytes = std::fs::read(&path)?;
        match name.ends_with(".gz") {
            true => drop(flate2::read::GzDecoder::new(&bytes[..]).read_to_string(&mut text)?),
            false => text = String::from_utf8(bytes)?,
        }
        Ok((ended, text))
    }

    async fn report(&self, reports: &[Value]) -> anyhow::Result<()> {
        let url = format!("{}/v1/locations", self.url);
        http::post_json(&token(SECRET, 0, "ingest:any")?, &url, &json!(reports)).await?.expect_status(202)?;
        Ok(())
    }

    async fn befriend(&self, lists: &BTreeMap<i64, BTreeSet<i64>>) -> anyhow::Result<()> {
        let text = |id: &i64| id.to_string();
        let lists: BTreeMap<String, Vec<String>> =
            lists.iter().map(|(user, friends)| (text(user), friends.iter().map(text).collect())).collect();
        let url = format!("{}/v1/friend-lists", self.url);
        let answer = http::post_json(&token(SECRET, 0, "friends:write")?, &url, &json!({ "lists": lists })).await?;
        answer.expect_status(202).map(drop)
    }
}

fn settings(brokers: &str) -> [(&'static str, &str); 2] {
    [("NEARBY_BROKERS", brokers), ("NEARBY_JWT_SECRET", SECRET)]
}

fn now_ms() -> anyhow::Result<i64> {
    Ok(i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?)
}

/// A moment that nothing else happens at.
fn pause() -> anyhow::Result<i64> {
    std::thread::sleep(PAUSE);
    let now = now_ms()?;
    std::thread::sleep(PAUSE);
    Ok(now)
}

/// People who jump around a city.
struct People {
    dice: StdRng,
    places: BTreeMap<i64, (f64, f64)>,
    lists: BTreeMap<i64, BTreeSet<i64>>,
}

impl People {
    fn new() -> People {
        let mut dice = StdRng::seed_from_u64(1);
        let mut lists = BTreeMap::new();
        for user in 0..USERS {
            let friends = (0..FRIENDS).map(|_| dice.random_range(0..USERS)).filter(|friend| *friend != user);
            lists.insert(user, friends.collect());
        }
        People { dice, places: BTreeMap::new(), lists }
    }

    /// Everybody reports once; nobody's place is a round number.
    fn reports(&mut self) -> Vec<Value> {
        let mut reports = Vec::new();
        for user in 0..USERS {
            let mut around = |centre: f64| centre + f64::from(self.dice.random_range(-1_000_000..1_000_000)) / 1e7;
            let (lat, lon) = (around(40.7), around(-73.9));
            self.places.insert(user, (lat, lon));
            reports.push(json!({"user_id": user.to_string(), "lat": lat, "lon": lon}));
        }
        reports
    }

    /// Everybody's view, made from what was told, has whom it has to have, where they are, and nobody else.
    fn judge(&self, text: &str) -> anyhow::Result<usize> {
        let views = views(text)?;
        let mut near = 0;
        for (user, friends) in &self.lists {
            let view = views.get(user).with_context(|| format!("{user} was told nothing"))?;
            for friend in 0..USERS {
                let truth_m = distance_m(self.places[user], self.places[&friend]);
                if (truth_m - RADIUS_M).abs() <= DOUBT_M {
                    continue;
                }
                let expected = friends.contains(&friend) && truth_m < RADIUS_M;
                let seen = view.get(&friend);
                ensure!(seen.is_some() == expected, "{user} sees {friend}: {seen:?}, truth {truth_m} m");
                if let Some((lat, lon)) = seen {
                    let off_m = distance_m((*lat, *lon), self.places[&friend]);
                    ensure!(off_m < 0.1, "{user} sees {friend} {off_m} m off");
                    near += 1;
                }
            }
        }
        Ok(near)
    }
}

/// Friends and where they are.
type View = BTreeMap<i64, (f64, f64)>;

/// Viewers with the friends whom they see in the end.
fn views(text: &str) -> anyhow::Result<BTreeMap<i64, View>> {
    let mut views: BTreeMap<i64, View> = BTreeMap::new();
    for line in text.lines() {
        let told: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        let id = |value: &Value| value.as_str().and_then(|id| id.parse::<i64>().ok()).context("an id");
        let place = |of: &Value| of["lat"].as_f64().zip(of["lon"].as_f64()).context("a place");
        let view = views.entry(id(&told["viewer"])?).or_default();
        match told["type"].as_str() {
            Some("snapshot") => {
                view.clear();
                for friend in told["friends"].as_array().context("friends")? {
                    view.insert(id(&friend["friend"])?, place(friend)?);
                }
            }
            Some("moved") => drop(view.insert(id(&told["friend"])?, place(&told)?)),
            Some("left") => drop(view.remove(&id(&told["friend"])?)),
            Some("viewer_moved") => {}
            other => anyhow::bail!("unknown type {other:?}"),
        }
    }
    Ok(views)
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

#[tokio::test(flavor = "multi_thread")]
async fn a_range_is_replayed_truly_and_always_the_same() -> anyhow::Result<()> {
    let deployment = Deployment::start()?;
    let mut people = People::new();
    deployment.befriend(&people.lists).await?;
    deployment.report(&people.reports()).await?;
    let from = pause()?;
    for _ in 0..5 {
        deployment.report(&people.reports()).await?;
    }
    let to = pause()?;
    // What comes later is no part of it: other places, and a friend list.
    let replaced = people.lists.clone();
    deployment.befriend(&BTreeMap::from([(0, (1..USERS).collect())])).await?;
    let then = people.places.clone();
    deployment.report(&people.reports()).await?;
    let later = pause()?;
    (people.places, people.lists) = (then, replaced);

    let range = (from, to);
    let (ended, once) = deployment.replay(range, "once.jsonl", "")?;
    ensure!(ended.stdout.starts_with(&format!("{} reports replayed", 5 * USERS)), "{ended:?}");
    ensure!(ended.stderr.is_empty() || !ended.stderr.contains("nearby: "), "nothing to warn of: {}", ended.stderr);
    let near = people.judge(&once)?;
    ensure!(near > 20, "friends are near each other, not {near}");
    let first: Value = serde_json::from_str(once.lines().next().context("a line")?)?;
    ensure!(first["type"] == "snapshot" && first["friends"].as_array().is_some(), "first come snapshots: {first}");
    let with_friends = once.lines().take(USERS.unsigned_abs() as usize).filter(|line| line.contains("distance_m"));
    ensure!(with_friends.count() > 5, "positions from before the range count");

    // The same bytes, plain or compressed, and by way of a topic.
    let (_, again) = deployment.replay(range, "again.jsonl", "")?;
    ensure!(again == once, "not the same to the byte");
    let (_, compressed) = deployment.replay(range, "again.jsonl.gz", "")?;
    ensure!(compressed == once, "compressed it is another");
    let args = format!("replay --from {from} --to {to} --output-prefix shadow.");
    let shadowed = deployment.nearby(&args)?;
    ensure!(shadowed.code == Some(0) && shadowed.stdout.contains("shadow.friend-moved-replay"), "{shadowed:?}");
    let same = deployment.nearby(&format!(
        "replay --diff {} topic:shadow.friend-moved-replay",
        deployment.file("once.jsonl").display()
    ))?;
    ensure!(same.code == Some(0) && same.stdout.starts_with("the same: "), "{same:?}");
    let refused = deployment.nearby(&args)?;
    ensure!(refused.code == Some(1) && refused.stderr.contains("holds records already"), "{refused:?}");
    let tail = deployment.nearby("tail shadow.friend-moved-replay --from beginning --count 1")?;
    ensure!(tail.stdout.contains(r#""type":"FriendMovedBatch""#), "{tail:?}");

    // Other rules, other viewers, another range.
    deployment.replay(range, "near.jsonl", " --radius-m 3000")?;
    let (once_file, near_file) = (deployment.file("once.jsonl"), deployment.file("near.jsonl"));
    let differ = deployment.nearby(&format!("replay --diff {} {}", once_file.display(), near_file.display()))?;
    ensure!(differ.code == Some(1) && differ.stdout.contains("the first difference is in line"), "{differ:?}");
    ensure!(differ.stdout.contains("only in A") && differ.stdout.contains("by viewer and friend"), "{differ:?}");
    let (_, two) = deployment.replay(range, "two.jsonl", " --viewers 3,5")?;
    ensure!(views(&two)?.into_keys().eq([3, 5]), "only these were asked for: {two}");
    let of_3 = |text: &str| text.lines().filter(|line| line.contains(r#""viewer":"3""#)).count();
    ensure!(of_3(&two) == of_3(&once), "viewer 3 is told the same");
    let (_, longer) = deployment.replay((from, later), "longer.jsonl", "")?;
    ensure!(longer.lines().count() > once.lines().count(), "a longer range has more");

    refusals(&deployment, range).await
}

async fn refusals(deployment: &Deployment, (from, to): (i64, i64)) -> anyhow::Result<()> {
    let out = deployment.file("refused.jsonl");
    let refused = |from: i64, to: i64, code: i32, says: &str| {
        let ended = deployment.nearby(&format!("replay --from {from} --to {to} --output {}", out.display()))?;
        ensure!(ended.code == Some(code) && ended.stderr.contains(says), "{says}: {ended:?}");
        ensure!(!out.exists(), "what is refused leaves no file");
        Ok(())
    };
    refused(to, from, 2, "the range is empty: --to has to be later than --from")?;
    refused(from, to + 3_600_000, 2, "--to is in the future")?;
    refused(from - 7_200_000, from - 3_600_000, 1, "no report was appended to location-events from")?;
    let own = deployment.nearby(&format!("replay --from {from} --to {to} --output-prefix "))?;
    ensure!(own.code == Some(2) && own.stderr.contains("--output-prefix is that of the topics"), "{own:?}");
    let odd = deployment.file("odd.jsonl");
    std::fs::write(&odd, "{}\n")?;
    let once = deployment.file("once.jsonl");
    let ended = deployment.nearby(&format!("replay --diff {} {}", odd.display(), once.display()))?;
    ensure!(ended.code == Some(1) && ended.stderr.contains("line 1 of A is not of a replay"), "{ended:?}");

    // What retention has removed is said to be gone.
    let admin: AdminClient<_> = ClientConfig::new().set("bootstrap.servers", &deployment.brokers).create()?;
    let mut before = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        before.add_partition_offset("location-events", partition, Offset::Offset(30))?;
    }
    admin.delete_records(&before, &AdminOptions::new()).await?;
    refused(from, to, 1, "the range is not wholly in the log any more: partition")
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_that_compaction_may_have_removed_are_told() -> anyhow::Result<()> {
    let kafka = Kafka::start()?;
    let brokers = kafka.bootstrap();
    let admin: AdminClient<_> = ClientConfig::new().set("bootstrap.servers", &brokers).create()?;
    let lists = NewTopic::new("friend-lists", PARTITIONS, TopicReplication::Fixed(1));
    let lists = lists.set("cleanup.policy", "compact").set("min.compaction.lag.ms", "1");
    for made in admin.create_topics([&lists], &AdminOptions::new()).await? {
        made.map_err(|(name, reason)| anyhow::anyhow!("{name}: {reason}"))?;
    }
    Deployment::create(&brokers)?;
    let listen = format!("127.0.0.1:{}", ports::free_port()?);
    let mut ingest = Nearby::start(&["ingest", "--listen", &listen], &settings(&brokers))?;
    let url = ingest.wait_line("ready ", READY)?;
    let deployment = Deployment { kafka, brokers, home: Home::new("replay")?, ingest, url };
    let mut people = People::new();
    let from = pause()?;
    deployment.befriend(&people.lists).await?;
    deployment.report(&people.reports()).await?;
    let (ended, text) = deployment.replay((from, pause()?), "out.jsonl", "")?;
    ensure!(ended.stderr.contains("friend lists that were replaced before"), "{ended:?}");
    ensure!(people.judge(&text)? > 0, "and it goes on with what is there");
    ensure!(deployment.kafka.pid().is_some() && deployment.ingest.pid() > 0, "both ran until here");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn with_real_sessions_it_tells_what_was_told() -> anyhow::Result<()> {
    let deployment = Deployment::start()?;
    let mut people = People::new();
    deployment.befriend(&people.lists).await?;
    let (_processor, _pusher) = (deployment.start_service("processor")?, deployment.start_service("pusher")?);
    deployment.report(&people.reports()).await?;
    let gateway = http::get(&format!("{}/v1/gateway", deployment.url)).await?.expect_status(200)?.json()?;
    let stream = gateway["url"].as_str().context("a url")?;
    let mut sockets = Vec::new();
    for user in [3, 5] {
        let mut socket = Socket::connect(stream, &token(SECRET, user, "")?).await?;
        socket.wait_frame("snapshot", STEP).await?;
        sockets.push(socket);
    }
    let from = pause()?;
    for _ in 0..5 {
        // The two stay where they are: a processor hears partitions in any order, so who of a viewer and a friend moved
        // first would be another question each time.
        let mut reports = people.reports();
        reports.retain(|report| report["user_id"] != "3" && report["user_id"] != "5");
        deployment.report(&reports).await?;
    }
    // As long as they are connected; batches wait for at most 50 ms.
    std::thread::sleep(Duration::from_millis(500));
    let to = pause()?;
    let (_, text) = deployment.replay((from, to), "sessions.jsonl", " --sessions")?;
    ensure!(views(&text)?.into_keys().eq([3, 5]), "only they were connected: {text}");
    let name = gateway["gateway"].as_str().context("a gateway")?;
    let live = deployment.nearby(&format!("tail friend-moved-{name} --from {from} --no-follow"))?;
    let (live, replayed) = (moves_of_batches(&live.stdout)?, moves_of_lines(&text)?);
    ensure!(!live.is_empty() && live == replayed, "told then: {live:?}\ntold now: {replayed:?}");
    Ok(())
}

/// Gateway's viewer, friend, time of the report, and distance in decimetres.
type Move = (String, String, i64, i64);

fn moves_of_batches(text: &str) -> anyhow::Result<BTreeSet<Move>> {
    let mut moves = BTreeSet::new();
    for line in text.lines() {
        let line: Value = serde_json::from_str(line)?;
        for section in line["value"]["sections"].as_array().context("sections")? {
            for event in section["events"].as_array().context("events")? {
                let moved = &event["FriendMoved"];
                for told in moved["viewers"].as_array().into_iter().flatten() {
                    let (viewer, friend) = (told["viewer"].as_str(), moved["friend"].as_str());
                    let (viewer, friend) = viewer.zip(friend).context("ids")?;
                    let numbers = moved["updated_at"].as_i64().zip(told["distance_dm"].as_i64());
                    let (updated_at, distance_dm) = numbers.context("numbers")?;
                    moves.insert((viewer.to_owned(), friend.to_owned(), updated_at, distance_dm));
                }
            }
        }
    }
    Ok(moves)
}

fn moves_of_lines(text: &str) -> anyhow::Result<BTreeSet<Move>> {
    let mut moves = BTreeSet::new();
    for line in text.lines() {
        let told: Value = serde_json::from_str(line)?;
        if told["type"] == "moved" {
            let (viewer, friend) = told["viewer"].as_str().zip(told["friend"].as_str()).context("ids")?;
            let numbers = told["updated_at"].as_i64().zip(told["distance_m"].as_f64());
            let (updated_at, distance_m) = numbers.context("numbers")?;
            #[expect(clippy::cast_possible_truncation, reason = "decimetres within the radius")]
            moves.insert((viewer.to_owned(), friend.to_owned(), updated_at, (distance_m * 10.0).round() as i64));
        }
    }
    Ok(moves)
}
