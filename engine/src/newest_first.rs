//! Taking in the newest part of the log before the older one, with the outcome of reading it in order.
//!
//! The older part is read aside: nobody is shown a place of which the next record may say that it was withdrawn. When it has
//! been read, each user's last word of it is put in front of what the newer part said. Order matters for two things only: a
//! withdrawal's time is that of the position before it, if that is later (R6), and a report older than the held one does not
//! count (R2). So
//! - a report of the newer part that was **made** before it waits, because the older part may have had a withdrawal that it
//!   must not undo;
//! - what the older part said last counts only if it is later than all that the newer part said; if the newer part withdrew
//!   the user, it withdraws the user still, only later.

use crate::users::Slot;
use nearby_schemas::{Place, TimestampMs};
use std::collections::BTreeMap;

/// A report without its user; without a place, a withdrawal.
pub(crate) type Said = (TimestampMs, Option<Place>);

/// Until the older part of the log has been read and taken in.
pub(crate) struct NewestFirst {
    /// All of the older part was appended before.
    since: TimestampMs,
    /// By slot.
    users: Vec<User>,
    /// Delayed reports of the newer part.
    waiting: BTreeMap<Slot, (TimestampMs, Place)>,
    /// Slots below have both parts.
    complete: Slot,
    older_are_read: bool,
}

/// What was said of one user.
#[derive(Clone, Copy)]
struct User {
    /// The last word of the older part, so far.
    older: Option<Said>,
    /// The latest time that the newer part said, without what waits.
    newer: TimestampMs,
    /// The newer part withdrew the user.
    withdrew: bool,
}

const UNHEARD: User = User { older: None, newer: TimestampMs(i64::MIN), withdrew: false };

impl NewestFirst {
    pub fn new(since: TimestampMs) -> NewestFirst {
        let (users, waiting) = (Vec::new(), BTreeMap::new());
        NewestFirst { since, users, waiting, complete: 0, older_are_read: false }
    }

    /// A record of the newer part: as what to take it in now, or nothing.
    #[inline]
    pub fn newer(&mut self, slot: Slot, (time, place): Said) -> Option<Said> {
        if slot < self.complete {
            return Some((time, place));
        }
        let since = self.since;
        let user = user(&mut self.users, slot);
        let Some(place) = place else {
            // It withdraws what waits, too, and has its time if that is later.
            let waited = self.waiting.remove(&slot).map_or(time, |(waited, _)| waited);
            let time = time.max(waited);
            (user.newer, user.withdrew) = (user.newer.max(time), true);
            return Some((time, None));
        };
        if time >= since {
            user.newer = user.newer.max(time);
            return Some((time, Some(place)));
        }
        let waits_longer = self.waiting.get(&slot).is_some_and(|(waiting, _)| *waiting > time);
        if !waits_longer {
            self.waiting.insert(slot, (time, place));
        }
        None
    }

    /// A record of the older part.
    pub fn older(&mut self, slot: Slot, (time, place): Said) {
        let older = &mut user(&mut self.users, slot).older;
        *older = match (place, *older) {
            (None, held) => Some((held.map_or(time, |(held, _)| held.max(time)), None)),
            (Some(_), Some((held, None))) if time <= held => return,
            (Some(_), Some((held, _))) if time < held => return,
            (Some(_), _) => Some((time, place)),
        };
    }

    /// The older part has been read: [`next`](Self::next) has what to take in.
    pub fn older_are_read(&mut self) {
        self.older_are_read = true;
    }

    /// The next user, and what to take in of the older part and then of what has waited, if anything. None when all are
    /// complete, or before the older part has been read.
    pub fn next(&mut self) -> Option<(Slot, [Option<Said>; 2])> {
        if !self.older_are_read {
            return None;
        }
        let slot = self.complete;
        let user = self.users.get(slot as usize)?;
        self.complete += 1;
        let counts = |(time, _): &Said| *time > user.newer;
        let older = user.older.filter(counts).map(|(time, place)| (time, place.filter(|_| !user.withdrew)));
        let waited = self.waiting.remove(&slot).map(|(time, place)| (time, Some(place)));
        Some((slot, [older, waited]))
    }

    /// Whether there is anything left for [`next`](Self::next).
    pub fn is_complete(&self) -> bool {
        self.older_are_read && self.users.len() <= self.complete as usize
    }

    /// Whether there will be, but not yet.
    pub fn is_reading(&self) -> bool {
        !self.older_are_read
    }
}

fn user(users: &mut Vec<User>, slot: Slot) -> &mut User {
    if users.len() <= slot as usize {
        users.resize(slot as usize + 1, UNHEARD);
    }
    &mut users[slot as usize]
}
