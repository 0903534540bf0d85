//! R6, R10, R11: withdrawals, lists, and inputs in any order.

use crate::script::check;
use expect_test::expect;

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
