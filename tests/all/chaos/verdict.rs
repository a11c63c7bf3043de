//! What must hold once nothing is disturbed any more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use orchard::bus::message::{DeleteVm, ListEvents, ListVms, ListWorkers};
use orchard::model::CopyId;
use orchard::model::event::{Event, EventObject, EventType};
use orchard::model::vm::{RestartPolicy, SCRIPT_INTERRUPTED, Vm, VmStatus};
use orchard::model::worker::WorkerState;
use orchard::worker::runtime::tart::names::disk_name;

use super::world::{LINES, World, shown};
use crate::wait::until;

/// Within this all is well again. The longest of it is the pause before a VM that was killed several times starts over.
const CALM: Duration = Duration::from_secs(180);

/// What every script is told to say, by its number.
const LINE: &str = "line ";

impl World {
    /// Every VM runs that should, where the controller says and nowhere else, and nothing else does.
    pub async fn agrees(&self) {
        until("host and controller to agree", CALM, || async {
            self.no_vm_runs_twice();
            let vms = self.vms().await.map_err(|error| error.to_string())?;
            if let Some(vm) = vms.iter().find(|vm| !is_well(vm)) {
                return Err(shown(vm));
            }
            for node in &self.nodes {
                let here = || vms.iter().filter(|vm| vm.worker.as_ref().is_some_and(|on| on.as_str() == node.name));
                let expected: BTreeSet<CopyId> =
                    here().filter(|vm| vm.status == VmStatus::Running).map(Vm::copy_id).collect();
                let running: BTreeSet<CopyId> = node.running().into_iter().map(|(id, _)| id).collect();
                if expected != running {
                    return Err(format!("on {} run {running:?}, and should {expected:?}", node.name));
                }
                let known: BTreeSet<String> = here().map(|vm| disk_name(&vm.name, vm.copy_id())).collect();
                if let Some(disk) = node.host.disks().into_iter().find(|disk| !known.contains(disk)) {
                    return Err(format!("{disk} is left on {}", node.name));
                }
            }
            self.takes_what_its_vms_take(&vms).await
        })
        .await;
    }

    async fn takes_what_its_vms_take(&self, vms: &[Vm]) -> Result<(), String> {
        for view in self.call(&ListWorkers::default()).await.workers {
            let name = &view.worker.info.name;
            let mut expected: BTreeMap<String, u64> = BTreeMap::new();
            for (what, amount) in vms.iter().filter(|vm| vm.worker.as_ref() == Some(name)).flat_map(|vm| &vm.assigned.0)
            {
                *expected.entry(what.clone()).or_default() += amount;
            }
            let used: BTreeMap<String, u64> = view.used.0.into_iter().filter(|(_, amount)| *amount > 0).collect();
            if used != expected || view.state != WorkerState::Online || view.strays > 0 {
                return Err(format!(
                    "{name}: {:?}, {} strays, used {used:?}, of {expected:?}",
                    view.state, view.strays
                ));
            }
        }
        Ok(())
    }

    /// Of each boot of each copy, its lines are there in order from the first on, and none twice; all of them where the script
    /// ran to its end.
    pub async fn logs_are_whole(&self) {
        let events = self.events().await;
        let numbers = events.iter().map(|event| event.number);
        assert!(numbers.eq(1..=events.len() as u64), "events have gaps");
        let mut said: BTreeMap<CopyId, Vec<usize>> = BTreeMap::new();
        for event in events.iter().filter(|event| event.kind == EventType::Log) {
            let EventObject::Vm { uid, attempt, .. } = event.object else { panic!("{event:?}") };
            let number = event.message.strip_prefix(LINE).unwrap_or_else(|| panic!("{event:?}")).parse().unwrap();
            let lines = said.entry(CopyId { uid, attempt }).or_default();
            // Another boot begins with the first line again.
            let follows = lines.last().map_or(0, |last| last + 1);
            assert!(number == follows || number == 0, "{event:?} follows line {:?}", lines.last());
            if number == 0 {
                lines.clear();
            }
            lines.push(number);
        }
        for vm in self.call(&ListVms::default()).await.vms.iter().filter(|vm| vm.ready) {
            let lines = said.get(&vm.copy_id()).map_or(0, Vec::len);
            assert_eq!(lines, LINES, "{} is ready", shown(vm));
        }
    }

    async fn events(&self) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            let after = events.last().map_or(0, |event: &Event| event.number);
            let page = self.call(&ListEvents { after, ..ListEvents::default() }).await;
            events.extend(page.events);
            if page.next >= page.last {
                return events;
            }
        }
    }

    pub async fn delete_all(&self) {
        for vm in self.call(&ListVms::default()).await.vms {
            self.call(&DeleteVm { name: vm.name }).await;
        }
    }

    /// Neither a process nor a disk, a note, a spool or a reservation.
    pub async fn nothing_is_left(&self) {
        for node in &self.nodes {
            until("nothing to be left of the deleted", CALM, || async {
                let folders = ["logs", "copies", "guard", "tart"].map(|folder| node.left_in(folder));
                let left = (node.host.disks(), node.running(), folders);
                if left.0.is_empty() && left.1.is_empty() && left.2.iter().all(Vec::is_empty) {
                    Ok(())
                } else {
                    Err(left)
                }
            })
            .await;
            node.host.nothing_left().await;
        }
        until("no room to be taken", CALM, || self.takes_what_its_vms_take(&[])).await;
        let workers = self.call(&ListWorkers::default()).await.workers;
        assert!(workers.iter().all(|view| view.vms == 0), "{workers:?}");
    }
}

/// It is as it should be after all that.
fn is_well(vm: &Vm) -> bool {
    match vm.status {
        VmStatus::Pending | VmStatus::Unknown => false,
        // Half of a script is not run again, so such a VM is never called ready.
        VmStatus::Running => vm.ready || vm.status_message == SCRIPT_INTERRUPTED,
        VmStatus::Failed => vm.spec.restart_policy == RestartPolicy::Never,
    }
}
