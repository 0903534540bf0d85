//! Many clients at once.

use crate::simulate::api::Api;
use crate::simulate::client::{Client, Step};
use crate::simulate::statistics::Statistics;
use anyhow::Context;
use nearby_client::View;
use nearby_schemas::UserId;
use nearby_service::Stop;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

/// Steps that wait for one client's socket.
const STEPS_WAITING_MAX: usize = 2_000;
/// Clients that connect at the same time.
const CONNECTING_MAX: usize = 64;
/// How long all reports may take to be answered after the last was sent.
const ANSWERS_LIMIT: Duration = Duration::from_secs(30);

/// Connected clients and how to make them report.
pub struct Crowd {
    pub statistics: Arc<Statistics>,
    steps: BTreeMap<UserId, mpsc::Sender<Step>>,
    clients: JoinSet<(UserId, View)>,
}

/// What was counted, and what everybody saw at the end.
pub struct Outcome {
    pub statistics: Arc<Statistics>,
    /// {"user": {"friend": [lat, lon, distance_m]}}
    pub views: Value,
}

impl Crowd {
    /// Connects a client for each user and waits for the first snapshot of each.
    pub async fn connect(api: &Api, users: impl Iterator<Item = UserId>, stop: &Stop) -> anyhow::Result<Crowd> {
        let statistics = Arc::new(Statistics::start());
        let mut crowd = Crowd { statistics: Arc::clone(&statistics), steps: BTreeMap::new(), clients: JoinSet::new() };
        let places = Arc::new(Semaphore::new(CONNECTING_MAX));
        let (all_connected, mut last_connected) = mpsc::channel::<()>(1);
        for user in users {
            let place = Arc::clone(&places).acquire_owned().await.context("the crowd is gone")?;
            let (steps, inbox) = mpsc::channel(STEPS_WAITING_MAX);
            let (connected, mut is_connected) = mpsc::channel(1);
            let client = Client::new(api.clone(), user, Arc::clone(&statistics));
            crowd.steps.insert(user, steps);
            crowd.clients.spawn(client.run(inbox, connected));
            let all_connected = all_connected.clone();
            tokio::spawn(async move {
                is_connected.recv().await;
                drop((place, all_connected));
            });
        }
        drop(all_connected);
        stop.run_until_cancelled(last_connected.recv()).await.context("stopped while connecting")?;
        Ok(crowd)
    }

    /// Makes one client report; waits while its socket is behind.
    pub async fn report(&self, user: UserId, step: Step) -> anyhow::Result<()> {
        let steps = self.steps.get(&user).context("a report of somebody who is not connected")?;
        steps.send(step).await.context("a client has ended")
    }

    /// Waits until every report is answered and for `settle` after that; closes the sockets and gathers the views.
    pub async fn end(mut self, settle: Duration, stop: &Stop) -> Outcome {
        let waiting_since = Instant::now();
        while self.statistics.answered() < self.statistics.sent.load(Ordering::Relaxed)
            && waiting_since.elapsed() < ANSWERS_LIMIT
            && !stop.is_cancelled()
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        stop.run_until_cancelled(tokio::time::sleep(settle)).await;
        self.steps.clear();
        let mut views = serde_json::Map::new();
        while let Some(ended) = self.clients.join_next().await {
            let Ok((user, view)) = ended else { continue };
            let view: serde_json::Map<String, Value> = view
                .0
                .into_iter()
                .map(|(friend, seen)| (friend, json!([seen.lat, seen.lon, seen.distance_m])))
                .collect();
            views.insert(user.to_string(), view.into());
        }
        Outcome { statistics: self.statistics, views: views.into() }
    }
}
