//! The inverted index: who of the connected viewers has a friend in their list.
//!
//! Four bytes an edge, and four more for the same edge in the viewer's list. A viewer who goes is looked for among the
//! friend's watchers: reading a thousand numbers in a row takes less time than following one pointer to find the right one.
//!
//! A friend with more watchers than are told at once is a **hub**: the further ones watch its **stand-ins**, slots with the
//! hub's id and a place of their own, which follow the hub a little later. What a viewer sees of a hub is what its stand-in
//! says, so the viewer's list holds the stand-in's slot. Stand-ins stay, for the next who come to watch.

use crate::users::Slot;

/// The end of a chain of stand-ins.
const NOBODY: Slot = Slot::MAX;

struct Watchers {
    viewers: Vec<Slot>,
    /// For whom this slot stands in; itself, if for nobody.
    hub: Slot,
    /// The next stand-in of the same hub.
    next: Slot,
}

/// Watchers by slot of the friend.
pub(crate) struct Index {
    watchers: Vec<Watchers>,
    /// How many may watch one slot.
    watchers_max: usize,
    edges: usize,
}

impl Index {
    pub(crate) fn new(watchers_max: usize) -> Index {
        Index { watchers: Vec::new(), watchers_max, edges: 0 }
    }

    /// The friend, or a stand-in, whichever has room for a watcher more.
    #[inline]
    pub(crate) fn room(&mut self, friend: Slot) -> Option<Slot> {
        self.grow(friend);
        let has_room = |slot: &Slot| self.watchers[*slot as usize].viewers.len() < self.watchers_max;
        if has_room(&friend) { Some(friend) } else { self.stand_ins(friend).find(has_room) }
    }

    /// `stand_in`, a new slot, stands in for `hub` from now on.
    pub(crate) fn add_stand_in(&mut self, hub: Slot, stand_in: Slot) {
        self.grow(stand_in);
        // The newest comes first, because it has room.
        let next = std::mem::replace(&mut self.watchers[hub as usize].next, stand_in);
        self.watchers[stand_in as usize] = Watchers { viewers: Vec::new(), hub, next };
    }

    /// `viewer`, who did not before, watches `watched` from now on.
    #[inline]
    pub(crate) fn add(&mut self, watched: Slot, viewer: Slot) {
        self.watchers[watched as usize].viewers.push(viewer);
        self.edges += 1;
    }

    /// `viewer` no longer watches `watched`.
    ///
    /// # Panics
    /// If it did not before: the index would no longer be true.
    pub(crate) fn remove(&mut self, watched: Slot, viewer: Slot) {
        let viewers = &mut self.watchers[watched as usize].viewers;
        let found = viewers.iter().position(|watcher| *watcher == viewer);
        viewers.swap_remove(found.expect("every friend of a connected viewer leads back to it"));
        if viewers.is_empty() {
            *viewers = Vec::new();
        }
        self.edges -= 1;
    }

    /// The watchers of a friend or stand-in, without those of other stand-ins.
    #[inline]
    pub(crate) fn watchers(&self, watched: Slot) -> &[Slot] {
        self.watchers.get(watched as usize).map_or(&[], |watchers| &watchers.viewers)
    }

    /// For whom somebody stands in; itself, if for nobody.
    pub(crate) fn hub(&self, watched: Slot) -> Slot {
        self.watchers.get(watched as usize).map_or(watched, |watchers| watchers.hub)
    }

    /// The stand-ins of a friend, the newest first.
    #[inline]
    pub(crate) fn stand_ins(&self, friend: Slot) -> impl Iterator<Item = Slot> + '_ {
        let next = |slot: Slot| Some(self.watchers.get(slot as usize)?.next).filter(|next| *next != NOBODY);
        std::iter::successors(next(friend), move |stand_in| next(*stand_in))
    }

    /// How many (viewer, friend) there are.
    pub(crate) fn edges(&self) -> usize {
        self.edges
    }

    #[inline]
    fn grow(&mut self, slot: Slot) {
        if self.watchers.len() <= slot as usize {
            let more = (0..=slot).skip(self.watchers.len());
            self.watchers.extend(more.map(|hub| Watchers { viewers: Vec::new(), hub, next: NOBODY }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn watchers(index: &Index, friend: Slot) -> BTreeSet<Slot> {
        let mut found = BTreeSet::new();
        for watched in std::iter::once(friend).chain(index.stand_ins(friend)) {
            assert!(index.watchers(watched).len() <= 100);
            assert!(watched == friend || index.hub(watched) == friend);
            let watchers = index.watchers(watched).iter();
            watchers.for_each(|viewer| assert!(found.insert(*viewer), "{viewer} is there twice"));
        }
        found
    }

    #[test]
    fn holds_watchers_on_the_way_up_and_down() {
        let mut index = Index::new(100);
        let (mut expected, mut watched_by) = (BTreeSet::new(), Vec::new());
        for viewer in 0..1_050 {
            let watched = index.room(5).unwrap_or_else(|| {
                index.add_stand_in(5, 2_000 + viewer);
                2_000 + viewer
            });
            index.add(watched, viewer);
            watched_by.push(watched);
            expected.insert(viewer);
        }
        assert_eq!(index.stand_ins(5).count(), 10);
        for viewer in (0..1_050).map(|step| step * 11 % 1_050) {
            assert_eq!(index.edges(), expected.len());
            assert_eq!(watchers(&index, 5), expected);
            index.remove(watched_by[viewer as usize], viewer);
            expected.remove(&viewer);
        }
        assert!(index.room(5) == Some(5) && index.stand_ins(5).count() == 10);
        assert_eq!(index.watchers[5].viewers.capacity(), 0);
        assert!(watchers(&index, 4).is_empty() && watchers(&index, 9_999).is_empty());
    }
}
