//! What is true, and what must never happen: the rules written a second time, from what is in the log. Shares no code with
//! the engine: plain histories, everything looked up at each question, and a distance by vectors.

use crate::broker::{Record, Topic};
use nearby_pusher::delivery::Shown;
use nearby_schemas::batch::{BATCH_BYTES_MAX, FriendMovedBatch};
use nearby_schemas::codec::Codec;
use nearby_schemas::{Epoch, FriendList, GatewayHeartbeat, LocationEvent, Place, UserId};
use std::collections::{BTreeMap, BTreeSet};

/// Rule R1, as in production.
pub const RADIUS_M: f64 = 8_000.0;
/// Rule R8, as in production.
pub const GATEWAY_LOST_AFTER_MS: i64 = 30_000;
/// Two distances that differ by less are the same, and a pair so close to the radius may be judged either way.
const TOLERANCE_M: f64 = 0.06;
/// Two moments that differ by less may be taken for either: clocks differ, and expiry is told within a second.
const TOLERANCE_MS: i64 = 2_500;

/// The position of a user from some moment on.
#[derive(Clone, Copy, Debug)]
struct Held {
    from_ms: i64,
    time: i64,
    place: Option<Place>,
}

/// The list of a user from some moment on.
struct Listed {
    from_ms: i64,
    friends: BTreeSet<UserId>,
}

/// What tells one report from another: whose it is, its own time, and where.
pub type Promised = (UserId, i64, Option<(i32, i32)>);

/// What a client sees.
pub type View = BTreeMap<UserId, Shown>;

/// Knows what is in the log, and what was promised.
pub struct Judge {
    inactive_after_ms: i64,
    /// For how long anything that is shown may have been out of date.
    pub stale_ms_max: i64,
    reports: Codec<LocationEvent>,
    lists: Codec<FriendList>,
    heartbeats: Codec<GatewayHeartbeat>,
    batches: Codec<FriendMovedBatch>,
    held: BTreeMap<UserId, Vec<Held>>,
    listed: BTreeMap<UserId, Vec<Listed>>,
    /// By number of the gateway's run.
    beats_ms: BTreeMap<u32, i64>,
    /// R8: since when the log says that a gateway is lost.
    lost_since_ms: BTreeMap<u32, i64>,
    numbers: BTreeMap<String, u32>,
    epochs: BTreeMap<i32, Epoch>,
    /// Reports that were acknowledged to clients.
    accepted: BTreeSet<Promised>,
    /// What was wrong first.
    pub verdict: Option<String>,
    /// How often friends were shown, to see that checks have something to check.
    pub shown_count: u64,
    /// How many friends were in the views that were compared.
    pub compared_count: u64,
    /// How many pairs were compared while the world went on.
    pub prompt_count: u64,
}

impl Judge {
    /// Of a world with these rules.
    pub fn new(inactive_after_ms: i64, stale_ms_max: i64) -> Judge {
        Judge {
            inactive_after_ms,
            stale_ms_max,
            reports: Codec::new(),
            lists: Codec::new(),
            heartbeats: Codec::new(),
            batches: Codec::new(),
            held: BTreeMap::new(),
            listed: BTreeMap::new(),
            beats_ms: BTreeMap::new(),
            lost_since_ms: BTreeMap::new(),
            numbers: BTreeMap::new(),
            epochs: BTreeMap::new(),
            accepted: BTreeSet::new(),
            verdict: None,
            shown_count: 0,
            compared_count: 0,
            prompt_count: 0,
        }
    }

    /// Something is wrong; the first time counts.
    pub fn blame(&mut self, now_ms: i64, what: String) {
        self.verdict.get_or_insert_with(|| format!("at {now_ms}: {what}"));
    }

    /// A gateway has started.
    pub fn gateway_started(&mut self, name: &str, number: u32) {
        self.numbers.insert(name.to_owned(), number);
    }

    /// A record is in the log.
    pub fn appended(&mut self, topic: Topic, record: &Record) {
        let at_ms = record.appended_at.0;
        match (topic, &record.value) {
            (Topic::LocationEvents, Some(value)) => {
                if let Ok(event) = self.reports.decode(value) {
                    self.reported(&event, at_ms);
                }
            }
            (Topic::FriendLists, Some(value)) => {
                if let Ok(list) = self.lists.decode(value) {
                    let listed = Listed { from_ms: at_ms, friends: list.friends.into_iter().collect() };
                    self.listed.entry(list.user_id).or_default().push(listed);
                }
            }
            (Topic::Gateways, Some(value)) => {
                if let Ok(beat) = self.heartbeats.decode(value)
                    && let Some(number) = self.numbers.get(beat.gateway.as_str())
                {
                    self.beats_ms.insert(*number, at_ms);
                    self.lost_since_ms.remove(number);
                    for (gateway, _) in
                        self.beats_ms.iter().filter(|(_, beat_ms)| at_ms - **beat_ms > GATEWAY_LOST_AFTER_MS)
                    {
                        self.lost_since_ms.entry(*gateway).or_insert(at_ms);
                    }
                }
            }
            (Topic::FriendMoved(number), Some(value)) => self.told(number, value, at_ms),
            _ => {}
        }
    }

    /// R2 and R6.
    fn reported(&mut self, event: &LocationEvent, at_ms: i64) {
        let histories = self.held.entry(event.user_id).or_default();
        let time = event.reported_at.0.min(at_ms);
        let held = histories.last().copied();
        let next = match (event.position, held) {
            (None, held) => Held { from_ms: at_ms, time: held.map_or(time, |held| held.time.max(time)), place: None },
            (Some(_), Some(Held { time: held, place: None, .. })) if time <= held => return,
            (Some(_), Some(Held { time: held, .. })) if time < held => return,
            (Some(at), _) => Held { from_ms: at_ms, time, place: Some(at.place()) },
        };
        histories.push(next);
    }

    /// A batch is in the topic of a gateway.
    fn told(&mut self, gateway: u32, value: &[u8], at_ms: i64) {
        let Ok(batch) = self.batches.decode(value) else { return };
        if value.len() > BATCH_BYTES_MAX + 1_000 {
            self.blame(at_ms, format!("a batch of {} bytes", value.len()));
        }
        for section in &batch.sections {
            let committed = self.epochs.get(&section.partition).copied();
            if committed.is_none_or(|committed| committed < section.epoch) {
                let (partition, epoch) = (section.partition, section.epoch.0);
                self.blame(at_ms, format!("partition {partition} is told about under epoch {epoch}, not committed"));
            }
        }
        let lost_for_ms = self.lost_since_ms.get(&gateway).map_or(0, |since_ms| at_ms - since_ms);
        if lost_for_ms > self.stale_ms_max {
            self.blame(at_ms, format!("gateway {gateway} is told something, lost for {lost_for_ms} ms"));
        }
    }

    /// The coordinator accepted an epoch.
    pub fn committed(&mut self, partition: i32, epoch: Epoch, now_ms: i64) {
        let before = self.epochs.insert(partition, epoch);
        if before.is_some_and(|before| before >= epoch) {
            self.blame(now_ms, format!("the epoch of partition {partition} went from {before:?} to {epoch:?}"));
        }
    }

    /// A client heard that its report is in the log.
    pub fn accepted(&mut self, event: &LocationEvent) {
        self.accepted.insert(promised(event));
    }

    /// What clients heard to be in the log.
    pub fn accepted_reports(&self) -> impl Iterator<Item = Promised> + '_ {
        self.accepted.iter().copied()
    }

    /// A client is told to show a friend: the friend was in its list, and this was the friend's position, at one moment not
    /// too long ago; and not too long ago the two were near.
    pub fn shown(&mut self, viewer: UserId, friend: UserId, shown: &Shown, now_ms: i64) {
        self.shown_count += 1;
        if let Some(wrong) = self.wrongly_shown(viewer, friend, shown, now_ms - self.stale_ms_max) {
            self.blame(now_ms, format!("{viewer} is shown {friend} at {:?}: {wrong}", shown.updated_at));
        }
    }

    fn wrongly_shown(&self, viewer: UserId, friend: UserId, shown: &Shown, oldest_ms: i64) -> Option<&'static str> {
        if friend == viewer {
            return Some("is the viewer");
        }
        // Lists and reports are read apart, so that a list may be newer than the position that it lets be seen.
        let mut lists = since(self.listed.get(&viewer), |listed| listed.from_ms, oldest_ms);
        if !lists.any(|listed| listed.friends.contains(&friend)) {
            return Some("not in the list");
        }
        let mut positions = since(self.held.get(&friend), |held| held.from_ms, oldest_ms);
        if !positions.any(|held| held.place == Some(shown.place) && held.time == shown.updated_at.0) {
            return Some("was not there");
        }
        let mut own = since(self.held.get(&viewer), |held| held.from_ms, oldest_ms);
        let near = |place: Place| distance_m(place, shown.place) <= RADIUS_M + TOLERANCE_M;
        if !own.any(|held| held.place.is_some_and(near)) {
            return Some("was not near");
        }
        let inactive = shown.updated_at.0 + self.inactive_after_ms < oldest_ms - TOLERANCE_MS;
        inactive.then_some("is inactive")
    }

    /// After everything has settled: the view of a connected client is the truth.
    pub fn compare(&mut self, viewer: UserId, view: Option<&View>, now_ms: i64) {
        let Some(view) = view else {
            self.blame(now_ms, format!("{viewer} is connected and has no snapshot"));
            return;
        };
        let mut listed = self.listed.get(&viewer).and_then(|lists| lists.last()).map(|list| list.friends.clone());
        let friends = listed.get_or_insert_default();
        friends.remove(&viewer);
        let extra: Vec<UserId> = view.keys().filter(|friend| !friends.contains(friend)).copied().collect();
        if !extra.is_empty() {
            self.blame(now_ms, format!("{viewer} sees {extra:?}, not in its list"));
        }
        self.compared_count += view.len() as u64;
        for friend in friends.clone() {
            self.compare_pair(viewer, friend, view.get(&friend), now_ms);
        }
    }

    /// While nothing is wrong: what has not changed for so long is in the view.
    pub fn compare_unchanged(&mut self, viewer: UserId, view: &View, unchanged_ms: i64, now_ms: i64) {
        let before_ms = now_ms - unchanged_ms;
        let own = self.held.get(&viewer).and_then(|held| held.last()).is_some_and(|held| held.from_ms <= before_ms);
        let list = self.listed.get(&viewer).and_then(|lists| lists.last()).filter(|list| list.from_ms <= before_ms);
        let (Some(list), true) = (list, own) else { return };
        let unchanged = |friend: &&UserId| {
            let held = self.held.get(friend).and_then(|held| held.last());
            **friend != viewer && held.is_some_and(|held| held.from_ms <= before_ms)
        };
        for friend in list.friends.iter().filter(unchanged).copied().collect::<Vec<UserId>>() {
            self.prompt_count += 1;
            self.compare_pair(viewer, friend, view.get(&friend), now_ms);
        }
    }

    fn compare_pair(&mut self, viewer: UserId, friend: UserId, seen: Option<&Shown>, now_ms: i64) {
        let newest = |user| self.held.get(&user).and_then(|held| held.last()).filter(|held| held.place.is_some());
        let age_ms = |held: &Held| now_ms - held.time - self.inactive_after_ms;
        let (own, other) = (newest(viewer), newest(friend));
        if [own, other].into_iter().flatten().any(|held| age_ms(held).abs() < TOLERANCE_MS) {
            return;
        }
        let counts = |held: &&Held| age_ms(held) < 0;
        let near = own.filter(counts).zip(other.filter(counts)).and_then(|(own, other)| {
            let (from, to) = own.place.zip(other.place)?;
            Some((*other, distance_m(from, to)))
        });
        if near.is_some_and(|(_, distance_m)| (distance_m - RADIUS_M).abs() < TOLERANCE_M) {
            return;
        }
        let wrong = match (near.filter(|(_, distance_m)| *distance_m <= RADIUS_M), seen) {
            (None, None) => None,
            (None, Some(seen)) => Some(format!("sees {friend} at {:?}, who should not be seen", seen.updated_at)),
            (Some((held, _)), None) => Some(format!("does not see {friend}, reported at {}", held.time)),
            (Some((held, distance_m)), Some(seen)) => {
                let same = held.place == Some(seen.place) && held.time == seen.updated_at.0;
                let close = (f64::from(seen.distance_dm) / 10.0 - distance_m).abs() <= TOLERANCE_M;
                (!same || !close).then(|| format!("sees {friend} as {seen:?} instead of {held:?}, {distance_m} m"))
            }
        };
        if let Some(wrong) = wrong {
            self.blame(now_ms, format!("{viewer} {wrong}"));
        }
    }
}

/// The entries of a history that were in force at or after a moment.
fn since<T>(history: Option<&Vec<T>>, from_ms: impl Fn(&T) -> i64, oldest_ms: i64) -> impl Iterator<Item = &T> {
    let entries = history.map(Vec::as_slice).unwrap_or_default();
    // The last one that began before is still in force then.
    let begun = entries.partition_point(|entry| from_ms(entry) <= oldest_ms);
    entries[begun.saturating_sub(1)..].iter()
}

/// What is promised by accepting a report.
pub fn promised(event: &LocationEvent) -> Promised {
    let place = event.position.map(|at| (at.lat_e7, at.lon_e7));
    (event.user_id, event.reported_at.0, place)
}

/// Great-circle distance by the angle between two vectors.
fn distance_m(a: Place, b: Place) -> f64 {
    let vector = |place: Place| {
        let (lat, lon) = (f64::from(place.lat_e7) / 1e7, f64::from(place.lon_e7) / 1e7);
        let (lat, lon) = (lat.to_radians(), lon.to_radians());
        [lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()]
    };
    let ([ax, ay, az], [bx, by, bz]) = (vector(a), vector(b));
    let cross = [ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx];
    let sine = cross.iter().map(|part| part * part).sum::<f64>().sqrt();
    6_371_008.8 * sine.atan2(ax * bx + ay * by + az * bz)
}

/// How many events of a batch a gateway may take, which has seen these epochs (R9).
pub fn events_admitted(batch: &FriendMovedBatch, newest: &mut BTreeMap<i32, Epoch>) -> usize {
    let mut count = 0;
    for section in &batch.sections {
        let newest = newest.entry(section.partition).or_insert(section.epoch);
        if section.epoch >= *newest {
            *newest = section.epoch;
            count += section.events.len();
        }
    }
    count
}
