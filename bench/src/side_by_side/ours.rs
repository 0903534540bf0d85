//! `nearby` itself: a processor on Kafka, and what its gateways do first: read their topics and decode the batches. (What a
//! gateway does then, sockets, is outside for every peer.)

use super::driver::{Pace, now_us};
use super::heard::Heard;
use super::kafka_driver::{Driver, read_topics};
use super::loads::Loads;
use super::measured::{Gauge, Peer};
use super::truth::Count;
use crate::cluster::Cluster;
use crate::pipeline::{Load, Served};
use crate::reports::report_at;
use crate::workload::{Move, World, gateway_id};
use anyhow::{Context, ensure};
use nearby_e2e::kafka;
use nearby_e2e::nearby::Nearby;
use nearby_e2e::ports::free_port;
use nearby_schemas::batch::{Event, FriendMovedBatch, Section};
use nearby_schemas::codec::Codec;
use nearby_schemas::{TimestampMs, UserId};
use nearby_service::kafka::Kafka;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

/// Shorter than the session timeout of the group, or the processor would come back to strange partitions.
const STANDS_STILL_MAX: Duration = Duration::from_secs(6);
const START_LIMIT: Duration = Duration::from_secs(60);
/// A position counts for 600 s by default; so long was the start at most.
const INACTIVE_AFTER: Duration = Duration::from_secs(480);

/// Settings of the hidden `gateway-topics`.
#[derive(clap::Args)]
pub struct GatewaySettings {
    #[arg(long)]
    brokers: String,
    #[arg(long)]
    topic_prefix: String,
    #[arg(long)]
    gateways: usize,
    /// Where the counters are
    #[arg(long)]
    listen: String,
}

/// The processes.
pub struct Ours {
    served: Served,
    gateways: Nearby,
    heard_at: String,
    driver: Driver,
    reports: usize,
    restored: Instant,
}

impl Ours {
    /// On a broker that nobody else uses meanwhile.
    pub async fn start(
        broker: Arc<kafka::Kafka>,
        loads: &Loads,
        gateways: usize,
        engine_threads: usize,
    ) -> anyhow::Result<Ours> {
        let load = Load { users: u32::try_from(loads.users())?, engine_threads, ..Load::W };
        let prefix = format!("{}-{gateways}.", loads.workload.name());
        let cluster = Cluster::on(broker, &prefix, gateways).await?;
        let served = Served::of(&load, World::at(loads.places.clone()), &loads.friends, cluster).await?;
        let restored = Instant::now();
        let (listen, gateways) = (format!("127.0.0.1:{}", free_port()?), gateways.to_string());
        let brokers = served.cluster.kafka.brokers.clone();
        let at = ["--brokers", &brokers, "--topic-prefix", &prefix, "--listen", &listen];
        let arguments = [&["gateway-topics", "--gateways", &gateways], &at[..]].concat();
        let mut gateways = Nearby::start_program(&std::env::current_exe()?, &arguments, &[])?;
        gateways.wait_line("ready", START_LIMIT)?;
        let reports = served.reports().await?;
        Ok(Ours { served, gateways, heard_at: listen, driver: Driver::new(&brokers)?, reports, restored })
    }

    /// Ends them, and removes their topics.
    pub async fn stop(self) -> anyhow::Result<()> {
        drop(self.gateways);
        self.served.end().await
    }
}

impl Peer for Ours {
    /// As fast as it goes, the processor stands still until much is there, so that the log is the queue and the driver's cores are
    /// not missed.
    fn drive(&mut self, moves: &[Move], pace: Pace) -> anyhow::Result<Duration> {
        let kafka = &self.served.cluster.kafka;
        let (topic, codec) = (kafka.topics.location_events(), Codec::new());
        let record = |made, due_us| {
            let time = if due_us > 0 { TimestampMs(due_us / 1_000) } else { TimestampMs::now() };
            report_at(&topic, &codec, made, time)
        };
        let (mut written, mut stood_still) = (0, Duration::ZERO);
        while written < moves.len() {
            let (began, stands_still) = (Instant::now(), matches!(pace, Pace::Fastest));
            if stands_still {
                self.served.signal("STOP")?;
            }
            let now_written = self.driver.drive(&moves[written..], pace, STANDS_STILL_MAX, record);
            if stands_still {
                self.served.signal("CONT")?;
                stood_still += began.elapsed();
            }
            written += now_written?;
            Handle::current().block_on(self.served.wait_for_reports(self.reports + written))?;
        }
        self.reports += moves.len();
        // Brute force knows no expiry.
        ensure!(self.restored.elapsed() < INACTIVE_AFTER, "the first places were too old before the runs ended");
        Ok(stood_still)
    }

    fn heard(&mut self) -> anyhow::Result<Heard> {
        Heard::at(&self.heard_at)
    }

    fn heard_at(&self) -> &str {
        &self.heard_at
    }

    fn gauges(&self) -> anyhow::Result<Vec<Gauge>> {
        let broker = self.served.cluster.broker.pid().context("the broker runs")?;
        let mut gauges = vec![Gauge::of("broker", broker)?, Gauge::of("gateways", self.gateways.pid())?];
        for processor in self.served.pids() {
            gauges.insert(0, Gauge::of("processor", processor)?);
        }
        Ok(gauges)
    }
}

/// Reads the topics of all gateways until it is killed.
pub fn gateways(settings: &GatewaySettings) -> anyhow::Result<()> {
    let topics = Kafka::at(settings.brokers.clone(), &settings.topic_prefix).topics;
    let topic = |gateway| (topics.friend_moved(&gateway_id(gateway)), 0);
    let partitions: Vec<(String, i32)> = (0..settings.gateways).map(topic).collect();
    let codec = Codec::<FriendMovedBatch>::new();
    read_topics(&settings.brokers, &partitions, &settings.listen, |payload, latencies_us| {
        let (batch, mut count) = (codec.decode(payload)?, Count::default());
        batch.sections.iter().for_each(|section| count += told_in(section, now_us(), latencies_us));
        Ok(count)
    })
}

/// What viewers are told, and how long after the report.
fn told_in(section: &Section, now_us: i64, latencies_us: &mut Vec<u64>) -> Count {
    let (mut count, mut reporter) = (Count::default(), None::<UserId>);
    for event in &section.events {
        match event {
            Event::FriendMoved(moved) => {
                moved.viewers.iter().for_each(|viewer| count.show(viewer.distance_dm));
                // A friend whom the viewer's own report brought near reported long ago.
                let brought_near = moved.viewers.len() == 1 && Some(moved.viewers[0].viewer) == reporter;
                if !brought_near {
                    latencies_us.push((now_us - moved.updated_at.0 * 1_000).max(0).cast_unsigned());
                }
            }
            Event::FriendLeft(left) => count.left += left.viewers.len() as u64,
            Event::ViewerMoved(moved) => reporter = Some(moved.viewer),
            // Told at the start; nobody asks for another.
            Event::ViewerSnapshot(_) => {}
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearby_schemas::Epoch;
    use nearby_schemas::batch::{FriendLeft, FriendMoved, LeftReason, ViewerDistance, ViewerMoved};

    #[test]
    fn every_viewer_of_an_event_counts() {
        let moved = |friend, viewers: &[i64]| {
            let viewer = |viewer: &i64| ViewerDistance { viewer: UserId(*viewer), distance_dm: 10 };
            let viewers = viewers.iter().map(viewer).collect();
            Event::FriendMoved(FriendMoved {
                friend: UserId(friend),
                lat_e7: 0,
                lon_e7: 0,
                updated_at: TimestampMs(5),
                viewers,
            })
        };
        let left = FriendLeft { friend: UserId(1), reason: LeftReason::Distance, viewers: vec![UserId(2), UserId(3)] };
        let viewer_moved = ViewerMoved { viewer: UserId(9), lat_e7: 0, lon_e7: 0 };
        let events = vec![
            moved(1, &[2, 3]),
            Event::FriendLeft(left),
            Event::ViewerMoved(viewer_moved),
            moved(4, &[9]),
            moved(5, &[2]),
        ];
        let mut latencies_us = Vec::new();
        let section = Section { partition: 0, epoch: Epoch(1), events };
        let count = told_in(&section, 8_000, &mut latencies_us);
        assert_eq!(count, Count { shown: 4, left: 2, distances_dm: 40 });
        assert_eq!(latencies_us, [3_000, 3_000], "the friend whom the viewer came near to did not report now");
    }
}
