//! `nearby history plot` on a real Postgres: the pictures are SVG, and they say what the rows say. Those of docs/analysts.md too.

use anyhow::{Context, ensure};
use h3o::{LatLng, Resolution};
use nearby_e2e::movement::Movement;
use nearby_e2e::nearby::{Ended, Nearby, run, token};
use nearby_e2e::postgres::Postgres;
use nearby_e2e::{ports, programs};
use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Around a place in San Francisco.
const CELLS: i64 = 7;
/// So many people are in the first of them, and in each other one more.
const PEOPLE: i64 = 9;
const LIMIT: Duration = Duration::from_secs(60);

/// In the first half of an hour of 2026-01-07 the people of each cell, and in the next hour one of them in the first cell.
fn with_rows() -> anyhow::Result<Postgres> {
    let postgres = Postgres::start()?;
    postgres.make_history()?;
    let centre = LatLng::new(37.77, -122.42)?.to_cell(Resolution::Nine);
    let cells: Vec<i64> = centre.grid_disk::<Vec<_>>(1).into_iter().map(|cell| u64::from(cell).cast_signed()).collect();
    ensure!(i64::try_from(cells.len())? == CELLS);
    postgres.psql(&format!(
        "create table nearby.location_history_20260107 partition of nearby.location_history for values from ('2026-01-07 00:00+00') to ('2026-01-08 00:00+00'); \
         insert into nearby.location_history (user_id, reported_at, received_at, lat, lon, cell, topic, kafka_partition, kafka_offset) \
         select at * 100 + who, '2026-01-07 12:00+00'::timestamptz + who * interval '1 min', now(), 1, 1, cell, 't', 0, at * 100 + who \
         from unnest(array{cells:?}) with ordinality as c (cell, at), generate_series(1, {PEOPLE} + at - 1) as who \
         union all select 101, '2026-01-07 13:10+00', now(), 1, 1, {}, 't', 1, 0",
        cells[0]
    ))?;
    Ok(postgres)
}

fn plot(postgres: &Postgres, args: &str, file: &Path) -> anyhow::Result<Ended> {
    let file = file.display().to_string();
    let args: Vec<&str> = ["history", "plot"].into_iter().chain(args.split(' ')).chain(["--output", &file]).collect();
    run(&args, &[("NEARBY_DATABASE_URL", &postgres.url())])
}

fn read(file: &Path) -> anyhow::Result<Vec<String>> {
    Ok(programs::python("svg.py", &[&file.display().to_string()])?.lines().map(str::to_owned).collect())
}

#[test]
fn a_map_has_the_cells_and_hours_that_were_asked_for() -> anyhow::Result<()> {
    let (postgres, folder) = (with_rows()?, tempfile::tempdir()?);
    let file = folder.path().join("cells.svg");
    let sum = |least: i64| (least.max(PEOPLE)..PEOPLE + CELLS).sum::<i64>();
    let hour = "2026-01-07 12:00 to 2026-01-07 13:00 UTC";
    let hours = "2026-01-07 12:00 to 2026-01-07 14:00 UTC";
    for (args, during, people_min, fixes, cells) in [
        // By default nobody who is one of few is drawn, and all hours are.
        ("cells", hours, 10, sum(10), CELLS - 1),
        ("cells --people-min 1", hours, 1, sum(1) + 1, CELLS),
        ("cells --people-min 12", hours, 12, sum(12), CELLS - 3),
        // Of the hour in which --from is all of it, of that of --to nothing.
        ("cells --people-min 1 --from 2026-01-07T12:59:00Z --to 2026-01-07T13:59:00Z", hour, 1, sum(1), CELLS),
        ("cells --people-min 1 --to 2026-01-07T13:00:00Z", hour, 1, sum(1), CELLS),
        ("cells --people-min 1 --from 2026-01-07T13:00:00Z", "2026-01-07 13:00 to 2026-01-07 14:00 UTC", 1, 1, 1),
    ] {
        let ended = plot(&postgres, args, &file)?;
        ensure!(ended.code == Some(0) && ended.stdout.ends_with(&format!(": {cells} cells\n")), "{args}: {ended:?}");
        let hidden = match people_min {
            1 => String::new(),
            least => format!(", hours of cells with fewer than {least} people left out"),
        };
        let picture = read(&file)?;
        for line in [format!("polygon {cells}"), format!("text {during}{hidden}: {fixes} fixes in {cells} cells")] {
            ensure!(picture.contains(&line), "{args}: {line}: {picture:#?}");
        }
    }
    for (args, because) in [
        ("cells --people-min 100", "in no hour were 100 people or more"),
        ("cells --people-min 0", "--people-min"),
        ("cells --from 2026-01-07T15:00:00Z", "no whole hour with history"),
        ("cells --from 2026-01-07T12:10:00Z --to 2026-01-07T12:50:00Z", "no whole hour with history"),
    ] {
        let refused = plot(&postgres, args, &file)?;
        ensure!(refused.code == Some(2) && refused.stderr.contains(because), "{args}: {refused:?}");
    }
    Ok(())
}

#[test]
fn a_day_has_a_bar_for_each_hour_twice() -> anyhow::Result<()> {
    let (postgres, folder) = (with_rows()?, tempfile::tempdir()?);
    let file = folder.path().join("day.svg");
    let ended = plot(&postgres, "day --from 2026-01-07T00:00:00-08:00", &file)?;
    let fixes = (PEOPLE..PEOPLE + CELLS).sum::<i64>() + 1;
    ensure!(ended.code == Some(0) && ended.stdout.ends_with(&format!(": {fixes} fixes\n")), "{ended:?}");
    let picture = read(&file)?;
    // And the paper.
    for line in ["rect 49", "text Activity in the 24 hours from 2026-01-07 08:00 UTC", "text hour of the day, UTC"] {
        ensure!(picture.iter().any(|found| found == line), "{line}: {picture:#?}");
    }
    let svg = std::fs::read_to_string(&file)?;
    let heights = svg.lines().filter(|line| line.starts_with("<rect x=")).map(|line| {
        let height = line.split("height=\"").nth(1).and_then(|rest| rest.split('"').next());
        height.unwrap_or_default().parse::<f64>().unwrap_or(-1.0)
    });
    let heights: Vec<f64> = heights.collect();
    // 12 and 13 o'clock of a picture that begins at 8: 84 fixes of as many people, and 1.
    for panel in heights.chunks(24) {
        let (busy, next) = (panel[4], panel[5]);
        ensure!((busy / next - (fixes - 1) as f64).abs() < 10.0, "{busy} {next}");
        ensure!(panel.iter().filter(|height| **height > 0.0).count() == 2, "{panel:?}");
    }
    Ok(())
}

/// As docs/analysts.md draws San Francisco's taxis, with a day of invented ones.
#[test]
fn a_recorded_day_is_reported_and_drawn_as_the_document_says() -> anyhow::Result<()> {
    const SECRET: &str = "a secret for the tests alone";
    const REPORTS: usize = 2_400;
    let (postgres, folder) = (Postgres::start()?, tempfile::tempdir()?);
    let file = folder.path().join("cabs.txt");
    // "taxi latitude longitude occupied seconds": 20 taxis that stand still on 2008-06-06, a report each in 12 minutes.
    let mut lines = String::new();
    for (number, seconds) in (0..REPORTS).zip((1_212_735_600..).step_by(36)) {
        writeln!(lines, "taxi{} 37.7700 -122.4200 {} {seconds}", number % 20, number % 2)?;
    }
    std::fs::write(&file, lines)?;
    ensure!(Command::new("gzip").arg(&file).status().context("run gzip")?.success());

    let (listen, database) = (format!("127.0.0.1:{}", ports::free_port()?), postgres.url());
    let args = ["run", "--listen", &listen, "--database-url", &database];
    let mut nearby = Nearby::start(&args, &[("NEARBY_JWT_SECRET", SECRET)])?;
    let url = nearby.wait_ready(LIMIT)?.http;
    let token = token(SECRET, 1, "ingest:any")?;
    let file = folder.path().join("cabs.txt.gz").display().to_string();
    let said = programs::python_in(&[("TOKEN", &token)], "taxis.py", &[&url, &file])?;
    ensure!(said.starts_with(&format!("{REPORTS} reports of 20 taxis, from ")), "{said}");
    let begun = Instant::now();
    while postgres.psql("select count(*) from nearby.fixes")? != REPORTS.to_string() {
        ensure!(begun.elapsed() < LIMIT, "in the history: {}", postgres.psql("select count(*) from nearby.fixes")?);
        std::thread::sleep(Duration::from_millis(100));
    }
    // It moved by whole days, to one that is over.
    let first = "select to_char(min(reported_at) at time zone 'UTC', 'HH24:MI'), max(reported_at) < now(), \
                 min(reported_at) > now() - interval '3 days' from nearby.fixes";
    ensure!(postgres.psql(first)? == "07:00|t|t", "{}", postgres.psql(first)?);
    let picture = folder.path().join("taxis.svg");
    let ended = plot(&postgres, "cells", &picture)?;
    ensure!(ended.code == Some(0) && ended.stdout.ends_with(": 1 cells\n"), "{ended:?}");
    ensure!(read(&picture)?.contains(&"polygon 1".to_owned()));
    Ok(())
}

/// `UPDATE_EXPECT=1` draws them again.
#[test]
fn the_pictures_of_the_document_are_what_its_commands_draw() -> anyhow::Result<()> {
    // As `nearby-bench history --users 2000 --days 4 --only-load` has it; the first day is 2026-01-05.
    let movement = Movement { users: 2_000, days: 4, fixes_per_day: 50, first_day: 20_458, seed: 1 };
    let (postgres, folder) = (Postgres::start()?, tempfile::tempdir()?);
    postgres.make_history()?;
    postgres.psql(&movement.partitions_sql())?;
    for day in 0..movement.days {
        postgres.psql(&movement.day_sql(day))?;
    }
    postgres.psql("vacuum analyze nearby.location_history")?;
    let document = std::fs::read_to_string(programs::root().join("docs/analysts.md"))?;
    let commands =
        document.lines().filter_map(|line| line.strip_prefix("nearby history plot ")?.split_once(" --output docs/"));
    let mut drawn = 0;
    for (args, name) in commands {
        let (file, kept) = (folder.path().join(name), programs::root().join("docs").join(name));
        let ended = plot(&postgres, args, &file)?;
        ensure!(ended.code == Some(0), "{ended:?}");
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            std::fs::copy(&file, &kept)?;
        }
        ensure!(std::fs::read_to_string(&file)? == std::fs::read_to_string(&kept)?, "docs/{name} is another picture");
        ensure!(read(&kept)?.len() > 24 && document.contains(&format!("]({name})")), "{name}");
        drawn += 1;
    }
    ensure!(drawn == 2, "{drawn}");
    Ok(())
}
