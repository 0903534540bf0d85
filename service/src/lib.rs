//! What every service shares and nothing else: settings, Kafka access, the HTTP edge, tokens, logs, metrics, health.
//!
//! No business rule lives here. A service is a library with `start(settings, …)`, one pure module at its heart, and this
//! crate around it.

pub mod addresses;
pub mod append;
pub mod auth;
pub mod body;
pub mod client_properties;
pub mod consume;
pub mod dead_letters;
pub mod health;
pub mod hosts;
pub mod http;
pub mod kafka;
mod keys;
pub mod lifelines;
pub mod logs;
pub mod membership;
pub mod metrics;
pub mod probe;
pub mod problem;
mod progress;
pub mod reader;
pub mod registry;
pub mod settings;
pub mod tls;
mod watched;

/// Asks everything that holds a clone to end in order.
pub use tokio_util::sync::CancellationToken as Stop;

/// Waits for SIGTERM or Ctrl-C and then asks for the stop.
///
/// # Errors
/// If the process cannot listen to signals.
pub fn stop_on_signals(stop: Stop) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: ending in order"),
            _ = interrupt.recv() => tracing::info!("Ctrl-C: ending in order"),
        }
        stop.cancel();
    });
    Ok(())
}
