//! From a made copy to a process that runs, and its end without asking. Called by `mod.rs`.

use std::os::fd::OwnedFd;
use std::path::Path;

use super::super::host_dirs::{self, Archives};
use super::super::process::{raise_file_limit, spawn_detached};
use super::super::{CopySpec, RuntimeError, tool};
use super::args;
use super::asked;
use super::bridge;
use super::folder::{EFI_VARS, Folder, QEMU_LOG, Record, SEED};
use super::seed::Seed;
use super::suspend::{self, LoadError};
use super::vm::{self, Begin, Machine};
use super::{Qemu, host};
use crate::identity::write_private;
use crate::model::vm::{Arch, Firmware};

impl Qemu {
    /// Starts QEMU on a disk that nothing else runs on: with the memory of a suspended guest if there is any.
    ///
    /// # Errors
    /// Why not; then nothing runs.
    pub(super) async fn launch(
        &self,
        folder: &Folder,
        record: &Record,
        copy: &CopySpec,
    ) -> Result<Machine, RuntimeError> {
        // With the lock, so that nothing else runs on the disk; from here on it is QEMU's.
        let log = folder.hold().await?;
        folder.clear_run()?;
        let saved = suspend::saved(folder);
        let args = match &saved {
            Some(saved) => {
                if let Err(LoadError::Broken(why)) = suspend::check_whole(folder, saved) {
                    return Err(vm::broken(folder, why)?);
                }
                suspend::note_run(folder, &saved.args)?;
                args::resume(&saved.args, &saved.machine)
            }
            None => {
                host_dirs::check(&copy.spec.host_dirs, Archives::Refused)?;
                asked::check_nested(copy.spec.nested, self.accel)?;
                write_seed(folder, record, copy)?;
                let args = self.arguments(folder, record, copy)?;
                suspend::note_run(folder, &args)?;
                args
            }
        };
        let card = card_of(copy).await?;
        let process = spawn_detached(&self.programs.system, &args, folder.path(), card, log, &self.reaper).await;
        let process = process.map_err(|error| {
            let said = tool::tail(&folder.file(QEMU_LOG), 2048);
            RuntimeError::Tool(format!("cannot start {}: {error} {said}", self.programs.system.display()))
        })?;
        folder.write_process(&process)?;
        // A forwarded connection keeps its descriptor for a while after its end.
        raise_file_limit(&process);
        let begin = if saved.is_some() { Begin::Resume } else { Begin::Boot };
        let machine = Machine::connect(folder.clone(), process, begin).await;
        if machine.is_err() {
            self.end(folder).await?;
            folder.forget_process();
        }
        machine
    }

    fn arguments(&self, folder: &Folder, record: &Record, copy: &CopySpec) -> Result<Vec<String>, RuntimeError> {
        let uefi = uefi_of(copy)?;
        if let Some((_, vars)) = uefi
            && !folder.file(EFI_VARS).exists()
        {
            let kept = std::fs::read(vars).and_then(|vars| write_private(&folder.file(EFI_VARS), &vars));
            kept.map_err(RuntimeError::io(format!("cannot copy {vars}")))?;
        }
        Ok(args::run(&args::Parameters {
            name: copy.name.as_str(),
            id: copy.id,
            cpu: copy.cpu,
            memory: copy.memory,
            mac: &record.mac,
            bridged: bridged_mac(copy).as_deref(),
            arch: Arch::HOST,
            accel: self.accel,
            firmware: host::firmware().map_err(RuntimeError::Tool)?,
            uefi: uefi.map(|(code, _)| code),
            host_dirs: &copy.spec.host_dirs,
            random_serial: copy.spec.random_serial,
            sandbox: self.sandbox,
        }))
    }

    /// Ends what runs of a copy without asking it.
    pub(super) async fn end(&self, folder: &Folder) -> Result<(), RuntimeError> {
        if let Some(process) = folder.process().await {
            vm::kill(&process).await?;
        }
        if folder.released().await {
            return Ok(());
        }
        Err(RuntimeError::State(format!(
            "a process that was started on this VM's disk still has {}, and cannot be found to be ended",
            folder.file(QEMU_LOG).display()
        )))
    }
}

/// The UEFI that a copy is to have and does not have anyhow.
///
/// # Errors
/// When this host has none.
pub(super) fn uefi_of(copy: &CopySpec) -> Result<Option<(&'static str, &'static str)>, RuntimeError> {
    match copy.spec.firmware {
        Firmware::Default => Ok(None),
        Firmware::Uefi => host::uefi(Arch::HOST, |path| Path::new(path).exists()).map_err(RuntimeError::State),
    }
}

/// The card on a bridge that a copy is to have; see bridge.rs.
///
/// # Errors
/// Why it cannot be had on this host.
pub(super) async fn card_of(copy: &CopySpec) -> Result<Option<OwnedFd>, RuntimeError> {
    match &copy.spec.net_bridged {
        Some(bridge) => bridge::join(bridge).await.map(Some),
        None => Ok(None),
    }
}

/// The address of that card.
fn bridged_mac(copy: &CopySpec) -> Option<String> {
    copy.spec.net_bridged.as_ref().map(|_| args::bridged_mac_address(copy.id))
}

/// Writes what cloud-init reads, for its owner alone: it holds the guest's password.
fn write_seed(folder: &Folder, record: &Record, copy: &CopySpec) -> Result<(), RuntimeError> {
    let (user, password) = (copy.spec.guest_user(), copy.spec.guest_password());
    let bridged = bridged_mac(copy);
    let seed = Seed {
        id: copy.id,
        name: copy.name.as_str(),
        user,
        password: password.expose(),
        keys: &copy.spec.ssh_keys,
        // One card is set up without being asked for.
        cards: bridged.as_deref().map(|bridged| [record.mac.as_str(), bridged]),
    };
    let written = seed.volume().and_then(|volume| write_private(&folder.file(SEED), &volume));
    written.map_err(RuntimeError::io(format!("cannot write {}", folder.file(SEED).display())))
}
