//! What one call leaves to the next ones, so that no input keeps the others waiting.
//!
//! An input that concerns very many viewers takes effect at once where it decides what is true, and is worked off by slices:
//! each call does some of what is waiting after its own input. Until a viewer's turn comes, it is told what was true before
//! for it; so told stays true for the state that its notices come from, and is what the rules say when nothing waits.

use crate::engine::Engine;
use crate::notice::{GatewayIndex, Notice};
use crate::users::Slot;
use std::collections::{BTreeMap, VecDeque};

/// Looking at an edge for a snapshot, which tells all that is near, costs as much as looking at so many for a move.
pub(crate) const LOOKS_PER_EDGE_TOLD: usize = 3;
/// Adding an edge to the index or removing one costs as much as looking at so many.
pub(crate) const LOOKS_PER_EDGE: usize = 8;

/// Something for the viewers of a group, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Task {
    /// A stand-in follows its hub.
    Follow(Slot),
    /// The viewers of a partition get snapshots.
    Serve(i32),
    /// The viewers of a partition that was owned are forgotten.
    Forget(i32),
    /// The gateway is alive, or no longer: its viewers get snapshots, or are disconnected.
    Reconnect(GatewayIndex),
}

/// Tasks in the order of their turns, each once. A task that is not done with its turn has its next one after all others.
#[derive(Default)]
pub(crate) struct Backlog {
    order: VecDeque<Task>,
    /// The first viewer that a task has not yet come to.
    next: BTreeMap<Task, Slot>,
    /// Looks that reports have left for what is waiting; negative, where it took more.
    credit: i64,
}

impl Backlog {
    /// A task more. One that is waiting starts again: the same viewers may see something else now.
    pub(crate) fn push(&mut self, task: Task) {
        if self.next.insert(task, 0).is_none() {
            self.order.push_back(task);
        }
    }

    /// The same, but its turn comes before all others.
    pub(crate) fn push_first(&mut self, task: Task) {
        if self.next.insert(task, 0).is_some() {
            self.order.retain(|waiting| *waiting != task);
        }
        self.order.push_front(task);
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    fn first(&self) -> Option<(Task, Slot)> {
        self.order.front().map(|task| (*task, self.next[task]))
    }
}

impl Engine {
    /// Does a bounded part of what is waiting.
    #[inline]
    pub(crate) fn work_off(&mut self, out: &mut Vec<Notice>) {
        if !self.backlog.is_empty() {
            self.work_off_some(self.looks_at_once_max, out);
        }
    }

    /// Does as much of what is waiting as a report did, which looked at so many: neither keeps the other waiting.
    #[inline]
    pub(crate) fn work_off_beside(&mut self, looks: usize, out: &mut Vec<Notice>) {
        if !self.backlog.is_empty() {
            self.work_off_on_credit(looks, out);
        }
    }

    #[cold]
    fn work_off_on_credit(&mut self, looks: usize, out: &mut Vec<Notice>) {
        let signed = |looks: usize| i64::try_from(looks).unwrap_or(i64::MAX);
        self.backlog.credit = self.backlog.credit.saturating_add(signed(looks)).min(signed(self.looks_at_once_max));
        if let Ok(looks_max @ 1..) = usize::try_from(self.backlog.credit) {
            let done = self.work_off_some(looks_max, out);
            if !self.backlog.is_empty() {
                self.backlog.credit -= signed(done);
            }
        }
    }

    #[cold]
    fn work_off_some(&mut self, looks_max: usize, out: &mut Vec<Notice>) -> usize {
        let (mut looks, mut worked_at) = (0, None);
        while let Some((task, from)) = self.backlog.first() {
            let Some(slot) = self.next_of(task, from) else {
                self.finish(task);
                continue;
            };
            if looks >= looks_max {
                // Only who has had a turn goes to the end: who has not would never come to one.
                if worked_at == Some(task) {
                    self.backlog.order.rotate_left(1);
                }
                break;
            }
            looks += self.work(task, slot, out);
            worked_at = Some(task);
            self.backlog.next.insert(task, slot + 1);
        }
        if self.backlog.is_empty() {
            self.backlog.credit = 0;
        }
        looks
    }

    /// To whom a task comes next.
    fn next_of(&self, task: Task, from: Slot) -> Option<Slot> {
        match task {
            // One viewer, so to say: the stand-in itself.
            Task::Follow(stand_in) => (from <= stand_in).then_some(stand_in),
            Task::Serve(partition) => {
                let held = self.partitions.get(&partition).filter(|held| held.served)?;
                held.viewers.range(from..).next().copied()
            }
            Task::Forget(partition) => self.leaving.get(&partition)?.first().copied(),
            Task::Reconnect(gateway) => self.sessions.on(gateway, from).next(),
        }
    }

    /// The first task is done.
    fn finish(&mut self, task: Task) {
        self.backlog.order.pop_front();
        self.backlog.next.remove(&task);
        if let Task::Forget(partition) = task {
            self.leaving.remove(&partition);
        }
    }

    /// Does it for one; says how many looks that cost.
    fn work(&mut self, task: Task, slot: Slot, out: &mut Vec<Notice>) -> usize {
        match task {
            Task::Follow(stand_in) => {
                let change = self.users.follow(stand_in, self.index.hub(stand_in));
                self.tell_watchers(stand_in, &self.radius.moved(change.old, change.new), out);
                1 + self.index.watchers(stand_in).len()
            }
            Task::Serve(_) => self.reconnect(slot, |_| true, out),
            Task::Forget(partition) => {
                let left = self.leaving.get_mut(&partition).is_some_and(|viewers| viewers.remove(&slot));
                if left { self.let_go(slot) } else { 1 }
            }
            Task::Reconnect(gateway) => self.reconnect(slot, |on| on == gateway, out),
        }
    }
}
