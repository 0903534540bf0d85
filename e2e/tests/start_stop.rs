//! How the program starts, refuses to start, and ends: exit codes, what it says, and what it leaves behind.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nearby_e2e::kafka::Kafka;
use nearby_e2e::nearby::{Addresses, Nearby};
use nearby_e2e::process::send_signal;
use nearby_e2e::ws::Socket;
use nearby_e2e::{http, nearby, ports};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};

const SECRET: &str = "a secret for the tests alone";
const WITH_SECRET: &[(&str, &str)] = &[("NEARBY_JWT_SECRET", SECRET)];
/// Nobody listens on port 1.
const NO_BROKER: &str = "127.0.0.1:1";
/// The first start on a machine downloads Postgres.
const READY: Duration = Duration::from_secs(120);
const AT_ONCE: Duration = Duration::from_secs(2);
const SOON: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);

/// A command line, its words parted by spaces, that is refused.
struct Refusal {
    args: String,
    envs: &'static [(&'static str, &'static str)],
    code: i32,
    says: &'static [&'static str],
}

/// Refused with the secret for tokens in the environment, as most services need it.
fn refused(args: impl Into<String>, code: i32, says: &'static [&'static str]) -> Refusal {
    Refusal { args: args.into(), envs: WITH_SECRET, code, says }
}

impl Refusal {
    fn with(self, envs: &'static [(&'static str, &'static str)]) -> Refusal {
        Refusal { envs, ..self }
    }

    /// It ends with its code within the limit, has started nothing, and has said why: in one line, that keeps passwords.
    fn check(&self, limit: Duration) -> anyhow::Result<()> {
        let start = Instant::now();
        let args: Vec<&str> = self.args.split(' ').collect();
        let mut nearby = Nearby::start(&args, self.envs)?;
        while nearby.is_running()? {
            ensure!(keeper_of(nearby.pid()).is_none(), "it started a database");
            ensure!(start.elapsed() < limit, "it has not ended within {limit:?}: {}", nearby.stderr());
            sleep(POLL);
        }
        let status = nearby.finish(limit)?;
        let (stdout, stderr) = (nearby.stdout().join("\n"), nearby.stderr());
        ensure!(status.code() == Some(self.code), "{status}, not {}: {stderr}", self.code);
        ensure!(stdout.is_empty(), "it said on standard output: {stdout}");
        ensure!(!stderr.contains("s3cret"), "it showed the password: {stderr}");
        let missing = self.says.iter().find(|said| !stderr.contains(*said));
        ensure!(missing.is_none(), "it did not say {missing:?}: {stderr}");
        let one_line = stderr.starts_with("nearby: ") && stderr.lines().count() == 1;
        // What the parser of the command line refuses ends with two lines that point to --help.
        let of_the_parser = stderr.starts_with("error: ") && stderr.trim_end().ends_with("try '--help'.");
        ensure!(one_line || of_the_parser, "not one line: {stderr}");
        let reasons: Vec<&str> = stderr.trim_end().split(": ").collect();
        let repeated = reasons.iter().enumerate().find(|(index, reason)| reasons[..*index].contains(reason));
        ensure!(repeated.is_none(), "it repeats itself: {stderr}");
        Ok(())
    }
}

/// Checks all at the same time, and names every one that was not refused as it should be.
fn check_all(refusals: &[Refusal], limit: Duration) {
    let failures: Vec<String> = std::thread::scope(|scope| {
        let checks: Vec<_> = refusals.iter().map(|refusal| (refusal, scope.spawn(|| refusal.check(limit)))).collect();
        let results = checks.into_iter().map(|(refusal, check)| (refusal, check.join().expect("a check returns")));
        results.filter_map(|(refusal, result)| Some(format!("nearby {}: {:#}", refusal.args, result.err()?))).collect()
    });
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), refusals.len(), failures.join("\n"));
}

#[test]
fn a_wrong_setting_is_refused_at_once_with_exit_code_2() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let busy = taken.local_addr().expect("an address").to_string();
    let busy: &'static str = Box::leak(busy.into_boxed_str());
    let names_port: &'static [&'static str] = Box::leak(Box::new(["cannot listen on", busy]));
    check_all(
        &[
            // A busy port. It is looked at before the broker, which is not there either.
            refused(format!("run --listen {busy}"), 2, names_port),
            refused(format!("run --listen {busy} --brokers {NO_BROKER}"), 2, names_port),
            refused(format!("ingest --listen {busy} --brokers {NO_BROKER}"), 2, names_port),
            refused(format!("processor --listen {busy} --brokers {NO_BROKER}"), 2, names_port),
            refused(format!("pusher --listen {busy} --brokers {NO_BROKER}"), 2, names_port),
            refused(format!("sink --listen {busy} --brokers {NO_BROKER} --database-url postgresql://x"), 2, names_port),
            // A bad value of a flag or of an environment variable.
            refused("run --listen nonsense", 2, &["nonsense", "--listen <IP:PORT>"]),
            refused("run --brokers http://127.0.0.1:9092", 2, &["HOST:PORT, without http://"]),
            refused("run --walkers -1", 2, &["-1"]),
            refused("run --partitions 0", 2, &["--partitions", "1..=10000"]),
            refused("run --radius-m 8km", 2, &["8km", "--radius-m"]),
            refused("run --topic-prefix a/b", 2, &["a/b", "--topic-prefix"]),
            refused("run --no-such-flag", 2, &["--no-such-flag"]),
            refused("run --advertise-url gopher://x", 2, &["--advertise-url", "gopher://x", "https://"]),
            refused("run --advertise-url https://", 2, &["--advertise-url", "no host"]),
            refused("run --listen 0.0.0.0:0 --advertise-url http://0.0.0.0:8080", 2, &["--advertise-url", "0.0.0.0"]),
            refused(
                format!("pusher --advertise-url https://a:b --brokers {NO_BROKER}"),
                2,
                &["--advertise-url", "a:b"],
            ),
            refused(
                "run --allowed-hosts a.example,b.example:80",
                2,
                &["--allowed-hosts", "b.example:80", "without a port"],
            ),
            refused(
                "run --allowed-origins https://a.example/",
                2,
                &["--allowed-origins", "https://a.example/", "slash"],
            ),
            refused("run", 2, &["--allowed-origins", "https://"]).with(&[("NEARBY_ALLOWED_ORIGINS", "a.example")]),
            refused("run", 2, &["nonsense", "--listen"]).with(&[("NEARBY_LISTEN", "nonsense")]),
            refused("run", 2, &["NEARBY_JWT_SECRET", "16 bytes"]).with(&[("NEARBY_JWT_SECRET", "short")]),
            refused("ingest", 2, &["--brokers"]),
            refused("simulate", 2, &["--walkers"]),
            // A file that is not there.
            refused("run --jwks-file /nonexistent", 2, &["--jwks-file /nonexistent"]).with(&[]),
            refused("run --jwt-public-key-file /nonexistent", 2, &["--jwt-public-key-file /nonexistent"]).with(&[]),
            refused("friends load /nonexistent", 2, &["/nonexistent", "No such file"]),
            refused("friends load /dev/null", 2, &["no friendship in /dev/null", "USER, a tab, FRIEND"]),
            refused("simulate --checkins /nonexistent", 2, &["/nonexistent", "No such file"]),
            // What would be open to the world, or tell clients nothing.
            refused("run --dev-tokens --listen 0.0.0.0:0 --advertise-url http://x", 2, &["--dev-tokens", "0.0.0.0:0"]),
            refused("run --dev-tokens --listen [::]:0 --advertise-url http://x", 2, &["--dev-tokens", "[::]:0"]),
            refused(format!("ingest --dev-tokens --listen 0.0.0.0:0 --brokers {NO_BROKER}"), 2, &["--dev-tokens"]),
            refused("run --listen 0.0.0.0:0", 2, &["0.0.0.0:0", "--advertise-url"]),
            refused(format!("pusher --listen 0.0.0.0:0 --brokers {NO_BROKER}"), 2, &["0.0.0.0:0", "--advertise-url"]),
            // No key, no token.
            refused("token --user 1", 2, &["NEARBY_JWT_SECRET"]).with(&[]),
            refused("token --user 1", 2, &["NEARBY_JWT_SECRET"]).with(&[("NEARBY_JWT_SECRET", "short")]),
            refused(format!("ingest --brokers {NO_BROKER}"), 2, &["NEARBY_JWT_SECRET"]).with(&[]),
            refused(format!("pusher --brokers {NO_BROKER}"), 2, &["NEARBY_JWT_SECRET"]).with(&[]),
        ],
        AT_ONCE,
    );
}

#[test]
fn a_broker_that_does_not_answer_is_named_with_exit_code_1() {
    let folder = tempfile::tempdir().expect("a folder");
    let friends = folder.path().join("friends");
    fs::write(&friends, "1\t2\n").expect("a file");
    let commands = [
        "run --listen 127.0.0.1:0".to_owned(),
        "ingest --listen 127.0.0.1:0".to_owned(),
        "processor --listen 127.0.0.1:0".to_owned(),
        "pusher --listen 127.0.0.1:0".to_owned(),
        "sink --listen 127.0.0.1:0 --database-url postgresql://x".to_owned(),
        "topics create".to_owned(),
        "topics check".to_owned(),
        format!("friends load {}", friends.display()),
    ];
    let refusals = commands.map(|command| refused(format!("{command} --brokers {NO_BROKER}"), 1, &[NO_BROKER]));
    check_all(&refusals, SOON);
}

#[test]
fn a_database_that_cannot_be_used_is_named_without_its_password() {
    let with_url = |url: &str| format!("run --listen 127.0.0.1:0 --database-url {url}");
    check_all(
        &[
            refused(with_url("postgresql://me:s3cret@127.0.0.1:1/db"), 1, &["127.0.0.1:1/db"]),
            refused(with_url("postgresql://me:s3cret@127.0.0.1:1/db?sslmode=perhaps"), 2, &["database URL", "perhaps"]),
            refused(with_url("postgresql://me:s3cret@127.0.0.1:99999/db"), 2, &["database URL", "port"]),
            refused(with_url("postgresql://me:p/word@127.0.0.1/db"), 2, &["database URL", "%2F"]),
            refused(with_url("postgresql://me:s3cret@[::1/db"), 2, &["database URL"]),
            refused(with_url("mysql://me:s3cret@127.0.0.1/db"), 2, &["database URL", "postgresql://"]),
            refused(with_url("s3cret"), 2, &["database URL", "postgresql://"]),
        ],
        AT_ONCE,
    );
}

/// The embedded database of one `nearby run`: its keeper and its data folder.
struct Embedded {
    keeper: u32,
    data: PathBuf,
}

impl Embedded {
    /// Waits until `run` has started its keeper and the keeper has claimed a folder.
    fn of(run: u32) -> anyhow::Result<Embedded> {
        let start = Instant::now();
        loop {
            let found = keeper_of(run).and_then(|keeper| Some((keeper, lock_of(keeper)?)));
            if let Some((keeper, lock)) = found {
                return Ok(Embedded { keeper, data: lock.with_extension("") });
            }
            ensure!(start.elapsed() < SOON, "no keeper with a data folder within {SOON:?}");
            sleep(POLL);
        }
    }

    /// Its processes: those that name its data folder, and its keeper.
    fn processes(&self) -> Vec<String> {
        let data = self.data.to_string_lossy();
        let ours = |pid: u32| {
            let line = command_line(pid);
            line.contains(&*data) || (pid == self.keeper && line.contains("embedded-database"))
        };
        pids().filter(|pid| ours(*pid)).map(|pid| format!("{pid} {}", command_line(pid))).collect()
    }

    /// Waits until its processes have ended and its data, its lock and its password are removed.
    fn wait_gone(&self, limit: Duration) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            let mut left = self.processes();
            let files = [self.data.clone(), self.data.with_extension("lock"), self.data.with_extension("password")];
            left.extend(files.iter().filter(|file| file.exists()).map(|file| file.display().to_string()));
            if left.is_empty() {
                return Ok(());
            }
            ensure!(start.elapsed() < limit, "left behind after {limit:?}: {left:#?}");
            sleep(POLL);
        }
    }
}

fn pids() -> impl Iterator<Item = u32> {
    let processes = fs::read_dir("/proc").expect("Linux shows its processes");
    processes.filter_map(Result::ok).filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Empty for a process that has ended.
fn command_line(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // PID (NAME) STATE PARENT …, and the name may hold anything.
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

fn keeper_of(run: u32) -> Option<u32> {
    pids().find(|pid| parent_of(*pid) == Some(run) && command_line(*pid).contains("embedded-database"))
}

/// The lock file of a keeper's own data folder. It only reads those of others, while it clears up after them.
fn lock_of(keeper: u32) -> Option<PathBuf> {
    let open = fs::read_dir(format!("/proc/{keeper}/fd")).ok()?;
    let written = open.filter_map(Result::ok).filter(|file| {
        let mode = file.metadata().map(|link| link.permissions().mode());
        mode.is_ok_and(|mode| mode & 0o200 != 0)
    });
    let mut targets = written.filter_map(|file| fs::read_link(file.path()).ok());
    targets.find(|target| target.extension().is_some_and(|extension| extension == "lock"))
}

fn start_run() -> anyhow::Result<(Nearby, Addresses, Embedded)> {
    let listen = format!("127.0.0.1:{}", ports::free_port()?);
    let mut nearby = Nearby::start(&["run", "--listen", &listen], WITH_SECRET)?;
    let addresses = nearby.wait_ready(READY)?;
    ensure!(addresses.http == format!("http://{listen}"), "{addresses:?}");
    let embedded = Embedded::of(nearby.pid())?;
    Ok((nearby, addresses, embedded))
}

/// A start after whatever happened before works, and ends well.
fn the_next_run_works() -> anyhow::Result<()> {
    let (mut nearby, _, embedded) = start_run()?;
    ends_well(nearby.terminate()?, &nearby)?;
    embedded.wait_gone(Duration::ZERO)
}

fn ends_well((status, took): (ExitStatus, Duration), nearby: &Nearby) -> anyhow::Result<()> {
    ensure!(status.code() == Some(0), "{status}: {}", nearby.stderr());
    ensure!(took < SOON, "it took {took:?} to end");
    Ok(())
}

async fn run_ends_in_order_after(signal: &str) -> anyhow::Result<()> {
    let (mut nearby, addresses, embedded) = start_run()?;
    let gateway = http::get(&format!("{}/v1/gateway", addresses.http)).await?.expect_status(200)?.json()?;
    let stream = gateway["url"].as_str().context("a gateway has a url")?;
    let mut socket = Socket::connect(stream, &nearby::token(SECRET, 7, "")?).await?;
    socket.wait_frame("snapshot", SOON).await?;
    ensure!(embedded.processes().len() >= 2, "a keeper and a database: {:?}", embedded.processes());

    let start = Instant::now();
    send_signal(nearby.pid(), signal)?;
    let drain = socket.wait_frame("drain", SOON).await?;
    ensure!(drain["reconnect_after_ms"].is_u64(), "{drain}");
    let closed = socket.wait_closed(SOON).await?;
    ensure!(closed.code == 1012, "{closed:?}");
    let status = nearby.finish(SOON)?;
    ends_well((status, start.elapsed()), &nearby)?;
    embedded.wait_gone(Duration::ZERO)?;

    // Exactly what the design promises to whoever reads it, in order and uncoloured.
    let Addresses { kafka, database, http } = addresses;
    let lines = [format!("kafka {kafka}"), format!("database {database}"), format!("ready {http}")];
    ensure!(nearby.stdout() == lines, "{:?} is not {lines:?}", nearby.stdout());
    let port = |text: &str| text.rsplit(':').next().and_then(|port| port.parse::<u16>().ok());
    ensure!(port(&kafka).is_some(), "{kafka} is not HOST:PORT");
    let server = database.strip_prefix("postgresql://").and_then(|rest| rest.split_once('@'));
    let (person, place) = server.with_context(|| format!("{database} is not postgresql://USER:PASSWORD@…"))?;
    let place = place.split_once('/').filter(|(server, name)| port(server).is_some() && !name.is_empty());
    ensure!(person.split_once(':').is_some() && place.is_some(), "{database} is not …@HOST:PORT/DB");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn run_ends_in_order_after_sigterm() -> anyhow::Result<()> {
    run_ends_in_order_after("TERM").await
}

#[tokio::test(flavor = "multi_thread")]
async fn run_ends_in_order_after_ctrl_c() -> anyhow::Result<()> {
    run_ends_in_order_after("INT").await
}

#[test]
fn run_ends_in_order_while_its_database_is_starting() -> anyhow::Result<()> {
    let mut nearby = Nearby::start(&["run", "--listen", "127.0.0.1:0"], WITH_SECRET)?;
    let embedded = Embedded::of(nearby.pid())?;
    ends_well(nearby.terminate()?, &nearby)?;
    embedded.wait_gone(SOON)
}

#[test]
fn who_waits_for_a_broker_ends_in_order() -> anyhow::Result<()> {
    // It takes connections, by the system's hand, and never answers.
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let brokers = silent.local_addr()?.to_string();
    for service in ["run", "ingest", "processor", "pusher", "sink --database-url postgresql://x"] {
        let command = format!("{service} --listen 127.0.0.1:0 --brokers {brokers}");
        let mut nearby = Nearby::start(&command.split(' ').collect::<Vec<_>>(), WITH_SECRET)?;
        // It would be refused after 20 s.
        sleep(AT_ONCE);
        ends_well(nearby.terminate()?, &nearby).context(service)?;
    }
    Ok(())
}

#[test]
fn a_killed_run_leaves_no_database_behind() -> anyhow::Result<()> {
    let (mut nearby, _, embedded) = start_run()?;
    nearby.kill9()?;
    embedded.wait_gone(SOON)?;
    the_next_run_works()
}

#[test]
fn the_next_run_clears_up_after_a_killed_keeper() -> anyhow::Result<()> {
    for run_is_killed_too in [true, false] {
        let (mut nearby, _, embedded) = start_run()?;
        send_signal(embedded.keeper, "KILL")?;
        if run_is_killed_too {
            nearby.kill9()?;
        } else {
            let status = nearby.finish(SOON)?;
            let said = nearby.stderr();
            ensure!(status.code() == Some(1), "{status}: {said}");
            ensure!(said.lines().any(|line| line.starts_with("nearby: the keeper of the embedded database")), "{said}");
        }
        ensure!(!embedded.processes().is_empty() && embedded.data.exists(), "the database is an orphan");
        the_next_run_works()?;
        embedded.wait_gone(Duration::ZERO)?;
    }
    Ok(())
}

/// Runs a command to its end: its exit code and its standard output.
fn output(args: &str) -> anyhow::Result<(Option<i32>, String)> {
    let mut nearby = Nearby::start(&args.split(' ').collect::<Vec<_>>(), WITH_SECRET)?;
    let status = nearby.finish(2 * SOON)?;
    // The reader may be a moment behind the end.
    match nearby.wait_line("(no such line)", SOON) {
        Ok(_) => bail!("a line that is not to be"),
        Err(_) => Ok((status.code(), nearby.stdout().join("\n"))),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_are_missed_created_and_checked() -> anyhow::Result<()> {
    const CREATE: &[&str] = &["location-events", "friend-lists", "nearby topics create"];
    const STANDING: [&str; 5] = ["location-events", "friend-lists", "sessions", "gateways", "dead-letters"];
    let kafka = Kafka::start()?;
    let brokers = kafka.bootstrap();

    // No service makes its topics by itself.
    let folder = tempfile::tempdir()?;
    let friends = folder.path().join("friends");
    fs::write(&friends, "1\t2\n")?;
    let unreachable = "--database-url postgresql://me:s3cret@127.0.0.1:1/db";
    let sink = format!("sink --listen 127.0.0.1:0 --brokers {brokers} {unreachable}");
    check_all(
        &[
            refused(format!("ingest --listen 127.0.0.1:0 --brokers {brokers}"), 1, CREATE),
            refused(format!("processor --listen 127.0.0.1:0 --brokers {brokers}"), 1, CREATE),
            refused(format!("pusher --listen 127.0.0.1:0 --brokers {brokers}"), 1, CREATE),
            refused(&sink, 1, CREATE),
            refused(format!("friends load {} --brokers {brokers}", friends.display()), 1, CREATE),
        ],
        SOON,
    );
    let (code, said) = output(&format!("topics check --brokers {brokers}"))?;
    ensure!(code == Some(1), "{code:?}: {said}");
    ensure!(said == STANDING.map(|name| format!("{name}: missing")).join("\n"), "{said}");

    // Created once, they are right, and stay.
    for (command, tail) in [("create", " created"), ("create", " was there already")] {
        let (code, said) = output(&format!("topics {command} --brokers {brokers}"))?;
        ensure!(code == Some(0), "{code:?}: {said}");
        ensure!(said == STANDING.map(|name| format!("{name}{tail}")).join("\n"), "{said}");
    }
    let (code, said) = output(&format!("topics check --brokers {brokers}"))?;
    ensure!(code == Some(0) && said == "5 topics are as they have to be", "{code:?}: {said}");

    // With the topics there, the sink asks for its database.
    check_all(&[refused(&sink, 1, &["127.0.0.1:1/db"])], SOON);

    // What somebody else made otherwise is left as it is, and named.
    let admin: AdminClient<_> = ClientConfig::new().set("bootstrap.servers", &brokers).create()?;
    let few = NewTopic::new("odd.location-events", 3, TopicReplication::Fixed(1)).set("retention.ms", "1000");
    let few = few.set("message.timestamp.type", "LogAppendTime");
    let uncompacted = NewTopic::new("odd.sessions", 16, TopicReplication::Fixed(1)).set("segment.ms", "600000");
    for made in admin.create_topics([&few, &uncompacted], &AdminOptions::new()).await? {
        made.map_err(|(name, reason)| anyhow::anyhow!("{name}: {reason}"))?;
    }
    let odd = format!("--topic-prefix odd. --brokers {brokers}");
    let (code, said) = output(&format!("topics create {odd}"))?;
    ensure!(code == Some(0) && said.contains("odd.location-events was there already"), "{code:?}: {said}");
    let (code, said) = output(&format!("topics check {odd}"))?;
    let expected = "odd.location-events: 3 partitions, expected 16\n\
                    odd.location-events: retention.ms is 1000, expected 604800000\n\
                    odd.sessions: cleanup.policy is delete, expected compact";
    ensure!(code == Some(1) && said == expected, "{code:?}: {said}");
    Ok(())
}
