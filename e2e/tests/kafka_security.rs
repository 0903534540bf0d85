//! Real Kafka that wants TLS and a password: everything works through it, what is wrong is named, and no secret is told.

use anyhow::{Context, ensure};
use nearby_e2e::flow::{Deployment, two_friends_meet};
use nearby_e2e::kafka_security::{PASSWORD, SCRAM_PASSWORD, Security};
use nearby_e2e::nearby::{Nearby, token};
use nearby_e2e::process::Home;
use nearby_e2e::{http, kafka::Kafka, ports, postgres::Postgres};
use std::time::{Duration, Instant};

const SECRET: &str = "a secret for the tests alone";
const READY: Duration = Duration::from_secs(60);
/// A wrong password is told at once by the broker; the rest is a noisy machine.
const TOLD: Duration = Duration::from_secs(10);
const WRONG_PASSWORD: &str = "wr0ng-s3cret";

#[tokio::test(flavor = "multi_thread")]
async fn everything_works_through_tls_and_a_password() -> anyhow::Result<()> {
    let kafka = Kafka::start_secure()?;
    let postgres = Postgres::start()?;
    // The client's own words about its configuration are wanted too: they go to the log, where no secret may be.
    let properties = format!("{}debug=conf,security,broker\n", security(&kafka)?.client_properties());
    let brokers = kafka.bootstrap();
    let envs = [
        ("NEARBY_JWT_SECRET", SECRET),
        ("NEARBY_BROKERS", &brokers),
        ("NEARBY_KAFKA_PROPERTIES", &properties),
        ("NEARBY_LOG", "debug"),
    ];
    let mut processes = vec![
        ended_well(Nearby::start(&["topics", "create", "--partitions", "4"], &envs)?)?,
        ended_well(Nearby::start(&["topics", "check", "--partitions", "4"], &envs)?)?,
    ];
    let lists = Home::new("lists")?;
    let file = lists.path().join("friends.tsv");
    std::fs::write(&file, "1\t2\n").context("write friendships")?;
    processes.push(ended_well(Nearby::start(&["friends", "load", &file.display().to_string()], &envs)?)?);

    let start = |service: &str, more: &[&str]| {
        let listen = format!("127.0.0.1:{}", ports::free_port()?);
        Nearby::start(&[&[service, "--listen", &listen], more].concat(), &envs)
    };
    let database = postgres.url();
    let services = [
        start("processor", &[])?,
        start("pusher", &["--gateway-name", "east"])?,
        start("sink", &["--database-url", &database])?,
        start("ingest", &[])?,
    ];
    let metrics = tell(services.into(), &database, 100, &mut processes).await?;
    assert!(metrics.contains("nearby_reports_accepted_total"), "these are no metrics: {metrics}");
    // In one process, with the settings as flags.
    let flags: Vec<String> = properties.lines().map(|line| format!("--kafka-property={line}")).collect();
    let listen = format!("127.0.0.1:{}", ports::free_port()?);
    let args = ["run", "--listen", &listen, "--database-url", &database, "--topic-prefix", "one.", "--partitions", "4"];
    let args: Vec<&str> = args.into_iter().chain(flags.iter().map(String::as_str)).collect();
    let run = Nearby::start(&args, &[envs[0], envs[1], envs[3]])?;
    let metrics = metrics + &tell(vec![run], &database, 200, &mut processes).await?;
    assert_no_secret(&metrics);
    let logs: String = processes.iter().map(Nearby::stderr).collect();
    assert!(logs.contains("sasl.username"), "the client has told its configuration");
    processes.iter_mut().for_each(assert_tells_no_secret);
    Ok(())
}

#[test]
fn what_keeps_a_client_out_is_named_within_seconds() -> anyhow::Result<()> {
    let kafka = Kafka::start_secure()?;
    let stranger = Kafka::start_secure()?;
    let (own, other) = (security(&kafka)?, security(&stranger)?);
    let brokers = kafka.bootstrap();
    let certificate = own.certificate();
    let scram = own.properties_with(&certificate, "SCRAM-SHA-512", SCRAM_PASSWORD);
    ended_well(Nearby::start(&["topics", "create", "--brokers", &brokers], &[("NEARBY_KAFKA_PROPERTIES", &scram)])?)?;

    let wrong_plain = own.properties_with(&certificate, "PLAIN", WRONG_PASSWORD);
    let wrong_scram = own.properties_with(&certificate, "SCRAM-SHA-512", WRONG_PASSWORD);
    let untrusted = own.properties_with(&other.certificate(), "PLAIN", PASSWORD);
    let cases = [
        (&wrong_plain, "Authentication failed: Invalid username or password"),
        (&wrong_scram, "SASL authentication error: Authentication failed"),
        (&untrusted, "certificate verify failed"),
        (&String::new(), "may want TLS or a password"),
    ];
    for (properties, reason) in cases {
        for command in ["topics check", "processor", "ingest --jwt-secret a-secret-for-the-tests-alone"] {
            let args = arguments(&format!("{command} --brokers {brokers}"))?;
            let mut nearby = start(&args, &[("NEARBY_KAFKA_PROPERTIES", properties)])?;
            let begun = Instant::now();
            let status = nearby.finish(TOLD)?;
            let stderr = nearby.stderr();
            assert_eq!(status.code(), Some(1), "{stderr}");
            assert!(stderr.contains(reason), "after {:?}, without {reason:?}: {stderr}", begun.elapsed());
            assert!(stderr.contains(&format!("Kafka at {brokers} cannot be reached")), "{stderr}");
            assert_tells_no_secret(&mut nearby);
        }
    }
    Ok(())
}

/// Nobody listens there: what is wrong is seen before.
#[test]
fn a_property_that_cannot_be_is_a_bad_setting_and_its_value_is_not_repeated() -> anyhow::Result<()> {
    let cases = [
        ("sasl.pasword=wr0ng-s3cret", "librdkafka knows no property sasl.pasword"),
        ("group.id=wr0ng-s3cret", "group.id is set by nearby itself"),
        ("enable.idempotence=wr0ng-s3cret", "enable.idempotence is set by nearby itself"),
        ("metadata.broker.list=wr0ng-s3cret", "metadata.broker.list is set by nearby itself"),
        ("security.protocol=wr0ng-s3cret", "security.protocol: librdkafka does not take this value"),
        ("security.protocol=SSL\nwr0ng-s3cret", "line 2 is not KEY=VALUE"),
        ("security.protocol=SSL\nssl.ca.location=/nowhere/ca.pem\nssl.key.password=wr0ng-s3cret", "ssl.ca.location"),
    ];
    let folder = tempfile::tempdir()?;
    let friends = folder.path().join("friends");
    std::fs::write(&friends, "1\t2\n")?;
    let load = format!("friends load {}", friends.display());
    for (properties, reason) in cases {
        for command in ["topics check", "processor", "run", &load] {
            let flag = format!("--kafka-property={properties}");
            for as_flag in [true, false] {
                let mut args = arguments(&format!("{command} --brokers 127.0.0.1:1"))?;
                let mut nearby = if as_flag {
                    args.push(flag.clone());
                    start(&args, &[])?
                } else {
                    start(&args, &[("NEARBY_KAFKA_PROPERTIES", properties)])?
                };
                let status = nearby.finish(TOLD)?;
                assert_eq!(status.code(), Some(2), "{args:?}: {}", nearby.stderr());
                assert!(nearby.stderr().contains(reason), "{reason:?} is missing: {}", nearby.stderr());
                assert_tells_no_secret(&mut nearby);
            }
        }
    }
    Ok(())
}

#[test]
fn help_and_complaints_about_other_arguments_tell_no_secret() -> anyhow::Result<()> {
    let properties = format!("sasl.password={WRONG_PASSWORD}");
    let flag = format!("--kafka-property={properties}");
    for args in
        [&["processor", "--help"][..], &["topics", "create", "--no-such-flag"], &["topics", &flag], &["run", &flag]]
    {
        let mut nearby = Nearby::start(args, &[("NEARBY_KAFKA_PROPERTIES", &properties)])?;
        nearby.finish(TOLD)?;
        assert_tells_no_secret(&mut nearby);
    }
    Ok(())
}

fn security(kafka: &Kafka) -> anyhow::Result<&Security> {
    kafka.security().context("a secure broker")
}

/// Words of a command line; a service gets a port of its own, which it takes before it asks for Kafka.
fn arguments(command: &str) -> anyhow::Result<Vec<String>> {
    let mut args: Vec<String> = command.split(' ').map(str::to_owned).collect();
    if !["topics", "friends"].contains(&args[0].as_str()) {
        args.push(format!("--listen=127.0.0.1:{}", ports::free_port()?));
    }
    Ok(args)
}

fn start(args: &[String], envs: &[(&str, &str)]) -> anyhow::Result<Nearby> {
    Nearby::start(&args.iter().map(String::as_str).collect::<Vec<_>>(), envs)
}

fn ended_well(mut nearby: Nearby) -> anyhow::Result<Nearby> {
    let status = nearby.finish(READY)?;
    ensure!(status.success(), "{status}: {}", nearby.stderr());
    Ok(nearby)
}

/// Has the story told by services whose last is the ingest, ends them, and returns what their metrics said.
async fn tell(
    mut services: Vec<Nearby>,
    database: &str,
    first: i64,
    processes: &mut Vec<Nearby>,
) -> anyhow::Result<String> {
    let mut addresses = Vec::new();
    for service in &mut services {
        addresses.push(service.wait_line("ready ", READY)?);
    }
    let deployment = Deployment {
        ingest: addresses.last().context("there are services")?.clone(),
        database: database.to_owned(),
        token: Box::new(|user, scopes| token(SECRET, user, scopes)),
    };
    two_friends_meet(&deployment, first).await?;
    let mut metrics = String::new();
    for address in &addresses {
        for path in ["metrics", "readyz"] {
            metrics += &http::get(&format!("{address}/{path}")).await?.expect_status(200)?.text();
        }
    }
    for service in &mut services {
        let (status, _) = service.terminate()?;
        ensure!(status.success(), "{status}: {}", service.stderr());
    }
    processes.append(&mut services);
    Ok(metrics)
}

fn assert_tells_no_secret(nearby: &mut Nearby) {
    let stdout = nearby.stdout().join("\n");
    assert_no_secret(&stdout);
    assert_no_secret(&nearby.stderr());
}

fn assert_no_secret(text: &str) {
    for secret in ["s3cret", PASSWORD, SCRAM_PASSWORD, WRONG_PASSWORD] {
        let line = text.lines().find(|line| line.contains(secret));
        assert!(line.is_none(), "a secret is told: {}", line.unwrap_or_default());
    }
}
