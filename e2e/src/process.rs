//! A server as a child process that cannot outlive its test, and its folder.
//!
//! A [`Tied`] process is killed when its guard is dropped. When nobody is left to drop it, because the test was killed
//! with `kill -9`, its watcher does it: a small shell that reads from a pipe whose only other end is in the test. The
//! shell that starts the server leaves the watcher behind *before* it becomes the server, so there is no moment at which
//! the server runs unwatched. The server keeps the shell's process id; its exit status is the caller's to see.
//!
//! This needs `sh`; it uses no unsafe code and no operating-system crate.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tempfile::TempDir;

const POLL: Duration = Duration::from_millis(10);
const CHILDREN_LIMIT: Duration = Duration::from_secs(5);
const LOG_TAIL_BYTES: usize = 4000;

/// Waits for a line from the test. The end of the pipe without one means that the test is dead.
const WATCH: &str = r#"
watch() {
  cd /
  read -r released && return
  kill -s "$signal" "$pid" || :
  tries=100
  while kill -0 "$pid" && [ "$tries" -gt 0 ]; do tries=$((tries - 1)); sleep 0.1; done
  kill -s KILL "$pid" || :
  for _ in 1 2 3 4 5; do rm -rf "$folder" && break; sleep 1; done
}"#;

/// Leaves a watcher behind and becomes the server. The watcher is a grandchild, as Postgres wants no unknown children.
const TIE: &str = r#"
signal=$1 folder=$2 pid=$$
shift 2
exec 3<&0 0</dev/null
(watch <&3 3<&- >/dev/null 2>&1 &)
exec 3<&-
exec "$@""#;

/// Watches a process that was started without us.
const WATCH_OTHER: &str = r#"
signal=$1 folder=$2 pid=$3
watch"#;

/// The folder of a server: its data, its settings, its log. Dropping it removes it.
#[derive(Debug)]
pub struct Home(TempDir);

impl Home {
    /// A new empty folder in the system's place for temporary files.
    pub fn new(name: &str) -> anyhow::Result<Home> {
        let folder = tempfile::Builder::new().prefix(&format!("nearby-{name}-")).tempdir();
        Ok(Home(folder.context("a temporary folder")?))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Gives the folder to the user that the server runs as.
    pub fn give_to(&self, user: &User) -> anyhow::Result<()> {
        chown(self.path(), Some(user.uid), Some(user.gid)).context("give the server's folder to its user")
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // Children of a killed server die a moment after it, and may still write.
        for _ in 0..100 {
            match std::fs::remove_dir_all(self.path()) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => sleep(5 * POLL),
                _ => return,
            }
        }
    }
}

/// A user to run a server as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// The user's number.
    pub uid: u32,
    /// The number of the user's own group.
    pub gid: u32,
}

impl User {
    /// The numbers of a user by name, where there is one.
    pub fn named(name: &str) -> anyhow::Result<Option<User>> {
        Ok(match (number("-u", Some(name))?, number("-g", Some(name))?) {
            (Some(uid), Some(gid)) => Some(User { uid, gid }),
            _ => None,
        })
    }

    /// Whether this process is root's.
    pub fn is_root() -> anyhow::Result<bool> {
        Ok(number("-u", None)? == Some(0))
    }
}

fn number(flag: &str, name: Option<&str>) -> anyhow::Result<Option<u32>> {
    let answer = Command::new("id").arg(flag).args(name).output().context("run `id`")?;
    Ok(String::from_utf8_lossy(&answer.stdout).trim().parse().ok())
}

/// What to start, and how to end it when the test is no longer there to do so.
#[derive(Debug)]
pub struct Launch<'a> {
    /// The command line: the program, then its arguments.
    pub command: Command,
    /// Who runs it; `None`: the test's own user.
    pub user: Option<User>,
    /// The folder that goes with it when the test dies.
    pub home: &'a Home,
    /// The signal for that case, for example `KILL`.
    pub last_signal: &'static str,
}

/// A child process tied to this one.
#[derive(Debug)]
pub struct Tied {
    name: String,
    child: Child,
    tie: Option<ChildStdin>,
    log: PathBuf,
}

impl Tied {
    /// Starts the command in its home folder; its output goes to `log` there.
    pub fn start(launch: Launch<'_>) -> anyhow::Result<Tied> {
        let Launch { command, user, home, last_signal } = launch;
        let name = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let log = home.path().join("log");
        let file = File::options().create(true).append(true).open(&log).context("open the server's log")?;
        let mut shell = Command::new("sh");
        shell
            .args(["-c", &format!("{WATCH}{TIE}"), "sh", last_signal])
            .arg(home.path())
            .arg(command.get_program())
            .args(command.get_args())
            .current_dir(home.path())
            .stdin(Stdio::piped())
            .stdout(file.try_clone().context("open the server's log twice")?)
            .stderr(file)
            .process_group(0); // Ctrl-C is for the test; the watcher ends the rest.
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(key, value),
                None => shell.env_remove(key),
            };
        }
        if let Some(user) = user {
            shell.uid(user.uid).gid(user.gid);
        }
        let mut child = shell.spawn().with_context(|| format!("start {name}"))?;
        let tie = child.stdin.take();
        Ok(Tied { name, child, tie, log })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// An error with the end of its log, if it is no longer running.
    pub fn check_running(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait().with_context(|| format!("look after {}", self.name))? {
            None => Ok(()),
            Some(status) => bail!("{} ended ({status})\n{}", self.name, self.log_tail()),
        }
    }

    /// Asks it to end with a signal, and waits until it has.
    pub fn stop(&mut self, signal: &str, limit: Duration) -> anyhow::Result<ExitStatus> {
        send_signal(self.pid(), signal)?;
        self.finish(limit).with_context(|| format!("after SIG{signal}"))
    }

    /// Waits until it has ended by itself.
    pub fn finish(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let Some(status) = wait(&mut self.child, limit)? else {
            bail!("{} did not end within {limit:?}\n{}", self.name, self.log_tail());
        };
        self.release();
        Ok(status)
    }

    /// Ends it and its children as a power cut would, and waits until it is gone. (Postgres needs this: its children
    /// notice the death of their parent only when they wait, and a busy one holds the data until then.)
    pub fn kill(&mut self) -> anyhow::Result<()> {
        if self.child.try_wait().with_context(|| format!("look after {}", self.name))?.is_none() {
            // Stopped, it can neither make new children nor let the numbers of dead ones be used again.
            send_signal(self.pid(), "STOP")?;
            let children = children_of(self.pid());
            for child in &children {
                send_signal(*child, "KILL")?;
            }
            let start = Instant::now();
            while children.iter().any(|child| state_and_parent(*child).is_some_and(|(state, _)| state != 'Z')) {
                if start.elapsed() > CHILDREN_LIMIT {
                    bail!("a child of {} survived SIGKILL for {CHILDREN_LIMIT:?}", self.name);
                }
                sleep(POLL);
            }
            self.child.kill().with_context(|| format!("kill {}", self.name))?;
            self.child.wait().with_context(|| format!("wait for the killed {}", self.name))?;
        }
        self.release();
        Ok(())
    }

    /// The end of what it wrote.
    pub fn log_tail(&self) -> String {
        tail(&self.log)
    }

    /// Tells the watcher that there is nothing left to watch. A watcher that is gone has nothing to be told.
    fn release(&mut self) {
        if let Some(mut tie) = self.tie.take() {
            tie.write_all(b"released\n").ok();
        }
    }
}

impl Drop for Tied {
    fn drop(&mut self) {
        self.kill().ok();
    }
}

/// A watcher for a process that must be started plainly: from here on, it dies with this process.
#[derive(Debug)]
pub struct Watcher(Child);

impl Watcher {
    /// Watches over `pid`. In the moment before this call it is unwatched, unlike a [`Tied`] process.
    pub fn over(pid: u32, home: &Home, last_signal: &str) -> anyhow::Result<Watcher> {
        let watcher = Command::new("sh")
            .args(["-c", &format!("{WATCH}{WATCH_OTHER}"), "sh", last_signal])
            .arg(home.path())
            .arg(pid.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn();
        Ok(Watcher(watcher.context("start a watcher")?))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if let Some(mut tie) = self.0.stdin.take() {
            tie.write_all(b"released\n").ok();
        }
        self.0.wait().ok();
    }
}

/// Sends a signal by name (`TERM`, `STOP`, `CONT`, …) to a process.
pub fn send_signal(pid: u32, signal: &str) -> anyhow::Result<()> {
    let status = Command::new("sh").args(["-c", "kill -s \"$1\" \"$2\"", "sh", signal, &pid.to_string()]).status();
    if !status.context("run `kill`")?.success() {
        bail!("could not send SIG{signal} to process {pid}");
    }
    Ok(())
}

/// The children of a process, as Linux tells them; elsewhere none are known.
fn children_of(parent: u32) -> Vec<u32> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    processes
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| state_and_parent(*pid).is_some_and(|(_, of)| of == parent))
        .collect()
}

fn state_and_parent(pid: u32) -> Option<(char, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // PID (NAME) STATE PARENT …, and the name may hold anything.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Waits for a child to end; `None` when the time is over.
pub fn wait(child: &mut Child, limit: Duration) -> anyhow::Result<Option<ExitStatus>> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().context("wait for a child process")? {
            return Ok(Some(status));
        }
        if start.elapsed() > limit {
            return Ok(None);
        }
        sleep(POLL);
    }
}

/// The end of a log file, cut at a line.
pub(crate) fn tail(file: &Path) -> String {
    let Ok(bytes) = std::fs::read(file) else { return format!("(no log at {})", file.display()) };
    let end = &bytes[bytes.len().saturating_sub(LOG_TAIL_BYTES)..];
    let text = String::from_utf8_lossy(end);
    match text.split_once('\n') {
        Some((_, rest)) if end.len() < bytes.len() => format!("…\n{rest}"),
        _ => text.into_owned(),
    }
}
