//! A real Postgres server from the system's package.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::ports::free_port;
use crate::process::{Home, Launch, Tied, User};
use crate::tools;

const START_LIMIT: Duration = Duration::from_secs(30);
const STOP_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
const PASSWORD: &str = "nearby";

/// A server of the test's own with one empty database, `nearby`, owned by the superuser `nearby`.
///
/// It does not flush to disk: what it acknowledged survives `kill`, not a power cut.
#[derive(Debug)]
pub struct Postgres {
    server: Option<Tied>,
    port: u16,
    postgres: PathBuf,
    psql: PathBuf,
    user: Option<User>,
    settings: Vec<String>,
    home: Home,
}

impl Postgres {
    /// Makes a cluster, starts it, waits until it answers, and makes its database.
    pub fn start() -> anyhow::Result<Postgres> {
        Postgres::start_with(&[])
    }

    /// The same with settings, NAME=VALUE, that overrule those of the tests.
    pub fn start_with(settings: &[&str]) -> anyhow::Result<Postgres> {
        let folders = tools::postgres_server_folders()?;
        let postgres = tools::program(&["postgres"], &folders)?;
        let initdb = tools::program(&["initdb"], &folders)?;
        let psql = tools::program(&["psql"], &tools::postgres_folders())?;
        let home = Home::new("postgres")?;
        // Postgres refuses to run as root.
        let user = if User::is_root()? { Some(unprivileged_user()?) } else { None };
        if let Some(user) = &user {
            home.give_to(user)?;
        }
        let settings = settings.iter().copied().map(str::to_owned).collect();
        let mut server = Postgres { server: None, port: free_port()?, postgres, psql, user, settings, home };
        server.make_cluster(initdb)?;
        server.launch()?;
        server.psql_in("postgres", "create database nearby")?;
        Ok(server)
    }

    /// The database's address: `postgresql://USER:PASSWORD@127.0.0.1:PORT/nearby`.
    pub fn url(&self) -> String {
        self.url_of("nearby")
    }

    /// Runs SQL, each statement by itself, and returns the rows as `psql -At` prints them: a line a row, `|` between columns.
    pub fn psql(&self, sql: &str) -> anyhow::Result<String> {
        self.psql_in("nearby", sql)
    }

    /// Makes an empty history, by the sink's own migrations, for tests that need no sink.
    pub fn make_history(&self) -> anyhow::Result<()> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sink/migrations");
        let entries = std::fs::read_dir(folder).context("look for migrations")?;
        let mut files = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
        files.sort();
        self.psql("create schema nearby")?;
        for file in files {
            self.psql(&std::fs::read_to_string(file)?)?;
        }
        Ok(())
    }

    /// The server's process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(Tied::pid)
    }

    /// Ends it in order: open connections are cut.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        if let Some(mut server) = self.server.take() {
            server.stop("INT", STOP_LIMIT)?;
        }
        Ok(())
    }

    /// Ends it with SIGKILL, its connections' processes too.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut server) = self.server.take() {
            server.kill()?;
        }
        Ok(())
    }

    /// Starts it again with its data, at the same address; one that runs is stopped first.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.stop()?;
        self.launch()
    }

    /// The folder of its data and log.
    pub fn home(&self) -> &Home {
        &self.home
    }

    fn url_of(&self, database: &str) -> String {
        format!("postgresql://nearby:{PASSWORD}@127.0.0.1:{}/{database}", self.port)
    }

    fn make_cluster(&self, initdb: PathBuf) -> anyhow::Result<()> {
        let password = self.home.path().join("password");
        std::fs::write(&password, PASSWORD).context("write the password file")?;
        let mut command = Command::new(initdb);
        command
            .args(["--username=nearby", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"])
            .arg(format!("--pwfile={}", password.display()))
            .arg("-D")
            .arg(self.data());
        let mut run = Tied::start(self.launch_of(command))?;
        let status = run.finish(START_LIMIT)?;
        if !status.success() {
            bail!("initdb failed ({status})\n{}", run.log_tail());
        }
        Ok(())
    }

    fn launch(&mut self) -> anyhow::Result<()> {
        let mut server = Tied::start(self.launch_of(self.server_command()))?;
        self.wait_until_it_answers(&mut server)?;
        self.server = Some(server);
        Ok(())
    }

    fn launch_of(&self, command: Command) -> Launch<'_> {
        // QUIT makes the server end its own children, at once.
        Launch { command, user: self.user, home: &self.home, last_signal: "QUIT" }
    }

    fn server_command(&self) -> Command {
        let mut command = Command::new(&self.postgres);
        command.arg("-D").arg(self.data());
        let ours = [
            "listen_addresses=127.0.0.1".to_owned(),
            format!("port={}", self.port),
            format!("unix_socket_directories={}", self.home.path().display()),
            "fsync=off".to_owned(),
        ];
        // Of a setting that is there twice, the last counts.
        for setting in ours.iter().chain(&self.settings) {
            command.args(["-c", setting]);
        }
        command
    }

    fn wait_until_it_answers(&self, server: &mut Tied) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            server.check_running()?;
            let Err(error) = self.psql_in("postgres", "select 1") else { return Ok(()) };
            if start.elapsed() > START_LIMIT {
                bail!("Postgres does not answer after {START_LIMIT:?}: {error:#}\n{}", server.log_tail());
            }
            sleep(POLL);
        }
    }

    fn psql_in(&self, database: &str, sql: &str) -> anyhow::Result<String> {
        run_psql(&self.psql, &self.url_of(database), sql)
    }

    fn data(&self) -> PathBuf {
        self.home.path().join("data")
    }
}

/// Runs SQL in the database at `url`, as [`Postgres::psql`] does in its own.
pub fn psql(url: &str, sql: &str) -> anyhow::Result<String> {
    run_psql(&tools::program(&["psql"], &tools::postgres_folders())?, url, sql)
}

fn run_psql(program: &Path, url: &str, sql: &str) -> anyhow::Result<String> {
    let mut command = Command::new(program);
    command
        .args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-f", "-", url])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("PG")) {
        command.env_remove(key);
    }
    let mut child = command.spawn().context("start psql")?;
    let mut input = child.stdin.take().context("psql's standard input")?;
    // In a thread of its own, as psql may answer before it has read all. A failed write shows as psql's own failure.
    let sql_to_write = sql.to_owned();
    let writer = std::thread::spawn(move || input.write_all(sql_to_write.as_bytes()));
    let output = child.wait_with_output().context("wait for psql")?;
    let written = writer.join().is_ok_and(|written| written.is_ok());
    if !output.status.success() || !written {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("psql failed ({})\n{}\nSQL: {sql}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

fn unprivileged_user() -> anyhow::Result<User> {
    for name in ["postgres", "nobody"] {
        if let Some(user) = User::named(name)? {
            return Ok(user);
        }
    }
    bail!("Postgres does not run as root, and there is neither a user postgres nor nobody")
}
