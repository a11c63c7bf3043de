//! Where this worker runs, as a short text that no other machine and no copy of its data folder has: what tells two apart
//! that were made from one disk, with the same key on both. Used when the worker registers; see [`Place`].
//!
//! It is made of what is not copied with the folder: the machine's own id, the id that the system gave this start of it, and
//! where the folder lies on its disk. Whoever has the folder's lock in the same place knows that the process before is gone,
//! and may take over from it at once; in another place it must wait until that one is no longer heard, and is not let in at
//! all while that one may have VMs, unless it is the same folder after a reboot.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::UNIX_EPOCH;

use crate::identity;
use crate::model::place::Place;

/// Bytes of each hash that are told: enough for parts that are compared with one other only.
const SHOWN: usize = 8;

/// The place of a data folder; empty when the system does not say.
pub(super) async fn of(data_dir: &Path) -> String {
    let (Some(boot), Ok(about)) = (boot_id().await, std::fs::metadata(data_dir)) else { return String::new() };
    let host = host_id().await.map(|id| short("host", id.trim())).unwrap_or_default();
    let place = Place {
        host,
        boot: short("boot", boot.trim()),
        device: short("device", &about.dev().to_string()),
        folder: short("folder", &folder(&about)),
    };
    place.to_string()
}

/// What one part is told as. With what it is for: the machine's id itself is nobody else's business.
fn short(part: &str, text: &str) -> String {
    let hash = identity::hash_of(&format!("orchard worker {part} {text}"));
    data_encoding::HEXLOWER.encode(hash.0.get(..SHOWN).unwrap_or_default())
}

/// The folder by its number and when it was made, which stays over reboots and is not copied; where the file system does not
/// know the latter, by its number and device.
fn folder(about: &Metadata) -> String {
    match about.created().ok().and_then(|made| made.duration_since(UNIX_EPOCH).ok()) {
        Some(made) => format!("{} made {}", about.ino(), made.as_nanos()),
        None => format!("{} on {}", about.ino(), about.dev()),
    }
}

/// The machine's own id, which it keeps over its starts.
#[cfg(not(target_os = "macos"))]
async fn host_id() -> Option<String> {
    let id = ["/etc/machine-id", "/var/lib/dbus/machine-id"].iter().find_map(|path| std::fs::read_to_string(path).ok());
    // "uninitialized" is what systemd leaves there in an image.
    id.filter(|id| !matches!(id.trim(), "" | "uninitialized"))
}

/// The machine's own id, which it keeps over its starts.
#[cfg(target_os = "macos")]
async fn host_id() -> Option<String> {
    let about = output_of("/usr/sbin/ioreg", &["-rd1", "-c", "IOPlatformExpertDevice"]).await?;
    let line = about.lines().find(|line| line.contains("IOPlatformUUID"))?;
    line.rsplit('"').nth(1).map(str::to_owned)
}

/// The id of this start of the machine.
#[cfg(not(target_os = "macos"))]
pub(super) async fn boot_id() -> Option<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()
}

/// The id of this start of the machine.
#[cfg(target_os = "macos")]
pub(super) async fn boot_id() -> Option<String> {
    output_of("/usr/sbin/sysctl", &["-n", "kern.bootsessionuuid"]).await
}

#[cfg(target_os = "macos")]
async fn output_of(program: &str, arguments: &[&str]) -> Option<String> {
    let mut asked = tokio::process::Command::new(program);
    let asked = asked.args(arguments).kill_on_drop(true).output();
    let output = tokio::time::timeout(std::time::Duration::from_secs(5), asked).await.ok()?.ok()?;
    String::from_utf8(output.stdout).ok().filter(|text| !text.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_folder_has_one_place_and_its_copy_another() {
        let (one, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let place = of(one.path()).await;
        assert_eq!(of(one.path()).await, place);
        let (place, other) = (Place::read(&place).unwrap(), Place::read(&of(copy.path()).await).unwrap());
        assert_eq!((&other.host, &other.boot), (&place.host, &place.boot));
        assert_ne!(other.folder, place.folder);
        assert_eq!(of(&one.path().join("missing")).await, "");
    }

    #[tokio::test]
    async fn what_changes_in_the_folder_does_not_change_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let (one, moved) = (dir.path().join("one"), dir.path().join("moved"));
        std::fs::create_dir(&one).unwrap();
        let place = of(&one).await;
        std::fs::write(one.join("worker.nk"), "seed").unwrap();
        std::fs::rename(&one, &moved).unwrap();
        assert_eq!(of(&moved).await, place);
    }
}
