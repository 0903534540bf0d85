//! The embedded database, seen from `nearby run`: a child process that owns it and ends it when we are gone, however we go.

use anyhow::{Context, bail};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};

/// The first start downloads about 10 MB.
const START_LIMIT: Duration = Duration::from_secs(300);
const STOP_LIMIT: Duration = Duration::from_secs(4);
/// Postgres refuses to run as root, so root lends it this user.
const UNPRIVILEGED_USER: &str = "nobody";

/// A running embedded Postgres.
pub struct EmbeddedDatabase {
    /// postgresql://USER:PASSWORD@HOST:PORT/DB
    pub url: String,
    keeper: Child,
    /// The keeper ends the database when this closes, which it does even if we are killed.
    lifeline: ChildStdin,
}

struct User {
    uid: u32,
    gid: u32,
}

impl EmbeddedDatabase {
    /// Starts the keeper and waits for the database.
    pub async fn start() -> anyhow::Result<EmbeddedDatabase> {
        let folder = cache_folder()?;
        // The link names our own program even where its path could not be reached as another user.
        let mut command = Command::new("/proc/self/exe");
        command.arg("embedded-database").arg("--folder").arg(&folder);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        // Ctrl-C in a terminal goes to us alone; the keeper follows when everything that writes has ended.
        command.process_group(0);
        match unprivileged_user()? {
            Some(user) => {
                tracing::warn!(
                    "running as root: the embedded Postgres runs as the user {UNPRIVILEGED_USER} (uid {}), in {}",
                    user.uid,
                    folder.display()
                );
                prepare(&folder, Some(&user))?;
                command.uid(user.uid).gid(user.gid);
            }
            None => prepare(&folder, None)?,
        }
        command.env("HOME", &folder).current_dir(&folder);
        let mut keeper = command.spawn().context("starting the keeper of the embedded database")?;
        let lifeline = keeper.stdin.take().context("the keeper has no standard input")?;
        let stdout = keeper.stdout.take().context("the keeper has no standard output")?;
        let mut lines = BufReader::new(stdout).lines();
        let line = tokio::time::timeout(START_LIMIT, lines.next_line()).await;
        let line = line.context("the embedded Postgres did not start in time")?.context("reading from the keeper")?;
        match line.as_deref().map(|line| line.split_once(' ').unwrap_or((line, ""))) {
            Some(("url", url)) => Ok(EmbeddedDatabase { url: url.to_owned(), keeper, lifeline }),
            Some(("error", reason)) => bail!("the embedded Postgres cannot start: {reason}"),
            _ => bail!("the keeper of the embedded database ended before it was up"),
        }
    }

    /// Waits until the keeper ends, which it should not do before it is told.
    pub async fn failed(&mut self) -> anyhow::Error {
        match self.keeper.wait().await {
            Ok(status) => anyhow::anyhow!("the keeper of the embedded database ended: {status}"),
            Err(error) => anyhow::Error::new(error).context("waiting for the keeper of the embedded database"),
        }
    }

    /// Ends the database and removes what it held.
    pub async fn stop(mut self) {
        drop(self.lifeline);
        match tokio::time::timeout(STOP_LIMIT, self.keeper.wait()).await {
            Ok(Ok(status)) if status.success() => {}
            Ok(ended) => tracing::warn!(?ended, "the keeper of the embedded database"),
            Err(_) => tracing::warn!("the embedded database takes long to end; its keeper goes on with it"),
        }
    }
}

/// Where the downloaded Postgres stays between runs, and the data during one.
fn cache_folder() -> anyhow::Result<PathBuf> {
    let cache = if effective_uid()? == 0 {
        PathBuf::from("/var/cache")
    } else if let Some(cache) = std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()) {
        PathBuf::from(cache)
    } else {
        let home = std::env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?;
        PathBuf::from(home).join(".cache")
    };
    Ok(cache.join("nearby"))
}

fn prepare(folder: &Path, owner: Option<&User>) -> anyhow::Result<()> {
    let prepared = std::fs::create_dir_all(folder).and_then(|()| match owner {
        Some(owner) => std::os::unix::fs::chown(folder, Some(owner.uid), Some(owner.gid)),
        None => Ok(()),
    });
    prepared.with_context(|| format!("preparing {} for the embedded database", folder.display()))
}

/// Whom to run as instead of root; `None` when we are not root.
fn unprivileged_user() -> anyhow::Result<Option<User>> {
    if effective_uid()? != 0 {
        return Ok(None);
    }
    let users = std::fs::read_to_string("/etc/passwd").context("looking for an unprivileged user")?;
    let user = users.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, ..] = fields[..] else { return None };
        (name == UNPRIVILEGED_USER).then(|| Some(User { uid: uid.parse().ok()?, gid: gid.parse().ok()? }))?
    });
    let missing = || {
        format!(
            "Postgres refuses to run as root, and there is no user {UNPRIVILEGED_USER} to run it as: start as another user, or give --database-url"
        )
    };
    user.with_context(missing).map(Some)
}

fn effective_uid() -> anyhow::Result<u32> {
    Ok(std::fs::metadata("/proc/self").context("looking up the effective user")?.uid())
}
