//! A trial of an accelerator by a machine that boots: firmware, a boot sector, and a device by which that says that it ran. There
//! are hosts whose KVM opens and runs an empty machine, and hangs in the firmware's first instructions.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;
use uuid::Uuid;

use super::args::Accel;

/// The I/O port of the device that ends QEMU with what is written there.
const PORT: u8 = 0xf4;
/// What the boot sector writes there.
const WORD: u8 = 0x2a;
/// The exit code that QEMU makes of it.
const RAN: i32 = ((WORD as i32) << 1) | 1;

/// The length of a boot sector, and the mark at its end by which firmware knows one.
const SECTOR: usize = 512;
const MARK: [u8; 2] = [0x55, 0xaa];
/// The length of the disk: firmware passes over a shorter one.
const DISK: u64 = 1 << 20;

/// Boots a machine that writes a word to [`PORT`]; none = it did not. Dropped early, it kills the machine.
pub(super) async fn trial(system: &Path, accel: Accel) -> Option<()> {
    let disk = Disk::new().ok()?;
    let ended = Command::new(system)
        .args(["-accel", &accel.to_string(), "-cpu", if accel == Accel::Tcg { "max" } else { "host" }])
        .args(["-machine", "q35", "-m", "64M", "-display", "none", "-nodefaults", "-no-user-config"])
        .args(["-device", &format!("isa-debug-exit,iobase={PORT:#x},iosize=1")])
        .arg("-drive")
        .arg(format!("file={},format=raw,if=ide", disk.0.display().to_string().replace(',', ",,")))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .status()
        .await;
    (ended.ok()?.code() == Some(RAN)).then_some(())
}

/// A file with the boot sector, which goes with this.
struct Disk(PathBuf);

impl Disk {
    fn new() -> io::Result<Self> {
        let disk = Self(std::env::temp_dir().join(format!("orchard-trial-{}", Uuid::new_v4())));
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&disk.0)?;
        file.write_all(&sector())?;
        file.set_len(DISK)?;
        Ok(disk)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Where it was never made, there is none.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// `mov dx, PORT; mov al, WORD; out dx, al`, and `hlt` for ever where there is no such device.
fn sector() -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    let code = [0xba, PORT, 0, 0xb0, WORD, 0xee, 0xf4, 0xeb, 0xfd];
    sector.iter_mut().zip(code).for_each(|(byte, of)| *byte = of);
    sector.iter_mut().rev().zip(MARK.into_iter().rev()).for_each(|(byte, of)| *byte = of);
    sector
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::vm::Arch;

    /// By translation, which works everywhere; what is not there at all does not run.
    #[tokio::test]
    async fn a_machine_that_boots_is_known_from_one_that_does_not() {
        if Arch::HOST == Arch::Amd64 && crate::worker::runtime::qemu::host::programs().await.is_ok() {
            let qemu = Path::new("qemu-system-x86_64");
            assert_eq!(trial(qemu, Accel::Tcg).await, Some(()));
            assert_eq!(trial(qemu, Accel::Hvf).await, None);
        } else {
            eprintln!("NOT RUN: there is no QEMU for amd64 here");
        }
    }

    #[test]
    fn a_boot_sector_bears_its_mark() {
        let sector = sector();
        assert_eq!((&sector[..3], &sector[510..]), (&[0xba, 0xf4, 0][..], &MARK[..]));
    }
}
