//! What a replay reads: where its range lies in the log, and the records of four topics in one order.

use super::course::{Input, Viewers};
use crate::log::{Log, LogError, Merged, Reading, Span};
use crate::moments::Rfc3339;
use anyhow::bail;
use nearby_processor::records::{Decoders, Raw, oldest_needed};
use nearby_processor::wake::Wake;
use nearby_schemas::TimestampMs;
use nearby_service::kafka::Kafka;
use rdkafka::Message;
use rdkafka::message::BorrowedMessage;
use std::collections::BTreeMap;

/// The range of a replay: from the first moment up to, but not including, the second.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    pub from: TimestampMs,
    pub to: TimestampMs,
}

/// Where the range lies in `location-events`.
#[derive(Debug)]
pub struct Found {
    /// With the records before it that decide what is true at its beginning.
    pub spans: Vec<Span>,
    /// Reports within the range.
    pub reports: i64,
    /// What a person should know about the beginning.
    pub warnings: Vec<String>,
}

/// A decoded record, or where it is and why it cannot be read.
pub type Decoded = Result<Input, String>;

/// Finds the range.
///
/// # Errors
/// If it is not, or not wholly, in the log.
pub fn find(log: &Log, topic: &str, range: Range, inactive_after_ms: i64) -> anyhow::Result<Found> {
    let all = log.spans(topic)?;
    let oldest = oldest_needed(inactive_after_ms, range.from);
    let before = log.offsets_at(topic, &all, oldest)?;
    let starts = log.offsets_at(topic, &all, range.from)?;
    let ends = log.offsets_at(topic, &all, range.to)?;
    let firsts = log.first_times(topic, &all)?;
    let reports = starts.iter().zip(&ends).map(|(start, end)| (end - start).max(0)).sum();
    let (from, to) = (Rfc3339(range.from), Rfc3339(range.to));
    let mut warnings = Vec::new();
    for (span, first) in all.iter().zip(&firsts).filter(|(span, _)| span.from > 0) {
        let partition = span.partition;
        match first {
            Some(first) if *first > range.from => bail!(
                "the range is not wholly in the log any more: partition {partition} of {topic} begins at {}, because \
                 retention has removed what was before; --from may not be earlier",
                Rfc3339(*first)
            ),
            Some(first) if *first > oldest => warnings.push(format!(
                "partition {partition} of {topic} begins at {}: positions from before it are missing at --from",
                Rfc3339(*first)
            )),
            Some(_) => {}
            None => warnings
                .push(format!("partition {partition} of {topic} is empty: retention has removed all that was in it")),
        }
    }
    if reports == 0 {
        let there = match firsts.iter().flatten().min() {
            Some(first) => format!("its oldest record is of {}", Rfc3339(*first)),
            None => "it is empty".to_owned(),
        };
        bail!("no report was appended to {topic} from {from} until {to}; {there}");
    }
    let spans = all.iter().zip(before.iter().zip(&ends));
    let spans = spans.map(|(span, (from, end))| Span { from: *from, end: *end, ..*span }).collect();
    Ok(Found { spans, reports, warnings })
}

/// What a person should know about friend lists, which the log forgets when newer ones replace them.
pub fn lists_warning(settings: &BTreeMap<String, String>, from: TimestampMs, now: TimestampMs) -> Option<String> {
    if !settings.get("cleanup.policy")?.contains("compact") {
        return None;
    }
    let kept_ms: i64 = settings.get("min.compaction.lag.ms")?.parse().ok()?;
    let kept_from = now.plus_ms(kept_ms.saturating_neg());
    (from < kept_from).then(|| {
        format!(
            "friend lists that were replaced before {} may be gone from the log (min.compaction.lag.ms {kept_ms}): whoever \
             got a newer one since --from may be without friends until then",
            Rfc3339(kept_from)
        )
    })
}

/// Begins to read everything that a replay needs. Friend lists and sessions count from the beginning of their topics.
pub fn read<'a>(
    log: &Log,
    kafka: &Kafka,
    reports: &[Span],
    viewers: &Viewers,
    decoders: &'a Decoders,
) -> Result<(Merged<'a, Decoded>, u64), LogError> {
    let topics = &kafka.topics;
    let mut total = 0;
    let mut begin = |topic: String, spans: &[Span], decode: fn(&Decoders, Raw<'_>) -> Decoded| {
        total += spans.iter().map(|span| (span.end - span.from).max(0).unsigned_abs()).sum::<u64>();
        let decode =
            move |record: &BorrowedMessage<'_>| decode(decoders, raw(record)).map_err(|because| at(record, &because));
        log.read(&topic, spans, decode)
    };
    let mut readings: Vec<Reading<'a, Decoded>> = vec![
        begin(topics.location_events(), reports, |decoders, raw| decoders.report(raw).map(Input::Report))?,
        begin(topics.friend_lists(), &log.spans(&topics.friend_lists())?, |decoders, raw| {
            decoders.list(raw).map(Input::List)
        })?,
    ];
    if *viewers == Viewers::Recorded {
        readings.push(begin(topics.sessions(), &log.spans(&topics.sessions())?, |decoders, raw| {
            decoders.session(raw).map(Input::Session)
        })?);
        readings.push(begin(topics.gateways(), &log.spans(&topics.gateways())?, |decoders, raw| {
            decoders.heartbeat(raw).map(|(gateway, at)| Input::Gateway(Wake::Heartbeat(gateway, at)))
        })?);
    }
    Ok((Merged::new(readings)?, total))
}

fn raw<'a>(record: &'a BorrowedMessage<'_>) -> Raw<'a> {
    let appended_at = record.timestamp().to_millis().map(TimestampMs);
    Raw { partition: record.partition(), key: record.key(), value: record.payload(), appended_at }
}

fn at(record: &BorrowedMessage<'_>, because: &str) -> String {
    format!("{}/{}/{}: {because}", record.topic(), record.partition(), record.offset())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_doubtful_where_compaction_may_have_been() {
        let settings = |policy: &str, lag: &str| {
            let settings = [("cleanup.policy", policy), ("min.compaction.lag.ms", lag)];
            BTreeMap::from(settings.map(|(key, value)| (key.to_owned(), value.to_owned())))
        };
        let warning =
            |settings: &BTreeMap<String, String>, from| lists_warning(settings, TimestampMs(from), TimestampMs(1_000));
        assert_eq!(warning(&settings("compact", "100"), 900), None);
        assert!(
            warning(&settings("compact", "100"), 899).is_some_and(|text| text.contains("1970-01-01T00:00:00.900Z"))
        );
        assert_eq!(warning(&settings("delete", "100"), 0), None);
        assert_eq!(warning(&BTreeMap::new(), 0), None, "embedded Kafka says nothing, and compacts nothing");
    }
}
