//! Kafka and Postgres for `nearby run` without --brokers and --database-url. Both forget everything at the end.

pub mod database;
pub mod database_keeper;
pub mod kafka;
