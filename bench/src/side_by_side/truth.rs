//! What is told, and by brute force what has to be: every pair of friends by the haversine alone.
//!
//! A *notification* is: a viewer is told where a friend within the radius is, because that friend reported or because the
//! viewer's own report brought the two together (`shown`), or that a friend is no longer within it (`left`). Rules R1, R3 and R4 of the
//! engine say so; a viewer's own new position is none.

use crate::workload::Move;
use nearby_schemas::Place;
use nearby_schemas::nearness::{distance_dm, distance_m};
use std::ops::{AddAssign, Sub};
use std::sync::Arc;

pub const RADIUS_M: f64 = 8_000.0;

/// How often something was told, and the sum of the distances that were: two that agree in all three told the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub shown: u64,
    pub left: u64,
    pub distances_dm: i64,
}

impl Count {
    /// A viewer is told where a friend is.
    pub fn show(&mut self, distance_dm: i32) {
        self.shown += 1;
        self.distances_dm += i64::from(distance_dm);
    }

    pub fn notifications(self) -> u64 {
        self.shown + self.left
    }

    /// How many notifications this has more than the truth, in percent of these.
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    pub fn difference_percent(self, truth: Count) -> f64 {
        (self.notifications() as f64 - truth.notifications() as f64) / truth.notifications().max(1) as f64 * 100.0
    }
}

impl AddAssign for Count {
    fn add_assign(&mut self, more: Count) {
        self.shown += more.shown;
        self.left += more.left;
        self.distances_dm += more.distances_dm;
    }
}

impl Sub for Count {
    type Output = Count;

    fn sub(self, earlier: Count) -> Count {
        Count {
            shown: self.shown - earlier.shown,
            left: self.left - earlier.left,
            distances_dm: self.distances_dm - earlier.distances_dm,
        }
    }
}

/// Where everybody is, and who is whose friend: all friendships go both ways.
pub struct Truth {
    places: Vec<Place>,
    friends: Arc<Vec<Vec<u32>>>,
}

impl Truth {
    pub fn new(places: Vec<Place>, friends: Arc<Vec<Vec<u32>>>) -> Truth {
        Truth { places, friends }
    }

    /// What has to be told because of these reports, in this order.
    pub fn count(&mut self, moves: &[Move]) -> Count {
        let mut count = Count::default();
        for &(user, new) in moves {
            let old = std::mem::replace(&mut self.places[user as usize], new);
            for friend in &self.friends[user as usize] {
                let place = self.places[*friend as usize];
                let (was_near, is_near) = (distance_m(old, place) <= RADIUS_M, distance_m(new, place) <= RADIUS_M);
                if is_near {
                    count.show(distance_dm(new, place));
                }
                if is_near && !was_near {
                    count.show(distance_dm(new, place));
                }
                // Each of the two is told.
                count.left += 2 * u64::from(was_near && !is_near);
            }
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::{World, report, user_id};
    use nearby_engine::Notice;

    #[test]
    fn the_engine_tells_what_brute_force_finds() {
        let mut world = World::new(200, 4);
        let friends = world.friendships(20);
        let (mut engine, mut truth) = (world.engine(&friends), Truth::new(world.places.clone(), Arc::new(friends)));
        let (mut told, mut expected) = (Count::default(), Count::default());
        for round in 0..5 {
            let moves = world.round();
            expected += truth.count(&moves);
            for made in moves {
                let mut out = Vec::new();
                report(&mut engine, round, made, &mut out);
                for notice in out {
                    match notice {
                        Notice::FriendMoved { distance_dm, .. } => told.show(distance_dm),
                        Notice::FriendLeft { .. } => told.left += 1,
                        Notice::ViewerMoved { to, .. } => assert_eq!(to.viewer, user_id(made.0)),
                        Notice::Snapshot { .. } => panic!("nobody asked for a snapshot"),
                    }
                }
            }
        }
        assert_eq!(told, expected);
        assert!(told.left > 0 && told.shown > 1_000, "too little happens to be a test: {told:?}");
    }

    #[test]
    fn a_difference_has_a_sign() {
        let truth = Count { shown: 190, left: 10, distances_dm: 0 };
        let less = Count { shown: 180, left: 10, distances_dm: 0 };
        assert!((less.difference_percent(truth) + 5.0).abs() < 1e-9);
        assert!((truth.difference_percent(less) - 10.0 / 190.0 * 100.0).abs() < 1e-9);
    }
}
