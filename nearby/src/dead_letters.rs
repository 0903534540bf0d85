//! `nearby dead-letters`: what nobody could use, and writing it back once somebody can.

mod letters;
mod redrive;

use crate::decoded::text_or_bytes;
use crate::log::{Log, LogError, Merged};
use crate::moments::moment;
use crate::tail::wrote;
use crate::wiring;
use anyhow::Context;
use letters::{Letter, Letters, Origin, Selection, found};
use nearby_schemas::TimestampMs;
use nearby_service::kafka::Kafka;
use nearby_service::settings::KafkaSettings;
use serde::Serialize;
use serde_json::Value;
use std::io::{BufWriter, Write};

/// What to do about dead letters.
#[derive(clap::Subcommand)]
pub enum DeadLettersCommand {
    /// Print them, a line of JSON each: where each came from, why, and what became of it
    List(ListSettings),
    /// Write their records back to where they came from; without --yes only say what would be done
    Redrive(redrive::RedriveSettings),
}

/// Settings of `nearby dead-letters list`.
#[derive(clap::Args)]
pub struct ListSettings {
    #[command(flatten)]
    kafka: KafkaSettings,
    /// Only those that came from this topic, with its prefix or without
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// Only those written at or after this moment (RFC 3339, or milliseconds since 1970)
    #[arg(long, value_name = "MOMENT", value_parser = moment)]
    since: Option<TimestampMs>,
}

/// Lists or redrives.
pub async fn dead_letters(command: DeadLettersCommand) -> anyhow::Result<()> {
    match command {
        DeadLettersCommand::List(settings) => list(settings).await,
        DeadLettersCommand::Redrive(settings) => redrive::redrive(settings).await,
    }
}

/// A letter, as a line.
#[derive(Serialize)]
struct Line<'a> {
    partition: i32,
    offset: i64,
    written_at: TimestampMs,
    origin: Option<Place<'a>>,
    reason: &'a str,
    key: Option<Value>,
    /// None where there is no value.
    size_bytes: Option<usize>,
    /// Where the record is now.
    redriven_to: Option<Place<'a>>,
}

#[derive(Serialize)]
struct Place<'a> {
    topic: &'a str,
    partition: i32,
    offset: i64,
}

impl<'a> From<&'a Origin> for Place<'a> {
    fn from(origin: &'a Origin) -> Place<'a> {
        Place { topic: &origin.topic, partition: origin.partition, offset: origin.offset }
    }
}

async fn list(settings: ListSettings) -> anyhow::Result<()> {
    let kafka = Kafka::from_settings(&settings.kafka);
    wiring::check_broker(&kafka).await?;
    let topic = settings.topic.map(|topic| prefixed(&kafka, topic));
    let selection = Selection { topic, since: settings.since, ..Selection::default() };
    let asked = kafka.clone();
    let letters = tokio::task::spawn_blocking(move || read(&Log::open(&asked)?, &asked));
    let letters = letters.await.context("reading the dead letters")??;
    let mut out = BufWriter::new(std::io::stdout().lock());
    for letter in letters.letters.iter().filter(|letter| selection.wants(letter)) {
        if wrote(writeln!(out, "{}", line(letter, &letters)?))?.is_none() {
            return Ok(());
        }
    }
    wrote(out.flush()).map(drop)
}

fn line(letter: &Letter, letters: &Letters) -> anyhow::Result<String> {
    let line = Line {
        partition: letter.partition,
        offset: letter.offset,
        written_at: letter.written_at,
        origin: letter.origin.as_ref().map(Place::from),
        reason: &letter.reason,
        key: letter.key.as_deref().map(text_or_bytes),
        size_bytes: letter.size_bytes,
        redriven_to: letters.redriven_to(letter).map(Place::from),
    };
    serde_json::to_string(&line).context("a letter as JSON")
}

/// The name of one of this deployment's topics, which may be written with its prefix or without.
fn prefixed(kafka: &Kafka, topic: String) -> String {
    if topic.starts_with(&kafka.prefix) { topic } else { format!("{}{topic}", kafka.prefix) }
}

/// Everything in `dead-letters`, but for the values.
fn read(log: &Log, kafka: &Kafka) -> Result<Letters, LogError> {
    let topic = kafka.topics.dead_letters();
    let reading = log.read(&topic, &log.spans(&topic)?, |record| found(record))?;
    let (mut reading, mut letters) = (Merged::new(vec![reading])?, Letters::default());
    while let Some(record) = reading.next()? {
        letters.take(record.what);
    }
    Ok(letters)
}
