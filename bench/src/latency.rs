//! From a report to the friend's socket, as clients experience it: pairs of friends, one reports, the other listens. Open-loop:
//! reports are due at their times whether or not earlier ones have arrived, and one that is sent late counts from when it was due.

use crate::edge::Edge;
use anyhow::Context;
use nearby_client::{Api, Connection, Heard};
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{Barrier, Semaphore};
use tokio::time::{Instant, interval_at, timeout};

/// The longest that anything may take.
const STEP: Duration = Duration::from_secs(10);
/// Pairs that connect at a time.
const AT_ONCE: usize = 50;
/// At the same rate, and not measured: a broker's virtual machine compiles what runs often, and only then.
const RUN_IN_MS: i64 = 20_000;
/// What is under way at the end has so long to arrive.
const DRAIN: Duration = Duration::from_secs(2);

/// Settings.
#[derive(clap::Args)]
pub struct Settings {
    /// Where a server is, which has to run with --dev-tokens; without it, one on real Kafka is started, with flush_ms 0
    #[arg(long)]
    url: Option<String>,
    /// Pairs of friends
    #[arg(long, default_value_t = 2_000)]
    pairs: u32,
    /// Reports of each pair a second
    #[arg(long, default_value_t = 5.0)]
    rate_per_s: f64,
    /// How long, in seconds
    #[arg(long, default_value_t = 30)]
    duration_s: u64,
    /// Id of the first user
    #[arg(long, default_value_t = 1_000_000)]
    first_user: i64,
}

/// Prints the quantiles.
pub async fn run(settings: &Settings) -> anyhow::Result<()> {
    let edge = match &settings.url {
        Some(_) => None,
        None => Some(Edge::start(&["--flush-ms", "0"])?),
    };
    let url = settings.url.as_deref().or(edge.as_ref().map(|edge| edge.cluster.ingest.url.as_str()));
    let api = Api::new(url.context("one of both is there")?)?;
    let mut lists = serde_json::Map::new();
    let pairs = (0..i64::from(settings.pairs)).map(|pair| settings.first_user + 2 * pair);
    for listener in pairs.clone() {
        lists.insert(listener.to_string(), json!([(listener + 1).to_string()]));
    }
    let token = api.dev_token(settings.first_user).await?;
    api.post("/v1/friend-lists", &token, &json!({ "lists": lists })).await?;
    let mut tasks = tokio::task::JoinSet::new();
    let period = Duration::from_secs_f64(1.0 / settings.rate_per_s);
    let (connecting, go) = (Arc::new(Semaphore::new(AT_ONCE)), Arc::new(Barrier::new(settings.pairs as usize)));
    let time = Duration::from_secs(settings.duration_s);
    for listener in pairs {
        let (api, connecting, go) = (api.clone(), Arc::clone(&connecting), Arc::clone(&go));
        tasks.spawn(async move {
            let place = connecting.acquire().await?;
            let (hears, reports) = (connected(&api, listener).await?, connected(&api, listener + 1).await?);
            drop(place);
            go.wait().await;
            one_pair(hears, reports, period, time).await
        });
    }
    let (mut latencies_ms, mut sent) = (Vec::new(), 0);
    while let Some(pair) = tasks.join_next().await {
        let (of_pair, arrived) = pair??;
        sent += of_pair;
        latencies_ms.extend(arrived);
    }
    latencies_ms.sort_unstable();
    let quantile = |part: f64| latencies_ms.get(((latencies_ms.len() as f64 - 1.0) * part) as usize).copied();
    let [p50, p95, p99, max] = [0.5, 0.95, 0.99, 1.0].map(|part| quantile(part).unwrap_or(-1));
    println!(
        "{:.0} reports/s for {} s: {sent} sent, {} arrived one by one, p50 {p50} ms, p95 {p95} ms, p99 {p99} ms, max {max} ms",
        f64::from(settings.pairs) * settings.rate_per_s,
        settings.duration_s,
        latencies_ms.len()
    );
    Ok(())
}

/// Reports sent, and latencies in ms of those that arrived, by the machine's clock: both ends are here. Those of the time of running in are left out.
async fn one_pair(
    mut hears: Connection,
    mut reports: Connection,
    period: Duration,
    time: Duration,
) -> anyhow::Result<(usize, Vec<i64>)> {
    let begins_ms = now_ms()? + RUN_IN_MS;
    let until = Instant::now() + Duration::from_millis(RUN_IN_MS.unsigned_abs()) + time;
    hears.report(50.0, 8.0, now_ms()?).await?;
    let (mut latencies_ms, mut sent) = (Vec::new(), 0);
    let (mut tick, mut step) = (interval_at(Instant::now() + period.mul_f64(rand::random()), period), 0.0);
    while Instant::now() < until + DRAIN {
        tokio::select! {
            due = tick.tick() => {
                if due >= until {
                    continue;
                }
                step = if step > 0.01 { 0.0 } else { step + 0.000_1 };
                let due_ms = now_ms()? - i64::try_from(due.elapsed().as_millis())?;
                sent += usize::from(due_ms >= begins_ms);
                reports.report(50.0 + step, 8.0, due_ms).await?;
            }
            heard = hears.next() => {
                if let Heard::Update { arrived_ms, .. } = heard? {
                    let now_ms = now_ms()?;
                    let measured = arrived_ms.into_iter().filter(|at_ms| *at_ms >= begins_ms);
                    latencies_ms.extend(measured.map(|at_ms| now_ms - at_ms));
                }
            }
            heard = reports.next() => if let Heard::Error { code } = heard? { anyhow::bail!("refused: {code}") },
        }
    }
    hears.close().await?;
    reports.close().await?;
    Ok((sent, latencies_ms))
}

async fn connected(api: &Api, user: i64) -> anyhow::Result<Connection> {
    let mut connection = Connection::open(&api.gateway().await?, &api.dev_token(user).await?).await?;
    while timeout(STEP, connection.next()).await.context("no snapshot")?? != Heard::Snapshot {}
    Ok(connection)
}

pub fn now_ms() -> anyhow::Result<i64> {
    Ok(i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?)
}
