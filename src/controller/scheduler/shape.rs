//! What a VM wants of a worker. VMs that want the same are of the same shape.

use crate::model::WorkerName;
use crate::model::image;
use crate::model::resources::{LOGICAL_CORES, Labels, MEMORY_MIB, Resources, TART_VMS};
use crate::model::vm::{Arch, Os, RuntimeKind, Vm, VmSpec};
use crate::model::worker::WorkerInfo;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Who is served first; higher is sooner.
    pub priority: i32,
    /// The only worker that will do.
    pub worker: Option<WorkerName>,
    /// The guest's operating system.
    pub os: Option<Os>,
    /// The architecture it needs.
    pub arch: Option<Arch>,
    /// The runtime it needs.
    pub runtime: Option<RuntimeKind>,
    /// Labels its worker must have.
    pub labels: Labels,
    /// It sees folders of the host, which not every runtime can give.
    pub host_dirs: bool,
    /// CPU cores; 0 = the worker's default.
    pub cpu: u64,
    /// Memory in MiB; 0 = the worker's default.
    pub memory: u64,
    /// Further resources.
    pub resources: Resources,
    /// Its image, without who fetches it: preferred is a worker that has it.
    pub image: String,
}

impl Shape {
    /// That of a VM, bound to the worker where its disk is, or which it must stay on for another reason, if there is one.
    pub fn of_vm(vm: &Vm) -> Self {
        Self { worker: vm.worker.as_ref().or(vm.bound_to.as_ref()).cloned(), ..Self::of(&vm.spec) }
    }

    /// That of a VM as it was asked for, bound to no worker.
    pub fn of(spec: &VmSpec) -> Self {
        Self {
            priority: spec.priority,
            worker: None,
            os: spec.os,
            arch: spec.arch,
            runtime: spec.runtime,
            labels: spec.labels.clone(),
            host_dirs: !spec.host_dirs.is_empty(),
            cpu: spec.cpu,
            memory: spec.memory,
            resources: spec.resources.clone(),
            image: image::shown(&spec.image),
        }
    }
}

/// What a VM of `shape` takes from a worker, with the worker's defaults filled in: (cpu, memory, resources).
pub fn demand(shape: &Shape, info: &WorkerInfo) -> (u64, u64, Resources) {
    let (cpu, memory) = size(shape, info);
    let mut taken = shape.resources.clone();
    taken.0.entry(LOGICAL_CORES.to_owned()).or_insert(cpu);
    taken.0.entry(MEMORY_MIB.to_owned()).or_insert(memory);
    if takes_slot(shape, info) {
        taken.0.entry(TART_VMS.to_owned()).or_insert(1);
    }
    (cpu, memory, taken)
}

/// What it would take of each resource, without making a map: the scheduler asks this of every worker for every shape.
pub(super) fn each_demand<'a>(shape: &'a Shape, info: &WorkerInfo) -> impl Iterator<Item = (&'a str, u64)> + use<'a> {
    let (cpu, memory) = size(shape, info);
    let standard = [(LOGICAL_CORES, cpu), (MEMORY_MIB, memory), (TART_VMS, u64::from(takes_slot(shape, info)))];
    let standard = standard.into_iter().filter(|(name, _)| !shape.resources.0.contains_key(*name));
    standard.chain(shape.resources.0.iter().map(|(name, amount)| (name.as_str(), *amount)))
}

fn size(shape: &Shape, info: &WorkerInfo) -> (u64, u64) {
    let cpu = if shape.cpu == 0 { info.default_cpu.max(1) } else { shape.cpu };
    let memory = if shape.memory == 0 { info.default_memory.max(1) } else { shape.memory };
    (cpu, memory)
}

/// Apple's licence allows two macOS guests a host, and Tart refuses a third.
fn takes_slot(shape: &Shape, info: &WorkerInfo) -> bool {
    info.runtime == RuntimeKind::Tart && shape.os == Some(Os::Darwin)
}
