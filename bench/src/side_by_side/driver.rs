//! What every peer is given: the same people, the same moves, at the same pace.

use super::truth::{Count, Truth};
use crate::workload::{Move, World};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The people, and what they do next.
pub struct Loads {
    pub users: u32,
    /// As was asked for; the lists differ around it.
    pub friends_mean: u32,
    pub friends: Vec<Vec<u32>>,
    /// Where everybody is after the moves so far.
    pub world: World,
    truth: Truth,
}

/// How fast moves are handed over.
#[derive(Clone, Copy)]
pub enum Pace {
    /// As fast as the peer takes them, with a bounded queue.
    Fastest,
    /// So many reports a second, each due at its time whether or not earlier ones have been heard.
    PerSecond(u64),
}

impl Loads {
    /// Workload W from its beginning.
    pub fn new(users: u32, friends_mean: u32) -> Loads {
        let mut world = World::new(users, crate::pipeline::CENTRES);
        let friends = world.friendships(friends_mean);
        let truth = Truth::new(&world, &friends);
        Loads { users, friends_mean, friends, world, truth }
    }

    /// Whole rounds, of at least so many reports, and what has to be told because of them.
    pub fn next(&mut self, reports: usize) -> (Vec<Move>, Count) {
        let mut moves = Vec::with_capacity(reports);
        while moves.len() < reports {
            moves.extend(self.world.round());
        }
        let count = self.truth.count(&moves);
        (moves, count)
    }
}

/// Hands over each at its time, or as soon after as it can. `send` gets when it was due, in microseconds since 1970.
pub fn open_loop(
    moves: &[Move],
    rate_per_s: u64,
    mut send: impl FnMut(Move, i64) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (began, began_us) = (Instant::now(), now_us());
    for (number, made) in (0_u64..).zip(moves) {
        let due = Duration::from_micros(number * 1_000_000 / rate_per_s);
        let early = due.saturating_sub(began.elapsed());
        if !early.is_zero() {
            std::thread::sleep(early);
        }
        send(*made, began_us + i64::try_from(due.as_micros())?)?;
    }
    Ok(())
}

/// Microseconds since 1970.
pub fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
