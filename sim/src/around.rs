//! What every actor has around it: the clock, the dice, the log, the groups, and the judge.

use crate::agenda::{Agenda, Who};
use crate::broker::{Append, Broker, ProducerId, Topic};
use crate::dice::Dice;
use crate::group::Group;
use crate::judge::Judge;
use crate::plan::Plan;
use crate::trace::Trace;
use nearby_processor::records::Decoders;
use nearby_schemas::TimestampMs;
use nearby_schemas::batch::FriendMovedBatch;
use nearby_schemas::codec::Codec;
use nearby_schemas::codecs::Codecs;
use std::time::{Duration, Instant};

/// When every world begins: long after 1970, because epochs are times.
pub const BEGINNING_MS: i64 = 1_800_000_000_000;

/// See the module's documentation.
pub struct Around {
    /// The clock, and who acts next.
    pub agenda: Agenda,
    /// All randomness.
    pub dice: Dice,
    /// What happened.
    pub trace: Trace,
    /// The log.
    pub broker: Broker,
    /// The group of the processors, over `friend-lists`.
    pub processors: Group,
    /// The group of the sinks, over `location-events`.
    pub sinks: Group,
    /// What is true.
    pub judge: Judge,
    /// The sizes of this world.
    pub plan: Plan,
    /// Reads records; shared, because making one takes long.
    pub decoders: Decoders,
    /// Reads and writes batches; shared, too.
    pub batches: Codec<FriendMovedBatch>,
    /// Zero of the clocks that only go forward.
    base: Instant,
}

impl Around {
    /// A world that is about to begin.
    pub fn new(seed: u64, prints: bool) -> Around {
        let mut dice = Dice::new(seed);
        let plan = Plan::draw(&mut dice);
        let partitions = plan.partitions;
        Around {
            agenda: Agenda::new(BEGINNING_MS),
            dice,
            trace: Trace::new(prints),
            broker: Broker::default(),
            processors: Group::new(partitions),
            sinks: Group::new(partitions),
            judge: Judge::new(plan.inactive_after_ms, plan.stale_ms_max),
            plan,
            decoders: Decoders::new(partitions, &Codecs::default()),
            batches: Codec::new(),
            base: Instant::now(),
        }
    }

    /// The time, which no process knows exactly.
    pub fn now_ms(&self) -> i64 {
        self.agenda.now_ms()
    }

    /// The wall clock of a machine that is ahead by so much.
    pub fn wall(&self, ahead_ms: i64) -> TimestampMs {
        TimestampMs(self.now_ms() + ahead_ms)
    }

    /// A clock that only goes forward.
    pub fn clock(&self) -> Duration {
        Duration::from_millis((self.now_ms() - BEGINNING_MS).unsigned_abs())
    }

    /// The same for those who want an `Instant`.
    pub fn instant(&self) -> Instant {
        self.base + self.clock()
    }

    /// Notes what happens.
    pub fn note(&mut self, what: std::fmt::Arguments<'_>) {
        self.trace.note(self.agenda.now_ms(), what);
    }

    /// Sends a record on its way.
    pub fn append(&mut self, producer: ProducerId, append: Append) {
        let due_ms = self.broker.append(producer, append, self.agenda.now_ms(), &mut self.dice);
        self.agenda.wake(Who::Broker, due_ms);
    }

    /// A tombstone or a record without a partition to choose and without an answer to wait for.
    pub fn append_unheard(&mut self, producer: ProducerId, topic: Topic, key: &str, value: Option<Vec<u8>>) {
        let key = Some(key.as_bytes().to_vec());
        self.append(producer, Append { topic, partition: 0, key, value, token: 0 });
    }

    /// Has somebody act soon, at a time that nobody knows.
    pub fn soon(&mut self, who: Who) {
        let pace_ms = self.dice.between(0, self.plan.pace_ms_max);
        self.agenda.wake(who, self.now_ms() + pace_ms);
    }

    /// Has somebody act after so long at the latest.
    pub fn within(&mut self, who: Who, ms: i64) {
        self.agenda.wake(who, self.now_ms() + ms);
    }
}
