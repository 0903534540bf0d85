//! What the end-to-end tests stand on: real servers that a test starts and ends, and the clients that look at them.
//!
//! - Servers, each its own process with its own folder: [`kafka::Kafka`], [`postgres::Postgres`],
//!   [`schema_registry::SchemaRegistry`], and the program under test, [`nearby::Nearby`].
//! - Clients: [`chromium::Page`] for what a person sees, [`ws::Socket`] for what a phone hears, [`http`] for requests,
//!   [`records`] for what is in the topics.
//!
//! Starting and ending servers blocks the caller; the clients are async. So an async test that does both is a
//! `#[tokio::test(flavor = "multi_thread")]`: its body may block, and its other tasks go on.
//!
//! Nothing outlives a test: a dropped guard kills its process and removes its folder, and when the test process itself
//! is killed with `kill -9`, a watcher beside each server does the same ([`process`]).
//!
//! Nothing is skipped: where a program or a jar is missing, the error names `make test`, which installs it.

pub mod chromium;
pub mod cluster;
pub mod crowd;
mod devtools;
pub mod flow;
pub mod haproxy;
pub mod herd;
pub mod history;
pub mod http;
pub mod kafka;
pub mod kafka_security;
pub mod log;
pub mod movement;
pub mod nearby;
pub mod ports;
pub mod posted;
pub mod postgres;
pub mod process;
pub mod programs;
pub mod raw;
pub mod records;
pub mod schema_registry;
pub mod small_disk;
mod tools;
pub mod world;
pub mod ws;
