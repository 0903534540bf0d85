//! How many records of the log are not in the database yet, looked at now and then on a thread of its own.

use nearby_service::reader::Reader;
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// Keeps `nearby_sink_lag_records` by topic and partition until it is dropped.
pub struct Lag {
    topic: String,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    ended: bool,
    reader: Option<Reader>,
    held: BTreeMap<i32, i64>,
}

impl Lag {
    /// Of one topic; nothing is looked at before [`follow`](Lag::follow).
    pub fn start(topic: String) -> Lag {
        let shared = Arc::<Shared>::default();
        let (name, of_thread) = (topic.clone(), Arc::clone(&shared));
        let thread = std::thread::Builder::new().name(format!("lag of {topic}"));
        if let Err(error) = thread.spawn(move || run(&name, &of_thread)) {
            tracing::warn!(%error, "nearby_sink_lag_records is not kept");
        }
        Lag { topic, shared }
    }

    /// These partitions are ours now, and their ends are asked from this reader.
    pub fn follow(&self, reader: Option<Reader>, held: Vec<(i32, i64)>) {
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut state.held, held.into_iter().collect());
        for partition in before.keys().filter(|partition| !state.held.contains_key(partition)) {
            // Another sink's now.
            gauge(&self.topic, *partition, 0);
        }
        state.reader = reader;
    }

    /// The database has come so far.
    pub fn written(&self, held: Vec<(i32, i64)>) {
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.held = held.into_iter().collect();
    }
}

impl Drop for Lag {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.ended = true;
        state.reader = None;
        self.shared.ended.notify_all();
    }
}

fn run(topic: &str, shared: &Shared) {
    loop {
        let state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = shared.ended.wait_timeout_while(state, LOOK_INTERVAL, |state| !state.ended);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if state.ended {
            return;
        }
        let (reader, held) = (state.reader.clone(), state.held.clone());
        drop(state);
        let Some(reader) = reader else { continue };
        for (partition, held) in held {
            if let Ok((first, end)) = reader.watermarks(partition) {
                gauge(topic, partition, end - held.max(first));
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn gauge(topic: &str, partition: i32, records: i64) {
    let labels = [("topic", topic.to_owned()), ("partition", partition.to_string())];
    metrics::gauge!("nearby_sink_lag_records", &labels).set(records.max(0) as f64);
}
