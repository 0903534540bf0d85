//! How long notices may wait for company.

use std::time::Duration;

const INTERVAL_MIN_MS: u64 = 5;
const INTERVAL_MAX_MS: u64 = 50;
/// Up to so many gateways the shortest interval is cheap enough: a produce request a gateway and interval.
const GATEWAYS_CHEAP: u64 = 40;

/// A processor that is behind sends batches of so many intervals: nobody waits for milliseconds then, and larger batches are
/// cheaper for everybody.
const BEHIND_FACTOR: u32 = 4;

/// The flush interval for so many live gateways: 5 ms up to 40, then in proportion, at most 50; longer for one that is behind.
pub(crate) fn batch_interval(gateways_alive: usize, is_behind: bool) -> Duration {
    let gateways = u64::try_from(gateways_alive).unwrap_or(u64::MAX);
    let proportional = INTERVAL_MIN_MS.saturating_mul(gateways) / GATEWAYS_CHEAP;
    let interval = Duration::from_millis(proportional.clamp(INTERVAL_MIN_MS, INTERVAL_MAX_MS));
    if is_behind { interval * BEHIND_FACTOR } else { interval }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_with_the_gateways_within_bounds() {
        for (gateways, ms) in [(0, 5), (2, 5), (40, 5), (80, 10), (400, 50), (1_000, 50), (usize::MAX, 50)] {
            assert_eq!(batch_interval(gateways, false), Duration::from_millis(ms), "{gateways} gateways");
            assert_eq!(batch_interval(gateways, true), Duration::from_millis(4 * ms), "{gateways} gateways");
        }
    }
}
