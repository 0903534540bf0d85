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
    started_at: Instant,
    warned_at: Mutex<Option<Instant>>,
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
                self.on_the_way().lost(sent.gateway, record.payload_len(), now);
                let bytes = record.payload().unwrap_or_default();
                self.remember(sent.gateway, bytes, record.topic(), &error.to_string());
            }
        }
    }
}

impl Deliveries {
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
    /// One of so many of this process. Its clock begins at `started_at`.
    pub fn new(kafka: &Kafka, outboxes: usize, started_at: Instant) -> Result<Outbox, KafkaError> {
        Outbox::with_room(kafka, (BATCHES_MAX / outboxes).max(1), (BYTES_MAX / outboxes).max(1024), started_at)
    }

    fn with_room(
        kafka: &Kafka,
        count_max: usize,
        bytes_max: usize,
        started_at: Instant,
    ) -> Result<Outbox, KafkaError> {
        let mut config = kafka.writer_config();
        // Batches are packed already: waiting for more would only add latency, and compressing them costs more than all else
        // (`make bench`). Where the network is dearer, `--kafka-property compression.codec=lz4` says so.
        config.set("linger.ms", "0");
        config.set("queue.buffering.max.messages", count_max.to_string());
        config.set("queue.buffering.max.kbytes", (bytes_max / 1024).to_string());
        let deliveries = Deliveries {
            codec: kafka.codecs.codec(),
            unacknowledged: Mutex::default(),
            on_the_way: Mutex::new(OnTheWay::new(count_max, bytes_max)),
            started_at,
            warned_at: Mutex::default(),
            ended: AtomicBool::new(false),
        };
        Ok(Outbox { producer: config.create_with_context(deliveries)? })
    }

    /// Batches that were closed together are about to be sent.
    pub fn begin_round(&self) {
        let deliveries = self.producer.client().context();
        deliveries.on_the_way().begin_round(deliveries.clock());
    }

    /// When the brokers will be ready for the next round, and whether that may still change.
    pub fn next_round(&self) -> (Duration, bool) {
        let on_the_way = self.producer.client().context().on_the_way();
        (on_the_way.next_round(), on_the_way.round_is_open())
    }

    /// Hands a batch to Kafka for the topic of its gateway; says whether there was room. Where there is no way, it is lost.
    pub fn send(&self, topic: &str, batch: &Batch) -> bool {
        let (gateway, deliveries) = (batch.gateway.0 as usize, self.producer.client().context());
        let now = deliveries.clock();
        let mut on_the_way = deliveries.on_the_way();
        if !on_the_way.is_open(gateway, now) {
            drop(on_the_way);
            deliveries.remember(gateway, &batch.bytes, topic, "its broker takes nothing, and others need the room");
            return true;
        }
        on_the_way.leaves(gateway, batch.bytes.len(), now);
        drop(on_the_way);
        let sent = Box::new(Sent { gateway, at: now });
        let record: BaseRecord<'_, (), [u8], Box<Sent>> =
            BaseRecord::with_opaque_to(topic, sent).partition(0).payload(&batch.bytes);
        if let Err((error, _)) = self.producer.send(record) {
            if error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull) {
                deliveries.on_the_way().stays(gateway, batch.bytes.len(), now);
                return false;
            }
            deliveries.on_the_way().lost(gateway, batch.bytes.len(), now);
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
        let now = deliveries.clock();
        let mut unacknowledged = deliveries.unacknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        let on_the_way = deliveries.on_the_way();
        let reachable = unacknowledged.iter().filter(|(gateway, _)| on_the_way.is_open(gateway.0 as usize, now));
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
    use crate::on_the_way::SILENCE_MIN;
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
        let outbox = Outbox::new(&kafka, 1, Instant::now()).expect("a producer");
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
        let outbox = Outbox::with_room(&nobody, 100, BYTES_MAX, Instant::now()).expect("a producer");
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
        let outbox = Outbox::with_room(&nobody, 100, BYTES_MAX, Instant::now()).expect("a producer");
        let send = |gateway, viewer| assert!(outbox.send("t", &batch_to(gateway, viewer)));
        (0..49).for_each(|_| send(1, 5));
        std::thread::sleep(SILENCE_MIN);
        send(1, 6);
        assert_eq!(outbox.take_unacknowledged(usize::MAX).len(), 0, "nobody else needs the room");
        send(2, 7);
        send(1, 8);
        send(2, 9);
        outbox.give_up("t", &batch_to(2, 9));
        assert_eq!(outbox.take_unacknowledged(1), lost(&[(2, 9)]), "who cannot be told does not keep others waiting");
        assert_eq!(outbox.take_unacknowledged(1), lost(&[]));

        let (deliveries, now) = (outbox.producer.client().context(), outbox.producer.client().context().clock());
        deliveries.on_the_way().leaves(1, 0, now);
        deliveries.on_the_way().acknowledged(1, 0, now, now);
        assert_eq!(outbox.take_unacknowledged(1), lost(&[(1, 8)]), "it has moved again");
    }

    #[test]
    fn what_is_acknowledged_makes_room() {
        let cluster = MockCluster::new(1).expect("a mock cluster");
        cluster.create_topic("t", 1, 1).expect("creates the topic");
        let kafka = Kafka::embedded_at(cluster.bootstrap_servers(), "");
        let outbox = Outbox::with_room(&kafka, 5, BYTES_MAX, Instant::now()).expect("a producer");
        for _ in 0..4 {
            (0..5).for_each(|_| assert!(outbox.send("t", &batch_to(0, 5))));
            outbox.flush(Duration::from_secs(30));
            assert!(outbox.producer.client().context().on_the_way().is_empty());
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
