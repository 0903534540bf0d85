//! Records become wakes: decoding happens once per process, on the readers' threads, so that the engines' threads only decide.
//!
//! An undecodable record is counted here. Exactly one reader of each topic also writes the dead letter: for `sessions` that is
//! the partition's owner, here; for `location-events` and `friend-lists` it is the sink, and for `gateways` the ingest.

use crate::records::{Decoders, Raw};
use crate::wake::{Engines, Reports, Source, Wake};
use nearby_schemas::TimestampMs;
use nearby_service::Stop;
use nearby_service::append::Appender;
use nearby_service::consume::Record;
use nearby_service::dead_letters::bury;
use nearby_service::kafka::Kafka;
use nearby_service::logs::Seldom;
use nearby_service::reader::{Closed, OutOfLog, Read, Reader, Start};
use rdkafka::error::KafkaError;
use std::sync::Arc;

/// Lists that wait for an engine together: a list is some KiB.
const LISTS_AT_ONCE_MAX: usize = 64;

/// From which append times on reports are read.
#[derive(Clone, Copy)]
pub(crate) struct History {
    pub oldest: TimestampMs,
    /// Where that which is read first begins, if not with the oldest.
    pub newest_since: Option<TimestampMs>,
}

/// Readers of all reports, and of the owned partitions.
pub(crate) struct Readers {
    reports: Reader,
    lists: Reader,
    sessions: Reader,
    /// How many engines this process has.
    engines: usize,
}

impl Readers {
    /// Starts hearing every report and every heartbeat; owned partitions are added later.
    pub fn start(
        kafka: &Kafka,
        partitions: i32,
        history: History,
        engines: &Engines,
        appender: &Appender,
        stop: &Stop,
    ) -> Result<Readers, KafkaError> {
        let reports = hear_reports(kafka, partitions, history, engines, stop)?;
        hear_heartbeats(kafka, partitions, engines.clone(), stop)?;
        let lists = hear_lists(kafka, partitions, engines.clone(), stop)?;
        let sessions = hear_sessions(kafka, partitions, engines.clone(), appender.clone(), stop)?;
        Ok(Readers { reports, lists, sessions, engines: engines.count() })
    }

    /// Whether the log has more reports than are read in a second.
    pub fn is_behind(&self) -> bool {
        self.reports.is_behind()
    }

    /// Reads lists and sessions of these partitions from the beginning, in a reading of this engine's generation.
    pub fn add(&self, engine: usize, partitions: &[i32], generation: u64) {
        let starts: Vec<(i32, Start)> = partitions.iter().map(|partition| (*partition, Start::Beginning)).collect();
        let reading = Reading { engine, generation }.number(self.engines);
        self.lists.add(&starts, reading);
        self.sessions.add(&starts, reading);
    }

    /// Reads a partition's lists and sessions no longer.
    pub fn remove(&self, partition: i32) {
        self.lists.remove(&[partition]);
        self.sessions.remove(&[partition]);
    }
}

/// All partitions, and for the engines in two parts where there is an older one.
fn hear_reports(
    kafka: &Kafka,
    partitions: i32,
    history: History,
    engines: &Engines,
    stop: &Stop,
) -> Result<Reader, KafkaError> {
    let decoders = Decoders::new(partitions, &kafka.codecs);
    let mut gathered = Reports::default();
    let (of_reader, topic) = (engines.clone(), kafka.topics.location_events());
    let hear = move |read: Read<'_>| {
        gather_reports(&read, &decoders, &mut gathered, |reports| {
            of_reader.wake_all(|| Wake::Reports(Arc::clone(&reports)));
        });
        if let Read::CaughtUp(partition, generation) = read {
            of_reader.wake_all(|| Wake::CaughtUp(Source::Reports, partition, generation));
        }
        Ok(())
    };
    let reader = Reader::start(kafka, topic, OutOfLog::GoOnAtBeginning, stop.clone(), hear)?;
    if kafka.embedded {
        reader.add(&(0..partitions).map(|partition| (partition, Start::Beginning)).collect::<Vec<_>>(), 0);
        return Ok(reader);
    }
    let starts = reader.offsets_at(partitions, history.newest_since.unwrap_or(history.oldest).0)?;
    reader.add(&starts.iter().map(|(partition, offset)| (*partition, Start::At(*offset))).collect::<Vec<_>>(), 0);
    if history.newest_since.is_none() {
        return Ok(reader);
    }
    let oldest = reader.offsets_at(partitions, history.oldest.0)?;
    let ranges = oldest.into_iter().zip(starts).map(|((partition, from), (_, to))| (partition, from, to)).collect();
    hear_older_reports(kafka, partitions, ranges, engines.clone(), stop)?;
    Ok(reader)
}

/// These ranges of offsets, whenever the engines have time for them.
fn hear_older_reports(
    kafka: &Kafka,
    partitions: i32,
    ranges: Vec<(i32, i64, i64)>,
    engines: Engines,
    stop: &Stop,
) -> Result<(), KafkaError> {
    let decoders = Decoders::new(partitions, &kafka.codecs);
    let mut gathered = Reports::default();
    let ranges: Vec<_> = ranges.into_iter().filter(|(_, from, to)| from < to).collect();
    if ranges.is_empty() {
        engines.wake_all_patiently(|| Wake::OlderAreRead);
        return Ok(());
    }
    let mut missing = ranges.len();
    let hear = move |read: Read<'_>| {
        gather_reports(&read, &decoders, &mut gathered, |reports| {
            engines.wake_all_patiently(|| Wake::OlderReports(Arc::clone(&reports)));
        });
        if let Read::CaughtUp(..) = read {
            missing -= 1;
        }
        if missing > 0 {
            return Ok(());
        }
        engines.wake_all_patiently(|| Wake::OlderAreRead);
        tracing::info!("older positions read");
        Err(Closed)
    };
    Reader::of_ranges(kafka, kafka.topics.location_events(), ranges, stop.clone(), hear)
}

/// Gathers reports, and hands them on when there is a pause, or before the news that a partition is complete.
fn gather_reports(read: &Read<'_>, decoders: &Decoders, gathered: &mut Reports, hand_on: impl FnOnce(Arc<Reports>)) {
    if let Read::Record(record) = read {
        gathered.reports.extend(counted(record, decoders.report(raw(record))));
        gathered.appended_at = record.appended_at();
    } else if !gathered.reports.is_empty() {
        hand_on(Arc::new(std::mem::take(gathered)));
    }
}

fn hear_heartbeats(kafka: &Kafka, partitions: i32, engines: Engines, stop: &Stop) -> Result<(), KafkaError> {
    let decoders = Decoders::new(partitions, &kafka.codecs);
    let hear = move |read: Read<'_>| {
        match read {
            Read::Record(record) => {
                if let Some((gateway, appended_at)) = counted(record, decoders.heartbeat(raw(record))) {
                    engines.wake_all(|| Wake::Heartbeat(gateway.clone(), appended_at));
                }
            }
            Read::CaughtUp(partition, generation) => {
                engines.wake_all(|| Wake::CaughtUp(Source::Heartbeats, partition, generation));
            }
            Read::Pause | Read::OffsetOutOfLog(_) => {}
        }
        Ok(())
    };
    let reader = Reader::start(kafka, kafka.topics.gateways(), OutOfLog::GoOnAtBeginning, stop.clone(), hear)?;
    reader.add(&[(0, Start::Beginning)], 0);
    Ok(())
}

fn hear_lists(kafka: &Kafka, partitions: i32, engines: Engines, stop: &Stop) -> Result<Reader, KafkaError> {
    let decoders = Decoders::new(partitions, &kafka.codecs);
    let mut gathered = Gathered::new(engines, Source::Lists, Wake::Lists);
    Reader::start(kafka, kafka.topics.friend_lists(), OutOfLog::GoOnAtBeginning, stop.clone(), move |read| {
        match read {
            Read::Record(record) => {
                if let Some(list) = counted(record, decoders.list(raw(record))) {
                    gathered.push(list.partition, list, LISTS_AT_ONCE_MAX);
                }
            }
            other => gathered.hand_on(&other),
        }
        Ok(())
    })
}

fn hear_sessions(
    kafka: &Kafka,
    partitions: i32,
    engines: Engines,
    appender: Appender,
    stop: &Stop,
) -> Result<Reader, KafkaError> {
    let decoders = Decoders::new(partitions, &kafka.codecs);
    let dead_letters = kafka.topics.dead_letters();
    let mut gathered = Gathered::new(engines, Source::Sessions, Wake::Sessions);
    Reader::start(kafka, kafka.topics.sessions(), OutOfLog::GoOnAtBeginning, stop.clone(), move |read| {
        match read {
            Read::Record(record) => match decoders.session(raw(record)) {
                Ok(session) => gathered.push(session.partition, session, usize::MAX),
                // Not waited for: the next record goes on, and a lost dead letter is in the producer's log.
                Err(reason) => drop(bury(&appender, dead_letters.clone(), record, &reason)),
            },
            other => gathered.hand_on(&other),
        }
        Ok(())
    })
}

/// A partition's reading, for one engine and in its generation. Generations are each engine's own: when the end of a reading comes, the
/// partition may be another engine's, which must not take it for the end of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reading {
    engine: usize,
    generation: u64,
}

impl Reading {
    /// As one number, which a reader takes, among so many engines.
    fn number(self, engines: usize) -> u64 {
        self.generation * engines as u64 + self.engine as u64
    }

    fn from_number(number: u64, engines: usize) -> Reading {
        let engine = usize::try_from(number % engines as u64).unwrap_or_default();
        Reading { engine, generation: number / engines as u64 }
    }
}

/// What was read of a topic whose partitions belong to engines, by engine.
struct Gathered<T> {
    engines: Engines,
    source: Source,
    wake: fn(Vec<T>) -> Wake,
    gathered: Vec<Vec<T>>,
}

impl<T> Gathered<T> {
    fn new(engines: Engines, source: Source, wake: fn(Vec<T>) -> Wake) -> Gathered<T> {
        let gathered = (0..engines.count()).map(|_| Vec::new()).collect();
        Gathered { engines, source, wake, gathered }
    }

    /// Keeps a record of a partition until there is a pause, or until there are so many.
    fn push(&mut self, partition: i32, record: T, at_once_max: usize) {
        // Nobody's: it was given up while this was on its way.
        let Some(engine) = self.engines.of(partition) else { return };
        self.gathered[engine].push(record);
        if self.gathered[engine].len() >= at_once_max {
            self.send(engine);
        }
    }

    /// Sends what was gathered, in front of the news that a partition is complete.
    fn hand_on(&mut self, read: &Read<'_>) {
        (0..self.gathered.len()).for_each(|engine| self.send(engine));
        if let Read::CaughtUp(partition, number) = *read
            && let Some(engine) = self.engines.of(partition)
            && let Reading { engine: reads, generation } = Reading::from_number(number, self.engines.count())
            && reads == engine
        {
            self.engines.wake(engine, Wake::CaughtUp(self.source, partition, generation));
        }
    }

    fn send(&mut self, engine: usize) {
        if !self.gathered[engine].is_empty() {
            let gathered = std::mem::take(&mut self.gathered[engine]);
            self.engines.wake(engine, (self.wake)(gathered));
        }
    }
}

fn raw<'a>(record: &Record<'a>) -> Raw<'a> {
    let (partition, appended_at) = (record.partition(), record.appended_at());
    Raw { partition, key: record.key(), value: record.value(), appended_at }
}

/// Takes what was decoded, or counts what could not be.
fn counted<T>(record: &Record<'_>, decoded: Result<T, String>) -> Option<T> {
    decoded.map_err(|reason| count_undecodable(record, &reason)).ok()
}

fn count_undecodable(record: &Record<'_>, reason: &str) {
    metrics::counter!("nearby_undecodable_records_total", "topic" => record.topic().to_owned()).increment(1);
    static TOLD: Seldom = Seldom::new();
    if let Some(left_out) = TOLD.may_tell() {
        let (topic, partition, offset) = (record.topic(), record.partition(), record.offset());
        tracing::warn!(topic, partition, offset, reason, left_out, "undecodable record");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wake::Listed;
    use nearby_service::membership::MembershipEvent;

    #[test]
    fn the_end_of_a_reading_is_told_to_the_engine_that_began_it() {
        let (engines, inboxes) = Engines::new(3);
        engines.tell(MembershipEvent::Gained(vec![0, 1, 2]));
        inboxes.iter().for_each(|inbox| drop(inbox.wakes.try_recv()));
        let mut gathered: Gathered<Listed> = Gathered::new(engines, Source::Lists, Wake::Lists);
        // Partition 1 is the second engine's now; it was the third's when this reading began.
        gathered.hand_on(&Read::CaughtUp(1, Reading { engine: 2, generation: 7 }.number(3)));
        assert!(inboxes.iter().all(|inbox| inbox.wakes.try_recv().is_err()), "nobody's end");
        gathered.hand_on(&Read::CaughtUp(1, Reading { engine: 1, generation: 1 }.number(3)));
        let told: Vec<Wake> = inboxes[1].wakes.try_iter().collect();
        assert!(matches!(told[..], [Wake::CaughtUp(Source::Lists, 1, 1)]), "{told:?}");
        assert!(inboxes[0].wakes.try_recv().is_err() && inboxes[2].wakes.try_recv().is_err());
    }
}
