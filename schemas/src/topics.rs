//! The table of topics: names, partitions and settings, from which they are created and checked.

use crate::GatewayId;

const DAY_MS: i64 = 86_400_000;

/// Partitions of the topics that are partitioned by user, unless told otherwise.
pub const PARTITIONS_DEFAULT: i32 = 16;

/// Names of the topics under one prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topics {
    prefix: String,
}

/// How a topic has to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSpec {
    /// Full name, with the prefix.
    pub name: String,
    /// Number of partitions.
    pub partitions: i32,
    /// Topic settings by Kafka's names.
    pub settings: Vec<(&'static str, String)>,
}

impl Topics {
    /// Topics whose names start with `prefix`, which may be empty.
    pub fn new(prefix: impl Into<String>) -> Topics {
        Topics { prefix: prefix.into() }
    }

    /// Reports, keyed by user.
    pub fn location_events(&self) -> String {
        self.name("location-events")
    }

    /// Friend lists, compacted, keyed by user.
    pub fn friend_lists(&self) -> String {
        self.name("friend-lists")
    }

    /// Who is connected where, compacted, keyed by user and gateway, partitioned by user.
    pub fn sessions(&self) -> String {
        self.name("sessions")
    }

    /// Heartbeats of the gateways, compacted.
    pub fn gateways(&self) -> String {
        self.name("gateways")
    }

    /// Records that nobody could use.
    pub fn dead_letters(&self) -> String {
        self.name("dead-letters")
    }

    /// What the viewers on one gateway are told.
    pub fn friend_moved(&self, gateway: &GatewayId) -> String {
        self.name(&format!("friend-moved-{gateway}"))
    }

    /// The topics that have to exist before any service starts; `partitions` is for those partitioned by user.
    pub fn standing(&self, partitions: i32) -> Vec<TopicSpec> {
        let compact = || ("cleanup.policy", "compact".to_owned());
        let delete = || ("cleanup.policy", "delete".to_owned());
        let append_time = || ("message.timestamp.type", "LogAppendTime".to_owned());
        let spec = |name, partitions, settings| TopicSpec { name, partitions, settings };
        vec![
            spec(
                self.location_events(),
                partitions,
                vec![delete(), ("retention.ms", (7 * DAY_MS).to_string()), append_time()],
            ),
            spec(self.friend_lists(), partitions, vec![compact(), ("min.compaction.lag.ms", (7 * DAY_MS).to_string())]),
            spec(self.sessions(), partitions, vec![compact(), ("segment.ms", "600000".to_owned())]),
            spec(self.gateways(), 1, vec![compact(), append_time()]),
            spec(self.dead_letters(), 1, vec![delete(), ("retention.ms", (7 * DAY_MS).to_string())]),
        ]
    }

    /// The topic of one gateway, which its pusher creates.
    pub fn friend_moved_spec(&self, gateway: &GatewayId) -> TopicSpec {
        let settings = vec![("cleanup.policy", "delete".to_owned()), ("retention.ms", "600000".to_owned())];
        TopicSpec { name: self.friend_moved(gateway), partitions: 1, settings }
    }

    fn name(&self, topic: &str) -> String {
        format!("{}{topic}", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standing_topics() {
        let table: Vec<String> = Topics::new("t.")
            .standing(16)
            .into_iter()
            .map(|topic| {
                let settings: Vec<String> =
                    topic.settings.iter().map(|(key, value)| format!("{key}={value}")).collect();
                format!("{} {} {}", topic.name, topic.partitions, settings.join(" "))
            })
            .collect();
        expect_test::expect![[r#"
            t.location-events 16 cleanup.policy=delete retention.ms=604800000 message.timestamp.type=LogAppendTime
            t.friend-lists 16 cleanup.policy=compact min.compaction.lag.ms=604800000
            t.sessions 16 cleanup.policy=compact segment.ms=600000
            t.gateways 1 cleanup.policy=compact message.timestamp.type=LogAppendTime
            t.dead-letters 1 cleanup.policy=delete retention.ms=604800000"#]]
        .assert_eq(&table.join("\n"));
    }

    #[test]
    fn gateway_topics_last_ten_minutes() {
        let gateway = GatewayId::new("g1-abc").expect("legal");
        let spec = Topics::default().friend_moved_spec(&gateway);
        assert_eq!((spec.name.as_str(), spec.partitions), ("friend-moved-g1-abc", 1));
        assert!(spec.settings.contains(&("retention.ms", "600000".to_owned())));
    }
}
