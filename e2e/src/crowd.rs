//! People with phones: each holds a WebSocket, reports all the time, and shows what the frames say.
//!
//! They live in neighbourhoods of ten who are each other's friends. Two neighbourhoods share each place, so that everybody
//! is near as many strangers as friends. Seven of ten stay near, two commute across the radius, one stops sharing now and
//! then. Half of them report over their sockets, half by HTTP. Nobody reports again before the last report was answered.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::cluster::Cluster;
use crate::herd::Way;
use crate::http;
use crate::world::{Place, Report, World};
use crate::ws::{Closed, Socket};

/// People of one neighbourhood.
pub const NEIGHBOURS: i64 = 10;
/// Everybody reports so often, if answered.
const REPORT_INTERVAL: Duration = Duration::from_millis(500);
/// A client that is told nothing waits on; whoever looks after it measures the gap.
const FOREVER: Duration = Duration::from_secs(3600);
const FIRST_SNAPSHOT: Duration = Duration::from_secs(20);
/// Who loses a socket waits for up to so long, unless the gateway has said how long.
const RECONNECT_MS_MAX: u64 = 200;
const METRES_PER_DEGREE: f64 = 111_195.0;
/// Items of one request when many people are brought into the log at once.
const AT_ONCE: i64 = 1_000;

/// The people, and what is true about them.
pub struct Crowd {
    shared: Arc<Shared>,
    people: Mutex<JoinSet<()>>,
}

struct Shared {
    world: Mutex<World>,
    ingest: String,
    acknowledged: AtomicUsize,
    /// Reports that were answered with 503.
    refused: AtomicUsize,
    stop: tokio::sync::watch::Sender<bool>,
}

/// How somebody moves.
#[derive(Clone, Copy, Debug)]
enum Role {
    /// Within 2 km of the neighbourhood's centre.
    Resident,
    /// From the centre to 14 km north and back.
    Commuter,
    /// Like a resident, but now and then stops sharing for a while.
    Shy,
}

struct Person {
    user: i64,
    token: String,
    way: Way,
    /// Comes back when the socket ends.
    comes_back: bool,
    over_socket: bool,
    role: Role,
    step: i64,
    shared: Arc<Shared>,
}

/// How far a person has come with reporting; outlives sockets.
struct Reporting {
    next: tokio::time::Instant,
    /// The report that waits for its answer, and whether it is a withdrawal.
    unanswered: Option<(usize, bool)>,
    answer: mpsc::Sender<anyhow::Result<bool>>,
    answers: mpsc::Receiver<anyhow::Result<bool>>,
    /// How long a `drain` says to wait.
    pause: Option<Duration>,
}

impl Crowd {
    /// Writes friend lists, connects everybody and waits until all have a snapshot; the people are the users 1, 2, …, each on
    /// a gateway of the test's choice whose end would be an error.
    pub async fn gather(cluster: &Cluster, neighbourhoods: i64) -> anyhow::Result<Crowd> {
        Crowd::gather_by(cluster, neighbourhoods, None).await
    }

    /// The same; with a way, they find their gateways by it, and come back when a socket ends.
    pub async fn gather_by(cluster: &Cluster, neighbourhoods: i64, way: Option<&Way>) -> anyhow::Result<Crowd> {
        let (acknowledged, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let (ingest, stop) = (cluster.ingest.url.clone(), tokio::sync::watch::channel(false).0);
        let shared = Arc::new(Shared { world: Mutex::default(), ingest, acknowledged, refused, stop });
        let mut people = JoinSet::new();
        let token = cluster.token(0).await?;
        let everybody = 1..=neighbourhoods * NEIGHBOURS;
        let lists: Vec<(i64, BTreeSet<i64>)> = everybody.clone().map(|user| (user, friends_of(user))).collect();
        shared.befriend(&token, lists).await?;
        let (ready, mut readied) = mpsc::unbounded_channel();
        for user in everybody.clone() {
            let pusher = &cluster.pushers[usize::try_from(user / 2)? % cluster.pushers.len()];
            let role = match user % NEIGHBOURS {
                8 | 9 => Role::Commuter,
                0 => Role::Shy,
                _ => Role::Resident,
            };
            let person = Person {
                user,
                token: cluster.token(user).await?,
                way: way.cloned().unwrap_or_else(|| Way::Through(pusher.url.clone())),
                comes_back: way.is_some(),
                over_socket: (user + user / NEIGHBOURS) % 2 == 0,
                role,
                step: user,
                shared: Arc::clone(&shared),
            };
            people.spawn(person.live(ready.clone()));
        }
        for _ in everybody {
            tokio::time::timeout(FIRST_SNAPSHOT, readied.recv()).await.context("not everybody got a snapshot")?;
        }
        Ok(Crowd { shared, people: Mutex::new(people) })
    }

    /// What is true, and what was shown.
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.shared.world()
    }

    /// Reports that were acknowledged, and that were answered with 503.
    pub fn answered(&self) -> (usize, usize) {
        (self.shared.acknowledged.load(Ordering::Relaxed), self.shared.refused.load(Ordering::Relaxed))
    }

    /// Replaces lists; returns when they are in the log.
    pub async fn befriend(&self, token: &str, lists: Vec<(i64, BTreeSet<i64>)>) -> anyhow::Result<()> {
        self.shared.befriend(token, lists).await
    }

    /// Brings people into the log who are not connected, each with a list of `friends` others and a report.
    pub async fn settle_elsewhere(&self, token: &str, first: i64, people: i64, friends: i64) -> anyhow::Result<()> {
        for start in (first..first + people).step_by(AT_ONCE as usize) {
            let users = start..(start + AT_ONCE).min(first + people);
            let list = |user: i64| (1..=friends).map(|step| first + (user - first + step) % people).collect();
            self.befriend(token, users.clone().map(|user| (user, list(user))).collect()).await?;
            let reported_at_ms = wall_ms();
            let mut items = Vec::new();
            let mut numbers = Vec::new();
            for user in users {
                let place = Place::new(-40.0 + (user % 1000) as f64 / 1e4, 20.0);
                numbers.push((user, self.world().report_sent(user, Report { reported_at_ms, place: Some(place) })));
                items.push(with(json!({"user_id": user.to_string()}), &location(reported_at_ms, place)));
            }
            let url = format!("{}/v1/locations", self.shared.ingest);
            http::post_json(token, &url, &Value::Array(items)).await?.expect_status(202)?;
            for (user, number) in numbers {
                self.shared.acknowledge(user, number);
            }
        }
        Ok(())
    }

    /// In every neighbourhood somebody takes a near friend off the list, or back on it.
    pub async fn quarrel_or_make_up(&self, token: &str, neighbourhoods: i64) -> anyhow::Result<()> {
        let change = |neighbourhood: i64| {
            let (user, friend) = (neighbourhood * NEIGHBOURS + 1, neighbourhood * NEIGHBOURS + 4);
            let mut friends = self.world().friends(user);
            if !friends.remove(&friend) {
                friends.insert(friend);
            }
            (user, friends)
        };
        self.befriend(token, (0..neighbourhoods).map(change).collect()).await
    }

    /// Has everybody stop reporting and disconnect.
    pub async fn disperse(&self) {
        self.shared.stop.send_replace(true);
        let mut people = std::mem::take(&mut *self.people.lock().unwrap_or_else(PoisonError::into_inner));
        while people.join_next().await.is_some() {}
    }
}

impl Shared {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn acknowledge(&self, user: i64, number: usize) {
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
        self.world().report_acknowledged(user, number, Instant::now());
    }

    async fn befriend(&self, token: &str, lists: Vec<(i64, BTreeSet<i64>)>) -> anyhow::Result<()> {
        let mut numbers = Vec::new();
        let mut body = serde_json::Map::new();
        for (user, friends) in lists {
            body.insert(user.to_string(), friends.iter().map(i64::to_string).collect());
            numbers.push((user, self.world().list_sent(user, friends)));
        }
        let url = format!("{}/v1/friend-lists", self.ingest);
        http::post_json(token, &url, &json!({ "lists": body })).await?.expect_status(202)?;
        for (user, number) in numbers {
            self.world().list_acknowledged(user, number, Instant::now());
        }
        Ok(())
    }
}

impl Person {
    async fn live(mut self, ready: mpsc::UnboundedSender<()>) {
        if let Err(error) = self.try_to_live(&ready).await {
            self.shared.world().violation(format!("user {}: {error:#}", self.user));
        }
    }

    async fn try_to_live(&mut self, ready: &mpsc::UnboundedSender<()>) -> anyhow::Result<()> {
        let mut socket = Socket::connect(&self.way.stream_url().await?, &self.token).await?;
        self.shared.world().connected(self.user, matches!(self.role, Role::Resident), Instant::now());
        // Everybody at another moment, so that a viewer hears something all the time.
        let phase = REPORT_INTERVAL * u32::try_from(self.user % NEIGHBOURS)? / NEIGHBOURS as u32;
        let (answer, answers) = mpsc::channel(1);
        let mut reporting =
            Reporting { next: tokio::time::Instant::now() + phase, unanswered: None, answer, answers, pause: None };
        let mut stop = self.shared.stop.subscribe();
        loop {
            let ended = tokio::select! {
                ended = self.hold(&mut socket, &mut reporting, ready) => ended,
                _ = stop.changed() => return socket.close().await,
            };
            match ended {
                Err(error) if self.comes_back && error.downcast_ref::<Closed>().is_some() => {}
                ended => return ended,
            }
            // What was said over the socket and not answered may be in the log or not.
            if let Some((_, withdrawal)) = reporting.unanswered.take_if(|_| self.over_socket) {
                self.step -= i64::from(withdrawal);
            }
            socket = tokio::select! {
                socket = self.come_back(reporting.pause.take()) => socket,
                _ = stop.changed() => return Ok(()),
            };
        }
    }

    /// A gateway that was named may be gone, or take nobody now.
    async fn come_back(&self, mut pause: Option<Duration>) -> Socket {
        loop {
            let random = || Duration::from_millis(rand::random_range(0..RECONNECT_MS_MAX));
            tokio::time::sleep(pause.take().unwrap_or_else(random)).await;
            let Ok(url) = self.way.stream_url().await else { continue };
            if let Ok(socket) = Socket::connect(&url, &self.token).await {
                return socket;
            }
        }
    }

    /// Reports and shows what comes, until the socket ends.
    async fn hold(
        &mut self,
        socket: &mut Socket,
        reporting: &mut Reporting,
        ready: &mpsc::UnboundedSender<()>,
    ) -> anyhow::Result<()> {
        loop {
            tokio::select! {
                frame = socket.next_frame(FOREVER) => {
                    let frame = frame?;
                    self.shared.world().hear(self.user, &frame, Instant::now());
                    match frame["type"].as_str() {
                        Some("snapshot") => drop(ready.send(())),
                        Some("drain") => {
                            reporting.pause = frame["reconnect_after_ms"].as_u64().map(Duration::from_millis);
                        }
                        Some("accepted" | "error") => {
                            let accepted = frame["type"] == "accepted";
                            ensure!(accepted || frame["code"] == "kafka_unavailable", "{frame}");
                            let (number, withdrawal) = reporting.unanswered.take().context("an answer to nothing")?;
                            ensure!(frame["ref"] == json!(number), "the answer to another report: {frame}");
                            self.answered(number, accepted, withdrawal);
                        }
                        _ => {}
                    }
                }
                accepted = reporting.answers.recv() => {
                    let (number, withdrawal) = reporting.unanswered.take().context("an answer to nothing")?;
                    self.answered(number, accepted.context("the sender is held")??, withdrawal);
                }
                () = tokio::time::sleep_until(reporting.next), if reporting.unanswered.is_none() => {
                    reporting.next = tokio::time::Instant::now() + REPORT_INTERVAL;
                    let Some((report, number)) = self.next_report() else { continue };
                    reporting.unanswered = Some((number, report.place.is_none()));
                    if self.over_socket {
                        // The end of the socket is found where it is read.
                        socket.send(&frame_of(report, number)).await.ok();
                    } else {
                        self.post(report, reporting.answer.clone());
                    }
                }
            }
        }
    }

    fn answered(&mut self, number: usize, accepted: bool, withdrawal: bool) {
        if accepted {
            self.shared.acknowledge(self.user, number);
        } else {
            self.shared.refused.fetch_add(1, Ordering::Relaxed);
            // A withdrawal is said until it was heard: the next step withdraws again.
            self.step -= i64::from(withdrawal);
        }
    }

    fn next_report(&mut self) -> Option<(Report, usize)> {
        self.step += 1;
        let place = self.place()?;
        let report = Report { reported_at_ms: wall_ms(), place };
        Some((report, self.shared.world().report_sent(self.user, report)))
    }

    /// None: says nothing. None inside: stops sharing.
    fn place(&self) -> Option<Option<Place>> {
        let neighbourhood = (self.user - 1) / NEIGHBOURS;
        let (lat, lon) = (40.0 + (neighbourhood / 2) as f64, -73.0);
        let around = |metres: f64| rand::random_range(-metres..metres) / METRES_PER_DEGREE;
        let near = Place::new(lat + around(1_400.0), lon + around(1_400.0));
        match self.role {
            Role::Resident => Some(Some(near)),
            Role::Commuter => {
                let way = self.step.rem_euclid(40);
                let away_m = 700.0 * way.min(40 - way) as f64;
                Some(Some(Place::new(lat + away_m / METRES_PER_DEGREE, lon)))
            }
            Role::Shy => match self.step.rem_euclid(30) {
                0..20 => Some(Some(near)),
                20 => Some(None),
                _ => None,
            },
        }
    }

    fn post(&self, report: Report, answer: mpsc::Sender<anyhow::Result<bool>>) {
        let (ingest, token) = (self.shared.ingest.clone(), self.token.clone());
        tokio::spawn(async move {
            // A person who has gone no longer wants to know.
            answer.send(post(&ingest, &token, report).await).await.ok();
        });
    }
}

/// Whether it was accepted; otherwise it was answered with 503.
async fn post(ingest: &str, token: &str, report: Report) -> anyhow::Result<bool> {
    let said = match report.place {
        Some(place) => {
            let body = location(report.reported_at_ms, place);
            http::post_json(token, &format!("{ingest}/v1/locations"), &body).await?
        }
        None => {
            let body = json!({ "reported_at_ms": report.reported_at_ms });
            http::send_json("DELETE", token, &format!("{ingest}/v1/location"), &body).await?
        }
    };
    Ok(if said.status == 503 { false } else { said.expect_status(202).map(|_| true)? })
}

/// All the others of the neighbourhood, but for one whom every fifth does not want to see.
fn friends_of(user: i64) -> BTreeSet<i64> {
    let first = (user - 1) / NEIGHBOURS * NEIGHBOURS + 1;
    let unwanted = if user % 5 == 2 { user + 1 } else { user };
    (first..first + NEIGHBOURS).filter(|friend| *friend != user && *friend != unwanted).collect()
}

fn location(reported_at_ms: i64, place: Place) -> Value {
    let (lat, lon) = place.degrees();
    json!({"lat": lat, "lon": lon, "reported_at_ms": reported_at_ms})
}

fn frame_of(report: Report, number: usize) -> Value {
    match report.place {
        Some(place) => with(json!({"type": "location", "ref": number}), &location(report.reported_at_ms, place)),
        None => json!({"type": "unshare", "ref": number, "reported_at_ms": report.reported_at_ms}),
    }
}

fn with(mut one: Value, other: &Value) -> Value {
    for (key, value) in other.as_object().into_iter().flatten() {
        one[key] = value.clone();
    }
    one
}

fn wall_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
