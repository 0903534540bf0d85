//! A fake schema registry, of Confluent's HTTP API: in memory, and with a door that can be shut.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::ports::free_port;
use crate::process::{Home, Launch, Tied, send_signal};
use crate::{http, tools};

const DOOR_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// What is special about a registry.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules<'a> {
    /// User and password that it insists on, each as it is and as it is written in a URL.
    pub password: Option<[(&'a str, &'a str); 2]>,
    /// A subject whose schemas it refuses.
    pub refused: &'a str,
}

/// A registry of the test's own. It forgets everything at its end.
#[derive(Debug)]
pub struct SchemaRegistry {
    process: Tied,
    port: u16,
    /// `USER:PASSWORD@`, as in a URL.
    login: String,
    authorization: String,
    _home: Home,
}

impl SchemaRegistry {
    /// Starts an empty one and waits until it answers.
    pub async fn start(rules: Rules<'_>) -> anyhow::Result<SchemaRegistry> {
        let home = Home::new("registry")?;
        let port = free_port()?;
        let (mut login, mut authorization) = (String::new(), String::new());
        if let Some([(user, user_in_url), (password, password_in_url)]) = rules.password {
            login = format!("{user_in_url}:{password_in_url}@");
            authorization = format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")));
        }
        let mut command = Command::new(tools::made("registry/schema-registry")?);
        command.args([&format!("127.0.0.1:{port}"), &authorization, rules.refused]);
        let process = Tied::start(Launch { command, user: None, home: &home, last_signal: "KILL" })?;
        let mut registry = SchemaRegistry { process, port, login, authorization, _home: home };
        registry.wait_for_door(true).await?;
        Ok(registry)
    }

    /// Its address, with user and password if it wants them.
    pub fn url(&self) -> String {
        format!("http://{}127.0.0.1:{}", self.login, self.port)
    }

    /// Refuses connections from now on, as if it were gone; it remembers everything.
    pub async fn shut(&mut self) -> anyhow::Result<()> {
        send_signal(self.process.pid(), "USR1")?;
        self.wait_for_door(false).await
    }

    /// Takes connections again.
    pub async fn open(&mut self) -> anyhow::Result<()> {
        send_signal(self.process.pid(), "USR2")?;
        self.wait_for_door(true).await
    }

    /// Registers an Avro schema under a subject; returns its id.
    pub async fn register(&self, subject: &str, schema: &str) -> anyhow::Result<u32> {
        let body = json!({"schema": schema}).to_string();
        let answer = self.ask("POST", &format!("/subjects/{subject}/versions"), body).await?;
        let id = answer["id"].as_u64().with_context(|| format!("an id: {answer}"))?;
        Ok(u32::try_from(id)?)
    }

    /// The subjects that it knows, in order.
    pub async fn subjects(&self) -> anyhow::Result<Value> {
        self.ask("GET", "/subjects", String::new()).await
    }

    /// The id of the newest schema under a subject.
    pub async fn newest(&self, subject: &str) -> anyhow::Result<u32> {
        let answer = self.ask("GET", &format!("/subjects/{subject}/versions/latest"), String::new()).await?;
        let id = answer["id"].as_u64().with_context(|| format!("an id: {answer}"))?;
        Ok(u32::try_from(id)?)
    }

    /// What it was asked so far, a line a request.
    pub fn log(&self) -> String {
        self.process.log_tail()
    }

    async fn ask(&self, method: &str, path: &str, body: String) -> anyhow::Result<Value> {
        let url = format!("http://127.0.0.1:{}{path}", self.port);
        let headers = [("authorization", self.authorization.as_str()), ("content-type", "application/json")];
        http::request(method, &url, &headers, body).await?.expect_status(200)?.json()
    }

    async fn wait_for_door(&mut self, open: bool) -> anyhow::Result<()> {
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).await.is_ok() != open {
            self.process.check_running()?;
            if start.elapsed() > DOOR_LIMIT {
                bail!("the registry's door is not {} after {DOOR_LIMIT:?}", if open { "open" } else { "shut" });
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }
}
