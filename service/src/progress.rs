//! How far each partition was read: when it is caught up, how far it is behind, and whether it has fallen silent. Pure.

use nearby_schemas::TimestampMs;
use std::time::Duration;

/// A partition in which nothing came while its reader waited for so long is looked after.
const SILENT_AFTER: Duration = Duration::from_secs(10);

/// Fewer unread records than this are on their way here.
const BEHIND_RECORDS_MIN: i64 = 1_000;

/// Partitions that are being read.
#[derive(Default)]
pub(crate) struct Progress {
    /// By number: an array, because every record asks.
    partitions: Vec<Option<Position>>,
}

/// How far one partition was read.
struct Position {
    /// The next offset; unknown before the first record, when reading began at the oldest one.
    next: Option<i64>,
    /// What that was when it was last looked at.
    looked_at: Option<i64>,
    /// When the record before that was appended.
    appended_at: Option<TimestampMs>,
    goal: Goal,
    /// How long the reader has waited since anything came of this partition.
    quiet: Duration,
    /// It was silent at this offset, and the broker had more.
    suspected_at: Option<Option<i64>>,
}

#[derive(Clone, Copy)]
enum Goal {
    /// To be caught up at this offset, in the reading of this number.
    CatchUp { end: i64, reading: u64 },
    /// Caught up.
    Follow,
    /// To be read to before this offset and no further.
    Range { end: i64 },
}

/// What a record or the end of a partition did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moved {
    /// Of a partition, or from a place in it, that is not to be read.
    Unwanted,
    /// It goes on.
    On,
    /// All that was there at the beginning of the reading of this number has been read.
    CaughtUp(u64),
    /// With this record the range was read.
    RangeRead,
    /// The range was read before this, which is not part of it.
    RangeOver,
}

impl Progress {
    /// A partition is read from here on, and is caught up at `end`.
    pub fn add(&mut self, partition: i32, next: Option<i64>, end: i64, reading: u64) {
        self.set(partition, next, Goal::CatchUp { end, reading });
    }

    /// A partition is read from one offset to before another.
    pub fn add_range(&mut self, partition: i32, from: i64, to: i64) {
        self.set(partition, Some(from), Goal::Range { end: to });
    }

    fn set(&mut self, partition: i32, next: Option<i64>, goal: Goal) {
        let index = index(partition);
        if self.partitions.len() <= index {
            self.partitions.resize_with(index + 1, || None);
        }
        self.partitions[index] = Some(Position {
            next,
            looked_at: next,
            appended_at: None,
            goal,
            quiet: Duration::ZERO,
            suspected_at: None,
        });
    }

    /// The partition is not read any more; false if it was not.
    pub fn remove(&mut self, partition: i32) -> bool {
        self.partitions.get_mut(index(partition)).is_some_and(|position| position.take().is_some())
    }

    /// A record came.
    #[inline]
    pub fn record(&mut self, partition: i32, offset: i64, appended_at: Option<TimestampMs>) -> Moved {
        if let Some(Some(position)) = self.partitions.get_mut(index(partition)) {
            position.appended_at = appended_at;
        }
        self.moved(partition, offset + 1)
    }

    /// The partition has nothing at this offset, yet.
    pub fn end(&mut self, partition: i32, offset: i64) -> Moved {
        let moved = self.moved(partition, offset);
        // A range may have ended by that.
        let Some(Some(position)) = self.partitions.get_mut(index(partition)) else { return moved };
        match position.goal {
            // Whatever the broker said before: there is no more. (The last offset need not have a record.)
            Goal::CatchUp { reading, .. } => {
                position.goal = Goal::Follow;
                Moved::CaughtUp(reading)
            }
            Goal::Range { .. } => {
                self.partitions[index(partition)] = None;
                Moved::RangeOver
            }
            Goal::Follow => moved,
        }
    }

    #[inline]
    fn moved(&mut self, partition: i32, next: i64) -> Moved {
        let Some(Some(position)) = self.partitions.get_mut(index(partition)) else { return Moved::Unwanted };
        position.next = Some(next);
        position.quiet = Duration::ZERO;
        match position.goal {
            Goal::Follow => Moved::On,
            Goal::CatchUp { end, reading } if next >= end => {
                position.goal = Goal::Follow;
                Moved::CaughtUp(reading)
            }
            Goal::CatchUp { .. } => Moved::On,
            // What comes after it is of no partition that is read.
            Goal::Range { end } if next >= end => {
                self.partitions[index(partition)] = None;
                if next > end { Moved::RangeOver } else { Moved::RangeRead }
            }
            Goal::Range { .. } => Moved::On,
        }
    }

    /// The reader has waited for so long, whatever came then.
    pub fn waited(&mut self, time: Duration) {
        for position in self.partitions.iter_mut().flatten() {
            position.quiet += time;
        }
    }

    /// Partitions of which nothing has come for long.
    pub fn silent(&self) -> Vec<i32> {
        let silent = |(_, position): &(i32, &Option<Position>)| {
            position.as_ref().is_some_and(|position| position.quiet >= SILENT_AFTER)
        };
        (0..).zip(&self.partitions).filter(silent).map(|(partition, _)| partition).collect()
    }

    /// Which of the silent partitions are stalled, the broker's ends being these, and from where to read them again: those
    /// where it had more already when they were last asked about, and still nothing has come. No offset is the oldest one.
    pub fn stalled(&mut self, ends: &[(i32, i64)]) -> Vec<(i32, Option<i64>)> {
        let mut stalled = Vec::new();
        for (partition, end) in ends {
            let Some(Some(position)) = self.partitions.get_mut(index(*partition)) else { continue };
            let next = position.next;
            if next.unwrap_or_default() >= *end {
                // Nothing to be had: asked again after as long.
                (position.quiet, position.suspected_at) = (Duration::ZERO, None);
            } else if position.suspected_at.replace(next) == Some(next) {
                (position.quiet, position.suspected_at) = (Duration::ZERO, None);
                stalled.push((*partition, next));
            }
        }
        stalled
    }

    /// The broker could not be asked about those that are silent: asked again after as long.
    pub fn not_asked(&mut self) {
        self.partitions.iter_mut().flatten().for_each(|position| position.quiet = Duration::ZERO);
    }

    /// Records that the broker has and that were not read, as far as both are known; and when the last one was appended that
    /// was read, of the partition where that is longest ago.
    pub fn behind(&self, end: impl Fn(i32) -> Option<i64>) -> (i64, Option<TimestampMs>) {
        let (mut records, mut oldest) = (0, None);
        for (partition, position) in (0..).zip(&self.partitions) {
            let Some(position) = position else { continue };
            let behind = position.next.zip(end(partition)).map_or(0, |(next, end)| (end - next).max(0));
            records += behind;
            if let Some(appended_at) = position.appended_at.filter(|_| behind > 0) {
                oldest = Some(oldest.map_or(appended_at, |oldest: TimestampMs| oldest.min(appended_at)));
            }
        }
        (records, oldest)
    }

    /// Whether more records are unread than were read since this was last asked: then it takes longer than that to read them. No clock
    /// is in it: times of records are another machine's.
    pub fn is_behind(&mut self, unread: i64) -> bool {
        let mut read = 0;
        for position in self.partitions.iter_mut().flatten() {
            read += position.next.zip(position.looked_at).map_or(0, |(next, before)| (next - before).max(0));
            position.looked_at = position.next;
        }
        unread > read.max(BEHIND_RECORDS_MIN)
    }

    /// Records, at most, that are still to be read until every partition is caught up.
    pub fn remaining(&self) -> i64 {
        let remaining = |position: &Position| match position.goal {
            Goal::CatchUp { end, .. } | Goal::Range { end } => (end - position.next.unwrap_or(0)).max(0),
            Goal::Follow => 0,
        };
        self.partitions.iter().flatten().map(remaining).sum()
    }
}

/// Kafka counts partitions from 0; any other number is none that is read.
fn index(partition: i32) -> usize {
    usize::try_from(partition).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_caught_up_once_at_the_end_that_was_there_at_the_beginning() {
        let mut progress = Progress::default();
        progress.add(3, None, 7, 5);
        assert_eq!(progress.remaining(), 7);
        assert_eq!(progress.record(3, 2, None), Moved::On);
        assert_eq!(progress.remaining(), 4);
        assert_eq!(progress.record(3, 6, None), Moved::CaughtUp(5), "though more is coming all the time");
        assert_eq!(progress.record(3, 7, None), Moved::On);
        assert_eq!((progress.end(3, 8), progress.remaining()), (Moved::On, 0));
        assert_eq!(progress.behind(|_| Some(10)).0, 2);
        assert_eq!(progress.record(4, 0, None), Moved::Unwanted, "never added");
        assert!(progress.remove(3) && !progress.remove(3) && !progress.remove(9));
        assert_eq!(progress.record(3, 8, None), Moved::Unwanted);
    }

    #[test]
    fn is_caught_up_where_the_log_ends_with_something_that_is_no_record() {
        let mut progress = Progress::default();
        progress.add(0, None, 7, 1);
        assert_eq!(progress.record(0, 4, None), Moved::On);
        assert_eq!(progress.end(0, 7), Moved::CaughtUp(1));
        progress.add(1, None, 0, 2);
        assert_eq!(progress.end(1, 0), Moved::CaughtUp(2), "an empty one");
    }

    #[test]
    fn a_range_ends_before_its_end() {
        let mut progress = Progress::default();
        progress.add_range(0, 10, 12);
        let moved: Vec<Moved> = [10, 11, 12, 13].map(|offset| progress.record(0, offset, None)).into();
        assert_eq!(moved, [Moved::On, Moved::RangeRead, Moved::Unwanted, Moved::Unwanted]);
        assert_eq!(progress.end(0, 14), Moved::Unwanted, "it was read once");

        progress.add_range(0, 10, 12);
        assert_eq!(progress.record(0, 15, None), Moved::RangeOver, "there is a hole at its end");
        progress.add_range(1, 10, 12);
        assert_eq!(
            [progress.end(1, 11), progress.end(1, 11)],
            [Moved::RangeOver, Moved::Unwanted],
            "the log ends in it"
        );
        progress.add_range(1, 10, 12);
        assert_eq!(
            progress.end(1, 12),
            Moved::RangeRead,
            "the log ends where it ends, whose last offset has no record"
        );
        assert_eq!(progress.end(1, 12), Moved::Unwanted, "it was read once");
    }

    #[test]
    fn lag_is_that_of_the_slowest_partition() {
        let mut progress = Progress::default();
        (0..3).for_each(|partition| progress.add(partition, Some(0), 9, 0));
        for (partition, appended_at) in [(0, 500), (1, 100), (2, 50)] {
            progress.record(partition, 0, Some(TimestampMs(appended_at)));
        }
        let ends = [9, 3, 1];
        assert_eq!(progress.behind(|partition| Some(ends[index(partition)])), (8 + 2, Some(TimestampMs(100))));
    }

    #[test]
    fn is_behind_when_the_rest_takes_longer_than_what_was_read() {
        let mut progress = Progress::default();
        progress.add(0, Some(0), 0, 1);
        progress.add(1, None, 0, 1);
        let mut reads = |to: i64, unread| {
            progress.record(0, to - 1, None);
            progress.is_behind(unread)
        };
        assert!(!reads(10, BEHIND_RECORDS_MIN), "some are always on their way");
        assert!(reads(10, BEHIND_RECORDS_MIN + 1), "nothing was read since");
        assert!(!reads(300_010, 300_000), "much, and as much was read");
        assert!(reads(600_009, 300_000));
        assert!(!reads(600_009, 0));
    }

    #[test]
    fn a_partition_that_never_begins_is_stalled() {
        let mut progress = Progress::default();
        progress.add(0, None, 5, 0);
        progress.waited(SILENT_AFTER);
        assert_eq!(progress.silent(), [0]);
        assert_eq!(progress.stalled(&[(0, 5)]), []);
        assert_eq!(progress.stalled(&[(0, 5)]), [(0, None)]);
    }

    #[test]
    fn a_partition_is_stalled_when_the_broker_has_more_for_long() {
        let mut progress = Progress::default();
        progress.add(0, Some(5), 5, 0);
        progress.add(1, Some(5), 5, 0);
        progress.waited(SILENT_AFTER - Duration::from_millis(1));
        assert!(progress.silent().is_empty());
        progress.record(1, 5, None);
        progress.waited(Duration::from_millis(1));
        assert_eq!(progress.silent(), [0]);
        assert_eq!(progress.stalled(&[(0, 6)]), [], "that may have come just now");
        assert_eq!(progress.stalled(&[(0, 8)]), [(0, Some(5))]);
        assert!(progress.silent().is_empty(), "it gets its time");

        progress.waited(SILENT_AFTER);
        assert_eq!(progress.silent(), [0, 1]);
        assert_eq!(progress.stalled(&[(0, 8), (1, 6)]), []);
        progress.record(0, 5, None);
        assert!(progress.silent().is_empty(), "it reads again, and the other one has all");
    }
}
