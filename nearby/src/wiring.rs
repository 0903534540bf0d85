//! Steps that `run` and the single services have in common: checks before anything is started, and serving.

use crate::BadSetting;
use anyhow::Context;
use nearby_schemas::codecs::RecordType;
use nearby_service::Stop;
use nearby_service::auth::{KeyError, Tokens};
use nearby_service::health::Readiness;
use nearby_service::hosts::BaseUrl;
use nearby_service::http::{Door, Routes, StreamHandler, serve};
use nearby_service::kafka::Kafka;
use nearby_service::registry::{self, RegistryError};
use nearby_service::settings::{AccessSettings, AuthSettings, EdgeSettings, RegistrySettings};
use nearby_sink::{Database, SinkError};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinHandle;

/// How often the start looks whether everything is ready.
const READY_POLL: Duration = Duration::from_millis(20);

/// What the system keeps for a client that does not read; Linux takes twice as much. By default it would be 4 MiB.
const SEND_BUFFER_BYTES: u32 = 32 * 1024;
/// Connections that wait to be accepted: clients of a gateway that has ended come all at once. The system may allow less.
const BACKLOG: u32 = 4_096;

/// A connection whose peer takes nothing for so long is given up by the system, whoever holds it here.
const PEER_SILENCE_MAX_MS: u32 = 75_000;

/// Takes the port, so that a busy one is found before anything is started.
pub async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    bind(address).map_err(|error| BadSetting(format!("cannot listen on {address}: {error}")).into())
}

/// Its connections have the listener's buffers.
fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    #[cfg(target_os = "linux")]
    rustix::net::sockopt::set_tcp_user_timeout(&socket, PEER_SILENCE_MAX_MS)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// The key for tokens; `None` when the settings name none.
pub fn tokens(settings: &AuthSettings) -> anyhow::Result<Option<Tokens>> {
    match Tokens::from_settings(settings) {
        Ok(tokens) => Ok(Some(tokens)),
        Err(KeyError::Missing) => Ok(None),
        Err(error) => Err(BadSetting(error.to_string()).into()),
    }
}

/// Tokens for anybody are for development only: never beyond loopback, and never silently.
pub fn check_dev_tokens(settings: &AuthSettings, listen: SocketAddr) -> anyhow::Result<()> {
    if !settings.dev_tokens {
        return Ok(());
    }
    if !listen.ip().is_loopback() {
        let refusal = format!("--dev-tokens gives anybody a token for any user: refused when listening on {listen}");
        return Err(BadSetting(refusal).into());
    }
    tracing::warn!(
        "--dev-tokens: ANYBODY who reaches this port gets a token for ANY user. Never do this in production."
    );
    Ok(())
}

/// Fails unless the broker answers.
pub async fn check_broker(kafka: &Kafka) -> anyhow::Result<()> {
    let kafka = kafka.clone();
    tokio::task::spawn_blocking(move || kafka.check_reachable()).await.context("asking the broker")??;
    Ok(())
}

/// Makes the wire format that of the registry, if there is one, and registers the schemas of what this process writes.
pub async fn connect_registry(
    kafka: &mut Kafka,
    settings: &RegistrySettings,
    written: &'static [RecordType],
    readiness: &Readiness,
) -> anyhow::Result<()> {
    let Some(url) = settings.schema_registry_url.clone() else { return Ok(()) };
    let (topics, readiness) = (kafka.topics.clone(), readiness.clone());
    let connecting = tokio::task::spawn_blocking(move || registry::connect(&url, &topics, written, readiness));
    match connecting.await.context("asking the schema registry")? {
        Ok(codecs) => kafka.codecs = codecs,
        Err(error @ RegistryError::BadUrl(_)) => return Err(BadSetting(error.to_string()).into()),
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Connects to the given database.
pub async fn connect_database(url: &str) -> anyhow::Result<Database> {
    match nearby_sink::connect(url).await {
        Err(error @ SinkError::DatabaseUrl { .. }) => Err(BadSetting(error.to_string()).into()),
        connected => Ok(connected?),
    }
}

/// Who may come in to a listener that clients use.
pub fn door(
    listen: SocketAddr,
    advertise_url: Option<&BaseUrl>,
    access: &AccessSettings,
    edge: &EdgeSettings,
) -> anyhow::Result<Door> {
    Ok(Door::new(listen, advertise_url, access, &edge.allowed_origins).map_err(BadSetting)?)
}

/// Serves routes in the background.
pub fn serve_in_background(
    listener: TcpListener,
    routes: Routes,
    stream: Option<StreamHandler>,
    door: Door,
    stop: &Stop,
) -> JoinHandle<()> {
    tokio::spawn(serve(listener, routes, stream, door, stop.clone()))
}

/// Waits until every part is ready; false if the stop came first.
pub async fn ready(readiness: &Readiness, stop: &Stop) -> bool {
    while !readiness.missing().is_empty() {
        if stop.run_until_cancelled(tokio::time::sleep(READY_POLL)).await.is_none() {
            return false;
        }
    }
    !stop.is_cancelled()
}
