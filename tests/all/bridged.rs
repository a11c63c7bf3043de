//! A real guest on a bridge of its host: it is there, it is heard from there, and Orchard reaches it beside. The host is a
//! network namespace with bridges of its own, and with its own rules on who may join them.

use std::process::Command;

use crate::guest::guest_image;
use crate::harness::{LIMIT, finish, succeed};
use crate::netns::{Namespace, cable, may_run, sh};
use crate::{processes, wait};

/// Has QEMU's helper find a rule that names one bridge, in a file that only the process started here and its children see.
const ALLOW: &str = "mkdir -p /etc/qemu && mount -t tmpfs none /etc/qemu && echo allow lan >/etc/qemu/bridge.conf \
    && exec \"$0\" \"$@\"";

/// Of the range that is set aside for tests of networks (RFC 2544); no other namespace sees it.
const HOST: &str = "198.19.0.1";
const GUEST: &str = "198.19.0.2";

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_joins_a_bridge_of_its_host_if_the_host_allows_it() {
    if !may_run("a_guest_joins_a_bridge_of_its_host_if_the_host_allows_it") {
        return;
    }
    let space = Namespace::new("b");
    let (here, _) = cable(None, &space, 4);
    for bridge in ["lan", "closed"] {
        sh(&format!("ip -n {} link add {bridge} type bridge", space.name));
        sh(&format!("ip -n {} link set {bridge} up", space.name));
    }
    sh(&format!("ip -n {} addr add {HOST}/24 dev lan", space.name));
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    let any = format!("{here}:0");
    let (_controller, access) = processes::controller(&home, &dir.path().join("c"), &any, &any).await;
    let inside = [&space.prefix()[..], &["unshare", "--mount", "sh", "-c", ALLOW]].concat();
    let _worker = processes::worker(&access, &access.url, &dir.path().join("w"), "qemu", &inside).await;

    let image = guest_image();
    let create = |name: &str, bridge: &str| {
        let words =
            ["create", "vm", name, "--image", image.to_str().unwrap(), "--net-bridged", bridge, "--suspendable"];
        access.cli(&home, &[&words[..], &["--wait"]].concat())
    };
    for (name, bridge, why) in [
        ("a", "nope", "no such interface. There are bridges: "),
        ("b", "lo", "is no bridge"),
        ("c", "closed", "`allow closed` in /etc/qemu/bridge.conf"),
    ] {
        let refused = finish(create(name, bridge)).await;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(1) && said.contains(why), "{said}");
    }

    succeed(create("member", "lan")).await;
    let ssh = |command: &'static str| succeed(access.cli(&home, &["ssh", "vm", "member", command]));
    let cards = ssh("cat /sys/class/net/eth0/address /sys/class/net/eth1/address; ip route; ip -6 route").await;
    let lines: Vec<&str> = cards.lines().collect();
    assert!(lines[0].starts_with("52:54:00:") && lines[1].starts_with("52:"), "{cards}");
    assert!(!cards.contains("default"), "the way out of the guest is the bridge's: {cards}");
    assert_eq!(on_bridge(&space).len(), 1);
    let set_up =
        "sudo ip link set eth1 up && sudo ip addr add 198.19.0.2/24 dev eth1 && cat /proc/sys/kernel/random/boot_id";
    let boot = ssh(set_up).await;
    heard(&space).await;

    // A card is made anew for a guest that goes on, and is gone with its QEMU.
    let run = |arguments: &[&str]| succeed(access.cli(&home, arguments));
    run(&["suspend", "vm", "member", "--wait"]).await;
    gone(&space).await;
    run(&["start", "vm", "member", "--wait"]).await;
    heard(&space).await;
    assert_eq!(ssh("cat /proc/sys/kernel/random/boot_id").await, boot);
    run(&["delete", "vm", "member"]).await;
    gone(&space).await;
}

/// Nothing is part of the bridge any more: a card goes when the kernel has closed what its QEMU had open.
async fn gone(space: &Namespace) {
    wait::until("the card to be gone", LIMIT, || async {
        let cards = on_bridge(space);
        if cards.is_empty() { Ok(()) } else { Err(cards) }
    })
    .await;
}

/// The guest's SSH server answers on the bridge.
async fn heard(space: &Namespace) {
    let dial = format!("exec 3<>/dev/tcp/{GUEST}/22 && head -c 4 <&3");
    wait::until("the guest to be heard on the bridge", LIMIT, || async {
        let mut command = tokio::process::Command::new("ip");
        command.args(&space.prefix()[1..]).args(["timeout", "5", "bash", "-c", &dial]).kill_on_drop(true);
        let output = finish(command).await;
        if output.stdout == b"SSH-" { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    })
    .await;
}

/// The interfaces that are part of the bridge.
fn on_bridge(space: &Namespace) -> Vec<String> {
    let output = Command::new("ip").args(["-n", &space.name, "-o", "link", "show", "master", "lan"]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}
