//! On what it was measured.

use serde_json::{Value, json};
use std::fs::read_to_string;
use std::path::PathBuf;
use std::process::Command;

/// The machine and the versions, by name; what cannot be found out is left out.
pub fn described() -> Vec<(&'static str, String)> {
    let line_of = |file: &str, name: &str| {
        let text = read_to_string(file).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map_or(String::new(), |(_, value)| value.trim().to_owned())
    };
    let first = |file: &str| read_to_string(file).unwrap_or_default().trim().to_owned();
    let said = |program: &str, argument: &str| {
        let output = Command::new(program).arg(argument).output();
        let text = output.map(|output| [output.stdout, output.stderr].concat()).unwrap_or_default();
        String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned()
    };
    let cores = std::thread::available_parallelism().map_or(String::new(), |cores| cores.to_string());
    let found = vec![
        ("processor", line_of("/proc/cpuinfo", "model name")),
        ("cores", cores),
        ("memory", line_of("/proc/meminfo", "MemTotal")),
        ("kernel", first("/proc/sys/kernel/osrelease")),
        ("load before", first("/proc/loadavg")),
        (
            "nearby",
            format!("{}{}", env!("CARGO_PKG_VERSION"), if cfg!(debug_assertions) { ", debug build" } else { "" }),
        ),
        ("kafka", kafka_version()),
        ("java", said("java", "-version")),
        ("redis", said("redis-server", "--version")),
        ("tile38", said("tile38-server", "--version")),
        ("postgres", said("psql", "--version")),
    ];
    found.into_iter().filter(|(_, value)| !value.is_empty()).collect()
}

/// The same as JSON.
pub fn json(described: &[(&'static str, String)]) -> Value {
    described.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect::<serde_json::Map<_, _>>().into()
}

/// The load of the last minute; above 0.5, others were at work.
pub fn is_shared() -> bool {
    let load = read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').next().and_then(|load| load.parse::<f64>().ok()).is_none_or(|load| load >= 0.5)
}

/// From the name of the broker's jar.
fn kafka_version() -> String {
    let jars = made("kafka-libs").and_then(|folder| std::fs::read_dir(folder).ok());
    let names = jars.into_iter().flatten().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let version = |name: String| Some(name.strip_prefix("kafka_2.13-")?.strip_suffix(".jar")?.to_owned());
    names.filter_map(version).next().unwrap_or_default()
}

/// What a setup has made in the target folder that this program was built into.
pub fn made(name: &str) -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    program.ancestors().map(|folder| folder.join("e2e").join(name)).find(|made| made.exists())
}
