//! A processor: the decider of production, and around it what `drive.rs` and `readers.rs` do with Kafka.

use crate::agenda::Who;
use crate::around::Around;
use crate::broker::{Append, ProducerId, Topic};
use crate::gateway::number_of;
use crate::judge::{GATEWAY_LOST_AFTER_MS, RADIUS_M};
use crate::member::Member;
use nearby_engine::{Engine, EngineSettings, GatewayIndex};
use nearby_processor::decider::{Action, Decider, Progress};
use nearby_processor::packing::{Batch, viewers_of};
use nearby_processor::records::{Raw, oldest_needed};
use nearby_processor::wake::{Reports, Source, Wake};
use nearby_schemas::codec::Codec;
use nearby_schemas::{Session, UserId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// As in production.
const TICK_MS: i64 = 200;
const MAKE_GOOD_INTERVAL_MS: i64 = 1_000;
const HANDOVER_MAX_MS: i64 = 5_000;
/// The first one starts after at most so long, and the next one after it has ended.
const FIRST_START_MS_MAX: i64 = 3_000;
const RESTART_MS_MAX: i64 = 20_000;
/// Before lists and sessions come, at most; less than a handover waits.
const RESTORE_MS_MAX: i64 = 2_500;
/// A reader of heartbeats that is late is so by so much.
const HEARTBEATS_LATE_MS: i64 = 20_000;
/// Smaller than in production, so that it is hit.
const WAITING_MAX: usize = 8;
const RECORDS_AT_ONCE_MAX: i64 = 12;

/// A machine that runs a processor.
pub struct Processor {
    number: usize,
    /// Its wall clock is ahead by so much.
    pub ahead_ms: i64,
    run: Option<Run>,
    /// When the next one starts, if none runs.
    starts_at_ms: i64,
    /// It stands still until then.
    pub paused_until_ms: i64,
    /// The engine's thread stands still until then.
    pub stalled_until_ms: i64,
    /// The network to the broker is cut until then.
    pub cut_off_until_ms: i64,
}

/// One life of the process.
struct Run {
    producer: ProducerId,
    decider: Decider,
    /// The engine has not done all that earlier wakes brought.
    unfinished: bool,
    /// What the readers and the member have handed on.
    inbox: VecDeque<Wake>,
    /// Positions in `location-events`.
    reports: BTreeMap<i32, Reading>,
    /// Positions in its older part, if the newest come first.
    older: BTreeMap<i32, Reading>,
    /// Position in `gateways`, whose reader is late at times.
    heartbeats: Reading,
    heartbeats_held_until_ms: i64,
    lists: BTreeMap<i32, Reading>,
    sessions: BTreeMap<i32, Reading>,
    member: Option<Member>,
    /// Batches on their way.
    sent: BTreeMap<u64, Batch>,
    next_token: u64,
    unacknowledged: BTreeSet<(GatewayIndex, UserId)>,
    next_tick_ms: i64,
    next_make_good_ms: i64,
    /// It was told to stop, and does at this time at the latest.
    stops_by_ms: Option<i64>,
    actions: Vec<Action>,
}

/// How far a partition was read.
struct Reading {
    next: i64,
    /// Where the partition ended when its reading began.
    end: i64,
    generation: u64,
    caught_up: bool,
    /// Nothing comes before: a million lists take their time.
    begins_at_ms: i64,
}

impl Processor {
    /// A machine whose processor is about to start.
    pub fn new(number: usize, around: &mut Around) -> Processor {
        let ahead_ms = around.dice.between(-400, 400);
        let starts_at_ms = around.now_ms() + around.dice.between(0, FIRST_START_MS_MAX);
        around.agenda.wake(Who::Processor(number), starts_at_ms);
        Processor {
            number,
            ahead_ms,
            run: None,
            starts_at_ms,
            paused_until_ms: 0,
            stalled_until_ms: 0,
            cut_off_until_ms: 0,
        }
    }

    /// The process ends without a word, and another starts after a while.
    pub fn crash(&mut self, around: &mut Around) {
        let Some(run) = self.run.take() else { return };
        around.broker.end_producer(run.producer, &mut around.dice);
        self.restart(around);
    }

    /// The process is told to stop.
    pub fn stop(&mut self, around: &mut Around) {
        let now_ms = around.now_ms();
        if let Some(run) = self.run.as_mut().filter(|run| run.stops_by_ms.is_none()) {
            run.stops_by_ms = Some(now_ms + HANDOVER_MAX_MS);
            if let Some(member) = &mut run.member {
                member.leave(around, &mut run.inbox);
            }
        }
    }

    /// Whether it runs, and serves all that it owns.
    pub fn is_serving(&self) -> bool {
        self.run.as_ref().is_some_and(|run| run.stops_by_ms.is_none() && run.decider.progress() == Progress::Serving)
    }

    fn restart(&mut self, around: &mut Around) {
        self.starts_at_ms = around.now_ms() + around.dice.between(0, RESTART_MS_MAX);
        (self.paused_until_ms, self.stalled_until_ms, self.cut_off_until_ms) = (0, 0, 0);
        around.agenda.wake(Who::Processor(self.number), self.starts_at_ms);
    }

    /// A few of the things that its threads do.
    pub fn step(&mut self, around: &mut Around) {
        let now_ms = around.now_ms();
        if self.paused_until_ms > now_ms {
            return around.agenda.wake(Who::Processor(self.number), self.paused_until_ms);
        }
        if self.run.is_none() {
            if self.starts_at_ms > now_ms || around.broker.away {
                return around.within(Who::Processor(self.number), (self.starts_at_ms - now_ms).max(500));
            }
            around.note(format_args!("processor {} starts", self.number));
            self.run = Some(Run::start(Who::Processor(self.number), self.ahead_ms, around));
        }
        let Some(run) = &mut self.run else { return };
        let cut_off = self.cut_off_until_ms > now_ms;
        around.broker.cut_off(run.producer, cut_off);
        run.hear_answers(around);
        if !cut_off && around.dice.chance(0.7) {
            run.read(around);
        }
        if let Some(member) = &mut run.member
            && member.when_next() <= now_ms
        {
            member.step(around, self.ahead_ms, cut_off, &mut run.inbox);
        }
        let mut quits = false;
        if self.stalled_until_ms <= now_ms {
            quits = run.turn(self.ahead_ms, around);
        }
        let done = run.stops_by_ms.is_some_and(|by_ms| run.decider.holds_nothing() || by_ms <= now_ms);
        if quits || done {
            run.end(self.ahead_ms, around);
            around.note(format_args!(
                "processor {} ends, {}",
                self.number,
                if quits { "by itself" } else { "stopped" }
            ));
            if let Some(member) = run.member.as_mut() {
                member.leave(around, &mut run.inbox);
            }
            self.run = None;
            return self.restart(around);
        }
        let busy = run.has_work(around);
        let next_ms = run.when_next().max(self.stalled_until_ms);
        let who = Who::Processor(self.number);
        if busy { around.soon(who) } else { around.agenda.wake(who, next_ms) }
    }
}

impl Run {
    fn start(who: Who, ahead_ms: i64, around: &mut Around) -> Run {
        let settings = EngineSettings {
            radius_m: RADIUS_M,
            inactive_after_ms: around.plan.inactive_after_ms,
            gateway_lost_after_ms: GATEWAY_LOST_AFTER_MS,
        };
        let now = around.wall(ahead_ms);
        let oldest = oldest_needed(settings.inactive_after_ms, now);
        let (partitions, looks_at_once_max) = (around.plan.partitions, around.plan.looks_at_once_max);
        let engine = Engine::with_looks_at_once(settings, looks_at_once_max);
        let mut decider = Decider::new(engine, partitions, now, Codec::new());
        let newest_ms = around.dice.between(0, settings.inactive_after_ms / 2);
        let since = now.plus_ms(-newest_ms);
        let newest_first = around.dice.chance(0.7);
        if newest_first {
            decider.newest_first(since);
        }
        let offset = |partition, time| around.broker.offset_at(Topic::LocationEvents, partition, time);
        let reading = |partition| {
            let next = offset(partition, if newest_first { since } else { oldest });
            (partition, Reading::new(around, Topic::LocationEvents, partition, next, 0))
        };
        let older = |partition| {
            let (next, end) = (offset(partition, oldest), offset(partition, since));
            (partition, Reading { end, ..Reading::new(around, Topic::LocationEvents, partition, next, 0) })
        };
        let reports = (0..partitions).map(reading).collect();
        let older = (0..partitions).filter(|_| newest_first).map(older).collect();
        Run {
            producer: around.broker.producer(who),
            decider,
            unfinished: false,
            inbox: VecDeque::new(),
            reports,
            older,
            heartbeats: Reading::new(around, Topic::Gateways, 0, 0, 0),
            heartbeats_held_until_ms: around.now_ms() + if around.dice.chance(0.1) { HEARTBEATS_LATE_MS } else { 0 },
            lists: BTreeMap::new(),
            sessions: BTreeMap::new(),
            member: None,
            sent: BTreeMap::new(),
            next_token: 0,
            unacknowledged: BTreeSet::new(),
            next_tick_ms: around.now_ms(),
            next_make_good_ms: around.now_ms(),
            stops_by_ms: None,
            actions: Vec::new(),
        }
    }

    /// Batches that were acknowledged, or not.
    fn hear_answers(&mut self, around: &mut Around) {
        for (token, acknowledged) in around.broker.answers(self.producer) {
            let Some(batch) = self.sent.remove(&token).filter(|_| !acknowledged) else { continue };
            match viewers_of(&around.batches, &batch.bytes) {
                Ok(viewers) => {
                    self.unacknowledged.extend(viewers.into_iter().map(|viewer| (batch.gateway, viewer)));
                }
                Err(error) => around.judge.blame(around.agenda.now_ms(), format!("a batch of ours: {error}")),
            }
        }
    }

    /// The readers' threads: some records of each topic.
    fn read(&mut self, around: &mut Around) {
        if self.inbox.len() >= WAITING_MAX {
            return;
        }
        let inbox = &mut self.inbox;
        let mut reports = Vec::new();
        for (partition, reading) in &mut self.reports {
            read_some(around, Topic::LocationEvents, *partition, reading, |around, raw| {
                reports.extend(around.decoders.report(raw));
            });
            if reading.ends_now(around, Topic::LocationEvents, *partition) {
                inbox.push_back(Wake::from(std::mem::take(&mut reports)));
                inbox.push_back(Wake::CaughtUp(Source::Reports, *partition, 0));
            }
        }
        if !reports.is_empty() {
            inbox.push_back(Wake::from(reports));
        }
        self.read_older(around);
        let inbox = &mut self.inbox;
        if around.now_ms() >= self.heartbeats_held_until_ms {
            let heartbeats = &mut self.heartbeats;
            read_some(around, Topic::Gateways, 0, heartbeats, |around, raw| {
                inbox.extend(around.decoders.heartbeat(raw).map(|(gateway, at)| Wake::Heartbeat(gateway, at)))
            });
            if heartbeats.ends_now(around, Topic::Gateways, 0) {
                inbox.push_back(Wake::CaughtUp(Source::Heartbeats, 0, 0));
            }
        }
        let now_ms = around.now_ms();
        for (partition, reading) in self.lists.iter_mut().filter(|(_, reading)| reading.begins_at_ms <= now_ms) {
            let mut lists = Vec::new();
            read_some(around, Topic::FriendLists, *partition, reading, |around, raw| {
                lists.extend(around.decoders.list(raw));
            });
            inbox.push_back(Wake::Lists(lists));
            if reading.ends_now(around, Topic::FriendLists, *partition) {
                inbox.push_back(Wake::CaughtUp(Source::Lists, *partition, reading.generation));
            }
        }
        for (partition, reading) in self.sessions.iter_mut().filter(|(_, reading)| reading.begins_at_ms <= now_ms) {
            let mut sessions = Vec::new();
            read_some(around, Topic::Sessions, *partition, reading, |around, raw| {
                sessions.extend(around.decoders.session(raw));
            });
            inbox.push_back(Wake::Sessions(sessions));
            if reading.ends_now(around, Topic::Sessions, *partition) {
                inbox.push_back(Wake::CaughtUp(Source::Sessions, *partition, reading.generation));
            }
        }
        inbox.retain(|wake| match wake {
            Wake::Lists(lists) => !lists.is_empty(),
            Wake::Sessions(sessions) => !sessions.is_empty(),
            Wake::OlderReports(reports) => !reports.reports.is_empty(),
            _ => true,
        });
    }

    /// The reader of the older part, if the newest come first.
    fn read_older(&mut self, around: &mut Around) {
        if self.older.is_empty() {
            return;
        }
        let mut reports = Vec::new();
        for (partition, reading) in &mut self.older {
            for _ in 0..around.dice.between(0, RECORDS_AT_ONCE_MAX) {
                let read = around.broker.read(Topic::LocationEvents, *partition, reading.next);
                let Some((offset, record)) = read.filter(|(offset, _)| *offset < reading.end) else {
                    reading.caught_up = !around.broker.away;
                    break;
                };
                reading.next = offset + 1;
                let (key, value) = (record.key.as_deref(), record.value.as_deref());
                let raw = Raw { partition: *partition, key, value, appended_at: Some(record.appended_at) };
                reports.extend(around.decoders.report(raw));
            }
        }
        self.inbox.push_back(Wake::OlderReports(Arc::new(Reports { reports, appended_at: None })));
        self.older.retain(|_, reading| !reading.caught_up);
        if self.older.is_empty() {
            self.inbox.push_back(Wake::OlderAreRead);
        }
    }

    /// A turn of the engine's thread; true if the process has to end.
    fn turn(&mut self, ahead_ms: i64, around: &mut Around) -> bool {
        let (now_ms, now, clock) = (around.now_ms(), around.wall(ahead_ms), around.clock());
        let wakes = around.dice.below(self.inbox.len() + 1);
        for wake in self.inbox.drain(..wakes) {
            self.decider.wake(wake, now, clock, &mut self.actions);
        }
        if now_ms >= self.next_make_good_ms {
            self.next_make_good_ms = now_ms + MAKE_GOOD_INTERVAL_MS;
            self.decider.make_good(std::mem::take(&mut self.unacknowledged), now);
        }
        if now_ms >= self.next_tick_ms {
            self.next_tick_ms = now_ms + TICK_MS;
            self.decider.tick(now, clock, &mut self.actions);
            if around.dice.chance(0.001) {
                self.decider.clean(&mut self.actions);
            }
        }
        self.unfinished = self.decider.resume(now);
        self.decider.flush(now, clock, &mut self.actions);
        self.act(around)
    }

    /// The last words.
    fn end(&mut self, ahead_ms: i64, around: &mut Around) {
        self.decider.end(around.wall(ahead_ms), around.clock(), &mut self.actions);
        self.act(around);
    }

    fn act(&mut self, around: &mut Around) -> bool {
        let mut quits = false;
        for action in std::mem::take(&mut self.actions) {
            match action {
                Action::Join => {
                    let readings = self.reports.values().chain([&self.heartbeats]);
                    self.check_restored(readings, "joins before everything is read", around);
                    self.member = Some(Member::join(around));
                }
                Action::Read(partitions, generation) => {
                    let slow_ms = if around.dice.chance(0.5) { around.dice.between(0, RESTORE_MS_MAX) } else { 0 };
                    let begins_at_ms = around.now_ms() + slow_ms;
                    for partition in partitions {
                        let reading = |topic| {
                            let reading = Reading::new(around, topic, partition, 0, generation);
                            Reading { begins_at_ms, ..reading }
                        };
                        let held = self.lists.insert(partition, reading(Topic::FriendLists));
                        self.sessions.insert(partition, reading(Topic::Sessions));
                        if held.is_some() {
                            around.judge.blame(around.agenda.now_ms(), format!("partition {partition} is read twice"));
                        }
                    }
                }
                Action::StopReading(partition) => {
                    let held = self.lists.remove(&partition);
                    self.sessions.remove(&partition);
                    if held.is_none() {
                        around.judge.blame(around.agenda.now_ms(), format!("partition {partition} was not read"));
                    }
                }
                Action::Claim(partitions) => {
                    let readings = partitions.iter().flat_map(|of| [self.lists.get(of), self.sessions.get(of)]);
                    self.check_restored(readings.flatten(), "claims a partition that is not restored", around);
                    if let Some(member) = &mut self.member {
                        member.claim(partitions);
                    }
                }
                Action::Watch(partitions) => {
                    if let Some(member) = &mut self.member {
                        member.watch(partitions);
                    }
                }
                Action::Send(batch) => self.send(batch, around),
                Action::EndSession(partition, user, gateway) => {
                    let key = Some(Session::key(user, &gateway).into_bytes());
                    let tombstone = Append { topic: Topic::Sessions, partition, key, value: None, token: 0 };
                    around.append(self.producer, tombstone);
                }
                Action::Quit(because) => {
                    around.note(format_args!("a processor quits: {because}"));
                    quits = true;
                }
            }
        }
        quits
    }

    fn check_restored<'a>(&self, mut readings: impl Iterator<Item = &'a Reading>, what: &str, around: &mut Around) {
        if readings.any(|reading| reading.next < reading.end) {
            around.judge.blame(around.agenda.now_ms(), format!("a processor {what}"));
        }
    }

    fn send(&mut self, batch: Batch, around: &mut Around) {
        let number = number_of(self.decider.gateway_id(batch.gateway).as_str());
        // R9: the newest epoch that was confirmed to this very process, and no other's.
        let claimed = self.member.as_ref().map(|member| &member.claimed);
        let sections = around.batches.decode(&batch.bytes).map(|batch| batch.sections).unwrap_or_default();
        for section in &sections {
            let own = claimed.and_then(|claimed| claimed.get(&section.partition));
            if own.is_none_or(|own| *own < section.epoch) {
                let what = format!("{:?} tells under {:?}, its own being {own:?}", self.producer, section.epoch);
                around.judge.blame(around.agenda.now_ms(), what);
            }
        }
        self.next_token += 1;
        around.note(format_args!("{:?} sends {} bytes to gateway {number}", self.producer, batch.bytes.len()));
        let (topic, value, token) = (Topic::FriendMoved(number), Some(batch.bytes.clone()), self.next_token);
        self.sent.insert(token, batch);
        around.append(self.producer, Append { topic, partition: 0, key: None, value, token });
    }

    fn has_work(&self, around: &Around) -> bool {
        let more = |topic, (partition, reading): (&i32, &Reading)| {
            !reading.caught_up || around.broker.read(topic, *partition, reading.next).is_some()
        };
        self.unfinished
            || !self.inbox.is_empty()
            || !self.older.is_empty()
            || self.reports.iter().any(|reading| more(Topic::LocationEvents, reading))
            || self.lists.iter().any(|reading| more(Topic::FriendLists, reading))
            || self.sessions.iter().any(|reading| more(Topic::Sessions, reading))
            || around.broker.read(Topic::Gateways, 0, self.heartbeats.next).is_some()
    }

    fn when_next(&self) -> i64 {
        let due_ms = self.decider.next_due().map(|due| crate::around::BEGINNING_MS + millis(due));
        let member_ms = self.member.as_ref().map(Member::when_next);
        [Some(self.next_tick_ms), due_ms, member_ms].into_iter().flatten().min().unwrap_or_default()
    }
}

impl Reading {
    fn new(around: &Around, topic: Topic, partition: i32, next: i64, generation: u64) -> Reading {
        let end = around.broker.ends(topic, partition).1;
        Reading { next, end, generation, caught_up: false, begins_at_ms: 0 }
    }

    /// Whether the end was reached just now that the log had when its reading began, or all that it has.
    fn ends_now(&mut self, around: &Around, topic: Topic, partition: i32) -> bool {
        let had_read = self.next >= self.end;
        let ends = had_read || around.broker.read(topic, partition, self.next).is_none();
        let ends_now = ends && !around.broker.away && !self.caught_up;
        self.caught_up |= ends_now;
        ends_now
    }
}

fn read_some(
    around: &mut Around,
    topic: Topic,
    partition: i32,
    reading: &mut Reading,
    mut take: impl FnMut(&Around, Raw<'_>),
) {
    for _ in 0..around.dice.between(0, RECORDS_AT_ONCE_MAX) {
        let Some((offset, record)) = around.broker.read(topic, partition, reading.next) else { return };
        reading.next = offset + 1;
        let (key, value) = (record.key.as_deref(), record.value.as_deref());
        take(around, Raw { partition, key, value, appended_at: Some(record.appended_at) });
    }
}

fn millis(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
