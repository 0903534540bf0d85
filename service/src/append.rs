//! Appending to the log with the broker's word that it is there.
//!
//! One request appends any number of records and learns once that all of them were acknowledged by all replicas. That is
//! cheaper than a future a record, and it is what callers want to know.
//!
//! An idempotent producer may fail for good, for instance when a broker has lost the end of its log: it then refuses every
//! further record for as long as it lives. The [`Appender`] goes on with a new one. What the old one had not got acknowledged
//! has failed, as after any other error, and its caller decides whether to say it again.

use crate::kafka::Kafka;
use crate::lifelines;
use rdkafka::ClientContext;
use rdkafka::error::KafkaError;
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// A producer that has failed for good is replaced at most so often: the next one may fail for the same reason.
const REPLACE_INTERVAL: Duration = Duration::from_secs(1);

/// A record on its way into the log.
#[derive(Clone, Debug, Default)]
pub struct Outgoing {
    /// Topic.
    pub topic: String,
    /// Partition; by key if `None`.
    pub partition: Option<i32>,
    /// Key.
    pub key: Option<Vec<u8>>,
    /// Value; a tombstone if `None`.
    pub value: Option<Vec<u8>>,
    /// Headers.
    pub headers: Option<OwnedHeaders>,
}

/// Not every record was acknowledged; those that were stay in the log.
#[derive(Debug, thiserror::Error)]
#[error("Kafka did not acknowledge: {0}")]
pub struct AppendError(#[from] pub KafkaError);

/// Ends when all records of a call are acknowledged or one has failed for good.
pub struct Acknowledged(oneshot::Receiver<Result<(), AppendError>>);

impl Future for Acknowledged {
    type Output = Result<(), AppendError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let heard = Pin::new(&mut self.0).poll(context);
        heard.map(|heard| heard.unwrap_or(Err(AppendError(KafkaError::Canceled))))
    }
}

/// Appends records to topics.
#[derive(Clone)]
pub struct Appender {
    kafka: Kafka,
    current: Arc<RwLock<Current>>,
}

/// The producer in use.
struct Current {
    producer: Arc<ThreadedProducer<Acknowledgements>>,
    /// When it was made, or when a replacement was last tried in vain.
    since: Instant,
}

struct Acknowledgements;

/// One call's records that were not heard of yet.
pub struct Pending {
    missing: AtomicUsize,
    failed: Mutex<Option<KafkaError>>,
    done: Mutex<Option<oneshot::Sender<Result<(), AppendError>>>>,
}

impl ClientContext for Acknowledgements {}

impl ProducerContext for Acknowledgements {
    type DeliveryOpaque = Arc<Pending>;

    fn delivery(&self, result: &DeliveryResult<'_>, pending: Arc<Pending>) {
        pending.heard(result.as_ref().err().map(|(error, _)| error.clone()));
    }
}

impl Pending {
    fn heard(&self, failed: Option<KafkaError>) {
        if failed.is_some() {
            *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = failed;
        }
        if self.missing.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner).take();
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(done) = done {
            // The caller may have gone away; the records are in the log all the same.
            drop(done.send(failed.map_or(Ok(()), |error| Err(AppendError(error)))));
        }
    }
}

impl Appender {
    /// Connects lazily; fails only on a bad configuration.
    ///
    /// # Errors
    /// What librdkafka says.
    pub fn new(kafka: &Kafka) -> Result<Appender, KafkaError> {
        let current = Current { producer: producer(kafka)?, since: Instant::now() };
        Ok(Appender { kafka: kafka.clone(), current: Arc::new(RwLock::new(current)) })
    }

    /// Appends all records, in order per partition; the future ends when all are acknowledged or one has failed for good.
    /// The records are handed over before this returns: two calls in a row keep their order.
    pub fn append(&self, records: impl ExactSizeIterator<Item = Outgoing>) -> Acknowledged {
        let (done, result) = oneshot::channel();
        let pending = Arc::new(Pending {
            // One more than there are records: the last word is ours, when all have been handed over.
            missing: AtomicUsize::new(records.len() + 1),
            failed: Mutex::new(None),
            done: Mutex::new(Some(done)),
        });
        self.replace_failed_producer();
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        for record in records {
            if let Err(error) = current.hand_over(&record, &pending) {
                pending.heard(Some(error));
            }
        }
        pending.heard(None);
        Acknowledged(result)
    }

    /// Appends one record.
    pub fn append_one(&self, record: Outgoing) -> Acknowledged {
        self.append(std::iter::once(record))
    }

    /// Waits for what is under way, at most `limit`. Blocks.
    ///
    /// # Errors
    /// When the limit has passed.
    pub fn flush(&self, limit: Duration) -> Result<(), KafkaError> {
        // Not under the lock: a waiting replacement would hold up everybody who appends.
        let producer = Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner).producer);
        producer.flush(limit)
    }

    fn replace_failed_producer(&self) {
        if !self.current.read().unwrap_or_else(PoisonError::into_inner).has_to_go() {
            return;
        }
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        // Another call may have been faster.
        if !current.has_to_go() {
            return;
        }
        current.since = Instant::now();
        let because = current.producer.client().fatal_error();
        tracing::error!(?because, "the Kafka producer has failed for good: going on with a new one");
        match producer(&self.kafka) {
            Ok(new) => retire(std::mem::replace(&mut current.producer, new)),
            Err(error) => tracing::error!(%error, "no new Kafka producer"),
        }
    }
}

impl Current {
    /// It has failed for good, and may be replaced again.
    fn has_to_go(&self) -> bool {
        self.producer.client().fatal_error().is_some() && self.since.elapsed() >= REPLACE_INTERVAL
    }

    fn hand_over(&self, outgoing: &Outgoing, pending: &Arc<Pending>) -> Result<(), KafkaError> {
        let mut record: BaseRecord<'_, [u8], [u8], Arc<Pending>> =
            BaseRecord::with_opaque_to(&outgoing.topic, Arc::clone(pending));
        record.partition = outgoing.partition;
        record.key = outgoing.key.as_deref();
        record.payload = outgoing.value.as_deref();
        record.headers = outgoing.headers.clone();
        self.producer.send(record).map_err(|(error, _)| error)
    }
}

fn producer(kafka: &Kafka) -> Result<Arc<ThreadedProducer<Acknowledgements>>, KafkaError> {
    let producer = Arc::new(kafka.writer_config().create_with_context(Acknowledgements)?);
    lifelines::hold_producer(kafka, &kafka.topics.dead_letters(), &producer);
    Ok(producer)
}

/// Drops a producer, which fails what it still holds and waits for its threads: not on the thread of who appends.
fn retire(producer: Arc<ThreadedProducer<Acknowledgements>>) {
    let thread = std::thread::Builder::new().name("retire producer".to_owned());
    if let Err(error) = thread.spawn(move || drop(producer)) {
        // Without a thread it was dropped here.
        tracing::warn!(%error, "no thread to retire a producer");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdkafka::mocking::MockCluster;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    #[tokio::test]
    async fn goes_on_after_the_producer_has_failed_for_good() {
        let cluster = MockCluster::new(1).expect("a mock cluster");
        cluster.create_topic("t", 1, 1).expect("creates the topic");
        let brokers = cluster.bootstrap_servers();
        let kafka = Kafka::embedded_at(brokers, "");
        let appender = Appender::new(&kafka).expect("a producer");
        let append = || appender.append_one(Outgoing { topic: "t".to_owned(), ..Outgoing::default() });
        append().await.expect("acknowledged");

        // A broker says so that has lost what it had acknowledged.
        let lost = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER];
        cluster.request_errors(RDKafkaApiKey::Produce, &lost);
        append().await.expect_err("not acknowledged");

        tokio::time::sleep(REPLACE_INTERVAL).await;
        append().await.expect("acknowledged by way of a new producer");
    }
}
