//! Where this worker runs, as a short text that no other machine has while this one is up: what tells two machines apart that
//! were made from one disk, with the same data folder and the same key on both. Used when the worker registers.
//!
//! It is made of what cannot be copied with the folder: the id that the system gave this start of the machine, and where the
//! folder lies on its disk. Whoever has the folder's lock in the same place knows that the process before is gone, and may
//! take over from it at once; in another place it must wait until that one is no longer heard.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::identity;

/// Bytes of the hash that are told: no two places will ever share them.
const SHOWN: usize = 16;

/// The place of a data folder; empty when the system does not say.
pub(super) async fn of(data_dir: &Path) -> String {
    let (Some(boot), Ok(about)) = (boot_id().await, std::fs::metadata(data_dir)) else { return String::new() };
    let place = format!("{} {} {}", boot.trim(), about.dev(), about.ino());
    let hash = identity::hash_of(&place);
    data_encoding::HEXLOWER.encode(hash.0.get(..SHOWN).unwrap_or_default())
}

/// The id of this start of the machine.
#[cfg(not(target_os = "macos"))]
async fn boot_id() -> Option<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()
}

/// The id of this start of the machine.
#[cfg(target_os = "macos")]
async fn boot_id() -> Option<String> {
    let mut asked = tokio::process::Command::new("/usr/sbin/sysctl");
    let asked = asked.args(["-n", "kern.bootsessionuuid"]).kill_on_drop(true).output();
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
        assert_eq!((place.len(), of(one.path()).await), (2 * SHOWN, place.clone()));
        assert_ne!(of(copy.path()).await, place);
        assert_eq!(of(&one.path().join("missing")).await, "");
    }
}
