//! Fencing: when the worker's lease is over, the VMs that the controller may start elsewhere are ended, whatever has become
//! of the worker's process. Those that are to be kept are never touched.
//!
//! | file | what |
//! |---|---|
//! | [`super::lease`] | until when the lease lasts; pure |
//! | `clock` | the clock it is counted by |
//! | `notes` | `DATA/guard/`: the lease, which copies are replaceable, which were fenced |
//! | `keeper` | the worker's side: renews the lease, sees its end |
//! | `lead` | leads the task of each copy in the worker: no step without a valid lease |
//! | `end` | ends copies, in the worker and in the guard |
//! | `supervisor` | starts the guard's process and sees that it is there |
//! | `beat` | by which the worker sees that the guard goes on |
//! | `watch` | the guard's process: `orchard worker guard` |
//!
//! # Why a second process
//!
//! VMs outlive their worker's process, so that a restart stops none. But a worker that was killed, crashed or hangs cannot
//! end them when its lease is over, while the controller counts on it. So the worker starts a guard before it makes the first
//! replaceable copy: a small process in a session of its own, one per data folder, that shares nothing with the worker but
//! the files in `DATA/guard`. It reads there until when the lease lasts and which copies are replaceable, and looks at the
//! clock twice a second, so that a machine which wakes up is fenced within a second. Once the lease is over it
//! ends what runs of those copies through the same [`super::runtime::Runtime`], and does so for as long as the lease is not
//! renewed: a worker that hung in the middle of a start may still finish it. Where no guard can be started, no replaceable VM
//! is. A runtime whose VMs end with the worker needs none: [`super::runtime::Runtime::outlives_worker`].
//!
//! The guard ends a minute after there is no replaceable copy any more; the worker starts another when it needs one.
//!
//! # In what order
//!
//! A copy is marked replaceable before anything of it is made, and noted as fenced before it is ended: whoever sees it end,
//! or finds it so later, knows why. Neither needs to survive a loss of power, which ends all VMs anyhow; the name of the
//! machine's start stands beside the lease, so that one of before a reboot is none.
//!
//! A copy that was fenced is told of as such once it certainly does not run, and never started again by the worker: the
//! controller decides, which may long have started another.
//!
//! # What is left
//!
//! * If the guard *and* the worker are killed, nobody ends the VMs until one of them is started again: a worker that starts
//!   fences at once what is left, before it has reached the controller. That the system ends the VMs with the guard
//!   (`PR_SET_PDEATHSIG`) was weighed: the guard would have to be the parent of every replaceable VM, all starts would go
//!   through it, and its own end, an update of it included, would stop VMs whose worker is well.
//! * A machine that wakes up, and a process that is let go on in the very moment between its look at the lease and the start
//!   of a VM, may run a VM for about a second beside its replacement, until the next look.
//! * A service manager must leave both guard and VMs alone when it stops or restarts the worker: `KillMode=process` with
//!   systemd, whose usual mode ends all processes of the service.
//! * A guard of an earlier release goes on when the worker is updated. The files keep their form, or change their names.

mod beat;
mod clock;
mod end;
mod keeper;
mod lead;
mod notes;
mod supervisor;
#[cfg(test)]
mod tests;
pub mod watch;

pub(super) use self::keeper::Keeper;
pub(super) use self::lead::lead;
pub(super) use self::notes::Notes;
