//! A million users with 400 friends each: the highest steady rate that holds. A rate holds if all is told within a second after the last
//! report was due; rates grow by the same factor until one does not hold.

use super::driver::Pace;
use super::loads::{Input, Loads, Workload};
use super::measured::{Driven, Peer, driven, millions, per_million};
use super::ours::Ours;
use super::redis;
use super::standing::Standing;
use super::tables::{self, rounded};
use super::truth::Count;
use super::{Who, name};
use serde_json::{Value, json};
use std::fmt::Write;
use std::time::{Duration, Instant};
use tokio::task::block_in_place;

const GATEWAYS: usize = 2;
/// Of reports a second, from one try to the next.
const FACTOR: f64 = 1.4;
const TRIES_MAX: usize = 9;
const BEHIND_MAX: Duration = Duration::from_secs(1);
/// Connections and topics are warm after so long at the first rate.
const WARM_UP_S: u64 = 2;
/// On two cores, by what the peers do in W.
const STREAMS_RECORDS_PER_S: u64 = 300_000;
const POLLING_QUESTIONS_PER_S: u32 = 12_000;

/// How much of it.
#[derive(Clone, Debug, clap::Args)]
pub struct ScaleSettings {
    /// Users of the workload `scale`, all of them connected
    #[arg(long, default_value_t = 1_000_000)]
    scale_users: u32,
    /// Friends of each
    #[arg(long, default_value_t = 400)]
    scale_friends: u32,
    /// The first rate that is tried, in reports a second
    #[arg(long, default_value_t = 5_000)]
    scale_rate_per_s: u64,
    /// How long a rate has to hold, in seconds
    #[arg(long, default_value_t = 5)]
    scale_s: u64,
}

/// A peer at that size.
pub struct Held {
    peer: &'static str,
    /// Until it served.
    start_s: f64,
    /// The rates that were tried, in this order.
    tries: Vec<Try>,
}

/// A rate.
struct Try {
    rate_per_s: u64,
    /// From when the last report was due to when the last was told.
    behind: Duration,
    reports: u64,
    driven: Driven,
    truth: Option<Count>,
}

impl Try {
    fn holds(&self) -> bool {
        self.behind < BEHIND_MAX
    }

    fn cpu_s_per_million(&self) -> f64 {
        per_million(&self.driven.cpu_s, self.reports)
    }
}

impl Held {
    /// The highest rate that held.
    fn best(&self) -> Option<&Try> {
        self.tries.iter().rev().find(|tried| tried.holds())
    }
}

/// Tries peers; and says why not, of those that are not tried.
pub async fn run(
    peers: &[Who],
    settings: &ScaleSettings,
    broker: &mut Standing,
) -> anyhow::Result<(Vec<Held>, Vec<String>)> {
    let input = Input { users: settings.scale_users, friends: settings.scale_friends, recorded: None };
    let loads = Loads::new(Workload::Scale, &input)?;
    println!("\n{}", loads.described());
    let (mut held, mut not_run) = (Vec::new(), Vec::new());
    for who in peers {
        match one(*who, settings, loads.again(), broker).await {
            Ok(peer) => held.push(peer),
            Err(error) => not_run.push(format!("NOT RUN: {}: {error:#}", name(*who))),
        }
    }
    Ok((held, not_run))
}

async fn one(who: Who, settings: &ScaleSettings, mut loads: Loads, broker: &mut Standing) -> anyhow::Result<Held> {
    let Input { users, friends, .. } = loads.input.clone();
    match who {
        Who::Nearby => {
            let threads = std::thread::available_parallelism()?.get();
            let at_work = broker.go_on().await?;
            let began = Instant::now();
            let mut peer = Ours::start(at_work.broker(), &loads, GATEWAYS, threads).await?;
            let start_s = began.elapsed().as_secs_f64();
            let tries = block_in_place(|| tries(&mut peer, &mut loads, settings))?;
            peer.stop().await?;
            Ok(Held { peer: "nearby", start_s, tries })
        }
        Who::Redis => block_in_place(|| {
            let began = Instant::now();
            let mut peer = redis::start(&loads, GATEWAYS)?;
            let start_s = began.elapsed().as_secs_f64();
            Ok(Held { peer: "redis", start_s, tries: tries(&mut peer, &mut loads, settings)? })
        }),
        Who::Streams => {
            let records = u64::from(users) * u64::from(friends + 1);
            anyhow::bail!(
                "everybody has to report once before it begins, which is a record for each friend: {} million, and it writes and reads \
                 some {STREAMS_RECORDS_PER_S} a second: {} minutes",
                records / 1_000_000,
                records / STREAMS_RECORDS_PER_S / 60
            )
        }
        Who::Polling => anyhow::bail!(
            "{} questions a second if everybody asks every 30 s, for {friends} positions each; with 40 the two cores answer some \
             {POLLING_QUESTIONS_PER_S}",
            users / 30
        ),
        Who::Tile38 => anyhow::bail!(
            "it tells of all strangers in the square too: with 20,000 users some hundreds a report, with {users} users {} times as many",
            users / 20_000
        ),
    }
}

/// Rates until one does not hold.
fn tries(peer: &mut impl Peer, loads: &mut Loads, settings: &ScaleSettings) -> anyhow::Result<Vec<Try>> {
    let mut rate = settings.scale_rate_per_s;
    driven(peer, &loads.steady(usize::try_from(rate * WARM_UP_S)?).0, Pace::PerSecond(rate))?;
    let mut tries: Vec<Try> = Vec::new();
    while tries.len() < TRIES_MAX && tries.iter().all(Try::holds) {
        let reports = usize::try_from(rate * settings.scale_s)?;
        // Brute force takes longer than the peers: it counts the first.
        let (moves, truth) = if tries.is_empty() {
            let (moves, truth) = loads.steady(reports);
            (moves, Some(truth))
        } else {
            (loads.moves(reports), None)
        };
        let driven = driven(peer, &moves, Pace::PerSecond(rate))?;
        let behind = driven.took.saturating_sub(Duration::from_secs(settings.scale_s));
        let tried = Try { rate_per_s: rate, behind, reports: moves.len() as u64, driven, truth };
        println!(
            "  {rate} reports/s for {} s: told {:.1} s after the last was due, {:.1} CPU-seconds per million",
            settings.scale_s,
            tried.behind.as_secs_f64(),
            tried.cpu_s_per_million()
        );
        tries.push(tried);
        rate = (rate as f64 * FACTOR) as u64;
    }
    Ok(tries)
}

/// A table in Markdown: each peer at its highest rate.
pub fn table(held: &[Held]) -> String {
    let mut text =
        "\nThe highest steady rate at which all is told within a second after the last report was due\n\n".to_owned();
    text += "| peer | reports/s | held no more | notifications a report | CPU-seconds per million | resident MiB | serves after | difference |\n";
    text += "| --- | --- | --- | --- | --- | --- | --- | --- |\n";
    for held in held {
        let Some(best) = held.best() else {
            writeln!(text, "| {} | none held | | | | | {:.0} s | |", held.peer, held.start_s).expect("a string");
            continue;
        };
        let failed =
            held.tries.iter().find(|tried| !tried.holds()).map_or("-".to_owned(), |tried| tried.rate_per_s.to_string());
        let cpu: Vec<String> = best
            .driven
            .cpu_s
            .iter()
            .map(|(kind, seconds)| format!("{kind} {}", rounded(seconds / millions(best.reports))))
            .collect();
        let differences =
            held.tries.iter().filter_map(|tried| Some(tried.driven.told.difference_percent(tried.truth?)));
        let differences: Vec<String> = differences.map(|percent| format!("{percent:+.4} %")).collect();
        writeln!(
            text,
            "| {} | {} | {failed} | {:.1} | {} ({}) | {} | {:.0} s | {} |",
            held.peer,
            best.rate_per_s,
            best.driven.told.notifications() as f64 / best.reports as f64,
            rounded(best.cpu_s_per_million()),
            cpu.join(", "),
            tables::mebibytes(&best.driven.resident_bytes),
            held.start_s,
            differences.join(", "),
        )
        .expect("a string");
    }
    text
}

/// Every try.
pub fn json(held: &[Held]) -> Value {
    let tried = |tried: &Try| {
        json!({
            "rate_per_s": tried.rate_per_s,
            "held": tried.holds(),
            "behind_s": tried.behind.as_secs_f64(),
            "reports": tried.reports,
            "cpu_s": tables::by_kind(&tried.driven.cpu_s),
            "resident_bytes": tables::by_kind(&tried.driven.resident_bytes),
            "told": tables::count(tried.driven.told),
            "brute_force": tried.truth.map(tables::count),
        })
    };
    let one = |held: &Held| json!({"peer": held.peer, "serves_after_s": held.start_s, "tries": held.tries.iter().map(tried).collect::<Vec<_>>()});
    held.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(rate_per_s: u64, behind_ms: u64, truth: Option<u64>) -> Try {
        let count = |shown| Count { shown, left: 0, distances_dm: 0 };
        Try {
            rate_per_s,
            behind: Duration::from_millis(behind_ms),
            reports: 500_000,
            driven: Driven {
                took: Duration::from_secs(5),
                cpu_s: vec![("broker", 2.0), ("processor", 4.0)],
                resident_bytes: vec![("broker", 7 << 20)],
                told: count(5_000_000),
            },
            truth: truth.map(count),
        }
    }

    #[test]
    fn the_highest_rate_that_held_counts() {
        let tries = vec![tried(10, 100, Some(4_000_000)), tried(14, 999, None), tried(20, 1_000, None)];
        let held = [Held { peer: "redis", start_s: 61.7, tries }, Held { peer: "nearby", start_s: 1.0, tries: vec![] }];
        let text = table(&held);
        assert!(
            text.contains(
                "| redis | 14 | 20 | 10.0 | 12.0 (broker 4.00, processor 8.00) | broker 7 | 62 s | +25.0000 % |\n"
            ),
            "{text}"
        );
        assert!(text.contains("| nearby | none held |"), "{text}");
        let json = json(&held);
        assert_eq!(json[0]["tries"][2]["held"], false);
        assert_eq!(json[0]["tries"][0]["brute_force"]["shown"], 4_000_000);
        assert_eq!(json[0]["tries"][1]["cpu_s"]["processor"], 4.0);
    }
}
