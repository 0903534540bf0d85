//! The live map of `nearby run --dev-tokens` in a real browser: what a person sees there is what the server tells.

use std::time::Duration;

use anyhow::{Context, ensure};
use nearby_e2e::chromium::Page;
use nearby_e2e::nearby::Nearby;
use nearby_e2e::{http, ports};
use serde_json::{Value, json};

/// The first start on a machine downloads Postgres.
const READY: Duration = Duration::from_secs(120);
const STEP: Duration = Duration::from_secs(10);
/// A restarted server needs some seconds, and the page asks at most every ten.
const BACK_AGAIN: Duration = Duration::from_secs(60);
const NOBODY: &str = "document.querySelectorAll('#markers > *').length === 0";
const OPEN: &str = "document.body.dataset.state === 'open'";

/// A running server with the map, at an address of its own.
struct Server {
    nearby: Nearby,
    listen: String,
}

impl Server {
    fn start(listen: &str, more: &[&str]) -> anyhow::Result<Server> {
        let mut nearby = Nearby::start(&[&["run", "--dev-tokens", "--listen", listen], more].concat(), &[])?;
        let addresses = nearby.wait_ready(READY)?;
        ensure!(addresses.http == format!("http://{listen}"), "{addresses:?}");
        Ok(Server { nearby, listen: listen.to_owned() })
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.listen)
    }

    async fn token(&self, user: i64) -> anyhow::Result<String> {
        let answer = http::get(&self.url(&format!("/v1/dev/token?user={user}"))).await?.expect_status(200)?.json()?;
        Ok(answer["token"].as_str().context("an answer with a token")?.to_owned())
    }

    /// Makes user 1 and each of `friends` friends of each other.
    async fn befriend(&self, friends: &[i64]) -> anyhow::Result<()> {
        let names: Vec<String> = friends.iter().map(i64::to_string).collect();
        let mut lists: Value = names.iter().map(|name| (name.clone(), json!(["1"]))).collect();
        lists["1"] = json!(names);
        let url = self.url("/v1/friend-lists");
        http::post_json(&self.token(1).await?, &url, &json!({"lists": lists})).await?.expect_status(202)?;
        Ok(())
    }

    async fn report(&self, user: i64, lat: f64, lon: f64) -> anyhow::Result<()> {
        let (url, report) = (self.url("/v1/locations"), json!({"lat": lat, "lon": lon}));
        http::post_json(&self.token(user).await?, &url, &report).await?.expect_status(202)?;
        Ok(())
    }

    async fn open_map(&self, lat: f64, lon: f64) -> anyhow::Result<Page> {
        let page = Page::open(&self.url(&format!("/?user=1&lat={lat}&lon={lon}"))).await?;
        page.wait_for(OPEN, STEP).await?;
        Ok(page)
    }
}

/// The condition that a friend is marked at this place, at about this distance.
fn marked(friend: i64, lat: f64, lon: f64, distance_m: f64) -> String {
    format!(
        "(({{ lat, lon, distanceM }}) => lat === '{lat}' && lon === '{lon}' && Math.abs(distanceM - {distance_m}) < 0.1)\
         (document.querySelector('[data-friend=\"{friend}\"]').dataset)"
    )
}

/// The condition that a friend's marker is drawn so many metres east and north of me, to a pixel and a half. The outer
/// circle, 8 km around me, gives the scale.
fn drawn(friend: i64, east_m: f64, north_m: f64) -> String {
    format!(
        "(() => {{
          const box = (selector) => document.querySelector(selector).getBoundingClientRect();
          const [dot, me, edge] = [box('[data-friend=\"{friend}\"] .disc'), box('#me .core'), box('#reach .edge circle')];
          const pxPerMetre = edge.width / 2 / 8000;
          const x = dot.left + dot.width / 2 - me.left - me.width / 2 - {east_m} * pxPerMetre;
          const y = dot.top + dot.height / 2 - me.top - me.height / 2 + {north_m} * pxPerMetre;
          return dot.width > 10 && edge.width > 300 && Math.hypot(x, y) < 1.5;
        }})()"
    )
}

/// The condition that the list beside the map names these friends, the nearest first.
fn listed(friends: &str) -> String {
    format!("[...document.querySelectorAll('#friends li')].map(({{ dataset }}) => dataset.id).join() === '{friends}'")
}

#[tokio::test(flavor = "multi_thread")]
async fn friends_come_move_and_go_on_the_map() -> anyhow::Result<()> {
    let server = Server::start(&format!("127.0.0.1:{}", ports::free_port()?), &[])?;
    server.befriend(&[2, 3]).await?;
    let page = server.open_map(40.0, -73.0).await?;
    page.wait_for(NOBODY, STEP).await?;

    // They come.
    server.report(2, 40.01, -73.0).await?;
    page.wait_for(&marked(2, 40.01, -73.0, 1112.0), STEP).await?;
    page.wait_for(&drawn(2, 0.0, 1112.0), STEP).await?;
    server.report(3, 39.98, -73.0).await?;
    page.wait_for(&marked(3, 39.98, -73.0, 2223.9), STEP).await?;
    page.wait_for(&drawn(3, 0.0, -2223.9), STEP).await?;
    page.wait_for(&listed("2,3"), STEP).await?;

    // One moves past the other, then walks out.
    server.report(2, 40.02, -73.02).await?;
    page.wait_for(&marked(2, 40.02, -73.02, 2801.3), STEP).await?;
    page.wait_for(&drawn(2, -1703.6, 2223.9), STEP).await?;
    page.wait_for(&listed("3,2"), STEP).await?;
    server.report(2, 40.1, -73.02).await?;
    page.wait_for("document.querySelectorAll('#markers > *').length === 1", STEP).await?;
    page.wait_for("document.querySelector('[data-friend=\"2\"]') === null", STEP).await?;
    page.wait_for("document.getElementById('comings').textContent.includes('friend 2 left: distance')", STEP).await?;
    page.wait_for(&listed("3"), STEP).await?;

    // The viewer moves: the friend stays, the distance is another.
    page.eval("window.nearby.moveTo(40.005, -73)").await?;
    page.wait_for(&marked(3, 39.98, -73.0, 2779.9), STEP).await?;
    page.wait_for(&drawn(3, 0.0, -2779.9), STEP).await?;

    // Who does not share sees nobody.
    page.eval("document.getElementById('share-toggle').click()").await?;
    page.wait_for(NOBODY, STEP).await?;
    server.report(2, 40.01, -73.0).await?;
    server.report(3, 39.99, -73.0).await?;
    page.eval("document.getElementById('share-toggle').click()").await?;
    page.wait_for(&marked(2, 40.01, -73.0, 556.0), STEP).await?;
    page.wait_for(&marked(3, 39.99, -73.0, 1667.9), STEP).await?;

    shows_frames_and_no_token(&page).await?;
    asks_nobody_else(&page, &server.listen)?;
    ensure!(page.console_errors().is_empty(), "{:?}", page.console_errors());
    Ok(())
}

async fn shows_frames_and_no_token(page: &Page) -> anyhow::Result<()> {
    for frame in ["welcome", "snapshot", "update", "accepted", "location", "unshare"] {
        let in_log = format!("document.getElementById('frames').textContent.includes('\"type\":\"{frame}\"')");
        page.wait_for(&in_log, STEP).await?;
    }
    // Every token of ours begins with the base64 of `{"`.
    let html = page.eval("document.documentElement.outerHTML").await?;
    let html = html.as_str().context("a page has HTML")?;
    ensure!(!html.contains("eyJ") && !html.contains("bearer."), "the page shows a token: {html}");
    Ok(())
}

fn asks_nobody_else(page: &Page, listen: &str) -> anyhow::Result<()> {
    let requests = page.requests();
    let here = [format!("http://{listen}/"), format!("ws://{listen}/"), "data:".to_owned()];
    for request in &requests {
        ensure!(here.iter().any(|here| request.starts_with(here)), "the page asked elsewhere: {request}");
        ensure!(!request.contains("eyJ"), "a token in an address: {request}");
    }
    let socket = format!("ws://{listen}/v1/stream");
    ensure!(requests.contains(&socket), "the page opened {socket}: {requests:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_map_comes_back_by_itself_after_the_server_was_killed() -> anyhow::Result<()> {
    let mut server = Server::start(&format!("127.0.0.1:{}", ports::free_port()?), &[])?;
    server.befriend(&[2]).await?;
    let page = server.open_map(40.0, -73.0).await?;
    server.report(2, 40.01, -73.0).await?;
    page.wait_for(&marked(2, 40.01, -73.0, 1112.0), STEP).await?;
    ensure!(page.console_errors().is_empty(), "{:?}", page.console_errors());

    server.nearby.kill9()?;
    page.wait_for("document.body.dataset.state === 'reconnecting'", STEP).await?;

    // Another secret, another gateway, and a Kafka that has forgotten everything.
    let listen = server.listen.clone();
    drop(server);
    let server = Server::start(&listen, &[])?;
    page.wait_for(OPEN, BACK_AGAIN).await?;
    page.wait_for(NOBODY, STEP).await?;
    server.befriend(&[2]).await?;
    server.report(2, 40.02, -73.02).await?;
    // With a distance: the page has said again where it is.
    page.wait_for(&marked(2, 40.02, -73.02, 2801.3), STEP).await?;
    page.wait_for(&drawn(2, -1703.6, 2223.9), STEP).await?;

    // The browser logs what it could not reach in between, and the page adds nothing to that.
    let unexpected = page.console_errors().into_iter().filter(|error| {
        !error.contains("net::ERR_") && !error.contains("WebSocket connection to") && !error.contains("status of 503")
    });
    let unexpected: Vec<String> = unexpected.collect();
    ensure!(unexpected.is_empty(), "{unexpected:?}");
    asks_nobody_else(&page, &listen)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_walks_over_the_map() -> anyhow::Result<()> {
    let server = Server::start(&format!("127.0.0.1:{}", ports::free_port()?), &["--walkers", "100"])?;
    let page = Page::open(&server.url("/")).await?;
    page.wait_for("document.querySelectorAll('[data-friend]').length >= 20", READY).await?;
    page.wait_for("Number(document.getElementById('count-updates').textContent) >= 10", STEP).await?;
    let consistent = "(() => {
        const far = (id) => Number(document.querySelector(`[data-friend=\"${id}\"]`).dataset.distanceM);
        const shown = [...document.querySelectorAll('#friends li')].map(({ dataset }) => far(dataset.id));
        const sorted = shown.every((metres, index) => index === 0 || shown[index - 1] <= metres);
        return sorted && shown.length === document.querySelectorAll('[data-friend]').length
            && shown.every((metres) => metres <= 8000);
    })()";
    page.wait_for(consistent, STEP).await?;
    ensure!(page.console_errors().is_empty(), "{:?}", page.console_errors());
    Ok(())
}
