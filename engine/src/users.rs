//! Every user ever mentioned, by slot: who, where, since when, and where to reach them.
//!
//! A slot is a dense number, so that everything else is an array. The arrays are apart because an evaluation of a report
//! looks at forty places and tells a quarter of them: eight bytes a look, sixteen more for each that is told.

use crate::notice::{Address, GatewayIndex};
use nearby_schemas::batch::LeftReason;
use nearby_schemas::{Place, TimestampMs, UserId};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A user's dense number.
pub(crate) type Slot = u32;

/// In the table of places: none that counts. No latitude on the globe is equal to it.
pub(crate) const NOWHERE: Place = Place { lat_e7: i32::MIN, lon_e7: 0 };
/// Addresses of users who are not connected.
const NO_GATEWAY: GatewayIndex = GatewayIndex(u32::MAX);
/// Addresses of users who are connected to several gateways, which the sessions know.
const SEVERAL_GATEWAYS: GatewayIndex = GatewayIndex(u32::MAX - 1);
/// Addresses of users whose partition is not held.
const NO_PARTITION: i32 = -1;

const FEWER_THAN_2_32: &str = "an engine hears less than 2^32 users, because they would not fit into memory";

/// What the engine knows about a user's position, besides the place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No report so far.
    Unheard,
    /// The place counts.
    Shown,
    /// The last report is too old to count.
    Inactive,
    /// The last report withdrew the user.
    Withdrawn,
}

/// What an input did to a user's place, as far as it counts.
#[derive(Clone, Copy)]
pub(crate) struct Change {
    pub(crate) old: Option<Place>,
    pub(crate) new: Option<Place>,
}

/// Where a user is told things.
#[derive(Clone, Copy)]
pub(crate) enum Reach {
    /// Nowhere: not connected.
    Nowhere,
    /// On one gateway.
    One(Address),
    /// On several; the address is right but for the gateway.
    Several(Address),
}

#[derive(Default)]
pub(crate) struct Users {
    /// Looked up, never walked.
    slots: HashMap<UserId, Slot, BuildHasherDefault<MultiplyHasher>>,
    places: Vec<Place>,
    addresses: Vec<Address>,
    times: Vec<TimestampMs>,
    states: Vec<State>,
    shown: usize,
}

impl Users {
    /// The slot of a user, who may be new.
    #[inline]
    pub(crate) fn slot(&mut self, user: UserId) -> Slot {
        let next = self.places.len();
        let slot = *self.slots.entry(user).or_insert_with(|| Slot::try_from(next).expect(FEWER_THAN_2_32));
        if slot as usize == next {
            self.push(user);
        }
        slot
    }

    /// A further slot for the hub's id, which follows the hub: see [`Self::follow`].
    pub(crate) fn add_stand_in(&mut self, hub: Slot) -> Slot {
        let stand_in = Slot::try_from(self.places.len()).expect(FEWER_THAN_2_32);
        self.push(self.id(hub));
        self.follow(stand_in, hub);
        stand_in
    }

    /// Brings a stand-in to where its hub is. It is no user that would be counted.
    pub(crate) fn follow(&mut self, stand_in: Slot, hub: Slot) -> Change {
        let old = self.place(stand_in);
        self.places[stand_in as usize] = self.places[hub as usize];
        self.times[stand_in as usize] = self.times[hub as usize];
        Change { old, new: self.place(stand_in) }
    }

    fn push(&mut self, user: UserId) {
        self.places.push(NOWHERE);
        self.addresses.push(Address { gateway: NO_GATEWAY, partition: NO_PARTITION, viewer: user });
        self.times.push(TimestampMs(i64::MIN));
        self.states.push(State::Unheard);
    }

    /// The slot of a user who was mentioned before.
    pub(crate) fn find(&self, user: UserId) -> Option<Slot> {
        self.slots.get(&user).copied()
    }

    #[inline]
    pub(crate) fn id(&self, slot: Slot) -> UserId {
        self.addresses[slot as usize].viewer
    }

    /// Where the user is, if that counts.
    #[inline]
    pub(crate) fn place(&self, slot: Slot) -> Option<Place> {
        let place = self.places[slot as usize];
        (place.lat_e7 != NOWHERE.lat_e7).then_some(place)
    }

    /// Where everybody is, by slot; `NOWHERE` where that does not count.
    #[inline]
    pub(crate) fn places(&self) -> &[Place] {
        &self.places
    }

    /// Time of the user's position: of the report, or of the withdrawal.
    #[inline]
    pub(crate) fn time(&self, slot: Slot) -> TimestampMs {
        self.times[slot as usize]
    }

    /// Why the user's place does not count.
    pub(crate) fn gone(&self, slot: Slot) -> LeftReason {
        if self.states[slot as usize] == State::Withdrawn { LeftReason::Unshared } else { LeftReason::Inactive }
    }

    /// How many users have a place that counts.
    pub(crate) fn shown(&self) -> usize {
        self.shown
    }

    /// Takes in a report, unless it does not count (R2, R6). Places older than `oldest` are remembered but not shown.
    #[inline]
    pub(crate) fn report(
        &mut self,
        slot: Slot,
        time: TimestampMs,
        place: Option<Place>,
        oldest: TimestampMs,
    ) -> Option<Change> {
        let held = self.times[slot as usize];
        let (time, state) = match (place, self.states[slot as usize]) {
            (None, _) => (time.max(held), State::Withdrawn),
            (Some(_), State::Withdrawn) if time <= held => return None,
            (Some(_), _) if time < held => return None,
            (Some(_), _) if time < oldest => (time, State::Inactive),
            (Some(_), _) => (time, State::Shown),
        };
        self.times[slot as usize] = time;
        Some(self.change(slot, state, place))
    }

    /// The user's position has become too old.
    pub(crate) fn expire(&mut self, slot: Slot) -> Change {
        self.change(slot, State::Inactive, None)
    }

    fn change(&mut self, slot: Slot, state: State, place: Option<Place>) -> Change {
        let (old, new) = (self.place(slot), place.filter(|_| state == State::Shown));
        self.states[slot as usize] = state;
        self.places[slot as usize] = new.unwrap_or(NOWHERE);
        self.shown = self.shown + usize::from(new.is_some()) - usize::from(old.is_some());
        Change { old, new }
    }

    /// The partition under which the user is held as a viewer.
    pub(crate) fn partition(&self, slot: Slot) -> Option<i32> {
        let partition = self.addresses[slot as usize].partition;
        (partition != NO_PARTITION).then_some(partition)
    }

    /// Holds the user as a viewer of `partition`, or no longer.
    ///
    /// # Panics
    /// If the partition is negative: Kafka has none such.
    pub(crate) fn set_partition(&mut self, slot: Slot, partition: Option<i32>) {
        assert!(partition.is_none_or(|partition| partition >= 0), "Kafka counts partitions from 0");
        self.addresses[slot as usize].partition = partition.unwrap_or(NO_PARTITION);
    }

    #[inline]
    pub(crate) fn reach(&self, slot: Slot) -> Reach {
        let address = self.addresses[slot as usize];
        match address.gateway {
            NO_GATEWAY => Reach::Nowhere,
            SEVERAL_GATEWAYS => Reach::Several(address),
            _ => Reach::One(address),
        }
    }

    pub(crate) fn connected(&self, slot: Slot) -> bool {
        self.addresses[slot as usize].gateway != NO_GATEWAY
    }

    /// Sets the gateways that reach the user; says whether the user was connected before.
    pub(crate) fn set_gateways(&mut self, slot: Slot, mut gateways: impl Iterator<Item = GatewayIndex>) -> bool {
        let before = self.connected(slot);
        self.addresses[slot as usize].gateway = match (gateways.next(), gateways.next()) {
            (None, _) => NO_GATEWAY,
            (Some(gateway), None) => gateway,
            (Some(_), Some(_)) => SEVERAL_GATEWAYS,
        };
        before
    }
}

/// Multiplies and folds: one id costs a nanosecond, and neither half of the product alone decides. (Rust's default resists
/// attackers who choose keys, at twenty times the price; ids come out of signed tokens.)
#[derive(Default)]
struct MultiplyHasher(u64);

impl Hasher for MultiplyHasher {
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the two halves are folded")]
    fn write_i64(&mut self, value: i64) {
        let product = u128::from(self.0 ^ value.cast_unsigned()) * 0x9E37_79B9_7F4A_7C15;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_i64(i64::from(*byte)));
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::hash::{BuildHasher, BuildHasherDefault};

    #[test]
    fn slots_are_dense_and_stay() {
        let mut users = Users::default();
        for (id, slot) in [(0, 0), (i64::MAX, 1), (7, 2), (0, 0), (7, 2)] {
            assert_eq!(users.slot(UserId(id)), slot);
            assert_eq!(users.id(slot), UserId(id));
        }
        assert_eq!(users.find(UserId(8)), None);
    }

    /// The table takes buckets from the low bits and tags from the seven highest: ids in steps of any power of two must
    /// spread over both.
    #[test]
    fn ids_in_steps_spread() {
        let hashing = BuildHasherDefault::<MultiplyHasher>::default();
        for shift in 0..48 {
            let hashes: Vec<u64> = (0..1_000_i64).map(|id| hashing.hash_one(UserId(id << shift))).collect();
            let low: BTreeSet<u64> = hashes.iter().map(|hash| hash % 4_096).collect();
            let high: BTreeSet<u64> = hashes.iter().map(|hash| hash >> 57).collect();
            assert!(low.len() > 600 && high.len() > 100, "step 2^{shift}: {} and {}", low.len(), high.len());
        }
    }
}
