//! The sessions of users on one gateway, and what their records in the log have to say: pure, like [`delivery`](crate::delivery).
//!
//! A user has a session as long as it has a socket here. [`connect`](Sessions::connect), [`disconnect`](Sessions::disconnect)
//! and [`ask_all`](Sessions::ask_all) answer which record has to be written; whoever calls them hands it to the log before
//! the next call about that user, so that the log's order is the order of what happened. A record that was not acknowledged
//! is written again as [`session`](Sessions::session) says then.
//!
//! What is not here: the log, locks, a clock. The hub spreads a gateway's users over several of these.

use crate::delivery::{Outgoing, Shown, SocketId, Viewer};
use nearby_schemas::{TimestampMs, UserId};
use std::collections::BTreeMap;
use std::task::Waker;

/// One user's sockets on one gateway: some devices, and what they left behind and nobody has found to be gone yet.
pub const SOCKETS_PER_USER_MAX: usize = 16;

/// The sessions of the users who are connected.
#[derive(Debug, Default)]
pub struct Sessions {
    connected: BTreeMap<UserId, Connected>,
    /// The greatest ask ever given. It outlives the sessions: the owner may never see the tombstone between two of them,
    /// because it was not acknowledged or is compacted away, and then answers the second only if it asks for more.
    ask_max: i64,
}

/// A user who has at least one socket.
#[derive(Debug, Default)]
struct Connected {
    viewer: Viewer,
    ask: i64,
    wakers: Vec<(SocketId, Waker)>,
}

impl Sessions {
    /// A socket has come; `wake` is called whenever there may be something to [`take`](Self::take). Returns the `ask` of
    /// the session record that has to be written: the first socket opens the session, the others find its view, or wait for
    /// the same snapshot.
    #[must_use = "the session record has to be written"]
    pub fn connect(&mut self, user: UserId, socket: SocketId, wake: Waker, now: TimestampMs) -> Option<i64> {
        let opened = (!self.connected.contains_key(&user)).then(|| self.next_ask(now));
        let connected = self.connected.entry(user).or_default();
        if let Some(ask) = opened {
            connected.ask = ask;
        }
        let known = connected.viewer.connect(socket);
        if known {
            wake.wake_by_ref();
        }
        connected.wakers.push((socket, wake));
        opened
    }

    /// Whether the user may have one socket more.
    pub fn has_room(&self, user: UserId) -> bool {
        self.connected.get(&user).is_none_or(|connected| connected.wakers.len() < SOCKETS_PER_USER_MAX)
    }

    /// A socket is gone. Returns whether it was the user's last: then the session is over, and its tombstone has to be
    /// written.
    #[must_use = "the tombstone has to be written"]
    pub fn disconnect(&mut self, user: UserId, socket: SocketId) -> bool {
        let Some(connected) = self.connected.get_mut(&user) else { return false };
        connected.wakers.retain(|(held, _)| *held != socket);
        let last = connected.viewer.disconnect(socket);
        if last {
            self.connected.remove(&user);
        }
        last
    }

    /// Views may be wrong: everybody asks for a snapshot. Returns the session records that have to be written, by user, each
    /// with a greater `ask` than before.
    #[must_use = "the session records have to be written"]
    pub fn ask_all(&mut self, now: TimestampMs) -> Vec<(UserId, i64)> {
        let ask = self.next_ask(now);
        let raised = self.connected.iter_mut().map(|(user, connected)| {
            connected.ask = ask;
            (*user, ask)
        });
        raised.collect()
    }

    /// The `ask` that the user's session record has to hold now; a tombstone if there is none.
    pub fn session(&self, user: UserId) -> Option<i64> {
        self.connected.get(&user).map(|connected| connected.ask)
    }

    /// Changes a viewer as [`for_each_viewer`](crate::delivery::for_each_viewer) says, and wakes its sockets. Returns
    /// whether the user is here; who is not (any more) is passed over.
    pub fn change(&mut self, user: UserId, change: impl FnOnce(&mut Viewer)) -> bool {
        let Some(connected) = self.connected.get_mut(&user) else { return false };
        change(&mut connected.viewer);
        connected.wakers.iter().for_each(|(_, wake)| wake.wake_by_ref());
        true
    }

    /// What the socket has to send now, if anything; it counts as sent.
    pub fn take(&mut self, user: UserId, socket: SocketId) -> Option<Outgoing> {
        self.connected.get_mut(&user)?.viewer.take(socket)
    }

    /// All that a connected user sees, once that is known.
    pub fn view(&self, user: UserId) -> Option<Vec<(UserId, Shown)>> {
        self.connected.get(&user)?.viewer.view()
    }

    /// Grows with every call, whatever the clock does.
    fn next_ask(&mut self, now: TimestampMs) -> i64 {
        self.ask_max = now.0.max(self.ask_max + 1);
        self.ask_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearby_schemas::batch::ViewerSnapshot;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::Wake;

    const NOW: TimestampMs = TimestampMs(1_000);
    const USER: UserId = UserId(1);
    const EMPTY: Option<Outgoing> = Some(Outgoing::Snapshot(Vec::new()));

    /// Remembers that it was woken.
    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    fn connect(sessions: &mut Sessions, user: UserId, socket: u64) -> (Arc<Woken>, Option<i64>) {
        let wake = Arc::new(Woken::default());
        let ask = sessions.connect(user, SocketId(socket), Arc::clone(&wake).into(), NOW);
        (wake, ask)
    }

    fn snapshot(sessions: &mut Sessions, user: UserId) -> bool {
        let snapshot = ViewerSnapshot { viewer: user, place: None, friends: vec![] };
        sessions.change(user, |viewer| viewer.snapshot(&snapshot))
    }

    fn woken(wake: &Woken) -> bool {
        wake.0.swap(false, Ordering::Relaxed)
    }

    #[test]
    fn a_second_socket_writes_no_record() {
        let mut sessions = Sessions::default();
        let (first, ask) = connect(&mut sessions, USER, 1);
        assert_eq!((ask, sessions.session(USER)), (Some(NOW.0), Some(NOW.0)));
        let (second, ask) = connect(&mut sessions, USER, 2);
        assert_eq!(ask, None, "the snapshot is under way");
        assert_eq!((woken(&first), woken(&second), sessions.view(USER)), (false, false, None));

        assert!(snapshot(&mut sessions, USER));
        assert_eq!((woken(&first), woken(&second)), (true, true));
        let (third, ask) = connect(&mut sessions, USER, 3);
        assert_eq!((ask, woken(&third)), (None, true), "the view is known");
        assert_eq!((1..=3).map(|socket| sessions.take(USER, SocketId(socket))).collect::<Vec<_>>(), vec![EMPTY; 3]);
        assert_eq!((woken(&first), woken(&second)), (false, false), "who has the view is left alone");
    }

    #[test]
    fn the_last_disconnect_writes_a_tombstone() {
        let mut sessions = Sessions::default();
        let [(first, _), (second, _)] = [1, 2].map(|socket| connect(&mut sessions, USER, socket));
        assert!(!sessions.disconnect(USER, SocketId(1)));
        assert_eq!(sessions.session(USER), Some(NOW.0), "another socket is left");
        assert!(snapshot(&mut sessions, USER));
        assert_eq!((woken(&first), woken(&second)), (false, true));
        assert!(sessions.disconnect(USER, SocketId(2)));
        assert_eq!((sessions.session(USER), sessions.view(USER)), (None, None));
        assert_eq!(sessions.take(USER, SocketId(2)), None);
        assert!(!snapshot(&mut sessions, USER), "who is gone is passed over");
        assert!(!sessions.disconnect(USER, SocketId(2)), "and is gone once");
    }

    #[test]
    fn a_user_has_a_bounded_number_of_sockets() {
        let mut sessions = Sessions::default();
        for socket in 0..SOCKETS_PER_USER_MAX as u64 {
            assert!(sessions.has_room(USER), "{socket}");
            connect(&mut sessions, USER, socket);
        }
        assert_eq!((sessions.has_room(USER), sessions.has_room(UserId(2))), (false, true));
        assert!(!sessions.disconnect(USER, SocketId(0)));
        assert!(sessions.has_room(USER));
    }

    #[test]
    fn a_session_that_is_opened_again_asks_for_more_whatever_the_clock_does() {
        let mut sessions = Sessions::default();
        let mut open_at = |now| {
            let ask = sessions.connect(USER, SocketId(1), Waker::noop().clone(), TimestampMs(now));
            assert_eq!(sessions.session(USER), ask);
            assert!(sessions.disconnect(USER, SocketId(1)));
            ask
        };
        let asks = [1_000, 1_000, 400, 1_000, 2_000].map(&mut open_at);
        assert_eq!(asks, [1_000, 1_001, 1_002, 1_003, 2_000].map(Some));
    }

    #[test]
    fn a_session_that_is_opened_again_knows_nothing_of_the_one_before() {
        let mut sessions = Sessions::default();
        connect(&mut sessions, USER, 1);
        assert!(snapshot(&mut sessions, USER));
        assert!(sessions.disconnect(USER, SocketId(1)));
        let (wake, _) = connect(&mut sessions, USER, 2);
        assert_eq!((woken(&wake), sessions.view(USER), sessions.take(USER, SocketId(2))), (false, None, None));
    }

    #[test]
    fn asking_all_raises_every_ask_in_the_order_of_users() {
        let mut sessions = Sessions::default();
        let users = [5, 3, 9, 4].map(UserId);
        let before = users.map(|user| connect(&mut sessions, user, 1).1);
        assert!(before.iter().all(Option::is_some));
        assert!(sessions.disconnect(UserId(4), SocketId(1)));
        let raised = sessions.ask_all(TimestampMs(0));
        assert_eq!(raised.iter().map(|(user, _)| user.0).collect::<Vec<_>>(), [3, 5, 9]);
        assert!(raised.iter().all(|(user, ask)| sessions.session(*user) == Some(*ask)));
        assert!(
            raised.iter().all(|(_, ask)| before.iter().all(|before| Some(*ask) > *before)),
            "{before:?} {raised:?}"
        );
        let again = sessions.ask_all(TimestampMs(0));
        assert!(raised.iter().zip(&again).all(|(raised, again)| raised < again), "{raised:?} {again:?}");
    }
}
