//! Which friend lists are let in and which are refused, with the exact code, index and field.

use expect_test::{Expect, expect};
use nearby_ingest::admission;
use nearby_schemas::UserId;
use nearby_service::problem::Problem;

fn refusal(problem: &Problem) -> String {
    assert_eq!(problem.status, 400);
    let items = problem.errors.iter().map(|error| format!("\n{} {:?} {}", error.index, error.field, error.code));
    format!("{}: {}{}", problem.code, problem.detail, items.collect::<String>())
}

fn check_list(body: &str, expected: Expect) {
    let judged = match admission::friend_list(body.as_bytes()) {
        Ok(friends) => format!("{:?}", friends.iter().map(|friend| friend.0).collect::<Vec<_>>()),
        Err(problem) => refusal(&problem),
    };
    expected.assert_eq(&judged);
}

#[test]
fn friend_list() {
    check_list(r#"{"friends":["7",8],"more":1}"#, expect!["[7, 8]"]);
    check_list(r#"{"friends":[]}"#, expect!["[]"]);
    check_list(
        r#"{"friends":["7","x",-1,null]}"#,
        expect![[r#"
            bad_id: item 1: friends is not a user id: a decimal number from 0 to 9223372036854775807 without leading zeros
            1 "friends" bad_id
            2 "friends" bad_id
            3 "friends" wrong_type"#]],
    );
    check_list(
        r#"{"friends":{"7":1}}"#,
        expect![[r#"
            wrong_type: item 0: friends has the wrong type
            0 "friends" wrong_type"#]],
    );
    check_list(
        "{}",
        expect![[r#"
            missing: item 0: friends is missing
            0 "friends" missing"#]],
    );
    check_list(
        r#"["7"]"#,
        expect![[r#"
            wrong_type: item 0 has the wrong type
            0 "" wrong_type"#]],
    );
    check_list("", expect!["bad_json: not JSON: EOF while parsing a value at line 1 column 0"]);
}

#[test]
fn five_thousand_friends_and_no_more() {
    let body = |count: usize| format!(r#"{{"friends":[{}]}}"#, vec!["1"; count].join(","));
    assert_eq!(admission::friend_list(body(5_000).as_bytes()).expect("accepted").len(), 5_000);
    check_list(
        &body(5_001),
        expect![[r#"
            too_many: item 0: friends has more than 5000 entries
            0 "friends" too_many"#]],
    );
}

fn check_lists(body: &str, expected: Expect) {
    let text = |(user, friends): &(UserId, Vec<UserId>)| {
        format!("{user}: {:?}", friends.iter().map(|friend| friend.0).collect::<Vec<_>>())
    };
    let judged = match admission::friend_lists(body.as_bytes()) {
        Ok(lists) => lists.iter().map(text).collect::<Vec<_>>().join("\n"),
        Err(problem) => refusal(&problem),
    };
    expected.assert_eq(&judged);
}

#[test]
fn friend_lists() {
    check_lists(
        r#"{"lists":{"7":["8",9],"8":[]}}"#,
        expect![[r#"
            7: [8, 9]
            8: []"#]],
    );
    check_lists(r#"{"lists":{}}"#, expect![""]);
    check_lists(
        r#"{"lists":{"07":["8"],"7":["8","-1"],"8":"7","9":[true]}}"#,
        expect![[r#"
            bad_id: item 0: lists.07 is not a user id: a decimal number from 0 to 9223372036854775807 without leading zeros
            0 "lists.07" bad_id
            1 "lists.7" bad_id
            0 "lists.8" wrong_type
            0 "lists.9" wrong_type"#]],
    );
    check_lists(
        r#"{"lists":[["7"]]}"#,
        expect![[r#"
            wrong_type: item 0: lists has the wrong type
            0 "lists" wrong_type"#]],
    );
    check_lists(
        r#"{"friends":[]}"#,
        expect![[r#"
            missing: item 0: lists is missing
            0 "lists" missing"#]],
    );
    let too_long = format!(r#"{{"lists":{{"7":[{}]}}}}"#, vec!["1"; 5_001].join(","));
    check_lists(
        &too_long,
        expect![[r#"
            too_many: item 0: lists.7 has more than 5000 entries
            0 "lists.7" too_many"#]],
    );
}

#[test]
fn the_list_of_faults_is_bounded() {
    let list = format!("[{}]", vec!["-1"; 5_000].join(","));
    let lists: Vec<String> = (0..5).map(|user| format!(r#""{user}":{list}"#)).collect();
    let body = format!(r#"{{"lists":{{{}}}}}"#, lists.join(","));
    let problem = admission::friend_lists(body.as_bytes()).expect_err("bad ids");
    assert_eq!((problem.code, problem.errors.len()), ("bad_id", 10_000));
}
