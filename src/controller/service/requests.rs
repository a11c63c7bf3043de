//! Counts requests by verb and result, and how long each verb takes: a table of atomics with a row for each verb that is
//! known, so that nobody can make it grow.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::bus::subject::WorkerVerb;
use crate::metrics::page::Page;
use crate::metrics::{Counter, Histogram, QUICK, Reading, names};
use crate::model::access::VERBS;
use crate::model::error::{ApiError, ErrorCode};

/// Results besides `ok`, by their names on the wire.
const CODES: [(ErrorCode, &str); 10] = [
    (ErrorCode::Invalid, "invalid"),
    (ErrorCode::NotFound, "not-found"),
    (ErrorCode::Conflict, "conflict"),
    (ErrorCode::Forbidden, "forbidden"),
    (ErrorCode::Unauthenticated, "unauthenticated"),
    (ErrorCode::Unavailable, "unavailable"),
    (ErrorCode::Timeout, "timeout"),
    (ErrorCode::LimitExceeded, "limit-exceeded"),
    (ErrorCode::UnknownVerb, "unknown-verb"),
    (ErrorCode::Internal, "internal"),
];

/// Figures of all requests since the start.
#[derive(Debug)]
pub(in crate::controller) struct Requests {
    rows: Vec<Row>,
    running: AtomicU64,
}

#[derive(Debug)]
struct Row {
    verb: String,
    done: Counter,
    /// One for each of [`CODES`].
    failed: [Counter; CODES.len()],
    time: Histogram,
}

impl Row {
    fn of(verb: String) -> Self {
        Self { verb, done: Counter::default(), failed: Default::default(), time: Histogram::new(QUICK) }
    }
}

/// What was asked for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Asked<'a> {
    /// By an account.
    Api(&'a str, &'a str),
    /// By a worker.
    Worker(WorkerVerb),
    /// By a machine that joins.
    Join,
}

impl Default for Requests {
    fn default() -> Self {
        let api = VERBS.iter().map(|rule| format!("{}.{}", rule.resource, rule.verb));
        let workers = WorkerVerb::ALL.iter().map(|verb| format!("worker.{}", verb.as_str()));
        let rows = api.chain(workers).chain(["join".to_owned(), "unknown".to_owned()]).map(Row::of).collect();
        Self { rows, running: AtomicU64::new(0) }
    }
}

impl Requests {
    /// A request has come.
    pub(super) fn begin(&self, asked: Asked<'_>) -> Underway<'_> {
        let (api, workers) = (VERBS.len(), WorkerVerb::ALL.len());
        let at = match asked {
            Asked::Api(resource, verb) => VERBS
                .iter()
                .position(|rule| rule.resource == resource && rule.verb == verb)
                .unwrap_or(api + workers + 1),
            Asked::Worker(verb) => api + WorkerVerb::ALL.iter().position(|one| *one == verb).unwrap_or(0),
            Asked::Join => api + workers,
        };
        self.running.fetch_add(1, Ordering::Relaxed);
        Underway { requests: self, at, since: Instant::now() }
    }

    /// Puts the figures on a page: of verbs that were asked for.
    pub(in crate::controller) fn write(&self, page: &mut Page) {
        for row in self.rows.iter().filter(|row| row.time.read().count > 0) {
            page.put(&names::REQUESTS, &[&row.verb, "ok"], &row.done);
            for ((_, code), counter) in CODES.iter().zip(&row.failed).filter(|(_, counter)| counter.get() > 0) {
                page.put(&names::REQUESTS, &[&row.verb, code], counter);
            }
            page.put(&names::REQUEST, &[&row.verb], &row.time);
        }
        page.number(&names::REQUESTS_RUNNING, &[], self.running());
    }

    /// How many are being worked on.
    pub(in crate::controller) fn running(&self) -> u64 {
        self.running.load(Ordering::Relaxed)
    }

    /// All that accounts, workers and machines have asked for, and how many of these failed on our side.
    pub(in crate::controller) fn all(&self) -> (Reading, u64) {
        let (mut all, mut failed) = (Reading::default(), 0);
        for row in &self.rows {
            all.absorb(&row.time.read());
            let ours = [ErrorCode::Unavailable, ErrorCode::Timeout, ErrorCode::Internal];
            failed += CODES
                .iter()
                .zip(&row.failed)
                .filter(|((code, _), _)| ours.contains(code))
                .map(|(_, n)| n.get())
                .sum::<u64>();
        }
        (all, failed)
    }
}

/// A request that is worked on; not counted as answered when it is dropped half-way.
#[derive(Debug)]
pub(super) struct Underway<'a> {
    requests: &'a Requests,
    at: usize,
    since: Instant,
}

impl Underway<'_> {
    /// It is answered.
    pub(super) fn answered<T>(self, answer: &Result<T, ApiError>) {
        let Some(row) = self.requests.rows.get(self.at) else { return };
        row.time.took(self.since.elapsed());
        match answer {
            Ok(_) => row.done.inc(),
            Err(error) => {
                let at = CODES.iter().position(|(code, _)| *code == error.code).unwrap_or(CODES.len() - 1);
                if let Some(counter) = row.failed.get(at) {
                    counter.inc();
                }
            }
        }
    }
}

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        self.requests.running.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_has_a_row_and_others_share_one() {
        let requests = Requests::default();
        for rule in VERBS {
            requests.begin(Asked::Api(rule.resource, rule.verb)).answered(&Ok(()));
        }
        for verb in WorkerVerb::ALL {
            requests.begin(Asked::Worker(verb)).answered(&Ok(()));
        }
        requests.begin(Asked::Join).answered(&Ok(()));
        assert!(requests.rows.iter().rev().skip(1).all(|row| row.done.get() == 1), "{requests:?}");
        for verb in ["a", "b"] {
            let refused = Err::<(), _>(ApiError::new(ErrorCode::UnknownVerb, "?"));
            requests.begin(Asked::Api("x", verb)).answered(&refused);
        }
        assert_eq!(requests.rows.last().unwrap().failed[8].get(), 2);
        assert_eq!((requests.running(), requests.all().0.count), (0, VERBS.len() as u64 + 8));
    }

    #[test]
    fn results_are_named_as_on_the_wire() {
        for (code, name) in CODES {
            assert_eq!(serde_json::to_value(code).unwrap(), name);
        }
    }
}
