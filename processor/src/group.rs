//! What the engines of a process have in common: one membership in the group of processors, and one word on how they are.

use crate::decider::Progress;
use crate::wake::Engines;
use nearby_engine::Counts;
use nearby_service::Stop;
use nearby_service::health::Readiness;
use nearby_service::kafka::Kafka;
use nearby_service::membership::Membership;
use rdkafka::error::KafkaError;
use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const GROUP: &str = "nearby-processors";
const LEAVE_LIMIT: Duration = Duration::from_secs(2);

/// Shared by the engines' threads.
pub(crate) struct Group {
    kafka: Kafka,
    engines: Engines,
    readiness: Readiness,
    stop: Stop,
    started_at: Instant,
    state: Mutex<State>,
}

struct State {
    membership: Option<Membership>,
    /// By engine.
    members: Vec<Member>,
}

/// One engine.
#[derive(Clone)]
struct Member {
    restored: bool,
    watched: BTreeSet<i32>,
    progress: Progress,
    counts: Counts,
    served: usize,
}

impl Group {
    pub fn new(kafka: Kafka, engines: Engines, readiness: Readiness, stop: Stop) -> Group {
        let member = Member {
            restored: false,
            watched: BTreeSet::new(),
            progress: Progress::Joining,
            counts: Counts::default(),
            served: 0,
        };
        let state = State { membership: None, members: vec![member; engines.count()] };
        Group { kafka, engines, readiness, stop, started_at: Instant::now(), state: Mutex::new(state) }
    }

    /// An engine knows every position and every gateway. Once all do, the group is joined.
    pub fn restored(&self, engine: usize) -> Result<(), KafkaError> {
        let mut state = self.lock();
        state.members[engine].restored = true;
        if state.membership.is_some() || !state.members.iter().all(|member| member.restored) {
            return Ok(());
        }
        let restored_ms = u64::try_from(self.started_at.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(restored_ms, "positions restored");
        let (topic, engines) = (self.kafka.topics.friend_lists(), self.engines.clone());
        let tell = move |event| engines.tell(event);
        state.membership = Some(Membership::join(&self.kafka, GROUP, topic, self.stop.clone(), tell)?);
        Ok(())
    }

    /// Commits a new epoch for these partitions.
    pub fn claim(&self, partitions: Vec<i32>) {
        if let Some(membership) = &self.lock().membership {
            membership.claim(partitions);
        }
    }

    /// An engine holds nothing of a partition any more.
    pub fn released(&self, partition: i32) {
        self.engines.released(partition);
    }

    /// Watches, for an engine, the committed epochs of these partitions and no others.
    pub fn watch(&self, engine: usize, partitions: BTreeSet<i32>) {
        let mut state = self.lock();
        state.members[engine].watched = partitions;
        let all = state.members.iter().flat_map(|member| member.watched.iter().copied()).collect();
        if let Some(membership) = &state.membership {
            membership.watch(all);
        }
    }

    /// How an engine is; all together are what `/readyz` and `/metrics` say.
    pub fn tell_progress(&self, engine: usize, progress: Progress, counts: Counts, served: usize) {
        let mut state = self.lock();
        let member = &mut state.members[engine];
        (member.progress, member.counts, member.served) = (progress, counts, served);
        let members = &state.members;
        publish(members);
        let behind = members.iter().map(|member| member.progress).find(|progress| *progress != Progress::Serving);
        let waits_for = match behind.unwrap_or(Progress::Serving) {
            Progress::Serving => return self.readiness.ready("processor"),
            Progress::RestoringPositions(0) => "restoring gateways".to_owned(),
            Progress::RestoringPositions(missing) => format!("restoring positions: {missing} partitions to go"),
            Progress::RestoringViewers(missing) => format!("restoring viewers: {missing} partitions to go"),
            Progress::SendingSnapshots => "sending snapshots".to_owned(),
            Progress::Joining => "joining the group".to_owned(),
        };
        self.readiness.not_ready("processor", waits_for);
    }

    /// Who is known to have left need not be waited for by the group when the next one joins. The engines' threads have
    /// ended: nobody takes wakes any more, so the member cannot wait for room.
    pub fn leave(&self) {
        if let Some(membership) = &self.lock().membership
            && !membership.end(LEAVE_LIMIT)
        {
            tracing::warn!("the group was not left in time; it finds out after the session timeout");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn publish(members: &[Member]) {
    let sum = |of: fn(&Member) -> usize| members.iter().map(of).sum();
    // Every engine knows all positions and gateways.
    let most = |of: fn(&Member) -> usize| members.iter().map(of).max().unwrap_or_default();
    for (what, count) in [
        ("positions", most(|member| member.counts.users_with_position)),
        ("gateways", most(|member| member.counts.gateways_alive)),
        ("viewers", sum(|member| member.counts.viewers_connected)),
        ("edges", sum(|member| member.counts.edges_indexed)),
        ("lists", sum(|member| member.counts.lists_held)),
        ("partitions", sum(|member| member.served)),
    ] {
        #[expect(clippy::cast_precision_loss, reason = "counts of things in memory are far below 2^52")]
        metrics::gauge!("nearby_processor_state", "of" => what).set(count as f64);
    }
}
