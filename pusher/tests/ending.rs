//! How a gateway ends its sessions and connections. On a mock Kafka, and without a processor: what a view has, the test says.

use nearby_ingest::reports::Reports;
use nearby_pusher::{Pusher, PusherContext, PusherSettings, Rules};
use nearby_schemas::batch::{Event, FriendMovedBatch, Section, SeenFriend, ViewerSnapshot};
use nearby_schemas::codec::Codec;
use nearby_schemas::{Epoch, GatewayId, TimestampMs, UserId};
use nearby_service::Stop;
use nearby_service::append::{Appender, Outgoing};
use nearby_service::auth::Tokens;
use nearby_service::health::Readiness;
use nearby_service::http::{Door, serve};
use nearby_service::kafka::Kafka;
use nearby_service::settings::EdgeSettings;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

const PARTITIONS: i32 = 4;
const USERS: i64 = 20;
const STEP: Duration = Duration::from_secs(20);

fn number(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).expect("not zero")
}

fn settings() -> PusherSettings {
    let accept_rate_per_s = number(1_000);
    PusherSettings {
        gateway_name: "g".to_owned(),
        flush_ms: 0,
        slow_client_s: 2,
        accept_rate_per_s,
        connections_max: 1_000,
    }
}

/// The newest session record of each key: whether there is one, or a tombstone.
fn sessions(kafka: &Kafka) -> BTreeMap<String, bool> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &kafka.brokers).set("group.id", "test").set("enable.partition.eof", "true");
    let consumer: BaseConsumer = config.create().expect("a consumer");
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        list.add_partition_offset(&kafka.topics.sessions(), partition, Offset::Beginning).expect("an offset");
    }
    consumer.assign(&list).expect("assigned");
    let (mut newest, mut ended, deadline) = (BTreeMap::new(), 0, Instant::now() + STEP);
    while ended < PARTITIONS {
        assert!(Instant::now() < deadline, "the topic has no end");
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(record)) => {
                let key = String::from_utf8_lossy(record.key().expect("a key")).into_owned();
                newest.insert(key, record.payload().is_some());
            }
            Some(Err(_)) => ended += 1,
            None => {}
        }
    }
    newest
}

fn head(path: &str, token: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n")
}

async fn get(address: SocketAddr, path: &str, token: String) -> String {
    let mut socket = TcpStream::connect(address).await.expect("connects");
    socket.write_all(head(path, &token).as_bytes()).await.expect("sent");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.expect("an answer");
    answer
}

/// A gateway on a mock Kafka, listening.
struct World {
    _mock: MockCluster<'static, DefaultProducerContext>,
    kafka: Kafka,
    tokens: Tokens,
    gateway: GatewayId,
    pusher: Pusher,
    address: SocketAddr,
    stop: Stop,
}

impl World {
    /// With room for so many connections.
    async fn start(connections_max: usize) -> World {
        let mock = MockCluster::new(1).expect("mock cluster");
        let kafka = Kafka::embedded_at(mock.bootstrap_servers(), "t.");
        let gateway = GatewayId::new("g-1").expect("legal");
        let standing = kafka.topics.standing(PARTITIONS);
        for topic in standing.iter().chain([&kafka.topics.friend_moved_spec(&gateway)]) {
            mock.create_topic(&topic.name, topic.partitions, 1).expect("creates topic");
        }
        let edge = EdgeSettings { allowed_origins: Vec::new(), user_rate_per_s: number(10), user_burst: number(200) };
        let tokens = Tokens::from_secret(b"0123456789abcdef").expect("long enough");
        let context = PusherContext {
            kafka: kafka.clone(),
            gateway: gateway.clone(),
            public_url: "http://localhost".to_owned(),
            rules: Rules { radius_m: 8_000, inactive_after_s: 600 },
            reports: Reports::new(&kafka, &edge).expect("a producer"),
            tokens: tokens.clone(),
            watchable: false,
            readiness: Readiness::default(),
        };
        let pusher = Pusher::start(&settings(), context).await.expect("starts");
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_send_buffer_size(32 * 1024).expect("set");
        socket.bind("127.0.0.1:0".parse().expect("an address")).expect("binds");
        let listener = socket.listen(100).expect("listens");
        let (address, stop) = (listener.local_addr().expect("bound"), Stop::new());
        tokio::spawn(serve(listener, pusher.routes.clone(), None, Door::unguarded(connections_max), stop.clone()));
        World { _mock: mock, kafka, tokens, gateway, pusher, address, stop }
    }

    fn token(&self, user: i64, valid_ms: i64) -> String {
        self.tokens.sign(UserId(user), "", TimestampMs::now().plus_ms(valid_ms)).expect("signs")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_first_polls_that_still_wait_are_taken_back() {
    let world = World::start(1_000).await;
    let polls = (1..=USERS).map(|user| tokio::spawn(get(world.address, "/v1/nearby", world.token(user, 60_000))));
    let polls: Vec<_> = polls.collect();
    let deadline = Instant::now() + STEP;
    while sessions(&world.kafka).len() < usize::try_from(USERS).expect("few") {
        assert!(Instant::now() < deadline, "no sessions");
    }
    world.pusher.end().await;
    let left: Vec<_> = sessions(&world.kafka).into_iter().filter(|(_, is_open)| *is_open).collect();
    assert!(left.is_empty(), "sessions without an end: {left:?}");
    world.stop.cancel();
    for answer in polls {
        let answer = answer.await.expect("ends");
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("\"draining\""), "{answer}");
    }
}

/// The token expires after the client has stopped reading: the last frame waits for ever, its connection must not.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_frame_of_an_event_stream_does_not_keep_a_client_that_takes_nothing() {
    let world = World::start(1).await;
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4 * 1024).expect("set");
    let mut stalled = socket.connect(world.address).await.expect("connects");
    stalled.write_all(head("/v1/events", &world.token(1, 4_000)).as_bytes()).await.expect("sent");
    let mut welcome = [0; 1];
    stalled.read_exact(&mut welcome).await.expect("an answer");
    let updated_at = TimestampMs::now();
    let friend = |id| SeenFriend { friend: UserId(id), lat_e7: 1, lon_e7: 2, updated_at, distance_dm: 30 };
    let snapshot = ViewerSnapshot { viewer: UserId(1), place: None, friends: (2..5_000).map(friend).collect() };
    let events = vec![Event::ViewerSnapshot(snapshot)];
    let section = Section { partition: 0, epoch: Epoch(1), events };
    let batch = FriendMovedBatch { emitted_at: updated_at, sections: vec![section] };
    let value = Some(Codec::new().encode(&batch));
    let topic = world.kafka.topics.friend_moved(&world.gateway);
    let appender = Appender::new(&world.kafka).expect("a producer");
    appender.append_one(Outgoing { topic, value, ..Outgoing::default() }).await.expect("appended");

    // There is room for one connection.
    let other = timeout(STEP, get(world.address, "/v1/nothing", String::new())).await;
    let other = other.expect("the connection of the other one has ended");
    assert!(other.starts_with("HTTP/1.1 404 "), "{other}");
    world.stop.cancel();
}
