//! `nearby history plot`: pictures of the history as SVG, made of what the views say about cells and hours, never about a person.

mod cells;
mod day;
mod svg;

use super::DatabaseSettings;
use crate::BadSetting;
use crate::moments::{Rfc3339, moment};
use anyhow::Context;
use nearby_schemas::TimestampMs;
use sqlx::PgConnection;
use std::path::{Path, PathBuf};

const DAY_MS: i64 = 86_400_000;
const HOUR_MS: i64 = 3_600_000;
const HOURS: usize = 24;

/// What to draw.
#[derive(clap::Subcommand)]
pub enum PlotCommand {
    /// Where it was busy: fixes per H3 cell, as a map
    Cells(CellsSettings),
    /// When it was busy: fixes and people per hour of a day
    Day(DaySettings),
}

/// Settings of `nearby history plot cells`.
#[derive(clap::Args)]
pub struct CellsSettings {
    #[command(flatten)]
    database: DatabaseSettings,
    /// From the hour of this moment; RFC 3339 or milliseconds since 1970; by default all there is
    #[arg(long, value_parser = moment, value_name = "MOMENT")]
    from: Option<TimestampMs>,
    /// Up to the beginning of the hour of this moment
    #[arg(long, value_parser = moment, value_name = "MOMENT")]
    to: Option<TimestampMs>,
    /// Size of the cells: H3's resolution, 9 is about 0.1 km², 8 about 0.7, 7 about 5
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u8).range(4..=9))]
    resolution: u8,
    /// Leave out each hour of a cell (of resolution 9) in which fewer people were: 1 draws the homes of people who live alone too
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(i32).range(1..))]
    people_min: i32,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

/// Settings of `nearby history plot day`.
#[derive(clap::Args)]
pub struct DaySettings {
    #[command(flatten)]
    database: DatabaseSettings,
    /// The day: 24 hours from this moment, such as 2026-01-07T00:00:00Z, or 2026-01-07T00:00:00-08:00 for a day in San Francisco
    #[arg(long, value_parser = moment, value_name = "MOMENT")]
    from: TimestampMs,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

/// Draws it.
pub async fn plot(command: PlotCommand) -> anyhow::Result<()> {
    match command {
        PlotCommand::Cells(settings) => plot_cells(settings).await,
        PlotCommand::Day(settings) => plot_day(settings).await,
    }
}

async fn plot_cells(settings: CellsSettings) -> anyhow::Result<()> {
    let mut connection = settings.database.connect().await?;
    let (first_ms, last_ms): (Option<i64>, Option<i64>) = sqlx::query_as(
        "SELECT (extract(epoch FROM first_at) * 1000)::bigint, (extract(epoch FROM last_at) * 1000)::bigint FROM nearby.history_span",
    )
    .fetch_one(&mut connection)
    .await
    .context("asking from when to when there is history")?;
    let (Some(first_ms), Some(last_ms)) = (first_ms, last_ms) else {
        return Err(BadSetting("there is no history yet".to_owned()).into());
    };
    // The hours of cells are whole ones.
    let from = settings.from.map_or(hour_of(first_ms), |from| hour_of(from.0).max(hour_of(first_ms)));
    let to = settings.to.map_or(hour_of(last_ms) + HOUR_MS, |to| hour_of(to.0).min(hour_of(last_ms) + HOUR_MS));
    if from >= to {
        return Err(BadSetting("there is no whole hour with history between --from and --to".to_owned()).into());
    }
    let busy: Vec<(i64, i64)> = sqlx::query_as(
        "SELECT nearby.cell_parent(cell, $1) AS parent, sum(fixes)::bigint FROM nearby.cell_hours_k($2) \
         WHERE hour >= timestamptz 'epoch' + $3 * interval '1 ms' AND hour < timestamptz 'epoch' + $4 * interval '1 ms' \
         GROUP BY parent ORDER BY parent",
    )
    .bind(i32::from(settings.resolution))
    .bind(settings.people_min)
    .bind(from)
    .bind(to)
    .fetch_all(&mut connection)
    .await
    .context("asking how busy cells were")?;
    let during = format!("{} to {} UTC", minute(TimestampMs(from)), minute(TimestampMs(to)));
    let hidden = (settings.people_min > 1)
        .then(|| format!(", hours of cells with fewer than {} people left out", settings.people_min));
    let title = format!("Fixes per H3 cell of resolution {}", settings.resolution);
    let subtitle = format!("{during}{}", hidden.unwrap_or_default());
    let picture = cells::picture(&title, &subtitle, &busy).with_context(|| BadSetting(nothing(settings.people_min)))?;
    write(&settings.output, &picture)?;
    println!("{}: {} cells", settings.output.display(), busy.len());
    Ok(())
}

async fn plot_day(settings: DaySettings) -> anyhow::Result<()> {
    let mut connection = settings.database.connect().await?;
    let hours = hours_of(&mut connection, settings.from).await?;
    if hours.iter().all(|(fixes, _)| *fixes == 0) {
        return Err(BadSetting(format!("there is no fix from {} on for 24 hours", Rfc3339(settings.from))).into());
    }
    let first_hour = usize::try_from(settings.from.0.rem_euclid(DAY_MS) / HOUR_MS).context("an hour")?;
    let title = format!("Activity in the 24 hours from {} UTC", minute(settings.from));
    write(&settings.output, &day::picture(&title, first_hour, &hours))?;
    println!("{}: {} fixes", settings.output.display(), hours.iter().map(|(fixes, _)| fixes).sum::<i64>());
    Ok(())
}

/// Fixes and people of each hour.
async fn hours_of(connection: &mut PgConnection, from: TimestampMs) -> anyhow::Result<[(i64, i64); HOURS]> {
    let rows: Vec<(i32, i64, i64)> = sqlx::query_as(
        "SELECT floor(extract(epoch FROM reported_at - from_at) / 3600)::integer AS hour, count(*), count(DISTINCT user_id) \
         FROM (SELECT timestamptz 'epoch' + $1 * interval '1 ms' AS from_at) AS day, nearby.fixes \
         WHERE reported_at >= timestamptz 'epoch' + $1 * interval '1 ms' \
           AND reported_at < timestamptz 'epoch' + ($1 + 86400000) * interval '1 ms' \
         GROUP BY hour",
    )
    .bind(from.0)
    .fetch_all(connection)
    .await
    .context("asking how busy the hours were")?;
    let mut hours = [(0, 0); HOURS];
    for (hour, fixes, people) in rows {
        if let Some(of_hour) = usize::try_from(hour).ok().and_then(|hour| hours.get_mut(hour)) {
            *of_hour = (fixes, people);
        }
    }
    Ok(hours)
}

fn nothing(people_min: i32) -> String {
    format!("in no hour were {people_min} people or more (--people-min) in a cell that H3 knows")
}

/// When the hour began that this moment is in.
fn hour_of(time_ms: i64) -> i64 {
    time_ms - time_ms.rem_euclid(HOUR_MS)
}

/// `2026-01-07 08:00`.
fn minute(time: TimestampMs) -> String {
    Rfc3339(time).to_string()[..16].replace('T', " ")
}

fn write(path: &Path, picture: &str) -> anyhow::Result<()> {
    std::fs::write(path, picture).with_context(|| format!("writing {}", path.display()))
}
