//! Child processes: they end with the test, whatever ends it. Needs only `sh`.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nearby_e2e::nearby::{Addresses, Nearby};
use nearby_e2e::process::{Home, Launch, Tied};

const SOON: Duration = Duration::from_secs(10);

fn exists(pid: &str) -> bool {
    Path::new("/proc").join(pid).exists()
}

fn kill_9_of_the_test_ends(what: &str) {
    let mut stand = Command::new(env!("CARGO_BIN_EXE_stand"))
        .arg(what)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the stand was built with this test");
    let mut line = String::new();
    BufReader::new(stand.stdout.take().expect("it is piped")).read_line(&mut line).expect("the stand writes a line");
    let (pid, folder) = line.trim_end().split_once('\t').expect("pid, tab, folder");
    assert!(exists(pid) && Path::new(folder).is_dir(), "{line}");

    stand.kill().expect("SIGKILL");
    stand.wait().expect("it is our child");

    let start = Instant::now();
    while exists(pid) || Path::new(folder).exists() {
        assert!(start.elapsed() < SOON, "{what}: process {pid} or folder {folder} is still there");
        sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_tied_process_dies_with_a_killed_test() {
    kill_9_of_the_test_ends("sleep");
}

#[test]
fn the_program_under_test_dies_with_a_killed_test() {
    kill_9_of_the_test_ends("watched-sleep");
}

#[test]
fn a_dropped_guard_kills_and_cleans_up() {
    let home = Home::new("test").expect("a folder");
    let folder = home.path().to_owned();
    let mut command = Command::new("sleep");
    command.arg("600");
    let tied = Tied::start(Launch { command, user: None, home: &home, last_signal: "KILL" }).expect("sleep starts");
    let pid = tied.pid().to_string();
    assert!(exists(&pid));
    drop(tied);
    assert!(!exists(&pid));
    drop(home);
    assert!(!folder.exists());
}

#[test]
fn a_process_that_ends_early_shows_its_log() {
    let home = Home::new("test").expect("a folder");
    let mut command = Command::new("sh");
    command.args(["-c", "echo no such luck; exit 3"]);
    let mut tied = Tied::start(Launch { command, user: None, home: &home, last_signal: "KILL" }).expect("sh starts");
    assert_eq!(tied.finish(SOON).expect("it ends").code(), Some(3));
    let error = tied.check_running().expect_err("it has ended").to_string();
    assert!(error.contains("exit status: 3") && error.contains("no such luck"), "{error}");
}

/// A stand-in for `nearby`, written as a shell script.
fn program(home: &Home, script: &str) -> PathBuf {
    let file = home.path().join("nearby");
    std::fs::write(&file, format!("#!/bin/sh\n{script}\n")).expect("write the script");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).expect("make it executable");
    file
}

#[test]
fn nearby_tells_its_addresses_and_ends_on_sigterm() {
    let home = Home::new("test").expect("a folder");
    let script = r#"
        trap 'echo draining >&2; exit 0' TERM
        echo kafka 127.0.0.1:1,127.0.0.1:2; echo database postgresql://a:b@127.0.0.1:3/c; echo "ready $URL/$1"
        while :; do sleep 0.05; done"#;
    let program = program(&home, script);
    let mut nearby =
        Nearby::start_program(&program, &["run"], &[("URL", "http://127.0.0.1:4")]).expect("the script starts");
    let addresses = nearby.wait_ready(SOON).expect("it says ready");
    let expected = Addresses {
        kafka: "127.0.0.1:1,127.0.0.1:2".into(),
        database: "postgresql://a:b@127.0.0.1:3/c".into(),
        http: "http://127.0.0.1:4/run".into(),
    };
    assert_eq!(addresses, expected);
    assert!(nearby.is_running().expect("it can be looked after"));
    let (status, took) = nearby.terminate().expect("it ends");
    assert!(status.success() && took < SOON, "{status} {took:?}");
    assert_eq!(nearby.stderr(), "draining\n");
    assert_eq!(nearby.stdout().len(), 3);
}

#[test]
fn nearby_that_fails_at_start_says_why() {
    let home = Home::new("test").expect("a folder");
    let program = program(&home, "echo 'the port is taken' >&2; exit 2");
    let mut nearby = Nearby::start_program(&program, &["run"], &[]).expect("the script starts");
    let error = nearby.wait_ready(SOON).expect_err("it never says ready").to_string();
    assert!(error.contains("exit status: 2") && error.contains("the port is taken"), "{error}");
}

#[test]
fn nearby_that_says_nothing_is_given_up() {
    let home = Home::new("test").expect("a folder");
    let program = program(&home, "echo kafka 1; exec sleep 600");
    let mut nearby = Nearby::start_program(&program, &[], &[]).expect("the script starts");
    assert_eq!(nearby.wait_line("kafka ", SOON).expect("it says that much"), "1");
    let error = nearby.wait_line("ready ", Duration::from_millis(50)).expect_err("that is all").to_string();
    assert!(error.contains("no line `ready …`") && error.contains("kafka 1"), "{error}");
    nearby.kill9().expect("it is there to be killed");
    assert!(!nearby.is_running().expect("it can be looked after"));
}
