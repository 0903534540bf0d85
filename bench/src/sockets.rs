//! What a connection costs a gateway: the memory of an idle one, and frames a second beside a server that does nothing but send.

use crate::cpu::{self, Apart};
use crate::edge::{Edge, STEP};
use anyhow::{Context, ensure};
use futures_util::SinkExt;
use nearby_e2e::nearby::Nearby;
use nearby_e2e::ports::free_port;
use nearby_e2e::raw::{Raw, Unwatched};
use nearby_schemas::batch::{BATCH_BYTES_MAX, ViewerDistance};
use nearby_schemas::batch_encoder::{BatchEncoder, Notes};
use nearby_schemas::partitioning::partition_of;
use nearby_schemas::{Epoch, GatewayId, Place, TimestampMs, UserId};
use nearby_service::append::{Appender, Outgoing};
use nearby_service::kafka::Kafka;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

/// Connections that are there before the memory is looked at first: what the process needs once is not theirs.
const WARM_UP: usize = 200;
/// Handshakes at a time.
const AT_ONCE: usize = 100;
const SETTLE: Duration = Duration::from_secs(3);
const START_LIMIT: Duration = Duration::from_secs(30);
/// Newer than any owner: the gateway believes the bench alone.
const EPOCH: Epoch = Epoch(i64::MAX / 2);
/// Sockets are told in so many groups, evenly spread, each of its next move as soon as one of it has seen the last: so all have one
/// on its way, and none is replaced by a newer one before it is told.
const GROUPS: usize = 16;
/// Sockets are looked into so often: clients that were woken for each frame would cost as much as the server, which is what is looked at.
const READ_INTERVAL: Duration = Duration::from_millis(100);
/// And those that a group's next move depends on.
const LOOK_INTERVAL: Duration = Duration::from_micros(200);
/// What a look takes at once.
const READ_BYTES: usize = 16 * 1024;
/// The broker of a gateway compiles what it does often first; a bare server has none.
const RUN_IN: Duration = Duration::from_secs(6);
const RUN_IN_BARE: Duration = Duration::from_secs(2);
/// Where the friend is before the first step north, of 1e-7 degrees.
const LAT_E7: i32 = 407_000_000;

/// Settings of `nearby-bench sockets`.
#[derive(clap::Args)]
pub struct Settings {
    /// Connections: idle, then told something all the time
    #[arg(long, default_value_t = 10_000)]
    sockets: usize,
    /// For how long each server sends, in seconds
    #[arg(long, default_value_t = 10)]
    duration_s: u64,
    /// Runs of each server; they take turns
    #[arg(long, default_value_t = 3)]
    runs: usize,
}

/// Settings of `nearby-bench bare-server`.
#[derive(clap::Args)]
pub struct BareSettings {
    #[arg(long)]
    listen: String,
    #[arg(long)]
    frame: String,
    /// It begins to send when so many have come
    #[arg(long)]
    sockets: u64,
}

/// Prints both.
pub async fn run(settings: &Settings) -> anyhow::Result<()> {
    let (mut ours, mut bare, mut idle_kib) = (Vec::new(), Vec::new(), Vec::new());
    let time = Duration::from_secs(settings.duration_s);
    for _ in 0..settings.runs {
        let Gateway { figures, frame, idle_bytes } = gateway_sends(settings.sockets, time).await?;
        ours.push(figures);
        idle_kib.push(format!("{:.1}", idle_bytes / 1024.0));
        bare.push(bare_sends(settings.sockets, time, &frame).await?);
    }
    println!("{} idle sockets: {} KiB each in the gateway's process", settings.sockets, idle_kib.join(", "));
    println!(
        "{} sockets, each told as fast as it goes, flush_ms 0; each server has a core, all else the others; median of {} runs",
        settings.sockets, settings.runs
    );
    let [ours, bare] = [ours, bare].map(|mut runs| {
        runs.sort_by(|a, b| a.frames_per_s.total_cmp(&b.frames_per_s));
        runs[runs.len() / 2]
    });
    ours.print("gateway");
    bare.print("bare");
    println!(
        "  gateway / bare: frames a second {:.2}, CPU a frame {:.2}",
        ours.frames_per_s / bare.frames_per_s,
        ours.cpu_us / bare.cpu_us
    );
    Ok(())
}

/// With the first two frames read: welcome and snapshot. In the order of users.
async fn connect(edge: &Edge, users: std::ops::RangeInclusive<usize>) -> anyhow::Result<Vec<Raw>> {
    let mut lines = Vec::new();
    let users: Vec<usize> = users.collect();
    for together in users.chunks(AT_ONCE) {
        let mut connecting = JoinSet::new();
        for user in together {
            let (user, url, token) = (*user, edge.gateway.url.clone(), edge.token(i64::try_from(*user)?)?);
            connecting.spawn(async move {
                let mut line = Raw::upgrade(&url, &token, STEP).await?;
                line.text().await?;
                line.text().await?;
                anyhow::Ok((user, line))
            });
        }
        while let Some(line) = connecting.join_next().await {
            lines.push(line??);
        }
    }
    lines.sort_unstable_by_key(|(user, _)| *user);
    Ok(lines.into_iter().map(|(_, line)| line).collect())
}

/// Of a server that sends as fast as it goes.
#[derive(Clone, Copy)]
pub struct Figures {
    pub frames_per_s: f64,
    /// CPU time of the server for a frame, in microseconds.
    pub cpu_us: f64,
    /// So much of its core was busy.
    pub cores: f64,
}

impl Figures {
    fn print(&self, who: &str) {
        println!(
            "  {who:8} {:8.0} frames/s, {:.2} µs of its CPU a frame, {:.0} % of its core busy",
            self.frames_per_s,
            self.cpu_us,
            self.cores * 100.0
        );
    }
}

/// What a gateway made of its sockets.
pub struct Gateway {
    pub figures: Figures,
    /// The last frame of the first.
    pub frame: String,
    /// Resident bytes of its process for each of them while nobody is told anything.
    pub idle_bytes: f64,
}

/// The gateway is told by a topic, as by a processor, that one friend of everybody moves and moves.
pub async fn gateway_sends(sockets: usize, time: Duration) -> anyhow::Result<Gateway> {
    let apart = Apart::new()?;
    let edge = Edge::start_apart(&["--flush-ms", "0", "--accept-rate-per-s", "50000"], Some(&apart))?;
    let pid = edge.gateway.nearby.pid();
    ensure!(sockets > WARM_UP, "more than {WARM_UP} sockets, please");
    let mut lines = connect(&edge, 1..=WARM_UP).await?;
    tokio::time::sleep(SETTLE).await;
    let before = cpu::resident_bytes(pid)?;
    lines.extend(connect(&edge, WARM_UP + 1..=sockets).await?);
    tokio::time::sleep(SETTLE).await;
    let idle_bytes = (cpu::resident_bytes(pid)? as f64 - before as f64) / (sockets - WARM_UP) as f64;
    let kafka = Kafka::at(edge.cluster.kafka.bootstrap(), "");
    let gateway = nearby_e2e::http::get(&format!("{}/v1/gateway", edge.cluster.ingest.url)).await?.json()?;
    let topic = kafka.topics.friend_moved(&GatewayId::new(gateway["gateway"].as_str().context("a gateway")?)?);
    let partitions = tokio::task::block_in_place(|| kafka.check_topics())?;
    let seen: Seen = (0..sockets.min(GROUPS)).map(|_| AtomicU64::new(0)).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let telling = tokio::spawn(tell(kafka, topic, sockets, partitions, Arc::clone(&stop), Arc::clone(&seen)));
    let read = read(lines, pid, RUN_IN, time, seen).await;
    stop.store(true, Ordering::Relaxed);
    telling.await??;
    let (figures, frame) = read?;
    Ok(Gateway { figures, frame, idle_bytes })
}

/// The last step that the first socket of each group was told of.
type Seen = Arc<[AtomicU64]>;

async fn tell(
    kafka: Kafka,
    topic: String,
    sockets: usize,
    partitions: i32,
    stop: Arc<AtomicBool>,
    seen: Seen,
) -> anyhow::Result<()> {
    let (appender, codec) = (Appender::new(&kafka)?, kafka.codecs.codec());
    let mut encoder = BatchEncoder::new(&codec);
    encoder.set_epochs((0..partitions).map(|partition| (partition, EPOCH)));
    let (mut notes, mut on_the_way) = (Notes::default(), JoinSet::new());
    let mut steps = vec![0_u64; seen.len()];
    while !stop.load(Ordering::Relaxed) {
        let has_seen = |(group, step): (usize, &u64)| (seen[group].load(Ordering::Relaxed) >= *step).then_some(group);
        let ready: Vec<usize> = steps.iter().enumerate().filter_map(has_seen).collect();
        if ready.is_empty() {
            tokio::time::sleep(LOOK_INTERVAL).await;
            continue;
        }
        for group in ready {
            steps[group] += 1;
            let place = Place { lat_e7: LAT_E7 + i32::try_from(steps[group])?, lon_e7: -740_000_000 };
            for viewer in (1 + group..=sockets).step_by(seen.len()) {
                let viewer = UserId(i64::try_from(viewer)?);
                let section = encoder.section(partition_of(viewer, partitions)).context("has an epoch")?;
                let moved = (UserId(9_000_000), place, TimestampMs::now());
                encoder.friend_moved(&mut notes, section, moved, ViewerDistance { viewer, distance_dm: 12_345 });
            }
        }
        ensure!(notes.bytes() < BATCH_BYTES_MAX, "fewer sockets, please");
        let value = Some(encoder.finish(&mut notes, TimestampMs::now()));
        encoder.forget();
        on_the_way.spawn(appender.append_one(Outgoing { topic: topic.clone(), value, ..Outgoing::default() }));
        while let Some(written) = on_the_way.try_join_next() {
            written?.map_err(|error| anyhow::anyhow!("{error}"))?;
        }
    }
    Ok(())
}

/// The bare server tells so many sockets this frame, as fast as it goes.
pub async fn bare_sends(sockets: usize, time: Duration, frame: &str) -> anyhow::Result<Figures> {
    let listen = format!("127.0.0.1:{}", free_port()?);
    let program = std::env::current_exe().context("this program")?;
    let apart = Apart::new()?;
    let count = sockets.to_string();
    let arguments = ["bare-server", "--listen", &listen, "--sockets", &count, "--frame", frame];
    let mut server = apart.alone(|| Nearby::start_program(&program, &arguments, &[]))?;
    server.wait_line("ready", START_LIMIT)?;
    let mut lines = Vec::new();
    for _ in 0..sockets {
        lines.push(Raw::upgrade(&format!("http://{listen}"), "none", STEP).await?);
    }
    Ok(read(lines, server.pid(), RUN_IN_BARE, time, Seen::from([])).await?.0)
}

/// Counts what arrives after the running in.
async fn read(
    lines: Vec<Raw>,
    server: u32,
    run_in: Duration,
    time: Duration,
    seen: Seen,
) -> anyhow::Result<(Figures, String)> {
    let lines = lines.into_iter().map(Raw::unwatched).collect::<anyhow::Result<Vec<_>>>()?;
    let (frames, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (counted, stopped) = (Arc::clone(&frames), Arc::clone(&stop));
    let reading = tokio::task::spawn_blocking(move || look_into(lines, &seen, &counted, &stopped));
    tokio::time::sleep(run_in).await;
    let (from, count, spent) = (Instant::now(), frames.load(Ordering::Relaxed), cpu::of_process(server)?);
    tokio::time::sleep(time).await;
    let count = (frames.load(Ordering::Relaxed) - count) as f64;
    let (took, spent) = (from.elapsed(), cpu::of_process(server)? - spent);
    stop.store(true, Ordering::Relaxed);
    let latest = reading.await??;
    ensure!(count > 0.0, "nothing arrived");
    let took_s = took.as_secs_f64();
    let figures = Figures { frames_per_s: count / took_s, cpu_us: spent / count * 1e6, cores: spent / took_s };
    Ok((figures, String::from_utf8(latest).context("a frame is text")?))
}

/// Counts the frames of all sockets until it is stopped, and returns the last one of the first socket.
fn look_into(mut lines: Vec<Unwatched>, seen: &Seen, frames: &AtomicU64, stop: &AtomicBool) -> anyhow::Result<Vec<u8>> {
    let (first, others) = lines.split_at_mut(seen.len().max(1));
    let (mut latest, mut others_at, mut chunk) = (Vec::new(), Instant::now(), vec![0; READ_BYTES]);
    while !stop.load(Ordering::Relaxed) {
        for (number, line) in first.iter_mut().enumerate() {
            line.texts(&mut chunk, |text| {
                frames.fetch_add(1, Ordering::Relaxed);
                if let Some(seen) = seen.get(number) {
                    seen.store(step_of(text).unwrap_or_default(), Ordering::Relaxed);
                }
                if number == 0 {
                    text.clone_into(&mut latest);
                }
            })?;
        }
        if others_at <= Instant::now() {
            others_at = Instant::now() + READ_INTERVAL;
            for line in &mut *others {
                line.texts(&mut chunk, |_| {
                    frames.fetch_add(1, Ordering::Relaxed);
                })?;
            }
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
    Ok(latest)
}

/// How far north the friend is in a frame.
fn step_of(frame: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(frame).ok()?;
    let (_, rest) = text.split_once("\"lat\":")?;
    let lat: f64 = rest.split(',').next()?.parse().ok()?;
    u64::try_from((lat * 1e7).round() as i64 - i64::from(LAT_E7)).ok()
}

/// The limit: a tokio-tungstenite server that wakes the task of each socket, which sends the same frame; when all have, again.
/// (One whose sockets send without being woken only fills the kernel's buffers, many frames a wake: nobody pushes so.)
pub async fn bare_server(settings: &BareSettings) -> anyhow::Result<()> {
    let listener = TcpListener::bind(&settings.listen).await?;
    println!("ready");
    let (round, sent, sockets) =
        (Arc::new(watch::Sender::new(0_u64)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (rounds, all_sent, counted) = (Arc::clone(&round), Arc::clone(&sent), Arc::clone(&sockets));
    let ((done, mut next), expected) = (tokio::sync::mpsc::unbounded_channel(), settings.sockets);
    tokio::spawn(async move {
        while counted.load(Ordering::SeqCst) < expected {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        loop {
            all_sent.store(0, Ordering::SeqCst);
            rounds.send_modify(|round| *round += 1);
            // A socket that comes or goes in between must not stop the others.
            let all = || all_sent.load(Ordering::SeqCst) >= counted.load(Ordering::SeqCst).max(1);
            while !all() && tokio::time::timeout(Duration::from_millis(100), next.recv()).await.is_ok() {}
        }
    });
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (frame, mut round, done) = (Message::text(settings.frame.clone()), round.subscribe(), done.clone());
        let (sent, sockets) = (Arc::clone(&sent), Arc::clone(&sockets));
        tokio::spawn(async move {
            let config = WebSocketConfig::default().read_buffer_size(4096).write_buffer_size(0);
            let Ok(mut socket) = tokio_tungstenite::accept_async_with_config(stream, Some(config)).await else {
                return;
            };
            sockets.fetch_add(1, Ordering::SeqCst);
            while round.changed().await.is_ok() && socket.send(frame.clone()).await.is_ok() {
                if sent.fetch_add(1, Ordering::SeqCst) + 1 >= sockets.load(Ordering::SeqCst) {
                    done.send(()).ok();
                }
            }
        });
    }
}
