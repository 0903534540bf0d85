//! `nearby history export`: what other tools read in its files is what the database has.

use anyhow::{Context, ensure};
use nearby_e2e::nearby::{Ended, Nearby, run};
use nearby_e2e::postgres::{Postgres, psql};
use nearby_e2e::programs::python;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The columns as `e2e/python/exported.py` prints them.
const COLUMNS: &str = "user_id, (extract(epoch from reported_at) * 1000000)::bigint, (extract(epoch from received_at) * 1000000)::bigint, \
                       to_char(lat, 'FM990.0000000'), to_char(lon, 'FM990.0000000'), to_char(accuracy_m::float8, 'FM99990.000'), \
                       to_char(speed_mps::float8, 'FM99990.000'), to_char(heading_deg::float8, 'FM99990.000'), cell, topic, kafka_partition, kafka_offset";
const IN_ORDER: &str = "order by reported_at, topic, kafka_partition, kafka_offset";

/// A history with a person whose data have everything odd in them, and others.
struct History {
    postgres: Postgres,
    folder: tempfile::TempDir,
}

impl History {
    fn start() -> anyhow::Result<History> {
        let postgres = Postgres::start()?;
        postgres.make_history()?;
        for day in ["2026-03-01", "2026-03-02", "2026-03-03"] {
            let name = day.replace('-', "");
            postgres.psql(&format!(
                "create table nearby.location_history_{name} partition of nearby.location_history \
                 for values from ('{day} 00:00+00') to (timestamptz '{day} 00:00+00' + interval '1 day')"
            ))?;
        }
        Ok(History { postgres, folder: tempfile::tempdir()? })
    }

    /// Time, and the place columns; each has the next offset.
    fn insert(&self, user: i64, rows: &[(&str, &str)]) -> anyhow::Result<()> {
        for (time, columns) in rows {
            self.postgres.psql(&format!(
                "insert into nearby.location_history (user_id, reported_at, received_at, lat, lon, accuracy_m, speed_mps, heading_deg, cell, \
                   topic, kafka_partition, kafka_offset) \
                 select {user}, '{time}', timestamptz '{time}' + interval '0.25 s', {columns}, 'a.location-events_1', 15, count(*) \
                 from nearby.location_history"
            ))?;
        }
        Ok(())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn export(&self, args: &str, output: &Path) -> anyhow::Result<Ended> {
        let output = output.to_str().context("a path")?;
        let args: Vec<&str> = "history export --output".split(' ').chain([output]).chain(args.split(' ')).collect();
        run(&args, &[("NEARBY_DATABASE_URL", &self.postgres.url())])
    }

    fn exported(&self, args: &str, name: &str) -> anyhow::Result<(PathBuf, String)> {
        let file = self.file(name);
        let ended = self.export(args, &file)?;
        ensure!(ended.code == Some(0) && ended.stderr.is_empty(), "{args}: {ended:?}");
        Ok((file, ended.stdout))
    }

    fn rows(&self, condition: &str) -> anyhow::Result<String> {
        let rows = format!("select {COLUMNS} from nearby.location_history where {condition} {IN_ORDER}");
        Ok(self.postgres.psql(&rows)?.trim_end().to_owned())
    }
}

fn until(mut is_so: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so()? {
        ensure!(Instant::now() < deadline, "not within 20 s");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// What a tool reads: what it takes the file for, and the rows.
fn read(tool: &str, file: &Path, more: &[&str], heads: usize) -> anyhow::Result<(String, String)> {
    let args = [&[tool, file.to_str().context("a path")?], more].concat();
    let text = python("exported.py", &args)?;
    let lines: Vec<&str> = text.lines().collect();
    let rows = lines.get(heads..).context("rows")?.join("\n");
    Ok((lines[..heads].join("\n"), rows))
}

#[test]
fn one_persons_data_open_in_other_tools() -> anyhow::Result<()> {
    const USER: i64 = i64::MAX;
    let history = History::start()?;
    history.insert(
        USER,
        &[
            // The log has them in this order, time another one; one was sent twice, with another place.
            ("2026-03-02 10:00:00.123+00", "37.7701234, -122.4101234, 12.3, 1.25, 270, 617700169958293503"),
            ("2026-03-02 10:00:00.123+00", "37.7701235, -122.4101235, null, null, null, 617700169958293503"),
            ("2026-03-01 23:59:59.999+00", "-90, 0, null, 0, null, 617700169958293504"),
            ("2026-03-02 10:29:00+00", "0.5, 179.9999999, 0.5, null, 359.9, 1"),
            ("2026-03-02 10:29:30+00", "0.5, -180, null, null, null, 1"),
            ("2026-03-02 10:30:00+00", "0.5, 180, null, null, null, 1"),
            ("2026-03-02 10:31:00+00", "null, null, null, null, null, null"),
            ("2026-03-02 10:32:00+00", "90, 180, null, null, null, 1"),
            ("2026-03-03 00:00:00+00", "0.0000001, -0.0000001, null, null, null, 1"),
        ],
    )?;
    history.insert(1, &[("2026-03-02 10:00:00+00", "1, 2, null, null, null, 1")])?;
    history.postgres.psql(&format!(
        "insert into nearby.friend_lists values ({USER}, '{{1,9223372036854775806}}', '2026-03-01 00:00+00'), (1, '{{{USER}}}', now())"
    ))?;
    let whose = format!("--user {USER}");
    let expected = history.rows(&format!("user_id = {USER}"))?;
    ensure!(expected.lines().count() == 9);

    let (csv, said) = history.exported(&format!("{whose} --format csv"), "all.csv")?;
    ensure!(said.contains(&format!("2 friends of user {USER} in {}.friends.csv\n", csv.display())), "{said}");
    ensure!(said.contains(&format!("9 rows of user {USER} in {}, ", csv.display())), "{said}");
    let (types, rows) = read("duckdb-csv", &csv, &[], 1)?;
    ensure!(types.starts_with("user_id BIGINT; reported_at TIMESTAMP WITH TIME ZONE; "), "{types}");
    ensure!(rows == expected, "{rows}\nexpected\n{expected}");
    let friends = std::fs::read_to_string(format!("{}.friends.csv", csv.display()))?;
    let line = |friend: i64| format!("{USER},{friend},2026-03-01T00:00:00.000Z\n");
    ensure!(friends == format!("user_id,friend,changed_at\n{}{}", line(1), line(i64::MAX - 1)), "{friends}");

    let (parquet, _) = history.exported(&format!("{whose} --format parquet"), "all.parquet")?;
    let (types, rows) = read("pyarrow", &parquet, &[], 2)?;
    let pyarrow = "user_id int64 not null; reported_at timestamp[us, tz=UTC] not null; received_at timestamp[us, tz=UTC] not null; \
                   lat double; lon double; accuracy_m float; speed_mps float; heading_deg float; cell int64; topic string not null; \
                   kafka_partition int32 not null; kafka_offset int64 not null\ngroups 9";
    ensure!(types == pyarrow && rows == expected, "{types}\n{rows}");
    let (types, rows) = read("duckdb", &parquet, &[], 1)?;
    let duckdb = "user_id BIGINT; reported_at TIMESTAMP WITH TIME ZONE; received_at TIMESTAMP WITH TIME ZONE; lat DOUBLE; lon DOUBLE; \
                  accuracy_m FLOAT; speed_mps FLOAT; heading_deg FLOAT; cell BIGINT; topic VARCHAR; kafka_partition INTEGER; kafka_offset BIGINT";
    ensure!(types == duckdb && rows == expected, "{types}\n{rows}");

    fixes_open_in_maps(&history, USER)?;
    // A range, and nothing in it.
    let range = "--from 2026-03-02T10:29:00Z --to 2026-03-02T10:31:00Z";
    let (part, _) = history.exported(&format!("{whose} --format csv {range}"), "part.csv")?;
    let condition =
        format!("user_id = {USER} and reported_at >= '2026-03-02 10:29+00' and reported_at < '2026-03-02 10:31+00'");
    ensure!(read("duckdb-csv", &part, &[], 1)?.1 == history.rows(&condition)?);
    for format in ["csv", "parquet", "geojson", "gpx"] {
        let (_, said) = history.exported(&format!("--user 0 --format {format}"), &format!("empty.{format}"))?;
        ensure!(said.contains("0 friends of user 0") && said.contains("s of user 0 in "), "{said}");
    }
    ensure!(read("pyarrow", &history.file("empty.parquet"), &[], 2)?.1.is_empty());
    ensure!(read("gdal", &history.file("empty.gpx"), &["track_points"], 2)?.1.is_empty());
    ensure!(points_of_gpx(&history.file("empty.gpx"))? == 0);
    Ok(())
}

/// Maps have the fixes, as the view has them.
fn fixes_open_in_maps(history: &History, user: i64) -> anyhow::Result<()> {
    let whose = format!("--user {user}");
    let fixes = history.postgres.psql(&format!(
        "select (extract(epoch from reported_at) * 1000000)::bigint, to_char(lat, 'FM990.0000000'), to_char(lon, 'FM990.0000000') \
         from nearby.fixes where user_id = {user} order by reported_at"
    ))?;
    ensure!(fixes.lines().count() == 7);
    let (geojson, said) = history.exported(&format!("{whose} --format geojson"), "all.geojson")?;
    ensure!(said.contains("7 fixes of user"), "{said}");
    let (types, rows) = read("gdal", &geojson, &["all"], 2)?;
    let gdal = "all Point\nEPSG:4326; accuracy_m float64; heading_deg float64; received_at datetime64[ms]; reported_at datetime64[ms]; \
                speed_mps float64; user_id object";
    ensure!(types == gdal, "{types}");
    let expected = fixes.lines().map(|fix| format!("{fix}|0")).collect::<Vec<_>>().join("\n");
    ensure!(rows == expected, "{rows}\nexpected\n{expected}");
    let (_, rows) = read("geojson", &geojson, &[], 0)?;
    ensure!(rows == expected, "{rows}\nexpected\n{expected}");

    // A segment each: the day before; San Francisco; before the antimeridian; behind it (GPX knows no 180, only -180); after the
    // withdrawal; the next day.
    let (gpx, _) = history.exported(&format!("{whose} --format gpx"), "all.gpx")?;
    let (types, rows) = read("gdal", &gpx, &["track_points"], 2)?;
    ensure!(types.contains("track_points Point") && types.contains("EPSG:4326"), "{types}");
    let segments = [0, 1, 2, 3, 3, 4, 5];
    let expected: Vec<String> = fixes
        .lines()
        .zip(segments)
        .map(|(fix, segment)| format!("{}|{segment}", fix.replace("|180.0000000", "|-180.0000000")))
        .collect();
    let expected = expected.join("\n");
    ensure!(rows == expected, "{rows}\nexpected\n{expected}");
    ensure!(points_of_gpx(&gpx)? == segments.len());
    Ok(())
}

/// How many, if it is GPX 1.1 by its schema.
fn points_of_gpx(file: &Path) -> anyhow::Result<usize> {
    Ok(python("gpx.py", &[&file.display().to_string()])?.trim().parse()?)
}

#[test]
fn everybodys_data_of_a_time_range_come_in_bounded_groups() -> anyhow::Result<()> {
    let history = History::start()?;
    history.postgres.psql(
        "insert into nearby.location_history select n % 1000, t, t, n * 0.0001, n * -0.0001, null, n / 7.0, null, n, 'location-events', n % 16, n \
         from generate_series(1, 125000) n, lateral (select timestamptz '2026-03-01 12:00+00' + n * interval '400 ms') as at (t)",
    )?;
    let range = "--from 2026-03-01T13:00:00Z --to 2026-03-02T01:00:00Z";
    let expected = history.rows("reported_at >= '2026-03-01 13:00+00' and reported_at < '2026-03-02 01:00+00'")?;
    ensure!(expected.lines().count() == 108_000);
    let (parquet, said) = history.exported(&format!("--format parquet {range}"), "all.parquet")?;
    ensure!(said.starts_with("108,000 rows of everybody in ") && !said.contains("friends"), "{said}");
    ensure!(!history.file("all.parquet.friends.csv").exists());
    let (types, rows) = read("pyarrow", &parquet, &[], 2)?;
    ensure!(types.ends_with("\ngroups 100000 8000") && rows == expected, "{types}");
    ensure!(read("duckdb", &parquet, &[], 1)?.1 == expected);
    Ok(())
}

#[test]
fn nothing_is_overwritten_and_what_is_wrong_is_named() -> anyhow::Result<()> {
    let history = History::start()?;
    let (file, _) = history.exported("--user 7 --format csv", "a.csv")?;
    let before = std::fs::read(&file)?;
    for args in ["--user 7 --format csv", "--user 7 --format gpx"] {
        let refused = history.export(args, &file)?;
        ensure!(refused.code == Some(2) && refused.stderr.contains("--force overwrites it"), "{refused:?}");
    }
    ensure!(std::fs::read(&file)? == before);
    let forced = history.export("--user 7 --format gpx --force", &file)?;
    ensure!(forced.code == Some(0) && std::fs::read_to_string(&file)?.starts_with("<?xml"), "{forced:?}");
    // The list beside it is not overwritten either.
    std::fs::rename(&file, history.file("b.csv"))?;
    let refused = history.export("--user 7 --format csv", &file)?;
    ensure!(refused.code == Some(2) && refused.stderr.contains(".friends.csv is there already"), "{refused:?}");

    let new = history.file("new");
    let range = "--from 2026-03-01T00:00:00Z --to 2026-03-02T00:00:00Z";
    for (args, because) in [
        ("--format csv".to_owned(), "both --from and --to"),
        ("--format csv --from 0".to_owned(), "both --from and --to"),
        (format!("--format gpx {range}"), "for one user"),
        (format!("--format geojson {range}"), "for one user"),
        ("--format csv --user 7 --from 5 --to 5".to_owned(), "--from has to be before --to"),
        ("--format csv --user 7 --from yesterday".to_owned(), "--from"),
        ("--format csv --user 7 --to 253402300800000".to_owned(), "1970 to 9999"),
        ("--format csv --user x".to_owned(), "--user"),
        ("--format xml --user 7".to_owned(), "--format"),
        ("--user 7".to_owned(), "--format"),
        ("--format csv --user 7 --database-url http://a".to_owned(), "it has to start with postgresql://"),
    ] {
        let refused = history.export(&args, &new)?;
        ensure!(refused.code == Some(2) && refused.stderr.contains(because), "{args}: {refused:?}");
    }
    for (path, because) in
        [(history.file("no/folder"), "cannot be written"), (history.folder.path().to_owned(), "is a folder")]
    {
        let refused = history.export("--user 7 --format csv", &path)?;
        ensure!(refused.code == Some(2) && refused.stderr.contains(because), "{refused:?}");
    }
    // Nor does what is interrupted: here while it waits for somebody who changes the table.
    let changing = std::thread::spawn({
        let url = history.postgres.url();
        move || psql(&url, "begin; lock table nearby.location_history; select pg_sleep(600)")
    });
    let locked = "select count(*) from pg_locks where mode = 'AccessExclusiveLock' and granted and relation = 'nearby.location_history'::regclass";
    until(|| Ok(history.postgres.psql(locked)? == "1"))?;
    let (path, url) = (new.to_str().context("a path")?.to_owned(), history.postgres.url());
    let args = ["history", "export", "--user", "7", "--format", "csv", "--output", &path];
    let mut export = Nearby::start(&args, &[("NEARBY_DATABASE_URL", &url)])?;
    let waits =
        "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and application_name = 'nearby-history'";
    until(|| Ok(history.postgres.psql(waits)? == "1"))?;
    let (status, _) = export.terminate()?;
    ensure!(
        status.code() == Some(1) && export.stderr().contains("interrupted: nothing was written"),
        "{}",
        export.stderr()
    );
    history.postgres.psql("select pg_terminate_backend(pid) from pg_stat_activity where query like '%pg_sleep(600)' and pid <> pg_backend_pid()")?;
    drop(changing.join());
    // What fails half way leaves nothing: the table of lists is gone, and is read last.
    history.postgres.psql("alter table nearby.friend_lists rename to lists")?;
    let failed = history.export("--user 7 --format csv", &new)?;
    ensure!(failed.code == Some(1) && failed.stderr.contains("reading the friend list"), "{failed:?}");
    let mut names: Vec<_> =
        std::fs::read_dir(history.folder.path())?.map(|entry| Ok(entry?.file_name())).collect::<anyhow::Result<_>>()?;
    names.sort();
    ensure!(names == ["a.csv.friends.csv", "b.csv"], "{names:?}");
    Ok(())
}
