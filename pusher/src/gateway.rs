//! What every part of one gateway shares, and whether it takes more clients.

use crate::frames::Rules;
use crate::hub::{Connection, Hub};
use crate::wire::Wire;
use governor::DefaultDirectRateLimiter;
use nearby_ingest::reports::Reports;
use nearby_schemas::{GatewayId, UserId};
use nearby_service::Stop;
use nearby_service::auth::Tokens;
use nearby_service::problem::Problem;
use rand::RngExt;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::task::TaskTracker;

/// Clients that came in too large a crowd come again spread over up to so many seconds.
const RETRY_WITHIN_S: u32 = 4;
/// Who has too many sockets tries again when some of them may have been found to be gone.
const SOCKETS_RETRY_AFTER: Duration = Duration::from_secs(30);
/// When the gateway drains, its clients are asked to go one by one, over so long for each of them, but not longer in all.
const FAREWELL_PER_CLIENT: Duration = Duration::from_millis(1);
const FAREWELL_WITHIN_MAX: Duration = Duration::from_millis(2_500);

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
    /// New clients a second that are let in.
    pub accept_rate_per_s: u32,
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
    /// Nobody is let in any more.
    pub draining: Stop,
    /// Every client is asked to go elsewhere, each when its turn comes.
    pub farewell: Stop,
    /// Tells clients of their own wire; only for development.
    pub wire: Option<Wire>,
    /// The tasks of the clients.
    pub tasks: TaskTracker,
}

impl Gateway {
    /// Lets one more client in, if it may. Whoever asks for that takes a place in the user's rate first: a session is written to the log
    /// and a snapshot sent for each.
    ///
    /// # Errors
    /// 503 `draining`, `gateway_full` or `overloaded`, 429 `too_many_sockets`.
    pub fn admit(&self, user: UserId) -> Result<Connection, Problem> {
        let refuse = |code, detail: &str| Err(Problem::unavailable(code, detail));
        if self.draining.is_cancelled() {
            return Err(draining());
        }
        if self.hub.sockets() >= self.settings.capacity {
            return refuse("gateway_full", "this gateway is full: ask GET /v1/gateway for another");
        }
        let too_many = || {
            let detail = "this user has too many sockets on this gateway";
            Problem::too_many("too_many_sockets", detail, SOCKETS_RETRY_AFTER)
        };
        // Before the arrival is counted: one user who tries and tries must not keep everybody else out.
        if !self.hub.has_room(user) {
            return Err(too_many());
        }
        if self.arrivals.check().is_err() {
            let problem = Problem::unavailable("overloaded", "too many clients at once");
            let retry_after_s = rand::rng().random_range(1..=RETRY_WITHIN_S);
            return Err(Problem { retry_after_s: Some(retry_after_s), ..problem });
        }
        self.hub.connect(user).ok_or_else(too_many)
    }

    /// Ends when it is a client's turn to go, which is drawn: all of them at once would be a stampede elsewhere. Until then
    /// the client is told what is new.
    pub async fn turn_to_go(&self) {
        self.farewell.cancelled().await;
        let turn: f64 = rand::random();
        tokio::time::sleep(farewell_within(self.hub.sockets()).mul_f64(turn)).await;
    }
}

/// 503: nobody is let in any more.
pub fn draining() -> Problem {
    Problem::unavailable("draining", "this gateway is going away: ask GET /v1/gateway for another")
}

/// How long it takes to ask so many clients to go.
fn farewell_within(clients: usize) -> Duration {
    FAREWELL_PER_CLIENT.saturating_mul(u32::try_from(clients).unwrap_or(u32::MAX)).min(FAREWELL_WITHIN_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_clients_go_at_once_and_many_within_the_limit() {
        let within_ms = [0, 1, 1_000, 5_000, 50_000, usize::MAX].map(|clients| farewell_within(clients).as_millis());
        assert_eq!(within_ms, [0, 1, 1_000, 2_500, 2_500, 2_500]);
    }
}
