//! How long a processor that starts needs until it serves, with very many friend lists in the log.

use crate::cluster::{Cluster, keyed};
use crate::cpu;
use crate::workload::{World, user_id};
use nearby_e2e::nearby::Nearby;
use nearby_schemas::codec::Codec;
use nearby_schemas::{FriendList, TimestampMs};
use std::time::{Duration, Instant};

const CENTRES: u32 = 20;
const LIMIT: Duration = Duration::from_secs(600);

/// Settings of `nearby-bench restore`.
#[derive(clap::Args)]
pub struct Settings {
    /// Users, each with a list
    #[arg(long, default_value_t = 1_000_000)]
    users: u32,
    /// Friends of each
    #[arg(long, default_value_t = 400)]
    friends: u32,
    /// Of these users, the first so many are connected
    #[arg(long, default_value_t = 1_000_000)]
    connected: u32,
    /// Engine threads of the processor; by default as many as there are cores
    #[arg(long)]
    engine_threads: Option<usize>,
}

/// Runs and prints.
pub async fn run(settings: &Settings) -> anyhow::Result<()> {
    let cluster = Cluster::start(2).await?;
    let mut world = World::new(settings.users, CENTRES);
    let (topic, codec) = (cluster.kafka.topics.friend_lists(), Codec::<FriendList>::new());
    let users = world.users();
    let lists = (0..users).map(|user| {
        let friends = world.acquaintances(user, settings.friends).into_iter().map(user_id).collect();
        let list = FriendList { user_id: user_id(user), friends, changed_at: TimestampMs::now() };
        keyed(&topic, user_id(user), codec.encode(&list))
    });
    cluster.write(lists).await?;
    cluster.open_sessions(settings.connected.min(users)).await?;
    cluster.report_all(&world).await?;
    let port = nearby_e2e::ports::free_port()?;
    let listen = format!("127.0.0.1:{port}");
    let mut arguments = vec!["processor", "--brokers", &cluster.kafka.brokers, "--listen", &listen];
    let threads = settings.engine_threads.map(|threads| threads.to_string());
    if let Some(threads) = &threads {
        arguments.extend(["--engine-threads", threads]);
    }
    let began = Instant::now();
    let mut processor = Nearby::start(&arguments, &[])?;
    processor.wait_line("ready ", LIMIT)?;
    let took = began.elapsed();
    println!(
        "{users} lists of {} friends, {} viewers connected: serving after {:.1} s ({:.1} CPU-seconds, {:.2} GiB resident)",
        settings.friends,
        settings.connected,
        took.as_secs_f64(),
        cpu::of_process(processor.pid())?,
        cpu::resident_bytes(processor.pid())? as f64 / f64::from(1 << 30),
    );
    for (thread, seconds) in cpu::by_thread(processor.pid())?.iter().filter(|(_, seconds)| **seconds >= 0.1) {
        println!("  {seconds:6.1} CPU-seconds {thread}");
    }
    processor.terminate()?;
    Ok(())
}
