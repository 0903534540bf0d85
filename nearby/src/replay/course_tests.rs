//! Replays of a few records: who is told what, and when.

use super::*;
use crate::replay::lines::write_lines;
use nearby_schemas::Place;
use nearby_schemas::codec::Codec;

const PARTITIONS: i32 = 4;
const FROM: TimestampMs = TimestampMs(1_000_000);

fn report(user: i64, lat: f64) -> Input {
    let place = Place::from_degrees(lat, -73.9857).expect("on the globe");
    Input::Report(Reported { user: UserId(user), time: TimestampMs(0), place: Some(place) })
}

fn list(user: i64, friends: &[i64]) -> Input {
    let viewer = UserId(user);
    let friends = Some(friends.iter().map(|friend| UserId(*friend)).collect());
    Input::List(Listed { partition: partition_of(viewer, PARTITIONS), viewer, friends })
}

fn at(mut input: Input, ms: i64) -> (TimestampMs, Input) {
    let time = FROM.plus_ms(ms);
    if let Input::Report(report) = &mut input {
        report.time = time;
    }
    (time, input)
}

fn batches(viewers: Viewers, inputs: Vec<(TimestampMs, Input)>, to_ms: i64) -> Vec<Told> {
    let settings = EngineSettings { inactive_after_ms: 10_000, ..EngineSettings::default() };
    let mut course = Course::new(settings, PARTITIONS, FROM, viewers);
    let mut told = Vec::new();
    for (time, input) in inputs {
        course.take(time, input);
        told.extend(course.told());
    }
    course.end(FROM.plus_ms(to_ms));
    told.extend(course.told());
    told
}

fn replay(viewers: Viewers, inputs: Vec<(TimestampMs, Input)>, to_ms: i64) -> String {
    let (codec, mut text) = (Codec::new(), String::new());
    for (gateway, bytes) in batches(viewers, inputs, to_ms) {
        write_lines(&gateway, &codec.decode(&bytes).expect("a batch"), &mut text);
    }
    text
}

/// Two friends of whom one is far away at first, and falls silent in the end.
fn story() -> Vec<(TimestampMs, Input)> {
    vec![
        at(list(1, &[2]), -900_000),
        at(list(2, &[1]), -800_000),
        at(report(1, 40.70), -20_000),
        at(report(1, 40.74), -5_000),
        at(report(2, 40.75), -4_000),
        at(report(2, 40.76), 10),
        at(report(2, 41.00), 50),
        at(report(2, 40.76), 3_000),
        at(report(1, 40.74), 3_000),
    ]
}

#[test]
fn begins_with_snapshots_of_what_was_and_tells_what_happens() {
    expect_test::expect![[r#"
        {"emitted_at":1000005,"gateway":"replay","viewer":"2","type":"snapshot","lat":40.75,"lon":-73.9857,"friends":[{"friend":"1","lat":40.74,"lon":-73.9857,"updated_at":995000,"distance_m":1112}]}
        {"emitted_at":1000005,"gateway":"replay","viewer":"1","type":"snapshot","lat":40.74,"lon":-73.9857,"friends":[{"friend":"2","lat":40.75,"lon":-73.9857,"updated_at":996000,"distance_m":1112}]}
        {"emitted_at":1000015,"gateway":"replay","viewer":"2","type":"viewer_moved","lat":40.76,"lon":-73.9857}
        {"emitted_at":1000015,"gateway":"replay","viewer":"1","type":"moved","friend":"2","lat":40.76,"lon":-73.9857,"updated_at":1000010,"distance_m":2223.9}
        {"emitted_at":1000055,"gateway":"replay","viewer":"2","type":"left","friend":"1","reason":"distance"}
        {"emitted_at":1000055,"gateway":"replay","viewer":"2","type":"viewer_moved","lat":41,"lon":-73.9857}
        {"emitted_at":1000055,"gateway":"replay","viewer":"1","type":"left","friend":"2","reason":"distance"}
        {"emitted_at":1003005,"gateway":"replay","viewer":"2","type":"viewer_moved","lat":40.76,"lon":-73.9857}
        {"emitted_at":1003005,"gateway":"replay","viewer":"2","type":"moved","friend":"1","lat":40.74,"lon":-73.9857,"updated_at":995000,"distance_m":2223.9}
        {"emitted_at":1003005,"gateway":"replay","viewer":"2","type":"moved","friend":"1","lat":40.74,"lon":-73.9857,"updated_at":1003000,"distance_m":2223.9}
        {"emitted_at":1003005,"gateway":"replay","viewer":"1","type":"moved","friend":"2","lat":40.76,"lon":-73.9857,"updated_at":1003000,"distance_m":2223.9}
        {"emitted_at":1003005,"gateway":"replay","viewer":"1","type":"viewer_moved","lat":40.74,"lon":-73.9857}
        {"emitted_at":1013205,"gateway":"replay","viewer":"2","type":"left","friend":"1","reason":"own_location"}
        {"emitted_at":1013205,"gateway":"replay","viewer":"1","type":"left","friend":"2","reason":"own_location"}
    "#]].assert_eq(&replay(Viewers::Listed, story(), 14_000));
}

#[test]
fn only_named_viewers_are_told() {
    let text = replay(Viewers::Named(BTreeSet::from([UserId(2), UserId(3)])), story(), 14_000);
    let of = |viewer: &str| text.lines().filter(|line| line.contains(&format!(r#""viewer":"{viewer}""#))).count();
    assert_eq!((of("1"), of("3")), (0, 1), "{text}");
    let all = replay(Viewers::Listed, story(), 14_000);
    assert_eq!(of("2"), all.lines().filter(|line| line.contains(r#""viewer":"2""#)).count());
}

#[test]
fn a_list_that_comes_within_the_range_connects_its_user() {
    let inputs = vec![at(report(2, 40.76), -10), at(report(1, 40.76), 10), at(list(1, &[2]), 500)];
    expect_test::expect![[r#"
        {"emitted_at":1000505,"gateway":"replay","viewer":"1","type":"snapshot","lat":40.76,"lon":-73.9857,"friends":[]}
        {"emitted_at":1000505,"gateway":"replay","viewer":"1","type":"moved","friend":"2","lat":40.76,"lon":-73.9857,"updated_at":999990,"distance_m":0}
    "#]].assert_eq(&replay(Viewers::Listed, inputs, 1_000));
}

#[test]
fn recorded_sessions_are_on_their_gateways_while_these_are_alive() {
    let (east, user) = (GatewayId::new("east").expect("legal"), UserId(1));
    let partition = partition_of(user, PARTITIONS);
    let session =
        |ask| Input::Session(Sessioned { partition, user, gateway: GatewayId::new("east").expect("legal"), ask });
    let inputs = vec![
        at(list(1, &[2]), -900_000),
        at(Input::Gateway(Wake::Heartbeat(east, Some(FROM.plus_ms(-100)))), -100),
        at(session(Some(1)), -50),
        at(report(1, 40.74), -20),
        at(report(2, 40.75), 20),
        at(session(None), 100),
        at(report(2, 40.76), 200),
    ];
    expect_test::expect![[r#"
        {"emitted_at":1000005,"gateway":"east","viewer":"1","type":"snapshot","lat":40.74,"lon":-73.9857,"friends":[]}
        {"emitted_at":1000025,"gateway":"east","viewer":"1","type":"moved","friend":"2","lat":40.75,"lon":-73.9857,"updated_at":1000020,"distance_m":1112}
    "#]].assert_eq(&replay(Viewers::Recorded, inputs, 1_000));
}

#[test]
fn is_the_same_to_the_byte() {
    assert_eq!(batches(Viewers::Listed, story(), 14_000), batches(Viewers::Listed, story(), 14_000));
}

#[test]
fn two_halves_tell_what_the_whole_does() {
    let until = |text: &str, ms: i64| -> Vec<String> {
        let before = |line: &&str| {
            let emitted = line.split(&[':', ','][..]).nth(1).and_then(|text| text.parse::<i64>().ok());
            emitted.is_some_and(|emitted| emitted < FROM.0 + ms)
        };
        text.lines().filter(before).map(str::to_owned).collect()
    };
    let whole = replay(Viewers::Listed, story(), 14_000);
    let half =
        replay(Viewers::Listed, story().into_iter().filter(|(time, _)| *time < FROM.plus_ms(1_000)).collect(), 1_000);
    assert_eq!(until(&whole, 1_000), until(&half, 1_001));
}
