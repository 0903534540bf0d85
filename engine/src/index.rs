//! The inverted index: who of the connected viewers has a friend in their list.
//!
//! Four bytes an edge, and four more for the same edge in the viewer's list. A viewer who goes is looked for among the
//! friend's watchers: reading a thousand numbers in a row takes less time than following one pointer to find the right one.
//! The few friends with more watchers than that have a tree.

use crate::users::Slot;
use std::collections::BTreeSet;

/// Above so many watchers a search costs more than a tree.
const FEW_MAX: usize = 1_024;

enum Watchers {
    Few(Vec<Slot>),
    Many(BTreeSet<Slot>),
}

/// Watchers by slot of the friend.
#[derive(Default)]
pub(crate) struct Index {
    watchers: Vec<Watchers>,
    edges: usize,
}

impl Index {
    /// `viewer` watches `friend` from now on.
    ///
    /// # Panics
    /// If it did before, and the friend has many watchers: the index would no longer be true.
    pub(crate) fn add(&mut self, friend: Slot, viewer: Slot) {
        if self.watchers.len() <= friend as usize {
            self.watchers.resize_with(friend as usize + 1, || Watchers::Few(Vec::new()));
        }
        let watchers = &mut self.watchers[friend as usize];
        match watchers {
            Watchers::Few(few) if few.len() < FEW_MAX => few.push(viewer),
            Watchers::Few(few) => {
                let mut many: BTreeSet<Slot> = few.drain(..).collect();
                assert!(many.insert(viewer), "an edge is added once");
                *watchers = Watchers::Many(many);
            }
            Watchers::Many(many) => assert!(many.insert(viewer), "an edge is added once"),
        }
        self.edges += 1;
    }

    /// `viewer` no longer watches `friend`.
    ///
    /// # Panics
    /// If it did not before: the index would no longer be true.
    pub(crate) fn remove(&mut self, friend: Slot, viewer: Slot) {
        match &mut self.watchers[friend as usize] {
            Watchers::Few(few) => {
                let found = few.iter().position(|watcher| *watcher == viewer);
                few.swap_remove(found.expect("every friend of a connected viewer leads back to it"));
                if few.is_empty() {
                    *few = Vec::new();
                }
            }
            Watchers::Many(many) => {
                assert!(many.remove(&viewer), "every friend of a connected viewer leads back to it");
                if many.len() <= FEW_MAX / 2 {
                    self.watchers[friend as usize] = Watchers::Few(many.iter().copied().collect());
                }
            }
        }
        self.edges -= 1;
    }

    /// Calls for each watcher of `friend`.
    #[inline]
    pub(crate) fn each(&self, friend: Slot, mut call: impl FnMut(Slot)) {
        match self.watchers.get(friend as usize) {
            None => {}
            Some(Watchers::Few(few)) => few.iter().copied().for_each(call),
            Some(Watchers::Many(many)) => many.iter().for_each(|viewer| call(*viewer)),
        }
    }

    /// How many (viewer, friend) there are.
    pub(crate) fn edges(&self) -> usize {
        self.edges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watchers(index: &Index, friend: Slot) -> BTreeSet<Slot> {
        let mut found = BTreeSet::new();
        index.each(friend, |viewer| assert!(found.insert(viewer), "{viewer} is there twice"));
        found
    }

    #[test]
    fn holds_few_and_many_on_the_way_up_and_down() {
        let mut index = Index::default();
        let mut expected = BTreeSet::new();
        for viewer in 0..3_000 {
            index.add(5, viewer);
            expected.insert(viewer);
        }
        assert!(matches!(index.watchers[5], Watchers::Many(_)));
        for viewer in (0..3_000).map(|step| step * 7 % 3_000) {
            assert_eq!(index.edges(), expected.len());
            if viewer % 50 == 0 {
                assert_eq!(watchers(&index, 5), expected);
            }
            index.remove(5, viewer);
            expected.remove(&viewer);
        }
        assert!(matches!(&index.watchers[5], Watchers::Few(few) if few.capacity() == 0));
        assert!(watchers(&index, 4).is_empty() && watchers(&index, 999).is_empty());
    }
}
