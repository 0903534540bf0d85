//! With PostGIS there is one view more; without it nothing is missing.

mod common;

use common::migrated;
use nearby_e2e::postgres::{self, Postgres};

const ROWS: &str = "
    create table nearby.location_history_20260115 partition of nearby.location_history
        for values from ('2026-01-15 00:00+00') to ('2026-01-16 00:00+00');
    insert into nearby.location_history (user_id, reported_at, received_at, lat, lon, cell, topic, kafka_partition, kafka_offset)
        values (1, '2026-01-15 12:00+00', now(), 37.7749, -122.4194, 1, 't', 0, 0),
               (1, '2026-01-15 12:01+00', now(), 37.7849, -122.4194, 1, 't', 0, 1),
               (1, '2026-01-15 12:02+00', now(), null, null, null, 't', 0, 2)";
/// By the ellipsoid a hundredth of a degree of latitude is 1,110 m here, by our sphere 1,112.
const METRES: &str = "select round(st_distance(a.place, b.place)), count(*) over () from nearby.fixes_geography a, nearby.fixes_geography b
                      where a.reported_at < b.reported_at";

/// The archives of other versions that `make test-postgres` fetches are bare; Debian's server has PostGIS by `e2e/setup.sh`.
fn bare_archive(postgres: &Postgres) -> bool {
    let available =
        postgres.psql("select count(*) from pg_available_extensions where name = 'postgis'").expect("an answer");
    let bare = std::env::var_os("PG_VERSION").is_some() && available == "0";
    if bare {
        println!("NOT RUN: this archive of Postgres has no PostGIS");
    }
    bare
}

#[tokio::test(flavor = "multi_thread")]
async fn postgis_may_come_later_and_live_in_a_schema_of_its_own() {
    let (postgres, _database) = migrated().await;
    postgres.psql(ROWS).expect("rows");
    let error = format!("{:#}", postgres.psql("call nearby.add_geography()").expect_err("there is no PostGIS"));
    assert!(error.contains("CREATE EXTENSION postgis"), "{error}");
    if bare_archive(&postgres) {
        return;
    }
    postgres
        .psql("create schema gis; create extension postgis schema gis")
        .expect("PostGIS is installed: see e2e/setup.sh");
    postgres.psql("call nearby.add_geography(); call nearby.add_geography()").expect("the view, twice");
    assert_eq!(postgres.psql(&format!("set search_path to gis; {METRES}")).expect("a distance"), "1110|1");
    postgres
        .psql("create role anna in role nearby_analyst; set role anna; table nearby.fixes_geography")
        .expect("analysts read it");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_postgis_is_the_view_is_made_with_the_others() {
    let (postgres, _database) = migrated().await;
    if bare_archive(&postgres) {
        return;
    }
    postgres.psql("create database with_postgis").expect("a database");
    let url = postgres.url().rsplit_once('/').map(|(server, _)| format!("{server}/with_postgis"));
    let url = url.expect("an address has a database");
    postgres::psql(&url, "create extension postgis").expect("PostGIS is installed: see e2e/setup.sh");
    nearby_sink::connect(&url).await.expect("a connection").migrate().await.expect("migrated");
    postgres::psql(&url, ROWS).expect("rows");
    assert_eq!(postgres::psql(&url, METRES).expect("a distance"), "1110|1");
    let bare = "select count(*) from pg_attribute where attrelid = 'nearby.fixes_geography'::regclass and attnum > 0
                and col_description(attrelid, attnum) is null";
    assert_eq!(postgres::psql(&url, bare).expect("comments"), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgis_that_the_sink_may_not_use_does_not_stop_it() {
    let (postgres, _database) = migrated().await;
    if bare_archive(&postgres) {
        return;
    }
    postgres.psql("create role owner login password 'owner'; create database theirs owner owner").expect("a database");
    let of_admin = postgres.url().rsplit_once('/').map(|(server, _)| format!("{server}/theirs")).expect("an address");
    let of_owner = of_admin.replace("nearby:nearby@", "owner:owner@");
    postgres::psql(&of_admin, "create schema gis; create extension postgis schema gis")
        .expect("PostGIS is installed: see e2e/setup.sh");
    nearby_sink::connect(&of_owner).await.expect("a connection").migrate().await.expect("migrated without the view");
    let view = "select count(*) from pg_views where schemaname = 'nearby' and viewname = 'fixes_geography'";
    assert_eq!(postgres::psql(&of_owner, view).expect("an answer"), "0");

    // An administrator makes it, and it is the owner's like the others.
    postgres::psql(&of_admin, "grant usage on schema gis to owner; call nearby.add_geography()").expect("the view");
    let reads = "select has_table_privilege('nearby_analyst', 'nearby.fixes_geography', 'select'), viewowner
                 from pg_views where viewname = 'fixes_geography'";
    assert_eq!(postgres::psql(&of_owner, reads).expect("an answer"), "t|owner");
    // As is the right to read partitions to come.
    postgres::psql(&of_admin, "call nearby.let_analysts_read()").expect("by an administrator");
    postgres::psql(&of_owner, ROWS).expect("rows");
    let partition = "select has_table_privilege('nearby_analyst', 'nearby.location_history_20260115', 'select')";
    assert_eq!(postgres::psql(&of_owner, partition).expect("an answer"), "t");
    postgres::psql(&of_owner, "call nearby.add_geography()").expect("the owner may call it too");
}
