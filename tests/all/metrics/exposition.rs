//! Reads a page of figures as strictly as OpenMetrics is written: whatever is on it must belong there.

use std::collections::{BTreeMap, BTreeSet};

/// A page that was read.
#[derive(Debug, Default)]
pub struct Page {
    /// Names of metrics and what they are.
    pub kinds: BTreeMap<String, String>,
    /// Samples by all that stands before the value.
    pub samples: BTreeMap<String, f64>,
}

impl Page {
    /// Reads all of `text`.
    ///
    /// # Panics
    /// At the first line that does not belong there.
    pub fn read(text: &str) -> Self {
        let mut page = Page::default();
        let (mut helped, mut family) = (BTreeSet::new(), String::new());
        let body = text.strip_suffix("# EOF\n").unwrap_or_else(|| panic!("does not end in EOF: {text}"));
        for line in body.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap_or_else(|| panic!("no help: {line}"));
                assert!(!help.trim().is_empty() && helped.insert(name.to_owned()), "twice or empty: {line}");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap_or_else(|| panic!("no type: {line}"));
                assert!(helped.contains(name), "type before help: {line}");
                assert!(matches!(kind, "gauge" | "counter" | "histogram"), "{line}");
                assert!(page.kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "twice: {line}");
                family = name.to_owned();
            } else {
                page.sample(line, &family);
            }
        }
        assert!(page.kinds.keys().all(|name| helped.contains(name)) && helped.len() == page.kinds.len());
        page.check_histograms();
        page
    }

    fn sample(&mut self, line: &str, family: &str) {
        let (id, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line:?}"));
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
        let (name, labels) = match id.split_once('{') {
            Some((name, labels)) => (name, labels.strip_suffix('}').unwrap_or_else(|| panic!("open: {line}"))),
            None => (id, ""),
        };
        let ending = name.strip_prefix(family).unwrap_or_else(|| panic!("not of {family}: {line}"));
        let endings: &[&str] = match self.kinds[family].as_str() {
            "gauge" => &[""],
            "counter" => &["_total"],
            _ => &["_bucket", "_sum", "_count"],
        };
        assert!(endings.contains(&ending), "{ending:?} of a {}: {line}", self.kinds[family]);
        for label in labels.split("\",").filter(|label| !label.is_empty()) {
            let (name, value) = label.split_once("=\"").unwrap_or_else(|| panic!("no label: {line}"));
            assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{line}");
            assert!(!value.trim_end_matches('"').contains(['"', '\n']), "{line}");
        }
        assert!(value >= 0.0, "{line}");
        assert!(self.samples.insert(id.to_owned(), value).is_none(), "twice: {line}");
    }

    /// Buckets grow up to the last, which is the count.
    fn check_histograms(&self) {
        let parts = |id: &str| {
            let (name, labels) = id.split_once("_bucket{").map(|(name, rest)| (name.to_owned(), rest.to_owned()))?;
            let labels = labels.trim_end_matches('}').to_owned();
            let own = labels.split(',').filter(|label| !label.starts_with("le=")).collect::<Vec<_>>().join(",");
            let le = labels.split("le=\"").nth(1)?.split('"').next()?.to_owned();
            let le = if le == "+Inf" { f64::INFINITY } else { le.parse().ok()? };
            Some((name, own, le))
        };
        let mut all: BTreeMap<(String, String), Vec<(f64, f64)>> = BTreeMap::new();
        for (id, value) in self.samples.iter().filter(|(id, _)| id.contains("_bucket{")) {
            let (name, own, le) = parts(id).unwrap_or_else(|| panic!("no bucket: {id}"));
            all.entry((name, own)).or_default().push((le, *value));
        }
        for ((name, own), mut buckets) in all {
            buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
            assert!(buckets.windows(2).all(|pair| pair[0].1 <= pair[1].1), "{name} {own}: {buckets:?}");
            let labels = if own.is_empty() { String::new() } else { format!("{{{own}}}") };
            let count = self.samples.get(&format!("{name}_count{labels}"));
            assert_eq!(buckets.last().map(|(le, count)| (*le, count)), count.map(|c| (f64::INFINITY, c)), "{name}");
            assert!(self.samples.contains_key(&format!("{name}_sum{labels}")), "{name} {own}");
        }
    }

    /// The value of a sample; 0 when it is not there.
    pub fn value(&self, id: &str) -> f64 {
        self.samples.get(id).copied().unwrap_or(0.0)
    }
}
