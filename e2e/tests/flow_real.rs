//! The same story on real Kafka and real Postgres: by `nearby run`, and by the four services each alone.

use anyhow::{Context, ensure};
use nearby_e2e::flow::{Deployment, two_friends_meet};
use nearby_e2e::nearby::{Nearby, token};
use nearby_e2e::{kafka::Kafka, ports, postgres::Postgres};
use std::time::{Duration, Instant};

const SECRET: &str = "a secret for the tests alone";
const READY: Duration = Duration::from_secs(60);

/// One Kafka and one Postgres for all; topics and users of each deployment are its own.
#[tokio::test(flavor = "multi_thread")]
async fn two_friends_meet_on_real_kafka_and_postgres() -> anyhow::Result<()> {
    let kafka = Kafka::start()?;
    let postgres = Postgres::start()?;
    in_one_process(&kafka.bootstrap(), &postgres.url()).await?;
    // The second deployment's rows come from topics of other names: both histories live side by side.
    in_four_processes(&kafka, &postgres.url()).await
}

async fn in_one_process(brokers: &str, database: &str) -> anyhow::Result<()> {
    let listen = format!("127.0.0.1:{}", ports::free_port()?);
    let args = ["run", "--listen", &listen, "--brokers", brokers, "--database-url", database, "--topic-prefix", "one."];
    let mut nearby = Nearby::start(&args, &[("NEARBY_JWT_SECRET", SECRET)])?;
    let addresses = nearby.wait_ready(READY)?;
    assert_eq!((addresses.kafka.as_str(), addresses.database.as_str()), (brokers, database));
    tell(&addresses.http, database, 100, &[&nearby]).await?;
    ends_in_order(&mut nearby)
}

async fn in_four_processes(kafka: &Kafka, database: &str) -> anyhow::Result<()> {
    let brokers = kafka.bootstrap();
    let secret = [("NEARBY_JWT_SECRET", SECRET), ("NEARBY_TOPIC_PREFIX", "four."), ("NEARBY_BROKERS", &brokers)];
    let mut create = Nearby::start(&["topics", "create", "--partitions", "4"], &secret)?;
    assert!(create.finish(READY)?.success(), "{}", create.stderr());
    let mut check = Nearby::start(&["topics", "check", "--partitions", "4"], &secret)?;
    assert!(check.finish(READY)?.success(), "{}", check.stderr());

    let start = |service: &str, more: &[&str]| {
        let listen = format!("127.0.0.1:{}", ports::free_port()?);
        let args = [&[service, "--listen", &listen], more].concat();
        Nearby::start(&args, &secret)
    };
    let mut services = [
        start("processor", &[])?,
        start("pusher", &["--gateway-name", "east"])?,
        start("sink", &["--database-url", database])?,
        start("ingest", &[])?,
    ];
    let mut ingest = String::new();
    for service in &mut services {
        ingest = service.wait_line("ready ", READY)?;
    }
    tell(&ingest, database, 200, &services.iter().collect::<Vec<_>>()).await?;
    kafkas_own_tool_shows_the_sink(kafka).context("kafka-consumer-groups")?;
    services.iter_mut().try_for_each(ends_in_order)
}

/// Offsets count in Postgres; the group has them so that operators see the lag with what they have.
fn kafkas_own_tool_shows_the_sink(kafka: &Kafka) -> anyhow::Result<()> {
    let deadline = Instant::now() + READY;
    loop {
        let mut tool = kafka.tool("org.apache.kafka.tools.consumer.group.ConsumerGroupCommand");
        tool.args(["--bootstrap-server", &kafka.bootstrap(), "--describe", "--group", "four.nearby-sink"]);
        let output = tool.output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        // GROUP TOPIC PARTITION CURRENT-OFFSET LOG-END-OFFSET LAG …
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        let of_reports: Vec<&Vec<&str>> =
            rows.iter().filter(|row| row.get(1) == Some(&"four.location-events") && row.len() > 5).collect();
        let read: i64 = of_reports.iter().filter_map(|row| row[3].parse::<i64>().ok()).sum();
        if read > 0 && of_reports.iter().all(|row| row[3] == "-" || row[5] == "0") {
            return Ok(());
        }
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(Instant::now() < deadline, "it shows no sink that has read everything: {text}{errors}");
    }
}

async fn tell(ingest: &str, database: &str, first: i64, services: &[&Nearby]) -> anyhow::Result<()> {
    let deployment = Deployment {
        ingest: ingest.to_owned(),
        database: database.to_owned(),
        token: Box::new(|user, scopes| token(SECRET, user, scopes)),
    };
    two_friends_meet(&deployment, first).await.map_err(|error| {
        let logs: Vec<String> = services.iter().map(|service| service.stderr()).collect();
        anyhow::anyhow!("{error:#}\n{}", logs.join("\n"))
    })
}

fn ends_in_order(service: &mut Nearby) -> anyhow::Result<()> {
    let (status, took) = service.terminate()?;
    assert!(status.success(), "{status}: {}", service.stderr());
    assert!(took < Duration::from_secs(10), "it took {took:?} to end: {}", service.stderr());
    Ok(())
}
