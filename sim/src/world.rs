//! A world of one seed: everybody in it, from the beginning until everything has settled.

use crate::agenda::Who;
use crate::around::{Around, BEGINNING_MS};
use crate::broker::{Arrived, Topic};
use crate::chaos::Chaos;
use crate::client::Client;
use crate::database::{Database, REFUSED_ACCURACY_M};
use crate::gateway::{Gateway, Heard};
use crate::ingest::Ingest;
use crate::judge::promised;
use crate::plan::{QUIET_MS, SETTLING_MS, STALE_MS_MAX, UNSTALE_MS};
use crate::processor::Processor;
use crate::sink::Sink;
use nearby_schemas::codec::Codec;
use nearby_schemas::{FriendList, LocationEvent, UserId};
use std::collections::{BTreeMap, BTreeSet};

/// After everything has settled there is talk again, and silence, so often.
const TALKS: usize = 2;
/// For so long.
const TALK_MS: i64 = 8_000;
/// After so long a world is up, and a connection has its snapshot.
const START_MS: i64 = 10_000;
/// No world needs so many.
const STEPS_MAX: u64 = 5_000_000;

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Ending {
    /// What was wrong first.
    pub verdict: Option<String>,
    /// The hash of everything that happened.
    pub trace_hash: u64,
    /// How often a friend was shown.
    pub shown_count: u64,
    /// Friends in the views that were compared after everything had settled.
    pub compared_count: u64,
    /// Pairs that were compared while the world went on.
    pub prompt_count: u64,
    /// Reports in the log.
    pub report_count: u64,
    /// Steps that were taken.
    pub step_count: u64,
}

/// Everybody.
pub struct World {
    /// What they have around them.
    pub around: Around,
    /// By number, like all that follow.
    pub processors: Vec<Processor>,
    /// Gateways' machines.
    pub gateways: Vec<Gateway>,
    /// Ingests' machines.
    pub ingests: Vec<Ingest>,
    /// Sinks' machines.
    pub sinks: Vec<Sink>,
    /// Users.
    pub clients: Vec<Client>,
    /// The sinks'.
    pub database: Database,
    /// What is wrong now.
    pub chaos: Chaos,
    next_gateway: u32,
    quiet: bool,
    steps: u64,
}

/// Runs the world of a seed; prints what happens if wanted. A panic is a verdict, too.
pub fn run(seed: u64, prints: bool) -> Ending {
    std::panic::catch_unwind(|| World::new(seed, prints).run()).unwrap_or_else(|_| Ending {
        verdict: Some("a panic, whose message is above".to_owned()),
        trace_hash: 0,
        shown_count: 0,
        compared_count: 0,
        prompt_count: 0,
        report_count: 0,
        step_count: 0,
    })
}

impl World {
    fn new(seed: u64, prints: bool) -> World {
        let mut around = Around::new(seed, prints);
        let partitions = around.plan.partitions;
        for topic in [Topic::LocationEvents, Topic::FriendLists, Topic::Sessions] {
            around.broker.create(topic, partitions);
        }
        around.broker.create(Topic::Gateways, 1);
        around.broker.create(Topic::DeadLetters, 1);
        let (processors, gateways) = (around.plan.processors, around.plan.gateways);
        let (ingests, sinks, users) = (around.plan.ingests, around.plan.sinks, around.plan.users.clone());
        let text = format!("{:?}", around.plan);
        around.note(format_args!("{text}"));
        World {
            processors: (0..processors).map(|number| Processor::new(number, &mut around)).collect(),
            gateways: (0..gateways).map(|number| Gateway::new(number, &mut around)).collect(),
            ingests: (0..ingests).map(|number| Ingest::new(number, &mut around)).collect(),
            sinks: (0..sinks).map(|number| Sink::new(number, &mut around)).collect(),
            clients: users.into_iter().enumerate().map(|(n, user)| Client::new(n, user, &mut around)).collect(),
            database: Database::default(),
            chaos: Chaos::default(),
            next_gateway: 0,
            quiet: false,
            steps: 0,
            around,
        }
    }

    fn run(mut self) -> Ending {
        for client in 0..self.clients.len() {
            self.around.agenda.wake(Who::Client(client), BEGINNING_MS);
        }
        self.around.soon(Who::Chaos);
        let faulty_until_ms = BEGINNING_MS + self.around.plan.faulty_ms;
        self.run_until(faulty_until_ms);
        Chaos::end(&mut self);
        // In silence nothing is made good by what comes later.
        self.quiet = self.around.plan.silent;
        self.run_until(faulty_until_ms + UNSTALE_MS);
        self.around.judge.stale_ms_max = self.around.judge.stale_ms_max.min(STALE_MS_MAX);
        self.run_until(faulty_until_ms + SETTLING_MS);
        self.compare_when_quiet();
        for _ in 0..TALKS {
            self.quiet = false;
            self.run_until(self.around.now_ms() + TALK_MS);
            self.compare_when_quiet();
        }
        // Everybody becomes inactive, and everybody is told; a slow database has time enough.
        self.run_until(self.around.now_ms() + self.around.plan.inactive_after_ms + QUIET_MS);
        self.compare_views();
        self.compare_history();
        let reports = |partition| self.around.broker.all(Topic::LocationEvents, partition).count() as u64;
        Ending {
            report_count: (0..self.around.plan.partitions).map(reports).sum(),
            verdict: self.around.judge.verdict,
            trace_hash: self.around.trace.hash(),
            shown_count: self.around.judge.shown_count,
            compared_count: self.around.judge.compared_count,
            prompt_count: self.around.judge.prompt_count,
            step_count: self.steps,
        }
    }

    /// A while without anything new; then every view is the truth.
    fn compare_when_quiet(&mut self) {
        self.quiet = true;
        self.run_until(self.around.now_ms() + QUIET_MS);
        self.compare_views();
    }

    fn run_until(&mut self, until_ms: i64) {
        while self.around.judge.verdict.is_none()
            && let Some(who) = self.around.agenda.next(until_ms)
        {
            self.steps += 1;
            if self.steps > STEPS_MAX {
                self.around.judge.blame(self.around.agenda.now_ms(), format!("{STEPS_MAX} steps and no end"));
            }
            self.step(who);
        }
    }

    fn step(&mut self, who: Who) {
        let around = &mut self.around;
        match who {
            Who::Broker => self.step_broker(),
            Who::Chaos => {
                Chaos::step(self);
                self.compare_promptly();
            }
            Who::Processor(number) => self.processors[number].step(around),
            Who::Gateway(number) => {
                let heard = self.gateways[number].step(around, &mut self.next_gateway);
                self.hear(heard);
            }
            Who::Ingest(number) => {
                for answer in self.ingests[number].step(around) {
                    self.clients[answer.client].answered(answer.request, answer.accepted, around);
                    around.agenda.wake(Who::Client(answer.client), self.clients[answer.client].when_next());
                }
            }
            Who::Sink(number) => self.sinks[number].step(around, &mut self.database),
            Who::Client(number) => {
                let client = &mut self.clients[number];
                client.step(self.quiet, &mut self.ingests, &mut self.gateways, around);
                around.agenda.wake(who, client.when_next().max(around.now_ms() + 1));
            }
        }
    }

    /// What has arrived wakes who reads it.
    fn step_broker(&mut self) {
        let around = &mut self.around;
        let (arrived, answered, next_ms) = around.broker.step(around.agenda.now_ms(), &mut around.dice);
        if let Some(next_ms) = next_ms {
            around.agenda.wake(Who::Broker, next_ms);
        }
        if !around.broker.away {
            around.processors.expel(around.agenda.now_ms());
            around.sinks.expel(around.agenda.now_ms());
        }
        let mut readers = answered;
        let mut topics = BTreeSet::new();
        for arrived in arrived {
            topics.insert(arrived.topic);
            if let Some((_, record)) = around.broker.read(arrived.topic, arrived.partition, arrived.offset) {
                around.judge.appended(arrived.topic, record);
                let Arrived { topic, partition, offset } = arrived;
                let (now_ms, value) = (around.agenda.now_ms(), &record.value);
                around.trace.note(now_ms, format_args!("{topic:?}/{partition} {offset}: {value:?}"));
            }
        }
        for topic in topics {
            let everybody = 0..self.processors.len();
            match topic {
                Topic::LocationEvents | Topic::FriendLists => {
                    readers.extend(everybody.map(Who::Processor));
                    readers.extend((0..self.sinks.len()).map(Who::Sink));
                }
                Topic::Sessions => readers.extend(everybody.map(Who::Processor)),
                Topic::Gateways => {
                    readers.extend(everybody.map(Who::Processor));
                    readers.extend((0..self.ingests.len()).map(Who::Ingest));
                }
                Topic::FriendMoved(gateway) => {
                    let runs = |machine: &Gateway| machine.run.as_ref().is_some_and(|run| run.number == gateway);
                    readers.extend(self.gateways.iter().position(runs).map(Who::Gateway));
                }
                Topic::DeadLetters => {}
            }
        }
        readers.into_iter().for_each(|who| around.soon(who));
    }

    /// Clients hear from a gateway.
    pub fn hear(&mut self, heard: Vec<Heard>) {
        for heard in heard {
            let (line, frame) = match heard {
                Heard::Frame(line, user, outgoing) => (line, Some((user, outgoing))),
                Heard::Closed(line) => (line, None),
            };
            let client = &mut self.clients[line.client];
            match frame {
                Some((user, outgoing)) => {
                    if user != client.user {
                        self.around.judge.blame(self.around.agenda.now_ms(), format!("{user} hears another's frame"));
                    }
                    client.hear(line.connection, outgoing, &mut self.around);
                }
                None => client.closed(line.connection, &mut self.around),
            }
            self.around.agenda.wake(Who::Client(line.client), client.when_next());
        }
    }

    /// Where nothing stands still, views are right while the world goes on.
    fn compare_promptly(&mut self) {
        let now_ms = self.around.now_ms();
        let Some(unchanged_ms) = self.around.plan.prompt_ms.filter(|_| now_ms > BEGINNING_MS + START_MS) else {
            return;
        };
        for client in &self.clients {
            let settled = client.connections.values().filter(|connection| connection.since_ms + START_MS < now_ms);
            for view in settled.filter_map(|connection| connection.view.as_ref()) {
                self.around.judge.compare_unchanged(client.user, view, unchanged_ms, now_ms);
            }
        }
    }

    fn compare_views(&mut self) {
        let now_ms = self.around.now_ms();
        for client in &self.clients {
            if client.connections.is_empty() {
                self.around.judge.blame(now_ms, format!("{} could not connect", client.user));
            }
            for connection in client.connections.values() {
                self.around.judge.compare(client.user, connection.view.as_ref(), now_ms);
            }
        }
    }

    /// Each record of the log is in history once, or a dead letter at least once; each accepted report is there.
    fn compare_history(&mut self) {
        let now_ms = self.around.now_ms();
        let codec = Codec::<LocationEvent>::new();
        let letters: BTreeSet<Vec<u8>> =
            self.around.broker.all(Topic::DeadLetters, 0).filter_map(|(_, record)| record.key.clone()).collect();
        let mut wrong = Vec::new();
        let mut kept = BTreeSet::new();
        for partition in 0..self.around.plan.partitions {
            for (offset, record) in self.around.broker.all(Topic::LocationEvents, partition) {
                let event = codec.decode(record.value.as_deref().unwrap_or_default()).ok();
                let refused = event
                    .as_ref()
                    .is_none_or(|event| event.position.is_some_and(|at| at.accuracy_m == Some(REFUSED_ACCURACY_M)));
                kept.extend(event.as_ref().map(promised));
                let origin = format!("{:?}/{partition}/{offset}", Topic::LocationEvents).into_bytes();
                let row = self.database.rows.get(&(partition, offset));
                let row_count = row.map_or(0, |(_, count)| *count);
                if row.is_some_and(|(stored, _)| Some(*stored) != event) {
                    wrong.push(format!("record {partition}/{offset} is another one in history"));
                }
                match (refused, row_count, letters.contains(&origin)) {
                    (false, 1, false) | (true, 0, true) => {}
                    (_, count, buried) => wrong.push(format!(
                        "record {partition}/{offset} is {count} times in history, buried: {buried}, refused: {refused}"
                    )),
                }
            }
        }
        for report in self.around.judge.accepted_reports() {
            if !kept.contains(&report) {
                wrong.push(format!("{report:?} was accepted and is not in the log"));
            }
        }
        wrong.extend(self.compare_lists());
        wrong.into_iter().for_each(|what| self.around.judge.blame(now_ms, what));
    }

    /// The database has the newest lists.
    fn compare_lists(&self) -> Option<String> {
        let codec = Codec::<FriendList>::new();
        let mut newest: BTreeMap<UserId, FriendList> = BTreeMap::new();
        for partition in 0..self.around.plan.partitions {
            let records = self.around.broker.all(Topic::FriendLists, partition);
            let lists = records.filter_map(|(_, record)| codec.decode(record.value.as_deref()?).ok());
            newest.extend(lists.map(|list| (list.user_id, list)));
        }
        (newest != self.database.lists).then(|| "the database has other friend lists than the log".to_owned())
    }
}
