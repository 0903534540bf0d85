//! History: the log's reports and friend lists into Postgres, each record exactly once.
//!
//! A sink is a member of the group `nearby-sink`, which only says which partitions are its own. It reads them from the
//! offsets that Postgres holds, and writes rows and new offsets in one transaction, provided that the offsets are still
//! those that it read. So crashes, rebalances and two sinks that both believe to own a partition lose and double nothing.
//!
//! - [`batch`]: what is written next and how offsets move; pure.
//! - [`course`]: what is done next, and what follows from how it went; pure.
//! - [`record`]: what a record means, [`copy`]: rows as bytes; pure.
//! - [`database`]: the way in and the migrations, [`days`]: partitions of the history, [`write`](mod@write): the transaction.
//! - [`feed`]: records out of Kafka, [`pipeline`]: the loop, one for each of the two topics.
//!
//! It keeps no file, starts from no committed offset of Kafka's, and never passes over a record silently: what can't be
//! written is a dead letter, and a hole in the log ends the process.

pub mod batch;
pub mod copy;
pub mod course;
pub mod database;
pub mod days;
mod error;
mod feed;
mod lag;
mod pipeline;
pub mod record;
mod settings;
pub mod write;

pub use database::{Database, connect};
pub use error::SinkError;
pub use settings::SinkSettings;

use nearby_service::Stop;
use nearby_service::append::Appender;
use nearby_service::health::Readiness;
use nearby_service::kafka::Kafka;
use nearby_service::membership::Membership;
use pipeline::{Pipeline, Surroundings};
use rdkafka::error::KafkaError;
use record::Log;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// The consumer group, before the prefix.
const GROUP: &str = "nearby-sink";
/// How long what is buffered may take to be written when the sink is asked to stop.
const FLUSH_LIMIT: Duration = Duration::from_secs(3);
/// How long leaving the group may take.
const LEAVE_LIMIT: Duration = Duration::from_secs(3);

/// Writes history until the stop signal; then writes what is buffered, within 3 s, and leaves the group.
///
/// # Errors
/// When going on would make a hole in the history, or cannot be right.
pub async fn run(
    settings: SinkSettings,
    kafka: Kafka,
    database: Database,
    readiness: Readiness,
    stop: Stop,
) -> Result<(), SinkError> {
    // The group is left last, so that nobody takes over what is still being written; and also when this future is dropped.
    let leave = Stop::new();
    let _leave_when_dropped = leave.clone().drop_guard();
    let (events_in, events_out) = mpsc::unbounded_channel();
    let (lists_in, lists_out) = mpsc::unbounded_channel();
    let topic = kafka.topics.location_events();
    let membership = Membership::join(&kafka, GROUP, topic, leave.clone(), move |event| {
        // A pipeline that has ended ends the sink.
        drop(events_in.send(event.clone()));
        drop(lists_in.send(event));
    })?;
    let membership = Arc::new(membership);
    let appender = Appender::new(&kafka)?;
    for log in [Log::LocationEvents, Log::FriendLists] {
        readiness.ready(log.part());
    }
    let counted = kafka.clone();
    let partitions = tokio::task::spawn_blocking(move || counted.check_topics()).await;
    let partitions = partitions.map_err(|_| KafkaError::Canceled)??;
    let around =
        Arc::new(Surroundings { settings, kafka, partitions, database, appender, readiness, stop: stop.clone() });
    let events = Pipeline::new(Log::LocationEvents, Arc::clone(&around), Some(Arc::clone(&membership)), events_out);
    let lists = Pipeline::new(Log::FriendLists, around, None, lists_out);
    let too_late = async {
        stop.cancelled().await;
        tokio::time::sleep(FLUSH_LIMIT).await;
    };
    let result = tokio::select! {
        result = async { tokio::try_join!(events.run(), lists.run()) } => result.map(drop),
        () = too_late => {
            tracing::warn!("not all that was buffered could be written; it is still in the log");
            Ok(())
        }
    };
    leave.cancel();
    let left = tokio::task::spawn_blocking(move || membership.end(LEAVE_LIMIT)).await;
    if !left.unwrap_or(false) {
        tracing::warn!("the group was not left in time: its other members wait for the session to time out");
    }
    result
}
