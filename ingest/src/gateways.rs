//! Which gateway a client should connect to: the heartbeats of all of them, and the least loaded.
//!
//! [`Directory`] is pure; [`Gateways`] feeds it from the topic on a thread of its own. Time is the topic's append time, so
//! that no two machines' clocks are compared, advanced by local time while nothing is appended.

use nearby_schemas::codec::Codec;
use nearby_schemas::{GatewayHeartbeat, GatewayId, TimestampMs};
use nearby_service::Stop;
use nearby_service::append::Appender;
use nearby_service::consume::Record;
use nearby_service::dead_letters;
use nearby_service::health::Readiness;
use nearby_service::kafka::Kafka;
use nearby_service::reader::{OutOfLog, Read, Reader, Start};
use rdkafka::error::KafkaError;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// The part of readiness that waits until the topic has been read to its end.
const READINESS_PART: &str = "gateways-list";

/// Every gateway whose heartbeat is in the topic.
pub struct Directory {
    lost_after_ms: i64,
    gateways: BTreeMap<GatewayId, Gateway>,
    /// Append time of the newest heartbeat, and the local time at which it came.
    newest: Option<(TimestampMs, i64)>,
    caught_up: bool,
}

struct Gateway {
    heartbeat: GatewayHeartbeat,
    appended_at: TimestampMs,
    /// Clients sent there whom its heartbeat cannot know of yet.
    sent: i64,
}

impl Directory {
    /// Knows nobody. A gateway is lost when its heartbeat is older than `lost_after_ms`.
    pub fn new(lost_after_ms: i64) -> Directory {
        Directory { lost_after_ms, gateways: BTreeMap::new(), newest: None, caught_up: false }
    }

    /// A heartbeat, when it was appended, and the local (monotonic) time at which it came.
    pub fn heard(&mut self, heartbeat: GatewayHeartbeat, appended_at: TimestampMs, local_ms: i64) {
        if self.newest.is_none_or(|(newest, _)| appended_at >= newest) {
            self.newest = Some((appended_at, local_ms));
        }
        self.gateways.insert(heartbeat.gateway.clone(), Gateway { heartbeat, appended_at, sent: 0 });
    }

    /// A tombstone.
    pub fn removed(&mut self, gateway: &GatewayId) {
        self.gateways.remove(gateway);
    }

    /// All that was in the topic has been heard: from now on the choice is sound.
    pub fn caught_up(&mut self) {
        self.caught_up = true;
    }

    /// The gateway with the smallest share of its capacity in use, among equals the one with the smallest id; none before
    /// the directory has caught up, or when all are lost, draining or full. Remembers that a client was sent there.
    pub fn choose(&mut self, local_ms: i64) -> Option<&GatewayHeartbeat> {
        let (newest, came_ms) = self.newest.filter(|_| self.caught_up)?;
        let now = newest.plus_ms(local_ms.saturating_sub(came_ms).max(0));
        let lost_after_ms = self.lost_after_ms;
        let open = self.gateways.values_mut().filter(|gateway| {
            now.since_ms(gateway.appended_at) <= lost_after_ms && !gateway.heartbeat.draining && !gateway.is_full()
        });
        // `a / b < c / d` without a division. `min_by` keeps the first of equals, and the map is ordered.
        let chosen = open.min_by(|a, b| (a.load() * b.capacity()).cmp(&(b.load() * a.capacity())))?;
        chosen.sent += 1;
        Some(&chosen.heartbeat)
    }
}

impl Gateway {
    fn load(&self) -> i64 {
        i64::from(self.heartbeat.connections.max(0)) + self.sent
    }

    fn capacity(&self) -> i64 {
        i64::from(self.heartbeat.capacity)
    }

    /// By its own word alone: anybody may ask for a gateway and not come.
    fn is_full(&self) -> bool {
        i64::from(self.heartbeat.connections) >= self.capacity()
    }
}

/// The directory of this process, kept up to date.
#[derive(Clone)]
pub struct Gateways {
    directory: Arc<Mutex<Directory>>,
    started: Instant,
}

impl Gateways {
    /// Reads the topic from its beginning, and on until the stop.
    ///
    /// # Errors
    /// On a bad configuration.
    pub fn follow(
        kafka: &Kafka,
        lost_after_ms: i64,
        appender: Appender,
        readiness: Readiness,
        stop: Stop,
    ) -> Result<Gateways, KafkaError> {
        let directory = Arc::new(Mutex::new(Directory::new(lost_after_ms)));
        let gateways = Gateways { directory, started: Instant::now() };
        readiness.not_ready(READINESS_PART, "the topic has not been read to its end");
        let (codec, dead_letters, fed) = (kafka.codecs.codec(), kafka.topics.dead_letters(), gateways.clone());
        let handle = move |read: Read<'_>| {
            match read {
                Read::Record(record) => {
                    if let Err(reason) = fed.take(&codec, record) {
                        // Nobody waits for the acknowledgement: a lost heartbeat is followed by the next one.
                        drop(dead_letters::bury(&appender, dead_letters.clone(), record, &reason));
                    }
                }
                Read::CaughtUp(..) => {
                    fed.lock().caught_up();
                    readiness.ready(READINESS_PART);
                }
                Read::Pause | Read::OffsetOutOfLog(_) => {}
            }
            Ok(())
        };
        let reader = Reader::start(kafka, kafka.topics.gateways(), OutOfLog::GoOnAtBeginning, stop, handle)?;
        reader.add(&[(0, Start::Beginning)], 0);
        Ok(gateways)
    }

    /// Where to send a client now.
    pub fn choose(&self) -> Option<GatewayHeartbeat> {
        let local_ms = self.local_ms();
        self.lock().choose(local_ms).cloned()
    }

    fn take(&self, codec: &Codec<GatewayHeartbeat>, record: &Record<'_>) -> Result<(), String> {
        let Some(value) = record.value() else {
            let key = record.key().and_then(|key| std::str::from_utf8(key).ok()).unwrap_or_default();
            let gateway = GatewayId::new(key).map_err(|error| format!("the key of a tombstone: {error}"))?;
            self.lock().removed(&gateway);
            return Ok(());
        };
        let heartbeat = codec.decode(value).map_err(|error| error.to_string())?;
        let appended_at = record.appended_at().unwrap_or_else(TimestampMs::now);
        let local_ms = self.local_ms();
        self.lock().heard(heartbeat, appended_at, local_ms);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Directory> {
        self.directory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn local_ms(&self) -> i64 {
        i64::try_from(self.started.elapsed().as_millis()).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Script {
        directory: Directory,
        local_ms: i64,
    }

    fn script() -> Script {
        let mut directory = Directory::new(30_000);
        directory.caught_up();
        Script { directory, local_ms: 500 }
    }

    impl Script {
        /// A heartbeat `NAME CONNECTIONS/CAPACITY`, with ` draining` behind it.
        fn beat(mut self, text: &str, appended_at: i64) -> Script {
            let (text, draining) = text.strip_suffix(" draining").map_or((text, false), |text| (text, true));
            let (name, load) = text.split_once(' ').expect("name and load");
            let (connections, capacity) = load.split_once('/').expect("connections and capacity");
            let heartbeat = GatewayHeartbeat {
                gateway: GatewayId::new(name).expect("legal"),
                stream_url: format!("ws://{name}/v1/stream"),
                http_url: format!("http://{name}"),
                connections: connections.parse().expect("number"),
                capacity: capacity.parse().expect("number"),
                draining,
                started_at: TimestampMs(0),
            };
            self.directory.heard(heartbeat, TimestampMs(appended_at), self.local_ms);
            self
        }

        fn gone(mut self, name: &str) -> Script {
            self.directory.removed(&GatewayId::new(name).expect("legal"));
            self
        }

        fn wait_ms(mut self, ms: i64) -> Script {
            self.local_ms += ms;
            self
        }

        /// The next choices, up to the number of names expected.
        fn chooses(mut self, expected: &str) -> Script {
            let mut chosen = Vec::new();
            for _ in expected.split(' ') {
                let gateway = self.directory.choose(self.local_ms);
                chosen.push(gateway.map_or("none", |heartbeat| heartbeat.gateway.as_str()).to_owned());
            }
            assert_eq!(chosen.join(" "), expected);
            self
        }
    }

    #[test]
    fn the_least_loaded_relative_to_its_capacity() {
        script().beat("a 50/100", 0).beat("b 90/200", 0).beat("c 5/10", 0).chooses("b");
    }

    #[test]
    fn among_equals_the_smallest_id() {
        script().beat("b 1/10", 0).beat("a 1/10", 0).beat("c 10/100", 0).chooses("a");
    }

    #[test]
    fn clients_sent_count_until_the_next_heartbeat_but_fill_nobody() {
        let script = script().beat("a 0/2", 0).beat("b 0/4", 0).chooses("a b b a b b a");
        script.beat("a 1/2", 1).chooses("a a b");
    }

    #[test]
    fn draining_and_full_ones_are_left_out() {
        let script = script().beat("a 0/9 draining", 0).beat("b 9/9", 0).beat("c 0/0", 0).beat("d 0/-5", 0);
        script.chooses("none").beat("e 8/9", 0).chooses("e").beat("a 0/9", 1).chooses("a");
    }

    #[test]
    fn a_gateway_is_lost_behind_the_newest_append_time() {
        let script = script().beat("a 0/9", 1_000).beat("b 8/9", 31_000).chooses("a");
        script.beat("b 7/9", 31_001).chooses("b");
    }

    #[test]
    fn all_are_lost_when_nobody_appends() {
        let script = script().beat("a 0/9", 1_000).wait_ms(30_000).chooses("a").wait_ms(1).chooses("none");
        script.beat("b 8/9", 36_000).chooses("b");
    }

    #[test]
    fn a_late_old_heartbeat_does_not_set_time_back() {
        let script = script().beat("a 0/9", 0).beat("b 0/9", 40_000).wait_ms(20_000).beat("c 0/9", 20_000);
        script.chooses("b b").wait_ms(10_001).chooses("none");
    }

    #[test]
    fn tombstones_remove() {
        script().chooses("none").beat("a 0/9", 0).beat("b 5/9", 0).gone("a").gone("x").chooses("b");
    }

    #[test]
    fn nobody_is_chosen_before_all_is_known() {
        let mut script = Script { directory: Directory::new(30_000), local_ms: 0 }.beat("a 0/9", 0).chooses("none");
        script.directory.caught_up();
        script.chooses("a");
    }
}
