//! The people of the benches: where they are, whom they know and how they move, always the same from one seed. And how the
//! time they take is measured.

#![allow(dead_code, reason = "each bench is a crate of its own and uses some of it")]

pub mod arrays;

use nearby_engine::{Engine, EngineSettings, Notice};
use nearby_schemas::{GatewayId, Place, TimestampMs, UserId};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::time::{ClockId, clock_gettime};
use std::f64::consts::TAU;
use std::fmt;
use std::time::Duration;

const SEED: u64 = 20_260_101;
/// South-west corner of the square in which the centres are.
const CORNER: (f64, f64) = (37.5, -122.5);
const SIDE_M: f64 = 60_000.0;
const SIGMA_M: f64 = 5_500.0;
const METRES_PER_DEGREE: f64 = 111_195.0;
const PARTITIONS: i32 = 16;
const GATEWAYS: usize = 2;
/// When everybody has reported once.
pub const START: TimestampMs = TimestampMs(1_000_000_000);
const ROUND_MS: i64 = 30_000;

/// Reports that are announced together.
const PREFETCHED: usize = 16;

/// A report, by the dense number of its user.
pub type Move = (u32, Place);

pub struct World {
    random: StdRng,
    /// How many users are around each centre; they follow one another.
    per_centre: u32,
    pub places: Vec<Place>,
}

impl World {
    /// Users around centres.
    pub fn new(users: u32, centres: u32) -> World {
        let mut world = World { random: StdRng::seed_from_u64(SEED), per_centre: users / centres, places: Vec::new() };
        for _ in 0..centres {
            let centre = (world.random.random_range(0.0..SIDE_M), world.random.random_range(0.0..SIDE_M));
            for _ in 0..world.per_centre {
                let (north_m, east_m) = world.gaussian();
                let corner = Place::from_degrees(CORNER.0, CORNER.1).expect("on the globe");
                world.places.push(walk(corner, centre.0 + SIGMA_M * north_m, centre.1 + SIGMA_M * east_m));
            }
        }
        world
    }

    /// Users who are at these places, all around one centre.
    pub fn at(places: Vec<Place>) -> World {
        let random = StdRng::seed_from_u64(SEED);
        World { random, per_centre: u32::try_from(places.len()).expect("fewer than 2^32 users"), places }
    }

    pub fn users(&self) -> u32 {
        u32::try_from(self.places.len()).expect("fewer than 2^32 users")
    }

    /// `count` users whom `user` knows: half of them from the same centre, the others from other centres. Some may come
    /// twice.
    pub fn acquaintances(&mut self, user: u32, count: u32) -> Vec<u32> {
        let (per_centre, users) = (self.per_centre, self.users());
        let first = user / per_centre * per_centre;
        let pick = |nth| {
            let from = if nth % 2 == 0 { first } else { first + per_centre };
            let among = if nth % 2 == 0 { per_centre } else { users - per_centre };
            (from + self.random.random_range(0..among)) % users
        };
        (0..count).map(pick).filter(|friend| *friend != user).collect()
    }

    /// Friendships that all go both ways, about `mean` for each user.
    pub fn friendships(&mut self, mean: u32) -> Vec<Vec<u32>> {
        let mut friends = vec![Vec::new(); self.places.len()];
        for user in 0..self.users() {
            for friend in self.acquaintances(user, mean / 2) {
                friends[user as usize].push(friend);
                friends[friend as usize].push(user);
            }
        }
        for list in &mut friends {
            list.sort_unstable();
            list.dedup();
        }
        friends
    }

    /// Every user moves 50 to 400 m, in random order.
    pub fn round(&mut self) -> Vec<Move> {
        let mut order: Vec<u32> = (0..self.users()).collect();
        for last in (1..order.len()).rev() {
            order.swap(last, self.random.random_range(0..=last));
        }
        let mut moves = Vec::with_capacity(order.len());
        for user in order {
            let (bearing, length_m) = (self.random.random_range(0.0..TAU), self.random.random_range(50.0..400.0));
            let place = &mut self.places[user as usize];
            *place = walk(*place, length_m * bearing.cos(), length_m * bearing.sin());
            moves.push((user, *place));
        }
        moves
    }

    /// An engine for which everybody is connected, and has reported once.
    pub fn engine(&self, friends: &[Vec<u32>]) -> Engine {
        let mut engine = empty_engine();
        let (now, mut out) = (START, Vec::new());
        for (user, list) in (0..).zip(friends) {
            let list: Vec<UserId> = list.iter().map(|friend| user_id(*friend)).collect();
            engine.friend_list(partition(user), user_id(user), Some(&list), now, &mut out);
        }
        (0..self.users()).for_each(|user| connect(&mut engine, user));
        for (user, place) in (0..).zip(&self.places) {
            engine.report(user_id(user), now, Some(*place), now, &mut out);
        }
        serve_all(&mut engine);
        engine
    }

    fn gaussian(&mut self) -> (f64, f64) {
        let radius = (-2.0 * (1.0 - self.random.random::<f64>()).ln()).sqrt();
        let angle = self.random.random_range(0.0..TAU);
        (radius * angle.cos(), radius * angle.sin())
    }
}

/// Ids are not dense: the engine has to look them up. They are some of those that 100 million users have: of four bytes in Avro.
pub fn user_id(user: u32) -> UserId {
    UserId(i64::from(user.wrapping_mul(0x9E37_79B1) % (1 << 27)))
}

pub fn partition(user: u32) -> i32 {
    i32::try_from(user % PARTITIONS.cast_unsigned()).expect("few partitions")
}

/// An engine whose gateways are alive.
pub fn empty_engine() -> Engine {
    let mut engine = Engine::new(EngineSettings { gateway_lost_after_ms: i64::MAX, ..EngineSettings::default() });
    for gateway in 0..GATEWAYS {
        engine.heartbeat(&gateway_id(gateway), START, START, &mut Vec::new());
    }
    engine
}

pub fn connect(engine: &mut Engine, user: u32) {
    let gateway = gateway_id(user as usize / 7 % GATEWAYS);
    engine.session(partition(user), user_id(user), &gateway, Some(0), START, &mut Vec::new());
}

/// Serves every partition; returns how many notices that took.
pub fn serve_all(engine: &mut Engine) -> usize {
    let (mut told, mut out) = (0, Vec::new());
    for partition in 0..PARTITIONS {
        engine.serve(partition, START, &mut out);
        while engine.resume(START, &mut out) {}
        told += out.len();
        out.clear();
    }
    told
}

/// Hands over a move as a report; the rounds follow one another every 30 s.
#[inline]
pub fn report(engine: &mut Engine, round: usize, (user, place): Move, out: &mut Vec<Notice>) {
    let now = START.plus_ms(ROUND_MS * i64::try_from(round + 1).expect("few rounds"));
    engine.report(user_id(user), now, Some(place), now, out);
}

/// Hands over many, as a processor does.
pub fn reports(engine: &mut Engine, round: usize, moves: &[Move], out: &mut Vec<Notice>) {
    for together in moves.chunks(PREFETCHED) {
        engine.prefetch(together.iter().map(|(user, _)| user_id(*user)));
        together.iter().for_each(|made| report(engine, round, *made, out));
    }
}

pub fn gateway_id(gateway: usize) -> GatewayId {
    GatewayId::new(format!("g{gateway}")).expect("a legal name")
}

fn walk(from: Place, north_m: f64, east_m: f64) -> Place {
    let lat = from.lat() + north_m / METRES_PER_DEGREE;
    let lon = from.lon() + east_m / METRES_PER_DEGREE / lat.to_radians().cos();
    Place::from_degrees(lat, lon).expect("far from the poles and the 180th meridian")
}

/// CPU time of this thread: what others do on the machine counts less than in the time of the wall.
pub fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).expect("CPU time is positive");
    Duration::new(seconds, u32::try_from(time.tv_nsec).expect("less than a second"))
}

/// What it takes to do something, and its result.
pub fn measure<T>(act: impl FnOnce() -> T) -> (Duration, T) {
    let before = cpu_time();
    let result = act();
    (cpu_time() - before, result)
}

/// Figures of several runs.
pub struct Figures(Vec<f64>);

impl Figures {
    pub fn new(mut figures: Vec<f64>) -> Figures {
        figures.sort_by(f64::total_cmp);
        Figures(figures)
    }

    pub fn minimum(&self) -> f64 {
        self.0[0]
    }

    pub fn median(&self) -> f64 {
        self.0[self.0.len() / 2]
    }

    pub fn maximum(&self) -> f64 {
        self.0[self.0.len() - 1]
    }
}

/// Minimum, median, maximum.
impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:8.3} / {:8.3} / {:8.3}", self.0[0], self.median(), self.0[self.0.len() - 1])
    }
}

/// Nanoseconds of each of `count` things that took `time` together.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
pub fn each_ns(time: Duration, count: usize) -> f64 {
    time.as_secs_f64() * 1e9 / count as f64
}
