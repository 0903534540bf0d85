//! Whom each viewer may see: the lists of all users of the held partitions, connected or not.

use crate::users::Slot;

/// Friends by slot of the viewer: sorted, each once, the viewer left out.
#[derive(Default)]
pub(crate) struct Lists {
    lists: Vec<Option<Box<[Slot]>>>,
    held: usize,
}

impl Lists {
    /// The viewer's friends; none without a list.
    #[inline]
    pub(crate) fn of(&self, viewer: Slot) -> &[Slot] {
        self.lists.get(viewer as usize).and_then(Option::as_deref).unwrap_or_default()
    }

    /// Replaces the viewer's list; returns the one before.
    pub(crate) fn replace(&mut self, viewer: Slot, friends: Option<Vec<Slot>>) -> Box<[Slot]> {
        if self.lists.len() <= viewer as usize {
            self.lists.resize_with(viewer as usize + 1, || None);
        }
        let friends = friends.map(|mut friends| {
            friends.sort_unstable();
            friends.dedup();
            friends.retain(|friend| *friend != viewer);
            // Not a shrunk vector: that would leave holes all over the heap.
            Box::from(&friends[..])
        });
        self.held += usize::from(friends.is_some());
        let before = std::mem::replace(&mut self.lists[viewer as usize], friends);
        self.held -= usize::from(before.is_some());
        before.unwrap_or_default()
    }

    /// How many users have a list.
    pub(crate) fn held(&self) -> usize {
        self.held
    }
}

/// Those of `these` that are not among `those`; both sorted.
pub(crate) fn without<'a>(these: &'a [Slot], those: &'a [Slot]) -> impl Iterator<Item = Slot> + 'a {
    these.iter().copied().filter(|slot| those.binary_search(slot).is_err())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_sorted_and_has_everybody_once_but_not_the_viewer() {
        let mut lists = Lists::default();
        assert!(lists.replace(2, Some(vec![9, 2, 4, 9, 1])).is_empty());
        assert_eq!(lists.of(2), [1, 4, 9]);
        assert_eq!(*lists.replace(2, Some(vec![])), [1, 4, 9]);
        assert_eq!((lists.of(2), lists.of(77), lists.held()), (&[][..], &[][..], 1));
        lists.replace(2, None);
        assert_eq!(lists.held(), 0);
    }
}
