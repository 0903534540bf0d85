//! Fixes as GeoJSON (RFC 7946): a point each, with its time, because a line would have none; GIS tools animate such points
//! and draw lines through them, and nothing has to be cut at the antimeridian. A feature a line.

use super::output::Output;
use super::{Row, Writer, time};
use anyhow::Context;
use serde_json::{Map, Value, json};
use std::io::Write;

/// Being written.
pub struct Geojson {
    output: Output,
    is_first: bool,
}

impl Geojson {
    /// Begins the collection.
    pub fn begin(mut output: Output) -> anyhow::Result<Geojson> {
        write!(output, "{{\"type\":\"FeatureCollection\",\"features\":[").with_context(|| output.writing())?;
        Ok(Geojson { output, is_first: true })
    }
}

impl Writer for Geojson {
    fn row(&mut self, row: Row) -> anyhow::Result<()> {
        let Some(feature) = feature(&row) else { return Ok(()) };
        let separator = if self.is_first { "\n" } else { ",\n" };
        self.is_first = false;
        write!(self.output, "{separator}{feature}").with_context(|| self.output.writing())
    }

    fn finish(mut self: Box<Self>) -> anyhow::Result<Output> {
        writeln!(self.output, "\n]}}").with_context(|| self.output.writing())?;
        Ok(self.output)
    }
}

/// None for a withdrawal. Ids are text, as clients have them: readers lose integers above 2^53.
fn feature(row: &Row) -> Option<Value> {
    let mut properties = Map::new();
    properties.insert("user_id".to_owned(), row.user_id.to_string().into());
    properties.insert("reported_at".to_owned(), time(row.reported_at_us).to_string().into());
    properties.insert("received_at".to_owned(), time(row.received_at_us).to_string().into());
    for (name, value) in
        [("accuracy_m", row.accuracy_m), ("speed_mps", row.speed_mps), ("heading_deg", row.heading_deg)]
    {
        properties.insert(name.to_owned(), decimal(value));
    }
    let geometry = json!({"type": "Point", "coordinates": [row.lon?, row.lat?]});
    Some(json!({"type": "Feature", "geometry": geometry, "properties": properties}))
}

/// As short as it was: 12.3, not the double that a single is.
fn decimal(value: Option<f32>) -> Value {
    value.and_then(|value| value.to_string().parse::<f64>().ok()).map_or(Value::Null, Value::from)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{at, written};
    use super::*;

    #[test]
    fn a_point_a_fix() {
        let rows = [
            Row { accuracy_m: Some(12.3), ..at(1, 37.770_123_4, -122.5) },
            Row { lat: None, lon: None, ..at(2, 0.0, 0.0) },
            at(3, -90.0, 180.0),
        ];
        let text = written(|output| Ok(Box::new(Geojson::begin(output)?)), &rows);
        let read: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!((text.lines().count(), read["type"].as_str()), (4, Some("FeatureCollection")));
        let features = read["features"].as_array().expect("features");
        let expected = json!({
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [-122.5, 37.770_123_4]},
            "properties": {"user_id": "7", "reported_at": "1970-01-01T00:00:01.000Z", "received_at": "1970-01-01T00:00:01.000Z",
                           "accuracy_m": 12.3, "speed_mps": null, "heading_deg": null},
        });
        assert_eq!(features[0], expected);
        assert_eq!((features.len(), &features[1]["geometry"]["coordinates"]), (2, &json!([180.0, -90.0])));
        let empty: Value =
            serde_json::from_str(&written(|output| Ok(Box::new(Geojson::begin(output)?)), &[])).expect("JSON");
        assert_eq!(empty, json!({"type": "FeatureCollection", "features": []}));
    }
}
