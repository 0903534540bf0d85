//! Batches on their way into Kafka; who was told by one that got lost is remembered.
//!
//! A processor that catches up decides faster than a broker takes it in. So batches wait for room, and no more is decided
//! meanwhile: were they dropped, or left in the producer's queue until they time out, their viewers would have to get
//! snapshots, which is more to send than before.

use crate::packing::{Batch, viewers_of};
use nearby_engine::GatewayIndex;
use nearby_schemas::UserId;
use nearby_schemas::batch::FriendMovedBatch;
use nearby_schemas::codec::Codec;
use nearby_service::kafka::Kafka;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{ClientContext, Message};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Batches and their bytes on the way from one process: a second's worth of a slow broker with a thousand gateways, which serves
/// their topics in no fair order. With four times as much some batches waited for longer than the delivery timeout.
const BATCHES_MAX: usize = 4_096;
const BYTES_MAX: usize = 64 * 1024 * 1024;
/// When half of the room is taken, a gateway of whose batches more than this are on the way, and none was acknowledged for so
/// long, gets no more: its topic's broker is away, and the others need the room.
const SHARE_MAX: usize = 4;
const SILENCE_MAX: Duration = Duration::from_secs(1);
/// Losses are told in the log at most so often.
const WARNING_INTERVAL: Duration = Duration::from_secs(1);

/// Sends batches.
pub(crate) struct Outbox {
    producer: ThreadedProducer<Deliveries>,
}

struct Deliveries {
    codec: Codec<FriendMovedBatch>,
    /// Viewers, each on one gateway, whose notices were not acknowledged.
    unacknowledged: Mutex<BTreeSet<(GatewayIndex, UserId)>>,
    on_the_way: Mutex<OnTheWay>,
    warned_at: Mutex<Option<Instant>>,
    /// Nobody will make good for anything any more.
    ended: AtomicBool,
}

/// Batches that are neither acknowledged nor given up.
struct OnTheWay {
    count: usize,
    bytes: usize,
    count_max: usize,
    bytes_max: usize,
    /// By index.
    gateways: Vec<ToGateway>,
}

#[derive(Clone, Copy)]
struct ToGateway {
    count: usize,
    /// When one was acknowledged, or the first of them was sent.
    moved_at: Instant,
}

impl OnTheWay {
    fn of(&mut self, gateway: usize) -> &mut ToGateway {
        if self.gateways.len() <= gateway {
            self.gateways.resize(gateway + 1, ToGateway { count: 0, moved_at: Instant::now() });
        }
        &mut self.gateways[gateway]
    }

    /// Whether there is a way to the gateway's topic, as far as that can be seen.
    fn is_open(&self, gateway: usize) -> bool {
        let is_scarce = self.count > self.count_max / 2 || self.bytes > self.bytes_max / 2;
        let is_stuck = |to: &ToGateway| to.count >= SHARE_MAX && to.moved_at.elapsed() >= SILENCE_MAX;
        !(is_scarce && self.gateways.get(gateway).is_some_and(is_stuck))
    }

    fn leaves(&mut self, gateway: usize, bytes: usize) {
        self.count += 1;
        self.bytes += bytes;
        let to = self.of(gateway);
        if to.count == 0 {
            to.moved_at = Instant::now();
        }
        to.count += 1;
    }

    fn arrives(&mut self, gateway: usize, bytes: usize) {
        self.count -= 1;
        self.bytes -= bytes;
        self.of(gateway).count -= 1;
    }
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    /// Index of the gateway.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, gateway: usize) {
        let (record, error) = match result {
            Ok(record) => (record, None),
            Err((error, record)) => (record, Some(error)),
        };
        let bytes = record.payload().unwrap_or_default();
        let mut on_the_way = self.on_the_way();
        on_the_way.arrives(gateway, bytes.len());
        if error.is_none() {
            on_the_way.of(gateway).moved_at = Instant::now();
        }
        drop(on_the_way);
        if let Some(error) = error {
            self.remember(gateway, bytes, record.topic(), &error.to_string());
        }
    }
}

impl Deliveries {
    fn on_the_way(&self) -> MutexGuard<'_, OnTheWay> {
        self.on_the_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks every viewer of a lost batch.
    fn remember(&self, gateway: usize, bytes: &[u8], topic: &str, because: &str) {
        if self.ended.load(Ordering::Relaxed) {
            return;
        }
        metrics::counter!("nearby_unacknowledged_batches_total").increment(1);
        let mut warned_at = self.warned_at.lock().unwrap_or_else(PoisonError::into_inner);
        if warned_at.is_none_or(|at| at.elapsed() >= WARNING_INTERVAL) {
            *warned_at = Some(Instant::now());
            tracing::warn!(topic, because, "batches are lost, this one among them: their viewers get snapshots");
        }
        drop(warned_at);
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
    /// One of so many of this process.
    pub fn new(kafka: &Kafka, outboxes: usize) -> Result<Outbox, KafkaError> {
        Outbox::with_room(kafka, (BATCHES_MAX / outboxes).max(1), (BYTES_MAX / outboxes).max(1024))
    }

    fn with_room(kafka: &Kafka, count_max: usize, bytes_max: usize) -> Result<Outbox, KafkaError> {
        let mut config = kafka.writer_config();
        // Batches are packed already: waiting for more would only add latency, and compressing them costs more than all else
        // (`make bench`). Where the network is dearer, `--kafka-property compression.codec=lz4` says so.
        config.set("linger.ms", "0");
        config.set("queue.buffering.max.messages", count_max.to_string());
        config.set("queue.buffering.max.kbytes", (bytes_max / 1024).to_string());
        let deliveries = Deliveries {
            codec: kafka.codecs.codec(),
            unacknowledged: Mutex::default(),
            on_the_way: Mutex::new(OnTheWay { count: 0, bytes: 0, count_max, bytes_max, gateways: Vec::new() }),
            warned_at: Mutex::default(),
            ended: AtomicBool::new(false),
        };
        Ok(Outbox { producer: config.create_with_context(deliveries)? })
    }

    /// Hands a batch to Kafka for the topic of its gateway; says whether there was room. Where there is no way, it is lost.
    pub fn send(&self, topic: &str, batch: &Batch) -> bool {
        let (gateway, deliveries) = (batch.gateway.0 as usize, self.producer.client().context());
        let mut on_the_way = deliveries.on_the_way();
        if !on_the_way.is_open(gateway) {
            drop(on_the_way);
            deliveries.remember(gateway, &batch.bytes, topic, "its broker takes nothing, and others need the room");
            return true;
        }
        on_the_way.leaves(gateway, batch.bytes.len());
        drop(on_the_way);
        let record: BaseRecord<'_, (), [u8], usize> =
            BaseRecord::with_opaque_to(topic, gateway).partition(0).payload(&batch.bytes);
        if let Err((error, _)) = self.producer.send(record) {
            deliveries.on_the_way().arrives(gateway, batch.bytes.len());
            if error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull) {
                return false;
            }
            deliveries.remember(gateway, &batch.bytes, topic, &error.to_string());
            return true;
        }
        metrics::counter!("nearby_batches_total").increment(1);
        metrics::counter!("nearby_batch_bytes_total").increment(batch.bytes.len() as u64);
        true
    }

    /// There is no room for it, and there will be none.
    pub fn give_up(&self, topic: &str, batch: &Batch) {
        let gateway = batch.gateway.0 as usize;
        self.producer.client().context().remember(gateway, &batch.bytes, topic, "no broker takes anything");
    }

    /// Viewers who have to be told everything again and can be, at most so many; each once.
    pub fn take_unacknowledged(&self, at_once_max: usize) -> BTreeSet<(GatewayIndex, UserId)> {
        let deliveries = self.producer.client().context();
        let mut unacknowledged = deliveries.unacknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        let on_the_way = deliveries.on_the_way();
        let reachable = unacknowledged.iter().filter(|(gateway, _)| on_the_way.is_open(gateway.0 as usize));
        let taken: BTreeSet<_> = reachable.take(at_once_max).copied().collect();
        unacknowledged.retain(|lost| !taken.contains(lost));
        taken
    }

    /// Why nothing can be sent any more, if the producer has failed for good.
    pub fn failed(&self) -> Option<String> {
        self.producer.client().fatal_error().map(|(code, reason)| format!("{code}: {reason}"))
    }

    /// Waits for the acknowledgements of what was sent, at most `limit`; after that nobody asks what was lost.
    pub fn end(&self, limit: Duration) {
        self.flush(limit);
        self.producer.client().context().ended.store(true, Ordering::Relaxed);
    }

    fn flush(&self, limit: Duration) {
        if let Err(error) = self.producer.flush(limit) {
            tracing::warn!(%error, "the last batches were not acknowledged in time");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearby_schemas::batch::LeftReason;
    use nearby_schemas::batch_encoder::{BatchEncoder, Notes};
    use nearby_schemas::{Epoch, TimestampMs};
    use rdkafka::mocking::MockCluster;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    #[test]
    fn tells_that_its_producer_has_failed_for_good() {
        let cluster = MockCluster::new(1).expect("a mock cluster");
        cluster.create_topic("t", 1, 1).expect("creates the topic");
        let brokers = cluster.bootstrap_servers();
        let kafka = Kafka::embedded_at(brokers, "");
        let outbox = Outbox::new(&kafka, 1).expect("a producer");
        let send = || {
            outbox.send("t", &Batch { gateway: GatewayIndex(0), bytes: Vec::new() });
            outbox.flush(Duration::from_secs(10));
        };
        send();
        assert_eq!(outbox.failed(), None);

        // A broker says so that has lost what it had acknowledged.
        let lost = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER];
        cluster.request_errors(RDKafkaApiKey::Produce, &lost);
        send();
        let because = outbox.failed().expect("has failed for good");
        assert!(because.contains("sequence"), "{because}");
    }

    #[test]
    fn there_is_no_room_when_the_queue_is_full() {
        let nobody = Kafka::embedded_at("127.0.0.1:1".to_owned(), "");
        let outbox = Outbox::with_room(&nobody, 100, BYTES_MAX).expect("a producer");
        assert!((0..100).all(|_| outbox.send("t", &batch_to(0, 5))));
        // However long that took: its gateway is not silent.
        outbox.producer.client().context().on_the_way().of(0).moved_at = Instant::now() + SILENCE_MAX * 60;
        assert!(!outbox.send("t", &batch_to(1, 6)));
        assert_eq!(outbox.take_unacknowledged(usize::MAX).len(), 0, "it was kept for later");
        outbox.give_up("t", &batch_to(1, 6));
        assert_eq!(outbox.take_unacknowledged(usize::MAX), lost(&[(1, 6)]));
    }

    /// Gateway 1's topic is on a broker that takes nothing.
    #[test]
    fn a_gateway_whose_broker_is_away_leaves_room_to_the_others() {
        let nobody = Kafka::embedded_at("127.0.0.1:1".to_owned(), "");
        let outbox = Outbox::with_room(&nobody, 100, BYTES_MAX).expect("a producer");
        let send = |gateway, viewer| assert!(outbox.send("t", &batch_to(gateway, viewer)));
        (0..49).for_each(|_| send(1, 5));
        std::thread::sleep(SILENCE_MAX);
        send(1, 6);
        assert_eq!(outbox.take_unacknowledged(usize::MAX).len(), 0, "nobody else needs the room");
        send(2, 7);
        send(1, 8);
        send(2, 9);
        outbox.give_up("t", &batch_to(2, 9));
        assert_eq!(outbox.take_unacknowledged(1), lost(&[(2, 9)]), "who cannot be told does not keep others waiting");
        assert_eq!(outbox.take_unacknowledged(1), lost(&[]));

        let deliveries = outbox.producer.client().context();
        deliveries.on_the_way().of(1).moved_at = Instant::now();
        assert_eq!(outbox.take_unacknowledged(1), lost(&[(1, 8)]), "it has moved again");
    }

    #[test]
    fn what_is_acknowledged_makes_room() {
        let cluster = MockCluster::new(1).expect("a mock cluster");
        cluster.create_topic("t", 1, 1).expect("creates the topic");
        let kafka = Kafka::embedded_at(cluster.bootstrap_servers(), "");
        let outbox = Outbox::with_room(&kafka, 5, BYTES_MAX).expect("a producer");
        for _ in 0..4 {
            (0..5).for_each(|_| assert!(outbox.send("t", &batch_to(0, 5))));
            outbox.flush(Duration::from_secs(30));
            let on_the_way = outbox.producer.client().context().on_the_way();
            assert_eq!((on_the_way.count, on_the_way.bytes, on_the_way.gateways[0].count), (0, 0, 0));
        }
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
