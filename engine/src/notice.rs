//! What the engine says.

use nearby_schemas::batch::{LeftReason, ViewerSnapshot};
use nearby_schemas::{Place, TimestampMs, UserId};

/// A gateway by number; [`Engine::gateway_id`](crate::Engine::gateway_id) knows its name. Numbers are of one engine, count
/// from 0 in the order in which gateways were first mentioned, and are never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GatewayIndex(pub u32);

/// Where a notice goes: one viewer on one gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// On which gateway.
    pub gateway: GatewayIndex,
    /// Partition of the viewer, whose owner speaks.
    pub partition: i32,
    /// Who is told.
    pub viewer: UserId,
}

/// One viewer on one gateway is told something. Notices of one report follow one another directly, but
/// for those to the watchers of a hub's stand-ins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A friend is near, at a place (R3, R4, R11).
    FriendMoved {
        /// Who is told.
        to: Address,
        /// Who is near.
        friend: UserId,
        /// Where the friend is.
        place: Place,
        /// Time of the friend's report.
        updated_at: TimestampMs,
        /// From the viewer to the friend, in decimetres.
        distance_dm: i32,
    },
    /// A friend is no longer seen.
    FriendLeft {
        /// Who is told.
        to: Address,
        /// Who is no longer seen.
        friend: UserId,
        /// Why.
        reason: LeftReason,
    },
    /// The viewer's own place, from which the gateway counts distances (R4).
    ViewerMoved {
        /// Whose gateway is told.
        to: Address,
        /// Where the viewer is.
        place: Place,
    },
    /// All that the viewer sees (R5).
    Snapshot {
        /// Who is told.
        to: Address,
        /// Boxed, because moves are a thousand times as frequent and half as large.
        snapshot: Box<ViewerSnapshot>,
    },
}
