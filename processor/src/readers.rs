//! Records become wakes: decoding happens on the readers' threads, so that the engine's thread only decides.
//!
//! An undecodable record is counted here. Exactly one reader of each topic also writes the dead letter: for `sessions` that is
//! the partition's owner, here; for `location-events` and `friend-lists` it is the sink, and for `gateways` the ingest.

use crate::records::{Decoders, Raw};
use crate::wake::{Reported, Source, Wake};
use nearby_schemas::TimestampMs;
use nearby_service::append::Appender;
use nearby_service::dead_letters::bury;
use nearby_service::kafka::Kafka;
use nearby_service::reader::{Closed, OutOfLog, Read, Reader, Start};
use nearby_service::{Stop, reader};
use rdkafka::Message;
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;

/// Readers of the owned partitions.
pub(crate) struct Readers {
    lists: Reader,
    sessions: Reader,
    /// Of the latest reading that began.
    generation: Arc<AtomicU64>,
}

impl Readers {
    /// Starts hearing every report, from this append time on, and every heartbeat; owned partitions are added later.
    pub fn start(
        kafka: &Kafka,
        partitions: i32,
        oldest: TimestampMs,
        wakes: &SyncSender<Wake>,
        appender: &Appender,
        stop: &Stop,
    ) -> Result<Readers, KafkaError> {
        hear_reports(kafka, partitions, oldest, wakes.clone(), stop)?;
        hear_heartbeats(kafka, partitions, wakes.clone(), stop)?;
        let generation = Arc::new(AtomicU64::new(0));
        let wakes = Wakes { wakes: wakes.clone(), generation: Arc::clone(&generation) };
        let lists = hear_lists(kafka, partitions, wakes.clone(), stop)?;
        let sessions = hear_sessions(kafka, partitions, wakes, appender.clone(), stop)?;
        Ok(Readers { lists, sessions, generation })
    }

    /// Reads lists and sessions of these partitions from the beginning, in a reading of this generation.
    pub fn add(&self, partitions: &[i32], generation: u64) -> Result<(), KafkaError> {
        self.generation.store(generation, Ordering::Release);
        let starts: Vec<(i32, Start)> = partitions.iter().map(|partition| (*partition, Start::Beginning)).collect();
        self.lists.add(&starts)?;
        self.sessions.add(&starts)
    }

    /// Reads a partition's lists and sessions no longer.
    pub fn remove(&self, partition: i32) -> Result<(), KafkaError> {
        let removed = self.lists.remove(&[partition]);
        self.sessions.remove(&[partition]).and(removed)
    }
}

/// A reader's way to the engine's thread.
#[derive(Clone)]
struct Wakes {
    wakes: SyncSender<Wake>,
    generation: Arc<AtomicU64>,
}

/// All partitions, from this append time on.
fn hear_reports(
    kafka: &Kafka,
    partitions: i32,
    oldest: TimestampMs,
    wakes: SyncSender<Wake>,
    stop: &Stop,
) -> Result<(), KafkaError> {
    let decoders = Decoders::new(partitions, &kafka.codecs);
    let mut gathered = Vec::new();
    // Partitions that are not restored yet, with the offsets up to which they have to be read.
    let mut unrestored: Option<BTreeMap<i32, i64>> = None;
    let (ends, ends_inbox) = std::sync::mpsc::channel();
    let mut caught_up = move |wakes: &SyncSender<Wake>, gathered: &mut Vec<Reported>, partition, next_offset| {
        // Sent before the first partition is added, so it is there; and once all are restored the map is empty.
        let unrestored = unrestored.get_or_insert_with(|| ends_inbox.recv().unwrap_or_default());
        if unrestored.get(&partition).is_some_and(|end| *end <= next_offset) {
            unrestored.remove(&partition);
            send(wakes, Wake::Reports(std::mem::take(gathered)))?;
            send(wakes, Wake::CaughtUp(Source::Reports, partition, 0))?;
        }
        Ok(())
    };
    let reader =
        Reader::start(kafka, kafka.topics.location_events(), OutOfLog::GoOnAtBeginning, stop.clone(), move |read| {
            match read {
                Read::Record(record) => {
                    gathered.extend(counted(record, decoders.report(raw(record))));
                    caught_up(&wakes, &mut gathered, record.partition(), record.offset() + 1)
                }
                Read::CaughtUp(partition) => caught_up(&wakes, &mut gathered, partition, i64::MAX),
                Read::Pause | Read::OffsetOutOfLog(_) if gathered.is_empty() => Ok(()),
                Read::Pause | Read::OffsetOutOfLog(_) => send(&wakes, Wake::Reports(std::mem::take(&mut gathered))),
            }
        })?;
    let starts = if kafka.embedded {
        (0..partitions).map(|partition| (partition, Start::Beginning)).collect()
    } else {
        reader.offsets_at(partitions, oldest.0)?
    };
    let end = |partition| reader.watermarks(partition).map(|(_, end)| (partition, end));
    let end_offsets = (0..partitions).map(end).collect::<Result<BTreeMap<i32, i64>, _>>()?;
    // The receiver lives as long as the reader's thread.
    drop(ends.send(end_offsets));
    reader.add(&starts)
}

fn hear_heartbeats(kafka: &Kafka, partitions: i32, wakes: SyncSender<Wake>, stop: &Stop) -> Result<(), KafkaError> {
    let decoders = Decoders::new(partitions, &kafka.codecs);
    let reader =
        Reader::start(
            kafka,
            kafka.topics.gateways(),
            OutOfLog::GoOnAtBeginning,
            stop.clone(),
            move |read| match read {
                Read::Record(record) => {
                    counted(record, decoders.heartbeat(raw(record))).map_or(Ok(()), |wake| send(&wakes, wake))
                }
                Read::CaughtUp(partition) => send(&wakes, Wake::CaughtUp(Source::Heartbeats, partition, 0)),
                Read::Pause | Read::OffsetOutOfLog(_) => Ok(()),
            },
        )?;
    reader.add(&[(0, Start::Beginning)])
}

fn hear_lists(kafka: &Kafka, partitions: i32, wakes: Wakes, stop: &Stop) -> Result<Reader, KafkaError> {
    let decoders = Decoders::new(partitions, &kafka.codecs);
    let mut gathered = Vec::new();
    Reader::start(kafka, kafka.topics.friend_lists(), OutOfLog::GoOnAtBeginning, stop.clone(), move |read| match read {
        Read::Record(record) => {
            gathered.extend(counted(record, decoders.list(raw(record))));
            Ok(())
        }
        other => hand_on(&wakes, &other, &mut gathered, Source::Lists, Wake::Lists),
    })
}

fn hear_sessions(
    kafka: &Kafka,
    partitions: i32,
    wakes: Wakes,
    appender: Appender,
    stop: &Stop,
) -> Result<Reader, KafkaError> {
    let decoders = Decoders::new(partitions, &kafka.codecs);
    let dead_letters = kafka.topics.dead_letters();
    let mut gathered = Vec::new();
    Reader::start(kafka, kafka.topics.sessions(), OutOfLog::GoOnAtBeginning, stop.clone(), move |read| match read {
        Read::Record(record) => {
            match decoders.session(raw(record)) {
                Ok(session) => gathered.push(session),
                // Not waited for: the next record goes on, and a lost dead letter is in the producer's log.
                Err(reason) => drop(bury(&appender, dead_letters.clone(), record, &reason)),
            }
            Ok(())
        }
        other => hand_on(&wakes, &other, &mut gathered, Source::Sessions, Wake::Sessions),
    })
}

/// Sends what was gathered, in front of the news that a partition is complete.
fn hand_on<T>(
    wakes: &Wakes,
    read: &Read<'_>,
    gathered: &mut Vec<T>,
    source: Source,
    wake: impl Fn(Vec<T>) -> Wake,
) -> Result<(), Closed> {
    // Taken before anything waits for the engine's thread: meanwhile that may have the partition read again, and this is not
    // the end of that reading. What remains is the moment between the client's poll and here.
    let generation = wakes.generation.load(Ordering::Acquire);
    if !gathered.is_empty() {
        send(&wakes.wakes, wake(std::mem::take(gathered)))?;
    }
    match read {
        Read::CaughtUp(partition) => send(&wakes.wakes, Wake::CaughtUp(source, *partition, generation)),
        Read::Record(_) | Read::Pause | Read::OffsetOutOfLog(_) => Ok(()),
    }
}

fn raw<'a>(record: &'a BorrowedMessage<'_>) -> Raw<'a> {
    let appended_at = record.timestamp().to_millis().map(TimestampMs);
    Raw { partition: record.partition(), key: record.key(), value: record.payload(), appended_at }
}

/// Takes what was decoded, or counts what could not be.
fn counted<T>(record: &BorrowedMessage<'_>, decoded: Result<T, String>) -> Option<T> {
    decoded.map_err(|reason| count_undecodable(record, &reason)).ok()
}

fn count_undecodable(record: &BorrowedMessage<'_>, reason: &str) {
    metrics::counter!("nearby_undecodable_records_total", "topic" => record.topic().to_owned()).increment(1);
    let (topic, partition, offset) = (record.topic(), record.partition(), record.offset());
    tracing::warn!(topic, partition, offset, reason, "undecodable record");
}

fn send(wakes: &SyncSender<Wake>, wake: Wake) -> Result<(), reader::Closed> {
    wakes.send(wake).map_err(|_| Closed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_belongs_to_the_reading_in_which_it_was_come_upon() {
        let (wakes, inbox) = std::sync::mpsc::sync_channel(2);
        let wakes = Wakes { wakes, generation: Arc::new(AtomicU64::new(1)) };
        let read_again = |_| {
            wakes.generation.store(2, Ordering::Release);
            Wake::Lists(Vec::new())
        };
        let handed_on = hand_on(&wakes, &Read::CaughtUp(7), &mut vec![()], Source::Lists, read_again);
        assert!(handed_on.is_ok());
        assert!(matches!(inbox.recv(), Ok(Wake::Lists(_))));
        assert!(matches!(inbox.recv(), Ok(Wake::CaughtUp(Source::Lists, 7, 1))));
    }
}
