//! `nearby history erase` on real Kafka and Postgres.

use anyhow::{Context, ensure};
use nearby_e2e::kafka::Kafka;
use nearby_e2e::nearby::{Ended, Nearby, run, token};
use nearby_e2e::postgres::Postgres;
use nearby_e2e::ws::Socket;
use nearby_e2e::{http, ports, records};
use rdkafka::Message;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const SECRET: &str = "a secret for the tests alone";
const READY: Duration = Duration::from_secs(60);
const STEP: Duration = Duration::from_secs(20);

/// `nearby history` with words parted by spaces.
fn history(args: &str, envs: &[(&str, &str)]) -> anyhow::Result<Ended> {
    let args: Vec<&str> = ["history"].into_iter().chain(args.split(' ')).collect();
    run(&args, envs)
}

fn until<T>(what: &str, mut look: impl FnMut() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
    let deadline = Instant::now() + STEP;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "{what}: not within {STEP:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Everything in one process on real Kafka and Postgres, and one client.
struct System {
    kafka: Kafka,
    postgres: Postgres,
    nearby: Nearby,
    url: String,
}

impl System {
    fn start() -> anyhow::Result<System> {
        let (kafka, postgres) = (Kafka::start()?, Postgres::start()?);
        let nearby = System::nearby(&kafka, &postgres)?;
        let mut system = System { kafka, postgres, nearby, url: String::new() };
        system.url = system.nearby.wait_ready(READY)?.http;
        Ok(system)
    }

    fn nearby(kafka: &Kafka, postgres: &Postgres) -> anyhow::Result<Nearby> {
        let listen = format!("127.0.0.1:{}", ports::free_port()?);
        let (brokers, database) = (kafka.bootstrap(), postgres.url());
        let args = ["run", "--listen", &listen, "--brokers", &brokers, "--database-url", &database];
        Nearby::start(&args, &[("NEARBY_JWT_SECRET", SECRET)])
    }

    fn history(&self, args: &str) -> anyhow::Result<Ended> {
        let (brokers, database) = (self.kafka.bootstrap(), self.postgres.url());
        history(args, &[("NEARBY_BROKERS", &brokers), ("NEARBY_DATABASE_URL", &database)])
    }

    async fn report(&self, user: i64, reports: &Value) -> anyhow::Result<()> {
        http::post_json(&token(SECRET, user, "")?, &format!("{}/v1/locations", self.url), reports)
            .await?
            .expect_status(202)?;
        Ok(())
    }

    async fn befriend(&self, lists: &Value) -> anyhow::Result<()> {
        let url = format!("{}/v1/friend-lists", self.url);
        http::post_json(&token(SECRET, 0, "friends:write")?, &url, &json!({"lists": lists}))
            .await?
            .expect_status(202)?;
        Ok(())
    }

    async fn connect(&self, user: i64) -> anyhow::Result<Socket> {
        let gateway = http::get(&format!("{}/v1/gateway", self.url)).await?.expect_status(200)?.json()?;
        Socket::connect(gateway["url"].as_str().context("its url")?, &token(SECRET, user, "")?).await
    }

    fn sql(&self, sql: &str) -> anyhow::Result<String> {
        Ok(self.postgres.psql(sql)?.trim().to_owned())
    }

    fn rows_of(&self, user: i64) -> anyhow::Result<i64> {
        Ok(self.sql(&format!("select count(*) from nearby.location_history where user_id = {user}"))?.parse()?)
    }

    fn wait_rows(&self, user: i64, rows: i64) -> anyhow::Result<()> {
        until(&format!("{rows} rows of {user}"), || Ok((self.rows_of(user)? == rows).then_some(())))
    }
}

async fn left(socket: &mut Socket) -> anyhow::Result<Value> {
    loop {
        let update = socket.wait_frame("update", STEP).await?;
        if let Some(left) = update.get("left") {
            return Ok(left.clone());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn erase_removes_one_person_from_views_and_history_and_says_what_remains() -> anyhow::Result<()> {
    let system = System::start()?;
    // Anna and Ben see each other, Carl has Anna in his list.
    system.befriend(&json!({"1": ["2", "3"], "2": ["1"], "3": ["1"]})).await?;
    let (mut anna, mut ben) = (system.connect(1).await?, system.connect(2).await?);
    let now_ms: i64 = system.sql("select floor(extract(epoch from now()) * 1000)::bigint")?.parse()?;
    // Twelve of today and one of five days ago; one is sent twice.
    let mut reports: Vec<Value> =
        (0..12).map(|n| json!({"lat": 40.0, "lon": -73.0, "reported_at_ms": now_ms - 12_000 + n * 1_000})).collect();
    reports.push(reports[3].clone());
    reports.push(json!({"lat": 41.0, "lon": -73.0, "reported_at_ms": now_ms - 5 * 86_400_000}));
    system.report(2, &json!({"lat": 40.01, "lon": -73.0})).await?;
    system.report(1, &json!(reports)).await?;
    anna.wait_friend(2, STEP).await?;
    ben.wait_friend(1, STEP).await?;
    system.wait_rows(1, 14)?;
    system.wait_rows(2, 1)?;
    // A letter with her key.
    let brokers = system.kafka.bootstrap();
    records::write(&brokers, "dead-letters", "1", b"nonsense").await?;

    let tried = system.history("erase --user 1 --dry-run")?;
    ensure!(tried.code == Some(0), "{tried:?}");
    for said in [
        "14 rows (reported from ",
        "a list of 2 friends of user 1 would be removed\n",
        "1 session, on ",
        "friend lists of 2 others",
    ] {
        ensure!(tried.stdout.contains(said), "{said}: {tried:?}");
    }
    ensure!(records::read_all(&brokers, "location-events")?.len() == 15, "a dry run writes nothing");
    ensure!(system.rows_of(1)? == 14 && system.sql("select count(*) from nearby.friend_lists")? == "3");

    let ended = system.history("erase --user 1")?;
    ensure!(ended.code == Some(0), "{ended:?}");
    for said in [
        "14 rows and a list of 2 friends of user 1 removed from the history\n",
        "1 session, on ",
        "reports in location-events until its retention ends, between ",
        "retention.ms 7 days, and a segment that is up to segment.ms 7 days long goes as a whole",
        "the old friend list in friend-lists until it is compacted, not before ",
        "on which gateways the user was in sessions until it is compacted, not before ",
        "1 dead letters with this user's key in dead-letters",
        "friend lists of 2 others",
        "take the account's tokens away first",
    ] {
        ensure!(ended.stdout.contains(said), "{said}: {ended:?}");
    }
    ensure!(left(&mut ben).await? == json!([{"id": "1", "reason": "unshared"}]), "Ben is shown her no longer");
    ensure!(left(&mut anna).await?.as_array().is_some_and(|left| left.len() == 1), "and she is shown nobody");
    // Her withdrawal, too, is no row.
    ensure!(system.rows_of(1)? == 0 && system.rows_of(2)? == 1);
    ensure!(system.sql("select string_agg(user_id::text, ' ' order by user_id) from nearby.friend_lists")? == "2 3");
    let sessions = records::read_all(&brokers, "sessions")?;
    let last = sessions.iter().rfind(|record| record.key().is_some_and(|key| key.starts_with(b"1/")));
    ensure!(last.is_some_and(|record| record.payload().is_none()), "her session has ended");
    let first = last.and_then(|last| sessions.iter().find(|record| record.key() == last.key()));
    ensure!(first.map(Message::partition) == last.map(Message::partition), "on the partition on which it began");
    ensure!(system.rows_of(1)? == 0, "nothing comes after");
    again_and_without_a_sink(system).await
}

async fn again_and_without_a_sink(mut system: System) -> anyhow::Result<()> {
    // Nothing is there any more. What comes then is new data, and stays.
    let again = system.history("erase --user 1")?;
    ensure!(
        again.code == Some(0) && again.stdout.starts_with("0 rows and no friend list of user 1 removed"),
        "{again:?}"
    );
    ensure!(again.stdout.contains("no session ended"), "{again:?}");
    system.report(1, &json!({"lat": 40.0, "lon": -73.0})).await?;
    system.wait_rows(1, 1)?;

    // Without a sink it gives up, says so, and has removed nothing; the person is withdrawn all the same.
    system.nearby.terminate()?;
    let refused = system.history("erase --user 1 --sink-wait-s 2")?;
    ensure!(refused.code == Some(1), "{refused:?}");
    for said in ["the sink has not come further for 2 s", "Does a sink run?", "no row was removed"] {
        ensure!(refused.stderr.contains(said), "{said}: {refused:?}");
    }
    ensure!(system.rows_of(1)? == 1);
    // Rows of topics that were made again since, with offsets and partitions that the present ones do not have, are no new data.
    system.sql(
        "insert into nearby.location_history (user_id, reported_at, received_at, topic, kafka_partition, kafka_offset) \
         select 1, now(), now() - interval '1 day', 'location-events', p, 1000000 from unnest(array[0, 99]) as p",
    )?;
    // Nor what is in partitions that somebody made, whatever they are called and wherever they are.
    system.sql(
        "create table public.\"Weird \"\"Name\" partition of nearby.location_history for values from ('2001-01-01') to ('2001-02-01'); \
         create table nearby.parted partition of nearby.location_history for values from ('2002-01-01') to ('2002-02-01') partition by list (topic); \
         create table nearby.parted_one partition of nearby.parted default; \
         insert into nearby.location_history (user_id, reported_at, received_at, topic, kafka_partition, kafka_offset) \
         select 1, at, at, 't', 0, 0 from unnest(array['2001-01-07'::timestamptz, '2002-01-07']) as at",
    )?;
    // Run again with one, it removes what the first run left: the row, the withdrawal of that run, and those four.
    system.nearby = System::nearby(&system.kafka, &system.postgres)?;
    system.url = system.nearby.wait_ready(READY)?.http;
    let ended = system.history("erase --user 1")?;
    ensure!(ended.code == Some(0) && ended.stdout.starts_with("6 rows and no friend list"), "{ended:?}");
    ensure!(system.rows_of(1)? == 0);
    what_cannot_be_asked_is_said(&system)?;
    for (args, because) in [
        ("erase", "--user"),
        ("erase --user=-1", "--user"),
        ("erase --user 1 --sink-wait-s 0", "--sink-wait-s"),
        ("erase --user 1 --topic-prefix a/b", "--topic-prefix"),
    ] {
        let refused = system.history(args)?;
        ensure!(refused.code == Some(2) && refused.stderr.contains(because), "{args}: {refused:?}");
    }
    let refused = system.history("erase --user 1 --topic-prefix other.")?;
    ensure!(refused.code == Some(1) && refused.stderr.contains("topics create"), "{refused:?}");
    Ok(())
}

/// The report comes all the same, and says what it does not know.
fn what_cannot_be_asked_is_said(system: &System) -> anyhow::Result<()> {
    // Lists of others that cannot be read.
    system.sql(
        "alter table nearby.friend_lists rename to hidden; \
         create view nearby.friend_lists as select user_id, friends[1 / (user_id - user_id) : 1] as friends, changed_at from nearby.hidden",
    )?;
    let tried = system.history("erase --user 1 --dry-run")?;
    ensure!(tried.code == Some(0), "{tried:?}");
    for said in
        ["- reports in location-events", "others (how many is not known: ", "division by zero", "take the account's"]
    {
        ensure!(tried.stdout.contains(said), "{said}: {tried:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn erase_removes_all_up_to_the_call_while_the_person_reports_on() -> anyhow::Result<()> {
    let system = System::start()?;
    let token = token(SECRET, 0, "ingest:any")?;
    let url = format!("{}/v1/locations", system.url);
    let now_ms: i64 = system.sql("select floor(extract(epoch from now()) * 1000)::bigint")?.parse()?;
    let item = |user: i64, n: i64| json!({"lat": 40.0, "lon": -73.0, "user_id": user.to_string(), "reported_at_ms": now_ms - n});
    // More than one transaction's worth of hers, and others' on the same days.
    for chunk in 0..12 {
        let items: Vec<Value> = (0..1_000).map(|n| item(if n < 900 { 1 } else { 2 }, chunk * 1_000 + n)).collect();
        http::post_json(&token, &url, &json!(items)).await?.expect_status(202)?;
    }
    let (sent, mut received) = tokio::sync::mpsc::channel::<i64>(100_000);
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let reporting = tokio::spawn({
        let (token, url, stop) = (token.clone(), url.clone(), std::sync::Arc::clone(&stop));
        async move {
            let mut n = 0_i64;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                n += 1;
                let at = now_ms + 1 + n;
                let report = json!([{"lat": 40.0, "lon": -73.0, "user_id": "1", "reported_at_ms": at}]);
                http::post_json(&token, &url, &report).await?.expect_status(202)?;
                sent.send(at).await.context("nobody listens")?;
            }
            anyhow::Ok(())
        }
    });
    received.recv().await.context("a report")?;
    let ended = tokio::task::block_in_place(|| system.history("erase --user 1"))?;
    let after: i64 = {
        let mut last = 0;
        while let Ok(at) = received.try_recv() {
            last = at;
        }
        last
    };
    // Some more that come after the end for sure.
    for _ in 0..5 {
        received.recv().await.context("a report")?;
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    reporting.await??;
    ensure!(ended.code == Some(0), "{ended:?}");
    let removed: i64 = ended.stdout.split(" rows").next().unwrap_or_default().replace(',', "").parse()?;
    ensure!(removed >= 10_801, "{removed}: {ended:?}");
    // All of the log, but what was removed, is in the history; and of before the call nothing.
    let log = records::read_all(&system.kafka.bootstrap(), "location-events")?;
    let hers = log.iter().filter(|record| record.key() == Some(b"1")).count();
    let left = i64::try_from(hers)? - removed - 1;
    ensure!(left >= 5, "{left} came after");
    system.wait_rows(1, left)?;
    let before = format!(
        "select count(*) from nearby.location_history where user_id = 1 and reported_at <= to_timestamp({now_ms} / 1000.0)"
    );
    ensure!(system.sql(&before)? == "0" && after > now_ms);
    system.wait_rows(2, 1_200)?;
    Ok(())
}
