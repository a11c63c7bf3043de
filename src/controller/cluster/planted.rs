//! Planted bugs of more than a line, for the simulation; only in unit tests.

use super::{Changes, Cluster};
use crate::model::planted::{Bug, planted};
use crate::model::{Now, VmUid, WorkerName};

impl Cluster {
    /// When time first passes after a start, whoever has not registered yet is taken for dead.
    pub(super) fn presume_dead(&mut self, now: Now, changes: &mut Changes) {
        if planted(Bug::RestartFailsVms) && self.ticked.is_none() {
            let absent = self.workers.iter().filter(|(_, entry)| entry.live.is_none());
            let absent: Vec<WorkerName> = absent.map(|(name, _)| name.clone()).collect();
            self.fail_all_on(&absent, now, changes);
        }
    }

    /// What runs on a silent worker starts over elsewhere at once.
    pub(super) fn replace_at_once(&mut self, silent: &[WorkerName], now: Now, changes: &mut Changes) {
        if planted(Bug::ReplacedTooSoon) {
            self.fail_all_on(silent, now, changes);
        }
    }

    fn fail_all_on(&mut self, workers: &[WorkerName], now: Now, changes: &mut Changes) {
        for worker in workers {
            let vms: Vec<VmUid> = self.workers.get(worker).map_or_else(Vec::new, |e| e.vms.iter().copied().collect());
            for uid in vms {
                self.failed(worker, uid, "its worker is silent".to_owned(), now, changes);
            }
        }
    }
}
