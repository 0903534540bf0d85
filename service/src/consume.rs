//! librdkafka's batch call behind a safe face: half the cost of a poll a record (measured; see `bench/`).
//!
//! One of the two modules with unsafe code (a test holds that). What makes it safe:
//! - a [`Queue`] keeps its consumer alive, and gives its own handle of the queue back before it lets go of the consumer;
//! - the messages of a call belong to the [`Queue`] until the next call, which needs `&mut self`: no [`Record`] is left then;
//! - keys and values are bytes that librdkafka does not touch before the message is given back.
//!
//! For consumers with assigned partitions only: one that is subscribed would read nothing, because rebalances are served
//! elsewhere.
#![expect(unsafe_code, reason = "rdkafka has no safe way to the batch call")]

use nearby_schemas::TimestampMs;
use rdkafka::bindings::{self, rd_kafka_timestamp_type_t as RDKafkaTimestampType};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::types::{RDKafkaMessage, RDKafkaQueue, RDKafkaRespErr};
use std::ffi::{CStr, CString};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

/// Records that one call takes at most.
const RECORDS_AT_ONCE_MAX: usize = 1_000;

/// The queue of a consumer with assigned partitions.
pub(crate) struct Queue<C: ConsumerContext + 'static> {
    consumer: Arc<BaseConsumer<C>>,
    queue: NonNull<RDKafkaQueue>,
    /// What the client says, which the batch call would print by itself.
    logs: NonNull<RDKafkaQueue>,
    topic: String,
    topic_c: CString,
    /// Of the last call; the first `filled` are ours to give back.
    messages: Vec<*mut RDKafkaMessage>,
    filled: usize,
}

// SAFETY: librdkafka's handles may be used on any thread; the messages are used by whoever has the `Queue`.
unsafe impl<C: ConsumerContext + 'static> Send for Queue<C> {}

/// A record as it lies in librdkafka's memory.
#[derive(Clone, Copy)]
pub struct Record<'a> {
    message: &'a RDKafkaMessage,
    topic: &'a str,
}

/// What a call brings, one by one.
pub(crate) enum Fetched<'a> {
    Record(Record<'a>),
    /// The partition was read to this offset, at which nothing is yet.
    End(i32, i64),
    /// The client's word on the partition.
    Failed(i32, RDKafkaErrorCode, String),
}

impl<C: ConsumerContext + 'static> Queue<C> {
    /// # Panics
    /// If the topic has a zero byte in it, or if the consumer has no queue: it was made without a group.
    pub fn new(consumer: Arc<BaseConsumer<C>>, topic: &str) -> Queue<C> {
        // SAFETY: the consumer lives, and the reference to its queue that we get is given back in `drop`.
        let queue = unsafe { bindings::rd_kafka_queue_get_consumer(consumer.client().native_ptr()) };
        // SAFETY: as above; a client that was just made has a queue for its log already, which is replaced.
        let logs = unsafe {
            let logs = bindings::rd_kafka_queue_new(consumer.client().native_ptr());
            let error = bindings::rd_kafka_set_log_queue(consumer.client().native_ptr(), logs);
            assert_eq!(error, RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR, "its log goes to a queue");
            logs
        };
        Queue {
            consumer,
            queue: NonNull::new(queue).expect("a consumer with a group id has a queue"),
            logs: NonNull::new(logs).expect("there is memory for a queue"),
            topic: topic.to_owned(),
            topic_c: CString::new(topic).expect("names of topics have no zero byte"),
            messages: vec![std::ptr::null_mut(); RECORDS_AT_ONCE_MAX],
            filled: 0,
        }
    }

    /// Waits at most `patience` for something, and takes what is there.
    pub fn fetch(&mut self, patience: Duration) -> impl Iterator<Item = Fetched<'_>> {
        self.give_back();
        self.log();
        // A call waits until it has as many as it may take: so the first is waited for alone.
        self.filled = self.take(0, 1, i32::try_from(patience.as_millis()).unwrap_or(i32::MAX));
        if self.filled > 0 {
            self.filled += self.take(1, RECORDS_AT_ONCE_MAX - 1, 0);
        }
        self.messages[..self.filled].iter().map(|message| {
            // SAFETY: librdkafka filled in a message, which lives until it is given back, which needs `&mut self`.
            let message = unsafe { &**message };
            fetched(message, &self.topic)
        })
    }

    fn take(&mut self, from: usize, count: usize, patience_ms: i32) -> usize {
        let room = &mut self.messages[from..from + count];
        // SAFETY: the queue lives as long as `self`, and there is room for `count` pointers.
        let taken = unsafe {
            bindings::rd_kafka_consume_batch_queue(self.queue.as_ptr(), patience_ms, room.as_mut_ptr(), room.len())
        };
        usize::try_from(taken).unwrap_or(0)
    }

    fn give_back(&mut self) {
        for message in &mut self.messages[..self.filled] {
            // SAFETY: each was taken once and is given back once; no `Record` borrows from it any more.
            unsafe { bindings::rd_kafka_message_destroy(std::mem::replace(message, std::ptr::null_mut())) };
        }
        self.filled = 0;
    }

    /// What the client has said since the last call goes where our own words go.
    fn log(&self) {
        loop {
            // SAFETY: the queue lives as long as `self`.
            let event = unsafe { bindings::rd_kafka_queue_poll(self.logs.as_ptr(), 0) };
            if event.is_null() {
                return;
            }
            let (mut facility, mut words, mut level) = (std::ptr::null(), std::ptr::null(), 0);
            // SAFETY: the event lives until it is given back, and so do the two texts that librdkafka points to.
            let said = unsafe {
                let found = bindings::rd_kafka_event_log(event, &raw mut facility, &raw mut words, &raw mut level);
                let text = |at| CStr::from_ptr(at).to_string_lossy().into_owned();
                let said = (found == 0).then(|| (text(facility), text(words)));
                bindings::rd_kafka_event_destroy(event);
                said
            };
            match (said, level) {
                // By the levels of syslog.
                (Some((facility, words)), ..=3) => tracing::error!(facility, "Kafka client: {words}"),
                (Some((facility, words)), 4) => tracing::warn!(facility, "Kafka client: {words}"),
                (Some((facility, words)), _) => tracing::debug!(facility, "Kafka client: {words}"),
                (None, _) => {}
            }
        }
    }

    /// The end of the partition, as the last answer of the broker had it; none before the first.
    pub fn known_end(&self, partition: i32) -> Option<i64> {
        let (mut low, mut high) = (-1, -1);
        let client = self.consumer.client().native_ptr();
        // SAFETY: the consumer lives, and librdkafka writes two numbers.
        let error = unsafe {
            let topic = self.topic_c.as_ptr();
            bindings::rd_kafka_get_watermark_offsets(client, topic, partition, &raw mut low, &raw mut high)
        };
        (error == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR && high >= 0).then_some(high)
    }
}

impl<C: ConsumerContext + 'static> Drop for Queue<C> {
    fn drop(&mut self) {
        self.give_back();
        // SAFETY: given back once, before the consumer can go; the client keeps what it needs of its log's queue.
        unsafe {
            bindings::rd_kafka_queue_destroy(self.queue.as_ptr());
            bindings::rd_kafka_queue_destroy(self.logs.as_ptr());
        }
    }
}

fn fetched<'a>(message: &'a RDKafkaMessage, topic: &'a str) -> Fetched<'a> {
    match message.err {
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR => Fetched::Record(Record { message, topic }),
        RDKafkaRespErr::RD_KAFKA_RESP_ERR__PARTITION_EOF => Fetched::End(message.partition, message.offset),
        error => {
            let words = Record { message, topic }.value().unwrap_or_default();
            let words = String::from_utf8_lossy(words).trim_end_matches('\0').to_owned();
            Fetched::Failed(message.partition, error.into(), words)
        }
    }
}

impl<'a> Record<'a> {
    /// The topic that it is in.
    pub fn topic(&self) -> &'a str {
        self.topic
    }

    /// The partition that it is in.
    pub fn partition(&self) -> i32 {
        self.message.partition
    }

    /// Its place in the partition.
    pub fn offset(&self) -> i64 {
        self.message.offset
    }

    /// Its key.
    pub fn key(&self) -> Option<&'a [u8]> {
        bytes(self.message.key.cast(), self.message.key_len)
    }

    /// Its value; none in a tombstone.
    pub fn value(&self) -> Option<&'a [u8]> {
        bytes(self.message.payload.cast(), self.message.len)
    }

    /// When the broker appended it, or, in topics where the broker does not say so, when it was made.
    pub fn appended_at(&self) -> Option<TimestampMs> {
        let mut kind = RDKafkaTimestampType::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message lives, and librdkafka writes one value.
        let time = unsafe { bindings::rd_kafka_message_timestamp(self.message, &raw mut kind) };
        (kind != RDKafkaTimestampType::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE && time >= 0).then_some(TimestampMs(time))
    }
}

/// Bytes of a living message.
fn bytes<'a>(at: *const u8, length: usize) -> Option<&'a [u8]> {
    // SAFETY: librdkafka gives either no address, or that of so many bytes, which live as long as the message does, and a
    // `Record` no longer.
    (!at.is_null()).then(|| unsafe { std::slice::from_raw_parts(at, length) })
}
