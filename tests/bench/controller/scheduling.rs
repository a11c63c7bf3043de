//! One more VM in a fleet of 2,000 workers and 10,000 VMs: the scheduler against a scan of all workers, which is what it
//! would cost without its sets, in the same run.

use std::hint::black_box;
use std::time::{Duration, Instant};

use orchard::controller::scheduler::{Policy, Scheduler, Shape, Standing, demand};
use orchard::model::resources::{LOGICAL_CORES, MEMORY_MIB, Resources};
use orchard::model::settings::Profile;
use orchard::model::vm::{Arch, Os, RuntimeKind, VmSpec};
use orchard::model::worker::WorkerInfo;
use orchard::model::{VmUid, WorkerName};

const WORKERS: usize = 2_000;
const VMS: usize = 10_000;
const ROUNDS: usize = 20_000;
/// What VMs of a build farm ask for: (cpu, memory, image).
const KINDS: [(u64, u64, &str); 8] = [
    (1, 1_024, "linux"),
    (2, 4_096, "linux"),
    (4, 8_192, "linux"),
    (4, 8_192, "macos"),
    (8, 16_384, "macos"),
    (2, 2_048, "windows"),
    (1, 512, "alpine"),
    (16, 32_768, "linux"),
];

pub fn run() {
    println!("one create among {WORKERS} workers and {VMS} VMs:");
    for (name, profile) in
        [("optimize-utilization", Profile::OptimizeUtilization), ("distribute-load", Profile::DistributeLoad)]
    {
        let mut fleet = Fleet::filled(profile);
        let mut known = Vec::with_capacity(ROUNDS);
        for round in 0..ROUNDS {
            known.push(fleet.turnover(kind(round)));
        }
        let mut new = Vec::new();
        for round in 0..ROUNDS / 20 {
            // A size that nobody has asked for yet.
            new.push(fleet.turnover(shape(1, 100_000 + u64::try_from(round).unwrap() % 7_000 + 1, "linux")));
        }
        let scan = fleet.scan();
        println!(
            "  {name:<22} p50 {:>8.2?} p99 {:>8.2?}   first of its kind p50 {:>8.2?}   a scan {scan:>8.2?} = {:.0} times as long",
            at(&known, 50),
            at(&known, 99),
            at(&new, 50),
            scan.as_secs_f64() / at(&known, 50).as_secs_f64(),
        );
    }
}

struct Fleet {
    scheduler: Scheduler,
    infos: Vec<WorkerInfo>,
    running: std::collections::VecDeque<(WorkerName, Resources)>,
    next: u128,
}

impl Fleet {
    fn filled(profile: Profile) -> Self {
        let mut scheduler = Scheduler::new(Policy { profile, ..Policy::default() });
        let infos: Vec<WorkerInfo> = (0..WORKERS).map(info).collect();
        infos.iter().for_each(|info| scheduler.put_worker(info, Standing::Open));
        let mut fleet = Self { scheduler, infos, running: Default::default(), next: 0 };
        for n in 0..VMS {
            fleet.create(kind(n));
        }
        assert_eq!(fleet.running.len(), VMS);
        fleet
    }

    fn create(&mut self, shape: Shape) {
        self.next += 1;
        self.scheduler.enqueue(VmUid(uuid::Uuid::from_u128(self.next)), shape);
        while let Some((_, placement)) = self.scheduler.place_next() {
            self.running.push_back((placement.worker, placement.taken));
        }
    }

    /// The oldest VM ends, which is not measured, and a new one is created, which is.
    fn turnover(&mut self, shape: Shape) -> Duration {
        let (worker, taken) = self.running.pop_front().unwrap();
        self.scheduler.release(&worker, &taken, 1);
        let started = Instant::now();
        self.create(shape);
        started.elapsed()
    }

    /// What a look at each worker costs.
    fn scan(&self) -> Duration {
        let rounds = 50;
        let started = Instant::now();
        for round in 0..rounds {
            let shape = kind(round);
            let fits = self.infos.iter().filter(|info| {
                let used = self.scheduler.used(&info.name).unwrap();
                let (_, _, wanted) = demand(&shape, info);
                info.resources.lacking(used, &wanted).is_none()
            });
            black_box(fits.count());
        }
        started.elapsed() / u32::try_from(rounds).unwrap()
    }
}

fn kind(n: usize) -> Shape {
    let (cpu, memory, image) = KINDS[n % KINDS.len()];
    shape(cpu, memory, image)
}

fn shape(cpu: u64, memory: u64, image: &str) -> Shape {
    Shape::of(&VmSpec { cpu, memory, image: image.into(), ..VmSpec::default() })
}

fn info(n: usize) -> WorkerInfo {
    WorkerInfo {
        name: format!("worker-{n:04}").parse().unwrap(),
        machine_id: n.to_string(),
        os: Os::Linux,
        arch: Arch::Amd64,
        runtime: RuntimeKind::Qemu,
        resources: [(LOGICAL_CORES, 32), (MEMORY_MIB, 131_072)].into(),
        labels: [("zone".to_owned(), (n % 8).to_string())].into(),
        default_cpu: 4,
        default_memory: 4_096,
        version: String::new(),
    }
}

fn at(times: &[Duration], percent: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}
