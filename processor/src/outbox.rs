//! Batches on their way into Kafka; who was told by one that got lost is remembered.

use crate::packing::{Batch, viewers_of};
use nearby_engine::GatewayIndex;
use nearby_schemas::UserId;
use nearby_schemas::batch::FriendMovedBatch;
use nearby_schemas::codec::Codec;
use nearby_service::kafka::Kafka;
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{ClientContext, Message};
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Sends batches.
pub(crate) struct Outbox {
    producer: ThreadedProducer<Deliveries>,
}

struct Deliveries {
    codec: Codec<FriendMovedBatch>,
    /// Viewers, each on one gateway, whose notices were not acknowledged.
    unacknowledged: Mutex<BTreeSet<(GatewayIndex, UserId)>>,
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    /// Index of the gateway.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, gateway: usize) {
        if let Err((error, record)) = result {
            tracing::warn!(%error, topic = record.topic(), "a batch was not acknowledged: its viewers get snapshots");
            self.remember(gateway, record.payload().unwrap_or_default());
        }
    }
}

impl Deliveries {
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
        let mut config = kafka.writer_config();
        // Batches are packed already: waiting for more would only add latency, and compressing them costs more than all else
        // (`make bench`). Where the network is dearer, `--kafka-property compression.codec=lz4` says so.
        config.set("linger.ms", "0");
        let deliveries = Deliveries { codec: kafka.codecs.codec(), unacknowledged: Mutex::default() };
        Ok(Outbox { producer: config.create_with_context(deliveries)? })
    }

    /// Hands a batch to Kafka for the topic of its gateway.
    pub fn send(&self, topic: &str, batch: &Batch) {
        metrics::counter!("nearby_batches_total").increment(1);
        metrics::counter!("nearby_batch_bytes_total").increment(batch.bytes.len() as u64);
        let gateway = batch.gateway.0 as usize;
        let record: BaseRecord<'_, (), [u8], usize> =
            BaseRecord::with_opaque_to(topic, gateway).partition(0).payload(&batch.bytes);
        if let Err((error, _)) = self.producer.send(record) {
            tracing::warn!(%error, topic, "a batch could not be sent: its viewers get snapshots");
            self.producer.client().context().remember(gateway, &batch.bytes);
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
}
