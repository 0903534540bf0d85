//! Whom each viewer may see: the lists of all users of the held partitions, connected or not.

use crate::users::Slot;

/// Friends by slot of the viewer. Of a connected viewer the slots are those that it watches: a hub's stand-in may be there
/// in the hub's place.
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
    pub(crate) fn replace(&mut self, viewer: Slot, friends: Option<Box<[Slot]>>) -> Option<Box<[Slot]>> {
        if self.lists.len() <= viewer as usize {
            self.lists.resize_with(viewer as usize + 1, || None);
        }
        self.held += usize::from(friends.is_some());
        let before = std::mem::replace(&mut self.lists[viewer as usize], friends);
        self.held -= usize::from(before.is_some());
        before
    }

    /// How many users have a list.
    pub(crate) fn held(&self) -> usize {
        self.held
    }
}

/// As a list holds them: sorted, each once, the viewer left out.
pub(crate) fn list_of(viewer: Slot, mut friends: Vec<Slot>) -> Box<[Slot]> {
    friends.sort_unstable();
    friends.dedup();
    friends.retain(|friend| *friend != viewer);
    // Not a shrunk vector: that would leave holes all over the heap.
    Box::from(&friends[..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_sorted_and_has_everybody_once_but_not_the_viewer() {
        let mut lists = Lists::default();
        assert_eq!(lists.replace(2, Some(list_of(2, vec![9, 2, 4, 9, 1]))), None);
        assert_eq!(lists.of(2), [1, 4, 9]);
        assert_eq!(lists.replace(2, Some(list_of(2, vec![]))).as_deref(), Some(&[1, 4, 9][..]));
        assert_eq!((lists.of(2), lists.of(77), lists.held()), (&[][..], &[][..], 1));
        lists.replace(2, None);
        assert_eq!(lists.held(), 0);
    }
}
