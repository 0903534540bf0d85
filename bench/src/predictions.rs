//! What `nearby capacity` says of loads, beside what they took.

use crate::capacity::Run;
use crate::pipeline;
use anyhow::{Context, ensure};
use nearby_e2e::nearby::Nearby;
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

/// A prediction that is further off is wrong.
const OFF_MAX: f64 = 0.25;
const BATCHES: &str = "thousand batches";

/// What was measured beside what the costs say of it.
pub fn compare(checked: &[Run], coefficients: &Path) -> anyhow::Result<()> {
    let mut far_off = Vec::new();
    println!("\npredictions, beside what was measured; CPU-seconds per million reports");
    for run in checked {
        let (Run { load, gateways, cost, .. }, predicted) = (run, predict(coefficients, run)?);
        println!("  {load}, {gateways} gateways");
        let measured = [("processors", cost.processors_us), ("broker", cost.broker_us), (BATCHES, cost.batches * 1e3)];
        for ((what, measured), predicted) in measured.into_iter().zip(predicted) {
            let off = predicted / measured - 1.0;
            println!("    {what:<18} predicted {predicted:.2}, measured {measured:.2}: {:+.0} %", off * 100.0);
            // Batches are no end in themselves: what they cost is in the other two.
            if what != BATCHES && off.abs() > OFF_MAX {
                far_off.push(format!("{what} of {load}, {gateways} gateways"));
            }
        }
    }
    ensure!(far_off.is_empty(), "the model is wrong about: {}", far_off.join("; "));
    Ok(())
}

/// What `nearby capacity` says of processors and of the broker, which here has neither sinks nor gateways to read from it.
fn predict(coefficients: &Path, run: &Run) -> anyhow::Result<[f64; 3]> {
    let Run { load, gateways, rate_per_s, cost } = run;
    // Without the notice of the reporter's own place.
    let near = ((cost.notices - 1.0) / f64::from(load.friends) / load.connected).clamp(1e-6, 1.0);
    let interval_s = f64::from(load.users) * load.connected / rate_per_s;
    let settings = [
        ("--users", load.users.to_string()),
        ("--friends", load.friends.to_string()),
        ("--connected", load.connected.to_string()),
        ("--engine-threads", load.engine_threads.to_string()),
        ("--near", near.to_string()),
        ("--interval-s", interval_s.to_string()),
        ("--gateways", gateways.to_string()),
        ("--processors", load.processors.to_string()),
        ("--replicas", "1".to_owned()),
        ("--cores", std::thread::available_parallelism()?.to_string()),
        ("--coefficients", coefficients.display().to_string()),
    ];
    let flags = settings.iter().flat_map(|(flag, value)| [*flag, value.as_str()]);
    let arguments: Vec<&str> = ["capacity", "--json"].into_iter().chain(flags).collect();
    let mut nearby = Nearby::start(&arguments, &[])?;
    let status = nearby.finish(Duration::from_secs(10))?;
    ensure!(status.success(), "{}", nearby.stderr());
    let plan: Value = serde_json::from_str(&nearby.stdout().join("\n"))?;
    let figure = |path: &str| plan.pointer(path).and_then(Value::as_f64).with_context(|| format!("no {path}"));
    // The bench writes reports in few requests.
    let costs: Value = serde_json::from_str(&std::fs::read_to_string(coefficients)?)?;
    let request_us = costs.pointer("/broker/request_cpu_s").and_then(Value::as_f64).context("what a request costs")?;
    let cores = pipeline::REQUESTS_PER_S as f64 * request_us / 1e6
        + figure("/broker_cost/awake_cores")?
        + figure("/broker_cost/taken_cores")?
        + figure("/broker_cost/reader_cores")? * load.processors as f64;
    let each = |per_s: f64| per_s / rate_per_s * 1e6;
    Ok([figure("/processor_cpu_s_per_million_reports")?, each(cores), each(figure("/batches_per_s")?) / 1e3])
}
