//! The longest single calls: users with very many watchers or friends, and inputs that concern very many viewers.
//!
//! `cargo bench -p nearby-engine --bench hubs`
//!
//! 200,000 viewers with about 40 friends; one user is listed by 100,000 of them, another has 5,000 friends. After each such
//! input follow reports of others, as they would in the log, and then the calls that it takes until nothing is left to do;
//! the longest of all of these is printed, too.

mod workload;

use nearby_engine::{Engine, Notice};
use std::time::Duration;
use workload::{Figures, Move, START, World, gateway_id, measure, partition, report};

const USERS: u32 = 200_000;
const CENTRES: u32 = 20;
const FRIENDS: u32 = 40;
/// Listed by 100,000.
const HUB: u32 = 0;
const HUB_WATCHERS: u32 = 100_000;
/// Has 5,000 friends.
const WIDE: u32 = 1;
const WIDE_FRIENDS: u32 = 5_000;
const RUNS: usize = 7;
/// Reports of others after each input.
const OTHERS: usize = 2_000;

/// An input of a run.
type Input<'a> = &'a dyn Fn(&mut Engine, usize, &mut Vec<Notice>);

fn main() {
    let mut world = World::new(USERS, CENTRES);
    let friends = friendships(&mut world);
    let mut engine = world.engine(&friends);
    drop(friends);
    let rounds = [world.round(), world.round()];
    let made_by = |user: u32| rounds.each_ref().map(|round| of(user, round));
    let (hub, wide, other) = (made_by(HUB), made_by(WIDE), made_by(WIDE + 1));
    let others = rounds[0].iter().copied().filter(|(user, _)| *user > WIDE + 1).collect::<Vec<Move>>();
    let mut others = others.into_iter().cycle();
    let (now, gateway) = (START.plus_ms(30_000), gateway_id(0));

    println!("ms of CPU, minimum / median / maximum: the call itself, and the longest that follows");
    let mut measure = |runs, inputs: &[(&str, Input)]| longest(&mut engine, runs, inputs, &mut others);
    measure(
        RUNS,
        &[
            ("a report of any other", &|engine, run, out| report(engine, 0, other[run % 2], out)),
            ("a report of who is listed by 100,000", &|engine, run, out| report(engine, 0, hub[run % 2], out)),
            ("a report of who has 5,000 friends", &|engine, run, out| report(engine, 0, wide[run % 2], out)),
            ("12,500 viewers served again", &|engine, _, out| engine.serve(partition(3), now, out)),
            ("a gateway of 100,000 is removed", &|engine, _, out| engine.gateway_removed(&gateway, now, out)),
            ("it comes back", &|engine, _, out| engine.heartbeat(&gateway, START, now, out)),
        ],
    );
    measure(1, &[("12,500 viewers forgotten", &|engine, _, _| engine.forget(partition(3)))]);
    measure(1, &[("most of 200,000 inactive at once", &|engine, _, out| engine.tick(START.plus_ms(600_001), out))]);
}

fn friendships(world: &mut World) -> Vec<Vec<u32>> {
    let mut friends = world.friendships(FRIENDS);
    (WIDE + 1..=HUB_WATCHERS).for_each(|watcher| friends[watcher as usize].push(HUB));
    for nth in 1..=WIDE_FRIENDS {
        let friend = WIDE + nth * 39;
        friends[friend as usize].push(WIDE);
        friends[WIDE as usize].push(friend);
    }
    friends
}

fn of(user: u32, moves: &[Move]) -> Move {
    *moves.iter().find(|(mover, _)| *mover == user).expect("everybody moves")
}

/// The inputs in turn, each followed by reports of others.
fn longest(engine: &mut Engine, runs: usize, inputs: &[(&str, Input)], others: &mut impl Iterator<Item = Move>) {
    let mut longest = vec![(Vec::new(), Vec::new()); inputs.len()];
    for run in 0..runs {
        for ((_, input), (own, following)) in inputs.iter().zip(&mut longest) {
            let mut out = Vec::new();
            own.push(milliseconds(measure(|| input(engine, run, &mut out)).0));
            let each = others.take(OTHERS).map(|made| {
                out.clear();
                measure(|| report(engine, 0, made, &mut out)).0
            });
            let mut longest = each.max().unwrap_or_default();
            let mut waits = true;
            while waits {
                out.clear();
                let (time, still) = measure(|| engine.resume(START, &mut out));
                (longest, waits) = (longest.max(time), still);
            }
            following.push(milliseconds(longest));
        }
    }
    for ((what, _), (own, following)) in inputs.iter().zip(longest) {
        println!("{what:38} {} | {}", Figures::new(own), Figures::new(following));
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
