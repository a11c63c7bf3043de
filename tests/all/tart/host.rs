//! A host with the stand-in for `tart` and `vetu`: what it was told, what it has, and what must not be left of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use orchard::model::CopyId;
use orchard::model::vm::{RuntimeKind, VmSpec};
use orchard::worker::runtime::tart::{Limits, Tart, TartOptions};
use orchard::worker::runtime::{CopySpec, Progress, Runtime, RuntimeError};

use crate::harness::LIMIT;
use crate::wait;

/// Long enough for a shell script on a busy machine, short enough to wait for.
pub const LIMITS: Limits = Limits {
    fetch: Duration::from_secs(20),
    command: Duration::from_secs(20),
    start: Duration::from_secs(20),
    suspend: Duration::from_secs(20),
};

/// For what hangs, and nothing else: the rest must be done by then, however busy the machine is.
pub const SHORT: Limits = Limits {
    fetch: Duration::from_secs(6),
    command: Duration::from_secs(6),
    start: Duration::from_secs(6),
    suspend: Duration::from_secs(6),
};

/// As long as `play` (the name of one of the stand-in's) needs.
pub fn limits_for(play: &str) -> Limits {
    if matches!(play, "hang" | "deaf") { SHORT } else { LIMITS }
}

pub struct Host {
    dir: tempfile::TempDir,
    kind: RuntimeKind,
}

impl Host {
    pub fn new(kind: RuntimeKind) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tools/standin.sh");
        std::os::unix::fs::symlink(script, dir.path().join(kind.as_str())).unwrap();
        std::fs::create_dir(dir.path().join("play")).unwrap();
        Self { dir, kind }
    }

    pub fn tart() -> Self {
        Self::new(RuntimeKind::Tart)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The folder that the tool lies in, for PATH.
    pub fn folder(&self) -> &Path {
        self.dir.path()
    }

    /// A folder that guests may see, by its real path.
    pub fn shares(&self, name: &str) -> String {
        let folder = self.dir.path().canonicalize().unwrap().join(name);
        std::fs::create_dir(&folder).unwrap();
        folder.to_str().unwrap().to_owned()
    }

    pub fn runtime(&self) -> Tart {
        self.runtime_within(LIMITS)
    }

    pub fn runtime_within(&self, limits: Limits) -> Tart {
        Tart::new(self.options(limits)).unwrap()
    }

    pub fn shared(&self, limits: Limits) -> Arc<dyn Runtime> {
        Arc::new(self.runtime_within(limits))
    }

    pub fn options(&self, limits: Limits) -> TartOptions {
        let program = self.file(self.kind.as_str());
        TartOptions { program, limits, ..TartOptions::new(self.kind, self.file("notes")) }
    }

    /// Has `play` played before what `verb` does, where `part` stands in the arguments; everywhere if it is empty.
    pub fn play(&self, verb: &str, part: &str, play: &str) {
        let name = if part.is_empty() { verb.to_owned() } else { format!("{verb}@{part}") };
        std::fs::write(self.file("play").join(name), play).unwrap();
    }

    pub fn stop_playing(&self) {
        for entry in std::fs::read_dir(self.file("play")).unwrap().flatten() {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }

    /// The words of each call but those that only look, in order.
    pub fn calls(&self) -> Vec<Vec<String>> {
        let text = std::fs::read_to_string(self.file("calls")).unwrap_or_default();
        let calls = text.lines().filter_map(|line| line.split_once(" begin\u{1f}"));
        let calls = calls.map(|(_, words)| words.split('\u{1f}').map(str::to_owned).collect::<Vec<_>>());
        calls.filter(|words| !matches!(words[0].as_str(), "list" | "ip" | "--version")).collect()
    }

    /// The same as one would type them.
    pub fn typed(&self) -> Vec<String> {
        self.calls().iter().map(|words| words.join(" ")).collect()
    }

    pub fn count(&self, what: &str) -> usize {
        self.typed().iter().filter(|call| call.starts_with(what)).count()
    }

    /// Which VMs the host has a disk of.
    pub fn disks(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.file("vms")).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// What is noted of VMs beside the tool's own files.
    pub fn notes(&self) -> usize {
        std::fs::read_dir(self.file("notes")).map_or(0, Iterator::count)
    }

    /// Processes that the tool has left: whatever has its mark in its environment or its folder on its command line, and its
    /// remains that nobody took away.
    pub fn left(&self) -> Vec<String> {
        let mark = format!("STANDIN={}\0", self.folder().display()).into_bytes();
        let text = std::fs::read_to_string(self.file("calls")).unwrap_or_default();
        let pids: Vec<&str> = text.lines().filter_map(|line| line.split(' ').next()).collect();
        let mut left = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            let has = |file: &str, part: &[u8]| {
                let text = std::fs::read(entry.path().join(file)).unwrap_or_default();
                text.windows(part.len()).any(|window| window == part)
            };
            let marked = has("environ", &mark) || has("cmdline", self.folder().as_os_str().as_encoded_bytes());
            let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let zombie = pids.contains(&name.as_str()) && stat.contains(") Z ");
            if marked || zombie {
                left.push(stat);
            }
        }
        left
    }

    /// Waits until nothing of the tool runs, nor its remains.
    pub async fn nothing_left(&self) {
        wait::until("no process to be left", LIMIT, || async {
            let left = self.left();
            if left.is_empty() { Ok(()) } else { Err(left) }
        })
        .await;
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.file("running")); // ends every run
    }
}

pub fn copy(attempt: u32, spec: VmSpec) -> CopySpec {
    CopySpec {
        id: CopyId { uid: "00000000-0000-7000-8000-000000000001".parse().unwrap(), attempt },
        name: "vm-1".parse().unwrap(),
        spec: VmSpec { image: "ghcr.io/x/y:1".into(), ..spec },
        cpu: 4,
        memory: 8192,
    }
}

pub async fn create(runtime: &Tart, copy: &CopySpec) -> Result<(), RuntimeError> {
    runtime.create(copy, &Progress::new().0).await
}
