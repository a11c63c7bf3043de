//! The Tart and Vetu runtimes: two command line tools with the same commands, for macOS and Linux guests.
//!
//! A VM is known to the tool as `orchard-<name>-<uid>-<attempt>`; whatever else the tool lists is not ours and is left
//! alone. Beside it we keep in the data folder, by the same name: `.unstarted` until the first start, `.json`
//! with the process of `run`, `.log` with its output and `.exit` with its exit code.
//!
//! `run` lasts as long as the VM and outlives the worker. It runs below a small shell that writes down its exit code,
//! so that a worker that was not there can still tell how the VM ended.

use std::collections::HashMap;
use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rustix::process::Signal;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::process::{Process, Reaper, spawn_detached};
use super::{CopySpec, Exit, Found, FoundState, GuestStream, Progress, Runtime, RuntimeError, tool};
use crate::identity::{make_private_dir, write_private};
use crate::model::vm::RuntimeKind;
use crate::model::{CopyId, VmName};

/// A clone may pull tens of gigabytes first.
const CLONE_LIMIT: Duration = Duration::from_secs(6 * 3600);
/// Commands that change or list what is on disk.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// How long `run` may take until the tool lists the VM as running.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long writing a guest's memory may take.
const SUSPEND_LIMIT: Duration = Duration::from_secs(300);
/// How often the tool is asked about it.
const START_PAUSE: Duration = Duration::from_millis(200);
/// The same for a VM whose `run` we do not know.
const FOREIGN_PAUSE: Duration = Duration::from_secs(5);
/// What `ip` is told to wait for the guest's DHCP lease, in seconds.
const IP_WAIT: u64 = 60;
/// A connect to the guest.
const DIAL_LIMIT: Duration = Duration::from_secs(10);
/// How long `run` has to end once its VM was stopped, and once it was killed.
const END_LIMIT: Duration = Duration::from_secs(10);
/// How much of `run`'s output an exit report shows.
const LOG_TAIL: u64 = 2048;

/// Runs the command given after it and writes its exit code to the file named by the first argument.
const KEEP_EXIT_CODE: &str = r#"exit=$1; shift; "$@"; echo $? > "$exit""#;

/// Which tool, and where we keep our notes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TartOptions {
    /// [`RuntimeKind::Tart`] or [`RuntimeKind::Vetu`].
    pub kind: RuntimeKind,
    /// The tool; a bare name is looked up on PATH.
    pub program: PathBuf,
    /// For our notes; the VMs themselves lie where the tool puts them.
    pub data_dir: PathBuf,
}

/// The runtime. Dropping it stops no VM.
#[derive(Debug)]
pub struct Tart {
    options: TartOptions,
    names: Mutex<HashMap<CopyId, String>>,
    reaper: Mutex<Reaper>,
}

/// What the tool calls a copy.
pub fn disk_name(name: &VmName, id: CopyId) -> String {
    format!("orchard-{name}-{id}")
}

/// The copy that one of the tool's names stands for; `None` for names that Orchard did not give.
pub fn parse_disk_name(text: &str) -> Option<(VmName, CopyId)> {
    const UUID_LEN: usize = 36;
    let (rest, attempt) = text.strip_prefix("orchard-")?.rsplit_once('-')?;
    let at = rest.len().checked_sub(UUID_LEN)?;
    let (name, uid) = (rest.get(..at)?.strip_suffix('-')?, rest.get(at..)?);
    let (name, id) = (name.parse().ok()?, CopyId { uid: uid.parse().ok()?, attempt: attempt.parse().ok()? });
    (disk_name(&name, id) == text).then_some((name, id))
}

/// One line of `list --format json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    name: String,
    #[serde(default)]
    running: bool,
    #[serde(default)]
    state: String,
}

/// The state of a VM whose memory lies beside its disk, as the tool calls it.
const SUSPENDED: &str = "suspended";

impl Tart {
    /// Prepares the folder for our notes. Touches no VM.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn new(options: TartOptions) -> Result<Self, RuntimeError> {
        let folder = &options.data_dir;
        make_private_dir(folder).map_err(RuntimeError::io(format!("cannot make {}", folder.display())))?;
        Ok(Self { options, names: Mutex::default(), reaper: Mutex::default() })
    }

    /// Whether the tool can be run here; its version.
    ///
    /// # Errors
    /// What is missing, for people.
    pub async fn detect(program: &Path) -> Result<String, String> {
        let version = tool::run(program, &["--version"], None, COMMAND_LIMIT).await;
        version.map(|text| text.trim().to_owned()).map_err(|error| error.to_string())
    }

    async fn tool(&self, args: &[&str], limit: Duration) -> Result<String, RuntimeError> {
        tool::run(&self.options.program, args, None, limit).await
    }

    async fn listed(&self) -> Result<Vec<(VmName, CopyId, Listed)>, RuntimeError> {
        let text = self.tool(&["list", "--format", "json"], COMMAND_LIMIT).await?;
        let all: Vec<Listed> = serde_json::from_str(&text).map_err(|error| {
            let kind = self.options.kind;
            RuntimeError::Tool(format!("{kind} list did not answer in the expected JSON ({error}); is it too old?"))
        })?;
        let ours = all.into_iter().filter_map(|vm| parse_disk_name(&vm.name).map(|(name, id)| (name, id, vm)));
        Ok(ours.collect())
    }

    /// What the tool calls the copy, and whether it runs; `None` when the tool has no such VM.
    async fn find(&self, id: CopyId) -> Result<Option<Listed>, RuntimeError> {
        let found = self.listed().await?.into_iter().find(|(_, other, _)| *other == id).map(|(_, _, vm)| vm);
        if let Some(vm) = &found {
            self.names().insert(id, vm.name.clone());
        }
        Ok(found)
    }

    async fn name_of(&self, id: CopyId) -> Result<String, RuntimeError> {
        let known = self.names().get(&id).cloned();
        match known {
            Some(name) => Ok(name),
            None => self.find(id).await?.map(|vm| vm.name).ok_or(RuntimeError::NotFound),
        }
    }

    fn names(&self) -> std::sync::MutexGuard<'_, HashMap<CopyId, String>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, name: &str, suffix: &str) -> PathBuf {
        self.options.data_dir.join(format!("{name}.{suffix}"))
    }

    fn write_note(&self, name: &str, suffix: &str, text: &[u8]) -> Result<(), RuntimeError> {
        let path = self.note(name, suffix);
        write_private(&path, text).map_err(RuntimeError::io(format!("cannot write {}", path.display())))
    }

    fn remove_notes(&self, name: &str, suffixes: &[&str]) {
        for suffix in suffixes {
            let _ = std::fs::remove_file(self.note(name, suffix));
        }
    }

    /// The living process of `run`, if it is one that we started.
    async fn process(&self, name: &str) -> Option<Process> {
        let note = std::fs::read(self.note(name, "json")).ok()?;
        let process: Process = serde_json::from_slice(&note).ok()?;
        process.alive().await.then_some(process)
    }

    async fn end_process(&self, name: &str) -> Result<(), RuntimeError> {
        let Some(process) = self.process(name).await else { return Ok(()) };
        if process.gone_within(END_LIMIT).await {
            return Ok(());
        }
        process.signal_group(Signal::KILL).await;
        if process.gone_within(END_LIMIT).await {
            return Ok(());
        }
        Err(RuntimeError::Timeout(format!("the process {} of {name} cannot be killed", process.pid)))
    }

    fn exit_of(&self, name: &str) -> Exit {
        let code = std::fs::read_to_string(self.note(name, "exit")).unwrap_or_default();
        let said = tool::tail(&self.note(name, "log"), LOG_TAIL);
        match code.trim() {
            "0" => Exit::PoweredOff,
            "" => Exit::Crashed(format!("{} run was killed, or not started by this worker. {said}", self.options.kind)),
            code => Exit::Crashed(format!("{} run exited with code {code}: {said}", self.options.kind)),
        }
    }

    async fn ip(&self, name: &str) -> Result<IpAddr, RuntimeError> {
        let (wait, limit) = (IP_WAIT.to_string(), Duration::from_secs(IP_WAIT + 10));
        let text = self.tool(&["ip", "--wait", &wait, name], limit).await;
        let text = text.map_err(|error| RuntimeError::Refused(format!("the guest has no address yet: {error}")))?;
        let text = text.trim();
        text.parse().map_err(|_| RuntimeError::Tool(format!("{} ip answered {text:?}", self.options.kind)))
    }
}

#[async_trait]
impl Runtime for Tart {
    fn kind(&self) -> RuntimeKind {
        self.options.kind
    }

    fn boot_permits(&self) -> usize {
        std::thread::available_parallelism().map_or(1, usize::from)
    }

    async fn list(&self) -> Result<Vec<Found>, RuntimeError> {
        let listed = self.listed().await?;
        let state = |vm: &Listed| match vm.running {
            true => FoundState::Running,
            false if self.note(&vm.name, "unstarted").exists() => FoundState::Incomplete,
            false => FoundState::Stopped,
        };
        Ok(listed.into_iter().map(|(name, id, vm)| Found { id, name, state: state(&vm) }).collect())
    }

    async fn create(&self, copy: &CopySpec, progress: &Progress) -> Result<(), RuntimeError> {
        let image = copy.spec.image.as_str();
        if image.is_empty() || image.starts_with('-') {
            return Err(RuntimeError::Image(format!("{image:?} is not the name of an image")));
        }
        if self.options.kind == RuntimeKind::Vetu && !copy.spec.host_dirs.is_empty() {
            let why = "vetu cannot share host directories; give --runtime tart or qemu, or leave --host-dirs out";
            return Err(RuntimeError::State(why.to_owned()));
        }
        let name = disk_name(&copy.name, copy.id);
        self.write_note(&name, "unstarted", b"")?;
        self.names().insert(copy.id, name.clone());
        progress.say("cloning the image");
        self.tool(&["clone", image, &name], CLONE_LIMIT).await.map_err(|error| match error {
            RuntimeError::Tool(why) => RuntimeError::Image(why),
            other => other,
        })?;
        progress.say("configuring");
        let mut settings = vec![("--memory", copy.memory), ("--cpu", copy.cpu)];
        settings.extend((copy.spec.disk_size > 0).then_some(("--disk-size", copy.spec.disk_size)));
        for (option, value) in settings {
            self.tool(&["set", option, &value.to_string(), &name], COMMAND_LIMIT).await?;
        }
        if self.options.kind == RuntimeKind::Tart {
            // Two clones with one address would share one DHCP lease.
            self.tool(&["set", "--random-mac", &name], COMMAND_LIMIT).await?;
        }
        Ok(())
    }

    async fn start(&self, copy: &CopySpec) -> Result<(), RuntimeError> {
        let name = disk_name(&copy.name, copy.id);
        match self.find(copy.id).await? {
            None => return Err(RuntimeError::NotFound),
            Some(vm) if vm.running => return Ok(()),
            Some(_) => {}
        }
        self.end_process(&name).await?;
        // Before it is true: from here on the disk may hold what the guest wrote, and is never made anew.
        self.remove_notes(&name, &["unstarted", "exit", "log", "json"]);
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let mut args = vec!["-c".to_owned(), KEEP_EXIT_CODE.to_owned(), "sh".to_owned()];
        args.extend([text(&self.note(&name, "exit")), text(&self.options.program), "run".to_owned()]);
        if copy.spec.suspendable && self.options.kind == RuntimeKind::Tart {
            args.push("--suspendable".to_owned());
        }
        if copy.spec.headless && self.options.kind == RuntimeKind::Tart {
            args.push("--no-graphics".to_owned());
        }
        // One word each, so that no path is taken for an option.
        args.extend(copy.spec.host_dirs.iter().map(|dir| format!("--dir={dir}")));
        args.push(name.clone());
        let path = self.note(&name, "log");
        let log = File::options().append(true).create(true).open(&path);
        let log = log.map_err(RuntimeError::io(format!("cannot write {}", path.display())))?;
        let process = spawn_detached(Path::new("sh"), &args, &self.options.data_dir, log, &self.reaper).await;
        let process = process.map_err(RuntimeError::io(format!("cannot start {} run", self.options.kind)))?;
        self.write_note(&name, "json", &serde_json::to_vec(&process).unwrap_or_default())?;
        let deadline = Instant::now() + START_LIMIT;
        loop {
            if !process.alive().await {
                let said = tool::tail(&path, LOG_TAIL);
                return Err(RuntimeError::Tool(format!("{} run ended at once: {said}", self.options.kind)));
            }
            if self.find(copy.id).await?.is_some_and(|vm| vm.running) {
                return Ok(());
            }
            if Instant::now() > deadline {
                process.signal_group(Signal::KILL).await;
                let seconds = START_LIMIT.as_secs();
                return Err(RuntimeError::Timeout(format!("{name} was not running {seconds} s after its start")));
            }
            tokio::time::sleep(START_PAUSE).await;
        }
    }

    async fn booted(&self, _id: CopyId) {}

    async fn wait_exit(&self, id: CopyId) -> Exit {
        let name = match self.name_of(id).await {
            Ok(name) => name,
            Err(error) => return Exit::Crashed(error.to_string()),
        };
        if let Some(process) = self.process(&name).await {
            process.gone().await;
            return self.exit_of(&name);
        }
        loop {
            match self.find(id).await {
                Ok(Some(vm)) if vm.running => {}
                Ok(_) => return self.exit_of(&name),
                Err(error) => tracing::warn!(%id, %error, "cannot see whether the VM still runs"),
            }
            tokio::time::sleep(FOREIGN_PAUSE).await;
        }
    }

    async fn stop(&self, id: CopyId, grace: Duration) -> Result<(), RuntimeError> {
        let Some(vm) = self.find(id).await? else { return Ok(()) };
        // Of one that is suspended the tool drops the memory.
        if vm.running || vm.state == SUSPENDED {
            let seconds = grace.as_secs().to_string();
            let stopped = self.tool(&["stop", "--timeout", &seconds, &vm.name], grace + COMMAND_LIMIT).await;
            if let Err(error) = stopped {
                tracing::warn!(%id, %error, "the VM could not be asked to stop");
            }
        }
        self.end_process(&vm.name).await?;
        match self.find(id).await? {
            Some(vm) if vm.running => Err(RuntimeError::State(format!("{} still runs after it was stopped", vm.name))),
            _ => Ok(()),
        }
    }

    async fn kill(&self, id: CopyId) -> Result<(), RuntimeError> {
        let name = self.name_of(id).await?;
        match self.process(&name).await {
            // The VM runs in the process of `run`, below our shell.
            Some(process) => {
                process.signal_group(Signal::KILL).await;
                self.end_process(&name).await
            }
            None => self.stop(id, Duration::ZERO).await,
        }
    }

    async fn suspend(&self, id: CopyId, _progress: &Progress) -> Result<(), RuntimeError> {
        let Some(vm) = self.find(id).await?.filter(|vm| vm.running) else { return Ok(()) };
        if self.options.kind != RuntimeKind::Tart {
            return Err(RuntimeError::State(format!("{} cannot suspend VMs", self.options.kind)));
        }
        self.tool(&["suspend", &vm.name], COMMAND_LIMIT).await?;
        // The tool only signals the process of `run`, which then writes the memory.
        let deadline = Instant::now() + SUSPEND_LIMIT;
        while self.find(id).await?.is_some_and(|vm| vm.running) {
            if Instant::now() > deadline {
                let seconds = SUSPEND_LIMIT.as_secs();
                return Err(RuntimeError::Timeout(format!(
                    "{} still runs {seconds} s after it was suspended",
                    vm.name
                )));
            }
            tokio::time::sleep(START_PAUSE).await;
        }
        self.end_process(&vm.name).await
    }

    async fn delete(&self, id: CopyId) -> Result<(), RuntimeError> {
        if let Some(vm) = self.find(id).await? {
            self.stop(id, Duration::ZERO).await?;
            let deleted = self.tool(&["delete", &vm.name], COMMAND_LIMIT).await;
            if deleted.is_err() && self.find(id).await?.is_some() {
                deleted?;
            }
        }
        if let Some(name) = self.names().remove(&id) {
            self.remove_notes(&name, &["unstarted", "exit", "log", "json"]);
        }
        Ok(())
    }

    async fn dial(&self, id: CopyId, port: u16) -> Result<GuestStream, RuntimeError> {
        let name = self.name_of(id).await?;
        let ip = self.ip(&name).await?;
        match tokio::time::timeout(DIAL_LIMIT, TcpStream::connect((ip, port))).await {
            Ok(Ok(stream)) => {
                let _ = stream.set_nodelay(true);
                Ok(Box::new(stream))
            }
            Ok(Err(error)) => Err(RuntimeError::Refused(format!("{ip} port {port}: {error}"))),
            Err(_) => Err(RuntimeError::Timeout(format!("{ip} port {port} does not answer"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_that_orchard_did_not_give_are_left_alone() {
        for foreign in [
            "",
            "ubuntu",
            "orchard-",
            "orchard-a-1",
            "orchard--00000000-0000-7000-8000-000000000001-0",
            "orchard-a-00000000-0000-7000-8000-000000000001-00",
            "orchard-a-00000000-0000-7000-8000-000000000001",
            "orchard-ää-0000",
        ] {
            assert_eq!(parse_disk_name(foreign), None, "{foreign:?}");
        }
    }

    proptest! {
        #[test]
        fn disk_names_are_read_back(name in "[A-Za-z0-9][A-Za-z0-9:_.-]{0,60}", uid: u128, attempt: u32) {
            let name: VmName = name.parse().unwrap();
            let id = CopyId { uid: uuid::Uuid::from_u128(uid).to_string().parse().unwrap(), attempt };
            prop_assert_eq!(parse_disk_name(&disk_name(&name, id)), Some((name, id)));
        }

        #[test]
        fn no_text_upsets_the_parser(text in "(orchard-)?.*") {
            let _ = parse_disk_name(&text);
        }
    }
}
