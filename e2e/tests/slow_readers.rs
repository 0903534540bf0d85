//! Clients that stop reading: 200 WebSockets and some event streams (or as many as `SLOW_READERS` says) cost their gateway
//! bounded memory and nobody else's time, and are closed after `slow_client_s`.
//!
//! Everybody sees the same forty friends, who move twice a second. A few people read all the time and measure how long a
//! report takes to reach them, before and while the others stall. On real Kafka; prints what it measured.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nearby_e2e::cluster::{Cluster, Service};
use nearby_e2e::herd::summary;
use nearby_e2e::http;
use nearby_e2e::ws::{Closed, Socket};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{JoinSet, block_in_place};

const PREFIX: &str = "slow-readers.";
const STALLED: usize = 200;
const EVENT_STREAMS: usize = 20;
const READERS: i64 = 10;
const FRIENDS: i64 = 40;
const READER_FIRST: i64 = 1_000;
const STALLED_FIRST: i64 = 10_000;
const MOVE_INTERVAL: Duration = Duration::from_millis(500);
/// How long latencies are measured without stalled clients.
const UNDISTURBED: Duration = Duration::from_secs(8);
const SLOW_CLIENT_S: u64 = 5;
/// What the client's system takes before it lets the server wait.
const RECEIVE_BUFFER_BYTES: u32 = 4 * 1024;
/// A stalled client's frame, its view and its outbox, in the gateway itself.
const MEMORY_PER_CLIENT_MAX: usize = 96 * 1024;
/// The machine is busy with other things too.
const LATENCY_MAX: Duration = Duration::from_millis(1_000);
/// Until the buffers of the system are full, and then `slow_client_s`.
const CLOSED_LIMIT: Duration = Duration::from_secs(90);
/// A gateway waits 2 s for the answer to its close frame: who reads again by then gets it.
const READ_AGAIN_AFTER: Duration = Duration::from_millis(300);
const POLL: Duration = Duration::from_millis(100);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn clients_that_stop_reading_harm_nobody() -> anyhow::Result<()> {
    let stalled = match std::env::var("SLOW_READERS") {
        Ok(number) => number.parse().with_context(|| format!("SLOW_READERS is a number, not {number}"))?,
        Err(_) => STALLED,
    };
    let mut cluster = block_in_place(|| Cluster::start(PREFIX, 0, 1))?;
    let listen = format!("127.0.0.1:{}", nearby_e2e::ports::free_port()?);
    let mut pusher =
        cluster.start_pusher(&listen, &["--flush-ms", "0", "--slow-client-s", &SLOW_CLIENT_S.to_string()])?;
    block_in_place(|| pusher.wait_ready())?;
    cluster.pushers.push(pusher);
    play(&cluster, stalled).await.map_err(|error| anyhow::anyhow!("{error:#}\n{}", cluster.complaints()))
}

async fn play(cluster: &Cluster, stalled: usize) -> anyhow::Result<()> {
    let pusher = &cluster.pushers[0];
    let stalled_users = STALLED_FIRST..STALLED_FIRST + i64::try_from(stalled + EVENT_STREAMS)?;
    befriend(cluster, (READER_FIRST..READER_FIRST + READERS).chain(stalled_users)).await?;
    let (latency, mut latencies) = mpsc::unbounded_channel();
    let mut people = JoinSet::new();
    for user in READER_FIRST..READER_FIRST + READERS {
        let mut socket = Socket::connect(&stream_url(pusher), &cluster.token(user).await?).await?;
        socket.wait_frame("snapshot", CLOSED_LIMIT).await?;
        people.spawn(read(socket, latency.clone()));
    }
    people.spawn(moves(cluster.ingest.url.clone(), cluster.token(0).await?));
    tokio::time::sleep(UNDISTURBED).await;
    let undisturbed = take(&mut latencies);

    let memory_before = resident_bytes(pusher)?;
    let mut sockets = Vec::new();
    for user in (STALLED_FIRST..).take(stalled) {
        sockets.push(stall(pusher, "/v1/stream", &cluster.token(user).await?).await?);
    }
    let mut streams = Vec::new();
    for user in (STALLED_FIRST + i64::try_from(stalled)?..).take(EVENT_STREAMS) {
        streams.push(stall(pusher, "/v1/events", &cluster.token(user).await?).await?);
    }
    let begun = Instant::now();
    let mut memory_most = memory_before;
    let (mut closed, mut first_closed) = (0, None);
    take(&mut latencies);
    while closed < stalled + EVENT_STREAMS {
        ensure!(begun.elapsed() < CLOSED_LIMIT, "{closed} are closed after {CLOSED_LIMIT:?}");
        tokio::time::sleep(POLL).await;
        memory_most = memory_most.max(resident_bytes(pusher)?);
        closed = pusher.gauge("nearby_pusher_closed_total", "slow_client").await? as usize;
        if closed > 0 {
            first_closed.get_or_insert_with(|| begun.elapsed());
        }
    }
    let all_closed = begun.elapsed();
    let disturbed = take(&mut latencies);
    let per_client = (memory_most.saturating_sub(memory_before)) / (stalled + EVENT_STREAMS);
    println!("readers, undisturbed:  {} updates, {}", undisturbed.len(), summary(&undisturbed));
    println!(
        "readers, beside {stalled} + {EVENT_STREAMS} stalled: {} updates, {}",
        disturbed.len(),
        summary(&disturbed)
    );
    println!(
        "memory: {} MiB before, {} MiB at most, {} KiB a stalled client; closed after {:.1} to {:.1} s",
        memory_before >> 20,
        memory_most >> 20,
        per_client >> 10,
        first_closed.unwrap_or_default().as_secs_f64(),
        all_closed.as_secs_f64()
    );
    let p99 = |times: &[Duration]| times.get(times.len() * 99 / 100).copied().unwrap_or_default();
    ensure!(disturbed.len() > 100 && p99(&disturbed) <= LATENCY_MAX, "the others waited: {}", summary(&disturbed));
    ensure!(per_client <= MEMORY_PER_CLIENT_MAX, "{per_client} bytes of memory for each");
    ensure!(
        first_closed.unwrap_or_default() >= Duration::from_secs(SLOW_CLIENT_S),
        "closed too early: {first_closed:?}"
    );
    // They are really gone, not only counted.
    while pusher.gauge("nearby_pusher_connections", "").await? as i64 > READERS {
        ensure!(begun.elapsed() < CLOSED_LIMIT, "closed clients still have sessions");
        tokio::time::sleep(POLL).await;
    }
    for stream in sockets.into_iter().chain(streams) {
        ended(stream).await?;
    }
    who_reads_again_in_time_hears_why(cluster, &mut people).await
}

/// The movers go on; this client stalls until the gateway gives it up.
async fn who_reads_again_in_time_hears_why(
    cluster: &Cluster,
    people: &mut JoinSet<anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let pusher = &cluster.pushers[0];
    let before = pusher.gauge("nearby_pusher_closed_total", "slow_client").await?;
    let address = pusher.address().parse()?;
    let stream = small_socket(address).await?;
    let mut socket = Socket::over(stream, &stream_url(pusher), &cluster.token(STALLED_FIRST).await?).await?;
    let begun = Instant::now();
    while pusher.gauge("nearby_pusher_closed_total", "slow_client").await? <= before {
        ensure!(begun.elapsed() < CLOSED_LIMIT, "it is not closed");
        tokio::time::sleep(POLL).await;
    }
    tokio::time::sleep(READ_AGAIN_AFTER).await;
    let Closed { code, reason } = socket.wait_closed(CLOSED_LIMIT).await?;
    ensure!((code, reason.as_str()) == (1013, "slow_client"), "closed with {code} {reason:?}");
    if let Some(ended) = people.try_join_next() {
        ended?.context("somebody who reads or moves")?;
    }
    people.shutdown().await;
    Ok(())
}

/// Everybody in the log: near each other, with the forty in the lists of all.
async fn befriend(cluster: &Cluster, viewers: impl Iterator<Item = i64>) -> anyhow::Result<()> {
    let token = cluster.token(0).await?;
    let friends: Vec<String> = (1..=FRIENDS).map(|friend| friend.to_string()).collect();
    let viewers: Vec<i64> = viewers.collect();
    for some in viewers.chunks(200) {
        let lists: serde_json::Map<String, Value> =
            some.iter().map(|viewer| (viewer.to_string(), json!(friends))).collect();
        let url = format!("{}/v1/friend-lists", cluster.ingest.url);
        http::post_json(&token, &url, &json!({ "lists": lists })).await?.expect_status(202)?;
        report(&cluster.ingest.url, &token, some.iter().copied(), 0).await?;
    }
    report(&cluster.ingest.url, &token, 1..=FRIENDS, 0).await
}

async fn report(ingest: &str, token: &str, users: impl Iterator<Item = i64>, step: i64) -> anyhow::Result<()> {
    let place = |user: i64| json!({"user_id": user.to_string(), "lat": 50.0 + (step % 100) as f64 * 1e-5, "lon": 8.0});
    let items: Vec<Value> = users.map(place).collect();
    http::post_json(token, &format!("{ingest}/v1/locations"), &json!(items)).await?.expect_status(202)?;
    Ok(())
}

/// The forty move for as long as the test runs.
async fn moves(ingest: String, token: String) -> anyhow::Result<()> {
    for step in 1.. {
        report(&ingest, &token, 1..=FRIENDS, step).await?;
        tokio::time::sleep(MOVE_INTERVAL).await;
    }
    Ok(())
}

/// From the time of a report, which the ingest has set, to its arrival here.
async fn read(mut socket: Socket, latency: mpsc::UnboundedSender<Duration>) -> anyhow::Result<()> {
    loop {
        let frame = socket.next_frame(CLOSED_LIMIT).await?;
        let now_ms = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_millis();
        let newest =
            frame["moved"].as_array().into_iter().flatten().filter_map(|friend| friend["updated_at_ms"].as_u64());
        if let Some(newest) = newest.max() {
            let behind_ms = u64::try_from(now_ms)?.saturating_sub(newest);
            latency.send(Duration::from_millis(behind_ms)).ok();
        }
    }
}

fn take(latencies: &mut mpsc::UnboundedReceiver<Duration>) -> Vec<Duration> {
    let mut taken: Vec<Duration> = std::iter::from_fn(|| latencies.try_recv().ok()).collect();
    taken.sort();
    taken
}

/// A client that asks, reads nothing, and takes as little as it can.
async fn stall(pusher: &Service, path: &str, token: &str) -> anyhow::Result<TcpStream> {
    let mut stream = small_socket(pusher.address().parse()?).await?;
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";
    let upgrade = if path == "/v1/stream" { upgrade } else { "" };
    let head =
        format!("GET {path} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {token}\r\n{upgrade}\r\n", pusher.address());
    stream.write_all(head.as_bytes()).await?;
    Ok(stream)
}

async fn small_socket(address: std::net::SocketAddr) -> anyhow::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
    Ok(socket.connect(address).await?)
}

/// What was under way comes, and then the end.
async fn ended(mut stream: TcpStream) -> anyhow::Result<()> {
    let mut rest = Vec::new();
    let read = tokio::time::timeout(CLOSED_LIMIT, stream.read_to_end(&mut rest)).await.context("it does not end")?;
    // A reset is an end too.
    if let Err(error) = read {
        ensure!(error.kind() == std::io::ErrorKind::ConnectionReset, "{error}");
    }
    Ok(())
}

fn stream_url(pusher: &Service) -> String {
    format!("ws://{}/v1/stream", pusher.address())
}

/// As Linux tells it.
fn resident_bytes(service: &Service) -> anyhow::Result<usize> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", service.nearby.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<usize>()? * 1024)
}
