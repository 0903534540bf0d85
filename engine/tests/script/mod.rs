//! A small language for scenarios: one input a line, and what the engine says to it.
//!
//! ```text
//! at 12s                         the clock, for this line and those below; may stand before any input
//! list 1: 2 3                    unlist 1
//! open 1 @g1 [ask 5]             close 1 @g1
//! 2 reports 37.77,-122.41 [of 5s]     2 unshares [of 5s]        time of the report, if not now
//! beat g1 [appended 3s]          unbeat g1
//! serve 0     forget 0     again 1 @g1     tick     resume
//! looks 2                        an engine that looks at so few edges at once; only in front of everything
//! stale 24h   counts             questions
//! 7 is in 3                      partition of a user, if not 0
//! ```
//! The output repeats each input that had something told, and below it what: `viewer@gateway <- …`.

use expect_test::Expect;
use nearby_engine::{Address, Engine, EngineSettings, Notice};
use nearby_schemas::{GatewayId, Place, TimestampMs, UserId};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Runs the script with the default settings and compares what was told.
pub fn check(script: &str, expected: Expect) {
    let engine = Engine::new(EngineSettings::default());
    let mut run = Run { engine, now: TimestampMs(0), partitions: BTreeMap::new(), told: String::new() };
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        run.line(line);
    }
    expected.assert_eq(&run.told);
}

struct Run {
    engine: Engine,
    now: TimestampMs,
    partitions: BTreeMap<UserId, i32>,
    told: String,
}

impl Run {
    fn line(&mut self, line: &str) {
        let mut words: Vec<&str> = line.split_whitespace().collect();
        if words[0] == "at" {
            self.now = time(words[1]);
            words.drain(..2);
        }
        let mut told = Vec::new();
        if !words.is_empty() {
            told = self.input(&words).unwrap_or_else(|| panic!("not understood: {line}"));
        }
        if !told.is_empty() {
            writeln!(self.told, "{line}\n    {}", told.join("\n    ")).expect("a string takes everything");
        }
    }

    /// `None` if the words are no input.
    fn input(&mut self, words: &[&str]) -> Option<Vec<String>> {
        let (now, mut out) = (self.now, Vec::new());
        match *words {
            ["stale", lost_for] => return Some(self.stale(lost_for)),
            ["looks", at_once_max] => {
                self.engine = Engine::with_looks_at_once(EngineSettings::default(), at_once_max.parse().ok()?);
            }
            ["counts"] => return Some(vec![format!("{:?}", self.engine.counts())]),
            [who, "is", "in", partition] => drop(self.partitions.insert(user(who), partition.parse().ok()?)),
            ["list", who, ref friends @ ..] => {
                let friends: Vec<UserId> = friends.iter().map(|friend| user(friend)).collect();
                self.engine.friend_list(self.partition(who), user(who), Some(&friends), now, &mut out);
            }
            ["unlist", who] => self.engine.friend_list(self.partition(who), user(who), None, now, &mut out),
            ["open", who, on] => self.session(who, on, Some("0"), &mut out),
            ["open", who, on, "ask", ask] => self.session(who, on, Some(ask), &mut out),
            ["close", who, on] => self.session(who, on, None, &mut out),
            [who, "reports", at] => self.engine.report(user(who), now, Some(place(at)), now, &mut out),
            [who, "reports", at, "of", then] => {
                self.engine.report(user(who), time(then), Some(place(at)), now, &mut out);
            }
            [who, "unshares"] => self.engine.report(user(who), now, None, now, &mut out),
            [who, "unshares", "of", then] => self.engine.report(user(who), time(then), None, now, &mut out),
            ["beat", on] => self.engine.heartbeat(&gateway(on), now, now, &mut out),
            ["beat", on, "appended", then] => self.engine.heartbeat(&gateway(on), time(then), now, &mut out),
            ["unbeat", on] => self.engine.gateway_removed(&gateway(on), now, &mut out),
            ["tick"] => self.engine.tick(now, &mut out),
            ["resume"] => {
                let waits = self.engine.resume(now, &mut out);
                let mut told: Vec<String> = out.iter().map(|notice| self.text(notice)).collect();
                told.push(if waits { "there is more" } else { "nothing waits" }.to_owned());
                return Some(told);
            }
            ["serve", partition] => self.engine.serve(partition.parse().ok()?, now, &mut out),
            ["forget", partition] => self.engine.forget(partition.parse().ok()?),
            ["again", who, on] => self.engine.snapshot_again(user(who), &gateway(on), now, &mut out),
            _ => return None,
        }
        Some(out.iter().map(|notice| self.text(notice)).collect())
    }

    fn session(&mut self, who: &str, on: &str, ask: Option<&str>, out: &mut Vec<Notice>) {
        let ask = ask.map(|ask| ask.parse().expect("an ask is a number"));
        self.engine.session(self.partition(who), user(who), &gateway(on), ask, self.now, out);
    }

    fn stale(&self, lost_for: &str) -> Vec<String> {
        let stale = self.engine.stale_sessions(time(lost_for).0).into_iter();
        stale.map(|(partition, user, gateway)| format!("{user}@{gateway} in {partition}")).collect()
    }

    fn partition(&self, who: &str) -> i32 {
        self.partitions.get(&user(who)).copied().unwrap_or(0)
    }

    fn text(&self, notice: &Notice) -> String {
        let address = |to: &Address| {
            assert_eq!(to.partition, self.partition(&to.viewer.to_string()), "partition of {notice:?}");
            format!("{}@{}", to.viewer, self.engine.gateway_id(to.gateway))
        };
        match notice {
            Notice::FriendMoved { to, friend, distance_dm, updated_at, .. } => {
                format!("{} <- {friend} moved {} of {}", address(to), metres(*distance_dm), seconds(*updated_at))
            }
            Notice::FriendLeft { to, friend, reason } => {
                format!("{} <- {friend} left {}", address(to), reason.as_str())
            }
            Notice::ViewerMoved { to, place } => format!("{} <- viewer moved {}", address(to), degrees(*place)),
            Notice::Snapshot { to, snapshot } => {
                assert_eq!(snapshot.viewer, to.viewer);
                let place = snapshot.place.map_or("nowhere".to_owned(), degrees);
                let friends = snapshot.friends.iter();
                let friends: Vec<String> =
                    friends.map(|seen| format!("{} {}", seen.friend, metres(seen.distance_dm))).collect();
                format!("{} <- snapshot at {place} [{}]", address(to), friends.join(", "))
            }
        }
    }
}

fn user(text: &str) -> UserId {
    text.trim_end_matches(':').parse().expect("a user is a number")
}

fn gateway(text: &str) -> GatewayId {
    GatewayId::new(text.trim_start_matches('@')).expect("a gateway's name is legal")
}

fn place(text: &str) -> Place {
    let (lat, lon) = text.split_once(',').expect("a place is lat,lon");
    let degrees = |text: &str| text.parse().expect("degrees are a number");
    Place::from_degrees(degrees(lat), degrees(lon)).expect("a place is on the globe")
}

fn time(text: &str) -> TimestampMs {
    let (number, unit_ms) = match text {
        _ if text.ends_with("ms") => (text.trim_end_matches("ms"), 1.0),
        _ if text.ends_with('h') => (text.trim_end_matches('h'), 3_600_000.0),
        _ => (text.trim_end_matches('s'), 1_000.0),
    };
    let number: f64 = number.parse().expect("a time is a number and a unit");
    #[expect(clippy::cast_possible_truncation, reason = "times in scenarios are small")]
    TimestampMs((number * unit_ms).round() as i64)
}

fn metres(distance_dm: i32) -> String {
    format!("{}.{}m", distance_dm / 10, distance_dm % 10)
}

fn seconds(time: TimestampMs) -> String {
    #[expect(clippy::cast_precision_loss, reason = "times in scenarios are small")]
    let seconds = time.0 as f64 / 1_000.0;
    format!("{seconds}s")
}

fn degrees(place: Place) -> String {
    format!("{},{}", place.lat(), place.lon())
}
