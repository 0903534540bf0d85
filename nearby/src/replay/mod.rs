//! `nearby replay`: the engine on a recorded range of the log, deterministic to the byte; and what two replays told differently.
//!
//! Records of all topics come in the order of (append time, topic, partition, offset), time is theirs, and the decider is that
//! of the processor: the same log, range and settings end in the same bytes.

mod compare;
mod course;
mod diff;
mod input;
mod lines;
mod output;
mod progress;

use crate::moments::moment;
use crate::{BadSetting, wiring};
use anyhow::{Context, bail};
use course::{Course, Viewers};
use input::Range;
use nearby_engine::EngineSettings;
use nearby_processor::records::Decoders;
use nearby_schemas::{TimestampMs, UserId};
use nearby_service::health::Readiness;
use nearby_service::kafka::Kafka;
use nearby_service::settings::{ClientSettings, KafkaSettings, RegistrySettings, RuleSettings, TopicSettings};
use output::{FileOutput, Output, TopicOutput};
use progress::Progress;
use std::path::PathBuf;
use std::time::Instant;
use tracing::subscriber::NoSubscriber;

/// Settings of `nearby replay`.
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("where").args(["output", "output_prefix", "diff"]).required(true))]
pub struct ReplaySettings {
    /// Kafka brokers, HOST:PORT,…
    #[arg(long, env = "NEARBY_BROKERS", value_name = "HOST:PORT,…", required_unless_present = "diff")]
    brokers: Option<String>,
    #[command(flatten)]
    names: TopicSettings,
    #[command(flatten)]
    registry: RegistrySettings,
    #[command(flatten)]
    client: ClientSettings,
    /// The range begins with this moment (RFC 3339, or milliseconds since 1970), by append times
    #[arg(long, value_name = "MOMENT", value_parser = moment, required_unless_present = "diff")]
    from: Option<TimestampMs>,
    /// The range ends before this moment
    #[arg(long, value_name = "MOMENT", value_parser = moment, required_unless_present = "diff")]
    to: Option<TimestampMs>,
    /// Write what viewers are told to this file, a line of JSON for each viewer and thing told; .gz compresses
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write the batches to topics of this prefix, such as shadow. for shadow.friend-moved-replay
    #[arg(long, value_name = "PREFIX")]
    output_prefix: Option<String>,
    /// Whoever was connected by the topics of sessions and gateways is told, instead of everybody with a friend list
    #[arg(long, conflicts_with = "viewers")]
    sessions: bool,
    /// Only these users are told
    #[arg(long, value_name = "ID,…", value_delimiter = ',')]
    viewers: Vec<UserId>,
    #[command(flatten)]
    rules: RuleSettings,
    /// Compare two outputs instead: files, or topic:NAME; exit code 1 if they differ
    #[arg(long, value_names = ["A", "B"], num_args = 2, conflicts_with_all = ["from", "to", "sessions", "viewers"])]
    diff: Vec<String>,
    /// Pairs of viewer and friend that a comparison tells
    #[arg(long, value_name = "N", default_value_t = 20, requires = "diff")]
    pairs_max: usize,
}

/// Replays or compares.
pub async fn replay(settings: ReplaySettings) -> anyhow::Result<()> {
    let kafka = match settings.brokers.clone() {
        Some(brokers) => {
            let (names, registry, client) =
                (settings.names.clone(), settings.registry.clone(), settings.client.clone());
            let mut kafka = Kafka::from_settings(&KafkaSettings { brokers, names, registry, client });
            wiring::connect_registry(&mut kafka, &settings.registry, &[], &Readiness::default()).await?;
            Some(kafka)
        }
        None => None,
    };
    if let [a, b] = &settings.diff[..] {
        let (a, b, pairs_max) = (a.clone(), b.clone(), settings.pairs_max);
        let compared = tokio::task::spawn_blocking(move || compare::compare_outputs(&a, &b, kafka.as_ref()));
        let comparison = compared.await.context("comparing")??;
        print!("{}", diff::explanation(&comparison, pairs_max));
        if !comparison.is_same() {
            bail!("the two replays differ");
        }
        return Ok(());
    }
    let (Some(kafka), Some(from), Some(to)) = (kafka, settings.from, settings.to) else {
        return Err(BadSetting("give --brokers, --from and --to".to_owned()).into());
    };
    check(&settings, &kafka, Range { from, to })?;
    wiring::check_broker(&kafka).await?;
    let runtime = tokio::runtime::Handle::current();
    let replaying = move || run(&settings, &kafka, Range { from, to }, &runtime);
    tokio::task::spawn_blocking(replaying).await.context("replaying")?
}

fn check(settings: &ReplaySettings, kafka: &Kafka, range: Range) -> anyhow::Result<()> {
    if range.from >= range.to {
        return Err(BadSetting("the range is empty: --to has to be later than --from".to_owned()).into());
    }
    if range.to > TimestampMs::now() {
        return Err(BadSetting("--to is in the future: the log is not written yet".to_owned()).into());
    }
    if settings.output_prefix.as_ref() == Some(&kafka.prefix) {
        return Err(
            BadSetting("--output-prefix is that of the topics which services read: choose another".to_owned()).into()
        );
    }
    Ok(())
}

fn run(settings: &ReplaySettings, kafka: &Kafka, range: Range, runtime: &tokio::runtime::Handle) -> anyhow::Result<()> {
    let started_at = Instant::now();
    let partitions = kafka.check_topics()?;
    let log = crate::log::Log::open(kafka)?;
    let rules = EngineSettings {
        radius_m: f64::from(settings.rules.radius_m),
        inactive_after_ms: i64::from(settings.rules.inactive_after_s) * 1000,
        gateway_lost_after_ms: i64::from(settings.rules.gateway_lost_after_s) * 1000,
    };
    let found = input::find(&log, &kafka.topics.location_events(), range, rules.inactive_after_ms)?;
    found.warnings.iter().for_each(|warning| eprintln!("nearby: {warning}"));
    // Embedded Kafka knows no settings, and compacts nothing.
    let lists = runtime.block_on(kafka.topic_settings(&kafka.topics.friend_lists())).unwrap_or_default();
    if let Some(warning) = input::lists_warning(&lists, range.from, TimestampMs::now()) {
        eprintln!("nearby: {warning}");
    }
    let viewers = viewers(settings);
    if viewers == Viewers::Recorded {
        eprintln!(
            "nearby: sessions that were closed or opened again since --from may be gone: their topic is compacted"
        );
    }
    let mut output = open_output(settings, kafka, &viewers, runtime)?;
    let decoders = Decoders::new(partitions, &kafka.codecs);
    let (mut records, total) = input::read(&log, kafka, &found.spans, &viewers, &decoders)?;
    let mut course = Course::new(rules, partitions, range.from, viewers);
    let (mut progress, mut undecodable, mut first) = (Progress::new(total)?, 0_u64, None);
    // The decider's log is that of a processor that serves viewers, which nobody does here.
    tracing::subscriber::with_default(NoSubscriber::default(), || -> anyhow::Result<()> {
        while let Some(record) = records.next()? {
            if record.time >= range.to {
                break;
            }
            progress.record(record.time);
            match record.what {
                Ok(input) => course.take(record.time, input),
                Err(because) => {
                    undecodable += 1;
                    first.get_or_insert(because);
                }
            }
            course.told().try_for_each(|told| output.take(told))?;
        }
        course.end(range.to);
        course.told().try_for_each(|told| output.take(told))?;
        Ok(())
    })?;
    progress.finish();
    if let Some(first) = first {
        eprintln!(
            "nearby: {undecodable} undecodable records were passed over, as a processor does; the first: {first}"
        );
    }
    let place = output.finish()?;
    println!("{} reports replayed in {:.1} s into {place}", found.reports, started_at.elapsed().as_secs_f64());
    Ok(())
}

fn viewers(settings: &ReplaySettings) -> Viewers {
    match settings.viewers.is_empty() {
        false => Viewers::Named(settings.viewers.iter().copied().collect()),
        true if settings.sessions => Viewers::Recorded,
        true => Viewers::Listed,
    }
}

fn open_output(
    settings: &ReplaySettings,
    kafka: &Kafka,
    viewers: &Viewers,
    runtime: &tokio::runtime::Handle,
) -> anyhow::Result<Output> {
    match (&settings.output, &settings.output_prefix) {
        (Some(file), _) => Ok(Output::File(FileOutput::create(file)?)),
        (None, Some(prefix)) => {
            let mut topics = TopicOutput::new(kafka, prefix, runtime.clone())?;
            if *viewers != Viewers::Recorded {
                topics.open(&course::gateway())?;
            }
            Ok(Output::Topics(topics))
        }
        (None, None) => Err(BadSetting("give --output or --output-prefix".to_owned()).into()),
    }
}
