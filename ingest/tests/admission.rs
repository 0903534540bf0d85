//! What is let in and what is refused, with the exact code, index and field.

use expect_test::{Expect, expect};
use nearby_ingest::admission::{self, Report};
use nearby_schemas::{Place, TimestampMs, nearness};
use nearby_service::problem::Problem;

const NOW: TimestampMs = TimestampMs(1_800_000_000_000);
const DAY_MS: i64 = 86_400_000;

fn refusal(problem: &Problem) -> String {
    assert_eq!(problem.status, 400);
    let items = problem.errors.iter().map(|error| format!("\n{} {:?} {}", error.index, error.field, error.code));
    format!("{}: {}{}", problem.code, problem.detail, items.collect::<String>())
}

fn seen(report: &Report) -> String {
    let position = &report.position;
    let mut text = format!("{} {}", position.lat_e7, position.lon_e7);
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            text += &format!(" {name}={value}");
        }
    };
    add("user", report.user_id.map(|user| user.to_string()));
    add("at", report.reported_at.map(|at| format!("{:+}", at.since_ms(NOW))));
    add("accuracy", position.accuracy_m.map(|value| value.to_string()));
    add("speed", position.speed_mps.map(|value| value.to_string()));
    add("heading", position.heading_deg.map(|value| value.to_string()));
    text
}

fn judged(body: &[u8]) -> String {
    match admission::reports(body, NOW) {
        Ok(reports) => reports.iter().map(seen).collect::<Vec<_>>().join("\n"),
        Err(problem) => refusal(&problem),
    }
}

fn check(body: impl AsRef<[u8]>, expected: Expect) {
    expected.assert_eq(&judged(body.as_ref()));
}

/// The verdict on a report with these further fields, one a line.
fn check_fields(fields: &[&str], expected: Expect) {
    let verdict = |field: &&str| {
        let text = judged(format!(r#"{{"lat":1,"lon":2,{field}}}"#).as_bytes());
        let text = text.strip_prefix("10000000 20000000").unwrap_or(&text);
        let verdict = text.lines().last().unwrap_or_default().trim();
        format!("{field} -> {}", if verdict.is_empty() { "accepted" } else { verdict })
    };
    expected.assert_eq(&fields.iter().map(verdict).collect::<Vec<_>>().join("\n"));
}

#[test]
fn one_report_or_an_array() {
    check(r#"{"lat":37.77,"lon":-122.41}"#, expect!["377700000 -1224100000"]);
    check(
        r#" [{"lat":90,"lon":180,"reported_at_ms":1799999999000,"accuracy_m":12,"speed_mps":1.25,"heading_deg":360,
             "precision":"exact","user_id":"7","more":{"x":[1]}},
            {"lat":-90,"lon":-180,"user_id":8}] "#,
        expect![[r#"
            900000000 1800000000 user=7 at=-1000 accuracy=12 speed=1.25 heading=360
            -900000000 -1800000000 user=8"#]],
    );
    check("[]", expect![""]);
}

#[test]
fn null_is_absent_where_a_field_is_optional() {
    check_fields(
        &[
            r#""reported_at_ms":null,"accuracy_m":null,"speed_mps":null,"heading_deg":null,"precision":null,"user_id":null"#,
        ],
        expect![[
            r#""reported_at_ms":null,"accuracy_m":null,"speed_mps":null,"heading_deg":null,"precision":null,"user_id":null -> accepted"#
        ]],
    );
    check(
        r#"{"lat":null,"lon":2}"#,
        expect![[r#"
            wrong_type: item 0: lat has the wrong type
            0 "lat" wrong_type"#]],
    );
}

#[test]
fn what_is_not_json() {
    check("", expect!["bad_json: not JSON: EOF while parsing a value at line 1 column 0"]);
    check("{", expect!["bad_json: not JSON: EOF while parsing an object at line 1 column 1"]);
    check(r#"{"lat":NaN,"lon":2}"#, expect!["bad_json: not JSON: expected value at line 1 column 8"]);
    check(r#"{"lat":1,"lon":2}}"#, expect!["bad_json: not JSON: trailing characters at line 1 column 18"]);
    check(
        b"{\"lat\":1,\"lon\":2,\"x\":\"\xff\"}",
        expect!["bad_json: not JSON: invalid unicode code point at line 1 column 23"],
    );
    check(b"\xef\xbb\xbf{}", expect!["bad_json: not JSON: expected value at line 1 column 1"]);
}

#[test]
fn numbers_that_no_double_holds() {
    check(
        r#"{"lat":1e999,"lon":2}"#,
        expect!["not_finite: not a finite number: number out of range at line 1 column 12"],
    );
    check(
        r#"[{"lat":1,"lon":2,"ignored":-1e999}]"#,
        expect!["not_finite: not a finite number: number out of range at line 1 column 34"],
    );
}

#[test]
fn wrong_shapes() {
    for body in ["42", "null", "true", r#""text""#] {
        check(
            body,
            expect![[r#"
                wrong_type: item 0 has the wrong type
                0 "" wrong_type"#]],
        );
    }
    check(
        r#"[{"lat":1,"lon":2},[{"lat":1,"lon":2}]]"#,
        expect![[r#"
            wrong_type: item 1 has the wrong type
            1 "" wrong_type"#]],
    );
}

#[test]
fn all_faults_of_all_items_and_nothing_is_taken() {
    check(
        r#"[{"lat":1,"lon":2}, {"lat":91,"lon":"2","user_id":-1}, {}, {"lat":1,"lon":2,"precision":"fuzzy"}]"#,
        expect![[r#"
            out_of_range: item 1: lat is out of range
            1 "lat" out_of_range
            1 "lon" wrong_type
            1 "user_id" bad_id
            2 "lat" missing
            2 "lon" missing
            3 "precision" unknown_precision"#]],
    );
}

#[test]
fn numbers_in_and_out_of_range() {
    for (lat, lon, code) in [
        ("90", "180", ""),
        ("-90.0", "-180.0", ""),
        ("90.0000001", "0", "lat out_of_range"),
        ("-90.0000001", "0", "lat out_of_range"),
        ("0", "180.0000001", "lon out_of_range"),
        ("0", "-1e300", "lon out_of_range"),
        ("\"0\"", "0", "lat wrong_type"),
        ("0", "[0]", "lon wrong_type"),
    ] {
        let judged = judged(format!(r#"{{"lat":{lat},"lon":{lon}}}"#).as_bytes());
        let fault = judged.lines().nth(1).unwrap_or_default().replace("0 \"", "").replace('"', "");
        assert_eq!(fault, code, "{lat} {lon}");
    }
    check_fields(
        &[
            r#""accuracy_m":0"#,
            r#""accuracy_m":-0.1"#,
            r#""accuracy_m":3.4028234e38"#,
            r#""accuracy_m":3.5e38"#,
            r#""accuracy_m":true"#,
            r#""speed_mps":0"#,
            r#""speed_mps":-1"#,
            r#""speed_mps":1e39"#,
            r#""speed_mps":"1""#,
            r#""heading_deg":0"#,
            r#""heading_deg":360.0"#,
            r#""heading_deg":360.1"#,
            r#""heading_deg":-0.1"#,
            r#""heading_deg":{}"#,
        ],
        expect![[r#"
            "accuracy_m":0 -> accuracy=0
            "accuracy_m":-0.1 -> 0 "accuracy_m" out_of_range
            "accuracy_m":3.4028234e38 -> accuracy=340282350000000000000000000000000000000
            "accuracy_m":3.5e38 -> 0 "accuracy_m" out_of_range
            "accuracy_m":true -> 0 "accuracy_m" wrong_type
            "speed_mps":0 -> speed=0
            "speed_mps":-1 -> 0 "speed_mps" out_of_range
            "speed_mps":1e39 -> 0 "speed_mps" out_of_range
            "speed_mps":"1" -> 0 "speed_mps" wrong_type
            "heading_deg":0 -> heading=0
            "heading_deg":360.0 -> heading=360
            "heading_deg":360.1 -> 0 "heading_deg" out_of_range
            "heading_deg":-0.1 -> 0 "heading_deg" out_of_range
            "heading_deg":{} -> 0 "heading_deg" wrong_type"#]],
    );
}

#[test]
fn times_at_their_borders() {
    let at = |offset: i64| format!(r#""reported_at_ms":{}"#, NOW.0 + offset);
    let (ahead, too_far, old, too_old) = (at(60_000), at(60_001), at(-7 * DAY_MS), at(-7 * DAY_MS - 1));
    check_fields(
        &[
            &ahead,
            &too_far,
            &old,
            &too_old,
            r#""reported_at_ms":1.8e12"#,
            r#""reported_at_ms":1800000000000.5"#,
            r#""reported_at_ms":"1800000000000""#,
            r#""reported_at_ms":18446744073709551615"#,
            r#""reported_at_ms":1e300"#,
            r#""reported_at_ms":-9223372036854775808"#,
            r#""reported_at_ms":-1e300"#,
        ],
        expect![[r#"
            "reported_at_ms":1800000060000 -> at=+60000
            "reported_at_ms":1800000060001 -> 0 "reported_at_ms" in_future
            "reported_at_ms":1799395200000 -> at=-604800000
            "reported_at_ms":1799395199999 -> 0 "reported_at_ms" too_old
            "reported_at_ms":1.8e12 -> at=+0
            "reported_at_ms":1800000000000.5 -> 0 "reported_at_ms" wrong_type
            "reported_at_ms":"1800000000000" -> 0 "reported_at_ms" wrong_type
            "reported_at_ms":18446744073709551615 -> 0 "reported_at_ms" in_future
            "reported_at_ms":1e300 -> 0 "reported_at_ms" in_future
            "reported_at_ms":-9223372036854775808 -> 0 "reported_at_ms" too_old
            "reported_at_ms":-1e300 -> 0 "reported_at_ms" too_old"#]],
    );
}

#[test]
fn ids() {
    check_fields(
        &[
            r#""user_id":"0""#,
            r#""user_id":0"#,
            r#""user_id":7.0"#,
            r#""user_id":"9223372036854775807""#,
            r#""user_id":9223372036854775807"#,
            r#""user_id":"9223372036854775808""#,
            r#""user_id":9223372036854775808"#,
            r#""user_id":9007199254740991.0"#,
            r#""user_id":9007199254740993.0"#,
            r#""user_id":9.1e18"#,
            r#""user_id":1e300"#,
            r#""user_id":-1"#,
            r#""user_id":"-1""#,
            r#""user_id":"07""#,
            r#""user_id":"""#,
            r#""user_id":" 7""#,
            r#""user_id":1.5"#,
            r#""user_id":false"#,
        ],
        expect![[r#"
            "user_id":"0" -> user=0
            "user_id":0 -> user=0
            "user_id":7.0 -> user=7
            "user_id":"9223372036854775807" -> user=9223372036854775807
            "user_id":9223372036854775807 -> user=9223372036854775807
            "user_id":"9223372036854775808" -> 0 "user_id" bad_id
            "user_id":9223372036854775808 -> 0 "user_id" bad_id
            "user_id":9007199254740991.0 -> user=9007199254740991
            "user_id":9007199254740993.0 -> 0 "user_id" bad_id
            "user_id":9.1e18 -> 0 "user_id" bad_id
            "user_id":1e300 -> 0 "user_id" bad_id
            "user_id":-1 -> 0 "user_id" bad_id
            "user_id":"-1" -> 0 "user_id" bad_id
            "user_id":"07" -> 0 "user_id" bad_id
            "user_id":"" -> 0 "user_id" bad_id
            "user_id":" 7" -> 0 "user_id" bad_id
            "user_id":1.5 -> 0 "user_id" wrong_type
            "user_id":false -> 0 "user_id" wrong_type"#]],
    );
}

#[test]
fn precisions() {
    check_fields(
        &[r#""precision":"exact""#, r#""precision":"Coarse""#, r#""precision":"""#, r#""precision":7"#],
        expect![[r#"
            "precision":"exact" -> accepted
            "precision":"Coarse" -> 0 "precision" unknown_precision
            "precision":"" -> 0 "precision" unknown_precision
            "precision":7 -> 0 "precision" wrong_type"#]],
    );
}

fn coarse(lat: f64, lon: f64) -> Place {
    let body = format!(r#"{{"lat":{lat},"lon":{lon},"precision":"coarse"}}"#);
    admission::reports(body.as_bytes(), NOW).expect("accepted")[0].position.place()
}

#[test]
fn coarse_is_the_centre_of_the_cell() {
    for (lat, lon) in [(37.77, -122.41), (0.0, 180.0), (-16.9, -179.999_9), (90.0, 0.0), (-90.0, 33.0), (52.5, 13.4)] {
        let cell = h3o::LatLng::new(lat, lon).expect("on the globe").to_cell(h3o::Resolution::Seven);
        let centre = h3o::LatLng::from(cell);
        let centre = Place::from_degrees(centre.lat(), centre.lng()).expect("on the globe");
        assert_eq!(coarse(lat, lon), centre);
        let exact = Place::from_degrees(lat, lon).expect("on the globe");
        assert!(nearness::distance_m(centre, exact) < 2_000.0, "{lat} {lon}");
    }
}

#[test]
fn coarse_hides_the_exact_place() {
    let (one, other) = (coarse(37.775, -122.415), coarse(37.776, -122.414));
    assert_eq!(one, other, "two places of one cell are the same");
    assert_ne!(one, Place::from_degrees(37.775, -122.415).expect("on the globe"));
    assert_ne!(one, coarse(37.9, -122.415));
}

#[test]
fn a_thousand_items_and_no_more() {
    let body = |count: usize| format!("[{}]", vec![r#"{"lat":1,"lon":2}"#; count].join(","));
    assert_eq!(admission::reports(body(1_000).as_bytes(), NOW).expect("accepted").len(), 1_000);
    check(body(1_001), expect!["too_many: more than 1000 reports in one request"]);
}

#[test]
fn thirty_two_levels_and_no_more() {
    // The report itself is the first level.
    let nested = |levels: usize| {
        let (open, close) = ("[".repeat(levels - 1), "]".repeat(levels - 1));
        format!(r#"{{"lat":1,"lon":2,"ignored":{open}{close}}}"#)
    };
    check(nested(32), expect!["10000000 20000000"]);
    check(nested(33), expect!["bad_json: the JSON is nested more than 32 levels deep"]);
    check("[".repeat(1_000_000), expect!["bad_json: the JSON is nested more than 32 levels deep"]);
    check(r#"{"a":"#.repeat(33), expect!["bad_json: the JSON is nested more than 32 levels deep"]);
}

#[test]
fn brackets_in_strings_are_no_levels() {
    let text = |text: &str| format!(r#"{{"lat":1,"lon":2,"ignored":"{text}"}}"#);
    check(text(&"[{".repeat(40)), expect!["10000000 20000000"]);
    check(text(&format!(r#"\"{}"#, "[".repeat(40))), expect!["10000000 20000000"]);
    check(text(&format!(r"\\\\\u005b{}", "{".repeat(40))), expect!["10000000 20000000"]);
    // The string ends behind an escaped backslash: these brackets count.
    let behind = format!(r#"["\\",{}"]"#, "[".repeat(40));
    check(behind, expect!["bad_json: the JSON is nested more than 32 levels deep"]);
    // Levels that were closed do not add up.
    let wide = format!(r#"{{"lat":1,"lon":2,"ignored":[{}[]]}}"#, "[{}],".repeat(100));
    check(wide, expect!["10000000 20000000"]);
}

fn check_withdrawal(body: &str, expected: Expect) {
    let judged = match admission::withdrawal(body.as_bytes(), NOW) {
        Ok(reported_at) => format!("{:?}", reported_at.map(|at| at.since_ms(NOW))),
        Err(problem) => refusal(&problem),
    };
    expected.assert_eq(&judged);
}

#[test]
fn withdrawals() {
    check_withdrawal("", expect!["None"]);
    check_withdrawal(" \n", expect!["None"]);
    check_withdrawal("{}", expect!["None"]);
    check_withdrawal(r#"{"reported_at_ms":1800000060000}"#, expect!["Some(60000)"]);
    check_withdrawal(
        r#"{"reported_at_ms":1800000060001}"#,
        expect![[r#"
            in_future: item 0: reported_at_ms is more than 60 s in the future
            0 "reported_at_ms" in_future"#]],
    );
    check_withdrawal(
        r#"{"reported_at_ms":1}"#,
        expect![[r#"
            too_old: item 0: reported_at_ms is more than 7 days ago
            0 "reported_at_ms" too_old"#]],
    );
    check_withdrawal(
        "[]",
        expect![[r#"
            wrong_type: item 0 has the wrong type
            0 "" wrong_type"#]],
    );
    check_withdrawal("{", expect!["bad_json: not JSON: EOF while parsing an object at line 1 column 1"]);
}

#[test]
fn frames_are_judged_by_the_same_rules() {
    let value = |text| admission::json(text).expect("JSON");
    let location = value(br#"{"type":"location","ref":1,"lat":1,"lon":2}"#);
    assert_eq!(seen(&admission::report(&location, NOW).expect("accepted")), "10000000 20000000");
    let refused = admission::report(&value(br#"{"type":"location","lat":1}"#), NOW).expect_err("no lon");
    assert_eq!(refused, [("lon".to_owned(), "missing")]);
    let unshare = value(br#"{"type":"unshare","reported_at_ms":1800000000000}"#);
    assert_eq!(admission::withdrawal_value(&unshare, NOW), Ok(Some(NOW)));
    let refused = admission::withdrawal_value(&value(br#"{"reported_at_ms":[]}"#), NOW);
    assert_eq!(refused, Err(vec![("reported_at_ms".to_owned(), "wrong_type")]));
}

#[test]
fn every_fault_of_every_item_is_listed() {
    let item = r#"{"reported_at_ms":"","accuracy_m":"","speed_mps":"","heading_deg":"","precision":"","user_id":""}"#;
    let body = format!("[{}]", vec![item; 1_000].join(","));
    assert_eq!(admission::reports(body.as_bytes(), NOW).expect_err("bad").errors.len(), 8_000);
}
