//! Which records are written next, and what the offsets become with them. Pure: no I/O, no clock.
//!
//! A [`Batcher`] holds the records of one topic that are not in the database yet, in order of arrival, and per owned
//! partition two offsets: the one that the database *holds* and the *next* one to come out of the log.
//!
//! - In: [`own`](Batcher::own) and [`disown`](Batcher::disown) partitions, [`take`](Batcher::take) records.
//! - Out: [`due_at`](Batcher::due_at), then [`attempt`](Batcher::attempt): so many records from the front, with the
//!   offsets that they advance.
//! - Back: the attempt was [`written`](Batcher::written), or [`refused`](Batcher::refused) (then the next attempts are
//!   smaller, until one single record is the culprit), or lost to another sink ([`rebase`](Batcher::rebase)).

use crate::record::{Content, Record};
use nearby_schemas::TimestampMs;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// A batch is written when its records are so large, however few they are: friend lists may be long.
const BATCH_BYTES_MAX: usize = 16 << 20;

/// Records on their way into the database.
#[derive(Debug)]
pub struct Batcher {
    contiguous: bool,
    rows_max: usize,
    age_max: Duration,
    /// Among so many records from the front is one that the database refuses.
    suspects: Option<usize>,
    partitions: BTreeMap<i32, Progress>,
    items: VecDeque<Item>,
    /// Of all items.
    bytes: usize,
}

#[derive(Clone, Copy, Debug)]
struct Progress {
    /// What the database holds; `None` if it has no row yet.
    held: Option<i64>,
    /// What comes next out of the log; `None` for its first record, whichever that is.
    next: Option<i64>,
}

/// A record that waits to be written.
#[derive(Debug)]
pub struct Item {
    /// The record.
    pub record: Record,
    /// A dead letter that Kafka has acknowledged.
    pub buried: bool,
    taken_at: Instant,
}

impl Item {
    /// What goes into the database; nothing for a dead letter.
    pub fn content(&self) -> Option<&Content> {
        self.record.content.as_ref().ok()
    }

    /// Why it is a dead letter, if it is one and Kafka has not acknowledged it.
    pub fn unburied(&self) -> Option<&str> {
        if self.buried { None } else { self.record.content.as_ref().err().map(String::as_str) }
    }
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It waits to be written.
    Waits,
    /// It has been seen before, or its partition is not ours.
    Skipped,
}

/// Records are missing in a log that has no holes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Where.
    pub partition: i32,
    /// What should have come.
    pub expected: i64,
    /// What came.
    pub found: i64,
}

/// The offset of one partition, before and after a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advance {
    /// Partition.
    pub partition: i32,
    /// What the database has to hold for the transaction to be ours; `None`: no row.
    pub held: Option<i64>,
    /// What it holds afterwards.
    pub next: i64,
    /// When the last record before `next` was appended.
    pub appended_at: Option<TimestampMs>,
}

/// So many records from the front, to be written in one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Number of records.
    pub count: usize,
    /// By partition.
    pub advances: Vec<Advance>,
}

/// Whether reading can go on where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rebase {
    /// What was read continues what the database holds.
    Continues,
    /// The partition has to be read again from another place.
    Seek,
}

/// What follows from a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The next attempts are smaller.
    Halved,
    /// The record at the front was it: it is a dead letter now.
    Found,
    /// Even without a row the transaction is refused: no record is to blame.
    NoCulprit,
}

impl Batcher {
    /// `contiguous`: a missing offset is a [`Gap`].
    pub fn new(contiguous: bool, rows_max: usize, age_max: Duration) -> Batcher {
        let rows_max = rows_max.max(1);
        let (partitions, items) = (BTreeMap::new(), VecDeque::new());
        Batcher { contiguous, rows_max, age_max, suspects: None, partitions, items, bytes: 0 }
    }

    /// Records of this partition are ours from now on, from the offset that the database holds.
    pub fn own(&mut self, partition: i32, held: Option<i64>) {
        self.drop_items(|item| item.record.partition == partition);
        self.partitions.insert(partition, Progress { held, next: held });
    }

    /// They are not any longer; those that wait are dropped.
    pub fn disown(&mut self, partition: i32) {
        self.partitions.remove(&partition);
        self.drop_items(|item| item.record.partition == partition);
    }

    /// The next record out of the log.
    ///
    /// # Errors
    /// [`Gap`], if offsets are missing where none may be.
    pub fn take(&mut self, record: Record, now: Instant) -> Result<Taken, Gap> {
        let Some(progress) = self.partitions.get_mut(&record.partition) else { return Ok(Taken::Skipped) };
        match progress.next {
            Some(next) if record.offset < next => return Ok(Taken::Skipped),
            Some(next) if record.offset > next && self.contiguous => {
                return Err(Gap { partition: record.partition, expected: next, found: record.offset });
            }
            _ => {}
        }
        progress.next = Some(record.offset + 1);
        self.bytes += record.bytes();
        self.items.push_back(Item { record, buried: false, taken_at: now });
        Ok(Taken::Waits)
    }

    /// Whether more records may be taken; else they had better wait where they are.
    pub fn has_room(&self) -> bool {
        self.items.len() < self.rows_max && self.bytes < BATCH_BYTES_MAX
    }

    /// When the next attempt should be made; `None` while nothing waits.
    pub fn due_at(&self) -> Option<Instant> {
        let first = self.items.front()?;
        let is_full = self.items.len() >= self.attempt_max() || self.bytes >= BATCH_BYTES_MAX;
        Some(if is_full { first.taken_at } else { first.taken_at + self.age_max })
    }

    /// What should be written next.
    pub fn attempt(&self) -> Attempt {
        let count = self.items.len().min(self.attempt_max());
        let mut next = BTreeMap::new();
        for item in self.items.iter().take(count) {
            next.insert(item.record.partition, (item.record.offset + 1, item.record.appended_at));
        }
        let advance = |(partition, (next, appended_at))| {
            let held = self.partitions.get(&partition).and_then(|progress| progress.held);
            Advance { partition, held, next, appended_at }
        };
        Attempt { count, advances: next.into_iter().map(advance).collect() }
    }

    /// The records of an attempt.
    pub fn items(&self, attempt: &Attempt) -> impl Iterator<Item = &Item> {
        self.items.iter().take(attempt.count)
    }

    /// The records of an attempt.
    pub fn items_mut(&mut self, attempt: &Attempt) -> impl Iterator<Item = &mut Item> {
        self.items.iter_mut().take(attempt.count)
    }

    /// The attempt is in the database.
    pub fn written(&mut self, attempt: &Attempt) {
        self.bytes -= self.items.drain(..attempt.count).map(|item| item.record.bytes()).sum::<usize>();
        self.suspects = self.suspects.map(|suspects| suspects.saturating_sub(attempt.count)).filter(|left| *left > 0);
        for advance in &attempt.advances {
            if let Some(progress) = self.partitions.get_mut(&advance.partition) {
                progress.held = Some(advance.next);
            }
        }
    }

    /// The database refused a row of the attempt: look for it among fewer, or make the single one a dead letter.
    pub fn refused(&mut self, attempt: &Attempt, reason: String) -> Refusal {
        if attempt.count > 1 {
            self.suspects = Some(attempt.count);
            return Refusal::Halved;
        }
        self.suspects = None;
        match self.items.front_mut() {
            Some(culprit) if culprit.record.content.is_ok() => {
                culprit.record.content = Err(reason);
                Refusal::Found
            }
            _ => Refusal::NoCulprit,
        }
    }

    /// Another sink was first: the database holds `held` for this partition.
    pub fn rebase(&mut self, partition: i32, held: Option<i64>) -> Rebase {
        let Some(progress) = self.partitions.get_mut(&partition) else { return Rebase::Continues };
        let first = self.items.iter().find(|item| item.record.partition == partition).map(|item| item.record.offset);
        let continues = held.is_some_and(|held| {
            first.or(progress.next).is_some_and(|first| first <= held) && progress.next.is_some_and(|next| held <= next)
        });
        if !continues {
            self.own(partition, held);
            return Rebase::Seek;
        }
        progress.held = held;
        self.drop_items(|item| item.record.partition == partition && Some(item.record.offset) < held);
        Rebase::Continues
    }

    /// Where reading goes on, by partition; `None` for the beginning.
    pub fn next_offsets(&self) -> Vec<(i32, Option<i64>)> {
        self.partitions.iter().map(|(partition, progress)| (*partition, progress.next)).collect()
    }

    /// What the database holds, by partition; 0 where it holds nothing.
    pub fn held_offsets(&self) -> Vec<(i32, i64)> {
        self.partitions.iter().map(|(partition, progress)| (*partition, progress.held.unwrap_or(0))).collect()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Records of the next attempt at most: half of the suspects, as all of them together are known to be refused.
    fn attempt_max(&self) -> usize {
        self.suspects.map_or(self.rows_max, |suspects| (suspects / 2).max(1))
    }

    fn drop_items(&mut self, which: impl Fn(&Item) -> bool) {
        self.items.retain(|item| !which(item));
        self.bytes = self.items.iter().map(|item| item.record.bytes()).sum();
        // The culprit may be among the dropped ones; if it is not, it is found again.
        self.suspects = None;
    }
}

#[cfg(test)]
#[path = "batch_tests.rs"]
mod tests;
