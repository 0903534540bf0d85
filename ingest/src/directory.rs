//! The directory of gateways: their heartbeats, whom was sent where, and who is the least loaded; pure.
//!
//! A heartbeat is up to 5 s old, and a burst of clients is over before the next one. So what was handed out since counts
//! as load: a hand-out is *expected* at its gateway until heartbeats show so many clients more, or until it is too old to come.
//! A heartbeat thus changes what a gateway's load consists of, not its sum, and no moment of a burst is a good one to be
//! the last that beat.
//!
//! Several processes hand out and none knows of the others but by heartbeats, which come early where clients come fast.
//! Hence the bound on what one process sends to one gateway in a second: an empty one among full ones gets more than its
//! share, not everybody.
//!
//! Time is the topic's append time, so that no two machines' clocks are compared, advanced by local time while nothing is
//! appended. It may go back: a broker's clock is corrected, or another broker leads. A heartbeat that is last in the log and long before
//! the newest says so, and then all that came before it are as long ago as they were; processors conclude the same.

use nearby_schemas::{GatewayHeartbeat, GatewayId, TimestampMs};
use std::collections::{BTreeMap, VecDeque};

/// A client that has not come by then does not come, or is in a heartbeat already.
const EXPECTED_MS_MAX: i64 = 10_000;
/// A gateway whose heartbeat is so far behind the newest has missed one: it is named only if there is no other.
const QUIET_AFTER_MS: i64 = 7_000;
/// As long as there is another, a gateway is sent this part of the clients a second that it lets in: other processes send
/// theirs.
const SENT_SHARE: i64 = 5;
/// What a gateway lets in that does not say it.
const ACCEPT_RATE_PER_S: i64 = 5_000;
const WINDOW_MS: i64 = 1_000;

/// Every gateway whose heartbeat is in the topic.
pub struct Directory {
    lost_after_ms: i64,
    gateways: BTreeMap<GatewayId, Gateway>,
    /// Append time of the newest heartbeat, and the local time at which it came.
    newest: Option<(TimestampMs, i64)>,
    caught_up: bool,
}

struct Gateway {
    heartbeat: GatewayHeartbeat,
    appended_at: TimestampMs,
    expected: Expected,
}

/// Clients who were sent to a gateway, and whom its heartbeat does not show yet.
#[derive(Default)]
struct Expected {
    /// How many in which second of local time; the oldest first, at most one entry for each second that counts.
    by_second: VecDeque<(i64, i64)>,
    sum: i64,
    /// The newest second in which any were sent, and how many, come or not.
    newest_sent: (i64, i64),
}

/// What speaks against sending a client to a gateway; the least counts, and `quiet` more than everything else.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Objection {
    quiet: bool,
    /// How often as many were sent there in this second as may be.
    times_sent: i64,
}

impl Directory {
    /// Knows nobody. A gateway is lost when its heartbeat is older than `lost_after_ms`.
    pub fn new(lost_after_ms: i64) -> Directory {
        Directory { lost_after_ms, gateways: BTreeMap::new(), newest: None, caught_up: false }
    }

    /// A heartbeat, when it was appended, and the local (monotonic) time at which it came.
    pub fn heard(&mut self, heartbeat: GatewayHeartbeat, appended_at: TimestampMs, local_ms: i64) {
        let back_ms = self.newest.map_or(0, |(newest, _)| newest.since_ms(appended_at));
        if back_ms > self.lost_after_ms / 2 {
            for gateway in self.gateways.values_mut() {
                gateway.appended_at = gateway.appended_at.plus_ms(-back_ms);
            }
            self.newest = None;
        }
        if self.newest.is_none_or(|(newest, _)| appended_at >= newest) {
            self.newest = Some((appended_at, local_ms));
        }
        let mut expected = Expected::default();
        if let Some(before) = self.gateways.remove(&heartbeat.gateway) {
            expected = before.expected;
            expected.forget_older(local_ms);
            expected.came(i64::from(heartbeat.connections) - i64::from(before.heartbeat.connections));
        }
        self.gateways.insert(heartbeat.gateway.clone(), Gateway { heartbeat, appended_at, expected });
    }

    /// A tombstone.
    pub fn removed(&mut self, gateway: &GatewayId) {
        self.gateways.remove(gateway);
    }

    /// All that was in the topic has been heard: from now on the choice is sound.
    pub fn caught_up(&mut self) {
        self.caught_up = true;
    }

    /// The gateway with the smallest share of its capacity in use, among equals the one with the smallest id; none before
    /// the directory has caught up, or when all are lost, draining or full. Those that have missed a heartbeat, or to which
    /// many were sent in this second, come last. Remembers that a client was sent there.
    pub fn choose(&mut self, local_ms: i64) -> Option<&GatewayHeartbeat> {
        let (newest, came_ms) = self.newest.filter(|_| self.caught_up)?;
        let now = newest.plus_ms(local_ms.saturating_sub(came_ms).max(0));
        let lost_after_ms = self.lost_after_ms;
        let open = self.gateways.values_mut().filter_map(|gateway| {
            let silent_ms = now.since_ms(gateway.appended_at);
            let open = silent_ms <= lost_after_ms && !gateway.heartbeat.draining && !gateway.is_full();
            open.then(|| (gateway.objection(silent_ms, local_ms), gateway))
        });
        // `a / b < c / d` without a division. `min_by` keeps the first of equals, and the map is ordered.
        let (_, chosen) = open.min_by(|(objection_a, a), (objection_b, b)| {
            objection_a.cmp(objection_b).then_with(|| (a.load() * b.capacity()).cmp(&(b.load() * a.capacity())))
        })?;
        chosen.expected.sent(local_ms);
        Some(&chosen.heartbeat)
    }
}

impl Gateway {
    fn load(&self) -> i64 {
        i64::from(self.heartbeat.connections.max(0)) + self.expected.sum
    }

    fn capacity(&self) -> i64 {
        i64::from(self.heartbeat.capacity)
    }

    /// By its own word alone: anybody may ask for a gateway and not come.
    fn is_full(&self) -> bool {
        i64::from(self.heartbeat.connections) >= self.capacity()
    }

    fn objection(&mut self, silent_ms: i64, local_ms: i64) -> Objection {
        self.expected.forget_older(local_ms);
        let accept_rate_per_s = Some(i64::from(self.heartbeat.accept_rate_per_s)).filter(|rate| *rate > 0);
        let sent_max = (accept_rate_per_s.unwrap_or(ACCEPT_RATE_PER_S) / SENT_SHARE).max(1);
        Objection { quiet: silent_ms > QUIET_AFTER_MS, times_sent: self.expected.sent_in(local_ms) / sent_max }
    }
}

impl Expected {
    fn sent(&mut self, local_ms: i64) {
        let second = local_ms.div_euclid(WINDOW_MS);
        match self.by_second.back_mut().filter(|(newest, _)| *newest == second) {
            Some((_, count)) => *count += 1,
            None => self.by_second.push_back((second, 1)),
        }
        self.sum += 1;
        self.newest_sent = match self.newest_sent {
            (newest, count) if newest == second => (second, count + 1),
            _ => (second, 1),
        };
    }

    fn sent_in(&self, local_ms: i64) -> i64 {
        let (second, count) = self.newest_sent;
        if second == local_ms.div_euclid(WINDOW_MS) { count } else { 0 }
    }

    /// The gateway holds so many clients more: these came, the earliest first.
    fn came(&mut self, more: i64) {
        let mut left = more.clamp(0, self.sum);
        self.sum -= left;
        while let Some((_, count)) = self.by_second.front_mut().filter(|_| left > 0) {
            let gone = left.min(*count);
            *count -= gone;
            left -= gone;
            if *count == 0 {
                self.by_second.pop_front();
            }
        }
    }

    fn forget_older(&mut self, local_ms: i64) {
        let oldest = (local_ms - EXPECTED_MS_MAX).div_euclid(WINDOW_MS);
        while let Some((_, count)) = self.by_second.pop_front_if(|(second, _)| *second < oldest) {
            self.sum -= count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Script {
        directory: Directory,
        local_ms: i64,
    }

    fn script() -> Script {
        let mut directory = Directory::new(30_000);
        directory.caught_up();
        Script { directory, local_ms: 500 }
    }

    fn heartbeat(name: &str, connections: i32, capacity: i32, draining: bool) -> GatewayHeartbeat {
        GatewayHeartbeat {
            gateway: GatewayId::new(name).expect("legal"),
            stream_url: format!("ws://{name}/v1/stream"),
            http_url: format!("http://{name}"),
            connections,
            capacity,
            draining,
            started_at: TimestampMs(0),
            accept_rate_per_s: 0,
        }
    }

    impl Script {
        /// A heartbeat `NAME CONNECTIONS/CAPACITY`, with ` draining` behind it.
        fn beat(mut self, text: &str, appended_at: i64) -> Script {
            let (text, draining) = text.strip_suffix(" draining").map_or((text, false), |text| (text, true));
            let (name, load) = text.split_once(' ').expect("name and load");
            let (connections, capacity) = load.split_once('/').expect("connections and capacity");
            let [connections, capacity] = [connections, capacity].map(|number| number.parse().expect("number"));
            let heartbeat = heartbeat(name, connections, capacity, draining);
            self.directory.heard(heartbeat, TimestampMs(appended_at), self.local_ms);
            self
        }

        fn gone(mut self, name: &str) -> Script {
            self.directory.removed(&GatewayId::new(name).expect("legal"));
            self
        }

        fn wait_ms(mut self, ms: i64) -> Script {
            self.local_ms += ms;
            self
        }

        /// The next choices, up to the number of names expected.
        fn chooses(mut self, expected: &str) -> Script {
            let mut chosen = Vec::new();
            for _ in expected.split(' ') {
                let gateway = self.directory.choose(self.local_ms);
                chosen.push(gateway.map_or("none", |heartbeat| heartbeat.gateway.as_str()).to_owned());
            }
            assert_eq!(chosen.join(" "), expected);
            self
        }
    }

    #[test]
    fn the_least_loaded_relative_to_its_capacity() {
        script().beat("a 50/100", 0).beat("b 90/200", 0).beat("c 5/10", 0).chooses("b");
    }

    #[test]
    fn among_equals_the_smallest_id() {
        script().beat("b 1/10", 0).beat("a 1/10", 0).beat("c 10/100", 0).chooses("a");
    }

    #[test]
    fn clients_sent_count_but_fill_nobody() {
        script().beat("a 0/2", 0).beat("b 0/4", 0).chooses("a b b a b b a");
    }

    #[test]
    fn a_heartbeat_shows_who_has_come_and_the_others_are_still_expected() {
        let script = script().beat("a 10/99", 0).beat("b 10/99", 0).chooses("a b a b");
        // One of two has come. To forget the other would send it the next two.
        let script = script.beat("a 11/99", 1).chooses("a b");
        // More have come than were sent: nobody is expected any more.
        script.beat("a 20/99", 2).chooses("b b b b b b b a b");
    }

    #[test]
    fn who_leaves_is_nobody_who_came() {
        script().beat("a 10/99", 0).beat("b 10/99", 0).chooses("a b a b").beat("a 9/99", 1).chooses("a a b");
    }

    #[test]
    fn who_does_not_come_is_forgotten() {
        let script = script().beat("a 0/99", 0).beat("b 4/99", 0).chooses("a a a a").wait_ms(9_000);
        let script = script.beat("a 0/99", 9_000).beat("b 4/99", 9_000).chooses("a b a b").wait_ms(2_000);
        script.beat("a 0/99", 11_000).beat("b 4/99", 11_000).chooses("a a a a a b");
    }

    /// Clients who ask one of several processes in turn, `per_s` for a while, and come 300 ms later; the gateways beat every
    /// `interval_ms`, each at another time. Returns how many they have at the end, beginning with `came`.
    fn arrive(mut came: [i32; 4], processes: usize, interval_ms: i64, per_s: usize, for_ms: i64) -> [i32; 4] {
        let mut directories: Vec<Directory> = (0..processes).map(|_| Directory::new(30_000)).collect();
        directories.iter_mut().for_each(Directory::caught_up);
        let mut under_way = VecDeque::new();
        let mut asked = 0;
        for ms in 0..for_ms + 5_000 {
            for (number, came) in came.iter().enumerate() {
                if (ms + 137 * number as i64) % interval_ms == 0 || ms == 0 {
                    let beat = heartbeat(&format!("g{number}"), *came, 50_000, false);
                    directories.iter_mut().for_each(|directory| directory.heard(beat.clone(), TimestampMs(ms), ms));
                }
            }
            let since_ms = ms - 4_000;
            while (0..for_ms).contains(&since_ms) && asked * 1_000 < per_s * since_ms as usize {
                let chosen = directories[asked % processes].choose(ms).expect("all are open");
                under_way.push_back((ms + 300, chosen.gateway.as_str()[1..].parse::<usize>().expect("a number")));
                asked += 1;
            }
            while let Some((_, number)) = under_way.pop_front_if(|(arrives_ms, _)| *arrives_ms <= ms) {
                came[number] += 1;
            }
        }
        came
    }

    #[test]
    fn a_burst_spreads_evenly_whenever_heartbeats_come() {
        for (processes, interval_ms) in [(1, 500), (1, 1_100), (1, 5_000), (3, 500)] {
            let came = arrive([0; 4], processes, interval_ms, 5_000, 2_000);
            let off_max = if processes == 1 { 5 } else { 125 };
            let even = came.iter().all(|count| (2_500 - count).abs() <= off_max);
            assert!(even, "{processes} processes, every {interval_ms} ms: {came:?}");
        }
    }

    /// Heartbeats come every 500 ms while numbers change so much.
    #[test]
    fn several_processes_fill_an_empty_gateway_without_overshooting_much() {
        let came = arrive([2_500, 2_500, 2_500, 0], 3, 500, 500, 20_000);
        let mean = came.iter().sum::<i32>() / 4;
        assert!(came.iter().all(|count| (count - mean).abs() * 20 <= mean), "{came:?}");
    }

    #[test]
    fn an_empty_gateway_gets_more_than_its_share_but_not_everybody() {
        let script = script().beat("a 9000/50000", 0).beat("b 9000/50000", 0).beat("c 0/50000", 0);
        let mut directory = script.directory;
        let mut send = |clients: usize, local_ms: i64| {
            let mut counts = BTreeMap::new();
            for _ in 0..clients {
                let chosen = directory.choose(local_ms).expect("all are open");
                *counts.entry(chosen.gateway.to_string()).or_insert(0) += 1;
            }
            counts.into_values().collect::<Vec<usize>>()
        };
        assert_eq!(send(900, 500), [900], "as many as it can take");
        assert_eq!(send(900, 600), [400, 400, 100], "and then the others");
        assert_eq!(send(1_200, 900), [600, 600], "up to the same");
        assert_eq!(send(1_500, 900), [250, 250, 1_000], "all alike when all are asked for too much");
        assert_eq!(send(900, 1_000), [900], "the next second is another one");
    }

    #[test]
    fn a_slow_gateway_is_sent_few() {
        let mut script = script().beat("a 9000/50000", 0);
        let slow = GatewayHeartbeat { accept_rate_per_s: 10, ..heartbeat("b", 0, 50_000, false) };
        script.directory.heard(slow, TimestampMs(0), 500);
        script.chooses("b b a a a").wait_ms(500).chooses("b b a");
    }

    #[test]
    fn who_has_missed_a_heartbeat_comes_last() {
        let script = script().beat("a 0/9", 0).beat("b 7/9", 7_000).chooses("a").beat("b 7/9", 7_001).chooses("b b b");
        script.beat("b 7/9 draining", 7_002).chooses("a");
    }

    #[test]
    fn draining_and_full_ones_are_left_out() {
        let script = script().beat("a 0/9 draining", 0).beat("b 9/9", 0).beat("c 0/0", 0).beat("d 0/-5", 0);
        script.chooses("none").beat("e 8/9", 0).chooses("e").beat("a 0/9", 1).chooses("a");
    }

    #[test]
    fn a_gateway_is_lost_behind_the_newest_append_time() {
        let script = script().beat("a 0/9", 1_000).beat("b 9/9", 31_000).chooses("a");
        script.beat("b 9/9", 31_001).chooses("none");
    }

    #[test]
    fn all_are_lost_when_nobody_appends() {
        let script = script().beat("a 0/9", 1_000).wait_ms(30_000).chooses("a").wait_ms(1).chooses("none");
        script.beat("b 8/9", 36_000).chooses("b");
    }

    #[test]
    fn a_late_old_heartbeat_does_not_set_time_back() {
        let script = script().beat("a 0/9", 0).beat("b 0/9", 40_000).wait_ms(20_000).beat("c 0/9", 25_000);
        script.chooses("b b").wait_ms(10_001).chooses("none");
    }

    #[test]
    fn time_that_has_gone_back_makes_nobody_lost() {
        // The broker's clock was 10 minutes ahead, and is right again; "a" was lost meanwhile, and "c" comes.
        let script = script().beat("a 0/9", 600_000).beat("b 3/9", 600_000).wait_ms(5_000);
        let script = script.beat("c 2/9", 5_000).chooses("a").beat("b 3/9", 5_000).chooses("a");
        script.wait_ms(30_001).beat("b 3/9", 35_001).beat("c 2/9", 35_001).chooses("c");
    }

    #[test]
    fn tombstones_remove() {
        script().chooses("none").beat("a 0/9", 0).beat("b 5/9", 0).gone("a").gone("x").chooses("b");
    }

    #[test]
    fn nobody_is_chosen_before_all_is_known() {
        let mut script = Script { directory: Directory::new(30_000), local_ms: 0 }.beat("a 0/9", 0).chooses("none");
        script.directory.caught_up();
        script.chooses("a");
    }
}
