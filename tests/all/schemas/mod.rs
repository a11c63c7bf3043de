//! `schemas/` says what stands on the bus: made here out of the Rust types and the table of permissions, held against what
//! is in the repository and against the samples of tests/all/wire.rs. `ORCHARD_UPDATE_SCHEMAS=1 cargo test schemas::`
//! writes the files anew; what changed then is for a reviewer to judge, by the rules of schemas/README.md, and for
//! [`released`], which holds it against what releases have promised.

mod asyncapi;
mod catalog;
mod compare;
mod grown;
mod released;
mod rules;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use jsonschema::{Draft, Validator};
use serde_json::Value;

use self::catalog::Message;
use crate::wire::samples;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("schemas")
}

/// What a file of the folder holds.
fn text(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap() + "\n"
}

/// Every file that is made, by its path within the folder.
fn made() -> BTreeMap<PathBuf, String> {
    let messages = catalog::messages();
    let mut files: BTreeMap<_, _> =
        messages.iter().map(|message| (PathBuf::from(message.path()), text(&message.schema))).collect();
    files.insert("asyncapi.json".into(), text(&asyncapi::document(&messages)));
    files
}

/// The files below `folder`, from there.
fn found(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut left = vec![folder.to_owned()];
    while let Some(next) = left.pop() {
        for entry in fs::read_dir(&next).into_iter().flatten().flatten() {
            match entry.path() {
                path if path.is_dir() => left.push(path),
                path => drop(found.insert(path.strip_prefix(folder).unwrap().to_owned())),
            }
        }
    }
    found
}

#[test]
fn the_files_are_as_the_types_and_the_table_of_permissions_say() {
    let (folder, made) = (folder(), made());
    if std::env::var_os("ORCHARD_UPDATE_SCHEMAS").is_some() {
        let _ = fs::remove_dir_all(folder.join("json"));
        for (path, text) in &made {
            let path = folder.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }
    let how = "ORCHARD_UPDATE_SCHEMAS=1 cargo test --test all schemas:: writes it anew; see what may change in \
        schemas/README.md, and that schemas::released still holds";
    for (path, text) in &made {
        let there = fs::read_to_string(folder.join(path)).unwrap_or_default();
        assert!(there == *text, "{} is not what the code says: {how}", path.display());
    }
    let expected: BTreeSet<_> = made.into_keys().chain(["README.md", "messages.txt"].map(PathBuf::from)).collect();
    let found: BTreeSet<_> = found(&folder).into_iter().filter(|path| !path.starts_with("released")).collect();
    assert_eq!(found, expected, "{how}");
}

/// What checks values against `schema`, formats included.
fn validator(schema: &Value) -> Validator {
    jsonschema::options().with_draft(Draft::Draft202012).should_validate_formats(true).build(schema).unwrap()
}

/// What checks a document of AsyncAPI 3.0; tests/run.sh fetches it.
fn validator_of_asyncapi() -> Option<Validator> {
    let path = crate::stock::scripts::installed("ORCHARD_TEST_ASYNCAPI", "the JSON Schema of AsyncAPI")?;
    let schema: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    Some(jsonschema::options().with_draft(Draft::Draft7).build(&schema).unwrap())
}

/// The message of which `sample` is one: the one with the longest name that the sample's begins with.
fn message_of<'a>(messages: &'a [Message], sample: &str) -> &'a Message {
    // What says nothing of a verb is an answer to any that has nothing to tell.
    let sample = if matches!(sample, "answer/ok" | "answer/error") { "answer/vm.delete" } else { sample };
    let begins = |name: &str| sample.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let fitting = messages.iter().filter(|message| begins(&message.name));
    fitting.max_by_key(|message| message.name.len()).unwrap_or_else(|| panic!("{sample} is a sample of no message"))
}

#[test]
fn every_message_has_a_sample_and_every_sample_fits_its_schema() {
    let messages = catalog::messages();
    let mut shown = BTreeSet::new();
    for (name, sample) in samples().json {
        let message = message_of(&messages, &name);
        let validator = validator(&message.schema);
        let wrong: Vec<_> = validator.iter_errors(&sample).map(|error| error.to_string()).collect();
        assert!(wrong.is_empty(), "{name}: {wrong:#?} in {sample:#}");
        shown.insert(&message.name);
    }
    let without: Vec<_> = messages.iter().map(|message| &message.name).filter(|name| !shown.contains(name)).collect();
    assert!(without.is_empty(), "add samples to tests/all/wire: {without:?}");
}

#[test]
fn a_schema_refuses_what_is_no_such_message() {
    let messages = catalog::messages();
    let check = |name: &str, value: Value| {
        let message = messages.iter().find(|message| message.name == name).unwrap();
        validator(&message.schema).is_valid(&value)
    };
    assert!(check("vm.get", serde_json::json!({ "name": "a" })));
    assert!(check("vm.get", serde_json::json!({ "name": "a", "of a later release": [1] })));
    for wrong in [serde_json::json!({}), serde_json::json!({ "name": "" }), serde_json::json!({ "name": "a b" })] {
        assert!(!check("vm.get", wrong.clone()), "{wrong}");
    }
    let event = serde_json::json!({ "number": 1, "time": "2026-01-01T00:00:00Z", "type": "of a later release",
        "object": { "kind": "worker", "name": "w" } });
    assert!(check("event", event.clone()));
    let mut timeless = event;
    timeless["time"] = "yesterday".into();
    assert!(!check("event", timeless));
}
