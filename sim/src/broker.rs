//! The fake log: topics, partitions, offsets, and producers whose records are on their way.
//!
//! Records of one producer for one partition arrive in order, as an idempotent producer's do; others in any. A record may be
//! lost, or be written while its producer hears that it was not. While the broker is away nothing arrives; what has waited
//! longer than the delivery timeout fails.

use crate::agenda::Who;
use crate::dice::Dice;
use nearby_schemas::TimestampMs;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// As in production: a record that has waited so long is not acknowledged.
const DELIVERY_TIMEOUT_MS: i64 = 10_000;
/// No batch can be read out of so few bytes.
const SPOILED_BYTES_MAX: usize = 20;
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

/// Records on their way to one partition, with the time of sending and the time of arrival.
type UnderWay = VecDeque<(i64, i64, Append)>;

struct Producer {
    who: Who,
    under_way: BTreeMap<(Topic, i32), UnderWay>,
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

/// What became of a record whose time had come.
enum Arrival {
    /// It is still on its way: the broker is not to be reached.
    Waits,
    /// It is in the log, or not; its producer has heard something.
    Done(Option<Arrived>, Who),
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
    /// The next record of these topics arrives cut, so that nobody can read it.
    pub spoils_next: BTreeSet<Topic>,
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
        let (under_way, answers) = (BTreeMap::new(), Vec::new());
        self.producers.insert(id, Producer { who, under_way, answers, cut_off: false });
        id
    }

    /// The process has ended: what was on its way arrives in part, and nobody hears of it.
    pub fn end_producer(&mut self, id: ProducerId, dice: &mut Dice) {
        if let Some(producer) = self.producers.get_mut(&id) {
            for queue in producer.under_way.values_mut() {
                let arrive = dice.below(queue.len() + 1);
                queue.truncate(arrive);
            }
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
        let queue = producer.under_way.entry((append.topic, append.partition)).or_default();
        let after = queue.back().map_or(now_ms, |(_, due_ms, _)| *due_ms);
        let due_ms = after.max(now_ms + dice.between(0, WAY_MS_MAX));
        queue.push_back((now_ms, due_ms, append));
        due_ms
    }

    /// What happened to a producer's records, each once.
    pub fn answers(&mut self, id: ProducerId) -> Vec<(u64, bool)> {
        self.producers.get_mut(&id).map(|producer| std::mem::take(&mut producer.answers)).unwrap_or_default()
    }

    /// Takes what has arrived, one record of any partition after the other. Returns it, who has answers, and when to come again.
    pub fn step(&mut self, now_ms: i64, dice: &mut Dice) -> (Vec<Arrived>, Vec<Who>, Option<i64>) {
        let (mut arrived, mut answered, mut next_ms) = (Vec::new(), Vec::new(), None::<i64>);
        let mut ready = Vec::new();
        for (id, producer) in &self.producers {
            for (queue, records) in &producer.under_way {
                let Some((_, due_ms, _)) = records.front() else { continue };
                if *due_ms <= now_ms {
                    ready.push((*id, *queue));
                } else {
                    next_ms = Some(next_ms.map_or(*due_ms, |next_ms| next_ms.min(*due_ms)));
                }
            }
        }
        while !ready.is_empty() {
            let (id, queue) = ready.swap_remove(dice.below(ready.len()));
            match self.arrive(id, queue, now_ms, dice) {
                Arrival::Waits => next_ms = Some(next_ms.map_or(now_ms + 500, |next_ms| next_ms.min(now_ms + 500))),
                Arrival::Done(arrival, who) => {
                    arrived.extend(arrival);
                    answered.push(who);
                    next_ms = Some(now_ms);
                }
            }
        }
        (arrived, answered, next_ms)
    }

    /// The first record of a queue arrives, or fails, or waits for the broker.
    fn arrive(&mut self, id: ProducerId, queue: (Topic, i32), now_ms: i64, dice: &mut Dice) -> Arrival {
        let Some(producer) = self.producers.get_mut(&id) else { return Arrival::Waits };
        let reachable = !self.away && !producer.cut_off;
        let records = producer.under_way.entry(queue).or_default();
        let late = |(sent_ms, _, _): &(i64, i64, Append)| now_ms - sent_ms > DELIVERY_TIMEOUT_MS;
        if !reachable && !records.front().is_some_and(late) {
            return Arrival::Waits;
        }
        let Some((_, _, mut append)) = records.pop_front() else { return Arrival::Waits };
        let mut arrived = None;
        if let Some(log) = self.logs.get_mut(&queue).filter(|_| reachable && !dice.chance(self.lost)) {
            if self.spoils_next.remove(&queue.0)
                && let Some(value) = &mut append.value
            {
                value.truncate(dice.below(value.len() + 1).min(SPOILED_BYTES_MAX));
            }
            let offset = log.append(append.key, append.value, now_ms);
            arrived = Some(Arrived { topic: queue.0, partition: queue.1, offset });
        }
        let acknowledged = arrived.is_some() && !dice.chance(self.answer_lost);
        producer.answers.push((append.token, acknowledged));
        Arrival::Done(arrived, producer.who)
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
