//! Where VMs go: who waits, which workers could take each, and who is next. Owned by the cluster core, which tells it what
//! changes; pure, and the same history always gives the same placements.
//!
//! Incremental: VMs that want the same are one [`Shape`], and each shape keeps the workers that it fits on in the order of
//! preference. A change of a worker costs a look from each shape, a create costs the first of a set; nothing scans the fleet
//! or the queue. A VM that wants what none before it wanted costs one look at each worker.
//!
//! First come first served within a priority, but who does not fit lets others pass. So that big VMs do not wait for ever,
//! one that [`MAX_OVERTAKEN`] others have passed gets a worker to itself: nobody of its priority or below is placed there
//! until it is. If as many pass it once more meanwhile, what runs there does not end, and it gets the worker on which it was
//! passed last instead: sooner or later one whose VMs end. One worker in eight is kept free so, and at least one; while others
//! have these, a VM goes on being passed.

mod explain;
mod fits;
mod node;
mod shape;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use self::explain::Tally;
pub use self::explain::{Explanation, Why};
use self::fits::Fits;
pub use self::node::Standing;
use self::node::{Node, Reservation};
pub use self::shape::{Shape, demand};
use crate::model::resources::Resources;
use crate::model::settings::{CPU_OVERCOMMIT, Profile};
use crate::model::worker::WorkerInfo;
use crate::model::{VmUid, WorkerName, image};

/// A VM that could run on some worker is passed there by this many that came later, at most, before a worker is kept free
/// for it.
pub const MAX_OVERTAKEN: u32 = 64;
/// Of this many workers one may be kept free for VMs that have waited too long; there may always be one.
const WORKERS_PER_RESERVATION: usize = 8;
/// Shapes that are remembered although no VM of theirs waits.
const IDLE_SHAPES: usize = 64;

/// What the operator decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Which worker is preferred.
    pub profile: Profile,
    /// Virtual cores for each real one.
    pub cpu_overcommit: u64,
    /// How many may pass a VM where it could run before a worker is kept free for it.
    pub max_overtaken: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self { profile: Profile::default(), cpu_overcommit: CPU_OVERCOMMIT, max_overtaken: MAX_OVERTAKEN }
    }
}

/// A VM's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The worker.
    pub worker: WorkerName,
    /// CPU cores to give.
    pub cpu: u64,
    /// Memory to give, in MiB.
    pub memory: u64,
    /// What that takes from the worker.
    pub taken: Resources,
    /// Why there.
    pub why: Why,
}

/// By priority, then by age: version 7 uids sort by the time at which they were made.
type Place = (Reverse<i32>, VmUid);

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Scheduler {
    policy: Policy,
    nodes: BTreeMap<WorkerName, Node>,
    shapes: HashMap<Arc<Shape>, Fits>,
    /// Everyone who waits.
    waiting: HashMap<VmUid, Arc<Shape>>,
    /// The first of each shape.
    heads: BTreeMap<Place, Arc<Shape>>,
    /// Those of them that fit on a worker now.
    ready: BTreeMap<Place, Arc<Shape>>,
    /// Workers that are kept free.
    reserved: usize,
    /// Counts uses of shapes, so that the one that was not used for longest is forgotten first.
    clock: u64,
}

impl Scheduler {
    /// Without workers or VMs.
    pub fn new(policy: Policy) -> Self {
        Self { policy, ..Self::default() }
    }

    /// Goes by `policy` from now on. Costs a look at every worker from every shape.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
        for node in self.nodes.values_mut() {
            node.offer(policy.cpu_overcommit);
        }
        let shapes: Vec<Arc<Shape>> = self.shapes.keys().cloned().collect();
        for shape in shapes {
            if let Some(fits) = self.shapes.get_mut(&shape) {
                fits.find(&shape, &self.nodes, policy.profile);
            }
            self.refresh(&shape);
        }
    }

    /// Takes in what a worker says of itself; what it holds stays as it is.
    pub fn put_worker(&mut self, info: &WorkerInfo, standing: Standing) {
        let name = info.name.clone();
        if !self.nodes.contains_key(&name) {
            self.nodes.insert(name.clone(), Node::new(info.clone(), self.policy.cpu_overcommit));
        }
        let overcommit = self.policy.cpu_overcommit;
        self.change(&name, |node| {
            if node.info != *info {
                node.info = info.clone();
                node.offer(overcommit);
            }
            node.standing = standing;
        });
        if standing != Standing::Open {
            self.release_reservation(&name);
        }
    }

    /// Forgets a worker and what it held.
    pub fn remove_worker(&mut self, name: &WorkerName) {
        self.release_reservation(name);
        // Out of every shape's set first: nothing closed is in any.
        self.change(name, |node| node.standing = Standing::Unseen);
        self.nodes.remove(name);
    }

    /// `amounts` and `vms` VMs more are on the worker.
    pub fn hold(&mut self, worker: &WorkerName, amounts: &Resources, vms: usize) {
        self.change(worker, |node| {
            node.used.add(amounts);
            node.vms = node.vms.saturating_add(vms);
        });
    }

    /// `amounts` and `vms` VMs fewer are.
    pub fn release(&mut self, worker: &WorkerName, amounts: &Resources, vms: usize) {
        self.change(worker, |node| {
            node.used.subtract(amounts);
            node.vms = node.vms.saturating_sub(vms);
        });
    }

    /// The worker has an image, so that a VM of it starts sooner there.
    pub fn has_image(&mut self, worker: &WorkerName, image: &str) {
        let image = image::shown(image);
        if self.nodes.get(worker).is_some_and(|node| !node.has_image(&image)) {
            self.change(worker, |node| node.remember_image(&image));
        }
    }

    /// The worker says which images it holds: what was known of that before counts no more. Names are as
    /// [`crate::model::image::shown`] has them.
    pub fn set_images(&mut self, worker: &WorkerName, images: HashSet<Arc<str>>) {
        self.change(worker, |node| node.set_images(images));
    }

    /// What the worker's VMs take.
    pub fn used(&self, worker: &WorkerName) -> Option<&Resources> {
        self.nodes.get(worker).map(|node| &node.used)
    }

    /// A VM waits for a worker.
    pub fn enqueue(&mut self, uid: VmUid, shape: Shape) {
        self.withdraw(uid);
        let shape = self.known(shape);
        if let Some(fits) = self.shapes.get_mut(&shape) {
            fits.waiting.insert(uid);
        }
        self.waiting.insert(uid, shape.clone());
        self.refresh(&shape);
    }

    /// It does no more.
    pub fn withdraw(&mut self, uid: VmUid) {
        let Some(shape) = self.waiting.remove(&uid) else { return };
        if let Some(fits) = self.shapes.get_mut(&shape) {
            fits.waiting.remove(&uid);
        }
        self.refresh(&shape);
    }

    /// Whether it waits.
    pub fn is_waiting(&self, uid: VmUid) -> bool {
        self.waiting.contains_key(&uid)
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Places the next VM that fits somewhere, and counts it there; `None` when none of those who wait does.
    pub fn place_next(&mut self) -> Option<(VmUid, Placement)> {
        let ((_, uid), shape) = self.ready.first_key_value().map(|(place, shape)| (*place, shape.clone()))?;
        let fits = self.shapes.get(&shape)?;
        let worker = fits.best()?.clone();
        let fitting = fits.len();
        let node = self.nodes.get(&worker)?;
        let (cpu, memory, taken) = demand(&shape, &node.info);
        let why = Why {
            fitting,
            workers: self.nodes.len(),
            profile: self.policy.profile,
            vms: node.vms,
            has_image: node.has_image(&shape.image),
            kept_free: fits.reservation.as_ref() == Some(&worker),
        };
        self.withdraw(uid);
        self.hold(&worker, &taken, 1);
        self.count_overtaken((Reverse(shape.priority), uid), &worker);
        Some((uid, Placement { worker, cpu, memory, taken, why }))
    }

    /// What stands in the way of a VM of this shape, worker by worker. Looks at every worker: for people who ask.
    pub fn explain(&self, shape: &Shape) -> Explanation {
        let mut tally = Tally::default();
        for node in self.nodes.values() {
            tally.count(node.takes(shape), node.offered());
        }
        tally.explanation()
    }

    /// Whether a VM of this shape could be on the worker if that were empty and took VMs.
    pub fn could_take(&self, worker: &WorkerName, shape: &Shape) -> bool {
        self.nodes.get(worker).is_some_and(|node| node.could_take(shape).is_ok())
    }

    /// Whether a VM of this shape could be on any other worker than `this`, if that were empty and heard of. Those count that
    /// their operators have not closed.
    pub fn could_go_elsewhere(&self, this: &WorkerName, shape: &Shape) -> bool {
        let mut others = self.nodes.iter().filter(|(name, node)| *name != this && node.standing != Standing::Paused);
        others.any(|(_, node)| node.could_take(shape).is_ok())
    }

    /// `shape`, with the workers that it fits on known from here on.
    fn known(&mut self, shape: Shape) -> Arc<Shape> {
        self.clock += 1;
        let clock = self.clock;
        if let Some((known, _)) = self.shapes.get_key_value(&shape) {
            let known = known.clone();
            if let Some(fits) = self.shapes.get_mut(&known) {
                fits.used_at = clock;
            }
            return known;
        }
        self.forget_idle();
        let shape = Arc::new(shape);
        let mut fits = Fits::used_at(clock);
        fits.find(&shape, &self.nodes, self.policy.profile);
        self.shapes.insert(shape.clone(), fits);
        shape
    }

    /// Makes room among the shapes of which nobody waits.
    fn forget_idle(&mut self) {
        let idle = |fits: &Fits| fits.waiting.is_empty();
        if self.shapes.values().filter(|fits| idle(fits)).count() < IDLE_SHAPES {
            return;
        }
        let oldest = self.shapes.iter().filter(|(_, fits)| idle(fits)).min_by_key(|(_, fits)| fits.used_at);
        if let Some(shape) = oldest.map(|(shape, _)| shape.clone()) {
            self.shapes.remove(&shape);
        }
    }

    /// Changes a worker, and in every shape's set its place.
    fn change(&mut self, name: &WorkerName, apply: impl FnOnce(&mut Node)) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        let profile = self.policy.profile;
        for (shape, fits) in &mut self.shapes {
            fits.remove(node.rank(shape, profile), name);
        }
        apply(node);
        let mut turned = Vec::new();
        for (shape, fits) in &mut self.shapes {
            if node.takes(shape).is_ok() {
                fits.insert(node.rank(shape, profile), name.clone());
            }
            if fits.head.is_some_and(|head| fits.is_empty() == self.ready.contains_key(&head)) {
                turned.push(shape.clone());
            }
        }
        for shape in turned {
            self.refresh(&shape);
        }
    }

    /// Brings what is known of the first of a shape up to date.
    fn refresh(&mut self, shape: &Arc<Shape>) {
        let Some(fits) = self.shapes.get_mut(shape) else { return };
        let head = fits.waiting.first().map(|uid| (Reverse(shape.priority), *uid));
        let before = std::mem::replace(&mut fits.head, head);
        if before != head {
            fits.overtaken = 0;
            let kept = fits.reservation.take();
            if let Some(before) = before {
                self.heads.remove(&before);
                self.ready.remove(&before);
            }
            if let Some(head) = head {
                self.heads.insert(head, shape.clone());
            }
            if let Some(worker) = kept {
                self.release_reservation(&worker);
            }
        }
        // What was kept free may be what it fits on no more, or others fit on now: they have been told by `change`.
        let Some(head) = head else { return };
        if self.shapes.get(shape).is_some_and(|fits| !fits.is_empty()) {
            self.ready.insert(head, shape.clone());
        } else {
            self.ready.remove(&head);
        }
    }

    /// Counts for those who were before `placed` that it has passed them, where they could have run themselves.
    fn count_overtaken(&mut self, placed: Place, worker: &WorkerName) {
        let Some(node) = self.nodes.get(worker) else { return };
        let mut tired = Vec::new();
        for shape in self.heads.range(..placed).map(|(_, shape)| shape) {
            if node.could_take(shape).is_err() {
                continue;
            }
            if let Some(fits) = self.shapes.get_mut(shape) {
                fits.overtaken = fits.overtaken.saturating_add(1);
                if fits.overtaken >= self.policy.max_overtaken {
                    tired.push((shape.clone(), fits.reservation.clone()));
                }
            }
        }
        for (shape, kept) in tired {
            match kept {
                None => self.reserve(&shape),
                // Where it waits something does not end; here VMs do.
                Some(kept) if self.nodes.get(worker).is_some_and(Node::can_be_kept_free) => {
                    self.release_reservation(&kept);
                    self.keep_free(worker, &shape);
                }
                Some(_) => {}
            }
        }
    }

    /// Keeps the worker free for the first of `shape` on which the least is missing.
    fn reserve(&mut self, shape: &Arc<Shape>) {
        if self.reserved >= (self.nodes.len() / WORKERS_PER_RESERVATION).max(1) {
            return;
        }
        let open = self.nodes.values().filter(|node| node.can_be_kept_free());
        let nearest = open.filter(|node| node.could_take(shape).is_ok()).min_by_key(|node| node.missing(shape));
        if let Some(name) = nearest.map(|node| node.info.name.clone()) {
            self.keep_free(&name, shape);
        }
    }

    /// Keeps this worker free for the first of `shape`.
    fn keep_free(&mut self, name: &WorkerName, shape: &Arc<Shape>) {
        let Some(fits) = self.shapes.get_mut(shape) else { return };
        fits.reservation = Some(name.clone());
        fits.overtaken = 0;
        self.reserved += 1;
        self.change(name, |node| node.reserved = Some(Reservation { shape: shape.clone() }));
    }

    /// Ends the reservation of a worker, if it has one.
    fn release_reservation(&mut self, name: &WorkerName) {
        let held = self.nodes.get(name).and_then(|node| node.reserved.clone());
        let Some(Reservation { shape }) = held else { return };
        if let Some(fits) = self.shapes.get_mut(&shape) {
            fits.reservation = None;
        }
        self.reserved = self.reserved.saturating_sub(1);
        self.change(name, |node| node.reserved = None);
    }
}
