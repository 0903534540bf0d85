//! Reading what is in the log: topics, ranges of offsets, and records of several topics in one order.
//!
//! The order is that of (append time, topic, partition, offset). Within a partition it is the order of offsets, whatever the
//! times say: a record counts as appended no earlier than the ones before it. So the same log is always read in the same
//! order, however Kafka hands it out. Everything here blocks.

use nearby_schemas::TimestampMs;
use nearby_service::kafka::{Kafka, REQUEST_TIMEOUT};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::{ClientContext, Message, Offset, TopicPartitionList};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

/// Records that wait in memory for their turn, over all partitions of a topic.
const WAITING_MAX: usize = 200_000;
/// Kafka is given up when it has sent nothing for so long.
const SILENCE_MAX: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);

/// The log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A client could not be made, or the broker did not answer a question.
    #[error("Kafka: {0}")]
    Kafka(#[from] KafkaError),
    /// A topic is not there.
    #[error("topic {0} is missing")]
    Missing(String),
    /// What was to be read is not there any more.
    #[error("records of {0} were removed while they were read: retention has come upon them")]
    Removed(String),
    /// Nothing came.
    #[error("Kafka has sent nothing of {topic} for {SILENCE_MAX:?}{}", .because.as_ref().map(|because| format!(": {because}")).unwrap_or_default())]
    Silent {
        /// Of which topic.
        topic: String,
        /// The last thing that the client said.
        because: Option<KafkaError>,
    },
}

/// Offsets of a partition: from the first up to, but not including, the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub partition: i32,
    pub from: i64,
    pub end: i64,
}

/// A record in the order of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged<T> {
    /// When it counts as appended.
    pub time: TimestampMs,
    pub partition: i32,
    pub offset: i64,
    pub what: T,
}

/// Makes what is wanted out of a record.
pub type Decode<'a, T> = Box<dyn FnMut(&BorrowedMessage<'_>) -> T + 'a>;

/// Questions about the log.
pub struct Log {
    kafka: Kafka,
    asking: BaseConsumer<Quiet>,
}

impl Log {
    /// Connects lazily.
    pub fn open(kafka: &Kafka) -> Result<Log, LogError> {
        Ok(Log { kafka: kafka.clone(), asking: kafka.reader_config().create_with_context(Quiet)? })
    }

    /// Every topic of the cluster that is not Kafka's own, with the number of its partitions.
    pub fn topics(&self) -> Result<BTreeMap<String, i32>, LogError> {
        let metadata = self.asking.fetch_metadata(None, REQUEST_TIMEOUT)?;
        let own = metadata.topics().iter().filter(|topic| !topic.name().starts_with("__"));
        Ok(own
            .map(|topic| (topic.name().to_owned(), i32::try_from(topic.partitions().len()).unwrap_or(i32::MAX)))
            .filter(|(_, partitions)| *partitions > 0)
            .collect())
    }

    /// All that is in a topic now.
    pub fn spans(&self, topic: &str) -> Result<Vec<Span>, LogError> {
        let partitions = self.topics()?.get(topic).copied().ok_or_else(|| LogError::Missing(topic.to_owned()))?;
        let span = |partition| {
            let (from, end) = self.watermarks(topic, partition)?;
            Ok(Span { partition, from, end })
        };
        (0..partitions).map(span).collect()
    }

    /// A new client may have heard of a topic, and say of its partitions for a moment that it knows none.
    fn watermarks(&self, topic: &str, partition: i32) -> Result<(i64, i64), KafkaError> {
        let deadline = Instant::now() + REQUEST_TIMEOUT;
        loop {
            match self.asking.fetch_watermarks(topic, partition, REQUEST_TIMEOUT) {
                Err(error)
                    if error.rdkafka_error_code() == Some(RDKafkaErrorCode::UnknownPartition)
                        && Instant::now() < deadline =>
                {
                    std::thread::sleep(POLL);
                }
                answer => return answer,
            }
        }
    }

    /// For each partition the first offset within its span whose record is of that time or later, or the end.
    pub fn offsets_at(&self, topic: &str, spans: &[Span], time: TimestampMs) -> Result<Vec<i64>, LogError> {
        let mut list = TopicPartitionList::new();
        for span in spans {
            // Negative ones would be taken for names: the beginning, the end.
            list.add_partition_offset(topic, span.partition, Offset::Offset(time.0.max(0)))?;
        }
        let found = self.asking.offsets_for_times(list, REQUEST_TIMEOUT)?;
        let offset = |span: &Span| match found.find_partition(topic, span.partition).map(|found| found.offset()) {
            Some(Offset::Offset(offset)) => offset.clamp(span.from, span.end),
            _ => span.end,
        };
        let mut offsets: Vec<i64> = spans.iter().map(offset).collect();
        // Embedded Kafka finds nothing by time; what it says is checked with the last record.
        let last = |span: &Span| Span { from: span.from.max(span.end - 1), ..*span };
        let lasts: Vec<Span> =
            spans.iter().zip(&offsets).filter(|(span, at)| **at == span.end).map(|(span, _)| last(span)).collect();
        let times = self.first_times(topic, &lasts)?;
        for (last, _) in lasts.iter().zip(times).filter(|(_, last)| last.is_some_and(|last| last >= time)) {
            for (span, offset) in spans.iter().zip(&mut offsets).filter(|(span, _)| span.partition == last.partition) {
                *offset = self.search(topic, *span, time)?;
            }
        }
        Ok(offsets)
    }

    /// Reads until there is a record of that time.
    fn search(&self, topic: &str, span: Span, time: TimestampMs) -> Result<i64, LogError> {
        let mut merged = Merged::new(vec![self.read(topic, &[span], |_| ())?])?;
        while let Some(record) = merged.next()? {
            if record.time >= time {
                return Ok(record.offset);
            }
        }
        Ok(span.end)
    }

    /// Begins to read these spans of a topic.
    pub fn read<'a, T>(
        &self,
        topic: &str,
        spans: &[Span],
        decode: impl FnMut(&BorrowedMessage<'_>) -> T + 'a,
    ) -> Result<Reading<'a, T>, LogError> {
        let mut config = self.kafka.reader_config();
        config.set("auto.offset.reset", "error");
        let consumer: BaseConsumer<Quiet> = config.create_with_context(Quiet)?;
        let (mut list, mut partitions) = (TopicPartitionList::new(), BTreeMap::new());
        for span in spans {
            let is_empty = span.from >= span.end;
            if !is_empty {
                list.add_partition_offset(topic, span.partition, Offset::Offset(span.from))?;
            }
            let latest = TimestampMs(i64::MIN);
            let partition =
                Partition { end: span.end, read: is_empty, paused: false, latest, waiting: VecDeque::new() };
            partitions.insert(span.partition, partition);
        }
        if list.count() > 0 {
            consumer.assign(&list)?;
        }
        let waiting_max = (WAITING_MAX / spans.len().max(1)).max(2);
        Ok(Reading { consumer, topic: topic.to_owned(), decode: Box::new(decode), partitions, waiting_max })
    }

    /// When the oldest record of each span was appended; none where there is no record.
    pub fn first_times(&self, topic: &str, spans: &[Span]) -> Result<Vec<Option<TimestampMs>>, LogError> {
        let mut reading = self.read(topic, spans, |_| ())?;
        spans.iter().map(|span| Ok(reading.head(span.partition)?.map(|head| head.time))).collect()
    }
}

/// One topic that is being read, record by record.
pub struct Reading<'a, T> {
    consumer: BaseConsumer<Quiet>,
    topic: String,
    decode: Decode<'a, T>,
    partitions: BTreeMap<i32, Partition<T>>,
    waiting_max: usize,
}

struct Partition<T> {
    end: i64,
    /// Up to its end.
    read: bool,
    paused: bool,
    latest: TimestampMs,
    waiting: VecDeque<Logged<T>>,
}

impl<T> Reading<'_, T> {
    /// The next record of a partition, or none at its end.
    fn head(&mut self, partition: i32) -> Result<Option<&Logged<T>>, LogError> {
        let (mut silent_since, mut because) = (Instant::now(), None);
        while let Some(wanted) = self.partitions.get(&partition)
            && wanted.waiting.is_empty()
            && !wanted.read
        {
            let heard = match self.consumer.poll(POLL) {
                Some(Ok(record)) => {
                    let paused = take(&record, &mut self.partitions, &mut self.decode, self.waiting_max);
                    drop(record);
                    if let Some(partition) = paused {
                        self.consumer.pause(&self.one(partition))?;
                    }
                    true
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    self.partitions.get_mut(&partition).into_iter().for_each(|partition| partition.read = true);
                    true
                }
                Some(Err(error)) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AutoOffsetReset) => {
                    return Err(LogError::Removed(self.topic.clone()));
                }
                // Whatever else the client reports, it goes on trying by itself.
                Some(Err(error)) => {
                    because = Some(error);
                    false
                }
                None => false,
            };
            if heard {
                silent_since = Instant::now();
            } else if silent_since.elapsed() >= SILENCE_MAX {
                return Err(LogError::Silent { topic: self.topic.clone(), because });
            }
        }
        Ok(self.partitions.get(&partition).and_then(|partition| partition.waiting.front()))
    }

    /// Takes the record that is the head.
    fn pop(&mut self, partition: i32) -> Result<Option<Logged<T>>, LogError> {
        let Some(from) = self.partitions.get_mut(&partition) else { return Ok(None) };
        let popped = from.waiting.pop_front();
        if from.paused && !from.read && from.waiting.len() <= self.waiting_max / 2 {
            from.paused = false;
            self.consumer.resume(&self.one(partition))?;
        }
        Ok(popped)
    }

    fn one(&self, partition: i32) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.topic, partition);
        list
    }
}

/// Puts a record where it waits for its turn; says which partition has to pause, because enough of it waits or all was read.
fn take<T>(
    record: &BorrowedMessage<'_>,
    partitions: &mut BTreeMap<i32, Partition<T>>,
    decode: &mut Decode<'_, T>,
    waiting_max: usize,
) -> Option<i32> {
    let (number, offset) = (record.partition(), record.offset());
    let partition = partitions.get_mut(&number).filter(|partition| !partition.read)?;
    if offset < partition.end {
        partition.latest = partition.latest.max(TimestampMs(record.timestamp().to_millis().unwrap_or_default()));
        let what = decode(record);
        partition.waiting.push_back(Logged { time: partition.latest, partition: number, offset, what });
    }
    partition.read = offset + 1 >= partition.end;
    let pauses = !partition.paused && (partition.read || partition.waiting.len() >= waiting_max);
    partition.paused |= pauses;
    pauses.then_some(number)
}

/// Several topics, read in one order.
pub struct Merged<'a, T> {
    readings: Vec<Reading<'a, T>>,
    /// The heads of all partitions: time, topic, partition.
    heads: BinaryHeap<Reverse<(TimestampMs, usize, i32)>>,
}

impl<'a, T> Merged<'a, T> {
    /// Waits until each partition has said what comes first in it.
    pub fn new(mut readings: Vec<Reading<'a, T>>) -> Result<Merged<'a, T>, LogError> {
        readings.sort_by(|a, b| a.topic.cmp(&b.topic));
        let mut merged = Merged { readings, heads: BinaryHeap::new() };
        for topic in 0..merged.readings.len() {
            let partitions: Vec<i32> = merged.readings[topic].partitions.keys().copied().collect();
            partitions.into_iter().try_for_each(|partition| merged.line_up(topic, partition))?;
        }
        Ok(merged)
    }

    /// The next record.
    pub fn next(&mut self) -> Result<Option<Logged<T>>, LogError> {
        let Some(Reverse((_, topic, partition))) = self.heads.pop() else { return Ok(None) };
        let record = self.readings[topic].pop(partition)?;
        self.line_up(topic, partition)?;
        Ok(record)
    }

    fn line_up(&mut self, topic: usize, partition: i32) -> Result<(), LogError> {
        if let Some(head) = self.readings[topic].head(partition)? {
            self.heads.push(Reverse((head.time, topic, partition)));
        }
        Ok(())
    }
}

/// Ends of partitions are news to us, and failures are told by who asked: the client's own lines would only repeat it.
pub struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}
    fn error(&self, _: KafkaError, _: &str) {}
}

impl ConsumerContext for Quiet {}
