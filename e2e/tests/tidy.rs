//! What the documents say about the source, and what the source may not hold. Needs nothing but the files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const LINES_MAX: usize = 500;
const COUNTED: [&str; 6] = ["rs", "js", "sql", "py", "css", "html"];
/// In parts, because this file is a source too.
const FORBIDDEN: [(&str, &str); 3] = [("to", "do!("), ("unimple", "mented!("), ("#[ig", "nore")];
/// A word in backticks that ends so is a file.
const FILE_ENDINGS: &str = " rs md toml avsc sql js css html sh xml yml yaml png lock json ";

#[test]
fn paths_in_the_architecture_exist() {
    let text = read("ARCHITECTURE.md");
    let missing = missing_paths(&text);
    assert!(missing.is_empty(), "ARCHITECTURE.md names what is not there: {missing:?}");
}

#[test]
fn every_crate_is_in_the_architecture() {
    let (manifest, text) = (read("Cargo.toml"), read("ARCHITECTURE.md"));
    let members =
        manifest.lines().find_map(|line| line.strip_prefix("members = [")).expect("the workspace has members");
    let members: Vec<&str> = members.split('"').skip(1).step_by(2).collect();
    assert!(members.contains(&"e2e"), "these are not the members: {members:?}");
    for member in members {
        assert!(text.contains(&format!("`{member}/`")), "ARCHITECTURE.md does not name the crate `{member}/`");
    }
}

#[test]
fn no_source_file_is_too_long() {
    for path in sources() {
        let count = read(&path).lines().count();
        assert!(count <= LINES_MAX, "{path} has {count} lines, more than {LINES_MAX}: split it by subject");
    }
}

#[test]
fn two_modules_alone_are_unsafe() {
    // In parts, as above.
    let sign = ["expect(un", "safe_code"].concat();
    let unsafe_ones: Vec<String> =
        sources().into_iter().filter(|path| path.ends_with(".rs") && read(path).contains(&sign)).collect();
    assert_eq!(unsafe_ones, ["service/src/consume.rs", "service/src/lifelines.rs"]);
    let allowed = ["allow(un", "safe_code"].concat();
    let allowed: Vec<String> = sources().into_iter().filter(|path| read(path).contains(&allowed)).collect();
    assert!(allowed.is_empty(), "{allowed:?} allow it without saying why");
}

#[test]
fn documents_name_targets_that_the_makefile_has() {
    let makefile = read("Makefile");
    let rules = makefile.lines().filter_map(|line| line.split_once(':')).map(|(target, _)| target);
    let targets: BTreeSet<&str> = rules.filter(|target| is_target(target)).collect();
    for document in ["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "docs/operators.md"] {
        for named in make_targets(&read(document)) {
            assert!(
                targets.contains(named.as_str()),
                "{document} names `make {named}`, which the Makefile does not have"
            );
        }
    }
    assert!(make_targets(&read("README.md")).contains("test"), "README.md says how to test");
}

#[test]
fn nothing_is_left_undone_or_switched_off() {
    for path in sources().into_iter().filter(|path| extension(path) == "rs") {
        let text = read(&path);
        for (head, tail) in FORBIDDEN {
            let forbidden = format!("{head}{tail}");
            let line = text.lines().position(|line| line.contains(&forbidden));
            assert!(line.is_none(), "{path}:{}: {forbidden} has no place in a commit", line.unwrap_or(0) + 1);
        }
    }
}

#[test]
fn operators_know_every_metric_and_no_other() {
    let documented = documented_metrics(&read("docs/operators.md"));
    let production = |path: &String| extension(path) == "rs" && path.contains("/src/") && !path.starts_with("e2e/");
    let counted: BTreeSet<String> =
        sources().iter().filter(|path| production(path)).flat_map(|path| metrics(&read(path))).collect();
    assert!(counted.contains("nearby_dead_letters_total"), "these are not the metrics: {counted:?}");
    let undocumented: Vec<_> = counted.difference(&documented).collect();
    assert!(undocumented.is_empty(), "docs/operators.md does not tell what these metrics mean: {undocumented:?}");
    let gone: Vec<_> = documented.difference(&counted).collect();
    assert!(gone.is_empty(), "docs/operators.md tells of metrics that nothing counts: {gone:?}");
}

#[test]
fn metrics_are_found_however_they_are_written() {
    let source = "metrics::counter!(\"nearby_a_total\", \"x\" => 1)\n gauge!(\n  \"nearby_b\",\n) histogram!(NAME) // \"nearby_c\"";
    assert_eq!(
        metrics(source),
        ["", "nearby_a_total", "nearby_b"].map(str::to_owned).into(),
        "a name that is not there shows"
    );
    let document =
        "| `nearby_a_total` | nearby_no |\nnear `nearby_no`\n<!--\n| `nearby_no` |\n-->\n| `nearby_b` | counter |";
    assert_eq!(documented_metrics(document), ["nearby_a_total", "nearby_b"].map(str::to_owned).into());
}

#[test]
fn what_looks_like_a_path_is_told_from_what_does_not() {
    let text = "see `engine/src/none.rs`, `sink/gone/`, `engine/`, `user/gateway`, `/v1/stream`, `friend-moved-<gateway>`,\n\
                `user_rate_per_s`, `http://x/a.rs`, `Cargo.toml` and `nope.sql`\n```\n`not/in/a/fence.rs`\n```";
    assert_eq!(missing_paths(text), ["engine/src/none.rs", "sink/gone/", "nope.sql"]);
    let text = "`make check test`, `makes`, `make test RECORDED=x`, make nothing\n```\nmake demo  # all\n```";
    assert_eq!(make_targets(text), ["check", "demo", "test"].map(str::to_owned).into());
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in the project's folder").to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn extension(path: &str) -> &str {
    path.rsplit_once('.').map_or("", |(_, extension)| extension)
}

/// Source files by their path from the root: those that git knows or would add, or without git those that are there.
fn sources() -> Vec<String> {
    let git = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .ok()
        .filter(|output| output.status.success());
    let mut paths: Vec<String> = match git {
        Some(output) => String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect(),
        None => walked(&root()),
    };
    paths.retain(|path| COUNTED.contains(&extension(path)) && root().join(path).is_file());
    assert!(paths.iter().any(|path| path == "e2e/tests/tidy.rs"), "this very file is a source");
    paths
}

fn walked(folder: &Path) -> Vec<String> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).expect("folders of the project can be read") {
        let path = entry.expect("folders of the project can be read").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            paths.extend(walked(&path));
        } else if path.is_file() {
            paths.push(path.strip_prefix(root()).unwrap_or(&path).to_string_lossy().into_owned());
        }
    }
    paths
}

/// What stands in backticks in running text.
fn spans(text: &str) -> Vec<&str> {
    lines(text).filter(|(_, fenced)| !fenced).flat_map(|(line, _)| line.split('`').skip(1).step_by(2)).collect()
}

/// Lines without the fences, and whether they are between two.
fn lines(text: &str) -> impl Iterator<Item = (&str, bool)> {
    let mut fenced = false;
    text.lines().filter_map(move |line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        (!fence).then_some((line, fenced))
    })
}

fn missing_paths(text: &str) -> Vec<&str> {
    let legal = |span: &str| span.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte));
    let is_path = |span: &str| span.ends_with('/') || FILE_ENDINGS.contains(&format!(" {} ", extension(span)));
    let paths = spans(text).into_iter().filter(|span| legal(span) && !span.starts_with('/') && is_path(span));
    let there = |path: &str| {
        let found = root().join(path);
        if path.ends_with('/') { found.is_dir() } else { found.is_file() }
    };
    paths.filter(|path| !there(path)).collect()
}

fn is_target(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')
}

/// The targets of every `make …` in backticks or at the beginning of a line of code.
fn make_targets(text: &str) -> BTreeSet<String> {
    let code = lines(text).filter(|(_, fenced)| *fenced).map(|(line, _)| line.trim_start());
    let commands = spans(text).into_iter().chain(code).filter_map(|command| command.strip_prefix("make "));
    let words = commands.flat_map(|words| words.split_whitespace().take_while(|word| is_target(word)));
    words.map(str::to_owned).collect()
}

/// Names of the metrics that a source counts; an empty one where the name is not written out.
fn metrics(source: &str) -> BTreeSet<String> {
    let after = |kind: &str| -> Vec<String> {
        let begin = format!("{kind}!(");
        let calls = source.split(&begin).skip(1).map(str::trim_start);
        calls
            .map(|call| call.strip_prefix('"').and_then(|name| name.split('"').next()).unwrap_or("").to_owned())
            .collect()
    };
    ["counter", "gauge", "histogram"].into_iter().flat_map(after).collect()
}

/// Names that begin a row of a table, outside comments.
fn documented_metrics(document: &str) -> BTreeSet<String> {
    let visible = document.split("<!--").enumerate().map(|(index, part)| match index {
        0 => part,
        _ => part.split_once("-->").map_or("", |(_, visible)| visible),
    });
    let rows = visible.flat_map(str::lines).filter_map(|line| line.strip_prefix("| `nearby_"));
    rows.filter_map(|row| row.split_once('`')).map(|(name, _)| format!("nearby_{name}")).collect()
}
