//! Recorded check-ins and the friendships of those who made them.
//!
//! Formats as Stanford SNAP publishes them (`loc-gowalla`): check-ins `user, time, latitude, longitude, place`, friendships
//! `user, friend`, one line a direction, tab-separated, plain or gzip.

use crate::{Fix, Recorded, RecordedError, for_each_line};
use nearby_schemas::UserId;
use nearby_schemas::moments::rfc3339_ms;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Reads the files.
///
/// # Errors
/// One cannot be read, or a line of it.
pub fn load(checkins: &Path, friends: Option<&Path>) -> Result<Recorded, RecordedError> {
    let mut fixes = Vec::new();
    for_each_line(checkins, "check-in", |line| checkin(line).map(|fix| fixes.push(fix)).is_some())?;
    // Files list a user's newest check-in first: from the back, and stable, equal times keep their order.
    fixes.reverse();
    fixes.sort_by_key(|fix| fix.at_s);
    let lists = friends.map(friendships).transpose()?.unwrap_or_default();
    Ok(Recorded { fixes, lists })
}

/// Friend lists out of a file of friendships; lines that start with no number (headers, comments) are passed over.
///
/// # Errors
/// It cannot be read, or a line of it.
pub fn friendships(path: &Path) -> Result<BTreeMap<UserId, Vec<UserId>>, RecordedError> {
    let mut lists: BTreeMap<UserId, BTreeSet<UserId>> = BTreeMap::new();
    for_each_line(path, "friendship", |line| {
        if !line.starts_with(|first: char| first.is_ascii_digit()) {
            return true;
        }
        let Some((user, friend)) = friendship(line) else { return false };
        lists.entry(user).or_default().insert(friend);
        true
    })?;
    Ok(lists.into_iter().map(|(user, friends)| (user, friends.into_iter().collect())).collect())
}

fn friendship(line: &str) -> Option<(UserId, UserId)> {
    let (user, friend) = line.split_once('\t')?;
    Some((user.parse().ok()?, friend.trim_end().parse().ok()?))
}

fn checkin(line: &str) -> Option<Fix> {
    let mut fields = line.split('\t');
    let user = fields.next()?.parse().ok()?;
    let at_s = rfc3339_ms(fields.next()?)?.div_euclid(1_000);
    let (lat, lon) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(Fix { at_s, user, lat, lon })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_in_line() {
        let parsed = checkin("7\t2010-03-18T12:34:56Z\t40.5\t-73.9\t99");
        assert_eq!(parsed, Some(Fix { at_s: 1_268_915_696, user: UserId(7), lat: 40.5, lon: -73.9 }));
        assert_eq!(checkin("x\t2010-03-18T12:34:56Z\t40.5\t-73.9\t99"), None);
        assert_eq!(friendship("7\t8"), Some((UserId(7), UserId(8))));
    }
}
