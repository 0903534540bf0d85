//! Everything that can wake the engine's thread, in one closed list.

use nearby_schemas::{GatewayId, Place, TimestampMs, UserId};
use nearby_service::membership::MembershipEvent;
use std::sync::mpsc;

/// Groups of records that may wait for the engine; readers stop reading above that.
const WAITING_MAX: usize = 256;

/// A report, as the engine takes it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reported {
    pub user: UserId,
    /// min(reported, appended), rule R2.
    pub time: TimestampMs,
    pub place: Option<Place>,
}

/// A friend list or its tombstone.
#[derive(Debug)]
pub(crate) struct Listed {
    pub partition: i32,
    pub viewer: UserId,
    pub friends: Option<Vec<UserId>>,
}

/// A session or its tombstone.
#[derive(Debug)]
pub(crate) struct Sessioned {
    pub partition: i32,
    pub user: UserId,
    pub gateway: GatewayId,
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
}

/// What wakes the engine.
#[derive(Debug)]
pub(crate) enum Wake {
    Reports(Vec<Reported>),
    Lists(Vec<Listed>),
    Sessions(Vec<Sessioned>),
    /// A gateway's heartbeat with its append time, or its tombstone.
    Heartbeat(GatewayId, Option<TimestampMs>),
    /// A partition was read to its end, in the reading that has this generation.
    CaughtUp(Source, i32, u64),
    Membership(MembershipEvent),
}

pub(crate) fn channel() -> (mpsc::SyncSender<Wake>, mpsc::Receiver<Wake>) {
    mpsc::sync_channel(WAITING_MAX)
}
