//! A processor process, started as users start one.

use crate::cluster::Cluster;
use crate::pipeline::Load;
use nearby_e2e::http;
use nearby_e2e::nearby::Nearby;
use std::time::Duration;

const START_LIMIT: Duration = Duration::from_secs(300);

/// A process, and where its figures are.
pub struct Processor {
    pub program: Nearby,
    metrics_url: String,
}

/// What it has done since its start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    pub reports: f64,
    pub notices: f64,
    pub batches: f64,
    pub batch_bytes: f64,
    pub unacknowledged: f64,
}

impl Processor {
    /// Starts one, and waits until it serves.
    pub fn start(cluster: &Cluster, load: &Load) -> anyhow::Result<Processor> {
        let port = nearby_e2e::ports::free_port()?;
        let listen = format!("127.0.0.1:{port}");
        let (threads, radius_m) = (load.engine_threads.to_string(), load.radius_m.to_string());
        let of_load = ["--engine-threads", &threads, "--radius-m", &radius_m];
        let (brokers, prefix) = (&cluster.kafka.brokers, &cluster.prefix);
        let arguments =
            [&["processor", "--brokers", brokers, "--topic-prefix", prefix, "--listen", &listen], &of_load[..]]
                .concat();
        let mut program = Nearby::start(&arguments, &[])?;
        program.wait_line("ready ", START_LIMIT)?;
        Ok(Processor { program, metrics_url: format!("http://{listen}/metrics") })
    }

    /// As they are now.
    pub async fn counters(&self) -> anyhow::Result<Counters> {
        let text = http::get(&self.metrics_url).await?.text();
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|value| value.parse().ok()).unwrap_or_default()
        };
        Ok(Counters {
            reports: value("nearby_processor_reports_total"),
            notices: value("nearby_processor_notices_total"),
            batches: value("nearby_batches_total"),
            batch_bytes: value("nearby_batch_bytes_total"),
            unacknowledged: value("nearby_unacknowledged_batches_total"),
        })
    }
}
