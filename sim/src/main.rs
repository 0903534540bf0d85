//! `nearby-sim --seeds N`: runs seeds, and says how to repeat one that fails.

use clap::Parser;
use nearby_sim::run;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Parser)]
struct Options {
    /// How many seeds to run
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Threads
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=64))]
    threads: u64,
    /// Prints everything that happens in the world of the first seed, and runs no other
    #[arg(long)]
    trace: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    if options.trace {
        let ending = run(options.from, true);
        println!("{ending:?}");
        return if ending.verdict.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    let next = AtomicU64::new(options.from);
    let end = options.from.saturating_add(options.seeds);
    let failed = Mutex::new(None::<(u64, String)>);
    let (shown, compared, reports) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let prompt = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..options.threads {
            scope.spawn(|| {
                while failed.lock().is_ok_and(|failed| failed.is_none()) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        break;
                    }
                    let ending = run(seed, false);
                    shown.fetch_add(ending.shown_count, Ordering::Relaxed);
                    compared.fetch_add(ending.compared_count, Ordering::Relaxed);
                    reports.fetch_add(ending.report_count, Ordering::Relaxed);
                    prompt.fetch_add(ending.prompt_count, Ordering::Relaxed);
                    if let Some(verdict) = ending.verdict
                        && let Ok(mut failed) = failed.lock()
                    {
                        failed.get_or_insert((seed, verdict));
                    }
                }
            });
        }
    });
    let (shown, compared, reports) = (shown.into_inner(), compared.into_inner(), reports.into_inner());
    let seeds = next.into_inner().min(end) - options.from;
    match failed.into_inner().ok().flatten() {
        Some((seed, verdict)) => {
            eprintln!("seed {seed} fails after {seeds} seeds: {verdict}");
            eprintln!("repeat it with: cargo run -p nearby-sim -- --trace --from {seed}");
            ExitCode::FAILURE
        }
        None => {
            println!(
                "{seeds} seeds, nothing wrong: {reports} reports, {shown} times a friend was shown, \
                 {compared} friends in views that were compared, {prompt} pairs compared on the way",
                prompt = prompt.into_inner()
            );
            ExitCode::SUCCESS
        }
    }
}
