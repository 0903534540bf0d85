//! `nearby replay --diff A B`: where the lines of both come from.

use super::diff::{Comparison, compare};
use super::lines::write_lines;
use crate::BadSetting;
use crate::log::{Log, Merged};
use anyhow::Context;
use flate2::read::MultiGzDecoder;
use nearby_schemas::GatewayId;
use nearby_schemas::batch::FriendMovedBatch;
use nearby_service::kafka::Kafka;
use rdkafka::Message;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};

/// In front of what is the name of a topic and not of a file.
const TOPIC: &str = "topic:";
/// In the name of a gateway's topic, in front of the gateway's.
const OF_GATEWAY: &str = "friend-moved-";

type Lines = Box<dyn Iterator<Item = anyhow::Result<String>>>;

/// Compares two files, or topics of the given cluster. Blocks.
pub fn compare_outputs(a: &str, b: &str, kafka: Option<&Kafka>) -> anyhow::Result<Comparison> {
    compare(lines(a, kafka)?, lines(b, kafka)?)
}

fn lines(source: &str, kafka: Option<&Kafka>) -> anyhow::Result<Lines> {
    match source.strip_prefix(TOPIC) {
        Some(topic) => {
            let refused = || BadSetting(format!("{source}: set --brokers to where the topic is"));
            topic_lines(topic, kafka.ok_or_else(refused)?)
        }
        None => file_lines(source),
    }
}

fn file_lines(path: &str) -> anyhow::Result<Lines> {
    let mut file = File::open(path).map_err(|error| BadSetting(format!("{path}: {error}")))?;
    let mut magic = [0; 2];
    let gzip = file.read_exact(&mut magic).is_ok() && magic == [0x1f, 0x8b];
    file.rewind().with_context(|| format!("reading {path}"))?;
    let reader: Box<dyn Read> = if gzip { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    let path = path.to_owned();
    Ok(Box::new(BufReader::new(reader).lines().map(move |line| line.with_context(|| format!("reading {path}")))))
}

fn topic_lines(topic: &str, kafka: &Kafka) -> anyhow::Result<Lines> {
    let gateway = topic.split_once(OF_GATEWAY).and_then(|(_, gateway)| GatewayId::new(gateway).ok());
    let gateway = gateway.ok_or_else(|| BadSetting(format!("{topic}: not the topic of a gateway")))?;
    let (log, codec) = (Log::open(kafka)?, kafka.codecs.codec::<FriendMovedBatch>());
    let reading = log.read(topic, &log.spans(topic)?, move |record| {
        let (mut text, at) = (String::new(), record.offset());
        let batch = codec.decode(record.payload().unwrap_or_default());
        write_lines(&gateway, &batch.with_context(|| format!("the record at offset {at}"))?, &mut text);
        Ok(text.lines().map(str::to_owned).collect::<VecDeque<String>>())
    })?;
    let mut merged: Merged<'static, anyhow::Result<VecDeque<String>>> = Merged::new(vec![reading])?;
    let mut waiting = VecDeque::new();
    Ok(Box::new(std::iter::from_fn(move || {
        loop {
            if let Some(line) = waiting.pop_front() {
                return Some(Ok(line));
            }
            match merged.next().transpose()?.map_err(anyhow::Error::from).and_then(|record| record.what) {
                Ok(lines) => waiting = lines,
                Err(error) => return Some(Err(error)),
            }
        }
    })))
}
