//! Numbers for the audit trail. Pure, as all of the core.

use super::{Changes, Cluster};
use crate::bus::subject;
use crate::model::Now;
use crate::model::audit::{AuditNumber, AuditRecord, CONTROLLER, Deed, Outcome};

impl Cluster {
    /// Records `deed` under the next number, to be stored with whatever else the step changes.
    pub fn audit(&mut self, deed: Deed, now: Now, changes: &mut Changes) {
        self.last_audit += 1;
        let mut record = AuditRecord::new(self.last_audit, now.wall, deed);
        // What was done was done by somebody who might: an account may have ended itself by it.
        record.stranger |= record.outcome != Outcome::Done && !self.knows(&record.account);
        changes.audit.push(record);
    }

    /// Whether there is an account, worker or token to join with that logs in as `user`.
    fn knows(&self, user: &str) -> bool {
        if let Some(worker) = subject::parse_worker_user(user) {
            return self.access.keys.contains_key(&worker) || self.workers.contains_key(&worker);
        }
        if let Some(id) = subject::parse_join_user(user) {
            return self.access.joins.contains_key(&id);
        }
        user == CONTROLLER || user.parse().is_ok_and(|name| self.access.accounts.contains_key(&name))
    }

    /// The last number given to an audit record.
    pub fn last_audit(&self) -> AuditNumber {
        self.last_audit
    }
}
