//! Workload W over dense arrays: by brute force, and by loops that do the least.

use super::{Move, World, partition, user_id};
use nearby_engine::{Address, GatewayIndex, Notice};
use nearby_schemas::batch::LeftReason;
use nearby_schemas::nearness::{EARTH_RADIUS_M, distance_dm, distance_m};
use nearby_schemas::{Place, TimestampMs};

const RADIUS_M: f64 = 8_000.0;

/// What was told; two that agree in all of it told the same.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Viewers who were told that a friend moved.
    pub moved: usize,
    /// Friends who were told to a viewer who moved.
    pub came: usize,
    pub left: usize,
    distances_dm: i64,
}

impl Told {
    /// All of them, with one for each viewer who moved.
    pub fn notices(&self, reports: usize) -> usize {
        self.moved + self.came + self.left + reports
    }

    /// What was told because of a report of `reporter`.
    pub fn add(&mut self, notice: &Notice, reporter: u32) {
        match notice {
            Notice::FriendMoved { to, distance_dm, .. } => {
                let own = to.viewer == user_id(reporter);
                self.came += usize::from(own);
                self.moved += usize::from(!own);
                self.distances_dm += i64::from(*distance_dm);
            }
            Notice::FriendLeft { .. } => self.left += 1,
            Notice::ViewerMoved { .. } => {}
            Notice::Snapshot { .. } => panic!("nobody asked for a snapshot"),
        }
    }
}

/// Dense arrays, and loops over them. All friendships go both ways, so a user's friends are also its watchers.
#[derive(Clone)]
pub struct Arrays {
    places: Vec<Place>,
    friends: Vec<Vec<u32>>,
}

impl Arrays {
    pub fn new(world: &World, friends: &[Vec<u32>]) -> Arrays {
        Arrays { places: world.places.clone(), friends: friends.to_vec() }
    }

    /// Every pair by the haversine alone.
    pub fn brute_force(mut self, rounds: &[Vec<Move>]) -> Told {
        let mut told = Told::default();
        for &(user, new) in rounds.iter().flatten() {
            let old = std::mem::replace(&mut self.places[user as usize], new);
            for friend in &self.friends[user as usize] {
                let place = self.places[*friend as usize];
                let (was_near, is_near) = (distance_m(old, place) <= RADIUS_M, distance_m(new, place) <= RADIUS_M);
                told.moved += usize::from(is_near);
                told.came += usize::from(is_near && !was_near);
                // Each of the two is told.
                told.left += 2 * usize::from(was_near && !is_near);
                let times = i64::from(is_near) + i64::from(is_near && !was_near);
                told.distances_dm += times * i64::from(distance_dm(new, place));
            }
        }
        told
    }

    /// Each friend by a cheap test and then by the haversine; returns how many are near.
    pub fn bare(&mut self, (user, place): Move) -> usize {
        self.places[user as usize] = place;
        let cheap = Bounds::around(place, RADIUS_M);
        let near = |friend: &&u32| {
            let other = self.places[**friend as usize];
            cheap.holds(other) && distance_m(place, other) <= RADIUS_M
        };
        self.friends[user as usize].iter().filter(near).count()
    }

    /// What the engine does, without ids, times, lists, sessions or expiry.
    pub fn same_work(&mut self, (user, new): Move, out: &mut Vec<Notice>) {
        let old = std::mem::replace(&mut self.places[user as usize], new);
        let own = address(user);
        out.push(Notice::ViewerMoved { to: own, place: new });
        let cheap = Bounds::around(new, RADIUS_M + distance_m(old, new));
        let updated_at = TimestampMs(0);
        for viewers_turn in [true, false] {
            for &friend in &self.friends[user as usize] {
                let place = self.places[friend as usize];
                if !cheap.holds(place) {
                    continue;
                }
                let (was_near, is_near) = (distance_m(old, place) <= RADIUS_M, distance_m(new, place) <= RADIUS_M);
                let (to, friend, at) =
                    if viewers_turn { (own, user_id(friend), place) } else { (address(friend), user_id(user), new) };
                if is_near && !(viewers_turn && was_near) {
                    let distance_dm = distance_dm(new, place);
                    out.push(Notice::FriendMoved { to, friend, place: at, updated_at, distance_dm });
                } else if was_near && !is_near {
                    out.push(Notice::FriendLeft { to, friend, reason: LeftReason::Distance });
                }
            }
        }
    }
}

fn address(user: u32) -> Address {
    Address { gateway: GatewayIndex(user / 7 % 2), partition: partition(user), viewer: user_id(user) }
}

/// The cheap test: a box of coordinates around a circle, far from the poles and the 180th meridian.
pub struct Bounds {
    centre: Place,
    lat_max_e7: u32,
    lon_max_e7: u32,
}

impl Bounds {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a box is some thousand metres")]
    pub fn around(centre: Place, radius_m: f64) -> Bounds {
        let lat_max_e7 = (radius_m / EARTH_RADIUS_M).to_degrees() * 1e7 + 1.0;
        // The circle is widest a little towards the pole.
        let lon_max_e7 = lat_max_e7 / centre.lat().to_radians().cos() * 1.01;
        Bounds { centre, lat_max_e7: lat_max_e7 as u32, lon_max_e7: lon_max_e7 as u32 }
    }

    #[inline]
    pub fn holds(&self, place: Place) -> bool {
        self.centre.lat_e7.abs_diff(place.lat_e7) <= self.lat_max_e7
            && self.centre.lon_e7.abs_diff(place.lon_e7) <= self.lon_max_e7
    }
}
