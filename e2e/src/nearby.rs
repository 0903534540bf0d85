//! The program under test, as its users run it: its arguments, its environment, its output, its signals.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::process::{Home, Watcher, send_signal, tail, wait};
use crate::tools;

/// `nearby` promises to end within 10 s of SIGTERM; beyond this it is said to hang.
const STOP_LIMIT: Duration = Duration::from_secs(15);

/// A running `nearby`. Dropping it kills it.
#[derive(Debug)]
pub struct Nearby {
    child: Child,
    command_line: String,
    reader: Receiver<String>,
    lines: Vec<String>,
    _watcher: Watcher,
    home: Home,
}

/// What `nearby run` says on standard output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The brokers: `HOST:PORT,…`.
    pub kafka: String,
    /// The history database: `postgresql://…`.
    pub database: String,
    /// The web address: `http://…`.
    pub http: String,
}

impl Nearby {
    /// Runs the built `nearby` with these arguments and environment variables. Settings in the test's own environment
    /// (`NEARBY_…`) do not reach it.
    pub fn start(args: &[&str], envs: &[(&str, &str)]) -> anyhow::Result<Nearby> {
        Nearby::start_program(&tools::nearby()?, args, envs)
    }

    /// The same with another program in its place.
    pub fn start_program(program: &Path, args: &[&str], envs: &[(&str, &str)]) -> anyhow::Result<Nearby> {
        let home = Home::new("run")?;
        let stderr = File::create(home.path().join("stderr")).context("make a file for standard error")?;
        let command_line = format!("{} {}", program.display(), args.join(" "));
        let mut command = Command::new(program);
        for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("NEARBY_")) {
            command.env_remove(key);
        }
        command
            .args(args)
            .envs(envs.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .process_group(0);
        let mut child = command.spawn().with_context(|| format!("start {command_line}"))?;
        let watcher = Watcher::over(child.id(), &home, "TERM");
        let (sender, reader) = channel();
        if let Some(stdout) = child.stdout.take() {
            std::thread::spawn(move || read_lines(stdout, &sender));
        }
        match watcher {
            Ok(watcher) => Ok(Nearby { child, command_line, reader, lines: Vec::new(), _watcher: watcher, home }),
            Err(error) => {
                child.kill().context("kill an unwatched nearby")?;
                child.wait().context("wait for a killed nearby")?;
                Err(error)
            }
        }
    }

    /// Waits until `nearby run` serves, and returns where.
    pub fn wait_ready(&mut self, limit: Duration) -> anyhow::Result<Addresses> {
        let http = self.wait_line("ready ", limit)?;
        // Both come before `ready`.
        let kafka = self.wait_line("kafka ", Duration::ZERO)?;
        let database = self.wait_line("database ", Duration::ZERO)?;
        Ok(Addresses { kafka, database, http })
    }

    /// The rest of the first line on standard output, seen or to come, that begins with `prefix`.
    pub fn wait_line(&mut self, prefix: &str, limit: Duration) -> anyhow::Result<String> {
        let deadline = Instant::now() + limit;
        let mut seen = 0;
        loop {
            if let Some(rest) = self.lines[seen..].iter().find_map(|line| line.strip_prefix(prefix)) {
                return Ok(rest.to_owned());
            }
            seen = self.lines.len();
            match self.reader.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => self.lines.push(line),
                Err(RecvTimeoutError::Timeout) => bail!("no line `{prefix}…` within {limit:?} from {}", self.report()),
                Err(RecvTimeoutError::Disconnected) => {
                    let status = wait(&mut self.child, STOP_LIMIT)?;
                    let status = status.map_or_else(|| "it still runs".to_owned(), |status| status.to_string());
                    bail!("standard output ended ({status}) without a line `{prefix}…` from {}", self.report());
                }
            }
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait().context("look after nearby")?.is_none())
    }

    /// Sends SIGTERM and waits for the end: how it ended, and after how long.
    pub fn terminate(&mut self) -> anyhow::Result<(ExitStatus, Duration)> {
        let start = Instant::now();
        send_signal(self.pid(), "TERM")?;
        match wait(&mut self.child, STOP_LIMIT)? {
            Some(status) => Ok((status, start.elapsed())),
            None => bail!("no end within {STOP_LIMIT:?} of SIGTERM: {}", self.report()),
        }
    }

    /// Waits until it ends by itself.
    pub fn finish(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        wait(&mut self.child, limit)?.with_context(|| format!("no end within {limit:?}: {}", self.report()))
    }

    /// Sends SIGKILL and waits until it is gone.
    pub fn kill9(&mut self) -> anyhow::Result<()> {
        self.child.kill().context("kill nearby")?;
        self.child.wait().context("wait for the killed nearby")?;
        Ok(())
    }

    /// Every line on standard output so far.
    pub fn stdout(&mut self) -> &[String] {
        self.lines.extend(self.reader.try_iter());
        &self.lines
    }

    /// All of standard error so far.
    pub fn stderr(&self) -> String {
        let bytes = std::fs::read(self.stderr_file()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The folder of what it wrote to standard error.
    pub fn home(&self) -> &Home {
        &self.home
    }

    fn stderr_file(&self) -> std::path::PathBuf {
        self.home.path().join("stderr")
    }

    fn report(&self) -> String {
        let stdout = self.lines.join("\n");
        format!("`{}`\nstandard output:\n{stdout}\nstandard error:\n{}", self.command_line, tail(&self.stderr_file()))
    }
}

impl Drop for Nearby {
    fn drop(&mut self) {
        self.kill9().ok();
    }
}

/// A command that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// None after a signal.
    pub code: Option<i32>,
    /// All of standard output.
    pub stdout: String,
    /// All of standard error.
    pub stderr: String,
}

/// Runs a command of `nearby` that ends by itself, with these settings alone.
pub fn run(args: &[&str], envs: &[(&str, &str)]) -> anyhow::Result<Ended> {
    let mut command = Command::new(tools::nearby()?);
    for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("NEARBY_")) {
        command.env_remove(key);
    }
    let output = command.args(args).envs(envs.iter().copied()).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("run nearby {}", args.join(" ")))?;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Ok(Ended { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) })
}

/// A token out of `nearby token`.
pub fn token(secret: &str, user: i64, scopes: &str) -> anyhow::Result<String> {
    token_with(secret, &["--user", &user.to_string(), "--scope", scopes])
}

/// A token out of `nearby token` with these arguments.
pub fn token_with(secret: &str, args: &[&str]) -> anyhow::Result<String> {
    let args = [&["token"], args].concat();
    let output = Command::new(tools::nearby()?).args(args).env("NEARBY_JWT_SECRET", secret).output();
    let output = output.context("run nearby token")?;
    if !output.status.success() {
        bail!("nearby token: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout).context("a token is text")?.trim().to_owned())
}

fn read_lines(stdout: ChildStdout, sender: &Sender<String>) {
    for line in BufReader::new(stdout).lines() {
        // Ends with the output, or with the guard.
        let Ok(line) = line else { return };
        if sender.send(line).is_err() {
            return;
        }
    }
}
