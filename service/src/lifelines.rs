//! Clients that have lost every broker for good are given the addresses again that they began with.
//!
//! librdkafka (2.10 to 2.13 at least, <https://github.com/confluentinc/librdkafka/issues/5301>) forgets all brokers that are not in an answer
//! to a question for metadata, those it began with too. A broker that was away for longer than its session with the controller, frozen
//! or cut off, answers at first with no broker at all. A client that asks in this moment has nobody left to ask, ever, and says nothing of
//! it: a reader reads nothing more, a producer delivers nothing more. So each client that lives long is asked for metadata now and
//! then. One that gets none is given the addresses; one that knew brokers all the same drops what is too many at its next metadata.
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

/// A client without an answer is given the addresses at the first, second, fourth, … of these times and at every one that this divides:
/// librdkafka keeps each gift, and brokers may be away for days.
const GIFT_EVERY_MAX: u32 = 12;

/// Asks one client; false when it is gone.
type Ask = Box<dyn FnMut() -> bool + Send>;

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
    let mut asked_in_vain = 0;
    let ask = move || {
        let Some(holder) = holder.upgrade() else { return false };
        asked_in_vain = if knows_brokers(client(&holder), &topic) { 0 } else { asked_in_vain + 1 };
        if is_gift_due(asked_in_vain) {
            give(client(&holder), &topic, &brokers);
        }
        // The others have let go meanwhile: what waits for the client's threads, or tells its owner something, is not for this one.
        if let Some(last) = Arc::into_inner(holder) {
            drop(std::thread::Builder::new().name("retire client".to_owned()).spawn(move || drop(last)));
        }
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
        asks.retain_mut(|ask| ask());
        ASKS.lock().unwrap_or_else(PoisonError::into_inner).append(&mut asks);
    }
}

fn knows_brokers<C: rdkafka::ClientContext>(client: &Client<C>, topic: &str) -> bool {
    client.fetch_metadata(Some(topic), ANSWER_LIMIT).is_ok_and(|metadata| !metadata.brokers().is_empty())
}

fn is_gift_due(asked_in_vain: u32) -> bool {
    asked_in_vain > 0 && (asked_in_vain.is_power_of_two() || asked_in_vain.is_multiple_of(GIFT_EVERY_MAX))
}

fn give<C: rdkafka::ClientContext>(client: &Client<C>, topic: &str, brokers: &CString) {
    // SAFETY: see above.
    let known = unsafe { bindings::rd_kafka_brokers_add(client.native_ptr(), brokers.as_ptr()) };
    tracing::debug!(known, topic, "a Kafka client was given the brokers' addresses again");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gifts_become_rare_but_do_not_end() {
        let due: Vec<u32> = (0..=40).filter(|asked| is_gift_due(*asked)).collect();
        assert_eq!(due, [1, 2, 4, 8, 12, 16, 24, 32, 36]);
    }
}
