//! The inverted index: who of the connected viewers has a friend in their list.
//!
//! Four bytes an edge, and four more for the same edge in the viewer's list. A viewer who goes is looked for among the
//! friend's watchers: reading a thousand numbers in a row takes less time than following one pointer to find the right one.

use crate::users::Slot;

/// Watchers by slot of the friend.
#[derive(Default)]
pub(crate) struct Index {
    watchers: Vec<Vec<Slot>>,
    edges: usize,
}

impl Index {
    /// `viewer`, who did not before, watches `friend` from now on.
    pub(crate) fn add(&mut self, friend: Slot, viewer: Slot) {
        if self.watchers.len() <= friend as usize {
            self.watchers.resize_with(friend as usize + 1, Vec::new);
        }
        self.watchers[friend as usize].push(viewer);
        self.edges += 1;
    }

    /// `viewer` no longer watches `friend`.
    ///
    /// # Panics
    /// If it did not before: the index would no longer be true.
    pub(crate) fn remove(&mut self, friend: Slot, viewer: Slot) {
        let watchers = &mut self.watchers[friend as usize];
        let found = watchers.iter().position(|watcher| *watcher == viewer);
        watchers.swap_remove(found.expect("every friend of a connected viewer leads back to it"));
        if watchers.is_empty() {
            *watchers = Vec::new();
        }
        self.edges -= 1;
    }

    /// The watchers of `friend`.
    #[inline]
    pub(crate) fn watchers(&self, friend: Slot) -> &[Slot] {
        self.watchers.get(friend as usize).map_or(&[], Vec::as_slice)
    }

    /// How many (viewer, friend) there are.
    pub(crate) fn edges(&self) -> usize {
        self.edges
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn watchers(index: &Index, friend: Slot) -> BTreeSet<Slot> {
        let mut found = BTreeSet::new();
        let watchers = index.watchers(friend).iter();
        watchers.for_each(|viewer| assert!(found.insert(*viewer), "{viewer} is there twice"));
        found
    }

    #[test]
    fn holds_watchers_on_the_way_up_and_down() {
        let mut index = Index::default();
        let mut expected = BTreeSet::new();
        for viewer in 0..3_000 {
            index.add(5, viewer);
            expected.insert(viewer);
        }
        for viewer in (0..3_000).map(|step| step * 7 % 3_000) {
            assert_eq!(index.edges(), expected.len());
            if viewer % 50 == 0 {
                assert_eq!(watchers(&index, 5), expected);
            }
            index.remove(5, viewer);
            expected.remove(&viewer);
        }
        assert_eq!(index.watchers[5].capacity(), 0);
        assert!(watchers(&index, 4).is_empty() && watchers(&index, 999).is_empty());
    }
}
