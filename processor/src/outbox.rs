//! Batches on their way into Kafka; who was told by one that got lost is remembered.
//!
//! A processor that catches up decides faster than a broker takes it in. So the engine waits for room: were batches dropped
//! then, or left to wait until they time out, their viewers would have to get snapshots, which is more to send than before.

use crate::packing::{Batch, viewers_of};
use nearby_engine::GatewayIndex;
use nearby_schemas::UserId;
use nearby_schemas::batch::FriendMovedBatch;
use nearby_schemas::codec::Codec;
use nearby_service::kafka::Kafka;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{ClientContext, Message};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Batches and their bytes on the way: a few seconds' worth of a slow broker, well below the delivery timeout.
const BATCHES_MAX: usize = 16_384;
const BYTES_MAX: usize = 128 * 1024 * 1024;
/// So long a full queue may not move at all. Then batches are given up, until there is room again.
const NO_ROOM_MAX: Duration = Duration::from_secs(3);
const ROOM_POLL: Duration = Duration::from_millis(1);
/// A gateway of whose batches more than this are on the way, and none was acknowledged for so long, gets no more: its topic's
/// broker is away, and the others need the room.
const SHARE_MAX: usize = 32;
const SILENCE_MAX: Duration = Duration::from_secs(1);

/// Sends batches.
pub(crate) struct Outbox {
    producer: ThreadedProducer<Deliveries>,
    /// The queue was full for too long, and was not seen otherwise since.
    stuck: Cell<bool>,
}

struct Deliveries {
    codec: Codec<FriendMovedBatch>,
    /// Viewers, each on one gateway, whose notices were not acknowledged.
    unacknowledged: Mutex<BTreeSet<(GatewayIndex, UserId)>>,
    /// By index of the gateway.
    on_the_way: Mutex<Vec<OnTheWay>>,
}

/// Batches of one gateway that are neither acknowledged nor given up.
#[derive(Clone, Copy)]
struct OnTheWay {
    count: usize,
    /// When one was acknowledged, or the first of them was sent.
    moved_at: Instant,
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    /// Index of the gateway.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, gateway: usize) {
        self.arrived(gateway, result.is_ok());
        if let Err((error, record)) = result {
            tracing::warn!(%error, topic = record.topic(), "a batch was not acknowledged: its viewers get snapshots");
            self.remember(gateway, record.payload().unwrap_or_default());
        }
    }
}

impl Deliveries {
    /// Says whether there is still a way to the gateway's topic.
    fn leaves(&self, gateway: usize) -> bool {
        let now = Instant::now();
        let mut on_the_way = self.on_the_way.lock().unwrap_or_else(PoisonError::into_inner);
        if on_the_way.len() <= gateway {
            on_the_way.resize(gateway + 1, OnTheWay { count: 0, moved_at: now });
        }
        let of_gateway = &mut on_the_way[gateway];
        if of_gateway.count == 0 {
            of_gateway.moved_at = now;
        }
        let is_open = of_gateway.count < SHARE_MAX || now.duration_since(of_gateway.moved_at) < SILENCE_MAX;
        of_gateway.count += usize::from(is_open);
        is_open
    }

    /// A batch that had left is acknowledged, or will never be.
    fn arrived(&self, gateway: usize, acknowledged: bool) {
        let mut on_the_way = self.on_the_way.lock().unwrap_or_else(PoisonError::into_inner);
        let of_gateway = &mut on_the_way[gateway];
        of_gateway.count -= 1;
        if acknowledged {
            of_gateway.moved_at = Instant::now();
        }
    }

    /// Marks every viewer of a lost batch.
    fn remember(&self, gateway: usize, bytes: &[u8]) {
        metrics::counter!("nearby_unacknowledged_batches_total").increment(1);
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
    pub fn new(kafka: &Kafka) -> Result<Outbox, KafkaError> {
        Outbox::with_room(kafka, BATCHES_MAX)
    }

    fn with_room(kafka: &Kafka, batches_max: usize) -> Result<Outbox, KafkaError> {
        let mut config = kafka.writer_config();
        // Batches are packed already: waiting for more would only add latency, and compressing them costs more than all else
        // (`make bench`). Where the network is dearer, `--kafka-property compression.codec=lz4` says so.
        config.set("linger.ms", "0");
        config.set("queue.buffering.max.messages", batches_max.to_string());
        config.set("queue.buffering.max.kbytes", (BYTES_MAX / 1024).to_string());
        let (codec, unacknowledged, on_the_way) = (kafka.codecs.codec(), Mutex::default(), Mutex::default());
        let deliveries = Deliveries { codec, unacknowledged, on_the_way };
        Ok(Outbox { producer: config.create_with_context(deliveries)?, stuck: Cell::new(false) })
    }

    /// Hands a batch to Kafka for the topic of its gateway; waits for room while the queue moves.
    pub fn send(&self, topic: &str, batch: &Batch) {
        metrics::counter!("nearby_batches_total").increment(1);
        metrics::counter!("nearby_batch_bytes_total").increment(batch.bytes.len() as u64);
        let gateway = batch.gateway.0 as usize;
        let deliveries = self.producer.client().context();
        if !deliveries.leaves(gateway) {
            tracing::warn!(topic, "no broker takes the batches of this gateway: its viewers get snapshots");
            deliveries.remember(gateway, &batch.bytes);
            return;
        }
        let mut record: BaseRecord<'_, (), [u8], usize> =
            BaseRecord::with_opaque_to(topic, gateway).partition(0).payload(&batch.bytes);
        let mut full_since: Option<Instant> = None;
        while let Err((error, refused)) = self.producer.send(record) {
            let is_full = error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull);
            let waited = full_since.get_or_insert_with(Instant::now).elapsed();
            if !is_full || self.stuck.get() || waited >= NO_ROOM_MAX {
                self.stuck.set(is_full);
                tracing::warn!(%error, topic, "a batch could not be sent: its viewers get snapshots");
                deliveries.arrived(gateway, false);
                deliveries.remember(gateway, &batch.bytes);
                return;
            }
            std::thread::sleep(ROOM_POLL);
            record = refused;
        }
        self.stuck.set(false);
        if let Some(since) = full_since {
            metrics::histogram!("nearby_outbox_wait_seconds").record(since.elapsed());
        }
    }

    /// Viewers who have to be told everything again, at most so many; each once.
    pub fn take_unacknowledged(&self, at_once_max: usize) -> BTreeSet<(GatewayIndex, UserId)> {
        let deliveries = self.producer.client().context();
        let mut unacknowledged = deliveries.unacknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = unacknowledged.iter().nth(at_once_max).copied();
        let rest = rest.map(|first| unacknowledged.split_off(&first)).unwrap_or_default();
        std::mem::replace(&mut *unacknowledged, rest)
    }

    /// Why nothing can be sent any more, if the producer has failed for good.
    pub fn failed(&self) -> Option<String> {
        self.producer.client().fatal_error().map(|(code, reason)| format!("{code}: {reason}"))
    }

    /// Waits for the acknowledgements of what was sent, at most `limit`.
    pub fn flush(&self, limit: Duration) {
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
        let outbox = Outbox::new(&kafka).expect("a producer");
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
    fn waits_for_room_while_the_queue_moves() {
        let cluster = MockCluster::new(1).expect("a mock cluster");
        cluster.create_topic("t", 1, 1).expect("creates the topic");
        let kafka = Kafka::embedded_at(cluster.bootstrap_servers(), "");
        let outbox = Outbox::with_room(&kafka, 5).expect("a producer");
        for _ in 0..500 {
            outbox.send("t", &batch_to(UserId(5)));
        }
        outbox.flush(Duration::from_secs(60));
        assert_eq!(outbox.take_unacknowledged(usize::MAX), BTreeSet::new());
    }

    #[test]
    fn gives_up_when_the_queue_does_not_move() {
        let nobody = Kafka::embedded_at("127.0.0.1:1".to_owned(), "");
        let outbox = Outbox::with_room(&nobody, 100).expect("a producer");
        let full_of = batch_to(UserId(5));
        (0..100).for_each(|_| outbox.send("t", &full_of));
        let (begun, others) = (Instant::now(), |viewer| Batch { gateway: GatewayIndex(1), ..batch_to(UserId(viewer)) });
        outbox.send("t", &others(6));
        let waited = begun.elapsed();
        assert!(waited >= NO_ROOM_MAX, "{waited:?}");
        outbox.send("t", &others(7));
        assert!(begun.elapsed() < waited + NO_ROOM_MAX, "waited only once");
        let lost = BTreeSet::from([6, 7].map(|viewer| (GatewayIndex(1), UserId(viewer))));
        assert_eq!(outbox.take_unacknowledged(usize::MAX), lost);
    }

    #[test]
    fn a_gateway_whose_broker_is_away_leaves_room_to_the_others() {
        let nobody = Kafka::embedded_at("127.0.0.1:1".to_owned(), "");
        let outbox = Outbox::new(&nobody).expect("a producer");
        let send = |gateway, viewer| {
            outbox.send("t", &Batch { gateway: GatewayIndex(gateway), ..batch_to(UserId(viewer)) });
        };
        (0..40).for_each(|_| send(1, 5));
        assert_eq!(outbox.take_unacknowledged(usize::MAX).len(), 0, "it may be only slow");
        std::thread::sleep(SILENCE_MAX);
        send(1, 6);
        send(2, 7);
        assert_eq!(outbox.take_unacknowledged(usize::MAX), BTreeSet::from([(GatewayIndex(1), UserId(6))]));
    }

    fn batch_to(viewer: UserId) -> Batch {
        let codec = Codec::<FriendMovedBatch>::new();
        let (mut encoder, mut notes) = (BatchEncoder::new(&codec), Notes::default());
        encoder.set_epochs([(0, Epoch(1))]);
        let section = encoder.section(0).expect("has an epoch");
        encoder.friend_left(&mut notes, section, (UserId(1), LeftReason::Distance), viewer);
        Batch { gateway: GatewayIndex(0), bytes: encoder.finish(&mut notes, TimestampMs(0)) }
    }
}
