//! A processor process as users start it, on a broker on the same cores: how fast it catches up, whether it keeps up with a
//! steady rate, and what each of its threads costs.

use crate::cluster::{Cluster, remove, start_broker};
use crate::cpu;
use crate::processor::{Counters, Processor};
use crate::reports::report;
use crate::workload::{Move, World};
use anyhow::{Context, ensure};
use nearby_e2e::kafka;
use nearby_schemas::codec::Codec;
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use rdkafka::util::Timeout;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub const CENTRES: u32 = 20;
const CATCH_UP_LIMIT: Duration = Duration::from_secs(300);
/// Shorter than the session timeout of the group, or the processor would come back to strange partitions.
const STANDS_STILL_MAX: Duration = Duration::from_secs(8);
const LAST_BATCHES: Duration = Duration::from_millis(500);
/// The system keeps so many characters of a thread's name.
const THREAD_NAME: usize = 15;
/// Of a load that is called steady.
const BEHIND_MAX: Duration = Duration::from_secs(1);
/// Steady rates.
pub const SLOW_PER_S: u64 = 50_000;
pub const FAST_PER_S: u64 = 150_000;
/// Before each measurement, where topics are few.
pub const WARM_UP: Duration = Duration::from_secs(3);
/// A topic's first batch is the dearest, and there may be a thousand.
pub const TOPICS_WARM_UP: Duration = Duration::from_secs(8);
/// The broker's virtual machine compiles what runs often, and only then.
const BROKER_WARM_UP: Duration = Duration::from_secs(14);
const BROKER_WARM_UP_GATEWAYS: usize = 40;
const REBALANCED: Duration = Duration::from_secs(8);
/// At a steady rate reports are written in so many requests a second, and handed over so many times.
pub const REQUESTS_PER_S: usize = 1_000;
const CHUNKS_PER_S: usize = 1_000;
const POLL: Duration = Duration::from_millis(50);

/// Settings of `nearby-bench processor`.
#[derive(Clone, clap::Args)]
pub struct Settings {
    /// Numbers of gateways, one run each
    #[arg(long, value_delimiter = ',', default_value = "2,40,1000")]
    gateways: Vec<usize>,
    #[command(flatten)]
    pub load: Load,
    /// Then so many users, with the first of these numbers of gateways; 0 leaves them out
    #[arg(long, default_value_t = 1_000_000)]
    many_users: u32,
    /// Reports to catch up with
    #[arg(long, default_value_t = 1_500_000)]
    reports: usize,
    /// Steady reports a second; 0 leaves that out
    #[arg(long, default_value_t = 334_000)]
    rate_per_s: u64,
    /// How long these last, in seconds
    #[arg(long, default_value_t = 20)]
    steady_s: u64,
}

/// Who there is, and who serves them.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Load {
    /// Users
    #[arg(long, default_value_t = 20_000)]
    pub users: u32,
    /// Part of them who are connected
    #[arg(long, default_value_t = 1.0)]
    pub connected: f64,
    /// Friends of each
    #[arg(long, default_value_t = 40)]
    pub friends: u32,
    /// Who is near, in metres
    #[arg(long, default_value_t = 8_000)]
    pub radius_m: u32,
    /// Processors
    #[arg(long, default_value_t = 1)]
    pub processors: usize,
    /// Engine threads of each
    #[arg(long, default_value_t = 1)]
    pub engine_threads: usize,
}

/// A broker that has worked for a while, as one in service has.
pub async fn warm_broker() -> anyhow::Result<Arc<kafka::Kafka>> {
    let broker = start_broker().await?;
    let cluster = Cluster::on(Arc::clone(&broker), "warm.", BROKER_WARM_UP_GATEWAYS).await?;
    let mut served = Served::start(&Load::W, cluster).await?;
    served.warm_up(SLOW_PER_S, BROKER_WARM_UP / 2).await?;
    served.warm_up(FAST_PER_S, BROKER_WARM_UP / 2).await?;
    served.end().await?;
    Ok(broker)
}

/// Processors that serve all of W.
pub struct Served {
    pub cluster: Cluster,
    processors: Vec<Processor>,
    world: World,
    viewers: u32,
}

/// What a report costs, in microseconds of CPU time, and what comes of it.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// All processors together.
    pub processors_us: f64,
    /// The reading thread of one of them.
    pub reading_us: f64,
    pub broker_us: f64,
    pub notices: f64,
    pub batches: f64,
    /// Bytes of a notice.
    pub notice_bytes: f64,
}

/// What a processor and its broker have spent so far, and what they got done.
struct Spent {
    at: Instant,
    processor_s: f64,
    broker_s: f64,
    threads: BTreeMap<String, f64>,
    counters: Counters,
}

/// Runs and prints.
pub async fn run(settings: &Settings) -> anyhow::Result<()> {
    let broker = warm_broker().await?;
    let mut runs: Vec<(Load, usize)> = settings.gateways.iter().map(|gateways| (settings.load, *gateways)).collect();
    if settings.many_users > 0 {
        // Before there are more gateways, whose topics stay.
        runs.insert(1, (Load { users: settings.many_users, ..settings.load }, runs[0].1));
    }
    for (number, (load, gateways)) in runs.into_iter().enumerate() {
        let cluster = Cluster::on(Arc::clone(&broker), &format!("run{number}."), gateways).await?;
        let mut served = Served::start(&load, cluster).await?;
        println!("\n{load}, {gateways} gateways");
        served.warm_up(SLOW_PER_S, TOPICS_WARM_UP).await?;
        // What is on its way while the processor stands still would time out.
        tokio::time::sleep(LAST_BATCHES).await;
        served.catch_up(settings.reports).await?;
        if settings.rate_per_s > 0 {
            served.keep_up(settings.rate_per_s, Duration::from_secs(settings.steady_s)).await?;
        }
        served.end().await?;
    }
    Ok(())
}

impl Load {
    /// The workload of the engine's benchmark, and one processor.
    pub const W: Load =
        Load { users: 20_000, connected: 1.0, friends: 40, radius_m: 8_000, processors: 1, engine_threads: 1 };

    /// The first so many users are connected.
    fn viewers(&self) -> u32 {
        (f64::from(self.users) * self.connected) as u32
    }
}

impl std::fmt::Display for Load {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Load { users, connected, friends, radius_m, processors, engine_threads } = self;
        write!(
            f,
            "{users} users, {connected} connected, {friends} friends each, {radius_m} m, {processors} processors with {engine_threads} engine threads"
        )
    }
}

impl Served {
    /// Everybody's list, session and place, and processors that have restored it.
    pub async fn start(load: &Load, cluster: Cluster) -> anyhow::Result<Served> {
        let mut world = World::new(load.users, CENTRES);
        let friends = world.friendships(load.friends);
        Served::of(load, world, &friends, cluster).await
    }

    /// The same of people who are there already.
    pub async fn of(load: &Load, world: World, friends: &[Vec<u32>], cluster: Cluster) -> anyhow::Result<Served> {
        cluster.write_lists(friends).await?;
        cluster.open_sessions(load.viewers()).await?;
        cluster.report_all(&world).await?;
        let started = (0..load.processors).map(|_| Processor::start(&cluster, load)).collect::<Result<Vec<_>, _>>()?;
        if load.processors > 1 {
            // The group has given each its part, and the owners before have seen it.
            tokio::time::sleep(REBALANCED).await;
        }
        Ok(Served { cluster, processors: started, world, viewers: load.viewers() })
    }

    /// Ends the processors, and removes the topics: the next load is not to pay for these. An end in order would wait for
    /// other processors to take over.
    pub async fn end(mut self) -> anyhow::Result<()> {
        self.processors.iter_mut().try_for_each(|processor| processor.program.kill9())?;
        remove(&self.cluster.kafka, &self.cluster.prefix).await
    }

    /// Everything is written while the processor stands still; then it catches up.
    async fn catch_up(&mut self, count: usize) -> anyhow::Result<()> {
        let moves = self.moves(count);
        let mut caught_up = 0;
        let mut figures = Vec::new();
        let before_all = self.spent().await?;
        while caught_up < moves.len() {
            let (written, before) = self.write_while_still(&moves[caught_up..])?;
            caught_up += written;
            self.wait_for(before_all.counters.reports + as_f64(caught_up)).await?;
            let after = self.spent().await?;
            figures.push(as_f64(written) / (after.at - before.at).as_secs_f64());
            // The rest of what it has to tell.
            tokio::time::sleep(LAST_BATCHES).await;
        }
        let after = self.spent().await?;
        let rates: Vec<String> = figures.iter().map(|rate| format!("{:.0}", rate / 1_000.0)).collect();
        println!("  catching up: {} thousand reports/s (each time it had stood still)", rates.join(", "));
        self.print(&before_all, &after);
        Ok(())
    }

    /// Reports at a steady rate.
    async fn keep_up(&mut self, rate_per_s: u64, time: Duration) -> anyhow::Result<()> {
        let count = usize::try_from(rate_per_s * time.as_secs())?;
        let moves = self.moves(count);
        let before = self.spent().await?;
        let written = self.write(&moves, Some(rate_per_s), time * 2)?;
        let took = before.at.elapsed();
        let behind = before.counters.reports + as_f64(written) - self.counters().await?.reports;
        self.wait_for(before.counters.reports + as_f64(written)).await?;
        let after = self.spent().await?;
        println!(
            "  steady: {:.0} thousand reports/s written for {:.1} s; at their end it was {:.0} ms behind",
            as_f64(written) / took.as_secs_f64() / 1_000.0,
            took.as_secs_f64(),
            behind / as_f64(written) * took.as_secs_f64() * 1_000.0,
        );
        self.print(&before, &after);
        Ok(())
    }

    /// Reports at a rate, whether the processors keep up or not; then waits for them.
    pub async fn warm_up(&mut self, rate_per_s: u64, time: Duration) -> anyhow::Result<()> {
        let moves = self.moves(usize::try_from(rate_per_s * time.as_secs())?);
        let heard = self.counters().await?.reports;
        let written = self.write(&moves, Some(rate_per_s), time * 2)?;
        self.wait_for(heard + as_f64(written)).await
    }

    /// What each report of a steady load costs. Fails if the processors do not keep up.
    pub async fn cost(&mut self, rate_per_s: u64, time: Duration) -> anyhow::Result<Cost> {
        let moves = self.moves(usize::try_from(rate_per_s * time.as_secs())?);
        let before = self.spent().await?;
        let written = self.write(&moves, Some(rate_per_s), time * 2)?;
        let behind = before.counters.reports + as_f64(written) - self.counters().await?.reports;
        ensure!(
            before.at.elapsed() < time + BEHIND_MAX && behind < BEHIND_MAX.as_secs_f64() * rate_per_s as f64,
            "{rate_per_s} reports/s are too many here: {written} took {:?}, and {behind} had not been read then",
            before.at.elapsed()
        );
        self.wait_for(before.counters.reports + as_f64(written)).await?;
        let after = self.spent().await?;
        tokio::time::sleep(LAST_BATCHES).await;
        let unacknowledged = self.counters().await?.unacknowledged;
        ensure!(unacknowledged <= before.counters.unacknowledged, "batches were lost: {}", self.log());
        let each = |total: f64| total / as_f64(written);
        let (from, to) = (before.counters, after.counters);
        let mut reader = format!("read {}location-events", self.cluster.prefix);
        reader.truncate(THREAD_NAME);
        let reading = |spent: &Spent| spent.threads.get(&reader).copied().unwrap_or_default();
        Ok(Cost {
            processors_us: each(after.processor_s - before.processor_s) * 1e6,
            reading_us: each(reading(&after) - reading(&before)) * 1e6 / as_f64(self.processors.len()),
            broker_us: each(after.broker_s - before.broker_s) * 1e6,
            notices: each(to.notices - from.notices),
            batches: each(to.batches - from.batches),
            notice_bytes: (to.batch_bytes - from.batch_bytes) / (to.notices - from.notices),
        })
    }

    /// CPU-microseconds of the broker to take in a report and to hand it to a processor, when there are as many in a request as go in: reports are
    /// written as fast as possible while the processors stand still.
    pub async fn broker_in_bulk_us(&mut self, count: usize) -> anyhow::Result<(f64, f64)> {
        let moves = self.moves(count);
        let heard = self.counters().await?.reports;
        let before = self.spent_without_counters()?.broker_s;
        let (written, Spent { broker_s: taken, .. }) = self.write_while_still(&moves)?;
        self.wait_for(heard + as_f64(written)).await?;
        let read = self.spent_without_counters()?.broker_s;
        Ok(((taken - before) / as_f64(written) * 1e6, (read - taken) / as_f64(written) * 1e6))
    }

    /// Writes as fast as possible while the processors stand still; how many, and what was spent when they go on.
    fn write_while_still(&self, moves: &[Move]) -> anyhow::Result<(usize, Spent)> {
        self.signal("STOP")?;
        let written = self.write(moves, None, STANDS_STILL_MAX)?;
        let spent = self.spent_without_counters()?;
        self.signal("CONT")?;
        Ok((written, spent))
    }

    /// Stops all processors, or lets them go on.
    pub fn signal(&self, signal: &str) -> anyhow::Result<()> {
        self.pids().try_for_each(|pid| nearby_e2e::process::send_signal(pid, signal))
    }

    /// The processors'.
    pub fn pids(&self) -> impl Iterator<Item = u32> {
        self.processors.iter().map(|processor| processor.program.pid())
    }

    fn moves(&mut self, count: usize) -> Vec<Move> {
        let mut moves = Vec::with_capacity(count);
        while moves.len() < count {
            let round = self.world.round();
            // If nobody is connected, everybody reports all the same.
            moves.extend(round.into_iter().filter(|(user, _)| *user < self.viewers || self.viewers == 0));
        }
        moves.truncate(count);
        moves
    }

    /// Writes reports, at a rate or as fast as possible, for at most so long; how many it wrote.
    fn write(&self, moves: &[Move], rate_per_s: Option<u64>, limit: Duration) -> anyhow::Result<usize> {
        // Not what is measured: the cheapest producer there is.
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.cluster.kafka.brokers)
            .set("linger.ms", "20")
            .set("queue.buffering.max.messages", "2000000")
            .set("delivery.report.only.error", "true");
        let mut together = 1_000;
        if let Some(rate_per_s) = rate_per_s {
            // As from many gateways, reports come all the time: not all at once every so often, but a partition's when they fill a request.
            let rate_per_s = usize::try_from(rate_per_s)?;
            let a_request = rate_per_s / REQUESTS_PER_S;
            config.set("linger.ms", "200").set("batch.num.messages", a_request.max(1).to_string());
            together = (rate_per_s / CHUNKS_PER_S).max(1);
        }
        let producer: ThreadedProducer<rdkafka::producer::DefaultProducerContext> = config.create()?;
        let (topic, codec) = (self.cluster.kafka.topics.location_events(), Codec::new());
        let began = Instant::now();
        let mut written = 0;
        for together in moves.chunks(together) {
            if began.elapsed() >= limit {
                break;
            }
            for made in together {
                let record = report(&topic, &codec, *made);
                let mut sent: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&topic);
                sent.partition = record.partition;
                sent.key = record.key.as_deref();
                sent.payload = record.value.as_deref();
                producer.send(sent).map_err(|(error, _)| error).context("handing a report to the producer")?;
            }
            written += together.len();
            if let Some(rate_per_s) = rate_per_s {
                let due = Duration::from_secs_f64(as_f64(written) / as_f64(usize::try_from(rate_per_s)?));
                std::thread::sleep(due.saturating_sub(began.elapsed()));
            }
        }
        producer.flush(Timeout::After(Duration::from_secs(60))).context("writing reports")?;
        Ok(written)
    }

    /// Reports that the processor has heard since its start.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it counts")]
    pub async fn reports(&self) -> anyhow::Result<usize> {
        Ok(self.counters().await?.reports as usize)
    }

    /// Waits until it has heard so many.
    pub async fn wait_for_reports(&self, reports: usize) -> anyhow::Result<()> {
        self.wait_for(as_f64(reports)).await
    }

    async fn wait_for(&self, reports: f64) -> anyhow::Result<()> {
        let deadline = Instant::now() + CATCH_UP_LIMIT;
        while self.counters().await?.reports < reports {
            ensure!(Instant::now() < deadline, "not caught up within {CATCH_UP_LIMIT:?}: {}", self.log());
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Of all processors together; reports, which each hears, of the one that has heard the least.
    async fn counters(&self) -> anyhow::Result<Counters> {
        let mut all = Counters { reports: f64::INFINITY, ..Counters::default() };
        for processor in &self.processors {
            let Counters { reports, notices, batches, batch_bytes, unacknowledged } = processor.counters().await?;
            all.reports = all.reports.min(reports);
            all.notices += notices;
            all.batches += batches;
            all.batch_bytes += batch_bytes;
            all.unacknowledged += unacknowledged;
        }
        Ok(all)
    }

    fn log(&self) -> String {
        self.processors.iter().map(|processor| processor.program.stderr()).collect()
    }

    async fn spent(&self) -> anyhow::Result<Spent> {
        Ok(Spent { counters: self.counters().await?, ..self.spent_without_counters()? })
    }

    fn spent_without_counters(&self) -> anyhow::Result<Spent> {
        let broker = self.cluster.broker.pid().context("the broker runs")?;
        let mut spent = Spent {
            at: Instant::now(),
            processor_s: 0.0,
            broker_s: cpu::of_process(broker)?,
            threads: BTreeMap::new(),
            counters: Counters::default(),
        };
        for pid in self.pids() {
            spent.processor_s += cpu::of_process(pid)?;
            for (name, seconds) in cpu::by_thread(pid)? {
                *spent.threads.entry(name).or_default() += seconds;
            }
        }
        Ok(spent)
    }

    fn print(&self, before: &Spent, after: &Spent) {
        let millions = (after.counters.reports - before.counters.reports) / 1e6;
        println!(
            "    CPU-seconds per million reports: processor {:.2}, broker {:.2} (which also takes them in)",
            (after.processor_s - before.processor_s) / millions,
            (after.broker_s - before.broker_s) / millions,
        );
        let notices = after.counters.notices - before.counters.notices;
        println!(
            "    {:.1} notices a report, {:.1} bytes a notice, {:.0} notices a batch; {:.0} MiB resident",
            notices / millions / 1e6,
            (after.counters.batch_bytes - before.counters.batch_bytes) / notices,
            notices / (after.counters.batches - before.counters.batches),
            self.pids().map(|pid| cpu::resident_bytes(pid).map_or(f64::NAN, |bytes| bytes as f64)).sum::<f64>()
                / 1024.0
                / 1024.0,
        );
        let unacknowledged = after.counters.unacknowledged - before.counters.unacknowledged;
        if unacknowledged > 0.0 {
            let log = self.log();
            let why = log.lines().find(|line| line.contains("snapshots")).unwrap_or_default();
            println!("    {unacknowledged} batches were not acknowledged; the first: {why}");
        }
        let mut threads: Vec<(&String, f64)> = after
            .threads
            .iter()
            .map(|(name, seconds)| (name, (seconds - before.threads.get(name).unwrap_or(&0.0)) / millions))
            .filter(|(_, seconds)| *seconds >= 0.01)
            .collect();
        threads.sort_by(|a, b| b.1.total_cmp(&a.1));
        let threads: Vec<String> = threads.iter().map(|(name, seconds)| format!("{name} {seconds:.2}")).collect();
        println!("    by thread: {}", threads.join(", "));
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn as_f64(count: usize) -> f64 {
    count as f64
}
