//! Everything that can wake an engine's thread, in one closed list, and the ways to these threads.

use nearby_schemas::{GatewayId, Place, TimestampMs, UserId};
use nearby_service::membership::MembershipEvent;
use std::sync::Arc;
use std::sync::mpsc::{self, SyncSender};

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
#[derive(Clone)]
pub(crate) struct Engines {
    wakes: Arc<[SyncSender<Wake>]>,
    /// What can wait.
    patient: Arc<[SyncSender<Wake>]>,
}

/// Where an engine's wakes come out.
pub(crate) struct Inbox {
    pub wakes: mpsc::Receiver<Wake>,
    /// What can wait until there is nothing else, but not for ever.
    pub patient: mpsc::Receiver<Wake>,
}

/// The thread of an engine has ended, and so will everything around it.
pub(crate) struct Ended;

impl Engines {
    /// So many, with their inboxes.
    pub fn new(count: usize) -> (Engines, Vec<Inbox>) {
        let channels = || (0..count).map(|_| mpsc::sync_channel(WAITING_MAX)).unzip();
        let (wakes, wakes_inboxes): (Vec<_>, Vec<_>) = channels();
        let (patient, patient_inboxes): (Vec<_>, Vec<_>) = channels();
        let inboxes = wakes_inboxes.into_iter().zip(patient_inboxes);
        let inboxes = inboxes.map(|(wakes, patient)| Inbox { wakes, patient }).collect();
        (Engines { wakes: wakes.into(), patient: patient.into() }, inboxes)
    }

    pub fn count(&self) -> usize {
        self.wakes.len()
    }

    /// Whose the viewers of a partition are.
    pub fn of(&self, partition: i32) -> usize {
        usize::try_from(partition).unwrap_or(0) % self.count()
    }

    /// Wakes one engine, and waits for room.
    pub fn wake(&self, engine: usize, wake: Wake) -> Result<(), Ended> {
        self.wakes[engine].send(wake).map_err(|_| Ended)
    }

    /// Wakes every engine.
    pub fn wake_all(&self, wake: impl Fn() -> Wake) -> Result<(), Ended> {
        (0..self.count()).try_for_each(|engine| self.wake(engine, wake()))
    }

    /// Wakes every engine when it has nothing else to do.
    pub fn wake_all_patiently(&self, wake: impl Fn() -> Wake) -> Result<(), Ended> {
        self.patient.iter().try_for_each(|engine| engine.send(wake()).map_err(|_| Ended))
    }

    /// Tells the engines what the group or its coordinator said: each what concerns its partitions.
    pub fn tell(&self, event: MembershipEvent) {
        let told = match event {
            MembershipEvent::Gained(partitions) => self.share_out(&partitions, MembershipEvent::Gained),
            MembershipEvent::Lost(partitions) => self.share_out(&partitions, MembershipEvent::Lost),
            MembershipEvent::Claimed(partition, _)
            | MembershipEvent::ClaimRefused(partition, _)
            | MembershipEvent::EpochSeen(partition, _) => self.wake(self.of(partition), Wake::Membership(event)),
        };
        // An engine's thread has ended: so will the member.
        drop(told);
    }

    /// Also tells who gets none: the group has said what is ours.
    fn share_out(&self, partitions: &[i32], event: impl Fn(Vec<i32>) -> MembershipEvent) -> Result<(), Ended> {
        (0..self.count()).try_for_each(|engine| {
            let own = partitions.iter().copied().filter(|partition| self.of(*partition) == engine);
            self.wake(engine, Wake::Membership(event(own.collect())))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_engine_is_told_of_its_own_partitions_and_that_it_was_told() {
        let (engines, inboxes) = Engines::new(3);
        engines.tell(MembershipEvent::Gained(vec![0, 1, 3, 6]));
        let gained: Vec<Vec<i32>> = inboxes
            .iter()
            .map(|inbox| match inbox.wakes.try_recv() {
                Ok(Wake::Membership(MembershipEvent::Gained(partitions))) => partitions,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(gained, [vec![0, 3, 6], vec![1], vec![]]);
        engines.tell(MembershipEvent::ClaimRefused(4, String::new()));
        assert!(inboxes[0].wakes.try_recv().is_err() && inboxes[2].wakes.try_recv().is_err());
        assert!(matches!(inboxes[1].wakes.try_recv(), Ok(Wake::Membership(MembershipEvent::ClaimRefused(4, _)))));
    }
}
