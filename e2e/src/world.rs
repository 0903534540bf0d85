//! What is true, by brute force: who reported what, who may see whom, and what every client was shown.
//!
//! Shares no code with what it judges. Pure: moments go in. A [`World`] holds two kinds of judgement:
//!
//! - **Never**, at any moment ([`World::violations`]): somebody who is in no list of the viewer or beyond the radius, a place
//!   that nobody reported, a friend who goes back in time, a friend who stopped sharing or was taken off the list and comes back without
//!   having done anything for it.
//! - **Right by now** ([`World::wrong`]): what a client shows follows from the lists and reports that were acknowledged up to
//!   `lag` ago, or from later ones. While everybody keeps moving no view is ever equal to the latest truth, so every state
//!   that was true within the lag counts.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Whom a viewer sees is at most so far away.
const RADIUS_M: f64 = 8_000.0;
const EARTH_RADIUS_M: f64 = 6_371_008.8;
/// Pairs this near to the radius may go either way, and distances are shown to a decimetre.
const DOUBT_M: f64 = 0.06;
/// More would only repeat the first ones.
const VIOLATIONS_KEPT: usize = 20;

/// A place as it is stored: 1e-7 degree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Latitude.
    pub lat_e7: i32,
    /// Longitude.
    pub lon_e7: i32,
}

impl Place {
    /// From degrees.
    pub fn new(lat: f64, lon: f64) -> Place {
        Place { lat_e7: (lat * 1e7).round() as i32, lon_e7: (lon * 1e7).round() as i32 }
    }

    /// In degrees.
    pub fn degrees(self) -> (f64, f64) {
        (f64::from(self.lat_e7) / 1e7, f64::from(self.lon_e7) / 1e7)
    }

    /// Great-circle distance in metres, by the haversine.
    pub fn distance_m(self, other: Place) -> f64 {
        let radians = |place: Place| (place.degrees().0.to_radians(), place.degrees().1.to_radians());
        let ((lat_a, lon_a), (lat_b, lon_b)) = (radians(self), radians(other));
        let half_chord =
            ((lat_b - lat_a) / 2.0).sin().powi(2) + lat_a.cos() * lat_b.cos() * ((lon_b - lon_a) / 2.0).sin().powi(2);
        2.0 * EARTH_RADIUS_M * half_chord.sqrt().min(1.0).asin()
    }
}

/// What a client said once: where it is (a withdrawal says nowhere), or whom it may see.
#[derive(Clone, Debug)]
struct Said<T> {
    what: T,
    acknowledged_at: Option<Instant>,
}

/// A report as it has to be in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// By the client's clock, in milliseconds since 1970; no two of one user are equal.
    pub reported_at_ms: i64,
    /// None: stopped sharing.
    pub place: Option<Place>,
}

#[derive(Clone, Copy, Debug)]
struct Shown {
    report: Report,
    distance_m: f64,
}

#[derive(Debug, Default)]
struct Person {
    reports: Vec<Said<Report>>,
    lists: Vec<Said<BTreeSet<i64>>>,
    client: Option<Client>,
}

#[derive(Debug)]
struct Client {
    /// None until the first snapshot.
    view: Option<BTreeMap<i64, Shown>>,
    /// The oldest report of each friend that may be shown from now on.
    oldest: BTreeMap<i64, i64>,
    /// Friends who were taken off the list, and have left the view since.
    unfriended: BTreeSet<i64>,
    heard_at: Instant,
    always_hears: bool,
    longest_gap: Duration,
}

/// Everything that is true, and everything that was shown.
#[derive(Debug, Default)]
pub struct World {
    people: BTreeMap<i64, Person>,
    violations: Vec<String>,
}

impl World {
    /// Somebody is about to say whom `user` may see; the number of the saying is for [`World::list_acknowledged`].
    pub fn list_sent(&mut self, user: i64, friends: BTreeSet<i64>) -> usize {
        let person = self.people.entry(user).or_default();
        if let Some(client) = &mut person.client {
            client.unfriended.retain(|friend| !friends.contains(friend));
        }
        person.lists.push(Said { what: friends, acknowledged_at: None });
        person.lists.len() - 1
    }

    /// The list is in the log.
    pub fn list_acknowledged(&mut self, user: i64, number: usize, now: Instant) {
        self.people.entry(user).or_default().lists[number].acknowledged_at = Some(now);
    }

    /// Whom `user` may see by the list that was sent last.
    pub fn friends(&self, user: i64) -> BTreeSet<i64> {
        let last = self.people.get(&user).and_then(|person| person.lists.last());
        last.map(|list| list.what.clone()).unwrap_or_default()
    }

    /// `user` is about to report; the number is for [`World::report_acknowledged`]. Reports go forward in time.
    pub fn report_sent(&mut self, user: i64, report: Report) -> usize {
        let reports = &mut self.people.entry(user).or_default().reports;
        let newest = reports.last().map_or(i64::MIN, |last| last.what.reported_at_ms);
        assert!(newest < report.reported_at_ms, "user {user} reports twice in a millisecond");
        reports.push(Said { what: report, acknowledged_at: None });
        reports.len() - 1
    }

    /// The report is in the log.
    pub fn report_acknowledged(&mut self, user: i64, number: usize, now: Instant) {
        self.people.entry(user).or_default().reports[number].acknowledged_at = Some(now);
    }

    /// Every report that was ever sent, with whether it was acknowledged.
    pub fn reports(&self) -> BTreeMap<(i64, i64), (Option<Place>, bool)> {
        let of = |(user, person): (&i64, &Person)| {
            let user = *user;
            let key = move |said: &Said<Report>| {
                ((user, said.what.reported_at_ms), (said.what.place, said.acknowledged_at.is_some()))
            };
            person.reports.iter().map(key).collect::<Vec<_>>()
        };
        self.people.iter().flat_map(of).collect()
    }

    /// A client of `user` has connected; what it shows is unknown until the snapshot. Somebody who `always_hears` has friends
    /// near all the time, who report all the time.
    pub fn connected(&mut self, user: i64, always_hears: bool, now: Instant) {
        let (oldest, unfriended) = Default::default();
        let longest_gap = Duration::ZERO;
        let client = Client { view: None, oldest, unfriended, heard_at: now, always_hears, longest_gap };
        self.people.entry(user).or_default().client = Some(client);
    }

    /// The client of `user` takes a frame in, as every client has to: a snapshot replaces all, an update some.
    pub fn hear(&mut self, user: i64, frame: &Value, now: Instant) {
        let entries = |of: &str| frame[of].as_array().cloned().unwrap_or_default();
        let (shown, left) = match frame["type"].as_str() {
            Some("snapshot") => (entries("friends"), Vec::new()),
            Some("update") => (entries("moved"), entries("left")),
            _ => return,
        };
        let snapshot = frame["type"] == "snapshot";
        let Some(mut client) = self.people.get_mut(&user).and_then(|person| person.client.take()) else { return };
        client.longest_gap = client.longest_gap.max(now - client.heard_at);
        client.heard_at = now;
        if !snapshot && client.view.is_none() {
            self.violation(format!("user {user}: an update before the first snapshot"));
        }
        let before = client.view.take().unwrap_or_default();
        let mut view = if snapshot { BTreeMap::new() } else { before.clone() };
        for friend in &left {
            let id = id_of(friend);
            view.remove(&id);
            if friend["reason"] == "unshared"
                && let Some(shown) = before.get(&id)
            {
                client.oldest.insert(id, shown.report.reported_at_ms + 1);
            }
        }
        for friend in &shown {
            self.check_never(user, &mut client, friend);
            let place = Place::new(number(&friend["lat"]), number(&friend["lon"]));
            let reported_at_ms = friend["updated_at_ms"].as_i64().unwrap_or_default();
            let report = Report { reported_at_ms, place: Some(place) };
            view.insert(id_of(friend), Shown { report, distance_m: number(&friend["distance_m"]) });
        }
        let person = self.people.entry(user).or_default();
        let listed = person.lists.last().map(|list| &list.what);
        let gone = before.keys().filter(|id| !view.contains_key(id));
        client.unfriended.extend(gone.filter(|id| listed.is_some_and(|list| !list.contains(id))));
        client.view = Some(view);
        person.client = Some(client);
    }

    /// Whatever must not be shown at any moment.
    fn check_never(&mut self, user: i64, client: &mut Client, friend: &Value) {
        let id = id_of(friend);
        let reported_at_ms = friend["updated_at_ms"].as_i64().unwrap_or_default();
        let place = Place::new(number(&friend["lat"]), number(&friend["lon"]));
        let lists = self.people.get(&user).map(|person| person.lists.as_slice()).unwrap_or_default();
        if !lists.iter().any(|list| list.what.contains(&id)) {
            self.violation(format!("user {user} is shown {id}, who is in no list of theirs: {friend}"));
        } else if client.unfriended.contains(&id) {
            self.violation(format!("user {user} is shown {id} again, who is off the list and had left: {friend}"));
        }
        let reports = self.people.get(&id).map(|person| person.reports.as_slice()).unwrap_or_default();
        let at = reports.partition_point(|said| said.what.reported_at_ms < reported_at_ms);
        if reports.get(at).map(|said| said.what) != Some(Report { reported_at_ms, place: Some(place) }) {
            self.violation(format!("user {user} is shown {id} where they never reported to be: {friend}"));
        }
        if number(&friend["distance_m"]) > RADIUS_M + DOUBT_M {
            self.violation(format!("user {user} is shown {id}, who is too far away: {friend}"));
        }
        let oldest = client.oldest.entry(id).or_insert(reported_at_ms);
        if reported_at_ms < *oldest {
            let behind_ms = *oldest - reported_at_ms;
            self.violation(format!("user {user} is shown {id} {behind_ms} ms back in time: {friend}"));
        } else {
            *oldest = reported_at_ms;
        }
    }

    /// Notes what must never happen.
    pub fn violation(&mut self, what: String) {
        if self.violations.len() < VIOLATIONS_KEPT {
            self.violations.push(what);
        }
    }

    /// What happened and must not have, the first ones.
    pub fn violations(&self) -> &[String] {
        &self.violations
    }

    /// Gaps between what clients hear are measured from now on; one that is open counts from its beginning.
    pub fn begin_gaps(&mut self) {
        for client in self.people.values_mut().filter_map(|person| person.client.as_mut()) {
            client.longest_gap = Duration::ZERO;
        }
    }

    /// The longest time for which somebody who always hears something has heard nothing, up to now.
    pub fn longest_gap(&self, now: Instant) -> Duration {
        let clients = self.people.values().filter_map(|person| person.client.as_ref());
        let clients = clients.filter(|client| client.always_hears);
        clients.map(|client| client.longest_gap.max(now - client.heard_at)).max().unwrap_or_default()
    }

    /// Every client whose view does not follow from what was true at any moment between `lag` ago and now: why not.
    pub fn wrong(&self, now: Instant, lag: Duration) -> Vec<String> {
        let viewers = self.people.iter().filter_map(|(user, person)| Some((user, person, person.client.as_ref()?)));
        let why = |(user, person, client): (&i64, &Person, &Client)| {
            let Some(view) = &client.view else { return Some(format!("user {user} has no snapshot")) };
            let wrong = self.wrong_friend(person, view, now, lag)?;
            Some(format!("user {user}: {wrong}"))
        };
        viewers.filter_map(why).collect()
    }

    fn wrong_friend(
        &self,
        viewer: &Person,
        view: &BTreeMap<i64, Shown>,
        now: Instant,
        lag: Duration,
    ) -> Option<String> {
        let (lists, had_list) = possible(&viewer.lists, now, lag);
        let (own, had_own) = possible(&viewer.reports, now, lag);
        let own: Vec<Option<Place>> = own.iter().map(|said| said.what.place).collect();
        let ever: BTreeSet<i64> = lists.iter().flat_map(|list| list.what.iter().copied()).collect();
        if let Some(stranger) = view.keys().find(|id| !ever.contains(id)) {
            return Some(format!("shows {stranger}, who is not in the list"));
        }
        let nobody = Person::default();
        ever.iter().find_map(|friend| {
            let (theirs, had_theirs) = possible(&self.people.get(friend).unwrap_or(&nobody).reports, now, lag);
            let Some(shown) = view.get(friend) else {
                let may_be_unlisted = !had_list || lists.iter().any(|list| !list.what.contains(friend));
                let away = |(here, there): (Option<Place>, Option<Place>)| {
                    here.zip(there).is_none_or(|(here, there)| here.distance_m(there) > RADIUS_M - DOUBT_M)
                };
                let may_be_away = theirs.iter().any(|said| own.iter().any(|here| away((*here, said.what.place))));
                let right = may_be_unlisted || may_be_away || !had_own || !had_theirs;
                return (!right).then(|| format!("does not show {friend}, who is near"));
            };
            if !theirs.iter().any(|said| said.what == shown.report) {
                let newest = theirs.first().map(|said| said.what);
                return Some(format!("shows {friend} by an old report, {:?}, newer is {newest:?}", shown.report));
            }
            let there = shown.report.place?;
            let fits = |distance: f64| distance <= RADIUS_M + DOUBT_M && (distance - shown.distance_m).abs() <= DOUBT_M;
            let right = own.iter().flatten().any(|here| fits(here.distance_m(there)));
            (!right).then(|| format!("shows {friend} at {} m, which is wrong", shown.distance_m))
        })
    }
}

/// What may hold by now: the last saying that was acknowledged up to `lag` ago, with everything after it; false if there is
/// none, so that nothing may hold too.
fn possible<T>(said: &[Said<T>], now: Instant, lag: Duration) -> (&[Said<T>], bool) {
    let settled = |said: &Said<T>| said.acknowledged_at.is_some_and(|at| at + lag <= now);
    match said.iter().rposition(settled) {
        Some(first) => (&said[first..], true),
        None => (said, false),
    }
}

fn id_of(friend: &Value) -> i64 {
    friend["id"].as_str().and_then(|id| id.parse().ok()).unwrap_or(-1)
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const LAG: Duration = Duration::from_secs(1);
    const HERE: Place = Place { lat_e7: 400_000_000, lon_e7: 0 };
    /// 1111.95 m to the north.
    const NEAR: Place = Place { lat_e7: 400_100_000, lon_e7: 0 };
    const FAR: Place = Place { lat_e7: 401_000_000, lon_e7: 0 };

    /// User 1 has 2 and 3 in the list, is connected and has a first snapshot with 2.
    struct Story {
        world: World,
        start: Instant,
        reports: i64,
    }

    impl Story {
        fn new() -> Story {
            let start = Instant::now();
            let mut story = Story { world: World::default(), start, reports: 0 };
            let list = story.world.list_sent(1, BTreeSet::from([2, 3]));
            story.world.list_acknowledged(1, list, start);
            for (user, place) in [(1, HERE), (2, NEAR), (4, NEAR)] {
                story.report(user, Some(place), Duration::ZERO);
            }
            story.world.connected(1, true, start);
            story.hear(&json!({"type": "snapshot", "friends": [shown(2, 2, NEAR)]}), Duration::ZERO);
            story
        }

        /// Sent and acknowledged; its time is how many there were before, plus one.
        fn report(&mut self, user: i64, place: Option<Place>, after: Duration) {
            self.reports += 1;
            let number = self.world.report_sent(user, Report { reported_at_ms: self.reports, place });
            self.world.report_acknowledged(user, number, self.start + after);
        }

        fn hear(&mut self, frame: &Value, after: Duration) {
            self.world.hear(1, frame, self.start + after);
        }

        fn moved(&mut self, friend: &Value) {
            self.hear(&json!({"type": "update", "moved": [friend]}), LAG);
        }

        fn violated(&self, what: &str) -> bool {
            self.world.violations().iter().any(|violation| violation.contains(what))
        }

        fn wrong(&self, after: Duration) -> String {
            self.world.wrong(self.start + after, LAG).join(", ")
        }
    }

    fn shown(id: i64, updated_at_ms: i64, place: Place) -> Value {
        let ((lat, lon), distance_m) = (place.degrees(), (HERE.distance_m(place) * 10.0).round() / 10.0);
        json!({"id": id.to_string(), "lat": lat, "lon": lon, "updated_at_ms": updated_at_ms, "distance_m": distance_m})
    }

    #[test]
    fn what_is_right_is_right() {
        let story = Story::new();
        assert!((HERE.distance_m(NEAR) - 1111.95).abs() < 0.01, "{}", HERE.distance_m(NEAR));
        assert_eq!((story.wrong(10 * LAG), story.world.violations()), (String::new(), [].as_slice()));
    }

    #[test]
    fn strangers_unknown_places_and_far_friends_are_never_shown() {
        let mut story = Story::new();
        story.moved(&shown(4, 3, NEAR));
        assert!(story.violated("in no list"), "{:?}", story.world.violations());
        story.moved(&shown(2, 2, HERE));
        assert!(story.violated("where they never reported"), "{:?}", story.world.violations());
        story.report(2, Some(FAR), LAG);
        story.moved(&shown(2, 4, FAR));
        assert!(story.violated("too far away"), "{:?}", story.world.violations());
    }

    #[test]
    fn nobody_goes_back_in_time() {
        let mut story = Story::new();
        story.report(2, Some(HERE), LAG);
        story.moved(&shown(2, 4, HERE));
        assert!(story.world.violations().is_empty());
        story.hear(&json!({"type": "snapshot", "friends": [shown(2, 2, NEAR)]}), LAG);
        assert!(story.violated("2 ms back in time"), "{:?}", story.world.violations());
    }

    #[test]
    fn who_was_taken_back_does_not_come_again_by_itself() {
        let mut story = Story::new();
        story.hear(&json!({"type": "update", "left": [{"id": "2", "reason": "unshared"}]}), LAG);
        story.moved(&shown(2, 2, NEAR));
        assert!(story.violated("1 ms back in time"), "{:?}", story.world.violations());

        let mut story = Story::new();
        story.world.list_sent(1, BTreeSet::from([3]));
        story.hear(&json!({"type": "snapshot", "friends": []}), LAG);
        assert!(story.world.violations().is_empty());
        story.moved(&shown(2, 2, NEAR));
        assert!(story.violated("off the list"), "{:?}", story.world.violations());
    }

    #[test]
    fn a_view_is_wrong_when_the_lag_is_over() {
        let mut story = Story::new();
        story.report(2, Some(HERE), LAG);
        assert_eq!(story.wrong(LAG * 3 / 2), "", "2 may still be shown where they were");
        assert!(story.wrong(3 * LAG).contains("by an old report"), "{}", story.wrong(3 * LAG));
        story.report(3, Some(NEAR), 4 * LAG);
        story.moved(&shown(2, 4, HERE));
        assert_eq!(story.wrong(LAG * 9 / 2), "");
        assert!(story.wrong(6 * LAG).contains("does not show 3"), "{}", story.wrong(6 * LAG));
        let list = story.world.list_sent(1, BTreeSet::new());
        story.world.list_acknowledged(1, list, story.start + 6 * LAG);
        assert!(story.wrong(8 * LAG).contains("not in the list"), "{}", story.wrong(8 * LAG));
    }

    #[test]
    fn gaps_are_between_frames_and_up_to_now() {
        let mut story = Story::new();
        assert_eq!(story.world.longest_gap(story.start + 3 * LAG), 3 * LAG);
        story.hear(&json!({"type": "update"}), 2 * LAG);
        story.world.begin_gaps();
        assert_eq!(story.world.longest_gap(story.start + 3 * LAG), LAG);
    }
}
