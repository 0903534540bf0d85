//! What every part of one gateway shares, and whether it takes more clients.

use crate::frames::Rules;
use crate::hub::Hub;
use crate::wire::Wire;
use governor::DefaultDirectRateLimiter;
use http::StatusCode;
use nearby_ingest::reports::Reports;
use nearby_schemas::GatewayId;
use nearby_service::Stop;
use nearby_service::auth::Tokens;
use nearby_service::problem::Problem;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::task::TaskTracker;

/// How a gateway treats its clients.
#[derive(Clone, Debug)]
pub struct GatewaySettings {
    /// What clients are told on arrival.
    pub rules: Rules,
    /// At most one update per client in this time.
    pub flush_interval: Duration,
    /// A client that takes nothing for so long is closed.
    pub slow_client: Duration,
    /// Clients it is willing to hold.
    pub capacity: usize,
}

/// One gateway.
pub struct Gateway {
    /// Its id, new at each start.
    pub id: GatewayId,
    /// How it treats its clients.
    pub settings: GatewaySettings,
    /// The viewers.
    pub hub: Arc<Hub>,
    /// Takes clients' reports.
    pub reports: Reports,
    /// Verifies tokens.
    pub tokens: Tokens,
    /// Bounds how fast new clients come in.
    pub arrivals: DefaultDirectRateLimiter,
    /// Asks every client to go elsewhere.
    pub draining: Stop,
    /// Tells clients of their own wire; only for development.
    pub wire: Option<Wire>,
    /// The tasks of the clients.
    pub tasks: TaskTracker,
}

impl Gateway {
    /// Whether one more client may come in.
    ///
    /// # Errors
    /// 503 `draining`, `gateway_full` or `overloaded`.
    pub fn has_room(&self) -> Result<(), Problem> {
        let refuse = |code, detail: &str| {
            let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, code, detail);
            Err(Problem { retry_after_s: Some(1), ..problem })
        };
        if self.draining.is_cancelled() {
            return refuse("draining", "this gateway is going away: ask GET /v1/gateway for another");
        }
        if self.hub.sockets() >= self.settings.capacity {
            return refuse("gateway_full", "this gateway is full: ask GET /v1/gateway for another");
        }
        if self.arrivals.check().is_err() {
            return refuse("overloaded", "too many clients at once");
        }
        Ok(())
    }
}
