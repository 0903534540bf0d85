//! A processor's member of the group: what `service/src/membership.rs` does with librdkafka, on the fake coordinator.

use crate::around::Around;
use crate::group::{MemberId, Word};
use nearby_processor::wake::Wake;
use nearby_schemas::Epoch;
use nearby_service::membership::{MembershipEvent, next_epoch};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// As in production.
const POLL_MS: i64 = 50;
const WATCH_INTERVAL_MS: i64 = 250;

/// One member's thread.
pub struct Member {
    id: Option<MemberId>,
    owned: BTreeSet<i32>,
    watched: BTreeSet<i32>,
    claims: VecDeque<Vec<i32>>,
    /// Epochs that were read and are about to be committed.
    committing: Option<Vec<(i32, Epoch)>>,
    next_poll_ms: i64,
    next_watch_ms: i64,
    leaving: bool,
    /// The newest epoch that the coordinator confirmed to this member, by partition.
    pub claimed: BTreeMap<i32, Epoch>,
}

impl Member {
    /// Joins.
    pub fn join(around: &mut Around) -> Member {
        let now_ms = around.now_ms();
        Member {
            id: Some(around.processors.join(now_ms)),
            owned: BTreeSet::new(),
            watched: BTreeSet::new(),
            claims: VecDeque::new(),
            committing: None,
            next_poll_ms: now_ms,
            next_watch_ms: now_ms,
            leaving: false,
            claimed: BTreeMap::new(),
        }
    }

    /// Is asked to commit a new epoch for each of these partitions.
    pub fn claim(&mut self, partitions: Vec<i32>) {
        self.claims.push_back(partitions);
    }

    /// Is asked to watch these partitions and no others.
    pub fn watch(&mut self, partitions: BTreeSet<i32>) {
        self.watched = partitions;
    }

    /// Leaves the group, and goes on watching.
    pub fn leave(&mut self, around: &mut Around, events: &mut VecDeque<Wake>) {
        if let Some(id) = self.id.take().filter(|_| !self.leaving) {
            around.processors.leave(id);
            self.lose_everything(events);
        }
        self.leaving = true;
    }

    /// When it acts next.
    pub fn when_next(&self) -> i64 {
        if self.committing.is_some() || !self.claims.is_empty() { 0 } else { self.next_poll_ms }
    }

    /// One turn of the thread; what it learns goes to the decider.
    pub fn step(&mut self, around: &mut Around, wall_ahead_ms: i64, cut_off: bool, events: &mut VecDeque<Wake>) {
        if around.broker.away || cut_off {
            // Requests run into their timeouts.
            self.next_poll_ms = around.now_ms() + 1_000;
            let failed =
                self.committing.take().map(|epochs| epochs.into_iter().map(|(partition, _)| partition).collect());
            let failed: Vec<i32> = failed.into_iter().chain(self.claims.drain(..)).flatten().collect();
            refuse(&failed, "no broker", events);
            return;
        }
        if let Some(epochs) = self.committing.take() {
            self.commit(around, &epochs, events);
        } else if let Some(partitions) = self.claims.pop_front() {
            // The coordinator knows who is a member, not whose partition it is: a claim that came too late is refused here.
            let (owned, lost): (Vec<i32>, Vec<i32>) =
                partitions.iter().partition(|partition| self.owned.contains(partition));
            refuse(&lost, "no longer owned", events);
            let now = around.wall(wall_ahead_ms);
            let epoch = |partition| (partition, next_epoch(around.processors.committed(partition), now));
            let epochs: Vec<(i32, Epoch)> = owned.into_iter().map(epoch).collect();
            self.committing = Some(epochs).filter(|epochs| !epochs.is_empty());
            return;
        }
        self.poll(around, events);
        if around.now_ms() >= self.next_watch_ms {
            self.next_watch_ms = around.now_ms() + WATCH_INTERVAL_MS;
            for partition in &self.watched {
                let epoch = around.processors.committed(*partition);
                events.push_back(Wake::Membership(MembershipEvent::EpochSeen(*partition, epoch)));
            }
        }
    }

    fn commit(&mut self, around: &mut Around, epochs: &[(i32, Epoch)], events: &mut VecDeque<Wake>) {
        let accepted = self.id.is_some_and(|id| around.processors.commit(id, epochs));
        if !accepted {
            let partitions: Vec<i32> = epochs.iter().map(|(partition, _)| *partition).collect();
            return refuse(&partitions, "no member", events);
        }
        let now_ms = around.now_ms();
        for (partition, epoch) in epochs {
            around.judge.committed(*partition, *epoch, now_ms);
            around.note(format_args!("partition {partition} has epoch {}", epoch.0));
        }
        if around.dice.chance(around.broker.answer_lost) {
            let partitions: Vec<i32> = epochs.iter().map(|(partition, _)| *partition).collect();
            return refuse(&partitions, "no answer", events);
        }
        for (partition, epoch) in epochs {
            self.claimed.insert(*partition, *epoch);
            events.push_back(Wake::Membership(MembershipEvent::Claimed(*partition, *epoch)));
        }
    }

    fn poll(&mut self, around: &mut Around, events: &mut VecDeque<Wake>) {
        let now_ms = around.now_ms();
        self.next_poll_ms = now_ms + POLL_MS;
        let Some(id) = self.id else { return };
        match around.processors.poll(id, &self.owned, now_ms) {
            Word::Expelled => {
                around.note(format_args!("{id:?} was expelled"));
                self.lose_everything(events);
                self.id = Some(around.processors.join(now_ms));
            }
            Word::Assignment { lost, gained, news } => {
                if !lost.is_empty() {
                    self.owned.retain(|partition| !lost.contains(partition));
                    events.push_back(Wake::Membership(MembershipEvent::Lost(lost)));
                }
                if news || !gained.is_empty() {
                    self.owned.extend(gained.iter().copied());
                    events.push_back(Wake::Membership(MembershipEvent::Gained(gained)));
                }
            }
        }
    }

    fn lose_everything(&mut self, events: &mut VecDeque<Wake>) {
        let lost: Vec<i32> = std::mem::take(&mut self.owned).into_iter().collect();
        events.push_back(Wake::Membership(MembershipEvent::Lost(lost)));
    }
}

fn refuse(partitions: &[i32], because: &str, events: &mut VecDeque<Wake>) {
    for partition in partitions {
        let refused = MembershipEvent::ClaimRefused(*partition, because.to_owned());
        events.push_back(Wake::Membership(refused));
    }
}
