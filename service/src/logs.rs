//! Logs go to standard error; standard output is for what a program reads.

/// Starts logging at level `info`, or as `NEARBY_LOG` says (the syntax of `RUST_LOG`). Call once, first.
pub fn start() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("NEARBY_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,rdkafka=warn,librdkafka=warn,sqlx=warn"));
    // At `trace` warp repeats the parts of paths, whatever clients have put there.
    let filter = filter.add_directive("warp=warn".parse().expect("a directive"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
}
