//! `nearby run` without a flag but the port: embedded Kafka and Postgres, and the whole story on them.

use nearby_e2e::flow::{Deployment, two_friends_meet};
use nearby_e2e::nearby::Nearby;
use nearby_e2e::{http, ports};
use std::time::Duration;

const SECRET: &str = "a secret for the tests alone";
/// The first start on a machine downloads Postgres.
const READY: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread")]
async fn two_friends_meet_on_embedded_kafka_and_postgres() -> anyhow::Result<()> {
    let listen = format!("127.0.0.1:{}", ports::free_port()?);
    let mut nearby = Nearby::start(&["run", "--listen", &listen], &[("NEARBY_JWT_SECRET", SECRET)])?;
    let addresses = nearby.wait_ready(READY)?;
    assert_eq!(addresses.http, format!("http://{listen}"));
    http::get(&format!("{}/readyz", addresses.http)).await?.expect_status(200)?;
    let deployment = Deployment {
        ingest: addresses.http,
        database: addresses.database,
        token: Box::new(|user, scopes| nearby_e2e::nearby::token(SECRET, user, scopes)),
    };
    two_friends_meet(&deployment, 100).await.map_err(|error| anyhow::anyhow!("{error:#}\n{}", nearby.stderr()))?;
    let (status, took) = nearby.terminate()?;
    assert!(status.success(), "{status}: {}", nearby.stderr());
    assert!(took < Duration::from_secs(10), "it took {took:?} to end");
    Ok(())
}
