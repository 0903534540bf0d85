//! A page in headless Chromium: what a person would see, and what the page complained about.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use base64::Engine;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::devtools::DevTools;
use crate::process::{Home, Launch, Tied};
use crate::tools;

const NAMES: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];
const FLAGS: [&str; 13] = [
    "--headless",
    "--no-sandbox", // It cannot sandbox itself as root; the pages are our own.
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--disable-breakpad",
    "--no-first-run",
    "--remote-debugging-port=0",
    "--window-size=1280,800",
];
const START_LIMIT: Duration = Duration::from_secs(30);
const LOAD_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);
const BODY_SHOWN_CHARS: usize = 2000;

/// A page, in a browser of its own with a fresh profile and a view of 1280 × 800.
#[derive(Debug)]
pub struct Page {
    devtools: DevTools,
    session: String,
    heard: Arc<Mutex<Heard>>,
    browser: Tied,
    home: Home,
}

/// What the page did by itself.
#[derive(Debug, Default)]
struct Heard {
    errors: Vec<String>,
    requests: Vec<String>,
}

impl Page {
    /// Starts a browser, opens the address, and waits until it is loaded.
    pub async fn open(url: &str) -> anyhow::Result<Page> {
        let program = tools::program(&NAMES, &[])?;
        let home = Home::new("chromium")?;
        let profile = home.path().join("profile");
        let mut command = Command::new(program);
        // Chromium writes a little outside its profile too: let its home be the same folder.
        command.args(FLAGS).arg(format!("--user-data-dir={}", profile.display())).arg("about:blank");
        command.env("HOME", home.path()).env("TMPDIR", home.path());
        let mut browser = Tied::start(Launch { command, user: None, home: &home, last_signal: "KILL" })?;
        let address = devtools_address(&mut browser, &profile.join("DevToolsActivePort")).await?;

        let heard = Arc::new(Mutex::new(Heard::default()));
        let ears = Arc::clone(&heard);
        let devtools = DevTools::connect(&address, move |method, params| {
            ears.lock().unwrap_or_else(PoisonError::into_inner).hear(method, params);
        })
        .await?;
        let session = attach(&devtools).await?;
        let page = Page { devtools, session, heard, browser, home };
        for (method, params) in [
            ("Runtime.enable", json!({})),
            ("Log.enable", json!({})),
            ("Network.enable", json!({})),
            ("Page.enable", json!({})),
            (
                "Emulation.setDeviceMetricsOverride",
                json!({"width": 1280, "height": 800, "deviceScaleFactor": 1, "mobile": false}),
            ),
        ] {
            page.call(method, params).await?;
        }
        page.goto(url).await?;
        Ok(page)
    }

    /// Leads the page to another address and waits until it is loaded.
    pub async fn goto(&self, url: &str) -> anyhow::Result<()> {
        let answer = self.call("Page.navigate", json!({"url": url})).await?;
        if let Some(error) = answer["errorText"].as_str().filter(|text| !text.is_empty()) {
            bail!("could not open {url}: {error}");
        }
        self.wait_for("document.readyState === 'complete'", LOAD_LIMIT).await.with_context(|| format!("load {url}"))
    }

    /// The value of a JavaScript expression, as JSON; a promise is awaited, an exception is an error.
    pub async fn eval(&self, expression: &str) -> anyhow::Result<Value> {
        let params =
            json!({"expression": expression, "returnByValue": true, "awaitPromise": true, "userGesture": true});
        let mut answer = self.call("Runtime.evaluate", params).await?;
        if let Some(exception) = answer.get("exceptionDetails") {
            bail!("{}\nin: {expression}", exception_text(exception));
        }
        Ok(answer["result"]["value"].take())
    }

    /// Asks until the JavaScript condition holds. One that throws does not hold yet.
    pub async fn wait_for(&self, condition: &str, limit: Duration) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            let last = self.eval(&format!("Boolean({condition})")).await;
            if matches!(last, Ok(Value::Bool(true))) {
                return Ok(());
            }
            if start.elapsed() > limit {
                let last = last.map_or_else(|error| format!("{error:#}"), |value| value.to_string());
                let body = self.eval("document.body ? document.body.innerText : ''").await?;
                let body: String = body.as_str().unwrap_or_default().chars().take(BODY_SHOWN_CHARS).collect();
                let errors = self.console_errors().join("\n");
                bail!("not true after {limit:?}: {condition}\nlast: {last}\nbody: {body}\nconsole errors: {errors}");
            }
            sleep(POLL).await;
        }
    }

    /// Saves what is in view as a PNG file.
    pub async fn screenshot(&self, path: impl AsRef<Path>) -> anyhow::Result<()> {
        let answer = self.call("Page.captureScreenshot", json!({"format": "png"})).await?;
        let png = answer["data"].as_str().context("Chromium sent no picture")?;
        let png = base64::engine::general_purpose::STANDARD.decode(png).context("the picture is no base64")?;
        let path = path.as_ref();
        std::fs::write(path, png).with_context(|| format!("write {}", path.display()))
    }

    /// Every uncaught exception, `console.error` and error that the browser logged, since the page was opened.
    pub fn console_errors(&self) -> Vec<String> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).errors.clone()
    }

    /// The address of every request and WebSocket of the page, in order.
    pub fn requests(&self) -> Vec<String> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).requests.clone()
    }

    /// The browser's process id.
    pub fn pid(&self) -> u32 {
        self.browser.pid()
    }

    /// The folder of its profile and log.
    pub fn home(&self) -> &Home {
        &self.home
    }

    async fn call(&self, method: &str, params: Value) -> anyhow::Result<Value> {
        self.devtools.call(Some(&self.session), method, params).await
    }
}

impl Heard {
    fn hear(&mut self, method: &str, params: &Value) {
        match method {
            "Runtime.exceptionThrown" => self.errors.push(exception_text(&params["exceptionDetails"])),
            "Runtime.consoleAPICalled" if params["type"] == "error" => {
                let arguments = params["args"].as_array().map(Vec::as_slice).unwrap_or_default();
                self.errors.push(arguments.iter().map(argument_text).collect::<Vec<_>>().join(" "));
            }
            "Log.entryAdded" if params["entry"]["level"] == "error" => {
                let part = |name: &str| params["entry"][name].as_str().unwrap_or_default().to_owned();
                self.errors.push(format!("{} {}", part("text"), part("url")).trim_end().to_owned());
            }
            "Network.requestWillBeSent" => self.requests.extend(params["request"]["url"].as_str().map(str::to_owned)),
            "Network.webSocketCreated" => self.requests.extend(params["url"].as_str().map(str::to_owned)),
            _ => {}
        }
    }
}

fn exception_text(details: &Value) -> String {
    let text = details["exception"]["description"].as_str().or_else(|| details["text"].as_str());
    match text {
        // What is thrown need not be an Error.
        Some("Uncaught") | None => argument_text(&details["exception"]),
        Some(text) => text.to_owned(),
    }
}

fn argument_text(argument: &Value) -> String {
    let value = &argument["value"];
    let text = value.as_str().or_else(|| argument["description"].as_str());
    text.map_or_else(|| value.to_string(), str::to_owned)
}

/// The browser chooses its port and writes it, with the path of its DevTools, into a file of its profile.
async fn devtools_address(browser: &mut Tied, file: &Path) -> anyhow::Result<String> {
    let start = Instant::now();
    loop {
        browser.check_running()?;
        let text = std::fs::read_to_string(file).unwrap_or_default();
        if let Some((port, path)) = text.split_once('\n').filter(|(_, path)| !path.is_empty()) {
            return Ok(format!("ws://127.0.0.1:{port}{}", path.trim_end()));
        }
        if start.elapsed() > START_LIMIT {
            bail!("Chromium opened no DevTools port within {START_LIMIT:?}\n{}", browser.log_tail());
        }
        sleep(POLL).await;
    }
}

async fn attach(devtools: &DevTools) -> anyhow::Result<String> {
    let target = devtools.call(None, "Target.createTarget", json!({"url": "about:blank"})).await?;
    let params = json!({"targetId": target["targetId"], "flatten": true});
    let attached = devtools.call(None, "Target.attachToTarget", params).await?;
    Ok(attached["sessionId"].as_str().context("Chromium gave no session")?.to_owned())
}
