//! Messages as a later release may send them: with fields that this one does not know, wherever the schema leaves room.
//! Two kinds of objects have none: those whose names are the user's own, and variants, which are one field each.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::validator;

/// A field that no release knows.
const UNKNOWN: &str = "of-a-later-release";

/// Where in `sample`, a message of `schema`, fields may come: the JSON pointers of those objects.
pub fn places(schema: &Value, sample: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    each(schema, schema, sample, String::new(), &mut |schema, value, pointer| {
        let is_ours = schema.get("properties").is_some() || schema.get("type") == Some(&json!("object"));
        if value.is_object() && is_ours && schema.get("additionalProperties").is_none() {
            found.insert(pointer.to_owned());
        }
    });
    found
}

/// `sample` with an unknown field at each of `places`.
pub fn with_unknown_fields(sample: &Value, places: &BTreeSet<String>) -> Value {
    let mut newer = sample.clone();
    for place in places {
        let fields = newer.pointer_mut(place).and_then(Value::as_object_mut).unwrap();
        fields.insert(UNKNOWN.to_owned(), json!({ "x": [1, null] }));
    }
    newer
}

/// Where in `sample` words and objects stand to which a later release may add others.
pub fn open_places(schema: &Value, sample: &Value) -> BTreeSet<String> {
    let mut open = BTreeSet::new();
    each(schema, schema, sample, String::new(), &mut |schema, value, pointer| {
        let any = schema.get("anyOf").and_then(Value::as_array).into_iter().flatten();
        let other = |one: &Value| match value {
            Value::String(_) => bare_text(one),
            _ => one.pointer("/properties/kind").is_some_and(bare_text),
        };
        if any.filter(|one| other(one)).count() > 0 {
            open.insert(pointer.to_owned());
        }
    });
    open
}

fn bare_text(schema: &Value) -> bool {
    let known = ["type", "description"];
    schema["type"] == "string" && schema.as_object().unwrap().keys().all(|key| known.contains(&key.as_str()))
}

/// `sample` with something that no release knows at `place`.
pub fn with_unknown_value(sample: &Value, place: &str) -> Value {
    let mut newer = sample.clone();
    let value = newer.pointer_mut(place).unwrap();
    *value = match value {
        Value::String(_) => UNKNOWN.into(),
        _ => json!({ "kind": UNKNOWN, "name": "x", "rack": 7 }),
    };
    newer
}

/// Calls `seen` with each schema that says something of a part of `value`, that part, and where it stands.
fn each(root: &Value, schema: &Value, value: &Value, pointer: String, seen: &mut impl FnMut(&Value, &Value, &str)) {
    if let Some(Value::String(to)) = schema.get("$ref") {
        return each(root, root.pointer(to.trim_start_matches('#')).unwrap(), value, pointer, seen);
    }
    seen(schema, value, &pointer);
    let alternatives = ["oneOf", "anyOf"].into_iter().filter_map(|key| schema.get(key)?.as_array()).flatten();
    for alternative in alternatives.filter(|alternative| fits(root, alternative, value)) {
        each(root, alternative, value, pointer.clone(), seen);
    }
    match value {
        Value::Object(fields) => {
            let rest = schema.get("additionalProperties").filter(|rest| rest.is_object());
            for (name, field) in fields {
                if let Some(schema) = schema.get("properties").and_then(|known| known.get(name)).or(rest) {
                    let name = name.replace('~', "~0").replace('/', "~1");
                    each(root, schema, field, format!("{pointer}/{name}"), seen);
                }
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                let at = |key: &str| schema.get(key)?.get(index);
                if let Some(schema) = at("prefixItems").or_else(|| schema.get("items")) {
                    each(root, schema, item, format!("{pointer}/{index}"), seen);
                }
            }
        }
        _ => {}
    }
}

fn fits(root: &Value, schema: &Value, value: &Value) -> bool {
    validator(&json!({ "$defs": root.get("$defs"), "allOf": [schema] })).is_valid(value)
}

#[test]
fn fields_may_come_in_objects_with_names_of_ours_and_nowhere_else() {
    let messages = super::catalog::messages();
    let in_sample = |name: &str| {
        let (_, sample) = crate::wire::samples().json.into_iter().find(|(of, _)| of == name).unwrap();
        let places = places(&super::message_of(&messages, name).schema, &sample);
        places.into_iter().collect::<Vec<_>>()
    };
    assert_eq!(in_sample("vm.create"), ["", "/spec", "/spec/startup_script"]);
    assert_eq!(in_sample("controller.info"), [""]);
    assert_eq!(in_sample("event/worker"), ["", "/object"]);
    assert_eq!(in_sample("answer/ok"), ["/ok"]);
    assert_eq!(in_sample("worker.list-strays"), ["", "/after/1"]);
    assert_eq!(in_sample("worker/report/running"), ["", "/observation/running"]);
    assert_eq!(in_sample("service-account.update"), [""]);
}
