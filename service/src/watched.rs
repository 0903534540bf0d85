//! Files that are replaced while the process runs: keys and certificates.
//!
//! Their contents are read and compared, not their times: an orchestrator swaps links, a tool may keep the time, and the files
//! are small. What is new is offered once; who refuses it keeps what it has, and the process goes on.

use std::path::PathBuf;
use std::sync::Weak;
use std::time::Duration;

/// A file that was replaced is noticed within this time.
pub const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// The contents of the files, in their order.
///
/// # Errors
/// Which of them cannot be read, and why.
pub fn read(files: &[PathBuf]) -> Result<Vec<Vec<u8>>, String> {
    files.iter().map(|file| std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))).collect()
}

/// Offers new contents of the files to their user, on a thread that ends when the user is gone.
///
/// # Errors
/// If the thread cannot be started.
pub fn watch<User: Send + Sync + 'static>(
    what: &'static str,
    files: Vec<PathBuf>,
    held: Vec<Vec<u8>>,
    user: Weak<User>,
    take: impl Fn(&User, &[Vec<u8>]) -> Result<(), String> + Send + 'static,
) -> std::io::Result<()> {
    let mut seen = Ok(held);
    let look = move || {
        loop {
            std::thread::sleep(CHECK_INTERVAL);
            let Some(user) = user.upgrade() else { return };
            let found = read(&files);
            if found == seen {
                continue;
            }
            match found.as_ref().map_err(String::clone).and_then(|contents| take(&user, contents)) {
                Ok(()) => {
                    tracing::info!("{what}: new files are in use");
                    metrics::counter!("nearby_reloads_total", "of" => what, "outcome" => "taken").increment(1);
                }
                Err(error) => {
                    tracing::error!(error, "{what}: new files are of no use, the old ones stay in use");
                    metrics::counter!("nearby_reloads_total", "of" => what, "outcome" => "refused").increment(1);
                }
            }
            seen = found;
        }
    };
    std::thread::Builder::new().name(format!("watch {what}")).spawn(look).map(drop)
}
