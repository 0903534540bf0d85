//! A sink process as users start it, catching up, beside a bare binary `COPY` of the very same rows, in the same order, into the
//! very same table with the same indexes, each time into a fresh partition; the two take turns.
//!
//! Postgres flushes to disk here, as it does not in the tests.

use crate::cpu;
use crate::reports::report;
use crate::workload::{Move, World, user_id};
use anyhow::{Context, ensure};
use nearby_e2e::http;
use nearby_e2e::kafka::Kafka as Broker;
use nearby_e2e::nearby::Nearby;
use nearby_e2e::postgres::Postgres;
use nearby_e2e::process::{Home, send_signal};
use nearby_schemas::codec::Codec;
use nearby_schemas::partitioning::partition_of;
use nearby_service::kafka::Kafka;
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::util::Timeout;
use std::path::Path;
use std::time::{Duration, Instant};

const USERS: u32 = 20_000;
const CENTRES: u32 = 20;
const START_LIMIT: Duration = Duration::from_secs(60);
const CAUGHT_UP_LIMIT: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(10);
/// Reports whose delay is measured.
const DELAYED: usize = 50;
/// As a server that is to keep what it was given.
const POSTGRES: &[&str] = &["fsync=on", "max_wal_size=4GB"];
/// Of the topic whose reading is weighed.
const PARTITIONS: i32 = 4;
const COLUMNS: &str = "user_id, reported_at, received_at, lat, lon, accuracy_m, speed_mps, heading_deg, cell, topic, \
                       kafka_partition, kafka_offset";

/// Settings of `nearby-bench sink`.
#[derive(clap::Args)]
pub struct Settings {
    /// Partitions of the topic, one table each
    #[arg(long, value_delimiter = ',', default_value = "1,4,16")]
    partitions: Vec<i32>,
    /// Reports of a run
    #[arg(long, default_value_t = 1_000_000)]
    reports: usize,
    /// Pairs of runs, sink and bare
    #[arg(long, default_value_t = 3)]
    pairs: usize,
    /// More arguments for the sink, separated by spaces
    #[arg(long, default_value = "")]
    sink_arguments: String,
    /// Instead of all this: how late a report arrives in the history at 10 a second
    #[arg(long)]
    delay: bool,
}

/// What one run has cost.
#[derive(Clone, Copy)]
struct Run {
    rows: f64,
    time: Duration,
    /// Of the sink, or of psql.
    client_s: f64,
    postgres_s: f64,
}

impl Run {
    fn rows_per_s(self) -> f64 {
        self.rows / self.time.as_secs_f64()
    }
}

struct Bench {
    // Ended first.
    sink: Nearby,
    metrics_url: String,
    brokers: String,
    topic: String,
    partitions: i32,
    written: usize,
    world: World,
}

/// Runs and prints.
pub async fn run(settings: &Settings) -> anyhow::Result<()> {
    let broker = tokio::task::spawn_blocking(Broker::start).await.context("starting Kafka")??;
    let postgres = Postgres::start_with(POSTGRES)?;
    println!("{} reports a run, {} pairs, {}", settings.reports, settings.pairs, postgres.psql("select version()")?);
    for partitions in &settings.partitions {
        let mut bench = Bench::start(&broker, &postgres, *partitions, &settings.sink_arguments).await?;
        if settings.delay {
            bench.delay(&postgres).await?;
        } else {
            bench.pairs(&postgres, settings).await?;
        }
        bench.sink.terminate()?;
    }
    Ok(())
}

/// What a million rows cost: CPU-seconds of the sink and of Postgres; and bytes of a row, with its indexes.
pub struct Cost {
    pub client_s: f64,
    pub postgres_s: f64,
    pub bytes: f64,
}

/// Of a sink that catches up with so many reports.
pub async fn cost(reports: usize) -> anyhow::Result<Cost> {
    let broker = tokio::task::spawn_blocking(Broker::start).await.context("starting Kafka")??;
    let postgres = Postgres::start_with(POSTGRES)?;
    let mut bench = Bench::start(&broker, &postgres, PARTITIONS, "").await?;
    let run = bench.catch_up(&postgres, reports).await?;
    let size = "select sum(pg_total_relation_size(relid)) from pg_partition_tree('nearby.location_history')";
    let bytes: f64 = postgres.psql(size)?.parse()?;
    bench.sink.terminate()?;
    let millions = run.rows / 1e6;
    Ok(Cost { client_s: run.client_s / millions, postgres_s: run.postgres_s / millions, bytes: bytes / run.rows })
}

/// The bare COPY alone: rows/s, and CPU-seconds of psql and Postgres per million rows, of each run.
pub async fn bare(reports: usize, runs: usize) -> anyhow::Result<Vec<(f64, f64)>> {
    let broker = tokio::task::spawn_blocking(Broker::start).await.context("starting Kafka")??;
    let postgres = Postgres::start_with(POSTGRES)?;
    let mut bench = Bench::start(&broker, &postgres, PARTITIONS, "").await?;
    // These are the rows.
    bench.catch_up(&postgres, reports).await?;
    bench.sink.terminate()?;
    let folder = Home::new("rows")?;
    let mut figures = Vec::new();
    for _ in 0..runs {
        let run = bare_copy(&postgres, &folder.path().join("rows"))?;
        figures.push((run.rows_per_s(), (run.client_s + run.postgres_s) / run.rows * 1e6));
    }
    Ok(figures)
}

impl Bench {
    async fn start(
        broker: &Broker,
        postgres: &Postgres,
        partitions: i32,
        sink_arguments: &str,
    ) -> anyhow::Result<Bench> {
        let (brokers, prefix) = (broker.bootstrap(), format!("p{partitions}."));
        let kafka = Kafka::at(brokers.clone(), &prefix);
        kafka.create_standing_topics(partitions).await?;
        let listen = format!("127.0.0.1:{}", nearby_e2e::ports::free_port()?);
        let database = postgres.url();
        let arguments = ["sink", "--brokers", &brokers, "--topic-prefix", &prefix, "--listen", &listen];
        let more = sink_arguments.split_whitespace();
        let arguments: Vec<&str> = arguments.into_iter().chain(more).collect();
        let mut sink = Nearby::start(&arguments, &[("NEARBY_DATABASE_URL", &database)])?;
        sink.wait_line("ready ", START_LIMIT)?;
        let (metrics_url, topic) = (format!("http://{listen}/metrics"), kafka.topics.location_events());
        let mut bench =
            Bench { sink, metrics_url, brokers, topic, partitions, written: 0, world: World::new(USERS, CENTRES) };
        // The group has given it everything once it has written something of every partition.
        let few = bench.moves(10_000);
        bench.write(&few)?;
        bench.caught_up().await?;
        Ok(bench)
    }

    async fn pairs(&mut self, postgres: &Postgres, settings: &Settings) -> anyhow::Result<()> {
        let folder = Home::new("rows")?;
        let file = folder.path().join("rows");
        let (mut ours, mut bare) = (Vec::new(), Vec::new());
        for _ in 0..settings.pairs {
            ours.push(self.catch_up(postgres, settings.reports).await?);
            bare.push(bare_copy(postgres, &file)?);
        }
        println!("\n{} partitions", self.partitions);
        print("sink", &ours);
        print("bare", &bare);
        let ratios = ours.iter().zip(&bare).map(|(ours, bare)| ours.rows_per_s() / bare.rows_per_s());
        println!("  rows/s, sink to bare: {}", figures(ratios, 2));
        Ok(())
    }

    /// Everything is written while the sink stands still; then it catches up.
    async fn catch_up(&mut self, postgres: &Postgres, reports: usize) -> anyhow::Result<Run> {
        let moves = self.moves(reports);
        fresh_partitions(postgres)?;
        send_signal(self.sink.pid(), "STOP")?;
        self.write(&moves)?;
        postgres.psql("checkpoint")?;
        let server = postgres.pid().context("Postgres runs")?;
        let (client_s, postgres_s) = (cpu::of_process(self.sink.pid())?, cpu::of_family(server)?);
        let began = Instant::now();
        send_signal(self.sink.pid(), "CONT")?;
        self.caught_up().await?;
        Ok(Run {
            rows: as_f64(reports),
            time: began.elapsed(),
            client_s: cpu::of_process(self.sink.pid())? - client_s,
            postgres_s: cpu::of_family(server)? - postgres_s,
        })
    }

    async fn caught_up(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + CAUGHT_UP_LIMIT;
        let counter = "nearby_sink_rows_total{table=\"location_history\"}";
        loop {
            let text = http::get(&self.metrics_url).await?.text();
            let rows = text.lines().find_map(|line| line.strip_prefix(counter)?.trim().parse::<f64>().ok());
            if rows.is_some_and(|rows| rows >= as_f64(self.written)) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "not caught up within {CAUGHT_UP_LIMIT:?}: {}", self.sink.stderr());
            tokio::time::sleep(POLL).await;
        }
    }

    fn moves(&mut self, count: usize) -> Vec<Move> {
        std::iter::repeat_with(|| self.world.round()).flatten().take(count).collect()
    }

    fn producer(&self) -> anyhow::Result<ThreadedProducer<DefaultProducerContext>> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers).set("linger.ms", "20");
        config.set("queue.buffering.max.messages", "2000000").set("delivery.report.only.error", "true");
        config.create().context("a producer")
    }

    fn write(&mut self, moves: &[Move]) -> anyhow::Result<()> {
        let producer = self.producer()?;
        self.send(&producer, moves)
    }

    /// Until all are acknowledged.
    fn send(&mut self, producer: &ThreadedProducer<DefaultProducerContext>, moves: &[Move]) -> anyhow::Result<()> {
        let codec = Codec::new();
        for made in moves {
            let record = report(&self.topic, &codec, *made);
            let mut sent: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&self.topic);
            sent.partition = Some(partition_of(user_id(made.0), self.partitions));
            sent.key = record.key.as_deref();
            sent.payload = record.value.as_deref();
            producer.send(sent).map_err(|(error, _)| error).context("handing a report to the producer")?;
        }
        producer.flush(Timeout::After(Duration::from_secs(60))).context("writing reports")?;
        self.written += moves.len();
        Ok(())
    }

    /// From the acknowledgement of a report to its row, as somebody sees it who asks all the time.
    async fn delay(&mut self, postgres: &Postgres) -> anyhow::Result<()> {
        let mut delays = Vec::new();
        // One for all: to end one takes longer than what is measured here.
        let producer = self.producer()?;
        for made in self.moves(DELAYED) {
            let due = Instant::now() + Duration::from_millis(100);
            self.send(&producer, &[made])?;
            let began = Instant::now();
            let written = format!(
                "select coalesce(sum(next_offset), 0) >= {} from nearby.sink_offsets where topic = '{}'",
                self.written, self.topic
            );
            while postgres.psql(&written)? != "t" {
                ensure!(began.elapsed() < CAUGHT_UP_LIMIT, "it does not arrive: {}", self.sink.stderr());
            }
            delays.push(began.elapsed().as_secs_f64() * 1_000.0);
            tokio::time::sleep(due.saturating_duration_since(Instant::now())).await;
        }
        println!(
            "\n{} partitions, 10 reports/s: in the history after {} ms",
            self.partitions,
            figures(delays.into_iter(), 0)
        );
        Ok(())
    }
}

/// Empties the history; the partitions of today and tomorrow are new, without a page.
fn fresh_partitions(postgres: &Postgres) -> anyhow::Result<()> {
    postgres.psql("truncate nearby.location_history").map(drop)
}

/// What the sink wrote, once more, by psql.
fn bare_copy(postgres: &Postgres, file: &Path) -> anyhow::Result<Run> {
    let name = file.display();
    let rows: f64 = postgres.psql("select count(*) from nearby.location_history")?.parse()?;
    // In the order in which it lies there, which is that of arrival.
    postgres
        .psql(&format!("\\copy (select {COLUMNS} from nearby.location_history) to '{name}' with (format binary)"))?;
    fresh_partitions(postgres)?;
    postgres.psql("checkpoint")?;
    let server = postgres.pid().context("Postgres runs")?;
    let (client_s, postgres_s) = (children_s()?, cpu::of_family(server)?);
    let began = Instant::now();
    postgres.psql(&format!("\\copy nearby.location_history ({COLUMNS}) from '{name}' with (format binary)"))?;
    let time = began.elapsed();
    Ok(Run { rows, time, client_s: children_s()? - client_s, postgres_s: cpu::of_family(server)? - postgres_s })
}

/// CPU-seconds of the programs that this one has run.
fn children_s() -> anyhow::Result<f64> {
    cpu::of_children_that_ended(std::process::id())
}

fn print(name: &str, runs: &[Run]) {
    let each = |of: fn(&Run) -> f64, decimals| figures(runs.iter().map(of), decimals);
    println!(
        "  {name}: {} thousand rows/s; CPU-seconds per million rows: {} and in Postgres {}",
        each(|run| run.rows_per_s() / 1e3, 0),
        each(|run| run.client_s / run.rows * 1e6, 2),
        each(|run| run.postgres_s / run.rows * 1e6, 2),
    );
}

/// Minimum, median, maximum.
fn figures(figures: impl Iterator<Item = f64>, decimals: usize) -> String {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    let at = |place: usize| figures.get(place).copied().unwrap_or(f64::NAN);
    let (least, median, most) = (at(0), at(figures.len() / 2), at(figures.len().saturating_sub(1)));
    format!("{median:.decimals$} ({least:.decimals$} to {most:.decimals$})")
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn as_f64(count: usize) -> f64 {
    count as f64
}
