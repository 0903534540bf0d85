//! `FriendMovedBatch`: what the viewers on one gateway are told, and the encoder that writes it in one pass.
//!
//! apache-avro's serde writer costs about as much as the rest of the processor together on this record, so the processor
//! writes its bytes with [`BatchEncoder`]; a property test holds them equal to apache-avro's. Reading is left to the codec.

use crate::codec::{Codec, Invalid, Record};
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

/// Writes one batch while its events happen. Consecutive notices of the same move, or of the same leave, to viewers of one
/// partition become one event with a list of viewers.
pub struct BatchEncoder {
    header: Vec<u8>,
    /// Those of earlier batches are kept, empty, for their memory.
    sections: Vec<SectionEncoder>,
    /// Index of the latest section, by partition.
    section_of: Vec<Option<usize>>,
    bytes: usize,
}

/// Of a number in Avro.
const LONG_BYTES_MAX: usize = 10;
/// An empty section keeps so much memory for the next batch.
const KEPT_BYTES_MAX: usize = 64 * 1024;

#[derive(Default)]
struct SectionEncoder {
    partition: i32,
    epoch: Epoch,
    /// Closed events, and the head of the open one.
    events: Vec<u8>,
    event_count: i64,
    open: Option<OpenEvent>,
    /// Entries of the open event's viewers.
    viewers: Vec<u8>,
    viewer_count: i64,
}

/// The event to which the next viewer may still be added.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OpenEvent {
    Moved { friend: UserId, place: Place, updated_at: TimestampMs },
    Left { friend: UserId, reason: LeftReason },
}

impl BatchEncoder {
    /// An empty batch; the codec lends its header.
    pub fn new(codec: &Codec<FriendMovedBatch>) -> BatchEncoder {
        BatchEncoder { header: codec.header().to_vec(), sections: Vec::new(), section_of: Vec::new(), bytes: 0 }
    }

    /// Whether nothing has been written.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Bytes written so far, within a few per cent.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Tells `viewer` that `friend` is at `place`.
    pub fn friend_moved(
        &mut self,
        (partition, epoch): (i32, Epoch),
        (friend, place, updated_at): (UserId, Place, TimestampMs),
        viewer: ViewerDistance,
    ) {
        self.grow(partition, epoch, |section| {
            section.open(OpenEvent::Moved { friend, place, updated_at });
            put_long(&mut section.viewers, viewer.viewer.0);
            put_long(&mut section.viewers, i64::from(viewer.distance_dm));
            section.viewer_count += 1;
        });
    }

    /// Tells `viewer` that `friend` is no longer seen.
    pub fn friend_left(
        &mut self,
        (partition, epoch): (i32, Epoch),
        (friend, reason): (UserId, LeftReason),
        viewer: UserId,
    ) {
        self.grow(partition, epoch, |section| {
            section.open(OpenEvent::Left { friend, reason });
            put_long(&mut section.viewers, viewer.0);
            section.viewer_count += 1;
        });
    }

    /// Tells the gateway where `viewer` is.
    pub fn viewer_moved(&mut self, (partition, epoch): (i32, Epoch), viewer: UserId, place: Place) {
        self.grow(partition, epoch, |section| {
            section.close();
            section.event_count += 1;
            put_long(&mut section.events, 2);
            put_long(&mut section.events, viewer.0);
            put_place(&mut section.events, place);
        });
    }

    /// Tells `viewer` all that is seen.
    pub fn viewer_snapshot(&mut self, (partition, epoch): (i32, Epoch), snapshot: &ViewerSnapshot) {
        self.grow(partition, epoch, |section| {
            section.close();
            section.event_count += 1;
            let events = &mut section.events;
            put_long(events, 3);
            put_long(events, snapshot.viewer.0);
            put_long(events, i64::from(snapshot.place.is_some()));
            if let Some(place) = snapshot.place {
                put_place(events, place);
            }
            if !snapshot.friends.is_empty() {
                put_long(events, snapshot.friends.len().cast_signed() as i64);
            }
            for seen in &snapshot.friends {
                put_long(events, seen.friend.0);
                put_place(events, Place { lat_e7: seen.lat_e7, lon_e7: seen.lon_e7 });
                put_long(events, seen.updated_at.0);
                put_long(events, i64::from(seen.distance_dm));
            }
            put_long(events, 0);
        });
    }

    /// The finished record; the encoder is empty again.
    pub fn finish(&mut self, emitted_at: TimestampMs) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.bytes + 64);
        bytes.extend_from_slice(&self.header);
        put_long(&mut bytes, emitted_at.0);
        let written = self.sections.iter().filter(|section| section.event_count > 0).count();
        if written > 0 {
            put_long(&mut bytes, written.cast_signed() as i64);
        }
        for section in self.sections.iter_mut().filter(|section| section.event_count > 0) {
            section.close();
            put_long(&mut bytes, i64::from(section.partition));
            put_long(&mut bytes, section.epoch.0);
            put_long(&mut bytes, section.event_count);
            bytes.extend_from_slice(&section.events);
            put_long(&mut bytes, 0);
            section.clear();
        }
        put_long(&mut bytes, 0);
        self.bytes = 0;
        // Epochs that have passed leave sections behind.
        if self.sections.len() > self.section_of.len() {
            self.sections.clear();
            self.section_of.clear();
        }
        bytes
    }

    /// Writes to the section of a partition and keeps the size.
    fn grow(&mut self, partition: i32, epoch: Epoch, write: impl FnOnce(&mut SectionEncoder)) {
        let place = usize::try_from(partition).expect("Kafka counts partitions from 0");
        if self.section_of.len() <= place {
            self.section_of.resize(place + 1, None);
        }
        let index = match self.section_of[place] {
            Some(index) if self.sections[index].epoch == epoch => index,
            _ => {
                self.sections.push(SectionEncoder { partition, epoch, ..SectionEncoder::default() });
                *self.section_of[place].insert(self.sections.len() - 1)
            }
        };
        let section = &mut self.sections[index];
        let before = section.bytes();
        write(section);
        self.bytes += section.bytes() - before;
    }
}

impl SectionEncoder {
    fn bytes(&self) -> usize {
        self.events.len() + self.viewers.len()
    }

    /// Makes it empty; `close` has emptied the rest.
    fn clear(&mut self) {
        self.event_count = 0;
        self.events.clear();
        self.events.shrink_to(KEPT_BYTES_MAX);
        self.viewers.shrink_to(KEPT_BYTES_MAX);
    }

    /// Makes `event` the open one; writes its head if it was not already.
    fn open(&mut self, event: OpenEvent) {
        if self.open == Some(event) {
            return;
        }
        self.close();
        self.open = Some(event);
        self.event_count += 1;
        match event {
            OpenEvent::Moved { friend, place, updated_at } => {
                put_long(&mut self.events, 0);
                put_long(&mut self.events, friend.0);
                put_place(&mut self.events, place);
                put_long(&mut self.events, updated_at.0);
            }
            OpenEvent::Left { friend, reason } => {
                put_long(&mut self.events, 1);
                put_long(&mut self.events, friend.0);
                put_long(&mut self.events, reason as i64);
            }
        }
    }

    /// Writes the viewers of the open event behind its head.
    fn close(&mut self) {
        if self.open.take().is_some() {
            put_long(&mut self.events, self.viewer_count);
            self.events.append(&mut self.viewers);
            put_long(&mut self.events, 0);
            self.viewer_count = 0;
        }
    }
}

fn put_place(bytes: &mut Vec<u8>, place: Place) {
    put_long(bytes, i64::from(place.lat_e7));
    put_long(bytes, i64::from(place.lon_e7));
}

/// Avro's int and long: zigzag, then seven bits a byte, least significant first.
fn put_long(bytes: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)).cast_unsigned();
    // Room is asked for once, and a copy of a known length takes no call.
    let (mut encoded, mut length) = ([0; LONG_BYTES_MAX], 1);
    for byte in &mut encoded {
        *byte = (rest & 0x7f) as u8;
        rest >>= 7;
        if rest == 0 {
            break;
        }
        *byte |= 0x80;
        length += 1;
    }
    let before = bytes.len();
    bytes.extend_from_slice(&encoded);
    bytes.truncate(before + length);
}
