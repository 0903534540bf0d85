//! What one call leaves to the next ones, so that no input keeps the others waiting.
//!
//! An input that concerns very many viewers takes effect at once where it decides what is true, and is worked off by slices:
//! each call does some of what is waiting after its own input. Until a viewer's turn comes, it is told what was true before
//! for it; so told stays true for the state that its notices come from, and is what the rules say when nothing waits.

use crate::engine::Engine;
use crate::notice::{GatewayIndex, Notice};
use crate::users::Slot;
use std::collections::{BTreeMap, VecDeque};

/// Adding an edge to the index or removing one costs as much as looking at so many.
const LOOKS_PER_EDGE: usize = 8;

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

/// Tasks in the order in which they are worked at, each once.
#[derive(Default)]
pub(crate) struct Backlog {
    order: VecDeque<Task>,
    /// The first viewer that a task has not yet come to.
    next: BTreeMap<Task, Slot>,
}

impl Backlog {
    /// A task more. One that is waiting starts again: the same viewers may see something else now.
    pub(crate) fn push(&mut self, task: Task) {
        if self.next.insert(task, 0).is_none() {
            self.order.push_back(task);
        }
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    fn first(&self) -> Option<(Task, Slot)> {
        self.order.front().map(|task| (*task, self.next[task]))
    }

    /// The first task has its next turn after all others.
    fn rotate(&mut self) {
        if !self.order.is_empty() {
            self.order.rotate_left(1);
        }
    }
}

impl Engine {
    /// Does a bounded part of what is waiting.
    #[inline]
    pub(crate) fn work_off(&mut self, out: &mut Vec<Notice>) {
        if !self.backlog.is_empty() {
            self.work_off_some(out);
        }
    }

    #[cold]
    fn work_off_some(&mut self, out: &mut Vec<Notice>) {
        let mut looks = 0;
        while let Some((task, from)) = self.backlog.first() {
            let Some(slot) = self.next_of(task, from) else {
                self.finish(task);
                continue;
            };
            if looks >= self.looks_at_once_max {
                break;
            }
            looks += 1 + self.work(task, slot, out);
            self.backlog.next.insert(task, slot + 1);
        }
        self.backlog.rotate();
    }

    /// To whom a task comes next.
    fn next_of(&self, task: Task, from: Slot) -> Option<Slot> {
        match task {
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

    /// Does it for one; says how many looks at edges that cost.
    fn work(&mut self, task: Task, slot: Slot, out: &mut Vec<Notice>) -> usize {
        let edges = self.lists.of(slot).len();
        match task {
            Task::Follow(stand_in) => {
                let change = self.users.follow(stand_in, self.index.hub(stand_in));
                self.tell_watchers(stand_in, &self.radius.moved(change.old, change.new), out);
                return self.index.watchers(stand_in).len();
            }
            Task::Serve(_) => self.reconnect(slot, |_| true, out),
            Task::Forget(partition) => {
                if self.leaving.get_mut(&partition).is_some_and(|viewers| viewers.remove(&slot)) {
                    self.let_go(slot);
                }
            }
            Task::Reconnect(gateway) => self.reconnect(slot, |on| on == gateway, out),
        }
        LOOKS_PER_EDGE * edges
    }
}
