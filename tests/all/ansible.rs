//! Ansible as it comes from PyPI, by way of `orchard ssh-config`.
//!
//! Its `ping` is a Python program that runs in the guest, and the tests' guest has no Python: this machine's is packed and copied
//! there. In the image it would cost every test's VM some 20 MB and each build of it a minute.

use std::process::Stdio;

use serde_json::Value;
use tokio::process::Command;

use crate::guest::guest_image;
use crate::harness::{Cluster, finish, succeed};
use crate::real::QemuCluster;
use crate::terminal::client;

#[tokio::test(flavor = "multi_thread")]
async fn ansible_pings_a_vm() {
    let Some(ansible) = client("ansible") else { return };
    let real = QemuCluster::start().await;
    let cluster = &real.cluster;
    let image = guest_image();
    let create = ["create", "vm", "box", "--image", image.to_str().unwrap(), "--cpu", "1", "--memory", "256"];
    cluster.run(&[&create[..], &["--disk-size", "1", "--wait"]].concat()).await;
    give_it_python(cluster).await;

    let dir = cluster.dir.path();
    let config = dir.join("ssh.config");
    std::fs::write(&config, cluster.run(&["ssh-config"]).await).unwrap();
    let inventory = dir.join("inventory.ini");
    let hosts = format!(
        "box.orchard ansible_password=admin ansible_python_interpreter=/home/admin/python/python\n\
         absent.orchard ansible_password=admin\n[all:vars]\nansible_ssh_common_args=-F {}\n",
        config.display()
    );
    std::fs::write(&inventory, hosts).unwrap();
    let settings = dir.join("ansible.cfg");
    std::fs::write(&settings, "[defaults]\n").unwrap();
    let run = |host: &str, arguments: &[&str]| {
        let mut command = Command::new(&ansible);
        for (name, value) in cluster.cli(&[]).as_std().get_envs() {
            command.env(name, value.unwrap());
        }
        // Results as JSON, and nothing of this machine's own settings.
        command.env("HOME", dir).env("ANSIBLE_CONFIG", &settings).env("ANSIBLE_CALLBACK_RESULT_FORMAT", "json");
        command.env("ANSIBLE_NOCOLOR", "1").env("ANSIBLE_LOCAL_TEMP", dir.join("ansible")).env("LC_ALL", "C.UTF-8");
        // A master that is left behind would outlive the test.
        command.env("ANSIBLE_SSH_ARGS", "-o ControlMaster=no");
        command.args([host, "-i"]).arg(&inventory).args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        command
    };
    let said = succeed(run("box.orchard", &["-m", "ping"])).await;
    let (head, result) = said.split_once("=>").unwrap_or_else(|| panic!("{said}"));
    assert_eq!(head.trim(), "box.orchard | SUCCESS");
    assert_eq!(serde_json::from_str::<Value>(result).unwrap()["ping"], "pong");
    let facts = succeed(run("box.orchard", &["-m", "setup", "-a", "gather_subset=!all,!min,platform"])).await;
    assert!(facts.contains("\"ansible_nodename\": \"box\""), "{facts}");
    let absent = finish(run("absent.orchard", &["-m", "ping"])).await;
    assert!(!absent.status.success(), "{absent:?}");
}

async fn give_it_python(cluster: &Cluster) {
    let folder = cluster.dir.path().join("python");
    let mut pack = Command::new("python3");
    pack.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/portable_python.py")).arg(&folder);
    succeed(pack).await;
    cluster.run(&["cp", "-r", folder.to_str().unwrap(), "box:python"]).await;
    let version = cluster.run(&["exec", "vm", "box", "--", "/home/admin/python/python", "--version"]).await;
    assert!(version.starts_with("Python 3."), "{version}");
}
