//! Kafka around the engine: hears every report, owns the viewers of some partitions, and tells their gateways.
//!
//! One thread per core drives a pure [`decider`], which holds an engine for some of the partitions; everything that can wake it
//! is one [`wake::Wake`]. Readers decode once for all engines, on threads of their own. Which partitions are owned, and under
//! which epoch, is decided by the [`ownership`] machine.
//! There is no durable state: after a start the log is read again (positions first, then the group is joined).

mod batch_interval;
pub mod decider;
mod drive;
mod group;
mod on_the_way;
mod outbox;
pub mod ownership;
pub mod packing;
mod readers;
pub mod records;
pub mod wake;

use decider::Decider;
use drive::Drive;
use group::Group;
use nearby_engine::{Engine, EngineSettings};
use nearby_schemas::TimestampMs;
use nearby_service::health::Readiness;
use nearby_service::kafka::{ClusterError, Kafka};
use nearby_service::settings::RuleSettings;
use nearby_service::{Stop, append::Appender};
use outbox::Outbox;
use rdkafka::error::KafkaError;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use wake::Engines;

/// What is special about one processor.
#[derive(Clone, Debug)]
pub struct ProcessorSettings {
    /// The rules of nearness.
    pub rules: RuleSettings,
    /// How long a stopping processor goes on serving until a successor has taken over; zero when there can be none.
    pub handover_max: Duration,
    /// Engines, each on a thread of its own with some of the partitions.
    pub engine_threads: NonZeroUsize,
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
    thread: JoinHandle<bool>,
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
        // Also when the start fails half-way.
        let readers_guard = readers_stop.clone().drop_guard();
        let (engines, inboxes) = Engines::new(settings.engine_threads.get());
        let appender = Appender::new(kafka)?;
        let now = TimestampMs::now();
        let oldest = records::oldest_needed(engine.inactive_after_ms, now);
        // The embedded log cannot be looked into by time, and is short.
        let newest_since = records::newest_since(engine.inactive_after_ms, now).filter(|_| !kafka.embedded);
        let history = readers::History { oldest, newest_since };
        let readers = readers::Readers::start(kafka, partitions, history, &engines, &appender, &readers_stop)?;
        let readers = Arc::new(readers);
        let group = Arc::new(Group::new(kafka.clone(), engines, readiness, stop.clone()));
        let (broken, handover_max, started_at) = (Stop::new(), settings.handover_max, Instant::now());
        let mut threads: Vec<JoinHandle<()>> = Vec::new();
        let engines_here = inboxes.len();
        for (number, inbox) in inboxes.into_iter().enumerate() {
            let mut decider = Decider::new(Engine::new(engine), partitions, now, kafka.codecs.codec());
            if let Some(since) = newest_since {
                decider.newest_first(since);
            }
            let drive = Drive {
                engine: number,
                decider,
                outbox: Outbox::new(kafka, engines_here, started_at)?,
                readers: Arc::clone(&readers),
                group: Arc::clone(&group),
                appender: appender.clone(),
                kafka: kafka.clone(),
                started_at,
                waiting: drive::Waiting::default(),
            };
            let (stop, broken) = (stop.clone(), broken.clone());
            let thread = std::thread::Builder::new().name(format!("engine {number}"));
            threads.push(thread.spawn(move || drive.run(&inbox, &stop, &broken, handover_max))?);
        }
        let thread = std::thread::Builder::new().name("processor".to_owned()).spawn(move || {
            let ended: Vec<bool> = threads.into_iter().map(|thread| thread.join().is_ok()).collect();
            group.leave();
            drop(readers_guard);
            !broken.is_cancelled() && ended.into_iter().all(|well| well)
        })?;
        Ok(Processor { thread })
    }

    /// Waits until it has ended, which the stop signal brings about; false when it could not go on.
    pub fn ended(self) -> bool {
        self.thread.join().unwrap_or(false)
    }
}
