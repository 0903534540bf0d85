//! What a sink does next with one topic, and what follows from how that went. Pure: no I/O, no clock.
//!
//! A [`Course`] says what to do, and a shell does it: `pipeline.rs` does, with Kafka and Postgres.
//!
//! - In: partitions are [`gained`](Course::gained) and [`lost`](Course::lost), records [taken](Course::take) as long as
//!   there [is room](Batcher::has_room) for them.
//! - Out: one piece of [`next_work`](Course::next_work), from [`due_at`](Course::due_at) on.
//! - Back: its [`Outcome`] is told to [`done`](Course::done), which says what [`Follows`] for the shell.
//!
//! Between a piece of work and its outcome nothing else goes in: an [`Attempt`] counts records from the front.

use crate::batch::{Attempt, Batcher, Gap, Rebase, Refusal, Taken};
use crate::error::SinkError;
use crate::record::{Log, Record};
use crate::settings::SinkSettings;
use crate::write::{WriteError, Written};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// The first wait while the database or the broker is away; each one is twice as long as the one before.
pub const RETRY_MIN: Duration = Duration::from_millis(100);
/// The longest wait while the database or the broker is away.
pub const RETRY_MAX: Duration = Duration::from_secs(5);
/// How often a sink with nothing to do makes sure that the database is still there.
pub const IDLE_CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// One topic's way into the database; see the module's documentation.
#[derive(Debug)]
pub struct Course {
    batcher: Batcher,
    /// Owned, but the offset that the database holds is not known yet.
    unplaced: BTreeSet<i32>,
    /// Another sink was first there.
    overtaken: BTreeSet<i32>,
    away: Option<String>,
    worked_at: Instant,
    retry_at: Option<Instant>,
    retry_after: Duration,
}

/// A piece of work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// Read the offsets that the database holds for the topic.
    ReadOffsets,
    /// Append the [`letters`](Course::letters) of the attempt to the dead letters, before the offsets pass over them.
    Bury(Attempt),
    /// Write the attempt's [`items`](Batcher::items), and its advances, in one transaction.
    Write(Attempt),
    /// Ask the database for any answer.
    Check,
}

/// How a piece of work went.
#[derive(Debug)]
pub enum Outcome {
    /// Of [`Work::ReadOffsets`]: by partition.
    OffsetsRead(Result<BTreeMap<i32, i64>, WriteError>),
    /// Of [`Work::Bury`]: for each of the letters, in order, whether it is acknowledged, or why not.
    Buried(Attempt, Vec<Result<(), String>>),
    /// Of [`Work::Write`].
    Wrote(Attempt, Result<Written, WriteError>),
    /// Of [`Work::Check`].
    Checked(Result<(), WriteError>),
}

/// What the shell has to do after a piece of work. Whatever it is, [`Course::away`] may be another than before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Follows {
    /// Nothing.
    Nothing,
    /// Rows and offsets are in the database: the [`held_offsets`](Batcher::held_offsets) can be shown.
    Advanced,
    /// Replace the feed by one that begins at the [`next_offsets`](Batcher::next_offsets).
    FeedRestarts,
    /// Nothing; the next attempts are smaller, to find the row that the database refuses.
    Searching {
        /// Records among which it is.
        rows: usize,
        /// The database's word.
        reason: String,
    },
    /// Drop the connection: whatever state it is in, a new one is in none.
    DatabaseAway {
        /// When it is tried again.
        retry_after: Duration,
    },
    /// Nothing; a dead letter was not acknowledged and is tried again.
    BrokerAway {
        /// The broker's word.
        reason: String,
    },
}

impl Course {
    /// Owns nothing yet.
    pub fn new(log: Log, settings: &SinkSettings, now: Instant) -> Course {
        Course {
            batcher: Batcher::new(log.contiguous(), settings.rows_max(), settings.age_max()),
            unplaced: BTreeSet::new(),
            overtaken: BTreeSet::new(),
            away: None,
            worked_at: now,
            retry_at: None,
            retry_after: RETRY_MIN,
        }
    }

    /// These partitions are ours from now on; they are read once it is known from where.
    pub fn gained(&mut self, partitions: impl IntoIterator<Item = i32>) {
        self.unplaced.extend(partitions);
    }

    /// They are not any longer. The feed has to be replaced by one that begins at the
    /// [`next_offsets`](Batcher::next_offsets) of the others.
    pub fn lost(&mut self, partitions: impl IntoIterator<Item = i32>) {
        for partition in partitions {
            self.unplaced.remove(&partition);
            self.overtaken.remove(&partition);
            self.batcher.disown(partition);
        }
    }

    /// The next record out of the feed.
    ///
    /// # Errors
    /// [`Gap`], if offsets are missing where none may be: history would have a hole.
    pub fn take(&mut self, record: Record, now: Instant) -> Result<Taken, Gap> {
        self.batcher.take(record, now)
    }

    /// What waits to be written, and the offsets.
    pub fn batcher(&self) -> &Batcher {
        &self.batcher
    }

    /// When the next piece of work should be done.
    pub fn due_at(&self) -> Instant {
        let due_at = if self.has_to_read_offsets() { Some(self.worked_at) } else { self.batcher.due_at() };
        let due_at = due_at.unwrap_or(self.worked_at + IDLE_CHECK_INTERVAL);
        self.retry_at.map_or(due_at, |retry_at| due_at.max(retry_at))
    }

    /// Whether a sink that was asked to stop has something to write and could; what it does not write is still in the log.
    pub fn can_flush(&self) -> bool {
        !self.batcher.is_empty() && self.retry_at.is_none()
    }

    /// What should be done next.
    pub fn next_work(&self) -> Work {
        if self.has_to_read_offsets() {
            return Work::ReadOffsets;
        }
        if self.batcher.is_empty() {
            return Work::Check;
        }
        let attempt = self.batcher.attempt();
        if self.letters(&attempt).next().is_some() { Work::Bury(attempt) } else { Work::Write(attempt) }
    }

    /// The dead letters of an attempt that are not acknowledged yet, each with its reason.
    pub fn letters(&self, attempt: &Attempt) -> impl Iterator<Item = (&Record, &str)> {
        self.batcher.items(attempt).filter_map(|item| Some((&item.record, item.unburied()?)))
    }

    /// Partitions where another sink was first. What the database holds of them is read next.
    pub fn overtaken(&self) -> impl Iterator<Item = i32> {
        self.overtaken.iter().copied()
    }

    /// Why the database counts as away.
    pub fn away(&self) -> Option<&str> {
        self.away.as_deref()
    }

    /// A piece of work went like this.
    ///
    /// # Errors
    /// If going on cannot be right: rows and offsets disagree.
    pub fn done(&mut self, outcome: Outcome, now: Instant) -> Result<Follows, SinkError> {
        self.worked_at = now;
        let answer = match outcome {
            Outcome::OffsetsRead(answer) => answer.map(|held| self.place(&held)),
            // This says nothing about the database, which may be away all the while.
            Outcome::Buried(attempt, letters) => return Ok(self.buried(&attempt, letters, now)),
            Outcome::Wrote(attempt, Ok(Written::Rows(_))) => {
                self.batcher.written(&attempt);
                Ok(Follows::Advanced)
            }
            Outcome::Wrote(_, Ok(Written::Lost(partitions))) => {
                self.overtaken.extend(partitions);
                Ok(Follows::Nothing)
            }
            Outcome::Wrote(attempt, Err(WriteError::Refused(reason))) => self.refused(&attempt, reason),
            Outcome::Wrote(_, Err(error)) => Err(error),
            Outcome::Checked(answer) => answer.map(|()| Follows::Nothing),
        };
        match answer {
            Ok(follows) => {
                (self.away, self.retry_at, self.retry_after) = (None, None, RETRY_MIN);
                Ok(follows)
            }
            Err(WriteError::Away(reason) | WriteError::Refused(reason)) => {
                self.away = Some(reason);
                Ok(Follows::DatabaseAway { retry_after: self.wait(now) })
            }
            Err(WriteError::AlreadyInHistory(reason)) => Err(SinkError::AlreadyInHistory(reason)),
        }
    }

    fn has_to_read_offsets(&self) -> bool {
        !self.unplaced.is_empty() || !self.overtaken.is_empty()
    }

    /// Partitions that are new here begin where the database is; others go on from there, if what was read continues it.
    fn place(&mut self, held: &BTreeMap<i32, i64>) -> Follows {
        let mut restarts = !self.unplaced.is_empty();
        for partition in std::mem::take(&mut self.overtaken) {
            restarts |= self.batcher.rebase(partition, held.get(&partition).copied()) == Rebase::Seek;
        }
        for partition in std::mem::take(&mut self.unplaced) {
            self.batcher.own(partition, held.get(&partition).copied());
        }
        if restarts { Follows::FeedRestarts } else { Follows::Nothing }
    }

    fn buried(&mut self, attempt: &Attempt, letters: Vec<Result<(), String>>, now: Instant) -> Follows {
        let mut failed = None;
        let unburied = self.batcher.items_mut(attempt).filter(|item| item.unburied().is_some());
        for (item, acknowledged) in unburied.zip(letters) {
            match acknowledged {
                Ok(()) => item.buried = true,
                Err(reason) => failed = Some(reason),
            }
        }
        let Some(reason) = failed else { return Follows::Nothing };
        self.wait(now);
        Follows::BrokerAway { reason }
    }

    fn refused(&mut self, attempt: &Attempt, reason: String) -> Result<Follows, WriteError> {
        match self.batcher.refused(attempt, reason.clone()) {
            Refusal::Halved => Ok(Follows::Searching { rows: attempt.count, reason }),
            Refusal::Found => Ok(Follows::Nothing),
            Refusal::NoCulprit => Err(WriteError::Refused(reason)),
        }
    }

    /// Sets the time of the next try.
    fn wait(&mut self, now: Instant) -> Duration {
        let retry_after = self.retry_after;
        self.retry_at = Some(now + retry_after);
        self.retry_after = (retry_after * 2).min(RETRY_MAX);
        retry_after
    }
}

#[cfg(test)]
#[path = "course_tests.rs"]
mod tests;
