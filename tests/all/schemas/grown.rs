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
    walk(schema, schema, sample, String::new(), &mut found);
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

fn walk(root: &Value, schema: &Value, value: &Value, pointer: String, found: &mut BTreeSet<String>) {
    if let Some(Value::String(to)) = schema.get("$ref") {
        return walk(root, root.pointer(to.trim_start_matches('#')).unwrap(), value, pointer, found);
    }
    let alternatives = ["oneOf", "anyOf"].into_iter().filter_map(|key| schema.get(key)?.as_array()).flatten();
    for alternative in alternatives.filter(|alternative| fits(root, alternative, value)) {
        walk(root, alternative, value, pointer.clone(), found);
    }
    match value {
        Value::Object(fields) => {
            let known = |name: &str| schema.get("properties")?.get(name);
            let rest = schema.get("additionalProperties");
            if rest.is_none() && (schema.get("properties").is_some() || schema.get("type") == Some(&json!("object"))) {
                found.insert(pointer.clone());
            }
            for (name, field) in fields {
                if let Some(schema) = known(name).or(rest.filter(|rest| rest.is_object())) {
                    walk(
                        root,
                        schema,
                        field,
                        format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1")),
                        found,
                    );
                }
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                let at = |key: &str| schema.get(key)?.get(index);
                if let Some(schema) = at("prefixItems").or_else(|| schema.get("items")) {
                    walk(root, schema, item, format!("{pointer}/{index}"), found);
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
