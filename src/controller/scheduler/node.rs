//! One worker as the scheduler sees it, and whether it can take a VM.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use super::explain::Obstacle;
use super::shape::{Shape, each_demand};
use crate::model::planted::{Bug, planted};
use crate::model::resources::{LOGICAL_CORES, Resources, WORKER_NAME_LABEL};
use crate::model::settings::Profile;
use crate::model::vm::{Os, RuntimeKind};
use crate::model::worker::WorkerInfo;

/// Images remembered of a worker that VMs have started from, the last used last.
const IMAGES: usize = 32;

/// Whether a worker takes new VMs at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It does.
    Open,
    /// Its operator wants no new VMs on it.
    Paused,
    /// It has not renewed its lease in time.
    Unseen,
}

/// The worker is kept free for the first VM of this shape.
#[derive(Clone, Debug)]
pub(super) struct Reservation {
    pub(super) shape: Arc<Shape>,
}

/// What is preferred comes first.
pub(super) type Rank = (u64, u64);

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) info: WorkerInfo,
    /// What it offers, over-commit included.
    offered: Resources,
    pub(super) used: Resources,
    pub(super) vms: usize,
    pub(super) standing: Standing,
    pub(super) reserved: Option<Reservation>,
    /// Images that it holds, as it says itself; none = it has not said.
    told: Option<HashSet<Arc<str>>>,
    /// Those that VMs have started from there since, as far as is known here.
    started: VecDeque<String>,
}

impl Node {
    pub(super) fn new(info: WorkerInfo, overcommit: u64) -> Self {
        let mut node = Self {
            info,
            offered: Resources::default(),
            used: Resources::default(),
            vms: 0,
            standing: Standing::Unseen,
            reserved: None,
            told: None,
            started: VecDeque::new(),
        };
        node.offer(overcommit);
        node
    }

    /// Works out what it offers.
    pub(super) fn offer(&mut self, overcommit: u64) {
        self.offered = self.info.resources.clone();
        if let Some(cores) = self.offered.0.get_mut(LOGICAL_CORES) {
            *cores = cores.saturating_mul(overcommit);
        }
    }

    pub(super) fn offered(&self) -> &Resources {
        &self.offered
    }

    pub(super) fn has_image(&self, image: &str) -> bool {
        self.told.as_ref().is_some_and(|told| told.contains(image)) || self.started.iter().any(|known| known == image)
    }

    pub(super) fn remember_image(&mut self, image: &str) {
        if self.started.len() == IMAGES {
            self.started.pop_front();
        }
        self.started.push_back(image.to_owned());
    }

    /// What it says that it holds, in place of all that was known.
    pub(super) fn set_images(&mut self, images: HashSet<Arc<str>>) {
        self.started.clear();
        self.told = Some(images);
    }

    pub(super) fn can_be_kept_free(&self) -> bool {
        self.reserved.is_none() && self.standing == Standing::Open
    }

    /// How much it is preferred for `shape`.
    pub(super) fn rank(&self, shape: &Shape, profile: Profile) -> Rank {
        let vms = u64::try_from(self.vms).unwrap_or(u64::MAX);
        let fetches = u64::from(!self.has_image(&shape.image));
        match profile {
            Profile::OptimizeUtilization => (fetches, u64::MAX - vms),
            Profile::DistributeLoad => (vms, fetches),
        }
    }

    /// Whether a VM of `shape` may be placed here now.
    pub(super) fn takes<'a>(&self, shape: &'a Shape) -> Result<(), Obstacle<'a>> {
        match self.standing {
            Standing::Open => {}
            Standing::Paused => return Err(Obstacle::Paused),
            Standing::Unseen => return Err(Obstacle::Unseen),
        }
        self.could_take(shape)?;
        for (name, amount) in each_demand(shape, &self.info) {
            let mut free = self.offered.get(name).saturating_sub(self.used.get(name));
            if planted(Bug::Wrap) {
                free = self.offered.get(name).wrapping_sub(self.used.get(name));
            }
            if amount > free {
                return Err(Obstacle::Lacks(name, amount));
            }
        }
        // Last, so that it is only said of workers on which it would fit.
        match &self.reserved {
            Some(kept) if *kept.shape != *shape && kept.shape.priority >= shape.priority => Err(Obstacle::KeptFree),
            _ => Ok(()),
        }
    }

    /// Whether it could be if the worker were empty.
    pub(super) fn could_take<'a>(&self, shape: &'a Shape) -> Result<(), Obstacle<'a>> {
        let info = &self.info;
        if shape.worker.as_ref().is_some_and(|worker| *worker != info.name) {
            return Err(Obstacle::OtherWorker);
        }
        if shape.runtime.is_some_and(|runtime| runtime != info.runtime) {
            return Err(Obstacle::Runtime);
        }
        if shape.arch.is_some_and(|arch| arch != info.arch) {
            return Err(Obstacle::Arch);
        }
        // No macOS but on a Mac; guests that are not real do not mind.
        if shape.os == Some(Os::Darwin) && info.os != Os::Darwin && info.runtime != RuntimeKind::Synthetic {
            return Err(Obstacle::GuestOs);
        }
        if shape.host_dirs && info.runtime == RuntimeKind::Vetu {
            return Err(Obstacle::HostDirs);
        }
        if let Some((name, value)) = shape.labels.iter().find(|(name, value)| self.label(name) != value.as_str()) {
            return Err(Obstacle::Label(name, value));
        }
        match each_demand(shape, info).find(|(name, amount)| *amount > self.offered.get(name)) {
            Some((name, amount)) => Err(Obstacle::TooSmall(name, amount)),
            None => Ok(()),
        }
    }

    /// As in the system users come from, an empty required value is satisfied by an absent label, and every worker has its
    /// name as one.
    fn label(&self, name: &str) -> &str {
        // Whatever it says of itself: VMs that are bound to another worker are not for it.
        if name == WORKER_NAME_LABEL {
            return self.info.name.as_str();
        }
        self.info.labels.get(name).map_or("", String::as_str)
    }

    /// How much is missing for a VM of `shape`: the largest share of what the worker offers, in millionths, then its VMs.
    pub(super) fn missing(&self, shape: &Shape) -> (u64, usize) {
        let share = |(name, amount): (&str, u64)| {
            let offered = self.offered.get(name);
            let free = offered.saturating_sub(self.used.get(name));
            amount.saturating_sub(free).saturating_mul(1_000_000).checked_div(offered).unwrap_or(0)
        };
        (each_demand(shape, &self.info).map(share).max().unwrap_or(0), self.vms)
    }
}
