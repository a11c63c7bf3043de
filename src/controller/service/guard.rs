//! Around each API request: how many an account may have under way, and what the audit trail says of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::Context;
use crate::controller::audit::{outcome_of, target_of};
use crate::model::AccountName;
use crate::model::access;
use crate::model::audit::{AuditType, Deed, Outcome};
use crate::model::error::{ApiError, ErrorCode};

/// Requests that an account may have under way. Far more than a program that waits for its answers has, and so few that
/// one account cannot fill the lane of all.
pub(super) const MAX_PER_ACCOUNT: usize = 128;

/// Counts the requests under way by account.
#[derive(Clone, Debug, Default)]
pub(super) struct InFlight(Arc<Mutex<HashMap<AccountName, usize>>>);

/// One request under way; over when it is dropped.
#[derive(Debug)]
pub(super) struct Underway {
    of: InFlight,
    account: AccountName,
}

impl InFlight {
    /// Lets one more request of `account` begin.
    ///
    /// # Errors
    /// [`ErrorCode::LimitExceeded`].
    pub(super) fn begin(&self, account: &AccountName) -> Result<Underway, ApiError> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(account.clone()).or_default();
        if *count >= MAX_PER_ACCOUNT {
            return Err(ApiError::new(
                ErrorCode::LimitExceeded,
                format!(
                    "account {account} has {count} requests under way, which is the limit; wait for answers before \
                     sending more"
                ),
            ));
        }
        *count += 1;
        Ok(Underway { of: self.clone(), account: account.clone() })
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        let mut counts = self.of.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.account) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.remove(&self.account);
            }
        }
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
}

impl Asked<'_> {
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
        }
    }

    /// Records that it was refused, or that the change failed.
    pub(super) fn record_failure(&self, context: &Context, error: &ApiError) {
        let outcome = outcome_of(error);
        let deed = || Deed { outcome, message: error.to_string(), ..self.deed() };
        if error.code == ErrorCode::LimitExceeded {
            context.auditor.limited(deed());
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
        let in_flight = InFlight::default();
        let (ann, bob) = ("ann".parse().unwrap(), "bob".parse().unwrap());
        let mut held: Vec<_> = (0..MAX_PER_ACCOUNT).map(|_| in_flight.begin(&ann).unwrap()).collect();
        assert_eq!(in_flight.begin(&ann).unwrap_err().code, ErrorCode::LimitExceeded);
        let other = in_flight.begin(&bob).unwrap();
        held.pop();
        held.push(in_flight.begin(&ann).unwrap());
        drop((held, other));
        assert!(in_flight.0.lock().unwrap().is_empty());
    }
}
