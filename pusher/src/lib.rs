//! A gateway: holds clients' sockets, tells them what the processors emit for it, and takes their reports.
//!
//! Its life in the log: it creates its topic `friend-moved-<gateway>`, beats every 5 s in `gateways`, writes a record in
//! `sessions` for every user who is connected, and takes all that back when it ends in order. The pure heart is
//! [`delivery`], what clients are told, and [`sessions`], what the log is told; [`hub`] shares both between the topic's
//! reader and the sockets.

pub mod client_frame;
pub mod delivery;
mod flusher;
pub mod frames;
mod gateway;
mod handshake;
mod heartbeat;
mod hub;
mod line;
mod listener;
mod owntracks;
mod polling;
pub mod sessions;
mod stream;
mod watching;
mod wire;

pub use crate::frames::Rules;
pub use crate::gateway::GatewaySettings;

use crate::gateway::Gateway;
use crate::heartbeat::Heartbeat;
use crate::hub::Hub;
use crate::wire::Wire;
use futures_util::FutureExt;
use governor::{Quota, RateLimiter};
use nearby_ingest::reports::Reports;
use nearby_schemas::GatewayId;
use nearby_service::Stop;
use nearby_service::append::Appender;
use nearby_service::auth::Tokens;
use nearby_service::health::Readiness;
use nearby_service::http::{Routes, StreamHandler};
use nearby_service::kafka::{ClusterError, Kafka};
use rdkafka::error::KafkaError;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::task::TaskTracker;
use warp::Filter;

/// Clients get so long to take their farewell.
const DRAIN_LIMIT: Duration = Duration::from_millis(4_500);
/// The last session records get so long to be acknowledged.
const LAST_WORDS_LIMIT: Duration = Duration::from_secs(2);
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Settings of a gateway that are flags.
#[derive(Clone, Debug, clap::Args)]
pub struct PusherSettings {
    /// First part of the gateway's id; a suffix that is new at each start follows
    #[arg(long, env = "NEARBY_GATEWAY_NAME", default_value = "g1", value_parser = legal_name)]
    pub gateway_name: String,
    /// At most one update per client in this time, in milliseconds
    #[arg(long, env = "NEARBY_FLUSH_MS", default_value_t = 100, value_parser = clap::value_parser!(u64).range(0..=60_000))]
    pub flush_ms: u64,
    /// A client that takes nothing for this long is closed, in seconds
    #[arg(long, env = "NEARBY_SLOW_CLIENT_S", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub slow_client_s: u64,
    /// New clients a second that are let in
    #[arg(long, env = "NEARBY_ACCEPT_RATE_PER_S", default_value = "5000")]
    pub accept_rate_per_s: NonZeroU32,
    /// Clients that the gateway is willing to hold
    #[arg(long, env = "NEARBY_CONNECTIONS_MAX", default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub connections_max: u32,
}

fn legal_name(name: &str) -> Result<String, String> {
    let room_for_suffix = name.len() <= 80;
    match GatewayId::new(name) {
        Ok(_) if room_for_suffix => Ok(name.to_owned()),
        Ok(_) => Err("at most 80 characters".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

impl PusherSettings {
    /// An id that was never used before.
    pub fn new_gateway_id(&self) -> GatewayId {
        let suffix: u32 = rand::random();
        let started_s = nearby_schemas::TimestampMs::now().0 / 1000;
        GatewayId::new(format!("{}-{started_s:x}{suffix:08x}", self.gateway_name)).expect("the name was checked")
    }
}

/// What a gateway needs from the process.
pub struct PusherContext {
    /// The cluster.
    pub kafka: Kafka,
    /// The gateway's id; on the embedded cluster its topic has to exist already.
    pub gateway: GatewayId,
    /// Base address that clients are told, `http://…`.
    pub public_url: String,
    /// What clients are told on arrival.
    pub rules: Rules,
    /// Takes clients' reports.
    pub reports: Reports,
    /// Verifies tokens.
    pub tokens: Tokens,
    /// Whether clients may watch their own wire: for development.
    pub watchable: bool,
    /// Told when the gateway works ("pusher").
    pub readiness: Readiness,
}

/// A gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The cluster is not as it has to be.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// A client could not be made.
    #[error("Kafka: {0}")]
    Kafka(#[from] KafkaError),
    /// The system gives no thread.
    #[error("starting a thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// A running gateway.
pub struct Pusher {
    /// Its HTTP routes.
    pub routes: Routes,
    /// Takes over requests for `/v1/stream`.
    pub stream: StreamHandler,
    gateway: Arc<Gateway>,
    pollers: Arc<polling::Pollers>,
    heartbeat: Heartbeat,
    kafka: Kafka,
    reading: Stop,
}

impl Pusher {
    /// Creates the gateway's topic and starts reading it and beating.
    ///
    /// # Errors
    /// When topics are missing or the broker does not answer.
    pub async fn start(settings: &PusherSettings, context: PusherContext) -> Result<Pusher, StartError> {
        let PusherContext { kafka, gateway: id, public_url, rules, reports, tokens, watchable, readiness } = context;
        let checked = kafka.clone();
        let partitions = tokio::task::spawn_blocking(move || checked.check_topics()).await;
        let partitions = partitions.map_err(|_| KafkaError::Canceled)??;
        if !kafka.embedded {
            kafka.create_topic(&kafka.topics.friend_moved_spec(&id)).await?;
        }
        let appender = Appender::new(&kafka)?;
        let flush_interval = Duration::from_millis(settings.flush_ms);
        let (sessions, codec) = (kafka.topics.sessions(), kafka.codecs.codec());
        let flush = (flush_interval, rules.clone());
        let hub = Hub::start(id.clone(), sessions, partitions, appender.clone(), codec, flush)?;
        let gateway = Arc::new(Gateway {
            id: id.clone(),
            settings: GatewaySettings {
                rules,
                flush_interval,
                slow_client: Duration::from_secs(settings.slow_client_s),
                capacity: settings.connections_max as usize,
                accept_rate_per_s: settings.accept_rate_per_s.get(),
            },
            hub: Arc::clone(&hub),
            reports,
            tokens,
            arrivals: RateLimiter::direct(Quota::per_second(settings.accept_rate_per_s)),
            draining: Stop::new(),
            farewell: Stop::new(),
            wire: watchable.then(Wire::default),
            tasks: TaskTracker::new(),
        });
        let reading = Stop::new();
        listener::start(&kafka, &id, Arc::clone(&hub), appender.clone(), reading.clone())?;
        let heartbeat = Heartbeat::start(&kafka, Arc::clone(&gateway), &public_url, appender, readiness);
        let pollers = Arc::new(polling::Pollers::default());
        sweep(Arc::clone(&gateway), Arc::clone(&pollers));
        let shared = Arc::clone(&gateway);
        Ok(Pusher {
            routes: owntracks::routes(&gateway, &pollers)
                .or(polling::routes(&gateway, Arc::clone(&pollers)))
                .unify()
                .boxed(),
            stream: Arc::new(move |request| stream::open(Arc::clone(&shared), request).boxed()),
            gateway,
            pollers,
            heartbeat,
            kafka,
            reading,
        })
    }

    /// Ends in order: leaves the list of gateways, asks clients one by one to go elsewhere, ends their sessions, takes the
    /// heartbeat back, deletes the topic.
    pub async fn end(self) {
        self.gateway.draining.cancel();
        self.heartbeat.say_draining().await;
        self.gateway.farewell.cancel();
        self.pollers.sweep(&self.gateway);
        self.gateway.tasks.close();
        if tokio::time::timeout(DRAIN_LIMIT, self.gateway.tasks.wait()).await.is_err() {
            tracing::warn!(clients = self.gateway.hub.sockets(), "some clients did not leave in time");
        }
        let last_words = async {
            while self.gateway.hub.unwritten() > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            self.heartbeat.say_gone().await;
        };
        if tokio::time::timeout(LAST_WORDS_LIMIT, last_words).await.is_err() {
            tracing::warn!("Kafka did not acknowledge the end of every session; processors will find the gateway lost");
        }
        self.reading.cancel();
        if !self.kafka.embedded {
            let topic = self.kafka.topics.friend_moved(&self.gateway.id);
            match tokio::time::timeout(LAST_WORDS_LIMIT, self.kafka.delete_topic(&topic)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, topic, "the gateway's topic stays"),
                Err(_) => tracing::warn!(topic, "the gateway's topic stays: Kafka did not answer"),
            }
        }
    }
}

/// Ends pollers' sessions whose time is over, for as long as the gateway runs.
fn sweep(gateway: Arc<Gateway>, pollers: Arc<polling::Pollers>) {
    tokio::spawn(async move {
        let mut interval = tokio::time::interval(SWEEP_INTERVAL);
        while gateway.draining.run_until_cancelled(interval.tick()).await.is_some() {
            pollers.sweep(&gateway);
        }
    });
}
