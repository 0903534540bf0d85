//! A million viewers with 400 friends each: how long loading takes, and how much memory stays resident.
//!
//! `cargo bench -p nearby-engine --bench memory` (needs 6 GiB; `-- 100000` after it for another number of viewers)
//!
//! The lists are decoded from encoded records by the codec that the processor uses. Making and encoding them is not counted;
//! it is done some thousand at a time, so that they take no memory to speak of.

mod workload;

use nearby_engine::Engine;
use nearby_schemas::FriendList;
use nearby_schemas::codec::Codec;
use std::time::Duration;
use workload::{
    Figures, START, World, connect, each_ns, empty_engine, measure, partition, reports, serve_all, user_id,
};

const VIEWERS: u32 = 1_000_000;
const CENTRES: u32 = 20;
const FRIENDS: u32 = 400;
const RECORDS_AT_ONCE: usize = 2_000;
const RUNS: usize = 5;
/// Reports whose notices are taken away together.
const BATCH: usize = 200;
const REPORTS: usize = 50_000;

fn main() {
    let viewers = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(VIEWERS);
    let mut world = World::new(viewers, CENTRES);
    let mut engine = empty_engine();
    let (users, start) = (viewers as usize, resident_bytes());
    let mut loading = load_lists(&mut engine, &mut world);
    let with_lists = resident_bytes();
    loading += timed("sessions", || (0..viewers).for_each(|viewer| connect(&mut engine, viewer)));
    loading += timed("positions", || {
        for (user, place) in (0..).zip(&world.places) {
            engine.report(user_id(user), START, Some(*place), START, &mut Vec::new());
        }
    });
    let with_positions = resident_bytes();
    loading += timed("serving, with a snapshot for each", || assert_eq!(serve_all(&mut engine), users));
    println!("{:7.1} s of CPU in all (goal: at most 60)", loading.as_secs_f64());

    let (end, edges) = (resident_bytes(), engine.counts().edges_indexed);
    println!("{viewers} viewers, {edges} edges: {:.2} GiB resident (goal: at most 6)", quotient(end - start, 1 << 30));
    println!("{:.0} bytes a viewer with all its edges", quotient(end - start, users));
    println!("  {:.2} bytes an edge in the lists, with ids and slots", quotient(with_lists - start, edges));
    println!("  {:.2} bytes an edge in the index", quotient(end - with_positions, edges));
    println!("  {:.0} bytes a viewer for session and position", quotient(with_positions - with_lists, users));
    println!("ns of CPU a report, minimum / median / maximum of {RUNS} runs: {}", report_ns(&mut engine, &mut world));
}

/// The list of every viewer, from records.
fn load_lists(engine: &mut Engine, world: &mut World) -> Duration {
    let codec = Codec::<FriendList>::new();
    let (mut decoding, mut taking_in) = (Duration::ZERO, Duration::ZERO);
    for first in (0..world.users()).step_by(RECORDS_AT_ONCE) {
        let viewers = (first..world.users()).take(RECORDS_AT_ONCE);
        let records: Vec<Vec<u8>> = viewers.map(|viewer| codec.encode(&record(world, viewer))).collect();
        let decode = |bytes: &Vec<u8>| codec.decode(bytes).expect("what was encoded can be decoded");
        let (time, lists) = measure(|| records.iter().map(decode).collect::<Vec<FriendList>>());
        decoding += time;
        taking_in += measure(|| {
            for (viewer, list) in (first..).zip(&lists) {
                engine.friend_list(partition(viewer), list.user_id, Some(&list.friends), START, &mut Vec::new());
            }
        })
        .0;
    }
    println!("{:7.1} s decoding lists", decoding.as_secs_f64());
    println!("{:7.1} s taking them in", taking_in.as_secs_f64());
    decoding + taking_in
}

fn record(world: &mut World, viewer: u32) -> FriendList {
    let friends = world.acquaintances(viewer, FRIENDS).into_iter().map(user_id).collect();
    FriendList { user_id: user_id(viewer), friends, changed_at: START }
}

fn report_ns(engine: &mut Engine, world: &mut World) -> Figures {
    let run = |round| {
        let moves = world.round();
        let count = REPORTS.min(moves.len());
        let (time, ()) = measure(|| {
            let mut out = Vec::new();
            for batch in moves[..count].chunks(BATCH) {
                reports(engine, round, batch, &mut out);
                out.clear();
            }
        });
        each_ns(time, count)
    };
    Figures::new((0..RUNS).map(run).collect())
}

fn timed(what: &str, act: impl FnOnce()) -> Duration {
    let (time, ()) = measure(act);
    println!("{:7.1} s {what}", time.as_secs_f64());
    time
}

fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("Linux tells");
    let kib = line.split_whitespace().nth(1).and_then(|kib| kib.parse::<usize>().ok());
    kib.expect("Linux tells it in KiB") * 1024
}

#[expect(clippy::cast_precision_loss, reason = "bytes are far below 2^52")]
fn quotient(bytes: usize, of: usize) -> f64 {
    bytes as f64 / of as f64
}
