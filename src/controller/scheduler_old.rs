//! Where a VM goes: a pure choice among candidates, with the reason when there is none.
//!
//! Fill first (the worker with the most VMs that still fits), so that big VMs find empty workers; ties go by name so
//! that the same state always gives the same placement.

use std::collections::BTreeMap;
use std::fmt;

use crate::model::WorkerName;
use crate::model::resources::{LOGICAL_CORES, MEMORY_MIB, Resources, TART_VMS};
use crate::model::vm::{Os, RuntimeKind, VmSpec};
use crate::model::worker::WorkerInfo;

/// How many virtual cores are given out for each real one: build machines wait for disks and networks most of the time.
pub const CPU_OVERCOMMIT: u64 = 4;

/// What the scheduler knows of one worker.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// What it said of itself.
    pub info: &'a WorkerInfo,
    /// What its VMs take.
    pub used: &'a Resources,
    /// How many VMs it has.
    pub vms: usize,
    /// It renewed its lease in time.
    pub online: bool,
    /// Its operator wants no new VMs on it.
    pub paused: bool,
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
}

/// Why a worker was not chosen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Obstacle {
    NotOnline,
    Paused,
    Runtime,
    Arch,
    Label(String),
    TooSmall(String, u64),
    Lacks(String, u64),
}

/// Why no worker was chosen: each obstacle with the number of workers it removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unplaceable {
    workers: usize,
    obstacles: BTreeMap<Obstacle, usize>,
}

/// What `spec` takes from a worker, with the worker's defaults filled in: (cpu, memory, resources).
pub fn demand(spec: &VmSpec, info: &WorkerInfo) -> (u64, u64, Resources) {
    let cpu = if spec.cpu == 0 { info.default_cpu.max(1) } else { spec.cpu };
    let memory = if spec.memory == 0 { info.default_memory.max(1) } else { spec.memory };
    let mut taken = spec.resources.clone();
    taken.0.entry(LOGICAL_CORES.to_owned()).or_insert(cpu);
    taken.0.entry(MEMORY_MIB.to_owned()).or_insert(memory);
    // Apple's licence allows two macOS guests a host, and Tart refuses a third.
    if info.runtime == RuntimeKind::Tart && spec.os == Some(Os::Darwin) {
        taken.0.entry(TART_VMS.to_owned()).or_insert(1);
    }
    (cpu, memory, taken)
}

/// What a worker offers, over-commit included.
pub fn offer(info: &WorkerInfo) -> Resources {
    let mut offered = info.resources.clone();
    if let Some(cores) = offered.0.get_mut(LOGICAL_CORES) {
        *cores = cores.saturating_mul(CPU_OVERCOMMIT);
    }
    offered
}

/// Chooses a worker for `spec`.
///
/// # Errors
/// [`Unplaceable`], whose text tells people what stands in the way.
pub fn choose<'a>(
    spec: &VmSpec,
    candidates: impl IntoIterator<Item = Candidate<'a>>,
) -> Result<Placement, Unplaceable> {
    let mut why = Unplaceable::default();
    let mut best: Option<(usize, Placement)> = None;
    for candidate in candidates {
        why.workers += 1;
        match fit(spec, &candidate) {
            Ok(placement) => {
                let better = best.as_ref().is_none_or(|(vms, held)| {
                    candidate.vms > *vms || (candidate.vms == *vms && placement.worker < held.worker)
                });
                if better {
                    best = Some((candidate.vms, placement));
                }
            }
            Err(obstacle) => *why.obstacles.entry(obstacle).or_default() += 1,
        }
    }
    best.map(|(_, placement)| placement).ok_or(why)
}

fn fit(spec: &VmSpec, candidate: &Candidate<'_>) -> Result<Placement, Obstacle> {
    let info = candidate.info;
    if !candidate.online {
        return Err(Obstacle::NotOnline);
    }
    if candidate.paused {
        return Err(Obstacle::Paused);
    }
    if spec.runtime.is_some_and(|runtime| runtime != info.runtime) {
        return Err(Obstacle::Runtime);
    }
    if spec.arch.is_some_and(|arch| arch != info.arch) {
        return Err(Obstacle::Arch);
    }
    // As in the system users come from: an empty required value is satisfied by an absent label.
    let has = |name: &String, value: &String| info.labels.get(name).map_or("", String::as_str) == value;
    if let Some((name, value)) = spec.labels.iter().find(|(name, value)| !has(name, value)) {
        return Err(Obstacle::Label(format!("{name}={value}")));
    }
    let (cpu, memory, taken) = demand(spec, info);
    if let Some(name) = offer(info).lacking(candidate.used, &taken) {
        let asked = taken.get(name);
        let obstacle = if offer(info).get(name) < asked { Obstacle::TooSmall } else { Obstacle::Lacks };
        return Err(obstacle(name.to_owned(), asked));
    }
    Ok(Placement { worker: info.name.clone(), cpu, memory, taken })
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::NotOnline => f.write_str("not online"),
            Obstacle::Paused => f.write_str("paused"),
            Obstacle::Runtime => f.write_str("with another runtime"),
            Obstacle::Arch => f.write_str("of another architecture"),
            Obstacle::Label(label) => write!(f, "without label {label}"),
            Obstacle::TooSmall(resource, asked) => write!(f, "too small for {asked} {resource}"),
            Obstacle::Lacks(resource, asked) => write!(f, "without {asked} {resource} free"),
        }
    }
}

impl fmt::Display for Unplaceable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.workers == 0 {
            return f.write_str("waiting for a worker: none has registered yet");
        }
        write!(f, "waiting for a worker: of {} none fits", self.workers)?;
        for (i, (obstacle, count)) in self.obstacles.iter().enumerate() {
            write!(f, "{} {count} {obstacle}", if i == 0 { ":" } else { "," })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::vm::Arch;

    fn info(name: &str, cores: u64) -> WorkerInfo {
        WorkerInfo {
            name: name.parse().unwrap(),
            machine_id: name.into(),
            os: Os::Linux,
            arch: Arch::Amd64,
            runtime: RuntimeKind::Qemu,
            resources: [(LOGICAL_CORES, cores), (MEMORY_MIB, 16_384)].into(),
            labels: [("zone".to_owned(), "a".to_owned())].into(),
            default_cpu: 4,
            default_memory: 4096,
            version: String::new(),
        }
    }

    fn candidate<'a>(info: &'a WorkerInfo, used: &'a Resources, vms: usize) -> Candidate<'a> {
        Candidate { info, used, vms, online: true, paused: false }
    }

    #[test]
    fn fills_the_busiest_worker_that_fits_and_breaks_ties_by_name() {
        let (a, b, c) = (info("a", 8), info("b", 8), info("c", 8));
        let (none, full) = (Resources::default(), Resources::from([(MEMORY_MIB, 16_000)]));
        let spec = VmSpec::default();
        let place = |candidates: Vec<Candidate<'_>>| choose(&spec, candidates).unwrap().worker.to_string();
        assert_eq!(place(vec![candidate(&b, &none, 0), candidate(&a, &none, 0)]), "a");
        assert_eq!(place(vec![candidate(&a, &none, 0), candidate(&b, &none, 2), candidate(&c, &full, 9)]), "b");
    }

    #[test]
    fn defaults_of_the_worker_fill_in_what_the_vm_leaves_open() {
        let (worker, none) = (info("a", 8), Resources::default());
        let placement = choose(&VmSpec { cpu: 2, ..VmSpec::default() }, [candidate(&worker, &none, 0)]).unwrap();
        assert_eq!((placement.cpu, placement.memory), (2, 4096));
        assert_eq!(placement.taken, [(LOGICAL_CORES, 2), (MEMORY_MIB, 4096)].into());
    }

    #[test]
    fn says_which_constraint_removed_how_many() {
        let (a, b) = (info("a", 1), info("b", 8));
        let none = Resources::default();
        let paused = Candidate { paused: true, ..candidate(&b, &none, 0) };
        let spec = VmSpec { cpu: 5, ..VmSpec::default() };
        let why = choose(&spec, [candidate(&a, &none, 0), paused]).unwrap_err().to_string();
        assert_eq!(
            why,
            "waiting for a worker: of 2 none fits: 1 paused, 1 too small for 5 org.cirruslabs.logical-cores"
        );
    }

    #[test]
    fn labels_runtime_and_architecture_are_required() {
        let (worker, none) = (info("a", 8), Resources::default());
        for spec in [
            VmSpec { labels: [("zone".to_owned(), "b".to_owned())].into(), ..VmSpec::default() },
            VmSpec { runtime: Some(RuntimeKind::Tart), ..VmSpec::default() },
            VmSpec { arch: Some(Arch::Arm64), ..VmSpec::default() },
            VmSpec { resources: [("gpu", 1)].into(), ..VmSpec::default() },
        ] {
            assert!(choose(&spec, [candidate(&worker, &none, 0)]).is_err(), "{spec:?}");
        }
        let empty = VmSpec { labels: [("other".to_owned(), String::new())].into(), ..VmSpec::default() };
        assert!(choose(&empty, [candidate(&worker, &none, 0)]).is_ok());
    }
}
