//! What each client has been told and has still to be told: the pure heart of a gateway.
//!
//! A [`Viewer`] is one user connected here, by one or more sockets. It holds the view that the processors described, and for
//! each socket an [`Outbox`]: not a queue but the set of friends whose newest state the socket has not sent yet. However
//! slow a client is, an outbox never holds more than one entry per friend.

use nearby_schemas::batch::{Event, FriendMovedBatch, LeftReason, SeenFriend, ViewerSnapshot};
use nearby_schemas::nearness::distance_dm;
use nearby_schemas::{Epoch, Place, TimestampMs, UserId};
use std::collections::BTreeMap;

/// Identifies a socket within a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketId(pub u64);

/// A friend as a client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Where.
    pub place: Place,
    /// Time of the report.
    pub updated_at: TimestampMs,
    /// From the viewer, in decimetres.
    pub distance_dm: i32,
}

/// What a socket has to send next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outgoing {
    /// Everything; replaces what the client had.
    Snapshot(Vec<(UserId, Shown)>),
    /// What is new since the last frame.
    Update {
        /// Friends with their newest state.
        moved: Vec<(UserId, Shown)>,
        /// Friends that are gone, and why.
        left: Vec<(UserId, LeftReason)>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Moved,
    Left(LeftReason),
}

/// What one socket has not sent yet.
#[derive(Debug, Default)]
struct Outbox {
    /// Everything, instead of the changes.
    snapshot: bool,
    /// The viewer moved: every friend shown has a new distance.
    all_moved: bool,
    changes: BTreeMap<UserId, Change>,
}

/// One user connected to this gateway.
#[derive(Debug, Default)]
pub struct Viewer {
    /// Whether a snapshot has come; before that nothing is known, and nothing is told.
    known: bool,
    friends: BTreeMap<UserId, Shown>,
    sockets: BTreeMap<SocketId, Outbox>,
}

impl Viewer {
    /// A new socket. Its first frame is the view, if that is known already; otherwise it sends nothing until the snapshot has
    /// come. Returns whether the view is known.
    pub fn connect(&mut self, socket: SocketId) -> bool {
        self.sockets.insert(socket, Outbox { snapshot: self.known, ..Outbox::default() });
        self.known
    }

    /// A socket is gone; true if it was the last.
    pub fn disconnect(&mut self, socket: SocketId) -> bool {
        self.sockets.remove(&socket);
        self.sockets.is_empty()
    }

    /// The sockets.
    pub fn sockets(&self) -> impl Iterator<Item = SocketId> + '_ {
        self.sockets.keys().copied()
    }

    /// All that the viewer sees, once that is known.
    pub fn view(&self) -> Option<Vec<(UserId, Shown)>> {
        self.known.then(|| self.friends.iter().map(|(friend, shown)| (*friend, *shown)).collect())
    }

    /// A friend is at a place.
    pub fn friend_moved(&mut self, friend: UserId, shown: Shown) {
        if self.known {
            self.friends.insert(friend, shown);
            self.change(friend, Change::Moved);
        }
    }

    /// A friend is no longer seen.
    pub fn friend_left(&mut self, friend: UserId, reason: LeftReason) {
        if self.friends.remove(&friend).is_some() {
            self.change(friend, Change::Left(reason));
        }
    }

    /// The viewer is at a new place: distances change, places and times do not.
    pub fn moved(&mut self, place: Place) {
        if !self.known {
            return;
        }
        for shown in self.friends.values_mut() {
            shown.distance_dm = distance_dm(place, shown.place);
        }
        for outbox in self.sockets.values_mut() {
            outbox.all_moved = true;
        }
    }

    /// All that the viewer sees: replaces everything, also what was not sent yet.
    pub fn snapshot(&mut self, snapshot: &ViewerSnapshot) {
        self.known = true;
        self.friends = snapshot.friends.iter().map(|seen| (seen.friend, shown(seen))).collect();
        for outbox in self.sockets.values_mut() {
            outbox.snapshot = true;
        }
    }

    /// What the socket has to send now, if anything; it counts as sent.
    pub fn take(&mut self, socket: SocketId) -> Option<Outgoing> {
        let outbox = std::mem::take(self.sockets.get_mut(&socket)?);
        let friends = || self.friends.iter().map(|(friend, shown)| (*friend, *shown));
        if outbox.snapshot {
            return Some(Outgoing::Snapshot(friends().collect()));
        }
        let left = outbox.changes.iter().filter_map(|(friend, change)| match change {
            Change::Left(reason) => Some((*friend, *reason)),
            Change::Moved => None,
        });
        let left: Vec<_> = left.collect();
        let moved: Vec<_> = if outbox.all_moved {
            friends().collect()
        } else {
            let moved = outbox.changes.iter().filter(|(_, change)| **change == Change::Moved);
            moved.filter_map(|(friend, _)| Some((*friend, *self.friends.get(friend)?))).collect()
        };
        (!moved.is_empty() || !left.is_empty()).then_some(Outgoing::Update { moved, left })
    }

    fn change(&mut self, friend: UserId, change: Change) {
        for outbox in self.sockets.values_mut().filter(|outbox| !outbox.snapshot) {
            outbox.changes.insert(friend, change);
        }
    }
}

fn shown(seen: &SeenFriend) -> Shown {
    Shown {
        place: Place { lat_e7: seen.lat_e7, lon_e7: seen.lon_e7 },
        updated_at: seen.updated_at,
        distance_dm: seen.distance_dm,
    }
}

/// The newest epoch seen of each partition (rule R9).
#[derive(Debug, Default)]
pub struct Epochs {
    newest: BTreeMap<i32, Epoch>,
}

impl Epochs {
    /// Whether a section counts: not when a newer owner has spoken already.
    pub fn admit(&mut self, partition: i32, epoch: Epoch) -> bool {
        let newest = self.newest.entry(partition).or_insert(epoch);
        *newest = epoch.max(*newest);
        *newest == epoch
    }

    /// The events of the sections that count, in order, and how many sections do not.
    pub fn admitted<'a>(&mut self, batch: &'a FriendMovedBatch) -> (impl Iterator<Item = &'a Event> + use<'a>, usize) {
        let sections = batch.sections.iter();
        let admitted: Vec<_> = sections.filter(|section| self.admit(section.partition, section.epoch)).collect();
        let stale = batch.sections.len() - admitted.len();
        (admitted.into_iter().flat_map(|section| &section.events), stale)
    }
}

/// Calls `tell` for each viewer that an event concerns, with what to do to it.
pub fn for_each_viewer(event: &Event, mut tell: impl FnMut(UserId, &dyn Fn(&mut Viewer))) {
    match event {
        Event::FriendMoved(moved) => {
            let place = Place { lat_e7: moved.lat_e7, lon_e7: moved.lon_e7 };
            for told in &moved.viewers {
                let shown = Shown { place, updated_at: moved.updated_at, distance_dm: told.distance_dm };
                tell(told.viewer, &|viewer| viewer.friend_moved(moved.friend, shown));
            }
        }
        Event::FriendLeft(left) => {
            for told in &left.viewers {
                tell(*told, &|viewer| viewer.friend_left(left.friend, left.reason));
            }
        }
        Event::ViewerMoved(moved) => {
            let place = Place { lat_e7: moved.lat_e7, lon_e7: moved.lon_e7 };
            tell(moved.viewer, &|viewer| viewer.moved(place));
        }
        Event::ViewerSnapshot(snapshot) => tell(snapshot.viewer, &|viewer| viewer.snapshot(snapshot)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearby_schemas::batch::{Section, ViewerMoved};

    const SOCKET: SocketId = SocketId(1);
    const HERE: Place = Place { lat_e7: 400_000_000, lon_e7: 0 };

    fn shown(distance_dm: i32) -> Shown {
        Shown { place: HERE, updated_at: TimestampMs(5), distance_dm }
    }

    fn snapshot(friends: &[(i64, i32)]) -> ViewerSnapshot {
        let seen = |(friend, distance_dm): &(i64, i32)| SeenFriend {
            friend: UserId(*friend),
            lat_e7: HERE.lat_e7,
            lon_e7: HERE.lon_e7,
            updated_at: TimestampMs(5),
            distance_dm: *distance_dm,
        };
        ViewerSnapshot { viewer: UserId(1), place: Some(HERE), friends: friends.iter().map(seen).collect() }
    }

    fn known(friends: &[(i64, i32)]) -> Viewer {
        let mut viewer = Viewer::default();
        viewer.connect(SOCKET);
        viewer.snapshot(&snapshot(friends));
        assert!(matches!(viewer.take(SOCKET), Some(Outgoing::Snapshot(_))));
        viewer
    }

    fn update(moved: &[(i64, i32)], left: &[(i64, LeftReason)]) -> Option<Outgoing> {
        Some(Outgoing::Update {
            moved: moved.iter().map(|(friend, distance_dm)| (UserId(*friend), shown(*distance_dm))).collect(),
            left: left.iter().map(|(friend, reason)| (UserId(*friend), *reason)).collect(),
        })
    }

    #[test]
    fn nothing_is_told_before_the_snapshot() {
        let mut viewer = Viewer::default();
        assert!(!viewer.connect(SOCKET));
        viewer.friend_moved(UserId(2), shown(10));
        assert_eq!((viewer.take(SOCKET), viewer.view()), (None, None));
        viewer.snapshot(&snapshot(&[]));
        assert_eq!(viewer.take(SOCKET), Some(Outgoing::Snapshot(vec![])), "even if it is empty");
        assert_eq!(viewer.take(SOCKET), None);
    }

    #[test]
    fn the_newest_state_of_a_friend_is_told_once() {
        let mut viewer = known(&[(7, 1)]);
        viewer.friend_moved(UserId(2), shown(10));
        viewer.friend_moved(UserId(2), shown(20));
        viewer.friend_left(UserId(7), LeftReason::Distance);
        assert_eq!(viewer.take(SOCKET), update(&[(2, 20)], &[(7, LeftReason::Distance)]));
        viewer.friend_left(UserId(2), LeftReason::Inactive);
        viewer.friend_moved(UserId(2), shown(30));
        assert_eq!(viewer.take(SOCKET), update(&[(2, 30)], &[]), "left and back again");
        viewer.friend_left(UserId(9), LeftReason::Distance);
        assert_eq!(viewer.take(SOCKET), None, "who was never shown does not leave");
    }

    #[test]
    fn a_moving_viewer_gets_new_distances_and_old_times() {
        let mut viewer = known(&[(2, 1), (3, 1)]);
        viewer.moved(Place { lat_e7: HERE.lat_e7 + 10_000, lon_e7: 0 });
        assert_eq!(viewer.take(SOCKET), update(&[(2, 1_112), (3, 1_112)], &[]));
    }

    #[test]
    fn a_snapshot_replaces_what_was_not_sent() {
        let mut viewer = known(&[(7, 1)]);
        viewer.friend_left(UserId(7), LeftReason::Unshared);
        viewer.friend_moved(UserId(2), shown(10));
        viewer.snapshot(&snapshot(&[(3, 4)]));
        viewer.friend_moved(UserId(4), shown(8));
        let friends = vec![(UserId(3), shown(4)), (UserId(4), shown(8))];
        assert_eq!(viewer.take(SOCKET), Some(Outgoing::Snapshot(friends)), "with what came after it");
        assert_eq!(viewer.take(SOCKET), None);
    }

    #[test]
    fn each_socket_has_its_own_outbox() {
        let mut viewer = known(&[(3, 4)]);
        assert!(viewer.connect(SocketId(2)), "the view is known");
        viewer.friend_moved(UserId(2), shown(10));
        assert_eq!(viewer.take(SOCKET), update(&[(2, 10)], &[]), "no second snapshot for who has one");
        let friends = vec![(UserId(2), shown(10)), (UserId(3), shown(4))];
        assert_eq!(viewer.take(SocketId(2)), Some(Outgoing::Snapshot(friends)));
        assert!(!viewer.disconnect(SOCKET));
        assert!(viewer.disconnect(SocketId(2)), "the last one");
    }

    #[test]
    fn an_outbox_never_outgrows_the_friends() {
        let mut viewer = known(&[]);
        for round in 0..1_000 {
            for friend in 0..10 {
                viewer.friend_moved(UserId(friend), shown(round));
            }
        }
        assert_eq!(viewer.sockets[&SOCKET].changes.len(), 10);
    }

    #[test]
    fn older_epochs_are_dropped() {
        let mut epochs = Epochs::default();
        let admitted =
            [(3, 10), (3, 10), (4, 1), (3, 12), (3, 11), (3, 12)].map(|(p, epoch)| epochs.admit(p, Epoch(epoch)));
        assert_eq!(admitted, [true, true, true, true, false, true]);
    }

    #[test]
    fn the_events_of_older_epochs_are_left_out() {
        let moved = |viewer| Event::ViewerMoved(ViewerMoved { viewer: UserId(viewer), lat_e7: 0, lon_e7: 0 });
        let section = |partition, epoch, viewers: &[i64]| Section {
            partition,
            epoch: Epoch(epoch),
            events: viewers.iter().copied().map(moved).collect(),
        };
        let sections = vec![
            section(3, 12, &[1, 2]),
            section(4, 5, &[3]),
            section(3, 11, &[4]),
            section(3, 12, &[5]),
            section(4, 4, &[6]),
        ];
        let batch = FriendMovedBatch { emitted_at: TimestampMs(5), sections };
        let mut epochs = Epochs::default();
        let (events, stale) = epochs.admitted(&batch);
        assert_eq!((events.cloned().collect::<Vec<_>>(), stale), ([1, 2, 3, 5].map(moved).to_vec(), 2));
        let later = FriendMovedBatch { sections: vec![section(3, 11, &[7]), section(4, 6, &[8])], ..batch };
        let (events, stale) = epochs.admitted(&later);
        assert_eq!((events.cloned().collect::<Vec<_>>(), stale), (vec![moved(8)], 1), "epochs are remembered");
    }
}
