//! Why a sink cannot start, or has to stop.

use nearby_service::kafka::ClusterError;
use rdkafka::error::KafkaError;
use sqlx::migrate::MigrateError;

/// The sink ends with this. What passes by itself (a database or broker that is away) is waited for and is none of these.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The database URL says nothing that one could connect to.
    #[error("the database URL cannot be used: {0}")]
    DatabaseUrl(String),
    /// The database did not let us in.
    #[error("Postgres at {server} cannot be used: {reason}")]
    DatabaseUnreachable {
        /// HOST:PORT/DATABASE.
        server: String,
        /// Its own word, or that it said none.
        reason: String,
    },
    /// The schema could not be brought up to date.
    #[error("schema nearby in Postgres at {server} cannot be migrated: {source}")]
    Migration {
        /// HOST:PORT/DATABASE.
        server: String,
        /// What is wrong.
        source: MigrateError,
    },
    /// The cluster is not as it has to be.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// A Kafka client could not be made or asked.
    #[error("Kafka: {0}")]
    Kafka(#[from] KafkaError),
    /// The next record is not in the log (any more): history would have a hole.
    #[error(
        "offset {next_offset} of {topic}/{partition} is outside the log, whose first offset is {first} and next one {end}: \
         history would have a hole. To go on from the log's first record all the same, DELETE FROM nearby.sink_offsets WHERE topic = \
         '{topic}' AND kafka_partition = {partition}; without the partition if the topic was made anew"
    )]
    OutOfLog {
        /// Topic.
        topic: String,
        /// Partition.
        partition: i32,
        /// What should come next.
        next_offset: i64,
        /// First offset in the log.
        first: i64,
        /// Offset after the last one.
        end: i64,
    },
    /// Kafka said that an offset is outside the log, but no partition could be found whose offset is.
    #[error("Kafka refused an offset of {topic}: {reason}; the next offsets are {next_offsets}")]
    OffsetRefused {
        /// Topic.
        topic: String,
        /// Kafka's word.
        reason: String,
        /// PARTITION:OFFSET, …
        next_offsets: String,
    },
    /// The topic was made anew.
    #[error(
        "{topic}/{partition} is another log than the one that history was written from: its record {offset} was appended at {found}, the one \
         that was written at {expected} (ms since 1970). If the topic was made anew, records of it before that offset are in no history: to \
         write it from its first record on, DELETE FROM nearby.sink_offsets WHERE topic = '{topic}'. If a broker lost the end of the same \
         log, others took these offsets: to go on behind them, UPDATE nearby.sink_offsets SET last_offset = NULL WHERE topic = '{topic}'"
    )]
    AnotherLog {
        /// Topic.
        topic: String,
        /// Partition.
        partition: i32,
        /// Of the record that was written last.
        offset: i64,
        /// When that was appended.
        expected: i64,
        /// When the one was that is there.
        found: i64,
    },
    /// Records are missing in the middle of the log.
    #[error(
        "{topic}/{partition} has a gap: offset {expected} should come next, and {found} came: history would have a hole. To go on \
         all the same, set next_offset in nearby.sink_offsets from {expected} to {found}"
    )]
    Gap {
        /// Topic.
        topic: String,
        /// Partition.
        partition: i32,
        /// What should have come.
        expected: i64,
        /// What came.
        found: i64,
    },
    /// nearby.sink_offsets and nearby.location_history disagree.
    #[error(
        "a record that is unwritten by nearby.sink_offsets is in nearby.location_history: {0}; was a row of sink_offsets \
         deleted or set back?"
    )]
    AlreadyInHistory(String),
    /// A part of the sink ended by itself.
    #[error("{0} ended unexpectedly")]
    PartEnded(&'static str),
}
