//! A processor process as users start it, on a broker on the same cores: how fast it catches up, whether it keeps up with a
//! steady rate, and what each of its threads costs.

use crate::cluster::Cluster;
use crate::cpu;
use crate::workload::{Move, World, user_id};
use anyhow::{Context, ensure};
use nearby_e2e::http;
use nearby_e2e::nearby::Nearby;
use nearby_schemas::codec::Codec;
use nearby_schemas::partitioning::partition_of;
use nearby_schemas::{LocationEvent, Position, Source, TimestampMs};
use nearby_service::append::Outgoing;
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use rdkafka::util::Timeout;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

pub const CENTRES: u32 = 20;
const START_LIMIT: Duration = Duration::from_secs(300);
const CATCH_UP_LIMIT: Duration = Duration::from_secs(300);
/// Shorter than the session timeout of the group, or the processor would come back to strange partitions.
const STANDS_STILL_MAX: Duration = Duration::from_secs(8);
const POLL: Duration = Duration::from_millis(50);

/// Settings of `nearby-bench processor`.
#[derive(clap::Args)]
pub struct Settings {
    /// Numbers of gateways, one run each
    #[arg(long, value_delimiter = ',', default_value = "2,40,1000")]
    gateways: Vec<usize>,
    /// Users, all of them connected
    #[arg(long, default_value_t = 20_000)]
    users: u32,
    /// Friends of each
    #[arg(long, default_value_t = 40)]
    friends: u32,
    /// Reports to catch up with
    #[arg(long, default_value_t = 1_500_000)]
    reports: usize,
    /// Steady reports a second; 0 leaves that out
    #[arg(long, default_value_t = 334_000)]
    rate_per_s: u64,
    /// How long these last, in seconds
    #[arg(long, default_value_t = 20)]
    steady_s: u64,
    /// Engine threads of the processor
    #[arg(long, default_value_t = 1)]
    engine_threads: usize,
}

/// A processor that serves all of W.
pub struct Served {
    pub cluster: Cluster,
    pub processor: Nearby,
    metrics_url: String,
    world: World,
}

/// What a processor and its broker have spent so far, and what they got done.
struct Spent {
    at: Instant,
    processor_s: f64,
    broker_s: f64,
    threads: BTreeMap<String, f64>,
    counters: Counters,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    reports: f64,
    notices: f64,
    batches: f64,
    batch_bytes: f64,
    unacknowledged: f64,
}

/// Runs and prints.
pub async fn run(settings: &Settings) -> anyhow::Result<()> {
    println!("{} users, {} friends each, {} engine threads", settings.users, settings.friends, settings.engine_threads);
    for gateways in &settings.gateways {
        let mut served = Served::start(settings.users, settings.friends, settings.engine_threads, *gateways).await?;
        println!("\n{gateways} gateways");
        served.catch_up(settings.reports).await?;
        if settings.rate_per_s > 0 {
            served.keep_up(settings.rate_per_s, Duration::from_secs(settings.steady_s)).await?;
        }
        served.processor.terminate()?;
    }
    Ok(())
}

impl Served {
    /// Everybody has reported once, on this many gateways.
    pub async fn start(users: u32, friends: u32, engine_threads: usize, gateways: usize) -> anyhow::Result<Served> {
        let cluster = Cluster::start(gateways).await?;
        let mut world = World::new(users, CENTRES);
        let friends = world.friendships(friends);
        cluster.connect(&friends).await?;
        cluster.report_all(&world).await?;
        let port = nearby_e2e::ports::free_port()?;
        let (listen, threads) = (format!("127.0.0.1:{port}"), engine_threads.to_string());
        let arguments =
            ["processor", "--brokers", &cluster.kafka.brokers, "--listen", &listen, "--engine-threads", &threads];
        let mut processor = Nearby::start(&arguments, &[])?;
        processor.wait_line("ready ", START_LIMIT)?;
        Ok(Served { cluster, processor, metrics_url: format!("http://{listen}/metrics"), world })
    }

    /// Everything is written while the processor stands still; then it catches up.
    async fn catch_up(&mut self, count: usize) -> anyhow::Result<()> {
        let moves = self.moves(count);
        let mut caught_up = 0;
        let mut figures = Vec::new();
        let before_all = self.spent().await?;
        while caught_up < moves.len() {
            nearby_e2e::process::send_signal(self.processor.pid(), "STOP")?;
            let written = self.write(&moves[caught_up..], None, STANDS_STILL_MAX)?;
            let before = self.spent_without_counters()?;
            nearby_e2e::process::send_signal(self.processor.pid(), "CONT")?;
            caught_up += written;
            self.wait_for(before_all.counters.reports + as_f64(caught_up)).await?;
            let after = self.spent().await?;
            figures.push(as_f64(written) / (after.at - before.at).as_secs_f64());
            // The rest of what it has to tell.
            tokio::time::sleep(Duration::from_millis(500)).await;
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

    fn moves(&mut self, count: usize) -> Vec<Move> {
        let mut moves = Vec::with_capacity(count);
        while moves.len() < count {
            moves.extend(self.world.round());
        }
        moves.truncate(count);
        moves
    }

    /// Writes reports, at a rate or as fast as possible, for at most so long; how many it wrote.
    fn write(&self, moves: &[Move], rate_per_s: Option<u64>, limit: Duration) -> anyhow::Result<usize> {
        // Not what is measured: the cheapest producer there is.
        let producer: ThreadedProducer<rdkafka::producer::DefaultProducerContext> = ClientConfig::new()
            .set("bootstrap.servers", &self.cluster.kafka.brokers)
            .set("linger.ms", "20")
            .set("queue.buffering.max.messages", "2000000")
            .set("delivery.report.only.error", "true")
            .create()?;
        let (topic, codec) = (self.cluster.kafka.topics.location_events(), Codec::new());
        let began = Instant::now();
        let mut written = 0;
        for together in moves.chunks(1_000) {
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
            ensure!(Instant::now() < deadline, "not caught up within {CATCH_UP_LIMIT:?}: {}", self.processor.stderr());
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    async fn counters(&self) -> anyhow::Result<Counters> {
        let text = http::get(&self.metrics_url).await?.text();
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|value| value.parse().ok()).unwrap_or_default()
        };
        Ok(Counters {
            reports: value("nearby_processor_reports_total"),
            notices: value("nearby_processor_notices_total"),
            batches: value("nearby_batches_total"),
            batch_bytes: value("nearby_batch_bytes_total"),
            unacknowledged: value("nearby_unacknowledged_batches_total"),
        })
    }

    async fn spent(&self) -> anyhow::Result<Spent> {
        Ok(Spent { counters: self.counters().await?, ..self.spent_without_counters()? })
    }

    fn spent_without_counters(&self) -> anyhow::Result<Spent> {
        let broker = self.cluster.broker.pid().context("the broker runs")?;
        Ok(Spent {
            at: Instant::now(),
            processor_s: cpu::of_process(self.processor.pid())?,
            broker_s: cpu::of_process(broker)?,
            threads: cpu::by_thread(self.processor.pid())?,
            counters: Counters::default(),
        })
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
            cpu::resident_bytes(self.processor.pid()).map_or(f64::NAN, |bytes| bytes as f64 / 1024.0 / 1024.0),
        );
        let unacknowledged = after.counters.unacknowledged - before.counters.unacknowledged;
        if unacknowledged > 0.0 {
            let log = self.processor.stderr();
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

/// A move as a record.
pub fn report(topic: &str, codec: &Codec<LocationEvent>, made: Move) -> Outgoing {
    report_at(topic, codec, made, TimestampMs::now())
}

/// A move at this time as a record.
pub fn report_at(topic: &str, codec: &Codec<LocationEvent>, (user, place): Move, now: TimestampMs) -> Outgoing {
    let position = Position {
        lat_e7: place.lat_e7,
        lon_e7: place.lon_e7,
        accuracy_m: Some(12.0),
        speed_mps: Some(1.5),
        heading_deg: None,
    };
    let event = LocationEvent {
        user_id: user_id(user),
        reported_at: now,
        received_at: now,
        position: Some(position),
        source: Source::Http,
    };
    Outgoing {
        topic: topic.to_owned(),
        partition: Some(partition_of(user_id(user), crate::cluster::PARTITIONS)),
        key: Some(user_id(user).to_string().into_bytes()),
        value: Some(codec.encode(&event)),
        ..Outgoing::default()
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn as_f64(count: usize) -> f64 {
    count as f64
}
