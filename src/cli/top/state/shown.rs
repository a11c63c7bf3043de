//! What is to be seen of a [`State`]: the rows that the filter lets through, and where the cursors stand among them. Pure.

use super::{Notice, Pane, State};
use crate::cli::connect::Place;
use crate::cli::list;
use crate::cli::top::text::Window;
use crate::model::event::{Event, EventNumber, EventObject};
use crate::model::vm::Vm;
use crate::model::worker::WorkerView;
use crate::model::{VmName, WorkerName};

impl State {
    /// The workers that the filter lets through, and the row that is selected.
    pub(in crate::cli::top) fn workers(&self) -> (Vec<&WorkerView>, Option<usize>) {
        (self.shown_workers().collect(), self.on_worker.row(&self.worker_keys()))
    }

    /// The same of VMs.
    pub(in crate::cli::top) fn vms(&self) -> (Vec<&Vm>, Option<usize>) {
        (self.shown_vms().collect(), self.on_vm.row(&self.vm_keys()))
    }

    /// The same of events, oldest first.
    pub(in crate::cli::top) fn events(&self) -> (Vec<&Event>, Option<usize>) {
        (self.shown_events().collect(), self.on_event.row(&self.event_keys()))
    }

    /// How many workers and VMs there are, whatever the filter says.
    pub(in crate::cli::top) fn totals(&self) -> (usize, usize) {
        (self.all.workers.len(), self.all.vms.len())
    }

    /// What is to be told at the moment.
    pub(in crate::cli::top) fn notice(&self) -> Option<&Notice> {
        self.notice.as_ref().map(|(notice, _)| notice)
    }

    /// What is left for a text, within a frame between the first line and the last.
    pub(super) fn window(&self) -> Window {
        let (columns, rows) = self.size;
        Window { columns: columns.saturating_sub(4).max(1).into(), rows: rows.saturating_sub(4).max(1).into() }
    }

    /// What the keys are about: where the cursor of the focused pane stands.
    pub(super) fn selected(&self) -> Option<Place> {
        match self.focus {
            Pane::Workers => {
                let (workers, row) = self.workers();
                workers.get(row?).map(|worker| Place::Worker(worker.worker.info.name.clone()))
            }
            Pane::Vms => {
                let (vms, row) = self.vms();
                vms.get(row?).map(|vm| Place::Vm(vm.name.clone()))
            }
            Pane::Feed => {
                let (events, row) = self.events();
                events.get(row?).and_then(|event| match &event.object {
                    EventObject::Vm { name, .. } => Some(Place::Vm(name.clone())),
                    EventObject::Worker { name } => Some(Place::Worker(name.clone())),
                    EventObject::Unknown => None,
                })
            }
        }
    }

    pub(super) fn worker_keys(&self) -> Vec<WorkerName> {
        self.shown_workers().map(|worker| worker.worker.info.name.clone()).collect()
    }

    pub(super) fn vm_keys(&self) -> Vec<VmName> {
        self.shown_vms().map(|vm| vm.name.clone()).collect()
    }

    pub(super) fn event_keys(&self) -> Vec<EventNumber> {
        self.shown_events().map(|event| event.number).collect()
    }

    fn shown_workers(&self) -> impl Iterator<Item = &WorkerView> {
        let wanted = self.filter.to_lowercase();
        let shown = move |view: &&WorkerView| fits(&wanted, &[view.worker.info.name.as_str(), &list::state(view)]);
        self.all.workers.iter().filter(shown)
    }

    fn shown_vms(&self) -> impl Iterator<Item = &Vm> {
        let wanted = self.filter.to_lowercase();
        let shown = move |vm: &&Vm| {
            let worker = vm.worker.as_ref().map_or("", WorkerName::as_str);
            fits(&wanted, &[vm.name.as_str(), &vm_state(vm), worker, &vm.spec.image])
        };
        self.all.vms.iter().filter(shown)
    }

    fn shown_events(&self) -> impl Iterator<Item = &Event> {
        let wanted = self.filter.to_lowercase();
        let shown = move |event: &&Event| {
            let worker = event.worker.as_ref().map_or("", WorkerName::as_str);
            fits(&wanted, &[&object(event), event.kind.as_str(), worker, &event.message])
        };
        self.feed.iter().filter(shown)
    }
}

/// Where a VM stands, in a word: a process that runs is not yet a guest that answers.
pub(in crate::cli::top) fn vm_state(vm: &Vm) -> String {
    if vm.ready && !vm.is_off() { "ready".to_owned() } else { list::shown_status(vm) }
}

/// What an event is about.
pub(in crate::cli::top) fn object(event: &Event) -> String {
    event.object.to_string()
}

fn fits(wanted: &str, texts: &[&str]) -> bool {
    wanted.is_empty() || texts.iter().any(|text| text.to_lowercase().contains(wanted))
}
