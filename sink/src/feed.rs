//! Records of one topic out of Kafka, decoded on the reader's thread, through a bounded channel.
//!
//! A feed reads the partitions that it was started with, from their offsets. When these change, it is replaced: what
//! an old feed had under way can't be mistaken for what a new one reads.

use crate::record::{Decoder, Record};
use nearby_service::Stop;
use nearby_service::consume;
use nearby_service::kafka::Kafka;
use nearby_service::reader::{Closed, OutOfLog, Read, Reader, Start};
use rdkafka::error::KafkaError;
use tokio::sync::mpsc;
use tokio_util::sync::DropGuard;

/// Records that go through the channel at once.
const CHUNK_ROWS_MAX: usize = 1_000;
/// So large they are at most, but for the last of them: a long friend list is as large as a thousand reports.
const CHUNK_BYTES_MAX: usize = 1 << 20;

/// What comes out of a feed.
pub enum Fed {
    /// Records in the order of the log.
    Records(Vec<Record>),
    /// Kafka refuses an offset; its own words.
    OffsetRefused(String),
}

/// A running reader. Dropping it ends the reader's thread.
pub struct Feed {
    // The first to be dropped: the last handle of a consumer closes it, which is for the reader's thread to do.
    reader: Reader,
    records: mpsc::Receiver<Fed>,
    _stop: DropGuard,
}

impl Feed {
    /// Starts reading. At most `backlog_max` records wait for [`next`](Feed::next).
    ///
    /// # Errors
    /// What librdkafka says.
    pub fn start(
        kafka: &Kafka,
        topic: String,
        decoder: Decoder,
        partitions: &[(i32, Option<i64>)],
        backlog_max: usize,
    ) -> Result<Feed, KafkaError> {
        let stop = Stop::new();
        let (sender, records) = mpsc::channel((backlog_max / CHUNK_ROWS_MAX).max(1));
        let mut chunk = Chunk { records: Vec::new(), bytes: 0 };
        let handle = move |read: Read<'_>| match read {
            Read::Record(message) => {
                chunk.push(record(&decoder, message));
                if chunk.is_full() { chunk.hand_on(&sender) } else { Ok(()) }
            }
            Read::CaughtUp(..) | Read::Pause => chunk.hand_on(&sender),
            Read::OffsetOutOfLog(error) => {
                chunk.hand_on(&sender)?;
                sender.blocking_send(Fed::OffsetRefused(error.to_string())).map_err(|_| Closed)
            }
        };
        let reader = Reader::start(kafka, topic, OutOfLog::Report, stop.clone(), handle)?;
        let start = |(partition, next): &(i32, Option<i64>)| (*partition, next.map_or(Start::Beginning, Start::At));
        reader.add(&partitions.iter().map(start).collect::<Vec<_>>(), 0);
        Ok(Feed { reader, records, _stop: stop.drop_guard() })
    }

    /// What comes next; `None` if the reader's thread has ended.
    pub async fn next(&mut self) -> Option<Fed> {
        self.records.recv().await
    }

    /// To ask Kafka something. Drop it on a thread that may block.
    pub fn reader(&self) -> Reader {
        self.reader.clone()
    }
}

/// What goes through the channel at once.
struct Chunk {
    records: Vec<Record>,
    bytes: usize,
}

impl Chunk {
    fn push(&mut self, record: Record) {
        self.bytes += record.bytes();
        self.records.push(record);
    }

    fn is_full(&self) -> bool {
        self.records.len() >= CHUNK_ROWS_MAX || self.bytes >= CHUNK_BYTES_MAX
    }

    fn hand_on(&mut self, sender: &mpsc::Sender<Fed>) -> Result<(), Closed> {
        if self.records.is_empty() {
            return Ok(());
        }
        self.bytes = 0;
        sender.blocking_send(Fed::Records(std::mem::take(&mut self.records))).map_err(|_| Closed)
    }
}

fn record(decoder: &Decoder, message: &consume::Record<'_>) -> Record {
    decoder.decode(message.partition(), message.offset(), message.key(), message.value(), message.appended_at())
}
