//! Behaviour by example, and against an oracle that looks at everything every time.

use proptest::prelude::*;

use super::*;
use crate::model::resources::{LOGICAL_CORES, MEMORY_MIB};
use crate::model::vm::{Arch, Os, RuntimeKind, VmSpec};
use crate::model::worker::sample;

fn info(name: &str, cores: u64) -> WorkerInfo {
    WorkerInfo {
        runtime: RuntimeKind::Qemu,
        labels: [("zone".to_owned(), "a".to_owned())].into(),
        default_memory: 4_096,
        ..sample(name, cores, 16_384)
    }
}

fn uid(n: u128) -> VmUid {
    VmUid(uuid::Uuid::from_u128(n))
}

fn shape(cpu: u64) -> Shape {
    Shape { cpu, memory: 1, ..Shape::of(&VmSpec { image: "i".into(), ..VmSpec::default() }) }
}

fn scheduler(profile: Profile, workers: &[(&str, u64)]) -> Scheduler {
    let mut scheduler = Scheduler::new(Policy { profile, cpu_overcommit: 1, ..Policy::default() });
    for (name, cores) in workers {
        scheduler.put_worker(&info(name, *cores), Standing::Open);
    }
    scheduler
}

fn drain(scheduler: &mut Scheduler) -> Vec<String> {
    std::iter::from_fn(|| scheduler.place_next())
        .map(|(uid, at)| format!("{}:{}", uid.0.as_u128(), at.worker))
        .collect()
}

#[test]
fn three_vms_fill_one_worker_or_spread_over_three() {
    let workers = [("a", 3), ("b", 3), ("c", 3)];
    for (profile, expected) in
        [(Profile::OptimizeUtilization, ["1:a", "2:a", "3:a"]), (Profile::DistributeLoad, ["1:a", "2:b", "3:c"])]
    {
        let mut scheduler = scheduler(profile, &workers);
        (1..=3).for_each(|n| scheduler.enqueue(uid(n), shape(1)));
        assert_eq!(drain(&mut scheduler), expected);
    }
}

#[test]
fn the_third_of_three_waits_until_one_is_gone() {
    let mut scheduler = scheduler(Profile::default(), &[("a", 2)]);
    (1..=3).for_each(|n| scheduler.enqueue(uid(n), shape(1)));
    assert_eq!(drain(&mut scheduler), ["1:a", "2:a"]);
    scheduler.release(&"a".parse().unwrap(), &[(LOGICAL_CORES, 1), (MEMORY_MIB, 1)].into(), 1);
    assert_eq!(drain(&mut scheduler), ["3:a"]);
}

#[test]
fn priority_comes_before_age_and_age_before_everything_else() {
    let mut scheduler = scheduler(Profile::default(), &[]);
    for (n, priority, cpu) in [(1, 0, 1), (2, 5, 2), (3, 5, 1), (4, -1, 1)] {
        scheduler.enqueue(uid(n), Shape { priority, ..shape(cpu) });
    }
    scheduler.put_worker(&info("a", 9), Standing::Open);
    assert_eq!(drain(&mut scheduler), ["2:a", "3:a", "1:a", "4:a"]);
}

#[test]
fn a_worker_that_has_the_image_is_preferred_when_filling_up() {
    let mut scheduler = scheduler(Profile::OptimizeUtilization, &[("a", 9), ("b", 9)]);
    scheduler.has_image(&"b".parse().unwrap(), "i");
    scheduler.enqueue(uid(1), shape(1));
    let (_, placement) = scheduler.place_next().unwrap();
    assert_eq!(placement.worker.as_str(), "b");
    assert_eq!(placement.why.to_string(), "the fullest of 2 that could take it (0 VMs, has the image)");
}

#[test]
fn what_a_worker_says_that_it_holds_counts_in_place_of_what_was_known() {
    let mut scheduler = scheduler(Profile::OptimizeUtilization, &[("a", 9), ("b", 9)]);
    let (a, b): (WorkerName, WorkerName) = ("a".parse().unwrap(), "b".parse().unwrap());
    scheduler.has_image(&a, "i");
    scheduler.set_images(&a, HashSet::new());
    scheduler.set_images(&b, ["i".into()].into());
    scheduler.enqueue(uid(1), shape(1));
    assert_eq!(scheduler.place_next().unwrap().1.worker, b);
    scheduler.set_images(&b, HashSet::new());
    scheduler.has_image(&a, "https://u:p@h/i?token=t");
    scheduler.enqueue(uid(2), Shape { image: "https://h/i".into(), ..shape(1) });
    assert_eq!(scheduler.place_next().unwrap().1.worker, a, "who fetches it makes no difference");
}

#[test]
fn defaults_of_the_worker_fill_in_what_the_vm_leaves_open() {
    let mut scheduler = scheduler(Profile::default(), &[("a", 8)]);
    scheduler.enqueue(uid(1), Shape::of(&VmSpec { cpu: 2, ..VmSpec::default() }));
    let (_, placement) = scheduler.place_next().unwrap();
    assert_eq!((placement.cpu, placement.memory), (2, 4096));
    assert_eq!(placement.taken, [(LOGICAL_CORES, 2), (MEMORY_MIB, 4096)].into());
}

#[test]
fn what_stands_in_the_way_is_told_worker_by_worker() {
    let mut scheduler = scheduler(Profile::default(), &[("a", 1), ("b", 8)]);
    scheduler.put_worker(&info("c", 8), Standing::Paused);
    scheduler.hold(&"b".parse().unwrap(), &[(LOGICAL_CORES, 6)].into(), 1);
    assert_eq!(
        scheduler.explain(&shape(3)).to_string(),
        "waiting for a worker: of 3 none fits: 1 paused, 1 too small for 3 cores (the largest has 1), \
         1 without 3 cores free"
    );
    let told = |shape: Shape| scheduler.explain(&shape).to_string();
    let named = told(Shape { labels: [("worker-name".to_owned(), "x".to_owned())].into(), ..shape(1) });
    assert_eq!(named, "waiting for a worker: of 3 none fits: 1 paused, 2 not named x");
    let gpu = told(Shape { resources: [("gpu", 1)].into(), ..shape(1) });
    assert!(gpu.ends_with("2 too small for 1 gpu (the largest has none)"), "{gpu}");
    let large = told(Shape { memory: 999_999, ..shape(1) });
    assert!(
        large.contains("2 too small for 999999 MiB of memory (the largest has ") && large.ends_with(" MiB)"),
        "{large}"
    );
}

#[test]
fn labels_runtime_architecture_os_and_name_are_required() {
    let mut scheduler = scheduler(Profile::default(), &[("a", 8)]);
    for refused in [
        Shape { labels: [("zone".to_owned(), "b".to_owned())].into(), ..shape(1) },
        Shape { labels: [("worker-name".to_owned(), "b".to_owned())].into(), ..shape(1) },
        Shape { runtime: Some(RuntimeKind::Tart), ..shape(1) },
        Shape { arch: Some(Arch::Arm64), ..shape(1) },
        Shape { os: Some(Os::Darwin), ..shape(1) },
        Shape { worker: Some("b".parse().unwrap()), ..shape(1) },
        Shape { resources: [("gpu", 1)].into(), ..shape(1) },
    ] {
        assert_eq!(scheduler.explain(&refused).fitting, 0, "{refused:?}");
    }
    for taken in [
        Shape { labels: [("other".to_owned(), String::new())].into(), ..shape(1) },
        Shape { labels: [("worker-name".to_owned(), "a".to_owned())].into(), ..shape(1) },
        Shape { worker: Some("a".parse().unwrap()), ..shape(1) },
    ] {
        assert_eq!(scheduler.explain(&taken).fitting, 1, "{taken:?}");
    }
    scheduler.remove_worker(&"a".parse().unwrap());
    assert_eq!(scheduler.explain(&shape(1)).workers, 0);
}

#[test]
fn macos_guests_take_one_of_the_two_slots_of_a_mac() {
    let mut mac = info("mac", 32);
    (mac.os, mac.arch, mac.runtime) = (Os::Darwin, Arch::Arm64, RuntimeKind::Tart);
    mac.resources.0.insert(crate::model::resources::TART_VMS.to_owned(), 2);
    let mut scheduler = scheduler(Profile::default(), &[]);
    scheduler.put_worker(&mac, Standing::Open);
    (1..=3).for_each(|n| scheduler.enqueue(uid(n), Shape { os: Some(Os::Darwin), ..shape(1) }));
    scheduler.enqueue(uid(4), Shape { os: Some(Os::Linux), ..shape(1) });
    assert_eq!(drain(&mut scheduler), ["1:mac", "2:mac", "4:mac"]);
}

/// One worker of four cores, always refilled with small VMs; a big one wants all of it.
#[test]
fn a_big_vm_is_passed_by_no_more_than_the_bound() {
    let mut scheduler = scheduler(Profile::default(), &[("a", 4)]);
    let worker: WorkerName = "a".parse().unwrap();
    let one = Resources::from([(LOGICAL_CORES, 1), (MEMORY_MIB, 1)]);
    (1..=4).for_each(|n| scheduler.enqueue(uid(n), shape(1)));
    assert_eq!(drain(&mut scheduler).len(), 4);
    scheduler.enqueue(uid(10), shape(4));
    let mut passed = 0;
    for n in 11.. {
        scheduler.enqueue(uid(n), shape(1));
        scheduler.release(&worker, &one, 1);
        let placed = drain(&mut scheduler);
        if placed.is_empty() {
            break;
        }
        passed += placed.len();
    }
    assert_eq!(passed, usize::try_from(MAX_OVERTAKEN).unwrap());
    assert!(scheduler.explain(&shape(1)).to_string().contains("1 kept free for a VM that has waited for longer"));
    // Somebody more important is not kept out.
    scheduler.enqueue(uid(5), Shape { priority: 1, ..shape(1) });
    assert_eq!(drain(&mut scheduler), ["5:a"]);
    (0..4).for_each(|_| scheduler.release(&worker, &one, 1));
    assert_eq!(drain(&mut scheduler)[0], "10:a");
    scheduler.release(&worker, &[(LOGICAL_CORES, 4), (MEMORY_MIB, 1)].into(), 1);
    assert!(!drain(&mut scheduler).is_empty(), "those kept out come next");
}

/// On `a` least is missing, and what runs there never ends; on `b` VMs come and go.
#[test]
fn a_big_vm_does_not_wait_for_ever_on_a_worker_whose_vms_do_not_end() {
    let mut scheduler = scheduler(Profile::DistributeLoad, &[("a", 8), ("b", 8)]);
    let b: WorkerName = "b".parse().unwrap();
    let one = Resources::from([(LOGICAL_CORES, 1), (MEMORY_MIB, 1)]);
    scheduler.hold(&"a".parse().unwrap(), &[(LOGICAL_CORES, 4)].into(), 1);
    scheduler.hold(&"a".parse().unwrap(), &[(LOGICAL_CORES, 1)].into(), 0);
    scheduler.hold(&b, &[(LOGICAL_CORES, 8), (MEMORY_MIB, 8)].into(), 8);
    scheduler.enqueue(uid(10), shape(8));
    let mut on_b = 8;
    for n in 11..11 + 4 * u128::from(MAX_OVERTAKEN) {
        scheduler.enqueue(uid(n), shape(1));
        if on_b > 0 {
            scheduler.release(&b, &one, 1);
            on_b -= 1;
        }
        for placed in drain(&mut scheduler) {
            if placed == "10:b" {
                return;
            }
            on_b += usize::from(placed.ends_with(":b"));
        }
    }
    panic!("it was passed without end");
}

#[test]
fn a_reservation_ends_with_the_vm_or_the_worker() {
    for end in [
        |s: &mut Scheduler| s.withdraw(uid(10)),
        |s: &mut Scheduler| {
            s.put_worker(&info("a", 4), Standing::Paused);
            s.put_worker(&info("a", 4), Standing::Open);
        },
    ] {
        let mut scheduler = scheduler(Profile::default(), &[("a", 4)]);
        scheduler.hold(&"a".parse().unwrap(), &[(LOGICAL_CORES, 1)].into(), 1);
        scheduler.enqueue(uid(10), shape(4));
        for n in 11.. {
            scheduler.enqueue(uid(n), shape(1));
            if drain(&mut scheduler).is_empty() {
                break;
            }
            scheduler.release(&"a".parse().unwrap(), &[(LOGICAL_CORES, 1), (MEMORY_MIB, 1)].into(), 1);
        }
        end(&mut scheduler);
        assert_eq!(drain(&mut scheduler).len(), 1);
    }
}

#[test]
fn what_is_remembered_of_shapes_is_bounded() {
    let mut scheduler = scheduler(Profile::default(), &[("a", 1_000_000)]);
    for n in 1..1_000 {
        scheduler.enqueue(uid(n.into()), shape(n));
        assert_eq!(drain(&mut scheduler).len(), 1);
        assert!(scheduler.shapes.len() <= IDLE_SHAPES + 1);
    }
}

/// The rules in the plainest way: all VMs and all workers are looked at each time.
#[derive(Default)]
struct Oracle {
    policy: Policy,
    nodes: BTreeMap<WorkerName, Node>,
    waiting: BTreeMap<Place, Shape>,
    overtaken: HashMap<Shape, (VmUid, u32)>,
    kept: Vec<(WorkerName, Shape, VmUid)>,
}

impl Oracle {
    /// The first of each shape.
    fn heads(&self) -> Vec<(Place, Shape)> {
        let mut heads: Vec<(Place, Shape)> = Vec::new();
        for (place, shape) in &self.waiting {
            if !heads.iter().any(|(_, known)| known == shape) {
                heads.push((*place, shape.clone()));
            }
        }
        heads
    }

    /// Forgets what is known of VMs that are no longer the first of their shape, and of workers that are not open.
    fn tidy(&mut self) {
        let heads = self.heads();
        let is_head = |shape: &Shape, uid: VmUid| heads.iter().any(|(place, known)| known == shape && place.1 == uid);
        self.overtaken.retain(|shape, (uid, _)| is_head(shape, *uid));
        let nodes = &self.nodes;
        self.kept.retain(|(worker, shape, uid)| {
            is_head(shape, *uid) && nodes.get(worker).is_some_and(|node| node.standing == Standing::Open)
        });
        for (name, node) in &mut self.nodes {
            let kept = self.kept.iter().find(|(worker, ..)| worker == name);
            node.reserved = kept.map(|(_, shape, _)| Reservation { shape: Arc::new(shape.clone()) });
        }
    }

    fn next(&mut self) -> Option<(VmUid, WorkerName)> {
        self.tidy();
        let profile = self.policy.profile;
        let best = |shape: &Shape| {
            let fitting = self.nodes.iter().filter(|(_, node)| node.takes(shape).is_ok());
            fitting
                .min_by_key(|(name, node)| (node.rank(shape, profile), (*name).clone()))
                .map(|(name, _)| name.clone())
        };
        let (place, shape, worker) =
            self.waiting.iter().find_map(|(place, shape)| Some((*place, shape.clone(), best(shape)?)))?;
        self.waiting.remove(&place);
        self.tidy();
        let node = self.nodes.get_mut(&worker).unwrap();
        let (_, _, taken) = demand(&shape, &node.info);
        node.used.add(&taken);
        node.vms += 1;
        for (at, shape) in self.heads() {
            if at < place && self.nodes[&worker].could_take(&shape).is_ok() {
                let (_, count) = self.overtaken.entry(shape.clone()).or_insert((at.1, 0));
                *count += 1;
                if *count < self.policy.max_overtaken {
                    continue;
                }
                let more = self.kept.len() < (self.nodes.len() / WORKERS_PER_RESERVATION).max(1);
                let open = |node: &&Node| node.standing == Standing::Open && node.reserved.is_none();
                let name = if self.kept.iter().any(|(_, known, _)| *known == shape) {
                    Some(worker.clone()).filter(|worker| open(&&self.nodes[worker]))
                } else {
                    let nearest =
                        self.nodes.values().filter(|node| more && open(node) && node.could_take(&shape).is_ok());
                    nearest.min_by_key(|node| node.missing(&shape)).map(|node| node.info.name.clone())
                };
                if let Some(name) = name {
                    self.kept.retain(|(_, known, _)| *known != shape);
                    self.overtaken.insert(shape.clone(), (at.1, 0));
                    self.kept.push((name, shape, at.1));
                    self.tidy();
                }
            }
        }
        Some((place.1, worker))
    }
}

#[derive(Clone, Debug)]
enum Step {
    Create { priority: i32, cpu: u64, image: u8, zone: bool, pinned: bool },
    Withdraw(usize),
    End(usize),
    Worker { number: u8, cores: u64, standing: Standing },
    Remove(u8),
    Image(u8, u8),
    Told(u8, Vec<u8>),
    Profile(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let standing = prop_oneof![6 => Just(Standing::Open), 1 => Just(Standing::Paused), 1 => Just(Standing::Unseen)];
    prop_oneof![
        20 => (0..2i32, 1..5u64, 0..2u8, prop::bool::weighted(0.2), prop::bool::weighted(0.1))
            .prop_map(|(priority, cpu, image, zone, pinned)| Step::Create { priority, cpu, image, zone, pinned }),
        2 => any::<usize>().prop_map(Step::Withdraw),
        16 => any::<usize>().prop_map(Step::End),
        3 => (0..6u8, 1..7u64, standing).prop_map(|(number, cores, standing)| Step::Worker { number, cores, standing }),
        1 => (0..6u8).prop_map(Step::Remove),
        1 => (0..6u8, 0..2u8).prop_map(|(worker, image)| Step::Image(worker, image)),
        1 => (0..6u8, prop::collection::vec(0..2u8, 0..3)).prop_map(|(worker, images)| Step::Told(worker, images)),
        1 => any::<bool>().prop_map(Step::Profile),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_scheduler_places_as_the_oracle_does(steps in prop::collection::vec(step(), 1..600)) {
        let policy = Policy { cpu_overcommit: 1, max_overtaken: 2, ..Policy::default() };
        let (mut fast, mut slow) = (Scheduler::new(policy), Oracle { policy, ..Oracle::default() });
        let mut running: Vec<(WorkerName, Resources)> = Vec::new();
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Create { priority, cpu, image, zone, pinned } => {
                    let mut shape = Shape { priority, image: image.to_string(), ..shape(cpu) };
                    if zone {
                        shape.labels.insert("zone".into(), "b".into());
                    }
                    shape.worker = pinned.then(|| "w0".parse().unwrap());
                    let uid = uid(u128::try_from(number).unwrap());
                    fast.enqueue(uid, shape.clone());
                    slow.waiting.insert((Reverse(priority), uid), shape);
                }
                Step::Withdraw(at) => {
                    let all: Vec<Place> = slow.waiting.keys().copied().collect();
                    if let Some(place) = all.get(at % all.len().max(1)) {
                        fast.withdraw(place.1);
                        slow.waiting.remove(place);
                        slow.tidy();
                    }
                }
                Step::End(at) if !running.is_empty() => {
                    let (worker, taken) = running.swap_remove(at % running.len());
                    fast.release(&worker, &taken, 1);
                    if let Some(node) = slow.nodes.get_mut(&worker) {
                        node.used.subtract(&taken);
                        node.vms = node.vms.saturating_sub(1);
                    }
                }
                Step::End(_) => {}
                Step::Worker { number, cores, standing } => {
                    let mut info = info(&format!("w{number}"), cores);
                    info.labels.insert("zone".into(), if number % 2 == 0 { "a" } else { "b" }.into());
                    fast.put_worker(&info, standing);
                    let node = slow.nodes.entry(info.name.clone()).or_insert_with(|| Node::new(info.clone(), 1));
                    node.info = info;
                    node.offer(1);
                    node.standing = standing;
                    slow.tidy();
                }
                Step::Remove(number) => {
                    let name: WorkerName = format!("w{number}").parse().unwrap();
                    fast.remove_worker(&name);
                    slow.nodes.remove(&name);
                    slow.tidy();
                    running.retain(|(worker, _)| *worker != name);
                }
                Step::Image(worker, image) => {
                    let name: WorkerName = format!("w{worker}").parse().unwrap();
                    fast.has_image(&name, &image.to_string());
                    if let Some(node) = slow.nodes.get_mut(&name)
                        && !node.has_image(&image.to_string())
                    {
                        node.remember_image(&image.to_string());
                    }
                }
                Step::Told(worker, images) => {
                    let name: WorkerName = format!("w{worker}").parse().unwrap();
                    let images: HashSet<Arc<str>> = images.iter().map(|image| image.to_string().into()).collect();
                    fast.set_images(&name, images.clone());
                    if let Some(node) = slow.nodes.get_mut(&name) {
                        node.set_images(images);
                    }
                }
                Step::Profile(spread) => {
                    slow.policy.profile = if spread { Profile::DistributeLoad } else { Profile::OptimizeUtilization };
                    fast.set_policy(slow.policy);
                }
            }
            loop {
                let expected = slow.next();
                let got = fast.place_next();
                prop_assert_eq!(got.as_ref().map(|(uid, at)| (*uid, at.worker.clone())), expected);
                let Some((_, placement)) = got else { break };
                let (offered, used) = (&slow.nodes[&placement.worker].info.resources, &slow.nodes[&placement.worker].used);
                prop_assert!(used.0.iter().all(|(name, amount)| *amount <= offered.get(name)), "over-committed");
                running.push((placement.worker, placement.taken));
            }
            prop_assert_eq!(fast.waiting(), slow.waiting.len());
            for (name, node) in &slow.nodes {
                prop_assert_eq!(fast.used(name), Some(&node.used));
            }
        }
    }
}
