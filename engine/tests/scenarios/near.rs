//! R1 to R4: who is near whom, the latest report, moves and leaves, the viewer who moves.

use crate::script::check;
use expect_test::expect;

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
