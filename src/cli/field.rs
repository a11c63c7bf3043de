//! `NAME/FIELD…`: one field of what `orchard get` shows, found by its path. Any field that JSON shows, in any case and however
//! its words are joined (`statusMessage`, `status_message`, `STATUSMESSAGE`); fields that are left out as nothing was
//! asked for have their plain value. Pure.

use std::str::FromStr;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::Serialize;
use serde_json::{Map, Value};

/// A name, and the path to a field of what bears it; no path = all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named<N> {
    pub(super) name: N,
    pub(super) path: Vec<String>,
}

impl<N: FromStr> FromStr for Named<N> {
    type Err = N::Err;
    fn from_str(text: &str) -> Result<Self, N::Err> {
        // No name holds a slash.
        let mut parts = text.split('/');
        let name = parts.next().unwrap_or_default().parse()?;
        Ok(Self { name, path: parts.filter(|part| !part.is_empty()).map(str::to_owned).collect() })
    }
}

/// Why there is no such field.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FieldError {
    /// What has fields has none of that name.
    #[error("{at} has no field {asked}; it has: {}", .known.join(", "))]
    Unknown { at: String, asked: String, known: Vec<String> },
    /// What has no fields at all.
    #[error("{at} is a plain value, and there is no {asked} within it")]
    Plain { at: String, asked: String },
    /// A list, of which one is asked for by its place.
    #[error("{at} is a list of {len}, and there is no {asked} in it; count from 0")]
    List { at: String, asked: String, len: usize },
}

/// What readers are never told, so that nobody takes it for empty.
const HIDDEN: [&str; 3] = ["password", "once", "earlierLog"];

/// The field of `item` at `path`; `what` names the item for people.
pub(super) fn select<T: Serialize + JsonSchema>(item: &T, what: &str, path: &[String]) -> anyhow::Result<Value> {
    let mut value = serde_json::to_value(item)?;
    let schema = SchemaSettings::draft2020_12().for_serialize().into_generator().into_root_schema_for::<T>().to_value();
    complete(&mut value, &schema, schema.get("$defs").unwrap_or(&Value::Null));
    if let Value::Object(fields) = &mut value {
        fields.retain(|name, _| !HIDDEN.contains(&name.as_str()));
    }
    Ok(descend(&value, path, what).map_err(|error| super::UsageError(error.to_string()))?)
}

/// The fields of `T` that [`select`] knows.
pub(super) fn names<T: JsonSchema>() -> Vec<String> {
    let schema = SchemaSettings::draft2020_12().for_serialize().into_generator().into_root_schema_for::<T>().to_value();
    let fields = schema.get("properties").and_then(Value::as_object);
    let names = fields.into_iter().flat_map(|fields| fields.keys().cloned());
    names.filter(|name| !HIDDEN.contains(&name.as_str())).collect()
}

/// How a value is shown to people and scripts: text as it is, and JSON only what has parts.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(_) | Value::Object(_) => format!("{value:#}"),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

fn descend(value: &Value, path: &[String], at: &str) -> Result<Value, FieldError> {
    let Some((first, rest)) = path.split_first() else { return Ok(value.clone()) };
    match value {
        // Not set, and so is all within.
        Value::Null => Ok(Value::Null),
        Value::Object(fields) => {
            let (key, field, rest) = field(fields, path).ok_or_else(|| FieldError::Unknown {
                at: at.to_owned(),
                asked: first.clone(),
                known: fields.keys().cloned().collect(),
            })?;
            descend(field, rest, key)
        }
        Value::Array(items) => match first.parse::<usize>().ok().and_then(|place| items.get(place)) {
            Some(item) => descend(item, rest, &format!("{at}/{first}")),
            None => Err(FieldError::List { at: at.to_owned(), asked: first.clone(), len: items.len() }),
        },
        Value::String(_) | Value::Bool(_) | Value::Number(_) => {
            Err(FieldError::Plain { at: at.to_owned(), asked: first.clone() })
        }
    }
}

/// The field that a path begins with, and the rest of the path. Keys of labels and resources may hold slashes themselves.
fn field<'v, 'p>(fields: &'v Map<String, Value>, path: &'p [String]) -> Option<(&'v str, &'v Value, &'p [String])> {
    for length in (1..=path.len()).rev() {
        let (key, rest) = path.split_at_checked(length)?;
        if let Some((key, field)) = fields.get_key_value(&key.join("/")) {
            return Some((key, field, rest));
        }
    }
    let (first, rest) = path.split_first()?;
    let (key, field) = fields.iter().find(|(key, _)| letters(key) == letters(first))?;
    Some((key, field, rest))
}

/// What counts of a field's name.
fn letters(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// Adds what was left out as it is zero, empty or not set.
fn complete(value: &mut Value, schema: &Value, defs: &Value) {
    let schema = resolve(schema, defs);
    match value {
        Value::Object(fields) => {
            for (name, schema) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
                let field = fields.entry(name.clone()).or_insert_with(|| zero(schema, defs));
                complete(field, schema, defs);
            }
        }
        Value::Array(items) => {
            let Some(schema) = schema.get("items") else { return };
            items.iter_mut().for_each(|item| complete(item, schema, defs));
        }
        _ => {}
    }
}

/// The schema that is meant: behind a reference, and of what may be missing.
fn resolve<'s>(schema: &'s Value, defs: &'s Value) -> &'s Value {
    let choices = schema.get("anyOf").and_then(Value::as_array);
    let optional = choices.filter(|choices| choices.iter().any(is_null)).and_then(|choices| choices.first());
    let schema = optional.unwrap_or(schema);
    let name = schema.get("$ref").and_then(Value::as_str).and_then(|path| path.strip_prefix("#/$defs/"));
    name.and_then(|name| defs.get(name)).unwrap_or(schema)
}

fn is_null(schema: &Value) -> bool {
    schema.get("type").and_then(Value::as_str) == Some("null")
}

/// The value of a field that is left out. Of words, the first is what holds if nobody says otherwise.
fn zero(schema: &Value, defs: &Value) -> Value {
    if schema.get("anyOf").and_then(Value::as_array).is_some_and(|choices| choices.iter().any(is_null)) {
        return Value::Null;
    }
    let schema = resolve(schema, defs);
    let word = schema.get("oneOf").and_then(|words| words.get(0)).and_then(|word| word.get("const"));
    if let Some(word) = word.or_else(|| schema.get("enum").and_then(|words| words.get(0))) {
        return word.clone();
    }
    match schema.get("type").and_then(Value::as_str) {
        Some("integer" | "number") => 0.into(),
        Some("boolean") => false.into(),
        Some("string") => "".into(),
        Some("array") => Value::Array(Vec::new()),
        Some("object") => Value::Object(Map::new()),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::list::tests::{vm, worker};
    use crate::model::vm::{StartupScript, Vm, VmStatus};
    use crate::model::{AccountName, VmName};

    fn of(vm: &Vm, path: &str) -> Result<String, String> {
        let path: Vec<String> = path.split('/').map(str::to_owned).collect();
        select(vm, "VM a", &path).map(|value| plain(&value)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_field_is_found_however_it_is_written() {
        let mut vm = vm("a", VmStatus::Running);
        vm.status_message = "well".into();
        vm.spec.labels.insert("org.example/role".into(), "ci".into());
        for path in ["status", "Status", "STATUS"] {
            assert_eq!(of(&vm, path).as_deref(), Ok("running"));
        }
        for path in ["statusmessage", "StatusMessage", "status_message", "status-message"] {
            assert_eq!(of(&vm, path).as_deref(), Ok("well"));
        }
        assert_eq!(of(&vm, "labels/org.example/role").as_deref(), Ok("ci"));
        assert_eq!(of(&vm, "conditions/1/type").as_deref(), Ok("running"));
        assert_eq!(of(&vm, "createdat").as_deref(), Ok("1970-01-01T00:00:00.000Z"));
        let worker = worker("w");
        let cores = select(&worker, "worker w", &["load".into(), "cpuPermille".into()]).unwrap();
        assert_eq!(plain(&cores), "375");
    }

    #[test]
    fn what_is_left_out_has_its_plain_value() {
        let vm = vm("a", VmStatus::Pending);
        for (path, value) in [
            ("cpu", "0"),
            ("worker", ""),
            ("nested", "false"),
            ("netSoftnetAllow", "[]"),
            ("resources", "{}"),
            ("powerState", "running"),
            ("onUnseen", "keep"),
            ("firmware", "default"),
            ("imagePullPolicy", "IfNotPresent"),
            ("startup_script/script_content", ""),
            ("restart_policy", "Never"),
        ] {
            assert_eq!(of(&vm, path).as_deref(), Ok(value), "{path}");
        }
        let script = StartupScript { script_content: "echo\n".into(), ..Default::default() };
        let mut with = vm.clone();
        with.spec.startup_script = Some(script);
        assert_eq!(of(&with, "startupscript/scriptcontent").as_deref(), Ok("echo\n"));
        assert_eq!(of(&with, "startup_script/env").as_deref(), Ok("{}"));
    }

    #[test]
    fn a_field_that_is_not_there_names_those_that_are() {
        let vm = vm("a", VmStatus::Pending);
        let why = of(&vm, "colour").unwrap_err();
        assert!(why.starts_with("VM a has no field colour; it has: arch, assigned, "), "{why}");
        assert!(why.contains(", worker") && !why.contains("password"), "{why}");
        assert!(of(&vm, "password").is_err() && of(&vm, "once/key").is_err());
        assert_eq!(of(&vm, "status/x").unwrap_err(), "status is a plain value, and there is no x within it");
        let why = of(&vm, "conditions/2").unwrap_err();
        assert_eq!(why, "conditions is a list of 2, and there is no 2 in it; count from 0");
    }

    #[test]
    fn every_field_that_is_told_of_is_there() {
        let vm = vm("a", VmStatus::Pending);
        let names = names::<Vm>();
        assert!(names.len() > 30 && names.contains(&"status_message".to_owned()), "{names:?}");
        assert!(!names.contains(&"password".to_owned()));
        for name in names {
            assert!(of(&vm, &name).is_ok(), "{name}");
        }
    }

    #[test]
    fn a_path_stands_behind_the_name() {
        let read = "a.b/labels/x".parse::<Named<VmName>>().unwrap();
        assert_eq!((read.name.as_str(), read.path), ("a.b", vec!["labels".to_owned(), "x".to_owned()]));
        assert_eq!("a/".parse::<Named<VmName>>().unwrap().path, Vec::<String>::new());
        assert!("/status".parse::<Named<VmName>>().is_err() && "".parse::<Named<AccountName>>().is_err());
    }
}
