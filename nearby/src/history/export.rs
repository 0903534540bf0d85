//! `nearby history export`: one person's data, or everybody's of a time range, as a file that other tools open.
//!
//! CSV and Parquet have the rows as they are. GeoJSON and GPX are for maps and have the fixes: rows with a place, each time
//! once. Rows go from Postgres to the file as they come; the file has its name only when it is complete.

mod csv;
mod fixes;
mod geojson;
mod gpx;
mod output;
mod parquet;

use super::{DatabaseSettings, about_bytes, grouped};
use crate::BadSetting;
use crate::moments::{Rfc3339, moment};
use anyhow::{Context, bail};
use futures_util::StreamExt;
use nearby_schemas::{TimestampMs, UserId};
use nearby_service::{Stop, stop_on_signals};
use output::Output;
use sqlx::{AssertSqlSafe, Executor, PgConnection};
use std::io::Write;
use std::path::PathBuf;

/// Years that Postgres and everybody else can write.
const MOMENTS_MS: std::ops::Range<i64> = 0..253_402_300_800_000;
/// The columns of [`Row`], in its order; times in microseconds since 1970.
const COLUMNS: &str = "user_id, (extract(epoch FROM reported_at) * 1000000)::bigint, \
                       (extract(epoch FROM received_at) * 1000000)::bigint, lat, lon, accuracy_m, speed_mps, heading_deg, \
                       cell, topic, kafka_partition, kafka_offset";

/// Settings of `nearby history export`.
#[derive(clap::Args)]
pub struct ExportSettings {
    #[command(flatten)]
    database: DatabaseSettings,
    /// Whose data, with the friend list beside it, in OUTPUT.friends.csv; without it everybody's, and both --from and --to are needed
    #[arg(long, value_name = "ID")]
    user: Option<UserId>,
    /// Reported at or after this moment (RFC 3339, or milliseconds since 1970)
    #[arg(long, value_name = "MOMENT", value_parser = bound)]
    from: Option<TimestampMs>,
    /// Reported before this moment
    #[arg(long, value_name = "MOMENT", value_parser = bound)]
    to: Option<TimestampMs>,
    /// csv and parquet: all rows and columns; geojson and gpx, for one user: a point per fix
    #[arg(long, value_enum)]
    format: Format,
    /// The file
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Overwrite what is there
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Geojson,
    Gpx,
    Csv,
    Parquet,
}

fn bound(text: &str) -> Result<TimestampMs, String> {
    match moment(text) {
        Ok(time) if !MOMENTS_MS.contains(&time.0) => Err("not within the years 1970 to 9999".to_owned()),
        other => other,
    }
}

/// A row of `location_history`.
#[derive(Clone, Debug, Default, PartialEq)]
struct Row {
    user_id: i64,
    /// Microseconds since 1970.
    reported_at_us: i64,
    received_at_us: i64,
    lat: Option<f64>,
    lon: Option<f64>,
    accuracy_m: Option<f32>,
    speed_mps: Option<f32>,
    heading_deg: Option<f32>,
    cell: Option<i64>,
    topic: String,
    kafka_partition: i32,
    kafka_offset: i64,
}

type Columns =
    (i64, i64, i64, Option<f64>, Option<f64>, Option<f32>, Option<f32>, Option<f32>, Option<i64>, String, i32, i64);

impl From<Columns> for Row {
    fn from(columns: Columns) -> Row {
        let (user_id, reported_at_us, received_at_us, lat, lon, accuracy_m, speed_mps, heading_deg, ..) = columns;
        let (.., cell, topic, kafka_partition, kafka_offset) = columns;
        Row {
            user_id,
            reported_at_us,
            received_at_us,
            lat,
            lon,
            accuracy_m,
            speed_mps,
            heading_deg,
            cell,
            topic,
            kafka_partition,
            kafka_offset,
        }
    }
}

/// A format: rows in order of time, and then the end.
trait Writer: Send {
    fn row(&mut self, row: Row) -> anyhow::Result<()>;
    /// What is left; all bytes are then with the output.
    fn finish(self: Box<Self>) -> anyhow::Result<Output>;
}

/// Exports.
pub async fn export(settings: ExportSettings) -> anyhow::Result<()> {
    check(&settings)?;
    let list = settings.user.map(|user| (user, friends_file(&settings)));
    // From here on there are files that must not be left behind.
    let stop = Stop::new();
    stop_on_signals(stop.clone()).context("listening to signals")?;
    let output = Output::create(&settings.output, settings.force)?;
    let mut list =
        list.map(|(user, file)| Ok::<_, anyhow::Error>((user, Output::create(&file, settings.force)?))).transpose()?;
    let mut connection = settings.database.connect().await?;
    // Rows and list as they were at one moment.
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await.context("asking Postgres")?;
    let writer = writer(settings.format, settings.user, output)?;
    let (output, rows) = write_rows(&mut connection, &settings, writer, &stop).await?;
    let friends = match &mut list {
        Some((user, list)) => write_friends(&mut connection, *user, list).await?,
        None => 0,
    };
    let (file, bytes) = (output.path().display().to_string(), output.commit()?);
    if let Some((user, list)) = list {
        let file = list.path().display().to_string();
        list.commit()?;
        println!("{} friends of user {user} in {file}", grouped(friends));
    }
    let whose = settings.user.map_or_else(|| "everybody".to_owned(), |user| format!("user {user}"));
    let unit = if matches!(settings.format, Format::Geojson | Format::Gpx) { "fixes" } else { "rows" };
    println!("{} {unit} of {whose} in {file}, {}", grouped(rows), about_bytes(bytes));
    Ok(())
}

fn check(settings: &ExportSettings) -> anyhow::Result<()> {
    let refuse = |because: &str| Err(BadSetting(because.to_owned()).into());
    if settings.user.is_none() && matches!(settings.format, Format::Geojson | Format::Gpx) {
        return refuse("geojson and gpx are for one user: give --user, or --format csv or parquet");
    }
    if settings.user.is_none() && (settings.from.is_none() || settings.to.is_none()) {
        return refuse("without --user both --from and --to are needed");
    }
    if settings.from.zip(settings.to).is_some_and(|(from, to)| from >= to) {
        return refuse("--from has to be before --to");
    }
    Ok(())
}

fn friends_file(settings: &ExportSettings) -> PathBuf {
    let mut name = settings.output.clone().into_os_string();
    name.push(".friends.csv");
    name.into()
}

fn writer(format: Format, user: Option<UserId>, output: Output) -> anyhow::Result<Box<dyn Writer>> {
    Ok(match (format, user) {
        (Format::Csv, _) => Box::new(csv::Csv::begin(output)?),
        (Format::Parquet, _) => Box::new(parquet::Parquet::begin(output)?),
        (Format::Geojson, _) => Box::new(geojson::Geojson::begin(output)?),
        (Format::Gpx, user) => Box::new(gpx::Gpx::begin(output, user.unwrap_or(UserId(0)))?),
    })
}

/// From Postgres into the file, row by row; how many were written.
async fn write_rows(
    connection: &mut PgConnection,
    settings: &ExportSettings,
    mut writer: Box<dyn Writer>,
    stop: &Stop,
) -> anyhow::Result<(Output, i64)> {
    let only_fixes = matches!(settings.format, Format::Geojson | Format::Gpx);
    let (mut fixes, mut count) = (fixes::Fixes::default(), 0);
    let query = query(settings);
    let mut rows = sqlx::query_as::<_, Columns>(AssertSqlSafe(query)).fetch(connection);
    loop {
        let Some(next) = stop.run_until_cancelled(rows.next()).await else {
            bail!("interrupted: nothing was written");
        };
        let row = next.transpose().context("reading the history")?.map(Row::from);
        let is_last = row.is_none();
        let row = if only_fixes { fixes.next(row) } else { row };
        if let Some(row) = row {
            count += i64::from(row.lat.is_some() || !only_fixes);
            writer.row(row)?;
        }
        if is_last {
            return Ok((writer.finish()?, count));
        }
    }
}

/// In the order of the primary key, so that Postgres need not sort much. Its values are numbers and moments.
fn query(settings: &ExportSettings) -> String {
    let mut conditions = Vec::new();
    conditions.extend(settings.user.map(|user| format!("user_id = {user}")));
    conditions.extend(settings.from.map(|from| format!("reported_at >= '{}'", Rfc3339(from))));
    conditions.extend(settings.to.map(|to| format!("reported_at < '{}'", Rfc3339(to))));
    let conditions = if conditions.is_empty() { "true".to_owned() } else { conditions.join(" AND ") };
    format!(
        "SELECT {COLUMNS} FROM nearby.location_history WHERE {conditions} \
         ORDER BY reported_at, topic, kafka_partition, kafka_offset"
    )
}

/// The friend list, a line a friend; how many there are.
async fn write_friends(connection: &mut PgConnection, user: UserId, output: &mut Output) -> anyhow::Result<i64> {
    let list = "SELECT friends, floor(extract(epoch FROM changed_at) * 1000)::bigint FROM nearby.friend_lists WHERE user_id = $1";
    let list: Option<(Vec<i64>, i64)> =
        sqlx::query_as(list).bind(user.0).fetch_optional(connection).await.context("reading the friend list")?;
    let (friends, changed_at) = list.unwrap_or_default();
    let write = |output: &mut Output| {
        writeln!(output, "user_id,friend,changed_at")?;
        let changed_at = Rfc3339(TimestampMs(changed_at));
        friends.iter().try_for_each(|friend| writeln!(output, "{user},{friend},{changed_at}"))
    };
    write(output).with_context(|| output.writing())?;
    Ok(i64::try_from(friends.len()).unwrap_or(i64::MAX))
}

/// RFC 3339 of microseconds; the sink writes milliseconds.
fn time(us: i64) -> Rfc3339 {
    Rfc3339(TimestampMs(us.div_euclid(1_000)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a writer makes of rows.
    pub fn written(begin: impl FnOnce(Output) -> anyhow::Result<Box<dyn Writer>>, rows: &[Row]) -> String {
        let (output, path) = output::tests::scratch();
        let mut writer = begin(output).expect("begins");
        rows.iter().for_each(|row| writer.row(row.clone()).expect("takes a row"));
        writer.finish().expect("ends").commit().expect("is kept");
        let text = std::fs::read_to_string(&path).expect("is text");
        std::fs::remove_file(path).expect("is removed");
        text
    }

    /// A row with a place, at a second.
    pub fn at(second: i64, lat: f64, lon: f64) -> Row {
        let us = second * 1_000_000;
        Row {
            user_id: 7,
            reported_at_us: us,
            received_at_us: us,
            lat: Some(lat),
            lon: Some(lon),
            topic: "t".to_owned(),
            ..Row::default()
        }
    }

    #[test]
    fn moments_are_within_what_can_be_written() {
        assert_eq!(bound("1970-01-01T00:00:00Z"), Ok(TimestampMs(0)));
        for text in ["-1", "253402300800000", "yesterday"] {
            assert!(bound(text).is_err(), "{text}");
        }
    }
}
