//! A disk of so many MiB that gets full, for Postgres' tables. Only root can have one (it is mounted).

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

use crate::process::{Home, User};

/// A mounted file system in memory. Dropping it unmounts it. (When the test itself is killed, it stays until the machine ends.)
#[derive(Debug)]
pub struct SmallDisk(Home);

impl SmallDisk {
    /// Mounts it; none for whom that is not allowed. It belongs to the user that Postgres runs as.
    pub fn mount(size_mib: u32) -> anyhow::Result<Option<SmallDisk>> {
        if !User::is_root()? {
            return Ok(None);
        }
        let owner = User::named("postgres")?.or(User::named("nobody")?).context("there is a user for Postgres")?;
        let home = Home::new("disk")?;
        let options = format!("size={size_mib}m,mode=0700,uid={},gid={}", owner.uid, owner.gid);
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(home.path()).output();
        // A container may refuse it.
        Ok(mounted.context("run mount")?.status.success().then_some(SmallDisk(home)))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Fills all of it but so many MiB.
    pub fn fill_but(&self, free_mib: usize, size_mib: usize) -> anyhow::Result<()> {
        ensure!(free_mib < size_mib, "that is all of it");
        std::fs::write(self.ballast(), vec![0; (size_mib - free_mib) << 20]).context("fill the disk")
    }

    /// Makes room again.
    pub fn make_room(&self) -> anyhow::Result<()> {
        std::fs::remove_file(self.ballast()).context("make room")
    }

    fn ballast(&self) -> std::path::PathBuf {
        self.path().join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Even if a server that is about to end still has a file open.
        Command::new("umount").arg("--lazy").arg(self.path()).status().ok();
    }
}
