//! Reports that cannot be, or only just, and logs that cannot be gone on with: each has its end, a row, a dead letter that says
//! why, or a sink that stops and says what to do.

#[path = "common/world.rs"]
mod world;

use nearby_schemas::codec::Codec;
use nearby_schemas::{FriendList, LocationEvent, Position, TimestampMs, UserId};
use nearby_service::append::{Appender, Outgoing};
use nearby_sink::{SinkError, SinkSettings};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use world::{HISTORY, LIMIT, PARTITIONS, Running, World, report, small};

const DAY_MS: i64 = 86_400_000;
const YEAR_2100_MS: i64 = 4_102_444_800_000;

fn at(lat_e7: i32, lon_e7: i32) -> LocationEvent {
    let position = Position { lat_e7, lon_e7, accuracy_m: None, speed_mps: None, heading_deg: None };
    LocationEvent { position: Some(position), ..report(1) }
}

fn of(user: i64) -> LocationEvent {
    report(user)
}

fn reported(at_ms: i64) -> LocationEvent {
    LocationEvent { reported_at: TimestampMs(at_ms), ..report(1) }
}

/// A number's place in the key tells the cases apart.
fn record(world: &World, case: usize, value: Vec<u8>) -> Outgoing {
    let partition = Some(0);
    Outgoing { partition, ..world.outgoing(i64::try_from(case).expect("few cases"), Some(value)) }
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_at_the_limits_are_rows_of_their_days() {
    let world = World::new().await;
    let now_ms = TimestampMs::now().0;
    let mut limits = vec![
        at(900_000_000, 0),
        at(-900_000_000, 1_800_000_000),
        at(0, 1_800_000_000),
        at(0, -1_800_000_000),
        of(0),
        of(i64::MAX),
        // Late, and from a clock that is ahead; the log's own clock is a moment later than ours.
        reported(now_ms - 8 * DAY_MS + 60_000),
        reported(now_ms + DAY_MS - 60_000),
        LocationEvent { position: None, ..report(1) },
    ];
    limits.extend((1..=7).map(|days| reported(now_ms - days * DAY_MS)));
    let codec = Codec::new();
    world
        .append(limits.iter().enumerate().map(|(case, event)| record(&world, case, codec.encode(event))).collect())
        .await;
    let sink = world.sink("", SinkSettings::default());
    world.eventually(HISTORY, &format!("{0}|{0}", limits.len()));
    let rows = world.psql(
        "select kafka_offset, user_id, lat, lon, cell is null, (extract(epoch from reported_at) * 1000)::bigint, \
         tableoid::regclass = format('nearby.location_history_%s', to_char(reported_at at time zone 'UTC', 'YYYYMMDD'))::regclass \
         from nearby.location_history order by 1",
    );
    let expected = limits.iter().enumerate().map(|(offset, event)| {
        let place = event.position.map(|position| position.place());
        let degrees = place.map_or("|".to_owned(), |place| format!("{}|{}", place.lat(), place.lon()));
        let no_cell = if place.is_none() { "t" } else { "f" };
        format!("{offset}|{}|{degrees}|{no_cell}|{}|t", event.user_id.0, event.reported_at.0)
    });
    assert_eq!(rows, expected.collect::<Vec<_>>().join("\n"));
    // Both ways to write the date line are one place, and so are all longitudes of a pole.
    assert_eq!(
        world.psql("select count(distinct cell) from nearby.location_history where kafka_offset in (2, 3)"),
        "1"
    );
    sink.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_beyond_the_limits_are_dead_letters_that_say_why() {
    let world = World::new().await;
    let (codec, now_ms) = (Codec::new(), TimestampMs::now().0);
    // Single-object encodings of a schema that nobody here knows, and of another record; Confluent's, of id 7.
    let good = codec.encode(&report(1));
    let unknown = [&good[..2], &[0x5a; 8], &good[10..]].concat();
    let confluent = [&[0, 0, 0, 0, 7], &good[10..]].concat();
    let list = FriendList { user_id: UserId(1), friends: Vec::new(), changed_at: TimestampMs(now_ms) };
    let cases: [(&str, Vec<u8>); 11] = [
        ("more than 8 days", codec.encode(&reported(0))),
        ("more than 8 days", codec.encode(&reported(-1))),
        ("more than 8 days", codec.encode(&reported(now_ms - 8 * DAY_MS - 60_000))),
        ("more than 1 day", codec.encode(&reported(YEAR_2100_MS))),
        ("more than 1 day", codec.encode(&reported(i64::MAX))),
        ("position out of range", codec.encode(&at(900_000_001, 0))),
        ("position out of range", codec.encode(&at(0, -1_800_000_001))),
        ("user id out of range", codec.encode(&of(-1))),
        ("written with an unknown schema", unknown),
        ("written with an unknown schema", Codec::new().encode(&list)),
        ("Confluent's wire format", confluent),
    ];
    let records = cases.iter().enumerate().map(|(case, (_, value))| record(&world, case, value.clone())).collect();
    world.append(records).await;
    world.append(vec![record(&world, 99, good)]).await;
    let sink = world.sink("", SinkSettings::default());
    world.eventually("select user_id, kafka_offset from nearby.location_history", &format!("1|{}", cases.len()));
    let letters = world.dead_letters(cases.len());
    for (case, (reason, _)) in cases.iter().enumerate() {
        let key = format!("{case} topic=location-events reason=");
        let letter = letters.iter().find_map(|letter| letter.strip_prefix(&key)).unwrap_or_default();
        assert!(letter.contains(reason), "case {case}: {letter:?} does not say {reason:?}");
    }
    sink.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offset_before_the_log_stops_the_sink_and_says_what_to_do() {
    let world = World::with_real_broker().await;
    world.append((0..100).map(|user| Outgoing { partition: Some(0), ..good(&world, user) }).collect()).await;
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &world.kafka.brokers).create().expect("an admin client");
    let mut kept = TopicPartitionList::new();
    kept.add_partition_offset("location-events", 0, Offset::Offset(50)).expect("an offset");
    admin.delete_records(&kept, &AdminOptions::new()).await.expect("deleted, as retention does it");
    world.psql("insert into nearby.sink_offsets values ('location-events', 0, 10)");
    let error = stopped(&world, world.sink("", small())).await;
    assert!(matches!(error, SinkError::OutOfLog { next_offset: 10, first: 50, end: 100, .. }), "{error:?}");
    let text = error.to_string();
    assert!(
        text.contains("offset 10 of location-events/0 is outside the log") && text.contains("sink_offsets"),
        "{text}"
    );
    assert_eq!(world.psql(HISTORY), "0|0");
    // What it says helps.
    world.psql("delete from nearby.sink_offsets");
    let sink = world.sink("", small());
    world.eventually(HISTORY, "50|50");
    sink.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_was_made_anew_stops_the_sink_and_says_what_to_do() {
    let world = World::with_real_broker().await;
    let reports = |users: std::ops::Range<i64>| {
        users.map(|user| Outgoing { partition: Some(0), ..good(&world, user) }).collect::<Vec<_>>()
    };
    world.append(reports(0..100)).await;
    let sink = world.sink("", small());
    world.eventually(HISTORY, "100|100");
    sink.end().await;
    // The same log is gone on with, also when the record that was written last is gone meanwhile.
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &world.kafka.brokers).create().expect("an admin client");
    let mut kept = TopicPartitionList::new();
    kept.add_partition_offset("location-events", 0, Offset::End).expect("an offset");
    admin.delete_records(&kept, &AdminOptions::new()).await.expect("deleted, as retention does it");
    world.append(reports(100..110)).await;
    let sink = world.sink("", small());
    world.eventually(HISTORY, "110|110");
    sink.end().await;
    let sink = world.sink("", small());
    world.append(reports(110..119)).await;
    // Who stops sharing in the old log shares again in the new one, where offsets are smaller.
    let now = TimestampMs::now();
    let hour_ago = now.plus_ms(-3_600_000);
    let shared_at = |at, position| LocationEvent { reported_at: at, received_at: at, position, ..report(7) };
    let of_seven = |event: &LocationEvent| {
        vec![Outgoing { partition: Some(0), ..world.outgoing(7, Some(Codec::new().encode(event))) }]
    };
    world.append(of_seven(&shared_at(hour_ago, None))).await;
    world.eventually(HISTORY, "120|120");
    sink.end().await;

    admin.delete_topics(&["location-events"], &AdminOptions::new()).await.expect("deleted");
    let topics = world.kafka.topics.standing(PARTITIONS);
    let topic = topics.iter().find(|topic| topic.name == "location-events").expect("it is one of them");
    while world.kafka.create_topic(topic).await.is_err() {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let appender = Appender::new(&world.kafka).expect("a producer that knows no other topic");
    appender.append(of_seven(&shared_at(now, report(7).position)).into_iter()).await.expect("acknowledged");
    appender.append(reports(200..349).into_iter()).await.expect("acknowledged");
    let error = stopped(&world, world.sink("", small())).await;
    assert!(matches!(error, SinkError::AnotherLog { partition: 0, offset: 119, .. }), "{error:?}");
    assert_eq!(world.psql(HISTORY), "120|120");
    let text = error.to_string();
    let (_, helps) = text.split_once("to write it from its first record on, ").expect("what helps");
    let (helps, _) = helps.split_once(". If a broker lost the end").expect("or the other");
    world.psql(helps);
    let sink = world.sink("", small());
    world.eventually("select count(*) from nearby.location_history", "270");
    sink.end().await;
    assert_eq!(world.psql("select count(*) from nearby.latest_positions where user_id = 7"), "1");
}

/// A marker at the end of a transaction takes an offset, and is no record.
#[tokio::test(flavor = "multi_thread")]
async fn a_gap_in_the_log_stops_the_sink_and_says_what_to_do() {
    let world = World::with_real_broker().await;
    world.append((0..10).map(|user| Outgoing { partition: Some(0), ..good(&world, user) }).collect()).await;
    // What is before the gap waits for company when the gap is met.
    let sink = world.sink("", SinkSettings { batch_rows_max: 10, batch_age_ms: 60_000, ..SinkSettings::default() });
    world.eventually(HISTORY, "10|10");
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &world.kafka.brokers).set("transactional.id", "somebody");
    let producer: BaseProducer = config.create().expect("a producer");
    producer.init_transactions(LIMIT).expect("transactions");
    producer.begin_transaction().expect("begun");
    let value = Codec::new().encode(&report(10));
    let sent = BaseRecord::<[u8], _>::to("location-events").partition(0).payload(&value);
    producer.send(sent).map_err(|(error, _)| error).expect("sent");
    producer.commit_transaction(LIMIT).expect("committed");
    // The broker says so before it has written the marker.
    while producer.client().fetch_watermarks("location-events", 0, LIMIT).expect("watermarks").1 < 12 {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    world.append((11..20).map(|user| Outgoing { partition: Some(0), ..good(&world, user) }).collect()).await;
    let error = stopped(&world, sink).await;
    assert!(matches!(error, SinkError::Gap { partition: 0, expected: 11, found: 12, .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("set next_offset in nearby.sink_offsets from 11 to 12"), "{text}");
    // All before the gap is written, and nothing behind it; what it says helps.
    assert_eq!(world.psql(HISTORY), "11|11");
    assert_eq!(world.psql("update nearby.sink_offsets set next_offset = 12 where next_offset = 11 returning 1"), "1");
    let sink = world.sink("", small());
    world.eventually(HISTORY, "20|20");
    sink.end().await;
}

fn good(world: &World, user: i64) -> Outgoing {
    world.outgoing(user, Some(Codec::new().encode(&report(user))))
}

async fn stopped(world: &World, sink: Running) -> SinkError {
    let Ok(ended) = tokio::time::timeout(LIMIT, sink.task).await else {
        let (offsets, missing) = (world.psql("table nearby.sink_offsets"), sink.readiness.missing());
        panic!("it goes on: {} rows, offsets {offsets}, not ready {missing:?}", world.psql(HISTORY));
    };
    ended.expect("no panic").expect_err("it cannot go on")
}
