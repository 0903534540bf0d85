//! What two replays told differently. Pure: lines in, an explanation out.
//!
//! Lines up to the first difference are only counted; what follows is held in memory, some hundred bytes a line. There, what
//! was told to a viewer about a friend is matched by what it was about, not by where it stands: a move by the time of the
//! friend's report, a leave by the time of the report that was shown before. So one thing more or less makes no difference of
//! all that follows.

use anyhow::{Context, ensure};
use nearby_schemas::UserId;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;

/// What was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Moved,
    Left,
    ViewerMoved,
    Snapshot,
    /// A friend in a snapshot.
    InSnapshot,
}

/// How often things of one kind were told differently.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    pub only_a: u64,
    pub only_b: u64,
    pub distance: u64,
    pub place: u64,
    pub reason: u64,
    /// At another time, and not different otherwise.
    pub time: u64,
}

/// Whom it was told, and about whom.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pair {
    pub gateway: String,
    pub viewer: UserId,
    /// None in what is about the viewer.
    pub friend: Option<UserId>,
}

/// The explanation.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Lines that are the same before the first that are not.
    pub same_lines: u64,
    /// The first lines that differ; none where one of both has ended.
    pub first: Option<(Option<String>, Option<String>)>,
    pub kinds: BTreeMap<Kind, Differences>,
    pub pairs: BTreeMap<Pair, BTreeMap<Kind, Differences>>,
    /// Viewers who were told the same things in another order.
    pub reordered_viewers: u64,
    /// How far apart in time the same was told, at most, in milliseconds.
    pub apart_ms_max: i64,
}

impl Comparison {
    /// Whether both are the same, to the byte.
    pub fn is_same(&self) -> bool {
        self.first.is_none()
    }
}

/// A line as it is written by [`super::lines`].
#[derive(Deserialize)]
struct Line {
    emitted_at: i64,
    gateway: String,
    viewer: String,
    r#type: String,
    #[serde(flatten)]
    about: About,
    reason: Option<String>,
    friends: Option<Vec<About>>,
}

/// A friend, or the viewer's own place.
#[derive(Deserialize)]
struct About {
    friend: Option<String>,
    lat: Option<f64>,
    lon: Option<f64>,
    updated_at: Option<i64>,
    distance_m: Option<f64>,
}

/// One thing told. Gateways and reasons are numbers of a table, because there are few and lines are many.
#[derive(Clone, Copy, Debug)]
struct Told {
    gateway: u16,
    viewer: UserId,
    friend: Option<UserId>,
    kind: Kind,
    /// What it is about, besides.
    about: i64,
    emitted_at: i64,
    place: Option<(f64, f64)>,
    distance_m: Option<f64>,
    reason: Option<u16>,
}

type Who = (u16, UserId, Option<UserId>);

impl Told {
    fn who(&self) -> Who {
        (self.gateway, self.viewer, self.friend)
    }

    fn key(&self) -> (Who, Kind, i64) {
        (self.who(), self.kind, self.about)
    }
}

/// Compares two outputs, line by line and then thing by thing.
///
/// # Errors
/// What the iterators say, or that a line is not one of ours.
pub fn compare(
    a: impl IntoIterator<Item = anyhow::Result<String>>,
    b: impl IntoIterator<Item = anyhow::Result<String>>,
) -> anyhow::Result<Comparison> {
    let (mut a, mut b) = (a.into_iter(), b.into_iter());
    let mut comparison = Comparison::default();
    let first = loop {
        match (a.next().transpose()?, b.next().transpose()?) {
            (None, None) => return Ok(comparison),
            (line_a, line_b) if line_a == line_b => comparison.same_lines += 1,
            differing => break differing,
        }
    };
    let mut names = Names::default();
    let first_line = comparison.same_lines + 1;
    let told_a = rest("A", first_line, first.0.clone(), a, &mut names)?;
    let told_b = rest("B", first_line, first.1.clone(), b, &mut names)?;
    comparison.first = Some(first);
    comparison.explain(&told_a, &told_b, &names);
    Ok(comparison)
}

fn rest(
    side: &str,
    first_line: u64,
    first: Option<String>,
    lines: impl Iterator<Item = anyhow::Result<String>>,
    names: &mut Names,
) -> anyhow::Result<Vec<Told>> {
    let mut parsing = Parsing::default();
    for (number, line) in (first_line..).zip(first.into_iter().map(Ok).chain(lines)) {
        let line = line?;
        let refused = || format!("line {number} of {side} is not of a replay: {line}");
        let parsed: Line = serde_json::from_str(&line).with_context(refused)?;
        parsing.take(parsed, names).with_context(refused)?;
    }
    Ok(parsing.told)
}

#[derive(Default)]
struct Names {
    names: Vec<String>,
}

impl Names {
    fn index(&mut self, name: &str) -> anyhow::Result<u16> {
        let found = self.names.iter().position(|known| known == name);
        let index = found.unwrap_or_else(|| {
            self.names.push(name.to_owned());
            self.names.len() - 1
        });
        u16::try_from(index).context("too many gateways")
    }
}

#[derive(Default)]
struct Parsing {
    told: Vec<Told>,
    /// The time of the report that was shown last.
    shown: BTreeMap<Who, i64>,
}

impl Parsing {
    fn take(&mut self, line: Line, names: &mut Names) -> anyhow::Result<()> {
        let gateway = names.index(&line.gateway)?;
        let reason = line.reason.as_deref().map(|reason| names.index(reason)).transpose()?;
        let kind = match line.r#type.as_str() {
            "moved" => Kind::Moved,
            "left" => Kind::Left,
            "viewer_moved" => Kind::ViewerMoved,
            "snapshot" => Kind::Snapshot,
            other => anyhow::bail!("unknown type {other}"),
        };
        let viewer = line.viewer.parse()?;
        let mut take = |kind, about: &About| -> anyhow::Result<()> {
            let friend = about.friend.as_deref().map(str::parse).transpose()?;
            ensure!(
                friend.is_some() == matches!(kind, Kind::Moved | Kind::Left | Kind::InSnapshot),
                "no friend, or one too many"
            );
            let who = (gateway, viewer, friend);
            let place = about.lat.zip(about.lon);
            let shown = self.shown.get(&who).copied().unwrap_or_default();
            let about_what = match kind {
                Kind::Moved | Kind::InSnapshot => about.updated_at.context("no updated_at")?,
                Kind::Left => shown,
                Kind::ViewerMoved => place.map_or(0, |(lat, lon)| units(lat) << 32 ^ units(lon)),
                Kind::Snapshot => 0,
            };
            if matches!(kind, Kind::Moved | Kind::InSnapshot) {
                self.shown.insert(who, about_what);
            }
            let (emitted_at, distance_m) = (line.emitted_at, about.distance_m);
            self.told.push(Told {
                gateway,
                viewer,
                friend,
                kind,
                about: about_what,
                emitted_at,
                place,
                distance_m,
                reason,
            });
            Ok(())
        };
        take(kind, &line.about)?;
        line.friends.iter().flatten().try_for_each(|friend| take(Kind::InSnapshot, friend))
    }
}

#[expect(clippy::cast_possible_truncation, reason = "degrees times 1e7 are far below 2^63")]
fn units(degrees: f64) -> i64 {
    (degrees * nearby_schemas::nearness::UNITS_PER_DEGREE).round() as i64
}

impl Comparison {
    fn explain(&mut self, a: &[Told], b: &[Told], names: &Names) {
        let (order_a, order_b) = (order(a), order(b));
        let (mut next_a, mut next_b) = (order_a.iter().peekable(), order_b.iter().peekable());
        // Where each of A's was found in B.
        let mut found: Vec<(usize, usize)> = Vec::new();
        loop {
            let keys = (next_a.peek().map(|at| a[**at].key()), next_b.peek().map(|at| b[**at].key()));
            let (take_a, take_b) = match keys {
                (None, None) => break,
                (Some(key_a), Some(key_b)) => (key_a <= key_b, key_b <= key_a),
                (key_a, key_b) => (key_a.is_some(), key_b.is_some()),
            };
            let (from_a, from_b) = (next_a.next_if(|_| take_a), next_b.next_if(|_| take_b));
            match (from_a, from_b) {
                (Some(at_a), Some(at_b)) => {
                    found.push((*at_a, *at_b));
                    self.matched(&a[*at_a], &b[*at_b], names);
                }
                (Some(at), None) => self.count(&a[*at], names, |differences| differences.only_a += 1),
                (None, Some(at)) => self.count(&b[*at], names, |differences| differences.only_b += 1),
                (None, None) => break,
            }
        }
        self.reordered_viewers = reordered(a, found);
    }

    fn matched(&mut self, a: &Told, b: &Told, names: &Names) {
        if a.place != b.place {
            self.count(a, names, |differences| differences.place += 1);
        } else if a.distance_m != b.distance_m {
            self.count(a, names, |differences| differences.distance += 1);
        } else if a.reason != b.reason {
            self.count(a, names, |differences| differences.reason += 1);
        } else if a.emitted_at != b.emitted_at {
            self.apart_ms_max = self.apart_ms_max.max(a.emitted_at.abs_diff(b.emitted_at).cast_signed());
            // Too frequent to be told pair by pair.
            self.kinds.entry(a.kind).or_default().time += 1;
        }
    }

    fn count(&mut self, told: &Told, names: &Names, count: impl Fn(&mut Differences)) {
        count(self.kinds.entry(told.kind).or_default());
        let gateway = names.names[usize::from(told.gateway)].clone();
        let pair = Pair { gateway, viewer: told.viewer, friend: told.friend };
        count(self.pairs.entry(pair).or_default().entry(told.kind).or_default());
    }
}

/// Indexes by what is told, and then as told.
fn order(told: &[Told]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..told.len()).collect();
    order.sort_by_key(|at| told[*at].key());
    order
}

/// Viewers of whose things, in the order in which A told them, B told a later one before.
fn reordered(a: &[Told], mut found: Vec<(usize, usize)>) -> u64 {
    found.sort_unstable();
    let mut latest: BTreeMap<(u16, UserId), (usize, bool)> = BTreeMap::new();
    for (at_a, at_b) in found {
        let (latest, reordered) = latest.entry((a[at_a].gateway, a[at_a].viewer)).or_default();
        *reordered |= at_b < *latest;
        *latest = at_b.max(*latest);
    }
    latest.values().filter(|(_, reordered)| *reordered).count() as u64
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Kind::Moved => "moved",
            Kind::Left => "left",
            Kind::ViewerMoved => "viewer_moved",
            Kind::Snapshot => "snapshot",
            Kind::InSnapshot => "friend in snapshot",
        })
    }
}

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [
            (self.only_a, "only in A"),
            (self.only_b, "only in B"),
            (self.distance, "at another distance"),
            (self.place, "at another place"),
            (self.reason, "for another reason"),
            (self.time, "told at another time"),
        ];
        let counts = counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
        f.write_str(&counts.collect::<Vec<_>>().join(", "))
    }
}

/// The explanation in words, with at most so many pairs of viewer and friend.
pub fn explanation(comparison: &Comparison, pairs_max: usize) -> String {
    let Some((first_a, first_b)) = &comparison.first else {
        return format!("the same: {} lines\n", comparison.same_lines);
    };
    let line = |line: &Option<String>| line.clone().unwrap_or_else(|| "(has ended)".to_owned());
    let number = comparison.same_lines + 1;
    let mut lines = vec![format!("the first difference is in line {number}:")];
    lines.extend([format!("  A {}", line(first_a)), format!("  B {}", line(first_b))]);
    lines.push("from there on:".to_owned());
    for (kind, differences) in &comparison.kinds {
        lines.push(format!("  {kind:<18} {differences}"));
    }
    if comparison.apart_ms_max > 0 {
        lines.push(format!("the same was told at most {} ms apart", comparison.apart_ms_max));
    }
    if comparison.reordered_viewers > 0 {
        lines.push(format!("viewers who were told the same in another order: {}", comparison.reordered_viewers));
    }
    let total = comparison.pairs.len();
    if total > 0 {
        let first = if total > pairs_max { format!(", the first {pairs_max}") } else { String::new() };
        lines.push(format!("by viewer and friend, {total}{first}:"));
    }
    for (pair, kinds) in comparison.pairs.iter().take(pairs_max) {
        let friend = pair.friend.map(|friend| format!(", friend {friend}")).unwrap_or_default();
        let kinds: Vec<String> = kinds.iter().map(|(kind, differences)| format!("{kind} {differences}")).collect();
        lines.push(format!("  {} viewer {}{friend}: {}", pair.gateway, pair.viewer, kinds.join("; ")));
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
#[path = "diff_tests.rs"]
mod tests;
