//! Access to Kafka: client configurations, topics, reachability.

use crate::client_properties::ClientProperties;
use crate::health::Readiness;
use crate::probe::{Probe, SLOW_START_LIMIT};
use crate::{Stop, settings::KafkaSettings};
use nearby_schemas::codecs::Codecs;
use nearby_schemas::topics::{TopicSpec, Topics};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{ClientConfig, ClientContext};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How long a request for metadata or offsets may take.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a record may wait for the broker's acknowledgement before the caller is told that it failed.
pub const DELIVERY_TIMEOUT_MS: u32 = 10_000;
/// How long a broker that has nothing new may keep a reader's request. That long a question for the ends of partitions may wait
/// behind it, and partitions that are new to the reader, of which a handover has many; with the 500 ms that is usual a quiet topic's
/// questions timed out ([`Reader`](crate::reader::Reader)).
const FETCH_WAIT_MS: &str = "100";
/// How long a new topic may take to be known to the cluster, and how often that is looked at.
const PROPAGATION_LIMIT: Duration = Duration::from_secs(30);
const PROPAGATION_POLL: Duration = Duration::from_millis(50);
/// How often the broker is looked after.
const WATCH_INTERVAL: Duration = Duration::from_secs(5);

/// A Kafka cluster and the names of our topics in it.
#[derive(Clone, Debug)]
pub struct Kafka {
    /// HOST:PORT,…
    pub brokers: String,
    /// Names of the topics.
    pub topics: Topics,
    /// Prefix of consumer groups.
    pub prefix: String,
    /// librdkafka's mock cluster in this process: it cannot look up offsets by time and has no topic admin.
    pub embedded: bool,
    /// How records are written and read.
    pub codecs: Codecs,
    /// For every client.
    pub properties: ClientProperties,
}

/// The cluster cannot be used as it is.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// Nobody answers.
    #[error("Kafka at {brokers} cannot be reached: {reason}")]
    Unreachable {
        /// As given.
        brokers: String,
        /// What the client said.
        reason: String,
    },
    /// What was set for the clients does not make one.
    #[error("no Kafka client can be made of these settings: {0}")]
    Settings(String),
    /// A topic is not there.
    #[error("the topics {} are missing at {brokers}: create them with `nearby topics create --brokers {brokers}{}`", .names.join(", "), prefix_flag(.prefix))]
    MissingTopics {
        /// As given.
        brokers: String,
        /// Of the names.
        prefix: String,
        /// Which.
        names: Vec<String>,
    },
    /// A user would be on one partition here and on another there.
    #[error(
        "{counts} at {brokers}: the topics that are partitioned by user have to have the same number of partitions"
    )]
    PartitionsDiffer {
        /// As given.
        brokers: String,
        /// Topics with their numbers of partitions.
        counts: String,
    },
    /// The broker refused to create, delete or describe a topic.
    #[error("topic {name}: the broker refuses: {reason}")]
    Refused {
        /// Which.
        name: String,
        /// The broker's word.
        reason: String,
    },
}

impl Kafka {
    /// From the settings; connects to nothing yet, not even to a schema registry.
    pub fn from_settings(settings: &KafkaSettings) -> Kafka {
        let properties = ClientProperties::joined(&settings.client.properties);
        Kafka { properties, ..Kafka::at(settings.brokers.clone(), &settings.names.topic_prefix) }
    }

    /// A real cluster, without a schema registry and without further properties.
    pub fn at(brokers: String, prefix: &str) -> Kafka {
        let (topics, prefix) = (Topics::new(prefix), prefix.to_owned());
        let (codecs, properties) = (Codecs::default(), ClientProperties::default());
        Kafka { brokers, topics, prefix, embedded: false, codecs, properties }
    }

    /// librdkafka's mock cluster in this process.
    pub fn embedded_at(brokers: String, prefix: &str) -> Kafka {
        Kafka { embedded: true, ..Kafka::at(brokers, prefix) }
    }

    /// What every client has in common.
    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers);
        config.set("client.id", "nearby");
        // A gateway's topic that was deleted must not come back because somebody still writes to it.
        config.set("allow.auto.create.topics", "false");
        config.set("reconnect.backoff.max.ms", "2000");
        self.properties.apply(&mut config);
        config
    }

    /// For reading by plain assignment from explicit offsets; offsets are never stored by the client.
    pub fn reader_config(&self) -> ClientConfig {
        let mut config = self.config();
        config.set("group.id", format!("{}nearby-readers", self.prefix));
        config.set("enable.auto.commit", "false");
        config.set("enable.auto.offset.store", "false");
        config.set("enable.partition.eof", "true");
        config.set("fetch.queue.backoff.ms", "1");
        config.set("queued.max.messages.kbytes", "32768");
        // A broker answers the requests of a connection one after the other, and the mock cluster an empty fetch only after the
        // whole wait.
        config.set("fetch.wait.max.ms", if self.embedded { "10" } else { FETCH_WAIT_MS });
        config
    }

    /// For a member of a group that only wants to know which partitions it owns.
    pub fn member_config(&self, group: &str) -> ClientConfig {
        let mut config = self.config();
        config.set("group.id", format!("{}{group}", self.prefix));
        config.set("enable.auto.commit", "false");
        config.set("enable.auto.offset.store", "false");
        config.set("auto.offset.reset", "latest");
        config.set("partition.assignment.strategy", "cooperative-sticky");
        config.set("session.timeout.ms", "10000");
        config.set("heartbeat.interval.ms", "2000");
        config
    }

    /// For writing: idempotent, acknowledged by all replicas, keys partitioned as the Java client does.
    pub fn writer_config(&self) -> ClientConfig {
        let mut config = self.config();
        config.set("enable.idempotence", "true");
        config.set("acks", "all");
        config.set("partitioner", "murmur2_random");
        config.set("message.timeout.ms", DELIVERY_TIMEOUT_MS.to_string());
        config.set("linger.ms", "1");
        config.set("queue.buffering.max.messages", "500000");
        config.set("queue.buffering.max.kbytes", "262144");
        config
    }

    /// Fails unless a broker answers within [`REQUEST_TIMEOUT`], or within [`SLOW_START_LIMIT`] if none refuses. Blocks.
    ///
    /// # Errors
    /// [`ClusterError::Unreachable`].
    pub fn check_reachable(&self) -> Result<(), ClusterError> {
        self.probe()?.metadata(None, SLOW_START_LIMIT).map(drop).map_err(|reason| self.unreachable(&reason))
    }

    /// Partitions of the topics that are partitioned by user; fails when a standing topic is missing. Blocks.
    ///
    /// # Errors
    /// [`ClusterError::Unreachable`], [`ClusterError::MissingTopics`].
    pub fn check_topics(&self) -> Result<i32, ClusterError> {
        let metadata = self.probe()?.metadata(None, SLOW_START_LIMIT).map_err(|reason| self.unreachable(&reason))?;
        let partitions = |name: &str| {
            let topic = metadata.topics().iter().find(|topic| topic.name() == name);
            topic.map(|topic| topic.partitions().len()).filter(|count| *count > 0)
        };
        let standing = self.topics.standing(1);
        let names = standing.iter().map(|topic| &topic.name).filter(|name| partitions(name).is_none());
        let names: Vec<String> = names.cloned().collect();
        if !names.is_empty() {
            let (brokers, prefix) = (self.brokers.clone(), self.prefix.clone());
            return Err(ClusterError::MissingTopics { brokers, prefix, names });
        }
        let by_user = [self.topics.location_events(), self.topics.friend_lists(), self.topics.sessions()];
        let counts = by_user.each_ref().map(|name| partitions(name).unwrap_or_default());
        let count = counts[0];
        if counts.iter().any(|other| *other != count) {
            let counts: Vec<String> =
                by_user.iter().zip(counts).map(|(name, count)| format!("{name} {count}")).collect();
            return Err(ClusterError::PartitionsDiffer { brokers: self.brokers.clone(), counts: counts.join(", ") });
        }
        Ok(i32::try_from(count).unwrap_or(i32::MAX))
    }

    /// Creates the standing topics that are missing and waits until the cluster shows all of them: a broker may acknowledge
    /// a topic before it answers questions about it. Returns each name with whether it is new.
    ///
    /// # Errors
    /// When the broker refuses, cannot be reached, or does not show them within [`PROPAGATION_LIMIT`].
    pub async fn create_standing_topics(&self, partitions: i32) -> Result<Vec<(String, bool)>, ClusterError> {
        let mut created = Vec::new();
        for topic in self.topics.standing(partitions) {
            created.push((topic.name.clone(), self.create_topic(&topic).await?));
        }
        let deadline = tokio::time::Instant::now() + PROPAGATION_LIMIT;
        loop {
            let asked = self.clone();
            match tokio::task::spawn_blocking(move || asked.check_topics()).await {
                Ok(Err(ClusterError::MissingTopics { .. })) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(PROPAGATION_POLL).await;
                }
                // That they differ in their partitions is for `topics check` and for the services to say.
                Ok(Ok(_) | Err(ClusterError::PartitionsDiffer { .. })) => return Ok(created),
                Ok(Err(error)) => return Err(error),
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        }
    }

    /// Creates a topic; true if it was not there before.
    ///
    /// # Errors
    /// When the broker refuses, or cannot be reached.
    pub async fn create_topic(&self, topic: &TopicSpec) -> Result<bool, ClusterError> {
        let admin = self.admin()?;
        // -1: the broker's own default replication.
        let mut new = NewTopic::new(&topic.name, topic.partitions, TopicReplication::Fixed(-1));
        for (key, value) in &topic.settings {
            new = new.set(key, value);
        }
        let options = admin_options();
        let results = admin.create_topics([&new], &options).await.map_err(|source| self.unreachable(&source))?;
        for result in results {
            match result {
                Ok(_) => {}
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => return Ok(false),
                Err((name, reason)) => return Err(ClusterError::Refused { name, reason: reason.to_string() }),
            }
        }
        Ok(true)
    }

    /// Deletes a topic; what it held is gone.
    ///
    /// # Errors
    /// When the broker refuses, or cannot be reached.
    pub async fn delete_topic(&self, name: &str) -> Result<(), ClusterError> {
        let options = admin_options();
        let results = self.admin()?.delete_topics(&[name], &options).await;
        for result in results.map_err(|source| self.unreachable(&source))? {
            result.map_err(|(name, reason)| ClusterError::Refused { name, reason: reason.to_string() })?;
        }
        Ok(())
    }

    /// Differences between a topic as it is and as it should be, one sentence each; empty if there are none.
    ///
    /// # Errors
    /// When the cluster cannot be reached.
    pub async fn topic_differences(&self, topic: &TopicSpec) -> Result<Vec<String>, ClusterError> {
        let metadata =
            self.probe()?.metadata(Some(&topic.name), SLOW_START_LIMIT).map_err(|reason| self.unreachable(&reason))?;
        let count = metadata.topics().first().map_or(0, |found| found.partitions().len());
        if count == 0 {
            return Ok(vec![format!("{}: missing", topic.name)]);
        }
        let mut differences = Vec::new();
        if i32::try_from(count) != Ok(topic.partitions) {
            differences.push(format!("{}: {count} partitions, expected {}", topic.name, topic.partitions));
        }
        let settings = self.topic_settings(&topic.name).await?;
        for (key, expected) in &topic.settings {
            let value = settings.get(*key);
            if value != Some(expected) {
                let value = value.map_or("nothing", String::as_str);
                differences.push(format!("{}: {key} is {value}, expected {expected}", topic.name));
            }
        }
        Ok(differences)
    }

    /// All settings of a topic as they are, defaults included, by Kafka's names.
    ///
    /// # Errors
    /// When there is no such topic, or the cluster cannot be reached.
    pub async fn topic_settings(&self, name: &str) -> Result<BTreeMap<String, String>, ClusterError> {
        let resource = ResourceSpecifier::Topic(name);
        let results = self.admin()?.describe_configs([&resource], &admin_options()).await;
        let mut settings = BTreeMap::new();
        for found in results.map_err(|source| self.unreachable(&source))? {
            let refused =
                |reason: RDKafkaErrorCode| ClusterError::Refused { name: name.to_owned(), reason: reason.to_string() };
            let entries = found.map_err(refused)?.entries.into_iter();
            settings.extend(entries.filter_map(|entry| Some((entry.name, entry.value?))));
        }
        Ok(settings)
    }

    /// Looks after the broker for as long as the process runs and keeps the readiness of "kafka".
    pub fn watch(&self, readiness: Readiness, stop: Stop) {
        readiness.not_ready("kafka", "not asked yet");
        let kafka = self.clone();
        tokio::spawn(async move {
            let mut probe = match kafka.probe() {
                Ok(probe) => Arc::new(probe),
                Err(because) => return readiness.not_ready("kafka", because.to_string()),
            };
            let mut interval = tokio::time::interval(WATCH_INTERVAL);
            while stop.run_until_cancelled(interval.tick()).await.is_some() {
                let (asked, kafka) = (Arc::clone(&probe), kafka.clone());
                let asking = tokio::task::spawn_blocking(move || {
                    let answer = asked.metadata(None, REQUEST_TIMEOUT).map(drop);
                    // It may be the client that has nobody left to ask; see the lifelines.
                    let next = if answer.is_ok() { asked } else { kafka.probe().map_or(asked, Arc::new) };
                    (next, answer)
                });
                let answer = asking.await.map(|(next, answer)| {
                    probe = next;
                    answer
                });
                match answer {
                    Ok(Ok(())) => readiness.ready("kafka"),
                    Ok(Err(because)) => readiness.not_ready("kafka", because),
                    Err(because) => readiness.not_ready("kafka", because.to_string()),
                }
            }
        });
    }

    fn admin(&self) -> Result<AdminClient<Silent>, ClusterError> {
        self.config().create_with_context(Silent).map_err(|error| settings_error(&error))
    }

    fn probe(&self) -> Result<Probe, ClusterError> {
        Probe::new(&self.reader_config()).map_err(|error| settings_error(&error))
    }

    fn unreachable(&self, reason: &impl ToString) -> ClusterError {
        ClusterError::Unreachable { brokers: self.brokers.clone(), reason: reason.to_string() }
    }
}

/// A wrong value is told by its key alone: it may be a secret.
fn settings_error(error: &KafkaError) -> ClusterError {
    ClusterError::Settings(match error {
        KafkaError::ClientConfig(_, _, key, _) => format!("{key} has a value that librdkafka does not take"),
        other => other.to_string(),
    })
}

/// What an admin client finds out it returns; its own lines beside that would only repeat it.
struct Silent;

impl ClientContext for Silent {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}
    fn error(&self, _: KafkaError, _: &str) {}
}

fn admin_options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT)).operation_timeout(Some(REQUEST_TIMEOUT))
}

fn prefix_flag(prefix: &str) -> String {
    if prefix.is_empty() { String::new() } else { format!(" --topic-prefix {prefix}") }
}
