//! The dashboard asks Prometheus for metrics that the program has, and so do the pages.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

/// Every expression of every panel.
fn expressions(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value.as_str().filter(|_| name == "expr") {
                    Some(expression) => found.push(expression.to_owned()),
                    None => expressions(value, found),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| expressions(value, found)),
        _ => {}
    }
}

/// The names of this program's metrics in an expression.
fn names(expression: &str) -> impl Iterator<Item = &str> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("orchard_"))
}

/// All source, as one text.
fn source(folder: &Path, text: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            source(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn each_metric_that_dashboard_and_pages_ask_for_is_one_that_the_program_has() {
    let dashboard: Value = serde_json::from_str(&super::read("deploy/grafana/orchard.json")).unwrap();
    let mut found = Vec::new();
    expressions(&dashboard, &mut found);
    assert!(found.len() >= 10, "{found:?}");
    // and those that the pages would have people watch
    found.extend(super::pages::all().into_iter().flat_map(|page| page.spans));
    let mut text = String::new();
    source(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut text);
    let asked: BTreeSet<_> = found.iter().flat_map(|expression| names(expression)).collect();
    assert!(!asked.is_empty());
    for name in asked {
        // What a histogram is told as, and counters in the form of OpenMetrics.
        let bases = ["", "_bucket", "_sum", "_count", "_total"].map(|end| name.strip_suffix(end).unwrap_or(name));
        assert!(bases.iter().any(|base| text.contains(&format!("\"{base}\""))), "no metric {name} is in src");
    }
}
