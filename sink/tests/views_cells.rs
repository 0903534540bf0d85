//! H3 in SQL beside the package `h3` of Python, `cell_hours_k`, and who may read.

mod common;

use common::migrated;
use nearby_e2e::programs::root;
use nearby_e2e::{postgres, programs};

#[tokio::test(flavor = "multi_thread")]
async fn parents_are_those_of_the_h3_package() {
    let (postgres, _database) = migrated().await;
    let expected = programs::python("cells.py", &["parents"]).expect("Python has h3");
    let rows = expected.lines().count();
    assert!(rows > 50_000, "{rows}");
    let question = format!(
        "create temporary table expected (cell bigint, resolution int, parent bigint);
         copy expected from stdin (delimiter ' ');\n{expected}\\.\n
         select count(*), count(*) filter (where nearby.cell_parent(cell, resolution) is distinct from parent) from expected"
    );
    assert_eq!(postgres.psql(&question).expect("Postgres answers"), format!("{rows}|0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_parent_is_null() {
    let (postgres, _database) = migrated().await;
    let cell = "x'8928308280fffff'::bigint";
    let parent = |resolution: &str| {
        let question = format!("select to_hex(nearby.cell_parent({cell}, {resolution}))");
        postgres.psql(&question).expect("Postgres answers")
    };
    assert_eq!(parent("9"), "8928308280fffff");
    assert_eq!(parent("7"), "872830828ffffff");
    for resolution in ["10", "16", "-1", "null"] {
        assert_eq!(parent(resolution), "", "{resolution}");
    }
    assert_eq!(postgres.psql("select nearby.cell_parent(77, 0)").expect("an answer"), "", "77 is no cell");
}

#[tokio::test(flavor = "multi_thread")]
async fn cell_hours_k_leaves_out_where_fewer_people_were() {
    let (postgres, _database) = migrated().await;
    let sql = "
        create table nearby.location_history_20260115 partition of nearby.location_history
            for values from ('2026-01-15 00:00+00') to ('2026-01-16 00:00+00');
        insert into nearby.location_history (user_id, reported_at, received_at, lat, lon, cell, topic, kafka_partition, kafka_offset)
        select user_id, '2026-01-15 12:00+00'::timestamptz + offset_s * interval '1 s', now(), 1, 1, cell, 't', 0, offset_s
        from (values (1, 77, 0), (1, 77, 1), (1, 77, 2), (1, 88, 3), (2, 88, 4), (1, 99, 5), (2, 99, 6), (3, 99, 7))
            as fix (user_id, cell, offset_s)";
    postgres.psql(sql).expect("rows");
    let rows =
        |k: &str| postgres.psql(&format!("select cell, fixes, users from nearby.cell_hours_k({k}) order by cell"));
    assert_eq!(rows("1").expect("rows"), "77|3|1\n88|2|2\n99|3|3");
    assert_eq!(rows("2").expect("rows"), "88|2|2\n99|3|3");
    assert_eq!(rows("4").expect("rows"), "");
    for k in ["0", "-1", "null"] {
        let error = format!("{:#}", rows(k).expect_err("k has to be 1 or more"));
        assert!(error.contains("k has to be 1 or more"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn analysts_read_everything_and_change_nothing() {
    let (postgres, _database) = migrated().await;
    postgres.psql("create role anna login password 'anna' in role nearby_analyst").expect("a role");
    let url = postgres.url().replace("nearby:nearby@", "anna:anna@");
    let anna = |sql: &str| postgres::psql(&url, sql);
    // A partition that comes later, as the sink makes it.
    let partition = "create table nearby.location_history_20260115 (like nearby.location_history including all);
                     alter table nearby.location_history attach partition nearby.location_history_20260115
                         for values from ('2026-01-15 00:00+00') to ('2026-01-16 00:00+00')";
    postgres.psql(partition).expect("a partition");

    let relations =
        "select relname from pg_class where relnamespace = 'nearby'::regnamespace and relkind in ('r', 'p', 'v')";
    let relations = postgres.psql(relations).expect("relations");
    assert!(relations.lines().count() >= 10, "{relations}");
    for relation in relations.lines() {
        anna(&format!("select count(*) from nearby.{relation}")).expect("anna may read it");
    }
    assert_eq!(anna("select count(*) from nearby.cell_hours_k(5)").expect("functions too"), "0");
    for change in [
        "insert into nearby.friend_lists values (1, '{}', now())",
        "update nearby.friend_lists set friends = '{}'",
        "delete from nearby.location_history",
        "delete from nearby.location_history_20260115",
        "truncate nearby.sink_offsets",
        "drop view nearby.stays",
        "create table nearby.mine ()",
        "create index on nearby.location_history (cell)",
        "call nearby.let_analysts_read()",
        "create table public.mine ()",
    ] {
        let error = format!("{:#}", anna(change).expect_err(change));
        assert!(error.contains("permission denied") || error.contains("must be owner"), "{change}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn analysts_read_nothing_else_and_others_do_not_read_the_history() {
    let (postgres, _database) = migrated().await;
    let roles = "create role anna login password 'anna' in role nearby_analyst; create role carl login password 'carl'";
    postgres.psql(roles).expect("roles");
    postgres.psql("create database salaries").expect("a database");
    postgres
        .psql("create table public.salaries (of text); create schema hr; create table hr.files (of text)")
        .expect("tables");
    let url = |who: &str, database: &str| {
        postgres.url().replace("nearby:nearby@", &format!("{who}:{who}@")).replace("/nearby", &format!("/{database}"))
    };
    let refused = |who: &str, database: &str, sql: &str| {
        let error = format!("{:#}", postgres::psql(&url(who, database), sql).expect_err(sql));
        assert!(error.contains("permission denied") || error.contains("must be superuser"), "{who}: {sql}: {error}");
    };
    for sql in [
        "select * from public.salaries",
        "select * from hr.files",
        "select rolpassword from pg_authid",
        "select pg_read_file('postgresql.conf')",
        "copy nearby.friend_lists to program 'cat'",
        "set role nearby",
        "call nearby.add_geography()",
    ] {
        refused("anna", "nearby", sql);
    }
    for sql in
        ["select * from nearby.fixes", "select * from nearby.cell_hours_k(10)", "select * from nearby.encounters_of(7)"]
    {
        refused("carl", "nearby", sql);
    }
    // What the document tells an administrator to do.
    let document = std::fs::read_to_string(root().join("docs/analysts.md")).expect("the document");
    let advice = document.split("```\n").find(|part| part.starts_with("REVOKE CONNECT")).expect("the advice");
    assert_eq!(postgres::psql(&url("carl", "nearby"), "select 1").expect("everybody connects"), "1");
    postgres.psql(advice).expect("it is done");
    postgres.psql(&advice.lines().next().expect("the revocation").replace("nearby", "salaries")).expect("there too");
    refused("carl", "nearby", "select 1");
    refused("anna", "salaries", "select 1");
    refused("anna", "nearby", "create temporary table mine ()");
    assert_eq!(postgres::psql(&url("anna", "nearby"), "select count(*) from nearby.fixes").expect("she reads"), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_lets_us_make_no_role_is_migrated_too() {
    let (postgres, _database) = migrated().await;
    postgres.psql("create role owner login password 'owner'; create database theirs owner owner").expect("a database");
    // Roles belong to the server: here there is none yet.
    postgres.psql("drop owned by nearby_analyst; drop role nearby_analyst").expect("no such role");
    let url = postgres.url().replace("nearby:nearby@", "owner:owner@").replace("/nearby", "/theirs");
    nearby_sink::connect(&url).await.expect("a connection").migrate().await.expect("migrated without the role");
    let may_read = "select has_table_privilege('nearby_analyst', 'nearby.fixes', 'select')";
    assert!(postgres::psql(&url, may_read).is_err(), "there is no role");
    postgres.psql("create role nearby_analyst nologin").expect("an administrator makes it");
    assert_eq!(postgres::psql(&url, may_read).expect("an answer"), "f");
    postgres::psql(&url, "call nearby.let_analysts_read()").expect("the owner calls it");
    assert_eq!(postgres::psql(&url, may_read).expect("an answer"), "t");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_read_a_view_alone_reads_it() {
    let (postgres, _database) = migrated().await;
    let views = ["latest_positions", "user_days", "cell_hours", "encounters"];
    postgres.psql("create role dashboard; grant usage on schema nearby to dashboard").expect("a role");
    for view in views {
        postgres.psql(&format!("grant select on nearby.{view} to dashboard")).expect("a right");
    }
    for view in views {
        let answer = postgres.psql(&format!("set role dashboard; select count(*) from nearby.{view}"));
        assert_eq!(answer.expect("aggregates without the places").lines().last(), Some("0"), "{view}");
    }
    assert!(postgres.psql("set role dashboard; select count(*) from nearby.location_history").is_err());
}
