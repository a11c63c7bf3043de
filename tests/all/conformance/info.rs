//! INFO of the two servers: what a script asks of it, and which fields there are.

use serde_json::Value;

use super::certificate::Identity;
use super::peer::Peer;
use super::script;
use super::server::Server;

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

/// Fields whose values must be the same, too. `tls_available` is among them although we never send it: nats-server does so
/// where clients may go without TLS (`allow_non_tls`) and nowhere else, and ours has no such setting.
const SAME: &[&str] = &[
    "proto",
    "headers",
    "max_payload",
    "auth_required",
    "tls_required",
    "tls_verify",
    "tls_available",
    "jetstream",
    "ldm",
];

async fn greet(server: &Server) -> Result<Peer, String> {
    match server.setup.is_tls_first() {
        true => Peer::first(server.port, Identity::Nobody).await,
        false => Peer::connect(server.port).await,
    }
}

/// The release that the server says it is.
pub async fn release(server: &Server) -> Option<(u32, u32)> {
    greet(server).await.ok().and_then(|peer| script::release(peer.info["version"].as_str()?))
}

/// Compares the fields, their types, and values that must be the same; yields what differs without a reason.
pub async fn compare(ours: &Server, theirs: &Server) -> Vec<String> {
    let setup = ours.setup;
    let (ours, theirs) = match (greet(ours).await, greet(theirs).await) {
        (Ok(ours), Ok(theirs)) => (ours, theirs),
        (ours, theirs) => return vec![format!("{setup:?}: no INFO to compare: {:?} {:?}", ours.err(), theirs.err())],
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
    for field in SAME {
        if ours.get(field) != theirs.get(field) {
            wrong.push(format!("{setup:?}: INFO {field}: {:?}, not {:?}", ours.get(field), theirs.get(field)));
        }
    }
    for field in ours.as_object().into_iter().flatten().map(|(field, _)| field) {
        if theirs.get(field).is_none() {
            wrong.push(format!("{setup:?}: INFO has {field}, which nats-server does not send"));
        }
    }
    wrong
}
