//! Reads the gateway's topic into the hub. What cannot be read ends in new snapshots, not in a silent gap.

use crate::hub::Hub;
use nearby_schemas::batch::FriendMovedBatch;
use nearby_schemas::codec::DecodeError;
use nearby_schemas::{GatewayId, TimestampMs};
use nearby_service::Stop;
use nearby_service::append::Appender;
use nearby_service::dead_letters::bury;
use nearby_service::kafka::Kafka;
use nearby_service::metrics::hop;
use nearby_service::reader::{OutOfLog, Read, Reader, Start};
use rdkafka::error::KafkaError;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// Everybody here asks for snapshots at most so often, whatever is wrong with the topic.
const ASK_INTERVAL: Duration = Duration::from_secs(1);

/// What the reader came upon and a task makes good for.
#[derive(Default)]
struct Trouble {
    unreadable: Notify,
    overrun: Notify,
}

/// Starts reading the topic, which is new, from its beginning.
pub fn start(
    kafka: &Kafka,
    gateway: &GatewayId,
    hub: Arc<Hub>,
    appender: Appender,
    stop: Stop,
) -> Result<(), KafkaError> {
    let codec = kafka.codecs.codec::<FriendMovedBatch>();
    let dead_letters = kafka.topics.dead_letters();
    let runtime = tokio::runtime::Handle::current();
    let trouble = Arc::new(Trouble::default());
    let found = Arc::clone(&trouble);
    let reading_hub = Arc::clone(&hub);
    let reader =
        Reader::start(kafka, kafka.topics.friend_moved(gateway), OutOfLog::Report, stop.clone(), move |read| {
            // The hub writes session records, which needs the runtime.
            let _entered = runtime.enter();
            match read {
                Read::Record(record) => {
                    let bytes = record.value().ok_or(DecodeError::NotSingleObject);
                    match bytes.and_then(|bytes| codec.decode(bytes)) {
                        Ok(batch) => {
                            hop("pusher", TimestampMs::now().since_ms(batch.emitted_at));
                            reading_hub.apply(&batch);
                        }
                        Err(error) => {
                            // Not waited for: what matters to clients is the snapshot.
                            drop(bury(&appender, dead_letters.clone(), record, &error.to_string()));
                            trouble.unreadable.notify_one();
                        }
                    }
                }
                Read::OffsetOutOfLog(error) => {
                    tracing::error!(%error, "fell behind the gateway topic's retention");
                    trouble.overrun.notify_one();
                }
                Read::CaughtUp(..) | Read::Pause => {}
            }
            Ok(())
        })?;
    reader.add(&[(0, Start::Beginning)], 0);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = found.unreadable.notified() => {}
                () = found.overrun.notified() => resume_at_end(&reader).await,
            }
            hub.ask_all();
            tokio::time::sleep(ASK_INTERVAL).await;
        }
    });
    Ok(())
}

/// Goes on at the end of the topic; tries until a broker answers.
async fn resume_at_end(reader: &Reader) {
    loop {
        let resumed = reader.clone();
        match tokio::task::spawn_blocking(move || skip_to_end(&resumed)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => tracing::warn!(%error, "resuming at the end of the gateway's topic"),
            Err(error) => tracing::warn!(%error, "resuming at the end of the gateway's topic"),
        }
        tokio::time::sleep(ASK_INTERVAL).await;
    }
}

fn skip_to_end(reader: &Reader) -> Result<(), KafkaError> {
    let (_, end) = reader.watermarks(0)?;
    reader.remove(&[0]);
    reader.add(&[(0, Start::At(end))], 0);
    Ok(())
}
