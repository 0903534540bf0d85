//! A sink: the course of production for each of its two topics, and around it what `pipeline.rs` and `write.rs` do with Kafka
//! and Postgres.

use crate::agenda::Who;
use crate::around::Around;
use crate::broker::{Append, ProducerId, Topic};
use crate::database::Database;
use crate::group::{MemberId, Word};
use nearby_schemas::codecs::Codecs;
use nearby_sink::SinkSettings;
use nearby_sink::batch::Attempt;
use nearby_sink::course::{Course, Follows, Outcome, Work};
use nearby_sink::record::{Decoder, Log};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

const LOGS: [(Log, Topic); 2] = [(Log::LocationEvents, Topic::LocationEvents), (Log::FriendLists, Topic::FriendLists)];
/// The first one starts after at most so long, and the next one after it has ended.
const FIRST_START_MS_MAX: i64 = 3_000;
const RESTART_MS_MAX: i64 = 15_000;
/// How often the member of the group shows up.
const POLL_MS: i64 = 50;
/// A chunk of the feed, smaller than in production.
const CHUNK_MAX: i64 = 10;

/// A machine that runs a sink.
pub struct Sink {
    number: usize,
    run: Option<Run>,
    starts_at_ms: i64,
    /// It stands still until then.
    pub paused_until_ms: i64,
}

struct Run {
    producer: ProducerId,
    pipelines: [Pipeline; 2],
    next_token: u64,
    member: MemberId,
    owned: BTreeSet<i32>,
    next_poll_ms: i64,
}

struct Pipeline {
    topic: Topic,
    course: Course,
    decoder: Decoder,
    /// What the member has learned and the pipeline has not yet looked at: what was lost, and what was gained.
    news: VecDeque<(Vec<i32>, Vec<i32>)>,
    /// The feed: where each partition is read.
    feed: BTreeMap<i32, i64>,
    /// Work whose outcome is not known yet.
    under_way: Option<UnderWay>,
}

/// Work that takes time. Nothing else happens to the course meanwhile, and everything to the world.
enum UnderWay {
    /// Dead letters on their way, and what was said of those that arrived.
    Burying { attempt: Attempt, tokens: Vec<u64>, answers: BTreeMap<u64, bool> },
    /// In the database.
    Working { work: Work, done_at_ms: i64 },
}

impl Sink {
    /// A machine whose sink is about to start.
    pub fn new(number: usize, around: &mut Around) -> Sink {
        let starts_at_ms = around.now_ms() + around.dice.between(0, FIRST_START_MS_MAX);
        around.agenda.wake(Who::Sink(number), starts_at_ms);
        Sink { number, run: None, starts_at_ms, paused_until_ms: 0 }
    }

    /// The process ends without a word, and another starts after a while.
    pub fn crash(&mut self, around: &mut Around) {
        let Some(run) = self.run.take() else { return };
        around.broker.end_producer(run.producer, &mut around.dice);
        self.starts_at_ms = around.now_ms() + around.dice.between(0, RESTART_MS_MAX);
        self.paused_until_ms = 0;
        around.agenda.wake(Who::Sink(self.number), self.starts_at_ms);
    }

    /// A few of the things that its tasks do.
    pub fn step(&mut self, around: &mut Around, database: &mut Database) {
        let (now_ms, who) = (around.now_ms(), Who::Sink(self.number));
        if self.paused_until_ms > now_ms {
            return around.agenda.wake(who, self.paused_until_ms);
        }
        if self.run.is_none() {
            if self.starts_at_ms > now_ms || around.broker.away {
                return around.within(who, (self.starts_at_ms - now_ms).max(500));
            }
            self.run = Some(Run::start(who, around));
        }
        let Some(run) = &mut self.run else { return };
        if now_ms >= run.next_poll_ms && !around.broker.away {
            run.poll(around);
        }
        let answers = around.broker.answers(run.producer);
        let mut next_ms = run.next_poll_ms;
        for pipeline in &mut run.pipelines {
            pipeline.hear(&answers);
            if around.dice.chance(0.8) {
                pipeline.step(run.producer, &mut run.next_token, around, database);
            }
            next_ms = next_ms.min(pipeline.when_next(around));
        }
        if next_ms <= now_ms { around.soon(who) } else { around.agenda.wake(who, next_ms) }
    }
}

impl Run {
    fn start(who: Who, around: &mut Around) -> Run {
        let now_ms = around.now_ms();
        let settings =
            SinkSettings { batch_rows_max: around.plan.rows_max, batch_age_ms: 200, ..SinkSettings::default() };
        let producer = around.broker.producer(who);
        let pipelines = LOGS.map(|(log, topic)| Pipeline {
            topic,
            course: Course::new(log, &settings, around.instant()),
            decoder: Decoder::of(log, around.plan.partitions, &Codecs::default()),
            news: VecDeque::new(),
            feed: BTreeMap::new(),
            under_way: None,
        });
        let member = around.sinks.join(now_ms);
        Run { producer, pipelines, next_token: 0, member, owned: BTreeSet::new(), next_poll_ms: now_ms }
    }

    /// The member of the group, on a thread of its own: what it learns waits until the pipelines look at it.
    fn poll(&mut self, around: &mut Around) {
        let now_ms = around.now_ms();
        self.next_poll_ms = now_ms + POLL_MS;
        let (lost, gained) = match around.sinks.poll(self.member, &self.owned, now_ms) {
            Word::Expelled => {
                self.member = around.sinks.join(now_ms);
                (std::mem::take(&mut self.owned).into_iter().collect(), Vec::new())
            }
            Word::Assignment { lost, gained, .. } => {
                self.owned.retain(|partition| !lost.contains(partition));
                self.owned.extend(gained.iter().copied());
                (lost, gained)
            }
        };
        if !lost.is_empty() || !gained.is_empty() {
            self.pipelines.iter_mut().for_each(|pipeline| pipeline.news.push_back((lost.clone(), gained.clone())));
        }
    }
}

impl Pipeline {
    /// Which dead letters were acknowledged.
    fn hear(&mut self, answers: &[(u64, bool)]) {
        if let Some(UnderWay::Burying { tokens, answers: heard, .. }) = &mut self.under_way {
            heard.extend(answers.iter().filter(|(token, _)| tokens.contains(token)).copied());
        }
    }

    fn step(&mut self, producer: ProducerId, next_token: &mut u64, around: &mut Around, database: &mut Database) {
        match self.under_way.take() {
            Some(UnderWay::Burying { attempt, tokens, answers }) => {
                if answers.len() < tokens.len() {
                    self.under_way = Some(UnderWay::Burying { attempt, tokens, answers });
                    return;
                }
                let letters = tokens.iter().map(|token| match answers.get(token) {
                    Some(true) => Ok(()),
                    _ => Err("not acknowledged".to_owned()),
                });
                self.done(Outcome::Buried(attempt, letters.collect()), around);
            }
            Some(UnderWay::Working { work, done_at_ms }) if done_at_ms > around.now_ms() => {
                self.under_way = Some(UnderWay::Working { work, done_at_ms });
            }
            Some(UnderWay::Working { work, .. }) => {
                let outcome = match work {
                    Work::ReadOffsets => Outcome::OffsetsRead(database.offsets(self.topic)),
                    Work::Check => Outcome::Checked(database.check()),
                    Work::Write(attempt) => {
                        let items = self.course.batcher().items(&attempt);
                        let wrote = database.write(self.topic, items, &attempt.advances, &mut around.dice);
                        Outcome::Wrote(attempt, wrote)
                    }
                    Work::Bury(_) => return,
                };
                self.done(outcome, around);
            }
            None => self.turn(producer, next_token, around),
        }
    }

    fn turn(&mut self, producer: ProducerId, next_token: &mut u64, around: &mut Around) {
        while let Some((lost, gained)) = self.news.pop_front() {
            if !lost.is_empty() {
                self.course.lost(lost);
                self.restart_feed(around);
            }
            self.course.gained(gained);
        }
        if self.course.due_at() <= around.instant() {
            let work = self.course.next_work();
            if let Work::Write(attempt) = &work
                && attempt.count > around.plan.rows_max as usize
            {
                around.judge.blame(around.agenda.now_ms(), format!("{} records in one transaction", attempt.count));
            }
            self.under_way = Some(match work {
                Work::Bury(attempt) => self.bury(attempt, producer, next_token, around),
                work => UnderWay::Working { work, done_at_ms: around.now_ms() + slowness_ms(around) },
            });
        } else if self.course.batcher().has_room() {
            self.read(around);
        }
    }

    fn bury(&mut self, attempt: Attempt, producer: ProducerId, next_token: &mut u64, around: &mut Around) -> UnderWay {
        let mut tokens = Vec::new();
        for (record, _) in self.course.letters(&attempt) {
            *next_token += 1;
            tokens.push(*next_token);
            let origin = format!("{:?}/{}/{}", self.topic, record.partition, record.offset);
            let key = Some(origin.into_bytes());
            let append = Append {
                topic: Topic::DeadLetters,
                partition: 0,
                key,
                value: record.value.clone(),
                token: *next_token,
            };
            around.append(producer, append);
        }
        UnderWay::Burying { attempt, tokens, answers: BTreeMap::new() }
    }

    fn read(&mut self, around: &mut Around) {
        let now = around.instant();
        for (partition, next) in &mut self.feed {
            for _ in 0..around.dice.between(0, CHUNK_MAX) {
                let Some((offset, record)) = around.broker.read(self.topic, *partition, *next) else { break };
                *next = offset + 1;
                let (key, value) = (record.key.as_deref(), record.value.as_deref());
                let record = self.decoder.decode(*partition, offset, key, value, Some(record.appended_at));
                if let Err(gap) = self.course.take(record, now) {
                    around.judge.blame(around.agenda.now_ms(), format!("a sink stops: {gap:?}"));
                }
            }
        }
    }

    fn done(&mut self, outcome: Outcome, around: &mut Around) {
        match self.course.done(outcome, around.instant()) {
            Ok(Follows::FeedRestarts) => self.restart_feed(around),
            Ok(_) => {}
            Err(error) => around.judge.blame(around.agenda.now_ms(), format!("a sink stops: {error}")),
        }
    }

    fn restart_feed(&mut self, around: &Around) {
        let start = |(partition, next): (i32, Option<i64>)| {
            (partition, next.unwrap_or_else(|| around.broker.ends(self.topic, partition).0))
        };
        self.feed = self.course.batcher().next_offsets().into_iter().map(start).collect();
    }

    fn when_next(&self, around: &Around) -> i64 {
        match &self.under_way {
            // Woken by the answers.
            Some(UnderWay::Burying { .. }) => around.now_ms() + 200,
            Some(UnderWay::Working { done_at_ms, .. }) => *done_at_ms,
            None => {
                let more = self.course.batcher().has_room()
                    && self
                        .feed
                        .iter()
                        .any(|(partition, next)| around.broker.read(self.topic, *partition, *next).is_some());
                if more {
                    return around.now_ms();
                }
                let due = self.course.due_at().saturating_duration_since(around.instant());
                around.now_ms() + i64::try_from(due.as_millis()).unwrap_or(0) + 1
            }
        }
    }
}

/// How long the database takes: mostly no time, sometimes seconds.
fn slowness_ms(around: &mut Around) -> i64 {
    if around.dice.chance(0.02) { around.dice.between(0, 4_000) } else { around.dice.between(0, 20) }
}
