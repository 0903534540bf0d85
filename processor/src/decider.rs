//! What a processor does about everything that wakes it: the pure heart of this crate.
//!
//! A [`Decider`] holds the engine, the ownership of partitions with their epochs, and the batches that are being filled.
//! Everything that happens goes in as a [`Wake`] or as passing time; what has to be done comes out as [`Action`]s, in the
//! order in which it has to be done. No I/O and no clock: `now` is the wall clock's, by which positions expire, and `clock`
//! goes only forward from any zero, by which batches are due and partitions are given up.

use crate::ownership::{Ownership, Step};
use crate::packing::{Batch, Packing};
use crate::wake::{Source, Wake};
use nearby_engine::{Counts, Engine, GatewayIndex, Notice};
use nearby_schemas::batch::FriendMovedBatch;
use nearby_schemas::codec::Codec;
use nearby_schemas::{Epoch, GatewayId, TimestampMs, UserId};
use nearby_service::membership::MembershipEvent;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Sessions of gateways that were lost for so long are ended for good.
const SESSION_OF_LOST_GATEWAY_MAX_MS: i64 = 86_400_000;
/// Reports whose users are brought into the cache together; measured in the engine's benches.
const PREFETCHED_AT_ONCE: usize = 16;
/// The wall clock may step back by so much. After a greater step everything that the engine expired meanwhile would stay
/// so until the clock has caught up; a new process reads it again.
pub(crate) const CLOCK_BACK_MS_MAX: i64 = 5_000;

/// What has to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Join the group: every position and every gateway is known.
    Join,
    /// Read the lists and sessions of these partitions from the beginning; their ends are news of this generation.
    Read(Vec<i32>, u64),
    /// Read the lists and sessions of the partition no longer.
    StopReading(i32),
    /// Commit a new epoch for these partitions.
    Claim(Vec<i32>),
    /// Watch the committed epochs of these partitions and no others.
    Watch(BTreeSet<i32>),
    /// Send a batch; should it get lost, say so by [`Decider::make_good`].
    Send(Batch),
    /// Tombstone a session, of a user of this partition, whose gateway is gone for good.
    EndSession(i32, UserId, GatewayId),
    /// End the process: it cannot go on, for this reason.
    Quit(String),
}

/// How far a processor has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The reports of so many partitions are still to be read, or, if none, the heartbeats of gateways.
    RestoringPositions(usize),
    /// Waiting for the group's first word.
    Joining,
    /// So many owned partitions are not served yet.
    RestoringViewers(usize),
    /// Viewers of what it owns are being sent snapshots.
    SendingSnapshots,
    /// It serves what it owns.
    Serving,
}

/// Decides; see the module's documentation.
pub struct Decider {
    engine: Engine,
    ownership: Ownership,
    /// Epochs of the served partitions.
    epochs: BTreeMap<i32, Epoch>,
    packing: Packing,
    /// Partitions of reports that are not restored yet.
    unrestored: BTreeSet<i32>,
    /// The older part of the reports is not read yet.
    older_unread: bool,
    /// The heartbeats of gateways are not restored yet.
    gateways_unknown: bool,
    /// Grows with every reading that begins, so that the end of an earlier one is not taken for that of a later one.
    generation: u64,
    /// The generation in which each owned partition began to be read.
    read_since: BTreeMap<i32, u64>,
    /// Viewers of a partition that is served since may not have their snapshots yet.
    snapshots_wait: bool,
    /// The group has said what is ours, be it nothing, and has not taken all of it away since.
    assigned: bool,
    /// The log has more reports than come here in a second: nobody waits for milliseconds.
    is_behind: bool,
    latest_now: TimestampMs,
    notices: Vec<Notice>,
    closed: Vec<Batch>,
}

impl Decider {
    /// Knows nothing yet, in a cluster with so many partitions of users. The engine is a new one; `now` decided from where
    /// reports are read; `codec` from what batches start with.
    pub fn new(engine: Engine, partitions: i32, now: TimestampMs, codec: Codec<FriendMovedBatch>) -> Decider {
        Decider {
            engine,
            ownership: Ownership::default(),
            epochs: BTreeMap::new(),
            packing: Packing::new(&codec),
            unrestored: (0..partitions).collect(),
            older_unread: false,
            gateways_unknown: true,
            generation: 0,
            read_since: BTreeMap::new(),
            snapshots_wait: false,
            assigned: false,
            is_behind: false,
            latest_now: now,
            notices: Vec::new(),
            closed: Vec::new(),
        }
    }

    /// Reports come newest first: [`Wake::Reports`] is what was appended at or after `since`, with which the group is joined;
    /// what was appended before comes by [`Wake::OlderReports`], meanwhile and after that. To be called before anything else.
    pub fn newest_first(&mut self, since: TimestampMs) {
        self.engine.newest_first(since);
        self.older_unread = true;
    }

    /// Whether the log has more reports than are read in a second, from the next [`tick`](Decider::tick) on. That is for who reads to say: the
    /// times of reports are the broker's clock, and this machine's may be another one.
    pub fn set_behind(&mut self, is_behind: bool) {
        self.is_behind = is_behind;
    }

    /// The brokers will be ready for the next batches at this time of the clock. That is for who sends to say.
    pub fn send_no_sooner_than(&mut self, clock: Duration) {
        self.packing.close_no_sooner_than(clock);
    }

    /// Something happened.
    pub fn wake(&mut self, wake: Wake, now: TimestampMs, clock: Duration, actions: &mut Vec<Action>) {
        let (engine, out) = (&mut self.engine, &mut self.notices);
        match wake {
            Wake::Reports(reports) => {
                for reports in reports.reports.chunks(PREFETCHED_AT_ONCE) {
                    engine.prefetch(reports.iter().map(|report| report.user));
                    for report in reports {
                        engine.report(report.user, report.time, report.place, now, out);
                    }
                }
            }
            Wake::OlderReports(reports) => {
                for report in &reports.reports {
                    engine.older_report(report.user, report.time, report.place);
                }
            }
            Wake::OlderAreRead => {
                engine.older_are_read();
                self.older_unread = false;
            }
            Wake::Lists(lists) => {
                for list in lists.iter().filter(|list| self.ownership.holds(list.partition)) {
                    engine.friend_list(list.partition, list.viewer, list.friends.as_deref(), now, out);
                }
            }
            Wake::Sessions(sessions) => {
                for session in sessions.iter().filter(|session| self.ownership.holds(session.partition)) {
                    engine.session(session.partition, session.user, &session.gateway, session.ask, now, out);
                }
            }
            Wake::Heartbeat(gateway, Some(appended_at)) => engine.heartbeat(&gateway, appended_at, now, out),
            Wake::Heartbeat(gateway, None) => engine.gateway_removed(&gateway, now, out),
            Wake::CaughtUp(source @ (Source::Reports | Source::Heartbeats), partition, _) => {
                let was_restored = self.is_restored();
                match source {
                    Source::Reports => drop(self.unrestored.remove(&partition)),
                    _ => self.gateways_unknown = false,
                }
                // Joins when every position and every gateway is known, not before: an owner must not tell from half of the
                // truth, nor take over from another and then tell nobody.
                if !was_restored && self.is_restored() {
                    actions.push(Action::Join);
                }
            }
            Wake::CaughtUp(source, partition, generation) => {
                if self.read_since.get(&partition).is_some_and(|since| generation >= *since) {
                    self.ownership.caught_up(source, partition);
                }
            }
            Wake::Membership(event) => {
                let steps = self.ownership.membership(&event, millis(clock));
                match &event {
                    MembershipEvent::Gained(_) => self.assigned = true,
                    // Until the group has said that there is nothing for us, it may be that we are not in it any more.
                    MembershipEvent::Lost(lost) if !lost.is_empty() && self.ownership.owns_nothing() => {
                        self.assigned = false;
                    }
                    _ => {}
                }
                self.take(steps, now, clock, actions);
            }
        }
    }

    /// Time passes; to be called a few times a second.
    pub fn tick(&mut self, now: TimestampMs, clock: Duration, actions: &mut Vec<Action>) {
        let back_ms = self.latest_now.since_ms(now);
        if back_ms > CLOCK_BACK_MS_MAX {
            actions.push(Action::Quit(format!("the clock of this machine was set back by {back_ms} ms")));
        }
        self.latest_now = self.latest_now.max(now);
        self.engine.tick(now, &mut self.notices);
        let steps = self.ownership.tick(millis(clock));
        self.take(steps, now, clock, actions);
        self.packing.set_interval(self.engine.counts().gateways_alive, self.is_behind);
    }

    /// Goes on with what earlier wakes have left to do; says whether there is more. To be called after each group of wakes,
    /// and again at once if there is more and no wake.
    pub fn resume(&mut self, now: TimestampMs) -> bool {
        let more = self.engine.resume(now, &mut self.notices);
        self.snapshots_wait &= more;
        more
    }

    /// Packs what there is to tell and sends what is full or due; to be called after that.
    pub fn flush(&mut self, now: TimestampMs, clock: Duration, actions: &mut Vec<Action>) {
        self.pack(now, clock);
        self.packing.close_due(now, clock, &mut self.closed);
        self.send(actions);
    }

    /// When [`flush`](Decider::flush) has something to send.
    pub fn next_due(&self) -> Option<Duration> {
        self.packing.next_due()
    }

    /// So much waits to be sent that nothing more should be decided before then.
    pub fn is_full(&self) -> bool {
        self.packing.is_full()
    }

    /// Sends everything: the last word of a processor.
    pub fn end(&mut self, now: TimestampMs, clock: Duration, actions: &mut Vec<Action>) {
        self.pack(now, clock);
        self.packing.close_all(now, &mut self.closed);
        self.send(actions);
    }

    /// Batches to these viewers, each on one gateway, got lost: they get snapshots instead.
    pub fn make_good(&mut self, lost: impl IntoIterator<Item = (GatewayIndex, UserId)>, now: TimestampMs) {
        for (gateway, viewer) in lost {
            let gateway = self.engine.gateway_id(gateway).clone();
            self.engine.snapshot_again(viewer, &gateway, now, &mut self.notices);
        }
    }

    /// Ends sessions whose gateways are gone for good; to be called now and then.
    pub fn clean(&self, actions: &mut Vec<Action>) {
        let stale = self.engine.stale_sessions(SESSION_OF_LOST_GATEWAY_MAX_MS).into_iter();
        actions.extend(stale.map(|(partition, user, gateway)| Action::EndSession(partition, user, gateway)));
    }

    /// How far it has come.
    pub fn progress(&self) -> Progress {
        match (self.is_restored(), self.ownership.unserved()) {
            (false, _) => Progress::RestoringPositions(self.unrestored.len()),
            (true, 0) if !self.assigned && self.ownership.holds_nothing() => Progress::Joining,
            (true, 0) if self.snapshots_wait => Progress::SendingSnapshots,
            (true, 0) => Progress::Serving,
            (true, unserved) => Progress::RestoringViewers(unserved),
        }
    }

    /// Whether there is an older part of the reports that has not been read.
    pub fn reads_older(&self) -> bool {
        self.older_unread
    }

    /// Whether every partition has been handed over to a successor.
    pub fn holds_nothing(&self) -> bool {
        self.ownership.holds_nothing()
    }

    /// Partitions whose viewers are told, each with the epoch under which.
    pub fn epochs(&self) -> &BTreeMap<i32, Epoch> {
        &self.epochs
    }

    /// Sizes of the state.
    pub fn counts(&self) -> Counts {
        self.engine.counts()
    }

    /// The name of a gateway in a batch of this decider.
    pub fn gateway_id(&self, gateway: GatewayIndex) -> &GatewayId {
        self.engine.gateway_id(gateway)
    }

    fn is_restored(&self) -> bool {
        self.unrestored.is_empty() && !self.gateways_unknown
    }

    fn take(&mut self, steps: Vec<Step>, now: TimestampMs, clock: Duration, actions: &mut Vec<Action>) {
        for step in steps {
            match step {
                Step::Read(partitions) => {
                    self.generation += 1;
                    self.read_since.extend(partitions.iter().map(|partition| (*partition, self.generation)));
                    actions.push(Action::Read(partitions, self.generation));
                }
                Step::Claim(partitions) => actions.push(Action::Claim(partitions)),
                Step::Watch(partitions) => actions.push(Action::Watch(partitions)),
                Step::Serve(partition, epoch) => {
                    // What was told so far belongs to the epoch before.
                    self.pack(now, clock);
                    self.epochs.insert(partition, epoch);
                    self.engine.serve(partition, now, &mut self.notices);
                    self.snapshots_wait = true;
                    tracing::info!(partition, epoch = epoch.0, "serving");
                }
                Step::Forget(partition) => {
                    self.pack(now, clock);
                    self.engine.forget(partition);
                    self.epochs.remove(&partition);
                    self.read_since.remove(&partition);
                    actions.push(Action::StopReading(partition));
                    tracing::info!(partition, "no longer serving");
                }
            }
        }
    }

    fn pack(&mut self, now: TimestampMs, clock: Duration) {
        metrics::counter!("nearby_processor_notices_total").increment(self.notices.len() as u64);
        self.packing.pack(&self.epochs, &mut self.notices, now, clock, &mut self.closed);
    }

    fn send(&mut self, actions: &mut Vec<Action>) {
        actions.extend(self.closed.drain(..).map(Action::Send));
    }
}

fn millis(clock: Duration) -> u64 {
    u64::try_from(clock.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "decider_tests.rs"]
mod tests;
