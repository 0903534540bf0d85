//! Everything that can wake the engine's thread, in one closed list.

use nearby_schemas::{GatewayId, Place, TimestampMs, UserId};
use nearby_service::membership::MembershipEvent;
use std::sync::mpsc;

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
    /// Reports, in the order of their partitions.
    Reports(Vec<Reported>),
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

pub(crate) fn channel() -> (mpsc::SyncSender<Wake>, mpsc::Receiver<Wake>) {
    mpsc::sync_channel(WAITING_MAX)
}
