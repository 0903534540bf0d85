//! Behind Debian's HAProxy with `docs/haproxy.cfg`, on real Kafka: clients through it spread, come back when a gateway ends, and
//! fill one that was restarted; pollers stay on one gateway. The same arrivals by `GET /v1/gateway` and by round robin are
//! printed beside it, for `docs/scaling-sockets.md`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nearby_e2e::cluster::{Cluster, Service};
use nearby_e2e::haproxy::{Haproxy, check_documented};
use nearby_e2e::herd::{Herd, Way, imbalance, summary};
use nearby_e2e::http;
use tokio::task::block_in_place;

const PREFIX: &str = "balancer.";
const GATEWAYS: usize = 4;
const FIRST: i64 = 100_000;
const HERD: i64 = 400;
/// Who comes after a gateway was restarted.
const LATER: i64 = 200;
const LIMIT: Duration = Duration::from_secs(60);
/// The health check's `rise`, and `slowstart`.
const WARM: Duration = Duration::from_secs(13);
const IMBALANCE_MAX: f64 = 0.05;
/// More than the interval of heartbeats, which on a busy machine may not be early.
const HEARD: Duration = Duration::from_secs(6);
const POLLS: usize = 12;

#[test]
fn the_configuration_is_valid() -> anyhow::Result<()> {
    check_documented()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn clients_spread_behind_a_balancer() -> anyhow::Result<()> {
    let mut cluster = block_in_place(|| Cluster::start(PREFIX, GATEWAYS, 1))?;
    let played = play(&mut cluster).await;
    played.map_err(|error| anyhow::anyhow!("{error:#}\n{}", cluster.complaints()))
}

async fn play(cluster: &mut Cluster) -> anyhow::Result<()> {
    let start = |cluster: &Cluster, balance: &str| {
        let pushers: Vec<&str> = cluster.pushers.iter().map(Service::address).collect();
        block_in_place(|| Haproxy::start(cluster.ingest.address(), &pushers, balance))
    };
    let least = start(cluster, "leastconn")?;
    let (before, after) = restart(cluster, &Way::Through(least.url.clone()), "haproxy, leastconn").await?;
    ensure!(before <= IMBALANCE_MAX, "least connections are not equal");
    ensure!(after <= IMBALANCE_MAX, "the gateway that was restarted does not fill");
    kill(cluster, &least.url).await?;
    pollers_stay(cluster, &least.url).await.context("pollers")?;
    drop(least);

    let robin = start(cluster, "roundrobin")?;
    restart(cluster, &Way::Through(robin.url.clone()), "haproxy, roundrobin").await?;
    let asked = Way::Asks(cluster.ingest.url.clone());
    let (before, after) = restart(cluster, &asked, "GET /v1/gateway").await?;
    ensure!(before <= IMBALANCE_MAX && after <= IMBALANCE_MAX, "whom the ingest sends somewhere is not spread evenly");
    Ok(())
}

/// Clients come; a gateway ends and starts again; more clients come. How far the counts are off before and after.
async fn restart(cluster: &mut Cluster, way: &Way, name: &str) -> anyhow::Result<(f64, f64)> {
    // Those of before have gone, and heartbeats say so.
    tokio::time::sleep(HEARD).await;
    let herd = Herd::gather(&cluster.ingest.url, way, FIRST..FIRST + HERD).await?;
    herd.go(LIMIT).await?;
    let arrived = counts(&herd, None);
    let mut leaving = cluster.pushers.remove(0);
    let begun = Instant::now();
    let (status, _) = block_in_place(|| leaving.nearby.terminate())?;
    ensure!(status.success(), "{status}: {}", leaving.nearby.stderr());
    herd.all_back(LIMIT).await?;
    let (back, gaps) = (begun.elapsed(), herd.take_gaps());
    ensure!(!gaps.is_empty(), "nobody had to come back");
    start_again(cluster, leaving).await?;
    tokio::time::sleep(WARM).await;
    let restarted = counts(&herd, None);
    let later = Herd::gather(&cluster.ingest.url, way, FIRST + HERD..FIRST + HERD + LATER).await?;
    later.go(LIMIT).await?;
    let filled = counts(&herd, Some(&later));
    let (before, after) = (imbalance(&arrived), imbalance(&filled));
    println!(
        "{name}: {HERD} come {arrived:?} ({:.0} % off); after a restart {restarted:?}, back after {:.1} s, without a view: {}; \
         {LATER} more come {filled:?} ({:.0} % off); refused {:?}",
        before * 100.0,
        back.as_secs_f64(),
        summary(&gaps),
        after * 100.0,
        herd.refused()
    );
    Ok((before, after))
}

/// A gateway at the address of one that has ended, last in the list.
async fn start_again(cluster: &mut Cluster, ended: Service) -> anyhow::Result<()> {
    let name = format!("again{}", cluster.ended.len());
    let mut new = cluster.start_pusher(ended.address(), &["--gateway-name", &name])?;
    block_in_place(|| new.wait_ready())?;
    cluster.ended.push(ended);
    cluster.pushers.push(new);
    Ok(())
}

/// On all gateways that run, the empty ones too.
fn counts(herd: &Herd, more: Option<&Herd>) -> Vec<usize> {
    let mut sum: BTreeMap<String, usize> = BTreeMap::new();
    for (gateway, count) in [Some(herd), more].into_iter().flatten().flat_map(Herd::by_gateway) {
        *sum.entry(gateway).or_default() += count;
    }
    let mut counts: Vec<usize> = sum.into_values().collect();
    counts.resize(GATEWAYS.max(counts.len()), 0);
    counts
}

/// HAProxy knows nothing of it but that connections break.
async fn kill(cluster: &mut Cluster, balancer: &str) -> anyhow::Result<()> {
    let way = Way::Through(balancer.to_owned());
    let herd = Herd::gather(&cluster.ingest.url, &way, FIRST..FIRST + HERD).await?;
    herd.go(LIMIT).await?;
    let mut killed = cluster.pushers.remove(0);
    let begun = Instant::now();
    block_in_place(|| killed.nearby.kill9())?;
    tokio::time::sleep(Duration::from_millis(100)).await;
    herd.all_back(LIMIT).await?;
    let gaps = herd.take_gaps();
    println!(
        "kill -9 behind haproxy: {} back after {:.1} s; {}",
        gaps.len(),
        begun.elapsed().as_secs_f64(),
        summary(&gaps)
    );
    ensure!(!gaps.is_empty(), "nobody had to come back");
    start_again(cluster, killed).await?;
    tokio::time::sleep(WARM).await;
    Ok(())
}

/// One user polls often: one gateway has a session, the others none.
async fn pollers_stay(cluster: &Cluster, balancer: &str) -> anyhow::Result<()> {
    tokio::time::sleep(HEARD).await;
    let connections = async || -> anyhow::Result<Vec<usize>> {
        let mut all = Vec::new();
        for pusher in &cluster.pushers {
            all.push(pusher.gauge("nearby_pusher_connections", "").await? as usize);
        }
        Ok(all)
    };
    let before = connections().await?;
    ensure!(before.iter().sum::<usize>() == 0, "somebody is still there: {before:?}");
    let token = cluster.token(7).await?;
    for _ in 0..POLLS {
        let answer = http::get_as(&token, &format!("{balancer}/v1/nearby")).await?.expect_status(200)?;
        ensure!(answer.json()?["type"] == "snapshot", "{}", answer.text());
    }
    tokio::time::sleep(HEARD).await;
    let after = connections().await?;
    println!("{POLLS} polls of one user: sessions {after:?}");
    ensure!(after.iter().sum::<usize>() == 1, "every poll should find the session of the first: {after:?}");
    http::get(&format!("{balancer}/metrics")).await?.expect_status(403)?;
    http::get(&format!("{balancer}/v1/gateway")).await?.expect_status(200)?;
    Ok(())
}
