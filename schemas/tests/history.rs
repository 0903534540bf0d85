//! The gate for schemas: what was published stays, what is new is published, and every version reads every other.
//!
//! `make check` runs it. It looks at the files and at git's history; without git a changed old version goes unnoticed here.

use apache_avro::Schema;
use apache_avro::schema_compatibility::{Compatibility, SchemaCompatibility};
use nearby_schemas::batch::FriendMovedBatch;
use nearby_schemas::codec::Record;
use nearby_schemas::*;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

const CURRENT: &str = "avro";
const HISTORY: &str = "avro/history";

type Change<'a> = &'a dyn Fn(&mut Schemas);

/// Schemas by the names of their files.
#[derive(Clone, Default)]
struct Schemas {
    current: BTreeMap<String, String>,
    /// By name, the versions in order.
    history: BTreeMap<String, BTreeMap<u32, String>>,
}

#[test]
fn schemas_are_published_and_compatible() {
    let faults = faults(&here());
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_codecs_know_every_version() {
    fn check<R: Record>(name: &str) -> String {
        let published: Vec<String> = here().history[name].values().cloned().collect();
        assert_eq!(
            R::HISTORY,
            published,
            "HISTORY of {name} has to list every file of {HISTORY}/{name}.v*.avsc in order"
        );
        name.to_owned()
    }
    let checked = [
        check::<FriendList>("friend_list"),
        check::<FriendMovedBatch>("friend_moved_batch"),
        check::<GatewayHeartbeat>("gateway_heartbeat"),
        check::<LocationEvent>("location_event"),
        check::<Session>("session"),
    ];
    assert!(here().current.keys().eq(&checked), "every schema has a record type");
}

#[test]
fn what_was_published_is_unchanged() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let changed = changed_since_published(root).unwrap_or_else(|| {
        eprintln!("NOT CHECKED: there is no git to say what was published");
        Vec::new()
    });
    assert!(changed.is_empty(), "{}", changed.join("\n"));
}

/// The gate has to be seen shut.
#[test]
fn the_gate_bites() {
    let changed = |change: &dyn Fn(&mut Schemas)| {
        // The first version, which will always be there as it is.
        let first = here().history["session"][&1].clone();
        let mut schemas = Schemas::default();
        schemas.current.insert("session".to_owned(), first.clone());
        schemas.history.entry("session".to_owned()).or_default().insert(1, first);
        change(&mut schemas);
        faults(&schemas).join("\n")
    };
    let publish = |schemas: &mut Schemas, from: &str, to: &str| {
        let current = schemas.current.get_mut("session").expect("it is there");
        assert!(current.contains(from));
        *current = current.replace(from, to);
        let versions = schemas.history.get_mut("session").expect("it is there");
        versions.insert(2, current.clone());
    };
    let ask = r#"{"name": "ask", "type": "long", "default": 0"#;
    let cases: [(Change<'_>, &str); 10] = [
        (
            &|schemas| schemas.current.get_mut("session").expect("it is there").push(' '),
            "differs from history/session.v1.avsc: publish it as v2",
        ),
        (
            &|schemas| drop(schemas.history.remove("session")),
            "session.avsc is not published: copy it to history/session.v1.avsc",
        ),
        (&|schemas| drop(schemas.current.remove("session")), "history/session.v1.avsc has no session.avsc"),
        (
            &|schemas| {
                drop(
                    schemas
                        .history
                        .get_mut("session")
                        .map(|versions| versions.insert(3, schemas.current["session"].clone())),
                )
            },
            "versions of session are [1, 3]",
        ),
        (
            &|schemas| publish(schemas, ask, &ask.replace("long", "string").replace("0", "\"\"")),
            "session v2 cannot read v1",
        ),
        (&|schemas| publish(schemas, ask, &ask.replace("long", "int")), "session v2 cannot read v1"),
        // Forward only: the new one reads the old, not the reverse.
        (&|schemas| publish(schemas, ask, &ask.replace("long", "double")), "session v1 cannot read v2"),
        (
            &|schemas| {
                publish(
                    schemas,
                    ask,
                    r#"{"name": "why", "type": "long"}, {"name": "ask", "type": "long", "default": 0"#,
                )
            },
            "session v2: field why has no default",
        ),
        (
            &|schemas| publish(schemas, "\"nearby.v1\"", "\"nearby.v2\""),
            "session v2 is nearby.v2.Session, v1 is nearby.v1.Session",
        ),
        (&|schemas| publish(schemas, "\"type\": \"record\"", "\"type\": \"recor\""), "session v2 does not parse"),
    ];
    for (change, expected) in cases {
        let faults = changed(change);
        assert!(faults.contains(expected), "expected {expected:?}, got {faults:?}");
    }
    let good = changed(&|schemas| {
        publish(schemas, ask, &format!(r#"{{"name": "why", "type": "long", "default": 0}}, {ask}"#))
    });
    assert_eq!(good, "", "a field with a default is what may come");
}

#[test]
fn enums_and_unions_need_what_makes_them_readable_by_all() {
    let with = |field: &str| format!(r#"{{"type":"record","name":"R","namespace":"n","fields":[{field}]}}"#);
    let faults_of = |first: &str, second: &str| {
        let versions = BTreeMap::from([(1, with(first)), (2, with(second))]);
        let current = BTreeMap::from([("r".to_owned(), with(second))]);
        faults(&Schemas { current, history: BTreeMap::from([("r".to_owned(), versions)]) })
    };
    let symbols = |symbols: &str, default: &str| {
        format!(r#"{{"name":"e","default":"A","type":{{"type":"enum","name":"E","symbols":[{symbols}]{default}}}}}"#)
    };
    let default = r#","default":"A""#;
    assert_eq!(faults_of(&symbols(r#""A""#, default), &symbols(r#""A","B""#, default)), Vec::<String>::new());
    let partial = faults_of(&symbols(r#""A""#, ""), &symbols(r#""A","B""#, ""));
    assert!(partial.iter().any(|fault| fault == "r v1 cannot read all that v2 may hold"), "{partial:?}");
    assert!(partial.iter().any(|fault| fault == "r v1: enum E has no default"), "{partial:?}");
    let union = |of: &str| format!(r#"{{"name":"u","default":null,"type":["null",{of}]}}"#);
    let wider = faults_of(&union(r#""long""#), &union(r#""long","string""#));
    assert_eq!(wider, ["r v1 cannot read all that v2 may hold"]);
}

#[test]
fn git_tells_what_was_changed() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path();
    let git = |args: &[&str]| {
        let args =
            [&["-c", "user.name=n", "-c", "user.email=n@example.org", "-c", "commit.gpgsign=false"], args].concat();
        let output = Command::new("git").args(args).current_dir(root).output().expect("git is there");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let write = |name: &str, text: &str| fs::write(root.join(HISTORY).join(name), text).expect("written");
    fs::create_dir_all(root.join(HISTORY)).expect("a folder");
    git(&["init", "-q"]);
    write("a.v1.avsc", "{}");
    write("b.v1.avsc", "{}");
    assert_eq!(changed_since_published(root), Some(vec![]), "nothing is published yet");
    git(&["add", "."]);
    git(&["commit", "-qm", "publish"]);
    write("a.v2.avsc", "{ }");
    assert_eq!(changed_since_published(root), Some(vec![]));
    write("a.v1.avsc", "{ }");
    fs::remove_file(root.join(HISTORY).join("b.v1.avsc")).expect("removed");
    let changed = [
        "avro/history/a.v1.avsc was published and has been changed",
        "avro/history/b.v1.avsc was published and is gone",
    ];
    assert_eq!(changed_since_published(root).expect("git is there"), changed);
    // Even if that is committed.
    git(&["add", "."]);
    git(&["commit", "-qm", "change"]);
    assert_eq!(changed_since_published(root).expect("git is there"), changed);
}

fn here() -> Schemas {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut schemas = Schemas { current: files(&root.join(CURRENT)), ..Schemas::default() };
    for (name, text) in files(&root.join(HISTORY)) {
        let (name, version) = name.rsplit_once(".v").expect("history files are called NAME.vNUMBER.avsc");
        let version = version.parse().expect("history files are called NAME.vNUMBER.avsc");
        schemas.history.entry(name.to_owned()).or_default().insert(version, text);
    }
    schemas
}

/// Texts of the `.avsc` files in a folder by their names without the ending.
fn files(folder: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(folder).expect("the folder is there").map(|entry| entry.expect("it can be read").path());
    let schemas = entries.filter(|path| path.extension().is_some_and(|extension| extension == "avsc"));
    let name = |path: &Path| path.file_stem().expect("it has a name").to_string_lossy().into_owned();
    schemas.map(|path| (name(&path), fs::read_to_string(&path).expect("it can be read"))).collect()
}

/// What is wrong, a sentence each.
fn faults(schemas: &Schemas) -> Vec<String> {
    let mut faults = Vec::new();
    for (name, text) in &schemas.current {
        match schemas.history.get(name).and_then(|versions| versions.last_key_value()) {
            None => faults.push(format!("{name}.avsc is not published: copy it to history/{name}.v1.avsc")),
            Some((version, newest)) if newest != text => {
                faults.push(format!(
                    "{name}.avsc differs from history/{name}.v{version}.avsc: publish it as v{}",
                    version + 1
                ));
            }
            Some(_) => {}
        }
    }
    for (name, versions) in &schemas.history {
        if !schemas.current.contains_key(name) {
            faults.push(format!("history/{name}.v1.avsc has no {name}.avsc"));
        }
        let numbers: Vec<u32> = versions.keys().copied().collect();
        if !(1..).zip(&numbers).all(|(wanted, found)| wanted == *found) {
            faults.push(format!("the versions of {name} are {numbers:?}: one is missing"));
        }
        incompatibilities(name, versions, &mut faults);
    }
    faults
}

fn incompatibilities(name: &str, versions: &BTreeMap<u32, String>, faults: &mut Vec<String>) {
    let mut parsed = Vec::new();
    for (version, text) in versions {
        match Schema::parse_str(text) {
            Ok(schema) => parsed.push((version, schema)),
            Err(error) => faults.push(format!("{name} v{version} does not parse: {error}")),
        }
        let json: Value = serde_json::from_str(text).unwrap_or_default();
        without_default(&json, &mut |what| faults.push(format!("{name} v{version}: {what} has no default")));
    }
    for (writer_version, writer) in &parsed {
        for (reader_version, reader) in &parsed {
            match SchemaCompatibility::can_read(writer, reader) {
                Ok(Compatibility::Full) => {}
                Ok(Compatibility::Partial) => {
                    faults.push(format!("{name} v{reader_version} cannot read all that v{writer_version} may hold"));
                }
                Err(error) => faults.push(format!("{name} v{reader_version} cannot read v{writer_version}: {error}")),
            }
        }
    }
    // Names are compared without their namespaces above.
    let full_name = |schema: &Schema| schema.name().map(ToString::to_string).unwrap_or_default();
    for pair in parsed.windows(2) {
        let [(old_version, old), (new_version, new)] = pair else { continue };
        let (old, new) = (full_name(old), full_name(new));
        if old != new {
            faults.push(format!("{name} v{new_version} is {new}, v{old_version} is {old}"));
        }
    }
}

/// Names every field and enum of a schema that has no default: a later version could not drop it or add to it.
fn without_default(schema: &Value, tell: &mut dyn FnMut(String)) {
    match schema {
        Value::Array(variants) => variants.iter().for_each(|variant| without_default(variant, tell)),
        Value::Object(object) => {
            let name = object.get("name").and_then(Value::as_str).unwrap_or_default();
            if object.get("type") == Some(&Value::from("enum")) && !object.contains_key("default") {
                tell(format!("enum {name}"));
            }
            for field in object.get("fields").and_then(Value::as_array).into_iter().flatten() {
                if field.get("default").is_none() {
                    tell(format!("field {}", field["name"].as_str().unwrap_or_default()));
                }
                without_default(&field["type"], tell);
            }
            for part in ["items", "values", "type"].iter().filter_map(|part| object.get(*part)) {
                without_default(part, tell);
            }
        }
        _ => {}
    }
}

/// Files of the history that are not what they were in the commit that added them; `None` where there is no git to ask.
fn changed_since_published(root: &Path) -> Option<Vec<String>> {
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).current_dir(root).output().ok()?;
        output.status.success().then_some(output.stdout)
    };
    git(&["rev-parse", "--git-dir"])?;
    // No commit yet: nothing is published.
    let log = git(&[
        "log",
        "--reverse",
        "--diff-filter=A",
        "--no-renames",
        "--format=@%H",
        "--name-only",
        "--relative",
        "--",
        HISTORY,
    ])
    .unwrap_or_default();
    let mut published: BTreeMap<String, String> = BTreeMap::new();
    let mut commit = String::new();
    for line in String::from_utf8_lossy(&log).lines().filter(|line| !line.is_empty()) {
        match line.strip_prefix('@') {
            Some(hash) => hash.clone_into(&mut commit),
            None => drop(published.entry(line.to_owned()).or_insert_with(|| commit.clone())),
        }
    }
    let mut changed = Vec::new();
    for (path, commit) in published {
        let then = git(&["show", &format!("{commit}:./{path}")])?;
        match fs::read(root.join(&path)) {
            Ok(now) if now == then => {}
            Ok(_) => changed.push(format!("{path} was published and has been changed")),
            Err(_) => changed.push(format!("{path} was published and is gone")),
        }
    }
    Some(changed)
}
