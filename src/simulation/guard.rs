//! The lease of a worker, by the clock of its own machine, and the guard there that stops what may be replaced when it is
//! over: whether the worker's process lives or not.
//!
//! The lease counts from the sending of the last message that was answered. Once over it comes back only with another
//! registration, and what was ordered before that is not started on the strength of the new one: it may run elsewhere.
//! A machine that sleeps runs nothing; its clock goes on, and the guard is the first to look at it afterwards.

use std::time::Duration;

use super::clock::Millis;
use super::fleet::Doing;
use super::host::Host;
use super::world::{Event, World};
use crate::bus::message::Observation;
use crate::controller::cluster::Timing;
use crate::model::planted::{Bug, planted};
use crate::model::{CopyId, SessionId};
use crate::worker::plan::Seen;
use crate::worker::runtime::FoundState;

/// Shorter than by default, so that much happens in a short run.
pub(super) const LEASE: Millis = 30_000;
/// The longest that it takes to stop all.
pub(super) const FENCE: Millis = 5_000;
/// Clocks run faster or slower by so much, in parts of 100,000.
pub(super) const MAX_PACE: u64 = 500;

/// Durations by which the controller goes.
pub(super) fn timing() -> Timing {
    let (lease, fence) = (Duration::from_millis(LEASE), Duration::from_millis(FENCE));
    Timing { lease, fence, ..Timing::default() }
}

/// A lease as the worker's machine counts it, in real time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lease {
    session: SessionId,
    /// Since when it was never over.
    since: Millis,
    until: Millis,
}

impl Host {
    /// What may be replaced runs here no longer than until then, unless the lease is renewed.
    pub(super) fn covered_until(&self) -> Millis {
        self.lease.map_or(0, |lease| lease.until + FENCE)
    }

    /// Whether something that was ordered, or begun, at `at` may go on now by its lease.
    pub(super) fn covers(&self, at: Millis, now: Millis) -> bool {
        self.lease.is_some_and(|lease| now < lease.until && (at >= lease.since || planted(Bug::StaleOrder)))
    }

    fn is_asleep(&self) -> bool {
        self.asleep_until > 0
    }

    /// What the guard stops.
    fn running_replaceable(&self) -> Vec<(CopyId, u64)> {
        let runs = |copy: &super::host::Copy| copy.replaceable && copy.state == FoundState::Running;
        self.copies.iter().filter(|(_, copy)| runs(copy)).map(|(id, copy)| (*id, copy.run)).collect()
    }
}

impl World {
    /// A message of `session`, sent at `sent`, was answered; whether its lease is still, or again, good.
    pub(super) fn renew_lease(&mut self, host: usize, session: SessionId, sent: Millis, registered: bool) -> bool {
        let now = self.agenda.now();
        let from = if planted(Bug::LeaseFromAnswer) { now } else { sent };
        let here = &mut self.hosts[host];
        let unbroken = here.lease.filter(|lease| now < lease.until);
        if !registered && unbroken.is_none_or(|lease| lease.session != session) {
            return false;
        }
        let length = LEASE * 100_000 / (100_000 + here.pace - MAX_PACE);
        let until = (from + length).max(unbroken.map_or(0, |lease| lease.until));
        here.lease = Some(Lease { session, since: unbroken.map_or(now, |lease| lease.since), until });
        self.agenda.after(until - now, Event::LeaseOver { host, until });
        true
    }

    pub(super) fn lease_over(&mut self, host: usize, until: Millis) {
        if self.hosts[host].lease.is_none_or(|lease| lease.until != until) || self.hosts[host].is_asleep() {
            return;
        }
        self.note(|world| format!("{}: the lease is over", world.hosts[host].name));
        self.give_up_what_is_begun(host);
        let doomed = self.hosts[host].running_replaceable();
        let takes = self.dice.range(0, FENCE);
        self.agenda.after(takes, Event::Fence { host, doomed });
    }

    /// As `worker::guard::lead`: what is being made or started is given up in the moment in which the lease is seen to be over.
    fn give_up_what_is_begun(&mut self, host: usize) {
        if planted(Bug::StaleOrder) {
            return;
        }
        let tasks = self.hosts[host].process.iter().flat_map(|process| &process.tasks);
        let begun = tasks.filter(|(_, task)| task.is_replaceable() && task.prepares()).map(|(id, _)| *id);
        for id in begun.collect::<Vec<_>>() {
            self.hosts[host].fenced.insert(id);
            self.tell_fenced(host, id);
        }
    }

    /// The guard has stopped these, unless they ended by themselves.
    pub(super) fn fence(&mut self, host: usize, doomed: Vec<(CopyId, u64)>) {
        for (id, run) in doomed {
            let Some(copy) = self.hosts[host].copies.get_mut(&id) else { continue };
            if copy.state != FoundState::Running || copy.run != run {
                continue;
            }
            copy.state = FoundState::Stopped;
            self.hosts[host].fenced.insert(id);
            self.note(|world| format!("{}: {} is fenced", world.hosts[host].name, world.short(id)));
            if self.task(host, id).is_some_and(|task| matches!(task.doing, Doing::Watch(_))) {
                self.tell_fenced(host, id);
            }
        }
        self.look_at_hosts = true;
    }

    /// The worker says that a copy was stopped, or never started, as the lease was over.
    pub(super) fn tell_fenced(&mut self, host: usize, id: CopyId) {
        let task = self.task(host, id).unwrap();
        task.seen = Seen::Failed;
        let boot = task.order.boot;
        task.boot = task.boot.max(boot);
        self.observe(host, id, boot, Observation::Fenced { message: "the lease was over".into() });
        self.advance(host, id, false);
    }

    pub(super) fn fall_asleep(&mut self, host: usize, lasts: Millis) {
        let here = &mut self.hosts[host];
        if here.powered && !here.is_asleep() {
            here.asleep_until = self.agenda.now() + lasts;
            self.agenda.after(lasts, Event::Wake(host));
        }
    }

    pub(super) fn wake(&mut self, host: usize) {
        let now = self.agenda.now();
        let here = &mut self.hosts[host];
        if !here.is_asleep() || here.asleep_until > now {
            return;
        }
        here.asleep_until = 0;
        let over = here.lease.is_none_or(|lease| lease.until <= now);
        let doomed = if over { here.running_replaceable() } else { Vec::new() };
        self.note(|world| format!("{}: wakes", world.hosts[host].name));
        if over {
            self.give_up_what_is_begun(host);
        }
        self.fence(host, doomed);
    }

    /// An event of a machine that sleeps happens when it is awake again: after [`World::wake`], which was asked for before.
    pub(super) fn sleeps_through(&mut self, event: &Event) -> bool {
        let host = match event {
            Event::Alarm { host, .. } | Event::GuestCrash { host, .. } | Event::Fence { host, .. } => *host,
            Event::StartWorker(host) => *host,
            _ => return false,
        };
        let asleep = self.hosts[host].is_asleep();
        if asleep {
            let left = self.hosts[host].asleep_until.saturating_sub(self.agenda.now());
            self.agenda.after(left, event.clone());
        }
        asleep
    }
}
