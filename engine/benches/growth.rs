//! How the cost of a report grows with the number of users and of friends.
//!
//! `cargo bench -p nearby-engine --bench growth` (some minutes, and 5 GB of memory)
//!
//! A report looks at each friend's place and at each watcher's, so its cost grows with the number of friends. It does not
//! depend on the number of users, except that places and addresses of a million users do not fit into the caches: each look
//! is then a load from memory. `random loads` shows that part alone: as many places are read as a report looks at, at random,
//! out of an array as long.

mod workload;

use nearby_engine::Engine;
use nearby_schemas::Place;
use std::hint::black_box;
use std::time::Duration;
use workload::{Figures, Move, World, each_ns, measure, reports};

const RUNS: usize = 5;
/// Reports whose notices are taken away together.
const BATCH: usize = 200;
/// Reports of a run with 40 friends; fewer with more friends.
const REPORTS: usize = 200_000;

fn main() {
    println!("ns of CPU a report, minimum / median / maximum of {RUNS} runs");
    for (users, centres, friends) in [
        (10_000, 20, 40),
        (100_000, 20, 40),
        (1_000_000, 20, 40),
        (20_000, 20, 40),
        (20_000, 20, 400),
        (20_000, 4, 5_000),
    ] {
        grow(users, centres, friends);
    }
}

fn grow(users: u32, centres: u32, friends_mean: u32) {
    let mut world = World::new(users, centres);
    let mut engine = {
        let friends = world.friendships(friends_mean);
        world.engine(&friends)
    };
    let friends = quotient(engine.counts().edges_indexed, users as usize);
    let count = REPORTS * 40 / friends_mean as usize;
    let (mut times, mut loads, mut told) = (Vec::new(), Vec::new(), 0);
    let mut moves: Vec<Move> = Vec::new();
    for round in 0..RUNS {
        while moves.len() < count {
            moves.extend(world.round());
        }
        let (time, run_told) = measure(|| run(&mut engine, round, &moves[..count]));
        moves.drain(..count);
        times.push(each_ns(time, count));
        told += run_told;
        // A place for each friend and each watcher.
        loads.push(each_ns(random_loads(&world.places, count * 2 * friends_mean as usize), count));
    }
    let (times, loads) = (Figures::new(times), Figures::new(loads));
    println!(
        "{users:9} viewers, {friends:6.1} friends: {times}, {:6.2} a friend, {:7.1} notices | random loads {loads}",
        times.median() / friends,
        quotient(told, RUNS * count),
    );
}

fn run(engine: &mut Engine, round: usize, moves: &[Move]) -> usize {
    let (mut told, mut out) = (0, Vec::new());
    for batch in moves.chunks(BATCH) {
        reports(engine, round, batch, &mut out);
        told += out.len();
        out.clear();
    }
    told
}

/// Reads `count` places, at random.
fn random_loads(places: &[Place], count: usize) -> Duration {
    let users = u32::try_from(places.len()).expect("fewer than 2^32 users");
    let (time, sum) = measure(|| {
        let (mut state, mut sum) = (1_u32, 0_i64);
        for _ in 0..count {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let index = (u64::from(state) * u64::from(users)) >> 32;
            sum += i64::from(places[usize::try_from(index).expect("below the number of users")].lat_e7);
        }
        sum
    });
    black_box(sum);
    time
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn quotient(count: usize, of: usize) -> f64 {
    count as f64 / of as f64
}
