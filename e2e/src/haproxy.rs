//! Debian's HAProxy with `docs/haproxy.cfg`, the addresses in it replaced by those of a test.

use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::ports::free_port;
use crate::process::{Home, Launch, Tied};
use crate::programs::root;
use crate::tools;

const START_LIMIT: Duration = Duration::from_secs(10);
/// A test may not open as many files as a balancer in production.
const CONNECTIONS_MAX: usize = 8_000;
const POLL: Duration = Duration::from_millis(20);

/// A balancer that runs. Dropping it kills it.
#[derive(Debug)]
pub struct Haproxy {
    /// `http://…` where it listens.
    pub url: String,
    process: Tied,
    _home: Home,
}

impl Haproxy {
    /// Starts it in front of services at HOST:PORT, with `balance leastconn` of the gateways replaced by `balance`.
    pub fn start(ingest: &str, pushers: &[&str], balance: &str) -> anyhow::Result<Haproxy> {
        let port = free_port()?;
        let home = Home::new("haproxy")?;
        let file = home.path().join("haproxy.cfg");
        let documented = std::fs::read_to_string(root().join("docs/haproxy.cfg")).context("read docs/haproxy.cfg")?;
        std::fs::write(&file, configuration(&documented, port, ingest, pushers, balance)?)?;
        let mut command = program()?;
        command.arg("-f").arg(&file).arg("-db");
        let process = Tied::start(Launch { command, user: None, home: &home, last_signal: "KILL" })?;
        let mut haproxy = Haproxy { url: format!("http://127.0.0.1:{port}"), process, _home: home };
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            haproxy.process.check_running()?;
            ensure!(start.elapsed() < START_LIMIT, "haproxy does not listen: {}", haproxy.process.log_tail());
            sleep(POLL);
        }
        Ok(haproxy)
    }
}

/// `haproxy -c` on the file as it is in the documents.
pub fn check_documented() -> anyhow::Result<()> {
    let output = program()?.args(["-c", "-f"]).arg(root().join("docs/haproxy.cfg")).output().context("run haproxy")?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && !said.contains("WARNING"), "docs/haproxy.cfg: {said}");
    Ok(())
}

fn program() -> anyhow::Result<Command> {
    Ok(Command::new(tools::program(&["haproxy"], &[PathBuf::from("/usr/sbin")])?))
}

/// Every server of the file is replaced by one of ours, or left out; everything else stays.
fn configuration(documented: &str, port: u16, ingest: &str, pushers: &[&str], balance: &str) -> anyhow::Result<String> {
    let (mut lines, mut replaced) = (Vec::new(), 0);
    for line in documented.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["bind", ":8080"] => lines.push(format!("    bind 127.0.0.1:{port}")),
            ["maxconn", _] => lines.push(format!("    maxconn {CONNECTIONS_MAX}")),
            ["balance", "leastconn"] => lines.push(format!("    balance {balance}")),
            ["server", name, _, settings @ ..] => {
                let number: usize = name[1..].parse().with_context(|| line.to_owned())?;
                let addresses = if name.starts_with('i') { &[ingest][..] } else { pushers };
                if let Some(address) = addresses.get(number - 1) {
                    lines.push(format!("    server {name} {address} {}", settings.join(" ")));
                    replaced += 1;
                }
                continue;
            }
            _ => lines.push(line.to_owned()),
        }
        replaced += usize::from(matches!(words.as_slice(), ["maxconn" | "bind", ..] | ["balance", "leastconn"]));
    }
    let expected = 4 + 2 * pushers.len();
    if replaced != expected {
        bail!("replaced {replaced} lines of docs/haproxy.cfg instead of {expected}: it has changed");
    }
    Ok(lines.join("\n") + "\n")
}
