//! The stages of a processor apart, each beside a bare loop that does the least that it has to: so that the next gain is seen.

use crate::cluster::{Cluster, PARTITIONS};
use crate::cpu;
use crate::reports::report;
use crate::workload::arrays::Arrays;
use crate::workload::{Move, World, each_ns, gateway_id, measure, user_id};
use anyhow::{Context, ensure};
use nearby_engine::{Engine, EngineSettings};
use nearby_processor::decider::{Action, Decider};
use nearby_processor::packing::Batch;
use nearby_processor::records::{Decoders, Raw};
use nearby_processor::wake::{Listed, Reported, Sessioned, Source, Wake};
use nearby_schemas::codec::Codec;
use nearby_schemas::codecs::Codecs;
use nearby_schemas::partitioning::partition_of;
use nearby_schemas::{Epoch, TimestampMs};
use nearby_service::Stop;
use nearby_service::kafka::Kafka;
use nearby_service::membership::MembershipEvent;
use nearby_service::reader::{Closed, OutOfLog, Read, Reader, Start};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};
use std::hint::black_box;
use std::sync::mpsc;
use std::time::Duration;

const USERS: u32 = 20_000;
const CENTRES: u32 = 20;
const FRIENDS: u32 = 40;
const GATEWAYS: usize = 2;
/// Reports that wake the engine together, and the rate at which they come: that decides how full the batches get.
const TOGETHER: usize = 1_000;
const RATE_PER_S: u64 = 334_000;
const LIMIT: Duration = Duration::from_secs(120);

/// Settings of `nearby-bench stages`.
#[derive(clap::Args)]
pub struct Settings {
    /// Reports that go through each stage
    #[arg(long, default_value_t = 1_000_000)]
    reports: usize,
    /// Runs of each stage; the median is printed
    #[arg(long, default_value_t = 3)]
    runs: usize,
}

/// What every stage is given.
struct Input {
    runs: usize,
    friends: Vec<Vec<u32>>,
    moves: Vec<Move>,
}

/// The bare loops alone: CPU-seconds per million reports, of each run.
pub struct Bare {
    pub consume: Vec<f64>,
    pub join: Vec<f64>,
    pub produce: Vec<f64>,
}

/// Runs and prints.
pub async fn run(settings: &Settings) -> anyhow::Result<()> {
    let (input, cluster) = Input::new(settings.reports, settings.runs).await?;
    let topic = cluster.kafka.topics.location_events();
    println!("CPU-seconds per million reports, median of {} runs, {} reports each", input.runs, input.moves.len());
    input.consume(&cluster.kafka)?;
    input.decode(&topic);
    let joined = input.join();
    let batches = input.encode(joined);
    input.produce(&cluster.kafka, &batches)
}

/// Runs the bare loops.
pub async fn bare(reports: usize, runs: usize) -> anyhow::Result<Bare> {
    let (input, cluster) = Input::new(reports, runs).await?;
    let consume = input.try_runs(|| poll(&cluster.kafka, reports))?;
    let join = input.bare_join();
    let (batches, count) = (largest(&input.batches()), input.moves.len());
    let produce = input.try_runs(|| produce(&cluster.kafka, "none", &batches, count))?;
    Ok(Bare { consume, join, produce })
}

impl Input {
    /// Also a broker that has all the reports.
    async fn new(reports: usize, runs: usize) -> anyhow::Result<(Input, Cluster)> {
        let mut world = World::new(USERS, CENTRES);
        let friends = world.friendships(FRIENDS);
        let moves = std::iter::repeat_with(|| world.round()).flatten().take(reports).collect();
        let input = Input { runs, friends, moves };
        let cluster = Cluster::start(GATEWAYS).await?;
        let (topic, codec) = (cluster.kafka.topics.location_events(), Codec::new());
        cluster.write(input.moves.iter().map(|made| report(&topic, &codec, *made))).await?;
        Ok((input, cluster))
    }

    fn consume(&self, kafka: &Kafka) -> anyhow::Result<()> {
        let count = self.moves.len();
        let ours = self.try_runs(|| consume(kafka, count))?;
        let bare = self.try_runs(|| poll(kafka, count))?;
        print("consume", "batch call, on the reader's thread", ours, "a poll a record", bare);
        Ok(())
    }

    fn decode(&self, topic: &str) {
        let (decoders, codec) = (Decoders::new(PARTITIONS, &Codecs::default()), Codec::new());
        let record = |made: &Move| report(topic, &codec, *made).value.unwrap_or_default();
        let records: Vec<Vec<u8>> = self.moves.iter().map(record).collect();
        let ours = self.runs(|| {
            measured(records.len(), || {
                for value in &records {
                    let (value, appended_at) = (Some(value.as_slice()), Some(TimestampMs(0)));
                    black_box(decoders.report(Raw { partition: 0, key: None, value, appended_at }).is_ok());
                }
            })
        });
        let bare = self.runs(|| {
            measured(records.len(), || {
                for value in &records {
                    black_box(varints(&value[codec.header().len()..]));
                }
            })
        });
        print("decode", "into its struct, by hand, and checked", ours, "its numbers alone", bare);
    }

    /// Returns the median.
    fn join(&self) -> f64 {
        let world = World::new(USERS, CENTRES);
        let ours = self.runs(|| {
            let (mut engine, mut out) = (world.engine(&self.friends), Vec::new());
            measured(self.moves.len(), || {
                for together in self.moves.chunks(TOGETHER) {
                    crate::workload::reports(&mut engine, 0, together, &mut out);
                    black_box(&mut out).clear();
                }
            })
        });
        print("join", "the engine, with notices", ours, "a loop over arrays, counting", self.bare_join())
    }

    fn bare_join(&self) -> Vec<f64> {
        let world = World::new(USERS, CENTRES);
        self.runs(|| {
            let mut arrays = Arrays::new(&world, &self.friends);
            measured(self.moves.len(), || black_box(self.moves.iter().map(|made| arrays.bare(*made)).sum::<usize>()))
        })
    }

    fn batches(&self) -> Vec<Batch> {
        let mut batches = Vec::new();
        let mut decider = decider(&World::new(USERS, CENTRES), &self.friends);
        decide(&mut decider, &self.moves, |batch| batches.push(batch));
        batches
    }

    fn encode(&self, joined: f64) -> Vec<Batch> {
        let ours = self.runs(|| {
            let mut decider = decider(&World::new(USERS, CENTRES), &self.friends);
            measured(self.moves.len(), || decide(&mut decider, &self.moves, |batch| drop(black_box(batch)))) - joined
        });
        let batches = self.batches();
        let bare = self.runs(|| {
            measured(self.moves.len(), || {
                let mut all = Vec::new();
                batches.iter().for_each(|batch| all.extend_from_slice(&batch.bytes));
                black_box(all);
            })
        });
        print("encode", "notices into batches (join and it, less join)", ours, "a copy of their bytes", bare);
        batches
    }

    fn produce(&self, kafka: &Kafka, batches: &[Batch]) -> anyhow::Result<()> {
        let (bytes, largest) = (bytes(batches), largest(batches));
        for compression in ["none", "lz4"] {
            let count = self.moves.len();
            let ours = self.try_runs(|| produce(kafka, compression, batches, count))?;
            let bare = self.try_runs(|| produce(kafka, compression, &largest, count))?;
            let what = format!("{compression}: {} batches, {} MB", batches.len(), bytes / 1_000_000);
            print("produce", &what, ours, "as many bytes in the largest records", bare);
        }
        Ok(())
    }

    fn runs(&self, run: impl FnMut() -> f64) -> Vec<f64> {
        std::iter::repeat_with(run).take(self.runs).collect()
    }

    fn try_runs(&self, run: impl FnMut() -> anyhow::Result<f64>) -> anyhow::Result<Vec<f64>> {
        std::iter::repeat_with(run).take(self.runs).collect()
    }
}

fn bytes(batches: &[Batch]) -> usize {
    batches.iter().map(|batch| batch.bytes.len()).sum()
}

/// As many bytes in whole batches, as many together as fit into the largest record that a broker takes.
fn largest(batches: &[Batch]) -> Vec<Batch> {
    let (first, largest_bytes) = (&batches[0].bytes, 900_000);
    let largest = Batch { gateway: batches[0].gateway, bytes: first.repeat((largest_bytes / first.len()).max(1)) };
    vec![largest.clone(); bytes(batches) / largest.bytes.len() + 1]
}

/// One line; returns the median of ours.
fn print(stage: &str, what: &str, ours: Vec<f64>, bare_what: &str, bare: Vec<f64>) -> f64 {
    let (ours, bare) = (median(ours), median(bare));
    println!("{stage:8} {ours:6.3}  {what:46} bare {bare:6.3}  {bare_what}");
    ours
}

/// Everything on the thread that calls, in CPU-seconds per million.
fn measured<T>(count: usize, act: impl FnOnce() -> T) -> f64 {
    let (time, _) = measure(act);
    each_ns(time, count) / 1_000.0
}

/// Everything in this process, librdkafka's threads included.
fn measured_all(count: usize, act: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let before = cpu::of_this()?;
    act()?;
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    Ok((cpu::of_this()? - before) / count as f64 * 1e6)
}

fn consume(kafka: &Kafka, count: usize) -> anyhow::Result<f64> {
    measured_all(count, || {
        let (sender, done) = mpsc::channel();
        let mut seen = 0;
        let hear = move |read: Read<'_>| {
            if let Read::Record(record) = read {
                black_box((record.value(), record.appended_at()));
                seen += 1;
            }
            if seen < count { Ok(()) } else { sender.send(()).map_err(|_| Closed).and(Err(Closed)) }
        };
        let topic = kafka.topics.location_events();
        let reader = Reader::start(kafka, topic, OutOfLog::Report, Stop::new(), hear)?;
        reader.add(&(0..PARTITIONS).map(|partition| (partition, Start::Beginning)).collect::<Vec<_>>(), 0);
        done.recv_timeout(LIMIT).context("reading all reports")
    })
}

fn poll(kafka: &Kafka, count: usize) -> anyhow::Result<f64> {
    measured_all(count, || {
        let consumer: BaseConsumer = kafka.reader_config().set("enable.partition.eof", "false").create()?;
        let mut list = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            list.add_partition_offset(&kafka.topics.location_events(), partition, Offset::Beginning)?;
        }
        consumer.assign(&list)?;
        for _ in 0..count {
            black_box(consumer.poll(LIMIT).context("reading all reports")??);
        }
        Ok(())
    })
}

fn produce(kafka: &Kafka, compression: &str, batches: &[Batch], count: usize) -> anyhow::Result<f64> {
    let topics: Vec<String> = (0..GATEWAYS).map(|gateway| kafka.topics.friend_moved(&gateway_id(gateway))).collect();
    measured_all(count, || {
        let mut config = kafka.writer_config();
        config.set("linger.ms", "0").set("compression.codec", compression);
        let producer: ThreadedProducer<DefaultProducerContext> = config.create()?;
        for batch in batches {
            let topic = &topics[batch.gateway.0 as usize % GATEWAYS];
            let mut record: BaseRecord<'_, (), [u8]> = BaseRecord::to(topic).partition(0).payload(&batch.bytes);
            while let Err((error, refused)) = producer.send(record) {
                let full = rdkafka::error::RDKafkaErrorCode::QueueFull;
                ensure!(error.rdkafka_error_code() == Some(full), error);
                std::thread::sleep(Duration::from_millis(1));
                record = refused;
            }
        }
        producer.flush(LIMIT).context("writing all batches")
    })
}

/// A decider that serves everybody.
fn decider(world: &World, friends: &[Vec<u32>]) -> Decider {
    let now = crate::workload::START;
    let settings = EngineSettings { gateway_lost_after_ms: i64::MAX, ..EngineSettings::default() };
    let mut decider = Decider::new(Engine::new(settings), PARTITIONS, now, Codec::new());
    let mut actions = Vec::new();
    let mut wake = |decider: &mut Decider, wake| decider.wake(wake, now, Duration::ZERO, &mut actions);
    wake(&mut decider, Wake::Membership(MembershipEvent::Gained((0..PARTITIONS).collect())));
    for gateway in 0..GATEWAYS {
        wake(&mut decider, Wake::Heartbeat(gateway_id(gateway), Some(now)));
    }
    for (user, friends) in (0..).zip(friends) {
        let (viewer, partition) = (user_id(user), partition_of(user_id(user), PARTITIONS));
        let friends = Some(friends.iter().map(|friend| user_id(*friend)).collect());
        wake(&mut decider, Wake::Lists(vec![Listed { partition, viewer, friends }]));
        let gateway = gateway_id(user as usize / 7 % GATEWAYS);
        wake(&mut decider, Wake::Sessions(vec![Sessioned { partition, user: viewer, gateway, ask: Some(0) }]));
    }
    let places = (0..).zip(&world.places);
    let reports: Vec<Reported> =
        places.map(|(user, place)| Reported { user: user_id(user), time: now, place: Some(*place) }).collect();
    wake(&mut decider, Wake::from(reports));
    for partition in 0..PARTITIONS {
        for source in [Source::Lists, Source::Sessions] {
            wake(&mut decider, Wake::CaughtUp(source, partition, 1));
        }
    }
    let mut ignored = Vec::new();
    decider.tick(now, Duration::ZERO, &mut ignored);
    for partition in 0..PARTITIONS {
        let claimed = MembershipEvent::Claimed(partition, Epoch(7));
        decider.wake(Wake::Membership(claimed), now, Duration::ZERO, &mut ignored);
    }
    while decider.resume(now) {}
    decider.end(now, Duration::ZERO, &mut ignored);
    decider
}

fn decide(decider: &mut Decider, moves: &[Move], mut send: impl FnMut(Batch)) {
    let now = crate::workload::START.plus_ms(30_000);
    let mut actions = Vec::new();
    for (number, together) in (1_u64..).zip(moves.chunks(TOGETHER)) {
        let clock = Duration::from_micros(number * TOGETHER as u64 * 1_000_000 / RATE_PER_S);
        let reports: Vec<Reported> = together
            .iter()
            .map(|(user, place)| Reported { user: user_id(*user), time: now, place: Some(*place) })
            .collect();
        decider.wake(Wake::from(reports), now, clock, &mut actions);
        decider.flush(now, clock, &mut actions);
        for action in actions.drain(..) {
            if let Action::Send(batch) = action {
                send(batch);
            }
        }
    }
}

/// The numbers of a datum, one after the other: what any decoder has to do.
fn varints(datum: &[u8]) -> u64 {
    let (mut sum, mut number, mut shift) = (0_u64, 0_u64, 0);
    for byte in datum {
        number |= u64::from(byte & 0x7F) << shift;
        shift = if byte & 0x80 == 0 { 0 } else { (shift + 7) % 63 };
        if shift == 0 {
            sum = sum.wrapping_add(std::mem::take(&mut number));
        }
    }
    sum
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
