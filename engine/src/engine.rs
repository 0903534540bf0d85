//! The engine's calls: each takes one input, changes the state and has the difference told.

use crate::expiry::Wheel;
use crate::gateways::Gateways;
use crate::index::Index;
use crate::lists::{Lists, without};
use crate::notice::{GatewayIndex, Notice};
use crate::radius::Radius;
use crate::sessions::{Asked, Sessions};
use crate::settings::EngineSettings;
use crate::users::{Change, Slot, Users};
use nearby_schemas::batch::LeftReason;
use nearby_schemas::{GatewayId, Place, TimestampMs, UserId};
use std::collections::BTreeMap;
use std::hint::black_box;

/// Decides who is told what; see the crate's documentation.
pub struct Engine {
    inactive_after_ms: i64,
    /// The latest `now`.
    clock: TimestampMs,
    pub(crate) radius: Radius,
    pub(crate) users: Users,
    pub(crate) lists: Lists,
    pub(crate) index: Index,
    pub(crate) sessions: Sessions,
    pub(crate) gateways: Gateways,
    partitions: BTreeMap<i32, Partition>,
    wheel: Wheel,
    connected: usize,
}

/// Sizes of an engine's state, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Users whose position counts: shared, and not too old.
    pub users_with_position: usize,
    /// Viewers of served partitions with an open session.
    pub viewers_connected: usize,
    /// Pairs of a connected viewer and a friend in its list.
    pub edges_indexed: usize,
    /// Users of held partitions who have a list.
    pub lists_held: usize,
    /// Gateways that are not lost.
    pub gateways_alive: usize,
}

/// A partition that is held: being restored, or served.
#[derive(Default)]
struct Partition {
    served: bool,
    /// Every user with a record in it, each once.
    viewers: Vec<Slot>,
}

impl Engine {
    /// An engine that knows nobody and owns nothing.
    ///
    /// # Panics
    /// If the radius is negative or not a number.
    pub fn new(settings: EngineSettings) -> Engine {
        Engine {
            inactive_after_ms: settings.inactive_after_ms,
            clock: TimestampMs(i64::MIN),
            radius: Radius::new(settings.radius_m),
            users: Users::default(),
            lists: Lists::default(),
            index: Index::default(),
            sessions: Sessions::default(),
            gateways: Gateways::new(settings.gateway_lost_after_ms),
            partitions: BTreeMap::new(),
            wheel: Wheel::new(),
            connected: 0,
        }
    }

    /// A report of `user`, of `time` = min(`reported_at`, append time); without a place, that the user stopped sharing.
    ///
    /// # Panics
    /// If the place is not on the globe: the codec refuses such records.
    pub fn report(
        &mut self,
        user: UserId,
        time: TimestampMs,
        place: Option<Place>,
        now: TimestampMs,
        out: &mut Vec<Notice>,
    ) {
        assert!(place.is_none_or(|place| place.check().is_ok()), "a place is on the globe");
        self.advance(now, out);
        let slot = self.users.slot(user);
        let oldest = self.clock.plus_ms(self.inactive_after_ms.saturating_neg());
        let Some(change) = self.users.report(slot, time, place, oldest) else { return };
        // Who was shown has an entry in the wheel already.
        if change.old.is_none() && change.new.is_some() {
            self.wheel.schedule(slot, due(time, self.inactive_after_ms));
        }
        if change.old.is_none() && change.new.is_none() {
            return;
        }
        let circles = self.radius.moved(change.old, change.new);
        self.tell_viewer(slot, &circles, out);
        self.tell_watchers(slot, &circles, LeftReason::Unshared, out);
    }

    /// Reports of these users come next: what they need is brought into the cache, for all of them at once instead of one
    /// after the other. Worth it for some 16 at a time; nothing changes, and nothing has to be announced.
    pub fn prefetch(&self, users: impl Iterator<Item = UserId>) {
        users.filter_map(|user| self.users.find(user)).for_each(|slot| self.touch(slot));
    }

    /// The list of `viewer`, a user of `partition`, which replaces the one before (R11); `None` is a tombstone. The viewer
    /// itself, duplicates and users never heard of may be in it. Ignored if the viewer is held under another partition.
    pub fn friend_list(
        &mut self,
        partition: i32,
        viewer: UserId,
        friends: Option<&[UserId]>,
        now: TimestampMs,
        out: &mut Vec<Notice>,
    ) {
        self.advance(now, out);
        let Some(viewer) = self.hold(partition, viewer) else { return };
        let friends = friends.map(|friends| friends.iter().map(|friend| self.users.slot(*friend)).collect());
        let before = self.lists.replace(viewer, friends);
        if self.users.connected(viewer) {
            let after = self.lists.of(viewer);
            without(&before, after).for_each(|friend| self.index.remove(friend, viewer));
            without(after, &before).for_each(|friend| self.index.add(friend, viewer));
            self.tell_list(viewer, without(&before, after), without(after, &before), out);
        }
    }

    /// The session record of `user`, of `partition`, on `gateway`; `None` is a tombstone. A new session, and an `ask`
    /// greater than the held one, is answered by a snapshot (R5). Ignored if the user is held under another partition.
    pub fn session(
        &mut self,
        partition: i32,
        user: UserId,
        gateway: &GatewayId,
        ask: Option<i64>,
        now: TimestampMs,
        out: &mut Vec<Notice>,
    ) {
        self.advance(now, out);
        let Some(user) = self.hold(partition, user) else { return };
        let gateway = self.gateways.index(gateway, self.clock);
        let asked = match ask {
            Some(ask) => self.sessions.open(user, gateway, ask),
            None => {
                self.sessions.close(user, gateway);
                Asked::Nothing
            }
        };
        self.reconnect(user);
        if asked == Asked::Snapshot {
            self.snapshot_if_alive(user, gateway, out);
        }
    }

    /// A heartbeat of `gateway`. Its append time is also the clock by which other gateways are lost (R8).
    pub fn heartbeat(
        &mut self,
        gateway: &GatewayId,
        appended_at: TimestampMs,
        now: TimestampMs,
        out: &mut Vec<Notice>,
    ) {
        self.advance(now, out);
        let gateway = self.gateways.index(gateway, self.clock);
        let beat = self.gateways.beat(gateway, appended_at);
        beat.lost.into_iter().for_each(|lost| self.reconnect_all(lost));
        if beat.revived {
            self.reconnect_all(gateway);
            self.sessions.on(gateway).for_each(|user| self.snapshot_if_alive(user, gateway, out));
        }
    }

    /// The tombstone of a gateway's heartbeat: it is not alive from now on.
    pub fn gateway_removed(&mut self, gateway: &GatewayId, now: TimestampMs, out: &mut Vec<Notice>) {
        self.advance(now, out);
        let gateway = self.gateways.index(gateway, self.clock);
        self.gateways.remove(gateway, self.clock);
        self.reconnect_all(gateway);
    }

    /// Time passes: positions become too old (R1, R3). To be called at least once a second.
    pub fn tick(&mut self, now: TimestampMs, out: &mut Vec<Notice>) {
        self.advance(now, out);
    }

    /// `partition` is restored and owned: its viewers get snapshots, and from now on what happens. Calling it again sends
    /// the snapshots again.
    pub fn serve(&mut self, partition: i32, now: TimestampMs, out: &mut Vec<Notice>) {
        self.advance(now, out);
        let held = self.partitions.entry(partition).or_default();
        held.served = true;
        // Taken out for the time of the walk, in which nobody comes to be held.
        let viewers = std::mem::take(&mut held.viewers);
        for &viewer in &viewers {
            self.reconnect(viewer);
            self.live_gateways(viewer).for_each(|gateway| self.tell_snapshot(viewer, gateway, out));
        }
        self.partitions.entry(partition).or_default().viewers = viewers;
    }

    /// `partition` is owned by somebody else: its lists and sessions are dropped, silently.
    pub fn forget(&mut self, partition: i32) {
        for viewer in self.partitions.remove(&partition).unwrap_or_default().viewers {
            self.sessions.forget(viewer);
            self.reconnect(viewer);
            self.lists.replace(viewer, None);
            self.users.set_partition(viewer, None);
        }
    }

    /// A notice to `viewer` on `gateway` was lost: a snapshot again, unless it is not connected there any more.
    pub fn snapshot_again(&mut self, viewer: UserId, gateway: &GatewayId, now: TimestampMs, out: &mut Vec<Notice>) {
        self.advance(now, out);
        if let (Some(viewer), Some(gateway)) = (self.users.find(viewer), self.gateways.find(gateway))
            && self.sessions.has(viewer, gateway)
        {
            self.snapshot_if_alive(viewer, gateway, out);
        }
    }

    /// The name of a gateway in a notice of this engine.
    ///
    /// # Panics
    /// If no notice or call of this engine mentioned the gateway.
    pub fn gateway_id(&self, gateway: GatewayIndex) -> &GatewayId {
        self.gateways.id(gateway)
    }

    /// Sessions in served partitions on gateways that have been lost for longer than `lost_for_ms`, for their owner to
    /// tombstone (R8); in the order of partition, user and gateway. A gateway without a heartbeat counts as lost since the
    /// engine first heard of it, or of the removal of its heartbeat.
    pub fn stale_sessions(&self, lost_for_ms: i64) -> Vec<(i32, UserId, GatewayId)> {
        let mut stale = Vec::new();
        for gateway in self.gateways.lost_for_longer(lost_for_ms, self.clock) {
            for user in self.sessions.on(gateway) {
                if let Some(partition) = self.served_partition(user) {
                    stale.push((partition, self.users.id(user), self.gateways.id(gateway).clone()));
                }
            }
        }
        stale.sort_unstable();
        stale
    }

    /// Sizes of the state.
    pub fn counts(&self) -> Counts {
        Counts {
            users_with_position: self.users.shown(),
            viewers_connected: self.connected,
            edges_indexed: self.index.edges(),
            lists_held: self.lists.held(),
            gateways_alive: self.gateways.alive_count(),
        }
    }

    /// Reads what a report of the user needs. Three slots of a list are in as many lines of the cache as most lists have;
    /// where there are more, the processor finds out that they are read in a row.
    #[inline]
    fn touch(&self, slot: Slot) {
        for list in [self.index.watchers(slot), self.lists.of(slot)] {
            let sample = [list.first(), list.get(list.len() / 2), list.last()];
            black_box(sample.map(Option::<&Slot>::copied));
        }
        black_box((self.users.time(slot), self.users.id(slot)));
    }

    /// Moves the clock forward and expires what is due. All who are due at once are judged together: a viewer who is
    /// inactive learns that, and not that its friends are, too.
    #[inline]
    fn advance(&mut self, now: TimestampMs, out: &mut Vec<Notice>) {
        self.clock = self.clock.max(now);
        if let Some(first) = self.next_due() {
            self.expire(first, out);
        }
    }

    #[inline]
    fn next_due(&mut self) -> Option<Slot> {
        let (users, inactive_after_ms) = (&self.users, self.inactive_after_ms);
        let due_of = |slot| users.place(slot).map(|_| due(users.time(slot), inactive_after_ms));
        self.wheel.next_due(self.clock, due_of)
    }

    #[cold]
    fn expire(&mut self, first: Slot, out: &mut Vec<Notice>) {
        let mut expired = vec![first];
        while let Some(slot) = self.next_due() {
            expired.push(slot);
        }
        for &slot in &expired {
            self.tell_viewer(slot, &self.radius.moved(self.users.place(slot), None), out);
        }
        let changes: Vec<Change> = expired.iter().map(|slot| self.users.expire(*slot)).collect();
        for (slot, change) in expired.into_iter().zip(changes) {
            self.tell_watchers(slot, &self.radius.moved(change.old, change.new), LeftReason::Inactive, out);
        }
    }

    /// The slot of a user of `partition`, held from now on; `None` if it is held under another partition.
    fn hold(&mut self, partition: i32, user: UserId) -> Option<Slot> {
        let slot = self.users.slot(user);
        match self.users.partition(slot) {
            Some(held) => (held == partition).then_some(slot),
            None => {
                self.users.set_partition(slot, Some(partition));
                self.partitions.entry(partition).or_default().viewers.push(slot);
                Some(slot)
            }
        }
    }

    fn served_partition(&self, user: Slot) -> Option<i32> {
        self.users.partition(user).filter(|partition| self.partitions.get(partition).is_some_and(|held| held.served))
    }

    /// Brings the gateways that reach a user up to date, and the index when the user is no longer connected, or newly.
    fn reconnect(&mut self, user: Slot) {
        let served = self.served_partition(user).is_some();
        let live = self.sessions.of(user).filter(|gateway| served && self.gateways.alive(*gateway));
        let before = self.users.set_gateways(user, live);
        let friends = self.lists.of(user).iter();
        match (before, self.users.connected(user)) {
            (false, true) => {
                friends.for_each(|friend| self.index.add(*friend, user));
                self.connected += 1;
            }
            (true, false) => {
                friends.for_each(|friend| self.index.remove(*friend, user));
                self.connected -= 1;
            }
            _ => {}
        }
    }

    fn reconnect_all(&mut self, gateway: GatewayIndex) {
        let users: Vec<Slot> = self.sessions.on(gateway).collect();
        users.into_iter().for_each(|user| self.reconnect(user));
    }

    fn snapshot_if_alive(&self, user: Slot, gateway: GatewayIndex, out: &mut Vec<Notice>) {
        if self.gateways.alive(gateway) {
            self.tell_snapshot(user, gateway, out);
        }
    }
}

/// The first moment at which a position of `time` does not count any more.
fn due(time: TimestampMs, inactive_after_ms: i64) -> TimestampMs {
    time.plus_ms(inactive_after_ms).plus_ms(1)
}
