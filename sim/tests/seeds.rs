//! A few hundred worlds, and that a seed is enough to see one again.

use nearby_sim::run;
use std::sync::atomic::{AtomicU64, Ordering};

const SEEDS: u64 = 300;

#[test]
fn nothing_is_wrong_in_any_world() {
    let next = AtomicU64::new(0);
    let compared = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= SEEDS {
                        break;
                    }
                    let ending = run(seed, false);
                    let repeat = format!("cargo run -p nearby-sim -- --trace --from {seed}");
                    assert_eq!(ending.verdict, None, "seed {seed}; repeat it with: {repeat}");
                    compared.fetch_add(u64::from(ending.compared_count > 0), Ordering::Relaxed);
                }
            });
        }
    });
    assert!(compared.into_inner() > SEEDS * 3 / 4, "views that are empty prove nothing");
}

#[test]
fn a_seed_is_enough_to_see_a_world_again() {
    for seed in [3, 77, 1_234] {
        let (first, second) = (run(seed, false), run(seed, false));
        assert_eq!(first, second, "seed {seed}");
        assert_ne!(first.trace_hash, run(seed + 1, false).trace_hash, "seed {seed}");
    }
}
