//! Recorded movement, as others published it: who was where and when, and who is whose friend. Files in, numbers out; who replays
//! them, and how fast, is not known here.

pub mod checkins;
pub mod taxis;

use flate2::read::MultiGzDecoder;
use nearby_schemas::UserId;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::path::{Path, PathBuf};

/// Who was where and when, in the order in which it happened, and who is whose friend.
pub struct Recorded {
    /// By time.
    pub fixes: Vec<Fix>,
    /// Whom each may see.
    pub lists: BTreeMap<UserId, Vec<UserId>>,
}

/// Somebody was somewhere.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fix {
    /// Seconds since 1970.
    pub at_s: i64,
    /// Who.
    pub user: UserId,
    /// Degrees.
    pub lat: f64,
    /// Degrees.
    pub lon: f64,
}

/// Why a file was not read.
#[derive(Debug, thiserror::Error)]
pub enum RecordedError {
    /// Nothing of it: it is missing, or not ours to read.
    #[error("{}: {error}", path.display())]
    Open {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// Not to its end.
    #[error("reading {}: {error}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system or the decompressor says.
        error: std::io::Error,
    },
    /// A line is of another format.
    #[error("reading {}: not a {what}: {line:?}", path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// What it should have been.
        what: &'static str,
        /// What it is.
        line: String,
    },
}

/// Takes each line of a file, plain or gzip. `take` says if it could.
fn for_each_line(path: &Path, what: &'static str, mut take: impl FnMut(&str) -> bool) -> Result<(), RecordedError> {
    let read = |error| RecordedError::Read { path: path.to_owned(), error };
    let mut file = File::open(path).map_err(|error| RecordedError::Open { path: path.to_owned(), error })?;
    let mut magic = [0; 2];
    let gzip = file.read_exact(&mut magic).is_ok() && magic == [0x1f, 0x8b];
    file.rewind().map_err(read)?;
    let reader: Box<dyn Read> = if gzip { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    for line in BufReader::new(reader).lines() {
        let line = line.map_err(read)?;
        if !take(&line) {
            return Err(RecordedError::Line { path: path.to_owned(), what, line });
        }
    }
    Ok(())
}
