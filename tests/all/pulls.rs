//! Images fetched ahead of need, and what workers hold: a real controller, real workers, real downloads, and what users see.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use orchard::controller::{BusSource, Controller, ControllerOptions};
use orchard::worker::runtime::qemu::args::Accel;
use orchard::worker::runtime::qemu::{Qemu, QemuOptions};
use orchard::worker::runtime::synthetic::Synthetic;
use orchard::worker::runtime::synthetic::behaviour::Step;
use orchard::worker::runtime::{CachedImage, Progress, Runtime};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::harness::{Cluster, LIMIT, controller_options};
use crate::images::Web;
use crate::standin::run;
use crate::tart::host::{Host, LIMITS};
use crate::wait::until;

async fn qemu(dir: &Path) -> Arc<dyn Runtime> {
    Arc::new(Qemu::new(QemuOptions { accel: Some(Accel::Tcg), ..QemuOptions::new(dir) }).await.unwrap())
}

/// The requests with how far each worker is, once `is` says yes to them.
async fn pulls(cluster: &Cluster, what: &str, is: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    until(what, LIMIT, || async {
        let Value::Array(seen) = cluster.json(&["list", "pulls"]).await else { panic!("no list") };
        if is(&seen) { Ok(seen) } else { Err(format!("{seen:?}")) }
    })
    .await
}

fn states(pull: &Value) -> Vec<&str> {
    pull["onWorkers"].as_array().unwrap().iter().map(|on| on["state"].as_str().unwrap()).collect()
}

async fn names(runtime: &dyn Runtime) -> Vec<String> {
    runtime.cached_images().await.unwrap().into_iter().map(|image: CachedImage| image.name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_fetched_where_it_was_asked_for_and_nobody_is_shown_how() {
    let mut cluster = Cluster::start().await;
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    for (name, dir) in ["w1", "w2"].into_iter().zip(&dirs) {
        cluster.add_worker(name, qemu(dir.path()).await).await;
    }
    cluster.add_worker("other", Arc::new(Synthetic::new())).await;
    let web = Web::start(0).await;
    let shown = format!("{}/disk", web.url);
    let secret = format!("{}/disk?token=hidden", web.url.replace("http://", "http://ann:hidden@"));
    until("the workers to be online", LIMIT, || async {
        let all = cluster.json(&["list", "workers"]).await;
        let online = all.as_array().unwrap().iter().filter(|worker| worker["state"] == "online").count();
        if online == 3 { Ok(()) } else { Err(all) }
    })
    .await;
    let ask = ["pull", "image", &secret, "--runtime", "qemu", "--labels", "zone=test", "--wait", "--timeout", "2m"];
    let mut asked = cluster.cli(&ask);
    let mut asked = asked.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(asked.stderr.take().unwrap()).lines();
    let told = async {
        while let Some(line) = said.next_line().await.unwrap() {
            if line.starts_with("0 of 2 workers have it; w") && line.contains(" % (") {
                return;
            }
        }
        panic!("it never said how far it is");
    };
    let watched = async {
        let far =
            |on: &Value| on["message"].as_str().is_some_and(|text| text.contains(" % (") && text.contains(" MB of "));
        let half = |seen: &[Value]| {
            seen.first().is_some_and(|pull| {
                states(pull) == ["pulling"; 2] && pull["onWorkers"].as_array().unwrap().iter().all(far)
            })
        };
        let seen = pulls(&cluster, "both to be half-way", half).await;
        assert_eq!(
            (&seen[0]["image"], &seen[0]["workers"], &seen[0]["done"]),
            (&shown.as_str().into(), &2.into(), &0.into())
        );
    };
    tokio::time::timeout(LIMIT, async { tokio::join!(told, watched) }).await.unwrap();
    web.permits.add_permits(2);
    let done = tokio::time::timeout(LIMIT, asked.wait_with_output()).await.unwrap().unwrap();
    let out = String::from_utf8(done.stdout).unwrap();
    assert!(done.status.success() && out.contains("2 of 2 workers have it"), "{out}");

    until("the workers to tell", LIMIT, || async {
        let list = cluster.run(&["list", "images"]).await;
        if list.contains(&format!("{shown}  ")) && list.contains("  2        0") { Ok(()) } else { Err(list) }
    })
    .await;
    let held = cluster.json(&["list", "images", "--worker", "w2"]).await;
    let digest = held[0]["digest"].as_str().unwrap();
    assert!(
        held.as_array().unwrap().len() == 1 && held[0]["worker"] == "w2" && digest.starts_with("sha256:59da"),
        "{held}"
    );
    assert_eq!((&held[0]["image"], &held[0]["inUse"]), (&shown.as_str().into(), &false.into()));
    for look in [
        &["list", "images", "-o", "wide"][..],
        &["list", "pulls", "-o", "wide"],
        &["list", "pulls", "-o", "json"],
        &["audit"],
        &["events", "--after", "0"],
    ] {
        let text = cluster.run(look).await;
        assert!(!text.contains("hidden"), "{look:?}: {text}");
    }
    assert!(cluster.run(&["audit"]).await.contains("image.pull"));

    // A VM of the image needs no download; and by what is shown, the request is known and over.
    assert!(cluster.run(&["pull", "image", "--cancel", &shown]).await.contains("not fetched ahead any more"));
    assert_eq!(cluster.json(&["list", "pulls"]).await, serde_json::json!([]));
    assert_eq!(run(cluster.cli(&["pull", "image", "--cancel", &shown])).await.code, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_an_image_that_cannot_be_had_is_told_by_whom_and_why() {
    let mut cluster = Cluster::start().await;
    let (good, bad) = (Synthetic::new(), Synthetic::new());
    bad.host().fail_next(Step::Pull, 1, "no such image at https://u:hidden@h");
    cluster.add_worker("good", Arc::new(good.clone())).await;
    cluster.add_worker("bad", Arc::new(bad.clone())).await;
    let refused = run(cluster.cli(&["pull", "image", "x", "--worker", "nobody"])).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("no worker named nobody"), "{refused:?}");
    let refused = run(cluster.cli(&["pull", "image", "x", "--labels", "zone=elsewhere"])).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("none of the"), "{refused:?}");
    until("both to be there", LIMIT, || async {
        let all = cluster.json(&["list", "workers"]).await;
        if all.as_array().unwrap().len() == 2 { Ok(()) } else { Err(all) }
    })
    .await;
    let failed = run(cluster.cli(&["pull", "image", "x", "--wait", "--timeout", "1m"])).await;
    assert_eq!(failed.code, Some(1), "{failed:?}");
    assert!(
        failed.stderr.contains("1 of 2 workers could not fetch x: bad: no such image at https://***@h"),
        "{failed:?}"
    );
    assert_eq!((names(&good).await, names(&bad).await), (vec!["x".to_owned()], vec![]));
    // Asked for anew, it is tried anew.
    let again = run(cluster.cli(&["pull", "image", "x", "--wait", "--timeout", "1m", "-o", "json"])).await;
    let far: Value = serde_json::from_str(&again.stdout).unwrap();
    assert_eq!((again.code, states(&far)), (Some(0), vec!["done"; 2]), "{again:?}");

    // VMs go where the image is.
    cluster.run(&["pull", "image", "y", "--worker", "bad", "--wait"]).await;
    until("it to be known", LIMIT, || async {
        let list = cluster.run(&["list", "images", "-o", "wide"]).await;
        if list.lines().any(|line| line.starts_with("bad ") && line.contains(" y ")) { Ok(()) } else { Err(list) }
    })
    .await;
    cluster.run(&["create", "vm", "a", "--image", "y"]).await;
    let placed = until("it to run", LIMIT, || async {
        let vm = cluster.json(&["get", "vm", "a"]).await;
        if vm["image_fqn"].is_string() { Ok(vm) } else { Err(vm) }
    })
    .await;
    assert_eq!(placed["worker"], "bad", "{placed}");
    assert!(placed["placedBecause"].as_str().unwrap().contains("has the image"), "{placed}");
    assert!(placed["image_fqn"].as_str().unwrap().starts_with("y@sha256:"), "{placed}");
    assert!(cluster.run(&["get", "vm", "a"]).await.contains("y@sha256:"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_outlives_the_controller_and_reaches_workers_that_come_later() {
    let mut cluster = Cluster::start().await;
    let (slow, late) = (Synthetic::new(), Synthetic::new());
    slow.host().adjust(|behaviour| behaviour.hang = [Step::Pull].into());
    cluster.add_worker("slow", Arc::new(slow.clone())).await;
    until("it to be online", LIMIT, || async {
        let all = cluster.json(&["list", "workers"]).await;
        if all[0]["state"] == "online" { Ok(()) } else { Err(all) }
    })
    .await;
    cluster.run(&["pull", "image", "x"]).await;
    let id = pulls(&cluster, "it to begin", |seen| seen.first().is_some_and(|pull| states(pull) == ["pulling"])).await
        [0]["id"]
        .clone();

    let Cluster { access, controller, workers, dir, .. } = cluster;
    let (listen, data_dir) = (controller.bus_addr().unwrap(), dir.path().join("controller"));
    controller.shutdown().await;
    let options = ControllerOptions {
        bus: BusSource::Embedded { listen, tls: true, host: None },
        tunnel_host: Some("127.0.0.1".into()),
        ..controller_options(&data_dir)
    };
    let _controller = until("the store", LIMIT, || Controller::start(options.clone())).await;
    let late_dir = dir.path().join("workers").join("late");
    let _late = access.worker("late", &late_dir, Arc::new(late.clone())).await;
    let list = async || {
        let text =
            crate::harness::succeed(access.cli(&dir.path().join("home"), &["list", "pulls", "-o", "json"])).await;
        serde_json::from_str::<Vec<Value>>(&text).unwrap()
    };
    until("both to say how far they are", LIMIT, || async {
        let seen = list().await;
        let same = seen.first().is_some_and(|pull| pull["id"] == id && states(pull) == ["done", "pulling"]);
        if same { Ok(()) } else { Err(seen) }
    })
    .await;
    assert_eq!(names(&late).await, ["x"]);
    crate::harness::succeed(access.cli(&dir.path().join("home"), &["pull", "image", "--cancel", "x"])).await;
    // What it hung on was given up: a VM of the image fetches it itself, at once.
    slow.host().adjust(|behaviour| behaviour.hang.clear());
    let fetched = tokio::time::timeout(Duration::from_secs(60), slow.pull("x", &Progress::new().0)).await;
    fetched.unwrap().unwrap();
    drop(workers);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_tart_a_request_and_a_vm_share_one_fetch_and_one_taken_back_leaves_nothing() {
    let host = Host::tart();
    let mut cluster = Cluster::start().await;
    cluster.add_worker("mini", host.shared(LIMITS)).await;
    std::fs::write(host.file("hold"), "").unwrap();
    host.play("pull", "", "slow 0; hold");
    until("it to be online", LIMIT, || async {
        let all = cluster.json(&["list", "workers"]).await;
        if all[0]["state"] == "online" { Ok(()) } else { Err(all) }
    })
    .await;
    cluster.run(&["pull", "image", "ghcr.io/x/y:1", "--runtime", "tart"]).await;
    let far = |on: &Value| on["message"].as_str().is_some_and(|text| text.contains("90% of 2.5 GB (2.2 GB)"));
    pulls(&cluster, "how far it is", |seen| seen.first().is_some_and(|pull| far(&pull["onWorkers"][0]))).await;
    cluster.run(&["create", "vm", "a", "--image", "ghcr.io/x/y:1", "--image-pull-policy", "Always"]).await;
    until("the VM to wait for the same fetch", LIMIT, || async {
        let vm = cluster.json(&["get", "vm", "a"]).await;
        if vm["status_message"].as_str().unwrap().contains("90% of 2.5 GB") { Ok(()) } else { Err(vm) }
    })
    .await;
    assert_eq!(host.count("pull"), 1);
    std::fs::remove_file(host.file("hold")).unwrap();
    until("the VM to run", LIMIT, || async {
        let vm = cluster.json(&["get", "vm", "a"]).await;
        if vm["image_fqn"] == "ghcr.io/x/y:1@sha256:0123456789abcdef" { Ok(()) } else { Err(vm) }
    })
    .await;
    assert_eq!(host.count("pull"), 1, "{:?}", host.typed());
    until("it to be listed", LIMIT, || async {
        let list = cluster.run(&["list", "images", "-o", "wide"]).await;
        if list.contains("ghcr.io/x/y:1") && list.contains("3.0 GB") { Ok(()) } else { Err(list) }
    })
    .await;

    // Another one is taken back while it is being fetched.
    std::fs::write(host.file("hold"), "").unwrap();
    cluster.run(&["pull", "image", "ghcr.io/x/z:1"]).await;
    until("it to begin", LIMIT, || async { if host.count("pull") == 2 { Ok(()) } else { Err(host.typed()) } }).await;
    cluster.run(&["pull", "image", "--cancel", "ghcr.io/x/z:1"]).await;
    cluster.run(&["delete", "vm", "a"]).await;
    host.nothing_left().await;
    let left = pulls(&cluster, "the other request alone to be there", |seen| seen.len() == 1).await;
    assert_eq!(left[0]["done"], 1);
}
