//! When positions stop to count: a timer wheel of one-second buckets, one entry a user.
//!
//! A report does not touch the wheel if its user has an entry already: an entry that comes due looks up the user's real
//! time and is put back if that is later. So a user who reports every 30 s costs one step every ten minutes. Entries due
//! within the second that has begun wait in a small heap, which makes expiry exact to the millisecond.

use crate::users::Slot;
use nearby_schemas::TimestampMs;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Enough seconds for the default of ten minutes; an entry that is due later is put back once a turn.
const BUCKETS: i64 = 1_024;

pub(crate) struct Wheel {
    buckets: Vec<Vec<Slot>>,
    /// Entries of the seconds that have begun, earliest first.
    soon: BinaryHeap<Reverse<(TimestampMs, Slot)>>,
    /// The latest second that has begun.
    begun_s: i64,
    /// Which users have an entry, by slot.
    scheduled: Vec<bool>,
    /// Lends its memory to the bucket that is emptied.
    spare: Vec<Slot>,
}

impl Wheel {
    pub(crate) fn new() -> Wheel {
        Wheel {
            buckets: (0..BUCKETS).map(|_| Vec::new()).collect(),
            soon: BinaryHeap::new(),
            begun_s: i64::MIN,
            scheduled: Vec::new(),
            spare: Vec::new(),
        }
    }

    /// Sees to it that the user comes up at `due`, or earlier, to be put back then.
    #[inline]
    pub(crate) fn schedule(&mut self, slot: Slot, due: TimestampMs) {
        if self.scheduled.len() <= slot as usize {
            self.scheduled.resize(slot as usize + 1, false);
        }
        if !std::mem::replace(&mut self.scheduled[slot as usize], true) {
            self.insert(slot, due);
        }
    }

    /// The next user who is due at `now`; the entry is gone then. `due_of` tells when a user is really due, if at all.
    #[inline]
    pub(crate) fn next_due(&mut self, now: TimestampMs, due_of: impl Fn(Slot) -> Option<TimestampMs>) -> Option<Slot> {
        let second = second_of(now);
        if second > self.begun_s {
            self.begin(second, &due_of);
        }
        while let Some(&Reverse((due, slot))) = self.soon.peek()
            && due <= now
        {
            self.soon.pop();
            match due_of(slot) {
                Some(due) if due > now => self.insert(slot, due),
                Some(_) => {
                    self.scheduled[slot as usize] = false;
                    return Some(slot);
                }
                None => self.scheduled[slot as usize] = false,
            }
        }
        None
    }

    /// Whether an entry comes up at `now`.
    pub(crate) fn has_due(&self, now: TimestampMs) -> bool {
        self.soon.peek().is_some_and(|Reverse((due, _))| *due <= now)
    }

    /// Empties the buckets of all seconds up to `second`.
    fn begin(&mut self, second: i64, due_of: &impl Fn(Slot) -> Option<TimestampMs>) {
        let first = self.begun_s.saturating_add(1).max(second.saturating_sub(BUCKETS - 1));
        self.begun_s = second;
        for passed in first..=second {
            let mut entries = std::mem::replace(&mut self.buckets[bucket_of(passed)], std::mem::take(&mut self.spare));
            for slot in entries.drain(..) {
                match due_of(slot) {
                    Some(due) => self.insert(slot, due),
                    None => self.scheduled[slot as usize] = false,
                }
            }
            self.spare = entries;
        }
    }

    fn insert(&mut self, slot: Slot, due: TimestampMs) {
        if second_of(due) <= self.begun_s {
            self.soon.push(Reverse((due, slot)));
        } else {
            // One that is due after more than a turn of the wheel comes up earlier, and is put back.
            self.buckets[bucket_of(second_of(due))].push(slot);
        }
    }
}

fn second_of(time: TimestampMs) -> i64 {
    time.0.div_euclid(1_000)
}

#[expect(clippy::cast_possible_truncation, reason = "the remainder is 0 to 1,023")]
fn bucket_of(second: i64) -> usize {
    second.rem_euclid(BUCKETS) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn due_at(wheel: &mut Wheel, now: i64, dues: &BTreeMap<Slot, i64>) -> Vec<Slot> {
        let due_of = |slot| dues.get(&slot).copied().map(TimestampMs);
        std::iter::from_fn(|| wheel.next_due(TimestampMs(now), due_of)).collect()
    }

    #[test]
    fn an_entry_comes_up_to_the_millisecond_and_once() {
        let mut wheel = Wheel::new();
        let dues = BTreeMap::from([(7, 5_500)]);
        assert!(due_at(&mut wheel, 100, &dues).is_empty());
        wheel.schedule(7, TimestampMs(5_500));
        wheel.schedule(7, TimestampMs(5_500));
        assert!(due_at(&mut wheel, 5_499, &dues).is_empty());
        assert_eq!(due_at(&mut wheel, 5_500, &dues), [7]);
        assert!(due_at(&mut wheel, 9_999_999, &dues).is_empty());
    }

    #[test]
    fn an_entry_is_put_back_while_its_user_reports_and_dropped_when_withdrawn() {
        let mut wheel = Wheel::new();
        let mut dues = BTreeMap::from([(1, 2_000), (2, 2_000)]);
        assert!(due_at(&mut wheel, 0, &dues).is_empty());
        wheel.schedule(1, TimestampMs(2_000));
        wheel.schedule(2, TimestampMs(2_000));
        dues.insert(1, 2_000_000);
        dues.remove(&2);
        assert!(due_at(&mut wheel, 2_000, &dues).is_empty());
        assert_eq!(wheel.scheduled, [false, true, false]);
        assert!(due_at(&mut wheel, 1_999_999, &dues).is_empty());
        assert_eq!(due_at(&mut wheel, 2_000_000, &dues), [1]);
    }

    #[test]
    fn the_earliest_comes_first_whatever_the_jump() {
        let mut wheel = Wheel::new();
        let dues = BTreeMap::from([(1, 9_000_000), (2, 400), (3, 8_999_999), (4, i64::MAX)]);
        for (slot, due) in &dues {
            wheel.schedule(*slot, TimestampMs(*due));
        }
        assert_eq!(due_at(&mut wheel, 1_800_000_000_000, &dues), [2, 3, 1]);
    }

    proptest! {
        /// Against a plain scan: users report and withdraw at random, time passes in random steps.
        #[test]
        fn comes_up_exactly_when_a_scan_finds_it(
            steps in prop::collection::vec(
                (0..5_u32, prop_oneof![0..300_i64, 0..3_000_i64], prop_oneof![0..900_i64, 0..2_000_000_i64], 0..4),
                1..200,
            )
        ) {
            let (mut wheel, mut dues, mut now) = (Wheel::new(), BTreeMap::new(), -5_000);
            // A user's time never goes backward, not even by a withdrawal.
            let mut latest = [i64::MIN; 5];
            for (slot, step_ms, valid_ms, withdraws) in steps {
                now += step_ms;
                let expected: Vec<Slot> = dues.iter().filter(|(_, due)| **due <= now).map(|(slot, _)| *slot).collect();
                let mut found = due_at(&mut wheel, now, &dues);
                found.sort_unstable();
                prop_assert_eq!(&found, &expected);
                dues.retain(|_, due| *due > now);
                if withdraws == 0 {
                    dues.remove(&slot);
                    continue;
                }
                let due = latest[slot as usize].max(now + 1 + valid_ms);
                latest[slot as usize] = due;
                dues.insert(slot, due);
                wheel.schedule(slot, TimestampMs(due));
            }
        }
    }
}
