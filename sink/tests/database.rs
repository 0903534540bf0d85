//! Migrations, partitions and transactions on a real Postgres.

mod common;

use common::migrated;
use nearby_e2e::postgres::Postgres;
use nearby_schemas::{FriendList, LocationEvent, Position, Source, TimestampMs, UserId};
use nearby_sink::batch::{Advance, Batcher, Item};
use nearby_sink::record::{Content, Log, Record};
use nearby_sink::write::{Mark, Session, WriteError, Written};
use nearby_sink::{SinkError, connect};
use sqlx::{Connection, Executor, PgConnection};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

const TOPIC: &str = "location-events";
/// 2026-01-15 12:00:00 UTC.
const NOON: TimestampMs = TimestampMs(1_768_478_400_000);

/// A row of that day.
const INSERTED: &str = "INSERT INTO nearby.location_history (user_id, reported_at, received_at, topic, kafka_partition, kafka_offset) \
                        VALUES ($1, '2026-01-15 12:00+00', now(), 'location-events', 0, 0)";

async fn session(postgres: &Postgres) -> Session {
    Session::new(PgConnection::connect(&postgres.url()).await.expect("a connection"))
}

fn event(user: i64, position: Option<Position>) -> Content {
    let (reported_at, received_at) = (NOON, NOON.plus_ms(1));
    let event = LocationEvent { user_id: UserId(user), reported_at, received_at, position, source: Source::Http };
    Content::Reported(event, position.map(|_| 0x0892_8308_2803_ffff))
}

/// These contents as one batch of partition 0, from an offset.
fn batch(first: i64, contents: Vec<Content>) -> Batcher {
    let mut batcher = Batcher::new(true, 1_000, Duration::ZERO);
    batcher.own(0, Some(first));
    for (content, offset) in contents.into_iter().zip(first..) {
        let record = Record {
            partition: 0,
            offset,
            appended_at: Some(NOON.plus_ms(offset)),
            key: None,
            value: None,
            content: Ok(content),
        };
        batcher.take(record, Instant::now()).expect("no gap");
    }
    batcher
}

fn items(batcher: &Batcher) -> impl Iterator<Item = &Item> + Send {
    let attempt = batcher.attempt();
    batcher.items(&attempt).collect::<Vec<_>>().into_iter()
}

async fn write(session: &mut Session, batcher: &Batcher, held: Option<i64>) -> Result<Written, WriteError> {
    let advances = batcher.attempt().advances.into_iter().map(|advance| Advance { held, ..advance });
    session.ensure_days(items(batcher), NOON).await?;
    session.write(Log::LocationEvents, TOPIC, items(batcher), &advances.collect::<Vec<_>>()).await
}

fn psql(postgres: &Postgres, sql: &str) -> String {
    postgres.psql(sql).expect("Postgres answers")
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_arrive_as_they_were_sent_nulls_too() {
    let (postgres, _database) = migrated().await;
    let mut session = session(&postgres).await;
    let (lat_e7, lon_e7) = (377_749_001, -1_224_194_002);
    let full = Position { lat_e7, lon_e7, accuracy_m: Some(12.5), speed_mps: Some(0.1), heading_deg: Some(359.5) };
    let bare = Position { lat_e7, lon_e7, accuracy_m: None, speed_mps: None, heading_deg: None };
    let batcher = batch(5, vec![event(1, Some(full)), event(2, Some(bare)), event(i64::MAX, None)]);
    assert_eq!(write(&mut session, &batcher, None).await, Ok(Written::Rows(3)));
    let rows = psql(&postgres, "set timezone to 'UTC'; table nearby.location_history order by kafka_offset");
    expect_test::expect![[r#"
        1|2026-01-15 12:00:00+00|2026-01-15 12:00:00.001+00|37.7749001|-122.4194002|12.5|0.1|359.5|617700169957507071|location-events|0|5
        2|2026-01-15 12:00:00+00|2026-01-15 12:00:00.001+00|37.7749001|-122.4194002||||617700169957507071|location-events|0|6
        9223372036854775807|2026-01-15 12:00:00+00|2026-01-15 12:00:00.001+00|||||||location-events|0|7"#]]
    .assert_eq(&rows);
    let offsets = psql(&postgres, "table nearby.sink_offsets");
    assert_eq!(offsets, format!("location-events|0|8|7|{}", NOON.0 + 7));
    let mark = Mark { offset: 7, appended_at: NOON.plus_ms(7) };
    assert_eq!(session.offsets(TOPIC).await, Ok(([(0, 8)].into(), [(0, mark)].into())));
    psql(&postgres, "update nearby.sink_offsets set next_offset = 7");
    assert_eq!(session.offsets(TOPIC).await, Ok(([(0, 7)].into(), BTreeMap::new())), "set by hand");
    assert_eq!(
        psql(&postgres, "select distinct tableoid::regclass from nearby.location_history"),
        "location_history_20260115"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_day_whose_removal_was_interrupted_takes_rows_again() {
    let (postgres, _database) = migrated().await;
    assert_eq!(write(&mut session(&postgres).await, &batch(0, vec![event(1, None)]), None).await, Ok(Written::Rows(1)));
    let detach = "alter table nearby.location_history detach partition nearby.location_history_20260115";

    // Half detached: somebody read it.
    let mut reader = PgConnection::connect(&postgres.url()).await.expect("a connection");
    let mut reading = reader.begin().await.expect("begins");
    reading.execute("select count(*) from nearby.location_history").await.expect("reads");
    let mut retain = PgConnection::connect(&postgres.url()).await.expect("a connection");
    retain.execute("set lock_timeout = 200").await.expect("is set");
    assert!(retain.execute(sqlx::AssertSqlSafe(format!("{detach} concurrently"))).await.is_err());
    reading.rollback().await.expect("ends");
    assert_eq!(psql(&postgres, "select count(*) from pg_inherits where inhdetachpending"), "1");
    let batcher = batch(1, vec![event(2, None)]);
    assert_eq!(write(&mut session(&postgres).await, &batcher, Some(1)).await, Ok(Written::Rows(1)));
    assert_eq!(psql(&postgres, "select count(*) from nearby.location_history"), "2");

    // Half detached again, and many sinks want it back at once.
    let mut reading = reader.begin().await.expect("begins");
    reading.execute("select count(*) from nearby.location_history").await.expect("reads");
    assert!(retain.execute(sqlx::AssertSqlSafe(format!("{detach} concurrently"))).await.is_err());
    let mut sinks = Vec::new();
    for _ in 0..4 {
        let mut session = session(&postgres).await;
        sinks.push(tokio::spawn(async move { session.ensure_days(std::iter::empty(), NOON).await }));
    }
    // By now one of them is at it, and waits for the reader; the others wait for the one.
    tokio::time::sleep(Duration::from_secs(1)).await;
    reading.rollback().await.expect("ends");
    for sink in sinks {
        assert_eq!(sink.await.expect("no panic"), Ok(()), "no deadlock");
    }
    assert_eq!(psql(&postgres, "select count(*) from nearby.location_history"), "2");

    // Detached, but not dropped.
    psql(&postgres, detach);
    let batcher = batch(2, vec![event(3, None)]);
    assert_eq!(write(&mut session(&postgres).await, &batcher, Some(2)).await, Ok(Written::Rows(1)));
    assert_eq!(psql(&postgres, "select count(*) from nearby.location_history"), "3");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_writers_one_loses_and_writes_nothing() {
    let (postgres, _database) = migrated().await;
    let (mut first, mut second) = (session(&postgres).await, session(&postgres).await);
    let ten = |user| batch(0, vec![event(user, None); 10]);
    for (held, next) in [(None, 10), (Some(10), 20)] {
        let mut batchers = [ten(1), ten(2)];
        if let Some(held) = held {
            batchers = [batch(held, vec![event(1, None); 10]), batch(held, vec![event(2, None); 10])];
        }
        let (a, b) = tokio::join!(write(&mut first, &batchers[0], held), write(&mut second, &batchers[1], held));
        let mut results = [a.expect("no error"), b.expect("no error")];
        results.sort_by_key(|result| *result == Written::Lost(vec![0]));
        assert_eq!(results, [Written::Rows(10), Written::Lost(vec![0])], "{held:?}");
        assert_eq!(
            psql(&postgres, "select count(*), count(distinct kafka_offset) from nearby.location_history"),
            format!("{next}|{next}")
        );
        assert_eq!(first.offsets(TOPIC).await.expect("no error").0.get(&0), Some(&next));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_is_lost_keeps_the_others_from_advancing() {
    let (postgres, _database) = migrated().await;
    let mut writer = session(&postgres).await;
    psql(&postgres, "insert into nearby.sink_offsets values ('location-events', 0, 5), ('location-events', 1, 7)");
    let batcher = batch(5, vec![event(1, None)]);
    let lost = Advance { partition: 1, held: Some(6), next: 8, appended_at: None };
    let new = Advance { partition: 2, held: None, next: 1, appended_at: None };
    for others in [vec![lost], vec![lost, new]] {
        let advances = [batcher.attempt().advances, others].concat();
        let written = writer.write(Log::LocationEvents, TOPIC, items(&batcher), &advances).await;
        assert_eq!(written, Ok(Written::Lost(vec![1])));
        assert_eq!(psql(&postgres, "select array_agg(next_offset order by 1) from nearby.sink_offsets"), "{5,7}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_told_apart() {
    let (postgres, _database) = migrated().await;
    let mut writer = session(&postgres).await;
    psql(&postgres, "alter table nearby.location_history add constraint not_seven check (user_id <> 7)");
    let refused = write(&mut writer, &batch(0, vec![event(1, None), event(7, None)]), None).await;
    let Err(WriteError::Refused(reason)) = refused else { panic!("{refused:?}") };
    assert!(reason.contains("not_seven") && !reason.contains("Failing row"), "{reason}");
    assert_eq!(psql(&postgres, "select count(*) from nearby.location_history"), "0");
    assert_eq!(psql(&postgres, "select count(*) from nearby.sink_offsets"), "0");

    // The connection is good for more.
    assert_eq!(write(&mut writer, &batch(0, vec![event(1, None)]), None).await, Ok(Written::Rows(1)));
    psql(&postgres, "delete from nearby.sink_offsets");
    let again = write(&mut writer, &batch(0, vec![event(1, None)]), None).await;
    assert!(matches!(again, Err(WriteError::AlreadyInHistory(_))), "{again:?}");

    // A partition that somebody dropped is made again by the next session.
    psql(&postgres, "drop table nearby.location_history_20260115");
    let gone = write(&mut writer, &batch(0, vec![event(1, None)]), None).await;
    assert!(matches!(gone, Err(WriteError::Away(_))), "{gone:?}");
    let mut writer = session(&postgres).await;
    assert_eq!(write(&mut writer, &batch(0, vec![event(1, None)]), None).await, Ok(Written::Rows(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_friend_list_wins_and_a_tombstone_removes_it() {
    let (postgres, _database) = migrated().await;
    let mut session = session(&postgres).await;
    let list = |user, friends: &[i64]| {
        let friends = friends.iter().copied().map(UserId).collect();
        Content::Listed(FriendList { user_id: UserId(user), friends, changed_at: NOON })
    };
    let none = |user| Content::Unlisted(UserId(user));
    for (first, contents, expected) in [
        (0, vec![list(1, &[2, 3]), list(2, &[]), list(3, &[1]), list(3, &[2])], "1|{2,3}\n2|{}\n3|{2}"),
        (4, vec![none(2), list(1, &[4]), none(4), list(3, &[9]), none(3)], "1|{4}"),
        (9, vec![none(1), list(1, &[5]), list(2, &[1])], "1|{5}\n2|{1}"),
    ] {
        let batcher = batch(first, contents);
        let held = (first > 0).then_some(first);
        let advances = [Advance { held, ..batcher.attempt().advances[0] }];
        let written = session.write(Log::FriendLists, "friend-lists", items(&batcher), &advances).await;
        assert!(matches!(written, Ok(Written::Rows(_))), "{written:?}");
        assert_eq!(psql(&postgres, "select user_id, friends from nearby.friend_lists order by 1"), expected);
    }
    let offsets = psql(&postgres, "table nearby.sink_offsets");
    assert_eq!(offsets, format!("friend-lists|0|12|11|{}", NOON.0 + 11));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_start_at_once_and_all_of_them_make_the_same_partitions() {
    let postgres = Postgres::start().expect("Postgres starts");
    let database = connect(&postgres.url()).await.expect("it lets us in");
    let migrations: Vec<_> = (0..4)
        .map(|_| {
            let database = database.clone();
            tokio::spawn(async move { database.migrate().await })
        })
        .collect();
    for migration in migrations {
        migration.await.expect("no panic").expect("no collision");
    }
    let mut tasks = Vec::new();
    for _ in 0..8 {
        let mut session = session(&postgres).await;
        tasks.push(tokio::spawn(async move { session.ensure_days(std::iter::empty(), NOON).await }));
    }
    for task in tasks {
        task.await.expect("no panic").expect("no collision");
    }
    let partitions =
        "select inhrelid::regclass from pg_inherits where inhparent = 'nearby.location_history'::regclass order by 1";
    assert_eq!(psql(&postgres, partitions), "location_history_20260115\nlocation_history_20260116");
    // The key and the two indexes of the partition are those of the parent, not second ones.
    let indexes = "select count(*) from pg_index where indrelid = 'nearby.location_history_20260115'::regclass";
    assert_eq!(psql(&postgres, indexes), "3");
    let migrations = std::fs::read_dir("migrations").expect("the crate's folder").count();
    assert_eq!(psql(&postgres, "select count(*) from nearby._sqlx_migrations"), migrations.to_string());
}

/// As an analyst who reads for long what a migration changes.
#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_finds_others_locks_is_tried_again() {
    let (postgres, database) = migrated().await;
    psql(&postgres, "delete from nearby._sqlx_migrations where version = 6; drop function nearby.listed_by");
    psql(&postgres, "drop index nearby.friend_lists_friends");
    let mut holder = PgConnection::connect(&postgres.url()).await.expect("a connection");
    let mut holding = holder.begin().await.expect("a transaction");
    sqlx::query("LOCK TABLE nearby.friend_lists").execute(&mut *holding).await.expect("a lock");
    let migrating = tokio::spawn(async move { database.migrate().await });
    let waiting = "select pid from pg_locks where not granted and relation = 'nearby.friend_lists'::regclass";
    let mut tries = BTreeSet::new();
    let start = Instant::now();
    while tries.len() < 2 {
        tries.extend(psql(&postgres, waiting).lines().map(str::to_owned));
        assert!(start.elapsed() < Duration::from_secs(30) && !migrating.is_finished(), "tried by {tries:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    holding.rollback().await.expect("ended");
    migrating.await.expect("no panic").expect("migrated");
    assert_eq!(psql(&postgres, "select count(*) from nearby._sqlx_migrations where version = 6"), "1");
    assert_eq!(psql(&postgres, "select to_regclass('nearby.friend_lists_friends') is not null"), "t");
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_made_while_others_read_and_write() {
    let (postgres, _database) = migrated().await;
    let mut writer = session(&postgres).await;
    writer.ensure_days(std::iter::empty(), NOON).await.expect("partitions");
    // Both go on for long: an analyst's query, and another sink's batch, into a partition that is there.
    let mut reader = PgConnection::connect(&postgres.url()).await.expect("a connection");
    let mut reading = reader.begin().await.expect("a transaction");
    sqlx::query("SELECT count(*) FROM nearby.location_history").execute(&mut *reading).await.expect("rows");
    let mut other = PgConnection::connect(&postgres.url()).await.expect("a connection");
    let mut writing = other.begin().await.expect("a transaction");
    sqlx::query(INSERTED).bind(1_i64).execute(&mut *writing).await.expect("a row");

    let (day, limit) = (NOON.plus_ms(-7 * 86_400_000), Duration::from_secs(5));
    let made = tokio::time::timeout(limit, writer.ensure_days(std::iter::empty(), day)).await;
    assert_eq!(made, Ok(Ok(())));
    assert_eq!(
        psql(&postgres, "select count(*) from pg_inherits where inhparent = 'nearby.location_history'::regclass"),
        "4"
    );
    writing.commit().await.expect("committed");
    reading.commit().await.expect("committed");
}

/// As ANALYZE by hand does, or another sink that attaches.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_behind_a_partition_that_cannot_be_attached_yet() {
    let (postgres, _database) = migrated().await;
    let mut waiting = session(&postgres).await;
    waiting.ensure_days(std::iter::empty(), NOON).await.expect("partitions");
    let mut holder = PgConnection::connect(&postgres.url()).await.expect("a connection");
    let mut holding = holder.begin().await.expect("a transaction");
    let lock = "LOCK TABLE nearby.location_history IN SHARE UPDATE EXCLUSIVE MODE";
    sqlx::query(lock).execute(&mut *holding).await.expect("a lock");

    let day = NOON.plus_ms(-7 * 86_400_000);
    let attaching = tokio::spawn(async move { waiting.ensure_days(std::iter::empty(), day).await });
    let start = Instant::now();
    while psql(
        &postgres,
        "select count(*) from pg_locks where not granted and relation = 'nearby.location_history'::regclass",
    ) == "0"
    {
        assert!(start.elapsed() < Duration::from_secs(10), "it does not wait for the lock");
    }
    psql(&postgres, "set lock_timeout = '2s'; select count(*) from nearby.location_history");
    psql(&postgres, &format!("set lock_timeout = '2s'; {}", INSERTED.replace("$1", "1")));
    assert!(!attaching.is_finished(), "it waits still");
    holding.commit().await.expect("committed");
    assert_eq!(attaching.await.expect("no panic"), Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_to_connect_say_where_and_why_but_never_the_password() {
    let postgres = Postgres::start().expect("Postgres starts");
    let url = postgres.url();
    let (_, server) = url.split_once('@').expect("it has a password");
    for (url, expected) in [
        (format!("postgresql://nearby:secret@{server}"), "password authentication failed"),
        (format!("{url}-not-there"), "does not exist"),
        ("postgresql://nearby:secret@127.0.0.1:1/nearby".to_owned(), "Connection refused"),
        ("postgresql://nearby:secret@127.0.0.1:port/nearby".to_owned(), "invalid port number"),
        ("postgresql://nearby:secret@127.0.0.1/nearby?sslmode=perhaps".to_owned(), "unknown value"),
        ("mysql://nearby:secret@127.0.0.1/nearby".to_owned(), "postgresql://"),
    ] {
        let start = Instant::now();
        let error = connect(&url).await.expect_err("it can't be used").to_string();
        assert!(start.elapsed() < Duration::from_secs(6));
        assert!(
            error.contains(expected)
                && !error.contains("configuration")
                && !error.contains("secret")
                && !error.contains('\n'),
            "{url}: {error}"
        );
    }
    // Somebody who listens and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = silent.local_addr().expect("an address");
    let error = connect(&format!("postgresql://nearby:secret@{address}/nearby")).await.expect_err("no answer");
    assert!(matches!(error, SinkError::DatabaseUnreachable { .. }));
    assert_eq!(error.to_string(), format!("Postgres at {address}/nearby cannot be used: no answer within 5 s"));
}
