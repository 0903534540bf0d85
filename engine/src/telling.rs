//! The rules that compare what was seen before an input with what is seen after it, and tell the difference.
//!
//! Everything here reads the engine's state and writes notices; the calls that change the state are in `engine.rs`.

use crate::engine::Engine;
use crate::notice::{Address, GatewayIndex, Notice};
use crate::radius::Circles;
use crate::users::{Reach, Slot};
use nearby_schemas::batch::{LeftReason, SeenFriend, ViewerSnapshot};

impl Engine {
    /// R3: a friend's place has changed, or its stand-in's; the watchers are told.
    pub(crate) fn tell_watchers(&self, friend: Slot, circles: &Circles, out: &mut Vec<Notice>) {
        let (id, updated_at) = (self.users.id(friend), self.users.time(friend));
        let reason =
            if circles.new_circle().is_some() { LeftReason::Distance } else { self.users.gone(self.index.hub(friend)) };
        circles.each_near(self.index.watchers(friend), self.users.places(), |viewer, place, _, is_near| {
            if let Some(circle) = circles.new_circle().filter(|_| is_near) {
                let (place, distance_dm) = (circle.centre(), circle.distance_dm(place));
                self.tell(viewer, out, |to| Notice::FriendMoved { to, friend: id, place, updated_at, distance_dm });
            } else {
                self.tell(viewer, out, |to| Notice::FriendLeft { to, friend: id, reason });
            }
        });
    }

    /// R4: a viewer's own place has changed: who is no longer near, where the viewer is, who comes near. In this order, because
    /// a gateway may send to the client between any two notices: were the place first, everybody shown would get a new
    /// distance, and those who are about to leave would be shown for a moment farther away than anybody may be.
    pub(crate) fn tell_viewer(&self, viewer: Slot, circles: &Circles, out: &mut Vec<Notice>) {
        if !self.users.connected(viewer) {
            return;
        }
        let reason = if circles.new_circle().is_some() { LeftReason::Distance } else { LeftReason::OwnLocation };
        let mut come = Vec::new();
        circles.each_changed(self.lists.of(viewer), self.users.places(), |friend, place, is_near| {
            if let Some(circle) = circles.new_circle().filter(|_| is_near) {
                come.push((friend, circle.distance_dm(place)));
            } else {
                let friend = self.users.id(friend);
                self.tell(viewer, out, |to| Notice::FriendLeft { to, friend, reason });
            }
        });
        if let Some(circle) = circles.new_circle() {
            self.tell(viewer, out, |to| Notice::ViewerMoved { to, place: circle.centre() });
        }
        for (friend, distance_dm) in come {
            self.tell_near(viewer, friend, distance_dm, out);
        }
    }

    /// R11: friends were taken out of the list of a connected viewer, or put in.
    pub(crate) fn tell_list(&self, viewer: Slot, removed: &[Slot], added: &[Slot], out: &mut Vec<Notice>) {
        let Some(circle) = self.users.place(viewer).map(|place| self.radius.around(place)) else { return };
        let near = |friend: &Slot| self.users.place(*friend).is_some_and(|place| circle.holds(place));
        for friend in removed.iter().filter(|friend| near(friend)) {
            let friend = self.users.id(*friend);
            self.tell(viewer, out, |to| Notice::FriendLeft { to, friend, reason: LeftReason::Unfriended });
        }
        for &friend in added {
            if let Some(place) = self.users.place(friend).filter(|place| circle.holds(*place)) {
                self.tell_near(viewer, friend, circle.distance_dm(place), out);
            }
        }
    }

    /// R5: all that a connected viewer sees, to one gateway.
    pub(crate) fn tell_snapshot(&self, viewer: Slot, gateway: GatewayIndex, out: &mut Vec<Notice>) {
        let (Reach::One(address) | Reach::Several(address)) = self.users.reach(viewer) else { return };
        let place = self.users.place(viewer);
        let mut friends = Vec::new();
        let circles = self.radius.moved(None, place);
        if let Some(circle) = circles.new_circle() {
            circles.each_near(self.lists.of(viewer), self.users.places(), |friend, place, _, _| {
                friends.push(SeenFriend {
                    friend: self.users.id(friend),
                    lat_e7: place.lat_e7,
                    lon_e7: place.lon_e7,
                    updated_at: self.users.time(friend),
                    distance_dm: circle.distance_dm(place),
                });
            });
        }
        let snapshot = Box::new(ViewerSnapshot { viewer: address.viewer, place, friends });
        out.push(Notice::Snapshot { to: Address { gateway, ..address }, snapshot });
    }

    /// A friend who did not move is seen now.
    fn tell_near(&self, viewer: Slot, friend: Slot, distance_dm: i32, out: &mut Vec<Notice>) {
        let place = self.users.place(friend).expect("who is near has a place");
        let (id, updated_at) = (self.users.id(friend), self.users.time(friend));
        self.tell(viewer, out, |to| Notice::FriendMoved { to, friend: id, place, updated_at, distance_dm });
    }

    /// R7: each gateway to which the viewer is connected is told, once.
    #[inline]
    fn tell(&self, viewer: Slot, out: &mut Vec<Notice>, notice: impl Fn(Address) -> Notice) {
        if self.is_leaving(viewer) {
            return;
        }
        match self.users.reach(viewer) {
            Reach::Nowhere => {}
            Reach::One(address) => out.push(notice(address)),
            Reach::Several(address) => self.tell_several(viewer, out, |gateway| notice(Address { gateway, ..address })),
        }
    }

    #[cold]
    fn tell_several(&self, viewer: Slot, out: &mut Vec<Notice>, notice: impl Fn(GatewayIndex) -> Notice) {
        out.extend(self.sessions.told(viewer).map(notice));
    }
}
