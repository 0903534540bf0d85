//! The handshake page of `nearby run --dev-tokens` in a real browser: what it says about the wire is what was on it.

use std::time::Duration;

use anyhow::{Context, ensure};
use nearby_e2e::chromium::Page;
use nearby_e2e::nearby::Nearby;
use nearby_e2e::{http, ports};
use serde_json::json;

/// The first start on a machine downloads Postgres.
const READY: Duration = Duration::from_secs(120);
const STEP: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_what_is_on_the_wire() -> anyhow::Result<()> {
    let listen = format!("127.0.0.1:{}", ports::free_port()?);
    let base = format!("http://{listen}");
    let mut nearby = Nearby::start(&["run", "--dev-tokens", "--listen", &listen], &[])?;
    nearby.wait_ready(READY)?;
    let token = http::get(&format!("{base}/v1/dev/token?user=2")).await?.expect_status(200)?.json()?;
    let token = token["token"].as_str().context("a token")?;
    let lists = json!({"lists": {"1": ["2"]}});
    http::post_json(token, &format!("{base}/v1/friend-lists"), &lists).await?.expect_status(202)?;
    let page = Page::open(&format!("{base}/handshake?user=1&lat=40&lon=-73")).await?;
    let report = async |lat: f64| {
        let place = json!({"lat": lat, "lon": -73});
        http::post_json(token, &format!("{base}/v1/locations"), &place).await?.expect_status(202)
    };

    heads(&page).await.context("heads")?;

    // The same view in each, and who polls knows it later.
    report(40.01).await?;
    let all = |what: &str| format!("['stream', 'events', 'polling'].every((id) => document.getElementById(id).{what})");
    page.wait_for(&all("dataset.friends === '2'"), STEP).await?;
    page.wait_for(&all("textContent.includes('1,112 m')"), STEP).await?;
    page.eval("(() => { const often = document.querySelector('#polling select'); often.value = '5000'; often.onchange(); })()").await?;
    report(40.02).await?;
    page.wait_for("Number(document.getElementById('polling').dataset.behind) > 500", STEP).await?;
    page.wait_for("document.getElementById('stream').dataset.behind === '0'", STEP).await?;
    page.wait_for(&all("textContent.includes('2,223.9 m')"), STEP).await?;

    // Counters are alive, and the ways differ as they have to: one request or many, little or much around the payload.
    let count = |way: &str, what: &str| format!("Number(document.getElementById('{way}').dataset.{what})");
    page.wait_for(&format!("{} === 1 && {} === 1", count("stream", "requests"), count("events", "requests")), STEP)
        .await?;
    page.wait_for(&format!("{} >= 3", count("polling", "requests")), STEP).await?;
    let overhead = |way: &str| format!("({} - {})", count(way, "wire"), count(way, "payload"));
    page.wait_for(&format!("{} > 500 && {} < {}", overhead("stream"), overhead("stream"), overhead("polling")), STEP)
        .await?;

    // Pings with their times, frames with their lengths.
    let log = "document.querySelector('#stream .log').textContent";
    page.wait_for(&format!("/pong after \\d+\\.\\d ms pong · 0 B in 6 B/.test({log})"), STEP).await?;
    page.wait_for(&format!("/↑ .\"type\":\"location\".* text · \\d+ B in \\d+ B/.test({log})"), STEP).await?;
    page.wait_for(&format!("{log}.includes('\"type\":\"welcome\"')"), STEP).await?;

    if let Some(folder) = std::env::var_os("SCREENSHOTS") {
        page.screenshot(std::path::Path::new(&folder).join("handshake.png")).await?;
    }

    closes(&page).await.context("closes")?;
    let html = page.eval("document.documentElement.outerHTML").await?;
    let html = html.as_str().context("a page has HTML")?;
    ensure!(!html.contains("eyJ"), "the page shows a token: {html}");
    let elsewhere: Vec<_> = page
        .requests()
        .into_iter()
        .filter(|request| {
            ![format!("http://{listen}/"), format!("ws://{listen}/"), "data:".to_owned()]
                .iter()
                .any(|here| request.starts_with(here))
        })
        .collect();
    ensure!(elsewhere.is_empty(), "{elsewhere:?}");
    ensure!(page.console_errors().is_empty(), "{:?}", page.console_errors());
    Ok(())
}

async fn heads(page: &Page) -> anyhow::Result<()> {
    // What a browser does not show: the request's head as the server got it, without the token; and 101.
    let head = "document.querySelector('#stream [data-lines=request]').textContent";
    let has = |text: &str| format!("{head}.toLowerCase().includes('{text}')");
    for text in [
        "get /v1/stream http/1.1",
        "upgrade: websocket",
        "sec-websocket-version: 13",
        "nearby.v1, bearer.… (",
        "user-agent:",
    ] {
        page.wait_for(&has(text), STEP).await?;
    }
    let answer = "document.querySelector('#stream [data-lines=response]').textContent";
    page.wait_for(&format!("{answer}.startsWith('HTTP/1.1 101 Switching Protocols')"), STEP).await?;
    page.wait_for(&format!("{answer}.includes('sec-websocket-protocol: nearby.v1')"), STEP).await?;
    for (way, path) in [("events", "/v1/events"), ("polling", "/v1/nearby")] {
        let head = format!("document.querySelector('#{way} [data-lines=request]').textContent");
        page.wait_for(&format!("{head}.startsWith('GET {path} HTTP/1.1')"), STEP).await?;
        page.wait_for(&format!("{head}.includes('authorization: Bearer … (')"), STEP).await?;
    }
    Ok(())
}

async fn closes(page: &Page) -> anyhow::Result<()> {
    // Close codes: the server's, after a frame that is too big, and the page's own.
    let click = |text: &str| {
        format!(
            "[...document.querySelectorAll('#stream button')].find(({{ textContent }}) => textContent === '{text}').click()"
        )
    };
    let facts = "document.querySelector('#stream .facts').textContent";
    page.eval(&click("Send too much")).await?;
    page.wait_for(&format!("{facts}.includes('close, here 1009 frame_too_large')"), STEP).await?;
    page.wait_for(&format!("{facts}.includes('at the server sent 1009 frame_too_large')"), STEP).await?;
    page.wait_for("document.getElementById('stream').dataset.state === 'open'", STEP).await?;
    page.eval(&click("Close")).await?;
    page.wait_for(&format!("{facts}.includes('at the server got 1000')"), STEP).await?;
    page.wait_for("document.getElementById('stream').dataset.state === 'closed'", STEP).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_development_tokens_nothing_is_told() -> anyhow::Result<()> {
    const SECRET: &str = "a secret for the tests alone";
    let listen = format!("127.0.0.1:{}", ports::free_port()?);
    let mut nearby = Nearby::start(&["run", "--listen", &listen], &[("NEARBY_JWT_SECRET", SECRET)])?;
    nearby.wait_ready(READY)?;
    let token = nearby_e2e::nearby::token(SECRET, 1, "")?;
    let answer = http::get_as(&token, &format!("http://{listen}/v1/dev/wire")).await?;
    ensure!(answer.status == 404, "{} {}", answer.status, answer.text());
    // The rest of the page works with a token that a person pastes.
    let page = Page::open(&format!("http://{listen}/handshake?user=1")).await?;
    let soon_over = nearby_e2e::nearby::token_with(SECRET, &["--user", "1", "--valid-s", "15"])?;
    paste(&page, &soon_over).await?;
    page.wait_for("document.getElementById('watch').textContent.includes('dev tokens are off')", STEP).await?;
    for way in ["stream", "events", "polling"] {
        page.wait_for(&format!("document.getElementById('{way}').dataset.state === 'open'"), STEP).await?;
        page.wait_for(&format!("Number(document.getElementById('{way}').dataset.messages) > 0"), STEP).await?;
    }
    // It goes on with another one once that has expired, and is not begun a second time.
    paste(&page, &token).await?;
    for way in ["stream", "events", "polling"] {
        page.wait_for(&format!("document.getElementById('{way}').dataset.state === 'open'"), STEP).await?;
    }
    let controls = page.eval("document.querySelectorAll('.way button, .way select').length").await?;
    ensure!(controls == 4, "{controls} buttons and choices: two, one and one of the three ways");
    Ok(())
}

/// Gives the page a token when it asks for one.
async fn paste(page: &Page, token: &str) -> anyhow::Result<()> {
    page.wait_for("!document.getElementById('token-form').hidden", 2 * STEP).await?;
    let paste = format!(
        "(() => {{ document.getElementById('token').value = '{token}'; document.querySelector('#token-form button').click(); }})()"
    );
    page.eval(&paste).await?;
    page.wait_for("document.getElementById('token-form').hidden", STEP).await
}
