//! Reading partitions from explicit offsets on a thread of its own.
//!
//! The consumer is assigned by hand and never subscribed: no rebalance can take a partition away in the middle of a record.

use crate::Stop;
use crate::kafka::{Kafka, REQUEST_TIMEOUT};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use std::sync::Arc;
use std::time::Duration;

/// After so many records in a row the handler gets to hand on what it has gathered.
const RECORDS_AT_ONCE_MAX: usize = 1_000;
/// How long a quiet reader sleeps before it looks at its stop signal.
const QUIET_POLL: Duration = Duration::from_millis(100);

/// What a reader comes upon.
pub enum Read<'a> {
    /// The next record of its partition.
    Record(&'a BorrowedMessage<'a>),
    /// All that was in this partition has been read.
    CaughtUp(i32),
    /// Nothing more right now, or enough in a row: hand on what was gathered.
    Pause,
    /// The wanted offset is not in the log (any more); only with [`OutOfLog::Report`].
    OffsetOutOfLog(KafkaError),
}

/// What to do when the wanted offset is not in the log, because retention removed it or the topic is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutOfLog {
    /// Read nothing more of the partition and say so: a hole matters.
    Report,
    /// Go on with the oldest record: what is gone no longer counts.
    GoOnAtBeginning,
}

/// The handler's receiver has gone: the reader ends.
pub struct Closed;

/// Where to start in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the oldest record.
    Beginning,
    /// At this offset.
    At(i64),
}

/// Keeps the ends of partitions, which are news to us, out of the client's log of errors.
struct Quiet;

impl ClientContext for Quiet {
    fn error(&self, error: KafkaError, reason: &str) {
        if !matches!(error, KafkaError::Global(RDKafkaErrorCode::PartitionEOF)) {
            tracing::warn!(%error, reason, "Kafka client");
        }
    }
}

impl ConsumerContext for Quiet {}

/// One topic's reader. Dropping it does not end the thread; the stop signal or [`Closed`] does.
#[derive(Clone)]
pub struct Reader {
    consumer: Arc<BaseConsumer<Quiet>>,
    topic: String,
}

impl Reader {
    /// Starts the thread, which reads nothing until partitions are added.
    ///
    /// # Errors
    /// On a bad configuration.
    pub fn start(
        kafka: &Kafka,
        topic: String,
        out_of_log: OutOfLog,
        stop: Stop,
        handle: impl FnMut(Read<'_>) -> Result<(), Closed> + Send + 'static,
    ) -> Result<Reader, KafkaError> {
        let mut config = kafka.reader_config();
        let reset = match out_of_log {
            OutOfLog::Report => "error",
            OutOfLog::GoOnAtBeginning => "earliest",
        };
        config.set("auto.offset.reset", reset);
        let consumer: Arc<BaseConsumer<Quiet>> = Arc::new(config.create_with_context(Quiet)?);
        let reader = Reader { consumer, topic };
        let (consumer, name) = (Arc::clone(&reader.consumer), format!("read {}", reader.topic));
        let thread = std::thread::Builder::new().name(name);
        thread.spawn(move || run(&consumer, &stop, handle)).map_err(|_| KafkaError::Canceled)?;
        Ok(reader)
    }

    /// Reads these partitions too.
    ///
    /// # Errors
    /// What librdkafka says.
    pub fn add(&self, partitions: &[(i32, Start)]) -> Result<(), KafkaError> {
        let mut list = TopicPartitionList::new();
        for (partition, start) in partitions {
            let offset = match start {
                Start::Beginning => Offset::Beginning,
                Start::At(offset) => Offset::Offset(*offset),
            };
            list.add_partition_offset(&self.topic, *partition, offset)?;
        }
        self.consumer.incremental_assign(&list)
    }

    /// Reads these partitions no longer.
    ///
    /// # Errors
    /// What librdkafka says.
    pub fn remove(&self, partitions: &[i32]) -> Result<(), KafkaError> {
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            list.add_partition(&self.topic, *partition);
        }
        self.consumer.incremental_unassign(&list)
    }

    /// First and next offset of a partition. Blocks for at most [`REQUEST_TIMEOUT`].
    ///
    /// # Errors
    /// When no broker answers.
    pub fn watermarks(&self, partition: i32) -> Result<(i64, i64), KafkaError> {
        self.consumer.fetch_watermarks(&self.topic, partition, REQUEST_TIMEOUT)
    }

    /// For each partition the first offset whose record was appended at or after a time, or the end. Blocks.
    ///
    /// # Errors
    /// When no broker answers.
    pub fn offsets_at(&self, partitions: i32, timestamp_ms: i64) -> Result<Vec<(i32, Start)>, KafkaError> {
        let mut list = TopicPartitionList::new();
        for partition in 0..partitions {
            list.add_partition_offset(&self.topic, partition, Offset::Offset(timestamp_ms))?;
        }
        let found = self.consumer.offsets_for_times(list, REQUEST_TIMEOUT)?;
        let start = |element: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| match element.offset() {
            Offset::Offset(offset) => Ok((element.partition(), Start::At(offset))),
            // No record is that young: everything that comes from now on.
            _ => self.watermarks(element.partition()).map(|(_, end)| (element.partition(), Start::At(end))),
        };
        found.elements().iter().map(start).collect()
    }
}

fn run(consumer: &BaseConsumer<Quiet>, stop: &Stop, mut handle: impl FnMut(Read<'_>) -> Result<(), Closed>) {
    let mut in_a_row = 0;
    while !stop.is_cancelled() {
        let timeout = if in_a_row == 0 { QUIET_POLL } else { Duration::ZERO };
        let handled = match consumer.poll(timeout) {
            Some(Ok(record)) => {
                in_a_row += 1;
                let handled = handle(Read::Record(&record));
                if in_a_row < RECORDS_AT_ONCE_MAX {
                    handled
                } else {
                    in_a_row = 0;
                    handled.and_then(|()| handle(Read::Pause))
                }
            }
            None if in_a_row > 0 => {
                in_a_row = 0;
                handle(Read::Pause)
            }
            None => Ok(()),
            Some(Err(KafkaError::PartitionEOF(partition))) => handle(Read::CaughtUp(partition)),
            Some(Err(error)) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AutoOffsetReset) => {
                handle(Read::OffsetOutOfLog(error))
            }
            // Whatever else the client reports, it goes on trying by itself.
            Some(Err(error)) => {
                tracing::warn!(%error, "reading from Kafka");
                Ok(())
            }
        };
        if handled.is_err() {
            return;
        }
    }
}
