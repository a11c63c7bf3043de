//! JSON Schemas of types that write themselves as text, and of enums to which later releases may add. The others have theirs
//! by derive; `schemas/` holds what comes out of it. Pure.

use schemars::Schema;
use serde_json::Value;

/// Gives types that stand on the wire as text their schema: what it says of the text, each with its value.
macro_rules! text_schema {
    ($($type:ident { $($key:literal: $value:expr),+ $(,)? })+) => {$(
        impl schemars::JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                $crate::model::schema::text(&[$(($key, serde_json::Value::from($value))),+])
            }
        }
    )+};
}

/// Text of which `form` says more.
pub(crate) fn text(form: &[(&str, Value)]) -> Schema {
    let mut schema = Schema::default();
    schema.insert("type".to_owned(), "string".into());
    for (key, value) in form {
        schema.insert((*key).to_owned(), value.clone());
    }
    schema
}

/// Opens the schema of an enum of words: later releases may send others, and whoever reads must take them. What this
/// release makes of such a one is no value of its own.
pub(crate) fn open_enum(schema: &mut Schema) {
    let Some(Value::Array(known)) = schema.remove("oneOf") else { return };
    let is_sent = |value: &Value| value.get("const").and_then(Value::as_str) != Some("unknown");
    let mut later = Schema::default();
    later.insert("type".to_owned(), "string".into());
    later.insert("description".to_owned(), "A value of a later release.".into());
    let any = known.into_iter().filter(is_sent).chain([later.to_value()]).collect();
    schema.insert("anyOf".to_owned(), Value::Array(any));
}

/// The same for an enum of objects, told apart by their field `kind`: of another kind nothing else is known.
pub(crate) fn open_objects(schema: &mut Schema) {
    let Some(Value::Array(known)) = schema.remove("oneOf") else { return };
    let is_sent = |value: &Value| value.pointer("/properties/kind/const").and_then(Value::as_str) != Some("unknown");
    let later = serde_json::json!({
        "type": "object",
        "description": "One of a later release.",
        "properties": { "kind": { "type": "string" } },
        "required": ["kind"],
    });
    let any = known.into_iter().filter(is_sent).chain([later]).collect();
    schema.insert("anyOf".to_owned(), Value::Array(any));
}
