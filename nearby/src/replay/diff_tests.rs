//! Outputs that differ in one thing each, and what is said about it.

use super::*;

fn moved(emitted_at: i64, viewer: i64, friend: i64, updated_at: i64, distance_m: f64) -> String {
    format!(
        r#"{{"emitted_at":{emitted_at},"gateway":"replay","viewer":"{viewer}","type":"moved","friend":"{friend}","lat":40.5,"lon":-73.25,"updated_at":{updated_at},"distance_m":{distance_m}}}"#
    )
}

fn left(emitted_at: i64, viewer: i64, friend: i64, reason: &str) -> String {
    format!(
        r#"{{"emitted_at":{emitted_at},"gateway":"replay","viewer":"{viewer}","type":"left","friend":"{friend}","reason":"{reason}"}}"#
    )
}

fn snapshot(viewer: i64, friends: &str) -> String {
    format!(
        r#"{{"emitted_at":0,"gateway":"replay","viewer":"{viewer}","type":"snapshot","lat":1.5,"lon":2.5,"friends":[{friends}]}}"#
    )
}

const SEEN: &str = r#"{"friend":"2","lat":40.5,"lon":-73.25,"updated_at":90,"distance_m":12.5}"#;

/// What two friends of viewer 1 do.
fn story() -> Vec<String> {
    vec![
        snapshot(1, SEEN),
        moved(105, 1, 2, 100, 10.5),
        moved(105, 1, 3, 100, 20.5),
        left(205, 1, 2, "distance"),
        moved(305, 1, 2, 300, 10.5),
        left(405, 1, 2, "unshared"),
    ]
}

fn compared(a: Vec<String>, b: Vec<String>) -> String {
    let comparison = compare(a.into_iter().map(Ok), b.into_iter().map(Ok)).expect("lines of a replay");
    explanation(&comparison, 2)
}

fn edited(edit: impl FnOnce(&mut Vec<String>)) -> Vec<String> {
    let mut lines = story();
    edit(&mut lines);
    lines
}

#[test]
fn the_same_is_the_same() {
    expect_test::expect![[r#"
        the same: 6 lines
    "#]]
    .assert_eq(&compared(story(), story()));
    assert_eq!(compared(vec![], vec![]), "the same: 0 lines\n");
}

#[test]
fn one_thing_less_is_one_difference() {
    expect_test::expect![[r#"
        the first difference is in line 2:
          A {"emitted_at":105,"gateway":"replay","viewer":"1","type":"moved","friend":"2","lat":40.5,"lon":-73.25,"updated_at":100,"distance_m":10.5}
          B {"emitted_at":105,"gateway":"replay","viewer":"1","type":"moved","friend":"3","lat":40.5,"lon":-73.25,"updated_at":100,"distance_m":20.5}
        from there on:
          moved              1 only in A
          left               1 only in A, 1 only in B
        by viewer and friend, 1:
          replay viewer 1, friend 2: moved 1 only in A; left 1 only in A, 1 only in B
    "#]].assert_eq(&compared(story(), edited(|lines| drop(lines.remove(1)))));
    expect_test::expect![[r#"
        the first difference is in line 6:
          A (has ended)
          B {"emitted_at":405,"gateway":"replay","viewer":"1","type":"left","friend":"2","reason":"unshared"}
        from there on:
          left               1 only in B
        by viewer and friend, 1:
          replay viewer 1, friend 2: left 1 only in B
    "#]]
    .assert_eq(&compared(edited(|lines| drop(lines.pop())), story()));
}

#[test]
fn another_distance_reason_time_and_order_are_told_apart() {
    let distance = edited(|lines| lines[1] = moved(105, 1, 2, 100, 10.6));
    expect_test::expect![[r#"
        the first difference is in line 2:
          A {"emitted_at":105,"gateway":"replay","viewer":"1","type":"moved","friend":"2","lat":40.5,"lon":-73.25,"updated_at":100,"distance_m":10.5}
          B {"emitted_at":105,"gateway":"replay","viewer":"1","type":"moved","friend":"2","lat":40.5,"lon":-73.25,"updated_at":100,"distance_m":10.6}
        from there on:
          moved              1 at another distance
        by viewer and friend, 1:
          replay viewer 1, friend 2: moved 1 at another distance
    "#]].assert_eq(&compared(story(), distance));
    let reason = edited(|lines| lines[5] = left(405, 1, 2, "inactive"));
    expect_test::expect![[r#"
        the first difference is in line 6:
          A {"emitted_at":405,"gateway":"replay","viewer":"1","type":"left","friend":"2","reason":"unshared"}
          B {"emitted_at":405,"gateway":"replay","viewer":"1","type":"left","friend":"2","reason":"inactive"}
        from there on:
          left               1 for another reason
        by viewer and friend, 1:
          replay viewer 1, friend 2: left 1 for another reason
    "#]]
    .assert_eq(&compared(story(), reason));
    let later = edited(|lines| lines[2] = moved(108, 1, 3, 100, 20.5));
    expect_test::expect![[r#"
        the first difference is in line 3:
          A {"emitted_at":105,"gateway":"replay","viewer":"1","type":"moved","friend":"3","lat":40.5,"lon":-73.25,"updated_at":100,"distance_m":20.5}
          B {"emitted_at":108,"gateway":"replay","viewer":"1","type":"moved","friend":"3","lat":40.5,"lon":-73.25,"updated_at":100,"distance_m":20.5}
        from there on:
          moved              1 told at another time
        the same was told at most 3 ms apart
    "#]].assert_eq(&compared(story(), later));
    let order = edited(|lines| lines.swap(1, 2));
    expect_test::expect![[r#"
        the first difference is in line 2:
          A {"emitted_at":105,"gateway":"replay","viewer":"1","type":"moved","friend":"2","lat":40.5,"lon":-73.25,"updated_at":100,"distance_m":10.5}
          B {"emitted_at":105,"gateway":"replay","viewer":"1","type":"moved","friend":"3","lat":40.5,"lon":-73.25,"updated_at":100,"distance_m":20.5}
        from there on:
        viewers who were told the same in another order: 1
    "#]].assert_eq(&compared(story(), order));
}

#[test]
fn snapshots_are_compared_friend_by_friend() {
    let without = edited(|lines| lines[0] = snapshot(1, ""));
    expect_test::expect![[r#"
        the first difference is in line 1:
          A {"emitted_at":0,"gateway":"replay","viewer":"1","type":"snapshot","lat":1.5,"lon":2.5,"friends":[{"friend":"2","lat":40.5,"lon":-73.25,"updated_at":90,"distance_m":12.5}]}
          B {"emitted_at":0,"gateway":"replay","viewer":"1","type":"snapshot","lat":1.5,"lon":2.5,"friends":[]}
        from there on:
          friend in snapshot 1 only in A
        by viewer and friend, 1:
          replay viewer 1, friend 2: friend in snapshot 1 only in A
    "#]].assert_eq(&compared(story(), without));
}

#[test]
fn only_so_many_pairs_are_told() {
    let many = edited(|lines| lines.extend((10..15).map(|friend| moved(500, 1, friend, 500, 1.5))));
    expect_test::expect![[r#"
        the first difference is in line 7:
          A (has ended)
          B {"emitted_at":500,"gateway":"replay","viewer":"1","type":"moved","friend":"10","lat":40.5,"lon":-73.25,"updated_at":500,"distance_m":1.5}
        from there on:
          moved              5 only in B
        by viewer and friend, 5, the first 2:
          replay viewer 1, friend 10: moved 1 only in B
          replay viewer 1, friend 11: moved 1 only in B
    "#]].assert_eq(&compared(story(), many));
}

#[test]
fn what_is_no_replay_is_refused() {
    let refused = |line: &str| {
        let lines = |line: &str| vec![Ok(line.to_owned())];
        format!("{:#}", compare(lines(line), lines("x")).expect_err("it is no line of a replay"))
    };
    assert!(refused("hello").starts_with("line 1 of A is not of a replay: hello"));
    assert!(refused(&left(1, 1, 2, "x").replace("left", "gone")).contains("unknown type gone"));
    assert!(refused(&left(1, 1, 2, "x").replace("viewer\":\"1", "viewer\":\"x")).contains("a user id is"));
    let friendless = left(1, 1, 2, "x").replace(r#""friend":"2","#, "");
    assert!(refused(&friendless).contains("no friend"));
}
