//! How long notices may wait for company.

use std::time::Duration;

const INTERVAL_MIN_MS: u64 = 5;
const INTERVAL_MAX_MS: u64 = 50;
/// Up to so many gateways the shortest interval is cheap enough: a produce request a gateway and interval.
const GATEWAYS_CHEAP: u64 = 40;

/// A processor that is behind sends batches of so many such intervals, however many gateways there are, but at least every so often:
/// nobody waits for milliseconds then, and larger batches are cheaper for everybody.
const BEHIND_FACTOR: u64 = 8;
const BEHIND_MAX_MS: u64 = 1_000;

/// The flush interval for so many live gateways: 5 ms up to 40, then in proportion, at most 50; longer for one that is behind.
pub(crate) fn batch_interval(gateways_alive: usize, is_behind: bool) -> Duration {
    let gateways = u64::try_from(gateways_alive).unwrap_or(u64::MAX);
    let proportional = (INTERVAL_MIN_MS.saturating_mul(gateways) / GATEWAYS_CHEAP).max(INTERVAL_MIN_MS);
    Duration::from_millis(if is_behind {
        proportional.saturating_mul(BEHIND_FACTOR).min(BEHIND_MAX_MS)
    } else {
        proportional.min(INTERVAL_MAX_MS)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_with_the_gateways_within_bounds() {
        let of = |gateways, is_behind| batch_interval(gateways, is_behind).as_millis();
        for (gateways, ms, behind_ms) in [
            (0, 5, 40),
            (2, 5, 40),
            (40, 5, 40),
            (80, 10, 80),
            (400, 50, 400),
            (1_000, 50, 1_000),
            (usize::MAX, 50, 1_000),
        ] {
            assert_eq!((of(gateways, false), of(gateways, true)), (ms, behind_ms), "{gateways} gateways");
        }
    }
}
