//! A file that has its name only when it is complete and on the disk; nobody else can read it, as it holds people's data.

use crate::BadSetting;
use anyhow::Context;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const BUFFER_BYTES: usize = 256 * 1024;

/// Being written, under another name beside its own. Dropped without [`commit`](Self::commit) it leaves nothing.
pub struct Output {
    path: PathBuf,
    partial: PathBuf,
    file: BufWriter<File>,
    force: bool,
    bytes: i64,
}

impl Output {
    /// Begins; what is there already is overwritten only with `force`.
    pub fn create(path: &Path, force: bool) -> anyhow::Result<Output> {
        let name = path.file_name().ok_or_else(|| BadSetting(format!("{} names no file", path.display())))?;
        if path.is_dir() {
            return Err(BadSetting(format!("{} is a folder", path.display())).into());
        }
        if !force && path.symlink_metadata().is_ok() {
            return Err(there_already(path));
        }
        // Drawn: in a container every process has the same number, and what a killed one left must not stop the next.
        let drawn: u64 = rand::random();
        let partial = path.with_file_name(format!(".{}.{drawn:016x}.partial", name.to_string_lossy()));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial);
        let file = file.map_err(|error| BadSetting(format!("{} cannot be written: {error}", partial.display())))?;
        let file = BufWriter::with_capacity(BUFFER_BYTES, file);
        Ok(Output { path: path.to_owned(), partial, file, force, bytes: 0 })
    }

    /// What it will be called.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// For errors.
    pub fn writing(&self) -> String {
        format!("writing {}", self.path.display())
    }

    /// Gives it its name once the disk has it; its length in bytes.
    pub fn commit(mut self) -> anyhow::Result<i64> {
        let context = self.writing();
        self.file.flush().and_then(|()| self.file.get_ref().sync_all()).with_context(|| context.clone())?;
        if self.force {
            std::fs::rename(&self.partial, &self.path).with_context(|| context.clone())?;
        } else {
            // Unlike renaming this does not overwrite what has come meanwhile.
            match std::fs::hard_link(&self.partial, &self.path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => return Err(there_already(&self.path)),
                linked => linked.with_context(|| context.clone())?,
            }
        }
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).with_context(|| context)?;
        Ok(self.bytes)
    }
}

fn there_already(path: &Path) -> anyhow::Error {
    BadSetting(format!("{} is there already: --force overwrites it", path.display())).into()
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.bytes += i64::try_from(written).unwrap_or(i64::MAX);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // After renaming it is not there any more.
        if let Err(error) = std::fs::remove_file(&self.partial)
            && error.kind() != ErrorKind::NotFound
        {
            eprintln!("nearby: {} stays: {error}", self.partial.display());
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A new output in the system's folder for temporary files, and its path.
    pub fn scratch() -> (Output, PathBuf) {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("nearby-export-{}-{number}", std::process::id()));
        (Output::create(&path, false).expect("a new file"), path)
    }

    #[test]
    fn has_its_name_when_it_is_complete_and_overwrites_only_by_force() {
        let (mut output, path) = scratch();
        let partial = output.partial.clone();
        output.write_all(b"abc").expect("written");
        assert!(partial.exists() && !path.exists());
        assert_eq!(output.commit().expect("is kept"), 3);
        assert!(path.exists() && !partial.exists());
        assert_eq!(path.metadata().expect("there").permissions().mode() & 0o777, 0o600);

        assert!(Output::create(&path, false).is_err_and(|error| error.to_string().contains("--force")));
        let mut forced = Output::create(&path, true).expect("by force");
        forced.write_all(b"d").expect("written");
        drop(forced);
        assert_eq!((std::fs::read(&path).expect("there"), partial.exists()), (b"abc".to_vec(), false));
        Output::create(&path, true).expect("by force").commit().expect("is kept");
        assert_eq!(std::fs::read(&path).expect("there"), b"");
        std::fs::remove_file(&path).expect("is removed");

        // Another one comes meanwhile.
        let output = Output::create(&path, false).expect("a new file");
        std::fs::write(&path, b"other").expect("written");
        assert!(output.commit().is_err_and(|error| error.is::<BadSetting>()));
        assert_eq!((std::fs::read(&path).expect("there"), partial.exists()), (b"other".to_vec(), false));
        std::fs::remove_file(&path).expect("is removed");
        assert!(Output::create(&std::env::temp_dir(), true).is_err());

        // Beside the partial file of one that was killed, whose number this process may have.
        let (killed, path) = scratch();
        Output::create(&path, false).expect("a new file").commit().expect("is kept");
        drop(killed);
        std::fs::remove_file(&path).expect("is removed");
    }
}
