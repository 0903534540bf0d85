//! R5, R7, R8: snapshots, owners of partitions, several sessions, lost gateways.

use crate::script::check;
use expect_test::expect;

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
        # An old heartbeat revives, if it is not too old.
        beat g1 appended 15.001s
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
            beat g1 appended 15.001s
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
fn r8_time_that_has_gone_back_makes_nobody_lost() {
    check(
        "
        list 1: 2
        open 1 @g1
        open 1 @g2
        open 1 @g3
        serve 0
        1 reports 0,0
        # The broker's clock is 10 minutes ahead, and then right again; g2 was lost meanwhile, and g3 comes.
        beat g1 appended 600s
        beat g2 appended 600s
        at 5s beat g3
        beat g1
        2 reports 0,0.01
        counts
        at 35.001s beat g1
        beat g3
        2 reports 0,0.02
        counts
        ",
        expect![[r#"
            beat g1 appended 600s
                1@g1 <- snapshot at 0,0 []
            beat g2 appended 600s
                1@g2 <- snapshot at 0,0 []
            at 5s beat g3
                1@g3 <- snapshot at 0,0 []
            2 reports 0,0.01
                1@g1 <- 2 moved 1112.0m of 5s
                1@g2 <- 2 moved 1112.0m of 5s
                1@g3 <- 2 moved 1112.0m of 5s
            counts
                Counts { users_with_position: 2, viewers_connected: 1, edges_indexed: 1, lists_held: 1, gateways_alive: 3 }
            beat g3
                1@g3 <- snapshot at 0,0 [2 1112.0m]
            2 reports 0,0.02
                1@g1 <- 2 moved 2223.9m of 35.001s
                1@g3 <- 2 moved 2223.9m of 35.001s
            counts
                Counts { users_with_position: 2, viewers_connected: 1, edges_indexed: 1, lists_held: 1, gateways_alive: 2 }
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
