//! Reading partitions from explicit offsets on a thread of its own.
//!
//! The consumer is assigned by hand and never subscribed: no rebalance can take a partition away in the middle of a record.
//! The thread alone knows how far each partition was read; what others want of it are requests, which it takes between two
//! fetches. It also looks after partitions that have fallen silent, and measures how far behind it is.

use crate::Stop;
use crate::consume::{Fetched, Queue, Record};
use crate::kafka::{Kafka, REQUEST_TIMEOUT};
use crate::lifelines;
use crate::progress::{Moved, Progress};
use nearby_schemas::TimestampMs;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, TryRecvError};
use std::time::{Duration, Instant};

/// How long a quiet reader waits before it looks at its requests and its stop signal.
const QUIET_WAIT: Duration = Duration::from_millis(20);
/// What a broker did not answer is asked again after so long; while it is asked, nothing is read.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
const ASK_TIMEOUT: Duration = Duration::from_millis(500);
/// How often it measures how far behind it is, and looks for partitions that have fallen silent.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How often it says how much there is still to be read.
const TELL_INTERVAL: Duration = Duration::from_secs(5);

/// What a reader comes upon.
pub enum Read<'a> {
    /// The next record of its partition.
    Record(&'a Record<'a>),
    /// All that was in this partition when it was added has been read; with the number of the reading, as given to
    /// [`Reader::add`].
    CaughtUp(i32, u64),
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
pub(crate) struct Quiet;

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
    requests: mpsc::Sender<Request>,
    is_behind: Arc<AtomicBool>,
}

enum Request {
    Add(Vec<(i32, Start)>, u64),
    /// Read these ranges of offsets and no further.
    AddRanges(Vec<(i32, i64, i64)>),
    Remove(Vec<i32>),
}

impl Reader {
    /// Starts a thread that reads, of each of these partitions, the offsets from the first number to before the second, which
    /// is greater, and no more. The older part of the log is what that is for, and it is measured by this name.
    ///
    /// # Errors
    /// On a bad configuration.
    pub fn of_ranges(
        kafka: &Kafka,
        topic: String,
        ranges: Vec<(i32, i64, i64)>,
        stop: Stop,
        handle: impl FnMut(Read<'_>) -> Result<(), Closed> + Send + 'static,
    ) -> Result<(), KafkaError> {
        let measured_as = format!("{topic} (older)");
        let reader = Reader::spawn(kafka, topic, measured_as, OutOfLog::GoOnAtBeginning, stop, handle)?;
        reader.request(Request::AddRanges(ranges));
        Ok(())
    }

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
        Reader::spawn(kafka, topic.clone(), topic, out_of_log, stop, handle)
    }

    fn spawn(
        kafka: &Kafka,
        topic: String,
        measured_as: String,
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
        lifelines::hold_consumer(kafka, &topic, &consumer);
        let (requests, inbox) = mpsc::channel();
        let is_behind = Arc::default();
        let reader = Reader {
            consumer: Arc::clone(&consumer),
            topic: topic.clone(),
            requests,
            is_behind: Arc::clone(&is_behind),
        };
        let thread = std::thread::Builder::new().name(format!("read {measured_as}"));
        let (queue, progress) = (Queue::new(Arc::clone(&consumer), &topic), Progress::default());
        let reading = Reading { queue, consumer, topic, measured_as, progress, is_behind };
        thread.spawn(move || reading.run(&inbox, &stop, handle)).map_err(|_| KafkaError::Canceled)?;
        Ok(reader)
    }

    /// Reads these partitions too. Each is caught up when all has been read that was there when the broker was asked, which
    /// is soon after this.
    pub fn add(&self, partitions: &[(i32, Start)], reading: u64) {
        self.request(Request::Add(partitions.to_vec(), reading));
    }

    /// Reads these partitions no longer.
    pub fn remove(&self, partitions: &[i32]) {
        self.request(Request::Remove(partitions.to_vec()));
    }

    /// Whether what is still to be read would take more than a second, as fast as it goes now; measured once a second.
    pub fn is_behind(&self) -> bool {
        self.is_behind.load(Ordering::Relaxed)
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
    pub fn offsets_at(&self, partitions: i32, timestamp_ms: i64) -> Result<Vec<(i32, i64)>, KafkaError> {
        let mut list = TopicPartitionList::new();
        for partition in 0..partitions {
            list.add_partition_offset(&self.topic, partition, Offset::Offset(timestamp_ms))?;
        }
        let found = self.consumer.offsets_for_times(list, REQUEST_TIMEOUT)?;
        let start = |element: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| match element.offset() {
            Offset::Offset(offset) => Ok((element.partition(), offset)),
            // No record is that young: everything that comes from now on.
            _ => self.watermarks(element.partition()).map(|(_, end)| (element.partition(), end)),
        };
        found.elements().iter().map(start).collect()
    }

    fn request(&self, request: Request) {
        // A reader that has ended reads nothing, whatever is asked of it.
        drop(self.requests.send(request));
    }
}

/// The thread's part.
struct Reading {
    // The first to be dropped: see there.
    queue: Queue<Quiet>,
    consumer: Arc<BaseConsumer<Quiet>>,
    topic: String,
    /// In metrics.
    measured_as: String,
    progress: Progress,
    is_behind: Arc<AtomicBool>,
}

impl Reading {
    fn run(
        mut self,
        inbox: &mpsc::Receiver<Request>,
        stop: &Stop,
        mut handle: impl FnMut(Read<'_>) -> Result<(), Closed>,
    ) {
        // What the broker has still to be asked about.
        let mut unanswered: VecDeque<(Vec<(i32, Start)>, u64)> = VecDeque::new();
        let mut ask_at = Instant::now();
        let mut look_at = Instant::now() + LOOK_INTERVAL;
        let mut tell_at = Instant::now() + TELL_INTERVAL;
        while !stop.is_cancelled() {
            loop {
                match inbox.try_recv() {
                    Ok(Request::Add(partitions, reading)) => unanswered.push_back((partitions, reading)),
                    Ok(Request::AddRanges(ranges)) => self.add_ranges(&ranges),
                    Ok(Request::Remove(partitions)) => {
                        for (waiting, _) in &mut unanswered {
                            waiting.retain(|(partition, _)| !partitions.contains(partition));
                        }
                        unanswered.retain(|(waiting, _)| !waiting.is_empty());
                        self.remove(&partitions);
                    }
                    // Whoever started it has all it wants of it; the stop signal ends it.
                    Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
                }
            }
            if Instant::now() >= ask_at
                && let Some((partitions, reading)) = unanswered.pop_front()
                && let Err(error) = self.add(&partitions, reading)
            {
                tracing::warn!(%error, topic = self.topic, "partitions cannot be read yet");
                ask_at = Instant::now() + RETRY_INTERVAL;
                // One by one: the others must not wait for one that has no leader.
                unanswered.extend(partitions.into_iter().map(|partition| (vec![partition], reading)));
            }
            if self.fetch(&mut handle).is_err() {
                break;
            }
            if Instant::now() >= look_at {
                look_at = Instant::now() + LOOK_INTERVAL;
                self.look_after_silent();
                let (unread, _) = self.progress.behind(|partition| self.queue.known_end(partition));
                self.is_behind.store(self.progress.is_behind(unread), Ordering::Relaxed);
                self.measure();
            }
            if Instant::now() >= tell_at {
                tell_at = Instant::now() + TELL_INTERVAL;
                let remaining = self.progress.remaining();
                if remaining > 0 {
                    tracing::info!(topic = self.measured_as, remaining, "reading what was there at the start");
                }
            }
        }
        let topic = self.measured_as.clone();
        metrics::gauge!("nearby_restore_remaining_records", "topic" => topic).set(0.0);
    }

    /// Whatever is there now, or comes within a moment.
    fn fetch(&mut self, handle: &mut impl FnMut(Read<'_>) -> Result<(), Closed>) -> Result<(), Closed> {
        let Reading { queue, progress, .. } = self;
        let began = Instant::now();
        let (mut waited, mut no_more) = (None, Vec::new());
        for fetched in queue.fetch(QUIET_WAIT) {
            waited.get_or_insert_with(|| began.elapsed());
            let moved = match fetched {
                Fetched::Record(record) => {
                    let moved = progress.record(record.partition(), record.offset(), record.appended_at());
                    if !matches!(moved, Moved::Unwanted | Moved::RangeOver) {
                        handle(Read::Record(&record))?;
                    }
                    (record.partition(), moved)
                }
                Fetched::End(partition, offset) => (partition, progress.end(partition, offset)),
                Fetched::Failed(partition, RDKafkaErrorCode::AutoOffsetReset, words) => {
                    tracing::warn!(words, topic = self.topic, partition, "an offset is not in the log");
                    if progress.remove(partition) {
                        no_more.push(partition);
                    }
                    handle(Read::OffsetOutOfLog(KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset)))?;
                    continue;
                }
                // Whatever else the client reports, it goes on trying by itself.
                Fetched::Failed(partition, code, words) => {
                    tracing::warn!(%code, words, topic = self.topic, partition, "reading from Kafka");
                    continue;
                }
            };
            match moved {
                (_, Moved::Unwanted | Moved::On) => {}
                (partition, Moved::CaughtUp(reading)) => handle(Read::CaughtUp(partition, reading))?,
                (partition, Moved::RangeRead | Moved::RangeOver) => {
                    no_more.push(partition);
                    handle(Read::CaughtUp(partition, 0))?;
                }
            }
        }
        progress.waited(waited.unwrap_or(QUIET_WAIT).min(QUIET_WAIT));
        if waited.is_some() {
            handle(Read::Pause)?;
        }
        self.unassign(&no_more);
        Ok(())
    }

    fn add(&mut self, partitions: &[(i32, Start)], reading: u64) -> Result<(), KafkaError> {
        let numbers: Vec<i32> = partitions.iter().map(|(partition, _)| *partition).collect();
        let ends = self.ends(&numbers)?;
        let mut list = TopicPartitionList::new();
        for (partition, start) in partitions {
            let offset = match start {
                Start::Beginning => Offset::Beginning,
                Start::At(offset) => Offset::Offset(*offset),
            };
            list.add_partition_offset(&self.topic, *partition, offset)?;
        }
        self.consumer.incremental_assign(&list)?;
        for ((partition, start), (_, end)) in partitions.iter().zip(ends) {
            let next = match start {
                Start::Beginning => None,
                Start::At(offset) => Some(*offset),
            };
            self.progress.add(*partition, next, end, reading);
        }
        self.measure();
        Ok(())
    }

    fn add_ranges(&mut self, ranges: &[(i32, i64, i64)]) {
        for (partition, from, to) in ranges {
            self.progress.add_range(*partition, *from, *to);
        }
        let starts: Vec<(i32, i64)> = ranges.iter().map(|(partition, from, _)| (*partition, *from)).collect();
        if let Err(error) = self.assign(&starts) {
            tracing::error!(%error, topic = self.topic, "ranges of offsets cannot be read");
        }
    }

    fn assign(&self, starts: &[(i32, i64)]) -> Result<(), KafkaError> {
        let mut list = TopicPartitionList::new();
        for (partition, offset) in starts {
            list.add_partition_offset(&self.topic, *partition, Offset::Offset(*offset))?;
        }
        self.consumer.incremental_assign(&list)
    }

    fn remove(&mut self, partitions: &[i32]) {
        let read: Vec<i32> = partitions.iter().copied().filter(|partition| self.progress.remove(*partition)).collect();
        self.unassign(&read);
    }

    fn unassign(&self, partitions: &[i32]) {
        if partitions.is_empty() {
            return;
        }
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            list.add_partition(&self.topic, *partition);
        }
        if let Err(error) = self.consumer.incremental_unassign(&list) {
            tracing::error!(%error, topic = self.topic, ?partitions, "cannot stop reading");
        }
    }

    /// The ends of these partitions now, in their order. Blocks for at most [`ASK_TIMEOUT`].
    fn ends(&self, partitions: &[i32]) -> Result<Vec<(i32, i64)>, KafkaError> {
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            // As a time to look up, it is the end.
            list.add_partition_offset(&self.topic, *partition, Offset::End)?;
        }
        let found = self.consumer.offsets_for_times(list, ASK_TIMEOUT)?;
        let end = |partition: &i32| {
            let element = found.find_partition(&self.topic, *partition).ok_or(KafkaError::Canceled)?;
            element.error()?;
            match element.offset() {
                Offset::Offset(end) => Ok((*partition, end)),
                _ => Err(KafkaError::Canceled),
            }
        };
        partitions.iter().map(end).collect()
    }

    /// A consumer can stop reading a partition without an error. Then the broker has more than we were given: the partition
    /// is assigned anew.
    fn look_after_silent(&mut self) {
        let silent = self.progress.silent();
        if silent.is_empty() {
            return;
        }
        // A broker that does not answer is the reason, then, and says so elsewhere.
        let Ok(ends) = self.ends(&silent) else { return self.progress.not_asked() };
        let stalled = self.progress.stalled(&ends);
        if stalled.is_empty() {
            return;
        }
        tracing::error!(topic = self.topic, ?stalled, "a consumer stopped reading without an error: assigned anew");
        metrics::counter!("nearby_reader_stalls_total", "topic" => self.topic.clone()).increment(stalled.len() as u64);
        self.unassign(&stalled.iter().map(|(partition, _)| *partition).collect::<Vec<_>>());
        let mut list = TopicPartitionList::new();
        let again = stalled.iter().try_for_each(|(partition, next)| {
            list.add_partition_offset(&self.topic, *partition, next.map_or(Offset::Beginning, Offset::Offset))
        });
        // Resumed, too: an assignment takes over what it finds.
        let again =
            again.and_then(|()| self.consumer.incremental_assign(&list)).and_then(|()| self.consumer.resume(&list));
        if let Err(error) = again {
            tracing::error!(%error, topic = self.topic, "assigning anew");
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "counts of records and milliseconds are far below 2^52")]
    fn measure(&self) {
        let topic = || self.measured_as.clone();
        // Ranges are not meant to reach the end.
        if self.measured_as == self.topic {
            let (records, read_at) = self.progress.behind(|partition| self.queue.known_end(partition));
            let age = |read_at| TimestampMs::now().since_ms(read_at).max(0) as f64 / 1000.0;
            metrics::gauge!("nearby_reader_lag_records", "topic" => topic()).set(records as f64);
            metrics::gauge!("nearby_reader_lag_seconds", "topic" => topic()).set(read_at.map_or(0.0, age));
        }
        metrics::gauge!("nearby_restore_remaining_records", "topic" => topic()).set(self.progress.remaining() as f64);
    }
}

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
