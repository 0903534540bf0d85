//! The processor's decider on a recorded range: records and their times in, batches out. Pure.
//!
//! The clock is the log's: it stands at the append time of the record that is taken, and between two records it passes as in
//! production, tick by tick and batch by batch. So the same records and settings give the same batches, to the byte.
//! One processor owns every partition from the beginning of the range on, under one epoch, and is never behind.

use nearby_engine::{Engine, EngineSettings};
use nearby_processor::decider::{Action, Decider};
use nearby_processor::wake::{Listed, Reported, Sessioned, Source, Wake};
use nearby_schemas::codec::Codec;
use nearby_schemas::partitioning::partition_of;
use nearby_schemas::{Epoch, GatewayId, TimestampMs, UserId};
use nearby_service::membership::MembershipEvent;
use std::collections::BTreeSet;
use std::time::Duration;

/// As in production.
const TICK_MS: i64 = 200;
/// Reports of one moment that the decider takes at once.
const REPORTS_AT_ONCE_MAX: usize = 1_000;
/// On which everybody is connected, unless real sessions are replayed.
const GATEWAY: &str = "replay";

/// Who is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Viewers {
    /// Everybody who has a friend list, on one gateway.
    Listed,
    /// These, on one gateway.
    Named(BTreeSet<UserId>),
    /// Who was connected, where they were.
    Recorded,
}

/// A record of the log.
#[derive(Debug)]
pub enum Input {
    Report(Reported),
    List(Listed),
    Session(Sessioned),
    /// A heartbeat or its tombstone.
    Gateway(Wake),
}

/// For which gateway, and the bytes.
pub type Told = (GatewayId, Vec<u8>);

/// A replay on its way.
pub struct Course {
    decider: Decider,
    partitions: i32,
    from: TimestampMs,
    viewers: Viewers,
    /// Who is connected to the one gateway.
    connected: BTreeSet<UserId>,
    begun: bool,
    now: TimestampMs,
    next_tick: TimestampMs,
    /// Of the present moment.
    reports: Vec<Reported>,
    actions: Vec<Action>,
    out: Vec<Told>,
}

/// The gateway on which everybody is connected.
pub fn gateway() -> GatewayId {
    GatewayId::new(GATEWAY).expect("a legal name")
}

impl Course {
    /// In a cluster with so many partitions of users; tells from `from` on.
    pub fn new(settings: EngineSettings, partitions: i32, from: TimestampMs, viewers: Viewers) -> Course {
        let beginning = TimestampMs(0);
        let mut course = Course {
            decider: Decider::new(Engine::new(settings), partitions, beginning, Codec::new()),
            partitions,
            from,
            viewers,
            connected: BTreeSet::new(),
            begun: false,
            now: beginning,
            next_tick: from,
            reports: Vec::new(),
            actions: Vec::new(),
            out: Vec::new(),
        };
        // Nothing is served before `from`, whatever is said to be restored.
        course.caught_up(Source::Reports, 0);
        course.wake(Wake::CaughtUp(Source::Heartbeats, 0, 0));
        course.wake(Wake::Membership(MembershipEvent::Gained((0..partitions).collect())));
        if course.viewers != Viewers::Recorded {
            course.wake(Wake::Heartbeat(gateway(), Some(from)));
        }
        if let Viewers::Named(viewers) = course.viewers.clone() {
            viewers.into_iter().for_each(|viewer| course.connect(viewer));
        }
        course
    }

    /// The next record; times never go backward. What is before `from` is state, and tells nobody anything.
    pub fn take(&mut self, time: TimestampMs, input: Input) {
        if time > self.now || self.reports.len() >= REPORTS_AT_ONCE_MAX || !matches!(input, Input::Report(_)) {
            self.decide();
        }
        if time > self.now {
            self.pass(time);
        }
        match input {
            Input::Report(report) => self.reports.push(report),
            Input::List(list) => self.list(list),
            Input::Session(session) if self.viewers == Viewers::Recorded => self.wake(Wake::Sessions(vec![session])),
            Input::Gateway(heard) if self.viewers == Viewers::Recorded => self.wake(heard),
            Input::Session(_) | Input::Gateway(_) => {}
        }
    }

    /// The range ends before `to`: what is still to be told is.
    pub fn end(&mut self, to: TimestampMs) {
        self.decide();
        self.pass(to.plus_ms(-1));
        self.now = to;
        self.decider.end(to, clock(self.from, to), &mut self.actions);
        self.act();
    }

    /// What was told since the last time, in order.
    pub fn told(&mut self) -> impl Iterator<Item = Told> + '_ {
        self.out.drain(..)
    }

    fn list(&mut self, list: Listed) {
        match &self.viewers {
            Viewers::Named(viewers) if !viewers.contains(&list.viewer) => return,
            Viewers::Listed if list.friends.is_some() => self.connect(list.viewer),
            _ => {}
        }
        self.wake(Wake::Lists(vec![list]));
    }

    fn connect(&mut self, user: UserId) {
        if self.connected.insert(user) {
            let partition = partition_of(user, self.partitions);
            self.wake(Wake::Sessions(vec![Sessioned { partition, user, gateway: gateway(), ask: Some(0) }]));
        }
    }

    /// The reports of the moment.
    fn decide(&mut self) {
        if !self.reports.is_empty() {
            let reports = std::mem::take(&mut self.reports);
            self.wake(Wake::from(reports));
        }
        self.settle();
    }

    /// Time passes up to a moment that something happens at.
    fn pass(&mut self, until: TimestampMs) {
        if until >= self.from && !self.begun {
            self.now = self.from;
            self.begin();
        }
        while self.begun {
            let due = self.decider.next_due().map(|due| self.from.plus_ms(millis(due)));
            let next = due.map_or(self.next_tick, |due| due.min(self.next_tick));
            if next > until {
                break;
            }
            self.now = self.now.max(next);
            if next == self.next_tick {
                self.next_tick = next.plus_ms(TICK_MS);
                self.decider.tick(self.now, clock(self.from, self.now), &mut self.actions);
            }
            self.settle();
        }
        self.now = self.now.max(until);
    }

    /// All that was there at `from` is known: everybody is told what they see.
    fn begin(&mut self) {
        self.begun = true;
        self.caught_up(Source::Lists, 1);
        self.caught_up(Source::Sessions, 1);
        // Claims what is restored, and serves it.
        self.decider.tick(self.now, Duration::ZERO, &mut self.actions);
        self.settle();
        self.next_tick = self.from.plus_ms(TICK_MS);
    }

    /// The engine does what it has left to do, and what is full or due is sent.
    fn settle(&mut self) {
        loop {
            self.act();
            let more = self.decider.resume(self.now);
            self.decider.flush(self.now, clock(self.from, self.now), &mut self.actions);
            self.act();
            if !more {
                return;
            }
        }
    }

    fn caught_up(&mut self, source: Source, generation: u64) {
        (0..self.partitions).for_each(|partition| self.wake(Wake::CaughtUp(source, partition, generation)));
    }

    fn wake(&mut self, wake: Wake) {
        self.decider.wake(wake, self.now, clock(self.from, self.now), &mut self.actions);
        self.act();
    }

    fn act(&mut self) {
        while !self.actions.is_empty() {
            for action in std::mem::take(&mut self.actions) {
                match action {
                    Action::Send(batch) => {
                        self.out.push((self.decider.gateway_id(batch.gateway).clone(), batch.bytes));
                    }
                    Action::Claim(partitions) => {
                        for partition in partitions {
                            let claimed = Wake::Membership(MembershipEvent::Claimed(partition, Epoch(self.from.0)));
                            let clock = clock(self.from, self.now);
                            self.decider.wake(claimed, self.now, clock, &mut self.actions);
                        }
                    }
                    Action::Quit(because) => panic!("time goes only forward here: {because}"),
                    // There is no group, all is read, and nothing is cleaned.
                    Action::Join | Action::Read(..) | Action::StopReading(_) | Action::Watch(_) => {}
                    Action::EndSession(..) => {}
                }
            }
        }
    }
}

/// The decider's own clock, which begins at `from`.
fn clock(from: TimestampMs, now: TimestampMs) -> Duration {
    Duration::from_millis(now.since_ms(from).max(0).unsigned_abs())
}

fn millis(clock: Duration) -> i64 {
    i64::try_from(clock.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[path = "course_tests.rs"]
mod tests;
