//! Workload W: what a report costs, against loops over dense arrays and against brute force.
//!
//! `cargo bench -p nearby-engine --bench w`
//!
//! 20,000 viewers around 20 centres (sigma 5.5 km) in 60 x 60 km, about 40 friends each, half of them from the same centre;
//! 20 rounds in which everybody moves 50 to 400 m. Two limits run in turns with the engine:
//! - **bare**: the place is stored; each friend is compared by a cheap test and then by the haversine; those near are
//!   counted. Nobody is told anything, and friends are not compared with the place where the one who moved was before.
//! - **same work**: what the engine does, both for the watchers and for the viewer's own friends, before and after, with
//!   distances, and a notice written for each; but without ids, times, lists, sessions or expiry.

mod workload;

use nearby_engine::{Address, Engine, GatewayIndex, Notice};
use nearby_schemas::batch::LeftReason;
use nearby_schemas::nearness::{EARTH_RADIUS_M, distance_dm, distance_m};
use nearby_schemas::{Place, TimestampMs};
use std::hint::black_box;
use workload::{Figures, Move, World, each_ns, measure, report, reports, user_id};

const USERS: u32 = 20_000;
const CENTRES: u32 = 20;
const FRIENDS: u32 = 40;
const ROUNDS: usize = 20;
const RUNS: usize = 7;
const RADIUS_M: f64 = 8_000.0;
/// Reports whose notices are taken away together.
const BATCH: usize = 200;

fn main() {
    let mut world = World::new(USERS, CENTRES);
    let friends = world.friendships(FRIENDS);
    let fresh_engine = |world: &World| world.engine(&friends);
    let arrays = Arrays { places: world.places.clone(), friends: friends.clone() };
    let mut engine = fresh_engine(&world);
    let rounds: Vec<Vec<Move>> = (0..ROUNDS).map(|_| world.round()).collect();
    let count = USERS as usize * ROUNDS;

    let expected = arrays.clone().brute_force(&rounds);
    assert_eq!(told_by(&mut engine, &rounds), expected, "the engine tells what brute force finds");
    let edges: usize = friends.iter().map(Vec::len).sum();
    println!("{USERS} viewers, {:.1} friends each; of {count} reports, each:", ratio(edges, USERS as usize));
    println!("  {:.2} viewers told that a friend moved", ratio(expected.moved, count));
    println!("  {:.2} friends who came near, {:.2} who left", ratio(expected.came, count), ratio(expected.left, count));
    println!("  engine equal to brute force, to the decimetre");

    let (mut bare, mut same_work, mut engines) = (Vec::new(), Vec::new(), Vec::new());
    let start = World::new(USERS, CENTRES);
    for _ in 0..RUNS {
        let mut bare_arrays = arrays.clone();
        let (time, near) = measure(|| rounds.iter().flatten().map(|made| bare_arrays.bare(*made)).sum::<usize>());
        assert_eq!(near, expected.moved);
        bare.push(each_ns(time, count));

        let mut same_arrays = arrays.clone();
        let (time, told) =
            measure(|| run(&rounds, |_, moves, out| moves.iter().for_each(|made| same_arrays.same_work(*made, out))));
        assert_eq!(told, expected.notices(count));
        same_work.push(each_ns(time, count));

        let mut engine = fresh_engine(&start);
        let (time, told) = measure(|| run(&rounds, |round, moves, out| reports(&mut engine, round, moves, out)));
        assert_eq!(told, expected.notices(count));
        engines.push(each_ns(time, count));
    }
    let (bare, same_work, engine) = (Figures::new(bare), Figures::new(same_work), Figures::new(engines));
    println!("ns of CPU a report, minimum / median / maximum of {RUNS} runs:");
    for (name, figures) in [("bare", &bare), ("same work", &same_work), ("engine", &engine)] {
        println!("  {name:10} {figures}  {:.2} M reports/s", 1e3 / figures.median());
    }
    println!("engine / bare      {:.2} (goal: at most 1.4)", engine.median() / bare.median());
    println!("engine / same work {:.2}", engine.median() / same_work.median());
}

/// Hands over the reports, and takes the notices away now and then; returns how many there were.
fn run(rounds: &[Vec<Move>], mut take: impl FnMut(usize, &[Move], &mut Vec<Notice>)) -> usize {
    let (mut told, mut out) = (0, Vec::new());
    for (number, round) in rounds.iter().enumerate() {
        for batch in round.chunks(BATCH) {
            take(number, batch, &mut out);
            told += out.len();
            black_box(&mut out).clear();
        }
    }
    told
}

/// What was told; two that agree in all of it told the same.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    /// Viewers who were told that a friend moved.
    moved: usize,
    /// Friends who were told to a viewer who moved.
    came: usize,
    left: usize,
    distances_dm: i64,
}

impl Told {
    /// All of them, with one for each viewer who moved.
    fn notices(&self, reports: usize) -> usize {
        self.moved + self.came + self.left + reports
    }

    /// What was told because of a report of `reporter`.
    fn add(&mut self, notice: &Notice, reporter: u32) {
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

fn told_by(engine: &mut Engine, rounds: &[Vec<Move>]) -> Told {
    let mut told = Told::default();
    for (number, round) in rounds.iter().enumerate() {
        for made in round {
            let mut out = Vec::new();
            report(engine, number, *made, &mut out);
            out.iter().for_each(|notice| told.add(notice, made.0));
        }
    }
    told
}

/// Dense arrays, and loops over them. All friendships go both ways, so a user's friends are also its watchers.
#[derive(Clone)]
struct Arrays {
    places: Vec<Place>,
    friends: Vec<Vec<u32>>,
}

impl Arrays {
    /// Every pair by the haversine alone.
    fn brute_force(mut self, rounds: &[Vec<Move>]) -> Told {
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

    fn bare(&mut self, (user, place): Move) -> usize {
        self.places[user as usize] = place;
        let cheap = Bounds::around(place, RADIUS_M);
        let near = |friend: &&u32| {
            let other = self.places[**friend as usize];
            cheap.holds(other) && distance_m(place, other) <= RADIUS_M
        };
        self.friends[user as usize].iter().filter(near).count()
    }

    fn same_work(&mut self, (user, new): Move, out: &mut Vec<Notice>) {
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
    Address { gateway: GatewayIndex(user / 7 % 2), partition: workload::partition(user), viewer: user_id(user) }
}

/// The cheap test: a box of coordinates around a circle, far from the poles and the 180th meridian.
struct Bounds {
    centre: Place,
    lat_max_e7: u32,
    lon_max_e7: u32,
}

impl Bounds {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a box is some thousand metres")]
    fn around(centre: Place, radius_m: f64) -> Bounds {
        let lat_max_e7 = (radius_m / EARTH_RADIUS_M).to_degrees() * 1e7 + 1.0;
        // The circle is widest a little towards the pole.
        let lon_max_e7 = lat_max_e7 / centre.lat().to_radians().cos() * 1.01;
        Bounds { centre, lat_max_e7: lat_max_e7 as u32, lon_max_e7: lon_max_e7 as u32 }
    }

    #[inline]
    fn holds(&self, place: Place) -> bool {
        self.centre.lat_e7.abs_diff(place.lat_e7) <= self.lat_max_e7
            && self.centre.lon_e7.abs_diff(place.lon_e7) <= self.lon_max_e7
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn ratio(count: usize, of: usize) -> f64 {
    count as f64 / of as f64
}
