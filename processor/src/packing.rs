//! Notices on their way to the gateways: packed per gateway, cut by size and, all of them together, by time. Pure: no I/O,
//! no clock.

use crate::batch_interval::batch_interval;
use nearby_engine::{GatewayIndex, Notice};
use nearby_schemas::batch::{BATCH_BYTES_MAX, FriendMovedBatch, ViewerDistance};
use nearby_schemas::batch_encoder::{BatchEncoder, HEADS_MAX, Notes, SectionIndex};
use nearby_schemas::codec::{Codec, DecodeError};
use nearby_schemas::{Epoch, TimestampMs, UserId};
use std::collections::BTreeMap;
use std::time::Duration;

/// So many moves and leaves for each gateway make a batch that is cheap enough for its request: some two thousand notices. More in
/// one would only be later, and, with few gateways, further from the cache than the least number is.
const HEADS_OF_A_GATEWAY: usize = 400;
const HEADS_ENOUGH_MIN: usize = 8_192;
/// Half of what an encoder can hold, so that one more turn has room.
const HEADS_FULL: usize = HEADS_MAX / 2;
/// Of all open batches, encoded; in memory moves take about half of that, and snapshots as much.
const OPEN_BYTES_FULL: usize = 128 * 1024 * 1024;

/// A record for the topic of one gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Whose topic.
    pub gateway: GatewayIndex,
    /// The encoded `FriendMovedBatch`.
    pub bytes: Vec<u8>,
}

/// Batches that are being filled. Times are of a clock that only goes forward.
pub(crate) struct Packing {
    encoder: BatchEncoder,
    /// By index of the gateway.
    open: Vec<Notes>,
    /// Of all of them.
    open_bytes: usize,
    /// When the first of the notices came in that wait.
    since: Option<Duration>,
    interval: Duration,
    /// So many heads need not wait for the interval.
    enough: usize,
    /// The brokers are not ready for the next batches before.
    no_sooner_than: Duration,
    /// Of the served partitions: those that the encoder has.
    epochs: BTreeMap<i32, Epoch>,
}

impl Packing {
    pub fn new(codec: &Codec<FriendMovedBatch>) -> Packing {
        let (encoder, open, epochs) = (BatchEncoder::new(codec), Vec::new(), BTreeMap::new());
        let (interval, no_sooner_than) = (batch_interval(0, false), Duration::ZERO);
        Packing {
            encoder,
            open,
            open_bytes: 0,
            since: None,
            interval,
            enough: HEADS_ENOUGH_MIN,
            no_sooner_than,
            epochs,
        }
    }

    /// The flush interval follows the number of gateways, and whether there is more to do than can be done.
    pub fn set_interval(&mut self, gateways_alive: usize, is_behind: bool) {
        self.interval = batch_interval(gateways_alive, is_behind);
        self.enough = gateways_alive.saturating_mul(HEADS_OF_A_GATEWAY).clamp(HEADS_ENOUGH_MIN, HEADS_FULL);
    }

    /// Batches are not due before that, however long notices wait. One that is full does not wait.
    pub fn close_no_sooner_than(&mut self, clock: Duration) {
        self.no_sooner_than = clock;
    }

    /// Packs the notices, each under the epoch of its viewer's partition, and empties the list. What is full is closed.
    pub fn pack(
        &mut self,
        epochs: &BTreeMap<i32, Epoch>,
        notices: &mut Vec<Notice>,
        now: TimestampMs,
        clock: Duration,
        closed: &mut Vec<Batch>,
    ) {
        if *epochs != self.epochs {
            // Sections that are only new disturb nobody.
            if self.epochs.iter().any(|(partition, epoch)| epochs.get(partition) != Some(epoch)) {
                self.close_all(now, closed);
            }
            self.encoder.set_epochs(epochs.iter().map(|(partition, epoch)| (*partition, *epoch)));
            self.epochs.clone_from(epochs);
        }
        for notice in notices.drain(..) {
            let to = match &notice {
                Notice::FriendMoved { to, .. }
                | Notice::FriendLeft { to, .. }
                | Notice::ViewerMoved { to, .. }
                | Notice::Snapshot { to, .. } => *to,
            };
            let Some(section) = self.encoder.section(to.partition) else {
                // The engine speaks only for served partitions, and serving starts with an epoch.
                tracing::error!(partition = to.partition, "a notice for a partition that is not served");
                continue;
            };
            if self.encoder.heads() >= HEADS_MAX {
                self.close_all(now, closed);
            }
            self.since.get_or_insert(clock);
            let index = to.gateway.0 as usize;
            if self.open.len() <= index {
                self.open.resize_with(index + 1, Notes::default);
            }
            let notes = &mut self.open[index];
            let before = notes.bytes();
            write(&mut self.encoder, notes, section, to.viewer, notice);
            self.open_bytes += notes.bytes() - before;
            if notes.bytes() >= BATCH_BYTES_MAX {
                self.open_bytes -= notes.bytes();
                closed.push(Batch { gateway: to.gateway, bytes: self.encoder.finish(notes, now) });
            }
        }
    }

    /// Closes the batches if their time has come: of all gateways at once.
    pub fn close_due(&mut self, now: TimestampMs, clock: Duration, closed: &mut Vec<Batch>) {
        if self.next_due().is_some_and(|due| clock >= due) {
            self.close_all(now, closed);
        }
    }

    /// Closes every batch.
    pub fn close_all(&mut self, now: TimestampMs, closed: &mut Vec<Batch>) {
        for (gateway, notes) in (0..).map(GatewayIndex).zip(&mut self.open) {
            if notes.is_empty() {
                // The gateway may be gone for good.
                *notes = Notes::default();
            } else {
                closed.push(Batch { gateway, bytes: self.encoder.finish(notes, now) });
            }
        }
        self.encoder.forget();
        self.open_bytes = 0;
        self.since = None;
    }

    /// So much waits that no more should be decided before the next batches are closed.
    pub fn is_full(&self) -> bool {
        self.encoder.heads() >= HEADS_FULL || self.open_bytes >= OPEN_BYTES_FULL
    }

    /// When the next batches are due.
    pub fn next_due(&self) -> Option<Duration> {
        let is_enough = self.encoder.heads() >= self.enough || self.is_full();
        let interval = if is_enough { Duration::ZERO } else { self.interval };
        self.since.map(|since| (since + interval).max(self.no_sooner_than))
    }
}

/// The viewers of a batch that was lost: they have to be told everything again.
///
/// # Errors
/// Never for bytes that were packed here.
pub fn viewers_of(codec: &Codec<FriendMovedBatch>, bytes: &[u8]) -> Result<Vec<UserId>, DecodeError> {
    Ok(codec.decode(bytes)?.viewers().map(|(_, viewer)| viewer).collect())
}

fn write(encoder: &mut BatchEncoder, notes: &mut Notes, section: SectionIndex, viewer: UserId, notice: Notice) {
    match notice {
        Notice::FriendMoved { friend, place, updated_at, distance_dm, .. } => {
            encoder.friend_moved(notes, section, (friend, place, updated_at), ViewerDistance { viewer, distance_dm });
        }
        Notice::FriendLeft { friend, reason, .. } => encoder.friend_left(notes, section, (friend, reason), viewer),
        Notice::ViewerMoved { place, .. } => encoder.viewer_moved(notes, section, viewer, place),
        Notice::Snapshot { snapshot, .. } => encoder.viewer_snapshot(notes, section, &snapshot),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearby_engine::Address;
    use nearby_schemas::Place;
    use nearby_schemas::batch::{SeenFriend, ViewerSnapshot};

    const NOW: TimestampMs = TimestampMs(7);

    fn moved(gateway: u32, partition: i32, viewer: i64) -> Notice {
        let to = Address { gateway: GatewayIndex(gateway), partition, viewer: UserId(viewer) };
        Notice::ViewerMoved { to, place: Place { lat_e7: 1, lon_e7: 2 } }
    }

    fn pack(packing: &mut Packing, mut notices: Vec<Notice>, clock_ms: u64) -> Vec<Batch> {
        let epochs = BTreeMap::from([(0, Epoch(10)), (1, Epoch(11))]);
        let mut closed = Vec::new();
        packing.pack(&epochs, &mut notices, NOW, Duration::from_millis(clock_ms), &mut closed);
        assert!(notices.is_empty());
        closed
    }

    fn due(packing: &mut Packing, clock_ms: u64) -> Vec<Batch> {
        let mut closed = Vec::new();
        packing.close_due(NOW, Duration::from_millis(clock_ms), &mut closed);
        closed
    }

    #[test]
    fn a_batch_waits_for_its_interval_from_the_first_notice_on() {
        let mut packing = Packing::new(&Codec::new());
        assert_eq!(packing.next_due(), None);
        assert!(pack(&mut packing, vec![moved(1, 0, 5)], 100).is_empty());
        assert!(pack(&mut packing, vec![moved(1, 1, 6), moved(0, 1, 7)], 103).is_empty());
        assert_eq!(packing.next_due(), Some(Duration::from_millis(105)));
        assert!(due(&mut packing, 104).is_empty());
        let closed = due(&mut packing, 105);
        let codec = Codec::<FriendMovedBatch>::new();
        let batch = codec.decode(&closed[1].bytes).expect("ours");
        let sections: Vec<(i32, i64)> = batch.sections.iter().map(|part| (part.partition, part.epoch.0)).collect();
        assert_eq!((closed.len(), closed[1].gateway, sections), (2, GatewayIndex(1), vec![(0, 10), (1, 11)]));
        assert_eq!(viewers_of(&codec, &closed[1].bytes).expect("ours"), [UserId(5), UserId(6)]);
        assert_eq!(viewers_of(&codec, &closed[0].bytes).expect("ours"), [UserId(7)], "the other gateway's, with it");
        assert_eq!(packing.next_due(), None);
    }

    #[test]
    fn a_batch_that_is_not_full_waits_for_the_brokers_too() {
        let mut packing = Packing::new(&Codec::new());
        packing.close_no_sooner_than(Duration::from_millis(117));
        pack(&mut packing, vec![moved(0, 0, 5)], 100);
        assert_eq!(packing.next_due(), Some(Duration::from_millis(117)));
        assert!(due(&mut packing, 116).is_empty());
        packing.close_no_sooner_than(Duration::from_millis(111));
        assert_eq!(due(&mut packing, 111).len(), 1, "they were faster");
    }

    #[test]
    fn a_full_batch_is_closed_at_once_and_the_rest_at_the_end() {
        let mut packing = Packing::new(&Codec::new());
        let closed = pack(&mut packing, (0..100_000).map(|viewer| moved(0, 0, viewer)).collect(), 0);
        assert!(
            !closed.is_empty()
                && closed.iter().all(|batch| (BATCH_BYTES_MAX / 2..BATCH_BYTES_MAX + 100).contains(&batch.bytes.len()))
        );
        let mut rest = Vec::new();
        packing.close_all(NOW, &mut rest);
        let codec = Codec::new();
        let told = closed.iter().chain(&rest).flat_map(|batch| viewers_of(&codec, &batch.bytes).expect("ours"));
        assert!(told.eq((0..100_000).map(UserId)), "each once, in order");
    }

    #[test]
    fn what_was_told_under_an_epoch_keeps_it() {
        let (codec, mut packing) = (Codec::<FriendMovedBatch>::new(), Packing::new(&Codec::new()));
        assert!(pack(&mut packing, vec![moved(0, 0, 5)], 0).is_empty());
        let (epochs, mut closed) = (BTreeMap::from([(0, Epoch(12))]), Vec::new());
        packing.pack(&epochs, &mut vec![moved(0, 0, 6)], NOW, Duration::ZERO, &mut closed);
        packing.close_all(NOW, &mut closed);
        let told = closed.iter().flat_map(|batch| codec.decode(&batch.bytes).expect("ours").sections);
        assert!(told.map(|section| section.epoch.0).eq([10, 12]));
    }

    #[test]
    fn heads_are_bounded() {
        let mut packing = Packing::new(&Codec::new());
        let notices = (0..).map(|gateway| moved(gateway % 1_000, 0, 5)).take(HEADS_MAX + 1).collect();
        assert_eq!(pack(&mut packing, notices, 3).len(), 1_000, "closed, though neither full nor due");
        assert_eq!(packing.next_due(), Some(Duration::from_millis(8)), "there is one left");
        assert_eq!(packing.encoder.heads(), 1);
    }

    #[test]
    fn what_is_enough_waits_for_the_brokers_alone_and_what_is_full_for_nothing_more() {
        let mut packing = Packing::new(&Codec::new());
        let moves = |count| (0..).map(|gateway| moved(gateway % 50, 0, 5)).take(count).collect();
        packing.set_interval(50, true);
        let enough = 50 * HEADS_OF_A_GATEWAY;
        pack(&mut packing, moves(enough - 1), 3);
        assert_eq!(packing.next_due(), Some(Duration::from_millis(3 + 48)));
        packing.close_no_sooner_than(Duration::from_millis(4));
        pack(&mut packing, moves(1), 3);
        assert_eq!(packing.next_due(), Some(Duration::from_millis(4)), "nothing is gained by waiting for more");
        pack(&mut packing, moves(HEADS_FULL - enough - 1), 3);
        assert!(!packing.is_full());
        pack(&mut packing, moves(1), 3);
        assert!(packing.is_full());
        assert_eq!(due(&mut packing, 4).len(), 50);
        assert!(!packing.is_full());
    }

    #[test]
    fn it_is_full_by_bytes_too() {
        let (updated_at, distance_dm) = (TimestampMs(i64::MAX), i32::MAX);
        let friend =
            SeenFriend { friend: UserId(i64::MAX), lat_e7: i32::MAX, lon_e7: i32::MAX, updated_at, distance_dm };
        let snapshot = ViewerSnapshot { viewer: UserId(5), place: None, friends: vec![friend; 10_000] };
        let mut packing = Packing::new(&Codec::new());
        let mut gateways = 0;
        while !packing.is_full() {
            let to = Address { gateway: GatewayIndex(gateways), partition: 0, viewer: UserId(5) };
            assert!(
                pack(&mut packing, vec![Notice::Snapshot { to, snapshot: Box::new(snapshot.clone()) }], 3).is_empty()
            );
            gateways += 1;
        }
        assert_eq!(packing.next_due(), Some(Duration::from_millis(3)));
        let closed = due(&mut packing, 3);
        let bytes: usize = closed.iter().map(|batch| batch.bytes.len()).sum();
        assert!(bytes > OPEN_BYTES_FULL / 2 && bytes < OPEN_BYTES_FULL + BATCH_BYTES_MAX, "{bytes}");
        assert!(!packing.is_full() && packing.next_due().is_none());
    }

    #[test]
    fn nothing_is_said_for_a_partition_without_an_epoch() {
        let mut packing = Packing::new(&Codec::new());
        pack(&mut packing, vec![moved(0, 2, 5)], 0);
        assert_eq!(packing.next_due(), None);
    }
}
