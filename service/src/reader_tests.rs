//! The reader on librdkafka's mock cluster.

use super::*;
use crate::append::{Appender, Outgoing};
use rdkafka::mocking::MockCluster;
use std::sync::mpsc::RecvTimeoutError;

const TOPIC: &str = "t";
const SOON: Duration = Duration::from_secs(10);

#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Record(i32, i64),
    CaughtUp(i32, u64),
}

/// A topic of two partitions, a reader of it, and what that heard.
struct Log {
    appender: Appender,
    reader: Reader,
    heard: mpsc::Receiver<Heard>,
    _stop: tokio_util::sync::DropGuard,
    _cluster: MockCluster<'static, rdkafka::producer::DefaultProducerContext>,
}

impl Log {
    fn new() -> Log {
        let cluster = MockCluster::new(1).expect("a mock cluster");
        cluster.create_topic(TOPIC, 2, 1).expect("creates the topic");
        let brokers = cluster.bootstrap_servers();
        let kafka = Kafka::embedded_at(brokers, "");
        let (sender, heard) = mpsc::channel();
        let stop = Stop::new();
        let handle = move |read: Read<'_>| {
            let heard = match read {
                Read::Record(record) => Heard::Record(record.partition(), record.offset()),
                Read::CaughtUp(partition, reading) => Heard::CaughtUp(partition, reading),
                Read::Pause | Read::OffsetOutOfLog(_) => return Ok(()),
            };
            sender.send(heard).map_err(|_| Closed)
        };
        let reader = Reader::start(&kafka, TOPIC.to_owned(), OutOfLog::Report, stop.clone(), handle);
        let appender = Appender::new(&kafka).expect("a producer");
        Log { appender, reader: reader.expect("a reader"), heard, _stop: stop.drop_guard(), _cluster: cluster }
    }

    async fn append(&self, partition: i32, count: usize) {
        let record = || Outgoing { topic: TOPIC.to_owned(), partition: Some(partition), ..Outgoing::default() };
        let records: Vec<Outgoing> = (0..count).map(|_| record()).collect();
        self.appender.append(records.into_iter()).await.expect("acknowledged");
    }

    fn next(&self) -> Heard {
        self.heard.recv_timeout(SOON).expect("something is heard")
    }

    fn hears_nothing(&self, time: Duration) -> bool {
        self.heard.recv_timeout(time) == Err(RecvTimeoutError::Timeout)
    }
}

#[tokio::test]
async fn reads_what_was_added_and_says_when_that_is_all() {
    let log = Log::new();
    log.append(0, 2_500).await;
    log.reader.add(&[(0, Start::Beginning), (1, Start::Beginning)], 7);
    let mut heard: Vec<Heard> = (0..2_502).map(|_| log.next()).collect();
    let empty = heard.iter().position(|heard| *heard == Heard::CaughtUp(1, 7)).expect("the empty one");
    heard.remove(empty);
    let records = (0..2_500).map(|offset| Heard::Record(0, offset));
    assert_eq!(heard, records.chain([Heard::CaughtUp(0, 7)]).collect::<Vec<_>>());

    log.reader.remove(&[0]);
    // A request is taken within a wait.
    tokio::time::sleep(QUIET_WAIT * 5).await;
    log.append(0, 1).await;
    log.append(1, 1).await;
    assert_eq!(log.next(), Heard::Record(1, 0));
    log.reader.add(&[(0, Start::At(2_499))], 8);
    assert_eq!([log.next(), log.next()], [Heard::Record(0, 2_499), Heard::Record(0, 2_500)]);
    assert_eq!(log.next(), Heard::CaughtUp(0, 8));
}

#[tokio::test]
async fn reads_a_range_and_no_more() {
    let log = Log::new();
    log.append(1, 30).await;
    log.reader.request(Request::AddRanges(vec![(1, 10, 20)]));
    let heard: Vec<Heard> = (0..11).map(|_| log.next()).collect();
    assert_eq!(
        heard,
        (10..20).map(|offset| Heard::Record(1, offset)).chain([Heard::CaughtUp(1, 0)]).collect::<Vec<_>>()
    );
    log.append(1, 1).await;
    assert!(log.hears_nothing(QUIET_WAIT * 5));
}

#[tokio::test]
async fn a_partition_that_stops_without_an_error_is_read_again() {
    let log = Log::new();
    log.append(0, 1).await;
    log.reader.add(&[(0, Start::Beginning)], 1);
    assert_eq!([log.next(), log.next()], [Heard::Record(0, 0), Heard::CaughtUp(0, 1)]);
    // Behind the reader's back.
    let mut list = TopicPartitionList::new();
    list.add_partition(TOPIC, 0);
    log.reader.consumer.pause(&list).expect("pauses");
    tokio::time::sleep(QUIET_WAIT * 5).await;
    log.append(0, 2).await;
    assert!(log.hears_nothing(Duration::from_secs(1)), "it was paused");
    let heard = [(); 2].map(|()| log.heard.recv_timeout(SOON * 2).expect("something is heard"));
    assert_eq!(heard, [Heard::Record(0, 1), Heard::Record(0, 2)]);
}
