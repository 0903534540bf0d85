//! A recorded day of taxis, whose friends are drawn: nobody recorded whom a taxi knows.
//!
//! Format of CRAWDAD's cabspotting, its files merged: `taxi latitude longitude occupied time`, separated by spaces, the time in
//! seconds since 1970, in the order of times, plain or gzip.

use crate::{Fix, Recorded, RecordedError, for_each_line};
use nearby_schemas::UserId;
use std::collections::BTreeMap;
use std::path::Path;

/// How friends are drawn.
#[derive(Clone, Copy, Debug)]
pub struct Friendships {
    /// Friends of each, on average.
    pub mean: u32,
    /// Another seed, other friends.
    pub seed: u64,
}

/// Reads the file. Taxis become users in the order of their names, from `first_user` on.
///
/// # Errors
/// It cannot be read, or a line of it.
pub fn load(file: &Path, first_user: UserId, friendships: Friendships) -> Result<Recorded, RecordedError> {
    let mut fixes = Vec::new();
    for_each_line(file, "taxi's fix", |line| fix(line).map(|fix| fixes.push(fix)).is_some())?;
    fixes.sort_by_key(|(_, fix)| fix.at_s);
    let mut users: BTreeMap<String, UserId> = fixes.iter().map(|(taxi, _)| (taxi.clone(), first_user)).collect();
    for (user, number) in users.values_mut().zip(first_user.0..) {
        *user = UserId(number);
    }
    let fixes = fixes.into_iter().map(|(taxi, fix)| Fix { user: users[&taxi], ..fix }).collect();
    let taxis: Vec<UserId> = users.into_values().collect();
    let lists = taxis.iter().map(|taxi| (*taxi, friendships.of(*taxi, &taxis))).collect();
    Ok(Recorded { fixes, lists })
}

impl Friendships {
    /// Each pair of taxis are friends with the same probability, whichever pairs else are.
    fn of(self, taxi: UserId, taxis: &[UserId]) -> Vec<UserId> {
        let others = (taxis.len() as u64).saturating_sub(1);
        let are_friends = |one: UserId, other: UserId| {
            let (low, high) = (one.min(other), one.max(other));
            let drawn = mixed(mixed(mixed(self.seed) ^ low.0.cast_unsigned()) ^ high.0.cast_unsigned());
            one != other && drawn % others < u64::from(self.mean)
        };
        taxis.iter().copied().filter(|other| are_friends(taxi, *other)).collect()
    }
}

/// A step of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014), of its own here so that no
/// library's next version changes the friends.
fn mixed(seed: u64) -> u64 {
    let mut bits = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// A taxi and where it was; who it is follows when all are known.
fn fix(line: &str) -> Option<(String, Fix)> {
    let mut fields = line.split_ascii_whitespace();
    let taxi = fields.next()?.to_owned();
    let (lat, lon) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let at_s = fields.nth(1)?.parse().ok()?;
    Some((taxi, Fix { at_s, user: UserId(0), lat, lon }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line() {
        let expected = Fix { at_s: 1_212_735_600, user: UserId(0), lat: 37.74134, lon: -122.40766 };
        assert_eq!(fix("egreosko 37.74134 -122.40766 0 1212735600"), Some(("egreosko".to_owned(), expected)));
        assert_eq!(fix("egreosko 37.74134 -122.40766 0"), None);
    }

    #[test]
    fn friendships_are_mutual_and_as_many_as_asked_for() {
        let taxis: Vec<UserId> = (2..502).map(UserId).collect();
        let lists = |seed| {
            let friendships = Friendships { mean: 40, seed };
            taxis.iter().map(|taxi| (*taxi, friendships.of(*taxi, &taxis))).collect::<BTreeMap<_, _>>()
        };
        let drawn = lists(1);
        for (taxi, friends) in &drawn {
            assert!(!friends.contains(taxi));
            assert!(friends.iter().all(|friend| drawn[friend].contains(taxi)));
        }
        let mean = drawn.values().map(Vec::len).sum::<usize>() as f64 / taxis.len() as f64;
        assert!((38.0..42.0).contains(&mean), "{mean}");
        assert_eq!(drawn, lists(1));
        assert_ne!(drawn, lists(2));
    }

    #[test]
    fn everybody_is_a_friend_if_there_are_no_more() {
        let taxis = [UserId(5), UserId(6), UserId(7)];
        let friends = |count: usize| Friendships { mean: 40, seed: 1 }.of(UserId(5), &taxis[..count]);
        assert_eq!(friends(3), [UserId(6), UserId(7)]);
        assert_eq!(friends(1), []);
    }
}
