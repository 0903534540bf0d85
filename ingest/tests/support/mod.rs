//! A started ingest on a mock Kafka, and a small client.

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use nearby_ingest::IngestContext;
use nearby_schemas::codec::{Codec, Record};
use nearby_schemas::topics::Topics;
use nearby_schemas::{TimestampMs, UserId};
use nearby_service::auth::Tokens;
use nearby_service::health::Readiness;
use nearby_service::kafka::Kafka;
use nearby_service::settings::EdgeSettings;
use nearby_service::{Stop, http as edge_http};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::{Message, Offset, TopicPartitionList};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

pub const PARTITIONS: i32 = 4;
const SECRET: &[u8] = b"0123456789abcdef";

/// A running ingest; ends when dropped.
pub struct World {
    pub mock: MockCluster<'static, DefaultProducerContext>,
    pub kafka: Kafka,
    pub tokens: Tokens,
    pub readiness: Readiness,
    pub reports: nearby_ingest::reports::Reports,
    address: SocketAddr,
    stop: Stop,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// What came back.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: serde_json::Value,
}

impl Answer {
    /// Status, code and items of a problem after checking the shape that all problems have; otherwise status and body.
    pub fn text(&self) -> String {
        let status = self.status.as_u16();
        assert_eq!(self.headers[header::CACHE_CONTROL], "no-store");
        if self.status.is_success() {
            assert_eq!(self.headers[header::CONTENT_TYPE], "application/json");
            return format!("{status} {}", self.body);
        }
        assert_eq!(self.headers[header::CONTENT_TYPE], "application/problem+json");
        assert_eq!(self.body["status"], status);
        for field in ["type", "title", "detail"] {
            assert!(self.body[field].is_string(), "{field}");
        }
        let errors = self.body.get("errors").map(|errors| format!(" {errors}")).unwrap_or_default();
        let retry = self.headers.get(header::RETRY_AFTER).map(|after| after.to_str().expect("a number"));
        let retry = retry.map(|after| format!(" retry after {after}")).unwrap_or_default();
        format!("{status} {}{errors}{retry}", self.body["code"].as_str().expect("a code"))
    }
}

/// One record as it lies in the log.
pub struct Logged<R> {
    pub partition: i32,
    pub key: String,
    pub record: R,
}

impl World {
    pub async fn start(dev_tokens: bool) -> World {
        let mock = MockCluster::new(1).expect("mock cluster");
        let topics = Topics::new("t.");
        for topic in topics.standing(PARTITIONS) {
            mock.create_topic(&topic.name, topic.partitions, 1).expect("creates topic");
        }
        let brokers = mock.bootstrap_servers();
        let kafka = Kafka::embedded_at(brokers, "t.");
        let tokens = Tokens::from_secret(SECRET).expect("long enough");
        let number = |number| NonZeroU32::new(number).expect("not zero");
        // One a second, so that a slow machine does not refill a bucket between two requests.
        let edge = EdgeSettings { allowed_origins: Vec::new(), user_rate_per_s: number(1), user_burst: number(200) };
        let (readiness, stop) = (Readiness::default(), Stop::new());
        let context = IngestContext {
            kafka: kafka.clone(),
            tokens: tokens.clone(),
            edge,
            dev_tokens,
            gateway_lost_after_ms: 30_000,
            readiness: readiness.clone(),
            stop: stop.clone(),
        };
        let ingest = nearby_ingest::start(context).expect("starts");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(edge_http::serve(listener, ingest.routes, None, edge_http::Door::unguarded(1_000), stop.clone()));
        World { mock, kafka, tokens, readiness, reports: ingest.reports, address, stop }
    }

    /// An `Authorization` header's value for a user with these scopes.
    pub fn bearer(&self, user: i64, scopes: &str) -> String {
        let in_an_hour = TimestampMs::now().plus_ms(3_600_000);
        format!("Bearer {}", self.tokens.sign(UserId(user), scopes, in_an_hour).expect("has the secret"))
    }

    /// One request on a connection of its own. `call` is `METHOD /path`; no authorization if empty.
    pub async fn call(&self, call: &str, authorization: &str, body: impl Into<Bytes>) -> Answer {
        let authorization = [("authorization", authorization)];
        self.call_with(call, if authorization[0].1.is_empty() { &[] } else { &authorization }, body).await
    }

    /// With these headers, and a `Host` if there is none among them.
    pub async fn call_with(&self, call: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
        let (method, path) = call.split_once(' ').expect("METHOD /path");
        let mut request = Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header(header::HOST, "localhost");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).expect("a request");
        let socket = TcpStream::connect(self.address).await.expect("connects");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(socket)).await.expect("handshake");
        let connection = tokio::spawn(connection);
        let response = sender.send_request(request).await.expect("an answer");
        let (head, body) = response.into_parts();
        let body = body.collect().await.expect("a whole answer").to_bytes();
        let body = serde_json::from_slice(&body).expect("JSON");
        connection.abort();
        Answer { status: head.status, headers: head.headers, body }
    }

    /// Everything in a topic, partition by partition, in the order of the log.
    pub fn log<R: Record>(&self, topic: &str, partitions: i32) -> Vec<Logged<R>> {
        let codec = Codec::<R>::new();
        self.read(topic, partitions, |record| Logged {
            partition: record.partition(),
            key: String::from_utf8(record.key().expect("a key").to_vec()).expect("text"),
            record: codec.decode(record.payload().expect("a value")).expect("decodes"),
        })
    }

    /// Key and value of what is in the dead letters.
    pub fn dead_letters(&self) -> Vec<String> {
        let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
        let dead_letters = self.kafka.topics.dead_letters();
        self.read(&dead_letters, 1, |record| format!("{} {}", text(record.key()), text(record.payload())))
    }

    fn read<T>(&self, topic: &str, partitions: i32, seen: impl Fn(&BorrowedMessage<'_>) -> T) -> Vec<T> {
        let consumer: BaseConsumer = self.kafka.reader_config().create().expect("a consumer");
        let mut assignment = TopicPartitionList::new();
        for partition in 0..partitions {
            assignment.add_partition_offset(topic, partition, Offset::Beginning).expect("a partition");
        }
        consumer.assign(&assignment).expect("assigned");
        let (mut ended, mut read) = (0, Vec::new());
        while ended < partitions {
            match consumer.poll(Duration::from_secs(10)).expect("a record or the end within 10 s") {
                Ok(record) => read.push((record.partition(), seen(&record))),
                Err(KafkaError::PartitionEOF(_)) => ended += 1,
                Err(error) => panic!("{error}"),
            }
        }
        read.sort_by_key(|(partition, _)| *partition);
        read.into_iter().map(|(_, seen)| seen).collect()
    }
}
