//! The whole pipeline on a fake log and a fake clock: one seed, one run.
//!
//! What decides is the very code that runs in production: the engine and the decider of the processor with its ownership
//! protocol, the sessions and views of the gateway, the course of the sink, the admission and the directory of the ingest,
//! and the records' codecs. What is fake is what they talk to: [`broker`], [`group`], [`database`], clocks and sockets. The
//! shells of the services, which do what those decide with the real Kafka, Postgres and sockets, are written a second time
//! here, smaller.
//!
//! A seed draws the sizes of a world and what goes wrong in it ([`plan`]). First there are faults; then they end, and after
//! a while everything has to be right. [`judge`] says what is right, and shares no code with what it judges.

mod agenda;
mod around;
mod broker;
mod chaos;
mod client;
mod database;
mod dice;
mod gateway;
mod group;
mod ingest;
mod judge;
mod member;
mod plan;
mod processor;
mod sink;
mod trace;
mod world;

pub use world::{Ending, run};
