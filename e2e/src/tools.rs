//! Where the programs and jars are that the tests need, and what to do when they are not there.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

const REMEDY: &str = "run `make test`, or `e2e/setup.sh` alone: it installs what the end-to-end tests need";

/// The first of `names` in `folders`, then on the `PATH`.
pub(crate) fn program(names: &[&str], folders: &[PathBuf]) -> anyhow::Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path: Vec<PathBuf> = env::split_paths(&path).collect();
    names
        .iter()
        .flat_map(|name| folders.iter().chain(&on_path).map(move |folder| folder.join(name)))
        .find(|file| file.is_file())
        .with_context(|| format!("{} is not installed: {REMEDY}", names.join(" or ")))
}

/// The folders of Debian's Postgres programs, the newest version first.
pub(crate) fn postgres_folders() -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir("/usr/lib/postgresql") else { return Vec::new() };
    let mut versions: Vec<(u32, PathBuf)> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, bin)| bin.join("postgres").is_file() && bin.join("initdb").is_file())
        .collect();
    versions.sort_by(|a, b| b.cmp(a));
    versions.into_iter().map(|(_, bin)| bin).collect()
}

/// The folder of the server's programs: those of `PG_VERSION`, the system's or what `e2e/setup.sh` has fetched, or else of the
/// newest version that the system has.
pub(crate) fn postgres_server_folders() -> anyhow::Result<Vec<PathBuf>> {
    let Ok(version) = env::var("PG_VERSION") else { return Ok(postgres_folders()) };
    let of_system = PathBuf::from(format!("/usr/lib/postgresql/{version}/bin"));
    Ok(vec![if of_system.join("postgres").is_file() { of_system } else { made(&format!("postgres-{version}/bin"))? }])
}

/// What `e2e/setup.sh` has made: `e2e/<path>` in the target folder that this test was built into.
pub(crate) fn made(path: &str) -> anyhow::Result<PathBuf> {
    let test = env::current_exe().context("the path of this test")?;
    let made = test.ancestors().map(|folder| folder.join("e2e").join(path)).find(|made| made.exists());
    made.with_context(|| format!("{path} is not in e2e of the target folder: {REMEDY}"))
}

/// The class path that holds Kafka.
pub(crate) fn kafka_class_path() -> anyhow::Result<String> {
    Ok(format!("{}/*", made("kafka-libs")?.display()))
}

/// The program under test: `NEARBY_BIN`, or `nearby` of the build that this test belongs to.
pub(crate) fn nearby() -> anyhow::Result<PathBuf> {
    if let Some(named) = env::var_os("NEARBY_BIN") {
        let named = PathBuf::from(named);
        if !named.is_file() {
            bail!("NEARBY_BIN names {}, which is not a file", named.display());
        }
        return Ok(named);
    }
    let test = env::current_exe().context("the path of this test")?;
    // A test is target/<profile>/deps/<name>, a program target/<profile>/<name>.
    let folder = test.parent().map(|folder| match folder.file_name() {
        Some(name) if name == "deps" => folder.parent().unwrap_or(folder),
        _ => folder,
    });
    let binary = folder.unwrap_or(Path::new(".")).join("nearby");
    if !binary.is_file() {
        bail!("{} is not built: run `cargo build -p nearby` (or `make test`), or set NEARBY_BIN", binary.display());
    }
    Ok(binary)
}
