//! Postgres' disk is full in the middle of a stream of reports: the sink says so and waits, nothing is lost, and it goes on by
//! itself as soon as there is room again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nearby_e2e::cluster::Service;
use nearby_e2e::history::{Logged, log_end};
use nearby_e2e::kafka::Kafka;
use nearby_e2e::nearby::Nearby;
use nearby_e2e::posted::Posted;
use nearby_e2e::postgres::Postgres;
use nearby_e2e::small_disk::SmallDisk;

const TOPIC: &str = "location-events";
const LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);
const DISK_MIB: u32 = 192;
/// Room for some 50,000 rows.
const FREE_MIB: usize = 12;
/// And so many come.
const REQUESTS: usize = 150;
/// For so long there is no room.
const FULL: Duration = Duration::from_secs(8);

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_waited_for() -> anyhow::Result<()> {
    // `make test` sets it for whoever is not root, and says at its end what was not run.
    if std::env::var("NO_SMALL_DISK").is_ok_and(|value| !value.is_empty()) {
        println!("NOT RUN: NO_SMALL_DISK is set");
        return Ok(());
    }
    let disk = SmallDisk::mount(DISK_MIB)?;
    let disk = disk.context("only root can mount the small disk of this test: NO_SMALL_DISK=1 leaves it out")?;
    let (kafka, postgres) = (Kafka::start()?, Postgres::start()?);
    let brokers = kafka.bootstrap();
    let mut create = Nearby::start(&["topics", "create", "--partitions", "4"], &[("NEARBY_BROKERS", &brokers)])?;
    ensure!(create.finish(LIMIT)?.success(), "{}", create.stderr());
    // Partitions of the history that are made from now on are on the small disk; the log of transactions is not.
    postgres.psql(&format!("create tablespace small location '{}'", disk.path().display()))?;
    postgres.psql("alter database nearby set default_tablespace = small")?;
    disk.fill_but(FREE_MIB, DISK_MIB as usize)?;
    let mut ingest = Service::start(&kafka, "", "ingest", &[])?;
    let mut sink = Service::start(&kafka, "", "sink", &["--database-url", &postgres.url()])?;
    ingest.wait_ready()?;
    sink.wait_ready()?;

    let posted = Arc::new(Posted::new(&ingest.url, Duration::ZERO)?);
    for _ in 0..REQUESTS {
        posted.post().await?;
    }
    let begun = Instant::now();
    let reason = loop {
        if let Some((false, reason)) = sink.ready().await {
            break reason;
        }
        ensure!(begun.elapsed() < LIMIT, "the disk is full, and the sink is ready: {}", sink.nearby.stderr());
        tokio::time::sleep(POLL).await;
    };
    ensure!(reason.contains("No space left on device (53100)"), "{reason}");
    let written = "select coalesce(sum(next_offset), 0) from nearby.sink_offsets where topic = 'location-events'";
    let before: i64 = postgres.psql(written)?.parse()?;
    tokio::time::sleep(FULL).await;
    let (end, tries) = (log_end(&brokers, TOPIC)?, sink.nearby.stderr().matches("Postgres is away").count());
    ensure!(sink.nearby.is_running()? && before < end, "{before} of {end} written on a full disk");
    // Waits from 0.1 s, doubled up to 5 s: not all the time.
    ensure!((3..20).contains(&tries), "tried {tries} times");

    disk.make_room()?;
    let begun = Instant::now();
    while postgres.psql(written)?.parse::<i64>()? < end {
        ensure!(begun.elapsed() < LIMIT, "there is room again: {}", sink.nearby.stderr());
        tokio::time::sleep(POLL).await;
    }
    ensure!(sink.ready().await.is_some_and(|(ready, _)| ready), "ready again");
    println!(
        "{before} of {end} written, then full for {FULL:?} ({tries} tries); all of them {:?} after there was room",
        begun.elapsed()
    );
    let (status, _) = sink.nearby.terminate()?;
    ensure!(status.success(), "{status}: {}", sink.nearby.stderr());
    let logged = Logged::read(&brokers, TOPIC)?;
    posted.are_all_among(logged.reports())?;
    logged.is_history_of(&postgres.url())?;
    the_judge_sees_what_is_wrong(&logged, &postgres)
}

/// Who judges has to be able to condemn.
fn the_judge_sees_what_is_wrong(logged: &Logged, postgres: &Postgres) -> anyhow::Result<()> {
    let row =
        |change| format!("update nearby.location_history set {change} where kafka_partition = 1 and kafka_offset = 7");
    let offset =
        |change| format!("update nearby.sink_offsets set next_offset = next_offset {change} where kafka_partition = 1");
    for (harm, undo, verdict) in [
        (
            row("user_id = user_id + 1"),
            row("user_id = user_id - 1"),
            "1 faults in a history of 150150 records: (1, 7) is Report",
        ),
        (
            row("reported_at = reported_at + interval '1 ms'"),
            row("reported_at = reported_at - interval '1 ms'"),
            "(1, 7) is Report",
        ),
        (offset("+ 1"), offset("- 1"), "the sink's offsets are"),
        (row("topic = 'another'"), String::new(), "1 faults in a history of 150150 records: (1, 7) is missing"),
    ] {
        postgres.psql(&harm)?;
        let said = logged.is_history_of(&postgres.url()).err().map(|error| error.to_string()).unwrap_or_default();
        ensure!(said.contains(verdict), "{harm}: {said:?}");
        postgres.psql(&undo)?;
    }
    Ok(())
}
