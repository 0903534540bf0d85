//! At what pace moves are handed over.

use crate::workload::Move;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Reports that are handed over together at most, when they are late.
const TOGETHER_MAX: usize = 500;

/// How fast moves are handed over.
#[derive(Clone, Copy)]
pub enum Pace {
    /// As fast as the peer takes them, with a bounded queue.
    Fastest,
    /// So many reports a second, each due at its time whether or not earlier ones have been heard.
    PerSecond(u64),
}

/// A move, and when it was due in microseconds since 1970; 0: nobody asks how late it is.
pub type Due = (Move, i64);

/// Hands over each at its time, or as soon after as it can; those that are due by then together.
pub fn open_loop(
    moves: &[Move],
    rate_per_s: u64,
    mut send: impl FnMut(&[Due]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    // In this order: what is sent at its time is never early by the other clock.
    let began_us = now_us();
    let began = Instant::now();
    let mut due = (0_u64..).map(|number| Duration::from_micros(number * 1_000_000 / rate_per_s)).zip(moves).peekable();
    while let Some((next, _)) = due.peek() {
        let early = next.saturating_sub(began.elapsed());
        if !early.is_zero() {
            std::thread::sleep(early);
        }
        let (now, mut together) = (began.elapsed(), Vec::new());
        while let Some((at, made)) = due.next_if(|(at, _)| *at <= now && together.len() < TOGETHER_MAX) {
            together.push((*made, began_us + i64::try_from(at.as_micros())?));
        }
        send(&together)?;
    }
    Ok(())
}

/// Microseconds since 1970.
pub fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearby_schemas::Place;

    #[test]
    fn each_is_due_at_its_time_and_none_is_early_or_left_out() {
        let moves: Vec<Move> = (0..2_000).map(|user| (user, Place { lat_e7: 0, lon_e7: 0 })).collect();
        let mut sent = Vec::new();
        open_loop(&moves, 20_000, |together| {
            assert!(!together.is_empty() && together.len() <= TOGETHER_MAX);
            assert!(together.iter().all(|(_, due_us)| *due_us <= now_us()));
            sent.extend_from_slice(together);
            Ok(())
        })
        .unwrap();
        assert_eq!(sent.iter().map(|(made, _)| *made).collect::<Vec<_>>(), moves);
        let began_us = sent[0].1;
        assert!((0..).zip(&sent).all(|(number, (_, due_us))| *due_us == began_us + 50 * number));
    }
}
