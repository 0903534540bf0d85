//! The fake coordinator of a consumer group: who is a member, who owns what, and the epochs that it accepted.
//!
//! Rebalances are cooperative: a partition goes to its new owner only after the old one has given it up, or was expelled
//! because it was silent for longer than the session timeout.

use nearby_schemas::Epoch;
use std::collections::{BTreeMap, BTreeSet};

/// As in production.
const SESSION_TIMEOUT_MS: i64 = 10_000;

/// One life of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemberId(u64);

/// What a member learns at a poll.
#[derive(Debug, PartialEq, Eq)]
pub enum Word {
    /// It is no member any more.
    Expelled,
    /// These were taken, and these given; `news` if there was a rebalance, even one that changed nothing here.
    Assignment {
        /// Taken.
        lost: Vec<i32>,
        /// Given.
        gained: Vec<i32>,
        /// There was a rebalance.
        news: bool,
    },
}

struct Member {
    seen_ms: i64,
    /// What it should own.
    target: BTreeSet<i32>,
    news: bool,
}

/// A group over the partitions of one topic.
pub struct Group {
    partitions: i32,
    members: BTreeMap<MemberId, Member>,
    owners: BTreeMap<i32, MemberId>,
    committed: BTreeMap<i32, Epoch>,
    next_member: u64,
}

impl Group {
    /// Without members.
    pub fn new(partitions: i32) -> Group {
        let (members, owners, committed) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Group { partitions, members, owners, committed, next_member: 0 }
    }

    /// A new member.
    pub fn join(&mut self, now_ms: i64) -> MemberId {
        self.next_member += 1;
        let id = MemberId(self.next_member);
        self.members.insert(id, Member { seen_ms: now_ms, target: BTreeSet::new(), news: true });
        self.rebalance();
        id
    }

    /// A member goes, in order.
    pub fn leave(&mut self, id: MemberId) {
        if self.members.remove(&id).is_some() {
            self.owners.retain(|_, owner| *owner != id);
            self.rebalance();
        }
    }

    /// Expels members that were silent for too long.
    pub fn expel(&mut self, now_ms: i64) {
        let silent = |member: &Member| now_ms - member.seen_ms > SESSION_TIMEOUT_MS;
        let expelled: Vec<MemberId> =
            self.members.iter().filter(|(_, member)| silent(member)).map(|(id, _)| *id).collect();
        expelled.into_iter().for_each(|id| self.leave(id));
    }

    /// The broker is back: nobody is held to have been silent.
    pub fn back(&mut self, now_ms: i64) {
        self.members.values_mut().for_each(|member| member.seen_ms = now_ms);
    }

    /// A member shows up, owning these, and learns what has changed.
    pub fn poll(&mut self, id: MemberId, owned: &BTreeSet<i32>, now_ms: i64) -> Word {
        let Some(member) = self.members.get_mut(&id) else { return Word::Expelled };
        member.seen_ms = now_ms;
        let news = std::mem::take(&mut member.news);
        let target = member.target.clone();
        let lost: Vec<i32> = owned.difference(&target).copied().collect();
        for partition in &lost {
            self.owners.remove(partition);
        }
        let free = |partition: &&i32| !self.owners.contains_key(partition);
        let gained: Vec<i32> = target.difference(owned).filter(free).copied().collect();
        for partition in &gained {
            self.owners.insert(*partition, id);
        }
        Word::Assignment { lost, gained, news }
    }

    /// The epoch in the committed metadata.
    pub fn committed(&self, partition: i32) -> Epoch {
        self.committed.get(&partition).copied().unwrap_or_default()
    }

    /// Commits epochs; refused to who is no member, and as long as the member has not heard of the last rebalance.
    pub fn commit(&mut self, id: MemberId, epochs: &[(i32, Epoch)]) -> bool {
        let accepted = self.members.get(&id).is_some_and(|member| !member.news);
        if accepted {
            self.committed.extend(epochs.iter().copied());
        }
        accepted
    }

    /// Spreads the partitions evenly; who has one keeps it if that is fair.
    fn rebalance(&mut self) {
        let count = i32::try_from(self.members.len()).unwrap_or(i32::MAX);
        if count == 0 {
            return;
        }
        let mut targets: BTreeMap<MemberId, BTreeSet<i32>> =
            self.members.keys().map(|id| (*id, BTreeSet::new())).collect();
        let fair = usize::try_from((self.partitions + count - 1) / count).unwrap_or(usize::MAX);
        let mut free = Vec::new();
        for partition in 0..self.partitions {
            match self.owners.get(&partition).and_then(|owner| targets.get_mut(owner)) {
                Some(target) if target.len() < fair => {
                    target.insert(partition);
                }
                _ => free.push(partition),
            }
        }
        for partition in free {
            let least = targets.values_mut().min_by_key(|target| target.len());
            least.expect("there is a member").insert(partition);
        }
        for (id, member) in &mut self.members {
            member.target = targets.remove(id).unwrap_or_default();
            member.news = true;
        }
    }
}
