//! Data folders of workers that were copied: which of those that show one key is the worker. Called when one registers.

use super::{Cluster, WorkerEntry};
use crate::bus::message::Hello;
use crate::model::error::{ApiError, ErrorCode};
use crate::model::place::Place;
use crate::model::vm::VmStatus;
use crate::model::{Now, VmName, WorkerName};

/// What to do with a copied data folder.
const OWN_KEY: &str = "stop this worker, remove worker.nk, worker.join and machine-id from the copy, and join with a token of \
                       `orchard get bootstrap-token` and a --name of its own";
/// VMs named in the refusal; more help nobody.
const NAMED: usize = 3;

impl Cluster {
    /// Refuses a copy of a worker's data folder that was taken to another machine: one that shows the key with another
    /// machine's id, and one that comes from another place while the worker is heard of, or while VMs may run where it was. Of
    /// two that use one key, the first stays for as long as it is heard of; two that take the session from each other
    /// would run every VM twice. And a copy knows nothing of the VMs of the first: it would report them as lost, and the first
    /// would have to remove them when it is back.
    pub(super) fn check_machine(&self, name: &WorkerName, hello: &Hello, now: Now) -> Result<(), ApiError> {
        let key = self.access.keys.get(name);
        if key.is_some_and(|key| key.machine_id != hello.info.machine_id) {
            let what = format!(
                "the key of worker {name} was given to another machine than this one, going by the file machine-id in the \
                 data folder. If this folder is a copy, {OWN_KEY}. If this is that very machine, put its machine-id file \
                 back, or take it out of the cluster (`orchard delete worker {name}`) and let it join again"
            );
            return Err(ApiError::new(ErrorCode::Conflict, what));
        }
        let Some(entry) = self.workers.get(name) else { return Ok(()) };
        if entry.place.is_empty() || entry.place == hello.place {
            return Ok(());
        }
        let silence = now.mono.saturating_sub(entry.heard);
        if silence <= self.timing.unseen {
            let (unseen, silence) = (self.timing.unseen.as_secs_f64(), silence.as_secs_f64());
            let what = format!(
                "worker {name} runs in another place with the same key, and was heard of {silence:.1} s ago. If this data \
                 folder is a copy, {OWN_KEY}. If the other one is gone, this one is let in {unseen} s after it was last heard \
                 of, or, while VMs are placed there, only as the same folder after a reboot of its machine"
            );
            return Err(ApiError::new(ErrorCode::Unavailable, what));
        }
        // One of the older form tells nothing but that it is another.
        let Some(before) = Place::read(&entry.place) else { return Ok(()) };
        let found = match Place::read(&hello.place) {
            Some(here) if here.is_after_reboot_of(&before) => return Ok(()),
            Some(here) if here.host != before.host => "this is another machine",
            Some(_) => "this is another data folder on that machine",
            None => "this worker does not say where it runs, as older versions do not",
        };
        let placed = self.may_still_run(entry);
        if placed.is_empty() {
            return Ok(());
        }
        let named: Vec<&str> = placed.iter().take(NAMED).map(|name| name.as_str()).collect();
        let more = if placed.len() > named.len() { ", …" } else { "" };
        let what = format!(
            "worker {name} is not let in from here: {} VMs are placed where it ran last ({}{more}), and {found}. It was last \
             heard of {} s ago, which does not mean that its VMs have ended, and from here they would be taken for lost. Start \
             it on the machine and from the data folder where it was. If those are gone for good, give the VMs up with \
             `orchard delete worker {name} --force` and let this one join again. If this data folder is a copy, {OWN_KEY}",
            placed.len(),
            named.join(", "),
            silence.as_secs()
        );
        Err(ApiError::new(ErrorCode::Conflict, what))
    }

    /// The VMs of which a copy may still run on a worker, whether it is wanted or to be removed.
    fn may_still_run<'a>(&'a self, entry: &'a WorkerEntry) -> Vec<&'a VmName> {
        let placed = entry.vms.iter().filter_map(|uid| self.vm_record(*uid));
        let placed = placed.filter(|vm| vm.status != VmStatus::Failed).map(|vm| &vm.name);
        let leaving = entry.leaving.iter().filter_map(|id| self.leaving.get(id));
        placed.chain(leaving.filter(|leaving| !leaving.held.is_empty()).map(|leaving| &leaving.name)).collect()
    }
}
