//! Leads the task of one copy: it is marked and guarded before anything of it is made, and given up and ended in the very
//! moment in which the lease is seen to be over. The task itself (`worker::vm`) knows nothing of leases.
//!
//! Nothing of it is begun by orders of another session than that in which the lease is valid: while the worker was cut off
//! the controller may have started the VM elsewhere, and these orders do not know.
//!
//! Every time anything moves in a replaceable copy, the clock is looked at first: a process that stood still and goes on
//! does not start what its lease no longer allows.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::watch;

use super::end::end;
use super::keeper::Keeper;
use super::notes::FENCED_MESSAGE;
use crate::bus::message::Observation;
use crate::model::CopyId;
use crate::model::vm::OnUnseen;
use crate::worker::host::Host;
use crate::worker::plan::{Seen, Wish};
use crate::worker::vm::{CopyTask, Order};

/// Pause before another try to end a copy that does not end.
const PAUSE: Duration = Duration::from_secs(1);

/// How a copy's task ended.
enum Outcome {
    /// By itself: nothing is left of the copy.
    Gone,
    /// The lease is over.
    LeaseOver,
}

/// What is seen of a copy's orders by those who watch its lease.
struct Watched {
    /// It must not outlive the lease.
    fenceable: AtomicBool,
    /// It was told to begin, and has not told of it yet.
    begins: AtomicBool,
    /// How often the lease was over when that was allowed.
    lapses: AtomicU64,
}

struct Led {
    id: CopyId,
    host: Host,
    keeper: Keeper,
}

/// Runs the task of a copy until the copy is gone, or was fenced and is no longer wished for; whoever looks at the host then
/// begins anew if anything is left.
pub(in crate::worker) async fn lead(
    id: CopyId,
    host: Host,
    keeper: Keeper,
    mut orders: watch::Receiver<Order>,
    seen: Seen,
) {
    let led = Led { id, host, keeper };
    loop {
        let order = orders.borrow_and_update().clone();
        if let Some(why) = led.keeper.notes().fenced(id) {
            if order.wish == Wish::Run {
                return led.fence(&mut orders, &why).await;
            }
            // Nobody starts it as if it had not been; what becomes of its disk is another matter. One that the controller
            // does not know now it may come to know again, after a backup was restored; and what ends with its worker is
            // wished for all the same.
            if !matches!(order.wish, Wish::Unknown | Wish::Halt) {
                led.keeper.notes().forget_fenced(id);
            }
        }
        // Cancel safe: it is prepared anew for the other order.
        let prepared = tokio::select! {
            prepared = led.prepare(&order, seen == Seen::Running) => prepared,
            () = changed(&mut orders) => continue,
        };
        let lapses = match prepared {
            Ok(lapses) => lapses,
            Err(why) => {
                let disk = order.ran; // what it has written is there still
                led.host.uplink.tell(id, order.boot, Observation::Failed { message: why, disk, halted: false });
                changed(&mut orders).await;
                continue;
            }
        };
        match led.escort(&mut orders, order, seen, lapses).await {
            Outcome::Gone => return led.keeper.notes().forget(id),
            Outcome::LeaseOver => {
                if orders.borrow().wish == Wish::Run
                    && let Err(error) = led.keeper.notes().note_fenced(id, FENCED_MESSAGE)
                {
                    tracing::warn!(copy = %id, "cannot note that it is fenced: {error}");
                }
                return led.fence(&mut orders, FENCED_MESSAGE).await;
            }
        }
    }
}

impl Led {
    /// Marks the copy as the order says, and sees that it is guarded if it needs to be. One that runs already goes on without
    /// a guard until there is one. Yields how often the lease was over until then.
    async fn prepare(&self, order: &Order, runs: bool) -> Result<u64, String> {
        let lapses = self.keeper.look().lapses;
        let Some(replaceable) = replaceable(order) else { return Ok(lapses) };
        let marked = self.keeper.mark(self.id, replaceable);
        if !replaceable {
            if let Err(error) = marked {
                tracing::warn!(copy = %self.id, "cannot note that it is to be kept: {error}");
            }
            return Ok(lapses);
        }
        let cannot =
            |why: String| format!("a VM with --on-unseen replace is started only where it can be ended in time: {why}");
        match marked {
            Err(error) if !runs => {
                let folder = self.keeper.notes().folder().display();
                return Err(cannot(format!("cannot write in {folder}: {error}")));
            }
            Err(error) => tracing::error!(copy = %self.id, "cannot note that it may be replaced: {error}"),
            Ok(()) => {}
        }
        if runs {
            self.keeper.supervisor().wake();
            return Ok(lapses);
        }
        let guarded = self.keeper.supervisor().ready().await;
        guarded.map_err(|why| cannot(format!("the worker's guard (orchard worker guard) is not to be had: {why}")))?;
        Ok(self.keeper.allowed().await)
    }

    /// Runs the copy's task under `first` and the orders after it. Dropping the task where it stands is safe: all steps of
    /// a runtime are, and what a start left half-done is found at the next look.
    async fn escort(&self, orders: &mut watch::Receiver<Order>, first: Order, seen: Seen, lapses: u64) -> Outcome {
        let watched = Watched {
            fenceable: AtomicBool::new(self.is_fenceable(&first)),
            begins: AtomicBool::new(first.wish == Wish::Run),
            lapses: AtomicU64::new(lapses),
        };
        let (to, inner) = watch::channel(first);
        let work = CopyTask::new(self.id, self.host.clone(), inner, seen);
        tokio::select! {
            biased;
            () = self.lease_over(&watched) => Outcome::LeaseOver,
            () = self.relay(orders, &to, &watched) => Outcome::Gone,
            () = work.run() => Outcome::Gone,
        }
    }

    /// Returns when the lease is over, or was since this began. Not while nothing runs or is made anyhow: a VM that has
    /// failed has failed.
    async fn lease_over(&self, watched: &Watched) {
        let mut changes = self.keeper.changes();
        loop {
            let mut changed = pin!(changes.changed());
            let over = poll_fn(|context| {
                if watched.fenceable.load(Ordering::Relaxed) {
                    let state = self.keeper.look();
                    let rests = self.host.uplink.rests(self.id);
                    if !rests {
                        watched.begins.store(false, Ordering::Relaxed);
                    }
                    if rests && !watched.begins.load(Ordering::Relaxed) {
                        watched.lapses.store(state.lapses, Ordering::Relaxed);
                    } else if !state.valid || state.lapses != watched.lapses.load(Ordering::Relaxed) {
                        return Poll::Ready(true);
                    }
                }
                changed.as_mut().poll(context).map(|_| false)
            });
            if over.await {
                return;
            }
        }
    }

    /// Hands orders on, each once the copy is prepared for it. Never returns.
    async fn relay(&self, orders: &mut watch::Receiver<Order>, to: &watch::Sender<Order>, watched: &Watched) {
        loop {
            changed(orders).await;
            let order = orders.borrow_and_update().clone();
            let runs = to.borrow().wish == Wish::Run;
            let mut newer = orders.clone();
            // Cancel safe: it is prepared anew for the other order.
            let prepared = tokio::select! {
                prepared = self.prepare(&order, runs) => prepared,
                () = changed(&mut newer) => continue,
            };
            match prepared {
                Ok(lapses) => {
                    if order.wish == Wish::Run && !runs {
                        watched.begins.store(true, Ordering::Relaxed);
                        watched.lapses.store(lapses, Ordering::Relaxed);
                    }
                    watched.fenceable.store(self.is_fenceable(&order), Ordering::Relaxed);
                    to.send_replace(order);
                }
                Err(why) => {
                    let disk = order.ran;
                    self.host.uplink.tell(
                        self.id,
                        order.boot,
                        Observation::Failed { message: why, disk, halted: false },
                    );
                }
            }
        }
    }

    fn is_fenceable(&self, order: &Order) -> bool {
        match order.wish {
            // Whether it is stopped or suspended, it may still run for a while.
            Wish::Run | Wish::Keep | Wish::Suspend | Wish::Halt => {
                replaceable(order).unwrap_or_else(|| self.keeper.notes().is_marked(self.id))
            }
            // It is being removed, or nobody would start it elsewhere.
            Wish::Absent | Wish::Unknown => false,
        }
    }

    /// Ends the copy and tells of it for as long as it is wished to run: this worker does not start it again, unless the
    /// controller knows of it and yet wishes for another boot of a copy that is to be kept by now.
    async fn fence(&self, orders: &mut watch::Receiver<Order>, why: &str) {
        while let Err(error) = end(&*self.host.runtime, self.id).await {
            tracing::error!(copy = %self.id, "the lease is over, and the VM cannot be ended: {error}");
            tokio::time::sleep(PAUSE).await;
            if matches!(orders.borrow_and_update().wish, Wish::Absent | Wish::Unknown) {
                return;
            }
        }
        let mut told = None;
        loop {
            let order = orders.borrow_and_update().clone();
            if order.wish != Wish::Run {
                return;
            }
            if replaceable(&order) == Some(false) && told.is_some_and(|boot| order.boot > boot) {
                return self.keeper.notes().forget_fenced(self.id);
            }
            told.get_or_insert(order.boot);
            self.host.uplink.tell(self.id, order.boot, Observation::Fenced { message: why.to_owned() });
            changed(orders).await;
        }
    }
}

/// Whether the copy may be started elsewhere; `None` when the order does not say.
fn replaceable(order: &Order) -> Option<bool> {
    match (order.wish, &order.copy) {
        (Wish::Run, Some(copy)) => Some(copy.spec.on_unseen == OnUnseen::Replace),
        (Wish::Run | Wish::Keep | Wish::Suspend | Wish::Absent | Wish::Halt, _) => None,
        // The controller does not know it, so it starts it nowhere.
        (Wish::Unknown, _) => Some(false),
    }
}

/// Returns when there is another order; never when none can come, as the owner then ends the task.
async fn changed(orders: &mut watch::Receiver<Order>) {
    if orders.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
