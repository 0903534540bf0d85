//! Who acts next, and when: the fake clock. Each actor has one entry; being woken again can only make it earlier.

use std::collections::{BTreeMap, BTreeSet};

/// Everybody who acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// The log takes what is on its way to it.
    Broker,
    /// Faults.
    Chaos,
    /// By number, as all that follow.
    Processor(usize),
    /// A gateway.
    Gateway(usize),
    /// An ingest.
    Ingest(usize),
    /// A sink.
    Sink(usize),
    /// A user with a phone.
    Client(usize),
}

/// Times of the next acts.
#[derive(Default)]
pub struct Agenda {
    now_ms: i64,
    entries: BTreeSet<(i64, u64, Who)>,
    of: BTreeMap<Who, (i64, u64)>,
    next_number: u64,
}

impl Agenda {
    /// Starts at this time.
    pub fn new(now_ms: i64) -> Agenda {
        Agenda { now_ms, ..Agenda::default() }
    }

    /// The time of the act that goes on.
    pub fn now_ms(&self) -> i64 {
        self.now_ms
    }

    /// Has somebody act at this time, or earlier if that was planned.
    pub fn wake(&mut self, who: Who, at_ms: i64) {
        let at_ms = at_ms.max(self.now_ms);
        if let Some(&(planned_ms, number)) = self.of.get(&who) {
            if planned_ms <= at_ms {
                return;
            }
            self.entries.remove(&(planned_ms, number, who));
        }
        self.next_number += 1;
        self.entries.insert((at_ms, self.next_number, who));
        self.of.insert(who, (at_ms, self.next_number));
    }

    /// The next to act, up to this time; the clock is set to when.
    pub fn next(&mut self, until_ms: i64) -> Option<Who> {
        let &(at_ms, number, who) = self.entries.first()?;
        if at_ms > until_ms {
            self.now_ms = until_ms;
            return None;
        }
        self.entries.remove(&(at_ms, number, who));
        self.of.remove(&who);
        self.now_ms = at_ms;
        Some(who)
    }
}
