//! CPU time of processes and of their threads, from `/proc`.

use anyhow::{Context, ensure};
use std::collections::BTreeMap;
use std::process::{Command, Stdio};

/// Linux counts it in hundredths of a second, on every machine that it runs on today (`getconf CLK_TCK`).
const TICKS_PER_S: f64 = 100.0;

/// CPU-seconds of a process since it began, with all its threads.
pub fn of_process(pid: u32) -> anyhow::Result<f64> {
    seconds(&format!("/proc/{pid}/stat")).map(|(_, seconds)| seconds)
}

/// CPU-seconds of this process.
pub fn of_this() -> anyhow::Result<f64> {
    of_process(std::process::id())
}

/// CPU-seconds of a process and of its children, those that have ended too. (Postgres has a process for each connection.)
pub fn of_family(pid: u32) -> anyhow::Result<f64> {
    // A process may have ended in the meantime.
    let children = children_of(pid)?.into_iter().map(|child| of_process(child).unwrap_or_default());
    Ok(of_children_that_ended(pid)? + of_process(pid)? + children.sum::<f64>())
}

fn children_of(pid: u32) -> anyhow::Result<Vec<u32>> {
    let mut children = Vec::new();
    for entry in std::fs::read_dir("/proc").context("the processes")? {
        let Some(child) = entry.context("a process")?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process may have ended in the meantime.
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{child}/stat")) else { continue };
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
        if parent == Some(pid) {
            children.push(child);
        }
    }
    Ok(children)
}

/// CPU-seconds of the children of a process that have ended.
pub fn of_children_that_ended(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("the times of a process")?;
    let (_, rest) = stat.rsplit_once(") ").context("the times of a process")?;
    // cutime and cstime, the 16th and 17th of all.
    let ticks = rest.split_whitespace().skip(13).take(2).filter_map(|ticks| ticks.parse::<f64>().ok());
    Ok(ticks.sum::<f64>() / TICKS_PER_S)
}

/// CPU-seconds of a process by kind of thread: threads of one name, without numbers, together.
pub fn by_thread(pid: u32) -> anyhow::Result<BTreeMap<String, f64>> {
    let mut kinds = BTreeMap::new();
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).context("the threads of a process")? {
        let path = thread.context("a thread")?.path().join("stat");
        // A thread may have ended in the meantime.
        let Ok((name, seconds)) = seconds(&path.to_string_lossy()) else { continue };
        *kinds.entry(name).or_insert(0.0) += seconds;
    }
    Ok(kinds)
}

/// Resident bytes of a process.
pub fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("the status of a process")?;
    bytes_in(&status, "VmRSS:")
}

/// Resident bytes of a process and its children; what they share is counted once.
pub fn resident_bytes_of_family(pid: u32) -> anyhow::Result<u64> {
    let proportional = |pid| {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).context("the memory of a process")?;
        bytes_in(&maps, "Pss:")
    };
    // A child may have ended in the meantime.
    let children = children_of(pid)?.into_iter().map(|child| proportional(child).unwrap_or_default());
    Ok(proportional(pid)? + children.sum::<u64>())
}

/// For as long as it lives, this process and what it starts run on all its cores but the first, which is for one that is started [alone](Apart::alone).
/// With a single core nothing is done.
pub struct Apart {
    /// As this process had them.
    cores: Vec<usize>,
}

impl Apart {
    /// From now on.
    pub fn new() -> anyhow::Result<Apart> {
        let status = std::fs::read_to_string("/proc/self/status").context("the status of this process")?;
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).context("its cores")?;
        let apart = Apart { cores: cores_in(list.trim()).context(list.to_owned())? };
        apart.run_on(apart.others())?;
        Ok(apart)
    }

    /// Starts a process on the first core.
    pub fn alone<T>(&self, start: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        self.run_on(&self.cores[..1])?;
        let started = start();
        self.run_on(self.others())?;
        started
    }

    fn others(&self) -> &[usize] {
        if self.cores.len() > 1 { &self.cores[1..] } else { &self.cores }
    }

    /// All threads of this process (`taskset` of util-linux), and what they start from now on.
    fn run_on(&self, cores: &[usize]) -> anyhow::Result<()> {
        let (list, pid) =
            (cores.iter().map(usize::to_string).collect::<Vec<_>>().join(","), std::process::id().to_string());
        let mut taskset = Command::new("taskset");
        taskset.args(["--all-tasks", "--cpu-list", "--pid", &list, &pid]).stdout(Stdio::null());
        ensure!(taskset.status().context("run taskset")?.success(), "this process could not be bound to cores {list}");
        Ok(())
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        // At worst what is measured next has fewer cores.
        self.run_on(&self.cores).ok();
    }
}

/// Of a list as the kernel writes it: `0-3,8`.
fn cores_in(list: &str) -> Option<Vec<usize>> {
    let mut cores = Vec::new();
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        cores.extend(first.parse::<usize>().ok()?..=last.parse().ok()?);
    }
    Some(cores)
}

fn bytes_in(text: &str, name: &str) -> anyhow::Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).context("its resident memory")?;
    let kib: u64 = line.split_whitespace().next().unwrap_or_default().parse().context("a number of KiB")?;
    Ok(kib * 1024)
}

fn seconds(stat: &str) -> anyhow::Result<(String, f64)> {
    let text = std::fs::read_to_string(stat).with_context(|| stat.to_owned())?;
    // The name is in brackets and may have any character in it.
    let (name, rest) = text.rsplit_once(") ").with_context(|| format!("{stat}: {text}"))?;
    let name = name.split_once('(').map_or(name, |(_, name)| name);
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |field: usize| fields.get(field).and_then(|ticks| ticks.parse::<f64>().ok()).unwrap_or_default();
    let kind = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '-').trim_end();
    // utime and stime, the 14th and 15th of all.
    Ok((kind.to_owned(), (ticks(11) + ticks(12)) / TICKS_PER_S))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_read_as_the_kernel_writes_them() {
        assert_eq!(cores_in("0-2,8,10-11"), Some(vec![0, 1, 2, 8, 10, 11]));
        assert_eq!(cores_in("5"), Some(vec![5]));
        assert_eq!(cores_in(""), None);
    }
}
