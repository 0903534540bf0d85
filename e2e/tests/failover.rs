//! Ownership and recovery on real Kafka: processors join, leave, are killed and stopped, the broker restarts and is away,
//! while a hundred people go on reporting. Everybody's view has to be right again each time, and nobody may be shown anything
//! wrong at any moment; `nearby_e2e::world` is the judge. At the end the log has every report that was acknowledged.
//!
//! `make test` runs the short version, `make test-long` (`FAILOVER=long`) a longer one; both print what they measured.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use nearby_e2e::cluster::{Cluster, Service};
use nearby_e2e::crowd::{Crowd, NEIGHBOURS};
use nearby_e2e::log::{EpochWatch, read_reports};
use nearby_e2e::process::send_signal;
use tokio::task::block_in_place;

const PREFIX: &str = "failover.";
const NEIGHBOURHOODS: i64 = 10;
const PARTITIONS: usize = 16;
/// People who are in the log and not connected: what a processor has to restore.
const ELSEWHERE: i64 = 30_000;
const ELSEWHERE_FIRST: i64 = 1_000_000;
const ELSEWHERE_FRIENDS: i64 = 20;
/// A view may be so far behind what was acknowledged.
const LAG: Duration = Duration::from_secs(1);
const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);
/// Views that stay right for so long are right again.
const CALM: Duration = Duration::from_secs(2);
/// From the end of a fault to right views, on a noisy machine. (A killed owner is missed after 10 s.)
const RIGHT_LIMIT: Duration = Duration::from_secs(40);
/// The gap that a handover in order may leave, and how often it is tried: the machine is not ours alone.
const HANDOVER_GAP: Duration = Duration::from_secs(1);
/// More than the session timeout of a member, 10 s.
const FROZEN: Duration = Duration::from_secs(15);
const READY_POLL: Duration = Duration::from_millis(5);
const SETTLED_LIMIT: Duration = Duration::from_secs(30);
/// Less than the 120 s for which somebody goes on serving what is no longer theirs.
const CLAIMED_LIMIT: Duration = Duration::from_secs(90);

/// How long it may take: short by default.
struct Extent {
    rounds: usize,
    joiners_freeze: bool,
    broker_away: Duration,
}

impl Extent {
    fn chosen() -> anyhow::Result<Extent> {
        match std::env::var("FAILOVER").as_deref() {
            Err(_) | Ok("short") => {
                Ok(Extent { rounds: 1, joiners_freeze: false, broker_away: Duration::from_secs(20) })
            }
            Ok("long") => Ok(Extent { rounds: 3, joiners_freeze: true, broker_away: Duration::from_secs(120) }),
            Ok(other) => bail!("FAILOVER is short or long, not {other}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn views_are_right_again_after_every_fault() -> anyhow::Result<()> {
    let extent = Extent::chosen()?;
    let mut scene = Scene::set().await?;
    let played = scene.play(&extent).await;
    println!("{}", scene.table());
    let ended = match played {
        Ok(()) => scene.end().await,
        Err(error) => Err(error),
    };
    ended.map_err(|error| anyhow::anyhow!("{error:#}\n{}", scene.cluster.complaints()))
}

/// What the sampler has seen.
#[derive(Debug, Default)]
struct Samples {
    last_wrong: Option<Instant>,
    most_wrong: usize,
    example: String,
}

/// A line of the table.
struct Row {
    fault: String,
    right_after: Duration,
    longest_gap: Duration,
    most_wrong: usize,
    note: String,
}

struct Scene {
    cluster: Cluster,
    crowd: Arc<Crowd>,
    token: String,
    samples: Arc<Mutex<Samples>>,
    epochs: Option<EpochWatch>,
    rows: Vec<Row>,
    begun: Instant,
}

impl Scene {
    async fn set() -> anyhow::Result<Scene> {
        let begun = Instant::now();
        let cluster = block_in_place(|| Cluster::start(PREFIX, 2, 2))?;
        let token = cluster.token(0).await?;
        let epochs = Some(EpochWatch::start(&cluster.kafka.bootstrap(), PREFIX)?);
        let crowd = Arc::new(Crowd::gather(&cluster, NEIGHBOURHOODS).await?);
        let samples = Arc::new(Mutex::new(Samples::default()));
        let (sampled, into) = (Arc::downgrade(&crowd), Arc::clone(&samples));
        tokio::spawn(async move {
            while let Some(crowd) = sampled.upgrade() {
                sample(&crowd, &into);
                drop(crowd);
                tokio::time::sleep(SAMPLE_INTERVAL).await;
            }
        });
        Ok(Scene { cluster, crowd, token, samples, epochs, rows: Vec::new(), begun })
    }

    async fn play(&mut self, extent: &Extent) -> anyhow::Result<()> {
        let begun = self.begin("nothing (two processors)");
        self.settle(begun).await?;
        let begun = self.begin("30,000 lists and reports come in");
        self.crowd.settle_elsewhere(&self.token, ELSEWHERE_FIRST, ELSEWHERE, ELSEWHERE_FRIENDS).await?;
        let took_s = begun.elapsed().as_secs_f64();
        self.settle(begun).await?;
        self.note(format!("in {took_s:.1} s"));
        for _ in 0..extent.rounds {
            self.a_processor_joins().await?;
            self.a_processor_leaves().await?;
            self.a_processor_is_killed().await?;
            self.a_processor_is_frozen().await?;
            if extent.joiners_freeze {
                self.a_joiner_is_frozen().await?;
            }
        }
        self.the_broker_restarts().await?;
        self.the_broker_is_killed().await?;
        self.the_broker_is_away(extent.broker_away).await
    }

    async fn a_processor_joins(&mut self) -> anyhow::Result<()> {
        let begun = self.begin("a processor joins");
        let mut joined = block_in_place(|| self.cluster.start_processor())?;
        let restored = watch_restore(&mut joined).await?;
        self.cluster.processors.push(joined);
        self.settle(begun).await?;
        self.note(restored);
        let served = self.all_partitions_are_served().await?;
        self.note(format!("partitions {served:?}"));
        self.hold_gap()
    }

    async fn a_processor_leaves(&mut self) -> anyhow::Result<()> {
        let mut leaving = self.cluster.processors.remove(0);
        let begun = self.begin("a processor leaves (SIGTERM)");
        let (status, took) = block_in_place(|| leaving.nearby.terminate())?;
        ensure!(status.success(), "{status}: {}", leaving.nearby.stderr());
        self.cluster.ended.push(leaving);
        self.settle(begun).await?;
        self.note(format!("ended after {:.1} s", took.as_secs_f64()));
        self.all_partitions_are_served().await?;
        self.hold_gap()
    }

    async fn a_processor_is_killed(&mut self) -> anyhow::Result<()> {
        let mut killed = self.cluster.processors.remove(0);
        let begun = self.begin("kill -9 of a processor");
        block_in_place(|| killed.nearby.kill9())?;
        self.crowd.quarrel_or_make_up(&self.token, NEIGHBOURHOODS).await?;
        self.cluster.ended.push(killed);
        self.settle(begun).await?;
        self.all_partitions_are_served().await.map(drop)?;
        let begun = self.begin("and its replacement joins");
        let mut joined = block_in_place(|| self.cluster.start_processor())?;
        let restored = watch_restore(&mut joined).await?;
        self.cluster.processors.push(joined);
        self.settle(begun).await?;
        self.note(restored);
        self.all_partitions_are_served().await.map(drop)
    }

    async fn a_processor_is_frozen(&mut self) -> anyhow::Result<()> {
        let frozen = self.cluster.processors.remove(0);
        let begun = self.begin("an owner freezes (SIGSTOP)");
        block_in_place(|| send_signal(frozen.nearby.pid(), "STOP"))?;
        // What it does not hear of before it goes on.
        self.crowd.quarrel_or_make_up(&self.token, NEIGHBOURHOODS).await?;
        self.settle(begun).await?;
        tokio::time::sleep((begun + FROZEN).saturating_duration_since(Instant::now())).await;
        let begun = self.begin("and goes on as a zombie (SIGCONT)");
        block_in_place(|| send_signal(frozen.nearby.pid(), "CONT"))?;
        self.cluster.processors.push(frozen);
        self.settle(begun).await?;
        let served = self.all_partitions_are_served().await?;
        self.note(format!("partitions {served:?}"));
        Ok(())
    }

    /// It has been given partitions, and others have them by the time it would claim them.
    async fn a_joiner_is_frozen(&mut self) -> anyhow::Result<()> {
        let begun = self.begin("a joiner freezes before its claim");
        let joiner = block_in_place(|| self.cluster.start_processor())?;
        while !joiner.nearby.stderr().contains("Gained(") {
            ensure!(begun.elapsed() < RIGHT_LIMIT, "it was given nothing: {}", joiner.nearby.stderr());
            tokio::time::sleep(READY_POLL).await;
        }
        block_in_place(|| send_signal(joiner.nearby.pid(), "STOP"))?;
        // It was faster, perhaps: then it is one more zombie that owned something.
        let claimed = joiner.nearby.stderr().matches("Claimed(").count();
        tokio::time::sleep(FROZEN).await;
        self.settle(begun).await?;
        let begun = self.begin("and goes on (SIGCONT)");
        block_in_place(|| send_signal(joiner.nearby.pid(), "CONT"))?;
        self.settle(begun).await?;
        let log = joiner.nearby.stderr();
        let (before_it_knew, _) = log.split_once("Lost(").with_context(|| format!("it lost nothing: {log}"))?;
        ensure!(before_it_knew.matches("Claimed(").count() == claimed, "a zombie's claim was accepted: {log}");
        let refused = log.matches("ClaimRefused(").count();
        self.note(format!("{claimed} claims before, {refused} refused, none accepted"));
        self.cluster.processors.push(joiner);
        self.all_partitions_are_served().await.map(drop)?;
        // As many as before.
        self.a_processor_leaves().await
    }

    async fn the_broker_restarts(&mut self) -> anyhow::Result<()> {
        let begun = self.begin("the broker restarts in order");
        block_in_place(|| self.cluster.kafka.restart())?;
        self.settle_after_broker(begun).await
    }

    async fn the_broker_is_killed(&mut self) -> anyhow::Result<()> {
        let begun = self.begin("kill -9 of the broker, and its restart");
        block_in_place(|| self.cluster.kafka.kill())?;
        block_in_place(|| self.cluster.kafka.restart())?;
        self.settle_after_broker(begun).await
    }

    async fn the_broker_is_away(&mut self, away: Duration) -> anyhow::Result<()> {
        let (_, refused_before) = self.crowd.answered();
        let begun = self.begin(&format!("the broker is away for {} s", away.as_secs()));
        block_in_place(|| self.cluster.kafka.kill())?;
        tokio::time::sleep(away).await;
        let (_, refused) = self.crowd.answered();
        ensure!(refused > refused_before, "nobody was refused while there was no broker");
        // Before it answers, or who is quick has claimed already.
        let back = SystemTime::now();
        block_in_place(|| self.cluster.kafka.restart())?;
        self.settle_after_broker(begun).await?;
        self.everything_is_claimed_again(back).await
    }

    /// Until then those serve who had the partitions before, and they do not do so for ever.
    async fn everything_is_claimed_again(&mut self, back: SystemTime) -> anyhow::Result<()> {
        let epochs = self.epochs.as_ref().context("epochs are watched")?;
        let back_ms = i64::try_from(back.duration_since(UNIX_EPOCH)?.as_millis())?;
        let claimed_after = loop {
            let claimed_after = back.elapsed()?;
            let newest = epochs.seen().newest;
            if newest.values().all(|epoch| *epoch >= back_ms) {
                break claimed_after;
            }
            ensure!(claimed_after < CLAIMED_LIMIT, "not claimed again: {newest:?}");
            tokio::time::sleep(SAMPLE_INTERVAL).await;
        };
        self.note(format!("all partitions claimed again {:.1} s after it was started", claimed_after.as_secs_f64()));
        Ok(())
    }

    async fn settle_after_broker(&mut self, begun: Instant) -> anyhow::Result<()> {
        let away = begun.elapsed();
        self.settle(begun).await?;
        let (acknowledged, refused) = self.crowd.answered();
        self.note(format!(
            "answers again after {:.1} s; in all {acknowledged} accepted, {refused} refused",
            away.as_secs_f64()
        ));
        self.all_partitions_are_served().await.map(drop)
    }

    fn begin(&mut self, fault: &str) -> Instant {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).most_wrong = 0;
        self.crowd.world().begin_gaps();
        let (right_after, longest_gap) = Default::default();
        let note = String::new();
        self.rows.push(Row { fault: fault.to_owned(), right_after, longest_gap, most_wrong: 0, note });
        println!("{:6.1} s {fault}", self.begun.elapsed().as_secs_f64());
        Instant::now()
    }

    /// Waits until all views have been right for a while, and fills the row in.
    async fn settle(&mut self, begun: Instant) -> anyhow::Result<()> {
        let acted = Instant::now();
        loop {
            tokio::time::sleep(SAMPLE_INTERVAL).await;
            let violations = self.crowd.world().violations().to_vec();
            ensure!(violations.is_empty(), "shown or done, and must never be: {violations:#?}");
            let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
            let row = self.rows.last_mut().context("a fault has begun")?;
            row.right_after = samples.last_wrong.map_or(Duration::ZERO, |at| at.saturating_duration_since(begun));
            row.most_wrong = samples.most_wrong;
            row.longest_gap = self.crowd.world().longest_gap(Instant::now());
            if samples.last_wrong.is_none_or(|at| at < acted || at.elapsed() >= CALM) && acted.elapsed() >= CALM {
                return Ok(());
            }
            ensure!(acted.elapsed() < RIGHT_LIMIT, "{}: views are not right: {}", row.fault, samples.example);
        }
    }

    fn note(&mut self, note: String) {
        if let Some(row) = self.rows.last_mut() {
            row.note = if row.note.is_empty() { note } else { format!("{}; {note}", row.note) };
        }
    }

    /// In an orderly handover nobody waits for long.
    fn hold_gap(&self) -> anyhow::Result<()> {
        let row = self.rows.last().context("a fault has begun")?;
        ensure!(row.longest_gap <= HANDOVER_GAP, "{}: somebody heard nothing for {:?}", row.fault, row.longest_gap);
        Ok(())
    }

    /// Each partition by one processor, in equal shares: counts that add up, with views that are right, say so.
    async fn all_partitions_are_served(&self) -> anyhow::Result<Vec<usize>> {
        let since = Instant::now();
        loop {
            let served = self.cluster.partitions().await?;
            let shares = served.iter().max().zip(served.iter().min());
            if served.iter().sum::<usize>() == PARTITIONS && shares.is_some_and(|(most, least)| most - least <= 1) {
                return Ok(served);
            }
            ensure!(since.elapsed() < SETTLED_LIMIT, "the processors serve {served:?} of {PARTITIONS} partitions");
            tokio::time::sleep(SAMPLE_INTERVAL).await;
        }
    }

    fn table(&self) -> String {
        let mut lines =
            vec![format!("{:42} {:>12} {:>12} {:>12}", "fault", "right after", "longest gap", "wrong views")];
        for Row { fault, right_after, longest_gap, most_wrong, note } in &self.rows {
            let (right_s, gap_s) = (right_after.as_secs_f64(), longest_gap.as_secs_f64());
            lines.push(format!("{fault:42} {right_s:10.1} s {gap_s:10.2} s {most_wrong:12}  {note}"));
        }
        lines.join("\n")
    }

    /// The epochs only went forward, and the log has what was acknowledged and nothing that nobody said.
    async fn end(&mut self) -> anyhow::Result<()> {
        let epochs = self.epochs.take().context("epochs are watched")?.end()?;
        println!("epochs: {} changes in {} answers", epochs.changes, epochs.answers);
        ensure!(epochs.back.is_empty(), "epochs went back: {:#?}", epochs.back);
        ensure!(epochs.newest.len() == PARTITIONS, "every partition has an epoch: {:?}", epochs.newest);
        self.crowd.disperse().await;
        let logged = block_in_place(|| read_reports(&self.cluster.kafka.bootstrap(), PREFIX))?;
        let said = self.crowd.world().reports();
        let mut counts: BTreeMap<(i64, i64), usize> = BTreeMap::new();
        for (user, report) in &logged {
            let sent = said.get(&(*user, report.reported_at_ms)).map(|(place, _)| *place);
            ensure!(sent == Some(report.place), "the log has {report:?} of user {user}, who said {sent:?}");
            *counts.entry((*user, report.reported_at_ms)).or_default() += 1;
        }
        let acknowledged: Vec<_> = said.iter().filter(|(_, (_, acknowledged))| *acknowledged).collect();
        let missing: Vec<_> = acknowledged.iter().filter(|(key, _)| !counts.contains_key(key)).collect();
        let twice = counts.values().filter(|count| **count > 1).count();
        println!(
            "reports: {} sent, {} acknowledged, {} in the log, {twice} of them twice, {} acknowledged and missing",
            said.len(),
            acknowledged.len(),
            logged.len(),
            missing.len()
        );
        ensure!(missing.is_empty(), "acknowledged and not in the log: {:?}", &missing[..missing.len().min(10)]);
        println!("{:.0} s in all", self.begun.elapsed().as_secs_f64());
        Ok(())
    }
}

fn sample(crowd: &Crowd, into: &Mutex<Samples>) {
    let wrong = crowd.world().wrong(Instant::now(), LAG);
    let mut samples = into.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(first) = wrong.first() {
        samples.last_wrong = Some(Instant::now());
        samples.most_wrong = samples.most_wrong.max(wrong.len());
        samples.example.clone_from(first);
    }
}

/// Follows a processor from its start until it is ready; it may not say so before it serves.
async fn watch_restore(joined: &mut Service) -> anyhow::Result<String> {
    let begun = Instant::now();
    let mut waited_for: Vec<String> = Vec::new();
    let mut restoring = BTreeSet::new();
    loop {
        match joined.ready().await {
            Some((true, _)) => break,
            Some((false, body)) if !waited_for.contains(&body) => waited_for.push(body),
            _ => {}
        }
        ensure!(begun.elapsed() < RIGHT_LIMIT, "not ready: {waited_for:#?}\n{}", joined.nearby.stderr());
        restoring.insert(joined.gauge("nearby_processor_state", "of=\"positions\"").await.unwrap_or_default() as usize);
        tokio::time::sleep(READY_POLL).await;
    }
    let ready_s = begun.elapsed().as_secs_f64();
    let partitions = joined.gauge("nearby_processor_state", "of=\"partitions\"").await?;
    let positions = joined.gauge("nearby_processor_state", "of=\"positions\"").await?;
    println!("         {waited_for:?}");
    ensure!(partitions > 0.0, "ready after {ready_s:.2} s without serving anything; before it said {waited_for:#?}");
    let expected = (ELSEWHERE + NEIGHBOURS * NEIGHBOURHOODS * 7 / 10) as f64;
    ensure!(positions >= expected, "ready with {positions} positions, expected at least {expected}");
    ensure!(waited_for.iter().any(|body| body.contains("restoring")), "it never said that it restores: {waited_for:?}");
    ensure!(restoring.len() > 1, "its metrics do not say how far it has come: {restoring:?}");
    let log = joined.nearby.stderr();
    ensure!(log.contains("positions restored"), "its log does not say that it has restored: {log}");
    Ok(format!("ready after {ready_s:.2} s with {positions} positions"))
}
