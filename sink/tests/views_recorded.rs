//! The views beside a plain computation in Python (`e2e/python/history.py`), on recorded movement: check-ins in New York
//! with their friendships, and a day of San Francisco's taxis.

mod common;

use common::migrated;
use nearby_e2e::postgres::Postgres;
use nearby_e2e::programs::{python, python_with, root};
use nearby_schemas::codec::Codec;
use nearby_schemas::codecs::Codecs;
use nearby_schemas::{LocationEvent, Position, Source, TimestampMs, UserId};
use nearby_sink::record::{Content, Decoder, Log};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

/// Every view: its columns, the key first, times in milliseconds.
const VIEWS: &[(&str, &str)] = &[
    ("latest_positions", "user_id, ms(reported_at), lat, lon, cell"),
    ("user_days", "user_id, ms(day::timestamp at time zone 'UTC'), fixes, distance_m, ms(first_at), ms(last_at)"),
    ("cell_hours", "cell, ms(hour), fixes, users"),
    ("stays", "user_id, ms(started_at), ms(ended_at), duration_s, fixes, lat, lon"),
    ("encounters", "ms(slot), user_a, user_b, distance_m"),
];

#[tokio::test(flavor = "multi_thread")]
async fn the_views_of_check_ins_are_those_of_a_plain_computation() {
    compare("gowalla-nyc", 106_827).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_views_of_taxis_are_those_of_a_plain_computation() {
    compare("cabspotting-sf", 507_231).await;
}

async fn compare(source: &str, reports: usize) {
    let folder = recorded(source);
    let folder = folder.to_str().expect("a path in UTF-8");
    let (postgres, _database) = migrated().await;
    let rows = python("history.py", &["reports", source, folder]).expect("the reports");
    assert_eq!(rows.lines().count(), reports);
    load(&postgres, &rows);
    load_friends(&postgres, &python("history.py", &["friends", source, folder]).expect("the friendships"));
    let ms = "create function ms(timestamptz) returns bigint immutable return extract(epoch from $1) * 1000";
    postgres.psql(ms).expect("a function");
    for (view, columns) in VIEWS {
        let found = postgres.psql(&format!("select {columns} from nearby.{view}")).expect("the rows of the view");
        let verdict = python_with("history.py", &[view, source, folder], &found).expect("a verdict");
        println!("{source} {view}: {verdict}");
        assert!(verdict.contains(" 0 repeated, 0 wrong") && !verdict.starts_with("0 "), "{source} {view}: {verdict}");
    }
}

/// As the sink understands the records: the cell is its own.
fn load(postgres: &Postgres, reports: &str) {
    let (codec, decoder) = (Codec::<LocationEvent>::new(), Decoder::of(Log::LocationEvents, 16, &Codecs::default()));
    let mut sql =
        "create temporary table report (user_id bigint, ms bigint, lat float8, lon float8, cell bigint, number bigint);
                   copy report from stdin;\n"
            .to_owned();
    for (number, line) in reports.lines().enumerate() {
        let fields: Vec<i64> = line.split(' ').map(|field| field.parse().expect("an integer")).collect();
        let e7 = |at: usize| i32::try_from(fields[at]).expect("a coordinate");
        let position = Position { lat_e7: e7(2), lon_e7: e7(3), accuracy_m: None, speed_mps: None, heading_deg: None };
        let (user_id, time) = (UserId(fields[0]), TimestampMs(fields[1]));
        let (reported_at, received_at) = (time, time);
        let event = LocationEvent { user_id, reported_at, received_at, position: Some(position), source: Source::Http };
        let record = decoder.decode(0, 0, None, Some(&codec.encode(&event)), Some(time));
        let Ok(Content::Reported(LocationEvent { position: Some(position), .. }, Some(cell))) = record.content else {
            panic!("{line} is a report with a place: {record:?}")
        };
        let place = position.place();
        writeln!(sql, "{user_id}\t{}\t{}\t{}\t{cell}\t{number}", time.0, place.lat(), place.lon()).expect("a string");
    }
    sql += "\\.\n
        select format('create table nearby.location_history_%s (like nearby.location_history including all);
                       alter table nearby.location_history attach partition nearby.location_history_%1$s for values from (%L) to (%L)',
                      to_char(day, 'YYYYMMDD'), day || ' UTC', day + 1 || ' UTC')
            from (select distinct (timestamp 'epoch' + ms * interval '1 ms')::date as day from report) as days \\gexec
        insert into nearby.location_history (user_id, reported_at, received_at, lat, lon, cell, topic, kafka_partition, kafka_offset)
            select user_id, at, at, lat, lon, cell, 'location-events', 0, number
            from report, lateral (select timestamptz 'epoch' + ms * interval '1 ms' as at) as moment;
        analyze nearby.location_history";
    postgres.psql(&sql).expect("the reports are loaded");
}

fn load_friends(postgres: &Postgres, friendships: &str) {
    let mut lists: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (user, friend) in friendships.lines().filter_map(|line| line.split_once(' ')) {
        lists.entry(user).or_default().push(friend);
    }
    let mut copy = "copy nearby.friend_lists from stdin;\n".to_owned();
    for (user, friends) in lists {
        writeln!(copy, "{user}\t{{{}}}\t2026-01-01 00:00+00", friends.join(",")).expect("a string");
    }
    postgres.psql(&(copy + "\\.\n")).expect("friend lists");
}

/// `make test` runs these tests only if the recordings are there; `RECORDED` names the folder of the check-ins, the others lie
/// beside it.
fn recorded(source: &str) -> PathBuf {
    let checkins =
        std::env::var_os("RECORDED").map_or_else(|| root().join("../shared/data/gowalla-nyc"), PathBuf::from);
    let folder = checkins.join("..").join(source);
    assert!(folder.is_dir(), "{} is missing: recorded movement, see README", folder.display());
    folder
}
