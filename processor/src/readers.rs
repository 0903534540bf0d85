//! Records become wakes: decoding happens on the readers' threads, so that the engine's thread only decides.
//!
//! An undecodable record is counted here. Exactly one reader of each topic also writes the dead letter: for `sessions` that is
//! the partition's owner, here; for `location-events` and `friend-lists` it is the sink, and for `gateways` the ingest.

use crate::wake::{Listed, Reported, Sessioned, Source, Wake};
use nearby_engine::EngineSettings;
use nearby_schemas::codec::{Codec, DecodeError, Record};
use nearby_schemas::partitioning::partition_of;
use nearby_schemas::{FriendList, GatewayHeartbeat, GatewayId, LocationEvent, Session, TimestampMs, UserId};
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

/// Readers of the owned partitions, and how far the positions had to be read at the start.
pub(crate) struct Readers {
    lists: Reader,
    sessions: Reader,
    /// Partitions of `location-events`.
    pub partitions: i32,
    /// Grows with every partition that is added, so that the end of an earlier reading is not taken for that of a later one.
    generation: Arc<AtomicU64>,
    /// The generation in which each owned partition was added.
    added: BTreeMap<i32, u64>,
}

impl Readers {
    /// Starts hearing every report and heartbeat; owned partitions are added later.
    pub fn start(
        kafka: &Kafka,
        partitions: i32,
        engine: &EngineSettings,
        wakes: &SyncSender<Wake>,
        appender: &Appender,
        stop: &Stop,
    ) -> Result<Readers, KafkaError> {
        hear_reports(kafka, partitions, engine, wakes.clone(), stop)?;
        hear_heartbeats(kafka, wakes.clone(), stop)?;
        let generation = Arc::new(AtomicU64::new(0));
        let wakes = Wakes { wakes: wakes.clone(), generation: Arc::clone(&generation) };
        let lists = hear_lists(kafka, partitions, wakes.clone(), stop)?;
        let sessions = hear_sessions(kafka, partitions, wakes, appender.clone(), stop)?;
        Ok(Readers { lists, sessions, partitions, generation, added: BTreeMap::new() })
    }

    /// Reads lists and sessions of these partitions from the beginning.
    pub fn add(&mut self, partitions: &[i32]) -> Result<(), KafkaError> {
        let generation = self.generation.fetch_add(1, Ordering::AcqRel) + 1;
        self.added.extend(partitions.iter().map(|partition| (*partition, generation)));
        let starts: Vec<(i32, Start)> = partitions.iter().map(|partition| (*partition, Start::Beginning)).collect();
        self.lists.add(&starts)?;
        self.sessions.add(&starts)
    }

    /// Reads a partition's lists and sessions no longer.
    pub fn remove(&mut self, partition: i32) -> Result<(), KafkaError> {
        self.added.remove(&partition);
        let removed = self.lists.remove(&[partition]);
        self.sessions.remove(&[partition]).and(removed)
    }

    /// Whether news of this generation is about the reading that goes on now.
    pub fn is_current(&self, partition: i32, generation: u64) -> bool {
        self.added.get(&partition).is_some_and(|added| generation >= *added)
    }
}

/// A reader's way to the engine's thread.
#[derive(Clone)]
struct Wakes {
    wakes: SyncSender<Wake>,
    generation: Arc<AtomicU64>,
}

/// All partitions, from as long ago as a position may still count.
fn hear_reports(
    kafka: &Kafka,
    partitions: i32,
    engine: &EngineSettings,
    wakes: SyncSender<Wake>,
    stop: &Stop,
) -> Result<(), KafkaError> {
    let codec = Codec::<LocationEvent>::new();
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
                    if let Some(event) = decode(&codec, record) {
                        let time = record
                            .timestamp()
                            .to_millis()
                            .map_or(event.reported_at, |appended| event.reported_at.min(TimestampMs(appended)));
                        gathered.push(Reported {
                            user: event.user_id,
                            time,
                            place: event.position.map(|at| at.place()),
                        });
                    }
                    caught_up(&wakes, &mut gathered, record.partition(), record.offset() + 1)
                }
                Read::CaughtUp(partition) => caught_up(&wakes, &mut gathered, partition, i64::MAX),
                Read::Pause | Read::OffsetOutOfLog(_) if gathered.is_empty() => Ok(()),
                Read::Pause | Read::OffsetOutOfLog(_) => send(&wakes, Wake::Reports(std::mem::take(&mut gathered))),
            }
        })?;
    let oldest_ms = TimestampMs::now().plus_ms(-engine.inactive_after_ms).0;
    let starts = if kafka.embedded {
        (0..partitions).map(|partition| (partition, Start::Beginning)).collect()
    } else {
        reader.offsets_at(partitions, oldest_ms)?
    };
    let end = |partition| reader.watermarks(partition).map(|(_, end)| (partition, end));
    let end_offsets = (0..partitions).map(end).collect::<Result<BTreeMap<i32, i64>, _>>()?;
    // The receiver lives as long as the reader's thread.
    drop(ends.send(end_offsets));
    reader.add(&starts)
}

fn hear_heartbeats(kafka: &Kafka, wakes: SyncSender<Wake>, stop: &Stop) -> Result<(), KafkaError> {
    let codec = Codec::<GatewayHeartbeat>::new();
    let reader = Reader::start(kafka, kafka.topics.gateways(), OutOfLog::GoOnAtBeginning, stop.clone(), move |read| {
        let Read::Record(record) = read else { return Ok(()) };
        if record.payload().is_none() {
            let key = record.key().and_then(|key| std::str::from_utf8(key).ok());
            return match key.and_then(|key| GatewayId::new(key).ok()) {
                Some(gateway) => send(&wakes, Wake::Heartbeat(gateway, None)),
                None => Ok(()),
            };
        }
        let Some(heartbeat) = decode(&codec, record) else { return Ok(()) };
        let appended_at = TimestampMs(record.timestamp().to_millis().unwrap_or_default());
        send(&wakes, Wake::Heartbeat(heartbeat.gateway, Some(appended_at)))
    })?;
    reader.add(&[(0, Start::Beginning)])
}

fn hear_lists(kafka: &Kafka, partitions: i32, wakes: Wakes, stop: &Stop) -> Result<Reader, KafkaError> {
    let codec = Codec::<FriendList>::new();
    let mut gathered = Vec::new();
    Reader::start(kafka, kafka.topics.friend_lists(), OutOfLog::GoOnAtBeginning, stop.clone(), move |read| match read {
        Read::Record(record) => {
            let list = if record.payload().is_some() {
                decode(&codec, record).map(|list| (list.user_id, Some(list.friends)))
            } else {
                key_of(record).and_then(|key| key.parse().ok()).map(|viewer| (viewer, None))
            };
            if let Some((viewer, friends)) = list
                && belongs(viewer, record, partitions)
            {
                gathered.push(Listed { partition: record.partition(), viewer, friends });
            }
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
    let codec = Codec::<Session>::new();
    let dead_letters = kafka.topics.dead_letters();
    let mut gathered = Vec::new();
    Reader::start(kafka, kafka.topics.sessions(), OutOfLog::GoOnAtBeginning, stop.clone(), move |read| match read {
        Read::Record(record) => {
            match session(&codec, record, partitions) {
                Ok((user, gateway, ask)) => {
                    gathered.push(Sessioned { partition: record.partition(), user, gateway, ask });
                }
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
    if !gathered.is_empty() {
        send(&wakes.wakes, wake(std::mem::take(gathered)))?;
    }
    match read {
        Read::CaughtUp(partition) => {
            let generation = wakes.generation.load(Ordering::Acquire);
            send(&wakes.wakes, Wake::CaughtUp(source, *partition, generation))
        }
        Read::Record(_) | Read::Pause | Read::OffsetOutOfLog(_) => Ok(()),
    }
}

fn session(
    codec: &Codec<Session>,
    record: &BorrowedMessage<'_>,
    partitions: i32,
) -> Result<(UserId, GatewayId, Option<i64>), String> {
    let session = match record.payload() {
        Some(payload) => {
            let session = codec.decode(payload).map_err(|error| error.to_string())?;
            (session.user_id, session.gateway, Some(session.ask))
        }
        None => {
            let key = key_of(record).and_then(Session::parse_key).ok_or("a tombstone whose key is not user/gateway")?;
            (key.0, key.1, None)
        }
    };
    let home = partition_of(session.0, partitions);
    if home != record.partition() {
        return Err(format!("the user belongs on partition {home}"));
    }
    Ok(session)
}

/// Whether the record is where the Java client's partitioner puts its user; elsewhere it would have a second owner.
fn belongs(user: UserId, record: &BorrowedMessage<'_>, partitions: i32) -> bool {
    let home = partition_of(user, partitions);
    if home != record.partition() {
        count_undecodable(record, &format!("the user belongs on partition {home}"));
    }
    home == record.partition()
}

fn decode<R: Record>(codec: &Codec<R>, record: &BorrowedMessage<'_>) -> Option<R> {
    let decoded = record.payload().ok_or(DecodeError::NotSingleObject).and_then(|payload| codec.decode(payload));
    decoded.map_err(|error| count_undecodable(record, &error.to_string())).ok()
}

fn count_undecodable(record: &BorrowedMessage<'_>, reason: &str) {
    metrics::counter!("nearby_undecodable_records_total", "topic" => record.topic().to_owned()).increment(1);
    let (topic, partition, offset) = (record.topic(), record.partition(), record.offset());
    tracing::warn!(topic, partition, offset, reason, "undecodable record");
}

fn key_of<'a>(record: &'a BorrowedMessage<'_>) -> Option<&'a str> {
    record.key().and_then(|key| std::str::from_utf8(key).ok())
}

fn send(wakes: &SyncSender<Wake>, wake: Wake) -> Result<(), reader::Closed> {
    wakes.send(wake).map_err(|_| Closed)
}
