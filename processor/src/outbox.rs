//! Notices on their way to the gateways: packed per gateway, cut by size and time, and remembered when they got lost.

use crate::batch_interval::batch_interval;
use nearby_engine::{Engine, GatewayIndex, Notice};
use nearby_schemas::batch::{BATCH_BYTES_MAX, BatchEncoder, FriendMovedBatch, ViewerDistance};
use nearby_schemas::codec::Codec;
use nearby_schemas::topics::Topics;
use nearby_schemas::{Epoch, TimestampMs, UserId};
use nearby_service::kafka::Kafka;
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{ClientContext, Message};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Viewers, each on one gateway, whose notices were not acknowledged.
type Unacknowledged = Arc<Mutex<BTreeSet<(GatewayIndex, UserId)>>>;

/// Packs and sends.
pub(crate) struct Outbox {
    codec: Arc<Codec<FriendMovedBatch>>,
    topics: Topics,
    producer: ThreadedProducer<Deliveries>,
    unacknowledged: Unacknowledged,
    batches: Vec<GatewayBatch>,
    interval: Duration,
}

struct GatewayBatch {
    topic: String,
    encoder: BatchEncoder,
    /// When the first notice came in.
    since: Option<Instant>,
}

struct Deliveries {
    codec: Arc<Codec<FriendMovedBatch>>,
    unacknowledged: Unacknowledged,
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    /// Index of the gateway.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, gateway: usize) {
        if let Err((error, record)) = result {
            tracing::warn!(%error, topic = record.topic(), "a batch was not acknowledged: its viewers get snapshots");
            remember(&self.codec, &self.unacknowledged, gateway, record.payload().unwrap_or_default());
        }
    }
}

/// Marks every viewer of a lost batch. The bytes are our own, so they decode.
fn remember(codec: &Codec<FriendMovedBatch>, unacknowledged: &Unacknowledged, gateway: usize, bytes: &[u8]) {
    metrics::counter!("nearby_unacknowledged_batches_total").increment(1);
    match codec.decode(bytes) {
        Ok(batch) => {
            let gateway = GatewayIndex(u32::try_from(gateway).unwrap_or(u32::MAX));
            let viewers = batch.viewers().map(|(_, viewer)| (gateway, viewer));
            unacknowledged.lock().unwrap_or_else(PoisonError::into_inner).extend(viewers);
        }
        Err(error) => tracing::error!(%error, "an unacknowledged batch of ours cannot be read"),
    }
}

impl Outbox {
    pub fn new(kafka: &Kafka) -> Result<Outbox, KafkaError> {
        let codec = Arc::new(Codec::new());
        let unacknowledged = Unacknowledged::default();
        let deliveries = Deliveries { codec: Arc::clone(&codec), unacknowledged: Arc::clone(&unacknowledged) };
        let mut config = kafka.writer_config();
        // Batches are packed here already: waiting for more would only add latency.
        config.set("linger.ms", "0");
        config.set("compression.codec", "lz4");
        let producer = config.create_with_context(deliveries)?;
        let interval = batch_interval(0);
        Ok(Outbox { codec, topics: kafka.topics.clone(), producer, unacknowledged, batches: Vec::new(), interval })
    }

    /// Packs the notices, each under the epoch of its viewer's partition, and empties the list.
    pub fn pack(&mut self, engine: &Engine, epochs: &BTreeMap<i32, Epoch>, notices: &mut Vec<Notice>) {
        for notice in notices.drain(..) {
            let to = match &notice {
                Notice::FriendMoved { to, .. }
                | Notice::FriendLeft { to, .. }
                | Notice::ViewerMoved { to, .. }
                | Notice::Snapshot { to, .. } => *to,
            };
            let Some(epoch) = epochs.get(&to.partition) else {
                // The engine speaks only for served partitions, and serving starts with an epoch.
                tracing::error!(partition = to.partition, "a notice for a partition that is not served");
                continue;
            };
            let index = to.gateway.0 as usize;
            while self.batches.len() <= index {
                let gateway = engine.gateway_id(GatewayIndex(u32::try_from(self.batches.len()).unwrap_or(u32::MAX)));
                let (topic, encoder) = (self.topics.friend_moved(gateway), BatchEncoder::new(&self.codec));
                self.batches.push(GatewayBatch { topic, encoder, since: None });
            }
            let batch = &mut self.batches[index];
            batch.since.get_or_insert_with(Instant::now);
            write(&mut batch.encoder, (to.partition, *epoch), to.viewer, notice);
            if batch.encoder.bytes() >= BATCH_BYTES_MAX {
                self.send(index);
            }
        }
    }

    /// Sends the batches whose time has come.
    pub fn flush_due(&mut self, now: Instant) {
        for index in 0..self.batches.len() {
            if self.batches[index].since.is_some_and(|since| now.duration_since(since) >= self.interval) {
                self.send(index);
            }
        }
    }

    /// When the next batch is due.
    pub fn next_due(&self) -> Option<Instant> {
        self.batches.iter().filter_map(|batch| batch.since).min().map(|since| since + self.interval)
    }

    /// The flush interval follows the number of gateways.
    pub fn set_gateways_alive(&mut self, gateways_alive: usize) {
        self.interval = batch_interval(gateways_alive);
    }

    /// Viewers who have to be told everything again; asks once.
    pub fn take_unacknowledged(&self) -> BTreeSet<(GatewayIndex, UserId)> {
        std::mem::take(&mut *self.unacknowledged.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sends everything and waits for the acknowledgements, at most `limit`.
    pub fn end(&mut self, limit: Duration) {
        for index in 0..self.batches.len() {
            if self.batches[index].since.is_some() {
                self.send(index);
            }
        }
        if let Err(error) = self.producer.flush(limit) {
            tracing::warn!(%error, "the last batches were not acknowledged in time");
        }
    }

    fn send(&mut self, index: usize) {
        let batch = &mut self.batches[index];
        batch.since = None;
        let bytes = batch.encoder.finish(TimestampMs::now());
        metrics::counter!("nearby_batches_total").increment(1);
        metrics::counter!("nearby_batch_bytes_total").increment(bytes.len() as u64);
        let record: BaseRecord<'_, (), [u8], usize> =
            BaseRecord::with_opaque_to(&batch.topic, index).partition(0).payload(&bytes);
        if let Err((error, _)) = self.producer.send(record) {
            tracing::warn!(%error, topic = batch.topic, "a batch could not be sent: its viewers get snapshots");
            remember(&self.codec, &self.unacknowledged, index, &bytes);
        }
    }
}

fn write(encoder: &mut BatchEncoder, section: (i32, Epoch), viewer: UserId, notice: Notice) {
    match notice {
        Notice::FriendMoved { friend, place, updated_at, distance_dm, .. } => {
            encoder.friend_moved(section, (friend, place, updated_at), ViewerDistance { viewer, distance_dm });
        }
        Notice::FriendLeft { friend, reason, .. } => encoder.friend_left(section, (friend, reason), viewer),
        Notice::ViewerMoved { place, .. } => encoder.viewer_moved(section, viewer, place),
        Notice::Snapshot { snapshot, .. } => encoder.viewer_snapshot(section, &snapshot),
    }
}
