//! The gateway's own word in `gateways`: that it is there, how full it is, that it is leaving.

use crate::gateway::Gateway;
use nearby_schemas::codec::Codec;
use nearby_schemas::{GatewayHeartbeat, TimestampMs};
use nearby_service::append::{Acknowledged, Appender, Outgoing};
use nearby_service::health::Readiness;
use nearby_service::kafka::Kafka;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior};

const INTERVAL: Duration = Duration::from_secs(5);
/// Earlier, but not more often than this, when the number of clients has changed by [`EARLY_CLIENTS_MIN`] and by a part of
/// [`EARLY_SHARE`]: those who send clients here do not know of each other but by heartbeats.
const EARLY_INTERVAL: Duration = Duration::from_millis(500);
const EARLY_CLIENTS_MIN: usize = 50;
const EARLY_SHARE: usize = 50;
/// How long the end waits for the broker to know that the gateway drains.
const DRAINING_LIMIT: Duration = Duration::from_millis(500);

/// Beats until the gateway drains.
#[derive(Clone)]
pub struct Heartbeat {
    gateway: Arc<Gateway>,
    appender: Appender,
    codec: Arc<Codec<GatewayHeartbeat>>,
    topic: String,
    stream_url: String,
    http_url: String,
    started_at: TimestampMs,
}

impl Heartbeat {
    /// Starts beating; "pusher" is ready when the first beat is in the log.
    pub fn start(
        kafka: &Kafka,
        gateway: Arc<Gateway>,
        public_url: &str,
        appender: Appender,
        readiness: Readiness,
    ) -> Heartbeat {
        let heartbeat = Heartbeat {
            gateway,
            appender,
            codec: Arc::new(kafka.codecs.codec()),
            topic: kafka.topics.gateways(),
            stream_url: format!("{}/v1/stream", public_url.replacen("http", "ws", 1)),
            http_url: public_url.to_owned(),
            started_at: TimestampMs::now(),
        };
        readiness.not_ready("pusher", "no heartbeat acknowledged yet");
        let beating = heartbeat.clone();
        tokio::spawn(async move {
            let mut interval = tokio::time::interval(EARLY_INTERVAL);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let draining = beating.gateway.draining.clone();
            let mut last: Option<(Instant, usize)> = None;
            while draining.run_until_cancelled(interval.tick()).await.is_some() {
                let clients = beating.gateway.hub.sockets();
                metrics::gauge!("nearby_pusher_connections").set(u32::try_from(clients).unwrap_or(u32::MAX));
                let due = last
                    .is_none_or(|(at, said)| at.elapsed() + EARLY_INTERVAL / 2 >= INTERVAL || is_news(said, clients));
                if !due {
                    continue;
                }
                last = Some((Instant::now(), clients));
                match beating.beat().await {
                    Ok(()) => readiness.ready("pusher"),
                    Err(error) => readiness.not_ready("pusher", format!("heartbeat: {error}")),
                }
            }
        });
        heartbeat
    }

    /// Leaves the list of gateways that clients are sent to.
    pub async fn say_draining(&self) {
        match tokio::time::timeout(DRAINING_LIMIT, self.beat()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the gateway's leaving is not in the log"),
            Err(_) => tracing::warn!("Kafka is slow to acknowledge that the gateway is leaving"),
        }
    }

    /// Takes the heartbeat back: the gateway is gone for good.
    pub async fn say_gone(&self) {
        if let Err(error) = self.append(None).await {
            tracing::warn!(%error, "the gateway's end is not in the log");
        }
    }

    fn beat(&self) -> Acknowledged {
        let bounded = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
        let beat = GatewayHeartbeat {
            gateway: self.gateway.id.clone(),
            stream_url: self.stream_url.clone(),
            http_url: self.http_url.clone(),
            connections: bounded(self.gateway.hub.sockets()),
            capacity: bounded(self.gateway.settings.capacity),
            draining: self.gateway.draining.is_cancelled(),
            started_at: self.started_at,
            accept_rate_per_s: bounded(self.gateway.settings.accept_rate_per_s as usize),
        };
        self.append(Some(self.codec.encode(&beat)))
    }

    fn append(&self, value: Option<Vec<u8>>) -> Acknowledged {
        self.appender.append_one(Outgoing {
            topic: self.topic.clone(),
            partition: Some(0),
            key: Some(self.gateway.id.as_str().as_bytes().to_vec()),
            value,
            headers: None,
        })
    }
}

/// Whether so many clients are worth a heartbeat before its time.
fn is_news(said: usize, clients: usize) -> bool {
    let change = said.abs_diff(clients);
    change >= EARLY_CLIENTS_MIN && change.saturating_mul(EARLY_SHARE) >= said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_change_is_news() {
        let news = [(0, 49), (0, 50), (100, 50), (10_000, 10_100), (10_000, 10_200), (10_000, 9_800), (usize::MAX, 0)];
        let news = news.map(|(said, clients)| is_news(said, clients));
        assert_eq!(news, [false, true, true, false, true, true, true]);
    }
}
