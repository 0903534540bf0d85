//! From a report to the friend's socket, as clients experience it: pairs of friends, one reports, the other listens.

use anyhow::Context;
use nearby_client::{Api, Connection, Heard};
use serde_json::json;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::time::{interval, timeout};

/// The longest that anything may take.
const STEP: Duration = Duration::from_secs(10);

/// Settings.
#[derive(clap::Args)]
pub struct Settings {
    /// Where the server is; it has to run with --dev-tokens
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,
    /// Pairs of friends
    #[arg(long, default_value_t = 100)]
    pairs: u32,
    /// Reports of each pair a second
    #[arg(long, default_value_t = 1.0)]
    rate_per_s: f64,
    /// How long, in seconds
    #[arg(long, default_value_t = 10)]
    duration_s: u64,
    /// Id of the first user
    #[arg(long, default_value_t = 1_000_000)]
    first_user: i64,
}

/// Prints the quantiles.
pub async fn run(settings: &Settings) -> anyhow::Result<()> {
    let api = Api::new(&settings.url)?;
    let mut lists = serde_json::Map::new();
    let pairs = (0..i64::from(settings.pairs)).map(|pair| settings.first_user + 2 * pair);
    for listener in pairs.clone() {
        lists.insert(listener.to_string(), json!([(listener + 1).to_string()]));
    }
    let token = api.dev_token(settings.first_user).await?;
    api.post("/v1/friend-lists", &token, &json!({ "lists": lists })).await?;
    let mut tasks = tokio::task::JoinSet::new();
    let period = Duration::from_secs_f64(1.0 / settings.rate_per_s);
    let until = Instant::now() + Duration::from_secs(settings.duration_s);
    for listener in pairs {
        let api = api.clone();
        tasks.spawn(async move { one_pair(&api, listener, period, until).await });
    }
    let mut latencies_ms = Vec::new();
    while let Some(pair) = tasks.join_next().await {
        latencies_ms.extend(pair??);
    }
    latencies_ms.sort_unstable();
    let quantile = |part: f64| latencies_ms.get(((latencies_ms.len() as f64 - 1.0) * part) as usize).copied();
    let [p50, p95, p99, max] = [0.5, 0.95, 0.99, 1.0].map(|part| quantile(part).unwrap_or(-1));
    println!("{} moves arrived: p50 {p50} ms, p95 {p95} ms, p99 {p99} ms, max {max} ms", latencies_ms.len());
    Ok(())
}

/// Latencies in ms, by the machine's clock: both ends are here.
async fn one_pair(api: &Api, listener: i64, period: Duration, until: Instant) -> anyhow::Result<Vec<i64>> {
    let mut hears = connected(api, listener).await?;
    let mut reports = connected(api, listener + 1).await?;
    hears.report(50.0, 8.0, now_ms()?).await?;
    let mut latencies_ms = Vec::new();
    let (mut tick, mut step) = (interval(period), 0.0);
    while Instant::now() < until {
        tokio::select! {
            _ = tick.tick() => {
                step = if step > 0.01 { 0.0 } else { step + 0.000_1 };
                reports.report(50.0 + step, 8.0, now_ms()?).await?;
            }
            heard = hears.next() => {
                if let Heard::Update { arrived_ms, .. } = heard? {
                    let now_ms = now_ms()?;
                    latencies_ms.extend(arrived_ms.into_iter().map(|at_ms| now_ms - at_ms));
                }
            }
            heard = reports.next() => if let Heard::Error { code } = heard? { anyhow::bail!("refused: {code}") },
        }
    }
    hears.close().await?;
    reports.close().await?;
    Ok(latencies_ms)
}

async fn connected(api: &Api, user: i64) -> anyhow::Result<Connection> {
    let mut connection = Connection::open(&api.gateway().await?, &api.dev_token(user).await?).await?;
    while timeout(STEP, connection.next()).await.context("no snapshot")?? != Heard::Snapshot {}
    Ok(connection)
}

fn now_ms() -> anyhow::Result<i64> {
    Ok(i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?)
}
