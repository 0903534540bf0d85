//! Scenarios of an engine that can do very little at once: what one call leaves, the next ones do.

mod script;

use expect_test::expect;
use nearby_engine::{Engine, EngineSettings, Notice};
use nearby_schemas::{GatewayId, Place, TimestampMs, UserId};
use script::check;

#[test]
fn a_hubs_further_watchers_are_told_by_later_calls() {
    check(
        "
        looks 2
        beat g1
        serve 0
        list 1: 9
        list 2: 9
        list 3: 9
        list 4: 9
        list 5: 9
        1 reports 37.77,-122.41
        2 reports 37.77,-122.41
        3 reports 37.77,-122.41
        4 reports 37.77,-122.41
        5 reports 37.77,-122.41
        open 1 @g1
        open 2 @g1
        open 3 @g1
        open 4 @g1
        open 5 @g1
        # 1 and 2 watch 9 itself, 3 and 4 a stand-in, 5 a newer one, which comes first.
        at 1s 9 reports 37.78,-122.41
        resume
        # Who has not yet heard of the first of two moves hears of the second only.
        at 2s 9 reports 37.79,-122.41
        at 3s 9 reports 37.80,-122.41
        resume
        ",
        expect![[r#"
            open 1 @g1
                1@g1 <- snapshot at 37.77,-122.41 []
            open 2 @g1
                2@g1 <- snapshot at 37.77,-122.41 []
            open 3 @g1
                3@g1 <- snapshot at 37.77,-122.41 []
            open 4 @g1
                4@g1 <- snapshot at 37.77,-122.41 []
            open 5 @g1
                5@g1 <- snapshot at 37.77,-122.41 []
            at 1s 9 reports 37.78,-122.41
                1@g1 <- 9 moved 1112.0m of 1s
                2@g1 <- 9 moved 1112.0m of 1s
                5@g1 <- 9 moved 1112.0m of 1s
            resume
                3@g1 <- 9 moved 1112.0m of 1s
                4@g1 <- 9 moved 1112.0m of 1s
                nothing waits
            at 2s 9 reports 37.79,-122.41
                1@g1 <- 9 moved 2223.9m of 2s
                2@g1 <- 9 moved 2223.9m of 2s
                5@g1 <- 9 moved 2223.9m of 2s
            at 3s 9 reports 37.80,-122.41
                1@g1 <- 9 moved 3335.9m of 3s
                2@g1 <- 9 moved 3335.9m of 3s
                3@g1 <- 9 moved 3335.9m of 3s
                4@g1 <- 9 moved 3335.9m of 3s
            resume
                5@g1 <- 9 moved 3335.9m of 3s
                nothing waits
        "#]],
    );
}

#[test]
fn what_a_viewer_was_told_of_a_hub_decides_what_comes_next() {
    check(
        "
        looks 1
        beat g1
        serve 0
        list 1: 9
        list 2: 9
        1 reports 37.77,-122.41
        2 reports 37.77,-122.41
        9 reports 37.77,-122.41
        open 1 @g1
        open 2 @g1
        # The stand-in of a third comes first.
        list 3: 9
        open 3 @g1
        at 1s 9 reports 38.90,-122.41
        # 2 watches a stand-in, for which the friend is still where it was.
        list 2:
        list 2: 9
        2 reports 38.90,-122.41
        3 reports 37.77,-122.41
        resume
        at 2s 9 unshares
        resume
        counts
        ",
        expect![[r#"
            open 1 @g1
                1@g1 <- snapshot at 37.77,-122.41 [9 0.0m]
            open 2 @g1
                2@g1 <- snapshot at 37.77,-122.41 [9 0.0m]
            open 3 @g1
                3@g1 <- snapshot at nowhere []
            at 1s 9 reports 38.90,-122.41
                1@g1 <- 9 left distance
            list 2:
                2@g1 <- 9 left unfriended
            2 reports 38.90,-122.41
                2@g1 <- viewer moved 38.9,-122.41
                2@g1 <- 9 moved 0.0m of 1s
            3 reports 37.77,-122.41
                3@g1 <- viewer moved 37.77,-122.41
            resume
                nothing waits
            at 2s 9 unshares
                2@g1 <- 9 left unshared
            resume
                nothing waits
            counts
                Counts { users_with_position: 3, viewers_connected: 3, edges_indexed: 3, lists_held: 3, gateways_alive: 1 }
        "#]],
    );
}

#[test]
fn viewers_of_a_partition_get_their_snapshots_one_after_the_other() {
    check(
        "
        looks 10
        beat g1
        list 1: 8 9
        list 2: 8 9
        list 3: 8 9
        open 1 @g1
        open 2 @g1
        open 3 @g1
        1 reports 37.77,-122.41
        2 reports 37.77,-122.41
        3 reports 37.77,-122.41
        8 reports 37.78,-122.41
        serve 0
        8 reports 37.79,-122.41
        counts
        resume
        resume
        # A gateway that is lost, and comes back before everybody there is disconnected.
        unbeat g1
        beat g1
        8 reports 37.80,-122.41
        resume
        resume
        resume
        ",
        expect![[r#"
            serve 0
                1@g1 <- snapshot at 37.77,-122.41 [8 1112.0m]
            8 reports 37.79,-122.41
                1@g1 <- 8 moved 2223.9m of 0s
                2@g1 <- snapshot at 37.77,-122.41 [8 2223.9m]
            counts
                Counts { users_with_position: 4, viewers_connected: 2, edges_indexed: 4, lists_held: 3, gateways_alive: 1 }
            resume
                3@g1 <- snapshot at 37.77,-122.41 [8 2223.9m]
                nothing waits
            resume
                nothing waits
            beat g1
                1@g1 <- snapshot at 37.77,-122.41 [8 2223.9m]
            8 reports 37.80,-122.41
                3@g1 <- 8 moved 3335.9m of 0s
                2@g1 <- 8 moved 3335.9m of 0s
                1@g1 <- 8 moved 3335.9m of 0s
                2@g1 <- snapshot at 37.77,-122.41 [8 3335.9m]
            resume
                3@g1 <- snapshot at 37.77,-122.41 [8 3335.9m]
                nothing waits
            resume
                nothing waits
            resume
                nothing waits
        "#]],
    );
}

#[test]
fn nothing_is_told_for_a_partition_that_was_forgotten_though_it_takes_time() {
    check(
        "
        looks 10
        beat g1
        serve 0
        list 1: 8 9
        list 2: 8 9
        list 3: 8 9
        open 1 @g1
        open 2 @g1
        open 3 @g1
        1 reports 37.77,-122.41
        2 reports 37.77,-122.41
        3 reports 37.77,-122.41
        8 reports 37.78,-122.41
        forget 0
        8 reports 37.79,-122.41
        # It comes back with what the log has now: 3 is there once more, 2 is not.
        open 3 @g1
        list 3: 9
        serve 0
        8 reports 37.78,-122.41
        9 reports 37.78,-122.41
        resume
        counts
        ",
        expect![[r#"
            open 1 @g1
                1@g1 <- snapshot at nowhere []
            open 2 @g1
                2@g1 <- snapshot at nowhere []
            open 3 @g1
                3@g1 <- snapshot at nowhere []
            1 reports 37.77,-122.41
                1@g1 <- viewer moved 37.77,-122.41
            2 reports 37.77,-122.41
                2@g1 <- viewer moved 37.77,-122.41
            3 reports 37.77,-122.41
                3@g1 <- viewer moved 37.77,-122.41
            8 reports 37.78,-122.41
                1@g1 <- 8 moved 1112.0m of 0s
                2@g1 <- 8 moved 1112.0m of 0s
                3@g1 <- 8 moved 1112.0m of 0s
            serve 0
                3@g1 <- snapshot at 37.77,-122.41 []
            9 reports 37.78,-122.41
                3@g1 <- 9 moved 1112.0m of 0s
            resume
                nothing waits
            counts
                Counts { users_with_position: 5, viewers_connected: 1, edges_indexed: 1, lists_held: 1, gateways_alive: 1 }
        "#]],
    );
}

#[test]
fn very_many_expire_one_after_the_other() {
    check(
        "
        looks 3
        beat g1
        serve 0
        list 1: 7 8 9
        open 1 @g1
        7 reports 37.77,-122.41
        8 reports 37.77,-122.41
        9 reports 37.77,-122.41
        at 1s 1 reports 37.77,-122.41
        at 600.001s tick
        resume
        resume
        ",
        expect![[r#"
            open 1 @g1
                1@g1 <- snapshot at nowhere []
            at 1s 1 reports 37.77,-122.41
                1@g1 <- viewer moved 37.77,-122.41
                1@g1 <- 7 moved 0.0m of 0s
                1@g1 <- 8 moved 0.0m of 0s
                1@g1 <- 9 moved 0.0m of 0s
            at 600.001s tick
                1@g1 <- 7 left inactive
                1@g1 <- 8 left inactive
            resume
                1@g1 <- 9 left inactive
                nothing waits
            resume
                nothing waits
        "#]],
    );
}

#[test]
fn nobody_waits_for_ever_while_a_hub_goes_on_reporting() {
    check(
        "
        looks 1
        beat g1
        serve 0
        list 1: 9
        list 2: 9
        list 3: 9
        list 4: 9
        1 reports 37.77,-122.41
        2 reports 37.77,-122.41
        3 reports 37.77,-122.41
        4 reports 37.77,-122.41
        open 1 @g1
        open 2 @g1
        open 3 @g1
        open 4 @g1
        at 1s 9 reports 37.78,-122.41
        at 2s 9 reports 37.78,-122.41
        at 3s 9 reports 37.78,-122.41
        at 4s 9 reports 37.78,-122.41
        at 5s 9 reports 37.78,-122.41
        ",
        expect![[r#"
            open 1 @g1
                1@g1 <- snapshot at 37.77,-122.41 []
            open 2 @g1
                2@g1 <- snapshot at 37.77,-122.41 []
            open 3 @g1
                3@g1 <- snapshot at 37.77,-122.41 []
            open 4 @g1
                4@g1 <- snapshot at 37.77,-122.41 []
            at 1s 9 reports 37.78,-122.41
                1@g1 <- 9 moved 1112.0m of 1s
                4@g1 <- 9 moved 1112.0m of 1s
            at 2s 9 reports 37.78,-122.41
                1@g1 <- 9 moved 1112.0m of 2s
                3@g1 <- 9 moved 1112.0m of 2s
            at 3s 9 reports 37.78,-122.41
                1@g1 <- 9 moved 1112.0m of 3s
                2@g1 <- 9 moved 1112.0m of 3s
            at 4s 9 reports 37.78,-122.41
                1@g1 <- 9 moved 1112.0m of 4s
                4@g1 <- 9 moved 1112.0m of 4s
            at 5s 9 reports 37.78,-122.41
                1@g1 <- 9 moved 1112.0m of 5s
                3@g1 <- 9 moved 1112.0m of 5s
        "#]],
    );
}

#[test]
fn who_withdraws_is_followed_before_anything_else_is_done() {
    check(
        "
        looks 1
        beat g1
        serve 0
        list 1: 9
        list 2: 9
        list 3: 9
        1 reports 37.77,-122.41
        2 reports 37.77,-122.41
        3 reports 37.77,-122.41
        open 1 @g1
        open 2 @g1
        open 3 @g1
        at 1s 9 reports 37.78,-122.41
        resume
        beat g2
        # Much is waiting when the hub withdraws: its stand-ins come first.
        serve 0
        at 2s 9 unshares
        at 2s tick
        at 2s tick
        open 2 @g2
        resume
        ",
        expect![[r#"
            open 1 @g1
                1@g1 <- snapshot at 37.77,-122.41 []
            open 2 @g1
                2@g1 <- snapshot at 37.77,-122.41 []
            open 3 @g1
                3@g1 <- snapshot at 37.77,-122.41 []
            at 1s 9 reports 37.78,-122.41
                1@g1 <- 9 moved 1112.0m of 1s
                3@g1 <- 9 moved 1112.0m of 1s
            resume
                2@g1 <- 9 moved 1112.0m of 1s
                nothing waits
            serve 0
                1@g1 <- snapshot at 37.77,-122.41 [9 1112.0m]
            at 2s 9 unshares
                1@g1 <- 9 left unshared
                2@g1 <- 9 left unshared
            at 2s tick
                3@g1 <- 9 left unshared
            at 2s tick
                2@g1 <- snapshot at 37.77,-122.41 []
            open 2 @g2
                2@g2 <- snapshot at 37.77,-122.41 []
                3@g1 <- snapshot at 37.77,-122.41 []
            resume
                nothing waits
        "#]],
    );
}

/// Owners hold the lists of everybody, and few of them are connected.
#[test]
fn users_who_are_not_connected_cost_hardly_anything() {
    const LOOKS: usize = 100;
    let mut engine = Engine::with_looks_at_once(EngineSettings::default(), LOOKS);
    let (now, mut out) = (TimestampMs(1_000), Vec::new());
    let gateway = GatewayId::new("g1").expect("legal");
    engine.heartbeat(&gateway, now, now, &mut out);
    let friends: Vec<UserId> = (0..50).map(|friend| UserId(5_000 + friend)).collect();
    for user in 0..1_000 {
        engine.friend_list(0, UserId(user), Some(&friends), now, &mut out);
    }
    engine.session(0, UserId(999), &gateway, Some(1), now, &mut out);
    engine.serve(0, now, &mut out);
    let mut calls = 1;
    while !out.iter().any(|notice| matches!(notice, Notice::Snapshot { .. })) {
        engine.resume(now, &mut out);
        calls += 1;
        assert!(calls <= 1_000, "no snapshot");
    }
    assert!(calls <= 1_000 / LOOKS + 1, "{calls} calls until the only viewer has its snapshot");
}

/// While something waits, a report does no more for others than for itself, whatever was done or owed before.
#[test]
fn small_reports_do_little_of_what_is_waiting() {
    const LOOKS: usize = 1_000;
    let mut engine = Engine::with_looks_at_once(EngineSettings::default(), LOOKS);
    let (now, mut out) = (TimestampMs(1_000), Vec::new());
    let gateway = GatewayId::new("g1").expect("legal");
    engine.heartbeat(&gateway, now, now, &mut out);
    for user in 0..400 {
        let friends: Vec<UserId> = (1..=10).map(|step| UserId((user + step) % 400)).collect();
        engine.friend_list(0, UserId(user), Some(&friends), now, &mut out);
        engine.session(0, UserId(user), &gateway, Some(1), now, &mut out);
    }
    for _ in 0..2 {
        out.clear();
        engine.serve(0, now, &mut out);
        let snapshots = |out: &[Notice]| out.iter().filter(|notice| matches!(notice, Notice::Snapshot { .. })).count();
        let at_once = snapshots(&out);
        let place = Place::from_degrees(37.77, -122.41).ok();
        for report in 1..=20 {
            engine.report(UserId(399), TimestampMs(1_000 + report), place, now, &mut out);
        }
        // A report of a user with ten friends and ten watchers, and a snapshot of ten friends, for an edge more.
        assert!((1..=20).contains(&(snapshots(&out) - at_once)), "{} snapshots", snapshots(&out) - at_once);
        while engine.resume(now, &mut out) {}
        assert_eq!(snapshots(&out), 400);
    }
}
