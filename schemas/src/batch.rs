//! `FriendMovedBatch`: what the viewers on one gateway are told. The processor writes it with
//! [`BatchEncoder`](crate::batch_encoder::BatchEncoder); reading is left to the codec.

use crate::codec::{Invalid, Record};
use crate::codecs::RecordType;
use crate::nearness::Place;
use crate::records::check_user;
use crate::{Epoch, TimestampMs, UserId};
use serde::{Deserialize, Serialize};

/// A batch is cut when it reaches this size; only a single snapshot may be larger.
pub const BATCH_BYTES_MAX: usize = 512 * 1024;

/// What the viewers on one gateway are told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FriendMovedBatch {
    /// The processor's clock when the batch was closed.
    pub emitted_at: TimestampMs,
    /// One part per partition of viewers.
    pub sections: Vec<Section>,
}

/// Events of viewers in one partition, in order, by one owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Section {
    /// Partition of the viewers.
    pub partition: i32,
    /// Of the owner.
    pub epoch: Epoch,
    /// In the order in which they happened.
    pub events: Vec<Event>,
}

/// One thing that viewers are told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A friend is at a place.
    FriendMoved(FriendMoved),
    /// A friend is no longer seen.
    FriendLeft(FriendLeft),
    /// The viewer is at a new place.
    ViewerMoved(ViewerMoved),
    /// All that the viewer sees.
    ViewerSnapshot(ViewerSnapshot),
}

/// A friend is at a place, told to each viewer who sees the friend now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FriendMoved {
    /// Who moved.
    pub friend: UserId,
    /// Latitude in 1e-7 degree.
    pub lat_e7: i32,
    /// Longitude in 1e-7 degree.
    pub lon_e7: i32,
    /// Time of the report.
    pub updated_at: TimestampMs,
    /// Who is told.
    pub viewers: Vec<ViewerDistance>,
}

/// A viewer and how far away the friend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewerDistance {
    /// Who is told.
    pub viewer: UserId,
    /// Decimetres.
    pub distance_dm: i32,
}

/// A friend is no longer seen, for the same reason by each of the viewers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FriendLeft {
    /// Who left.
    pub friend: UserId,
    /// Why.
    pub reason: LeftReason,
    /// Who is told.
    pub viewers: Vec<UserId>,
}

/// Why a friend is no longer seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum LeftReason {
    /// Written by a newer processor.
    Unknown,
    /// Farther away than the radius.
    Distance,
    /// No report for too long.
    Inactive,
    /// The friend stopped sharing.
    Unshared,
    /// No longer in the viewer's list.
    Unfriended,
    /// It is the viewer who is inactive or does not share.
    OwnLocation,
}

impl LeftReason {
    /// The word in a client's frame.
    pub fn as_str(self) -> &'static str {
        match self {
            LeftReason::Unknown => "unknown",
            LeftReason::Distance => "distance",
            LeftReason::Inactive => "inactive",
            LeftReason::Unshared => "unshared",
            LeftReason::Unfriended => "unfriended",
            LeftReason::OwnLocation => "own_location",
        }
    }
}

/// The viewer is at a new place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewerMoved {
    /// Who.
    pub viewer: UserId,
    /// Latitude in 1e-7 degree.
    pub lat_e7: i32,
    /// Longitude in 1e-7 degree.
    pub lon_e7: i32,
}

/// All that the viewer sees; replaces what was told before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewerSnapshot {
    /// Who.
    pub viewer: UserId,
    /// Where the viewer is, when known and shared.
    pub place: Option<Place>,
    /// The friends within the radius.
    pub friends: Vec<SeenFriend>,
}

/// A friend in a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenFriend {
    /// Who.
    pub friend: UserId,
    /// Latitude in 1e-7 degree.
    pub lat_e7: i32,
    /// Longitude in 1e-7 degree.
    pub lon_e7: i32,
    /// Time of the friend's latest report.
    pub updated_at: TimestampMs,
    /// Decimetres from the viewer.
    pub distance_dm: i32,
}

impl Record for FriendMovedBatch {
    const TYPE: RecordType = RecordType::FriendMovedBatch;
    const SCHEMA: &'static str = include_str!("../avro/friend_moved_batch.avsc");
    const HISTORY: &'static [&'static str] = &[include_str!("../avro/history/friend_moved_batch.v1.avsc")];

    fn check(&self) -> Result<(), Invalid> {
        self.sections.iter().flat_map(|section| &section.events).try_for_each(check_event)
    }
}

fn check_event(event: &Event) -> Result<(), Invalid> {
    let place = |lat_e7, lon_e7| Place { lat_e7, lon_e7 }.check().map(drop).map_err(|_| Invalid("place"));
    match event {
        Event::FriendMoved(moved) => {
            check_user(moved.friend)?;
            place(moved.lat_e7, moved.lon_e7)
        }
        Event::FriendLeft(left) => check_user(left.friend),
        Event::ViewerMoved(moved) => {
            check_user(moved.viewer)?;
            place(moved.lat_e7, moved.lon_e7)
        }
        Event::ViewerSnapshot(snapshot) => {
            check_user(snapshot.viewer)?;
            snapshot.friends.iter().try_for_each(|seen| place(seen.lat_e7, seen.lon_e7))
        }
    }
}

impl FriendMovedBatch {
    /// Every viewer that the batch tells something, with the viewer's partition; a viewer may come up more than once.
    pub fn viewers(&self) -> impl Iterator<Item = (i32, UserId)> + '_ {
        self.sections.iter().flat_map(|section| {
            let viewers = section.events.iter().flat_map(|event| -> Box<dyn Iterator<Item = UserId>> {
                match event {
                    Event::FriendMoved(moved) => Box::new(moved.viewers.iter().map(|told| told.viewer)),
                    Event::FriendLeft(left) => Box::new(left.viewers.iter().copied()),
                    Event::ViewerMoved(moved) => Box::new(std::iter::once(moved.viewer)),
                    Event::ViewerSnapshot(snapshot) => Box::new(std::iter::once(snapshot.viewer)),
                }
            });
            viewers.map(|viewer| (section.partition, viewer))
        })
    }
}
