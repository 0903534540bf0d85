//! Until when a topic keeps what was written to it, by its own settings. Pure.

use crate::moments::Rfc3339;
use nearby_schemas::TimestampMs;
use std::collections::BTreeMap;

/// A topic's settings by Kafka's names, or why they are not known.
pub type Settings = Result<BTreeMap<String, String>, String>;

/// Of a topic whose records go by age: records go by whole segments, so the newest record of one keeps all of it.
pub fn remains_deleted(topic: &str, settings: &Settings, now: TimestampMs) -> String {
    let settings = match settings {
        Ok(settings) => settings,
        Err(because) => return format!("{topic}, nobody knows until when: {because}"),
    };
    match (number(settings, "retention.ms"), number(settings, "segment.ms")) {
        (Some(retention_ms), Some(segment_ms)) if retention_ms >= 0 => {
            let first = now.plus_ms(retention_ms);
            let last = first.plus_ms(segment_ms);
            format!(
                "{topic} until its retention ends, between {} and {} (retention.ms {}, and a segment that is up to segment.ms {} long \
                 goes as a whole)",
                Rfc3339(first),
                Rfc3339(last),
                duration(retention_ms),
                duration(segment_ms)
            )
        }
        (Some(_), Some(_)) => format!("{topic} for ever: its retention.ms is -1"),
        _ => format!("{topic}, nobody knows until when: the broker does not say"),
    }
}

/// Of a topic whose records go when a newer one has their key.
pub fn remains_compacted(topic: &str, settings: &Settings, now: TimestampMs) -> String {
    let settings = match settings {
        Ok(settings) => settings,
        Err(because) => return format!("{topic}, nobody knows until when: {because}"),
    };
    let Some(lag_ms) = number(settings, "min.compaction.lag.ms") else {
        return format!("{topic}, nobody knows until when: the broker does not say");
    };
    let from = Rfc3339(now.plus_ms(lag_ms));
    match number(settings, "max.compaction.lag.ms").filter(|max| *max < i64::MAX) {
        Some(max_ms) => {
            let until = Rfc3339(now.plus_ms(max_ms));
            format!("{topic} until it is compacted, which is due between {from} and {until}")
        }
        None => {
            format!("{topic} until it is compacted, not before {from} (its max.compaction.lag.ms sets no latest time)")
        }
    }
}

fn number(settings: &BTreeMap<String, String>, key: &str) -> Option<i64> {
    settings.get(key)?.parse().ok()
}

/// In the largest unit that divides it.
fn duration(ms: i64) -> String {
    for (unit_ms, unit) in [(86_400_000, "days"), (3_600_000, "h"), (60_000, "min"), (1_000, "s")] {
        if ms > 0 && ms % unit_ms == 0 {
            return format!("{} {unit}", ms / unit_ms);
        }
    }
    format!("{ms} ms")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Settings {
        Ok(pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn retention_ends_with_the_segment() {
        let remains = |pairs: &[(&str, &str)]| remains_deleted("t", &settings(pairs), TimestampMs(0));
        assert_eq!(
            remains(&[("retention.ms", "604800000"), ("segment.ms", "90000")]),
            "t until its retention ends, between 1970-01-08T00:00:00.000Z and 1970-01-08T00:01:30.000Z (retention.ms 7 days, and a \
             segment that is up to segment.ms 90 s long goes as a whole)"
        );
        assert_eq!(remains(&[("retention.ms", "-1"), ("segment.ms", "90000")]), "t for ever: its retention.ms is -1");
        assert_eq!(remains(&[]), "t, nobody knows until when: the broker does not say");
        let unknown = remains_deleted("t", &Err("no broker".to_owned()), TimestampMs(0));
        assert_eq!(unknown, "t, nobody knows until when: no broker");
    }

    #[test]
    fn compaction_need_not_come() {
        let remains = |pairs: &[(&str, &str)]| remains_compacted("t", &settings(pairs), TimestampMs(0));
        let lag = ("min.compaction.lag.ms", "86400000");
        assert_eq!(
            remains(&[lag, ("max.compaction.lag.ms", "9223372036854775807")]),
            "t until it is compacted, not before 1970-01-02T00:00:00.000Z (its max.compaction.lag.ms sets no latest time)"
        );
        assert_eq!(
            remains(&[lag, ("max.compaction.lag.ms", "172800000")]),
            "t until it is compacted, which is due between 1970-01-02T00:00:00.000Z and 1970-01-03T00:00:00.000Z"
        );
        assert_eq!(remains(&[]), "t, nobody knows until when: the broker does not say");
        let unknown = remains_compacted("t", &Err("no broker".to_owned()), TimestampMs(0));
        assert_eq!(unknown, "t, nobody knows until when: no broker");
    }

    #[test]
    fn durations_have_units() {
        let texts = [0, 1, 1_000, 60_000, 90_000, 7_200_000, 604_800_000].map(duration);
        assert_eq!(texts, ["0 ms", "1 ms", "1 s", "1 min", "90 s", "2 h", "7 days"]);
    }
}
