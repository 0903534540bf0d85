//! All randomness of a run, out of its seed.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Throws; the same seed throws the same.
pub struct Dice(StdRng);

impl Dice {
    /// Of this seed.
    pub fn new(seed: u64) -> Dice {
        Dice(StdRng::seed_from_u64(seed))
    }

    /// From `low` to `high`, both included.
    pub fn between(&mut self, low: i64, high: i64) -> i64 {
        self.0.random_range(low..=high)
    }

    /// An index below `count`, which is not 0.
    pub fn below(&mut self, count: usize) -> usize {
        self.0.random_range(0..count)
    }

    /// True with this probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.0.random_bool(probability)
    }

    /// From -1 to 1.
    pub fn around_zero(&mut self) -> f64 {
        self.0.random_range(-1.0..=1.0)
    }

    /// One of these, which are not none.
    pub fn pick<'a, T>(&mut self, these: &'a [T]) -> &'a T {
        &these[self.below(these.len())]
    }
}
