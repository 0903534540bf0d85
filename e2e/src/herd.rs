//! Many clients who only hold a socket: where each is, how often it was refused, and for how long it was without a view.
//!
//! They do what every client has to: ask for a gateway (or go through a balancer), wait as long as a refusal or a `drain`
//! says, come back after the end of a socket. Unlike [`crowd`](crate::crowd) they report nothing and judge nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::Value;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::http;
use crate::ws::{Refused, Socket};

const FOREVER: Duration = Duration::from_secs(3600);
/// After something that no refusal explains, such as a connection that nobody takes, up to so long.
const PAUSE_MS_MAX: u64 = 200;
/// Tokens that are fetched at once.
const TOKENS_AT_ONCE: usize = 32;

/// How a client finds a gateway.
#[derive(Clone, Debug)]
pub enum Way {
    /// `GET /v1/gateway` at this address, before every connection.
    Asks(String),
    /// Always this address, behind which a balancer chooses.
    Through(String),
}

impl Way {
    /// Where to connect now.
    pub async fn stream_url(&self) -> anyhow::Result<String> {
        match self {
            Way::Asks(base) => {
                let answer = http::get(&format!("{base}/v1/gateway")).await?.expect_status(200)?;
                Ok(answer.json()?["url"].as_str().context("an address")?.to_owned())
            }
            Way::Through(base) => Ok(format!("{}/v1/stream", base.replacen("http", "ws", 1))),
        }
    }
}

/// The clients. Dropping it ends them without a word.
pub struct Herd {
    shared: Arc<Shared>,
    clients: JoinSet<()>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    go: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    /// By client: the gateway whose snapshot it has, and whether the socket is open.
    clients: BTreeMap<i64, (String, bool)>,
    /// By status.
    refused: BTreeMap<u16, usize>,
    /// What refusals said in `Retry-After`.
    retry_after_s: BTreeSet<u64>,
    /// From the last thing heard on a socket that ended to the snapshot on the next.
    gaps: Vec<Duration>,
    /// From the start to the first snapshot.
    arrivals: Vec<Duration>,
    closes: BTreeMap<u16, usize>,
}

impl Herd {
    /// Clients for these users, with tokens from the ingest; they start with [`Herd::go`].
    pub async fn gather(ingest: &str, way: &Way, users: std::ops::Range<i64>) -> anyhow::Result<Herd> {
        let shared = Arc::new(Shared::default());
        let permits = Arc::new(Semaphore::new(TOKENS_AT_ONCE));
        let mut tokens = JoinSet::new();
        for user in users {
            let (permits, url) = (Arc::clone(&permits), format!("{ingest}/v1/dev/token?user={user}"));
            tokens.spawn(async move {
                let _permit = permits.acquire_owned().await?;
                let answer = http::get(&url).await?.expect_status(200)?;
                anyhow::Ok((user, answer.json()?["token"].as_str().context("a token")?.to_owned()))
            });
        }
        let mut clients = JoinSet::new();
        while let Some(fetched) = tokens.join_next().await {
            let (user, token) = fetched??;
            let client = Client { user, token, way: way.clone(), shared: Arc::clone(&shared) };
            let mut go = shared.go.subscribe();
            clients.spawn(async move {
                // The sender lives as long as the herd.
                if go.wait_for(|go| *go).await.is_ok() {
                    client.live().await;
                }
            });
        }
        Ok(Herd { shared, clients })
    }

    /// All connect at once; returns when everybody has had a snapshot.
    pub async fn go(&self, limit: Duration) -> anyhow::Result<()> {
        self.shared.go.send_replace(true);
        self.all_back(limit).await
    }

    /// Waits until everybody holds a socket with a snapshot.
    pub async fn all_back(&self, limit: Duration) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            let connected: usize = self.by_gateway().values().sum();
            if connected == self.clients.len() {
                return Ok(());
            }
            let refused = self.refused();
            anyhow::ensure!(
                start.elapsed() < limit,
                "{connected} of {} are connected after {limit:?}; refused: {refused:?}",
                self.clients.len()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// How many are connected to each gateway, with a snapshot.
    pub fn by_gateway(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for (gateway, _) in self.shared.state().clients.values().filter(|(_, open)| *open) {
            *counts.entry(gateway.clone()).or_default() += 1;
        }
        counts
    }

    /// Refusals so far, by status.
    pub fn refused(&self) -> BTreeMap<u16, usize> {
        self.shared.state().refused.clone()
    }

    /// Every `Retry-After` that refusals have said; 0 for one that said nothing.
    pub fn retry_after_s(&self) -> BTreeSet<u64> {
        self.shared.state().retry_after_s.clone()
    }

    /// Sockets that ended so far, by close code.
    pub fn closes(&self) -> BTreeMap<u16, usize> {
        self.shared.state().closes.clone()
    }

    /// The times until the first snapshot, sorted.
    pub fn arrivals(&self) -> Vec<Duration> {
        sorted(self.shared.state().arrivals.clone())
    }

    /// For how long clients were without a socket since the last call, sorted.
    pub fn take_gaps(&self) -> Vec<Duration> {
        sorted(std::mem::take(&mut self.shared.state().gaps))
    }
}

/// "p50 0.10 s, p99 0.20 s, max 0.30 s" of sorted times.
pub fn summary(times: &[Duration]) -> String {
    let at = |share: f64| {
        let index = (times.len().saturating_sub(1) as f64 * share).round() as usize;
        times.get(index).copied().unwrap_or_default().as_secs_f64()
    };
    format!("p50 {:.3} s, p99 {:.3} s, max {:.3} s", at(0.5), at(0.99), at(1.0))
}

/// How far the fullest or emptiest is from the mean, as a share of it.
pub fn imbalance(counts: &[usize]) -> f64 {
    let mean = counts.iter().sum::<usize>() as f64 / counts.len().max(1) as f64;
    counts.iter().map(|count| (*count as f64 - mean).abs() / mean.max(1.0)).fold(0.0, f64::max)
}

fn sorted(mut times: Vec<Duration>) -> Vec<Duration> {
    times.sort();
    times
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Client {
    user: i64,
    token: String,
    way: Way,
    shared: Arc<Shared>,
}

impl Client {
    async fn live(self) {
        let start = Instant::now();
        let mut lost_at = None;
        loop {
            let mut pause = Duration::from_millis(rand::random_range(0..PAUSE_MS_MAX));
            match self.connect().await {
                Ok(mut socket) => {
                    if let Some(told) = self.hold(&mut socket, start, &mut lost_at).await {
                        pause = told;
                    }
                }
                Err(error) => {
                    if let Some(refused) = error.downcast_ref::<Refused>() {
                        let seconds = refused.retry_after_s.unwrap_or_default();
                        let mut state = self.shared.state();
                        *state.refused.entry(refused.status).or_default() += 1;
                        state.retry_after_s.insert(seconds);
                        pause += Duration::from_secs(seconds);
                    }
                }
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn connect(&self) -> anyhow::Result<Socket> {
        Socket::connect(&self.way.stream_url().await?, &self.token).await
    }

    /// Until the socket ends; returns how long to wait, if that was said.
    async fn hold(&self, socket: &mut Socket, start: Instant, lost_at: &mut Option<Instant>) -> Option<Duration> {
        let (mut gateway, mut pause) = (String::new(), None);
        let mut heard_at = Instant::now();
        loop {
            let frame: Value = match socket.next_frame(FOREVER).await {
                Ok(frame) => frame,
                Err(error) => {
                    let code = error.downcast_ref::<crate::ws::Closed>().map_or(1006, |closed| closed.code);
                    let mut state = self.shared.state();
                    *state.closes.entry(code).or_default() += 1;
                    if let Some((_, open)) = state.clients.get_mut(&self.user) {
                        *open = false;
                        // Nothing is missed while the socket is open: the gap begins with its end.
                        lost_at.get_or_insert(if code == 1012 { heard_at } else { Instant::now() });
                    }
                    return pause;
                }
            };
            heard_at = Instant::now();
            match frame["type"].as_str() {
                Some("welcome") => gateway = frame["gateway"].as_str().unwrap_or_default().to_owned(),
                Some("snapshot") => {
                    let mut state = self.shared.state();
                    if state.clients.insert(self.user, (gateway.clone(), true)).is_none() {
                        state.arrivals.push(start.elapsed());
                    } else if let Some(at) = lost_at.take() {
                        state.gaps.push(at.elapsed());
                    }
                }
                Some("drain") => pause = frame["reconnect_after_ms"].as_u64().map(Duration::from_millis),
                _ => {}
            }
        }
    }
}
