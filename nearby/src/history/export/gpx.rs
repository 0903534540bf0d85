//! Fixes as GPX 1.1: one track. A segment ends where the user stopped sharing, was silent for long, or crossed the
//! antimeridian: nobody should draw a line through what is not known, or around the world.

use super::output::Output;
use super::{Row, Writer, time};
use anyhow::Context;
use nearby_schemas::UserId;
use std::io::Write;

/// A longer silence ends a segment.
const GAP_US_MAX: i64 = 30 * 60 * 1_000_000;

/// Being written.
pub struct Gpx {
    output: Output,
    /// Time and longitude of the last point of the segment that is open.
    last: Option<(i64, f64)>,
}

impl Gpx {
    /// Begins the track.
    pub fn begin(mut output: Output, user: UserId) -> anyhow::Result<Gpx> {
        let written = write!(
            output,
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
             <gpx version=\"1.1\" creator=\"nearby\" xmlns=\"http://www.topografix.com/GPX/1/1\" xmlns:nearby=\"urn:nearby:v1\">\n\
             <metadata><name>user {user}</name></metadata>\n<trk><name>user {user}</name>\n"
        );
        written.with_context(|| output.writing())?;
        Ok(Gpx { output, last: None })
    }

    fn end_segment(&mut self) -> std::io::Result<()> {
        match self.last.take() {
            Some(_) => writeln!(self.output, "</trkseg>"),
            None => Ok(()),
        }
    }

    fn write(&mut self, row: &Row) -> std::io::Result<()> {
        let Some((lat, lon)) = row.lat.zip(row.lon) else { return self.end_segment() };
        // GPX knows no 180: its longitudes end before that.
        let (at, east) = (row.reported_at_us, if lon >= 180.0 { -180.0 } else { lon });
        let follows =
            |(last_at, last_east): (i64, f64)| at - last_at <= GAP_US_MAX && (east - last_east).abs() <= 180.0;
        if !self.last.is_some_and(follows) {
            self.end_segment()?;
            writeln!(self.output, "<trkseg>")?;
        }
        self.last = Some((at, east));
        write!(self.output, "<trkpt lat=\"{lat}\" lon=\"{east}\"><time>{}</time>", time(at))?;
        let extras = [("accuracy_m", row.accuracy_m), ("speed_mps", row.speed_mps), ("heading_deg", row.heading_deg)];
        if extras.iter().any(|(_, value)| value.is_some()) {
            write!(self.output, "<extensions>")?;
            for (name, value) in extras.iter().filter_map(|(name, value)| Some((name, (*value)?))) {
                write!(self.output, "<nearby:{name}>{value}</nearby:{name}>")?;
            }
            write!(self.output, "</extensions>")?;
        }
        writeln!(self.output, "</trkpt>")
    }
}

impl Writer for Gpx {
    fn row(&mut self, row: Row) -> anyhow::Result<()> {
        self.write(&row).with_context(|| self.output.writing())
    }

    fn finish(mut self: Box<Self>) -> anyhow::Result<Output> {
        let ended = self.end_segment().and_then(|()| writeln!(self.output, "</trk>\n</gpx>"));
        ended.with_context(|| self.output.writing())?;
        Ok(self.output)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{at, written};
    use super::*;

    fn track(rows: &[Row]) -> String {
        let text = written(|output| Ok(Box::new(Gpx::begin(output, UserId(7))?)), rows);
        let begin = text.find("<trk>").expect("a track");
        text[begin..].replace("1970-01-01T", "")
    }

    #[test]
    fn segments_end_where_nothing_is_known() {
        let rows = [
            Row { accuracy_m: Some(12.3), heading_deg: Some(270.0), ..at(0, 1.5, 179.5) },
            // Half an hour later, and a second more than that.
            at(1_800, 1.5, 0.5),
            at(3_601, 1.5, 179.0),
            at(3_602, 1.5, 180.0),
            at(3_602, 1.5, -179.0),
            Row { lat: None, lon: None, ..at(3_603, 0.0, 0.0) },
            at(3_604, 1.5, -179.0),
        ];
        expect_test::expect![[r#"
            <trk><name>user 7</name>
            <trkseg>
            <trkpt lat="1.5" lon="179.5"><time>00:00:00.000Z</time><extensions><nearby:accuracy_m>12.3</nearby:accuracy_m><nearby:heading_deg>270</nearby:heading_deg></extensions></trkpt>
            <trkpt lat="1.5" lon="0.5"><time>00:30:00.000Z</time></trkpt>
            </trkseg>
            <trkseg>
            <trkpt lat="1.5" lon="179"><time>01:00:01.000Z</time></trkpt>
            </trkseg>
            <trkseg>
            <trkpt lat="1.5" lon="-180"><time>01:00:02.000Z</time></trkpt>
            <trkpt lat="1.5" lon="-179"><time>01:00:02.000Z</time></trkpt>
            </trkseg>
            <trkseg>
            <trkpt lat="1.5" lon="-179"><time>01:00:04.000Z</time></trkpt>
            </trkseg>
            </trk>
            </gpx>
        "#]]
        .assert_eq(&track(&rows));
        assert_eq!(track(&[]), "<trk><name>user 7</name>\n</trk>\n</gpx>\n");
    }
}
