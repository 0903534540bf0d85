//! Which partitions this process owns: a member of a consumer group that reads nothing.
//!
//! The member subscribes to one topic with its partitions paused and is polled on a thread of its own, so that neither load
//! nor a slow restore can make it miss the group's deadlines. It also keeps small facts in the group's committed offsets:
//! the epochs of owners (in the metadata) or how far a sink has come.

use crate::Stop;
use crate::kafka::{Kafka, REQUEST_TIMEOUT};
use crate::lifelines;
use nearby_schemas::{Epoch, TimestampMs};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::KafkaError;
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use std::collections::BTreeSet;
use std::sync::mpsc::{self, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often a member asks whether a successor has come, and polls.
const POLL: Duration = Duration::from_millis(50);
const WATCH_INTERVAL: Duration = Duration::from_millis(250);
/// A member that waits for an answer about epochs is not polled: it must not miss what the group says meanwhile.
const WATCH_LIMIT: Duration = Duration::from_secs(1);
/// Who joins a cooperative group that runs is given nothing at first: the others have to be relieved of their partitions,
/// and learn of that at their next heartbeats (every 2 s). Only a member with nothing for longer than that has nothing.
const NOTHING_SO_FAR: Duration = Duration::from_secs(5);

/// What a member learns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembershipEvent {
    /// The group gave us these partitions; none: it has nothing for us, and that is not only the beginning of a rebalance.
    Gained(Vec<i32>),
    /// The group took these partitions.
    Lost(Vec<i32>),
    /// The coordinator accepted our epoch for the partition.
    Claimed(i32, Epoch),
    /// It did not; why.
    ClaimRefused(i32, String),
    /// The committed epoch of a watched partition.
    EpochSeen(i32, Epoch),
}

enum Request {
    End,
    Claim(Vec<i32>),
    Watch(BTreeSet<i32>),
    Commit(Vec<(i32, i64)>),
}

/// A running member. It leaves the group at its stop signal, and still watches epochs until it is told to end.
pub struct Membership {
    requests: mpsc::Sender<Request>,
    thread: std::thread::JoinHandle<()>,
}

struct Member<F> {
    tell: F,
    /// When the group gave us nothing, unless that has been told or something came after it.
    nothing_since: Mutex<Option<Instant>>,
}

impl<F: Fn(MembershipEvent) + Send + Sync> Member<F> {
    fn gained(&self, partitions: Vec<i32>) {
        let mut nothing_since = self.nothing_since.lock().unwrap_or_else(PoisonError::into_inner);
        if partitions.is_empty() {
            *nothing_since = Some(Instant::now());
            return;
        }
        *nothing_since = None;
        drop(nothing_since);
        (self.tell)(MembershipEvent::Gained(partitions));
    }

    fn tell_of_nothing(&self) {
        let mut nothing_since = self.nothing_since.lock().unwrap_or_else(PoisonError::into_inner);
        if nothing_since.is_some_and(|since| since.elapsed() >= NOTHING_SO_FAR) {
            *nothing_since = None;
            drop(nothing_since);
            (self.tell)(MembershipEvent::Gained(Vec::new()));
        }
    }
}

impl<F: Fn(MembershipEvent) + Send + Sync> ClientContext for Member<F> {}

impl<F: Fn(MembershipEvent) + Send + Sync> ConsumerContext for Member<F> {
    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(partitions) => {
                if let Err(error) = consumer.pause(partitions) {
                    tracing::warn!(%error, "pausing an owned partition: its records are fetched for nothing");
                }
                self.gained(numbers(partitions));
            }
            Rebalance::Revoke(partitions) => (self.tell)(MembershipEvent::Lost(numbers(partitions))),
            Rebalance::Error(error) => tracing::warn!(%error, "rebalance"),
        }
    }
}

fn numbers(partitions: &TopicPartitionList) -> Vec<i32> {
    partitions.elements().iter().map(rdkafka::topic_partition_list::TopicPartitionListElem::partition).collect()
}

impl Membership {
    /// Joins `group` on `topic`; `tell` is called on the member's thread, which may wait in it for less than five minutes.
    ///
    /// # Errors
    /// On a bad configuration.
    pub fn join(
        kafka: &Kafka,
        group: &str,
        topic: String,
        stop: Stop,
        tell: impl Fn(MembershipEvent) + Send + Sync + 'static,
    ) -> Result<Membership, KafkaError> {
        let consumer: BaseConsumer<_> =
            kafka.member_config(group).create_with_context(Member { tell, nothing_since: Mutex::default() })?;
        let consumer = Arc::new(consumer);
        lifelines::hold_consumer(kafka, &topic, &consumer);
        consumer.subscribe(&[&topic])?;
        let (requests, inbox) = mpsc::channel();
        let thread = std::thread::Builder::new().name(format!("member of {group}"));
        let thread = thread.spawn(move || run(&consumer, &topic, &stop, &inbox)).map_err(|_| KafkaError::Canceled)?;
        Ok(Membership { requests, thread })
    }

    /// Commits a new epoch for each partition: max(committed + 1, now in ms). Answered by `Claimed` or `ClaimRefused`.
    pub fn claim(&self, partitions: Vec<i32>) {
        self.request(Request::Claim(partitions));
    }

    /// From now on watches the committed epochs of these partitions and no others.
    pub fn watch(&self, partitions: BTreeSet<i32>) {
        self.request(Request::Watch(partitions));
    }

    /// Commits offsets for people to see; nobody starts from them.
    pub fn commit(&self, offsets: Vec<(i32, i64)>) {
        self.request(Request::Commit(offsets));
    }

    /// Ends the member and waits until the group was left; at most `limit`.
    pub fn end(&self, limit: Duration) -> bool {
        self.request(Request::End);
        let deadline = Instant::now() + limit;
        while !self.thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.thread.is_finished()
    }

    fn request(&self, request: Request) {
        // A member that has ended answers nothing, and its owner is ending too.
        drop(self.requests.send(request));
    }
}

fn run<F: Fn(MembershipEvent) + Send + Sync>(
    consumer: &BaseConsumer<Member<F>>,
    topic: &str,
    stop: &Stop,
    inbox: &mpsc::Receiver<Request>,
) {
    let tell = &consumer.context().tell;
    let mut watched = BTreeSet::new();
    let mut watched_at = Instant::now();
    let mut leaving = false;
    loop {
        if stop.is_cancelled() && !leaving {
            leaving = true;
            consumer.unsubscribe();
        }
        // Records that were fetched before the pause took effect are passed over: they are read elsewhere.
        if let Some(Err(error)) = consumer.poll(POLL) {
            tracing::warn!(%error, "group membership");
        }
        consumer.context().tell_of_nothing();
        loop {
            let request = match inbox.try_recv() {
                Ok(request) => request,
                Err(TryRecvError::Empty) => break,
                // Dropping the consumer leaves the group, if that has not been done.
                Err(TryRecvError::Disconnected) => return,
            };
            match request {
                Request::End => return,
                Request::Claim(partitions) => claim(consumer, topic, &partitions),
                Request::Watch(partitions) => watched = partitions,
                Request::Commit(offsets) => commit(consumer, topic, &offsets),
            }
        }
        if !watched.is_empty() && watched_at.elapsed() >= WATCH_INTERVAL {
            watched_at = Instant::now();
            let partitions: Vec<i32> = watched.iter().copied().collect();
            match committed_epochs(consumer, topic, &partitions, WATCH_LIMIT) {
                Ok(epochs) => epochs.into_iter().for_each(|(p, epoch)| tell(MembershipEvent::EpochSeen(p, epoch))),
                // Not a warning: the broker does not answer a member that waits for the others in a rebalance, and readiness tells
                // when it does not answer at all.
                Err(error) => tracing::debug!(%error, "reading committed epochs"),
            }
        }
    }
}

fn claim<F: Fn(MembershipEvent) + Send + Sync>(consumer: &BaseConsumer<Member<F>>, topic: &str, partitions: &[i32]) {
    let tell = &consumer.context().tell;
    let refuse = |partitions: &[i32], because: &str| {
        for partition in partitions {
            tell(MembershipEvent::ClaimRefused(*partition, because.to_owned()));
        }
    };
    // The coordinator knows who is a member, not whose partition it is: a claim that came too late is refused here.
    let owned = consumer.assignment().map(|owned| numbers(&owned)).unwrap_or_default();
    let (owned, lost): (Vec<i32>, Vec<i32>) = partitions.iter().partition(|partition| owned.contains(partition));
    refuse(&lost, "no longer owned");
    if owned.is_empty() {
        return;
    }
    match try_claim(consumer, topic, &owned) {
        Ok(epochs) => epochs.into_iter().for_each(|(p, epoch)| tell(MembershipEvent::Claimed(p, epoch))),
        Err(error) => refuse(&owned, &error.to_string()),
    }
}

fn try_claim<F: Fn(MembershipEvent) + Send + Sync>(
    consumer: &BaseConsumer<Member<F>>,
    topic: &str,
    partitions: &[i32],
) -> Result<Vec<(i32, Epoch)>, KafkaError> {
    let now = TimestampMs::now();
    let epochs: Vec<(i32, Epoch)> = committed_epochs(consumer, topic, partitions, REQUEST_TIMEOUT)?
        .into_iter()
        .map(|(partition, committed)| (partition, next_epoch(committed, now)))
        .collect();
    let mut list = TopicPartitionList::new();
    for (partition, epoch) in &epochs {
        let mut element = list.add_partition(topic, *partition);
        element.set_offset(Offset::Offset(0))?;
        element.set_metadata(epoch.0.to_string());
    }
    consumer.commit(&list, CommitMode::Sync)?;
    Ok(epochs)
}

/// The epoch of a new owner: greater than the committed one, and than any of a group that was forgotten meanwhile.
pub fn next_epoch(committed: Epoch, now: TimestampMs) -> Epoch {
    Epoch(now.0.max(committed.0.saturating_add(1)))
}

/// Epochs in the group's committed metadata; 0 where there is none.
fn committed_epochs<F: Fn(MembershipEvent) + Send + Sync>(
    consumer: &BaseConsumer<Member<F>>,
    topic: &str,
    partitions: &[i32],
    limit: Duration,
) -> Result<Vec<(i32, Epoch)>, KafkaError> {
    let mut list = TopicPartitionList::new();
    for partition in partitions {
        list.add_partition(topic, *partition);
    }
    let committed = consumer.committed_offsets(list, limit)?;
    let epoch = |metadata: &str| Epoch(metadata.parse().unwrap_or(0));
    committed
        .elements()
        .iter()
        .map(|element| element.error().map(|()| (element.partition(), epoch(element.metadata()))))
        .collect()
}

fn commit<F: Fn(MembershipEvent) + Send + Sync>(
    consumer: &BaseConsumer<Member<F>>,
    topic: &str,
    offsets: &[(i32, i64)],
) {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in offsets {
        if let Err(error) = list.add_partition_offset(topic, *partition, Offset::Offset(*offset)) {
            tracing::warn!(%error, "committing an offset");
        }
    }
    if let Err(error) = consumer.commit(&list, CommitMode::Async) {
        tracing::debug!(%error, "committing offsets for people to see");
    }
}
