//! What was measured, as tables for people and as JSON. Pure.

use super::measured::{Row, Run};
use super::truth::Count;
use crate::workload::Figures;
use serde_json::{Value, json};
use std::fmt::Write;

/// Four tables in Markdown.
pub fn tables(rows: &[Row]) -> String {
    let mut text = String::new();
    text += "\nCPU-seconds of all server processes per million reports: minimum / median / maximum; then the median by kind\n\n";
    text += "| peer | setting | all | by kind | reports/s, as fast as it goes |\n| --- | --- | --- | --- | --- |\n";
    for row in rows {
        let kinds: Vec<String> = kinds(row)
            .iter()
            .map(|kind| format!("{kind} {}", rounded(row.of_kind_per_million(kind).median())))
            .collect();
        line(&mut text, row, &[three(&row.cpu_s_per_million()), kinds.join(", "), three(&row.reports_per_s())]);
    }
    text += "\nFrom when a report was due to when its viewers' gateway knew whom to tell, at a steady rate, open-loop; memory after the runs\n\n";
    text += "| peer | setting | reports/s | p50 ms | p95 ms | p99 ms | max ms | resident MiB |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n";
    for row in rows {
        let mut cells = vec!["-".to_owned(); 5];
        if let Some(latency) = row.latency {
            let of = [latency.p50_us, latency.p95_us, latency.p99_us, latency.max_us];
            cells = std::iter::once(row.rate_per_s.to_string()).chain(of.map(milliseconds)).collect();
        }
        cells.push(mebibytes(&row.resident_bytes));
        line(&mut text, row, &cells);
    }
    text += "\nNotifications (a viewer is told where a friend within the radius is, or that one left) beside brute force, all runs\n\n";
    text += "| peer | setting | told | brute force | difference | sum of distances | difference at the steady rate |\n| --- | --- | --- | --- | --- | --- | --- |\n";
    for row in rows {
        let (told, truth) = row.told_and_truth();
        let distances = match told.distances_dm {
            0 => "not compared",
            sum if sum == truth.distances_dm => "equal",
            _ => "differs",
        };
        let [told_text, truth_text] = [told, truth].map(|count| count.notifications().to_string());
        let difference = |(told, truth): (Count, Count)| format!("{:+.4} %", told.difference_percent(truth));
        let steady = row.steady.map_or_else(|| "-".to_owned(), difference);
        line(&mut text, row, &[told_text, truth_text, difference((told, truth)), distances.to_owned(), steady]);
    }
    text.push('\n');
    for row in rows.iter().filter(|row| !row.note.is_empty()) {
        writeln!(text, "{} {}: {}", row.peer, row.setting, row.note).expect("a string");
    }
    text
}

/// Everything, run by run.
pub fn json(rows: &[Row]) -> Value {
    let run = |run: &Run| {
        json!({
            "reports": run.reports,
            "seconds": run.seconds,
            "cpu_s": by_kind(&run.cpu_s),
            "told": count(run.told),
            "brute_force": count(run.truth),
        })
    };
    let row = |row: &Row| {
        let latency = row.latency.map(|latency| {
            json!({"rate_per_s": row.rate_per_s, "count": latency.count, "p50_us": latency.p50_us,
                "p95_us": latency.p95_us, "p99_us": latency.p99_us, "max_us": latency.max_us})
        });
        json!({
            "peer": row.peer,
            "setting": row.setting,
            "runs": row.runs.iter().map(run).collect::<Vec<_>>(),
            "resident_bytes": by_kind(&row.resident_bytes),
            "latency": latency,
            "steady": row.steady.map(|(told, truth)| json!({"told": count(told), "brute_force": count(truth)})),
            "note": row.note,
        })
    };
    rows.iter().map(row).collect()
}

/// What kinds of processes hold.
pub fn mebibytes(resident_bytes: &[(&str, u64)]) -> String {
    let kinds: Vec<String> =
        resident_bytes.iter().map(|(kind, bytes)| format!("{kind} {}", bytes / 1024 / 1024)).collect();
    kinds.join(", ")
}

/// A count as JSON.
pub fn count(count: Count) -> Value {
    json!({"shown": count.shown, "left": count.left, "distances_dm": count.distances_dm})
}

/// Figures of kinds of processes as JSON.
pub fn by_kind<T: Copy + Into<Value>>(figures: &[(&str, T)]) -> Value {
    figures
        .iter()
        .map(|(kind, figure)| ((*kind).to_owned(), (*figure).into()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// In the order of the first run.
pub fn kinds(row: &Row) -> Vec<&'static str> {
    row.runs.first().map(|run| run.cpu_s.iter().map(|(kind, _)| *kind).collect()).unwrap_or_default()
}

fn line(text: &mut String, row: &Row, cells: &[String]) {
    writeln!(text, "| {} | {} | {} |", row.peer, row.setting, cells.join(" | ")).expect("a string");
}

pub fn three(figures: &Figures) -> String {
    let [minimum, median, maximum] = [figures.minimum(), figures.median(), figures.maximum()].map(rounded);
    format!("{minimum} / {median} / {maximum}")
}

/// With three digits that count, or all of a large one.
pub fn rounded(figure: f64) -> String {
    match figure {
        figure if figure >= 100.0 => format!("{figure:.0}"),
        figure if figure >= 10.0 => format!("{figure:.1}"),
        figure => format!("{figure:.2}"),
    }
}

#[expect(clippy::cast_precision_loss, reason = "latencies are far below 2^52 microseconds")]
fn milliseconds(us: u64) -> String {
    format!("{:.1}", us as f64 / 1_000.0)
}

#[cfg(test)]
pub mod tests {
    use super::super::heard::Latency;
    use super::*;

    pub fn row(peer: &'static str, setting: &str, cpu_s: [f64; 3]) -> Row {
        let (told, truth) =
            (Count { shown: 99, left: 0, distances_dm: 7 }, Count { shown: 90, left: 10, distances_dm: 7 });
        let run = |seconds| Run {
            reports: 500_000,
            seconds: 2.0,
            cpu_s: vec![("broker", seconds), ("processor", 1.0)],
            told,
            truth,
        };
        Row {
            peer,
            setting: setting.to_owned(),
            runs: cpu_s.map(run).into(),
            resident_bytes: vec![("broker", 3 << 20)],
            rate_per_s: 2_000,
            latency: Some(Latency { count: 9, p50_us: 1_200, p95_us: 2_000, p99_us: 30_000, max_us: 31_000 }),
            steady: Some((truth, truth)),
            note: "something".to_owned(),
        }
    }

    #[test]
    fn tables_say_what_was_measured() {
        let text = tables(&[row("redis", "2 gateways", [3.0, 1.0, 2.0])]);
        for expected in [
            "| redis | 2 gateways | 4.00 / 6.00 / 8.00 | broker 4.00, processor 2.00 | 250000 / 250000 / 250000 |\n",
            "| redis | 2 gateways | 2000 | 1.2 | 2.0 | 30.0 | 31.0 | broker 3 |\n",
            "| redis | 2 gateways | 297 | 300 | -1.0000 % | equal | +0.0000 % |\n",
            "\nredis 2 gateways: something\n",
        ] {
            assert!(text.contains(expected), "no {expected} in\n{text}");
        }
    }

    #[test]
    fn json_has_every_run() {
        let json = json(&[row("redis", "2 gateways", [3.0, 1.0, 2.0])]);
        assert_eq!(json[0]["runs"][1]["cpu_s"], json!({"broker": 1.0, "processor": 1.0}));
        assert_eq!(json[0]["runs"][2]["brute_force"]["left"], 10);
        assert_eq!(json[0]["latency"]["p99_us"], 30_000);
        assert_eq!(json[0]["resident_bytes"]["broker"], 3 << 20);
    }
}
