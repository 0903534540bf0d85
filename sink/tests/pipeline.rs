//! The whole sink, between librdkafka's mock cluster, or a real broker where groups matter, and a real Postgres.

#[path = "common/world.rs"]
mod world;

use nearby_schemas::codec::Codec;
use nearby_schemas::partitioning::partition_of;
use nearby_schemas::{FriendList, LocationEvent, TimestampMs, UserId};
use nearby_service::append::Outgoing;
use nearby_sink::{SinkError, SinkSettings};
use std::time::{Duration, Instant};
use world::{HISTORY, LIMIT, PARTITIONS, World, report, small};

#[tokio::test(flavor = "multi_thread")]
async fn every_record_once_over_kills_and_restarts() {
    let world = World::new().await;
    let mut appended = 0;
    for round in 1..=5 {
        world.append_reports(appended..appended + 4_000).await;
        appended += 4_000;
        // The mock cluster keeps a group waiting for members that have left; a new group does not wait.
        let sink = world.sink(&format!("{round}."), small());
        // In the middle of it.
        let some = format!("select count(*) > {} from nearby.location_history", appended - 3_000);
        world.eventually(&some, "t");
        sink.kill().await;
    }
    assert_ne!(world.psql(HISTORY), "20000|20000", "the last one was killed too late");
    let sink = world.sink("last.", SinkSettings::default());
    world.eventually(HISTORY, "20000|20000");
    assert_eq!(world.psql("select sum(next_offset) from nearby.sink_offsets"), "20000");
    assert_eq!(world.psql("select count(distinct user_id) from nearby.location_history"), "20000");
    sink.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_record_once_with_two_sinks_fighting() {
    let world = World::new().await;
    let sinks = [world.sink("a.", small()), world.sink("b.", small())];
    for first in (0..20_000).step_by(1_000) {
        world.append_reports(first..first + 1_000).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    world.eventually(HISTORY, "20000|20000");
    for sink in sinks {
        sink.end().await;
    }
    assert_eq!(world.psql(HISTORY), "20000|20000");
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_move_between_the_members_of_a_group() {
    let world = World::with_real_broker().await;
    world.append_reports(0..1_000).await;
    let first = world.sink("", small());
    world.eventually(HISTORY, "1000|1000");
    // Every connection that advanced an offset.
    world.psql(
        "create table writers (id serial, kafka_partition int, pid int default pg_backend_pid());
         create function told() returns trigger language plpgsql
         as $$ begin insert into writers (kafka_partition) values (new.kafka_partition); return new; end $$;
         create trigger told after update on nearby.sink_offsets for each row execute function told()",
    );
    let second = world.sink("", small());
    let mut appended = 1_000;
    while world.psql("select count(distinct pid) from writers") != "2" {
        assert!(appended < 300_000, "the second one gets nothing");
        world.append_reports(appended..appended + 1_000).await;
        appended += 1_000;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    world.eventually(HISTORY, &format!("{appended}|{appended}"));
    // Both are at work, and neither in the other's partitions.
    world.psql("delete from writers");
    for _ in 0..10 {
        world.append_reports(appended..appended + 1_000).await;
        appended += 1_000;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    world.eventually(HISTORY, &format!("{appended}|{appended}"));
    let writers = "select count(distinct pid), count(distinct (kafka_partition, pid)) from writers";
    assert_eq!(world.psql(writers), format!("2|{PARTITIONS}"));

    first.end().await;
    world.append_reports(appended..appended + 1_000).await;
    appended += 1_000;
    world.eventually(HISTORY, &format!("{appended}|{appended}"));
    second.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_written_is_a_dead_letter() {
    let world = World::new().await;
    world.psql("alter table nearby.location_history add constraint lucky check (user_id not in (13, 1313))");
    let codec = Codec::new();
    let ancient = LocationEvent { reported_at: TimestampMs(1_000), ..report(7) };
    world.append_reports(10..20).await;
    world.append(vec![world.outgoing(5, Some(b"nonsense".to_vec())), world.outgoing(6, None)]).await;
    world.append(vec![world.outgoing(7, Some(codec.encode(&ancient)))]).await;
    world.append_reports(1_000..3_000).await;
    let sink = world.sink("", SinkSettings::default());
    world.eventually(HISTORY, "2008|2008");
    world.eventually("select sum(next_offset) from nearby.sink_offsets", "2013");
    let refused = "new row for relation \"PARTITION\" violates check constraint \"lucky\" (23514)";
    let letters: Vec<String> = world.dead_letters(5).iter().map(|letter| without_numbers(letter)).collect();
    assert_eq!(
        letters,
        [
            format!("13 topic=location-events reason={refused}"),
            format!("1313 topic=location-events reason={refused}"),
            "5 topic=location-events reason=not an Avro single object: it does not start with C3 01".to_owned(),
            "6 topic=location-events reason=no value".to_owned(),
            "7 topic=location-events reason=reported_at is N ms before the record was appended: more than 8 days"
                .to_owned(),
        ]
    );
    sink.end().await;
}

/// The parts of a reason that depend on the time of the test, out.
fn without_numbers(letter: &str) -> String {
    let word = |word: &str| match word {
        word if word.contains("location_history_") => "\"PARTITION\"".to_owned(),
        word if word.len() > 10 && word.bytes().all(|byte| byte.is_ascii_digit()) => "N".to_owned(),
        word => word.to_owned(),
    };
    letter.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_is_waited_for() {
    let mut world = World::new().await;
    let settings = SinkSettings { backlog_rows_max: 1_000, ..small() };
    let sink = world.sink("", settings);
    world.append_reports(0..1_000).await;
    world.eventually(HISTORY, "1000|1000");
    assert_eq!(sink.readiness.missing(), []);
    world.postgres.kill().expect("it ran");
    world.append_reports(1_000..20_000).await;
    let start = Instant::now();
    while sink.readiness.missing().is_empty() {
        assert!(start.elapsed() < LIMIT, "still ready");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    world.postgres.restart().expect("Postgres starts again");
    world.eventually(HISTORY, "20000|20000");
    // The topic that has nothing to write notices by itself.
    let start = Instant::now();
    while !sink.readiness.missing().is_empty() {
        assert!(start.elapsed() < LIMIT, "{:?}", sink.readiness.missing());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    sink.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_writes_what_is_buffered() {
    let world = World::new().await;
    let sink = world.sink("", SinkSettings { batch_rows_max: 70, batch_age_ms: 60_000, ..SinkSettings::default() });
    world.append_reports(0..100).await;
    world.eventually(HISTORY, "70|70");
    // Time to read the others, which nothing shows.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.psql(HISTORY), "70|70");
    sink.end().await;
    assert_eq!(world.psql(HISTORY), "100|100");
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_that_were_set_back_with_the_history_are_read_again() {
    let world = World::new().await;
    world.append_reports(0..1_000).await;
    let sink = world.sink("", small());
    world.eventually(HISTORY, "1000|1000");
    world.psql("begin; truncate nearby.location_history; update nearby.sink_offsets set next_offset = 0; commit");
    world.append_reports(1_000..1_100).await;
    world.eventually(HISTORY, "1100|1100");
    // Without its history, an offset that was set back is refused.
    world.psql("delete from nearby.sink_offsets");
    world.append_reports(1_100..1_200).await;
    let error = tokio::time::timeout(LIMIT, sink.task).await.expect("in time").expect("no panic");
    assert!(matches!(error, Err(SinkError::AlreadyInHistory(_))), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offset_outside_the_log_ends_the_sink() {
    let world = World::new().await;
    world.append_reports(0..100).await;
    world.psql("insert into nearby.sink_offsets values ('location-events', 2, 1000)");
    let sink = world.sink("", small());
    let error = tokio::time::timeout(LIMIT, sink.task).await.expect("in time").expect("no panic");
    let error = error.expect_err("there is no such offset").to_string();
    assert!(error.starts_with("offset 1000 of location-events/2 is outside the log"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn friend_lists_are_mirrored() {
    let world = World::new().await;
    let codec = Codec::new();
    let topic = world.kafka.topics.friend_lists();
    let record = |user: i64, friends: Option<&[i64]>| {
        let list = friends.map(|friends| FriendList {
            user_id: UserId(user),
            friends: friends.iter().copied().map(UserId).collect(),
            changed_at: TimestampMs::now(),
        });
        let value = list.map(|list| codec.encode(&list));
        Outgoing { topic: topic.clone(), key: Some(user.to_string().into_bytes()), value, ..Outgoing::default() }
    };
    let astray = |user| Outgoing {
        partition: Some((partition_of(UserId(user), PARTITIONS) + 1) % PARTITIONS),
        ..record(user, Some(&[1]))
    };
    let sink = world.sink("", small());
    world.append(vec![record(1, Some(&[2])), record(2, Some(&[1])), record(3, Some(&[])), record(2, None)]).await;
    world.append(vec![Outgoing { key: Some(b"x".to_vec()), ..record(4, Some(&[])) }, astray(5)]).await;
    let lists = "select user_id, friends from nearby.friend_lists order by 1";
    world.eventually(lists, "1|{2}\n3|{}");
    world.eventually("select sum(next_offset) from nearby.sink_offsets where topic = 'friend-lists'", "6");
    assert_eq!(world.dead_letters(2).len(), 2, "no user, and a user on another user's partition");
    world.append(vec![record(1, None), record(2, Some(&[3]))]).await;
    world.eventually(lists, "2|{3}\n3|{}");
    sink.end().await;
}
