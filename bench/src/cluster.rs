//! A broker of the bench's own, and what is written to it before anything is measured: lists, sessions, heartbeats.

use crate::workload::{World, user_id};
use anyhow::Context;
use nearby_e2e::kafka;
use nearby_schemas::codec::Codec;
use nearby_schemas::partitioning::partition_of;
use nearby_schemas::topics::TopicSpec;
use nearby_schemas::{FriendList, GatewayHeartbeat, GatewayId, Session, TimestampMs, UserId};
use nearby_service::append::{Appender, Outgoing};
use nearby_service::kafka::{Kafka, REQUEST_TIMEOUT};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::metadata::MetadataTopic;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{AbortHandle, block_in_place};

pub const PARTITIONS: i32 = 16;
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);
/// Topics that are asked for at once.
const TOPICS_AT_ONCE: usize = 100;
/// Records of bulk data that are handed over at once.
const RECORDS_AT_ONCE: usize = 5_000;

pub struct Cluster {
    pub broker: Arc<kafka::Kafka>,
    pub kafka: Kafka,
    pub prefix: String,
    pub appender: Appender,
    pub gateways: Vec<GatewayId>,
    beating: AbortHandle,
}

impl Cluster {
    /// A broker of its own with our topics, and with so many gateways that are alive as long as it is.
    pub async fn start(gateways: usize) -> anyhow::Result<Cluster> {
        Cluster::on(start_broker().await?, "", gateways).await
    }

    /// The same on a broker that runs, in topics with a prefix that nobody else has.
    pub async fn on(broker: Arc<kafka::Kafka>, prefix: &str, gateways: usize) -> anyhow::Result<Cluster> {
        let gateways: Vec<GatewayId> = (0..gateways)
            .map(|number| GatewayId::new(format!("g{number}")))
            .collect::<Result<_, _>>()
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        let kafka = Kafka::at(broker.bootstrap(), prefix);
        kafka.create_standing_topics(PARTITIONS).await?;
        let specs: Vec<TopicSpec> = gateways.iter().map(|gateway| kafka.topics.friend_moved_spec(gateway)).collect();
        create(&kafka, &specs).await?;
        let (appender, heartbeats) = (Appender::new(&kafka)?, heartbeats(&kafka, &gateways));
        appender.append(heartbeats.clone().into_iter()).await.map_err(|error| anyhow::anyhow!("{error}"))?;
        let again = appender.clone();
        let beating = tokio::spawn(async move {
            loop {
                tokio::time::sleep(HEARTBEAT_INTERVAL).await;
                // A broker that has gone ends the bench elsewhere.
                drop(again.append(heartbeats.clone().into_iter()).await);
            }
        });
        let beating = beating.abort_handle();
        Ok(Cluster { broker, kafka, prefix: prefix.to_owned(), appender, gateways, beating })
    }

    /// The lists of the first users.
    pub async fn write_lists(&self, friends: &[Vec<u32>]) -> anyhow::Result<()> {
        let lists = Codec::<FriendList>::new();
        let topic = self.kafka.topics.friend_lists();
        let list = |(user, friends): (u32, &Vec<u32>)| {
            let friends = friends.iter().map(|friend| user_id(*friend)).collect();
            let record = FriendList { user_id: user_id(user), friends, changed_at: TimestampMs::now() };
            keyed(&topic, user_id(user), lists.encode(&record))
        };
        self.write((0..).zip(friends).map(list)).await
    }

    /// A session of each of the first users, spread over the gateways.
    pub async fn open_sessions(&self, users: u32) -> anyhow::Result<()> {
        let sessions = Codec::<Session>::new();
        let topic = self.kafka.topics.sessions();
        let session = |user: u32| {
            let gateway = &self.gateways[user as usize / 7 % self.gateways.len()];
            let record = Session { user_id: user_id(user), gateway: gateway.clone(), ask: 0 };
            Outgoing {
                topic: topic.clone(),
                partition: Some(partition_of(user_id(user), PARTITIONS)),
                key: Some(Session::key(user_id(user), gateway).into_bytes()),
                value: Some(sessions.encode(&record)),
                ..Outgoing::default()
            }
        };
        self.write((0..users).map(session)).await
    }

    /// Appends any number of records, some thousand at a time.
    pub async fn write(&self, records: impl Iterator<Item = Outgoing>) -> anyhow::Result<()> {
        let mut records = records.peekable();
        while records.peek().is_some() {
            let together: Vec<Outgoing> = records.by_ref().take(RECORDS_AT_ONCE).collect();
            self.appender.append(together.into_iter()).await.map_err(|error| anyhow::anyhow!("{error}"))?;
        }
        Ok(())
    }

    /// A report of everybody where they are.
    pub async fn report_all(&self, world: &World) -> anyhow::Result<()> {
        let topic = self.kafka.topics.location_events();
        let reports = (0..).zip(&world.places).map(|(user, place)| (user, *place));
        let codec = Codec::new();
        self.write(reports.map(|made| crate::reports::report(&topic, &codec, made))).await
    }
}

fn heartbeats(kafka: &Kafka, gateways: &[GatewayId]) -> Vec<Outgoing> {
    let codec = Codec::<GatewayHeartbeat>::new();
    let heartbeat = |gateway: &GatewayId| GatewayHeartbeat {
        gateway: gateway.clone(),
        stream_url: "ws://127.0.0.1:1/v1/stream".to_owned(),
        http_url: "http://127.0.0.1:1".to_owned(),
        connections: 0,
        capacity: 1,
        draining: false,
        started_at: TimestampMs::now(),
        accept_rate_per_s: 0,
    };
    let topic = kafka.topics.gateways();
    let record = |gateway: &GatewayId| Outgoing {
        topic: topic.clone(),
        key: Some(gateway.as_str().as_bytes().to_vec()),
        value: Some(codec.encode(&heartbeat(gateway))),
        ..Outgoing::default()
    };
    gateways.iter().map(record).collect()
}

/// A record that belongs to a user.
pub fn keyed(topic: &str, user: UserId, value: Vec<u8>) -> Outgoing {
    Outgoing {
        topic: topic.to_owned(),
        partition: Some(partition_of(user, PARTITIONS)),
        key: Some(user.to_string().into_bytes()),
        value: Some(value),
        ..Outgoing::default()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.beating.abort();
    }
}

/// A broker, to be shared.
pub async fn start_broker() -> anyhow::Result<Arc<kafka::Kafka>> {
    let broker = tokio::task::spawn_blocking(kafka::Kafka::start).await.context("starting Kafka")??;
    Ok(Arc::new(broker))
}

fn admin(kafka: &Kafka) -> anyhow::Result<AdminClient<DefaultClientContext>> {
    ClientConfig::new().set("bootstrap.servers", &kafka.brokers).create().context("an admin client")
}

/// Removes the topics whose names begin so.
pub async fn remove(kafka: &Kafka, prefix: &str) -> anyhow::Result<()> {
    let admin = admin(kafka)?;
    let metadata = block_in_place(|| admin.inner().fetch_metadata(None, REQUEST_TIMEOUT)).context("the topics")?;
    let names = metadata.topics().iter().map(MetadataTopic::name).filter(|name| name.starts_with(prefix));
    for names in names.collect::<Vec<_>>().chunks(TOPICS_AT_ONCE) {
        for removed in admin.delete_topics(names, &AdminOptions::new()).await.context("removing topics")? {
            removed.map_err(|(name, code)| anyhow::anyhow!("topic {name}: {code}"))?;
        }
    }
    Ok(())
}

/// Creates topics, each with one replica.
pub async fn create(kafka: &Kafka, specs: &[TopicSpec]) -> anyhow::Result<()> {
    let admin = admin(kafka)?;
    for specs in specs.chunks(TOPICS_AT_ONCE) {
        let topics: Vec<NewTopic<'_>> =
            specs.iter().map(|spec| NewTopic::new(&spec.name, spec.partitions, TopicReplication::Fixed(1))).collect();
        for created in admin.create_topics(&topics, &AdminOptions::new()).await.context("creating topics")? {
            created.map_err(|(name, code)| anyhow::anyhow!("topic {name}: {code}"))?;
        }
    }
    Ok(())
}
