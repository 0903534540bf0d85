//! The same view by WebSocket, by server-sent events and by polling: what it costs the gateway and the network, and how old it is.

use crate::cpu;
use crate::edge::{Edge, STEP};
use anyhow::Context;
use nearby_e2e::raw::Raw;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Everybody in a group sees everybody else in it.
const GROUP: i64 = 10;
/// So often everybody reports.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);
/// Reports go out in so many parts of that time.
const PARTS: i64 = 50;
/// Before anything is measured connections are made, and views are there: this, and an interval of polling.
const RUN_IN: Duration = Duration::from_secs(12);
/// The server closes a connection that was idle for 10 s.
const IDLE_MAX: Duration = Duration::from_secs(5);
/// Reports of the bench's own hand, above every client.
const REPORTER: i64 = 8_000_000;

/// Settings of `nearby-bench transports`.
#[derive(clap::Args)]
pub struct Settings {
    /// Clients of each transport
    #[arg(long, default_value_t = 1_000)]
    clients: i64,
    /// How long each transport is measured, in seconds (sessions of those who polled end 60 s later, which is in the next one's time if that is longer)
    #[arg(long, default_value_t = 10)]
    duration_s: u64,
}

#[derive(Clone, Copy)]
enum Transport {
    WebSocket,
    Events,
    Polling(Duration),
}

/// What one client did while it was measured.
#[derive(Default)]
struct Experience {
    requests: usize,
    bytes_in: usize,
    bytes_out: usize,
    /// From the report of a friend to a view that is not older.
    staleness_ms: Vec<i64>,
}

/// Prints a line for each transport.
pub async fn run(settings: &Settings) -> anyhow::Result<()> {
    let time = Duration::from_secs(settings.duration_s);
    println!(
        "{} clients in groups of {GROUP}, everybody reports every {} s, {} s each; per client and minute; flush_ms 100",
        settings.clients,
        REPORT_INTERVAL.as_secs(),
        settings.duration_s
    );
    println!("{:18} requests  bytes in  bytes out  gateway CPU, ms  staleness p50, p99 in ms", "");
    let every = |seconds| Transport::Polling(Duration::from_secs(seconds));
    let edge = Edge::start(&["--accept-rate-per-s", "50000"])?;
    let transports = [Transport::WebSocket, Transport::Events, every(1), every(5), every(30)];
    for (number, transport) in (0..).zip(transports) {
        // People of their own: the sessions of those before outlive their connections.
        let first = 1 + number * settings.clients;
        one(&edge, transport, first..first + settings.clients, time).await?;
    }
    Ok(())
}

async fn one(edge: &Edge, transport: Transport, users: Range<i64>, time: Duration) -> anyhow::Result<()> {
    befriend(edge, users.clone()).await?;
    let reporting = tokio::spawn(report(edge.cluster.ingest.url.clone(), edge.token(REPORTER)?, users.clone()));
    let clients = users.end - users.start;
    let from = Instant::now() + RUN_IN + transport.interval();
    let until = from + time;
    let mut living = JoinSet::new();
    for user in users {
        let client =
            Client { base: edge.gateway.url.clone(), token: edge.token(user)?, from, until, seen: BTreeMap::new() };
        living.spawn(client.live(transport));
    }
    tokio::time::sleep_until(from).await;
    let spent = cpu::of_process(edge.gateway.nearby.pid())?;
    tokio::time::sleep_until(until).await;
    let spent = cpu::of_process(edge.gateway.nearby.pid())? - spent;
    let mut all = Experience::default();
    while let Some(experience) = living.join_next().await {
        let experience = experience??;
        all.requests += experience.requests;
        all.bytes_in += experience.bytes_in;
        all.bytes_out += experience.bytes_out;
        all.staleness_ms.extend(experience.staleness_ms);
    }
    reporting.abort();
    all.staleness_ms.sort_unstable();
    let at = |share: f64| {
        let index = (all.staleness_ms.len().saturating_sub(1) as f64 * share) as usize;
        all.staleness_ms.get(index).copied().unwrap_or(-1)
    };
    let minutes = clients as f64 * time.as_secs_f64() / 60.0;
    let per = |sum: f64| sum / minutes;
    println!(
        "{:18} {:8.1}  {:8.0}  {:9.0}  {:15.1}  {}, {}",
        transport.name(),
        per(all.requests as f64),
        per(all.bytes_in as f64),
        per(all.bytes_out as f64),
        per(spent * 1_000.0),
        at(0.5),
        at(0.99)
    );
    Ok(())
}

impl Transport {
    fn interval(self) -> Duration {
        if let Transport::Polling(interval) = self { interval } else { Duration::ZERO }
    }

    fn name(self) -> String {
        match self {
            Transport::WebSocket => "WebSocket".to_owned(),
            Transport::Events => "server-sent events".to_owned(),
            Transport::Polling(interval) => format!("polling, {} s", interval.as_secs()),
        }
    }
}

async fn befriend(edge: &Edge, users: Range<i64>) -> anyhow::Result<()> {
    let mut lists = serde_json::Map::new();
    for user in users.clone() {
        let first = (user - 1) / GROUP * GROUP + 1;
        let friends = (first..first + GROUP).filter(|friend| *friend != user && users.contains(friend));
        lists.insert(user.to_string(), friends.map(|friend| friend.to_string()).collect());
    }
    let (token, url) = (edge.token(REPORTER)?, format!("{}/v1/friend-lists", edge.cluster.ingest.url));
    nearby_e2e::http::post_json(&token, &url, &json!({ "lists": lists })).await?.expect_status(202)?;
    Ok(())
}

/// Everybody reports, in turns, until aborted.
async fn report(ingest: String, token: String, users: Range<i64>) -> anyhow::Result<()> {
    let url = format!("{ingest}/v1/locations");
    let mut turn = tokio::time::interval(REPORT_INTERVAL / u32::try_from(PARTS)?);
    for step in 0_i64.. {
        turn.tick().await;
        let now_ms = nearby_schemas::TimestampMs::now().0;
        let reports: Vec<Value> = users
            .clone()
            .filter(|user| user % PARTS == step % PARTS)
            .map(|user| {
                let (group, moved) = ((user - 1) / GROUP, (step / PARTS % 50) as f64 * 1e-4);
                let (lat, lon) = (-60.0 + (group % 100) as f64 + moved, -170.0 + (group / 100) as f64);
                json!({ "user_id": user.to_string(), "lat": lat, "lon": lon, "reported_at_ms": now_ms })
            })
            .collect();
        nearby_e2e::http::post_json(&token, &url, &Value::Array(reports)).await?.expect_status(202)?;
    }
    Ok(())
}

struct Client {
    base: String,
    token: String,
    from: Instant,
    until: Instant,
    /// Time of the report of each friend that was seen last.
    seen: BTreeMap<String, i64>,
}

impl Client {
    async fn live(mut self, transport: Transport) -> anyhow::Result<Experience> {
        // Not all at once.
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..3_000))).await;
        let mut experience = Experience::default();
        match transport {
            Transport::WebSocket => {
                let mut line = Raw::upgrade(&self.base, &self.token, STEP).await?;
                let before = self.until_measured(&mut line, |line| Box::pin(line.text())).await?;
                self.measured(&mut line, before, &mut experience, |line| Box::pin(line.text())).await?;
            }
            Transport::Events => {
                let mut line = Raw::connect(&self.base, STEP).await?;
                line.get(&self.base, "/v1/events", &self.token, "", 200).await?;
                let before = self.until_measured(&mut line, |line| Box::pin(line.chunk())).await?;
                self.measured(&mut line, before, &mut experience, |line| Box::pin(line.chunk())).await?;
            }
            Transport::Polling(interval) => self.poll(interval, &mut experience).await?,
        }
        Ok(experience)
    }

    /// Reads until the measurement begins; returns the bytes so far.
    async fn until_measured(&mut self, line: &mut Raw, next: Next) -> anyhow::Result<(usize, usize)> {
        while let Ok(frame) = tokio::time::timeout_at(self.from, next(line)).await {
            self.hear(&frame?);
        }
        Ok((line.bytes_in, line.bytes_out))
    }

    async fn measured(
        &mut self,
        line: &mut Raw,
        before: (usize, usize),
        experience: &mut Experience,
        next: Next,
    ) -> anyhow::Result<()> {
        while let Ok(frame) = tokio::time::timeout_at(self.until, next(line)).await {
            experience.staleness_ms.extend(self.hear(&frame?));
        }
        experience.bytes_in = line.bytes_in - before.0;
        experience.bytes_out = line.bytes_out - before.1;
        Ok(())
    }

    async fn poll(&mut self, interval: Duration, experience: &mut Experience) -> anyhow::Result<()> {
        let mut line = Raw::connect(&self.base, STEP).await?;
        let phase = interval.mul_f64(rand::random());
        let mut turn = tokio::time::interval_at(Instant::now() + phase, interval);
        // A turn that is overdue is there at once, however late it is.
        while let Ok(at) = tokio::time::timeout_at(self.until, turn.tick()).await
            && at < self.until
        {
            if interval > IDLE_MAX {
                line = Raw::connect(&self.base, STEP).await?;
            }
            let (bytes_in, bytes_out) = (line.bytes_in, line.bytes_out);
            let head = line.get(&self.base, "/v1/nearby", &self.token, "", 200).await?;
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).context("a length")?;
            let body = line.take(length.trim().parse()?).await?;
            let staleness_ms = self.hear(&body);
            if at >= self.from {
                experience.requests += 1;
                experience.bytes_in += line.bytes_in - bytes_in;
                experience.bytes_out += line.bytes_out - bytes_out;
                experience.staleness_ms.extend(staleness_ms);
            }
        }
        Ok(())
    }

    /// How late it is known here, for every report that a frame shows or makes up for: who polls sees the latest alone.
    fn hear(&mut self, frame: &[u8]) -> Vec<i64> {
        let now_ms = nearby_schemas::TimestampMs::now().0;
        let text = std::str::from_utf8(frame).unwrap_or_default();
        let Ok(frame) = serde_json::from_str::<Value>(text.strip_prefix("data:").unwrap_or(text)) else {
            return Vec::new();
        };
        let friends = [&frame["friends"], &frame["moved"]].into_iter().filter_map(Value::as_array).flatten();
        let mut staleness_ms = Vec::new();
        for friend in friends {
            let (Some(id), Some(updated_at)) = (friend["id"].as_str(), friend["updated_at_ms"].as_i64()) else {
                continue;
            };
            let before = self.seen.insert(id.to_owned(), updated_at).unwrap_or(updated_at - 1);
            let mut reported_at = updated_at;
            let interval_ms = REPORT_INTERVAL.as_millis() as i64;
            // Reports are not due to the millisecond.
            while reported_at > before {
                staleness_ms.push(now_ms - reported_at);
                reported_at -= interval_ms;
                if reported_at < before + interval_ms / 2 {
                    break;
                }
            }
        }
        staleness_ms
    }
}

/// The next frame of a line.
type Next = for<'a> fn(&'a mut Raw) -> futures_util::future::BoxFuture<'a, anyhow::Result<Vec<u8>>>;
