//! What real guests see of what was asked for: their disk, their seed, the directories of their host, their firmware.

use orchard::worker::runtime::Runtime;

use crate::guest::{guest_image, guest_image_with_9p};
use crate::harness::Cluster;
use crate::real::QemuCluster;

/// A key that opens nothing.
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0v5yT3bYt0Y7vT0oW8QqQmFnOeFqzT3m2kq1lZ9xYz ops@example";

/// Runs a shell script in a guest; what it wrote to both streams.
async fn in_guest(cluster: &Cluster, vm: &str, script: &str) -> String {
    cluster.run(&["ssh", "vm", vm, &format!("exec 2>&1\n{script}\ntrue")]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_sees_its_disk_its_seed_and_the_directories_of_its_host() {
    let real = QemuCluster::start().await;
    let cluster = &real.cluster;
    let dir = tempfile::tempdir().unwrap();
    let shared = dir.path().canonicalize().unwrap();
    let (src, out) = (shared.join("src"), shared.join("out"));
    std::fs::create_dir(&src).unwrap();
    std::fs::create_dir(&out).unwrap();
    std::fs::write(src.join("told"), "told by the host\n").unwrap();
    cluster.run(&["set", "cluster-settings", "--host-dir-policies", shared.to_str().unwrap()]).await;
    let dirs = format!("src:{}:ro,out:{}", src.display(), out.display());
    let image = guest_image_with_9p();
    let create = ["create", "vm", "web.1", "--image", image.to_str().unwrap(), "--cpu", "1", "--memory", "128"];
    let more = ["--disk-size", "2", "--host-dirs", &dirs, "--ssh-key", KEY, "--wait"];
    cluster.run(&[&create[..], &more].concat()).await;

    let seen = in_guest(cluster, "web.1", "cat /sys/class/block/vda/size; df -k / | awk 'END { print $2 }'").await;
    let [disk, root] = seen.lines().map(|n| n.parse::<u64>().unwrap()).collect::<Vec<_>>()[..] else {
        panic!("{seen}")
    };
    assert_eq!(disk * 512, 2_000_000_000, "the disk is as large as was asked for");
    assert!(root * 1024 > 1_800_000_000, "and the guest can use all of it: {root} KiB");

    // Not with cat: BusyBox's has the kernel move the bytes from 9p into the pipe, which Linux 6.1 ends by waking the reader
    // for nothing, and dropbear takes that for the end of all output.
    let seen = in_guest(cluster, "web.1", "read -r told </mnt/src/told; echo $told; grep /mnt/ /proc/mounts").await;
    assert!(
        seen.starts_with("told by the host\n") && seen.contains("/mnt/src 9p") && seen.contains("/mnt/out 9p"),
        "{seen}"
    );
    let spoil = "sudo touch /mnt/src/mine; sudo rm /mnt/src/told; sudo sh -c 'echo spoilt >/mnt/src/told'";
    let seen = in_guest(cluster, "web.1", spoil).await;
    assert_eq!(seen.matches("Read-only file system").count(), 3, "{seen}");
    let names: Vec<_> = std::fs::read_dir(&src).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["told"]);
    assert_eq!(std::fs::read_to_string(src.join("told")).unwrap(), "told by the host\n");
    let seen =
        in_guest(cluster, "web.1", "echo told by the guest | sudo tee /mnt/out/back >/dev/null; ls /mnt/out").await;
    assert_eq!(seen, "back\n");
    assert_eq!(std::fs::read_to_string(out.join("back")).unwrap(), "told by the guest\n");

    let id = real.runtime.list().await.unwrap()[0].id;
    let look = "mkdir /tmp/seed; sudo mount -o ro -t vfat /dev/vdb /tmp/seed; cd /tmp/seed; ls; cat meta-data user-data; hostname";
    let seen = in_guest(cluster, "web.1", look).await;
    let expected = format!(
        "meta-data\nuser-data\ninstance-id: {id}\nlocal-hostname: web-1\n#cloud-config\nusers:\n- name: \"admin\"\n  \
         sudo: \"ALL=(ALL) NOPASSWD:ALL\"\n  lock_passwd: false\n  plain_text_passwd: \"admin\"\n  \
         ssh_authorized_keys:\n  - \"{KEY}\"\nssh_pwauth: true\nmanage_etc_hosts: localhost\nchpasswd:\n  expire: false\n  users:\n  \
         - name: \"admin\"\n    password: \"admin\"\n    type: text\nweb-1\n"
    );
    assert_eq!(seen, expected);
    assert!(in_guest(cluster, "web.1", "ls /sys/firmware/efi").await.contains("No such file"), "nobody asked for UEFI");
    cluster.run(&["delete", "vm", "web.1"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_boots_by_uefi_when_that_is_asked_for() {
    let real = QemuCluster::start().await;
    let cluster = &real.cluster;
    let image = guest_image();
    let create = ["create", "vm", "efi", "--image", image.to_str().unwrap(), "--cpu", "1", "--memory", "256"];
    cluster.run(&[&create[..], &["--firmware", "uefi", "--wait"]].concat()).await;
    let seen = in_guest(cluster, "efi", "cat /sys/firmware/efi/fw_platform_size; hostname").await;
    assert_eq!(seen, "64\nefi\n");
    cluster.run(&["delete", "vm", "efi"]).await;
}
