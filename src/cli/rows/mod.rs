//! What tables tell of VMs and workers: in lists a row each, in details a row for each of their properties. The columns and rows
//! that users know from elsewhere come first, in the order they know.

pub(super) mod vm;
pub(super) mod worker;

use crate::model::resources::{Labels, Resources};

/// The text, or that there is none.
pub(super) fn or_none(text: String) -> String {
    if text.is_empty() { "none".to_owned() } else { text }
}

fn or_unknown(value: Option<String>) -> String {
    value.unwrap_or_else(|| "not known".to_owned())
}

fn show_resources(resources: &Resources) -> String {
    or_none(resources.0.iter().map(|(name, amount)| format!("{name}: {amount}")).collect::<Vec<_>>().join(", "))
}

fn show_labels(labels: &Labels) -> String {
    or_none(labels.iter().map(|(key, value)| format!("{key}: {value}")).collect::<Vec<_>>().join(", "))
}
