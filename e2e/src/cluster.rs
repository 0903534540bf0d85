//! Ingest, gateways and processors, each a process of its own as operators start them, around one broker.

use std::time::Duration;

use anyhow::{Context, ensure};

use crate::http;
use crate::kafka::Kafka;
use crate::nearby::Nearby;
use crate::ports::free_port;

const READY: Duration = Duration::from_secs(60);
/// A service that listens and does not answer is busy starting.
const ANSWER_LIMIT: Duration = Duration::from_millis(500);
/// Signs the tokens.
pub const SECRET: &str = "a secret for the tests alone";

/// One service.
#[derive(Debug)]
pub struct Service {
    /// The process.
    pub nearby: Nearby,
    /// `http://…` where it listens.
    pub url: String,
}

/// A broker and the services around it. Dropping it ends all of them.
#[derive(Debug)]
pub struct Cluster {
    /// In front of every topic and group.
    pub prefix: String,
    /// Reports and friend lists in; signs tokens for anybody.
    pub ingest: Service,
    /// Gateways.
    pub pushers: Vec<Service>,
    /// Processors that run.
    pub processors: Vec<Service>,
    /// Processors that have ended, kept for what they said.
    pub ended: Vec<Service>,
    /// The broker. Ended last.
    pub kafka: Kafka,
}

impl Cluster {
    /// Starts a broker, an ingest, gateways and processors, and waits until all of them are ready.
    pub fn start(prefix: &str, pushers: usize, processors: usize) -> anyhow::Result<Cluster> {
        let kafka = Kafka::start()?;
        let mut create = start_nearby(&kafka, prefix, &["topics", "create"])?;
        ensure!(create.finish(READY)?.success(), "{}", create.stderr());
        let start = |service: &str, more: &[&str]| Service::start(&kafka, prefix, service, more);
        let mut ingest = start("ingest", &["--dev-tokens"])?;
        let mut pushers: Vec<Service> = (0..pushers)
            .map(|number| start("pusher", &["--gateway-name", &format!("g{number}")]))
            .collect::<Result<_, _>>()?;
        let mut processors: Vec<Service> =
            (0..processors).map(|_| start("processor", &[])).collect::<Result<_, _>>()?;
        for service in pushers.iter_mut().chain(&mut processors).chain([&mut ingest]) {
            service.wait_ready()?;
        }
        Ok(Cluster { prefix: prefix.to_owned(), ingest, pushers, processors, ended: Vec::new(), kafka })
    }

    /// Starts one more gateway, listening at HOST:PORT, and does not wait for it.
    pub fn start_pusher(&self, listen: &str, more: &[&str]) -> anyhow::Result<Service> {
        Service::start_at(&self.kafka, &self.prefix, "pusher", listen, more)
    }

    /// Starts one more processor and does not wait for it.
    pub fn start_processor(&self) -> anyhow::Result<Service> {
        Service::start(&self.kafka, &self.prefix, "processor", &[])
    }

    /// How many partitions each running processor serves.
    pub async fn partitions(&self) -> anyhow::Result<Vec<usize>> {
        let mut served = Vec::new();
        for processor in &self.processors {
            served.push(processor.gauge("nearby_processor_state", "of=\"partitions\"").await? as usize);
        }
        Ok(served)
    }

    /// A token for anybody, with every scope.
    pub async fn token(&self, user: i64) -> anyhow::Result<String> {
        let answer = http::get(&format!("{}/v1/dev/token?user={user}", self.ingest.url)).await?.expect_status(200)?;
        Ok(answer.json()?["token"].as_str().context("a token")?.to_owned())
    }

    /// What every service wrote to standard error at level WARN or ERROR.
    pub fn complaints(&self) -> String {
        let services = self.pushers.iter().chain(&self.processors).chain(&self.ended).chain([&self.ingest]);
        let lines = services.map(|service| {
            let complaints: Vec<String> = service
                .nearby
                .stderr()
                .lines()
                .filter(|line| line.contains("WARN") || line.contains("ERROR"))
                .map(str::to_owned)
                .collect();
            format!("{}:\n{}", service.url, complaints.join("\n"))
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

impl Service {
    /// Starts it, listening on a port of its own, and does not wait for it.
    pub fn start(kafka: &Kafka, prefix: &str, service: &str, more: &[&str]) -> anyhow::Result<Service> {
        Service::start_at(kafka, prefix, service, &format!("127.0.0.1:{}", free_port()?), more)
    }

    fn start_at(kafka: &Kafka, prefix: &str, service: &str, listen: &str, more: &[&str]) -> anyhow::Result<Service> {
        let args = [&[service, "--listen", listen], more].concat();
        Ok(Service { nearby: start_nearby(kafka, prefix, &args)?, url: format!("http://{listen}") })
    }

    /// HOST:PORT where it listens.
    pub fn address(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    /// Waits until it says that it is ready.
    pub fn wait_ready(&mut self) -> anyhow::Result<()> {
        self.nearby.wait_line("ready ", READY).map(drop)
    }

    /// The sum of a gauge over all its labels that contain `label`.
    pub async fn gauge(&self, name: &str, label: &str) -> anyhow::Result<f64> {
        let metrics = http::get(&format!("{}/metrics", self.url)).await?.expect_status(200)?.text();
        let of = |line: &str| {
            let (labels, value) = line.strip_prefix(name)?.split_once(' ')?;
            labels.contains(label).then(|| value.parse::<f64>().ok())?
        };
        Ok(metrics.lines().filter_map(of).sum())
    }

    /// `/readyz`: whether it is ready, and the body. None while nobody answers.
    pub async fn ready(&self) -> Option<(bool, String)> {
        let url = format!("{}/readyz", self.url);
        let answer = tokio::time::timeout(ANSWER_LIMIT, http::get(&url)).await.ok()?.ok()?;
        Some((answer.status == 200, answer.text()))
    }
}

fn start_nearby(kafka: &Kafka, prefix: &str, args: &[&str]) -> anyhow::Result<Nearby> {
    let brokers = kafka.bootstrap();
    let log = "info,rdkafka=warn,librdkafka=warn,nearby_processor=debug";
    let environment = [
        ("NEARBY_BROKERS", brokers.as_str()),
        ("NEARBY_TOPIC_PREFIX", prefix),
        ("NEARBY_JWT_SECRET", SECRET),
        ("NEARBY_LOG", log),
    ];
    Nearby::start(args, &environment)
}
