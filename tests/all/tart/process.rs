//! Workers as processes of their own, with the tool on PATH, that are killed and replaced under running VMs.

use std::path::PathBuf;

use super::guest::Guest;
use super::host::Host;
use crate::harness::{Cluster, LIMIT};
use crate::processes::{self, Server};
use crate::wait::until;

struct Far<'a> {
    cluster: &'a Cluster,
    path: String,
    folder: PathBuf,
}

impl<'a> Far<'a> {
    fn of(cluster: &'a Cluster, host: &Host) -> Self {
        let path = format!("PATH={}:{}", host.folder().display(), std::env::var("PATH").unwrap());
        Self { cluster, path, folder: cluster.dir.path().join("far") }
    }

    async fn start(&self) -> Server {
        let access = &self.cluster.access;
        processes::worker(access, &access.url, &self.folder, "tart", &["env", &self.path]).await
    }

    async fn wait_for(&self, vm: &str, key: &str, value: &str) {
        until(&format!("{key} of {vm} to be {value}"), LIMIT, || async {
            let seen = self.cluster.json(&["get", "vm", vm]).await;
            if seen[key] == value { Ok(()) } else { Err(seen.to_string()) }
        })
        .await;
    }
}

/// The pid of the VM's process, as the tool has it.
fn pid(host: &Host) -> String {
    let mut entries = std::fs::read_dir(host.file("running")).unwrap().flatten();
    std::fs::read_to_string(entries.next().expect("nothing runs").path()).unwrap().trim().to_owned()
}

fn lives(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_takes_no_vm_with_it_and_its_successor_goes_on() {
    let host = Host::tart();
    let _guest = Guest::of(&host).await;
    let cluster = Cluster::start().await;
    let far = Far::of(&cluster, &host);
    let worker = far.start().await;
    cluster.run(&["create", "vm", "a", "--image", "i", "--wait"]).await;
    let pid = pid(&host);
    worker.kill().await;
    assert!(lives(&pid));
    let mut worker = far.start().await;
    far.wait_for("a", "status_message", "ready").await;
    assert_eq!(cluster.run(&["ssh", "vm", "a", "echo", "hi"]).await.trim(), "hi");
    // Told to end, it leaves its VMs as they are, too.
    let id = i32::try_from(worker.child.id().unwrap()).unwrap();
    let id = rustix::process::Pid::from_raw(id).unwrap();
    rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    tokio::time::timeout(LIMIT, worker.child.wait()).await.unwrap().unwrap();
    assert!(lives(&pid));
    let _worker = far.start().await;
    far.wait_for("a", "status_message", "ready").await;
    assert_eq!((host.count("run"), host.count("stop")), (1, 0));
    cluster.run(&["delete", "vm", "a"]).await;
    until("nothing to be left", LIMIT, || async { if lives(&pid) { Err(()) } else { Ok(()) } }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_worker_was_making_is_ended_and_made_anew() {
    let host = Host::tart();
    let cluster = Cluster::start().await;
    let far = Far::of(&cluster, &host);
    let worker = far.start().await;
    host.play("clone", "", "hang");
    cluster.run(&["create", "vm", "a", "--image", "i"]).await;
    // Other calls leave processes for a moment, too. What is killed before it has noted the clone knows nothing of it, and a
    // clone that has not got to the play yet would find it gone.
    until("the clone to hang", LIMIT, || async {
        let notes = std::fs::read_dir(far.folder.join("data/tart")).into_iter().flatten().flatten();
        let mut notes = notes.map(|note| note.file_name().to_string_lossy().into_owned());
        let (noted, left) = (notes.any(|name| name.ends_with(".making")), host.left());
        if noted && left.iter().any(|stat| stat.contains("(sleep)")) { Ok(()) } else { Err((noted, left)) }
    })
    .await;
    far.wait_for("a", "status_message", "cloning the image").await;
    worker.kill().await;
    let orphans = host.left();
    assert!(!orphans.is_empty(), "a killed worker can end nothing");
    host.stop_playing();
    let _worker = far.start().await;
    far.wait_for("a", "status", "running").await;
    let first = |stat: &String| stat.split(' ').next().unwrap().to_owned();
    for orphan in orphans.iter().map(first) {
        until("the orphan to be ended", LIMIT, || async { if lives(&orphan) { Err(orphan.clone()) } else { Ok(()) } })
            .await;
    }
    assert_eq!((host.count("clone"), host.disks().len()), (2, 1));
}
