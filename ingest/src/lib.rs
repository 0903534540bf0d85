//! Reports and friend lists in: validated, limited per user, and in the log before the client hears that they are.
//!
//! - [`admission`] decides what is let in; pure.
//! - [`reports`] knows who may report how fast, and appends. The gateways use it too: one user has one rate per process.
//! - [`directory`] knows which gateway a client should connect to; pure. [`gateways`] keeps it up to date.
//!
//! It keeps no state that the log does not hold, except each user's rate. It binds no listener: [`start`] returns routes,
//! which the binary serves alone or together with those of a gateway.

pub mod admission;
pub mod directory;
mod friend_lists;
pub mod gateways;
mod rates;
pub mod reports;
mod routes;

use friend_lists::FriendLists;
use gateways::Gateways;
use nearby_service::Stop;
use nearby_service::auth::Tokens;
use nearby_service::health::Readiness;
use nearby_service::http::Routes;
use nearby_service::kafka::Kafka;
use nearby_service::settings::EdgeSettings;
use rdkafka::error::KafkaError;
use reports::Reports;
use routes::Edge;

/// What ingest needs of its surroundings.
#[derive(Clone)]
pub struct IngestContext {
    /// The log.
    pub kafka: Kafka,
    /// Who is calling.
    pub tokens: Tokens,
    /// Rates.
    pub edge: EdgeSettings,
    /// Serve `GET /v1/dev/token`.
    pub dev_tokens: bool,
    /// A gateway is lost when its heartbeat is so far behind the newest.
    pub gateway_lost_after_ms: i64,
    /// Told of the part `gateways-list`.
    pub readiness: Readiness,
    /// Ends the reading of heartbeats.
    pub stop: Stop,
}

/// A started ingest.
pub struct Ingest {
    /// To be served.
    pub routes: Routes,
    /// To be shared with a gateway in the same process, and flushed before the end.
    pub reports: Reports,
}

/// Starts reading heartbeats; connects to Kafka lazily.
///
/// # Errors
/// On a bad configuration of the Kafka clients, or if no thread can be started.
pub fn start(context: IngestContext) -> Result<Ingest, KafkaError> {
    let IngestContext { kafka, tokens, edge, dev_tokens, gateway_lost_after_ms, readiness, stop } = context;
    let reports = Reports::new(&kafka, &edge)?;
    let appender = reports.appender().clone();
    let gateways = Gateways::follow(&kafka, gateway_lost_after_ms, appender.clone(), readiness, stop)?;
    let friend_lists = FriendLists::new(&kafka, appender);
    let edge = Edge { reports: reports.clone(), friend_lists, gateways, tokens };
    Ok(Ingest { routes: routes::routes(edge, dev_tokens), reports })
}
