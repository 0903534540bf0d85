//! The engine's thread: takes wakes, has the [`Decider`] decide, and does what it says.

use crate::decider::{Action, Decider, Progress};
use crate::outbox::Outbox;
use crate::readers::Readers;
use crate::wake::Wake;
use nearby_schemas::{GatewayId, Session, TimestampMs, UserId};
use nearby_service::Stop;
use nearby_service::append::{Appender, Outgoing};
use nearby_service::health::Readiness;
use nearby_service::kafka::Kafka;
use nearby_service::membership::Membership;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

const GROUP: &str = "nearby-processors";
/// Expiry is told within 1 s; a tick is cheap.
const TICK: Duration = Duration::from_millis(200);
/// Lost batches are made good for at most so often.
const MAKE_GOOD_INTERVAL: Duration = Duration::from_secs(1);
const CLEANING_INTERVAL: Duration = Duration::from_secs(600);
/// Wakes taken in a row before the batches get their turn, and for how long they are taken.
const WAKES_AT_ONCE_MAX: usize = 64;
const TURN_MAX: Duration = Duration::from_millis(5);
/// Viewers who get snapshots in one turn because a batch was lost.
const MADE_GOOD_AT_ONCE_MAX: usize = 1_000;
const END_FLUSH: Duration = Duration::from_secs(3);
const LEAVE_LIMIT: Duration = Duration::from_secs(2);

/// Everything the engine's thread has.
pub(crate) struct Drive {
    decider: Decider,
    readers: Readers,
    outbox: Outbox,
    appender: Appender,
    kafka: Kafka,
    wakes: SyncSender<Wake>,
    readiness: Readiness,
    membership: Option<Membership>,
    /// Why this processor cannot go on.
    broken: Option<String>,
    /// What is to be done next; empty between two turns.
    actions: Vec<Action>,
    started_at: Instant,
}

impl Drive {
    pub fn new(
        decider: Decider,
        readers: Readers,
        outbox: Outbox,
        appender: Appender,
        kafka: Kafka,
        wakes: SyncSender<Wake>,
        readiness: Readiness,
    ) -> Drive {
        Drive {
            decider,
            readers,
            outbox,
            appender,
            kafka,
            wakes,
            readiness,
            membership: None,
            broken: None,
            actions: Vec::new(),
            started_at: Instant::now(),
        }
    }

    /// Runs until the stop, and then until successors have taken over, at most `handover_max`.
    pub fn run(mut self, inbox: Receiver<Wake>, stop: &Stop, handover_max: Duration) {
        let mut next_tick = Instant::now();
        let mut next_make_good = Instant::now();
        let mut next_cleaning = Instant::now() + CLEANING_INTERVAL;
        let mut stopped_at: Option<Instant> = None;
        // The engine has not done all that earlier wakes brought.
        let mut unfinished = false;
        loop {
            let now = Instant::now();
            if stop.is_cancelled() {
                let stopped_at = *stopped_at.get_or_insert(now);
                if self.decider.holds_nothing() || now.duration_since(stopped_at) >= handover_max {
                    break;
                }
            }
            if let Some(because) = &self.broken {
                tracing::error!(because, "the processor cannot go on");
                break;
            }
            let due = self.decider.next_due().map_or(next_tick, |due| next_tick.min(self.started_at + due));
            let patience = if unfinished { Duration::ZERO } else { due.saturating_duration_since(now) };
            match inbox.recv_timeout(patience) {
                Ok(wake) => {
                    let begun = Instant::now();
                    self.wake(wake);
                    for wake in inbox.try_iter().take(WAKES_AT_ONCE_MAX) {
                        self.wake(wake);
                        if begun.elapsed() >= TURN_MAX {
                            break;
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                // Cannot happen while `self.wakes` is held.
                Err(RecvTimeoutError::Disconnected) => break,
            }
            let now = Instant::now();
            if now >= next_make_good {
                let lost = self.outbox.take_unacknowledged(MADE_GOOD_AT_ONCE_MAX);
                // Where there were more, the next ones come after what was decided is on its way.
                if lost.len() < MADE_GOOD_AT_ONCE_MAX {
                    next_make_good = now + MAKE_GOOD_INTERVAL;
                }
                self.decider.make_good(lost, TimestampMs::now());
            }
            if now >= next_tick {
                next_tick = now + TICK;
                self.tick();
            }
            if now >= next_cleaning {
                next_cleaning = now + CLEANING_INTERVAL;
                self.decider.clean(&mut self.actions);
            }
            unfinished = self.decider.resume(TimestampMs::now());
            self.decider.flush(TimestampMs::now(), self.started_at.elapsed(), &mut self.actions);
            self.act(stop);
        }
        self.decider.end(TimestampMs::now(), self.started_at.elapsed(), &mut self.actions);
        self.act(stop);
        self.outbox.flush(END_FLUSH);
        // Nobody takes wakes any more: a member that waits for room in the inbox could not leave the group.
        drop(inbox);
        // Who is known to have left need not be waited for by the group when the next one joins.
        if let Some(membership) = &self.membership
            && !membership.end(LEAVE_LIMIT)
        {
            tracing::warn!("the group was not left in time; it finds out after the session timeout");
        }
    }

    fn wake(&mut self, wake: Wake) {
        let now = TimestampMs::now();
        match &wake {
            Wake::Reports(reports) => {
                metrics::counter!("nearby_processor_reports_total").increment(reports.len() as u64);
                if let Some(last) = reports.last() {
                    #[expect(clippy::cast_precision_loss, reason = "an age in milliseconds is far below 2^52")]
                    let age_s = now.since_ms(last.time).max(0) as f64 / 1000.0;
                    metrics::histogram!("nearby_processor_report_age_seconds").record(age_s);
                }
            }
            Wake::Membership(event) => tracing::debug!(?event, "membership"),
            _ => {}
        }
        self.decider.wake(wake, now, self.started_at.elapsed(), &mut self.actions);
    }

    fn tick(&mut self) {
        if let Some(because) = self.outbox.failed() {
            self.broken = Some(format!("its producer has failed for good: {because}"));
        }
        self.decider.tick(TimestampMs::now(), self.started_at.elapsed(), &mut self.actions);
        let counts = self.decider.counts();
        for (what, count) in [
            ("positions", counts.users_with_position),
            ("viewers", counts.viewers_connected),
            ("edges", counts.edges_indexed),
            ("lists", counts.lists_held),
            ("gateways", counts.gateways_alive),
            ("partitions", self.decider.epochs().len()),
        ] {
            #[expect(clippy::cast_precision_loss, reason = "counts of things in memory are far below 2^52")]
            metrics::gauge!("nearby_processor_state", "of" => what).set(count as f64);
        }
        let waits_for = match self.decider.progress() {
            Progress::Serving => return self.readiness.ready("processor"),
            Progress::RestoringPositions(0) => "restoring gateways".to_owned(),
            Progress::RestoringPositions(missing) => format!("restoring positions: {missing} partitions to go"),
            Progress::RestoringViewers(missing) => format!("restoring viewers: {missing} partitions to go"),
            Progress::SendingSnapshots => "sending snapshots".to_owned(),
            Progress::Joining => "joining the group".to_owned(),
        };
        self.readiness.not_ready("processor", waits_for);
    }

    fn act(&mut self, stop: &Stop) {
        for action in std::mem::take(&mut self.actions) {
            match action {
                Action::Join => self.join(stop),
                Action::Read(partitions, generation) => {
                    if let Err(error) = self.readers.add(&partitions, generation) {
                        self.broken = Some(format!("cannot read the partitions {partitions:?}: {error}"));
                    }
                }
                Action::StopReading(partition) => {
                    if let Err(error) = self.readers.remove(partition) {
                        tracing::error!(%error, partition, "cannot stop reading a partition");
                    }
                }
                Action::Claim(partitions) => {
                    if let Some(membership) = &self.membership {
                        membership.claim(partitions);
                    }
                }
                Action::Watch(partitions) => {
                    if let Some(membership) = &self.membership {
                        membership.watch(partitions);
                    }
                }
                Action::Send(batch) => {
                    let topic = self.kafka.topics.friend_moved(self.decider.gateway_id(batch.gateway));
                    self.outbox.send(&topic, &batch);
                }
                Action::EndSession(partition, user, gateway) => self.end_session(partition, user, &gateway),
                Action::Quit(because) => self.broken = Some(because),
            }
        }
    }

    fn join(&mut self, stop: &Stop) {
        let restored_ms = u64::try_from(self.started_at.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(restored_ms, users = self.decider.counts().users_with_position, "positions restored");
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

    fn end_session(&self, partition: i32, user: UserId, gateway: &GatewayId) {
        let key = Some(Session::key(user, gateway).into_bytes());
        let topic = self.kafka.topics.sessions();
        let tombstone = Outgoing { topic, partition: Some(partition), key, ..Outgoing::default() };
        // Not waited for: whatever fails is found again at the next cleaning.
        drop(self.appender.append_one(tombstone));
    }
}
