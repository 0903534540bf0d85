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

use nearby_engine::{Engine, Notice};
use std::hint::black_box;
use workload::arrays::{Arrays, Told};
use workload::{Figures, Move, World, each_ns, measure, report, reports};

const USERS: u32 = 20_000;
const CENTRES: u32 = 20;
const FRIENDS: u32 = 40;
const ROUNDS: usize = 20;
const RUNS: usize = 7;
/// Reports whose notices are taken away together.
const BATCH: usize = 200;

fn main() {
    let mut world = World::new(USERS, CENTRES);
    let friends = world.friendships(FRIENDS);
    let fresh_engine = |world: &World| world.engine(&friends);
    let arrays = Arrays::new(&world, &friends);
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

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn ratio(count: usize, of: usize) -> f64 {
    count as f64 / of as f64
}
