//! Numbers for the audit trail. Pure, as all of the core.

use super::{Changes, Cluster};
use crate::model::Now;
use crate::model::audit::{AuditNumber, AuditRecord, Deed};

impl Cluster {
    /// Records `deed` under the next number, to be stored with whatever else the step changes.
    pub fn audit(&mut self, deed: Deed, now: Now, changes: &mut Changes) {
        self.last_audit += 1;
        changes.audit.push(AuditRecord::new(self.last_audit, now.wall, deed));
    }

    /// The last number given to an audit record.
    pub fn last_audit(&self) -> AuditNumber {
        self.last_audit
    }
}
