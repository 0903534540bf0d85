//! Where a replay goes: into a file of lines, or into topics of batches under another prefix.

use super::course::Told;
use super::lines::write_lines;
use crate::log::Log;
use anyhow::{Context, bail};
use flate2::Compression;
use flate2::write::GzEncoder;
use nearby_schemas::GatewayId;
use nearby_schemas::batch::FriendMovedBatch;
use nearby_schemas::codec::Codec;
use nearby_schemas::topics::{TopicSpec, Topics};
use nearby_service::append::{Acknowledged, Appender, Outgoing};
use nearby_service::kafka::Kafka;
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use tokio::runtime::Handle;

/// Bytes on their way to Kafka; far below what the producer's queue takes.
const UNACKNOWLEDGED_BYTES_MAX: usize = 64 << 20;
/// A shadow topic is for comparing, which people do within days.
const RETENTION_MS: &str = "604800000";
const BUFFER_BYTES: usize = 1 << 20;

/// Takes what was told.
pub enum Output {
    File(FileOutput),
    Topics(TopicOutput),
}

impl Output {
    /// Takes one batch.
    pub fn take(&mut self, told: Told) -> anyhow::Result<()> {
        match self {
            Output::File(file) => file.take(&told),
            Output::Topics(topics) => topics.take(told),
        }
    }

    /// Everything is written; where it is now.
    pub fn finish(self) -> anyhow::Result<String> {
        match self {
            Output::File(file) => file.finish(),
            Output::Topics(topics) => topics.finish(),
        }
    }
}

/// A file of lines. Until all is written it has another name, so that half of a replay is never taken for a whole one.
pub struct FileOutput {
    writer: Writer,
    codec: Codec<FriendMovedBatch>,
    text: String,
    path: PathBuf,
    part: PathBuf,
}

enum Writer {
    Plain(BufWriter<File>),
    Gzip(Box<GzEncoder<BufWriter<File>>>),
}

impl FileOutput {
    /// Compressed if its name ends with `.gz`.
    pub fn create(path: &Path) -> anyhow::Result<FileOutput> {
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let file = File::create(&part).map_err(|error| crate::BadSetting(format!("{}: {error}", part.display())))?;
        let file = BufWriter::with_capacity(BUFFER_BYTES, file);
        let writer = if path.extension().is_some_and(|extension| extension == "gz") {
            Writer::Gzip(Box::new(GzEncoder::new(file, Compression::fast())))
        } else {
            Writer::Plain(file)
        };
        Ok(FileOutput { writer, codec: Codec::new(), text: String::new(), path: path.to_owned(), part })
    }

    fn take(&mut self, (gateway, bytes): &Told) -> anyhow::Result<()> {
        let batch = self.codec.decode(bytes).context("a batch that was just encoded")?;
        self.text.clear();
        write_lines(gateway, &batch, &mut self.text);
        let written = match &mut self.writer {
            Writer::Plain(file) => file.write_all(self.text.as_bytes()),
            Writer::Gzip(file) => file.write_all(self.text.as_bytes()),
        };
        written.with_context(|| format!("writing {}", self.part.display()))
    }

    fn finish(self) -> anyhow::Result<String> {
        let mut file = match self.writer {
            Writer::Plain(file) => file,
            Writer::Gzip(file) => file.finish().context("the end of the compressed file")?,
        };
        file.flush().with_context(|| format!("writing {}", self.part.display()))?;
        std::fs::rename(&self.part, &self.path).with_context(|| format!("naming {}", self.path.display()))?;
        Ok(self.path.display().to_string())
    }
}

/// Topics of gateways under a prefix of their own.
pub struct TopicOutput {
    kafka: Kafka,
    topics: Topics,
    log: Log,
    runtime: Handle,
    appender: Appender,
    /// Name of the topic of each gateway that was told something.
    names: BTreeMap<GatewayId, String>,
    under_way: VecDeque<(usize, Acknowledged)>,
    under_way_bytes: usize,
}

impl TopicOutput {
    /// For topics whose names begin with `prefix`.
    pub fn new(kafka: &Kafka, prefix: &str, runtime: Handle) -> anyhow::Result<TopicOutput> {
        Ok(TopicOutput {
            topics: Topics::new(prefix),
            log: Log::open(kafka)?,
            appender: Appender::new(kafka)?,
            kafka: kafka.clone(),
            runtime,
            names: BTreeMap::new(),
            under_way: VecDeque::new(),
            under_way_bytes: 0,
        })
    }

    /// Makes the topic of a gateway, unless it is there and empty.
    pub fn open(&mut self, gateway: &GatewayId) -> anyhow::Result<()> {
        let name = self.topics.friend_moved(gateway);
        let settings = vec![("cleanup.policy", "delete".to_owned()), ("retention.ms", RETENTION_MS.to_owned())];
        let spec = TopicSpec { name: name.clone(), partitions: 1, settings };
        let is_new = self.runtime.block_on(self.kafka.create_topic(&spec))?;
        if !is_new && self.log.spans(&name)?.iter().any(|span| span.end > 0) {
            bail!("topic {name} holds records already: choose another --output-prefix, or delete it");
        }
        self.names.insert(gateway.clone(), name);
        Ok(())
    }

    fn take(&mut self, (gateway, bytes): Told) -> anyhow::Result<()> {
        if !self.names.contains_key(&gateway) {
            self.open(&gateway)?;
        }
        let size = bytes.len();
        let topic = self.names[&gateway].clone();
        let record = Outgoing { topic, partition: Some(0), value: Some(bytes), ..Outgoing::default() };
        self.under_way.push_back((size, self.appender.append_one(record)));
        self.under_way_bytes += size;
        while self.under_way_bytes > UNACKNOWLEDGED_BYTES_MAX {
            self.await_one()?;
        }
        Ok(())
    }

    fn await_one(&mut self) -> anyhow::Result<()> {
        if let Some((size, acknowledged)) = self.under_way.pop_front() {
            self.under_way_bytes -= size;
            self.runtime.block_on(acknowledged)?;
        }
        Ok(())
    }

    fn finish(mut self) -> anyhow::Result<String> {
        while !self.under_way.is_empty() {
            self.await_one()?;
        }
        let names: Vec<String> = self.names.into_values().collect();
        Ok(names.join(", "))
    }
}
