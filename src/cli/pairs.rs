//! `k=v` lists and other small values of options, read for clap. Pure.

use std::collections::{BTreeMap, VecDeque};
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

/// Leaves of `items` the last `count`.
pub(super) fn keep_last<T>(items: &mut VecDeque<T>, count: u64) {
    let excess = items.len().saturating_sub(usize::try_from(count).unwrap_or(usize::MAX));
    items.drain(..excess);
}

/// Reads an amount of bytes: `10GB`, `512MiB`, or a number of bytes.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 9] = [
        ("", 1),
        ("b", 1),
        ("kb", 1_000),
        ("mb", 1_000_000),
        ("gb", 1_000_000_000),
        ("tb", 1_000_000_000_000),
        ("mib", 1 << 20),
        ("gib", 1 << 30),
        ("tib", 1 << 40),
    ];
    let wrong = || format!("{text:?} is not an amount of bytes; write it like 10GB, 512MiB or 0");
    let trimmed = text.trim();
    let end = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at_checked(end).ok_or_else(wrong)?;
    let unit = unit.trim().to_ascii_lowercase();
    let (_, factor) = UNITS.into_iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(factor).ok_or_else(wrong)
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
    fn amounts_of_bytes_are_read_with_their_units() {
        let read = [("0", 0), ("7", 7), ("10GB", 10_000_000_000), ("512 MiB", 512 << 20), ("1gib", 1 << 30), ("2b", 2)];
        for (text, expected) in read {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for wrong in ["", "GB", "1.5GB", "-1", "10 parsecs", "99999999999999999999", "99999999999TB"] {
            assert!(bytes(wrong).unwrap_err().contains("10GB"), "{wrong}");
        }
    }

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
