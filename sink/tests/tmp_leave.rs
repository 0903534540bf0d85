//! temporary
use nearby_service::kafka::Kafka;
use nearby_service::membership::*;
use nearby_service::Stop;
use nearby_schemas::topics::Topics;
use std::time::*;
use rdkafka::mocking::MockCluster;
use rdkafka::admin::*;

fn cycle(kafka: &Kafka, topic: &str) {
    for round in 0..3 {
        let t = Instant::now();
        let stop = Stop::new();
        let (tx, rx) = std::sync::mpsc::channel();
        let m = Membership::join(kafka, "g", topic.to_owned(), stop.clone(), move |e| { drop(tx.send(e)); }).expect("join");
        let e = rx.recv().expect("event");
        println!("round {round}: {e:?} after {:?}", t.elapsed());
        std::thread::sleep(Duration::from_millis(500));
        let t = Instant::now();
        stop.cancel();
        println!("left {} after {:?}; then {:?}", m.left(Duration::from_secs(5)), t.elapsed(), rx.recv());
    }
}

#[test]
fn mock() {
    let cluster = MockCluster::new(1).expect("mock");
    cluster.create_topic("location-events", 4, 1).expect("topic");
    let kafka = Kafka { brokers: cluster.bootstrap_servers(), topics: Topics::default(), prefix: String::new(), embedded: true };
    cycle(&kafka, "location-events");
}

#[tokio::test(flavor = "multi_thread")]
async fn real() {
    let server = nearby_e2e::kafka::Kafka::start().expect("kafka");
    let kafka = Kafka { brokers: server.bootstrap(), topics: Topics::default(), prefix: String::new(), embedded: false };
    for t in kafka.topics.standing(4) { kafka.create_topic(&t).await.expect("topic"); }
    cycle(&kafka, "location-events");
}
