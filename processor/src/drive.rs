//! The engine's thread: takes wakes, lets the engine and the ownership decide, and does what they say.

use crate::outbox::Outbox;
use crate::ownership::{Action, Ownership};
use crate::readers::Readers;
use crate::wake::{Source, Wake};
use nearby_engine::{Engine, EngineSettings, Notice};
use nearby_schemas::{Epoch, Session, TimestampMs};
use nearby_service::Stop;
use nearby_service::append::{Appender, Outgoing};
use nearby_service::health::Readiness;
use nearby_service::kafka::Kafka;
use nearby_service::membership::{Membership, MembershipEvent};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

const GROUP: &str = "nearby-processors";
/// Expiry is told within 1 s; a tick is cheap.
const TICK: Duration = Duration::from_millis(200);
/// Lost batches are made good for at most so often.
const MAKE_GOOD_INTERVAL: Duration = Duration::from_secs(1);
/// Sessions of gateways that were lost for so long are ended for good.
const SESSION_OF_LOST_GATEWAY_MAX_MS: i64 = 86_400_000;
const CLEANING_INTERVAL: Duration = Duration::from_secs(600);
/// Wakes taken in a row before the outbox gets its turn.
const WAKES_AT_ONCE_MAX: usize = 64;
const END_FLUSH: Duration = Duration::from_secs(3);
const LEAVE_LIMIT: Duration = Duration::from_secs(2);

/// Everything the engine's thread has.
pub(crate) struct Drive {
    engine: Engine,
    ownership: Ownership,
    /// Epochs of the served partitions.
    epochs: BTreeMap<i32, Epoch>,
    readers: Readers,
    outbox: Outbox,
    appender: Appender,
    kafka: Kafka,
    wakes: SyncSender<Wake>,
    readiness: Readiness,
    /// Partitions of reports that are not restored yet.
    unrestored: BTreeSet<i32>,
    membership: Option<Membership>,
    /// The group has said at least once what is ours, be it nothing.
    assigned: bool,
    /// Why this processor cannot go on.
    broken: Option<String>,
    notices: Vec<Notice>,
    started_at: Instant,
}

impl Drive {
    pub fn new(
        settings: EngineSettings,
        readers: Readers,
        outbox: Outbox,
        appender: Appender,
        kafka: Kafka,
        wakes: SyncSender<Wake>,
        readiness: Readiness,
    ) -> Drive {
        Drive {
            engine: Engine::new(settings),
            ownership: Ownership::default(),
            epochs: BTreeMap::new(),
            unrestored: (0..readers.partitions).collect(),
            readers,
            outbox,
            appender,
            kafka,
            wakes,
            readiness,
            membership: None,
            assigned: false,
            broken: None,
            notices: Vec::new(),
            started_at: Instant::now(),
        }
    }

    /// Runs until the stop, and then until successors have taken over, at most `handover_max`.
    pub fn run(mut self, inbox: &Receiver<Wake>, stop: &Stop, handover_max: Duration) {
        let mut next_tick = Instant::now();
        let mut next_make_good = Instant::now();
        let mut next_cleaning = Instant::now() + CLEANING_INTERVAL;
        let mut stopped_at: Option<Instant> = None;
        loop {
            let now = Instant::now();
            if stop.is_cancelled() {
                let stopped_at = *stopped_at.get_or_insert(now);
                let handed_over = self.ownership.holds_nothing();
                if handed_over || now.duration_since(stopped_at) >= handover_max {
                    break;
                }
            }
            if let Some(because) = &self.broken {
                tracing::error!(because, "the processor cannot go on");
                break;
            }
            let due = self.outbox.next_due().map_or(next_tick, |due| due.min(next_tick));
            match inbox.recv_timeout(due.saturating_duration_since(now)) {
                Ok(wake) => {
                    self.wake(wake, stop);
                    for wake in inbox.try_iter().take(WAKES_AT_ONCE_MAX) {
                        self.wake(wake, stop);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                // Cannot happen while `self.wakes` is held.
                Err(RecvTimeoutError::Disconnected) => break,
            }
            let now = Instant::now();
            if now >= next_make_good {
                next_make_good = now + MAKE_GOOD_INTERVAL;
                self.make_good();
            }
            if now >= next_tick {
                next_tick = now + TICK;
                self.tick();
            }
            if now >= next_cleaning {
                next_cleaning = now + CLEANING_INTERVAL;
                self.end_sessions_of_lost_gateways();
            }
            self.pack();
            self.outbox.flush_due(now);
        }
        self.pack();
        self.outbox.end(END_FLUSH);
        // Who is known to have left need not be waited for by the group when the next one joins.
        if let Some(membership) = &self.membership
            && !membership.end(LEAVE_LIMIT)
        {
            tracing::warn!("the group was not left in time; it finds out after the session timeout");
        }
    }

    fn wake(&mut self, wake: Wake, stop: &Stop) {
        let now = TimestampMs::now();
        let (engine, out) = (&mut self.engine, &mut self.notices);
        match wake {
            Wake::Reports(reports) => {
                metrics::counter!("nearby_processor_reports_total").increment(reports.len() as u64);
                if let Some(last) = reports.last() {
                    #[expect(clippy::cast_precision_loss, reason = "an age in milliseconds is far below 2^52")]
                    let age_s = now.since_ms(last.time).max(0) as f64 / 1000.0;
                    metrics::histogram!("nearby_processor_report_age_seconds").record(age_s);
                }
                for report in reports {
                    engine.report(report.user, report.time, report.place, now, out);
                }
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
            Wake::CaughtUp(Source::Reports, partition, _) => self.positions_restored(partition, stop),
            Wake::CaughtUp(source, partition, generation) => {
                if self.readers.is_current(partition, generation) && self.ownership.caught_up(source, partition) {
                    tracing::debug!(partition, "restored");
                }
            }
            Wake::Membership(event) => {
                tracing::debug!(?event, "membership");
                self.assigned |= matches!(event, MembershipEvent::Gained(_));
                let actions = self.ownership.membership(&event, self.now_ms());
                self.act(actions);
            }
        }
    }

    /// Joins the group as soon as every position is there, not before: an owner must not tell from half of the truth.
    fn positions_restored(&mut self, partition: i32, stop: &Stop) {
        self.unrestored.remove(&partition);
        if !self.unrestored.is_empty() || self.membership.is_some() {
            return;
        }
        let restored_ms = u64::try_from(self.started_at.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(restored_ms, users = self.engine.counts().users_with_position, "positions restored");
        let wakes = self.wakes.clone();
        let joined =
            Membership::join(&self.kafka, GROUP, self.kafka.topics.friend_lists(), stop.clone(), move |event| {
                // The engine's thread has ended: so will the member.
                drop(wakes.send(Wake::Membership(event)));
            });
        match joined {
            Ok(membership) => self.membership = Some(membership),
            Err(error) => self.broken = Some(format!("cannot join the group: {error}")),
        }
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Read(partitions) => {
                    if let Err(error) = self.readers.add(&partitions) {
                        self.broken = Some(format!("cannot read the partitions {partitions:?}: {error}"));
                    }
                }
                Action::Claim(partitions) => {
                    if let Some(membership) = &self.membership {
                        membership.claim(partitions);
                    }
                }
                Action::Serve(partition, epoch) => {
                    // What was packed so far belongs to the epoch before.
                    self.pack();
                    self.epochs.insert(partition, epoch);
                    self.engine.serve(partition, TimestampMs::now(), &mut self.notices);
                    tracing::info!(partition, epoch = epoch.0, "serving");
                }
                Action::Forget(partition) => {
                    self.pack();
                    self.engine.forget(partition);
                    self.epochs.remove(&partition);
                    if let Err(error) = self.readers.remove(partition) {
                        tracing::error!(%error, partition, "cannot stop reading a partition");
                    }
                    tracing::info!(partition, "no longer serving");
                }
                Action::Watch(partitions) => {
                    if let Some(membership) = &self.membership {
                        membership.watch(partitions);
                    }
                }
            }
        }
    }

    fn tick(&mut self) {
        self.engine.tick(TimestampMs::now(), &mut self.notices);
        let actions = self.ownership.tick(self.now_ms());
        self.act(actions);
        let counts = self.engine.counts();
        self.outbox.set_gateways_alive(counts.gateways_alive);
        for (what, count) in [
            ("positions", counts.users_with_position),
            ("viewers", counts.viewers_connected),
            ("edges", counts.edges_indexed),
            ("lists", counts.lists_held),
            ("gateways", counts.gateways_alive),
            ("partitions", self.epochs.len()),
        ] {
            #[expect(clippy::cast_precision_loss, reason = "counts of things in memory are far below 2^52")]
            metrics::gauge!("nearby_processor_state", "of" => what).set(count as f64);
        }
        if !self.unrestored.is_empty() {
            let missing = self.unrestored.len();
            self.readiness.not_ready("processor", format!("restoring positions: {missing} partitions to go"));
        } else if self.ownership.unserved() > 0 {
            let missing = self.ownership.unserved();
            self.readiness.not_ready("processor", format!("restoring viewers: {missing} partitions to go"));
        } else if self.assigned {
            self.readiness.ready("processor");
        } else {
            self.readiness.not_ready("processor", "joining the group");
        }
    }

    /// Notices that got lost are replaced by snapshots.
    fn make_good(&mut self) {
        for (gateway, viewer) in self.outbox.take_unacknowledged() {
            let gateway = self.engine.gateway_id(gateway).clone();
            self.engine.snapshot_again(viewer, &gateway, TimestampMs::now(), &mut self.notices);
        }
    }

    fn end_sessions_of_lost_gateways(&mut self) {
        let topic = self.kafka.topics.sessions();
        for (partition, user, gateway) in self.engine.stale_sessions(SESSION_OF_LOST_GATEWAY_MAX_MS) {
            let key = Some(Session::key(user, &gateway).into_bytes());
            let tombstone = Outgoing { topic: topic.clone(), partition: Some(partition), key, ..Outgoing::default() };
            // Not waited for: whatever fails is found again at the next cleaning.
            drop(self.appender.append_one(tombstone));
        }
    }

    fn pack(&mut self) {
        metrics::counter!("nearby_processor_notices_total").increment(self.notices.len() as u64);
        self.outbox.pack(&self.engine, &self.epochs, &mut self.notices);
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started_at.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
