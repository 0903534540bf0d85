//! The rules of the engine, one or more scenarios each; the language is described in `script/mod.rs`.
//! A degree of latitude is 111,195 m: 0.01 is 1,112 m, and the radius of 8,000 m is a little less than 0.072.

mod script;

use expect_test::expect;
use script::check;

#[test]
fn r1_a_friend_in_the_list_is_seen_within_the_radius() {
    check(
        "
        beat g1
        serve 0
        list 1: 2 3 4
        open 1 @g1
        2 reports 37.78,-122.41
        1 reports 37.77,-122.41
        # Not near, near, and near but not a friend.
        3 reports 37.87,-122.41
        4 reports 37.76,-122.41
        5 reports 37.77,-122.41
        # A friendship is two lists: 2 does not see 1.
        open 2 @g1
        counts
        ",
        expect![[r#"
            open 1 @g1
                1@g1 <- snapshot at nowhere []
            1 reports 37.77,-122.41
                1@g1 <- viewer moved 37.77,-122.41
                1@g1 <- 2 moved 1112.0m of 0s
            4 reports 37.76,-122.41
                1@g1 <- 4 moved 1112.0m of 0s
            open 2 @g1
                2@g1 <- snapshot at 37.78,-122.41 []
            counts
                Counts { users_with_position: 5, viewers_connected: 2, edges_indexed: 3, lists_held: 1, gateways_alive: 1 }
        "#]],
    );
}

#[test]
fn r1_the_radius_is_strict_on_both_sides() {
    // On a meridian 8,000 m are 0.0719456… degrees: 0.0719456 is 7,999.997 m, 0.0719457 is 8,000.008 m.
    check(
        "
        beat g1
        serve 0
        list 1: 2 3
        open 1 @g1
        1 reports 0,0
        2 reports 0.0719456,0
        3 reports 0.0719458,0
        2 reports 0.0719458,0
        3 reports 0.0719456,0
        1 reports 0.0000001,0
        1 reports -0.0000003,0
        ",
        expect![[r#"
            open 1 @g1
                1@g1 <- snapshot at nowhere []
            1 reports 0,0
                1@g1 <- viewer moved 0,0
            2 reports 0.0719456,0
                1@g1 <- 2 moved 8000.0m of 0s
            2 reports 0.0719458,0
                1@g1 <- 2 left distance
            3 reports 0.0719456,0
                1@g1 <- 3 moved 8000.0m of 0s
            1 reports 0.0000001,0
                1@g1 <- viewer moved 0.0000001,0
            1 reports -0.0000003,0
                1@g1 <- 3 left distance
                1@g1 <- viewer moved -0.0000003,0
        "#]],
    );
}

#[test]
fn r1_poles_and_the_180th_meridian_are_no_borders() {
    check(
        "
        beat g1
        serve 0
        list 1: 2 3 4
        open 1 @g1
        1 reports 89.97,0
        2 reports 89.97,180
        3 reports 90,77
        1 reports 0,179.97
        4 reports 0,-179.97
        1 reports 0,-180
        1 reports 0,180
        1 reports -90,0
        ",
        expect![[r#"
            open 1 @g1
                1@g1 <- snapshot at nowhere []
            1 reports 89.97,0
                1@g1 <- viewer moved 89.97,0
            2 reports 89.97,180
                1@g1 <- 2 moved 6671.7m of 0s
            3 reports 90,77
                1@g1 <- 3 moved 3335.9m of 0s
            1 reports 0,179.97
                1@g1 <- 2 left distance
                1@g1 <- 3 left distance
                1@g1 <- viewer moved 0,179.97
            4 reports 0,-179.97
                1@g1 <- 4 moved 6671.7m of 0s
            1 reports 0,-180
                1@g1 <- viewer moved 0,-180
            1 reports 0,180
                1@g1 <- viewer moved 0,180
            1 reports -90,0
                1@g1 <- 4 left distance
                1@g1 <- viewer moved -90,0
        "#]],
    );
}

#[test]
fn r1_ids_are_from_0_to_2_to_the_63_minus_1() {
    check(
        "
        beat g1
        serve 0
        list 0: 9223372036854775807
        list 9223372036854775807: 0
        open 0 @g1
        open 9223372036854775807 @g1
        0 reports 1,1
        9223372036854775807 reports 1,1
        ",
        expect![[r#"
            open 0 @g1
                0@g1 <- snapshot at nowhere []
            open 9223372036854775807 @g1
                9223372036854775807@g1 <- snapshot at nowhere []
            0 reports 1,1
                0@g1 <- viewer moved 1,1
            9223372036854775807 reports 1,1
                9223372036854775807@g1 <- viewer moved 1,1
                9223372036854775807@g1 <- 0 moved 0.0m of 0s
                0@g1 <- 9223372036854775807 moved 0.0m of 0s
        "#]],
    );
}

#[test]
fn r1_a_position_counts_up_to_its_last_millisecond() {
    check(
        "
        beat g1
        serve 0
        list 1: 2
        open 1 @g1
        at 1s 2 reports 0,0.01
        at 100s 1 reports 0,0
        at 601s again 1 @g1
        at 601001ms again 1 @g1
        # A report that arrives too late is remembered, but seen by nobody.
        at 601002ms 2 reports 0,0.01 of 1.001s
        at 601003ms 2 reports 0,0.01 of 1.003s
        at 601004ms tick
        counts
        ",
        expect![[r#"
            open 1 @g1
                1@g1 <- snapshot at nowhere []
            at 100s 1 reports 0,0
                1@g1 <- viewer moved 0,0
                1@g1 <- 2 moved 1112.0m of 1s
            at 601s again 1 @g1
                1@g1 <- snapshot at 0,0 [2 1112.0m]
            at 601001ms again 1 @g1
                1@g1 <- 2 left inactive
                1@g1 <- snapshot at 0,0 []
            at 601003ms 2 reports 0,0.01 of 1.003s
                1@g1 <- 2 moved 1112.0m of 1.003s
            at 601004ms tick
                1@g1 <- 2 left inactive
            counts
                Counts { users_with_position: 1, viewers_connected: 1, edges_indexed: 1, lists_held: 1, gateways_alive: 1 }
        "#]],
    );
}

#[test]
fn r2_the_latest_report_counts_and_the_later_of_equals() {
    check(
        "
        beat g1
        serve 0
        list 1: 2
        open 1 @g1
        at 100s 1 reports 0,0
        2 reports 0,0.01
        2 reports 0,0.02 of 99.999s
        2 reports 0,0.03 of 100s
        2 reports 0,0.04 of 100.001s
        again 1 @g1
        # The viewer's own report, too.
        1 reports 0,0.04 of 50s
        ",
        expect![[r#"
            open 1 @g1
                1@g1 <- snapshot at nowhere []
            at 100s 1 reports 0,0
                1@g1 <- viewer moved 0,0
            2 reports 0,0.01
                1@g1 <- 2 moved 1112.0m of 100s
            2 reports 0,0.03 of 100s
                1@g1 <- 2 moved 3335.9m of 100s
            2 reports 0,0.04 of 100.001s
                1@g1 <- 2 moved 4447.8m of 100.001s
            again 1 @g1
                1@g1 <- snapshot at 0,0 [2 4447.8m]
        "#]],
    );
}

#[test]
fn r2_time_that_goes_backward_changes_nothing() {
    check(
        "
        beat g1
        serve 0
        list 1: 2
        open 1 @g1
        at 1s 1 reports 0,0
        2 reports 0,0.01
        at 500s 1 reports 0,0
        at 601.001s tick
        # A batch from before is handled late.
        at 600s tick
        2 reports 0,0.01 of 1s
        2 reports 0,0.01 of 600s
        ",
        expect![[r#"
            open 1 @g1
                1@g1 <- snapshot at nowhere []
            at 1s 1 reports 0,0
                1@g1 <- viewer moved 0,0
            2 reports 0,0.01
                1@g1 <- 2 moved 1112.0m of 1s
            at 500s 1 reports 0,0
                1@g1 <- viewer moved 0,0
            at 601.001s tick
                1@g1 <- 2 left inactive
            2 reports 0,0.01 of 600s
                1@g1 <- 2 moved 1112.0m of 600s
        "#]],
    );
}

#[test]
fn r3_moves_are_told_each_time_and_leaving_once() {
    check(
        "
        beat g1
        serve 0
        list 1: 2
        open 1 @g1
        1 reports 0,0
        at 1s 2 reports 0,0.01
        at 2s 2 reports 0,0.01
        at 3s 2 reports 0,0.02
        at 4s 2 reports 0,0.2
        at 5s 2 reports 0,0.3
        at 6s 2 reports 0,0.01
        ",
        expect![[r#"
            open 1 @g1
                1@g1 <- snapshot at nowhere []
            1 reports 0,0
                1@g1 <- viewer moved 0,0
            at 1s 2 reports 0,0.01
                1@g1 <- 2 moved 1112.0m of 1s
            at 2s 2 reports 0,0.01
                1@g1 <- 2 moved 1112.0m of 2s
            at 3s 2 reports 0,0.02
                1@g1 <- 2 moved 2223.9m of 3s
            at 4s 2 reports 0,0.2
                1@g1 <- 2 left distance
            at 6s 2 reports 0,0.01
                1@g1 <- 2 moved 1112.0m of 6s
        "#]],
    );
}

#[test]
fn r3_expiry_is_told_with_its_reason() {
    check(
        "
        beat g1
        serve 0
        list 1: 2 3
        list 2: 1
        open 1 @g1
        open 2 @g1
        at 1s 1 reports 0,0
        at 2s 2 reports 0,0.01
        at 3s 3 reports 0,0.02
        at 500s 1 reports 0,0
        at 602s tick
        at 602.001s tick
        at 603.001s tick
        at 700s 2 reports 0,0.01
        # After a pause both are due at once: to a viewer its own age is the reason.
        at 1500s tick
        counts
        ",
        expect![[r#"
            open 1 @g1
                1@g1 <- snapshot at nowhere []
            open 2 @g1
                2@g1 <- snapshot at nowhere []
            at 1s 1 reports 0,0
                1@g1 <- viewer moved 0,0
            at 2s 2 reports 0,0.01
                2@g1 <- viewer moved 0,0.01
                2@g1 <- 1 moved 1112.0m of 1s
                1@g1 <- 2 moved 1112.0m of 2s
            at 3s 3 reports 0,0.02
                1@g1 <- 3 moved 2223.9m of 3s
            at 500s 1 reports 0,0
                1@g1 <- viewer moved 0,0
                2@g1 <- 1 moved 1112.0m of 500s
            at 602.001s tick
                2@g1 <- 1 left own_location
                1@g1 <- 2 left inactive
            at 603.001s tick
                1@g1 <- 3 left inactive
            at 700s 2 reports 0,0.01
                2@g1 <- viewer moved 0,0.01
                2@g1 <- 1 moved 1112.0m of 500s
                1@g1 <- 2 moved 1112.0m of 700s
            at 1500s tick
                1@g1 <- 2 left own_location
                2@g1 <- 1 left own_location
            counts
                Counts { users_with_position: 0, viewers_connected: 2, edges_indexed: 3, lists_held: 2, gateways_alive: 1 }
        "#]],
    );
}

#[test]
fn r3_a_report_puts_expiry_off() {
    check(
        "
        beat g1
        serve 0
        list 1: 2
        open 1 @g1
        1 reports 0,0
        2 reports 0,0.01
        at 300s 2 reports 0,0.01
        at 400s 1 reports 0,0
        at 899s 1 reports 0,0
        at 900s tick
        at 900.001s tick
        ",
        expect![[r#"
            open 1 @g1
                1@g1 <- snapshot at nowhere []
            1 reports 0,0
                1@g1 <- viewer moved 0,0
            2 reports 0,0.01
                1@g1 <- 2 moved 1112.0m of 0s
            at 300s 2 reports 0,0.01
                1@g1 <- 2 moved 1112.0m of 300s
            at 400s 1 reports 0,0
                1@g1 <- viewer moved 0,0
            at 899s 1 reports 0,0
                1@g1 <- viewer moved 0,0
            at 900.001s tick
                1@g1 <- 2 left inactive
        "#]],
    );
}

#[test]
fn r3_due_at_once_the_viewers_own_age_is_the_reason() {
    check(
        "
        beat g1
        serve 0
        list 1: 2
        list 2: 1
        open 1 @g1
        at 1s 2 reports 0,0.01
        at 2s 1 reports 0,0
        at 900s tick
        ",
        expect![[r#"
            open 1 @g1
                1@g1 <- snapshot at nowhere []
            at 2s 1 reports 0,0
                1@g1 <- viewer moved 0,0
                1@g1 <- 2 moved 1112.0m of 1s
            at 900s tick
                1@g1 <- 2 left own_location
        "#]],
    );
}

#[test]
fn r4_the_viewer_moves() {
    check(
        "
        beat g1
        serve 0
        list 1: 2 3 4
        open 1 @g1
        at 1s 2 reports 0,0.00
        at 2s 3 reports 0,0.05
        at 3s 4 reports 0,0.10
        at 4s 1 reports 0,0.01
        # 2 goes, 3 stays without a word, 4 comes with the time of its own report.
        at 5s 1 reports 0,0.09
        at 6s 1 reports 0,0.09
        at 7s 1 unshares
        at 8s 1 unshares
        at 9s 1 reports 0,0.09
        at 10s 3 reports 0,0.05
        ",
        expect![[r#"
            open 1 @g1
                1@g1 <- snapshot at nowhere []
            at 4s 1 reports 0,0.01
                1@g1 <- viewer moved 0,0.01
                1@g1 <- 2 moved 1112.0m of 1s
                1@g1 <- 3 moved 4447.8m of 2s
            at 5s 1 reports 0,0.09
                1@g1 <- 2 left distance
                1@g1 <- viewer moved 0,0.09
                1@g1 <- 4 moved 1112.0m of 3s
            at 6s 1 reports 0,0.09
                1@g1 <- viewer moved 0,0.09
            at 7s 1 unshares
                1@g1 <- 3 left own_location
                1@g1 <- 4 left own_location
            at 9s 1 reports 0,0.09
                1@g1 <- viewer moved 0,0.09
                1@g1 <- 3 moved 4447.8m of 2s
                1@g1 <- 4 moved 1112.0m of 3s
            at 10s 3 reports 0,0.05
                1@g1 <- 3 moved 4447.8m of 10s
        "#]],
    );
}

#[test]
fn r5_a_snapshot_for_each_new_session_and_each_greater_ask() {
    check(
        "
        beat g1
        serve 0
        list 1: 2
        1 reports 0,0
        2 reports 0,0.01
        open 1 @g1 ask 3
        open 1 @g1 ask 3
        open 1 @g1 ask 4
        open 1 @g1 ask 2
        open 1 @g1 ask 3
        close 1 @g1
        2 reports 0,0.02
        open 1 @g1 ask 3
        # Without anything to see, and for somebody never heard of.
        open 9 @g1
        ",
        expect![[r#"
            open 1 @g1 ask 3
                1@g1 <- snapshot at 0,0 [2 1112.0m]
            open 1 @g1 ask 4
                1@g1 <- snapshot at 0,0 [2 1112.0m]
            open 1 @g1 ask 3
                1@g1 <- snapshot at 0,0 [2 1112.0m]
            open 1 @g1 ask 3
                1@g1 <- snapshot at 0,0 [2 2223.9m]
            open 9 @g1
                9@g1 <- snapshot at nowhere []
        "#]],
    );
}

#[test]
fn r5_a_lost_notice_is_repaired_by_a_snapshot() {
    check(
        "
        beat g1
        serve 0
        list 1: 2
        open 1 @g1
        1 reports 0,0
        2 reports 0,0.01
        again 1 @g1
        again 1 @g2
        again 2 @g1
        again 3 @g1
        close 1 @g1
        again 1 @g1
        ",
        expect![[r#"
            open 1 @g1
                1@g1 <- snapshot at nowhere []
            1 reports 0,0
                1@g1 <- viewer moved 0,0
            2 reports 0,0.01
                1@g1 <- 2 moved 1112.0m of 0s
            again 1 @g1
                1@g1 <- snapshot at 0,0 [2 1112.0m]
        "#]],
    );
}

#[test]
fn r5_ownership_gained_and_lost_in_the_middle() {
    check(
        "
        7 is in 1
        beat g1
        serve 0
        list 1: 2 7
        open 1 @g1
        1 reports 0,0
        # Partition 1 is being restored: silence.
        list 7: 1 2
        open 7 @g1
        7 reports 0,0.01
        2 reports 0,0.02
        serve 1
        2 reports 0,0.03
        serve 1
        # Lost again: its viewer hears nothing, but is still heard by others.
        forget 1
        2 reports 0,0.02
        7 reports 0,0.02
        counts
        # Gained again, from the beginning of the log, with another list.
        list 7: 2
        open 7 @g1
        serve 1
        1 reports 0,0
        forget 2
        forget 0
        2 reports 0,0.01
        counts
        ",
        expect![[r#"
            open 1 @g1
                1@g1 <- snapshot at nowhere []
            1 reports 0,0
                1@g1 <- viewer moved 0,0
            7 reports 0,0.01
                1@g1 <- 7 moved 1112.0m of 0s
            2 reports 0,0.02
                1@g1 <- 2 moved 2223.9m of 0s
            serve 1
                7@g1 <- snapshot at 0,0.01 [1 1112.0m, 2 1112.0m]
            2 reports 0,0.03
                1@g1 <- 2 moved 3335.9m of 0s
                7@g1 <- 2 moved 2223.9m of 0s
            serve 1
                7@g1 <- snapshot at 0,0.01 [1 1112.0m, 2 2223.9m]
            2 reports 0,0.02
                1@g1 <- 2 moved 2223.9m of 0s
            7 reports 0,0.02
                1@g1 <- 7 moved 2223.9m of 0s
            counts
                Counts { users_with_position: 3, viewers_connected: 1, edges_indexed: 2, lists_held: 1, gateways_alive: 1 }
            serve 1
                7@g1 <- snapshot at 0,0.02 [2 0.0m]
            1 reports 0,0
                1@g1 <- viewer moved 0,0
            2 reports 0,0.01
                7@g1 <- 2 moved 1112.0m of 0s
            counts
                Counts { users_with_position: 3, viewers_connected: 1, edges_indexed: 1, lists_held: 1, gateways_alive: 1 }
        "#]],
    );
}

#[test]
fn a_user_has_one_partition_while_it_is_held() {
    check(
        "
        beat g1
        serve 0
        serve 1
        1 reports 0,0
        2 reports 0,0
        open 1 @g1
        list 1: 2
        # A record that somebody wrote to the wrong partition is ignored.
        1 is in 1
        list 1:
        close 1 @g1
        1 is in 0
        again 1 @g1
        forget 0
        1 is in 1
        open 1 @g1
        list 1: 2
        ",
        expect![[r#"
            open 1 @g1
                1@g1 <- snapshot at 0,0 []
            list 1: 2
                1@g1 <- 2 moved 0.0m of 0s
            again 1 @g1
                1@g1 <- snapshot at 0,0 [2 0.0m]
            open 1 @g1
                1@g1 <- snapshot at 0,0 []
            list 1: 2
                1@g1 <- 2 moved 0.0m of 0s
        "#]],
    );
}

#[test]
fn r6_a_withdrawal_takes_effect_at_once_and_cannot_be_undone_by_a_delayed_report() {
    check(
        "
        beat g1
        serve 0
        list 1: 2
        open 1 @g1
        at 100s 1 reports 0,0
        2 reports 0,0.01
        # An old withdrawal counts, with the time of the held report.
        2 unshares of 50s
        2 reports 0,0.02 of 99s
        2 reports 0,0.02 of 100s
        2 reports 0,0.02 of 100.001s
        # A withdrawal later than what is held moves the time forward.
        2 unshares of 200s
        2 unshares of 150s
        2 reports 0,0.03 of 200s
        2 reports 0,0.03 of 200.001s
        # Somebody never heard of withdraws.
        3 unshares
        ",
        expect![[r#"
            open 1 @g1
                1@g1 <- snapshot at nowhere []
            at 100s 1 reports 0,0
                1@g1 <- viewer moved 0,0
            2 reports 0,0.01
                1@g1 <- 2 moved 1112.0m of 100s
            2 unshares of 50s
                1@g1 <- 2 left unshared
            2 reports 0,0.02 of 100.001s
                1@g1 <- 2 moved 2223.9m of 100.001s
            2 unshares of 200s
                1@g1 <- 2 left unshared
            2 reports 0,0.03 of 200.001s
                1@g1 <- 2 moved 3335.9m of 200.001s
        "#]],
    );
}

#[test]
fn r6_who_withdrew_does_not_become_inactive_as_well() {
    check(
        "
        beat g1
        serve 0
        list 1: 2
        open 1 @g1
        1 reports 0,0
        2 reports 0,0.01
        at 500s 1 reports 0,0
        2 unshares
        at 550s 2 reports 0,0.02
        at 601s tick
        at 1000s 1 reports 0,0
        at 1150s tick
        at 1150.001s tick
        ",
        expect![[r#"
            open 1 @g1
                1@g1 <- snapshot at nowhere []
            1 reports 0,0
                1@g1 <- viewer moved 0,0
            2 reports 0,0.01
                1@g1 <- 2 moved 1112.0m of 0s
            at 500s 1 reports 0,0
                1@g1 <- viewer moved 0,0
            2 unshares
                1@g1 <- 2 left unshared
            at 550s 2 reports 0,0.02
                1@g1 <- 2 moved 2223.9m of 550s
            at 1000s 1 reports 0,0
                1@g1 <- viewer moved 0,0
            at 1150.001s tick
                1@g1 <- 2 left inactive
        "#]],
    );
}

#[test]
fn r7_each_gateway_gets_each_event_once() {
    check(
        "
        beat g1
        beat g2
        serve 0
        list 1: 2
        open 1 @g1
        open 1 @g2
        open 1 @g2
        1 reports 0,0
        2 reports 0,0.01
        again 1 @g2
        close 1 @g1
        2 reports 0,0.2
        close 1 @g1
        close 1 @g2
        2 reports 0,0.01
        counts
        ",
        expect![[r#"
            open 1 @g1
                1@g1 <- snapshot at nowhere []
            open 1 @g2
                1@g2 <- snapshot at nowhere []
            1 reports 0,0
                1@g1 <- viewer moved 0,0
                1@g2 <- viewer moved 0,0
            2 reports 0,0.01
                1@g1 <- 2 moved 1112.0m of 0s
                1@g2 <- 2 moved 1112.0m of 0s
            again 1 @g2
                1@g2 <- snapshot at 0,0 [2 1112.0m]
            2 reports 0,0.2
                1@g2 <- 2 left distance
            counts
                Counts { users_with_position: 2, viewers_connected: 0, edges_indexed: 0, lists_held: 1, gateways_alive: 2 }
        "#]],
    );
}

#[test]
fn r8_a_lost_gateway_is_not_told_and_gets_snapshots_when_it_returns() {
    check(
        "
        list 1: 2
        open 1 @g1
        open 1 @g2
        serve 0
        # A gateway without a heartbeat is not alive.
        1 reports 0,0
        beat g1
        beat g2
        2 reports 0,0.01
        # 30 s behind is alive, a millisecond more is lost.
        at 30s beat g2
        2 reports 0,0.02
        at 30.001s beat g2
        2 reports 0,0.03
        counts
        # A heartbeat from too long ago revives nobody, one in time does.
        beat g1 appended 0ms
        beat g1 appended 1ms
        beat g1 appended 0ms
        at 31s beat g1
        2 reports 0,0.03
        # A gateway that says goodbye.
        unbeat g1
        2 reports 0,0.04
        unbeat g2
        2 reports 0,0.04
        beat g2
        ",
        expect![[r#"
            beat g1
                1@g1 <- snapshot at 0,0 []
            beat g2
                1@g2 <- snapshot at 0,0 []
            2 reports 0,0.01
                1@g1 <- 2 moved 1112.0m of 0s
                1@g2 <- 2 moved 1112.0m of 0s
            2 reports 0,0.02
                1@g1 <- 2 moved 2223.9m of 30s
                1@g2 <- 2 moved 2223.9m of 30s
            2 reports 0,0.03
                1@g2 <- 2 moved 3335.9m of 30.001s
            counts
                Counts { users_with_position: 2, viewers_connected: 1, edges_indexed: 1, lists_held: 1, gateways_alive: 1 }
            beat g1 appended 1ms
                1@g1 <- snapshot at 0,0 [2 3335.9m]
            2 reports 0,0.03
                1@g1 <- 2 moved 3335.9m of 31s
                1@g2 <- 2 moved 3335.9m of 31s
            2 reports 0,0.04
                1@g2 <- 2 moved 4447.8m of 31s
            beat g2
                1@g2 <- snapshot at 0,0 [2 4447.8m]
        "#]],
    );
}

#[test]
fn r8_sessions_of_gateways_lost_for_long_are_stale() {
    check(
        "
        7 is in 1
        serve 0
        open 2 @g1
        open 1 @g2
        open 1 @g1
        open 1 @g3
        open 7 @g1
        beat g1
        beat g2
        # 30 s after its heartbeat a gateway is lost, a day later its sessions are stale.
        at 24h beat g2
        stale 24h
        at 86430s beat g2
        stale 24h
        at 86430.001s beat g2
        stale 24h
        serve 1
        stale 24h
        unbeat g2
        stale 24h
        at 60h stale 24h
        tick
        stale 24h
        ",
        expect![[r#"
            beat g1
                2@g1 <- snapshot at nowhere []
                1@g1 <- snapshot at nowhere []
            beat g2
                1@g2 <- snapshot at nowhere []
            stale 24h
                1@g3 in 0
            stale 24h
                1@g1 in 0
                1@g3 in 0
                2@g1 in 0
            stale 24h
                1@g1 in 0
                1@g3 in 0
                2@g1 in 0
                7@g1 in 1
            stale 24h
                1@g1 in 0
                1@g3 in 0
                2@g1 in 0
                7@g1 in 1
            at 60h stale 24h
                1@g1 in 0
                1@g3 in 0
                2@g1 in 0
                7@g1 in 1
            stale 24h
                1@g1 in 0
                1@g2 in 0
                1@g3 in 0
                2@g1 in 0
                7@g1 in 1
        "#]],
    );
}

#[test]
fn r10_lists_sessions_and_reports_may_come_in_any_order() {
    check(
        "
        2 reports 0,0.01
        1 reports 0,0
        serve 0
        open 1 @g1
        list 1: 2
        beat g1
        open 3 @g1
        3 reports 0,0.02
        list 3: 1 2
        ",
        expect![[r#"
            beat g1
                1@g1 <- snapshot at 0,0 [2 1112.0m]
            open 3 @g1
                3@g1 <- snapshot at nowhere []
            3 reports 0,0.02
                3@g1 <- viewer moved 0,0.02
            list 3: 1 2
                3@g1 <- 2 moved 1112.0m of 0s
                3@g1 <- 1 moved 2223.9m of 0s
        "#]],
    );
}

#[test]
fn r11_the_last_list_wins_and_differences_are_told() {
    check(
        "
        beat g1
        serve 0
        open 1 @g1
        1 reports 0,0
        2 reports 0,0.01
        3 reports 0,0.02
        4 reports 0,0.2
        # The viewer itself, duplicates, and somebody never heard of.
        list 1: 1 2 2 4 99 2
        list 1: 2 4
        list 1: 3 4
        2 reports 0,0.01
        99 reports 0,0.01
        list 1:
        unlist 1
        3 reports 0,0.01
        list 1: 3
        counts
        # While the viewer does not share, nobody is seen and nobody leaves.
        1 unshares
        list 1: 2
        at 1s 1 reports 0,0
        unlist 1
        counts
        ",
        expect![[r#"
            open 1 @g1
                1@g1 <- snapshot at nowhere []
            1 reports 0,0
                1@g1 <- viewer moved 0,0
            list 1: 1 2 2 4 99 2
                1@g1 <- 2 moved 1112.0m of 0s
            list 1: 3 4
                1@g1 <- 2 left unfriended
                1@g1 <- 3 moved 2223.9m of 0s
            list 1:
                1@g1 <- 3 left unfriended
            list 1: 3
                1@g1 <- 3 moved 1112.0m of 0s
            counts
                Counts { users_with_position: 5, viewers_connected: 1, edges_indexed: 1, lists_held: 1, gateways_alive: 1 }
            1 unshares
                1@g1 <- 3 left own_location
            at 1s 1 reports 0,0
                1@g1 <- viewer moved 0,0
                1@g1 <- 2 moved 1112.0m of 0s
            unlist 1
                1@g1 <- 2 left unfriended
            counts
                Counts { users_with_position: 5, viewers_connected: 1, edges_indexed: 0, lists_held: 0, gateways_alive: 1 }
        "#]],
    );
}

#[test]
fn what_came_first_is_the_reason() {
    check(
        "
        beat g1
        serve 0
        list 1: 2 3
        open 1 @g1
        1 reports 0,0
        2 reports 0,0.01
        3 reports 0,0.01
        # The first change comes in the last millisecond in which the viewer is active, the second too late.
        at 600s list 1: 3
        at 601s list 1:
        ",
        expect![[r#"
            open 1 @g1
                1@g1 <- snapshot at nowhere []
            1 reports 0,0
                1@g1 <- viewer moved 0,0
            2 reports 0,0.01
                1@g1 <- 2 moved 1112.0m of 0s
            3 reports 0,0.01
                1@g1 <- 3 moved 1112.0m of 0s
            at 600s list 1: 3
                1@g1 <- 2 left unfriended
            at 601s list 1:
                1@g1 <- 3 left own_location
        "#]],
    );
}
