//! Clients that have lost every broker for good are given the addresses again that they began with.
//!
//! librdkafka (2.10 to 2.13 at least, <https://github.com/confluentinc/librdkafka/issues/5301>) forgets all brokers that are not in an answer
//! to a question for metadata, those it began with too. A broker that was away for longer than its session with the controller, frozen
//! or cut off, answers at first with no broker at all. A client that asks in this moment has nobody left to ask, ever, and says nothing of
//! it: a reader reads nothing more, a producer delivers nothing more. So each client that lives long is asked for metadata now and
//! then. One that gets none is given the addresses, which does nothing where it has them.
//!
//! The call has no safe way in rdkafka. It is safe because librdkafka copies the text, and the client is alive as long as its `Arc` is held.
#![expect(unsafe_code, reason = "rdkafka has no safe way to rd_kafka_brokers_add")]

use crate::kafka::Kafka;
use rdkafka::bindings;
use rdkafka::client::Client;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::producer::{Producer, ProducerContext, ThreadedProducer};
use std::ffi::CString;
use std::sync::{Arc, Mutex, Once, PoisonError, Weak};
use std::time::Duration;

/// How often every client is asked.
const ASK_INTERVAL: Duration = Duration::from_secs(5);
/// How long it may take to answer. The brokers may be away, and the other clients wait.
const ANSWER_LIMIT: Duration = Duration::from_millis(500);

/// Asks one client; false when it is gone.
type Ask = Box<dyn Fn() -> bool + Send>;

static ASKS: Mutex<Vec<Ask>> = Mutex::new(Vec::new());
static THREAD: Once = Once::new();

/// Looks after a consumer for as long as it is held elsewhere. `topic` is one of those that it reads.
pub(crate) fn hold_consumer<C: ConsumerContext + 'static>(kafka: &Kafka, topic: &str, consumer: &Arc<BaseConsumer<C>>) {
    hold(kafka, topic, consumer, |consumer| consumer.client());
}

/// Looks after a producer for as long as it is held elsewhere. `topic` is one that there is.
pub fn hold_producer<C: ProducerContext + 'static>(kafka: &Kafka, topic: &str, producer: &Arc<ThreadedProducer<C>>) {
    hold(kafka, topic, producer, |producer| producer.client());
}

fn hold<T: Send + Sync + 'static, C: rdkafka::ClientContext + 'static>(
    kafka: &Kafka,
    topic: &str,
    holder: &Arc<T>,
    client: fn(&T) -> &Client<C>,
) {
    // The embedded one is never away.
    let Some(brokers) = CString::new(kafka.brokers.as_str()).ok().filter(|_| !kafka.embedded) else { return };
    let (holder, topic): (Weak<T>, String) = (Arc::downgrade(holder), topic.to_owned());
    let ask = move || {
        let Some(holder) = holder.upgrade() else { return false };
        ask(client(&holder), &topic, &brokers);
        true
    };
    ASKS.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(ask));
    THREAD.call_once(|| {
        if let Err(error) = std::thread::Builder::new().name("lifelines".to_owned()).spawn(ask_all_for_ever) {
            tracing::error!(%error, "no thread looks after the Kafka clients");
        }
    });
}

fn ask_all_for_ever() {
    loop {
        std::thread::sleep(ASK_INTERVAL);
        // Not under the lock: who starts a client must not wait for those that have no answer.
        let mut asks = std::mem::take(&mut *ASKS.lock().unwrap_or_else(PoisonError::into_inner));
        asks.retain(|ask| ask());
        ASKS.lock().unwrap_or_else(PoisonError::into_inner).append(&mut asks);
    }
}

fn ask<C: rdkafka::ClientContext>(client: &Client<C>, topic: &str, brokers: &CString) {
    let because = match client.fetch_metadata(Some(topic), ANSWER_LIMIT) {
        Ok(metadata) if metadata.brokers().is_empty() => "no broker is in the metadata".to_owned(),
        Ok(_) => return,
        Err(error) => error.to_string(),
    };
    // SAFETY: see above.
    let known = unsafe { bindings::rd_kafka_brokers_add(client.native_ptr(), brokers.as_ptr()) };
    tracing::debug!(because, known, topic, "a Kafka client was given the brokers' addresses again");
}
