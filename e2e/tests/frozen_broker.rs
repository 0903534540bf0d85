//! A broker that hangs for longer than its session with the controller and then goes on has nobody to name for a moment, and clients that
//! ask in this moment are lost for good if nobody looks after them. Reports, pushes and history go on after each time.

use anyhow::{Context, ensure};
use nearby_e2e::nearby::{Nearby, token};
use nearby_e2e::process::send_signal;
use nearby_e2e::ws::Socket;
use nearby_e2e::{http, kafka::Kafka, ports, postgres::Postgres};
use serde_json::json;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::task::{JoinSet, block_in_place};

const SECRET: &str = "a secret for the tests alone";
const READY: Duration = Duration::from_secs(60);
const ANNA: i64 = 1;
const BEN: i64 = 2;
const TIMES: usize = 3;
/// Longer than the broker's session, which is 3 s in the tests, and than a record may wait (10 s): then clients look for other brokers.
const FROZEN: Duration = Duration::from_secs(14);
const REPORT_INTERVAL: Duration = Duration::from_millis(500);
/// Everything is right again within this time, at the slowest: a client is asked every 5 s, and is given its addresses 5 s before it answers.
const RIGHT_LIMIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn everything_goes_on_when_a_frozen_broker_does() -> anyhow::Result<()> {
    let kafka = Kafka::start()?;
    let postgres = Postgres::start()?;
    let (brokers, database) = (kafka.bootstrap(), postgres.url());
    let listen = format!("127.0.0.1:{}", ports::free_port()?);
    let args = ["run", "--listen", &listen, "--brokers", &brokers, "--database-url", &database];
    let mut nearby = Nearby::start(&args, &[("NEARBY_JWT_SECRET", SECRET)])?;
    let base = nearby.wait_ready(READY)?.http;
    let result = hold(&kafka, &postgres, &base).await;
    result.map_err(|error| anyhow::anyhow!("{error:#}\n{}", nearby.stderr()))
}

async fn hold(kafka: &Kafka, postgres: &Postgres, base: &str) -> anyhow::Result<()> {
    let lists = json!({"lists": {ANNA.to_string(): [BEN.to_string()], BEN.to_string(): [ANNA.to_string()]}});
    let admin = token(SECRET, 0, "friends:write")?;
    http::post_json(&admin, &format!("{base}/v1/friend-lists"), &lists).await?.expect_status(202)?;
    let mut socket =
        Socket::connect(&format!("{}/v1/stream", base.replacen("http", "ws", 1)), &token(SECRET, ANNA, "")?).await?;
    socket.send(&json!({"type": "location", "lat": 50.0, "lon": 8.0})).await?;
    let mut reports = Reports { base: base.to_owned(), accepted: 1, place: AtomicU32::new(0) };
    reports.until_seen(&mut socket).await.context("before")?;
    let pid = kafka.pid().context("it runs")?;
    for time in 1..=TIMES {
        block_in_place(|| send_signal(pid, "STOP"))?;
        let mut meanwhile = JoinSet::new();
        for _ in 0..FROZEN.as_millis() / REPORT_INTERVAL.as_millis() {
            meanwhile.spawn(reports.report());
            tokio::time::sleep(REPORT_INTERVAL).await;
        }
        block_in_place(|| send_signal(pid, "CONT"))?;
        for accepted in meanwhile.join_all().await {
            reports.accepted += i64::from(accepted?);
        }
        let begun = Instant::now();
        let told = async {
            reports.until_seen(&mut socket).await?;
            let seen = begun.elapsed();
            reports.until_written(postgres).await?;
            anyhow::Ok(seen)
        };
        let seen = told.await.with_context(|| format!("time {time}"))?;
        println!("time {time}: seen after {seen:.1?}, written after {:.1?}", begun.elapsed());
    }
    Ok(())
}

/// Ben's reports; and how many of both were acknowledged.
struct Reports {
    base: String,
    accepted: i64,
    place: AtomicU32,
}

impl Reports {
    /// Ben is at another place each time.
    fn lat(&self) -> f64 {
        50.0 + f64::from(self.place.load(Ordering::Relaxed) % 500) / 10_000.0
    }

    /// Whether the next report was acknowledged.
    fn report(&self) -> impl Future<Output = anyhow::Result<bool>> + use<> {
        self.place.fetch_add(1, Ordering::Relaxed);
        let (url, report) = (format!("{}/v1/locations", self.base), json!({"lat": self.lat(), "lon": 8.0}));
        async move {
            let answer = http::post_json(&token(SECRET, BEN, "")?, &url, &report).await?;
            ensure!([202, 503].contains(&answer.status), "{}", answer.text());
            Ok(answer.status == 202)
        }
    }

    /// Reports new places until Anna sees one of them.
    async fn until_seen(&mut self, socket: &mut Socket) -> anyhow::Result<()> {
        let deadline = Instant::now() + RIGHT_LIMIT;
        loop {
            if self.report().await? {
                self.accepted += 1;
                let lat = self.lat();
                let seen = socket.wait_friend(BEN, Duration::from_secs(1)).await;
                if seen.is_ok_and(|friend| friend["lat"] == lat) {
                    return Ok(());
                }
            }
            ensure!(
                Instant::now() < deadline,
                "after {RIGHT_LIMIT:?} Anna still does not see where Ben is; {} accepted",
                self.accepted
            );
        }
    }

    /// Every report that was acknowledged is in the history.
    async fn until_written(&self, postgres: &Postgres) -> anyhow::Result<()> {
        let deadline = Instant::now() + RIGHT_LIMIT;
        loop {
            let rows: i64 = postgres.psql("select count(*) from nearby.location_history")?.parse()?;
            if rows >= self.accepted {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{rows} rows of {} reports after {RIGHT_LIMIT:?}", self.accepted);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
