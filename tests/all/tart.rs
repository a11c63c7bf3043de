//! The Tart and Vetu runtimes against a stand-in for the tools: which commands are run, in which order, and what their
//! failures become.

use std::path::{Path, PathBuf};
use std::time::Duration;

use orchard::model::CopyId;
use orchard::model::vm::{RuntimeKind, VmSpec};
use orchard::worker::runtime::tart::{Tart, TartOptions, disk_name};
use orchard::worker::runtime::{CopySpec, Exit, FoundState, Progress, Runtime, RuntimeError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::wait;

struct Host {
    dir: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tart.sh");
        std::os::unix::fs::symlink(script, dir.path().join("tool")).unwrap();
        Self { dir }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn runtime(&self, kind: RuntimeKind) -> Tart {
        let options = TartOptions { kind, program: self.file("tool"), data_dir: self.file("notes") };
        Tart::new(options).unwrap()
    }

    fn calls(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.file("argv")).unwrap_or_default();
        text.lines().filter(|line| !line.starts_with("list")).map(str::to_owned).collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.file("running")); // ends every run
    }
}

fn copy(attempt: u32) -> CopySpec {
    CopySpec {
        id: CopyId { uid: "00000000-0000-7000-8000-000000000001".parse().unwrap(), attempt },
        name: "vm-1".parse().unwrap(),
        spec: VmSpec { image: "ghcr.io/x/y:1".into(), headless: true, disk_size: 50, ..VmSpec::default() },
        cpu: 4,
        memory: 8192,
    }
}

async fn create(runtime: &Tart, copy: &CopySpec) -> Result<(), RuntimeError> {
    runtime.create(copy, &Progress::new().0).await
}

#[tokio::test]
async fn a_vm_is_cloned_configured_run_stopped_and_deleted() {
    let host = Host::new();
    let runtime = host.runtime(RuntimeKind::Tart);
    let vm = copy(0);
    let name = disk_name(&vm.name, vm.id);
    assert_eq!(runtime.list().await.unwrap(), []);
    create(&runtime, &vm).await.unwrap();
    runtime.start(&vm).await.unwrap();
    assert_eq!(runtime.list().await.unwrap()[0].state, FoundState::Running);
    let (exit, stopped) = tokio::join!(runtime.wait_exit(vm.id), runtime.stop(vm.id, Duration::from_secs(7)));
    stopped.unwrap();
    assert_eq!(exit, Exit::PoweredOff);
    runtime.delete(vm.id).await.unwrap();
    runtime.delete(vm.id).await.unwrap();
    let expected = [
        format!("clone ghcr.io/x/y:1 {name}"),
        format!("set --memory 8192 {name}"),
        format!("set --cpu 4 {name}"),
        format!("set --disk-size 50 {name}"),
        format!("set --random-mac {name}"),
        format!("run --no-graphics {name}"),
        format!("stop --timeout 7 {name}"),
        format!("delete {name}"),
    ];
    assert_eq!(host.calls(), expected);
    assert_eq!(std::fs::read_dir(host.file("notes")).unwrap().count(), 0);
}

#[tokio::test]
async fn vetu_gets_no_option_it_does_not_know() {
    let host = Host::new();
    let runtime = host.runtime(RuntimeKind::Vetu);
    let vm = copy(0);
    create(&runtime, &vm).await.unwrap();
    runtime.start(&vm).await.unwrap();
    let calls = host.calls().join("\n");
    assert!(!calls.contains("random-mac") && !calls.contains("no-graphics"), "{calls}");
    runtime.delete(vm.id).await.unwrap();
}

#[tokio::test]
async fn a_failed_clone_tells_the_tools_reason_and_an_unfinished_one_is_incomplete() {
    let host = Host::new();
    let runtime = host.runtime(RuntimeKind::Tart);
    let vm = copy(0);
    std::fs::write(host.file("fail-clone"), "\n  no such image\nmore\n").unwrap();
    let error = create(&runtime, &vm).await.unwrap_err();
    assert!(matches!(&error, RuntimeError::Image(why) if why.ends_with(": no such image")), "{error}");
    std::fs::remove_file(host.file("fail-clone")).unwrap();
    std::fs::write(host.file("fail-set"), "disk full").unwrap();
    create(&runtime, &vm).await.unwrap_err();
    assert_eq!(runtime.list().await.unwrap()[0].state, FoundState::Incomplete);
    std::fs::remove_file(host.file("fail-set")).unwrap();
    create(&runtime, &vm).await.unwrap();
    assert_eq!(runtime.list().await.unwrap()[0].state, FoundState::Incomplete, "it never ran");
    runtime.start(&vm).await.unwrap();
    assert_eq!(runtime.list().await.unwrap()[0].state, FoundState::Running);
}

#[tokio::test]
async fn foreign_vms_are_neither_listed_nor_touched() {
    let host = Host::new();
    let runtime = host.runtime(RuntimeKind::Tart);
    create(&runtime, &copy(0)).await.unwrap();
    for foreign in ["ubuntu", "orchard-mine", "orchard-x-1-2"] {
        std::fs::write(host.file("vms").join(foreign), "").unwrap();
    }
    let found = runtime.list().await.unwrap();
    assert_eq!(found.iter().map(|vm| vm.id).collect::<Vec<_>>(), [copy(0).id]);
    runtime.delete(copy(1).id).await.unwrap();
    assert_eq!(std::fs::read_dir(host.file("vms")).unwrap().count(), 4);
}

#[tokio::test]
async fn a_new_worker_sees_how_an_old_ones_vm_ended() {
    let host = Host::new();
    let vm = copy(3);
    let first = host.runtime(RuntimeKind::Tart);
    create(&first, &vm).await.unwrap();
    first.start(&vm).await.unwrap();
    drop(first);
    let second = host.runtime(RuntimeKind::Tart);
    assert_eq!(second.list().await.unwrap()[0].state, FoundState::Running);
    std::fs::write(host.file("crash"), "").unwrap();
    std::fs::remove_dir_all(host.file("running")).unwrap();
    match second.wait_exit(vm.id).await {
        Exit::Crashed(why) => assert!(why.contains("code 7") && why.contains("the guest fell over"), "{why}"),
        Exit::PoweredOff => panic!("a crash was taken for a power-off"),
    }
}

#[tokio::test]
async fn a_run_that_fails_at_once_fails_the_start() {
    let host = Host::new();
    let runtime = host.runtime(RuntimeKind::Tart);
    create(&runtime, &copy(0)).await.unwrap();
    std::fs::write(host.file("fail-run"), "too many VMs on this host").unwrap();
    let error = runtime.start(&copy(0)).await.unwrap_err();
    assert!(matches!(&error, RuntimeError::Tool(why) if why.contains("too many VMs")), "{error}");
}

#[tokio::test]
async fn a_dial_reaches_the_address_that_the_tool_tells() {
    let host = Host::new();
    let runtime = host.runtime(RuntimeKind::Tart);
    create(&runtime, &copy(0)).await.unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (stream, accepted) = tokio::join!(runtime.dial(copy(0).id, port), listener.accept());
    let mut stream = stream.unwrap();
    accepted.unwrap().0.write_all(b"hello").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "hello");
    drop(listener);
    wait::until("a refusal", Duration::from_secs(10), || async {
        match runtime.dial(copy(0).id, port).await {
            Err(RuntimeError::Refused(_)) => Ok(()),
            Err(other) => Err(other.to_string()),
            Ok(_) => Err("connected".to_owned()),
        }
    })
    .await;
    assert!(matches!(runtime.dial(copy(9).id, port).await, Err(RuntimeError::NotFound)));
}
