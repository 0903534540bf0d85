//! A real Kafka broker: one node in KRaft mode, from its own jars.

use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::kafka_security::Security;
use crate::ports::free_port;
use crate::process::{Home, Launch, Tied};
use crate::tools;

const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);

/// A broker of the test's own, at a port of its own, with topics of its own.
///
/// Topics are not made by asking for them. What waits minutes in production (compaction, retention, a consumer that is
/// gone) waits a second or so here, where a topic's own settings ask for it.
#[derive(Debug)]
pub struct Kafka {
    broker: Option<Tied>,
    port: u16,
    java: PathBuf,
    class_path: String,
    security: Option<Security>,
    home: Home,
}

impl Kafka {
    /// Starts a broker with an empty log, and waits until it answers.
    pub fn start() -> anyhow::Result<Kafka> {
        Kafka::start_with(|_| Ok(None))
    }

    /// The same, but its clients need TLS, and PLAIN or SCRAM-SHA-512.
    pub fn start_secure() -> anyhow::Result<Kafka> {
        Kafka::start_with(|home| Security::new(home.path()).map(Some))
    }

    fn start_with(security: impl Fn(&Home) -> anyhow::Result<Option<Security>>) -> anyhow::Result<Kafka> {
        let java = tools::program(&["java"], &[])?;
        let class_path = tools::kafka_class_path()?;
        let home = Home::new("kafka")?;
        let security = security(&home)?;
        let kafka = Kafka { broker: None, port: free_port()?, java, class_path, security, home };
        let properties = kafka.properties(free_port()?, free_port()?);
        kafka.begin(&properties)
    }

    /// Starts a broker with settings of the caller's choice, but for the folder of its log. Clients find it, without TLS, at `port`.
    pub fn start_from(properties: &str, port: u16) -> anyhow::Result<Kafka> {
        let java = tools::program(&["java"], &[])?;
        let class_path = tools::kafka_class_path()?;
        let kafka = Kafka { broker: None, port, java, class_path, security: None, home: Home::new("kafka")? };
        // Of a key that is there twice, the last counts.
        let data = kafka.home.path().join("data");
        kafka.begin(&format!("{properties}\nlog.dirs={}\n", data.display()))
    }

    fn begin(mut self, properties: &str) -> anyhow::Result<Kafka> {
        std::fs::write(self.settings(), properties).context("write server.properties")?;
        self.format()?;
        self.launch()?;
        Ok(self)
    }

    /// Its address, for `bootstrap.servers`: 127.0.0.1:PORT.
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// How clients get into a secure one.
    pub fn security(&self) -> Option<&Security> {
        self.security.as_ref()
    }

    /// What an ordinary client needs.
    pub fn client_config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.bootstrap());
        let properties = self.security.as_ref().map(Security::client_properties).unwrap_or_default();
        for (key, value) in properties.lines().filter_map(|line| line.split_once('=')) {
            config.set(key, value);
        }
        config
    }

    /// The broker's process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.broker.as_ref().map(Tied::pid)
    }

    /// Ends it in order.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        if let Some(mut broker) = self.broker.take() {
            broker.stop("TERM", STOP_LIMIT)?;
        }
        Ok(())
    }

    /// Ends it with SIGKILL.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut broker) = self.broker.take() {
            broker.kill()?;
        }
        Ok(())
    }

    /// Starts it again with its log, at the same address; one that runs is stopped first.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.stop()?;
        self.launch()
    }

    /// The folder of its log and settings.
    pub fn home(&self) -> &Home {
        &self.home
    }

    fn launch(&mut self) -> anyhow::Result<()> {
        let mut command = self.java("kafka.Kafka");
        command.arg(self.settings());
        let mut broker = Tied::start(Launch { command, user: None, home: &self.home, last_signal: "KILL" })?;
        self.wait_until_it_answers(&mut broker)?;
        self.broker = Some(broker);
        Ok(())
    }

    fn wait_until_it_answers(&self, broker: &mut Tied) -> anyhow::Result<()> {
        let client: BaseConsumer = self
            .client_config()
            .set("reconnect.backoff.ms", "20")
            .set("reconnect.backoff.max.ms", "100")
            .create()
            .context("a client to ask Kafka whether it is there")?;
        let start = Instant::now();
        loop {
            broker.check_running()?;
            match client.fetch_metadata(None, Duration::from_millis(500)) {
                Ok(metadata) if !metadata.brokers().is_empty() => return Ok(()),
                _ if start.elapsed() < START_LIMIT => sleep(POLL),
                Ok(_) => bail!("Kafka knows no broker after {START_LIMIT:?}\n{}", broker.log_tail()),
                Err(error) => bail!("Kafka does not answer after {START_LIMIT:?}: {error}\n{}", broker.log_tail()),
            }
        }
    }

    fn format(&self) -> anyhow::Result<()> {
        let mut command = self.java("kafka.tools.StorageTool");
        command.args(["format", "--cluster-id", &cluster_id(), "--config"]).arg(self.settings());
        if self.security.is_some() {
            command.args(Security::format_arguments());
        }
        let output = command.output().context("run Kafka's StorageTool")?;
        if !output.status.success() {
            let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            bail!("Kafka's StorageTool failed ({})\n{out}{err}", output.status);
        }
        Ok(())
    }

    /// One of Kafka's own programs, by the class that its script names.
    pub fn tool(&self, class: &str) -> Command {
        self.java(class)
    }

    fn java(&self, class: &str) -> Command {
        let mut command = Command::new(&self.java);
        command.args(["-Xmx768m", "-XX:-UsePerfData", "-cp", &self.class_path, class]);
        command
    }

    fn settings(&self) -> PathBuf {
        self.home.path().join("server.properties")
    }

    fn properties(&self, controller_port: u16, inner_port: u16) -> String {
        let port = self.port;
        let data = self.home.path().join("data");
        let (protocol, secure) = match &self.security {
            Some(security) => ("SASL_SSL", security.broker_properties()),
            None => ("PLAINTEXT", String::new()),
        };
        format!(
            "process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=CLIENTS://127.0.0.1:{port},INNER://127.0.0.1:{inner_port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=CLIENTS://127.0.0.1:{port},INNER://127.0.0.1:{inner_port}
listener.security.protocol.map=CLIENTS:{protocol},INNER:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=INNER
log.dirs={data}
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
log.initial.task.delay.ms=1000
log.retention.check.interval.ms=1000
log.cleaner.backoff.ms=1000
log.cleaner.threads=1
log.cleaner.dedupe.buffer.size=16777216
{secure}",
            data = data.display()
        )
    }
}

/// 16 random bytes as Kafka writes them. Letters and digits alone are valid; the last of 22 carries four bits, so it is `A`.
fn cluster_id() -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let mut id: String = (0..21).map(|_| char::from(LETTERS[rand::random_range(0..LETTERS.len())])).collect();
    id.push('A');
    id
}
