//! How far a replay is: a bar where somebody watches, plain lines elsewhere. On standard error.

use crate::moments::Rfc3339;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use nearby_schemas::TimestampMs;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How often a line is printed where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// How many records there are between two looks at the clock.
const RECORDS_PER_LOOK: u64 = 1_024;

/// Counts records.
pub struct Progress {
    bar: Option<ProgressBar>,
    total: u64,
    read: u64,
    next_line: Instant,
}

impl Progress {
    /// Of so many records.
    pub fn new(total: u64) -> anyhow::Result<Progress> {
        let bar = if std::io::stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} records, {eta} to go  {msg}")?);
            Some(bar)
        } else {
            None
        };
        Ok(Progress { bar, total, read: 0, next_line: Instant::now() + LINE_INTERVAL })
    }

    /// One more, of that time.
    pub fn record(&mut self, time: TimestampMs) {
        self.read += 1;
        if !self.read.is_multiple_of(RECORDS_PER_LOOK) {
            return;
        }
        if let Some(bar) = &self.bar {
            bar.set_position(self.read);
            bar.set_message(Rfc3339(time).to_string());
        } else if Instant::now() >= self.next_line {
            self.next_line = Instant::now() + LINE_INTERVAL;
            let percent = self.read * 100 / self.total.max(1);
            eprintln!("{} of {} records ({percent} %), at {}", self.read, self.total, Rfc3339(time));
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
