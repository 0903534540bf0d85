//! Who owns a partition of viewers, and when: a pure state machine, driven by the group's word, the restore and the epochs.
//!
//! ```text
//!              Gained              both caught up            Claimed
//!   (absent) ─────────▶ Restoring ───────────────▶ Claiming ─────────▶ Serving
//!       ▲                   │ Lost                    │ Lost              │ Lost
//!       ├───────────────────┴─────────────────────────┘                   ▼
//!       └──────────────────────────────────────────────────────────── Lingering ── Gained ──▶ Claiming (still serving)
//!                       a higher epoch was seen, or 120 s
//! ```
//! An owner that lost a partition goes on serving it until its successor's epoch is committed, so that a graceful handover
//! shows no gap. Two writers for a moment are safe: gateways take the newest epoch.

use crate::wake::Source;
use nearby_schemas::Epoch;
use nearby_service::membership::MembershipEvent;
use std::collections::{BTreeMap, BTreeSet};

/// A lost partition is served at most so long when no successor shows up.
pub const LINGER_MAX_MS: u64 = 120_000;
/// A refused claim is tried again after so long.
const CLAIM_RETRY_MS: u64 = 500;

/// What follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Read the lists and sessions of these partitions from the beginning.
    Read(Vec<i32>),
    /// Commit a new epoch for these partitions.
    Claim(Vec<i32>),
    /// Tell the viewers of the partition, from now on under this epoch.
    Serve(i32, Epoch),
    /// Forget the partition, and stop reading it.
    Forget(i32),
    /// Watch the committed epochs of these partitions and no others.
    Watch(BTreeSet<i32>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Restoring { lists: bool, sessions: bool },
    Claiming { serving: Option<Epoch>, retry_at_ms: Option<u64> },
    Serving { epoch: Epoch },
    Lingering { epoch: Epoch, until_ms: u64 },
}

/// The partitions of one processor. Times are milliseconds of any clock that only goes forward.
#[derive(Debug, Default)]
pub struct Ownership {
    partitions: BTreeMap<i32, State>,
}

impl Ownership {
    /// The group or the coordinator said something.
    pub fn membership(&mut self, event: &MembershipEvent, now_ms: u64) -> Vec<Step> {
        match event {
            MembershipEvent::Gained(partitions) => self.gained(partitions),
            MembershipEvent::Lost(partitions) => self.lost(partitions, now_ms),
            MembershipEvent::Claimed(partition, epoch) => self.claimed(*partition, *epoch),
            MembershipEvent::ClaimRefused(partition, _) => {
                if let Some(State::Claiming { retry_at_ms, .. }) = self.partitions.get_mut(partition) {
                    *retry_at_ms = Some(now_ms + CLAIM_RETRY_MS);
                }
                Vec::new()
            }
            MembershipEvent::EpochSeen(partition, seen) => match self.partitions.get(partition) {
                Some(State::Lingering { epoch, .. }) if seen > epoch => self.forget(&[*partition]),
                _ => Vec::new(),
            },
        }
    }

    /// A partition's lists or sessions have been read to the end; true if the partition is restored by that.
    pub fn caught_up(&mut self, source: Source, partition: i32) -> bool {
        let Some(State::Restoring { lists, sessions }) = self.partitions.get_mut(&partition) else {
            return false;
        };
        match source {
            Source::Lists => *lists = true,
            Source::Sessions => *sessions = true,
            Source::Reports | Source::Heartbeats => {}
        }
        if !(*lists && *sessions) {
            return false;
        }
        // Claimed at the next tick, together with others: a claim is a commit, whatever the number of partitions.
        self.partitions.insert(partition, State::Claiming { serving: None, retry_at_ms: Some(0) });
        true
    }

    /// Time passes; call it a few times a second.
    pub fn tick(&mut self, now_ms: u64) -> Vec<Step> {
        let mut retries = Vec::new();
        let mut given_up = Vec::new();
        for (partition, state) in &mut self.partitions {
            match state {
                State::Claiming { retry_at_ms, .. } if retry_at_ms.is_some_and(|at| at <= now_ms) => {
                    *retry_at_ms = None;
                    retries.push(*partition);
                }
                State::Lingering { until_ms, .. } if *until_ms <= now_ms => given_up.push(*partition),
                _ => {}
            }
        }
        let mut steps = self.forget(&given_up);
        if !retries.is_empty() {
            steps.push(Step::Claim(retries));
        }
        steps
    }

    /// Whether records of the partition's lists and sessions are wanted.
    pub fn holds(&self, partition: i32) -> bool {
        self.partitions.contains_key(&partition)
    }

    /// Partitions that are gained but not served yet.
    pub fn unserved(&self) -> usize {
        let waiting = |state: &&State| matches!(state, State::Restoring { .. } | State::Claiming { serving: None, .. });
        self.partitions.values().filter(waiting).count()
    }

    /// Whether the group has taken every partition away; some may be served still.
    pub fn owns_nothing(&self) -> bool {
        self.partitions.values().all(|state| matches!(state, State::Lingering { .. }))
    }

    /// Whether every partition has been handed over.
    pub fn holds_nothing(&self) -> bool {
        self.partitions.is_empty()
    }

    fn gained(&mut self, partitions: &[i32]) -> Vec<Step> {
        let (mut read, mut claim) = (Vec::new(), Vec::new());
        for partition in partitions {
            match self.partitions.get(partition) {
                None => {
                    self.partitions.insert(*partition, State::Restoring { lists: false, sessions: false });
                    read.push(*partition);
                }
                // Its records were read all along; only the epoch is somebody else's by now, perhaps.
                Some(State::Lingering { epoch, .. }) => {
                    let serving = Some(*epoch);
                    self.partitions.insert(*partition, State::Claiming { serving, retry_at_ms: None });
                    claim.push(*partition);
                }
                Some(_) => {}
            }
        }
        let mut steps = Vec::new();
        if !read.is_empty() {
            steps.push(Step::Read(read));
        }
        if !claim.is_empty() {
            steps.push(Step::Claim(claim));
            steps.push(self.watch());
        }
        steps
    }

    fn lost(&mut self, partitions: &[i32], now_ms: u64) -> Vec<Step> {
        let mut unserved = Vec::new();
        for partition in partitions {
            match self.partitions.get(partition) {
                Some(State::Serving { epoch } | State::Claiming { serving: Some(epoch), .. }) => {
                    let state = State::Lingering { epoch: *epoch, until_ms: now_ms + LINGER_MAX_MS };
                    self.partitions.insert(*partition, state);
                }
                Some(State::Restoring { .. } | State::Claiming { serving: None, .. }) => unserved.push(*partition),
                Some(State::Lingering { .. }) | None => {}
            }
        }
        let mut steps = self.forget(&unserved);
        steps.retain(|step| !matches!(step, Step::Watch(_)));
        steps.push(self.watch());
        steps
    }

    fn claimed(&mut self, partition: i32, epoch: Epoch) -> Vec<Step> {
        match self.partitions.get(&partition) {
            Some(State::Claiming { .. }) => {
                self.partitions.insert(partition, State::Serving { epoch });
                vec![Step::Serve(partition, epoch)]
            }
            // Claimed twice, because it was lost and regained in between: who comes after us compares with the newest.
            Some(State::Serving { epoch: held }) if epoch > *held => {
                self.partitions.insert(partition, State::Serving { epoch });
                vec![Step::Serve(partition, epoch)]
            }
            // Lost again in the meantime: the epoch is spent, which harms nobody.
            _ => Vec::new(),
        }
    }

    fn forget(&mut self, partitions: &[i32]) -> Vec<Step> {
        if partitions.is_empty() {
            return Vec::new();
        }
        let mut steps = Vec::new();
        for partition in partitions {
            self.partitions.remove(partition);
            steps.push(Step::Forget(*partition));
        }
        steps.push(self.watch());
        steps
    }

    fn watch(&self) -> Step {
        let lingers = |(partition, state): (&i32, &State)| match state {
            State::Lingering { .. } => Some(*partition),
            _ => None,
        };
        Step::Watch(self.partitions.iter().filter_map(lingers).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use MembershipEvent::{ClaimRefused, Claimed, EpochSeen, Gained, Lost};

    fn serving(partition: i32, epoch: i64) -> Ownership {
        let mut ownership = Ownership::default();
        assert_eq!(ownership.membership(&Gained(vec![partition]), 0), [Step::Read(vec![partition])]);
        assert!(!ownership.caught_up(Source::Lists, partition));
        assert_eq!((ownership.unserved(), ownership.tick(0)), (1, vec![]), "half of it is no reason to claim");
        assert!(ownership.caught_up(Source::Sessions, partition));
        assert_eq!(ownership.tick(0), [Step::Claim(vec![partition])]);
        let served = ownership.membership(&Claimed(partition, Epoch(epoch)), 0);
        assert_eq!(served, [Step::Serve(partition, Epoch(epoch))]);
        assert_eq!(ownership.unserved(), 0);
        ownership
    }

    fn watch(partitions: &[i32]) -> Step {
        Step::Watch(partitions.iter().copied().collect())
    }

    #[test]
    fn serves_until_the_successor_has_committed() {
        let mut ownership = serving(3, 10);
        assert_eq!(ownership.membership(&Lost(vec![3]), 0), [watch(&[3])]);
        assert!(ownership.holds(3) && !ownership.holds_nothing());
        assert_eq!(ownership.membership(&EpochSeen(3, Epoch(10)), 1), [], "its own epoch");
        assert_eq!(ownership.membership(&EpochSeen(3, Epoch(11)), 2), [Step::Forget(3), watch(&[])]);
        assert!(!ownership.holds(3) && ownership.holds_nothing());
    }

    #[test]
    fn gives_up_a_lost_partition_without_successor() {
        let mut ownership = serving(3, 10);
        ownership.membership(&Lost(vec![3]), 1_000);
        assert_eq!(ownership.tick(1_000 + LINGER_MAX_MS - 1), []);
        assert_eq!(ownership.tick(1_000 + LINGER_MAX_MS), [Step::Forget(3), watch(&[])]);
    }

    #[test]
    fn regained_while_lingering_needs_a_new_epoch_but_no_restore() {
        let mut ownership = serving(3, 10);
        ownership.membership(&Lost(vec![3]), 0);
        assert_eq!(ownership.membership(&Gained(vec![3]), 5), [Step::Claim(vec![3]), watch(&[])]);
        assert_eq!(ownership.unserved(), 0, "the old epoch is still served");
        assert_eq!(ownership.membership(&Claimed(3, Epoch(12)), 6), [Step::Serve(3, Epoch(12))]);
    }

    #[test]
    fn of_two_claims_the_newest_is_served() {
        let mut ownership = serving(3, 10);
        for _ in 0..2 {
            ownership.membership(&Lost(vec![3]), 0);
            assert_eq!(ownership.membership(&Gained(vec![3]), 0), [Step::Claim(vec![3]), watch(&[])]);
        }
        assert_eq!(ownership.membership(&Claimed(3, Epoch(12)), 1), [Step::Serve(3, Epoch(12))]);
        assert_eq!(ownership.membership(&Claimed(3, Epoch(13)), 2), [Step::Serve(3, Epoch(13))]);
        assert_eq!(ownership.membership(&Claimed(3, Epoch(12)), 3), []);
        ownership.membership(&Lost(vec![3]), 4);
        assert_eq!(ownership.membership(&EpochSeen(3, Epoch(13)), 5), [], "its own epoch");
    }

    #[test]
    fn lost_before_it_was_served_is_forgotten_at_once() {
        let mut ownership = Ownership::default();
        ownership.membership(&Gained(vec![1, 2]), 0);
        assert_eq!(ownership.membership(&Lost(vec![1, 2]), 0), [Step::Forget(1), Step::Forget(2), watch(&[])]);
        assert_eq!(ownership.membership(&Claimed(1, Epoch(5)), 0), [], "a late answer");
        assert!(!ownership.caught_up(Source::Lists, 1));
    }

    #[test]
    fn a_refused_claim_is_tried_again() {
        let mut ownership = Ownership::default();
        ownership.membership(&Gained(vec![1, 2]), 0);
        for partition in [1, 2] {
            ownership.caught_up(Source::Sessions, partition);
            ownership.caught_up(Source::Lists, partition);
        }
        assert_eq!(ownership.tick(0), [Step::Claim(vec![1, 2])], "one claim for both");
        assert_eq!(ownership.membership(&ClaimRefused(1, "rebalance".into()), 100), []);
        assert_eq!(ownership.tick(100 + CLAIM_RETRY_MS - 1), []);
        assert_eq!(ownership.tick(100 + CLAIM_RETRY_MS), [Step::Claim(vec![1])]);
        assert_eq!(ownership.tick(10_000), [], "one claim at a time");
    }
}
