//! Startup scripts: their lines go up until each is acknowledged, and only then is the VM ready. What the worker notes of
//! them on its disk outlives its process, as `worker::journal` does; half of a script is never run again.

use super::bus::{Answer, Call, WorkerCall};
use super::clock::Millis;
use super::fleet::Doing;
use super::worker::{Alarm, is_final};
use super::world::World;
use crate::bus::log::{LogLine, LogLines};
use crate::model::event::LogStream;
use crate::model::{Boot, CopyId};

/// As in `worker::uplink`.
const ACK_TIMEOUT: Millis = 10_000;
const RETRY: Millis = 500;

/// Lines of one copy on their way.
#[derive(Clone, Debug)]
pub(super) struct Carry {
    /// The step of the copy's task that it belongs to.
    step: u64,
    /// Number of the first line of the batch at hand.
    first: u64,
    /// Lines in it.
    count: u64,
    /// Batches after it.
    left: u64,
    /// On its way; none while it waits.
    call: Option<Call>,
}

impl World {
    /// The guest answers: what follows depends on what is known of its script.
    pub(super) fn guest_ready(&mut self, host: usize, id: CopyId, number: u64) {
        let Some(task) = self.task(host, id).filter(|task| task.number == number) else { return };
        let (scripted, fresh) = (task.order.scripted, task.doing == Doing::Watch(true));
        let done = self.hosts[host].scripts.get(&id).copied();
        match done {
            _ if !scripted => self.tell_running(host, id, "ready", true),
            Some(true) if !fresh => self.tell_running(host, id, "ready", true),
            Some(false) if !fresh => self.tell_running(host, id, INTERRUPTED, false),
            _ => {
                self.tell_running(host, id, "running the startup script", false);
                self.hosts[host].scripts.insert(id, false);
                let (count, left) = (self.dice.range(1, 4), self.dice.range(0, 3));
                let carry = Carry { step: number, first: 0, count, left, call: None };
                self.hosts[host].process.as_mut().unwrap().carries.insert(id, carry);
                self.carry(host, id);
            }
        }
    }

    /// Sends the batch at hand, unless there is no session: the next one goes on with it.
    pub(super) fn carry(&mut self, host: usize, id: CopyId) {
        let process = self.hosts[host].process.as_mut().unwrap();
        let (step, boot) = process.tasks.get(&id).map_or((None, 0), |task| (Some(task.number), task.boot));
        let Some(carry) = process.carries.get(&id).filter(|carry| step == Some(carry.step)).cloned() else {
            // The copy does not run any more, or is watched anew.
            process.carries.remove(&id);
            return;
        };
        let Some(session) = process.session().filter(|_| carry.call.is_none()) else { return };
        let numbers = carry.first..carry.first + carry.count;
        let lines = numbers
            .map(|number| LogLine { stream: LogStream::Stdout, text: format!("{boot}/{number}"), time: None })
            .collect();
        let log = LogLines { session, uid: id.uid, attempt: id.attempt, boot, first: carry.first, lines };
        let call = self.ask_controller(host, WorkerCall::Log(log));
        self.hosts[host].process.as_mut().unwrap().carries.get_mut(&id).unwrap().call = Some(call);
        self.alarm(host, ACK_TIMEOUT, Alarm::LogTimeout(id, call));
    }

    pub(super) fn log_timeout(&mut self, host: usize, id: CopyId, call: Call) {
        let carries = &mut self.hosts[host].process.as_mut().unwrap().carries;
        if carries.get(&id).is_some_and(|carry| carry.call == Some(call)) {
            self.alarm(host, RETRY, Alarm::LogAgain(id, call));
        }
    }

    pub(super) fn log_again(&mut self, host: usize, id: CopyId, call: Call) {
        let carries = &mut self.hosts[host].process.as_mut().unwrap().carries;
        if let Some(carry) = carries.get_mut(&id).filter(|carry| carry.call == Some(call)) {
            carry.call = None;
            self.carry(host, id);
        }
    }

    /// The answer to a batch of lines, if it is one.
    pub(super) fn log_answered(&mut self, host: usize, call: Call, answer: &Answer) {
        let process = self.hosts[host].process.as_mut().unwrap();
        let Some((id, carry)) = process.carries.iter_mut().find(|(_, carry)| carry.call == Some(call)) else { return };
        let id = *id;
        let boot = process.tasks.get(&id).map(|task| task.boot);
        match answer {
            Err(error) if !is_final(error) => return self.alarm(host, RETRY, Alarm::LogAgain(id, call)),
            // They are not wanted any more; the script goes on.
            Err(_) => carry.left = 0,
            Ok(_) => {
                let stored = carry.first + carry.count;
                if let Some(boot) = boot {
                    self.check_log(id, boot, stored);
                }
            }
        }
        let carry = self.hosts[host].process.as_mut().unwrap().carries.get_mut(&id).unwrap();
        carry.call = None;
        if carry.left > 0 {
            carry.first += carry.count;
            carry.left -= 1;
            return self.carry(host, id);
        }
        let step = carry.step;
        self.hosts[host].process.as_mut().unwrap().carries.remove(&id);
        if self.task(host, id).is_some_and(|task| task.number == step) {
            self.hosts[host].scripts.insert(id, true);
            self.tell_running(host, id, "ready", true);
        }
    }

    /// Lines below `stored` were acknowledged.
    fn check_log(&mut self, id: CopyId, boot: Boot, stored: u64) {
        let vm = self.disk.vms.get(&id.uid).filter(|vm| vm.copy_id() == id && vm.boot == boot && !self.restored);
        if let Some(vm) = vm.filter(|vm| vm.log_lines < stored) {
            self.violated(format!("{stored} lines of {} were acknowledged, {} are stored", vm.name, vm.log_lines));
        }
    }
}

/// What stays to be said of a VM whose script nobody saw the end of.
pub(super) const INTERRUPTED: &str = "the startup script was interrupted by a restart of the worker";
