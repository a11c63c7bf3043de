//! Around each request: how many an account, a worker or a join token may have under way, and what the audit trail says of
//! it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::Context;
use crate::bus::message;
use crate::bus::subject::WorkerVerb;
use crate::controller::audit::outcome_of;
use crate::model::AccountName;
use crate::model::access;
use crate::model::audit::{AuditType, Deed, Outcome};
use crate::model::error::{ApiError, ErrorCode};

/// Requests that an account may have under way. Far more than a program that waits for its answers has, and so few that
/// one account cannot fill the lane of all.
pub(super) const MAX_PER_ACCOUNT: usize = 128;
/// The same for a join token: a fleet may come with one.
pub(super) const MAX_PER_JOIN: usize = 128;

/// The same for a worker. It has one registration and one heartbeat on the way, perhaps with one before it that was given
/// up; 32 reports; and a batch of lines for each VM, where those beyond are sent again.
pub(super) fn most_of_worker(verb: WorkerVerb) -> usize {
    match verb {
        WorkerVerb::Hello | WorkerVerb::Heartbeat => 8,
        WorkerVerb::Report => 64,
        WorkerVerb::Log => 256,
    }
}

/// How often it is recorded that somebody has too many under way.
const TELL: Duration = Duration::from_secs(60);

/// Counts the requests under way by who sent them. Those are users who have proven who they are, so there are only so many.
#[derive(Debug)]
pub(super) struct InFlight<K: Hash + Eq> {
    most: usize,
    counts: Arc<Mutex<HashMap<K, Count>>>,
}

#[derive(Debug, Default)]
struct Count {
    underway: usize,
    /// When it was last recorded that some were refused, if that was of late.
    told: Option<Instant>,
}

/// One request under way; over when it is dropped.
#[derive(Debug)]
pub(super) struct Underway<K: Hash + Eq> {
    counts: Arc<Mutex<HashMap<K, Count>>>,
    who: K,
}

/// There are as many as may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooMany {
    most: usize,
    /// Whether it is the first for a while, which is worth a record.
    first: bool,
}

fn locked<K>(counts: &Mutex<HashMap<K, Count>>) -> MutexGuard<'_, HashMap<K, Count>> {
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
        let count = counts.entry(who.clone()).or_default();
        if count.underway >= self.most {
            let first = !count.was_told();
            if first {
                count.told = Some(Instant::now());
            }
            return Err(TooMany { most: self.most, first });
        }
        count.underway += 1;
        Ok(Underway { counts: self.counts.clone(), who: who.clone() })
    }
}

impl Count {
    fn was_told(&self) -> bool {
        self.told.is_some_and(|told| told.elapsed() < TELL)
    }
}

impl<K: Hash + Eq> Drop for Underway<K> {
    fn drop(&mut self) {
        let mut counts = locked(&self.counts);
        if let Some(count) = counts.get_mut(&self.who) {
            count.underway = count.underway.saturating_sub(1);
            if count.underway == 0 && !count.was_told() {
                counts.remove(&self.who);
            }
        }
    }
}

impl TooMany {
    /// The refusal of a request of the bus user `user`; of a flood of them, the first in a minute is recorded. An account is told that
    /// it is its limit; a worker or a machine that joins, to come again, as what it has to say must not be lost.
    pub(super) fn refuse(self, context: &Context, code: ErrorCode, user: &str, verb: &str) -> ApiError {
        let error = ApiError::new(
            code,
            format!(
                "{user} has {} requests under way, which is the limit; wait for answers before sending more",
                self.most
            ),
        );
        if self.first {
            context.auditor.record(Deed {
                kind: AuditType::Request,
                account: user.to_owned(),
                address: context.addresses_of(user),
                verb: verb.to_owned(),
                target: String::new(),
                outcome: Outcome::Refused,
                message: format!("{error}; others in this minute are not recorded"),
            });
        }
        error
    }
}

/// What a request is about, as far as it says so in one of the usual fields.
#[derive(Debug, Default, Deserialize)]
struct Target {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    vm: Option<String>,
    #[serde(default)]
    worker: Option<String>,
    #[serde(default)]
    id: Option<String>,
}

/// One request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub(super) account: &'a AccountName,
    pub(super) resource: &'a str,
    pub(super) verb: &'a str,
    pub(super) payload: &'a [u8],
}

impl Asked<'_> {
    /// Whether it changes something when it is done.
    pub(super) fn changes(&self) -> bool {
        access::rule(self.resource, self.verb).is_some_and(|rule| rule.changes)
    }

    /// Its record, as it is when it is done.
    pub(super) fn deed(&self, context: &Context) -> Deed {
        let target: Target = message::decode(self.payload).unwrap_or_default();
        Deed {
            kind: AuditType::Request,
            account: self.account.to_string(),
            address: context.addresses_of(self.account.as_str()),
            verb: format!("{}.{}", self.resource, self.verb),
            target: target.name.or(target.vm).or(target.worker).or(target.id).unwrap_or_default(),
            outcome: Outcome::Done,
            message: String::new(),
        }
    }

    /// Records that it was refused, or that the change failed.
    pub(super) fn record_failure(&self, context: &Context, error: &ApiError) {
        let outcome = outcome_of(error);
        if outcome == Outcome::Refused || self.changes() {
            context.auditor.record(Deed { outcome, message: error.to_string(), ..self.deed(context) });
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
        let refused = |first| TooMany { most: MAX_PER_ACCOUNT, first };
        assert_eq!(in_flight.begin(&ann).unwrap_err(), refused(true));
        assert_eq!(in_flight.begin(&ann).unwrap_err(), refused(false), "one record is enough");
        let other = in_flight.begin(&bob).unwrap();
        held.pop();
        held.push(in_flight.begin(&ann).unwrap());
        drop((held, other));
        let counts = locked(&in_flight.counts);
        assert!(
            counts.len() == 1 && counts[&ann].underway == 0,
            "remembered until it may be told of again: {counts:?}"
        );
    }
}
