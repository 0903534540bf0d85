//! `nearby topics clean`: removes the topics of gateways that were lost a day ago.
//!
//! The clock is rule R8's: the newest append time in `gateways`. So nothing is removed while no gateway is alive, and a
//! machine with a wrong clock removes nothing that it should not.

use crate::decoded::gateway_of;
use crate::log::{Log, LogError, Merged, Span};
use crate::moments::Rfc3339;
use crate::wiring;
use anyhow::Context;
use nearby_schemas::{GatewayId, TimestampMs};
use nearby_service::kafka::Kafka;
use nearby_service::settings::KafkaSettings;
use rdkafka::Message;
use std::collections::BTreeMap;
use std::fmt;

/// A gateway's topic goes when its gateway has been lost for longer.
const LOST_FOR_MS: i64 = 86_400_000;

/// Settings of `nearby topics clean`.
#[derive(clap::Args)]
pub struct CleanSettings {
    #[command(flatten)]
    kafka: KafkaSettings,
    /// A gateway is lost when its heartbeat is this far behind the newest one, in seconds; its topic goes a day later
    #[arg(long, env = "NEARBY_GATEWAY_LOST_AFTER_S", default_value_t = 30, value_parser = clap::value_parser!(u32).range(6..=86_400))]
    gateway_lost_after_s: u32,
    /// Remove nothing, only say what would be removed
    #[arg(long)]
    dry_run: bool,
}

/// What `gateways` says.
#[derive(Debug, Default)]
struct Heard {
    /// The newest append time.
    clock: Option<TimestampMs>,
    /// The last word of each gateway.
    gateways: BTreeMap<GatewayId, LastWord>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LastWord {
    Heartbeat(TimestampMs),
    /// A tombstone: it left.
    Gone(TimestampMs),
}

/// What becomes of a gateway's topic.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    /// Its gateway is alive, or was a day ago.
    Needed,
    Removed(Because),
    /// Nobody heard of its gateway; this says why it stays nevertheless.
    Stays(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Because {
    LastHeartbeat(TimestampMs),
    Left(TimestampMs),
    LastRecord(TimestampMs),
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Because::LastHeartbeat(at) => write!(f, "the last heartbeat of its gateway was at {}", Rfc3339(*at)),
            Because::Left(at) => write!(f, "its gateway left at {}", Rfc3339(*at)),
            Because::LastRecord(at) => {
                write!(f, "its gateway has no heartbeat, and its last record is of {}", Rfc3339(*at))
            }
        }
    }
}

/// Cleans.
pub async fn clean(settings: CleanSettings) -> anyhow::Result<()> {
    let kafka = Kafka::from_settings(&settings.kafka);
    wiring::check_broker(&kafka).await?;
    let asked = kafka.clone();
    let lost_after_ms = i64::from(settings.gateway_lost_after_s) * 1_000;
    let judged = tokio::task::spawn_blocking(move || judge_all(&asked, lost_after_ms));
    let judged = judged.await.context("reading the heartbeats")??;
    let mut removed = 0;
    for (topic, verdict) in &judged {
        match verdict {
            Verdict::Needed => {}
            Verdict::Stays(because) => println!("{topic} stays: {because}"),
            Verdict::Removed(because) if settings.dry_run => {
                removed += 1;
                println!("{topic} would be removed: {because}");
            }
            Verdict::Removed(because) => {
                kafka.delete_topic(topic).await?;
                removed += 1;
                println!("{topic} removed: {because}");
            }
        }
    }
    let would = if settings.dry_run { "would be " } else { "" };
    println!("{removed} of {} gateway topics {would}removed", judged.len());
    Ok(())
}

fn judge_all(kafka: &Kafka, lost_after_ms: i64) -> Result<Vec<(String, Verdict)>, LogError> {
    let log = Log::open(kafka)?;
    // The topics first: the gateway of one that is new has not beaten yet when its topic is made.
    let topics = log.topics()?;
    let heard = listen(&log, &kafka.topics.gateways())?;
    let mut judged = Vec::new();
    for topic in topics.into_keys() {
        let Some(gateway) = gateway_of(&topic, &kafka.topics) else { continue };
        let last_record = if heard.gateways.contains_key(&gateway) { None } else { last_record(&log, &topic)? };
        let verdict = judge(&heard, &gateway, last_record, lost_after_ms);
        judged.push((topic, verdict));
    }
    Ok(judged)
}

/// Keys and append times suffice: a heartbeat that nobody can decode is a sign of life all the same.
fn listen(log: &Log, topic: &str) -> Result<Heard, LogError> {
    let spans = log.spans(topic)?;
    let beats = log.read(topic, &spans, |record| {
        let gateway = record.key().and_then(|key| GatewayId::new(String::from_utf8_lossy(key)).ok());
        (gateway, record.payload().is_some())
    })?;
    let (mut beats, mut heard) = (Merged::new(vec![beats])?, Heard::default());
    while let Some(beat) = beats.next()? {
        heard.clock = heard.clock.max(Some(beat.time));
        if let (Some(gateway), is_alive) = beat.what {
            let word = if is_alive { LastWord::Heartbeat(beat.time) } else { LastWord::Gone(beat.time) };
            heard.gateways.insert(gateway, word);
        }
    }
    Ok(heard)
}

/// Of when the youngest record is.
fn last_record(log: &Log, topic: &str) -> Result<Option<TimestampMs>, LogError> {
    let spans = log.spans(topic)?;
    let youngest = |span: Span| Span { from: span.from.max(span.end - 1), ..span };
    let spans: Vec<Span> = spans.into_iter().map(youngest).collect();
    Ok(log.first_times(topic, &spans)?.into_iter().flatten().max())
}

fn judge(heard: &Heard, gateway: &GatewayId, last_record: Option<TimestampMs>, lost_after_ms: i64) -> Verdict {
    let Some(clock) = heard.clock else {
        return Verdict::Stays("`gateways` is empty, so nobody knows who is lost, or what time it is");
    };
    let long_ago = |at: TimestampMs| clock.since_ms(at) > LOST_FOR_MS.saturating_add(lost_after_ms);
    match heard.gateways.get(gateway) {
        Some(LastWord::Heartbeat(at)) if long_ago(*at) => Verdict::Removed(Because::LastHeartbeat(*at)),
        Some(LastWord::Gone(at)) if long_ago(*at) => Verdict::Removed(Because::Left(*at)),
        Some(_) => Verdict::Needed,
        None => match last_record {
            Some(at) if long_ago(at) => Verdict::Removed(Because::LastRecord(at)),
            Some(_) => Verdict::Stays("its gateway has no heartbeat, but it has a record of the last day"),
            None => Verdict::Stays(
                "its gateway has no heartbeat, and no record tells how old it is; \
                 `kafka-topics --delete` removes it, if no gateway is just starting",
            ),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOST_AFTER_MS: i64 = 30_000;
    const CLOCK: TimestampMs = TimestampMs(1_795_374_428_209);

    fn ago(ms: i64) -> TimestampMs {
        CLOCK.plus_ms(-ms)
    }

    fn judged(last_word: Option<LastWord>, last_record: Option<TimestampMs>) -> Verdict {
        let gateway = GatewayId::new("g1-a").expect("legal");
        let gateways = last_word.map(|word| (gateway.clone(), word)).into_iter().collect();
        judge(&Heard { clock: Some(CLOCK), gateways }, &gateway, last_record, LOST_AFTER_MS)
    }

    #[test]
    fn goes_when_its_gateway_was_lost_a_day_ago_and_not_before() {
        let limit = LOST_FOR_MS + LOST_AFTER_MS;
        for (at, after) in [(ago(0), false), (ago(limit), false), (ago(limit + 1), true)] {
            let expected = |because| if after { Verdict::Removed(because) } else { Verdict::Needed };
            assert_eq!(judged(Some(LastWord::Heartbeat(at)), None), expected(Because::LastHeartbeat(at)));
            assert_eq!(judged(Some(LastWord::Gone(at)), None), expected(Because::Left(at)));
        }
    }

    #[test]
    fn without_a_heartbeat_its_records_must_tell_its_age() {
        let limit = LOST_FOR_MS + LOST_AFTER_MS;
        assert_eq!(judged(None, Some(ago(limit + 1))), Verdict::Removed(Because::LastRecord(ago(limit + 1))));
        assert!(matches!(judged(None, Some(ago(limit))), Verdict::Stays(_)));
        assert!(matches!(judged(None, None), Verdict::Stays(_)));
    }

    #[test]
    fn without_a_clock_nothing_goes() {
        let gateway = GatewayId::new("g1-a").expect("legal");
        assert!(matches!(judge(&Heard::default(), &gateway, Some(TimestampMs(0)), 0), Verdict::Stays(_)));
    }
}
