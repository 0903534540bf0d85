//! The judge of the history: every record of the log is in Postgres once, and says there what it says in the log.
//!
//! Shares no code with what it judges: the log is read with an ordinary client and taken apart by hand, the history with `psql`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

use crate::postgres;
use crate::tools;

const REQUEST_LIMIT: Duration = Duration::from_secs(30);
/// Nothing for so long is no log that can be read.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);
/// Avro's single-object marker and the fingerprint of the schema.
const HEADER_BYTES: usize = 10;
/// Differences that an error shows.
const SHOWN_MAX: usize = 5;
/// One line a row; whole numbers as such, other numbers as the shortest text that reads back to the same.
const ROWS: &str = "copy (select topic, kafka_partition, kafka_offset, user_id, (extract(epoch from reported_at) * 1000)::bigint, \
                    (extract(epoch from received_at) * 1000)::bigint, lat, lon, accuracy_m, speed_mps, heading_deg, cell is not null \
                    from nearby.location_history) to stdout with (format csv, null '')";

/// What a report says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Report {
    /// Who.
    pub user: i64,
    /// When, by the client.
    pub reported_at_ms: i64,
    /// When it was accepted.
    pub received_at_ms: i64,
    /// Where; none for a withdrawal.
    pub place: Option<Place>,
}

/// Where somebody is, as it is stored: 1e-7 degree.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Place {
    /// Latitude.
    pub lat_e7: i32,
    /// Longitude.
    pub lon_e7: i32,
    /// Radius of uncertainty.
    pub accuracy_m: Option<f32>,
    /// Speed.
    pub speed_mps: Option<f32>,
    /// Heading.
    pub heading_deg: Option<f32>,
}

/// The reports of a topic; by partition, in the order of the log, which has to begin at offset 0 and to be without holes.
#[derive(Debug)]
pub struct Logged {
    topic: String,
    partitions: Vec<Vec<Report>>,
}

impl Logged {
    /// Reads all that is there. Blocks.
    pub fn read(brokers: &str, topic: &str) -> anyhow::Result<Logged> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", brokers).set("group.id", "judge-of-the-history");
        config.set("enable.auto.commit", "false").set("enable.partition.eof", "true");
        let consumer: BaseConsumer = config.create().context("a client that reads")?;
        let metadata = consumer.fetch_metadata(Some(topic), REQUEST_LIMIT).context("ask for the topic")?;
        let count = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
        ensure!(count > 0, "{topic} is missing");
        let mut unread = TopicPartitionList::new();
        for partition in 0..count {
            unread.add_partition_offset(topic, i32::try_from(partition)?, Offset::Beginning)?;
        }
        consumer.assign(&unread)?;
        let mut partitions = vec![Vec::new(); count];
        let mut ended = 0;
        while ended < count {
            match consumer.poll(SILENCE_LIMIT) {
                Some(Ok(record)) => {
                    let reports: &mut Vec<Report> = &mut partitions[usize::try_from(record.partition())?];
                    ensure!(record.offset() == i64::try_from(reports.len())?, "{topic} has a hole at {record:?}");
                    reports.push(decode(record.payload().unwrap_or_default())?);
                }
                Some(Err(KafkaError::PartitionEOF(_))) => ended += 1,
                Some(Err(error)) => return Err(error).context("read the log"),
                None => bail!("{topic} says nothing for {SILENCE_LIMIT:?}"),
            }
        }
        Ok(Logged { topic: topic.to_owned(), partitions })
    }

    /// Every report.
    pub fn reports(&self) -> impl Iterator<Item = &Report> {
        self.partitions.iter().flatten()
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.partitions.iter().map(Vec::len).sum()
    }

    /// Holds that the history in the database has each of these once, as it is here, and nothing else of this topic; and that
    /// the sink's offsets say so. Blocks.
    pub fn is_history_of(&self, database: &str) -> anyhow::Result<()> {
        let mut seen: Vec<Vec<bool>> = self.partitions.iter().map(|reports| vec![false; reports.len()]).collect();
        let mut wrong = Vec::new();
        for_each_line(database, ROWS, |line| {
            let row = Row::parse(line).with_context(|| format!("a row of the history: {line}"))?;
            if row.topic != self.topic {
                return Ok(());
            }
            let at = (row.partition, row.offset);
            let logged = self.partitions.get(row.partition).and_then(|reports| reports.get(row.offset));
            match logged {
                None => wrong.push(format!("{at:?} is not in the log")),
                Some(logged) if *logged != row.report => {
                    wrong.push(format!("{at:?} is {:?}, not {logged:?}", row.report))
                }
                Some(_) if row.has_cell != row.report.place.is_some() => {
                    wrong.push(format!("{at:?}: cell or place, not both"))
                }
                Some(_) if std::mem::replace(&mut seen[row.partition][row.offset], true) => {
                    wrong.push(format!("{at:?} is there twice"));
                }
                Some(_) => {}
            }
            Ok(())
        })?;
        let missing = seen.iter().enumerate().flat_map(|(partition, seen)| {
            let missing = seen.iter().enumerate().filter(|(_, seen)| !**seen);
            missing.map(move |(offset, _)| format!("({partition}, {offset}) is missing"))
        });
        wrong.extend(missing);
        let (count, of) = (wrong.len(), self.count());
        wrong.truncate(SHOWN_MAX);
        ensure!(count == 0, "{count} faults in a history of {of} records: {}", wrong.join("; "));
        self.offsets_are_at_the_end(database)
    }

    fn offsets_are_at_the_end(&self, database: &str) -> anyhow::Result<()> {
        let (topic, mut held) = (&self.topic, BTreeMap::new());
        let sql = format!("select kafka_partition, next_offset from nearby.sink_offsets where topic = '{topic}'");
        for line in postgres::psql(database, &sql)?.lines() {
            let (partition, next) = line.split_once('|').context("two columns")?;
            held.insert(partition.parse::<usize>()?, next.parse::<usize>()?);
        }
        let ends = self.partitions.iter().enumerate().filter(|(_, reports)| !reports.is_empty());
        let ends: BTreeMap<usize, usize> = ends.map(|(partition, reports)| (partition, reports.len())).collect();
        ensure!(held == ends, "the sink's offsets are {held:?}, and the log ends at {ends:?}");
        Ok(())
    }
}

/// How many records a topic has had. Blocks.
pub fn log_end(brokers: &str, topic: &str) -> anyhow::Result<i64> {
    let mut config = ClientConfig::new();
    let consumer: BaseConsumer = config.set("bootstrap.servers", brokers).create().context("a client that asks")?;
    let metadata = consumer.fetch_metadata(Some(topic), REQUEST_LIMIT).context("ask for the topic")?;
    let partitions = metadata.topics().first().context("the topic's metadata")?.partitions();
    let end = |partition: &rdkafka::metadata::MetadataPartition| {
        consumer.fetch_watermarks(topic, partition.id(), REQUEST_LIMIT).map(|(_, end)| end)
    };
    let ends: Result<Vec<i64>, KafkaError> = partitions.iter().map(end).collect();
    Ok(ends?.iter().sum())
}

struct Row<'a> {
    topic: &'a str,
    partition: usize,
    offset: usize,
    report: Report,
    has_cell: bool,
}

impl Row<'_> {
    fn parse(line: &str) -> anyhow::Result<Row<'_>> {
        let fields: Vec<&str> = line.split(',').collect();
        let &[topic, partition, offset, user, reported, received, lat, lon, accuracy, speed, heading, has_cell] =
            &fields[..]
        else {
            bail!("it has {} columns", fields.len());
        };
        let place = match (lat, lon) {
            ("", "") => None,
            _ => {
                let (lat_e7, lon_e7) = (e7(lat)?, e7(lon)?);
                let (accuracy_m, speed_mps, heading_deg) = (nullable(accuracy)?, nullable(speed)?, nullable(heading)?);
                Some(Place { lat_e7, lon_e7, accuracy_m, speed_mps, heading_deg })
            }
        };
        let (reported_at_ms, received_at_ms) = (reported.parse()?, received.parse()?);
        let report = Report { user: user.parse()?, reported_at_ms, received_at_ms, place };
        Ok(Row { topic, partition: partition.parse()?, offset: offset.parse()?, report, has_cell: has_cell == "t" })
    }
}

fn e7(degrees: &str) -> anyhow::Result<i32> {
    let degrees: f64 = degrees.parse()?;
    let e7 = (degrees * 1e7).round() as i32;
    ensure!(f64::from(e7) / 1e7 == degrees, "{degrees} has more than seven decimals");
    Ok(e7)
}

fn nullable(text: &str) -> anyhow::Result<Option<f32>> {
    Ok(if text.is_empty() { None } else { Some(text.parse()?) })
}

fn for_each_line(database: &str, sql: &str, mut each: impl FnMut(&str) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut command = Command::new(tools::program(&["psql"], &tools::postgres_folders())?);
    command.args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-c", sql, database]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().context("start psql")?;
    let mut lines = BufReader::new(child.stdout.take().context("psql's standard output")?);
    let mut line = String::new();
    let read = loop {
        line.clear();
        match lines.read_line(&mut line) {
            Ok(0) => break Ok(()),
            Ok(_) => {
                if let Err(error) = each(line.trim_end()) {
                    break Err(error);
                }
            }
            Err(error) => break Err(error.into()),
        }
    };
    // With its output closed, psql ends.
    drop(lines);
    let status = child.wait().context("wait for psql")?;
    read?;
    ensure!(status.success(), "psql failed ({status}): {sql}");
    Ok(())
}

fn decode(record: &[u8]) -> anyhow::Result<Report> {
    ensure!(record.len() > HEADER_BYTES, "no report: {record:02x?}");
    let mut rest = &record[HEADER_BYTES..];
    let (user, reported_at_ms, received_at_ms) = (long(&mut rest)?, long(&mut rest)?, long(&mut rest)?);
    let place = match long(&mut rest)? {
        0 => None,
        _ => Some(Place {
            lat_e7: long(&mut rest)?.try_into()?,
            lon_e7: long(&mut rest)?.try_into()?,
            accuracy_m: nullable_float(&mut rest)?,
            speed_mps: nullable_float(&mut rest)?,
            heading_deg: nullable_float(&mut rest)?,
        }),
    };
    Ok(Report { user, reported_at_ms, received_at_ms, place })
}

fn long(rest: &mut &[u8]) -> anyhow::Result<i64> {
    let mut zigzag = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first().context("the record ends early")?;
        *rest = after;
        zigzag |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok((zigzag >> 1) as i64 ^ -((zigzag & 1) as i64));
        }
    }
    bail!("a number is too long")
}

fn nullable_float(rest: &mut &[u8]) -> anyhow::Result<Option<f32>> {
    if long(rest)? == 0 {
        return Ok(None);
    }
    let (float, after) = rest.split_first_chunk().context("the record ends early")?;
    *rest = after;
    Ok(Some(f32::from_le_bytes(*float)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_and_the_record_that_it_came_from_are_equal() -> anyhow::Result<()> {
        let row = "location-events,3,17,42,1000,1001,-0.0000001,180,12.5,,0.1,t";
        let mut record = vec![0; HEADER_BYTES];
        // Zigzag: 42, 1000, 1001, branch 1, -1, 1800000000; 12.5, null, 0.1.
        record.extend([0x54, 0xd0, 0x0f, 0xd2, 0x0f, 0x02, 0x01, 0x80, 0xc8, 0xce, 0xb4, 0x0d, 0x02]);
        record.extend(12.5_f32.to_le_bytes());
        record.extend([0x00, 0x02]);
        record.extend(0.1_f32.to_le_bytes());
        record.push(0x02);
        let row = Row::parse(row)?;
        assert_eq!(row.report, decode(&record)?);
        assert_eq!((row.partition, row.offset, row.has_cell), (3, 17, true));
        let withdrawal = Row::parse("location-events,0,0,42,1000,1001,,,,,,f")?;
        assert_eq!(withdrawal.report.place, None);
        Ok(())
    }
}
