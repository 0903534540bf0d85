//! Appending to the log with the broker's word that it is there.
//!
//! One request appends any number of records and learns once that all of them were acknowledged by all replicas. That is
//! cheaper than a future a record, and it is what callers want to know.

use crate::kafka::Kafka;
use rdkafka::ClientContext;
use rdkafka::error::KafkaError;
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::oneshot;

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
    producer: Arc<ThreadedProducer<Acknowledgements>>,
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
        let producer = kafka.writer_config().create_with_context(Acknowledgements)?;
        Ok(Appender { producer: Arc::new(producer) })
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
        for record in records {
            if let Err(error) = self.hand_over(&record, &pending) {
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
        self.producer.flush(limit)
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
