//! The engine's calls: each takes one input, changes the state and has the difference told.

use crate::backlog::{Backlog, Task};
use crate::expiry::Wheel;
use crate::gateways::Gateways;
use crate::index::Index;
use crate::lists::{Lists, list_of};
use crate::newest_first::{NewestFirst, Said};
use crate::notice::{GatewayIndex, Notice};
use crate::radius::Radius;
use crate::sessions::{Asked, Sessions};
use crate::settings::EngineSettings;
use crate::users::{Change, Slot, Users};
use nearby_schemas::{GatewayId, Place, TimestampMs, UserId};
use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;

/// So many watchers are told by one call, and so many more of what calls before have left. That takes some ten microseconds,
/// or a hundred, where a million users are not in the caches.
const LOOKS_AT_ONCE_MAX: usize = 4_096;

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
    pub(crate) partitions: BTreeMap<i32, Partition>,
    /// Users of partitions that are not held any more, as long as something is held of them.
    pub(crate) leaving: BTreeMap<i32, BTreeSet<Slot>>,
    pub(crate) backlog: Backlog,
    pub(crate) looks_at_once_max: usize,
    wheel: Wheel,
    pub(crate) connected: usize,
    /// As long as older reports are still to come.
    newest_first: Option<NewestFirst>,
}

/// Sizes of an engine's state, for metrics. Users whose turn has not come yet count as before.
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
pub(crate) struct Partition {
    pub(crate) served: bool,
    /// Every user with a record in it.
    pub(crate) viewers: BTreeSet<Slot>,
}

impl Engine {
    /// An engine that knows nobody and owns nothing.
    ///
    /// # Panics
    /// If the radius is negative or not a number.
    pub fn new(settings: EngineSettings) -> Engine {
        Engine::with_looks_at_once(settings, LOOKS_AT_ONCE_MAX)
    }

    /// An engine each of whose calls looks at no more than about so many edges for its own input, and at as many for what
    /// other inputs have left; see [`resume`](Self::resume).
    ///
    /// # Panics
    /// If the radius is negative or not a number, or if it may not look at any.
    pub fn with_looks_at_once(settings: EngineSettings, looks_at_once_max: usize) -> Engine {
        assert!(looks_at_once_max > 0, "an engine that looks at nobody would never be done");
        Engine {
            inactive_after_ms: settings.inactive_after_ms,
            clock: TimestampMs(i64::MIN),
            radius: Radius::new(settings.radius_m),
            users: Users::default(),
            lists: Lists::default(),
            index: Index::new(looks_at_once_max),
            sessions: Sessions::default(),
            gateways: Gateways::new(settings.gateway_lost_after_ms),
            partitions: BTreeMap::new(),
            leaving: BTreeMap::new(),
            backlog: Backlog::default(),
            looks_at_once_max,
            wheel: Wheel::new(),
            connected: 0,
            newest_first: None,
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
        let said = match &mut self.newest_first {
            None => Some((time, place)),
            Some(newest_first) => newest_first.newer(slot, (time, place)),
        };
        if let Some(said) = said {
            self.take_in(slot, said, out);
        }
    }

    /// From now on [`report`](Self::report)s are of the newer part of the log, which is what was appended at or after
    /// `since`; those of the part before come by [`older_report`](Self::older_report), in any mixture with them, until
    /// [`older_are_read`](Self::older_are_read). When [`resume`](Self::resume) has no more to do after that, everybody is
    /// where reading in order would have had them; until then some are missing, and nobody is shown whom a withdrawal hid.
    pub fn newest_first(&mut self, since: TimestampMs) {
        self.newest_first = Some(NewestFirst::new(since));
    }

    /// A report of the older part of the log.
    ///
    /// # Panics
    /// If the place is not on the globe.
    pub fn older_report(&mut self, user: UserId, time: TimestampMs, place: Option<Place>) {
        assert!(place.is_none_or(|place| place.check().is_ok()), "a place is on the globe");
        let slot = self.users.slot(user);
        if let Some(newest_first) = &mut self.newest_first {
            newest_first.older(slot, (time, place));
        }
    }

    /// The older part of the log has been read.
    pub fn older_are_read(&mut self) {
        if let Some(newest_first) = &mut self.newest_first {
            newest_first.older_are_read();
        }
    }

    /// Takes in some of the older part, once that has been read.
    fn take_in_older(&mut self, out: &mut Vec<Notice>) {
        let mut looks = 0;
        while looks < self.looks_at_once_max
            && let Some((slot, said)) = self.newest_first.as_mut().and_then(NewestFirst::next)
        {
            looks += 1;
            for said in said.into_iter().flatten() {
                self.take_in(slot, said, out);
                looks += self.looks(slot);
            }
        }
        if self.newest_first.as_ref().is_some_and(NewestFirst::is_complete) {
            self.newest_first = None;
        }
    }

    #[inline]
    fn take_in(&mut self, slot: Slot, (time, place): Said, out: &mut Vec<Notice>) {
        let oldest = self.clock.plus_ms(self.inactive_after_ms.saturating_neg());
        let Some(change) = self.users.report(slot, time, place, oldest) else {
            return self.work_off_beside(1, out);
        };
        // Who was shown has an entry in the wheel already.
        if change.old.is_none() && change.new.is_some() {
            self.wheel.schedule(slot, due(time, self.inactive_after_ms));
        }
        let mut looks = 1;
        if change.old.is_some() || change.new.is_some() {
            looks = self.looks(slot);
            let circles = self.radius.moved(change.old, change.new);
            self.tell_viewer(slot, &circles, out);
            self.tell_watchers(slot, &circles, out);
            self.let_follow(slot);
        }
        self.work_off_beside(looks, out);
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
        if let Some(viewer) = self.hold(partition, viewer) {
            let friends = friends.map(|friends| friends.iter().map(|friend| self.users.slot(*friend)).collect());
            self.set_list(viewer, friends.map(|friends| list_of(viewer, friends)), out);
        }
        self.work_off(out);
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
        if let Some(user) = self.hold(partition, user) {
            let gateway = self.gateways.index(gateway, self.clock);
            let asked = match ask {
                Some(ask) => self.sessions.open(user, gateway, ask),
                None => {
                    self.sessions.close(user, gateway);
                    Asked::Nothing
                }
            };
            self.reconnect(user, |on| on == gateway && asked == Asked::Snapshot, out);
        }
        self.work_off(out);
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
        beat.lost.into_iter().for_each(|lost| self.backlog.push(Task::Reconnect(lost)));
        if beat.revived {
            self.backlog.push(Task::Reconnect(gateway));
        }
        self.work_off(out);
    }

    /// The tombstone of a gateway's heartbeat: it is not alive from now on.
    pub fn gateway_removed(&mut self, gateway: &GatewayId, now: TimestampMs, out: &mut Vec<Notice>) {
        self.advance(now, out);
        let gateway = self.gateways.index(gateway, self.clock);
        self.gateways.remove(gateway, self.clock);
        self.backlog.push(Task::Reconnect(gateway));
        self.work_off(out);
    }

    /// Time passes: positions become too old (R1, R3). To be called at least once a second.
    pub fn tick(&mut self, now: TimestampMs, out: &mut Vec<Notice>) {
        self.advance(now, out);
        self.work_off(out);
    }

    /// Does some of what earlier inputs have left to do, as every other call does, too; says whether there is more. To be
    /// called again and again while there is no input, because until then not everybody was told everything.
    pub fn resume(&mut self, now: TimestampMs, out: &mut Vec<Notice>) -> bool {
        self.tick(now, out);
        self.take_in_older(out);
        let older_wait = self.newest_first.as_ref().is_some_and(|newest_first| !newest_first.is_reading());
        older_wait || !self.backlog.is_empty() || self.wheel.has_due(self.clock)
    }

    /// `partition` is restored and owned: its viewers get snapshots, and from now on what happens. Calling it again sends
    /// the snapshots again.
    pub fn serve(&mut self, partition: i32, now: TimestampMs, out: &mut Vec<Notice>) {
        self.advance(now, out);
        self.partitions.entry(partition).or_default().served = true;
        self.backlog.push(Task::Serve(partition));
        self.work_off(out);
    }

    /// `partition` is owned by somebody else: its lists and sessions are dropped, silently.
    pub fn forget(&mut self, partition: i32) {
        if let Some(mut held) = self.partitions.remove(&partition) {
            self.leaving.entry(partition).or_default().append(&mut held.viewers);
            self.backlog.push(Task::Forget(partition));
        }
    }

    /// A notice to `viewer` on `gateway` was lost: a snapshot again, unless it is not connected there any more.
    pub fn snapshot_again(&mut self, viewer: UserId, gateway: &GatewayId, now: TimestampMs, out: &mut Vec<Notice>) {
        self.advance(now, out);
        if let (Some(viewer), Some(gateway)) = (self.users.find(viewer), self.gateways.find(gateway))
            && self.sessions.has(viewer, gateway)
        {
            self.reconnect(viewer, |on| on == gateway, out);
        }
        self.work_off(out);
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
            for user in self.sessions.on(gateway, 0) {
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
        let (mut expired, mut looks) = (vec![first], self.looks(first));
        // Those for whom the work of this call does not suffice come up again.
        while looks < self.looks_at_once_max
            && let Some(slot) = self.next_due()
        {
            expired.push(slot);
            looks += self.looks(slot);
        }
        for &slot in &expired {
            self.tell_viewer(slot, &self.radius.moved(self.users.place(slot), None), out);
        }
        let changes: Vec<Change> = expired.iter().map(|slot| self.users.expire(*slot)).collect();
        for (slot, change) in expired.into_iter().zip(changes) {
            self.tell_watchers(slot, &self.radius.moved(change.old, change.new), out);
            self.let_follow(slot);
        }
    }

    /// Who looks at a user, and at whom the user looks.
    fn looks(&self, slot: Slot) -> usize {
        1 + self.lists.of(slot).len() + self.index.watchers(slot).len()
    }

    /// The stand-ins of a hub follow it, one after the other: first of all those of who is gone, because until then they show
    /// to others who must not be seen any more.
    #[inline]
    fn let_follow(&mut self, slot: Slot) {
        let is_gone = self.users.place(slot).is_none();
        for stand_in in self.index.stand_ins(slot) {
            let task = Task::Follow(stand_in);
            if is_gone { self.backlog.push_first(task) } else { self.backlog.push(task) }
        }
    }
}

/// The first moment at which a position of `time` does not count any more.
fn due(time: TimestampMs, inactive_after_ms: i64) -> TimestampMs {
    time.plus_ms(inactive_after_ms).plus_ms(1)
}
