//! Around each request: how many an account, a worker or a join token may have under way, and what the audit trail says of
//! it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::Span;

use super::Context;
use crate::bus::subject::WorkerVerb;
use crate::controller::audit::{outcome_of, target_of};
use crate::model::AccountName;
use crate::model::access;
use crate::model::audit::{AuditType, Deed, Outcome};
use crate::model::error::{ApiError, ErrorCode};
use crate::model::request::RequestId;
use crate::trace;

/// Requests that an account may have under way. Far more than a program that waits for its answers has, and so few that
/// one account cannot fill the lane of all.
pub(super) const MAX_PER_ACCOUNT: usize = 128;
/// The same for a join token: a fleet may come with one.
pub(super) const MAX_PER_JOIN: usize = 128;

/// The same for a worker. It has one registration and one heartbeat on the way, perhaps with one before it that was given
/// up; 32 reports; and a batch of lines for each VM, where those beyond are sent again.
pub(super) fn most_of_worker(verb: WorkerVerb) -> usize {
    match verb {
        WorkerVerb::Hello | WorkerVerb::Heartbeat | WorkerVerb::Images => 8,
        WorkerVerb::Report => 64,
        WorkerVerb::Log => 256,
    }
}

/// Counts the requests under way by who sent them. Those are users who have proven who they are, so there are only so many.
#[derive(Debug)]
pub(super) struct InFlight<K: Hash + Eq> {
    most: usize,
    counts: Arc<Mutex<HashMap<K, usize>>>,
}

/// One request under way; over when it is dropped.
#[derive(Debug)]
pub(super) struct Underway<K: Hash + Eq> {
    counts: Arc<Mutex<HashMap<K, usize>>>,
    who: K,
}

/// There are as many as may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooMany {
    most: usize,
}

fn locked<K>(counts: &Mutex<HashMap<K, usize>>) -> MutexGuard<'_, HashMap<K, usize>> {
    // Nothing panics while it is held.
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Hash + Eq + Clone> InFlight<K> {
    /// At most `most` for each.
    pub(super) fn new(most: usize) -> Self {
        Self { most, counts: Arc::default() }
    }

    /// Lets one more request of `who` begin.
    pub(super) fn begin(&self, who: &K) -> Result<Underway<K>, TooMany> {
        let mut counts = locked(&self.counts);
        let underway = counts.entry(who.clone()).or_default();
        if *underway >= self.most {
            return Err(TooMany { most: self.most });
        }
        *underway += 1;
        Ok(Underway { counts: self.counts.clone(), who: who.clone() })
    }
}

impl<K: Hash + Eq> Drop for Underway<K> {
    fn drop(&mut self) {
        let mut counts = locked(&self.counts);
        if let Some(underway) = counts.get_mut(&self.who) {
            *underway = underway.saturating_sub(1);
            if *underway == 0 {
                counts.remove(&self.who);
            }
        }
    }
}

impl TooMany {
    /// The refusal of a request of the bus user `user`. An account is told that it is its limit; a worker or a machine that
    /// joins, to come again, as what it has to say must not be lost.
    pub(super) fn refusal(self, code: ErrorCode, user: &str) -> ApiError {
        let most = self.most;
        let what =
            format!("{user} has {most} requests under way, which is the limit; wait for answers before sending more");
        ApiError::new(code, what)
    }

    /// The same for a worker or a machine that joins, which the audit trail counts.
    pub(super) fn refuse(self, context: &Context, user: &str, verb: &str, address: String) -> ApiError {
        let error = self.refusal(ErrorCode::Unavailable, user);
        context.auditor.met_limit(Deed {
            kind: AuditType::Request,
            account: user.to_owned(),
            address,
            verb: verb.to_owned(),
            target: String::new(),
            outcome: Outcome::Refused,
            message: error.to_string(),
            request: String::new(),
        });
        error
    }
}

/// One request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub(super) account: &'a AccountName,
    pub(super) resource: &'a str,
    pub(super) verb: &'a str,
    pub(super) payload: &'a [u8],
    /// What it was sent to.
    pub(super) subject: &'a str,
    /// From where; empty when that is not known.
    pub(super) address: &'a str,
    /// What the asker calls it.
    pub(super) request: Option<&'a RequestId>,
}

impl Asked<'_> {
    /// What is logged and traced of it.
    pub(super) fn span(&self) -> Span {
        let Self { account, resource, verb, .. } = self;
        let id = self.request.map(tracing::field::display);
        match trace::exports() {
            false => tracing::info_span!(target: trace::TARGET, "request", id, %account, resource, verb),
            true => {
                let name = match access::rule(resource, verb) {
                    Some(_) => format!("{resource}.{verb}"),
                    None => "unknown".to_owned(),
                };
                tracing::info_span!(target: trace::TARGET, "request", id, %account, otel.kind = "server", otel.name = name)
            }
        }
    }

    /// Whether it changes something when it is done.
    pub(super) fn changes(&self) -> bool {
        access::rule(self.resource, self.verb).is_some_and(|rule| rule.changes)
    }

    /// Its record, as it is when it is done.
    pub(super) fn deed(&self) -> Deed {
        Deed {
            kind: AuditType::Request,
            account: self.account.to_string(),
            address: self.address.to_owned(),
            verb: format!("{}.{}", self.resource, self.verb),
            target: target_of(self.payload, self.subject),
            outcome: Outcome::Done,
            message: String::new(),
            request: self.request.map(ToString::to_string).unwrap_or_default(),
        }
    }

    /// Records that it was refused, or that the change failed.
    pub(super) fn record_failure(&self, context: &Context, error: &ApiError) {
        let outcome = outcome_of(error);
        let deed = || Deed { outcome, message: error.to_string(), ..self.deed() };
        if error.code == ErrorCode::LimitExceeded {
            context.auditor.met_limit(deed());
        } else if outcome == Outcome::Refused || self.changes() {
            context.auditor.record(deed());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_accounts_flood_is_refused_and_anothers_request_is_not() {
        let in_flight = InFlight::new(MAX_PER_ACCOUNT);
        let (ann, bob): (AccountName, AccountName) = ("ann".parse().unwrap(), "bob".parse().unwrap());
        let mut held: Vec<_> = (0..MAX_PER_ACCOUNT).map(|_| in_flight.begin(&ann).unwrap()).collect();
        assert_eq!(in_flight.begin(&ann).unwrap_err(), TooMany { most: MAX_PER_ACCOUNT });
        let other = in_flight.begin(&bob).unwrap();
        held.pop();
        held.push(in_flight.begin(&ann).unwrap());
        drop((held, other));
        assert!(locked(&in_flight.counts).is_empty(), "nothing is remembered of those who have none");
    }
}
