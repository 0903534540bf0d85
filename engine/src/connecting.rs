//! Who is held, who is connected, and whom the connected ones watch.

use crate::backlog::{LOOKS_PER_EDGE, LOOKS_PER_EDGE_TOLD};
use crate::engine::Engine;
use crate::notice::{GatewayIndex, Notice};
use crate::users::Slot;
use nearby_schemas::UserId;
use std::hint::black_box;

impl Engine {
    /// The slot of a user of `partition`, held from now on; `None` if it is held under another partition.
    pub(crate) fn hold(&mut self, partition: i32, user: UserId) -> Option<Slot> {
        let slot = self.users.slot(user);
        if self.is_leaving(slot) {
            let partition = self.users.partition(slot);
            if let Some(viewers) = partition.and_then(|partition| self.leaving.get_mut(&partition)) {
                viewers.remove(&slot);
            }
            self.let_go(slot);
        }
        match self.users.partition(slot) {
            Some(held) => (held == partition).then_some(slot),
            None => {
                self.users.set_partition(slot, Some(partition));
                self.partitions.entry(partition).or_default().viewers.insert(slot);
                Some(slot)
            }
        }
    }

    /// Nothing is held of a user any more, and nothing told. Returns how many looks that cost.
    pub(crate) fn let_go(&mut self, user: Slot) -> usize {
        self.sessions.forget(user);
        let looks = self.reconnect(user, |_| false, &mut Vec::new());
        self.lists.replace(user, None);
        self.users.set_partition(user, None);
        looks
    }

    /// Whether a user's partition was forgotten, and the user not yet let go: nothing must be told to it.
    pub(crate) fn is_leaving(&self, user: Slot) -> bool {
        // Nearly always there is no such partition.
        !self.leaving.is_empty()
            && self
                .users
                .partition(user)
                .and_then(|partition| self.leaving.get(&partition))
                .is_some_and(|viewers| viewers.contains(&user))
    }

    pub(crate) fn served_partition(&self, user: Slot) -> Option<i32> {
        let served = |partition: &i32| self.partitions.get(partition).is_some_and(|held| held.served);
        self.users.partition(user).filter(served).filter(|_| !self.is_leaving(user))
    }

    /// Brings the gateways that reach a user up to date, and the index when the user is no longer connected, or newly. Where
    /// the user is told what happens, a snapshot comes first; it also comes where it is asked for. Returns how many looks that
    /// cost: of the many users who are not connected, hardly any.
    pub(crate) fn reconnect(
        &mut self,
        user: Slot,
        asked: impl Fn(GatewayIndex) -> bool,
        out: &mut Vec<Notice>,
    ) -> usize {
        let served = self.served_partition(user).is_some();
        let new = self.sessions.tell_on(user, |gateway| served && self.gateways.alive(gateway));
        let before = self.users.set_gateways(user, self.sessions.told(user));
        let edges = self.lists.of(user).len();
        let mut looks = 1;
        match (before, self.users.connected(user)) {
            (false, true) => {
                self.each_friend(user, Engine::watch);
                self.connected += 1;
                looks += LOOKS_PER_EDGE * edges;
            }
            (true, false) => {
                self.each_friend(user, Engine::unwatch);
                self.connected -= 1;
                looks += LOOKS_PER_EDGE * edges;
            }
            _ => {}
        }
        for gateway in self.sessions.told(user).filter(|gateway| asked(*gateway) || new.contains(gateway)) {
            self.tell_snapshot(user, gateway, out);
            looks += LOOKS_PER_EDGE_TOLD * edges;
        }
        looks
    }

    /// The viewer's list is replaced, and the difference told.
    pub(crate) fn set_list(&mut self, viewer: Slot, mut friends: Option<Box<[Slot]>>, out: &mut Vec<Notice>) {
        if !self.users.connected(viewer) {
            self.lists.replace(viewer, friends);
            return;
        }
        let before = self.lists.replace(viewer, None).unwrap_or_default();
        let hubs: Vec<Slot> = before.iter().map(|watched| self.index.hub(*watched)).collect();
        let (mut removed, mut added) = (Vec::new(), Vec::new());
        for (watched, hub) in before.iter().zip(&hubs) {
            if friends.as_ref().is_none_or(|friends| friends.binary_search(hub).is_err()) {
                self.unwatch(*watched, viewer);
                removed.push(*watched);
            }
        }
        for friend in friends.iter_mut().flatten() {
            if let Ok(at) = hubs.binary_search(friend) {
                *friend = before[at];
            } else {
                *friend = self.watch(*friend, viewer);
                added.push(*friend);
            }
        }
        self.lists.replace(viewer, friends);
        self.tell_list(viewer, &removed, &added, out);
    }

    /// Replaces each friend in a viewer's list.
    fn each_friend(&mut self, viewer: Slot, replace: impl Fn(&mut Engine, Slot, Slot) -> Slot) {
        let mut friends = self.lists.replace(viewer, None);
        // Where the watchers are, and where they end, is read for all friends at once, or each would be waited for.
        for friend in friends.iter().flatten() {
            black_box(self.index.watchers(*friend).last().copied());
        }
        for friend in friends.iter_mut().flatten() {
            *friend = replace(self, *friend, viewer);
        }
        self.lists.replace(viewer, friends);
    }

    /// The viewer watches the friend from now on; returns the slot that it watches, the friend's or a stand-in's.
    fn watch(&mut self, friend: Slot, viewer: Slot) -> Slot {
        let watched = self.index.room(friend).unwrap_or_else(|| {
            let stand_in = self.users.add_stand_in(friend);
            self.index.add_stand_in(friend, stand_in);
            stand_in
        });
        self.index.add(watched, viewer);
        watched
    }

    /// The viewer no longer watches; returns the friend whom it watched.
    fn unwatch(&mut self, watched: Slot, viewer: Slot) -> Slot {
        self.index.remove(watched, viewer);
        self.index.hub(watched)
    }
}
