//! The harness itself, with every server that it starts. Needs what `e2e/setup.sh` installs.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nearby_e2e::chromium::Page;
use nearby_e2e::kafka::Kafka;
use nearby_e2e::postgres::Postgres;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

const SOON: Duration = Duration::from_secs(10);
const TOPIC: &str = "letters";

async fn write_one(bootstrap: &str, payload: &str) {
    let producer: FutureProducer =
        ClientConfig::new().set("bootstrap.servers", bootstrap).create().expect("a producer");
    let record = FutureRecord::to(TOPIC).key("7").payload(payload);
    producer.send(record, SOON).await.expect("the broker acknowledges");
}

fn read(bootstrap: &str, offset: i64) -> String {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "harness")
        .create()
        .expect("a consumer");
    let mut places = TopicPartitionList::new();
    places.add_partition_offset(TOPIC, 0, Offset::Offset(offset)).expect("a place in the log");
    consumer.assign(&places).expect("assign");
    let record = consumer.poll(SOON).expect("a record within the limit").expect("no error");
    String::from_utf8_lossy(record.payload().expect("a value")).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_keeps_records_over_a_restart_and_a_kill() {
    let mut kafka = Kafka::start().expect("Kafka starts");
    let bootstrap = kafka.bootstrap();
    let admin: AdminClient<_> =
        ClientConfig::new().set("bootstrap.servers", &bootstrap).create().expect("an admin client");
    let topic = NewTopic::new(TOPIC, 1, TopicReplication::Fixed(1));
    let made = admin.create_topics([&topic], &AdminOptions::new()).await.expect("the broker answers");
    assert_eq!(made, [Ok(TOPIC.to_owned())]);

    write_one(&bootstrap, "first").await;
    assert_eq!(read(&bootstrap, 0), "first");

    kafka.restart().expect("Kafka starts again");
    assert_eq!(kafka.bootstrap(), bootstrap);
    assert_eq!(read(&bootstrap, 0), "first");
    write_one(&bootstrap, "second").await;

    kafka.kill().expect("there is something to kill");
    kafka.restart().expect("Kafka recovers");
    assert_eq!(read(&bootstrap, 0), "first");
    assert_eq!(read(&bootstrap, 1), "second");
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_makes_no_topics_by_itself() {
    let kafka = Kafka::start().expect("Kafka starts");
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", kafka.bootstrap())
        .set("topic.metadata.propagation.max.ms", "1000")
        .create()
        .expect("a producer");
    let record = FutureRecord::to("unheard-of").key("7").payload("lost");
    let (error, _) = producer.send(record, SOON).await.expect_err("there is no such topic");
    assert_eq!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::UnknownTopicOrPartition));
}

#[test]
fn postgres_keeps_rows_over_a_restart_and_a_kill() {
    let mut postgres = Postgres::start().expect("Postgres starts");
    let url = postgres.url();
    assert_eq!(postgres.psql("select 1").expect("it answers"), "1");
    postgres.psql("create table letters (id int, letter text); insert into letters values (1, 'a')").expect("a table");

    postgres.restart().expect("Postgres starts again");
    assert_eq!(postgres.url(), url);
    assert_eq!(postgres.psql("select * from letters").expect("it answers"), "1|a");
    postgres.psql("insert into letters values (2, 'b')").expect("a row");

    // A busy connection would keep the old server's memory, and outlive it.
    let busy = "select count(*) from generate_series(1, 1000000000)";
    let mut client = Command::new("psql").args(["-c", busy, &url]).stderr(Stdio::null()).spawn().expect("psql starts");
    let running =
        "select count(*) from pg_stat_activity where query like '%generate_series%' and pid <> pg_backend_pid()";
    let start = Instant::now();
    while postgres.psql(running).expect("it answers") != "1" {
        assert!(start.elapsed() < SOON, "the busy query never began");
    }
    postgres.kill().expect("there is something to kill");
    postgres.restart().expect("Postgres recovers");
    assert!(!client.wait().expect("it is our child").success(), "its server is gone");
    assert_eq!(postgres.psql("select * from letters order by id").expect("it answers"), "1|a\n2|b");
}

#[test]
fn postgres_says_what_is_wrong_with_sql() {
    let postgres = Postgres::start().expect("Postgres starts");
    let error = postgres.psql("select 1; select nonsense").expect_err("there is no such column").to_string();
    assert!(error.contains(r#"column "nonsense" does not exist"#), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn chromium_runs_a_page_and_hears_its_complaints() {
    let html = "<title>t</title><body>hello<script>console.error('bad', 7); setTimeout(() => { throw Error('worse') })</script>";
    let page = Page::open(&format!("data:text/html,{html}")).await.expect("the page opens");
    assert_eq!(page.eval("document.body.firstChild.data").await.expect("a value"), "hello");
    assert_eq!(page.eval("[innerWidth, innerHeight]").await.expect("a value"), serde_json::json!([1280, 800]));
    let later = "new Promise(done => setTimeout(() => done({a: [1, null]}), 20))";
    assert_eq!(page.eval(later).await.expect("a value"), serde_json::json!({"a": [1, null]}));
    let error = page.eval("nothing.at.all").await.expect_err("it throws").to_string();
    assert!(error.contains("nothing is not defined"), "{error}");

    let start = Instant::now();
    while page.console_errors().len() < 2 {
        assert!(start.elapsed() < SOON, "{:?}", page.console_errors());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let errors = page.console_errors();
    assert_eq!(errors[0], "bad 7");
    assert!(errors[1].starts_with("Error: worse"), "{errors:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn chromium_waits_looks_and_tells_what_was_asked_of_others() {
    let page = Page::open("data:text/html,<body>before").await.expect("the page opens");
    page.eval("setTimeout(() => document.body.innerHTML = '<b id=x>after</b>', 100)").await.expect("a timer");
    page.wait_for("document.getElementById('x').textContent === 'after'", SOON).await.expect("it turns");
    let error = page.wait_for("document.title === 'never'", Duration::from_millis(120)).await.expect_err("it does not");
    let error = error.to_string();
    assert!(error.contains("document.title === 'never'") && error.contains("after"), "{error}");

    let picture = page.home().path().join("page.png");
    page.screenshot(&picture).await.expect("a picture");
    let png = std::fs::read(&picture).expect("a file");
    assert!(png.starts_with(b"\x89PNG\r\n\x1a\n"));
    assert_eq!(png[16..24], [0, 0, 5, 0, 0, 0, 3, 32], "1280 by 800");

    page.eval("fetch('http://127.0.0.1:1/x').catch(() => 0)").await.expect("it fails inside the page");
    assert!(page.requests().contains(&"http://127.0.0.1:1/x".to_owned()), "{:?}", page.requests());
    let error = page.goto("http://127.0.0.1:1/").await.expect_err("nobody listens there").to_string();
    assert!(error.contains("ERR_"), "{error}");
}

/// Every process that works in this folder or was started with its name.
fn processes_of(folder: &str) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").expect("Linux shows its processes");
    processes
        .filter_map(Result::ok)
        .filter(|entry| {
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let cwd = std::fs::read_link(entry.path().join("cwd")).unwrap_or_default();
            String::from_utf8_lossy(&command).contains(folder) || cwd.starts_with(folder)
        })
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

fn wait_until_gone(what: &str, folder: &str) {
    let start = Instant::now();
    loop {
        let left = processes_of(folder);
        if left.is_empty() && !Path::new(folder).exists() {
            return;
        }
        assert!(start.elapsed() < SOON, "{what} left behind {folder} or processes {left:?}");
        sleep(Duration::from_millis(20));
    }
}

#[test]
fn nothing_is_left_behind_by_a_test_killed_with_kill_9() {
    for what in ["kafka", "postgres", "chromium"] {
        let mut stand = Command::new(env!("CARGO_BIN_EXE_stand"))
            .arg(what)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the stand was built with this test");
        let mut line = String::new();
        BufReader::new(stand.stdout.take().expect("it is piped")).read_line(&mut line).expect("a line");
        let (_, folder) = line.trim_end().split_once('\t').expect("address, tab, folder");
        assert!(processes_of(folder).len() >= 2, "{what}: the server and its watcher");

        stand.kill().expect("SIGKILL");
        stand.wait().expect("it is our child");
        wait_until_gone(what, folder);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_behind_by_a_dropped_guard() {
    let kafka = Kafka::start().expect("Kafka starts");
    let postgres = Postgres::start().expect("Postgres starts");
    let page = Page::open("data:text/html,hello").await.expect("the page opens");
    let folders = [kafka.home(), postgres.home(), page.home()].map(|home| home.path().display().to_string());
    drop((kafka, postgres, page));
    for folder in folders {
        wait_until_gone("a guard", &folder);
    }
}
