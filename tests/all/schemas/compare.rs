//! Two schemas of one message, that of a release and today's: what of today's breaks the promise to add only. Pure.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

/// What is compared by rules of its own, or means nothing to programs.
const APART: &[&str] = &[
    "$schema",
    "$defs",
    "$ref",
    "title",
    "description",
    "properties",
    "required",
    "oneOf",
    "anyOf",
    "items",
    "prefixItems",
    "additionalProperties",
];
/// What a request may be freed from: those of before still fit.
const BOUNDS: &[&str] =
    &["pattern", "format", "minLength", "maxLength", "minimum", "maximum", "minItems", "maxItems", "uniqueItems"];

/// How `now` breaks what `then` promised of a message that the controller takes, or that it sends.
pub fn breaks(then: &Value, now: &Value, taken: bool) -> Vec<String> {
    let mut comparison = Comparison { then, now, taken, under_way: BTreeSet::new(), breaks: Vec::new() };
    comparison.schemas("", then, now);
    comparison.breaks
}

struct Comparison<'a> {
    then: &'a Value,
    now: &'a Value,
    taken: bool,
    /// Pairs of references that were met: types may hold themselves.
    under_way: BTreeSet<(String, String)>,
    breaks: Vec<String>,
}

impl Comparison<'_> {
    fn add(&mut self, path: &str, what: String) {
        self.breaks.push(format!("{}: {what}", if path.is_empty() { "/" } else { path }));
    }

    fn schemas(&mut self, path: &str, then: &Value, now: &Value) {
        let reference = |schema: &Value| schema.get("$ref").and_then(Value::as_str).map(str::to_owned);
        if let (Some(then), Some(now)) = (reference(then), reference(now))
            && !self.under_way.insert((then, now))
        {
            return;
        }
        let (then, now) = (resolved(self.then, then), resolved(self.now, now));
        self.keywords(path, &then, &now);
        match (alternatives(&then), alternatives(&now)) {
            (None, None) => {}
            (Some(then), Some(now)) => self.alternatives(path, then, now),
            _ => self.add(path, "it was one of several, or is now".to_owned()),
        }
        self.fields(path, &then, &now);
        for key in ["items", "additionalProperties"] {
            match (then.get(key), now.get(key)) {
                (Some(then @ Value::Object(_)), Some(now @ Value::Object(_))) => {
                    self.schemas(&format!("{path}/*"), then, now);
                }
                (then, now) if then != now => self.add(path, format!("{key} was {then:?} and is {now:?}")),
                _ => {}
            }
        }
        let list = |schema: &Map<String, Value>| schema.get("prefixItems").and_then(Value::as_array).cloned();
        let (then, now) = (list(&then).unwrap_or_default(), list(&now).unwrap_or_default());
        if then.len() != now.len() {
            self.add(path, "it has another number of items".to_owned());
        }
        for (index, (then, now)) in then.iter().zip(&now).enumerate() {
            self.schemas(&format!("{path}/{index}"), then, now);
        }
    }

    /// Types, values and bounds.
    fn keywords(&mut self, path: &str, then: &Map<String, Value>, now: &Map<String, Value>) {
        let keys: BTreeSet<_> = then.keys().chain(now.keys()).filter(|key| !APART.contains(&key.as_str())).collect();
        for key in keys {
            match (then.get(key), now.get(key)) {
                (then, now) if then == now => {}
                (Some(_), None) if self.taken && BOUNDS.contains(&key.as_str()) => {}
                // What had to be said may be left out now.
                (None, Some(_)) if key == "default" => {}
                (then, now) => self.add(path, format!("{key} was {then:?} and is {now:?}")),
            }
        }
    }

    fn fields(&mut self, path: &str, then: &Map<String, Value>, now: &Map<String, Value>) {
        let none = Map::new();
        let of = |schema: &Map<String, Value>| schema.get("properties").and_then(Value::as_object).cloned();
        let (then_fields, now_fields) = (of(then).unwrap_or_default(), of(now).unwrap_or(none));
        for (name, then) in &then_fields {
            match now_fields.get(name) {
                Some(now) => self.schemas(&format!("{path}/{name}"), then, now),
                None => self.add(path, format!("the field {name} is gone")),
            }
        }
        let required = |schema: &Map<String, Value>| -> BTreeSet<String> {
            let names = schema.get("required").and_then(Value::as_array).into_iter().flatten();
            names.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let (then, now) = (required(then), required(now));
        if self.taken {
            for name in now.difference(&then) {
                self.add(path, format!("the field {name} must be there, and needed not to"));
            }
        } else {
            for name in then.difference(&now) {
                self.add(path, format!("the field {name} may be missing, and was always there"));
            }
        }
    }

    fn alternatives(&mut self, path: &str, then: &[Value], now: &[Value]) {
        let (then, now) = (named(self.then, then), named(self.now, now));
        let is_open = then.iter().any(|(name, _)| name == OPEN);
        for (name, then) in &then {
            match now.iter().find(|(other, _)| other == name) {
                Some((_, now)) => self.schemas(&format!("{path}/{name}"), then, now),
                None => self.add(path, format!("{name} is gone")),
            }
        }
        for (name, _) in now.iter().filter(|(name, _)| !is_open && then.iter().all(|(other, _)| other != name)) {
            self.add(path, format!("{name} is new, and readers were not told to expect others"));
        }
    }
}

/// A schema with what it refers to in its place.
fn resolved(root: &Value, schema: &Value) -> Map<String, Value> {
    let own = schema.as_object().cloned().unwrap_or_default();
    match own.get("$ref").and_then(Value::as_str) {
        Some(to) => {
            let mut whole = resolved(root, root.pointer(to.trim_start_matches('#')).unwrap());
            whole.extend(own);
            whole
        }
        None => own,
    }
}

fn alternatives(schema: &Map<String, Value>) -> Option<&Vec<Value>> {
    schema.get("oneOf").or_else(|| schema.get("anyOf"))?.as_array()
}

/// What stands for all that later releases may add.
const OPEN: &str = "(any other)";

/// Alternatives with what tells each from the others.
fn named(root: &Value, alternatives: &[Value]) -> Vec<(String, Value)> {
    let all: Vec<_> = alternatives.iter().map(|one| (name(&resolved(root, one)), one.clone())).collect();
    let tagged = all.iter().any(|(name, _)| name.contains('='));
    let named = all.into_iter().map(|(name, one)| match name.as_str() {
        "string" => (OPEN.to_owned(), one),
        "object" if tagged => (OPEN.to_owned(), one),
        _ => (name, one),
    });
    named.collect()
}

/// A word, the tag or the only field of a variant, or else the type.
fn name(schema: &Map<String, Value>) -> String {
    if let Some(word) = schema.get("const") {
        return word.to_string();
    }
    let fields = schema.get("properties").and_then(Value::as_object);
    if schema.get("additionalProperties") == Some(&json!(false)) {
        return fields.into_iter().flat_map(Map::keys).cloned().collect();
    }
    let tag = fields.into_iter().flatten().find_map(|(name, field)| Some(format!("{name}={}", field.get("const")?)));
    // Text of a certain form is no word.
    let formed = ["pattern", "format", "maxLength"].iter().any(|key| schema.contains_key(*key));
    match schema.get("type").and_then(Value::as_str) {
        Some("string") if formed => "text".to_owned(),
        other => tag.unwrap_or_else(|| other.unwrap_or("nested").to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema() -> Value {
        json!({
            "$defs": {
                "Closed": { "oneOf": [{ "const": "a", "type": "string" }, { "const": "b", "type": "string" }] },
                "Open": { "anyOf": [{ "const": "a", "type": "string" }, { "type": "string" }] },
            },
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": { "type": "string", "maxLength": 9 },
                "closed": { "$ref": "#/$defs/Closed" },
                "open": { "anyOf": [{ "$ref": "#/$defs/Open" }, { "type": "null" }], "default": null },
                "many": { "type": "array", "items": { "type": "object", "properties": { "x": { "type": "integer" } } } },
            },
        })
    }

    /// The breaks when the value at `pointer` is replaced or added, of a request and of an answer.
    fn after(pointer: &str, value: Value) -> [usize; 2] {
        let mut now = schema();
        let (parent, last) = pointer.rsplit_once('/').unwrap();
        match now.pointer_mut(parent).unwrap() {
            Value::Array(items) => items.push(value),
            parent if value.is_null() => drop(parent.as_object_mut().unwrap().remove(last)),
            parent => parent[last] = value,
        }
        [true, false].map(|taken| breaks(&schema(), &now, taken).len())
    }

    #[test]
    fn what_adds_only_breaks_nothing() {
        assert_eq!(after("/description", "other words".into()), [0, 0]);
        assert_eq!(after("/properties/more", json!({ "type": "integer" })), [0, 0]);
        assert_eq!(after("/properties/many/items/properties/y", json!({ "type": "integer" })), [0, 0]);
        assert_eq!(after("/$defs/Open/anyOf/-", json!({ "const": "c", "type": "string" })), [0, 0]);
    }

    #[test]
    fn what_takes_away_or_changes_is_found_at_every_level() {
        assert_eq!(after("/properties/closed", Value::Null), [1, 1]);
        assert_eq!(after("/properties/name/type", "integer".into()), [1, 1]);
        assert_eq!(after("/properties/many/items/properties/x", Value::Null), [1, 1]);
        assert_eq!(after("/properties/many/items/properties/x/type", "string".into()), [1, 1]);
        assert_eq!(after("/properties/open/default", "a".into()), [1, 1]);
        assert_eq!(after("/$defs/Closed/oneOf", json!([{ "const": "a", "type": "string" }])), [1, 1]);
        assert_eq!(after("/$defs/Open/anyOf", json!([{ "type": "string" }])), [1, 1]);
    }

    #[test]
    fn a_closed_enum_stays_as_it_is_and_an_open_one_open() {
        assert_eq!(after("/$defs/Closed/oneOf/-", json!({ "const": "c", "type": "string" })), [1, 1]);
        assert_eq!(after("/$defs/Closed/oneOf/-", json!({ "type": "string" })), [1, 1]);
        assert_eq!(after("/$defs/Open/anyOf", json!([{ "const": "a", "type": "string" }])), [1, 1]);
    }

    #[test]
    fn requests_demand_no_more_and_answers_hold_no_less() {
        assert_eq!(after("/required", json!(["name", "closed"])), [1, 0]);
        assert_eq!(after("/required", json!([])), [0, 1]);
        assert_eq!(after("/properties/name/maxLength", Value::Null), [0, 1]);
        assert_eq!(after("/properties/name/maxLength", 8.into()), [1, 1]);
        assert_eq!(after("/properties/many/maxItems", 8.into()), [1, 1]);
    }
}
