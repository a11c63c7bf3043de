//! Images: what workers hold is shown and preferred, and what they shall fetch survives everything.

use super::*;
use crate::bus::images::{HeldImage, ImagesReport, MAX_IMAGES, MAX_PULLS, PULL_TTL_S, PullImage, PullReport, PullView};
use crate::model::image::{PullId, PullState, WorkerSelector};

fn held(image: &str, in_use: bool) -> HeldImage {
    HeldImage { image: image.into(), bytes: 7, digest: Some("sha256:ab".into()), last_used: None, in_use }
}

impl World {
    fn tell_images(&mut self, worker: &str, session: SessionId, images: &[&str]) -> Result<(), ApiError> {
        let images = Some(images.iter().map(|image| held(image, false)).collect());
        let report = ImagesReport { session, images, left_out: 0, pulls: Vec::new() };
        self.cluster.images_told(&name(worker), report)
    }

    fn tell_pull(&mut self, worker: &str, session: SessionId, id: PullId, state: PullState, message: &str) {
        let pulls = vec![PullReport { id, state, message: message.into() }];
        let report = ImagesReport { session, images: None, left_out: 0, pulls };
        self.cluster.images_told(&name(worker), report).unwrap();
    }

    fn pull(&mut self, image: &str, selector: WorkerSelector) -> Result<PullView, ApiError> {
        let id = PullId(self.id());
        let request = PullImage { image: image.into(), selector, ttl_s: 0 };
        self.cluster.pull_image(None, request, id, self.now, &mut self.changes)
    }

    fn fetches(&self, worker: &str) -> Vec<String> {
        let pulls = self.cluster.assignment(&name(worker)).unwrap().pulls;
        pulls.into_iter().map(|pull| pull.image).collect()
    }
}

fn only(worker: &str) -> WorkerSelector {
    WorkerSelector { worker: Some(name(worker)), ..WorkerSelector::default() }
}

#[test]
fn a_vm_goes_to_the_worker_that_says_it_holds_its_image() {
    let mut world = World::new();
    let (_, b) = (world.join("a", 8), world.join("b", 8));
    world.tell_images("b", b, &["https://h/img"]).unwrap();
    let place = |world: &mut World, vm: &str| {
        let uid = VmUid(world.id());
        let spec = VmSpec { image: "https://u:secret@h/img?token=t".into(), ..VmSpec::default() };
        let create = CreateVm { name: name(vm), spec, key: None };
        world.cluster.create_vm(None, create, uid, world.now, &mut world.changes).unwrap();
        world.cluster.place(world.now, &mut world.changes);
        world.vm(vm)
    };
    let placed = place(&mut world, "one");
    assert_eq!(placed.worker, Some(name("b")));
    assert!(placed.placed_because.contains("has the image"), "{}", placed.placed_because);
    // It was removed there since.
    world.tell_images("b", b, &[]).unwrap();
    assert!(!place(&mut world, "two").placed_because.contains("has the image"));
}

#[test]
fn what_workers_hold_is_shown_by_image_and_by_worker_page_by_page() {
    let mut world = World::new();
    let (a, b) = (world.join("a", 8), world.join("b", 8));
    world.tell_images("a", a, &["x", "y"]).unwrap();
    let report = ImagesReport { session: b, images: Some(vec![held("y", true)]), left_out: 0, pulls: Vec::new() };
    world.cluster.images_told(&name("b"), report).unwrap();
    let (images, more) = world.cluster.images(None, 9);
    let shown: Vec<_> = images.iter().map(|view| (view.image.as_str(), view.workers, view.in_use)).collect();
    assert_eq!((shown, more), (vec![("x", 1, 0), ("y", 2, 1)], false));
    let (images, more) = world.cluster.images(None, 1);
    assert_eq!((images[0].image.as_str(), more), ("x", true));
    assert_eq!(world.cluster.images(Some("x"), 9).0[0].image, "y");
    let rows = |world: &World, of: (Option<&str>, Option<&str>)| {
        let (mut all, mut after) = (Vec::new(), None);
        let worker = of.0.map(name);
        loop {
            let (page, more) = world.cluster.held_images((worker.as_ref(), of.1), after.as_ref(), 1);
            all.extend(page.iter().map(|row| format!("{}:{}", row.worker, row.held.image)));
            after = page.last().map(|row| (row.worker.clone(), row.held.image.clone()));
            if !more {
                return all;
            }
        }
    };
    assert_eq!(rows(&world, (None, None)), ["a:x", "a:y", "b:y"]);
    assert_eq!(rows(&world, (Some("a"), None)), ["a:x", "a:y"]);
    assert_eq!(rows(&world, (None, Some("y"))), ["a:y", "b:y"]);
    assert_eq!(rows(&world, (Some("b"), Some("x"))), Vec::<String>::new());
    // Names are kept once, and no longer than somebody has one.
    assert_eq!(world.cluster.image_names_kept(), 3, "two names and a digest");
    world.cluster.delete_worker(&name("a"), true, world.now, &mut world.changes).unwrap();
    assert_eq!(world.cluster.image_names_kept(), 2);
}

#[test]
fn a_worker_that_names_an_image_twice_takes_no_memory_by_it() {
    let mut world = World::new();
    let a = world.join("a", 8);
    let mut kept = Vec::new();
    for round in 0..3 {
        let digest = |n| Some(format!("sha256:{round}-{n}"));
        let images = (0..9).map(|n| HeldImage { digest: digest(n), ..held("x", false) }).collect();
        let report = ImagesReport { session: a, images: Some(images), left_out: 0, pulls: Vec::new() };
        world.cluster.images_told(&name("a"), report).unwrap();
        kept.push(world.cluster.image_names_kept());
    }
    assert_eq!(kept, [2, 2, 2]);
}

#[test]
fn a_worker_that_says_too_much_or_in_no_session_is_not_listened_to() {
    let mut world = World::new();
    let a = world.join("a", 8);
    let many: Vec<String> = (0..=MAX_IMAGES).map(|n| n.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(world.tell_images("a", a, &many).unwrap_err().code, ErrorCode::LimitExceeded);
    assert_eq!(world.tell_images("a", a, &[&"x".repeat(10_000)]).unwrap_err().code, ErrorCode::LimitExceeded);
    let other = SessionId(world.id());
    assert_eq!(world.tell_images("a", other, &["x"]).unwrap_err().code, ErrorCode::Unauthenticated);
    assert_eq!(world.cluster.images(None, 9).0, []);
    world.tell_images("a", a, &["https://u:p@h/x?token=t"]).unwrap();
    assert_eq!(world.cluster.images(None, 9).0[0].image, "https://h/x", "whatever it calls it");
    world.changes.clear();
    world.tell_images("a", a, &["z"]).unwrap();
    assert!(world.changes.is_empty(), "nothing of it is stored");
}

#[test]
fn a_request_reaches_the_workers_it_fits_also_those_that_come_later_and_survives_a_restart() {
    let mut world = World::new();
    let (a, _) = (world.join("a", 8), world.join("b", 8));
    let revision = |world: &World| world.cluster.assignment(&name("a")).unwrap().revision;
    let before = revision(&world);
    let asked = world.pull("https://u:p@h/x", WorkerSelector::default()).unwrap();
    assert_eq!((asked.image.as_str(), asked.workers), ("https://h/x", 2));
    assert!(world.changes.pulls.contains(&asked.id) && !world.changes.is_empty());
    assert!(revision(&world) > before && world.changes.assign.contains(&name("a")));
    assert_eq!(world.fetches("a"), ["https://u:p@h/x"], "the worker needs who fetches it");
    world.pull("y", only("b")).unwrap();
    assert_eq!((world.fetches("a").len(), world.fetches("b").len()), (1, 2));

    world.tell_pull("a", a, asked.id, PullState::Pulling, "cannot fetch https://u:p@h/x yet: 42 %");
    let far = world.cluster.pull_progress(asked.id, None, 9).unwrap();
    let shown: Vec<_> =
        far.workers.iter().map(|on| (on.worker.as_str(), on.online, on.state, on.message.as_str())).collect();
    let expected = [
        ("a", true, PullState::Pulling, "cannot fetch https://***@h/x yet: 42 %"),
        ("b", true, PullState::Waiting, ""),
    ];
    assert_eq!(shown, expected);
    world.tell_pull("a", a, asked.id, PullState::Done, "");
    let view = world.cluster.pull_views().remove(0);
    assert_eq!((view.workers, view.done, view.failed, view.offline), (2, 1, 0, 0));

    world.restart();
    let view = world.cluster.pull_views().remove(0);
    assert_eq!((view.id, view.workers, view.done, view.offline), (asked.id, 2, 0, 2), "nobody has said anything yet");
    world.join("c", 8);
    assert_eq!(world.fetches("c"), ["https://u:p@h/x"]);
    world.pass(PULL_TTL_S * 1000 + 1000);
    assert_eq!(world.cluster.pull_views(), []);
    assert_eq!(world.cluster.pull_progress(asked.id, None, 9).unwrap_err().code, ErrorCode::NotFound);
}

#[test]
fn a_request_asked_for_anew_begins_anew_and_one_taken_back_is_over() {
    let mut world = World::new();
    let a = world.join("a", 8);
    let first = world.pull("https://u:p@h/x", WorkerSelector::default()).unwrap();
    world.tell_pull("a", a, first.id, PullState::Failed, "no");
    assert_eq!(world.cluster.pull_views()[0].failed, 1);
    let second = world.pull("https://u:p@h/x", WorkerSelector::default()).unwrap();
    let views = world.cluster.pull_views();
    assert_eq!((views.len(), views[0].id, views[0].failed), (1, second.id, 0));
    // What is said of one that is over is not kept.
    world.tell_pull("a", a, first.id, PullState::Failed, "no");
    assert!(world.cluster.pull_progress(first.id, None, 9).is_err());
    world.cluster.cancel_pull("https://h/x", &mut world.changes).unwrap();
    assert_eq!((world.fetches("a").len(), world.cluster.pull_record(second.id)), (0, None));
    assert_eq!(world.cluster.cancel_pull("https://h/x", &mut world.changes).unwrap_err().code, ErrorCode::NotFound);
}

#[test]
fn a_request_that_cannot_be_or_is_for_nobody_is_refused_and_there_are_only_so_many() {
    let mut world = World::new();
    let code = |asked: Result<PullView, ApiError>| asked.unwrap_err().code;
    assert_eq!(code(world.pull("x", WorkerSelector::default())), ErrorCode::NotFound, "there is no worker");
    world.join("a", 8);
    assert_eq!(code(world.pull("x", only("b"))), ErrorCode::NotFound);
    let labels = [("role".to_owned(), "ci".to_owned())].into();
    assert_eq!(code(world.pull("x", WorkerSelector { labels, ..only("a") })), ErrorCode::NotFound);
    for image in ["", "-x", "a\nb"] {
        assert_eq!(code(world.pull(image, only("a"))), ErrorCode::Invalid, "{image:?}");
    }
    for n in 0..MAX_PULLS {
        world.pull(&n.to_string(), only("a")).unwrap();
    }
    assert_eq!(code(world.pull("one more", only("a"))), ErrorCode::LimitExceeded);
    world.pull("0", only("a")).unwrap();
    world.cluster.set_full(Some("the disk is full".into()));
    assert_eq!(code(world.pull("0", only("a"))), ErrorCode::LimitExceeded);
}

#[test]
fn the_image_that_a_copy_was_made_from_is_kept_until_it_starts_over() {
    let mut world = World::new();
    let session = world.join("w", 8);
    let spec = VmSpec { restart_policy: RestartPolicy::OnFailure, ..VmSpec::default() };
    let uid = world.create("a", spec).unwrap();
    let id = CopyId { uid, attempt: 0 };
    let up = |fqn: Option<&str>| {
        let image_fqn = fqn.map(str::to_owned);
        Observation::Running { message: "up".into(), ready: true, generation: 0, image_fqn }
    };
    world.report("w", session, id, up(Some("https://u:p@h/x@sha256:ab"))).unwrap();
    assert_eq!(world.vm("a").image_fqn.as_deref(), Some("https://***@h/x@sha256:ab"));
    world.changes.clear();
    world.report("w", session, id, up(None)).unwrap();
    world.report("w", session, id, up(Some("https://u:p@h/x@sha256:ab"))).unwrap();
    assert!(world.changes.is_empty(), "it is known already");
    assert!(world.vm("a").image_fqn.is_some());
    world.report("w", session, id, Observation::Failed { message: "no".into(), disk: false, halted: false }).unwrap();
    assert_eq!(world.vm("a").image_fqn, None);
}
