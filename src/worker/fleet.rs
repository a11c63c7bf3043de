//! The reconciler: sees that every copy that is wished for or found on the host has a task, and that the task knows the
//! newest wish. It takes no input but the current assignment, runs on a signal and on a period, and may run any time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::guard::{self, Keeper};
use super::host::{Host, Resting};
use super::plan::{self, Past, Seen, Step, Wish};
use super::runtime::{CopySpec, Found, FoundState, RuntimeError};
use super::uplink::Inventory;
use super::vm::Order;
use crate::bus::message::{Assignment, DesiredCopy, Observation, Want};
use crate::model::{CopyId, VmName};
use crate::task::{self, Task};

/// How often the host is looked at without a reason: an upper bound for how long a lost signal costs.
const PERIOD: Duration = Duration::from_secs(5);
/// How long the copies' tasks get to end when the worker stops.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// How often it is looked whether all VMs have ended with their worker.
const HALT_LOOK: Duration = Duration::from_millis(100);

/// The reconciler and all copies' tasks. Dropping it ends them and leaves the VMs running.
#[derive(Debug)]
pub(super) struct Fleet {
    assignments: Arc<watch::Sender<Option<Assignment>>>,
    halting: watch::Sender<bool>,
    /// The copies that were told to end with the worker; none before all were.
    halted: watch::Receiver<Option<BTreeSet<CopyId>>>,
    resting: Resting,
    reconciler: Task,
}

impl Fleet {
    pub(super) fn start(host: Host, keeper: Keeper) -> Self {
        let (assignments, receiver) = watch::channel(None);
        let resting = host.resting.clone();
        let host = Host { rebooted: keeper.rebooted(), ..host };
        let (copies, ended) = (BTreeMap::new(), Arc::default());
        let ((halting, halt), (told, halted)) = (watch::channel(false), watch::channel(None));
        let reconciler = Reconciler { host, keeper, assignments: receiver, copies, ended, halt, halted: told };
        let reconciler = task::spawn(reconciler.run());
        Self { assignments: Arc::new(assignments), halting, halted, resting, reconciler }
    }

    /// Has all VMs end in order that this worker was asked to run, and nothing begin, until the worker ends; what the
    /// controller does not know is left alone. Tells how many are still to end, whenever that changes, and yields how many
    /// did not within `limit`; none when the host does not say what runs on it. Cancel safe: they go on ending.
    pub(super) async fn halt(&self, limit: Duration, mut tell: impl FnMut(usize)) -> Option<usize> {
        self.halting.send_replace(true);
        let mut halted = self.halted.clone();
        let deadline = tokio::time::Instant::now() + limit;
        let mut known = None;
        loop {
            let left = halted.borrow_and_update().as_ref().map(|copies| self.resting.busy(copies));
            if let Some(left) = left.filter(|_| left != known) {
                tell(left);
            }
            known = left.or(known);
            if left == Some(0) || tokio::time::Instant::now() >= deadline || self.reconciler.is_finished() {
                return left;
            }
            tokio::time::sleep(HALT_LOOK).await;
        }
    }

    /// Where the newest assignment is put.
    pub(super) fn assignments(&self) -> Arc<watch::Sender<Option<Assignment>>> {
        self.assignments.clone()
    }

    /// Returns when the reconciler has ended, which it only does on its own when it panicked.
    pub(super) async fn ended(&self) {
        task::any_ended(std::slice::from_ref(&self.reconciler)).await;
    }

    /// Ends all tasks; no VM is stopped.
    pub(super) async fn stop(self) {
        drop(self.assignments);
        self.reconciler.stop_within(STOP_GRACE).await;
    }
}

struct Reconciler {
    host: Host,
    keeper: Keeper,
    assignments: watch::Receiver<Option<Assignment>>,
    copies: BTreeMap<CopyId, Copy>,
    ended: Arc<Notify>,
    /// The worker ends, and its VMs with it.
    halt: watch::Receiver<bool>,
    halted: watch::Sender<Option<BTreeSet<CopyId>>>,
}

struct Copy {
    orders: watch::Sender<Order>,
    task: Task,
}

impl Reconciler {
    async fn run(mut self) {
        let mut period = tokio::time::interval(PERIOD);
        let mut lease = self.keeper.changes();
        period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let meters = self.host.meters.clone();
        loop {
            meters.note(&meters.turned);
            let began = Instant::now();
            let assignment = self.assignments.borrow_and_update().clone();
            let halting = *self.halt.borrow_and_update();
            let looked = match assignment {
                Some(assignment) => {
                    let looked = self.pass(&assignment, halting).await;
                    meters.reconcile.took(began.elapsed());
                    meters.reconcile_failures.add(u64::from(!looked));
                    meters.note(&meters.reconciled);
                    looked
                }
                None if halting => self.halt_all_found().await,
                // Nothing is known of what is wished, so nothing is touched but what must not run without a lease.
                None => {
                    self.keeper.end_unled(&self.host.runtime).await;
                    false
                }
            };
            if halting && looked {
                let known = |(id, copy): (&CopyId, &Copy)| {
                    let counts = copy.orders.borrow().wish != Wish::Unknown && !copy.task.is_finished();
                    counts.then_some(*id)
                };
                self.halted.send_replace(Some(self.copies.iter().filter_map(known).collect()));
            }
            // Cancel safe: each of these is only a reason to look again.
            tokio::select! {
                changed = self.assignments.changed() => if changed.is_err() { return },
                () = self.ended.notified() => {}
                Ok(()) = lease.changed() => {}
                Ok(()) = self.halt.changed() => {}
                _ = period.tick() => {}
            }
        }
    }

    /// Ends what runs on the host, for a worker that ends before it has heard what it shall run. How it is to go on is
    /// noted beside each, so that nothing is lost by it.
    async fn halt_all_found(&mut self) -> bool {
        self.copies.retain(|_, copy| !copy.task.is_finished());
        let found = match self.host.runtime.list().await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!("cannot list the VMs on this host, so none is stopped: {error}");
                return false;
            }
        };
        for found in found.into_iter().filter(|found| found.state == FoundState::Running) {
            if !self.copies.contains_key(&found.id) {
                let order = Order { wish: Wish::Halt, ..order(found.id, None, &found.name) };
                self.begin(found.id, order, Seen::Running);
            }
        }
        true
    }

    /// Whether the host could be looked at, too.
    async fn pass(&mut self, assignment: &Assignment, halting: bool) -> bool {
        // Ended tasks are taken away before the host is listed, and the list is used only for copies without a task:
        // so it can never be older than what a task did.
        self.copies.retain(|_, copy| !copy.task.is_finished());
        let wished: BTreeMap<CopyId, &DesiredCopy> = assignment.copies.iter().map(|copy| (copy.id(), copy)).collect();
        for (id, copy) in &self.copies {
            let name = copy.orders.borrow().name.clone();
            let order = halted_if(halting, order(*id, wished.get(id).copied(), &name));
            copy.orders.send_if_modified(|current| {
                let changed = *current != order;
                *current = order;
                changed
            });
        }
        // All that have a task know this assignment now, and all that get one will begin with it. Neither waits for the
        // list: a hypervisor's tool may take its minute for that.
        self.keeper.has_ordered(assignment.session);
        let found = match self.host.runtime.list().await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!("cannot list the VMs on this host, so no new one is begun: {error}");
                self.tell_who_waits(assignment, &error);
                return false;
            }
        };
        let found: BTreeMap<CopyId, &Found> = found.iter().map(|found| (found.id, found)).collect();
        let ids: BTreeSet<CopyId> = wished.keys().chain(found.keys()).copied().collect();
        let runs = |id: &&CopyId| wished.get(*id).is_some_and(|copy| matches!(copy.want, Want::Run(_)));
        let unwished = |id: &&CopyId| !wished.contains_key(*id);
        self.host.uplink.has_found(Inventory {
            session: assignment.session,
            wished: ids.iter().filter(runs).copied().collect(),
            unwished: ids.iter().chain(self.copies.keys()).filter(unwished).copied().collect(),
        });
        self.keeper.notes().retain(|id| ids.contains(&id) || self.copies.contains_key(&id));
        // Those first that are to go: they make room for the others.
        let goes = |id: &CopyId| wished.get(id).is_some_and(|copy| matches!(copy.want, Want::Absent));
        let (gone, others): (Vec<CopyId>, Vec<CopyId>) = ids.into_iter().partition(goes);
        for id in gone.into_iter().chain(others) {
            if self.copies.contains_key(&id) {
                continue;
            }
            let (wish, found) = (wished.get(&id).copied(), found.get(&id));
            let Some(name) = wish.map(|wish| &wish.name).or(found.map(|found| &found.name)) else { continue };
            let order = halted_if(halting, order(id, wish, name));
            let seen = seen_at_first(found.map(|found| found.state));
            // Not worth a task: its end would be the reason for the next pass, over and over, until the controller
            // has heard that nothing is left.
            if plan::step(order.wish, seen, Past::default()) == Step::ReportAbsent {
                self.keeper.notes().forget(id);
                self.host.forget(id);
                self.host.uplink.observe(id, Observation::Absent);
                continue;
            }
            self.begin(id, order, seen);
        }
        true
    }

    /// Those that were never begun, as far as the controller knows; of others nobody knows what is the case.
    fn tell_who_waits(&self, assignment: &Assignment, error: &RuntimeError) {
        let message = format!("not begun yet, as its worker cannot list its VMs: {error}");
        for copy in assignment.copies.iter().filter(|copy| !self.copies.contains_key(&copy.id())) {
            if let Want::Run(run) = &copy.want
                && !run.ran
            {
                self.host.uplink.tell(copy.id(), copy.boot, Observation::Preparing { message: message.clone() });
            }
        }
    }

    fn begin(&mut self, id: CopyId, order: Order, seen: Seen) {
        let (orders, receiver) = watch::channel(order);
        let work = guard::lead(id, self.host.clone(), self.keeper.clone(), receiver, seen);
        let ended = Ended(self.ended.clone());
        let task = task::spawn(async move {
            let _ended = ended;
            work.await;
        });
        self.copies.insert(id, Copy { orders, task });
    }
}

/// Tells the reconciler that a task has ended, also when it panicked.
struct Ended(Arc<Notify>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

/// What a task that begins finds of its copy.
pub(crate) fn seen_at_first(found: Option<FoundState>) -> Seen {
    match found {
        None => Seen::Missing,
        Some(FoundState::Incomplete) => Seen::Incomplete,
        Some(FoundState::Stopped) => Seen::Ended,
        Some(FoundState::Running) => Seen::Running,
    }
}

/// What becomes of an order when the worker ends with its VMs.
fn halted_if(halting: bool, order: Order) -> Order {
    match order.wish {
        Wish::Run if halting => Order { wish: Wish::Halt, copy: None, ..order },
        _ => order,
    }
}

fn order(id: CopyId, desired: Option<&DesiredCopy>, name: &VmName) -> Order {
    let name = name.clone();
    let boot = desired.map_or(0, |desired| desired.boot);
    let plain = |wish, name| Order { wish, name, copy: None, generation: 0, boot, ran: false };
    let Some(desired) = desired else { return plain(Wish::Unknown, name) };
    match &desired.want {
        Want::Run(run) => {
            let copy = CopySpec {
                id,
                name: name.clone(),
                spec: run.spec.clone(),
                cpu: run.cpu.max(1),
                memory: run.memory.max(1),
            };
            Order { copy: Some(Arc::new(copy)), generation: run.generation, ran: run.ran, ..plain(Wish::Run, name) }
        }
        Want::Keep => plain(Wish::Keep, name),
        Want::Suspend => plain(Wish::Suspend, name),
        Want::Absent => plain(Wish::Absent, name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::message::RunSpec;
    use crate::model::vm::VmSpec;
    use crate::model::{SessionId, VmUid};
    use crate::worker::runtime::synthetic::Synthetic;
    use crate::worker::runtime::synthetic::behaviour::Step as HostStep;
    use crate::worker::runtime::synthetic::host::SyntheticHost;

    fn id(n: u128) -> CopyId {
        CopyId { uid: VmUid(uuid::Uuid::from_u128(n)), attempt: 0 }
    }

    /// A reconciler whose controller never answers.
    async fn reconciler(
        on: &Arc<SyntheticHost>,
        dir: &std::path::Path,
    ) -> (Reconciler, watch::Sender<Option<Assignment>>) {
        let host = Host::unheard(Arc::new(Synthetic::on(on.clone())), dir).await;
        let (sender, assignments) = watch::channel(None);
        let (keeper, copies) = (Keeper::for_test(dir), BTreeMap::new());
        let (halt, halted) = (watch::channel(false).1, watch::Sender::new(None));
        (Reconciler { host, keeper, assignments, copies, ended: Arc::default(), halt, halted }, sender)
    }

    fn assignment(want: Want) -> Assignment {
        let copy = DesiredCopy { name: "a".parse().unwrap(), uid: id(1).uid, attempt: 0, boot: 0, want };
        Assignment {
            session: SessionId(uuid::Uuid::nil()),
            revision: 1,
            copies: vec![copy],
            pulls: Vec::new(),
            part: 0,
            parts: 1,
        }
    }

    #[test]
    fn a_copy_that_ran_and_is_lost_has_failed_and_is_not_made_anew() {
        let order = |ran| {
            let run = RunSpec { spec: VmSpec::default(), generation: 0, cpu: 1, memory: 1, ran };
            let wish = assignment(Want::Run(Box::new(run))).copies.remove(0);
            order(wish.id(), Some(&wish), &wish.name)
        };
        for found in [None, Some(FoundState::Incomplete)] {
            let next = |ran: bool| {
                let order = order(ran);
                plan::step(order.wish, seen_at_first(found), Past { ran: order.ran, ..Past::default() })
            };
            assert_eq!((next(false), next(true)), (Step::Create, Step::ReportLost), "{found:?}");
        }
        assert_eq!(seen_at_first(Some(FoundState::Running)), Seen::Running);
        assert_eq!(seen_at_first(None), Seen::Missing);
    }

    #[tokio::test]
    async fn a_copy_that_is_gone_is_no_reason_to_look_again_and_again() {
        let dir = tempfile::tempdir().unwrap();
        let (mut reconciler, _sender) = reconciler(&Arc::default(), dir.path()).await;
        reconciler.pass(&assignment(Want::Absent), false).await;
        assert!(reconciler.copies.is_empty(), "a task whose end would wake the reconciler at once");
        assert!(reconciler.host.uplink.tells(id(1), &Observation::Absent));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_to_go_does_not_wait_for_a_look_at_the_host() {
        let (dir, on) = (tempfile::tempdir().unwrap(), Arc::new(SyntheticHost::default()));
        let (mut reconciler, _sender) = reconciler(&on, dir.path()).await;
        let uplink = reconciler.host.uplink.clone();
        let until = async |holds: &dyn Fn() -> bool| {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let run = RunSpec { spec: VmSpec::default(), generation: 0, cpu: 1, memory: 1, ran: false };
        assert!(reconciler.pass(&assignment(Want::Run(Box::new(run))), false).await);
        until(&|| on.found().iter().any(|found| found.state == FoundState::Running)).await;
        on.adjust(|behaviour| behaviour.hang.extend([HostStep::List]));
        let absent = assignment(Want::Absent);
        let is_told = || uplink.tells(id(1), &Observation::Absent);
        tokio::select! {
            biased;
            _ = reconciler.pass(&absent, false) => panic!("the host was looked at"),
            () = until(&is_told) => {}
        }
        assert!(on.found().is_empty());
    }

    #[test]
    fn a_worker_that_ends_halts_what_shall_run_and_nothing_else() {
        let run = RunSpec { spec: VmSpec::default(), generation: 0, cpu: 1, memory: 1, ran: true };
        for (want, halted) in [
            (Want::Run(Box::new(run)), Wish::Halt),
            (Want::Keep, Wish::Keep),
            (Want::Suspend, Wish::Suspend),
            (Want::Absent, Wish::Absent),
        ] {
            let wish = assignment(want).copies.remove(0);
            assert_eq!(halted_if(true, order(wish.id(), Some(&wish), &wish.name)).wish, halted);
        }
        let unknown = order(id(1), None, &"a".parse().unwrap());
        assert_eq!(halted_if(true, unknown).wish, Wish::Unknown, "what nobody knows is left alone");
    }
}
