//! A real controller and a real worker with the stand-in: what users see of what the tool does.

use std::time::Duration;

use serde_json::{Value, json};

use super::guest::Guest;
use super::host::{Host, LIMITS, SHORT};
use crate::harness::{Cluster, LIMIT};
use crate::standin::run;
use crate::wait::until;

async fn vm(cluster: &Cluster, name: &str) -> Value {
    cluster.json(&["get", "vm", name]).await
}

async fn wait_for(cluster: &Cluster, name: &str, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    until(what, LIMIT, || async {
        let seen = vm(cluster, name).await;
        if is(&seen) { Ok(seen) } else { Err(seen.to_string()) }
    })
    .await
}

fn message(vm: &Value) -> &str {
    vm["status_message"].as_str().unwrap()
}

fn scheduled(vm: &Value) -> bool {
    vm["conditions"][0] == json!({"type": "scheduled", "state": "true"})
}

async fn nothing_on(host: &Host) {
    until("nothing to be on the host", LIMIT, || async {
        if host.disks().is_empty() && host.notes() == 0 { Ok(()) } else { Err((host.disks(), host.notes())) }
    })
    .await;
    host.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_lives_from_its_image_to_its_deletion() {
    let host = Host::tart();
    let _guest = Guest::of(&host).await;
    let mut cluster = Cluster::start().await;
    let folder = host.folder().canonicalize().unwrap();
    cluster.run(&["set", "cluster-settings", "--host-dir-policies", folder.to_str().unwrap()]).await;
    cluster.add_worker("w1", host.shared(LIMITS)).await;
    let create = ["create", "vm", "a", "--image", "ghcr.io/x/y:1", "--runtime", "tart", "--cpu", "2", "--memory", "64"];
    let wishes = ["--image-pull-policy", "Always", "--disk-size", "50", "--random-serial", "--nested", "--wait"];
    let network = ["--net-softnet-allow", "10.0.0.0/8,1.1.1.1/32", "--net-softnet-block", "0.0.0.0/0"];
    let (sources, out) = (host.shares("src"), host.shares("out"));
    let dirs = format!("src:{sources}:ro,out:{out}");
    let more = ["--host-dirs", &dirs, "--startup-script", "echo hello; echo from-$USER"];
    cluster.run(&[&create[..], &wishes, &network, &more].concat()).await;
    let seen = vm(&cluster, "a").await;
    assert_eq!((&seen["status"], &seen["ready"]), (&json!("running"), &json!(true)), "{seen}");
    let name = host.disks()[0].clone();
    assert!(name.starts_with(&format!("orchard-a-{}-0", seen["uid"].as_str().unwrap())), "{name}");
    let expected = [
        "pull ghcr.io/x/y:1".to_owned(),
        format!("clone ghcr.io/x/y:1 {name}"),
        "fqn ghcr.io/x/y:1".to_owned(),
        format!("set --memory 64 {name}"),
        format!("set --cpu 2 {name}"),
        format!("set --disk-size 50 {name}"),
        format!("set --random-mac {name}"),
        format!("set --random-serial {name}"),
        format!(
            "run --net-softnet --net-softnet-allow 10.0.0.0/8,1.1.1.1/32 --net-softnet-block 0.0.0.0/0 --no-graphics \
             --nested --dir=src:{sources}:ro --dir=out:{out} {name}"
        ),
    ];
    assert_eq!(host.typed(), expected);
    assert!(cluster.run(&["logs", "vm", "a"]).await.contains("hello"));
    assert_eq!(cluster.run(&["ssh", "vm", "a", "echo", "hi"]).await.trim(), "hi");

    cluster.run(&["delete", "vm", "a"]).await;
    assert_eq!(run(cluster.cli(&["get", "vm", "a"])).await.code, Some(1));
    nothing_on(&host).await;
    assert_eq!(host.typed()[9..], [format!("stop --timeout 0 {name}"), format!("delete {name}")]);

    // A script that fails fails its VM, which is stopped.
    let create = ["create", "vm", "b", "--image", "i", "--startup-script", "exit 123"];
    cluster.run(&create).await;
    let failed = wait_for(&cluster, "b", "the script to fail", |vm| vm["status"] == "failed").await;
    assert!(message(&failed).contains("123"), "{failed}");
    host.nothing_left().await;
    cluster.run(&["delete", "vm", "b"]).await;
    nothing_on(&host).await;
}

/// A VM's name, the command that goes wrong, how, and what its status message says; none = it runs all the same.
type Wrong = (&'static str, &'static str, &'static str, Option<&'static [&'static str]>);

const FAIL: &str = "fail 1 'first reason' more more more more 'last words'";
const SAID: &[&str] = &["(exit status: 1): first reason", "last words"];
const HUNG: &[&str] = &["did not end within", "hanging"];
const KILLED: &[&str] = &["signal: 9"];

const WRONGS: [Wrong; 17] = [
    ("fine", "bogus", "", None),
    ("pull-fails", "pull", FAIL, Some(SAID)),
    ("pull-hangs", "pull", "hang", Some(HUNG)),
    ("pull-dies", "pull", "die", Some(KILLED)),
    ("pull-babbles", "pull", "garbage", None),
    ("clone-fails", "clone", FAIL, Some(SAID)),
    ("clone-hangs", "clone", "hang", Some(HUNG)),
    ("clone-dies", "clone", "die", Some(KILLED)),
    ("clone-babbles", "clone", "garbage", Some(&["does not exist"])),
    ("clone-drowns", "clone", "flood", Some(&["drowned"])),
    ("fqn-hangs", "fqn", "hang", None),
    ("set-fails", "set", FAIL, Some(SAID)),
    ("set-hangs", "set", "hang", Some(HUNG)),
    ("run-fails", "run", FAIL, Some(&["cannot start the VM", "ended at once: first reason", "last words"])),
    ("run-hangs", "run", "hang", Some(&["was not running", "hanging"])),
    ("run-dies", "run", "die", Some(&["ended at once"])),
    ("run-is-deaf", "run", "deaf", Some(&["was not running", "deaf"])),
];

#[tokio::test(flavor = "multi_thread")]
async fn each_command_that_goes_wrong_is_told_of_frees_its_room_and_leaves_nothing() {
    let host = Host::tart();
    let _guest = Guest::of(&host).await;
    let mut cluster = Cluster::start().await;
    // All of these at once on two cores: a deadline that what goes well would meet.
    let limits = orchard::worker::runtime::tart::Limits {
        fetch: Duration::from_secs(30),
        command: Duration::from_secs(30),
        start: Duration::from_secs(30),
        ..SHORT
    };
    cluster.add_worker("w1", host.shared(limits)).await;
    for (name, verb, play, _) in WRONGS {
        host.play(verb, name, play);
        // What is fetched alone waits for no other.
        let image = format!("image-of-{name}");
        let policy = if verb == "pull" { "Always" } else { "IfNotPresent" };
        cluster.run(&["create", "vm", name, "--image", &image, "--image-pull-policy", policy]).await;
    }
    let mut running = Vec::new();
    for (name, verb, _, said) in WRONGS {
        match said {
            None => {
                wait_for(&cluster, name, "it to run all the same", |vm| vm["ready"] == true).await;
                running.push(name);
            }
            Some(parts) => {
                let failed = wait_for(&cluster, name, "it to fail", |vm| vm["status"] == "failed").await;
                assert!(parts.iter().all(|part| message(&failed).contains(part)), "{name}: {parts:?} in {failed}");
                assert!(verb == "run" || message(&failed).contains(verb), "{name}: {failed}");
                let freed = wait_for(&cluster, name, "its room to be free", |vm| !scheduled(vm)).await;
                assert_eq!(freed["conditions"][1]["state"], "false", "{freed}");
            }
        }
    }
    let used = cluster.json(&["get", "worker", "w1"]).await["used"].clone();
    assert_eq!(used["org.cirruslabs.logical-cores"], running.len(), "{used}");
    // Of what could not be made nothing is there; of what could not be started its disk is, until it is deleted.
    let of_run = WRONGS.iter().filter(|(_, verb, _, said)| *verb == "run" && said.is_some()).count();
    assert_eq!(host.disks().len(), running.len() + of_run, "{:?}", host.disks());
    for (name, ..) in WRONGS {
        cluster.run(&["delete", "vm", name]).await;
    }
    nothing_on(&host).await;
    let typed = host.typed();
    let orders = ["stop", "delete"].map(|verb| typed.iter().filter(|call| call.starts_with(verb)).count());
    assert!(orders.iter().all(|count| *count >= running.len()), "{typed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_cannot_be_deleted_or_stopped_blocks_no_other_and_is_deleted_when_it_can_be() {
    let host = Host::tart();
    let mut cluster = Cluster::start().await;
    // Not short: the creations must meet these, too.
    cluster.add_worker("w1", host.shared(LIMITS)).await;
    for name in ["stuck", "deaf", "other"] {
        cluster.run(&["create", "vm", name, "--image", "i"]).await;
        wait_for(&cluster, name, "it to run", |vm| vm["status"] == "running").await;
    }
    host.play("delete", "stuck", "hang");
    host.play("stop", "deaf", "hang");
    for name in ["stuck", "deaf", "other"] {
        cluster.run(&["delete", "vm", name]).await;
    }
    until("the others to be gone", LIMIT, || async {
        let disks = host.disks();
        if disks.len() == 1 && disks[0].contains("stuck") { Ok(()) } else { Err(disks) }
    })
    .await;
    cluster.run(&["create", "vm", "next", "--image", "i"]).await;
    wait_for(&cluster, "next", "a new one to run", |vm| vm["status"] == "running").await;
    host.stop_playing();
    cluster.run(&["delete", "vm", "next"]).await;
    nothing_on(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_creation_is_tried_again_by_its_policy_under_a_new_name() {
    let host = Host::tart();
    let mut cluster = Cluster::start().await;
    cluster.add_worker("w1", host.shared(LIMITS)).await;
    host.play("clone", "", "once; fail 1 'no such image'");
    cluster.run(&["create", "vm", "a", "--image", "i", "--restart-policy", "OnFailure"]).await;
    let seen = wait_for(&cluster, "a", "the second try", |vm| vm["status"] == "running").await;
    assert_eq!(seen["restart_count"], 1);
    let uid = seen["uid"].as_str().unwrap();
    let clones: Vec<String> = host.typed().into_iter().filter(|call| call.starts_with("clone")).collect();
    assert_eq!(clones, [0, 1].map(|attempt| format!("clone i orchard-a-{uid}-{attempt}")));
    assert_eq!(host.disks(), [format!("orchard-a-{uid}-1")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_is_changed_suspended_stopped_and_started_on_the_same_disk() {
    let host = Host::tart();
    let _guest = Guest::of(&host).await;
    let mut cluster = Cluster::start().await;
    cluster.add_worker("w1", host.shared(LIMITS)).await;
    cluster.run(&["create", "vm", "a", "--image", "i", "--wait"]).await;
    cluster.run(&["update", "vm", "a", "--suspendable"]).await;
    let in_effect = |vm: &Value| vm["generation"] == 1 && vm["observedGeneration"] == 1 && vm["ready"] == true;
    wait_for(&cluster, "a", "the change to be in effect", in_effect).await;
    let name = host.disks()[0].clone();
    let runs = |host: &Host| host.typed().into_iter().filter(|call| call.starts_with("run")).collect::<Vec<_>>();
    let (plain, suspendable) = (format!("run --no-graphics {name}"), format!("run --no-graphics --suspendable {name}"));
    assert_eq!(runs(&host), [plain.clone(), suspendable.clone()]);

    cluster.run(&["suspend", "vm", "a", "--wait"]).await;
    let seen = vm(&cluster, "a").await;
    assert_eq!((scheduled(&seen), &seen["conditions"][1]["state"]), (false, &json!("false")), "{seen}");
    assert!(host.file("suspended").join(&name).exists());
    host.nothing_left().await;
    cluster.run(&["start", "vm", "a", "--wait"]).await;
    assert!(!host.file("suspended").join(&name).exists());

    cluster.run(&["stop", "vm", "a", "--wait"]).await;
    host.nothing_left().await;
    assert_eq!(host.disks(), std::slice::from_ref(&name));
    cluster.run(&["start", "vm", "a", "--wait"]).await;
    assert_eq!((host.count("clone"), host.count("run")), (1, 4));

    // Its memory cannot be kept, and the guest ends by that: told as what it is.
    host.play("suspend", "", &format!("echo {name} >> \"$here/crash\"; finish 0"));
    let refused = run(cluster.cli(&["suspend", "vm", "a", "--wait"])).await;
    let seen = vm(&cluster, "a").await;
    assert!(message(&seen).contains("the guest fell over"), "{seen} {refused:?}");
    host.nothing_left().await;
    cluster.run(&["delete", "vm", "a"]).await;
    nothing_on(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_says_how_far_it_is_and_its_worker_stays_online_and_can_give_it_up() {
    let host = Host::tart();
    let mut cluster = Cluster::start().await;
    // It is held while many commands of a user run, however long these take.
    let limits = orchard::worker::runtime::tart::Limits { fetch: LIMIT, ..LIMITS };
    cluster.add_worker("w1", host.shared(limits)).await;
    std::fs::write(host.file("hold"), "").unwrap();
    host.play("pull", "", "slow 0.1; hold");
    for name in ["a", "b"] {
        cluster.run(&["create", "vm", name, "--image", "i", "--image-pull-policy", "Always"]).await;
        let far = |vm: &Value| vm["status"] == "pending" && message(vm).contains("90% of 2.5 GB");
        wait_for(&cluster, name, "the progress", far).await;
    }
    assert_eq!(host.count("pull"), 1);
    let worker = cluster.json(&["list", "workers"]).await;
    assert_eq!(worker[0]["state"], "online", "{worker}");
    cluster.run(&["delete", "vm", "a"]).await;
    until("the other VM to take it up", LIMIT, || async {
        if host.count("pull") == 2 { Ok(()) } else { Err(host.typed()) }
    })
    .await;
    std::fs::remove_file(host.file("hold")).unwrap();
    wait_for(&cluster, "b", "it to run", |vm| vm["status"] == "running").await;
    assert_eq!(host.disks().len(), 1);
    cluster.run(&["delete", "vm", "b"]).await;
    nothing_on(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_tool_is_missing_says_so_in_the_vms_that_wait_for_it() {
    let host = Host::tart();
    let mut cluster = Cluster::start().await;
    cluster.add_worker("w1", host.shared(LIMITS)).await;
    let (tool, away) = (host.file("tart"), host.file("away"));
    std::fs::rename(&tool, &away).unwrap();
    cluster.run(&["create", "vm", "a", "--image", "i"]).await;
    wait_for(&cluster, "a", "the reason", |vm| message(vm).contains("is not installed")).await;
    std::fs::rename(&away, &tool).unwrap();
    wait_for(&cluster, "a", "it to run", |vm| vm["status"] == "running").await;
    // While nobody can be asked, nothing is made of it.
    host.play("list", "", "garbage");
    cluster.run(&["create", "vm", "b", "--image", "i"]).await;
    wait_for(&cluster, "b", "the reason", |vm| message(vm).contains("did not answer in the expected JSON")).await;
    assert_eq!(vm(&cluster, "a").await["status"], "running");
    host.stop_playing();
    wait_for(&cluster, "b", "it to run", |vm| vm["status"] == "running").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_worker_process_adopts_what_runs_and_reports_what_nobody_knows() {
    let host = Host::tart();
    let _guest = Guest::of(&host).await;
    let mut cluster = Cluster::start().await;
    cluster.add_worker("w1", host.shared(LIMITS)).await;
    cluster.run(&["create", "vm", "a", "--image", "i", "--wait"]).await;
    cluster.run(&["create", "vm", "crashes", "--image", "i", "--wait"]).await;
    cluster.workers.pop().unwrap().shutdown().await;
    let (vms, stray) = (host.file("vms"), "orchard-lost-00000000-0000-7000-8000-00000000000f-2");
    for name in ["ubuntu", "orchard-mine", "orchard-x-1-2", stray] {
        std::fs::write(vms.join(name), "").unwrap();
    }
    let crashes = host.disks().into_iter().find(|name| name.starts_with("orchard-crashes-")).unwrap();
    std::fs::write(host.file("crash"), &crashes).unwrap();
    until("it to fall over", LIMIT, || async {
        if host.file("running").join(&crashes).exists() { Err(()) } else { Ok(()) }
    })
    .await;
    let (before, boots) = (host.typed().len(), vm(&cluster, "a").await["boot"].clone());

    cluster.add_worker("w1", host.shared(LIMITS)).await;
    let failed = wait_for(&cluster, "crashes", "its end to be told", |vm| vm["status"] == "failed").await;
    assert!(message(&failed).contains("while nobody watched"), "{failed}");
    wait_for(&cluster, "a", "it to be adopted", |vm| message(vm) == "ready").await;
    until("the stray to be told of", LIMIT, || async {
        let text = cluster.run(&["list", "strays"]).await;
        if text.contains("lost") { Ok(()) } else { Err(text) }
    })
    .await;
    assert_eq!(vm(&cluster, "a").await["boot"], boots);
    assert_eq!(cluster.run(&["ssh", "vm", "a", "echo", "hi"]).await.trim(), "hi");
    let changes = host.typed().split_off(before);
    assert!(!changes.iter().any(|call| call.starts_with("delete") || call.starts_with("run")), "{changes:?}");
    for name in ["a", "crashes"] {
        cluster.run(&["delete", "vm", name]).await;
    }
    until("the cluster's own to be gone", LIMIT, || async {
        if host.disks().len() == 4 { Ok(()) } else { Err(host.disks()) }
    })
    .await;
    cluster.run(&["delete", "stray", "w1", "00000000-0000-7000-8000-00000000000f/2"]).await;
    until("the stray to be gone", LIMIT, || async { if host.disks().len() == 3 { Ok(()) } else { Err(host.disks()) } })
        .await;
    assert_eq!(host.disks(), ["orchard-mine", "orchard-x-1-2", "ubuntu"]);
}
