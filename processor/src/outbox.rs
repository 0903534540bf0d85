//! Batches on their way into Kafka; who was told by one that got lost is remembered.
//!
//! A processor that catches up decides faster than a broker takes it in. So batches wait for room, and no more is decided
//! meanwhile: were they dropped, or left in the producer's queue until they time out, their viewers would have to get
//! snapshots, which is more to send than before.

use crate::on_the_way::OnTheWay;
use crate::packing::{Batch, viewers_of};
use nearby_engine::GatewayIndex;
use nearby_schemas::UserId;
use nearby_schemas::batch::FriendMovedBatch;
use nearby_schemas::codec::Codec;
use nearby_service::kafka::Kafka;
use nearby_service::lifelines;
use nearby_service::logs::Seldom;
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext, Message};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Batches and their bytes on the way from one process: a second's worth of a slow broker with a thousand gateways, which serves
/// their topics in no fair order. With four times as much some batches waited for longer than the delivery timeout. Less than the queue
/// of any one producer holds: the room is that of all together, and [`OnTheWay`] alone gives it.
const BATCHES_MAX: usize = 4_096;
const BYTES_MAX: usize = 64 * 1024 * 1024;
/// A producer looks at all its topics whenever one of them has something to send or an answer: with a thousand that was half of
/// what sending cost. So gateways beyond so many get another producer, up to so many producers of all engines together.
const GATEWAYS_OF_A_PRODUCER: usize = 128;
const PRODUCERS_MAX: usize = 8;

/// Sends batches.
pub(crate) struct Outbox {
    kafka: Kafka,
    config: ClientConfig,
    /// As many as were needed so far.
    producers: Vec<Arc<ThreadedProducer<Deliveries>>>,
    producers_max: usize,
    /// The system gave no further one: those that there are serve all.
    has_all_producers: bool,
    deliveries: Deliveries,
}

/// What all producers report to.
#[derive(Clone)]
struct Deliveries(Arc<Shared>);

struct Shared {
    codec: Codec<FriendMovedBatch>,
    /// Viewers, each on one gateway, whose notices were not acknowledged.
    unacknowledged: Mutex<BTreeSet<(GatewayIndex, UserId)>>,
    on_the_way: Mutex<OnTheWay>,
    started_at: Instant,
    told: Seldom,
    /// Nobody will make good for anything any more.
    ended: AtomicBool,
}

/// What a batch takes with it.
struct Sent {
    gateway: usize,
    at: Duration,
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Box<Sent>;

    fn delivery(&self, result: &DeliveryResult<'_>, sent: Box<Sent>) {
        let now = self.clock();
        match result {
            Ok(record) => self.on_the_way().acknowledged(sent.gateway, record.payload_len(), sent.at, now),
            Err((error, record)) => {
                self.on_the_way().lost(sent.gateway, record.payload_len(), sent.at, now);
                let bytes = record.payload().unwrap_or_default();
                self.remember(sent.gateway, bytes, record.topic(), &error.to_string());
            }
        }
    }
}

impl std::ops::Deref for Deliveries {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl Shared {
    fn clock(&self) -> Duration {
        self.started_at.elapsed()
    }

    fn on_the_way(&self) -> MutexGuard<'_, OnTheWay> {
        self.on_the_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks every viewer of a lost batch.
    fn remember(&self, gateway: usize, bytes: &[u8], topic: &str, because: &str) {
        if self.ended.load(Ordering::Relaxed) {
            return;
        }
        metrics::counter!("nearby_unacknowledged_batches_total").increment(1);
        if let Some(left_out) = self.told.may_tell() {
            tracing::warn!(
                topic,
                because,
                left_out,
                "batches are lost, this one among them: their viewers get snapshots"
            );
        }
        match viewers_of(&self.codec, bytes) {
            Ok(viewers) => {
                let gateway = GatewayIndex(u32::try_from(gateway).unwrap_or(u32::MAX));
                let viewers = viewers.into_iter().map(|viewer| (gateway, viewer));
                self.unacknowledged.lock().unwrap_or_else(PoisonError::into_inner).extend(viewers);
            }
            Err(error) => tracing::error!(%error, "an unacknowledged batch of ours cannot be read"),
        }
    }
}

impl Outbox {
    /// One of so many of this process. Its clock begins at `started_at`.
    pub fn new(kafka: &Kafka, outboxes: usize, started_at: Instant) -> Result<Outbox, KafkaError> {
        let room = ((BATCHES_MAX / outboxes).max(1), (BYTES_MAX / outboxes).max(1024));
        Outbox::with_room(kafka, room, (PRODUCERS_MAX / outboxes).max(1), started_at)
    }

    fn with_room(
        kafka: &Kafka,
        (count_max, bytes_max): (usize, usize),
        producers_max: usize,
        started_at: Instant,
    ) -> Result<Outbox, KafkaError> {
        let mut config = kafka.writer_config();
        // Batches are packed already: waiting for more would only add latency, and compressing them costs more than all else
        // (`make bench`). Where the network is dearer, `--kafka-property compression.codec=lz4` says so.
        config.set("linger.ms", "0");
        let deliveries = Deliveries(Arc::new(Shared {
            codec: kafka.codecs.codec(),
            unacknowledged: Mutex::default(),
            on_the_way: Mutex::new(OnTheWay::new(count_max, bytes_max)),
            started_at,
            told: Seldom::new(),
            ended: AtomicBool::new(false),
        }));
        // One to begin with: what is wrong with the settings shows at the start.
        let producers = vec![new_producer(kafka, &config, &deliveries)?];
        Ok(Outbox { kafka: kafka.clone(), config, producers, producers_max, has_all_producers: false, deliveries })
    }

    /// That of a gateway, always the same: its batches stay in order.
    fn producer(&mut self, gateway: usize) -> &ThreadedProducer<Deliveries> {
        let number = gateway / GATEWAYS_OF_A_PRODUCER % self.producers_max;
        while self.producers.len() <= number && !self.has_all_producers {
            match new_producer(&self.kafka, &self.config, &self.deliveries) {
                Ok(producer) => self.producers.push(producer),
                Err(error) => {
                    tracing::warn!(%error, producers = self.producers.len(), "no more producers can be made");
                    self.has_all_producers = true;
                }
            }
        }
        &self.producers[number % self.producers.len()]
    }

    /// Batches that were closed together are about to be sent.
    pub fn begin_round(&self) {
        self.deliveries.on_the_way().begin_round(self.deliveries.clock());
    }

    /// When the brokers will be ready for the next round, and whether that may still change.
    pub fn next_round(&self) -> (Duration, bool) {
        let on_the_way = self.deliveries.on_the_way();
        (on_the_way.next_round(), on_the_way.round_is_open())
    }

    /// Hands a batch to Kafka for the topic of its gateway; says whether there was room. Where there is no way, it is lost.
    pub fn send(&mut self, topic: &str, batch: &Batch) -> bool {
        let (gateway, bytes) = (batch.gateway.0 as usize, batch.bytes.len());
        let now = self.deliveries.clock();
        let mut on_the_way = self.deliveries.on_the_way();
        if !on_the_way.is_open(gateway) {
            drop(on_the_way);
            self.deliveries.remember(
                gateway,
                &batch.bytes,
                topic,
                "its broker takes nothing, and others need the room",
            );
            return true;
        }
        if !on_the_way.has_room(bytes) {
            return false;
        }
        on_the_way.leaves(gateway, bytes, now);
        drop(on_the_way);
        let sent = Box::new(Sent { gateway, at: now });
        let record: BaseRecord<'_, (), [u8], Box<Sent>> =
            BaseRecord::with_opaque_to(topic, sent).partition(0).payload(&batch.bytes);
        if let Err((error, _)) = self.producer(gateway).send(record) {
            self.deliveries.on_the_way().lost(gateway, bytes, now, now);
            self.deliveries.remember(gateway, &batch.bytes, topic, &error.to_string());
            return true;
        }
        metrics::counter!("nearby_batches_total").increment(1);
        metrics::counter!("nearby_batch_bytes_total").increment(bytes as u64);
        true
    }

    /// There is no room for it, and there will be none.
    pub fn give_up(&self, topic: &str, batch: &Batch) {
        let gateway = batch.gateway.0 as usize;
        self.deliveries.remember(gateway, &batch.bytes, topic, "no broker takes anything");
    }

    /// Viewers who have to be told everything again and can be, at most so many; each once.
    pub fn take_unacknowledged(&self, at_once_max: usize) -> BTreeSet<(GatewayIndex, UserId)> {
        let mut unacknowledged = self.deliveries.unacknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        let on_the_way = self.deliveries.on_the_way();
        let reachable = unacknowledged.iter().filter(|(gateway, _)| on_the_way.is_open(gateway.0 as usize));
        let taken: BTreeSet<_> = reachable.take(at_once_max).copied().collect();
        drop(on_the_way);
        // Not all of them looked at: after a long outage that is every viewer, asked for a few at a time.
        for lost in &taken {
            unacknowledged.remove(lost);
        }
        taken
    }

    /// Why nothing can be sent any more, if a producer has failed for good.
    pub fn failed(&self) -> Option<String> {
        let mut fatal = self.producers.iter().filter_map(|producer| producer.client().fatal_error());
        fatal.next().map(|(code, reason)| format!("{code}: {reason}"))
    }

    /// Waits for the acknowledgements of what was sent, at most `limit`; after that nobody asks what was lost.
    pub fn end(&self, limit: Duration) {
        self.flush(limit);
        self.deliveries.ended.store(true, Ordering::Relaxed);
    }

    fn flush(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        for producer in &self.producers {
            if let Err(error) = producer.flush(deadline.saturating_duration_since(Instant::now())) {
                tracing::warn!(%error, "the last batches were not acknowledged in time");
            }
        }
    }
}

fn new_producer(
    kafka: &Kafka,
    config: &ClientConfig,
    deliveries: &Deliveries,
) -> Result<Arc<ThreadedProducer<Deliveries>>, KafkaError> {
    let producer = Arc::new(config.create_with_context(deliveries.clone())?);
    lifelines::hold_producer(kafka, &kafka.topics.dead_letters(), &producer);
    Ok(producer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::on_the_way::SILENCE_MIN;
    use nearby_schemas::batch::LeftReason;
    use nearby_schemas::batch_encoder::{BatchEncoder, Notes};
    use nearby_schemas::{Epoch, TimestampMs};
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::DefaultProducerContext;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    #[test]
    fn tells_that_its_producer_has_failed_for_good() {
        let (cluster, kafka) = a_broker();
        let mut outbox = Outbox::new(&kafka, 1, Instant::now()).expect("a producer");
        let send = |outbox: &mut Outbox| {
            outbox.send("t", &Batch { gateway: GatewayIndex(0), bytes: Vec::new() });
            outbox.flush(Duration::from_secs(10));
        };
        send(&mut outbox);
        assert_eq!(outbox.failed(), None);

        // A broker says so that has lost what it had acknowledged.
        let lost = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER];
        cluster.request_errors(RDKafkaApiKey::Produce, &lost);
        send(&mut outbox);
        let because = outbox.failed().expect("has failed for good");
        assert!(because.contains("sequence"), "{because}");
    }

    #[test]
    fn there_is_no_room_when_the_queue_is_full() {
        let nobody = Kafka::embedded_at("127.0.0.1:1".to_owned(), "");
        let mut outbox =
            Outbox::with_room(&nobody, (100, BYTES_MAX), PRODUCERS_MAX, Instant::now()).expect("a producer");
        assert!((0..100).all(|_| outbox.send("t", &batch_to(0, 5))));
        assert!(!outbox.send("t", &batch_to(1, 6)));
        assert_eq!(outbox.take_unacknowledged(usize::MAX).len(), 0, "it was kept for later");
        outbox.give_up("t", &batch_to(1, 6));
        assert_eq!(outbox.take_unacknowledged(usize::MAX), lost(&[(1, 6)]));
    }

    /// Gateway 1's topic is on a broker that takes nothing.
    #[test]
    fn a_gateway_whose_broker_is_away_leaves_room_to_the_others() {
        let nobody = Kafka::embedded_at("127.0.0.1:1".to_owned(), "");
        let mut outbox =
            Outbox::with_room(&nobody, (100, BYTES_MAX), PRODUCERS_MAX, Instant::now()).expect("a producer");
        let deliveries = outbox.deliveries.clone();
        let mut send = |gateway, viewer| assert!(outbox.send("t", &batch_to(gateway, viewer)));
        let moves = |gateway, after| {
            deliveries.on_the_way().leaves(gateway, 0, after);
            deliveries.on_the_way().acknowledged(gateway, 0, after, after);
        };
        (0..49).for_each(|_| send(1, 5));
        moves(2, SILENCE_MIN * 100);
        send(1, 6);
        assert_eq!(deliveries.unacknowledged.lock().expect("nobody panics").len(), 0, "nobody else needs the room");
        send(2, 7);
        send(1, 8);
        send(2, 9);
        outbox.give_up("t", &batch_to(2, 9));
        assert_eq!(outbox.take_unacknowledged(1), lost(&[(2, 9)]), "who cannot be told does not keep others waiting");
        assert_eq!(outbox.take_unacknowledged(1), lost(&[]));

        moves(1, SILENCE_MIN * 100);
        assert_eq!(outbox.take_unacknowledged(1), lost(&[(1, 8)]), "it has moved again");
    }

    #[test]
    fn what_is_acknowledged_makes_room() {
        let (_cluster, kafka) = a_broker();
        let mut outbox = Outbox::with_room(&kafka, (5, BYTES_MAX), PRODUCERS_MAX, Instant::now()).expect("a producer");
        for _ in 0..4 {
            (0..5).for_each(|_| assert!(outbox.send("t", &batch_to(0, 5))));
            outbox.flush(Duration::from_secs(30));
            assert!(outbox.deliveries.on_the_way().is_empty());
        }
    }

    #[test]
    fn many_gateways_share_the_room_and_not_the_producer() {
        let (_cluster, kafka) = a_broker();
        let mut outbox = Outbox::with_room(&kafka, (10, BYTES_MAX), PRODUCERS_MAX, Instant::now()).expect("producers");
        let gateways = (0..PRODUCERS_MAX + 1).map(|number| u32::try_from(number * GATEWAYS_OF_A_PRODUCER));
        let gateways: Vec<u32> = gateways.collect::<Result<_, _>>().expect("few");
        assert!(gateways.iter().all(|gateway| outbox.send("t", &batch_to(*gateway, 5))));
        assert!(outbox.send("t", &batch_to(1, 5)) && !outbox.send("t", &batch_to(2, 5)), "of all together");
        assert_eq!(outbox.producers.len(), PRODUCERS_MAX);
        outbox.flush(Duration::from_secs(30));
        assert!(outbox.deliveries.on_the_way().is_empty());
    }

    #[test]
    fn a_producer_that_cannot_be_made_is_done_without() {
        let (_cluster, kafka) = a_broker();
        let mut outbox = Outbox::new(&kafka, 1, Instant::now()).expect("a producer");
        outbox.config.set("linger.ms", "nonsense");
        let far = u32::try_from(2 * GATEWAYS_OF_A_PRODUCER).expect("few");
        assert!(outbox.send("t", &batch_to(far, 5)));
        outbox.flush(Duration::from_secs(30));
        assert_eq!(outbox.take_unacknowledged(usize::MAX), lost(&[]));
        assert!(outbox.deliveries.on_the_way().is_empty());

        outbox.config.set("linger.ms", "0");
        outbox.producer(far as usize);
        assert_eq!(outbox.producers.len(), 1, "a gateway that changed its producer could be told out of order");
    }

    /// With a topic `t`.
    fn a_broker() -> (MockCluster<'static, DefaultProducerContext>, Kafka) {
        let cluster = MockCluster::new(1).expect("a mock cluster");
        cluster.create_topic("t", 1, 1).expect("creates the topic");
        let kafka = Kafka::embedded_at(cluster.bootstrap_servers(), "");
        (cluster, kafka)
    }

    fn lost(viewers: &[(u32, i64)]) -> BTreeSet<(GatewayIndex, UserId)> {
        viewers.iter().map(|(gateway, viewer)| (GatewayIndex(*gateway), UserId(*viewer))).collect()
    }

    fn batch_to(gateway: u32, viewer: i64) -> Batch {
        let codec = Codec::<FriendMovedBatch>::new();
        let (mut encoder, mut notes) = (BatchEncoder::new(&codec), Notes::default());
        encoder.set_epochs([(0, Epoch(1))]);
        let section = encoder.section(0).expect("has an epoch");
        encoder.friend_left(&mut notes, section, (UserId(1), LeftReason::Distance), UserId(viewer));
        Batch { gateway: GatewayIndex(gateway), bytes: encoder.finish(&mut notes, TimestampMs(0)) }
    }
}
