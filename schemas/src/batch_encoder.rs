//! Writes [`FriendMovedBatch`]es for many gateways at once.
//!
//! apache-avro's serde writer costs about as much as the rest of the processor together on this record, so its bytes are
//! written here; a property test holds them equal to apache-avro's.
//!
//! With a thousand gateways and some partitions of viewers each, writing each notice at once to where it will be in the batch
//! means a miss of the cache for each of several buffers. So what happened is encoded once, whoever hears it (a head), each
//! gateway's [`Notes`] say in order who hears it, 24 bytes a viewer, and a batch is written in one go when it is closed.

use crate::batch::{FriendMovedBatch, LeftReason, ViewerDistance, ViewerSnapshot};
use crate::codec::Codec;
use crate::nearness::Place;
use crate::varint::{self, LONG_BYTES_MAX};
use crate::{Epoch, TimestampMs, UserId};

/// Heads that may wait for their batches to be closed; each takes 32 bytes.
pub const HEADS_MAX: usize = 800_000;

/// The longest head: which event, a user, a place, a time.
const HEAD_BYTES_MAX: usize = 1 + LONG_BYTES_MAX + 5 + 5 + LONG_BYTES_MAX;
/// A viewer, a distance, and the ends of a list that has but this one.
const VIEWER_BYTES_MAX: usize = LONG_BYTES_MAX + 5 + 2;
/// Viewers whose number takes one byte; more of the same event follow in a block of their own, as Avro allows.
const BLOCK_VIEWERS_MAX: u8 = 63;
/// A section without its events: partition, epoch, number of events, end.
const SECTION_BYTES_MAX: usize = 3 * LONG_BYTES_MAX + 1;
/// Empty notes keep so much memory for the next batch.
const KEPT_NOTES_MAX: usize = 16 * 1024;
const KEPT_SNAPSHOT_BYTES_MAX: usize = 64 * 1024;

/// Writes the batches; see the module's documentation.
pub struct BatchEncoder {
    header: Vec<u8>,
    /// What happened since [`Self::forget`], in order.
    heads: Vec<Head>,
    /// The latest head's, if others may hear of it.
    latest: Option<Happened>,
    /// By partition of viewers.
    epochs: Vec<Option<Epoch>>,
    /// By partition: of the batch that is being written.
    sections: Vec<Section>,
    /// Indices of its notes, by partition and in order.
    order: Vec<u32>,
}

/// What the viewers on one gateway are to be told, in order, until the batch is closed.
#[derive(Default)]
pub struct Notes {
    notes: Vec<Note>,
    /// Snapshots have no head: nobody else hears of them. Encoded.
    snapshots: Vec<u8>,
    bytes: usize,
}

/// The beginning of an event, or all of it if it has no list of viewers. Half a line of the cache: with many gateways, each look
/// at a head is at one that was not looked at lately.
#[repr(align(32))]
struct Head {
    bytes: [u8; HEAD_BYTES_MAX],
    length: u8,
}

/// A head while it is written, with room behind it: a copy of a known length takes no call.
struct HeadWriter {
    bytes: [u8; HEAD_BYTES_MAX + LONG_BYTES_MAX],
    length: usize,
}

/// Place of the event in the schema's union.
#[derive(Clone, Copy)]
enum Kind {
    Moved = 0,
    Left = 1,
    ViewerMoved = 2,
    ViewerSnapshot = 3,
}

/// What many may hear of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Happened {
    Moved { friend: UserId, place: Place, updated_at: TimestampMs },
    Left { friend: UserId, reason: LeftReason },
}

#[derive(Clone, Copy)]
enum Note {
    Told { partition: u32, head: u32, viewer: UserId, distance_dm: i32 },
    Snapshot { partition: u32, start: u32, end: u32 },
}

#[derive(Clone, Copy, Default)]
struct Section {
    notes: u32,
    events: i64,
    /// Where its notes end in the order.
    end: u32,
    /// Head of its latest event.
    head: Option<u32>,
}

impl Notes {
    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.notes.is_empty()
    }

    /// Bytes of the events, at most; up to a third too many where each viewer is told of something else.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn push(&mut self, note: Note, bytes: usize) {
        self.notes.push(note);
        self.bytes += bytes;
    }

    fn clear(&mut self) {
        self.notes.clear();
        self.notes.shrink_to(KEPT_NOTES_MAX);
        self.snapshots.clear();
        self.snapshots.shrink_to(KEPT_SNAPSHOT_BYTES_MAX);
        self.bytes = 0;
    }
}

impl BatchEncoder {
    /// Has no epochs yet; the codec lends the header of a record.
    pub fn new(codec: &Codec<FriendMovedBatch>) -> BatchEncoder {
        let header = codec.header().to_vec();
        let (heads, epochs, sections, order) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        BatchEncoder { header, heads, latest: None, epochs, sections, order }
    }

    /// From now on sections have these epochs. Partitions of notes that are still to be written must keep theirs.
    pub fn set_epochs(&mut self, epochs: impl IntoIterator<Item = (i32, Epoch)>) {
        self.epochs.clear();
        for (partition, epoch) in epochs {
            let place = usize::try_from(partition).expect("Kafka counts partitions from 0");
            self.epochs.resize(self.epochs.len().max(place + 1), None);
            self.epochs[place] = Some(epoch);
        }
        self.sections.resize(self.epochs.len(), Section::default());
    }

    /// The section of a partition's viewers, if the partition has an epoch.
    #[inline]
    pub fn section(&self, partition: i32) -> Option<SectionIndex> {
        let place = u32::try_from(partition).ok()?;
        self.epochs.get(place as usize)?.map(|_| SectionIndex(place))
    }

    /// Heads since [`Self::forget`]; there must not be more than [`HEADS_MAX`].
    pub fn heads(&self) -> usize {
        self.heads.len()
    }

    /// Every batch is closed: what happened is told.
    pub fn forget(&mut self) {
        self.heads.clear();
        self.latest = None;
    }

    /// Tells `viewer` that `friend` is at `place`.
    #[inline]
    pub fn friend_moved(
        &mut self,
        notes: &mut Notes,
        SectionIndex(partition): SectionIndex,
        (friend, place, updated_at): (UserId, Place, TimestampMs),
        ViewerDistance { viewer, distance_dm }: ViewerDistance,
    ) {
        let happened = Happened::Moved { friend, place, updated_at };
        if self.latest != Some(happened) {
            self.latest = Some(happened);
            self.head(Kind::Moved, |head| {
                head.put(friend.0);
                head.put_place(place);
                head.put(updated_at.0);
            });
        }
        self.tell(notes, partition, viewer, distance_dm);
    }

    /// Tells `viewer` that `friend` is no longer seen.
    pub fn friend_left(
        &mut self,
        notes: &mut Notes,
        SectionIndex(partition): SectionIndex,
        (friend, reason): (UserId, LeftReason),
        viewer: UserId,
    ) {
        let happened = Happened::Left { friend, reason };
        if self.latest != Some(happened) {
            self.latest = Some(happened);
            self.head(Kind::Left, |head| {
                head.put(friend.0);
                head.put(reason as i64);
            });
        }
        self.tell(notes, partition, viewer, 0);
    }

    /// Tells the gateway where `viewer` is.
    pub fn viewer_moved(
        &mut self,
        notes: &mut Notes,
        SectionIndex(partition): SectionIndex,
        viewer: UserId,
        place: Place,
    ) {
        self.latest = None;
        self.head(Kind::ViewerMoved, |head| {
            head.put(viewer.0);
            head.put_place(place);
        });
        self.tell(notes, partition, viewer, 0);
    }

    /// Tells `viewer` all that is seen.
    pub fn viewer_snapshot(
        &mut self,
        notes: &mut Notes,
        SectionIndex(partition): SectionIndex,
        snapshot: &ViewerSnapshot,
    ) {
        self.latest = None;
        let events = &mut notes.snapshots;
        let start = events.len();
        put_long(events, Kind::ViewerSnapshot as i64);
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
        let end = events.len();
        let place = |place: usize| u32::try_from(place).expect("a batch is closed long before 4 GiB");
        notes.push(Note::Snapshot { partition, start: place(start), end: place(end) }, end - start);
    }

    /// The record; the notes are empty again. One section per partition that is told something, in order of their numbers.
    pub fn finish(&mut self, notes: &mut Notes, emitted_at: TimestampMs) -> Vec<u8> {
        self.sort(&notes.notes);
        let written = self.sections.iter().filter(|section| section.notes > 0).count();
        let room = self.header.len() + LONG_BYTES_MAX * 2 + 1 + written * SECTION_BYTES_MAX + notes.bytes;
        // A copy of a known length goes beyond the end of what it copies.
        let mut bytes = Vec::with_capacity(room + HEAD_BYTES_MAX);
        bytes.extend_from_slice(&self.header);
        put_long(&mut bytes, emitted_at.0);
        if written > 0 {
            put_long(&mut bytes, written.cast_signed() as i64);
        }
        for (partition, (section, epoch)) in (0..).zip(self.sections.iter().zip(&self.epochs)) {
            let (true, Some(epoch)) = (section.notes > 0, epoch) else { continue };
            put_long(&mut bytes, partition);
            put_long(&mut bytes, epoch.0);
            put_long(&mut bytes, section.events);
            let order = &self.order[(section.end - section.notes) as usize..section.end as usize];
            self.write_events(order.iter().map(|note| notes.notes[*note as usize]), &notes.snapshots, &mut bytes);
            put_long(&mut bytes, 0);
        }
        put_long(&mut bytes, 0);
        notes.clear();
        bytes
    }

    #[inline]
    fn head(&mut self, kind: Kind, write: impl FnOnce(&mut HeadWriter)) {
        let mut writer = HeadWriter { bytes: [0; HEAD_BYTES_MAX + LONG_BYTES_MAX], length: 0 };
        writer.put(kind as i64);
        write(&mut writer);
        let mut head = Head { bytes: [0; HEAD_BYTES_MAX], length: writer.length as u8 };
        head.bytes.copy_from_slice(&writer.bytes[..HEAD_BYTES_MAX]);
        self.heads.push(head);
    }

    /// The latest head's event.
    #[inline]
    fn tell(&self, notes: &mut Notes, partition: u32, viewer: UserId, distance_dm: i32) {
        let latest = self.heads.len() - 1;
        let head = &self.heads[latest];
        #[expect(clippy::cast_possible_truncation, reason = "HEADS_MAX is less")]
        let index = latest as u32;
        // Whoever comes directly behind another viewer of the same section is in the same list.
        let is_joined =
            notes.notes.last().is_some_and(|note| (note.head(), note.partition()) == (Some(index), partition));
        let head_bytes = if is_joined { 0 } else { head.length as usize };
        let bytes = head_bytes + if head.is(Kind::ViewerMoved) { 0 } else { VIEWER_BYTES_MAX };
        notes.push(Note::Told { partition, head: index, viewer, distance_dm }, bytes);
    }

    /// Counts notes and events by partition, and puts the notes in order.
    fn sort(&mut self, notes: &[Note]) {
        self.sections.fill(Section::default());
        for note in notes {
            let section = &mut self.sections[note.partition() as usize];
            section.notes += 1;
            let head = note.head();
            section.events += i64::from(head.is_none() || section.head != head);
            section.head = head;
        }
        let mut end = 0;
        for section in &mut self.sections {
            // It grows to the end of the section.
            section.end = end;
            end += section.notes;
        }
        self.order.clear();
        self.order.resize(notes.len(), 0);
        for (index, note) in (0..).zip(notes) {
            let section = &mut self.sections[note.partition() as usize];
            self.order[section.end as usize] = index;
            section.end += 1;
        }
    }

    fn write_events(&self, notes: impl Iterator<Item = Note>, snapshots: &[u8], bytes: &mut Vec<u8>) {
        let mut open: Option<OpenList> = None;
        for note in notes {
            let Note::Told { head: index, viewer, distance_dm, .. } = note else {
                open.take().inspect(|list| list.close(bytes));
                let Note::Snapshot { start, end, .. } = note else { continue };
                bytes.extend_from_slice(&snapshots[start as usize..end as usize]);
                continue;
            };
            let head = &self.heads[index as usize];
            let list = match &mut open {
                Some(list) if list.head == index => list,
                _ => {
                    open.take().inspect(|list| list.close(bytes));
                    append(bytes, &head.bytes, head.length as usize);
                    if head.is(Kind::ViewerMoved) {
                        continue;
                    }
                    open.insert(OpenList::new(index, bytes))
                }
            };
            list.grow(bytes);
            put_long(bytes, viewer.0);
            if head.is(Kind::Moved) {
                put_long(bytes, i64::from(distance_dm));
            }
        }
        open.inspect(|list| list.close(bytes));
    }
}

/// A partition that has an epoch.
#[derive(Clone, Copy, Debug)]
pub struct SectionIndex(u32);

/// The viewers of the event that is being written: blocks, each with its number in front.
struct OpenList {
    head: u32,
    /// Where the number of the block is.
    count_at: usize,
    count: u8,
}

impl OpenList {
    fn new(head: u32, bytes: &mut Vec<u8>) -> OpenList {
        let count_at = bytes.len();
        bytes.push(0);
        OpenList { head, count_at, count: 0 }
    }

    /// One more viewer follows.
    #[inline]
    fn grow(&mut self, bytes: &mut Vec<u8>) {
        if self.count == BLOCK_VIEWERS_MAX {
            *self = OpenList::new(self.head, bytes);
        }
        self.count += 1;
        // Zigzag.
        bytes[self.count_at] = self.count * 2;
    }

    fn close(&self, bytes: &mut Vec<u8>) {
        bytes.push(0);
    }
}

impl Note {
    fn partition(&self) -> u32 {
        match self {
            Note::Told { partition, .. } | Note::Snapshot { partition, .. } => *partition,
        }
    }

    fn head(&self) -> Option<u32> {
        match self {
            Note::Told { head, .. } => Some(*head),
            Note::Snapshot { .. } => None,
        }
    }
}

impl Head {
    fn is(&self, kind: Kind) -> bool {
        // Zigzag.
        self.bytes[0] == kind as u8 * 2
    }
}

impl HeadWriter {
    #[inline]
    fn put(&mut self, value: i64) {
        let (encoded, length) = varint::encode(value);
        self.bytes[self.length..self.length + LONG_BYTES_MAX].copy_from_slice(&encoded);
        self.length += length;
    }

    fn put_place(&mut self, place: Place) {
        self.put(i64::from(place.lat_e7));
        self.put(i64::from(place.lon_e7));
    }
}

fn put_place(bytes: &mut Vec<u8>, place: Place) {
    put_long(bytes, i64::from(place.lat_e7));
    put_long(bytes, i64::from(place.lon_e7));
}

#[inline]
fn put_long(bytes: &mut Vec<u8>, value: i64) {
    let (encoded, length) = varint::encode(value);
    append(bytes, &encoded, length);
}

/// The first `length` of them. A copy of a known length takes no call.
#[inline]
fn append<const N: usize>(bytes: &mut Vec<u8>, part: &[u8; N], length: usize) {
    let before = bytes.len();
    bytes.extend_from_slice(part);
    bytes.truncate(before + length);
}
