//! From one topic into the database: the loop that does what a [`Course`] says.
//!
//! There is at most one transaction at a time, and nothing is thrown away until the database has it: while Postgres is
//! away the batcher fills, then the feed's channel, then librdkafka's queue, and then reading rests.

use crate::batch::{Attempt, Gap};
use crate::course::{Course, Follows, Outcome, Work};
use crate::database::Database;
use crate::error::SinkError;
use crate::feed::{Fed, Feed};
use crate::lag::Lag;
use crate::record::{Decoder, Log, Record};
use crate::settings::SinkSettings;
use crate::write::{Mark, Session, WriteError, Written};
use nearby_schemas::TimestampMs;
use nearby_service::Stop;
use nearby_service::append::Appender;
use nearby_service::dead_letters::{self, Original};
use nearby_service::health::Readiness;
use nearby_service::kafka::Kafka;
use nearby_service::membership::{Membership, MembershipEvent};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How long anything may take in the database; after that the connection is given up.
const DATABASE_LIMIT: Duration = Duration::from_secs(30);

/// What a pipeline works with.
pub struct Surroundings {
    /// How it batches.
    pub settings: SinkSettings,
    /// Where records come from.
    pub kafka: Kafka,
    /// Partitions of the topics that are partitioned by user.
    pub partitions: i32,
    /// Where they go.
    pub database: Database,
    /// Where dead letters go.
    pub appender: Appender,
    /// Who is told whether the database is there.
    pub readiness: Readiness,
    /// Ends the pipeline in order.
    pub stop: Stop,
}

/// One topic's way into the database.
pub struct Pipeline {
    log: Log,
    topic: String,
    around: Arc<Surroundings>,
    membership: Option<Arc<Membership>>,
    events: mpsc::UnboundedReceiver<MembershipEvent>,
    lag: Lag,
    course: Course,
    feed: Option<Feed>,
    session: Option<Session>,
    /// What the database has last of partitions, until it is found in the log.
    marks: BTreeMap<i32, Mark>,
}

/// Everything that can wake the loop.
enum Wake {
    Stop,
    Member(Option<MembershipEvent>),
    Fed(Option<Fed>),
    Due,
}

impl Pipeline {
    /// `membership`, if committed offsets of this topic are for it to show.
    pub fn new(
        log: Log,
        around: Arc<Surroundings>,
        membership: Option<Arc<Membership>>,
        events: mpsc::UnboundedReceiver<MembershipEvent>,
    ) -> Pipeline {
        let topics = &around.kafka.topics;
        let topic = match log {
            Log::LocationEvents => topics.location_events(),
            Log::FriendLists => topics.friend_lists(),
        };
        let course = Course::new(log, &around.settings, Instant::now());
        let lag = Lag::start(topic.clone());
        Pipeline {
            log,
            topic,
            around,
            membership,
            events,
            lag,
            course,
            feed: None,
            session: None,
            marks: BTreeMap::new(),
        }
    }

    /// Works until the stop signal, then writes what it holds.
    pub async fn run(mut self) -> Result<(), SinkError> {
        loop {
            match self.wake().await {
                Wake::Stop => return self.flush().await,
                Wake::Member(event) => self.follow(event.ok_or(SinkError::PartEnded("the group membership"))?)?,
                Wake::Fed(fed) => self.take(fed.ok_or(SinkError::PartEnded("the reader"))?).await?,
                Wake::Due => self.work().await?,
            }
        }
    }

    async fn wake(&mut self) -> Wake {
        let due_at = self.course.due_at();
        let has_room = self.course.batcher().has_room();
        let stop = self.around.stop.clone();
        tokio::select! {
            biased;
            () = stop.cancelled() => Wake::Stop,
            event = self.events.recv() => Wake::Member(event),
            () = tokio::time::sleep_until(due_at.into()) => Wake::Due,
            fed = next_of(&mut self.feed), if has_room => Wake::Fed(fed),
        }
    }

    fn follow(&mut self, event: MembershipEvent) -> Result<(), SinkError> {
        match event {
            MembershipEvent::Gained(partitions) => {
                tracing::info!(topic = self.topic, ?partitions, "owned from now on");
                self.course.gained(partitions);
            }
            MembershipEvent::Lost(partitions) => {
                tracing::info!(topic = self.topic, ?partitions, "owned no longer");
                self.course.lost(partitions);
                self.restart_feed()?;
            }
            // A sink claims no epochs and watches none.
            MembershipEvent::Claimed(..) | MembershipEvent::ClaimRefused(..) | MembershipEvent::EpochSeen(..) => {}
        }
        Ok(())
    }

    async fn take(&mut self, fed: Fed) -> Result<(), SinkError> {
        let records = match fed {
            Fed::Records(records) => records,
            Fed::OffsetRefused(reason) => return self.offset_refused(reason).await,
        };
        let now = Instant::now();
        for record in records {
            self.compare(&record)?;
            if let Err(Gap { partition, expected, found }) = self.course.take(record, now) {
                // So that the database holds all that is before the gap, and whoever decides to go on behind it loses nothing.
                self.flush().await?;
                return Err(SinkError::Gap { topic: self.topic.clone(), partition, expected, found });
            }
        }
        Ok(())
    }

    /// Writes what waits as long as that works; what does not is still in the log.
    async fn flush(&mut self) -> Result<(), SinkError> {
        self.feed = None;
        while self.course.can_flush() {
            self.work().await?;
        }
        Ok(())
    }

    /// One piece of work, and what follows from it.
    async fn work(&mut self) -> Result<(), SinkError> {
        let outcome = match self.course.next_work() {
            Work::ReadOffsets => Outcome::OffsetsRead(self.read_offsets().await),
            Work::Bury(attempt) => {
                let letters = self.bury(&attempt).await;
                Outcome::Buried(attempt, letters)
            }
            Work::Write(attempt) => {
                let written = self.write(&attempt).await;
                Outcome::Wrote(attempt, written)
            }
            Work::Check => Outcome::Checked(self.check().await),
        };
        let follows = self.course.done(outcome, Instant::now())?;
        let topic = &self.topic;
        match follows {
            Follows::Nothing => {}
            Follows::Advanced => self.show(),
            Follows::FeedRestarts => self.restart_feed()?,
            Follows::Searching { rows, reason } => tracing::debug!(topic, rows, reason, "looking for a refused row"),
            Follows::DatabaseAway { retry_after } => {
                self.session = None;
                let (server, reason) = (self.around.database.server(), self.course.away());
                tracing::warn!(topic, server, reason, ?retry_after, "Postgres is away");
            }
            Follows::BrokerAway { reason } => {
                tracing::warn!(topic, reason, "a dead letter was not acknowledged: trying again");
            }
        }
        let (readiness, part) = (&self.around.readiness, self.log.part());
        match self.course.away() {
            Some(reason) => readiness.not_ready(part, format!("{}: {reason}", self.around.database.server())),
            None => readiness.ready(part),
        }
        Ok(())
    }

    async fn read_offsets(&mut self) -> Result<BTreeMap<i32, i64>, WriteError> {
        let topic = self.topic.clone();
        let (held, marks) = within(self.session().await?.offsets(&topic)).await?;
        self.marks = marks;
        Ok(held)
    }

    /// Whether the record that was written last is still there: the first one that a feed reads of a partition, unless the log has lost it.
    fn compare(&mut self, record: &Record) -> Result<(), SinkError> {
        let is_last = |mark: &Mark| mark.offset == record.offset;
        let (Some(mark), Some(found)) =
            (self.marks.get(&record.partition).copied().filter(is_last), record.appended_at)
        else {
            return Ok(());
        };
        self.marks.remove(&record.partition);
        if mark.appended_at == found {
            return Ok(());
        }
        let (topic, partition, offset) = (self.topic.clone(), record.partition, record.offset);
        let (expected, found) = (mark.appended_at.0, found.0);
        Err(SinkError::AnotherLog { topic, partition, offset, expected, found })
    }

    async fn check(&mut self) -> Result<(), WriteError> {
        within(self.session().await?.check()).await
    }

    /// Appends dead letters, all at once; which of them were acknowledged.
    async fn bury(&self, attempt: &Attempt) -> Vec<Result<(), String>> {
        let (appender, letters) = (&self.around.appender, self.around.kafka.topics.dead_letters());
        let bury = |(record, reason): (&Record, &str)| {
            dead_letters::bury(appender, letters.clone(), original(&self.topic, record), reason)
        };
        let under_way: Vec<_> = self.course.letters(attempt).map(bury).collect();
        let mut acknowledged = Vec::with_capacity(under_way.len());
        for letter in under_way {
            acknowledged.push(letter.await.map_err(|error| error.to_string()));
        }
        acknowledged
    }

    async fn write(&mut self, attempt: &Attempt) -> Result<Written, WriteError> {
        let started = Instant::now();
        self.session().await?;
        let Some(session) = &mut self.session else { return Err(WriteError::Away("no connection".to_owned())) };
        let items = || self.course.batcher().items(attempt);
        if self.log == Log::LocationEvents {
            within(session.ensure_days(items(), TimestampMs::now())).await?;
        }
        let written = within(session.write(self.log, &self.topic, items(), &attempt.advances)).await?;
        match &written {
            Written::Rows(rows) => self.count(attempt, *rows, started.elapsed()),
            Written::Lost(partitions) => tracing::info!(topic = self.topic, ?partitions, "another sink was first"),
        }
        Ok(written)
    }

    async fn session(&mut self) -> Result<&mut Session, WriteError> {
        let session = match self.session.take() {
            Some(session) => session,
            None => Session::new(self.around.database.connection().await.map_err(WriteError::Away)?),
        };
        Ok(self.session.insert(session))
    }

    fn restart_feed(&mut self) -> Result<(), SinkError> {
        self.feed = None;
        let from = |(partition, next)| (partition, self.written_last(partition, next).or(next));
        let partitions: Vec<_> = self.course.batcher().next_offsets().into_iter().map(from).collect();
        if !partitions.is_empty() {
            let (kafka, topic) = (&self.around.kafka, self.topic.clone());
            let decoder = Decoder::of(self.log, self.around.partitions, &kafka.codecs);
            let feed = Feed::start(kafka, topic, decoder, &partitions, self.around.settings.backlog_max())?;
            self.feed = Some(feed);
        }
        self.lag.follow(self.feed.as_ref().map(Feed::reader), self.course.batcher().held_offsets());
        Ok(())
    }

    fn count(&self, attempt: &Attempt, rows: usize, took: Duration) {
        let table = self.log.table();
        metrics::counter!("nearby_sink_rows_total", "table" => table)
            .increment(u64::try_from(rows).unwrap_or(u64::MAX));
        metrics::histogram!("nearby_sink_batch_seconds", "table" => table).record(took);
        #[expect(clippy::cast_precision_loss, reason = "a batch has at most a million rows")]
        metrics::histogram!("nearby_sink_batch_rows", "table" => table).record(attempt.count as f64);
    }

    /// For people who look at the lag; nobody starts from there.
    fn show(&self) {
        let held = self.course.batcher().held_offsets();
        if let Some(membership) = &self.membership {
            membership.commit(held.clone());
        }
        self.lag.written(held);
    }

    /// Where the record is that was written last, if it comes right before the next one and was not compared yet: a feed begins there.
    fn written_last(&self, partition: i32, next: Option<i64>) -> Option<i64> {
        self.marks.get(&partition).map(|mark| mark.offset).filter(|last| next == Some(last + 1))
    }

    /// The record that was written last may be gone, and what comes next not: then it is not looked at.
    async fn offset_refused(&mut self, reason: String) -> Result<(), SinkError> {
        let next_offsets = self.course.batcher().next_offsets().into_iter();
        let last = |(partition, next)| Some((partition, self.written_last(partition, next)?));
        let (reader, last) = (self.feed.as_ref().map(Feed::reader), next_offsets.filter_map(last).collect::<Vec<_>>());
        // `None`: no broker says it.
        let look = move || {
            let mut gone = Vec::new();
            for (partition, offset) in last {
                let (first, end) = reader.as_ref()?.watermarks(partition).ok()?;
                if !(first..end).contains(&offset) {
                    gone.push(partition);
                }
            }
            Some(gone)
        };
        let stop = self.around.stop.clone();
        let Some(looked) = stop.run_until_cancelled(tokio::task::spawn_blocking(look)).await else { return Ok(()) };
        let Some(gone) = looked.ok().flatten() else { return self.restart_feed() };
        if gone.is_empty() {
            return Err(self.out_of_log(reason).await);
        }
        for partition in gone {
            self.marks.remove(&partition);
        }
        self.restart_feed()
    }

    /// Kafka does not say which offset it refused: the one that is not between the ends of its partition.
    async fn out_of_log(&self, reason: String) -> SinkError {
        let (topic, next_offsets) = (self.topic.clone(), self.course.batcher().next_offsets());
        let reader = self.feed.as_ref().map(Feed::reader);
        let asked = tokio::task::spawn_blocking(move || {
            let reader = reader?;
            let outside = next_offsets.iter().find_map(|(partition, next)| {
                let next_offset = (*next)?;
                let (first, end) = reader.watermarks(*partition).ok()?;
                let (topic, partition) = (topic.clone(), *partition);
                let error = SinkError::OutOfLog { topic, partition, next_offset, first, end };
                (next_offset < first || next_offset > end).then_some(error)
            });
            Some(outside.unwrap_or_else(|| SinkError::OffsetRefused {
                topic,
                reason,
                next_offsets: list(&next_offsets),
            }))
        });
        asked.await.ok().flatten().unwrap_or(SinkError::PartEnded("the search for a refused offset"))
    }
}

async fn within<T>(work: impl Future<Output = Result<T, WriteError>>) -> Result<T, WriteError> {
    let limited = tokio::time::timeout(DATABASE_LIMIT, work).await;
    limited.unwrap_or_else(|_| Err(WriteError::Away(format!("no answer within {} s", DATABASE_LIMIT.as_secs()))))
}

async fn next_of(feed: &mut Option<Feed>) -> Option<Fed> {
    match feed {
        Some(feed) => feed.next().await,
        None => std::future::pending().await,
    }
}

fn original<'a>(topic: &'a str, record: &'a Record) -> Original<'a> {
    let (partition, offset) = (record.partition, record.offset);
    Original { topic, partition, offset, key: record.key.as_deref(), value: record.value.as_deref() }
}

fn list(offsets: &[(i32, Option<i64>)]) -> String {
    let next = |next: Option<i64>| next.map_or_else(|| "beginning".to_owned(), |next| next.to_string());
    let each = offsets.iter().map(|(partition, offset)| format!("{partition}:{}", next(*offset)));
    each.collect::<Vec<_>>().join(", ")
}
