//! `docker-compose.yml` says what is true: docker-compose takes it, and the services in it, started as plain processes with
//! their commands and environments, become healthy by their health checks in the order of what they depend on, tell the
//! story, and end in their time.
//!
//! Images are not run. What stands for what:
//! - An address `SERVICE:PORT`, `localhost:PORT`, `0.0.0.0:PORT`, `://:PORT`, or a published `127.0.0.1:PORT` is a free port of this
//!   machine, the same for the same port of the same service.
//! - The image `nearby` is the built program; its health checks are run by `sh` with the `curl` of this machine.
//! - `apache/kafka` is the broker of the tests with the settings that its variables `KAFKA_…` spell, its log in the test's folder, and
//!   its script the class that this starts.
//! - `postgres` is the server of the tests, whose user, password and database are those of the file.

use anyhow::{Context, bail, ensure};
use nearby_e2e::flow::{Deployment, two_friends_meet};
use nearby_e2e::kafka::Kafka;
use nearby_e2e::nearby::{Nearby, token};
use nearby_e2e::postgres::Postgres;
use nearby_e2e::{http, ports};
use saphyr::{LoadableYamlNode, Scalar, Yaml};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const SECRET: &str = "a secret for the tests alone";
/// Several JVMs, and all services at once, on a machine with other work.
const HEALTHY: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(200);
const KAFKA_SCRIPT: &str = "/opt/kafka/bin/kafka-broker-api-versions.sh";
const KAFKA_CLASS: &str = "org.apache.kafka.tools.BrokerApiVersionsCommand";

#[tokio::test(flavor = "multi_thread")]
async fn the_story_is_told_by_what_the_file_starts() -> anyhow::Result<()> {
    let services = services(&["walkers"])?;
    let postgres = Postgres::start()?;
    let ports = Ports::new(&services);
    ports.set("postgres", 5432, port_of(&postgres.url())?);
    let mut deployment = Started { ports, kafka: None, postgres, running: Vec::new() };
    // Whoever is not of the walkers' profile; these come last.
    let (walkers, steady): (Vec<_>, Vec<_>) = services.iter().partition(|service| service.name == "walkers");
    deployment.start_in_order(&steady)?;
    let ingest = format!("http://127.0.0.1:{}", deployment.ports.get("ingest", 8080)?);
    let story = Deployment {
        ingest,
        database: deployment.postgres.url(),
        token: Box::new(|user, scopes| token(SECRET, user, scopes)),
    };
    // Beyond the numbers of the walkers.
    two_friends_meet(&story, 100_000).await.map_err(|error| deployment.with_logs(&error))?;
    deployment.start_in_order(&walkers)?;
    let begun = Instant::now();
    // They report over their sockets.
    let gateway = format!("http://127.0.0.1:{}", deployment.ports.get("pusher-2", 8081)?);
    while walked(&gateway).await? < 100 {
        ensure!(begun.elapsed() < HEALTHY, deployment.with_logs(&anyhow::anyhow!("the walkers do not walk")));
        tokio::time::sleep(POLL).await;
    }
    deployment.end()
}

#[test]
fn docker_compose_takes_every_profile() -> anyhow::Result<()> {
    let names = |profiles: &[&str]| -> anyhow::Result<Vec<String>> {
        Ok(services(profiles)?.into_iter().map(|service| service.name).collect())
    };
    let steady = names(&[])?;
    assert!(!steady.contains(&"walkers".to_owned()) && !steady.contains(&"registry".to_owned()), "{steady:?}");
    let all = names(&["walkers", "registry"])?;
    assert!(all.contains(&"walkers".to_owned()) && all.contains(&"registry".to_owned()), "{all:?}");
    // The service is there for who names it; nobody else may wait for it.
    for service in services(&["walkers", "registry"])? {
        assert!(!service.depends_on.contains_key("registry"), "{} waits for a service of a profile", service.name);
        let image = &service.image;
        assert!(
            image == "nearby" || image.rsplit_once(':').is_some_and(|(_, tag)| tag != "latest"),
            "{image} is not pinned"
        );
        let one_shot = ["topics", "walkers"].contains(&service.name.as_str());
        assert!(one_shot || service.healthcheck.is_some(), "{} has no health check", service.name);
        assert!(one_shot || service.stop_grace >= Duration::from_secs(11), "{} is killed while it ends", service.name);
    }
    Ok(())
}

/// A service of the file, as docker-compose understands it.
struct Service {
    name: String,
    image: String,
    command: Vec<String>,
    environment: BTreeMap<String, String>,
    healthcheck: Option<String>,
    /// Services and what to wait for.
    depends_on: BTreeMap<String, String>,
    /// From the host's port to the container's.
    published: BTreeMap<u16, u16>,
    stop_grace: Duration,
}

/// Anchors, merges and variables are resolved by docker-compose itself.
fn services(profiles: &[&str]) -> anyhow::Result<Vec<Service>> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docker-compose.yml");
    let mut command = Command::new("docker-compose");
    command.arg("--file").arg(file).args(profiles.iter().flat_map(|profile| ["--profile", profile])).arg("config");
    command
        .env("NEARBY_JWT_SECRET", SECRET)
        .env_remove("NEARBY_KAFKA_PROPERTIES")
        .env_remove("NEARBY_SCHEMA_REGISTRY_URL");
    let output =
        command.output().context("docker-compose is not installed: run `make test`, or `e2e/setup.sh` alone")?;
    ensure!(output.status.success(), "docker-compose: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).context("what docker-compose says is text")?;
    let documents = Yaml::load_from_str(&text).context("what docker-compose says is YAML")?;
    let services = documents[0].as_mapping_get("services").context("there are services")?;
    // docker-compose 1 names the services of other profiles too.
    let wanted = |spec: &Yaml<'_>| {
        let of = strings(spec.as_mapping_get("profiles"));
        of.is_empty() || of.iter().any(|profile| profiles.contains(&profile.as_str()))
    };
    let members = services.as_mapping().context("services are a mapping")?.iter();
    members.filter(|(_, spec)| wanted(spec)).map(|(name, spec)| service(text_of(name), spec)).collect()
}

fn service(name: String, spec: &Yaml<'_>) -> anyhow::Result<Service> {
    let member = |name: &str| spec.as_mapping_get(name);
    let words = |yaml: &Yaml<'_>| text_of(yaml).split_whitespace().map(str::to_owned).collect();
    let set = |(key, value): (&Yaml<'_>, &Yaml<'_>)| {
        let unset = matches!(value, Yaml::Value(Scalar::Null));
        (!unset).then(|| (text_of(key), text_of(value)))
    };
    let environment = member("environment").and_then(Yaml::as_mapping);
    let condition =
        |(name, how): (&Yaml<'_>, &Yaml<'_>)| Some((text_of(name), text_of(how.as_mapping_get("condition")?)));
    let published = strings(member("ports")).iter().map(|port| published(port)).collect::<anyhow::Result<_>>()?;
    Ok(Service {
        image: text_of(member("image").context("an image")?),
        command: member("command").map(words).unwrap_or_default(),
        environment: environment.into_iter().flatten().filter_map(set).collect(),
        healthcheck: member("healthcheck").and_then(|check| check.as_mapping_get("test")).map(text_of),
        depends_on: member("depends_on")
            .and_then(Yaml::as_mapping)
            .into_iter()
            .flatten()
            .filter_map(condition)
            .collect(),
        published,
        stop_grace: seconds(&member("stop_grace_period").map_or("10s".to_owned(), text_of))?,
        name,
    })
}

/// `127.0.0.1:HOST:CONTAINER/tcp`.
fn published(port: &str) -> anyhow::Result<(u16, u16)> {
    let parts: Vec<&str> = port.trim_end_matches("/tcp").split(':').collect();
    ensure!(parts.len() == 3 && parts[0] == "127.0.0.1", "{port} is published beyond this machine");
    Ok((parts[1].parse()?, parts[2].parse()?))
}

fn seconds(text: &str) -> anyhow::Result<Duration> {
    let (number, unit) = text.split_at(text.len() - 1);
    let unit_s = match unit {
        "s" => 1,
        "m" => 60,
        _ => bail!("{text} is no time"),
    };
    Ok(Duration::from_secs(number.parse::<u64>()? * unit_s))
}

fn strings(yaml: Option<&Yaml<'_>>) -> Vec<String> {
    yaml.and_then(Yaml::as_sequence).into_iter().flatten().map(text_of).collect()
}

fn text_of(yaml: &Yaml<'_>) -> String {
    match yaml {
        Yaml::Value(Scalar::String(text)) => text.to_string(),
        Yaml::Value(Scalar::Integer(number)) => number.to_string(),
        Yaml::Value(Scalar::Boolean(truth)) => truth.to_string(),
        other => panic!("{other:?} is no scalar"),
    }
}

fn port_of(url: &str) -> anyhow::Result<u16> {
    let (_, rest) = url.rsplit_once("127.0.0.1:").context("an address of this machine")?;
    Ok(rest.split('/').next().unwrap_or_default().parse()?)
}

/// The port of this machine that stands for a port of a service.
struct Ports {
    names: Vec<String>,
    published: BTreeMap<u16, (String, u16)>,
    given: RefCell<BTreeMap<(String, u16), u16>>,
}

impl Ports {
    fn new(services: &[Service]) -> Ports {
        let of = |service: &Service| {
            let name = service.name.clone();
            service.published.clone().into_iter().map(move |(host, container)| (host, (name.clone(), container)))
        };
        Ports {
            names: services.iter().map(|service| service.name.clone()).collect(),
            published: services.iter().flat_map(of).collect(),
            given: RefCell::default(),
        }
    }

    fn set(&self, service: &str, port: u16, stands_in: u16) {
        self.given.borrow_mut().insert((service.to_owned(), port), stands_in);
    }

    fn get(&self, service: &str, port: u16) -> anyhow::Result<u16> {
        let key = (service.to_owned(), port);
        if let Some(given) = self.given.borrow().get(&key) {
            return Ok(*given);
        }
        let free = ports::free_port()?;
        self.set(service, port, free);
        Ok(free)
    }

    /// Text of a service with every address replaced.
    fn substitute(&self, service: &str, text: &str) -> anyhow::Result<String> {
        let published = |port| {
            let (service, port) = self.published.get(&port).with_context(|| format!("{port} is not published"))?;
            self.get(service, *port)
        };
        // What is replaced gets a mark, so that it is not replaced again.
        let mut text = replace_ports(text, "", "127.0.0.1:", published)?;
        for (before, own) in [("", "localhost:"), ("", "0.0.0.0:"), ("://", ":")] {
            text = replace_ports(&text, before, own, |port| self.get(service, port))?;
        }
        for name in &self.names {
            text = replace_ports(&text, "", &format!("{name}:"), |port| self.get(name, port))?;
        }
        text = text.replace(" -h localhost -p 5432 ", &format!(" -h 127.0.0.1 -p {} ", self.get("postgres", 5432)?));
        Ok(text.replace(MARK, "127.0.0.1"))
    }
}

/// Stands for 127.0.0.1 while there are addresses to be replaced.
const MARK: &str = "\u{1}";

/// Replaces `host` between `before` and a port.
fn replace_ports(
    text: &str,
    before: &str,
    host: &str,
    port: impl Fn(u16) -> anyhow::Result<u16>,
) -> anyhow::Result<String> {
    let whole = format!("{before}{host}");
    let mut parts = text.split(&whole);
    let mut replaced = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let digits = part.len() - part.trim_start_matches(|letter: char| letter.is_ascii_digit()).len();
        match part[..digits].parse() {
            Ok(number) => replaced.push_str(&format!("{before}{MARK}:{}", port(number)?)),
            // `PLAINTEXT:` and the like.
            Err(_) => replaced.push_str(&format!("{whole}{}", &part[..digits])),
        }
        replaced.push_str(&part[digits..]);
    }
    Ok(replaced)
}

/// What runs.
struct Started {
    ports: Ports,
    kafka: Option<Kafka>,
    postgres: Postgres,
    /// In the order of their start, with the time that they have to end.
    running: Vec<(String, Nearby, Duration)>,
}

impl Started {
    /// Each one when those it depends on are as it wants them.
    fn start_in_order(&mut self, services: &[&Service]) -> anyhow::Result<()> {
        let mut waiting: Vec<&Service> = services.to_vec();
        while !waiting.is_empty() {
            let names: Vec<&str> = waiting.iter().map(|service| service.name.as_str()).collect();
            let free = |service: &&Service| !service.depends_on.keys().any(|name| names.contains(&name.as_str()));
            let (next, later): (Vec<&Service>, Vec<&Service>) = waiting.iter().partition(|service| free(service));
            ensure!(!next.is_empty(), "these wait for each other: {names:?}");
            for service in &next {
                self.start(service)?;
            }
            for service in &next {
                self.wait_for(service)?;
            }
            waiting = later;
        }
        Ok(())
    }

    fn start(&mut self, service: &Service) -> anyhow::Result<()> {
        let substitute = |text: &String| self.ports.substitute(&service.name, text);
        let environment: BTreeMap<String, String> = service
            .environment
            .iter()
            .map(|(key, value)| anyhow::Ok((key.clone(), substitute(value)?)))
            .collect::<anyhow::Result<_>>()?;
        match service.image.split_once(':').map_or(service.image.as_str(), |(image, _)| image) {
            "apache/kafka" => {
                let property = |(key, value): (&String, &String)| {
                    Some(format!("{}={value}\n", key.strip_prefix("KAFKA_")?.to_lowercase().replace('_', ".")))
                };
                let properties: String = environment.iter().filter_map(property).collect();
                self.kafka = Some(Kafka::start_from(&properties, self.ports.get("kafka", 9092)?)?);
            }
            "postgres" => {
                let own = ["POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB"].map(|name| environment[name].as_str());
                ensure!(own == ["nearby"; 3], "the server of the tests has another user: {own:?}");
            }
            "nearby" => {
                if let Some(check) = &service.healthcheck {
                    ensure!(!self.passes(service, check)?, "{} is healthy before it runs", service.name);
                }
                let args = service.command.iter().map(substitute).collect::<anyhow::Result<Vec<String>>>()?;
                let envs: Vec<(&str, &str)> =
                    environment.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
                let args: Vec<&str> = args.iter().map(String::as_str).collect();
                let nearby = Nearby::start(&args, &envs)?;
                self.running.push((service.name.clone(), nearby, service.stop_grace));
            }
            other => bail!("nothing stands for the image {other}"),
        }
        Ok(())
    }

    /// Until it is healthy, or has done what it does.
    fn wait_for(&mut self, service: &Service) -> anyhow::Result<()> {
        if service.name == "topics" {
            let (_, mut topics, _) = self.running.pop().context("it was the last to be started")?;
            let status = topics.finish(HEALTHY)?;
            ensure!(status.success(), "topics: {status}: {}", topics.stderr());
            return Ok(());
        }
        let Some(check) = &service.healthcheck else { return Ok(()) };
        let begun = Instant::now();
        while !self.passes(service, check)? {
            ensure!(
                begun.elapsed() < HEALTHY,
                self.with_logs(&anyhow::anyhow!("{} does not get healthy", service.name))
            );
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    fn passes(&self, service: &Service, check: &str) -> anyhow::Result<bool> {
        let check = self.ports.substitute(&service.name, check)?;
        let mut command = match (check.strip_prefix(KAFKA_SCRIPT), &self.kafka) {
            (Some(arguments), Some(kafka)) => {
                let mut command = kafka.tool(KAFKA_CLASS);
                command.args(arguments.split_whitespace());
                command
            }
            _ => {
                let mut command = Command::new("sh");
                command.args(["-c", &check]);
                command
            }
        };
        let output = command.output().with_context(|| format!("run {check}"))?;
        // 127: there is no such command, now or ever.
        ensure!(output.status.code() != Some(127), "{check}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(output.status.success())
    }

    /// As `docker compose stop`: the last to be started first, each within its time.
    fn end(mut self) -> anyhow::Result<()> {
        while let Some((name, mut nearby, limit)) = self.running.pop() {
            let (status, took) = nearby.terminate()?;
            ensure!(status.success(), "{name}: {status}: {}", nearby.stderr());
            ensure!(took < limit, "{name} took {took:?} to end: it would be killed after {limit:?}");
        }
        if let Some(mut kafka) = self.kafka.take() {
            kafka.stop()?;
        }
        self.postgres.stop()
    }

    fn with_logs(&self, error: &anyhow::Error) -> anyhow::Error {
        let log = |(name, nearby, _): &(String, Nearby, Duration)| format!("{name}:\n{}", nearby.stderr());
        let logs: Vec<String> = self.running.iter().map(log).collect();
        anyhow::anyhow!("{error:#}\n{}", logs.join("\n"))
    }
}

/// Reports that a gateway has accepted.
async fn walked(gateway: &str) -> anyhow::Result<u64> {
    let metrics = http::get(&format!("{gateway}/metrics")).await?.expect_status(200)?.text();
    let count = metrics.lines().find_map(|line| line.strip_prefix("nearby_reports_accepted_total "));
    Ok(count.unwrap_or("0").parse()?)
}
