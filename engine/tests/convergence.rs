//! Random histories against the model: what clients show is what the rules say, after every single input, and in whatever
//! order the inputs of different users come.

mod model;

use model::{Clients, GATEWAY_LOST_AFTER_MS, INACTIVE_AFTER_MS, Input, Model, RADIUS_M, gateway_id, partition};
use nearby_engine::{Counts, Engine, EngineSettings, Notice};
use nearby_schemas::{Place, TimestampMs, UserId};
use proptest::prelude::*;
use std::collections::BTreeSet;

const LOOKS_AT_ONCE_MAX: usize = 4_096;
const USERS: i64 = 7;
const GATEWAYS: u8 = 3;

/// Far more calls than it takes to do what is left.
const RESUMED_MAX: usize = 2_000;

/// An engine, its clients and the model, side by side.
struct Bench {
    engine: Engine,
    model: Model,
    clients: Clients,
    /// Sessions that have to get a snapshot before nothing waits.
    asked: BTreeSet<(i64, u8)>,
}

impl Bench {
    /// With an engine that looks at so many edges at once.
    fn new(looks_at_once_max: usize) -> Bench {
        let settings = EngineSettings {
            radius_m: RADIUS_M,
            inactive_after_ms: INACTIVE_AFTER_MS,
            gateway_lost_after_ms: GATEWAY_LOST_AFTER_MS,
        };
        let engine = Engine::with_looks_at_once(settings, looks_at_once_max);
        Bench { engine, model: Model::default(), clients: Clients::default(), asked: BTreeSet::new() }
    }

    /// One input to all three; what clients show when nothing waits is what the model says.
    fn step(&mut self, input: &Input, now: i64) {
        self.take(input, now);
        self.settle(input);
    }

    /// One input to all three. Something may be left to do.
    fn take(&mut self, input: &Input, now: i64) {
        let out = call(&mut self.engine, input, now);
        let asked = self.model.take(input, now);
        self.asked.extend(asked);
        self.hear(&out, input);
    }

    fn settle(&mut self, input: &Input) {
        let mut waits = true;
        for _ in 0..RESUMED_MAX {
            let mut out = Vec::new();
            waits = self.engine.resume(TimestampMs(self.model.now), &mut out);
            self.hear(&out, input);
            if !waits {
                break;
            }
        }
        assert!(!waits, "still something to do after {input:?}");
        let live = self.model.live();
        for session in self.asked.iter().filter(|session| live.contains(session)) {
            assert!(self.clients.snapshots.contains(session), "no snapshot for {session:?} after {input:?}");
        }
        self.asked.clear();
        self.clients.snapshots.clear();
        // Who is not connected has to get a snapshot before anything else.
        self.clients.clients.retain(|session, _| live.contains(session));
        self.check(input);
    }

    fn hear(&mut self, out: &[Notice], input: &Input) {
        let live = self.model.live();
        for notice in out {
            let gateway_id = self.engine.gateway_id(gateway_of(notice)).clone();
            self.clients.hear(notice, |_| gateway_id.clone());
            assert!(self.model.serves(viewer_of(notice)), "{notice:?} for a partition that is not served");
            if let Notice::Snapshot { to, .. } = notice {
                let mut sessions = live.iter().filter(|(viewer, _)| *viewer == to.viewer.0);
                assert!(
                    sessions.any(|(_, gateway)| model::gateway_id(*gateway) == gateway_id),
                    "a snapshot after {input:?} for who is not connected"
                );
            }
        }
    }

    /// Until nothing waits.
    fn resume(&mut self, now: i64) {
        for _ in 0..RESUMED_MAX {
            let mut out = Vec::new();
            let more = self.engine.resume(TimestampMs(now), &mut out);
            self.clients_hear(&out);
            if !more {
                return;
            }
        }
        panic!("still something to do");
    }

    /// Without a look at what the model says of it.
    fn clients_hear(&mut self, out: &[Notice]) {
        for notice in out {
            let gateway_id = self.engine.gateway_id(gateway_of(notice)).clone();
            self.clients.hear(notice, |_| gateway_id.clone());
        }
    }

    fn check(&self, input: &Input) {
        let live = self.model.live();
        for (viewer, gateway) in &live {
            let client = self.clients.clients.get(&(*viewer, *gateway));
            let client = client.unwrap_or_else(|| panic!("{viewer}@{gateway} has no snapshot after {input:?}"));
            assert_eq!(client.view, self.model.view(*viewer), "view of {viewer}@{gateway} after {input:?}");
            for friend in client.view.keys() {
                assert!(self.model.listed(*viewer, *friend) && !self.model.withdrew(*friend), "{friend} is shown");
            }
            if let Some((place, _)) = self.model.visible(*viewer) {
                assert_eq!(client.place, Some(place), "place of {viewer} after {input:?}");
            }
        }
        let Counts { users_with_position, viewers_connected, .. } = self.engine.counts();
        assert_eq!(users_with_position, (0..USERS).filter(|user| self.model.visible(*user).is_some()).count());
        assert_eq!(viewers_connected, (0..USERS).filter(|user| live.iter().any(|(viewer, _)| viewer == user)).count());
    }
}

fn gateway_of(notice: &Notice) -> nearby_engine::GatewayIndex {
    match notice {
        Notice::FriendMoved { to, .. }
        | Notice::FriendLeft { to, .. }
        | Notice::ViewerMoved { to, .. }
        | Notice::Snapshot { to, .. } => to.gateway,
    }
}

fn viewer_of(notice: &Notice) -> i64 {
    match notice {
        Notice::FriendMoved { to, .. }
        | Notice::FriendLeft { to, .. }
        | Notice::ViewerMoved { to, .. }
        | Notice::Snapshot { to, .. } => to.viewer.0,
    }
}

fn call(engine: &mut Engine, input: &Input, now: i64) -> Vec<Notice> {
    let (now, mut out) = (TimestampMs(now), Vec::new());
    match input.clone() {
        Input::Report { user, time, place } => engine.report(UserId(user), TimestampMs(time), place, now, &mut out),
        Input::List { viewer, friends } => {
            let friends: Option<Vec<UserId>> = friends.map(|friends| friends.into_iter().map(UserId).collect());
            engine.friend_list(partition(viewer), UserId(viewer), friends.as_deref(), now, &mut out);
        }
        Input::Session { user, gateway, ask } => {
            engine.session(partition(user), UserId(user), &gateway_id(gateway), ask, now, &mut out);
        }
        Input::Heartbeat { gateway, appended_at } => {
            engine.heartbeat(&gateway_id(gateway), TimestampMs(appended_at), now, &mut out);
        }
        Input::GatewayRemoved { gateway } => engine.gateway_removed(&gateway_id(gateway), now, &mut out),
        Input::Serve { partition } => engine.serve(partition, now, &mut out),
        Input::Forget { partition } => engine.forget(partition),
        Input::Again { viewer, gateway } => engine.snapshot_again(UserId(viewer), &gateway_id(gateway), now, &mut out),
        Input::Tick => engine.tick(now, &mut out),
    }
    out
}

/// Places in clusters somewhat larger than the radius, one across the 180th meridian and one around a pole.
fn places() -> impl Strategy<Value = Place> {
    let centres = prop_oneof![4 => Just((37.77, -122.41)), 1 => Just((0.0, 179.98)), 1 => Just((89.95, 10.0))];
    let offsets = prop_oneof![
        4 => (-0.06..0.06, prop_oneof![-0.06..0.06, -180.0..180.0]),
        // So that people are at the very same place.
        1 => (prop_oneof![Just(0.0), Just(0.05), Just(-0.05)], Just(0.0)),
    ];
    (centres, offsets).prop_map(|((lat, lon), (north, east)): ((f64, f64), (f64, f64))| {
        let lon = lon + if lat > 89.0 || east.abs() < 1.0 { east } else { 0.0 };
        Place::from_degrees((lat + north).min(90.0), (lon + 540.0).rem_euclid(360.0) - 180.0).expect("on the globe")
    })
}

/// An input, with times relative to now, which are made absolute when it is given.
fn inputs() -> impl Strategy<Value = Input> {
    let (user, gateway) = (0..USERS, 0..GATEWAYS);
    let friends = prop::option::weighted(0.9, prop::collection::vec(0..USERS, 0..8));
    let time = prop_oneof![4 => Just(0_i64), 2 => -20_000..0_i64, 1 => -700_000..0_i64, 1 => 0..5_000_i64];
    let place = prop::option::weighted(0.9, places());
    prop_oneof![
        12 => (user.clone(), time, place).prop_map(|(user, time, place)| Input::Report { user, time, place }),
        4 => (user.clone(), friends).prop_map(|(viewer, friends)| Input::List { viewer, friends }),
        5 => (user.clone(), gateway.clone(), prop::option::weighted(0.8, 0..4_i64))
            .prop_map(|(user, gateway, ask)| Input::Session { user, gateway, ask }),
        4 => (gateway.clone(), prop_oneof![4 => Just(0_i64), 1 => -40_000..0_i64])
            .prop_map(|(gateway, appended_at)| Input::Heartbeat { gateway, appended_at }),
        1 => gateway.clone().prop_map(|gateway| Input::GatewayRemoved { gateway }),
        2 => (0..2).prop_map(|partition| Input::Serve { partition }),
        1 => (0..2).prop_map(|partition| Input::Forget { partition }),
        1 => (user, gateway).prop_map(|(viewer, gateway)| Input::Again { viewer, gateway }),
        1 => Just(Input::Tick),
    ]
}

/// Reports with the times at which they were appended, none of them made later than that.
fn reports(length_max: usize) -> impl Strategy<Value = Vec<(Input, i64)>> {
    // Few users and whole seconds, so that much happens to each, and at the same time.
    let delay_s = prop_oneof![2 => Just(0_i64), 6 => 0..12_i64, 1 => 0..500_i64];
    let place = prop::option::weighted(0.7, places());
    prop::collection::vec((0..3_i64, place, delay_s, 0..3_i64), 1..length_max).prop_map(|reports| {
        let mut appended_at = 1_000_000;
        let report = |(user, place, delay_s, step_s)| {
            appended_at += step_s * 1_000;
            (Input::Report { user, time: appended_at - delay_s * 1_000, place }, appended_at)
        };
        reports.into_iter().map(report).collect()
    })
}

/// Makes the times of an input absolute.
fn at(input: Input, now: i64) -> Input {
    match input {
        Input::Report { user, time, place } => Input::Report { user, time: now + time, place },
        Input::Heartbeat { gateway, appended_at } => Input::Heartbeat { gateway, appended_at: now + appended_at },
        other => other,
    }
}

/// Inputs with the time that passes before each: mostly little, sometimes enough for expiry.
fn histories(length_max: usize) -> impl Strategy<Value = Vec<(Input, i64)>> {
    let steps_ms = prop_oneof![6 => 0..5_000_i64, 2 => Just(0_i64), 1 => -5_000..0_i64, 1 => 0..400_000_i64];
    prop::collection::vec((inputs(), steps_ms), 1..length_max).prop_map(|steps| {
        let mut now = 1_000_000;
        let absolute = |(input, step_ms)| {
            now += step_ms;
            (at(input, now), now)
        };
        steps.into_iter().map(absolute).collect()
    })
}

/// A world in which much is seen from the beginning.
fn warm() -> Vec<Input> {
    let mut inputs: Vec<Input> =
        (0..GATEWAYS).map(|gateway| Input::Heartbeat { gateway, appended_at: 1_000_000 }).collect();
    for user in 0..USERS {
        inputs.push(Input::List { viewer: user, friends: Some((0..USERS).collect()) });
        inputs.push(Input::Session { user, gateway: u8::from(user > 3), ask: Some(0) });
    }
    inputs.extend((0..2).map(|partition| Input::Serve { partition }));
    inputs
}

/// Whose stream an input belongs to: within one the log keeps the order, between them it may be any.
fn stream(input: &Input) -> i64 {
    match input {
        Input::Report { user, .. } => *user,
        Input::List { viewer, .. } => USERS + viewer,
        Input::Session { user, .. } | Input::Again { viewer: user, .. } => 2 * USERS + user,
        Input::Heartbeat { .. } | Input::GatewayRemoved { .. } => 3 * USERS,
        Input::Serve { .. } | Input::Forget { .. } | Input::Tick => 3 * USERS + 1,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn clients_show_what_the_rules_say_after_every_input(is_warm: bool, history in histories(120)) {
        let mut bench = Bench::new(LOOKS_AT_ONCE_MAX);
        if is_warm {
            warm().iter().for_each(|input| bench.step(input, 1_000_000));
        }
        for (input, now) in &history {
            bench.step(input, *now);
        }
    }

    /// An engine that can hardly do anything at once: friends of two viewers are hubs, and partitions of two viewers are
    /// served in several calls. Inputs come in between; when nothing waits, clients show what the rules say.
    #[test]
    fn clients_show_what_the_rules_say_when_nothing_waits(
        looks_at_once_max in prop_oneof![3 => 1..4_usize, 1 => 4..60_usize],
        is_warm: bool,
        history in histories(120),
        settles in prop::collection::vec(prop::bool::weighted(0.3), 120),
    ) {
        let mut bench = Bench::new(looks_at_once_max);
        if is_warm {
            warm().iter().for_each(|input| bench.take(input, 1_000_000));
        }
        for ((input, now), settles) in history.iter().zip(settles) {
            bench.take(input, *now);
            if settles {
                bench.settle(input);
            }
        }
        if let Some((input, _)) = history.last() {
            bench.settle(input);
        }
    }

    /// Each stream in its order, the streams in any; the clock may be anywhere, as in a processor that catches up.
    #[test]
    fn any_interleaving_gives_the_same_views(
        history in histories(80),
        picks in prop::collection::vec((any::<prop::sample::Index>(), 0..1_000_i64), 100),
    ) {
        // Losing ownership drops what other streams said before, so it has no place here.
        let inputs: Vec<(Input, i64)> =
            history.into_iter().filter(|(input, _)| !matches!(input, Input::Forget { .. })).collect();
        let end = inputs.iter().map(|(_, now)| *now).max().unwrap_or(0);
        let mut log_order = Bench::new(LOOKS_AT_ONCE_MAX);
        for (input, now) in &inputs {
            log_order.step(input, *now);
        }
        log_order.step(&Input::Tick, end);

        let mut streams: Vec<std::collections::VecDeque<Input>> = vec![Default::default(); 3 * 7 + 2];
        for (input, _) in inputs {
            streams[usize::try_from(stream(&input)).expect("streams count from 0")].push_back(input);
        }
        let (mut other_order, mut now) = (Bench::new(3), 1_000_000);
        for (pick, step_ms) in picks.iter().cycle() {
            streams.retain(|stream| !stream.is_empty());
            if streams.is_empty() {
                break;
            }
            let input = pick.get_mut(&mut streams).pop_front().expect("empty ones were taken out");
            now = (now + step_ms).min(end);
            other_order.step(&input, now);
        }
        other_order.step(&Input::Tick, end);
        prop_assert_eq!(log_order.model.live(), other_order.model.live());
        for (viewer, gateway) in log_order.model.live() {
            let of = |bench: &Bench| bench.clients.clients[&(viewer, gateway)].view.clone();
            prop_assert_eq!(of(&log_order), of(&other_order), "{}@{}", viewer, gateway);
        }
    }

    /// The newer part of the log before the older one, or in between, and more coming all the time: in the end the views are
    /// those of the whole log, and nobody is ever shown who had withdrawn by the end of what the newer part said.
    #[test]
    fn the_newest_part_may_be_read_first(
        looks_at_once_max in prop_oneof![1 => 1..4_usize, 3 => Just(LOOKS_AT_ONCE_MAX)],
        log in reports(25),
        split in 0.0..1.0_f64,
        ahead in prop::collection::vec(prop::bool::weighted(0.4), 25),
    ) {
        let end = log.last().map_or(1_000_000, |(_, appended_at)| *appended_at);
        let split = log.partition_point(|(_, appended_at)| {
            #[expect(clippy::cast_precision_loss, reason = "small numbers")]
            let share = (*appended_at - 1_000_000) as f64 / (end - 999_999) as f64;
            share < split
        });
        let since = log.get(split).map_or(end + 1, |(_, appended_at)| *appended_at);
        let mut log_order = Bench::new(LOOKS_AT_ONCE_MAX);
        warm().iter().for_each(|input| log_order.step(input, end));
        log[..split].iter().for_each(|(report, _)| log_order.step(report, end));

        let mut newest_first = Bench::new(looks_at_once_max);
        newest_first.engine.newest_first(TimestampMs(since));
        for input in warm() {
            let out = call(&mut newest_first.engine, &input, end);
            newest_first.clients_hear(&out);
        }
        let (mut older, mut newer) = (log[..split].iter(), log[split..].iter());
        let mut older_are_read = false;
        // What comes after these, comes while the older part is taken in, bit by bit.
        for takes_newer in ahead.iter().copied().chain(std::iter::repeat_n(true, log.len())) {
            if older.len() == 0 && !older_are_read {
                newest_first.engine.older_are_read();
                older_are_read = true;
            }
            if !takes_newer {
                if let Some((Input::Report { user, time, place }, _)) = older.next() {
                    newest_first.engine.older_report(UserId(*user), TimestampMs(*time), *place);
                }
            } else if let Some((report, _)) = newer.next() {
                log_order.step(report, end);
                let out = call(&mut newest_first.engine, report, end);
                newest_first.clients_hear(&out);
                let mut out = Vec::new();
                newest_first.engine.resume(TimestampMs(end), &mut out);
                newest_first.clients_hear(&out);
                // An engine that can hardly do anything at once has not told everything yet.
                for (viewer, gateway) in log_order.model.live().into_iter().filter(|_| looks_at_once_max > 60) {
                    let truth = &log_order.clients.clients[&(viewer, gateway)].view;
                    let shown = &newest_first.clients.clients[&(viewer, gateway)].view;
                    let wrong = shown.iter().find(|(friend, seen)| truth.get(friend) != Some(seen));
                    prop_assert_eq!(wrong, None, "shown to {}@{}", viewer, gateway);
                }
            }
        }
        for (report, _) in older {
            if let Input::Report { user, time, place } = report {
                newest_first.engine.older_report(UserId(*user), TimestampMs(*time), *place);
            }
        }
        newest_first.engine.older_are_read();
        newest_first.resume(end);
        for (viewer, gateway) in log_order.model.live() {
            let of = |bench: &Bench| bench.clients.clients[&(viewer, gateway)].view.clone();
            prop_assert_eq!(of(&log_order), of(&newest_first), "{}@{}", viewer, gateway);
        }
    }
}
