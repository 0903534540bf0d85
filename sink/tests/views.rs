//! The views, on rows with known answers.

mod common;

use common::migrated;
use nearby_e2e::postgres::Postgres;

/// A degree of latitude in metres: 2π · 6371008.8 / 360.
const DEGREE_M: f64 = 111_195.080_233_532_9;

fn psql(postgres: &Postgres, sql: &str) -> String {
    postgres.psql(&format!("set timezone to 'UTC'; {sql}")).expect("Postgres answers")
}

/// Rows `(user, time, lat, lon)`; a time is on 2026-01-15 unless it has a date; no latitude is a withdrawal.
fn insert(postgres: &Postgres, rows: &[(i64, &str, Option<f64>, f64)]) {
    let day = |day: &str| {
        format!(
            "create table if not exists nearby.location_history_{day} partition of nearby.location_history \
         for values from ('{day} 00:00+00') to (timestamptz '{day} 00:00+00' + interval '1 day');"
        )
    };
    let mut sql = day("20260115") + &day("20260116");
    for (user, time, lat, lon) in rows {
        let time = if time.contains(' ') { (*time).to_owned() } else { format!("2026-01-15 {time}") };
        let place = lat.map_or("null, null, null".to_owned(), |lat| format!("{lat}, {lon}, 77"));
        let next = "(select count(*) from nearby.location_history)";
        sql += &format!(
            "insert into nearby.location_history (user_id, reported_at, received_at, lat, lon, cell, topic, kafka_partition, kafka_offset)
             values ({user}, '{time}+00', '{time}+00', {place}, 't', 0, {next});"
        );
    }
    psql(postgres, &sql);
}

fn near(text: &str, metres: f64) {
    let found: f64 = text.parse().expect("a number");
    assert!((found - metres).abs() < 0.001, "{found} is not {metres}");
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_has_a_comment() {
    let (postgres, _database) = migrated().await;
    let bare = psql(
        &postgres,
        "select c.relname, a.attname from pg_class c left join pg_attribute a on a.attrelid = c.oid and a.attnum > 0
         where c.relnamespace = 'nearby'::regnamespace and c.relkind in ('r', 'p', 'v', 'c') and c.relname <> '_sqlx_migrations'
           and (col_description(c.oid, a.attnum) is null
                or coalesce(obj_description(c.oid, 'pg_class'), obj_description(c.reltype, 'pg_type')) is null)",
    );
    assert_eq!(bare, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn distances() {
    let (postgres, _database) = migrated().await;
    let distance = |arguments: &str| psql(&postgres, &format!("select nearby.distance_m({arguments})"));
    near(&distance("0, 0, 1, 0"), DEGREE_M);
    near(&distance("0, 179.5, 0, -179.5"), DEGREE_M);
    near(&distance("0, 0, 0, 180"), 180.0 * DEGREE_M);
    near(&distance("37.5, -122, -37.5, 58"), 180.0 * DEGREE_M);
    near(&distance("12.3456789, 98.7654321, 12.3456789, 98.7654321"), 0.0);
    for null in ["null, 0, 1, 0", "0, null, 1, 0", "0, 0, null, 0", "0, 0, 1, null", "null, null, null, null"] {
        assert_eq!(distance(null), "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn latest_positions_are_of_those_who_share() {
    let (postgres, _database) = migrated().await;
    insert(
        &postgres,
        &[
            // Out of order; of two with the same time the later in the log counts.
            (1, "12:00", Some(10.0), 0.0),
            (1, "12:00", Some(11.0), 0.0),
            (1, "11:00", Some(12.0), 0.0),
            (2, "12:00", Some(20.0), 0.0),
            (2, "12:01", None, 0.0),
            (3, "12:00", None, 0.0),
            (3, "2026-01-16 00:00", Some(30.0), 1.0),
            // A phone ahead of the server: its withdrawal has an earlier time, and counts.
            (4, "12:00:20", Some(40.0), 0.0),
            (4, "12:00:05", None, 0.0),
            // Delayed reports do not undo a withdrawal, not even one of the same time.
            (5, "12:00", None, 0.0),
            (5, "11:59", Some(50.0), 0.0),
            (5, "12:00", Some(51.0), 0.0),
            // Nor does a report that is sent again.
            (6, "12:00:20", Some(60.0), 0.0),
            (6, "12:00:05", None, 0.0),
            (6, "12:00:20", Some(60.0), 0.0),
            // In another partition: what was first, their times say.
            (7, "12:00:20", Some(70.0), 0.0),
            (7, "12:00:05", None, 0.0),
        ],
    );
    psql(&postgres, "update nearby.location_history set kafka_partition = 1 where user_id = 7 and lat is null");
    let rows = psql(&postgres, "select user_id, reported_at, lat, lon from nearby.latest_positions order by 1");
    assert_eq!(rows, "1|2026-01-15 12:00:00+00|11|0\n3|2026-01-16 00:00:00+00|30|1\n7|2026-01-15 12:00:20+00|70|0");
}

#[tokio::test(flavor = "multi_thread")]
async fn user_days_and_cell_hours_count_a_repeated_report_once() {
    let (postgres, _database) = migrated().await;
    insert(
        &postgres,
        &[
            (1, "23:00", Some(0.0), 0.0),
            (1, "23:20", Some(0.02), 0.0),
            (1, "23:10", Some(0.01), 0.0),
            (1, "23:20", Some(0.02), 0.0),
            (1, "23:30", None, 0.0),
            (1, "23:59:59.999", Some(0.0), 0.0),
            (1, "2026-01-16 00:00", Some(1.0), 0.0),
            (2, "23:00", Some(0.0), 0.0),
        ],
    );
    let days = psql(
        &postgres,
        "select user_id, day, fixes, round(distance_m), first_at, last_at from nearby.user_days order by 1, 2",
    );
    expect_test::expect![[r#"
        1|2026-01-15|4|4448|2026-01-15 23:00:00+00|2026-01-15 23:59:59.999+00
        1|2026-01-16|1|0|2026-01-16 00:00:00+00|2026-01-16 00:00:00+00
        2|2026-01-15|1|0|2026-01-15 23:00:00+00|2026-01-15 23:00:00+00"#]]
    .assert_eq(&days);
    near(&psql(&postgres, "select distance_m from nearby.user_days where user_id = 1 and fixes = 4"), 0.04 * DEGREE_M);
    let hours = psql(&postgres, "table nearby.cell_hours order by 2");
    assert_eq!(hours, "77|2026-01-15 23:00:00+00|5|2\n77|2026-01-16 00:00:00+00|1|1");
}

#[tokio::test(flavor = "multi_thread")]
async fn stays_last_ten_minutes_within_200_m_of_where_they_began() {
    let (postgres, _database) = migrated().await;
    let metres = |metres: f64| Some(metres / DEGREE_M);
    insert(
        &postgres,
        &[
            // Slowly away: each step is short, but the third fix is too far from the first one and begins the next run.
            (1, "12:00", metres(0.0), 0.0),
            (1, "12:09:59", metres(150.0), 0.0),
            (1, "12:11", metres(250.0), 0.0),
            (1, "12:16", metres(440.0), 0.0),
            (1, "12:16", metres(440.0), 0.0),
            (1, "12:21", metres(60.0), 0.0),
            (1, "12:22", metres(900.0), 0.0),
            // Away and back again: two visits, neither long enough.
            (2, "12:00", metres(0.0), 0.0),
            (2, "12:06", metres(500.0), 0.0),
            (2, "12:12", metres(0.0), 0.0),
            // Exactly ten minutes, 199.9 m.
            (3, "12:00", metres(0.0), 0.0),
            (3, "12:10", metres(199.9), 0.0),
            (4, "12:00", metres(0.0), 0.0),
            (4, "12:10", metres(200.1), 0.0),
        ],
    );
    let rows = psql(
        &postgres,
        "select user_id, started_at::time, ended_at::time, duration_s, fixes, round(lat * 111195), lon from nearby.stays order by 1",
    );
    assert_eq!(rows, "1|12:11:00|12:21:00|600|3|250|0\n3|12:00:00|12:10:00|600|2|0|0");
}

#[tokio::test(flavor = "multi_thread")]
async fn encounters_are_of_friends_within_8_km_in_the_same_slot() {
    let (postgres, _database) = migrated().await;
    // 1 and 2 list each other, 3 lists 1 and itself; 4 is nobody's friend.
    psql(
        &postgres,
        "insert into nearby.friend_lists values (1, '{2}', now()), (2, '{1}', now()), (3, '{1,3}', now()), (4, '{}', now())",
    );
    let km = |km: f64| Some(km * 1000.0 / DEGREE_M);
    insert(
        &postgres,
        &[
            (1, "12:00", km(0.0), 0.0),
            (2, "12:09:59", km(7.999), 0.0),
            (3, "12:05", km(-8.001), 0.0),
            (4, "12:05", km(0.0), 0.0),
            // They were near once in the slot, and far at its end.
            (1, "12:10", km(0.0), 0.0),
            (1, "12:11", km(100.0), 0.0),
            (2, "12:12", km(100.5), 0.0),
            (2, "12:19", km(0.0), 0.0),
            (3, "12:19", km(-1.0), 0.0),
            // The next slot.
            (1, "12:29:59", km(0.0), 0.0),
            (2, "12:30", km(0.0), 0.0),
        ],
    );
    let rows =
        psql(&postgres, "select slot::time, user_a, user_b, round(distance_m) from nearby.encounters order by 1, 2, 3");
    assert_eq!(rows, "12:00:00|1|2|7999\n12:10:00|1|2|0\n12:10:00|1|3|1000");
}
