//! `k=v` lists and other small values of options, read for clap. Pure.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

use crate::model::resources::{Labels, Resources};

/// The longest key or value: keeps a slip of the keyboard from becoming a record of megabytes.
const MAX_LEN: usize = 256;

/// Reads `k=v` of labels.
pub(super) fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = split(text, "label", "role=ci")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Reads a number of cores, MiB or GB.
pub(super) fn amount(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text:?} is not a whole number from 0 up"))
}

/// Reads `k=v` of resources.
pub(super) fn resource(text: &str) -> Result<(String, u64), String> {
    let (key, value) = split(text, "resource", "gpu=1")?;
    let amount = value.parse().map_err(|_| format!("resource {key}: {value:?} is not a whole number from 0 up"))?;
    Ok((key.to_owned(), amount))
}

fn split<'a>(text: &'a str, what: &str, example: &str) -> Result<(&'a str, &'a str), String> {
    let (key, value) =
        text.split_once('=').ok_or_else(|| format!("{text:?} is not a {what}; write KEY=VALUE, such as {example}"))?;
    let (key, value) = (key.trim(), value.trim());
    if key.is_empty() {
        return Err(format!("{text:?} has no key; write KEY=VALUE, such as {example}"));
    }
    if key.len() > MAX_LEN || value.len() > MAX_LEN {
        return Err(format!("a {what} is longer than {MAX_LEN} bytes"));
    }
    Ok((key, value))
}

/// The labels out of options that may be given several times.
pub(super) fn labels(given: Vec<(String, String)>) -> Result<Labels, String> {
    unique(given, "label")
}

/// The resources out of options that may be given several times.
pub(super) fn resources(given: Vec<(String, u64)>) -> Result<Resources, String> {
    unique(given, "resource").map(Resources)
}

fn unique<V>(given: Vec<(String, V)>, what: &str) -> Result<BTreeMap<String, V>, String> {
    let mut all = BTreeMap::new();
    for (key, value) in given {
        if all.contains_key(&key) {
            return Err(format!("{what} {key:?} is given twice"));
        }
        all.insert(key, value);
    }
    Ok(all)
}

/// Reads one of the fixed values of `T`.
pub(super) fn one_of<T: FromStr<Err: Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: T::Err| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_read() {
        assert_eq!(label("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(label("a="), Ok(("a".into(), String::new())));
        assert_eq!(resource(" gpu = 2 "), Ok(("gpu".into(), 2)));
        for bad in ["", "a", "=b", " =b"] {
            assert!(label(bad).is_err(), "{bad:?}");
        }
        for bad in ["gpu=-1", "gpu=1.5", "gpu=", "gpu=99999999999999999999"] {
            assert!(resource(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_key_given_twice_is_refused() {
        assert!(labels(vec![("a".into(), "1".into()), ("a".into(), "1".into())]).is_err());
        assert_eq!(resources(vec![("a".into(), 1), ("b".into(), 2)]).unwrap().get("b"), 2);
    }
}
