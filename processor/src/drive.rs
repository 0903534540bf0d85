//! An engine's thread: takes wakes, has the [`Decider`] decide, and does what it says.

use crate::decider::{Action, Decider, Progress};
use crate::group::Group;
use crate::outbox::Outbox;
use crate::packing::Batch;
use crate::readers::Readers;
use crate::wake::{Inbox, Wake};
use nearby_schemas::{GatewayId, Session, TimestampMs, UserId};
use nearby_service::Stop;
use nearby_service::append::{Appender, Outgoing};
use nearby_service::kafka::Kafka;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

/// Expiry is told within 1 s; a tick is cheap.
const TICK: Duration = Duration::from_millis(200);
/// Lost batches are made good for at most so often.
const MAKE_GOOD_INTERVAL: Duration = Duration::from_secs(1);
const CLEANING_INTERVAL: Duration = Duration::from_secs(600);
/// Wakes taken in a row before the batches get their turn, and for how long they are taken.
const WAKES_AT_ONCE_MAX: usize = 64;
const TURN_MAX: Duration = Duration::from_millis(5);
/// How often what can wait is looked for, as long as there may be something; and whether brokers have taken what they were given,
/// as long as something else waits for that.
const PATIENT_INTERVAL: Duration = Duration::from_millis(1);
/// Viewers who get snapshots in one turn because a batch was lost.
const MADE_GOOD_AT_ONCE_MAX: usize = 1_000;
/// The end has so long for its last words: with the handover, and leaving the group, all of it takes less than 10 s.
const END_LIMIT: Duration = Duration::from_millis(1_500);
/// So long a full queue of batches may not move at all. Then all that waits for room is given up.
const NO_ROOM_MAX: Duration = Duration::from_secs(3);
const ROOM_POLL: Duration = Duration::from_millis(1);

/// Everything an engine's thread has.
pub(crate) struct Drive {
    /// Its number among the engines of this process.
    pub engine: usize,
    pub decider: Decider,
    pub outbox: Outbox,
    pub readers: Arc<Readers>,
    pub group: Arc<Group>,
    pub appender: Appender,
    pub kafka: Kafka,
    pub started_at: Instant,
    /// Batches that there is no room for yet. As long as there are any, nothing more is decided.
    pub waiting: Waiting,
}

/// Batches that wait for room, oldest first.
#[derive(Default)]
pub(crate) struct Waiting {
    batches: VecDeque<Batch>,
    /// Since when the first of them has waited.
    since: Option<Instant>,
}

impl Drive {
    /// Runs until the stop, and then until successors have taken over, at most `handover_max`; or until `broken`, which is
    /// raised when an engine of this process cannot go on.
    pub fn run(mut self, inbox: &Inbox, stop: &Stop, broken: &Stop, handover_max: Duration) {
        // What is to be done next; empty between two turns.
        let mut actions = Vec::new();
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
            if broken.is_cancelled() {
                break;
            }
            if self.is_ahead() {
                std::thread::sleep(ROOM_POLL);
                self.send_waiting();
                self.tick_if_due(&mut next_tick, &mut actions, broken);
                // A tick claims and forgets; what it tells is sent in its turn.
                self.act(&mut actions, broken);
                continue;
            }
            let patience = if unfinished { Duration::ZERO } else { self.patience(next_tick) };
            if !self.take_wakes(inbox, patience, &mut actions) {
                break;
            }
            // What can wait gets a turn, too, however much else there is: as much as it is given at once.
            let more = match inbox.patient.try_recv() {
                Ok(wake) => {
                    self.wake(wake, &mut actions);
                    true
                }
                Err(_) => false,
            };
            let now = Instant::now();
            if now >= next_make_good {
                let lost = self.outbox.take_unacknowledged(MADE_GOOD_AT_ONCE_MAX);
                // Where there were more, the next ones come after what was decided is on its way.
                if lost.len() < MADE_GOOD_AT_ONCE_MAX {
                    next_make_good = now + MAKE_GOOD_INTERVAL;
                }
                self.decider.make_good(lost, TimestampMs::now());
            }
            self.tick_if_due(&mut next_tick, &mut actions, broken);
            if now >= next_cleaning {
                next_cleaning = now + CLEANING_INTERVAL;
                self.decider.clean(&mut actions);
            }
            unfinished = self.decider.resume(TimestampMs::now()) || more;
            self.decider.send_no_sooner_than(self.outbox.next_round().0);
            self.decider.flush(TimestampMs::now(), self.started_at.elapsed(), &mut actions);
            self.act(&mut actions, broken);
        }
        self.decider.end(TimestampMs::now(), self.started_at.elapsed(), &mut actions);
        self.act(&mut actions, broken);
        let deadline = Instant::now() + END_LIMIT;
        while !self.waiting.batches.is_empty() && Instant::now() < deadline {
            std::thread::sleep(ROOM_POLL);
            self.send_waiting();
        }
        self.outbox.end(deadline.saturating_duration_since(Instant::now()));
    }

    /// How long it may wait for wakes.
    fn patience(&mut self, next_tick: Instant) -> Duration {
        let (next_round, is_open) = self.outbox.next_round();
        self.decider.send_no_sooner_than(next_round);
        let due = self.decider.next_due();
        let wanted = due.map_or(next_tick, |due| next_tick.min(self.started_at + due));
        let patience = wanted.saturating_duration_since(Instant::now());
        if self.decider.reads_older() || (is_open && due.is_some()) {
            return patience.min(PATIENT_INTERVAL);
        }
        patience
    }

    /// More is decided than the brokers can take: nothing more is, for now.
    fn is_ahead(&self) -> bool {
        !self.waiting.batches.is_empty()
            || (self.decider.is_full() && self.started_at.elapsed() < self.outbox.next_round().0)
    }

    /// Takes what has come, at most for a turn; false if nothing can come any more.
    fn take_wakes(&mut self, inbox: &Inbox, patience: Duration, actions: &mut Vec<Action>) -> bool {
        match inbox.wakes.recv_timeout(patience) {
            Ok(wake) => {
                let begun = Instant::now();
                self.wake(wake, actions);
                for wake in inbox.wakes.try_iter().take(WAKES_AT_ONCE_MAX) {
                    self.wake(wake, actions);
                    if begun.elapsed() >= TURN_MAX {
                        break;
                    }
                }
                true
            }
            Err(RecvTimeoutError::Timeout) => true,
            // Cannot happen while the group has the other end.
            Err(RecvTimeoutError::Disconnected) => false,
        }
    }

    fn tick_if_due(&mut self, next_tick: &mut Instant, actions: &mut Vec<Action>, broken: &Stop) {
        let now = Instant::now();
        if now >= *next_tick {
            *next_tick = now + TICK;
            if let Err(because) = self.tick(actions) {
                give_up(&because, broken);
            }
        }
    }

    /// Sends what there is room for now. When nothing has left for too long, all that waits is given up.
    fn send_waiting(&mut self) {
        let Drive { waiting: Waiting { batches, since }, outbox, kafka, decider, .. } = self;
        let topic = |batch: &Batch| kafka.topics.friend_moved(decider.gateway_id(batch.gateway));
        while let Some(batch) = batches.front() {
            if outbox.send(&topic(batch), batch) {
                batches.pop_front();
            } else if since.get_or_insert_with(Instant::now).elapsed() < NO_ROOM_MAX {
                return;
            } else {
                batches.drain(..).for_each(|batch| outbox.give_up(&topic(&batch), &batch));
            }
            if let Some(since) = since.take() {
                metrics::histogram!("nearby_outbox_wait_seconds").record(since.elapsed());
            }
        }
    }

    fn wake(&mut self, wake: Wake, actions: &mut Vec<Action>) {
        let now = TimestampMs::now();
        match &wake {
            // The first engine counts for all of them.
            Wake::Reports(reports) if self.engine == 0 => {
                metrics::counter!("nearby_processor_reports_total").increment(reports.reports.len() as u64);
                // What is read at the start is old.
                if let Some(appended_at) = reports.appended_at.filter(|_| self.decider.progress() == Progress::Serving)
                {
                    nearby_service::metrics::hop("processor", now.since_ms(appended_at));
                }
            }
            Wake::Membership(event) => tracing::debug!(?event, engine = self.engine, "membership"),
            _ => {}
        }
        self.decider.wake(wake, now, self.started_at.elapsed(), actions);
    }

    /// Time passes; an error says why nothing can go on.
    fn tick(&mut self, actions: &mut Vec<Action>) -> Result<(), String> {
        if let Some(because) = self.outbox.failed() {
            return Err(format!("its producer has failed for good: {because}"));
        }
        self.decider.set_behind(self.readers.is_behind());
        self.decider.tick(TimestampMs::now(), self.started_at.elapsed(), actions);
        let (progress, counts) = (self.decider.progress(), self.decider.counts());
        self.group.tell_progress(self.engine, progress, counts, self.decider.epochs().len());
        Ok(())
    }

    fn act(&mut self, actions: &mut Vec<Action>, broken: &Stop) {
        if actions.iter().any(|action| matches!(action, Action::Send(_))) {
            self.outbox.begin_round();
        }
        for action in actions.drain(..) {
            match action {
                Action::Join => {
                    if let Err(error) = self.group.restored(self.engine) {
                        give_up(&format!("cannot join the group: {error}"), broken);
                    }
                }
                Action::Read(partitions, generation) => self.readers.add(self.engine, &partitions, generation),
                Action::StopReading(partition) => {
                    self.readers.remove(partition);
                    self.group.released(partition);
                }
                Action::Claim(partitions) => self.group.claim(partitions),
                Action::Watch(partitions) => self.group.watch(self.engine, partitions),
                Action::Send(batch) => {
                    self.waiting.batches.push_back(batch);
                    self.send_waiting();
                }
                Action::EndSession(partition, user, gateway) => self.end_session(partition, user, &gateway),
                Action::Quit(because) => give_up(&because, broken),
            }
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

/// This process cannot go on; another one starts from the log.
fn give_up(because: &str, broken: &Stop) {
    tracing::error!(because, "the processor cannot go on");
    broken.cancel();
}
