//! The tiny Linux guest that the tests boot: one image per machine and kernel, built on first need.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Names an image to use instead of building one.
const IMAGE_ENV: &str = "ORCHARD_TEST_IMAGE";
/// The same of one whose kernel has 9p.
const IMAGE_9P_ENV: &str = "ORCHARD_TEST_9P_IMAGE";

/// The guest's disk image: it boots in 128 MB, by UEFI in 256 MB, and serves SSH on port 22, user `admin`, password `admin`.
///
/// # Panics
/// When it cannot be built, with what to install.
pub fn guest_image() -> PathBuf {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| provide(IMAGE_ENV, "guest", "cloud")).clone()
}

/// The same guest with a kernel that has 9p, so that it sees host directories; it boots some seconds slower.
///
/// # Panics
/// As [`guest_image`].
pub fn guest_image_with_9p() -> PathBuf {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| provide(IMAGE_9P_ENV, "guest-9p", "full")).clone()
}

fn provide(env: &str, name: &str, kernel: &str) -> PathBuf {
    std::env::var_os(env).map_or_else(|| build(env, name, kernel), PathBuf::from)
}

fn build(env: &str, name: &str, kernel: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/guest/build.sh");
    let image = folder.join(format!("{name}.qcow2"));
    // Several test processes may come at once; the lock goes with the file's closing.
    let lock = File::create(folder.join(format!("{name}.lock"))).unwrap();
    lock.lock().unwrap();
    let newer = |a: &Path, b: &Path| {
        let time = |path: &Path| path.metadata().and_then(|file| file.modified()).ok();
        time(a).is_some() && time(a) > time(b)
    };
    if newer(&image, &script) {
        return image;
    }
    let part = folder.join(format!("{name}.part.qcow2"));
    let output = Command::new("bash").arg(&script).arg(&part).env("KERNEL", kernel).output().unwrap();
    assert!(
        output.status.success(),
        "the test guest cannot be built ({}): {}\nEither name an image with {env}=/path/to.qcow2, or install:\n  \
         apt-get install --no-install-recommends qemu-system-x86 qemu-utils busybox-static dropbear-bin \
         openssh-sftp-server kmod cpio zstd e2fsprogs dosfstools mtools syslinux syslinux-common systemd-boot-efi ovmf \
         fakeroot",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    std::fs::rename(part, &image).unwrap();
    image
}
