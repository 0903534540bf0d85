//! People of an invented town life in San Francisco, as rows of the history: who they are, where they stay and how they
//! move follows from a seed alone, so that the same numbers are found again on any machine.
//!
//! Everybody has a home and a place of work, goes out on some evenings and at weekends, and reports often while moving and
//! seldom while staying. As in life, some reports come twice, some come late and out of order, and some people stop sharing
//! for the night. Nothing in here is recorded; densities of friendships are those of Gowalla's people in New York.

use h3o::{LatLng, Resolution};
use std::fmt::Write;

const DAY_MS: i64 = 86_400_000;
/// Pacific Standard Time: a day in here begins at 08:00 UTC.
const LOCAL_MIDNIGHT_MS: i64 = 8 * 3_600_000;
const DEGREE_M: f64 = 111_195.0;
/// The cosine of San Francisco's latitude.
const SHRINK: f64 = 0.791;
const PARTITIONS: u64 = 16;

/// Neighbourhoods: latitude, longitude, half width in metres, weight as a home, weight as a place of work.
const AREAS: &[(f64, f64, f64, u64, u64)] = &[
    (37.7905, -122.4010, 700.0, 4, 40),
    (37.7790, -122.4070, 900.0, 8, 24),
    (37.7985, -122.4100, 700.0, 12, 6),
    (37.7880, -122.4250, 900.0, 14, 5),
    (37.7600, -122.4180, 1200.0, 16, 8),
    (37.7620, -122.4390, 900.0, 10, 3),
    (37.7720, -122.4390, 1000.0, 10, 3),
    (37.7810, -122.4720, 1500.0, 14, 2),
    (37.7530, -122.4860, 1700.0, 18, 2),
    (37.7250, -122.4550, 1400.0, 10, 2),
    (37.7310, -122.4050, 1300.0, 9, 2),
    (37.7660, -122.3960, 900.0, 5, 10),
    (37.7420, -122.4250, 1200.0, 10, 2),
];

/// How many people, for how long, and which town life it is.
#[derive(Clone, Copy, Debug)]
pub struct Movement {
    /// People, with the ids 1, 2, 3 and so on.
    pub users: u32,
    /// Days, each from one midnight in San Francisco to the next.
    pub days: u32,
    /// Reports of each person on each day, repeated ones not counted.
    pub fixes_per_day: u32,
    /// The first day, in days since 1970-01-01.
    pub first_day: i64,
    /// Another seed, other people.
    pub seed: u64,
}

struct Row {
    user: u64,
    reported_ms: i64,
    received_ms: i64,
    place: Option<Place>,
    speed_mps: f64,
    accuracy_m: u64,
}

#[derive(Clone, Copy)]
struct Place {
    lat: f64,
    lon: f64,
}

/// From one moment of the day to the next, in seconds, staying or moving.
struct Leg {
    ends_s: f64,
    from: Place,
    to: Place,
}

impl Movement {
    /// SQL that creates the partitions of all days as the sink does, one after the other.
    pub fn partitions_sql(&self) -> String {
        (0..=i64::from(self.days)).map(|day| partition_sql(self.first_day + day)).collect()
    }

    /// SQL that copies the reports of one day, in the order of the log.
    pub fn day_sql(&self, day: u32) -> String {
        let mut rows: Vec<Row> = (1..=u64::from(self.users)).flat_map(|user| self.day_of(user, day)).collect();
        rows.sort_by_key(|row| (row.received_ms, row.user));
        let mut sql = String::with_capacity(rows.len() * 130);
        sql += "set timezone to 'UTC'; copy nearby.location_history (user_id, reported_at, received_at, lat, lon, accuracy_m, speed_mps, cell, \
                topic, kafka_partition, kafka_offset) from stdin;\n";
        for (row, offset) in rows.iter().zip(u64::from(day) << 32..) {
            let (user, partition) = (row.user, row.user % PARTITIONS);
            let (reported, received) = (moment(row.reported_ms), moment(row.received_ms));
            let place = row.place.map_or("\\N\t\\N\t\\N\t\\N\t\\N".to_owned(), |Place { lat, lon }| {
                let cell = LatLng::new(lat, lon).expect("a place").to_cell(Resolution::Nine);
                format!("{lat}\t{lon}\t{}\t{:.1}\t{}", row.accuracy_m, row.speed_mps, u64::from(cell))
            });
            writeln!(sql, "{user}\t{reported}\t{received}\t{place}\tlocation-events\t{partition}\t{offset}")
                .expect("a string takes all");
        }
        sql + "\\.\n"
    }

    /// SQL that copies everybody's friend list. Friendships are mutual; a person has 6 or 7 friends on average, most have fewer.
    pub fn friends_sql(&self) -> String {
        let mut lists = vec![std::collections::BTreeSet::new(); self.users as usize + 1];
        for user in 1..=u64::from(self.users) {
            let mut dice = Dice::new(self.seed ^ 0xf1e2, user, 0);
            let made = if dice.one_in(8) { 16 } else { 1 + dice.below(2) };
            for _ in 0..made {
                let friend = 1 + dice.below(u64::from(self.users));
                if friend != user {
                    lists[user as usize].insert(friend);
                    lists[friend as usize].insert(user);
                }
            }
        }
        let mut sql = "copy nearby.friend_lists from stdin;\n".to_owned();
        for (user, friends) in lists.iter().enumerate().skip(1) {
            let friends: Vec<String> = friends.iter().map(u64::to_string).collect();
            writeln!(sql, "{user}\t{{{}}}\t{}+00", friends.join(","), moment(self.first_day * DAY_MS))
                .expect("a string takes all");
        }
        sql + "\\.\n"
    }

    fn day_of(&self, user: u64, day: u32) -> Vec<Row> {
        let mut dice = Dice::new(self.seed, user, u64::from(day) + 1);
        let legs = self.legs(user, day, &mut dice);
        let mut rows = Vec::new();
        for at_s in moments(&legs, self.fixes_per_day, &mut dice) {
            let (truth, speed_mps) = place_at(&legs, at_s);
            // Now and then a phone is very wrong.
            let noise_m = if dice.one_in(100) { 300.0 } else { 12.0 };
            let place = truth.near(noise_m, &mut dice).rounded();
            let reported_ms = self.moment_ms(day, at_s);
            let late_ms = if dice.one_in(33) { dice.below(600_000) } else { 100 + dice.below(2_000) };
            let received_ms = reported_ms + late_ms.cast_signed();
            let accuracy_m = 4 + dice.below(26);
            rows.push(Row { user, reported_ms, received_ms, place: Some(place), speed_mps, accuracy_m });
            if dice.one_in(100) {
                let received_ms = received_ms + 10_000;
                rows.push(Row { user, reported_ms, received_ms, place: Some(place), speed_mps, accuracy_m });
            }
        }
        if dice.one_in(50) {
            let reported_ms = self.moment_ms(day, 86_399.0);
            rows.push(Row { user, reported_ms, received_ms: reported_ms, place: None, speed_mps: 0.0, accuracy_m: 0 });
        }
        rows
    }

    /// A whole day, from midnight to midnight.
    fn legs(&self, user: u64, day: u32, dice: &mut Dice) -> Vec<Leg> {
        let mut person = Dice::new(self.seed, user, 0);
        let home = somewhere(&mut person, |area| area.3);
        let work = somewhere(&mut person, |area| area.4);
        let mut legs = vec![];
        let weekend = (self.first_day + i64::from(day) + 4).rem_euclid(7) % 6 == 0;
        if weekend {
            stay(&mut legs, home, 36_000.0 + dice.up_to(10_800.0));
            for _ in 0..1 + dice.below(2) {
                go(&mut legs, somewhere(dice, |area| area.3 + area.4));
                linger(&mut legs, 3_600.0 + dice.up_to(7_200.0));
            }
        } else {
            stay(&mut legs, home, 25_200.0 + dice.up_to(9_000.0));
            go(&mut legs, work);
            if dice.one_in(2) {
                stay(&mut legs, work, 42_000.0 + dice.up_to(3_600.0));
                go(&mut legs, work.near(400.0, dice));
                linger(&mut legs, 1_800.0);
                go(&mut legs, work);
            }
            stay(&mut legs, work, 59_400.0 + dice.up_to(7_200.0));
            if dice.one_in(3) {
                go(&mut legs, somewhere(dice, |area| area.3 + area.4));
                linger(&mut legs, 5_400.0 + dice.up_to(3_600.0));
            }
        }
        go(&mut legs, home);
        stay(&mut legs, home, 86_400.0);
        legs
    }

    fn moment_ms(&self, day: u32, at_s: f64) -> i64 {
        #[expect(clippy::cast_possible_truncation, reason = "a day has 86,400,000 ms")]
        let within = (at_s * 1_000.0) as i64;
        (self.first_day + i64::from(day)) * DAY_MS + LOCAL_MIDNIGHT_MS + within
    }
}

/// SQL that creates the partition of a day, given in days since 1970, as the sink does.
fn partition_sql(day: i64) -> String {
    let (from, to) = (moment(day * DAY_MS), moment((day + 1) * DAY_MS));
    let name = from[..10].replace('-', "");
    format!(
        "create table nearby.location_history_{name} (like nearby.location_history including all); alter table nearby.location_history \
         attach partition nearby.location_history_{name} for values from ('{from}+00') to ('{to}+00');\n"
    )
}

fn stay(legs: &mut Vec<Leg>, at: Place, until_s: f64) {
    legs.push(Leg { ends_s: until_s, from: at, to: at });
}

/// Stays where the last leg ended.
fn linger(legs: &mut Vec<Leg>, for_s: f64) {
    let last = legs.last().expect("the day began at home");
    let (at, until_s) = (last.to, last.ends_s + for_s);
    stay(legs, at, until_s);
}

/// On foot up to 1.5 km, else faster, after a wait.
fn go(legs: &mut Vec<Leg>, to: Place) {
    let last = legs.last().expect("the day began at home");
    let distance_m = last.to.distance_m(to);
    let takes_s = if distance_m < 1_500.0 { 60.0 + distance_m / 1.3 } else { 300.0 + distance_m / 6.0 };
    let leg = Leg { ends_s: last.ends_s + takes_s, from: last.to, to };
    legs.push(leg);
}

/// When the person reports: 16 times as often on the way as at a place, in order.
fn moments(legs: &[Leg], count: u32, dice: &mut Dice) -> Vec<f64> {
    let mut begins_s = 0.0;
    let mut weights = Vec::new();
    for leg in legs {
        let rate = if leg.from.distance_m(leg.to) > 0.0 { 16.0 } else { 1.0 };
        weights.push((begins_s, rate, (leg.ends_s - begins_s).max(0.0) * rate));
        begins_s = leg.ends_s.max(begins_s);
    }
    let total: f64 = weights.iter().map(|(_, _, weight)| weight).sum();
    let mut moments = Vec::new();
    for index in 0..count {
        let mut target = total * (f64::from(index) + dice.up_to(0.9)) / f64::from(count);
        for (begins_s, rate, weight) in &weights {
            if target <= *weight {
                moments.push(begins_s + target / rate);
                break;
            }
            target -= weight;
        }
    }
    moments
}

fn place_at(legs: &[Leg], at_s: f64) -> (Place, f64) {
    let mut begins_s = 0.0;
    for leg in legs {
        if at_s <= leg.ends_s {
            let part = (at_s - begins_s) / (leg.ends_s - begins_s);
            let between = |from: f64, to: f64| from + (to - from) * part;
            let speed_mps = leg.from.distance_m(leg.to) / (leg.ends_s - begins_s);
            let place = Place { lat: between(leg.from.lat, leg.to.lat), lon: between(leg.from.lon, leg.to.lon) };
            return (place, speed_mps);
        }
        begins_s = leg.ends_s;
    }
    (legs.last().expect("the day ended at home").to, 0.0)
}

fn somewhere(dice: &mut Dice, weight: impl Fn(&(f64, f64, f64, u64, u64)) -> u64) -> Place {
    let mut left = dice.below(AREAS.iter().map(&weight).sum());
    for area in AREAS {
        if left < weight(area) {
            return Place { lat: area.0, lon: area.1 }.near(area.2, dice);
        }
        left -= weight(area);
    }
    unreachable!("less than the sum of all weights")
}

impl Place {
    /// Up to so many metres away on each axis, mostly less.
    fn near(self, metres: f64, dice: &mut Dice) -> Place {
        let mut offset = || (dice.up_to(1.0) + dice.up_to(1.0) - 1.0) * metres / DEGREE_M;
        Place { lat: self.lat + offset(), lon: self.lon + offset() / SHRINK }
    }

    /// Places are kept in units of 1e-7 degree.
    fn rounded(self) -> Place {
        Place { lat: (self.lat * 1e7).round() / 1e7, lon: (self.lon * 1e7).round() / 1e7 }
    }

    /// On a flat town.
    fn distance_m(self, other: Place) -> f64 {
        let (north, east) = (other.lat - self.lat, (other.lon - self.lon) * SHRINK);
        (north * north + east * east).sqrt() * DEGREE_M
    }
}

/// `YYYY-MM-DD HH:MM:SS.mmm` of milliseconds since 1970.
fn moment(ms: i64) -> String {
    // Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`, for years after 1970.
    let shifted = ms / DAY_MS + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let (day, month) = (day_of_year - (153 * from_march + 2) / 5 + 1, (from_march + 2) % 12 + 1);
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (s, ms) = (ms % DAY_MS / 1_000, ms % 1_000);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}.{ms:03}", s / 3_600, s / 60 % 60, s % 60)
}

/// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014), of its own here so that no
/// library's next version changes the people.
struct Dice(u64);

impl Dice {
    fn new(seed: u64, user: u64, day: u64) -> Dice {
        let mut dice = Dice(seed);
        for part in [user, day] {
            dice.0 = dice.next() ^ part;
        }
        dice
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    #[expect(clippy::cast_precision_loss, reason = "53 bits are what a float holds")]
    fn up_to(&mut self, bound: f64) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64 * bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_postgres_reads_them() {
        assert_eq!(moment(0), "1970-01-01 00:00:00.000");
        assert_eq!(moment(951_782_399_999), "2000-02-28 23:59:59.999");
        assert_eq!(moment(951_782_400_000), "2000-02-29 00:00:00.000");
        assert_eq!(moment(1_767_225_599_999), "2025-12-31 23:59:59.999");
    }

    #[test]
    fn everybody_reports_as_often_as_asked_and_ends_the_day_at_home() {
        let movement = Movement { users: 3, days: 1, fixes_per_day: 50, first_day: 20_454, seed: 1 };
        for user in 1..=3 {
            let legs = movement.legs(user, 0, &mut Dice::new(1, user, 1));
            let (first, last) = (legs.first().expect("legs"), legs.last().expect("legs"));
            assert!(first.from.distance_m(last.to) == 0.0);
            let times: Vec<f64> = moments(&legs, 50, &mut Dice::new(1, user, 1));
            assert_eq!(times.len(), 50);
            assert!(times.is_sorted() && times[49] <= 86_400.0, "{times:?}");
        }
    }
}
