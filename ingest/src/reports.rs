//! Taking reports: who may, how fast, and the broker's word that they are in the log.
//!
//! Shared by every way in (HTTP, WebSocket frames, OwnTracks), so that one user has one rate in this process.

use crate::admission::Report;
use crate::rates::Rates;
use governor::clock::DefaultClock;
use nearby_schemas::codec::Codec;
use nearby_schemas::{LocationEvent, Source, TimestampMs, UserId};
use nearby_service::append::{Acknowledged, AppendError, Appender, Outgoing};
use nearby_service::auth::{Caller, SCOPE_INGEST_ANY};
use nearby_service::kafka::Kafka;
use nearby_service::metrics::hop;
use nearby_service::problem::Problem;
use nearby_service::settings::EdgeSettings;
use rdkafka::error::KafkaError;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

/// How often users who are not busy are forgotten; a bucket of the default size is full again after 20 s.
const FORGET_INTERVAL: Duration = Duration::from_secs(10);

/// Takes reports. Cheap to clone.
#[derive(Clone)]
pub struct Reports {
    appender: Appender,
    shared: Arc<Shared>,
}

struct Shared {
    topic: String,
    codec: Codec<LocationEvent>,
    rates: Rates,
}

/// Reports on their way: ends with their number when the broker has acknowledged all, or with 503 `kafka_unavailable`.
/// They are in Kafka's hands even if this is dropped.
#[must_use = "only the broker's word means that the reports are in the log"]
pub struct Submitted {
    acknowledged: Acknowledged,
    count: usize,
    received_at: TimestampMs,
}

impl Future for Submitted {
    type Output = Result<usize, Problem>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let count = self.count;
        Pin::new(&mut self.acknowledged).poll(context).map(|acknowledged| match acknowledged {
            Ok(()) => {
                metrics::counter!("nearby_reports_accepted_total").increment(count as u64);
                hop("ingest", TimestampMs::now().since_ms(self.received_at));
                Ok(count)
            }
            Err(error) => Err(counted(not_acknowledged(&error))),
        })
    }
}

impl Reports {
    /// Connects lazily.
    ///
    /// # Errors
    /// On a bad configuration, or if no thread can be started.
    pub fn new(kafka: &Kafka, edge: &EdgeSettings) -> Result<Reports, KafkaError> {
        let rates = Rates::new(edge, DefaultClock::default());
        let shared = Arc::new(Shared { topic: kafka.topics.location_events(), codec: kafka.codecs.codec(), rates });
        forget_idle_users(Arc::downgrade(&shared))?;
        Ok(Reports { appender: Appender::new(kafka)?, shared })
    }

    /// Hands all reports to Kafka, in order, before it returns; or none, if one of them may not be taken.
    ///
    /// # Errors
    /// 403 `missing_scope` for an item that names a user, 429 `rate_limited`.
    pub fn submit(
        &self,
        caller: &Caller,
        reports: Vec<Report>,
        source: Source,
        now: TimestampMs,
    ) -> Result<Submitted, Problem> {
        let own = reports.iter().filter(|report| report.user_id.is_none()).count();
        if own < reports.len() {
            caller.require(SCOPE_INGEST_ANY).map_err(|problem| counted(self.refused(caller, problem)))?;
        }
        // No report at all is a request all the same.
        let own = if reports.is_empty() { 1 } else { own };
        self.shared.rates.take(caller.user, own).map_err(counted)?;
        if let Some(reported_at) = reports.first().and_then(|report| report.reported_at) {
            hop("phone", now.since_ms(reported_at));
        }
        Ok(self.append(reports.into_iter().map(|report| report.event(caller.user, source, now)), now))
    }

    /// The caller stops sharing. Counts as one report.
    ///
    /// # Errors
    /// 429 `rate_limited`.
    pub fn withdraw(
        &self,
        caller: &Caller,
        reported_at: Option<TimestampMs>,
        source: Source,
        now: TimestampMs,
    ) -> Result<Submitted, Problem> {
        self.shared.rates.take(caller.user, 1).map_err(counted)?;
        let reported_at = reported_at.unwrap_or(now);
        let event = LocationEvent { user_id: caller.user, reported_at, received_at: now, position: None, source };
        Ok(self.append(std::iter::once(event), now))
    }

    /// Counts something that is no report, but costs as much: a poll, a message that means nothing here, nonsense.
    ///
    /// # Errors
    /// 429 `rate_limited`.
    pub fn count_other(&self, caller: &Caller) -> Result<(), Problem> {
        self.shared.rates.take(caller.user, 1).map_err(counted)
    }

    /// What the caller hears of a request that is refused for this reason: it counts as one report, whatever is in it, and from some
    /// number of them on the answer is 429 `rate_limited`.
    pub fn refused(&self, caller: &Caller, problem: Problem) -> Problem {
        self.shared.rates.take(caller.user, 1).err().unwrap_or(problem)
    }

    /// Waits for what is under way, at most `limit`. Blocks.
    ///
    /// # Errors
    /// When the limit has passed.
    pub fn flush(&self, limit: Duration) -> Result<(), KafkaError> {
        self.appender.flush(limit)
    }

    /// The producer behind it, for what else goes into the log.
    pub(crate) fn appender(&self) -> &Appender {
        &self.appender
    }

    fn append(&self, events: impl ExactSizeIterator<Item = LocationEvent>, received_at: TimestampMs) -> Submitted {
        let count = events.len();
        let shared = &self.shared;
        let records = events.map(|event| keyed(&shared.topic, event.user_id, shared.codec.encode(&event)));
        Submitted { acknowledged: self.appender.append(records), count, received_at }
    }
}

/// Counts a refusal by its code, whatever the number of reports in it, and hands it back. [`Reports`] counts its own; who
/// refuses a report before it gets here (a bad body or frame) counts that.
pub fn counted(problem: Problem) -> Problem {
    metrics::counter!("nearby_reports_refused_total", "code" => problem.code).increment(1);
    problem
}

/// A record under the user's key, which also chooses its partition.
pub(crate) fn keyed(topic: &str, user: UserId, value: Vec<u8>) -> Outgoing {
    let key = Some(user.to_string().into_bytes());
    Outgoing { topic: topic.to_owned(), partition: None, key, value: Some(value), headers: None }
}

/// 503. The cause is for our logs; clients can only try again.
pub(crate) fn not_acknowledged(error: &AppendError) -> Problem {
    // Not a warning: when Kafka is down there is one per request, and readiness and the counter tell it already.
    tracing::debug!(%error, "refused");
    Problem::unavailable("kafka_unavailable", "Kafka did not acknowledge in time: send it again")
}

/// A thread instead of a task, because walking many buckets would hold up a worker; it ends with the last [`Reports`].
fn forget_idle_users(shared: Weak<Shared>) -> Result<(), KafkaError> {
    let thread = std::thread::Builder::new().name("forget idle users".to_owned());
    let forget = move || {
        loop {
            std::thread::sleep(FORGET_INTERVAL);
            match shared.upgrade() {
                Some(shared) => shared.rates.forget_idle(),
                None => return,
            }
        }
    };
    thread.spawn(forget).map(drop).map_err(|_| KafkaError::Canceled)
}
