//! Costs, one by one, as a file holds them.

use serde::{Deserialize, Serialize};

/// What was measured, by `nearby-bench capacity`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Coefficients {
    /// On which machine, and when.
    pub measured: String,
    pub processor: Processor,
    pub broker: Broker,
    pub gateway: Gateway,
    pub sink: Sink,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Processor {
    /// CPU-seconds a second of one that reads a little all the time: it wakes up for it.
    pub awake_cpu_s: f64,
    /// CPU-seconds more to hear a million reports of people whom no viewer has as a friend.
    pub hear_cpu_s: f64,
    /// Of that, in the thread that reads: a process has one. The rest is each engine's.
    pub read_cpu_s: f64,
    /// CPU-seconds more for an engine that tells anybody of a report, a million times.
    /// In files from before it was measured it is in the costs of notices.
    #[serde(default)]
    pub told_cpu_s: f64,
    /// CPU-seconds for a million looks at a friend: whether it is near.
    pub test_cpu_s: f64,
    /// CPU-seconds for a million notices: friends who moved or left, and viewers' own places.
    pub tell_cpu_s: f64,
    /// CPU-seconds to close and send a million batches.
    pub batch_cpu_s: f64,
    /// Seconds between two batches of a gateway while there are few gateways, at the least: as fast as a broker takes them.
    pub round_s: f64,
    /// Seconds more for each gateway, if brokers had one core.
    pub round_gateway_core_s: f64,
    /// Tests and notices cost so many times more with a million viewers in a process than with 20,000: the cache.
    pub cache_factor: f64,
    /// Bytes of a process that holds nothing.
    pub base_bytes: f64,
    /// Bytes for each friend in the list of a user who is not connected.
    pub list_bytes: f64,
    /// Bytes more for each friend in the list of a connected user: the index and the bits.
    pub index_bytes: f64,
    /// Bytes for each user of whom an engine knows, by a report or because somebody's list has the id.
    pub slot_bytes: f64,
    /// CPU-seconds to read a million friends in lists at the start.
    pub restore_cpu_s: f64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Broker {
    /// CPU-seconds a second of one that takes a little in all the time.
    pub awake_cpu_s: f64,
    /// CPU-seconds more a second for each reader of a little all the time.
    pub reader_cpu_s: f64,
    /// CPU-seconds to take a million reports in, many in a request, one copy.
    pub report_cpu_s: f64,
    /// CPU-seconds to hand a million reports to one reader.
    pub read_cpu_s: f64,
    /// CPU-seconds to take a million notices in, one copy.
    pub notice_cpu_s: f64,
    /// CPU-seconds for a million requests to write, however little is in them, one copy. Each batch is one.
    pub request_cpu_s: f64,
    /// Bytes of a report in the log.
    pub report_bytes: f64,
    /// Bytes of a notice in the log.
    pub notice_bytes: f64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gateway {
    /// CPU-seconds for a million frames to sockets.
    pub frame_cpu_s: f64,
    /// CPU-seconds to take a million reports from sockets, and to tell that they are acknowledged.
    pub report_cpu_s: f64,
    /// Bytes of an idle socket.
    pub socket_bytes: f64,
    /// Bytes of a frame without friends, with TCP/IP around it.
    pub frame_bytes: f64,
    /// Bytes more for each friend in it.
    pub friend_bytes: f64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sink {
    /// CPU-seconds of the sink for a million rows.
    pub row_cpu_s: f64,
    /// CPU-seconds of Postgres for a million rows.
    pub postgres_row_cpu_s: f64,
    /// Bytes of a row with its indexes.
    pub row_bytes: f64,
}
