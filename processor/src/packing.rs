//! Notices on their way to the gateways: packed per gateway, cut by size and by time. Pure: no I/O, no clock.

use crate::batch_interval::batch_interval;
use nearby_engine::{GatewayIndex, Notice};
use nearby_schemas::batch::{BATCH_BYTES_MAX, BatchEncoder, FriendMovedBatch, ViewerDistance};
use nearby_schemas::codec::{Codec, DecodeError};
use nearby_schemas::{Epoch, TimestampMs, UserId};
use std::collections::BTreeMap;
use std::time::Duration;

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
    codec: Codec<FriendMovedBatch>,
    /// By index of the gateway.
    open: Vec<OpenBatch>,
    interval: Duration,
    /// Of the served partitions, by number.
    epochs: Vec<Option<Epoch>>,
}

struct OpenBatch {
    encoder: BatchEncoder,
    /// When the first notice came in.
    since: Option<Duration>,
}

impl Packing {
    pub fn new(codec: Codec<FriendMovedBatch>) -> Packing {
        Packing { codec, open: Vec::new(), interval: batch_interval(0), epochs: Vec::new() }
    }

    /// The flush interval follows the number of gateways.
    pub fn set_gateways_alive(&mut self, gateways_alive: usize) {
        self.interval = batch_interval(gateways_alive);
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
        // A look into an array for each notice instead of one into a tree.
        self.epochs.clear();
        for (partition, epoch) in epochs {
            let place = usize::try_from(*partition).expect("Kafka counts partitions from 0");
            self.epochs.resize(self.epochs.len().max(place + 1), None);
            self.epochs[place] = Some(*epoch);
        }
        for notice in notices.drain(..) {
            let to = match &notice {
                Notice::FriendMoved { to, .. }
                | Notice::FriendLeft { to, .. }
                | Notice::ViewerMoved { to, .. }
                | Notice::Snapshot { to, .. } => *to,
            };
            let epoch = usize::try_from(to.partition).ok().and_then(|place| *self.epochs.get(place)?);
            let Some(epoch) = epoch else {
                // The engine speaks only for served partitions, and serving starts with an epoch.
                tracing::error!(partition = to.partition, "a notice for a partition that is not served");
                continue;
            };
            let index = to.gateway.0 as usize;
            while self.open.len() <= index {
                self.open.push(OpenBatch { encoder: BatchEncoder::new(&self.codec), since: None });
            }
            let batch = &mut self.open[index];
            batch.since.get_or_insert(clock);
            write(&mut batch.encoder, (to.partition, epoch), to.viewer, notice);
            if batch.encoder.bytes() >= BATCH_BYTES_MAX {
                closed.push(batch.close(to.gateway, now));
            }
        }
    }

    /// Closes the batches whose time has come.
    pub fn close_due(&mut self, now: TimestampMs, clock: Duration, closed: &mut Vec<Batch>) {
        let interval = self.interval;
        self.close_where(now, closed, |since| clock.saturating_sub(since) >= interval);
    }

    /// Closes every batch.
    pub fn close_all(&mut self, now: TimestampMs, closed: &mut Vec<Batch>) {
        self.close_where(now, closed, |_| true);
    }

    /// When the next batch is due.
    pub fn next_due(&self) -> Option<Duration> {
        self.open.iter().filter_map(|batch| batch.since).min().map(|since| since + self.interval)
    }

    fn close_where(&mut self, now: TimestampMs, closed: &mut Vec<Batch>, which: impl Fn(Duration) -> bool) {
        for (gateway, batch) in (0..).map(GatewayIndex).zip(&mut self.open) {
            if batch.since.is_some_and(&which) {
                closed.push(batch.close(gateway, now));
            }
        }
    }
}

impl OpenBatch {
    fn close(&mut self, gateway: GatewayIndex, now: TimestampMs) -> Batch {
        self.since = None;
        Batch { gateway, bytes: self.encoder.finish(now) }
    }
}

/// The viewers of a batch that was lost: they have to be told everything again.
///
/// # Errors
/// Never for bytes that were packed here.
pub fn viewers_of(codec: &Codec<FriendMovedBatch>, bytes: &[u8]) -> Result<Vec<UserId>, DecodeError> {
    Ok(codec.decode(bytes)?.viewers().map(|(_, viewer)| viewer).collect())
}

fn write(encoder: &mut BatchEncoder, section: (i32, Epoch), viewer: UserId, notice: Notice) {
    match notice {
        Notice::FriendMoved { friend, place, updated_at, distance_dm, .. } => {
            encoder.friend_moved(section, (friend, place, updated_at), ViewerDistance { viewer, distance_dm });
        }
        Notice::FriendLeft { friend, reason, .. } => encoder.friend_left(section, (friend, reason), viewer),
        Notice::ViewerMoved { place, .. } => encoder.viewer_moved(section, viewer, place),
        Notice::Snapshot { snapshot, .. } => encoder.viewer_snapshot(section, &snapshot),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearby_engine::Address;
    use nearby_schemas::Place;

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
        let mut packing = Packing::new(Codec::new());
        assert_eq!(packing.next_due(), None);
        assert!(pack(&mut packing, vec![moved(1, 0, 5)], 100).is_empty());
        assert!(pack(&mut packing, vec![moved(1, 1, 6), moved(0, 1, 7)], 103).is_empty());
        assert_eq!(packing.next_due(), Some(Duration::from_millis(105)));
        assert!(due(&mut packing, 104).is_empty());
        let closed = due(&mut packing, 105);
        let codec = Codec::<FriendMovedBatch>::new();
        let batch = codec.decode(&closed[0].bytes).expect("ours");
        let sections: Vec<(i32, i64)> = batch.sections.iter().map(|part| (part.partition, part.epoch.0)).collect();
        assert_eq!((closed.len(), closed[0].gateway, sections), (1, GatewayIndex(1), vec![(0, 10), (1, 11)]));
        assert_eq!(viewers_of(&codec, &closed[0].bytes).expect("ours"), [UserId(5), UserId(6)]);
        assert_eq!(packing.next_due(), Some(Duration::from_millis(108)), "the other gateway's");
        assert_eq!(due(&mut packing, 200)[0].gateway, GatewayIndex(0));
        assert_eq!(packing.next_due(), None);
    }

    #[test]
    fn a_full_batch_is_closed_at_once_and_the_rest_at_the_end() {
        let mut packing = Packing::new(Codec::new());
        let closed = pack(&mut packing, (0..100_000).map(|viewer| moved(0, 0, viewer)).collect(), 0);
        assert!(!closed.is_empty() && closed.iter().all(|batch| batch.bytes.len() < BATCH_BYTES_MAX + 100));
        let mut rest = Vec::new();
        packing.close_all(NOW, &mut rest);
        let codec = Codec::new();
        let told = closed.iter().chain(&rest).flat_map(|batch| viewers_of(&codec, &batch.bytes).expect("ours"));
        assert!(told.eq((0..100_000).map(UserId)), "each once, in order");
    }

    #[test]
    fn nothing_is_said_for_a_partition_without_an_epoch() {
        let mut packing = Packing::new(Codec::new());
        pack(&mut packing, vec![moved(0, 2, 5)], 0);
        assert_eq!(packing.next_due(), None);
    }
}
