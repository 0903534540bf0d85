//! The process's metrics in Prometheus' text format.

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use std::sync::OnceLock;
use std::time::Duration;

/// Buckets of every histogram of seconds: 0.5 ms to 60 s.
const SECONDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();

/// Starts collecting. Calling it again changes nothing.
pub fn start() {
    HANDLE.get_or_init(|| {
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)
            .expect("there are buckets")
            .build_recorder();
        let handle = recorder.handle();
        let upkept = handle.clone();
        // Without it a histogram keeps every sample until somebody asks for the metrics.
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(UPKEEP_INTERVAL);
                upkept.run_upkeep();
            }
        });
        if metrics::set_global_recorder(recorder).is_err() {
            tracing::warn!("another metrics recorder is installed: /metrics stays empty");
        }
        handle
    });
}

/// How long a report took for one hop of its way, in milliseconds between two times of the wall, which may be those of two
/// machines: `phone` from the report to a gateway or the ingest (one in each request), `ingest` from there to the broker's
/// acknowledgement, `processor` from the log to the decision, `pusher` from the processor's batch to the sockets' outboxes.
pub fn hop(hop: &'static str, ms: i64) {
    #[expect(clippy::cast_precision_loss, reason = "a delay in milliseconds is far below 2^52")]
    metrics::histogram!("nearby_hop_seconds", "hop" => hop).record(ms.max(0) as f64 / 1000.0);
}

/// Everything collected, as `/metrics` serves it.
pub fn render() -> String {
    HANDLE.get().map(PrometheusHandle::render).unwrap_or_default()
}
