//! Kafka around the engine: hears every report, owns the viewers of some partitions, and tells their gateways.
//!
//! One thread drives the pure [`decider`], which holds the engine; everything that can wake it is one [`wake::Wake`]. Readers
//! decode on threads of their own. Which partitions are owned, and under which epoch, is decided by the [`ownership`] machine.
//! There is no durable state: after a start the log is read again (positions first, then the group is joined).

mod batch_interval;
pub mod decider;
mod drive;
mod outbox;
pub mod ownership;
pub mod packing;
mod readers;
pub mod records;
pub mod wake;

use decider::Decider;
use nearby_engine::{Engine, EngineSettings};
use nearby_schemas::TimestampMs;
use nearby_service::health::Readiness;
use nearby_service::kafka::{ClusterError, Kafka};
use nearby_service::settings::RuleSettings;
use nearby_service::{Stop, append::Appender};
use rdkafka::error::KafkaError;
use std::time::Duration;

/// What is special about one processor.
#[derive(Clone, Debug)]
pub struct ProcessorSettings {
    /// The rules of nearness.
    pub rules: RuleSettings,
    /// How long a stopping processor goes on serving until a successor has taken over; zero when there can be none.
    pub handover_max: Duration,
}

/// A processor cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The cluster is not as it has to be.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// A client could not be made, or the log's offsets were not to be had.
    #[error("Kafka: {0}")]
    Kafka(#[from] KafkaError),
    /// The system gave no thread.
    #[error("no thread for the engine: {0}")]
    Thread(#[from] std::io::Error),
}

/// A running processor.
pub struct Processor {
    thread: std::thread::JoinHandle<()>,
}

impl Processor {
    /// Starts reading; returns before the state is restored, which `readiness` tells ("processor"). Blocks briefly.
    ///
    /// # Errors
    /// When topics are missing or the broker does not answer.
    pub fn start(
        settings: &ProcessorSettings,
        kafka: &Kafka,
        readiness: Readiness,
        stop: Stop,
    ) -> Result<Processor, StartError> {
        readiness.not_ready("processor", "restoring positions");
        let partitions = kafka.check_topics()?;
        let engine = EngineSettings {
            radius_m: f64::from(settings.rules.radius_m),
            inactive_after_ms: i64::from(settings.rules.inactive_after_s) * 1000,
            gateway_lost_after_ms: i64::from(settings.rules.gateway_lost_after_s) * 1000,
        };
        let readers_stop = Stop::new();
        let (wakes, inbox) = wake::channel();
        let appender = Appender::new(kafka)?;
        let now = TimestampMs::now();
        let oldest = records::oldest_needed(engine.inactive_after_ms, now);
        let readers = readers::Readers::start(kafka, partitions, oldest, &wakes, &appender, &readers_stop)?;
        let outbox = outbox::Outbox::new(kafka)?;
        let drive = drive::Drive::new(
            Decider::new(Engine::new(engine), partitions, now, kafka.codecs.codec()),
            readers,
            outbox,
            appender,
            kafka.clone(),
            wakes,
            readiness,
        );
        let handover_max = settings.handover_max;
        let thread = std::thread::Builder::new().name("engine".to_owned()).spawn(move || {
            drive.run(inbox, &stop, handover_max);
            readers_stop.cancel();
        })?;
        Ok(Processor { thread })
    }

    /// Waits until it has ended, which the stop signal brings about; false when the thread has panicked.
    pub fn ended(self) -> bool {
        self.thread.join().is_ok()
    }
}
