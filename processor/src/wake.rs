//! Everything that can wake an engine's thread, in one closed list, and the ways to these threads.

use nearby_schemas::{GatewayId, Place, TimestampMs, UserId};
use nearby_service::membership::MembershipEvent;
use std::collections::BTreeMap;
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Groups of records that may wait for the engine; readers stop reading above that.
const WAITING_MAX: usize = 256;

/// A report, as the engine takes it.
#[derive(Clone, Copy, Debug)]
pub struct Reported {
    /// Who.
    pub user: UserId,
    /// min(reported, appended), rule R2.
    pub time: TimestampMs,
    /// Where; none: stopped sharing.
    pub place: Option<Place>,
}

/// Reports that were read together; all engines of a process share them.
#[derive(Clone, Debug, Default)]
pub struct Reports {
    /// In the order of their partitions.
    pub reports: Vec<Reported>,
    /// When the last of them was appended, if that is of interest.
    pub appended_at: Option<TimestampMs>,
}

/// A friend list or its tombstone.
#[derive(Debug)]
pub struct Listed {
    /// Of the viewer.
    pub partition: i32,
    /// Whose list.
    pub viewer: UserId,
    /// All whom the viewer may see; none in a tombstone.
    pub friends: Option<Vec<UserId>>,
}

/// A session or its tombstone.
#[derive(Debug)]
pub struct Sessioned {
    /// Of the user.
    pub partition: i32,
    /// Who is connected.
    pub user: UserId,
    /// Where.
    pub gateway: GatewayId,
    /// Grows when a snapshot is wanted; none in a tombstone.
    pub ask: Option<i64>,
}

/// What a partition of which topic has been read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// `location-events`: the positions.
    Reports,
    /// `friend-lists`.
    Lists,
    /// `sessions`.
    Sessions,
    /// `gateways`.
    Heartbeats,
}

/// What wakes the engine.
#[derive(Debug)]
pub enum Wake {
    /// Reports.
    Reports(Arc<Reports>),
    /// Reports of the older part of the log; see [`Decider::newest_first`](crate::decider::Decider::newest_first).
    OlderReports(Arc<Reports>),
    /// That was the older part of the log.
    OlderAreRead,
    /// Friend lists.
    Lists(Vec<Listed>),
    /// Session records.
    Sessions(Vec<Sessioned>),
    /// A gateway's heartbeat with its append time, or its tombstone.
    Heartbeat(GatewayId, Option<TimestampMs>),
    /// A partition was read to its end, in the reading that has this generation.
    CaughtUp(Source, i32, u64),
    /// The group or its coordinator said something.
    Membership(MembershipEvent),
}

impl From<Vec<Reported>> for Wake {
    fn from(reports: Vec<Reported>) -> Wake {
        Wake::Reports(Arc::new(Reports { reports, appended_at: None }))
    }
}

/// The ways to the threads of all engines of this process. Each has its own partitions of viewers, and hears all reports.
/// An engine whose thread has ended hears nothing, and the others go on: at a stop they end one after the other.
#[derive(Clone)]
pub(crate) struct Engines {
    wakes: Arc<[SyncSender<Wake>]>,
    /// What can wait.
    patient: Arc<[SyncSender<Wake>]>,
    /// Where the viewers of a partition are, as long as anything is held of them, or will be.
    placed: Arc<Mutex<BTreeMap<i32, Placed>>>,
}

#[derive(Clone, Copy)]
struct Placed {
    engine: usize,
    /// By the word of the group.
    is_owned: bool,
}

/// Where an engine's wakes come out.
pub(crate) struct Inbox {
    pub wakes: mpsc::Receiver<Wake>,
    /// What can wait until there is nothing else, but not for ever.
    pub patient: mpsc::Receiver<Wake>,
}

impl Engines {
    /// So many, with their inboxes.
    pub fn new(count: usize) -> (Engines, Vec<Inbox>) {
        let channels = || (0..count).map(|_| mpsc::sync_channel(WAITING_MAX)).unzip();
        let (wakes, wakes_inboxes): (Vec<_>, Vec<_>) = channels();
        let (patient, patient_inboxes): (Vec<_>, Vec<_>) = channels();
        let inboxes = wakes_inboxes.into_iter().zip(patient_inboxes);
        let inboxes = inboxes.map(|(wakes, patient)| Inbox { wakes, patient }).collect();
        (Engines { wakes: wakes.into(), patient: patient.into(), placed: Arc::default() }, inboxes)
    }

    pub fn count(&self) -> usize {
        self.wakes.len()
    }

    /// Whose the viewers of a partition are, if anybody's.
    pub fn of(&self, partition: i32) -> Option<usize> {
        self.lock().get(&partition).map(|placed| placed.engine)
    }

    /// Nothing is held of a partition any more: the next time it may be another engine's. Unless the group has given it to us
    /// again, and that engine does not know it yet.
    pub fn released(&self, partition: i32) {
        let mut placed = self.lock();
        if placed.get(&partition).is_some_and(|placed| !placed.is_owned) {
            placed.remove(&partition);
        }
    }

    /// Wakes one engine, and waits for room.
    pub fn wake(&self, engine: usize, wake: Wake) {
        drop(self.wakes[engine].send(wake));
    }

    /// Wakes every engine.
    pub fn wake_all(&self, wake: impl Fn() -> Wake) {
        (0..self.count()).for_each(|engine| self.wake(engine, wake()));
    }

    /// Wakes every engine when it has nothing else to do.
    pub fn wake_all_patiently(&self, wake: impl Fn() -> Wake) {
        self.patient.iter().for_each(|engine| drop(engine.send(wake())));
    }

    /// Tells the engines what the group or its coordinator said: each what concerns its partitions.
    pub fn tell(&self, event: MembershipEvent) {
        match event {
            MembershipEvent::Gained(partitions) => {
                partitions.iter().for_each(|partition| self.place(*partition));
                self.share_out(&partitions, MembershipEvent::Gained);
            }
            MembershipEvent::Lost(partitions) => {
                self.take_away(&partitions);
                self.share_out(&partitions, MembershipEvent::Lost);
            }
            MembershipEvent::Claimed(partition, _)
            | MembershipEvent::ClaimRefused(partition, _)
            | MembershipEvent::EpochSeen(partition, _) => {
                if let Some(engine) = self.of(partition) {
                    self.wake(engine, Wake::Membership(event));
                }
            }
        }
    }

    /// Gives a partition to the engine that has the fewest, unless one has it still.
    fn place(&self, partition: i32) {
        let mut placed = self.lock();
        let held = |engine: &usize| placed.values().filter(|placed| placed.engine == *engine).count();
        let engine = (0..self.count()).min_by_key(held).unwrap_or_default();
        placed.entry(partition).or_insert(Placed { engine, is_owned: true }).is_owned = true;
    }

    fn take_away(&self, partitions: &[i32]) {
        let mut placed = self.lock();
        for partition in partitions {
            if let Some(placed) = placed.get_mut(partition) {
                placed.is_owned = false;
            }
        }
    }

    /// Also tells who gets none: the group has said what is ours.
    fn share_out(&self, partitions: &[i32], event: impl Fn(Vec<i32>) -> MembershipEvent) {
        for engine in 0..self.count() {
            let own = partitions.iter().copied().filter(|partition| self.of(*partition) == Some(engine));
            self.wake(engine, Wake::Membership(event(own.collect())));
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<i32, Placed>> {
        self.placed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gained(inboxes: &[Inbox]) -> Vec<Vec<i32>> {
        let gained = |inbox: &Inbox| match inbox.wakes.try_recv() {
            Ok(Wake::Membership(MembershipEvent::Gained(partitions))) => partitions,
            other => panic!("{other:?}"),
        };
        inboxes.iter().map(gained).collect()
    }

    #[test]
    fn each_engine_is_told_of_its_own_partitions_and_that_it_was_told() {
        let (engines, inboxes) = Engines::new(3);
        // What one of two processors gets: they must not all be one engine's.
        engines.tell(MembershipEvent::Gained(vec![0, 3, 6, 9]));
        assert_eq!(gained(&inboxes), [vec![0, 9], vec![3], vec![6]]);
        engines.tell(MembershipEvent::ClaimRefused(3, String::new()));
        assert!(inboxes[0].wakes.try_recv().is_err() && inboxes[2].wakes.try_recv().is_err());
        assert!(matches!(inboxes[1].wakes.try_recv(), Ok(Wake::Membership(MembershipEvent::ClaimRefused(3, _)))));

        // What is lost is held for a while; what comes back meanwhile belongs where it was.
        engines.tell(MembershipEvent::Lost(vec![0, 9]));
        inboxes.iter().for_each(|inbox| drop(inbox.wakes.try_recv()));
        engines.released(9);
        engines.tell(MembershipEvent::Gained(vec![0, 12]));
        assert_eq!(gained(&inboxes), [vec![0, 12], vec![], vec![]]);
        engines.tell(MembershipEvent::EpochSeen(9, nearby_schemas::Epoch(1)));
        assert!(inboxes.iter().all(|inbox| inbox.wakes.try_recv().is_err()), "nobody's any more");
    }

    #[test]
    fn what_comes_back_while_it_is_being_released_is_where_its_engine_waits_for_it() {
        let (engines, inboxes) = Engines::new(2);
        engines.tell(MembershipEvent::Gained(vec![0, 1]));
        engines.tell(MembershipEvent::Lost(vec![1]));
        // The engine has seen the successor's epoch and is about to say so.
        engines.tell(MembershipEvent::Gained(vec![1]));
        engines.released(1);
        assert_eq!(engines.of(1), Some(1), "lists and sessions have to find the way");
        let told = inboxes[1]
            .wakes
            .try_iter()
            .filter(|wake| matches!(wake, Wake::Membership(MembershipEvent::Gained(g)) if g == &[1]));
        assert_eq!(told.count(), 2);
        engines.tell(MembershipEvent::Lost(vec![1]));
        engines.released(1);
        assert_eq!(engines.of(1), None);
    }

    #[test]
    fn the_others_go_on_when_one_has_ended() {
        let (engines, mut inboxes) = Engines::new(2);
        engines.tell(MembershipEvent::Gained(vec![0, 1]));
        drop(inboxes.remove(0));
        engines.wake_all(|| Wake::CaughtUp(Source::Reports, 0, 0));
        engines.tell(MembershipEvent::Lost(vec![0, 1]));
        let heard: Vec<Wake> = inboxes[0].wakes.try_iter().collect();
        assert!(matches!(
            &heard[..],
            [Wake::Membership(_), Wake::CaughtUp(..), Wake::Membership(MembershipEvent::Lost(lost))] if lost == &[1]
        ));
    }
}
