//! INFO of the two servers: what a script asks of it, and which fields there are.

use serde_json::Value;

use super::peer::Peer;
use super::setup::{Server, Setup};

/// Fields that nats-server sends and we do not, and why.
const THEIRS: &[(&str, &str)] = &[
    ("git_commit", "the build is named by the product, not to clients"),
    ("xkey", "for the auth callout's encrypted requests, which we do not have"),
    ("api_lvl", "a JetStream API level"),
    ("ip", "deprecated twin of host"),
    ("connect_urls", "a nats-server that listens on every address lists the host's; ours lists what it is told to"),
    ("cluster", "no clusters here"),
    ("domain", "a JetStream domain"),
];

/// Whether `info` is what the script says.
pub fn check(info: &Value, wanted: &str) -> Result<(), String> {
    let wanted: Value = serde_json::from_str(wanted).map_err(|e| e.to_string())?;
    for (field, wanted) in wanted.as_object().into_iter().flatten() {
        let found = &info[field];
        let same = match wanted {
            Value::Null => found.is_null() || found == &Value::Bool(false),
            Value::String(any) if any == "<any>" => !found.is_null() && found != "",
            wanted => found == wanted,
        };
        if !same {
            return Err(format!("{field} is {found}, not {wanted}"));
        }
    }
    Ok(())
}

/// Compares the fields and their types; yields what differs without a reason.
pub async fn compare(setup: Setup, ours: &Server, theirs: &Server) -> Vec<String> {
    let (Ok(ours), Ok(theirs)) = (Peer::connect(ours.port).await, Peer::connect(theirs.port).await) else {
        return vec![format!("{setup:?}: no INFO to compare")];
    };
    let kind = |value: &Value| std::mem::discriminant(value);
    let mut wrong = Vec::new();
    let (ours, theirs) = (&ours.info, &theirs.info);
    for (field, value) in theirs.as_object().into_iter().flatten() {
        let excepted = THEIRS.iter().any(|(name, _)| name == field);
        match ours.get(field) {
            None if !excepted => wrong.push(format!("{setup:?}: INFO lacks {field} ({value})")),
            Some(own) if kind(own) != kind(value) => wrong.push(format!("{setup:?}: INFO {field}: {own}, not {value}")),
            _ => {}
        }
    }
    for field in ours.as_object().into_iter().flatten().map(|(field, _)| field) {
        if theirs.get(field).is_none() {
            wrong.push(format!("{setup:?}: INFO has {field}, which nats-server does not send"));
        }
    }
    wrong
}
