//! One simulated person: a client that reports, comes back when it is cut off, and counts what it experiences.

use crate::simulate::api::Api;
use crate::simulate::statistics::Statistics;
use anyhow::Context;
use nearby_client::{ClientError, Connection, Heard, View, backoff};
use nearby_schemas::{TimestampMs, UserId};
use rand::RngExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc;

/// A place to report, in degrees.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub lat: f64,
    pub lon: f64,
}

/// A simulated person.
pub struct Client {
    api: Api,
    user: UserId,
    statistics: Arc<Statistics>,
    /// Of the last connection.
    view: View,
    /// Attempts since the last snapshot.
    attempt: u32,
    /// What the gateway asked for when it drained.
    pause: Option<Duration>,
}

impl Client {
    pub fn new(api: Api, user: UserId, statistics: Arc<Statistics>) -> Client {
        Client { api, user, statistics, view: View::default(), attempt: 0, pause: None }
    }

    /// Says on `connected` when the first snapshot is there; reports each step; ends with its view when the steps end.
    pub async fn run(mut self, mut steps: mpsc::Receiver<Step>, connected: mpsc::Sender<()>) -> (UserId, View) {
        let mut connected = Some(connected);
        loop {
            match self.session(&mut steps, &mut connected).await {
                Ok(()) => return (self.user, self.view),
                Err(error) => {
                    tracing::debug!(user = self.user.0, "reconnecting: {error:#}");
                    self.statistics.reconnects.fetch_add(1, Ordering::Relaxed);
                    let jitter = backoff(self.attempt, rand::rng().random_range(0.0..1.0));
                    self.attempt += 1;
                    tokio::time::sleep(self.pause.take().unwrap_or(jitter)).await;
                    if steps.is_closed() && steps.is_empty() {
                        return (self.user, self.view);
                    }
                }
            }
        }
    }

    async fn session(
        &mut self,
        steps: &mut mpsc::Receiver<Step>,
        connected: &mut Option<mpsc::Sender<()>>,
    ) -> anyhow::Result<()> {
        let connected_to = self.api.connect(self.user).await;
        let mut connection = connected_to.inspect_err(|error| {
            let asked = error.downcast_ref::<ClientError>().and_then(ClientError::retry_after);
            // All who were refused at once shall not come back at once.
            self.pause = asked.map(|asked| asked + backoff(self.attempt, rand::rng().random_range(0.0..1.0)));
        })?;
        let result = self.talk(&mut connection, steps, connected).await;
        self.view = std::mem::take(&mut connection.view);
        if result.is_ok() {
            connection.close().await.context("closing")?;
        }
        result
    }

    async fn talk(
        &mut self,
        connection: &mut Connection,
        steps: &mut mpsc::Receiver<Step>,
        connected: &mut Option<mpsc::Sender<()>>,
    ) -> anyhow::Result<()> {
        loop {
            tokio::select! {
                step = steps.recv() => {
                    let Some(Step { lat, lon }) = step else { return Ok(()) };
                    connection.report(lat, lon, TimestampMs::now().0).await?;
                    self.statistics.report_sent();
                }
                heard = connection.next() => {
                    let snapshot = self.hear(heard?);
                    if snapshot && let Some(connected) = connected.take() {
                        connected.send(()).await.context("the crowd is gone")?;
                    }
                }
            }
        }
    }

    /// Counts what was heard; true if it was a snapshot.
    fn hear(&mut self, heard: Heard) -> bool {
        self.statistics.frames.fetch_add(1, Ordering::Relaxed);
        match heard {
            Heard::Welcome { .. } | Heard::Other => {}
            Heard::Snapshot => {
                self.attempt = 0;
                return true;
            }
            Heard::Update { changes, arrived_ms } => {
                self.statistics.pushes.fetch_add(changes as u64, Ordering::Relaxed);
                let now = TimestampMs::now();
                arrived_ms.into_iter().for_each(|at_ms| self.statistics.arrived_after_ms(now.0 - at_ms));
            }
            Heard::Accepted { .. } => {
                self.statistics.accepted.fetch_add(1, Ordering::Relaxed);
            }
            Heard::Error { code } => self.statistics.refused(&code),
            Heard::Drain { reconnect_after_ms } => self.pause = Some(Duration::from_millis(reconnect_after_ms)),
        }
        false
    }
}
