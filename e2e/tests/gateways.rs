//! Gateways come and go on real Kafka: one ingest, one processor, four gateways, 60 people who report all the time and are
//! judged by `nearby_e2e::world`, and a herd that holds sockets and measures for how long it has none.
//!
//! The herd arrives at once and spreads evenly; a gateway drains; one is killed; a new, empty one comes in a storm.
//!
//! `make test` runs it with 600 clients, `make test-long` (`GATEWAYS=10000`) with as many as that says; both print what they
//! measured. The clients of 10,000 need some 12,000 file descriptors in one process.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nearby_e2e::cluster::Cluster;
use nearby_e2e::crowd::Crowd;
use nearby_e2e::herd::{Herd, Way, imbalance, summary};
use nearby_e2e::ports::free_port;
use tokio::task::block_in_place;

const PREFIX: &str = "gateways.";
const GATEWAYS: usize = 4;
const NEIGHBOURHOODS: i64 = 6;
const HERD_FIRST: i64 = 100_000;
const HERD: i64 = 600;
/// Everybody who is sent somewhere at once is there within this share of the mean.
const IMBALANCE_MAX: f64 = 0.05;
/// A view may be so far behind what was acknowledged.
const LAG: Duration = Duration::from_secs(1);
/// The gap that a drain may leave.
const DRAIN_GAP_MAX: Duration = Duration::from_secs(1);
/// The machine may be busy with other things: a gap of the whole herd at once is tried again.
const DRAINS_MAX: usize = 3;
const BACK_LIMIT: Duration = Duration::from_secs(60);
const RIGHT_LIMIT: Duration = Duration::from_secs(40);
/// Views that stay right for so long are right again.
const CALM: Duration = Duration::from_secs(2);
const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);
/// What a gateway that has just started is told to let in: so slow that a storm would show.
const SLOW_ACCEPT_PER_S: u64 = 20;
const STORM: i64 = 300;
/// Who come to it without asking.
const STRAIGHT: i64 = 60;
const READY: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn clients_spread_and_come_back() -> anyhow::Result<()> {
    let herd = match std::env::var("GATEWAYS") {
        Ok(number) => number.parse().with_context(|| format!("GATEWAYS is a number of clients, not {number}"))?,
        Err(_) => HERD,
    };
    let mut cluster = block_in_place(|| Cluster::start(PREFIX, GATEWAYS, 1))?;
    let played = play(&mut cluster, herd).await;
    played.map_err(|error| anyhow::anyhow!("{error:#}\n{}", cluster.complaints()))
}

async fn play(cluster: &mut Cluster, size: i64) -> anyhow::Result<()> {
    let way = Way::Asks(cluster.ingest.url.clone());
    let crowd = Arc::new(Crowd::gather_by(cluster, NEIGHBOURHOODS, Some(&way)).await?);
    let herd = Herd::gather(&cluster.ingest.url, &way, HERD_FIRST..HERD_FIRST + size).await?;
    right(&crowd, "before").await?;

    herd.go(BACK_LIMIT).await?;
    spread(&herd, size, "arrived at once").await?;
    right(&crowd, "with the herd").await?;

    drain(cluster, &crowd, &herd).await?;
    kill(cluster, &crowd, &herd).await?;
    storm(cluster, size).await?;
    right(&crowd, "at the end").await?;
    crowd.disperse().await;
    Ok(())
}

/// Prints how many are where, the people who report included, and holds the spread.
async fn spread(herd: &Herd, size: i64, what: &str) -> anyhow::Result<()> {
    let counts: Vec<usize> = herd.by_gateway().into_values().collect();
    let off = imbalance(&counts);
    println!("{size} clients {what}: {counts:?}, at most {:.1} % off; {}", off * 100.0, summary(&herd.arrivals()));
    println!("  refused: {:?}", herd.refused());
    ensure!(counts.len() == GATEWAYS, "not all gateways have clients: {counts:?}");
    ensure!(off <= IMBALANCE_MAX, "{counts:?} are {:.1} % off", off * 100.0);
    Ok(())
}

/// SIGTERM, and a new gateway in its place: with a process of its own a gateway cannot come back.
async fn drain(cluster: &mut Cluster, crowd: &Arc<Crowd>, herd: &Herd) -> anyhow::Result<()> {
    for attempt in 1..=DRAINS_MAX {
        let mut leaving = cluster.pushers.remove(0);
        herd.take_gaps();
        let before = *herd.closes().get(&1012).unwrap_or(&0);
        crowd.world().begin_gaps();
        let begun = Instant::now();
        let (status, took) = block_in_place(|| leaving.nearby.terminate())?;
        ensure!(status.success(), "{status}: {}", leaving.nearby.stderr());
        herd.all_back(BACK_LIMIT).await?;
        let back = begun.elapsed();
        right(crowd, "after a drain").await?;
        let (gaps, crowd_gap) = (herd.take_gaps(), crowd.world().longest_gap(Instant::now()));
        let closed = herd.closes().get(&1012).unwrap_or(&0) - before;
        println!(
            "drain: {} clients back elsewhere {:.1} s after SIGTERM; without a view: {}; people who report heard nothing \
             for at most {:.2} s; the gateway ended after {:.1} s",
            gaps.len(),
            back.as_secs_f64(),
            summary(&gaps),
            crowd_gap.as_secs_f64(),
            took.as_secs_f64()
        );
        ensure!(closed == gaps.len(), "{closed} were closed with 1012, but {} had to come back", gaps.len());
        cluster.ended.push(leaving);
        let listen = format!("127.0.0.1:{}", free_port()?);
        let mut new = cluster.start_pusher(&listen, &["--gateway-name", &format!("new{attempt}")])?;
        block_in_place(|| new.wait_ready())?;
        cluster.pushers.push(new);
        let longest = gaps.last().copied().unwrap_or_default().max(crowd_gap);
        if longest <= DRAIN_GAP_MAX {
            return Ok(());
        }
        ensure!(attempt < DRAINS_MAX, "somebody heard nothing for {longest:?}, {DRAINS_MAX} times");
    }
    Ok(())
}

async fn kill(cluster: &mut Cluster, crowd: &Arc<Crowd>, herd: &Herd) -> anyhow::Result<()> {
    let mut killed = cluster.pushers.remove(0);
    herd.take_gaps();
    let begun = Instant::now();
    block_in_place(|| killed.nearby.kill9())?;
    cluster.ended.push(killed);
    tokio::time::sleep(SAMPLE_INTERVAL).await;
    herd.all_back(BACK_LIMIT).await?;
    let (back, gaps) = (begun.elapsed(), herd.take_gaps());
    right(crowd, "after kill -9").await?;
    println!(
        "kill -9: {} clients back after {:.1} s; without a view: {}",
        gaps.len(),
        back.as_secs_f64(),
        summary(&gaps)
    );
    ensure!(!gaps.is_empty(), "nobody was there");
    Ok(())
}

/// A new gateway that lets few in, and many clients at once: the ingest sends most of them elsewhere. Who comes to it all the
/// same, waits as it is told and gets in.
async fn storm(cluster: &mut Cluster, size: i64) -> anyhow::Result<()> {
    let listen = format!("127.0.0.1:{}", free_port()?);
    let rate = SLOW_ACCEPT_PER_S.to_string();
    let mut new = cluster.start_pusher(&listen, &["--gateway-name", "slow", "--accept-rate-per-s", &rate])?;
    block_in_place(|| new.wait_ready())?;
    let through = Way::Through(new.url.clone());
    cluster.pushers.push(new);
    let first = HERD_FIRST + size;
    for (way, users) in [
        (Way::Asks(cluster.ingest.url.clone()), first..first + STORM),
        (through.clone(), first + STORM..first + STORM + STRAIGHT),
    ] {
        let straight = matches!(way, Way::Through(_));
        let storm = Herd::gather(&cluster.ingest.url, &way, users.clone()).await?;
        let begun = Instant::now();
        storm.go(READY).await?;
        let (took, refused, by_gateway) = (begun.elapsed(), storm.refused(), storm.by_gateway());
        let slow =
            by_gateway.iter().filter(|(name, _)| name.starts_with("slow-")).map(|(_, count)| count).sum::<usize>();
        println!(
            "storm by {way:?}: {} clients, {slow} of them to a new gateway that lets {SLOW_ACCEPT_PER_S} a second in, refused {refused:?}; {}",
            users.end - users.start,
            summary(&storm.arrivals())
        );
        let bound = SLOW_ACCEPT_PER_S * (took.as_secs() + 2);
        ensure!(slow > 0 && slow as u64 <= bound, "{slow} came in within {took:?}");
        ensure!(refused.keys().all(|status| *status == 503), "refused otherwise: {refused:?}");
        let refusals: usize = refused.values().sum();
        ensure!(straight || refusals <= STORM as usize / 10, "{refusals} were sent to a gateway that cannot take them");
        let said = storm.retry_after_s();
        ensure!(!straight || said.len() > 1 && said.iter().all(|s| (1..=4).contains(s)), "Retry-After said {said:?}");
    }
    Ok(())
}

/// Waits until all views have been right for a while.
async fn right(crowd: &Crowd, when: &str) -> anyhow::Result<()> {
    let begun = Instant::now();
    let mut right_since = Instant::now();
    loop {
        tokio::time::sleep(SAMPLE_INTERVAL).await;
        let (violations, wrong) = {
            let world = crowd.world();
            (world.violations().to_vec(), world.wrong(Instant::now(), LAG))
        };
        ensure!(violations.is_empty(), "{when}: shown or done, and must never be: {violations:#?}");
        if wrong.is_empty() {
            if right_since.elapsed() >= CALM {
                return Ok(());
            }
            continue;
        }
        right_since = Instant::now();
        ensure!(begun.elapsed() < RIGHT_LIMIT, "{when}: {} views are not right: {}", wrong.len(), wrong[0]);
    }
}
