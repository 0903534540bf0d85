//! The one broker of the peers that want Kafka, in all workloads: warm, and standing still while other peers are measured.

use crate::pipeline::warm_broker;
use anyhow::Context;
use nearby_e2e::kafka::Kafka;
use nearby_e2e::process::send_signal;
use std::sync::Arc;
use std::time::Duration;

/// A broker that stood still may take itself for lost (`broker.session.timeout.ms`, 3 s), and leads no partition until it has heard
/// a few of its own heartbeats (each 500 ms).
const AWAKE: Duration = Duration::from_secs(4);

/// The broker, once it has been needed.
#[derive(Default)]
pub struct Standing(Option<Arc<Kafka>>);

/// The broker at work. It stands still again when this goes.
pub struct AtWork(Arc<Kafka>);

impl Standing {
    /// Lets it go on, or starts it.
    pub async fn go_on(&mut self) -> anyhow::Result<AtWork> {
        let Some(broker) = &self.0 else {
            let broker = warm_broker().await?;
            self.0 = Some(Arc::clone(&broker));
            return Ok(AtWork(broker));
        };
        signal(broker, "CONT")?;
        let at_work = AtWork(Arc::clone(broker));
        tokio::time::sleep(AWAKE).await;
        Ok(at_work)
    }
}

impl AtWork {
    pub fn broker(&self) -> Arc<Kafka> {
        Arc::clone(&self.0)
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        if let Err(error) = signal(&self.0, "STOP") {
            println!("the broker goes on beside the others: {error:#}");
        }
    }
}

fn signal(broker: &Kafka, signal: &str) -> anyhow::Result<()> {
    send_signal(broker.pid().context("the broker runs")?, signal)
}
