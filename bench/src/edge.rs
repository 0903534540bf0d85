//! A gateway process of the bench's own, with a broker, an ingest and a processor behind it. Its clients read no more of what they get
//! than they have to (`nearby_e2e::raw`): the bytes are the server's, whoever the client is.

use crate::cpu::Apart;
use anyhow::ensure;
use nearby_client::Api;
use nearby_e2e::cluster::{Cluster, SECRET, Service};
use nearby_e2e::ports::free_port;
use nearby_schemas::{TimestampMs, UserId};
use nearby_service::auth::{SCOPES_ALL, Tokens};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::task::block_in_place;

/// The longest that anything may take.
pub const STEP: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);
const TOKEN_MS: i64 = 3_600_000;

/// The processes.
pub struct Edge {
    pub cluster: Cluster,
    pub gateway: Service,
    tokens: Tokens,
}

impl Edge {
    /// Starts them; the gateway with these flags.
    pub fn start(flags: &[&str]) -> anyhow::Result<Edge> {
        Edge::start_apart(flags, None)
    }

    /// The same, with the gateway on a core of its own if asked.
    pub fn start_apart(flags: &[&str], apart: Option<&Apart>) -> anyhow::Result<Edge> {
        block_in_place(|| {
            let cluster = Cluster::start("", 0, 1)?;
            let listen = format!("127.0.0.1:{}", free_port()?);
            let start = || cluster.start_pusher(&listen, flags);
            let mut gateway = apart.map_or_else(start, |apart| apart.alone(start))?;
            gateway.wait_ready()?;
            Handle::current().block_on(wait_until_known(&Api::new(&cluster.ingest.url)?))?;
            Ok(Edge { cluster, gateway, tokens: Tokens::from_secret(SECRET.as_bytes())? })
        })
    }

    /// A token with every scope.
    pub fn token(&self, user: i64) -> anyhow::Result<String> {
        Ok(self.tokens.sign(UserId(user), SCOPES_ALL, TimestampMs::now().plus_ms(TOKEN_MS))?)
    }
}

/// An ingest learns of a gateway from its heartbeat, and sends nobody there before.
async fn wait_until_known(api: &Api) -> anyhow::Result<()> {
    let deadline = Instant::now() + STEP;
    while let Err(error) = api.gateway().await {
        ensure!(Instant::now() < deadline, error);
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}
