//! What releases have promised, in `schemas/released/v1`: a folder for each, with its samples and its schemas. Whatever
//! writes `schemas/` anew leaves it alone; `ORCHARD_FREEZE_SCHEMAS=1 cargo test --test all -- schemas::released` adds the
//! folder of the release that Cargo.toml names, once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::Once;

use data_encoding::HEXLOWER;
use orchard::bus::encoding::Encoding;
use serde_json::{Value, json};

use super::catalog::{self, Message};
use super::{compare, folder, message_of};

/// One release.
struct Release {
    version: String,
    /// The bytes of each sample, by its name.
    samples: Vec<(String, Vec<u8>)>,
    /// Whether the controller takes a message, and its schema, by its name.
    schemas: BTreeMap<String, (bool, Value)>,
}

fn root() -> PathBuf {
    folder().join("released/v1")
}

/// What the file of schemas holds: one message a line, without what is for people alone.
fn frozen(messages: &[Message]) -> String {
    let line = |message: &Message| {
        let mut schema = message.schema.clone();
        strip(&mut schema);
        json!({ "name": message.name, "taken": message.taken, "schema": schema }).to_string() + "\n"
    };
    messages.iter().map(line).collect()
}

/// Takes out descriptions; a field may be called so, too.
fn strip(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|key, value| {
                !matches!(key.as_str(), "description" | "title" | "$schema") || !value.is_string()
            });
            fields.values_mut().for_each(strip);
        }
        Value::Array(values) => values.iter_mut().for_each(strip),
        _ => {}
    }
}

fn releases() -> Vec<Release> {
    static FREEZE: Once = Once::new();
    FREEZE.call_once(freeze);
    let mut releases = Vec::new();
    for entry in fs::read_dir(root()).unwrap() {
        let folder = entry.unwrap().path();
        let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
        let samples = read("messages.txt");
        let samples = samples.lines().map(|line| {
            let (name, bytes) = line.split_once(' ').unwrap();
            (name.to_owned(), HEXLOWER.decode(bytes.as_bytes()).unwrap())
        });
        let schemas = read("schemas.jsonl");
        let schemas = schemas.lines().map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            (line["name"].as_str().unwrap().to_owned(), (line["taken"].as_bool().unwrap(), line["schema"].clone()))
        });
        let version = folder.file_name().unwrap().to_str().unwrap().to_owned();
        releases.push(Release { version, samples: samples.collect(), schemas: schemas.collect() });
    }
    assert!(!releases.is_empty());
    releases
}

/// Adds the folder of this release if that is asked for; never touches one that is there.
fn freeze() {
    let folder = root().join(env!("CARGO_PKG_VERSION"));
    if std::env::var_os("ORCHARD_FREEZE_SCHEMAS").is_none() || folder.exists() {
        return;
    }
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("messages.txt"), crate::wire::samples().lines).unwrap();
    fs::write(folder.join("schemas.jsonl"), frozen(&catalog::messages())).unwrap();
}

/// Whether `now` says all that `then` says.
fn says(now: &Value, then: &Value) -> bool {
    match (now, then) {
        (Value::Object(now), Value::Object(then)) => {
            then.iter().all(|(key, then)| now.get(key).is_some_and(|now| says(now, then)))
        }
        (Value::Array(now), Value::Array(then)) => {
            now.len() == then.len() && now.iter().zip(then).all(|(now, then)| says(now, then))
        }
        (now, then) => now == then,
    }
}

#[test]
fn what_releases_sent_is_understood_as_before() {
    let messages = catalog::messages();
    for release in releases() {
        for (name, bytes) in &release.samples {
            let then: Value = rmp_serde::from_slice(bytes).unwrap();
            let message = message_of(&messages, name);
            for (form, payload) in
                [(Encoding::MessagePack, bytes.clone()), (Encoding::Json, serde_json::to_vec(&then).unwrap())]
            {
                let now = (message.read)(form, &payload).unwrap_or_else(|error| {
                    panic!("{name} of release {} cannot be read any more: {error}", release.version)
                });
                assert!(says(&now, &then), "{name} of release {}: {then:#} is read as {now:#}", release.version);
            }
        }
    }
}

/// A sample that gains a field is a new one.
#[test]
fn samples_of_releases_still_stand_there_to_the_byte() {
    let today = crate::wire::samples();
    let today: BTreeSet<_> = today.lines.lines().collect();
    for release in releases() {
        for (name, bytes) in &release.samples {
            let line = format!("{name} {}", HEXLOWER.encode(bytes));
            assert!(today.contains(line.as_str()), "{name} is not as in release {}", release.version);
        }
    }
}

#[test]
fn schemas_of_releases_were_added_to_and_nothing_else() {
    let messages = catalog::messages();
    for release in releases() {
        for (name, (taken, then)) in &release.schemas {
            let message = messages.iter().find(|message| message.name == *name);
            let message = message.unwrap_or_else(|| panic!("{name} of release {} is gone", release.version));
            assert_eq!(message.taken, *taken, "{name}");
            let breaks = compare::breaks(then, &message.schema, *taken);
            assert!(breaks.is_empty(), "{name} breaks with release {}: {breaks:#?}", release.version);
        }
    }
}

/// The one who changes a type and its samples alike hears of it from the bytes and from the schema.
#[test]
fn a_change_of_a_message_is_found() {
    let releases = releases();
    let (taken, then) = releases.first().unwrap().schemas.get("vm.create").unwrap();
    let mut now = then.clone();
    assert!(compare::breaks(then, &now, *taken).is_empty());
    now["properties"]["spec"] = json!({ "type": "string" });
    assert!(!compare::breaks(then, &now, *taken).is_empty());
    assert!(!says(&json!({ "a": { "b": 1 } }), &json!({ "a": { "b": 1, "c": 2 } })));
    assert!(says(&json!({ "a": [{ "b": 1, "c": 2 }] }), &json!({ "a": [{ "b": 1 }] })));
}
