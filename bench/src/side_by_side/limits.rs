//! The limits: what bare loops take that do the least of each stage, whoever does it. Nothing here is a peer.

use super::tables::three;
use crate::workload::Figures;
use crate::{sink, sockets, stages};
use serde_json::{Value, json};
use std::fmt::Write;
use std::time::Duration;

const REPORTS: usize = 200_000;
const ROWS: usize = 100_000;
const SOCKETS: usize = 1_000;
const SENDS_FOR: Duration = Duration::from_secs(3);
/// One friend who moved, as a gateway says it.
const FRAME: &str = r#"{"type":"update","moved":[{"id":"9000000","lat":40.7000123,"lon":-74,"distance_m":1234.5,"updated_at_ms":1795374428209,"visible_until_ms":1795375028209}]}"#;

/// A bare loop.
pub struct Limit {
    stage: &'static str,
    what: &'static str,
    each: &'static str,
    cpu_s_per_million: Figures,
    /// By the clock, where the loop has the machine, or a core of it, for itself.
    per_s: Option<Figures>,
}

/// Runs them all.
pub async fn run(runs: usize) -> anyhow::Result<Vec<Limit>> {
    let bare = stages::bare(REPORTS, runs).await?;
    let of_reports =
        |stage, what, cpu_s| Limit { stage, what, each: "report", cpu_s_per_million: Figures::new(cpu_s), per_s: None };
    let mut limits = vec![
        of_reports("consume", "a poll a record, 16 partitions", bare.consume),
        of_reports("join", "a loop over arrays, one thread, which counts who is near", bare.join),
        of_reports("produce", "the bytes of W's batches in the largest records", bare.produce),
    ];
    let (mut cpu_us, mut frames_per_s) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        let sent = sockets::bare_sends(SOCKETS, SENDS_FOR, FRAME).await?;
        cpu_us.push(sent.cpu_us);
        frames_per_s.push(sent.frames_per_s);
    }
    limits.push(Limit {
        stage: "socket write",
        what: "tokio-tungstenite on one core, 1,000 sockets, each woken for each frame",
        each: "frame",
        cpu_s_per_million: Figures::new(cpu_us),
        per_s: Some(Figures::new(frames_per_s)),
    });
    let (rows_per_s, cpu_s) = sink::bare(ROWS, runs).await?.into_iter().unzip();
    limits.push(Limit {
        stage: "COPY",
        what: "binary, into the history's table with its indexes, flushed to disk",
        each: "row",
        cpu_s_per_million: Figures::new(cpu_s),
        per_s: Some(Figures::new(rows_per_s)),
    });
    Ok(limits)
}

/// A table in Markdown.
pub fn table(limits: &[Limit]) -> String {
    let mut text = "\nThe limits: bare loops that do the least of a stage; minimum / median / maximum\n\n".to_owned();
    text += "| stage | the least | CPU-seconds per million | a second |\n| --- | --- | --- | --- |\n";
    for Limit { stage, what, each, cpu_s_per_million, per_s } in limits {
        let (cpu_s, per_s) = (three(cpu_s_per_million), per_s.as_ref().map_or_else(|| "-".to_owned(), three));
        writeln!(text, "| {stage} | {what} | {cpu_s} {each}s | {per_s} |").expect("a string");
    }
    text
}

/// The same, every figure with all its digits.
pub fn json(limits: &[Limit]) -> Value {
    let three = |figures: &Figures| json!([figures.minimum(), figures.median(), figures.maximum()]);
    let limit = |limit: &Limit| {
        json!({"stage": limit.stage, "what": limit.what, "each": limit.each,
            "cpu_s_per_million": three(&limit.cpu_s_per_million), "per_s": limit.per_s.as_ref().map(three)})
    };
    limits.iter().map(limit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_line() {
        let limit = |per_s: Option<Vec<f64>>| Limit {
            stage: "join",
            what: "a loop",
            each: "report",
            cpu_s_per_million: Figures::new(vec![0.5, 0.4, 0.75]),
            per_s: per_s.map(Figures::new),
        };
        let limits = [limit(None), limit(Some(vec![1_000.0]))];
        let text = table(&limits);
        assert!(text.contains("| join | a loop | 0.40 / 0.50 / 0.75 reports | - |\n"), "{text}");
        assert!(text.contains("| 1000 / 1000 / 1000 |\n"), "{text}");
        assert_eq!(json(&limits)[0]["cpu_s_per_million"], json!([0.4, 0.5, 0.75]));
        assert_eq!(json(&limits)[1]["per_s"][1], 1_000.0);
    }
}
