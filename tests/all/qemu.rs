//! The QEMU runtime against real QEMU and a real guest: what is on the host decides, not what the runtime believes.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use orchard::model::CopyId;
use orchard::model::vm::VmSpec;
use orchard::worker::runtime::qemu::args::Accel;
use orchard::worker::runtime::qemu::{Qemu, QemuOptions};
use orchard::worker::runtime::{CopySpec, Exit, Found, FoundState, Progress, Runtime, RuntimeError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::guest::guest_image;
use crate::wait;

/// A boot takes 5 s alone and a minute on a busy machine.
pub const BOOT: Duration = Duration::from_secs(180);

/// Boots slow each other down badly, so the tests take turns.
static BOOTS: Semaphore = Semaphore::const_new(2);

/// A data folder whose QEMU processes end with the test, however it ends.
pub struct Host {
    pub dir: tempfile::TempDir,
}

impl Host {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub async fn qemu(&self) -> Qemu {
        let options = QemuOptions { accel: Some(Accel::Tcg), ..QemuOptions::new(self.dir.path()) };
        Qemu::new(options).await.unwrap()
    }

    /// The pids of all processes that run in this data folder, from the system rather than from our files.
    pub fn processes(&self) -> Vec<i32> {
        processes_in(self.dir.path())
    }

    pub fn vm_folders(&self) -> Vec<PathBuf> {
        std::fs::read_dir(self.dir.path().join("vms")).unwrap().map(|entry| entry.unwrap().path()).collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for folder in self.vm_folders() {
                for log in ["qemu.log", "console.log"] {
                    let text = std::fs::read(folder.join(log)).unwrap_or_default();
                    eprintln!("{log}: {}", String::from_utf8_lossy(&text));
                }
            }
        }
        for pid in self.processes() {
            kill(pid);
        }
    }
}

pub fn processes_in(folder: &Path) -> Vec<i32> {
    let folder = folder.canonicalize().unwrap();
    let pids = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    pids.filter(|pid| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(&folder)))
        .collect()
}

pub fn kill(pid: i32) {
    let _ = rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL);
}

pub fn copy(name: &str, image: &Path) -> CopySpec {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let uid = format!("00000000-0000-7000-8000-{:012x}", NEXT.fetch_add(1, Ordering::Relaxed));
    CopySpec {
        id: CopyId { uid: uid.parse().unwrap(), attempt: 0 },
        name: name.parse().unwrap(),
        spec: VmSpec { image: image.to_str().unwrap().to_owned(), ..VmSpec::default() },
        cpu: 1,
        memory: 128,
    }
}

pub async fn create(qemu: &Qemu, copy: &CopySpec) -> Result<(), RuntimeError> {
    qemu.create(copy, &Progress::new().0).await
}

/// Starts a copy and waits until its SSH server answers.
pub async fn boot(qemu: &Qemu, copy: &CopySpec) {
    let _turn = turn().await;
    qemu.start(copy).await.unwrap();
    qemu.booted(copy.id).await;
    ssh_banner(qemu, copy.id).await;
}

pub async fn turn() -> SemaphorePermit<'static> {
    BOOTS.acquire().await.unwrap()
}

pub async fn ssh_banner(qemu: &Qemu, id: CopyId) {
    wait::until("the guest's SSH server", BOOT, || async {
        let mut stream = qemu.dial(id, 22).await.map_err(|error| error.to_string())?;
        let mut start = [0; 4];
        // Longer than an emulated guest takes for it on a busy machine, or every one would be given up.
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read_exact(&mut start)).await;
        match read {
            Ok(Ok(_)) if &start == b"SSH-" => Ok(()),
            other => Err(format!("{other:?}: {start:?}")),
        }
    })
    .await;
}

pub async fn states(qemu: &Qemu) -> Vec<FoundState> {
    qemu.list().await.unwrap().into_iter().map(|found| found.state).collect()
}

#[tokio::test]
async fn a_vm_lives_through_power_off_restart_crash_and_deletion() {
    let host = Host::new();
    let qemu = host.qemu().await;
    let vm = copy("vm.one", &guest_image());
    assert_eq!(qemu.list().await.unwrap(), []);
    create(&qemu, &vm).await.unwrap();
    // What never ran is as good as not made: nothing of a guest can be lost with it.
    let made = Found { id: vm.id, name: vm.name.clone(), state: FoundState::Incomplete };
    assert_eq!(qemu.list().await.unwrap(), [made]);

    boot(&qemu, &vm).await;
    assert_eq!(states(&qemu).await, [FoundState::Running]);
    qemu.start(&vm).await.unwrap();
    let [pid] = host.processes()[..] else { panic!("a second start does nothing") };
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    assert_eq!(rustix::process::getpgid(Some(pid)), Ok(pid), "signals to the worker's group do not reach it");
    let (exit, stopped) = tokio::join!(qemu.wait_exit(vm.id), qemu.stop(vm.id, BOOT));
    stopped.unwrap();
    assert_eq!((exit, host.processes()), (Exit::PoweredOff, vec![]));
    assert_eq!(states(&qemu).await, [FoundState::Stopped]);
    let remains = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
    wait::until("the zombie to be collected", BOOT, || async { if remains.exists() { Err(()) } else { Ok(()) } }).await;

    boot(&qemu, &vm).await;
    kill(host.processes()[0]);
    match qemu.wait_exit(vm.id).await {
        Exit::Crashed(why) => assert!(why.contains("killed"), "{why}"),
        Exit::PoweredOff => panic!("a killed VM was taken for one that powered off"),
    }
    assert!(matches!(qemu.dial(vm.id, 22).await, Err(RuntimeError::Refused(_))));

    let _turn = turn().await;
    qemu.start(&vm).await.unwrap();
    qemu.delete(vm.id).await.unwrap();
    assert_eq!((host.processes(), host.vm_folders()), (vec![], vec![]));
    qemu.delete(vm.id).await.unwrap();
    assert_eq!(qemu.list().await.unwrap(), []);
    assert!(matches!(qemu.dial(vm.id, 22).await, Err(RuntimeError::NotFound)));
}

/// Names the data folder to the process that [`a_worker_process_that_another_test_kills`] becomes.
const WORKER_ENV: &str = "ORCHARD_TEST_WORKER_FOLDER";

#[tokio::test]
async fn a_worker_process_that_another_test_kills() {
    let Some(folder) = std::env::var_os(WORKER_ENV).map(PathBuf::from) else { return };
    let options = QemuOptions { accel: Some(Accel::Tcg), ..QemuOptions::new(&folder) };
    let qemu = Qemu::new(options).await.unwrap();
    let vm = copy("adopted", &guest_image());
    create(&qemu, &vm).await.unwrap();
    boot(&qemu, &vm).await;
    std::fs::write(folder.join("booted"), "").unwrap();
    std::future::pending().await
}

#[tokio::test]
async fn a_vm_outlives_its_worker_and_is_adopted_by_the_next() {
    let host = Host::new();
    guest_image();
    let turn = turn().await;
    let mut worker = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "qemu::a_worker_process_that_another_test_kills", "--nocapture"])
        .env(WORKER_ENV, host.dir.path())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let booted = host.dir.path().join("booted");
    wait::until("the worker process to boot a VM", BOOT, || async { booted.exists().then_some(()).ok_or("not yet") })
        .await;
    drop(turn);
    let before = host.processes();
    assert_eq!(before.len(), 1);
    // Like Ctrl-C to the whole group, and like kill -9: nothing in it can tidy up.
    let group = rustix::process::Pid::from_raw(worker.id().unwrap().try_into().unwrap()).unwrap();
    rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
    worker.wait().await.unwrap();

    let second = host.qemu().await;
    let found = second.list().await.unwrap().remove(0);
    assert_eq!(found.state, FoundState::Running);
    let vm = CopySpec { id: found.id, ..copy("adopted", &guest_image()) };
    ssh_banner(&second, vm.id).await;
    second.start(&vm).await.unwrap();
    assert_eq!(host.processes(), before, "the same process goes on");
    drop(second);

    // The note of the process is lost, as if the worker had been killed right after the start.
    std::fs::remove_file(host.vm_folders()[0].join("process.json")).unwrap();
    let third = host.qemu().await;
    assert_eq!(states(&third).await, [FoundState::Running]);
    let (exit, stopped) = tokio::join!(third.wait_exit(vm.id), third.stop(vm.id, BOOT));
    stopped.unwrap();
    assert_eq!((exit, host.processes()), (Exit::PoweredOff, vec![]));
}

#[tokio::test]
async fn two_copies_run_side_by_side_and_serve_any_port() {
    let host = Host::new();
    let qemu = host.qemu().await;
    let (a, mut b) = (copy("a", &guest_image()), copy("b", &guest_image()));
    b.spec.disk_size = 2;
    let (made_a, made_b) = tokio::join!(create(&qemu, &a), create(&qemu, &b));
    made_a.unwrap();
    made_b.unwrap();
    let images = std::fs::read_dir(host.dir.path().join("images")).unwrap().flatten();
    let images = images.filter(|entry| entry.file_name().to_string_lossy().starts_with("sha256-")).count();
    assert_eq!(images, 1, "both stand on the same file");
    let in_use = || qemu.images().list().unwrap().iter().map(|image| image.in_use).collect::<Vec<_>>();
    assert_eq!(in_use(), [true]);
    tokio::join!(boot(&qemu, &a), boot(&qemu, &b));
    assert_eq!(states(&qemu).await, [FoundState::Running; 2]);

    // Nothing listens on port 9 of the guest: the stream ends at once. The screen speaks its own protocol.
    let mut closed = qemu.dial(a.id, 9).await.unwrap();
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(BOOT, closed.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.is_empty());
    let mut screen = qemu.dial(a.id, 5900).await.unwrap();
    let mut version = [0; 12];
    screen.read_exact(&mut version).await.unwrap();
    assert_eq!(&version, b"RFB 003.008\n");
    screen.shutdown().await.unwrap();

    qemu.delete(a.id).await.unwrap();
    assert_eq!(states(&qemu).await, [FoundState::Running]);
    ssh_banner(&qemu, b.id).await;
    qemu.stop(b.id, Duration::ZERO).await.unwrap();
    assert_eq!((host.processes(), in_use()), (Vec::<i32>::new(), vec![true]));
    qemu.delete(b.id).await.unwrap();
    assert_eq!(in_use(), [false]);
}

#[tokio::test]
async fn images_that_cannot_be_used_are_refused_with_the_reason() {
    let host = Host::new();
    let qemu = host.qemu().await;
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let overlay = dir.path().join("overlay.qcow2");
    let made = std::process::Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
        .args([&guest_image(), &overlay])
        .status();
    assert!(made.unwrap().success());
    let mut damaged = std::fs::read(&overlay).unwrap();
    damaged[8..16].fill(0); // names no backing file any more
    damaged[40..48].fill(0xff); // and its tables lie nowhere
    for (image, why) in [
        (dir.path().join("absent"), "cannot be read"),
        (dir.path().to_owned(), "not a regular file"),
        (file("text", b"hello"), "neither qcow2 nor raw"),
        (file("vmdk", &[b"KDMV".as_slice(), &[0; 508]].concat()), "VMDK"),
        (file("damaged", &damaged), "damaged"),
        (overlay, "backing file"),
        (PathBuf::from("ghcr.io/some/image:latest"), "absolute path"),
    ] {
        let error = create(&qemu, &copy("bad", &image)).await.unwrap_err();
        assert!(matches!(&error, RuntimeError::Image(text) if text.contains(why)), "{}: {error}", image.display());
    }
    let big = dir.path().join("big.qcow2");
    let made =
        std::process::Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&big).arg("1500M").status();
    assert!(made.unwrap().success());
    let mut small = copy("small", &big);
    small.spec.disk_size = 1;
    let error = create(&qemu, &small).await.unwrap_err();
    assert!(matches!(&error, RuntimeError::Image(text) if text.contains("at least 2")), "{error}");
    assert_eq!(host.vm_folders(), Vec::<PathBuf>::new());
    let left = std::fs::read_dir(host.dir.path().join("images")).unwrap().flatten();
    assert!(!left.map(|e| e.file_name()).any(|name| name.to_string_lossy().ends_with(".part")));
}

#[tokio::test]
async fn a_start_that_qemu_refuses_tells_its_reason_and_leaves_no_process() {
    let host = Host::new();
    let qemu = host.qemu().await;
    let mut vm = copy("greedy", &guest_image());
    create(&qemu, &vm).await.unwrap();
    vm.cpu = 100_000;
    let error = qemu.start(&vm).await.unwrap_err();
    assert!(error.to_string().contains("CPUs"), "{error}");
    assert_eq!((states(&qemu).await, host.processes()), (vec![FoundState::Stopped], vec![]));
    assert!(matches!(qemu.wait_exit(vm.id).await, Exit::Crashed(_)));
    qemu.delete(vm.id).await.unwrap();
}

#[tokio::test]
async fn a_data_folder_too_deep_for_socket_paths_still_works() {
    let host = Host::new();
    let deep = host.dir.path().join("d".repeat(120));
    let options = QemuOptions { accel: Some(Accel::Tcg), ..QemuOptions::new(deep) };
    std::fs::create_dir_all(host.dir.path().join("vms")).unwrap();
    let qemu = Qemu::new(options).await.unwrap();
    let vm = copy("deep", &guest_image());
    create(&qemu, &vm).await.unwrap();
    let _turn = turn().await;
    qemu.start(&vm).await.unwrap();
    assert_eq!(states(&qemu).await, [FoundState::Running]);
    qemu.delete(vm.id).await.unwrap();
    assert_eq!(host.processes(), Vec::<i32>::new());
}

#[tokio::test]
async fn an_interrupted_creation_is_seen_and_made_good() {
    let host = Host::new();
    let vm = copy("half", &guest_image());
    let folder = host.dir.path().join(format!("vms/{}-0", vm.id.uid.0.simple()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("disk.qcow2"), "half").unwrap();
    std::fs::create_dir(host.dir.path().join("vms/lost+found")).unwrap();
    let qemu = host.qemu().await;
    assert_eq!(states(&qemu).await, [FoundState::Incomplete]);
    assert!(matches!(qemu.start(&vm).await, Err(RuntimeError::NotFound)));
    create(&qemu, &vm).await.unwrap();
    qemu.start(&vm).await.unwrap();
    assert_eq!(states(&qemu).await, [FoundState::Running]);
}

#[tokio::test]
async fn the_accelerator_chosen_by_trial_runs_a_guest() {
    let host = Host::new();
    let qemu = Qemu::new(QemuOptions::new(host.dir.path())).await.unwrap();
    let vm = copy("chosen", &guest_image());
    create(&qemu, &vm).await.unwrap();
    boot(&qemu, &vm).await;
    eprintln!("chosen: {}", qemu.accel());
    qemu.delete(vm.id).await.unwrap();
}
