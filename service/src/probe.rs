//! Asks the brokers for metadata, and if none answers, finds out why.
//!
//! librdkafka goes on trying whatever a broker says, and answers a question in vain only with "timed out". The reason (a name
//! that does not resolve, a refused connection, an untrusted certificate, a wrong password) comes as an event beside it.

use crate::kafka::REQUEST_TIMEOUT;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::Metadata;
use rdkafka::{ClientConfig, ClientContext};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// After these times it is looked whether waiting on has a point.
const LOOKS: [Duration; 3] = [Duration::from_millis(500), Duration::from_secs(2), REQUEST_TIMEOUT];
/// A broker that neither refuses nor answers may only be slow: who starts waits longer for it.
pub const SLOW_START_LIMIT: Duration = Duration::from_secs(20);
/// After so long without an event all of them have been heard. Not zero: a poll that comes upon a line for the log ends then.
const QUIET: Duration = Duration::from_millis(10);
/// How librdkafka says that a broker has closed the connection, and what that means before anything was said.
const CLOSED: &str = "Disconnected";
const CLOSED_HINT: &str =
    "; if this repeats, the broker may want TLS or a password: --kafka-property security.protocol=…";

/// A client that reads nothing.
pub struct Probe {
    consumer: BaseConsumer<Heard>,
}

/// What the client says beside its answers; in our log it would only repeat them.
#[derive(Default)]
struct Heard(Mutex<Option<Reason>>);

#[derive(Clone)]
struct Reason {
    text: String,
    /// Trying again does not help: somebody has to change a setting.
    lasting: bool,
}

impl ClientContext for Heard {
    /// A broker that closes the connection, as one does that wants TLS or a password from who offers none, is told here alone.
    fn log(&self, _: RDKafkaLogLevel, facility: &str, line: &str) {
        if facility == "FAIL" {
            let text = line.split_once("]: ").map_or(line, |(_, text)| text);
            let text = if text.contains(CLOSED) { format!("{text}{CLOSED_HINT}") } else { text.to_owned() };
            self.update(|known| *known = Some(known.take().unwrap_or(Reason { text, lasting: false })));
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code();
        // A summary that follows the reasons.
        if code == Some(RDKafkaErrorCode::AllBrokersDown) {
            return;
        }
        let lasting = matches!(code, Some(RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SSL));
        self.update(|known| *known = Some(Reason { text: reason.to_owned(), lasting }));
    }
}

impl ConsumerContext for Heard {}

impl Heard {
    fn update(&self, change: impl FnOnce(&mut Option<Reason>)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn get(&self) -> Option<Reason> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Probe {
    /// Connects lazily.
    ///
    /// # Errors
    /// On a bad configuration.
    pub fn new(config: &ClientConfig) -> Result<Probe, KafkaError> {
        let mut config = config.clone();
        config.set_log_level(RDKafkaLogLevel::Info);
        Ok(Probe { consumer: config.create_with_context(Heard::default())? })
    }

    /// Metadata of a topic, or of all. Blocks for at most [`REQUEST_TIMEOUT`], or for so long if until then nobody has refused.
    ///
    /// # Errors
    /// Why no broker answers, as far as it is known.
    pub fn metadata(&self, topic: Option<&str>, silence_limit: Duration) -> Result<Metadata, String> {
        let begun = Instant::now();
        let heard = self.consumer.context();
        self.hear();
        // A reason from before still explains, as the client does not repeat itself, but may have passed.
        heard.update(|reason| reason.as_mut().into_iter().for_each(|reason| reason.lasting = false));
        let mut failed = None;
        for look in LOOKS.into_iter().chain([silence_limit]) {
            match self.consumer.fetch_metadata(topic, look.saturating_sub(begun.elapsed())) {
                Ok(metadata) => {
                    heard.update(|reason| *reason = None);
                    return Ok(metadata);
                }
                Err(error) => failed = Some(error.to_string()),
            }
            self.hear();
            if heard.get().is_some_and(|reason| reason.lasting || look >= REQUEST_TIMEOUT) || look >= silence_limit {
                break;
            }
        }
        Err(heard.get().map(|reason| reason.text).or(failed).unwrap_or_default())
    }

    /// Takes in what the client has said so far.
    fn hear(&self) {
        while self.consumer.poll(QUIET).is_some() {}
    }
}
