//! One page of figures: filled by the sources, written as OpenMetrics text, which Prometheus and its kin read.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::names::{self, Family, Kind};
use super::{Counter, Histogram, Reading};

/// What the text is, for the header of an answer.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The labels of a sample and their values.
type Labels = Vec<(&'static str, String)>;

/// One figure.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Of a gauge.
    Gauge(f64),
    /// Of a counter.
    Counter(u64),
    /// Of a histogram.
    Histogram(Reading),
}

impl From<&Counter> for Value {
    fn from(counter: &Counter) -> Self {
        Value::Counter(counter.get())
    }
}

impl From<&Histogram> for Value {
    fn from(histogram: &Histogram) -> Self {
        Value::Histogram(histogram.read())
    }
}

impl From<Reading> for Value {
    fn from(reading: Reading) -> Self {
        Value::Histogram(reading)
    }
}

/// Figures of all sources, each metric once.
#[derive(Debug)]
pub struct Page {
    /// One for each of [`names::ALL`].
    samples: Vec<Vec<(Labels, Value)>>,
}

impl Default for Page {
    fn default() -> Self {
        Self { samples: vec![Vec::new(); names::ALL.len()] }
    }
}

impl Page {
    /// Adds a figure of what is the case now.
    pub fn gauge(&mut self, family: &'static Family, labels: &[&str], value: f64) {
        self.put(family, labels, Value::Gauge(value));
    }

    /// The same for a number of things.
    pub fn number(&mut self, family: &'static Family, labels: &[&str], value: u64) {
        self.gauge(family, labels, value as f64);
    }

    /// Adds a figure; `labels` are the values of the family's labels, in their order. One that does not fit its family is left
    /// out.
    pub fn put(&mut self, family: &'static Family, labels: &[&str], value: impl Into<Value>) {
        let value = value.into();
        let fits = matches!(
            (family.kind, &value),
            (Kind::Gauge, Value::Gauge(_))
                | (Kind::Counter, Value::Counter(_))
                | (Kind::Histogram, Value::Histogram(_))
        );
        debug_assert!(fits && labels.len() == family.labels.len(), "{} {labels:?} {value:?}", family.name);
        let at = names::ALL.iter().position(|known| known.name == family.name);
        if let Some(samples) = at.and_then(|at| self.samples.get_mut(at)).filter(|_| fits) {
            let labels = family.labels.iter().copied().zip(labels.iter().map(|&label| label.to_owned())).collect();
            samples.push((labels, value));
        }
    }

    /// Writes it.
    ///
    /// # Errors
    /// None that is known; the library's.
    pub fn write(self) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut written = String::new();
        text::encode(&mut written, &registry)?;
        Ok(written)
    }
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for (family, samples) in names::ALL.iter().zip(&self.samples).filter(|(_, samples)| !samples.is_empty()) {
            let kind = match family.kind {
                Kind::Gauge => MetricType::Gauge,
                Kind::Counter => MetricType::Counter,
                Kind::Histogram => MetricType::Histogram,
            };
            let mut metric = encoder.encode_descriptor(family.name, family.help, None, kind)?;
            for (labels, value) in samples {
                match labels.is_empty() {
                    true => write_value(&mut metric, value)?,
                    false => write_value(&mut metric.encode_family(labels)?, value)?,
                }
            }
        }
        Ok(())
    }
}

fn write_value(metric: &mut MetricEncoder<'_>, value: &Value) -> Result<(), fmt::Error> {
    match value {
        Value::Gauge(value) => metric.encode_gauge(value),
        Value::Counter(value) => metric.encode_counter::<Labels, u64, u64>(value, None),
        Value::Histogram(Reading { sum, count, buckets }) => {
            metric.encode_histogram::<Labels>(*sum, *count, buckets, None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::SIZES;

    #[test]
    fn a_page_has_help_type_and_samples_of_each_metric_once() {
        let mut page = Page::default();
        page.number(&names::VMS, &["running"], 3);
        let (placements, batch) = (Counter::default(), Histogram::new(SIZES));
        placements.add(7);
        batch.observe(3.0);
        page.put(&names::PLACEMENTS, &[], &placements);
        page.put(&names::COMMIT_BATCH, &[], &batch);
        page.number(&names::WORKER_VMS, &["a\"b"], 1);
        page.number(&names::VMS, &["failed"], 0);
        let text = page.write().unwrap();
        for line in [
            "# TYPE orchard_controller_vms gauge",
            "orchard_controller_vms{status=\"running\"} 3.0",
            "orchard_controller_vms{status=\"failed\"} 0.0",
            "# TYPE orchard_controller_placements counter",
            "orchard_controller_placements_total 7",
            "orchard_controller_commit_batch_bucket{le=\"2.0\"} 0",
            "orchard_controller_commit_batch_bucket{le=\"4.0\"} 1",
            "orchard_controller_commit_batch_bucket{le=\"+Inf\"} 1",
            "orchard_controller_commit_batch_count 1",
            "orchard_controller_worker_vms{worker=\"a\\\"b\"} 1.0",
        ] {
            assert!(text.lines().any(|written| written == line), "{line} is not in\n{text}");
        }
        assert_eq!(text.matches("# TYPE orchard_controller_vms gauge").count(), 1);
        assert!(text.ends_with("# EOF\n"));
    }
}
