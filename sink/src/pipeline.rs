//! From one topic into the database: the loop around a [`Batcher`].
//!
//! There is at most one transaction at a time, and nothing is thrown away until the database has it: while Postgres is
//! away the batcher fills, then the feed's channel, then librdkafka's queue, and then reading rests.

use crate::batch::{Attempt, Batcher, Gap, Rebase, Refusal};
use crate::database::Database;
use crate::error::SinkError;
use crate::feed::{Fed, Feed};
use crate::lag::Lag;
use crate::record::{Decoder, Log, Record};
use crate::settings::SinkSettings;
use crate::write::{Session, WriteError, Written};
use nearby_schemas::TimestampMs;
use nearby_service::Stop;
use nearby_service::append::Appender;
use nearby_service::dead_letters;
use nearby_service::health::Readiness;
use nearby_service::kafka::Kafka;
use nearby_service::membership::{Membership, MembershipEvent};
use rdkafka::Timestamp;
use rdkafka::message::OwnedMessage;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Waiting times between attempts while the database or the broker is away.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// How often a sink with nothing to do makes sure that the database is still there.
const IDLE_CHECK_INTERVAL: Duration = Duration::from_secs(5);
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
    batcher: Batcher,
    /// Owned, but the offset that the database holds is not known yet.
    unplaced: BTreeSet<i32>,
    feed: Option<Feed>,
    session: Option<Session>,
    worked_at: Instant,
    retry_at: Option<Instant>,
    retry_after: Duration,
}

/// Everything that can wake the loop.
enum Wake {
    Stop,
    Member(Option<MembershipEvent>),
    Fed(Option<Fed>),
    Due,
}

/// Why a piece of work could not be done.
enum Trouble {
    /// It can be later.
    Database(String),
    /// It can be later.
    Broker(String),
    /// It can't.
    Fatal(SinkError),
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
        let batcher = Batcher::new(log.contiguous(), around.settings.rows_max(), around.settings.age_max());
        Pipeline {
            log,
            lag: Lag::start(topic.clone()),
            topic,
            around,
            membership,
            events,
            batcher,
            unplaced: BTreeSet::new(),
            feed: None,
            session: None,
            worked_at: Instant::now(),
            retry_at: None,
            retry_after: RETRY_MIN,
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
        let due_at = self.due_at();
        let has_room = self.batcher.has_room();
        let stop = self.around.stop.clone();
        tokio::select! {
            biased;
            () = stop.cancelled() => Wake::Stop,
            event = self.events.recv() => Wake::Member(event),
            () = tokio::time::sleep_until(due_at.into()) => Wake::Due,
            fed = next_of(&mut self.feed), if has_room => Wake::Fed(fed),
        }
    }

    fn due_at(&self) -> Instant {
        let idle_until = self.worked_at + IDLE_CHECK_INTERVAL;
        let due_at =
            if self.unplaced.is_empty() { self.batcher.due_at().unwrap_or(idle_until) } else { self.worked_at };
        self.retry_at.map_or(due_at, |retry_at| due_at.max(retry_at))
    }

    fn follow(&mut self, event: MembershipEvent) -> Result<(), SinkError> {
        match event {
            MembershipEvent::Gained(partitions) => {
                tracing::info!(topic = self.topic, ?partitions, "owned from now on");
                self.unplaced.extend(partitions);
            }
            MembershipEvent::Lost(partitions) => {
                tracing::info!(topic = self.topic, ?partitions, "owned no longer");
                for partition in partitions {
                    self.unplaced.remove(&partition);
                    self.batcher.disown(partition);
                }
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
            Fed::OffsetRefused(reason) => return Err(self.out_of_log(reason).await),
        };
        let now = Instant::now();
        for record in records {
            self.batcher.take(record, now).map_err(|Gap { partition, expected, found }| SinkError::Gap {
                topic: self.topic.clone(),
                partition,
                expected,
                found,
            })?;
        }
        Ok(())
    }

    /// Writes what waits as long as that works; what does not is still in the log.
    async fn flush(&mut self) -> Result<(), SinkError> {
        self.feed = None;
        while !self.batcher.is_empty() && self.retry_at.is_none() {
            self.work().await?;
        }
        Ok(())
    }

    /// One piece of work; if it has to wait, sets the time of the next try.
    async fn work(&mut self) -> Result<(), SinkError> {
        let result = self.try_work().await;
        self.worked_at = Instant::now();
        let trouble = match result {
            Ok(()) => {
                self.around.readiness.ready(self.log.part());
                (self.retry_at, self.retry_after) = (None, RETRY_MIN);
                return Ok(());
            }
            Err(trouble) => trouble,
        };
        match trouble {
            Trouble::Fatal(error) => return Err(error),
            Trouble::Database(reason) => {
                // Whatever state the connection is in, a new one is in none.
                self.session = None;
                let server = self.around.database.server();
                tracing::warn!(topic = self.topic, server, reason, retry_after = ?self.retry_after, "Postgres is away");
                self.around.readiness.not_ready(self.log.part(), format!("{server}: {reason}"));
            }
            Trouble::Broker(reason) => {
                tracing::warn!(topic = self.topic, reason, "a dead letter was not acknowledged: trying again");
            }
        }
        self.retry_at = Some(Instant::now() + self.retry_after);
        self.retry_after = (self.retry_after * 2).min(RETRY_MAX);
        Ok(())
    }

    async fn try_work(&mut self) -> Result<(), Trouble> {
        if !self.unplaced.is_empty() {
            self.place().await?;
        }
        if self.batcher.is_empty() {
            return Ok(within(self.session().await?.check()).await?);
        }
        let attempt = self.batcher.attempt();
        self.bury(&attempt).await?;
        let started = Instant::now();
        match self.write(&attempt).await {
            Ok(Written::Rows(rows)) => {
                self.count(&attempt, rows, started.elapsed());
                self.batcher.written(&attempt);
                self.show();
                Ok(())
            }
            Ok(Written::Lost(partitions)) => self.rebase(&partitions).await,
            Err(WriteError::Refused(reason)) => match self.batcher.refused(&attempt, reason.clone()) {
                Refusal::Halved => {
                    tracing::debug!(topic = self.topic, rows = attempt.count, reason, "looking for a refused row");
                    Ok(())
                }
                Refusal::Found => Ok(()),
                Refusal::NoCulprit => Err(Trouble::Database(reason)),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// Reads the offsets of partitions that are new here, and begins to read them.
    async fn place(&mut self) -> Result<(), Trouble> {
        let topic = self.topic.clone();
        let held = within(self.session().await?.offsets(&topic)).await?;
        for partition in std::mem::take(&mut self.unplaced) {
            self.batcher.own(partition, held.get(&partition).copied());
        }
        self.restart_feed().map_err(Trouble::Fatal)
    }

    /// Reads again what the database holds for partitions where another sink was first.
    async fn rebase(&mut self, partitions: &[i32]) -> Result<(), Trouble> {
        let topic = self.topic.clone();
        let held = within(self.session().await?.offsets(&topic)).await?;
        let mut seek = false;
        for partition in partitions {
            let held = held.get(partition).copied();
            tracing::info!(topic = self.topic, partition, next_offset = held, "another sink was first");
            seek |= self.batcher.rebase(*partition, held) == Rebase::Seek;
        }
        if seek { self.restart_feed().map_err(Trouble::Fatal) } else { Ok(()) }
    }

    /// The dead letters of an attempt have to be acknowledged before the offsets pass over them.
    async fn bury(&mut self, attempt: &Attempt) -> Result<(), Trouble> {
        let (topic, letters) = (&self.topic, self.around.kafka.topics.dead_letters());
        let mut under_way = Vec::new();
        for item in self.batcher.items_mut(attempt).filter(|item| !item.buried) {
            if let Err(reason) = &item.record.content {
                let message = original(topic, &item.record);
                let acknowledged = dead_letters::bury(&self.around.appender, letters.clone(), &message, reason);
                under_way.push((item, acknowledged));
            }
        }
        let mut failed = Ok(());
        for (item, acknowledged) in under_way {
            match acknowledged.await {
                Ok(()) => item.buried = true,
                Err(error) => failed = Err(Trouble::Broker(error.to_string())),
            }
        }
        failed
    }

    async fn write(&mut self, attempt: &Attempt) -> Result<Written, WriteError> {
        self.session().await?;
        let Some(session) = &mut self.session else { return Err(WriteError::Away("no connection".to_owned())) };
        let items = || self.batcher.items(attempt);
        if self.log == Log::LocationEvents {
            within(session.ensure_days(items(), TimestampMs::now())).await?;
        }
        within(session.write(self.log, &self.topic, items(), &attempt.advances)).await
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
        let partitions = self.batcher.next_offsets();
        if !partitions.is_empty() {
            let (kafka, topic) = (&self.around.kafka, self.topic.clone());
            let decoder = Decoder::of(self.log, self.around.partitions);
            let feed = Feed::start(kafka, topic, decoder, &partitions, self.around.settings.backlog_max())?;
            self.feed = Some(feed);
        }
        self.lag.follow(self.feed.as_ref().map(Feed::reader), self.batcher.held_offsets());
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
        let held = self.batcher.held_offsets();
        if let Some(membership) = &self.membership {
            membership.commit(held.clone());
        }
        self.lag.written(held);
    }

    /// Kafka does not say which offset it refused: the one that is not between the ends of its partition.
    async fn out_of_log(&self, reason: String) -> SinkError {
        let (topic, next_offsets) = (self.topic.clone(), self.batcher.next_offsets());
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

impl From<WriteError> for Trouble {
    fn from(error: WriteError) -> Trouble {
        match error {
            WriteError::Away(reason) | WriteError::Refused(reason) => Trouble::Database(reason),
            WriteError::AlreadyInHistory(reason) => Trouble::Fatal(SinkError::AlreadyInHistory(reason)),
        }
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

fn original(topic: &str, record: &Record) -> OwnedMessage {
    let (key, value) = (record.key.clone(), record.value.clone());
    let appended_at = Timestamp::CreateTime(record.appended_at.0);
    OwnedMessage::new(value, key, topic.to_owned(), appended_at, record.partition, record.offset, None)
}

fn list(offsets: &[(i32, Option<i64>)]) -> String {
    let next = |next: Option<i64>| next.map_or_else(|| "beginning".to_owned(), |next| next.to_string());
    let each = offsets.iter().map(|(partition, offset)| format!("{partition}:{}", next(*offset)));
    each.collect::<Vec<_>>().join(", ")
}
