//! Properties of Kafka clients that an operator adds: encryption, authentication, tuning.
//!
//! Values may be secrets, so nothing here shows one: not an error, not `Debug`, and not clap, which would repeat a value that
//! its parser refuses. Keys are shown.

use clap::builder::TypedValueParser;
use clap::error::ErrorKind;
use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaConfRes;
use std::collections::BTreeMap;
use std::ffi::OsStr;

/// What `nearby` sets itself, or relies on as it is, with librdkafka's other names for the same.
const OURS: [&str; 36] = [
    "acks",
    "allow.auto.create.topics",
    "auto.commit.enable",
    "auto.commit.interval.ms",
    "auto.offset.reset",
    "bootstrap.servers",
    "delivery.report.only.error",
    "delivery.timeout.ms",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.gapless.guarantee",
    "enable.idempotence",
    "enable.partition.eof",
    "fetch.queue.backoff.ms",
    "fetch.wait.max.ms",
    "group.id",
    "group.instance.id",
    "group.protocol",
    "group.remote.assignor",
    "heartbeat.interval.ms",
    "isolation.level",
    "linger.ms",
    "log.queue",
    "message.send.max.retries",
    "message.timeout.ms",
    "metadata.broker.list",
    "partition.assignment.strategy",
    "partitioner",
    "queue.buffering.max.kbytes",
    "queue.buffering.max.messages",
    "queue.buffering.max.ms",
    "queued.max.messages.kbytes",
    "request.required.acks",
    "retries",
    "session.timeout.ms",
    "transactional.id",
];
/// Properties of librdkafka's own tests: they would replace the brokers.
const FOR_TESTS: &str = "test.";

/// Properties by key.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ClientProperties(BTreeMap<String, String>);

/// Why a property is refused; the value is never told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PropertyError {
    /// It is no text.
    #[error("a property has to be UTF-8")]
    NotText,
    /// No key can be told from the value.
    #[error("line {0} is not KEY=VALUE")]
    NoKey(usize),
    /// Ours.
    #[error("{0} is set by nearby itself, which depends on it")]
    Ours(String),
    /// librdkafka knows no such key.
    #[error("librdkafka knows no property {0}")]
    Unknown(String),
    /// librdkafka knows the key.
    #[error("{0}: librdkafka does not take this value, or was built without what it needs")]
    Value(String),
}

impl ClientProperties {
    /// Out of lines `KEY=VALUE`. The key ends at the first `=`; everything behind it, to the end of the line, is the value.
    ///
    /// # Errors
    /// The first property that is refused.
    pub fn parse(text: &str) -> Result<ClientProperties, PropertyError> {
        let mut properties = BTreeMap::new();
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let (key, value) = line.split_once('=').ok_or(PropertyError::NoKey(index + 1))?;
            let key = key.trim();
            check(key, value)?;
            properties.insert(key.to_owned(), value.to_owned());
        }
        Ok(ClientProperties(properties))
    }

    /// All of them; of one given twice the last.
    pub fn joined(parts: &[ClientProperties]) -> ClientProperties {
        let all = parts.iter().flat_map(|part| &part.0);
        ClientProperties(all.map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    /// Adds them to the configuration of a client.
    pub fn apply(&self, config: &mut ClientConfig) {
        for (key, value) in &self.0 {
            config.set(key, value);
        }
    }
}

impl std::fmt::Debug for ClientProperties {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

fn check(key: &str, value: &str) -> Result<(), PropertyError> {
    let key_of = |error: fn(String) -> PropertyError| Err(error(key.to_owned()));
    if OURS.contains(&key) || key.starts_with(FOR_TESTS) {
        return key_of(PropertyError::Ours);
    }
    match ClientConfig::new().set(key, value).create_native_config() {
        Ok(_) => Ok(()),
        Err(KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..)) => key_of(PropertyError::Unknown),
        // Its own words repeat the value.
        Err(_) => key_of(PropertyError::Value),
    }
}

/// Reads the setting for clap, which adds nothing of its own to what is refused.
#[derive(Clone)]
pub(crate) struct PropertiesParser;

impl TypedValueParser for PropertiesParser {
    type Value = ClientProperties;

    fn parse_ref(
        &self,
        command: &clap::Command,
        _: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<ClientProperties, clap::Error> {
        let parsed = value.to_str().ok_or(PropertyError::NotText).and_then(ClientProperties::parse);
        parsed.map_err(|error| {
            let message = format!("--kafka-property, NEARBY_KAFKA_PROPERTIES: {error}\n");
            clap::Error::raw(ErrorKind::ValueValidation, message).with_cmd(command)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        ClientProperties::parse(text).expect_err("refused").to_string()
    }

    #[test]
    fn a_value_is_the_rest_of_its_line() {
        let text = "security.protocol=SASL_SSL\n\n sasl.username = a,b=c;\"d\" \r\nsasl.password=\n";
        let properties = ClientProperties::parse(text).expect("legal");
        let mut config = ClientConfig::new();
        properties.apply(&mut config);
        assert_eq!(config.get("security.protocol"), Some("SASL_SSL"));
        assert_eq!(config.get("sasl.username"), Some(" a,b=c;\"d\" "));
        assert_eq!(config.get("sasl.password"), Some(""));
    }

    #[test]
    fn the_last_of_two_counts() {
        let parts =
            ["client.id=a\nclient.rack=r", "client.id=b"].map(|text| ClientProperties::parse(text).expect("legal"));
        assert_eq!(
            ClientProperties::joined(&parts),
            ClientProperties::parse("client.rack=r\nclient.id=b").expect("legal")
        );
    }

    #[test]
    fn what_nearby_depends_on_is_refused_by_name() {
        for key in OURS {
            assert_eq!(
                refused(&format!("{key}=s3cret")),
                format!("{key} is set by nearby itself, which depends on it")
            );
        }
        assert!(refused("test.mock.num.brokers=3").starts_with("test.mock.num.brokers is set"));
    }

    /// A name that librdkafka does not know (any more) would protect nothing.
    #[test]
    fn librdkafka_knows_all_that_is_refused() {
        for key in OURS {
            let result = ClientConfig::new().set(key, "").create_native_config();
            let unknown = RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN;
            let known = !matches!(&result, Err(KafkaError::ClientConfig(because, ..)) if *because == unknown);
            assert!(known, "{key}");
        }
    }

    /// Another name of the same property would be a way around.
    #[test]
    fn everything_that_our_clients_set_is_refused_or_meant_to_be_changed() {
        let kafka = crate::kafka::Kafka::at("127.0.0.1:1".to_owned(), "");
        for config in [kafka.reader_config(), kafka.member_config("g"), kafka.writer_config()] {
            for key in config.config_map().into_keys() {
                let free = ["client.id", "reconnect.backoff.max.ms"].contains(&key);
                assert!(free || OURS.contains(&key), "{key}");
            }
        }
    }

    #[test]
    fn no_value_is_ever_shown() {
        assert_eq!(refused("client.id=a\ns3cret"), "line 2 is not KEY=VALUE");
        assert_eq!(refused("sasl.pasword=s3cret"), "librdkafka knows no property sasl.pasword");
        assert!(refused("socket.keepalive.enable=s3cret").starts_with("socket.keepalive.enable: librdkafka does not"));
        assert!(refused("sasl.jaas.config=s3cret").starts_with("sasl.jaas.config: librdkafka does not"));
        assert!(refused("client.id=s3\0cret").starts_with("client.id: "));
        let properties = ClientProperties::parse("sasl.password=s3cret\nssl.key.pem=s3cret").expect("legal");
        assert_eq!(format!("{properties:?}"), r#"{"sasl.password", "ssl.key.pem"}"#);
    }

    #[test]
    fn librdkafka_has_what_secure_clusters_need_and_no_more() {
        let native = ClientConfig::new().create_native_config().expect("defaults");
        let features = native.get("builtin.features").expect("is there");
        let has = |feature| features.split(',').any(|built_in| built_in.trim() == feature);
        assert!(has("ssl") && has("sasl_plain") && has("sasl_scram"), "{features}");
        assert!(!has("sasl_gssapi"), "Kerberos would bring Cyrus SASL along: {features}");
        for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] {
            let text =
                format!("security.protocol=SASL_SSL\nsasl.mechanisms={mechanism}\nsasl.username=u\nsasl.password=p");
            let properties = ClientProperties::parse(&text).expect("legal");
            let mut config = ClientConfig::new();
            properties.apply(&mut config);
            config.create::<rdkafka::consumer::BaseConsumer>().expect("a client");
        }
    }
}
