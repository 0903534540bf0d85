//! Which gateway a client should connect to: the topic `gateways`, read on a thread of its own into a [`Directory`].

use crate::directory::Directory;
use nearby_schemas::codec::Codec;
use nearby_schemas::{GatewayHeartbeat, GatewayId, TimestampMs};
use nearby_service::Stop;
use nearby_service::append::Appender;
use nearby_service::consume::Record;
use nearby_service::dead_letters;
use nearby_service::health::Readiness;
use nearby_service::kafka::Kafka;
use nearby_service::reader::{OutOfLog, Read, Reader, Start};
use rdkafka::error::KafkaError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// The part of readiness that waits until the topic has been read to its end.
const READINESS_PART: &str = "gateways-list";

/// The directory of this process, kept up to date.
#[derive(Clone)]
pub struct Gateways {
    directory: Arc<Mutex<Directory>>,
    started: Instant,
}

impl Gateways {
    /// Reads the topic from its beginning, and on until the stop.
    ///
    /// # Errors
    /// On a bad configuration.
    pub fn follow(
        kafka: &Kafka,
        lost_after_ms: i64,
        appender: Appender,
        readiness: Readiness,
        stop: Stop,
    ) -> Result<Gateways, KafkaError> {
        let directory = Arc::new(Mutex::new(Directory::new(lost_after_ms)));
        let gateways = Gateways { directory, started: Instant::now() };
        readiness.not_ready(READINESS_PART, "the topic has not been read to its end");
        let (codec, dead_letters, fed) = (kafka.codecs.codec(), kafka.topics.dead_letters(), gateways.clone());
        let handle = move |read: Read<'_>| {
            match read {
                Read::Record(record) => {
                    if let Err(reason) = fed.take(&codec, record) {
                        // Nobody waits for the acknowledgement: a lost heartbeat is followed by the next one.
                        drop(dead_letters::bury(&appender, dead_letters.clone(), record, &reason));
                    }
                }
                Read::CaughtUp(..) => {
                    fed.lock().caught_up();
                    readiness.ready(READINESS_PART);
                }
                Read::Pause | Read::OffsetOutOfLog(_) => {}
            }
            Ok(())
        };
        let reader = Reader::start(kafka, kafka.topics.gateways(), OutOfLog::GoOnAtBeginning, stop, handle)?;
        reader.add(&[(0, Start::Beginning)], 0);
        Ok(gateways)
    }

    /// Where to send a client now.
    pub fn choose(&self) -> Option<GatewayHeartbeat> {
        let local_ms = self.local_ms();
        self.lock().choose(local_ms).cloned()
    }

    fn take(&self, codec: &Codec<GatewayHeartbeat>, record: &Record<'_>) -> Result<(), String> {
        let Some(value) = record.value() else {
            let key = record.key().and_then(|key| std::str::from_utf8(key).ok()).unwrap_or_default();
            let gateway = GatewayId::new(key).map_err(|error| format!("the key of a tombstone: {error}"))?;
            self.lock().removed(&gateway);
            return Ok(());
        };
        let heartbeat = codec.decode(value).map_err(|error| error.to_string())?;
        // Compaction goes by the key: a heartbeat under another's would never be removed.
        if record.key() != Some(heartbeat.gateway.as_str().as_bytes()) {
            return Err("the key is not the gateway of the heartbeat".to_owned());
        }
        let appended_at = record.appended_at().unwrap_or_else(TimestampMs::now);
        let local_ms = self.local_ms();
        self.lock().heard(heartbeat, appended_at, local_ms);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Directory> {
        self.directory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn local_ms(&self) -> i64 {
        i64::try_from(self.started.elapsed().as_millis()).unwrap_or(i64::MAX)
    }
}
