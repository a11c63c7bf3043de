//! Which calls are made for which VM, in which order, with which words and environment.

use std::time::Duration;

use orchard::model::vm::{ImagePullPolicy, RuntimeKind, VmSpec};
use orchard::worker::runtime::tart::names::disk_name;
use orchard::worker::runtime::tart::{Tart, TartOptions};
use orchard::worker::runtime::{CopySpec, Exit, FoundState, Progress, Runtime, RuntimeError};

use super::host::{Host, LIMITS, copy, create};
use crate::harness::LIMIT;
use crate::wait;

/// From creation to deletion.
async fn whole_life(host: &Host, spec: VmSpec) -> Vec<Vec<String>> {
    let (runtime, vm) = (host.runtime(), copy(0, spec));
    create(&runtime, &vm).await.unwrap();
    runtime.start(&vm).await.unwrap();
    let (exit, stopped) = tokio::join!(runtime.wait_exit(vm.id), runtime.stop(vm.id, Duration::from_secs(7)));
    stopped.unwrap();
    assert_eq!(exit, Exit::PoweredOff);
    runtime.delete(vm.id).await.unwrap();
    runtime.delete(vm.id).await.unwrap();
    assert_eq!((host.disks().len(), host.notes()), (0, 0));
    host.nothing_left().await;
    host.calls()
}

fn words(calls: &[&[&str]]) -> Vec<Vec<String>> {
    calls.iter().map(|call| call.iter().map(|word| (*word).to_owned()).collect()).collect()
}

#[tokio::test]
async fn a_vm_with_every_wish_gets_exactly_these_calls() {
    let host = Host::tart();
    let (sources, out) = (host.shares("my src"), host.shares("out"));
    let spec = VmSpec {
        image_pull_policy: ImagePullPolicy::Always,
        headless: true,
        disk_size: 50,
        random_serial: true,
        nested: true,
        net_softnet_allow: vec!["10.0.0.0/8".into(), "1.1.1.1/32".into()],
        net_softnet_block: vec!["0.0.0.0/0".into()],
        host_dirs: vec![format!("src:{sources}:ro").parse().unwrap(), format!("out:{out}").parse().unwrap()],
        ..VmSpec::default()
    };
    let vm = copy(0, VmSpec::default());
    let name = disk_name(&vm.name, vm.id);
    let name = name.as_str();
    let image = "ghcr.io/x/y:1";
    let expected = words(&[
        &["pull", image],
        &["clone", image, name],
        &["fqn", image],
        &["set", "--memory", "8192", name],
        &["set", "--cpu", "4", name],
        &["set", "--disk-size", "50", name],
        &["set", "--random-mac", name],
        &["set", "--random-serial", name],
        &[
            "run",
            "--net-softnet",
            "--net-softnet-allow",
            "10.0.0.0/8,1.1.1.1/32",
            "--net-softnet-block",
            "0.0.0.0/0",
            "--no-graphics",
            "--nested",
            &format!("--dir=src:{sources}:ro"),
            &format!("--dir=out:{out}"),
            name,
        ],
        &["stop", "--timeout", "7", name],
        &["delete", name],
    ]);
    assert_eq!(whole_life(&host, spec).await, expected);
}

#[tokio::test]
async fn a_vm_without_wishes_gets_no_other_calls() {
    let host = Host::new(RuntimeKind::Vetu);
    let calls = whole_life(&host, VmSpec { disk_size: 20, ..VmSpec::default() }).await;
    let typed: Vec<String> = calls.iter().map(|call| call[..call.len() - 1].join(" ")).collect();
    let expected = [
        "clone ghcr.io/x/y:1",
        "fqn",
        "set --memory 8192",
        "set --cpu 4",
        "set --disk-size 20",
        "run",
        "stop --timeout 7",
        "delete",
    ];
    assert_eq!(typed, expected);
    let tart = whole_life(&Host::tart(), VmSpec::default()).await;
    assert!(tart.iter().any(|call| call[..2] == ["set", "--random-mac"]));
    assert!(tart.iter().any(|call| call.len() == 2 && call[0] == "run"), "no flag was wished for: {tart:?}");
}

#[tokio::test]
async fn what_a_runtime_cannot_do_is_refused_before_anything_is_made() {
    let host = Host::new(RuntimeKind::Vetu);
    let runtime = host.runtime();
    let wishes = [
        VmSpec { suspendable: true, ..VmSpec::default() },
        VmSpec { nested: true, ..VmSpec::default() },
        VmSpec { host_dirs: vec!["a:/b".parse().unwrap()], ..VmSpec::default() },
    ];
    for spec in wishes {
        let error = create(&runtime, &copy(0, spec)).await.unwrap_err();
        assert!(matches!(&error, RuntimeError::State(why) if why.contains("runtime vetu")), "{error}");
    }
    let host = Host::tart();
    let mut odd = copy(0, VmSpec::default());
    odd.spec.image = "--help".into();
    assert!(matches!(create(&host.runtime(), &odd).await, Err(RuntimeError::Image(_))));
    assert_eq!(host.calls().len(), 0);
}

#[tokio::test]
async fn a_folder_over_a_symbolic_link_is_shared_neither_at_first_nor_at_a_later_start() {
    let host = Host::tart();
    let runtime = host.runtime();
    let (shared, secret) = (host.shares("shared"), host.shares("secret"));
    let spec = VmSpec {
        host_dirs: vec![format!("a:{shared}").parse().unwrap(), "b:https://host/x.tgz".parse().unwrap()],
        ..VmSpec::default()
    };
    let vm = copy(0, spec);
    create(&runtime, &vm).await.unwrap();
    let refused = |error: RuntimeError| {
        let told = error.to_string();
        assert!(matches!(error, RuntimeError::State(_)) && told.contains(&secret) && told.contains("link"), "{told}");
    };
    // As somebody does who may write beside the folder, here or from within another guest.
    std::fs::remove_dir(&shared).unwrap();
    std::os::unix::fs::symlink(&secret, &shared).unwrap();
    refused(runtime.start(&vm).await.unwrap_err());
    assert_eq!(host.count("run"), 0);
    let calls = host.calls().len();
    refused(create(&runtime, &CopySpec { id: copy(1, VmSpec::default()).id, ..vm.clone() }).await.unwrap_err());
    assert_eq!(host.calls().len(), calls, "nothing is made for it");
    std::fs::remove_file(&shared).unwrap();
    std::fs::create_dir(&shared).unwrap();
    runtime.start(&vm).await.unwrap();
    runtime.delete(vm.id).await.unwrap();
}

#[tokio::test]
async fn the_tool_learns_no_token_of_the_workers_environment() {
    let host = Host::tart();
    whole_life(&host, VmSpec::default()).await;
    for verb in ["clone", "set", "run", "delete"] {
        let environment = std::fs::read_to_string(host.file("env").join(verb)).unwrap();
        assert!(environment.contains("PATH="), "{environment}");
        assert!(!environment.lines().any(|line| line.starts_with("ORCHARD_")), "{verb}: {environment}");
    }
}

#[tokio::test]
async fn the_images_digest_is_known_and_images_are_told_and_pruned() {
    let host = Host::tart();
    let (runtime, vm) = (host.runtime(), copy(0, VmSpec::default()));
    create(&runtime, &vm).await.unwrap();
    assert_eq!(runtime.image_fqn(vm.id).await.as_deref(), Some("ghcr.io/x/y:1@sha256:0123456789abcdef"));
    assert_eq!(host.runtime().image_fqn(vm.id).await, runtime.image_fqn(vm.id).await, "a new worker knows it, too");
    runtime.pull("other:2", &Progress::new().0).await.unwrap();
    let names: Vec<String> = runtime.cached_images().await.unwrap().into_iter().map(|image| image.name).collect();
    assert_eq!(names, ["ghcr.io/x/y:1", "other:2"]);
    runtime.prune(10).await.unwrap();
    assert!(runtime.cached_images().await.unwrap().is_empty());
    assert_eq!(host.typed().last().unwrap(), "prune --entries caches --space-budget 10");
    assert_eq!(runtime.list().await.unwrap().len(), 1);
    assert!(matches!(Host::new(RuntimeKind::Vetu).runtime().prune(1).await, Err(RuntimeError::State(_))));
}

#[tokio::test]
async fn images_go_when_the_disk_is_short_of_room_but_not_while_one_is_fetched() {
    let host = Host::tart();
    let runtime = host.runtime();
    for image in ["a:1", "b:1"] {
        runtime.pull(image, &Progress::new().0).await.unwrap();
    }
    assert_eq!(runtime.prune_images(0).await.unwrap(), Vec::<String>::new(), "enough is free");
    std::fs::write(host.file("hold"), "").unwrap();
    host.play("pull", "", "hold");
    let progress = Progress::new().0;
    let fetched = runtime.pull("c:1", &progress);
    let meanwhile = async {
        wait::until("the fetch", LIMIT, || async { if host.count("pull") == 3 { Ok(()) } else { Err(host.typed()) } })
            .await;
        assert_eq!(runtime.prune_images(u64::MAX).await.unwrap(), Vec::<String>::new());
        assert_eq!(host.count("prune"), 0, "it might take what is being fetched");
        std::fs::remove_file(host.file("hold")).unwrap();
    };
    let (fetched, ()) = tokio::join!(fetched, meanwhile);
    fetched.unwrap();
    // Far more is wished for than there is: all of them go.
    let removed = runtime.prune_images(u64::MAX).await.unwrap();
    assert_eq!(removed, ["a:1 (3000.0 MB)", "b:1 (3000.0 MB)", "c:1 (3000.0 MB)"]);
    assert_eq!(host.typed().last().unwrap(), "prune --entries caches --space-budget 0");
    assert_eq!(runtime.prune_images(u64::MAX).await.unwrap(), Vec::<String>::new(), "nothing is left to remove");
    assert_eq!(host.count("prune"), 1);

    // A worker that is to keep room free looks before it fetches.
    let careful = Tart::new(TartOptions { keep_free: u64::MAX, ..host.options(LIMITS) }).unwrap();
    std::fs::remove_file(host.file("play").join("pull")).unwrap();
    for image in ["d:1", "e:1"] {
        careful.pull(image, &Progress::new().0).await.unwrap();
    }
    let calls = host.typed();
    assert_eq!(calls[calls.len() - 3..], ["pull d:1", "prune --entries caches --space-budget 0", "pull e:1"]);
}

#[tokio::test]
async fn one_image_that_many_need_is_fetched_once_and_one_that_is_there_by_nobody() {
    let host = Host::tart();
    let runtime = host.runtime();
    std::fs::write(host.file("hold"), "").unwrap();
    host.play("pull", "", "slow 0; hold");
    let always = VmSpec { image_pull_policy: ImagePullPolicy::Always, ..VmSpec::default() };
    let vms: Vec<_> = (0..4).map(|attempt| copy(attempt, always.clone())).collect();
    let progress: Vec<_> = vms.iter().map(|_| Progress::new()).collect();
    let creations = vms.iter().zip(&progress).map(|(vm, (progress, _))| runtime.create(vm, progress));
    let all = futures_util::future::try_join_all(creations);
    let told = async {
        wait::until("all to be told how far it is", LIMIT, || async {
            let texts: Vec<String> = progress.iter().map(|(_, told)| told.borrow().clone()).collect();
            if texts.iter().all(|text| text.contains("90% of 2.5 GB")) { Ok(()) } else { Err(texts) }
        })
        .await;
        assert_eq!(host.typed(), ["pull ghcr.io/x/y:1"]);
        std::fs::remove_file(host.file("hold")).unwrap();
    };
    let (made, ()) = tokio::join!(all, told);
    made.unwrap();
    assert_eq!((host.count("pull"), host.count("clone"), host.disks().len()), (1, 4, 4));
}

#[tokio::test]
async fn a_clone_that_fetches_is_made_alone_and_given_up_with_all_its_processes() {
    let host = Host::tart();
    let runtime = host.runtime();
    host.play("clone", "0001-0", "hang");
    let (first, second) = (copy(0, VmSpec::default()), copy(1, VmSpec::default()));
    let (one, other) = (Progress::new(), Progress::new());
    let mut hangs = Box::pin(runtime.create(&first, &one.0));
    let begun = wait::until("the first to begin", LIMIT, || async {
        if host.count("clone") == 1 { Ok(()) } else { Err(host.typed()) }
    });
    tokio::select! {
        ended = &mut hangs => panic!("{ended:?}"),
        () = begun => {}
    }
    let mut waits = Box::pin(runtime.create(&second, &other.0));
    let seen = wait::until("the second to wait", LIMIT, || async {
        let text = other.1.borrow().clone();
        if text.contains("another VM") { Ok(()) } else { Err(text) }
    });
    tokio::select! {
        ended = &mut hangs => panic!("{ended:?}"),
        ended = &mut waits => panic!("{ended:?}"),
        () = seen => {}
    }
    assert_eq!(host.count("clone"), 1);
    drop(hangs);
    waits.await.unwrap();
    assert_eq!(host.disks().len(), 1);
    host.nothing_left().await;
}

#[tokio::test]
async fn a_clone_that_a_killed_worker_left_behind_is_ended_by_the_next() {
    let host = Host::tart();
    let vm = copy(0, VmSpec::default());
    host.play("clone", "", "hang");
    let first = host.runtime();
    let nothing = Progress::new();
    let mut hangs = Box::pin(first.create(&vm, &nothing.0));
    let seen = wait::until("the clone to hang", LIMIT, || async {
        if host.file(&format!("notes/{}.making", disk_name(&vm.name, vm.id))).exists() { Ok(()) } else { Err(()) }
    });
    tokio::select! {
        ended = &mut hangs => panic!("{ended:?}"),
        () = seen => {}
    }
    // As if the worker were gone: what it would do at its end is not done.
    wait::until("the clone to be seen", LIMIT, || async { if host.left().is_empty() { Err(()) } else { Ok(()) } })
        .await;
    let beside = orchard::worker::runtime::tart::TartOptions { tidy: false, ..host.options(super::host::LIMITS) };
    orchard::worker::runtime::tart::Tart::new(beside).unwrap().list().await.unwrap();
    assert_ne!(host.left().len(), 0, "a guard leaves it alone");
    host.stop_playing();
    let next = host.runtime();
    assert_eq!(next.list().await.unwrap(), []);
    hangs.await.unwrap_err();
    host.nothing_left().await;
    create(&next, &vm).await.unwrap();
    assert_eq!(next.list().await.unwrap()[0].state, FoundState::Incomplete);
}
