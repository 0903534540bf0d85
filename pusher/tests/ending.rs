//! A gateway that ends takes back every session that it has opened. On a mock Kafka, and without a processor: nobody's view comes.

use nearby_ingest::reports::Reports;
use nearby_pusher::{Pusher, PusherContext, PusherSettings, Rules};
use nearby_schemas::{GatewayId, TimestampMs, UserId};
use nearby_service::Stop;
use nearby_service::auth::Tokens;
use nearby_service::health::Readiness;
use nearby_service::http::{Door, serve};
use nearby_service::kafka::Kafka;
use nearby_service::settings::EdgeSettings;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::mocking::MockCluster;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

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
        slow_client_s: 30,
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

async fn poll(address: SocketAddr, token: String) -> String {
    let mut socket = TcpStream::connect(address).await.expect("connects");
    let head = format!(
        "GET /v1/nearby HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.expect("an answer");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_first_polls_that_still_wait_are_taken_back() {
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
        gateway,
        public_url: "http://localhost".to_owned(),
        rules: Rules { radius_m: 8_000, inactive_after_s: 600 },
        reports: Reports::new(&kafka, &edge).expect("a producer"),
        tokens: tokens.clone(),
        watchable: false,
        readiness: Readiness::default(),
    };
    let pusher = Pusher::start(&settings(), context).await.expect("starts");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let (address, stop) = (listener.local_addr().expect("bound"), Stop::new());
    tokio::spawn(serve(listener, pusher.routes.clone(), None, Door::unguarded(1_000), stop.clone()));

    let token = |user| tokens.sign(UserId(user), "", TimestampMs::now().plus_ms(60_000)).expect("signs");
    let polls: Vec<_> = (1..=USERS).map(|user| tokio::spawn(poll(address, token(user)))).collect();
    let deadline = Instant::now() + STEP;
    while sessions(&kafka).len() < usize::try_from(USERS).expect("few") {
        assert!(Instant::now() < deadline, "no sessions");
    }
    pusher.end().await;
    let left: Vec<_> = sessions(&kafka).into_iter().filter(|(_, is_open)| *is_open).collect();
    assert!(left.is_empty(), "sessions without an end: {left:?}");
    stop.cancel();
    for answer in polls {
        let answer = answer.await.expect("ends");
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("\"draining\""), "{answer}");
    }
}
