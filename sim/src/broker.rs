//! The fake log: topics, partitions, offsets, and producers whose records are on their way.
//!
//! Records of one producer arrive in order, as an idempotent producer's do; those of two in any. A record may be lost, or be
//! written while its producer hears that it was not. While the broker is away nothing arrives; what has waited longer than
//! the delivery timeout fails.

use crate::agenda::Who;
use crate::dice::Dice;
use nearby_schemas::TimestampMs;
use std::collections::{BTreeMap, VecDeque};

/// As in production: a record that has waited so long is not acknowledged.
const DELIVERY_TIMEOUT_MS: i64 = 10_000;
/// A record takes at most so long to arrive.
const WAY_MS_MAX: i64 = 40;

/// A topic. Gateways' topics by the number of the gateway's run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    /// `location-events`
    LocationEvents,
    /// `friend-lists`
    FriendLists,
    /// `sessions`
    Sessions,
    /// `gateways`
    Gateways,
    /// `dead-letters`
    DeadLetters,
    /// `friend-moved-<gateway>`
    FriendMoved(u32),
}

/// A record in the log.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value; none in a tombstone.
    pub value: Option<Vec<u8>>,
    /// By the broker's clock.
    pub appended_at: TimestampMs,
}

/// A record on its way.
#[derive(Clone, Debug)]
pub struct Append {
    /// Where to.
    pub topic: Topic,
    /// Where to.
    pub partition: i32,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value.
    pub value: Option<Vec<u8>>,
    /// What the producer calls it.
    pub token: u64,
}

/// A process's connection for writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProducerId(u64);

struct Producer {
    who: Who,
    /// With the time of sending and the time of arrival.
    under_way: VecDeque<(i64, i64, Append)>,
    answers: Vec<(u64, bool)>,
    cut_off: bool,
}

/// Offsets of a partition, with holes where compaction went.
#[derive(Default)]
struct Log {
    records: BTreeMap<i64, Record>,
    first: i64,
    end: i64,
}

/// What arrived.
pub struct Arrived {
    /// Where.
    pub topic: Topic,
    /// Where.
    pub partition: i32,
    /// Where.
    pub offset: i64,
}

/// The log and what is on its way to it.
#[derive(Default)]
pub struct Broker {
    logs: BTreeMap<(Topic, i32), Log>,
    producers: BTreeMap<ProducerId, Producer>,
    next_producer: u64,
    /// Nobody reaches it.
    pub away: bool,
    /// Probability that a record is not written and its producer hears so.
    pub lost: f64,
    /// Probability that a record is written and its producer hears that it is not.
    pub answer_lost: f64,
}

impl Broker {
    /// Creates a topic.
    pub fn create(&mut self, topic: Topic, partitions: i32) {
        for partition in 0..partitions {
            self.logs.entry((topic, partition)).or_default();
        }
    }

    /// Deletes a topic of one partition.
    pub fn delete(&mut self, topic: Topic) {
        self.logs.remove(&(topic, 0));
    }

    /// A new producer, of a process that is woken by answers.
    pub fn producer(&mut self, who: Who) -> ProducerId {
        self.next_producer += 1;
        let id = ProducerId(self.next_producer);
        let (under_way, answers) = (VecDeque::new(), Vec::new());
        self.producers.insert(id, Producer { who, under_way, answers, cut_off: false });
        id
    }

    /// The process has ended: what was on its way arrives in part, and nobody hears of it.
    pub fn end_producer(&mut self, id: ProducerId, dice: &mut Dice) {
        if let Some(producer) = self.producers.get_mut(&id) {
            let arrive = dice.below(producer.under_way.len() + 1);
            producer.under_way.truncate(arrive);
        }
    }

    /// The network between a process and the broker is cut, or whole again.
    pub fn cut_off(&mut self, id: ProducerId, cut_off: bool) {
        if let Some(producer) = self.producers.get_mut(&id) {
            producer.cut_off = cut_off;
        }
    }

    /// Sends a record; returns when it will arrive.
    pub fn append(&mut self, id: ProducerId, append: Append, now_ms: i64, dice: &mut Dice) -> i64 {
        let producer = self.producers.get_mut(&id).expect("a process that runs has its producer");
        let after = producer.under_way.back().map_or(now_ms, |(_, due_ms, _)| *due_ms);
        let due_ms = after.max(now_ms + dice.between(0, WAY_MS_MAX));
        producer.under_way.push_back((now_ms, due_ms, append));
        due_ms
    }

    /// What happened to a producer's records, each once.
    pub fn answers(&mut self, id: ProducerId) -> Vec<(u64, bool)> {
        self.producers.get_mut(&id).map(|producer| std::mem::take(&mut producer.answers)).unwrap_or_default()
    }

    /// Takes what has arrived. Returns it, who has answers, and when to come again.
    pub fn step(&mut self, now_ms: i64, dice: &mut Dice) -> (Vec<Arrived>, Vec<Who>, Option<i64>) {
        let (mut arrived, mut answered, mut next_ms) = (Vec::new(), Vec::new(), None::<i64>);
        for producer in self.producers.values_mut() {
            let reachable = !self.away && !producer.cut_off;
            while let Some((sent_ms, due_ms, _)) = producer.under_way.front() {
                let late = now_ms - sent_ms > DELIVERY_TIMEOUT_MS;
                if *due_ms > now_ms || !(reachable || late) {
                    let again_ms = if *due_ms > now_ms { *due_ms } else { now_ms + 500 };
                    next_ms = Some(next_ms.map_or(again_ms, |next_ms| next_ms.min(again_ms)));
                    break;
                }
                let (_, _, append) = producer.under_way.pop_front().expect("it was looked at");
                let log = self.logs.get_mut(&(append.topic, append.partition));
                let acknowledged = match log {
                    Some(log) if reachable && !dice.chance(self.lost) => {
                        let offset = log.append(append.key, append.value, now_ms);
                        arrived.push(Arrived { topic: append.topic, partition: append.partition, offset });
                        !dice.chance(self.answer_lost)
                    }
                    _ => false,
                };
                producer.answers.push((append.token, acknowledged));
                answered.push(producer.who);
            }
        }
        (arrived, answered, next_ms)
    }

    /// The first record at or after an offset.
    pub fn read(&self, topic: Topic, partition: i32, from: i64) -> Option<(i64, &Record)> {
        let log = self.logs.get(&(topic, partition)).filter(|_| !self.away)?;
        log.records.range(from..).next().map(|(offset, record)| (*offset, record))
    }

    /// The first offset and the next one to be given.
    pub fn ends(&self, topic: Topic, partition: i32) -> (i64, i64) {
        self.logs.get(&(topic, partition)).map_or((0, 0), |log| (log.first, log.end))
    }

    /// The first offset whose record was appended at or after a time, or the end.
    pub fn offset_at(&self, topic: Topic, partition: i32, at: TimestampMs) -> i64 {
        let Some(log) = self.logs.get(&(topic, partition)) else { return 0 };
        log.records.iter().find(|(_, record)| record.appended_at >= at).map_or(log.end, |(offset, _)| *offset)
    }

    /// Every record of a partition, whether or not the broker is away.
    pub fn all(&self, topic: Topic, partition: i32) -> impl Iterator<Item = (i64, &Record)> {
        let log = self.logs.get(&(topic, partition));
        log.into_iter().flat_map(|log| log.records.iter().map(|(offset, record)| (*offset, record)))
    }

    /// Removes records that have a newer one of the same key, but for the newest `keep`. Tombstones stay: production keeps
    /// them for a day.
    pub fn compact(&mut self, topic: Topic, partition: i32, keep: i64) {
        let Some(log) = self.logs.get_mut(&(topic, partition)) else { return };
        let mut newest: BTreeMap<Vec<u8>, i64> = BTreeMap::new();
        for (offset, record) in &log.records {
            newest.insert(record.key.clone().unwrap_or_default(), *offset);
        }
        let clean_until = log.end - keep;
        log.records.retain(|offset, record| {
            *offset >= clean_until || newest.get(record.key.as_deref().unwrap_or_default()) == Some(offset)
        });
    }

    /// The newest record of a partition is cut, so that nobody can read it.
    pub fn spoil(&mut self, topic: Topic, partition: i32, bytes: usize) {
        let log = self.logs.get_mut(&(topic, partition));
        if let Some(mut newest) = log.and_then(|log| log.records.last_entry())
            && let Some(value) = &mut newest.get_mut().value
        {
            value.truncate(bytes);
        }
    }

    /// Retention removes the oldest records of a partition, up to an offset.
    pub fn expire(&mut self, topic: Topic, partition: i32, until: i64) {
        if let Some(log) = self.logs.get_mut(&(topic, partition)) {
            log.first = log.first.max(until.min(log.end));
            log.records = log.records.split_off(&log.first);
        }
    }
}

impl Log {
    fn append(&mut self, key: Option<Vec<u8>>, value: Option<Vec<u8>>, now_ms: i64) -> i64 {
        let offset = self.end;
        self.end += 1;
        self.records.insert(offset, Record { key, value, appended_at: TimestampMs(now_ms) });
        offset
    }
}
