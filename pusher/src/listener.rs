//! Reads the gateway's topic into the hub. What cannot be read ends in new snapshots, not in a silent gap.

use crate::hub::Hub;
use nearby_schemas::GatewayId;
use nearby_schemas::batch::FriendMovedBatch;
use nearby_schemas::codec::{Codec, DecodeError};
use nearby_service::Stop;
use nearby_service::append::Appender;
use nearby_service::dead_letters::bury;
use nearby_service::kafka::Kafka;
use nearby_service::reader::{OutOfLog, Read, Reader, Start};
use rdkafka::Message;
use rdkafka::error::KafkaError;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Starts reading the topic, which is new, from its beginning.
pub fn start(
    kafka: &Kafka,
    gateway: &GatewayId,
    hub: Arc<Hub>,
    appender: Appender,
    stop: Stop,
) -> Result<(), KafkaError> {
    let codec = Codec::<FriendMovedBatch>::new();
    let dead_letters = kafka.topics.dead_letters();
    let runtime = tokio::runtime::Handle::current();
    let (overrun, mut overruns) = mpsc::channel(1);
    let reading_hub = Arc::clone(&hub);
    let reader = Reader::start(kafka, kafka.topics.friend_moved(gateway), OutOfLog::Report, stop, move |read| {
        // The hub writes session records, which needs the runtime.
        let _entered = runtime.enter();
        match read {
            Read::Record(record) => {
                let bytes = record.payload().ok_or(DecodeError::NotSingleObject);
                match bytes.and_then(|bytes| codec.decode(bytes)) {
                    Ok(batch) => reading_hub.apply(&batch),
                    Err(error) => {
                        // Not waited for: what matters to clients is the snapshot.
                        drop(bury(&appender, dead_letters.clone(), record, &error.to_string()));
                        reading_hub.ask_all();
                    }
                }
            }
            Read::OffsetOutOfLog(error) => {
                tracing::error!(%error, "fell behind the gateway topic's retention");
                if overrun.try_send(()).is_err() {
                    tracing::debug!("already about to resume at the end");
                }
            }
            Read::CaughtUp(_) | Read::Pause => {}
        }
        Ok(())
    })?;
    reader.add(&[(0, Start::Beginning)])?;
    tokio::spawn(async move {
        while overruns.recv().await.is_some() {
            let resumed = reader.clone();
            let resumed = tokio::task::spawn_blocking(move || resume_at_end(&resumed)).await;
            if let Ok(Err(error)) = resumed {
                tracing::error!(%error, "cannot resume reading the gateway's topic");
            }
            hub.ask_all();
        }
    });
    Ok(())
}

fn resume_at_end(reader: &Reader) -> Result<(), KafkaError> {
    let (_, end) = reader.watermarks(0)?;
    reader.remove(&[0])?;
    reader.add(&[(0, Start::At(end))])
}
