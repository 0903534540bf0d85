//! History exactly once on real Kafka and Postgres: while reports are posted to the ingest, sinks, the broker and Postgres are
//! killed with -9, sinks freeze for longer than the group waits and come back as zombies, sinks join and leave, and the database is
//! away. What happens when is drawn from a seed. At the end the history has every record of the log once, with its content,
//! and every report and withdrawal that was acknowledged at least once; `nearby_e2e::history` is the judge.
//!
//! `make test` runs the short version, `make test-long` (`HISTORY_STORM=long`) one of 5,000,000 reports and more; both print what
//! they measured. `HISTORY_SEED=…` repeats the draw of a seed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nearby_e2e::cluster::Service;
use nearby_e2e::history::{Logged, log_end};
use nearby_e2e::kafka::Kafka;
use nearby_e2e::nearby::Nearby;
use nearby_e2e::posted::Posted;
use nearby_e2e::postgres::Postgres;
use nearby_e2e::process::send_signal;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::{JoinSet, block_in_place};

const PARTITIONS: &str = "8";
const TOPIC: &str = "location-events";
const READY: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);
/// More than the session timeout of a member, 10 s: its partitions are somebody else's when it goes on.
const FROZEN_MS: std::ops::Range<u64> = 11_500..13_500;
/// A sink looks after an idle database every 5 s and gives a connection 5 s; a machine may be slow.
const NOTICED_LIMIT: Duration = Duration::from_secs(30);
/// Rows and milliseconds of a batch. Who waits long for a full batch has one in hand whenever something happens: it is frozen with
/// it, its partitions are taken away in the middle of it.
const LEISURELY: (u32, u32) = (20_000, 2_500);
const SWIFT: (u32, u32) = (1_000, 100);
const POSTERS: usize = 4;
/// A freeze makes two sinks meet if it finds one with rows in hand and no transaction under way: about every second does in the long version.
const FREEZES_MORE_MAX: usize = 10;

/// How much of it: short by default.
struct Extent {
    rounds: usize,
    /// Another sink was first so often, at least. A short one need not see it.
    overtaken_min: usize,
    reports_min: usize,
    /// Of all posters together.
    pause: Duration,
    database_away: Duration,
    caught_up_limit: Duration,
}

impl Extent {
    fn chosen() -> anyhow::Result<Extent> {
        let s = Duration::from_secs;
        match std::env::var("HISTORY_STORM").as_deref() {
            Err(_) | Ok("short") => Ok(Extent {
                rounds: 1,
                overtaken_min: 0,
                reports_min: 100_000,
                pause: Duration::from_millis(600),
                database_away: s(5),
                caught_up_limit: s(90),
            }),
            Ok("long") => Ok(Extent {
                rounds: 4,
                overtaken_min: 1,
                reports_min: 5_000_000,
                pause: Duration::from_millis(250),
                database_away: s(60),
                caught_up_limit: s(1200),
            }),
            Ok(other) => bail!("HISTORY_STORM is short or long, not {other}"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    SinkKilled,
    SinkFrozen,
    SinkJoinsAndLeaves,
    PostgresKilled,
    BrokerKilled,
    DatabaseAway,
    BothKilled,
}

const FAULTS: [Fault; 7] = [
    Fault::SinkKilled,
    Fault::SinkFrozen,
    Fault::SinkJoinsAndLeaves,
    Fault::PostgresKilled,
    Fault::BrokerKilled,
    Fault::DatabaseAway,
    Fault::BothKilled,
];

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_record_is_in_history_once_after_a_storm() -> anyhow::Result<()> {
    let extent = Extent::chosen()?;
    let seed = match std::env::var("HISTORY_SEED") {
        Ok(seed) => seed.parse().context("HISTORY_SEED is a number")?,
        Err(_) => rand::random::<u32>().into(),
    };
    println!("HISTORY_SEED={seed}");
    let mut storm = Storm::begin(seed, extent.pause).await?;
    let raged = storm.rage(&extent).await;
    let judged = match raged {
        Ok(()) => storm.judge(&extent).await,
        Err(error) => Err(error),
    };
    judged.map_err(|error| anyhow::anyhow!("HISTORY_SEED={seed}: {error:#}\n{}", storm.complaints()))
}

struct Storm {
    dice: StdRng,
    posted: Arc<Posted>,
    posters: JoinSet<anyhow::Result<()>>,
    sinks: Vec<Service>,
    /// Killed or stopped, kept for what they said.
    ended: Vec<Service>,
    _ingest: Service,
    kafka: Kafka,
    postgres: Postgres,
    begun: Instant,
}

impl Storm {
    async fn begin(seed: u64, pause: Duration) -> anyhow::Result<Storm> {
        let (kafka, postgres) = (block_in_place(Kafka::start)?, block_in_place(Postgres::start)?);
        let brokers = kafka.bootstrap();
        let mut create =
            Nearby::start(&["topics", "create", "--partitions", PARTITIONS], &[("NEARBY_BROKERS", &brokers)])?;
        ensure!(create.finish(READY)?.success(), "{}", create.stderr());
        let mut ingest = Service::start(&kafka, "", "ingest", &[])?;
        let mut sinks = vec![sink(&kafka, &postgres, LEISURELY)?, sink(&kafka, &postgres, SWIFT)?];
        block_in_place(|| sinks.iter_mut().chain([&mut ingest]).try_for_each(Service::wait_ready))?;
        let posted = Arc::new(Posted::new(&ingest.url, pause)?);
        let mut posters = JoinSet::new();
        for _ in 0..POSTERS {
            posters.spawn(Arc::clone(&posted).post_on());
        }
        let (dice, begun) = (StdRng::seed_from_u64(seed), Instant::now());
        Ok(Storm { dice, posted, posters, sinks, ended: Vec::new(), _ingest: ingest, kafka, postgres, begun })
    }

    async fn rage(&mut self, extent: &Extent) -> anyhow::Result<()> {
        for _ in 0..extent.rounds {
            let mut faults = FAULTS.to_vec();
            while !faults.is_empty() {
                let fault = faults.swap_remove(self.dice.random_range(0..faults.len()));
                self.strike_and_tell(fault, extent).await?;
            }
        }
        for _ in 0..FREEZES_MORE_MAX {
            if self.overtaken() < extent.overtaken_min {
                self.strike_and_tell(Fault::SinkFrozen, extent).await?;
            }
        }
        while self.posted.acknowledged() < extent.reports_min {
            tokio::time::sleep(POLL).await;
            ensure!(self.posters.len() == POSTERS && self.posters.try_join_next().is_none(), "a poster has ended");
        }
        Ok(())
    }

    async fn strike_and_tell(&mut self, fault: Fault, extent: &Extent) -> anyhow::Result<()> {
        self.pause(200..1_500).await;
        let began = self.begun.elapsed();
        let told = self.strike(fault, extent).await.with_context(|| format!("{fault:?}"))?;
        let acknowledged = self.posted.acknowledged();
        println!(
            "{:6.1} s  {fault:?} for {:.1} s {told}; {acknowledged} acknowledged, {} refused, another sink was first {} times",
            began.as_secs_f64(),
            (self.begun.elapsed() - began).as_secs_f64(),
            self.posted.refused(),
            self.overtaken(),
        );
        for sink in &mut self.sinks {
            ensure!(sink.nearby.is_running()?, "a sink has ended: {}", sink.nearby.stderr());
        }
        Ok(())
    }

    /// Does it, for some time, and undoes it; returns what there is to tell.
    async fn strike(&mut self, fault: Fault, extent: &Extent) -> anyhow::Result<String> {
        match fault {
            Fault::SinkKilled => {
                let batches = if self.dice.random_bool(0.5) { LEISURELY } else { SWIFT };
                let mut killed = self.sinks.remove(self.dice.random_range(0..self.sinks.len()));
                block_in_place(|| killed.nearby.kill9())?;
                self.ended.push(killed);
                let mut next = sink(&self.kafka, &self.postgres, batches)?;
                block_in_place(|| next.wait_ready())?;
                self.sinks.push(next);
            }
            Fault::SinkFrozen => {
                let frozen = &self.sinks[self.dice.random_range(0..self.sinks.len())];
                let pid = frozen.nearby.pid();
                block_in_place(|| send_signal(pid, "STOP"))?;
                self.pause(FROZEN_MS).await;
                block_in_place(|| send_signal(pid, "CONT"))?;
            }
            Fault::SinkJoinsAndLeaves => {
                let mut third = sink(&self.kafka, &self.postgres, LEISURELY)?;
                block_in_place(|| third.wait_ready())?;
                self.pause(500..5_000).await;
                let (status, took) = block_in_place(|| third.nearby.terminate())?;
                ensure!(status.success() && took < Duration::from_secs(10), "{status} after {took:?}");
                self.ended.push(third);
            }
            Fault::PostgresKilled => {
                block_in_place(|| self.postgres.kill())?;
                self.pause(0..2_000).await;
                block_in_place(|| self.postgres.restart())?;
            }
            Fault::BrokerKilled => {
                block_in_place(|| self.kafka.kill())?;
                self.pause(0..2_000).await;
                block_in_place(|| self.kafka.restart())?;
            }
            Fault::BothKilled => {
                block_in_place(|| self.kafka.kill())?;
                self.pause(0..500).await;
                block_in_place(|| self.postgres.kill())?;
                block_in_place(|| self.kafka.restart())?;
                self.pause(0..500).await;
                block_in_place(|| self.postgres.restart())?;
            }
            Fault::DatabaseAway => return self.the_database_is_away(extent.database_away).await,
        }
        Ok(String::new())
    }

    /// Nobody is ready meanwhile, and each says why; all of them are ready again afterwards.
    async fn the_database_is_away(&mut self, away: Duration) -> anyhow::Result<String> {
        block_in_place(|| self.postgres.stop())?;
        let begun = Instant::now();
        self.all_say(|(ready, reason)| !ready && reason.contains("database")).await.context("all of them unready")?;
        let noticed = begun.elapsed();
        tokio::time::sleep(away.saturating_sub(noticed)).await;
        block_in_place(|| self.postgres.restart())?;
        let back = Instant::now();
        self.all_say(|(ready, _)| ready).await.context("all of them ready again")?;
        let (noticed, ready) = (noticed.as_secs_f64(), back.elapsed().as_secs_f64());
        Ok(format!("(unready after {noticed:.1} s, ready {ready:.1} s after it was back)"))
    }

    async fn all_say(&self, say: impl Fn((bool, String)) -> bool) -> anyhow::Result<()> {
        let begun = Instant::now();
        for sink in &self.sinks {
            loop {
                let answer = sink.ready().await;
                if answer.clone().is_some_and(&say) {
                    break;
                }
                ensure!(begun.elapsed() < NOTICED_LIMIT, "not within {NOTICED_LIMIT:?}, but {answer:?}");
                tokio::time::sleep(POLL).await;
            }
        }
        Ok(())
    }

    async fn judge(&mut self, extent: &Extent) -> anyhow::Result<()> {
        self.posted.stop();
        while let Some(ended) = self.posters.join_next().await {
            ended??;
        }
        let fed = self.begun.elapsed();
        let (brokers, database) = (self.kafka.bootstrap(), self.postgres.url());
        let end = block_in_place(|| log_end(&brokers, TOPIC))?;
        let written = "select coalesce(sum(next_offset), 0) from nearby.sink_offsets where topic = 'location-events'";
        let begun = Instant::now();
        loop {
            let written: i64 = block_in_place(|| self.postgres.psql(written))?.parse()?;
            if written == end {
                break;
            }
            ensure!(
                begun.elapsed() < extent.caught_up_limit,
                "{written} of {end} are written after {:?}",
                begun.elapsed()
            );
            tokio::time::sleep(POLL).await;
        }
        let caught_up = begun.elapsed();
        for mut sink in std::mem::take(&mut self.sinks) {
            let (status, _) = block_in_place(|| sink.nearby.terminate())?;
            self.ended.push(sink);
            ensure!(status.success(), "{status}");
        }
        let begun = Instant::now();
        let logged = block_in_place(|| Logged::read(&brokers, TOPIC))?;
        let most = self.posted.are_all_among(logged.reports())?;
        block_in_place(|| logged.is_history_of(&database))?;
        let letters = block_in_place(|| log_end(&brokers, "dead-letters"))?;
        ensure!(letters == 0, "{letters} dead letters");
        let days = "select count(*) from pg_inherits where inhparent = 'nearby.location_history'::regclass";
        let days = block_in_place(|| self.postgres.psql(days))?;
        ensure!(self.overtaken() >= extent.overtaken_min, "no sink met another one: this storm was too mild");
        let withdrawals = logged.reports().filter(|report| report.place.is_none()).count();
        ensure!(withdrawals > 0, "nobody withdrew");
        println!(
            "{} reports acknowledged in {:.0} s, {} records in the log ({withdrawals} of them withdrawals; one at most {most} times): each in history once, with \
             its content, over {days} days; caught up after {:.1} s; {} sinks, another one was first {} times; judged in {:.0} s",
            self.posted.acknowledged(),
            fed.as_secs_f64(),
            logged.count(),
            caught_up.as_secs_f64(),
            self.ended.len(),
            self.overtaken(),
            begun.elapsed().as_secs_f64(),
        );
        Ok(())
    }

    async fn pause(&mut self, ms: std::ops::Range<u64>) {
        tokio::time::sleep(Duration::from_millis(self.dice.random_range(ms))).await;
    }

    /// How often a sink found that another one had written before it.
    fn overtaken(&self) -> usize {
        let sinks = self.sinks.iter().chain(&self.ended);
        sinks.map(|sink| sink.nearby.stderr().matches("another sink was first").count()).sum()
    }

    fn complaints(&self) -> String {
        let tail = |sink: &Service| {
            let said = sink.nearby.stderr();
            let lines: Vec<&str> = said.lines().collect();
            format!("{}:\n{}", sink.url, lines[lines.len().saturating_sub(15)..].join("\n"))
        };
        self.ended.iter().chain(&self.sinks).map(tail).collect::<Vec<_>>().join("\n")
    }
}

fn sink(kafka: &Kafka, postgres: &Postgres, (rows_max, age_ms): (u32, u32)) -> anyhow::Result<Service> {
    let (database, rows_max, age_ms) = (postgres.url(), rows_max.to_string(), age_ms.to_string());
    Service::start(
        kafka,
        "",
        "sink",
        &["--database-url", &database, "--batch-rows-max", &rows_max, "--batch-age-ms", &age_ms],
    )
}
