//! What is asked of a view reaches the table: other days' partitions stay unread, and one user is found by the index. By plans,
//! not by time.

mod common;

use common::migrated;
use nearby_e2e::movement::Movement;
use nearby_e2e::postgres::Postgres;
use std::collections::BTreeSet;

/// 2026-01-05.
const FIRST_DAY: i64 = 20_458;
/// Partitions that are read to see from when to when there is history.
const SPAN: [&str; 2] = ["20260105", "20260111"];

async fn a_week() -> Postgres {
    let (postgres, _database) = migrated().await;
    let movement = Movement { users: 200, days: 6, fixes_per_day: 50, first_day: FIRST_DAY, seed: 1 };
    postgres.psql(&movement.partitions_sql()).expect("partitions");
    for day in 0..movement.days {
        postgres.psql(&movement.day_sql(day)).expect("a day");
    }
    postgres.psql(&movement.friends_sql()).expect("friend lists");
    postgres.psql("vacuum analyze nearby.location_history; analyze nearby.friend_lists").expect("analysed");
    postgres
}

/// The plan's lines that were executed.
fn executed(postgres: &Postgres, question: &str) -> Vec<String> {
    let plan = postgres.psql(&format!("set timezone to 'UTC'; explain (analyze, costs off, timing off) {question}"));
    plan.expect("a plan").lines().filter(|line| !line.contains("never executed")).map(str::to_owned).collect()
}

/// The days whose partitions were read.
fn days_read(plan: &[String]) -> BTreeSet<&str> {
    let days = plan.iter().filter_map(|line| line.split_once(" on location_history_")?.1.get(..8));
    days.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_about_a_time_reads_its_partition_alone() {
    let postgres = a_week().await;
    for question in [
        "select * from nearby.fixes where reported_at >= '2026-01-08' and reported_at < '2026-01-09'",
        "select * from nearby.user_days where day = '2026-01-08'",
        "select * from nearby.user_days where day = (timestamptz '2026-01-07 12:00' + interval '1 day')::date",
        "select * from nearby.user_days where user_id = 7 and day = '2026-01-08'",
        "select * from nearby.cell_hours where hour = '2026-01-08 12:00'",
        "select * from nearby.cell_hours where hour >= '2026-01-08' and hour < '2026-01-09'",
        "select * from nearby.cell_hours_k(5) where hour >= '2026-01-08' and hour < '2026-01-09'",
        "select * from nearby.encounters where slot = '2026-01-08 12:10'",
    ] {
        let plan = executed(&postgres, question);
        let mut read = days_read(&plan);
        assert!(read.remove("20260108"), "{question}\n{}", plan.join("\n"));
        assert!(read.iter().all(|day| SPAN.contains(day)), "{question} reads {read:?}\n{}", plan.join("\n"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_about_a_user_reads_rows_of_that_user_alone() {
    let postgres = a_week().await;
    for question in [
        "select * from nearby.fixes where user_id = 7",
        "select * from nearby.latest_positions where user_id = 7",
        "select * from nearby.user_days where user_id = 7",
        "select * from nearby.stays where user_id = 7",
        "select * from nearby.encounters_of(7)",
    ] {
        let plan = executed(&postgres, question);
        assert!(!days_read(&plan).is_empty(), "{question}\n{}", plan.join("\n"));
        let whole = plan.iter().find(|line| line.contains("Seq Scan on location_history"));
        assert_eq!(whole, None, "{question}\n{}", plan.join("\n"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_a_user_as_a_friend_is_found_by_the_index() {
    let postgres = a_week().await;
    // So many lists that reading all of them is the dearer way.
    let lists = "insert into nearby.friend_lists
                 select who, array(select 100 * n + who % 100 from generate_series(10, 60) as n), now()
                 from generate_series(1000, 6000) as who; vacuum analyze nearby.friend_lists";
    postgres.psql(lists).expect("lists");
    for question in [
        "select * from nearby.listed_by(7)",
        "select * from nearby.encounters_of(7)",
        // As `nearby history erase` has it.
        "select count(*) from nearby.friend_lists where friends @> array[7::bigint] and user_id <> 7",
    ] {
        let plan = executed(&postgres, question);
        let has = |words: &str| plan.iter().any(|line| line.contains(words));
        assert!(has("Bitmap Index Scan on friend_lists_friends"), "{question}\n{}", plan.join("\n"));
        assert!(!has("Seq Scan on friend_lists"), "{question}\n{}", plan.join("\n"));
    }
    let differences = "select count(*) from generate_series(1, 200) as who where
        (select array_agg(listed_by.user_id order by listed_by.user_id) from nearby.listed_by(who)) is distinct from
        (select array_agg(user_id order by user_id) from nearby.friend_lists where who = any (friends) and user_id <> who)";
    assert_eq!(postgres.psql(differences).expect("an answer"), "0");
    assert_ne!(postgres.psql("select count(*) from nearby.listed_by(7)").expect("an answer"), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn encounters_of_one_user_are_those_of_the_view() {
    let postgres = a_week().await;
    let differences = "select count(*) from (
        (table nearby.encounters except select e.* from generate_series(1, 200) as who, nearby.encounters_of(who) as e)
        union all (select e.* from generate_series(1, 200) as who, nearby.encounters_of(who) as e except table nearby.encounters)) as d";
    assert_eq!(postgres.psql(differences).expect("an answer"), "0");
    let counts = "select (select count(*) from nearby.encounters where 7 in (user_a, user_b)) || '|' || (select count(*) from nearby.encounters_of(7))";
    let counts = postgres.psql(counts).expect("counts");
    let (all, of_one) = counts.split_once('|').expect("two");
    assert!(all == of_one && all != "0", "{counts}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stretch_by_several_processes_has_the_rows_of_the_view() {
    let postgres = a_week().await;
    // A query's own process and so many more; none, as many as parts, more than parts, and what a server has unless it is told.
    for helpers in ["0", "1", "3", "8", "default"] {
        postgres
            .psql(&format!("alter role current_user set max_parallel_workers_per_gather to {helpers}"))
            .expect("a setting");
        by_several_processes(&postgres, helpers);
    }
}

fn by_several_processes(postgres: &Postgres, helpers: &str) {
    for (function, view, bounds, of_the_view) in [
        ("user_days_between", "user_days", "'2026-01-07', '2026-01-09'", "day in ('2026-01-07', '2026-01-08')"),
        (
            "cell_hours_between",
            "cell_hours",
            "'2026-01-07 05:00+00', '2026-01-08 06:00+00'",
            "hour >= '2026-01-07 05:00+00' and hour < '2026-01-08 06:00+00'",
        ),
        (
            "encounters_between",
            "encounters",
            "'2026-01-07 05:10+00', '2026-01-08 06:30+00'",
            "slot >= '2026-01-07 05:10+00' and slot < '2026-01-08 06:30+00'",
        ),
    ] {
        let plan = executed(postgres, &format!("select count(*) from nearby.{function}({bounds})"));
        let launched = plan.iter().any(|line| line.contains("Workers Launched: "));
        // With one more Postgres thinks all the work to be that one's, and begins none.
        assert_eq!(launched, !["0", "1"].contains(&helpers), "{function}\n{}", plan.join("\n"));
        let at_work =
            |line: &&String| line.contains(&format!("Function Scan on {view}_part")) && !line.contains("rows=0 ");
        let parts = match helpers {
            "0" => 1,
            "1" => 2,
            "default" => 3,
            _ => 4,
        };
        assert_eq!(plan.iter().filter(at_work).count(), parts, "{function}\n{}", plan.join("\n"));
        let rows = |from: &str| format!("select * from nearby.{from}");
        let (between, all) = (rows(&format!("{function}({bounds})")), rows(&format!("{view} where {of_the_view}")));
        let counts = compared(postgres, &between, &all);
        assert!(counts[0] > 0 && counts[0] == counts[1] && counts[2] + counts[3] == 0, "{function}: {counts:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn encounters_between_any_two_times_are_those_of_the_view() {
    between_any_two_is_the_view(
        ("encounters_between", "encounters", "slot"),
        &[
            ("-infinity", "infinity", true),
            ("2025-01-01 00:00+00", "2027-01-01 00:00+00", true),
            ("2026-01-07 00:00+00", "2026-01-08 00:00+00", true),
            // Slots begin at whole tens of minutes, times of questions anywhere.
            ("2026-01-07 19:03+00", "2026-01-07 20:47+00", true),
            ("2026-01-07 20:00+00", "2026-01-07 20:00:00.000001+00", true),
            ("2026-01-07 20:01+00", "2026-01-07 20:09+00", false),
            ("2026-01-08 00:00+00", "2026-01-07 00:00+00", false),
            ("2026-02-01 00:00+00", "infinity", false),
            ("infinity", "-infinity", false),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn user_days_between_any_two_days_are_those_of_the_view() {
    between_any_two_is_the_view(
        ("user_days_between", "user_days", "day"),
        &[
            ("-infinity", "infinity", true),
            ("2025-01-01", "2027-01-01", true),
            ("2026-01-07", "2026-01-08", true),
            ("2026-01-08", "2026-01-07", false),
            ("2026-02-01", "infinity", false),
            ("infinity", "-infinity", false),
        ],
    )
    .await;
}

/// From when, to when, and whether there is anything.
async fn between_any_two_is_the_view((function, view, column): (&str, &str, &str), cases: &[(&str, &str, bool)]) {
    let postgres = a_week().await;
    for (from, to, some) in cases {
        let between = format!("select * from nearby.{function}('{from}', '{to}')");
        let view = format!("select * from nearby.{view} where {column} >= '{from}' and {column} < '{to}'");
        let counts = compared(&postgres, &between, &view);
        assert_eq!((counts[1] > 0, counts[2], counts[3]), (*some, 0, 0), "from {from} to {to}");
    }
    let unknown = format!("select count(*) from nearby.{function}(null, 'infinity')");
    assert_eq!(postgres.psql(&unknown).expect("a count"), "0");
    postgres.psql("truncate nearby.location_history").expect("no history");
    let of_nothing = format!("select count(*) from nearby.{function}('-infinity', 'infinity')");
    assert_eq!(postgres.psql(&of_nothing).expect("a count"), "0");
}

/// How many rows two queries have, and how many only the first and only the second.
fn compared(postgres: &Postgres, one: &str, other: &str) -> Vec<u64> {
    let found = postgres.psql(&format!(
        "select (select count(*) from ({one}) as a), (select count(*) from ({other}) as a), \
         (select count(*) from ({one} except all {other}) as a), (select count(*) from ({other} except all {one}) as a)"
    ));
    found.expect("counts").split('|').map(|count| count.parse().expect("a count")).collect()
}
