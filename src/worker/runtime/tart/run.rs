//! The process of `run`, which lasts as long as the VM and outlives the worker: starts it, watches it, ends it.
//!
//! It runs below a small shell that writes down its exit code, so that a worker that was not there can still tell how the VM
//! ended.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::Tart;
use super::args;
use super::names::disk_name;
use super::notes::{Note, OF_A_START};
use crate::model::CopyId;
use crate::model::features;
use crate::model::vm::RuntimeKind;
use crate::worker::runtime::host_dirs::{self, Archives};
use crate::worker::runtime::process::{Process, spawn_detached};
use crate::worker::runtime::{CopySpec, Exit, RuntimeError, log_bound, said, tool};

/// How often the tool is asked whether a VM runs by now, or does not any more.
const PAUSE: Duration = Duration::from_millis(200);
/// The same for a VM whose `run` we do not know.
const FOREIGN_PAUSE: Duration = Duration::from_secs(5);
/// How long `run` has to end once its VM was stopped, and once it was killed.
const END_LIMIT: Duration = Duration::from_secs(10);
/// How much longer than the guest's grace `stop` may take.
const STOP_SLACK: Duration = Duration::from_secs(10);
/// How much of `run`'s output an exit report is made of.
const LOG_TAIL: u64 = 4096;
/// Exit codes of a shell's command beyond this are the numbers of signals.
const SIGNALLED: i32 = 128;

/// Runs the command given after it and writes its exit code to the file named by the first argument.
const KEEP_EXIT_CODE: &str = r#"exit=$1; shift; "$@"; echo $? > "$exit""#;

impl Tart {
    /// Starts `run`, and returns once the tool lists the VM as running.
    pub(super) async fn start_run(&self, copy: &CopySpec) -> Result<(), RuntimeError> {
        features::check(&copy.spec, self.options.kind).map_err(|error| RuntimeError::State(error.message))?;
        let name = disk_name(&copy.name, copy.id);
        match self.find(copy.id).await? {
            None => return Err(RuntimeError::NotFound),
            Some(vm) if vm.running => return Ok(()),
            Some(_) => {}
        }
        host_dirs::check(&copy.spec.host_dirs, Archives::Taken)?;
        self.end_process(&name, END_LIMIT).await?;
        self.addresses.forget(copy.id);
        // Before it is true: from here on the disk may hold what the guest wrote, and is never made anew.
        self.notes.remove(&name, &OF_A_START);
        self.notes.remove(&name, &[Note::Unstarted]);
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let mut args = vec!["-c".to_owned(), KEEP_EXIT_CODE.to_owned(), "sh".to_owned()];
        args.extend([text(&self.notes.path(&name, Note::Exit)), text(&self.options.program)]);
        args.extend(args::run(self.options.kind, &copy.spec, &name));
        let path = self.notes.path(&name, Note::Log);
        let log = File::options().append(true).create(true).open(&path);
        let log = log.map_err(RuntimeError::io(format!("cannot write {}", path.display())))?;
        let process = spawn_detached(Path::new("sh"), &args, self.notes.folder(), None, log, &self.reaper).await;
        let process = process.map_err(RuntimeError::io(format!("cannot start {} run", self.options.kind)))?;
        let noted = self.notes.write(&name, Note::Process, &serde_json::to_vec(&process).unwrap_or_default());
        let started = match noted {
            Ok(()) => self.runs_within(copy.id, &name, &process).await,
            Err(error) => Err(error),
        };
        if started.is_err() {
            process.kill_group(END_LIMIT).await;
        }
        started
    }

    async fn runs_within(&self, id: CopyId, name: &str, process: &Process) -> Result<(), RuntimeError> {
        let deadline = Instant::now() + self.options.limits.start;
        let mut unlisted = String::new();
        loop {
            if !process.alive().await {
                let said = self.log(name);
                return Err(RuntimeError::Tool(format!("{} run {name} ended at once: {said}", self.options.kind)));
            }
            match tokio::time::timeout_at(deadline, self.find(id)).await {
                Ok(Ok(Some(vm))) if vm.running => return Ok(()),
                Ok(Ok(_)) => unlisted.clear(),
                // That it cannot be seen is no reason to end a VM that may have started well.
                Ok(Err(error)) => unlisted = format!("; and it could not be seen: {error}"),
                Err(_) => {}
            }
            if Instant::now() >= deadline {
                let (seconds, said) = (self.options.limits.start.as_secs_f32(), self.log(name));
                return Err(RuntimeError::Timeout(format!(
                    "{name} was not running {seconds} s after its start; {} run said: {said}{unlisted}",
                    self.options.kind
                )));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Waits for the end of `run`, whoever started it, and keeps its log from growing for ever meanwhile.
    pub(super) async fn ended(&self, id: CopyId) -> Exit {
        let name = loop {
            match self.name_of(id).await {
                Ok(name) => break name,
                Err(RuntimeError::NotFound) => return Exit::Crashed(RuntimeError::NotFound.to_string()),
                Err(error) => tracing::warn!(%id, %error, "cannot see whether the VM still runs"),
            }
            tokio::time::sleep(FOREIGN_PAUSE).await;
        };
        let logs = [self.notes.path(&name, Note::Log)];
        // Cancel safe: both only look.
        tokio::select! {
            exit = self.ended_as(id, &name) => exit,
            never = log_bound::keep(&logs) => match never {},
        }
    }

    async fn ended_as(&self, id: CopyId, name: &str) -> Exit {
        if let Some(process) = self.notes.process(name, Note::Process).await {
            process.gone().await;
        }
        // What we started `run` by may have been killed alone: the VM runs for as long as the tool says so.
        loop {
            match self.find(id).await {
                Ok(Some(vm)) if vm.running => {}
                Ok(_) => return self.exit_of(name),
                Err(error) => tracing::warn!(%id, %error, "cannot see whether the VM still runs"),
            }
            tokio::time::sleep(FOREIGN_PAUSE).await;
        }
    }

    fn exit_of(&self, name: &str) -> Exit {
        let (kind, said) = (self.options.kind, self.log(name));
        match self.notes.read(name, Note::Exit).trim().parse::<i32>() {
            Ok(0) => Exit::PoweredOff,
            Ok(code) if code > SIGNALLED => {
                Exit::Crashed(format!("{kind} run was ended by signal {}: {said}", code - SIGNALLED))
            }
            Ok(code) => Exit::Crashed(format!("{kind} run exited with code {code}: {said}")),
            Err(_) => Exit::Crashed(format!("{kind} run was killed, or not started by this worker: {said}")),
        }
    }

    /// What `run` said last.
    fn log(&self, name: &str) -> String {
        let text = tool::tail(&self.notes.path(name, Note::Log), LOG_TAIL);
        said::lines(&text).unwrap_or_else(|| "it said nothing".to_owned())
    }

    /// Has the VM stopped by the tool, and ends its process if that does not.
    pub(super) async fn end_run(&self, id: CopyId, grace: Duration) -> Result<(), RuntimeError> {
        let Some(vm) = self.find(id).await? else { return Ok(()) };
        let mut patience = Duration::ZERO;
        // Of one that is suspended the tool drops the memory.
        if vm.running || vm.is_suspended() {
            let limit = (grace + STOP_SLACK).min(grace + self.options.limits.command);
            match self.tool_within(&args::stop(grace, &vm.name), limit).await {
                Ok(_) => patience = END_LIMIT,
                Err(error) => tracing::warn!(%id, %error, "the VM could not be asked to stop"),
            }
        }
        self.end_process(&vm.name, patience).await?;
        let deadline = Instant::now() + END_LIMIT;
        loop {
            let what = match self.find(id).await? {
                Some(vm) if vm.running => "still runs",
                Some(vm) if vm.is_suspended() => "is still suspended",
                _ => return Ok(()),
            };
            if Instant::now() > deadline {
                return Err(RuntimeError::State(format!("{} {what} after it was stopped", vm.name)));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Ends the process of `run`, if we know it, unless it ends by itself within `patience`.
    pub(super) async fn end_process(&self, name: &str, patience: Duration) -> Result<(), RuntimeError> {
        let Some(process) = self.notes.process(name, Note::Process).await else { return Ok(()) };
        if process.gone_within(patience).await {
            return Ok(());
        }
        if process.kill_group(END_LIMIT).await {
            return Ok(());
        }
        Err(RuntimeError::Timeout(format!("the process {} of {name} cannot be killed", process.pid)))
    }

    /// Ends the process of `run` without a word to the guest or, where it is known, to the tool.
    pub(super) async fn kill_run(&self, id: CopyId) -> Result<(), RuntimeError> {
        let name = self.name_of(id).await?;
        match self.notes.process(&name, Note::Process).await {
            // The VM runs in the process of `run`, below our shell.
            Some(_) => self.end_process(&name, Duration::ZERO).await,
            // The memory of one that is suspended stays where it is.
            None => match self.find(id).await? {
                Some(vm) if vm.running => self.end_run(id, Duration::ZERO).await,
                _ => Ok(()),
            },
        }
    }

    /// Has the guest's memory written beside its disk.
    pub(super) async fn freeze(&self, id: CopyId) -> Result<(), RuntimeError> {
        let Some(vm) = self.find(id).await?.filter(|vm| vm.running) else { return Ok(()) };
        if self.options.kind != RuntimeKind::Tart {
            return Err(RuntimeError::State(format!("{} cannot suspend VMs", self.options.kind)));
        }
        self.tool(&args::suspend(&vm.name)).await?;
        // The tool only signals the process of `run`, which then writes the memory.
        let deadline = Instant::now() + self.options.limits.suspend;
        while self.find(id).await?.is_some_and(|vm| vm.running) {
            if Instant::now() > deadline {
                let seconds = self.options.limits.suspend.as_secs_f32();
                let what = format!("{} still runs {seconds} s after it was suspended", vm.name);
                return Err(RuntimeError::Timeout(what));
            }
            tokio::time::sleep(PAUSE).await;
        }
        self.end_process(&vm.name, END_LIMIT).await?;
        // If the memory cannot be written, `run` says so and ends the guest.
        match self.find(id).await? {
            Some(vm) if vm.is_suspended() => Ok(()),
            _ => Err(RuntimeError::Tool(format!("tart run ended without keeping its memory: {}", self.log(&vm.name)))),
        }
    }
}
