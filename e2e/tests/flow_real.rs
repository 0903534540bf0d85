//! The same story on real Kafka and real Postgres: by `nearby run`, and by the four services each alone.

use nearby_e2e::flow::{Deployment, two_friends_meet};
use nearby_e2e::nearby::{Nearby, token};
use nearby_e2e::{kafka::Kafka, ports, postgres::Postgres};
use std::time::Duration;

const SECRET: &str = "a secret for the tests alone";
const READY: Duration = Duration::from_secs(60);

/// One Kafka and one Postgres for all; topics and users of each deployment are its own.
#[tokio::test(flavor = "multi_thread")]
async fn two_friends_meet_on_real_kafka_and_postgres() -> anyhow::Result<()> {
    let kafka = Kafka::start()?;
    let postgres = Postgres::start()?;
    in_one_process(&kafka.bootstrap(), &postgres.url()).await?;
    // The second deployment's rows come from topics of other names: both histories live side by side.
    in_four_processes(&kafka.bootstrap(), &postgres.url()).await
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

async fn in_four_processes(brokers: &str, database: &str) -> anyhow::Result<()> {
    let secret = [("NEARBY_JWT_SECRET", SECRET), ("NEARBY_TOPIC_PREFIX", "four."), ("NEARBY_BROKERS", brokers)];
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
    services.iter_mut().try_for_each(ends_in_order)
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
