//! Rows as CSV: all columns of `location_history`, by their names. No value needs quotes: they are numbers, moments, and
//! names of topics, which Kafka keeps to letters, digits and `._-`.

use super::output::Output;
use super::{Row, Writer, time};
use anyhow::Context;
use std::fmt::Display;
use std::io::Write;

const HEADER: &str =
    "user_id,reported_at,received_at,lat,lon,accuracy_m,speed_mps,heading_deg,cell,topic,kafka_partition,kafka_offset";

/// Being written.
pub struct Csv(Output);

impl Csv {
    /// Begins with the names.
    pub fn begin(mut output: Output) -> anyhow::Result<Csv> {
        writeln!(output, "{HEADER}").with_context(|| output.writing())?;
        Ok(Csv(output))
    }
}

impl Writer for Csv {
    fn row(&mut self, row: Row) -> anyhow::Result<()> {
        let written = writeln!(
            self.0,
            "{},{},{},{},{},{},{},{},{},{},{},{}",
            row.user_id,
            time(row.reported_at_us),
            time(row.received_at_us),
            text(row.lat),
            text(row.lon),
            text(row.accuracy_m),
            text(row.speed_mps),
            text(row.heading_deg),
            text(row.cell),
            row.topic,
            row.kafka_partition,
            row.kafka_offset
        );
        written.with_context(|| self.0.writing())
    }

    fn finish(self: Box<Self>) -> anyhow::Result<Output> {
        Ok(self.0)
    }
}

/// Nothing for null.
fn text(value: Option<impl Display>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{at, written};
    use super::*;

    #[test]
    fn a_row_a_line() {
        let full = Row {
            accuracy_m: Some(12.3),
            speed_mps: Some(0.5),
            heading_deg: Some(270.0),
            cell: Some(617_700_169_958_293_503),
            kafka_partition: 3,
            kafka_offset: 4,
            ..at(1, 37.770_123_4, -122.0)
        };
        let bare = Row { lat: None, lon: None, ..at(2, 0.0, 0.0) };
        let text = written(|output| Ok(Box::new(Csv::begin(output)?)), &[full, bare]);
        let expected = format!(
            "{HEADER}\n\
             7,1970-01-01T00:00:01.000Z,1970-01-01T00:00:01.000Z,37.7701234,-122,12.3,0.5,270,617700169958293503,t,3,4\n\
             7,1970-01-01T00:00:02.000Z,1970-01-01T00:00:02.000Z,,,,,,,t,0,0\n"
        );
        assert_eq!(text, expected);
    }
}
