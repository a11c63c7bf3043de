//! Stock OpenSSH and rsync against a real guest, by way of `orchard proxy` and the configuration that `orchard ssh-config`
//! prints; and the host keys that they and `orchard ssh` remember.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use sha2::{Digest, Sha256};
use tokio::process::Command;

use crate::guest::guest_image;
use crate::harness::{Cluster, LIMIT, finish, succeed};
use crate::real::QemuCluster;
use crate::wait;

/// Size of the files that are copied.
const FILE_SIZE: usize = 3_000_000;

/// One VM, and what stock programs are called with.
struct Ground<'a> {
    cluster: &'a Cluster,
    config: PathBuf,
}

impl<'a> Ground<'a> {
    async fn new(cluster: &'a Cluster) -> Self {
        let ground = Self { cluster, config: cluster.dir.path().join("ssh config") };
        ground.configure().await;
        ground
    }

    /// Prints the configuration anew.
    async fn configure(&self) {
        std::fs::write(&self.config, self.cluster.run(&["ssh-config", "box"]).await).unwrap();
    }

    /// A stock program, logging in with a password, in the environment of `orchard`.
    fn stock(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("sshpass");
        command.args(["-p", "admin", program]);
        if program != "rsync" {
            command.arg("-F").arg(&self.config);
        }
        self.dress(command, arguments)
    }

    fn dress(&self, mut command: Command, arguments: &[&str]) -> Command {
        for (name, value) in self.cluster.cli(&[]).as_std().get_envs() {
            command.env(name, value.unwrap());
        }
        command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    fn file(&self, name: &str) -> PathBuf {
        self.cluster.dir.path().join(name)
    }
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn hash(path: &Path) -> Vec<u8> {
    Sha256::digest(std::fs::read(path).unwrap()).to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_tools_reach_a_vm_and_its_host_key_is_remembered() {
    let real = QemuCluster::start().await;
    let cluster = &real.cluster;
    create(cluster).await;
    a_proxy_connects_and_says_why_it_cannot(cluster).await;
    the_address_accepts_ssh(cluster).await;
    let ground = Ground::new(cluster).await;
    ssh_scp_and_sftp_work(&ground).await;
    one_connection_serves_many_commands(&ground).await;
    rsync_works(&ground).await;
    a_changed_host_key_is_refused_until_it_is_forgotten(&ground).await;
    a_new_vm_of_the_name_is_no_change(&ground).await;
}

async fn create(cluster: &Cluster) {
    let image = guest_image();
    let create = ["create", "vm", "box", "--image", image.to_str().unwrap(), "--cpu", "1", "--memory", "128", "--wait"];
    cluster.run(&create).await;
}

async fn a_proxy_connects_and_says_why_it_cannot(cluster: &Cluster) {
    let greeting = cluster.run(&["proxy", "vm", "--wait", "box", "22"]).await;
    assert!(greeting.starts_with("SSH-2.0-"), "{greeting:?}");
    for (arguments, why) in [
        (&["proxy", "vm", "box", "9"][..], "box:9"),
        (&["proxy", "vm", "never-was", "22"], "never-was"),
        (&["proxy", "vm", "--copy=00000000-0000-0000-0000-000000000001/0", "box", "22"], "ssh-config"),
    ] {
        let output = finish(cluster.cli(arguments)).await;
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{arguments:?}");
        assert!(told(&output).starts_with("error: ") && told(&output).contains(why), "{}", told(&output));
    }
}

/// Case 41: for QEMU, to what runs in the guest.
async fn the_address_accepts_ssh(cluster: &Cluster) {
    let told = cluster.json(&["ip", "vm", "box", "--wait=30s"]).await;
    let ip = told["ip"].as_str().unwrap();
    assert_eq!(cluster.run(&["ip", "vm", "box"]).await.trim(), ip);
    let answer = cluster.run(&["exec", "vm", "box", "--", "nc", ip, "22"]).await;
    assert!(answer.starts_with("SSH-2.0-"), "{answer:?}");
    let absent = finish(cluster.cli(&["ip", "vm", "never-was", "--wait"])).await;
    assert_eq!(absent.status.code(), Some(1));
}

async fn ssh_scp_and_sftp_work(ground: &Ground<'_>) {
    assert!(succeed(ground.stock("ssh", &["box.orchard", "uname", "-a"])).await.contains("Linux box"));
    let failing = finish(ground.stock("ssh", &["box.orchard", "exit 7"])).await;
    assert_eq!(failing.status.code(), Some(7), "{}", told(&failing));

    let data: Vec<u8> = (0..FILE_SIZE).map(|n| (n.wrapping_mul(2_654_435_761) >> 16) as u8).collect();
    let there = ground.file("there and back");
    std::fs::write(&there, &data).unwrap();
    let (path, back) = (there.to_str().unwrap(), ground.file("came"));
    succeed(ground.stock("scp", &[path, "box.orchard:copied"])).await;
    succeed(ground.stock("scp", &["box.orchard:copied", back.to_str().unwrap()])).await;
    assert_eq!(hash(&back), hash(&there), "scp");
    std::fs::remove_file(&back).unwrap();
    the_old_protocol_of_scp_works(ground, &there, &back).await;
    let batch = ground.file("batch");
    std::fs::write(&batch, format!("get copied \"{}\"\nrename copied moved\nls\n", back.display())).unwrap();
    // A batch asks for no password unless told to.
    let arguments = ["-o", "BatchMode=no", "-b", batch.to_str().unwrap(), "box.orchard"];
    let listed = succeed(ground.stock("sftp", &arguments)).await;
    assert!(listed.contains("moved"), "{listed}");
    assert_eq!(hash(&back), hash(&there), "sftp");
}

/// With `-O`, and by way of `scp` in the guest.
async fn the_old_protocol_of_scp_works(ground: &Ground<'_>, there: &Path, back: &Path) {
    bring_scp(ground.cluster).await;
    let path = there.to_str().unwrap();
    succeed(ground.stock("scp", &["-O", path, "box.orchard:old"])).await;
    succeed(ground.stock("scp", &["-O", "box.orchard:old", back.to_str().unwrap()])).await;
    assert_eq!(hash(back), hash(there), "scp -O");
    std::fs::remove_file(back).unwrap();
}

/// Gives the guest of the VM `box`, which has none, an `scp`: this machine's.
pub async fn bring_scp(cluster: &Cluster) {
    let line = format!("#!/bin/sh\ncd\nexec {} \"$@\"\n", carry_there(cluster, "scp").await);
    let wrapper = cluster.dir.path().join("scp wrapper");
    std::fs::write(&wrapper, line).unwrap();
    cluster.run(&["cp", wrapper.to_str().unwrap(), "box:wrapper"]).await;
    let install = "chmod 755 wrapper && sudo cp wrapper /usr/bin/scp";
    cluster.run(&["exec", "vm", "box", "--", "sh", "-c", install]).await;
}

/// Copies a program of this machine, with the libraries that it needs, to a folder in the guest by `orchard cp`. Yields the
/// words that run it there.
async fn carry_there(cluster: &Cluster, program: &str) -> String {
    let tools = cluster.dir.path().join(format!("tools of {program}"));
    std::fs::create_dir(&tools).unwrap();
    let mut gather = Command::new("sh");
    let line = "cp -L \"$(command -v \"$2\")\" $(ldd \"$(command -v \"$2\")\" | grep -oE '/[^ ]+') \"$1\" && cd \"$1\" && \
                ls ld-linux*";
    gather.args(["-ec", line, "sh"]).arg(&tools).arg(program).stdin(Stdio::null());
    let loader = succeed(gather).await.trim().to_owned();
    let there = format!("tools-{program}");
    cluster.run(&["cp", "-r", tools.to_str().unwrap(), &format!("box:{there}")]).await;
    format!("{there}/{loader} --library-path {there} {there}/{program}")
}

async fn one_connection_serves_many_commands(ground: &Ground<'_>) {
    let socket = ground.file("master");
    let socket = socket.to_str().unwrap();
    // Not with -f: sshpass takes the terminal away from what goes on in the background.
    let _master = ground.stock("ssh", &["-M", "-S", socket, "-N", "box.orchard"]).spawn().unwrap();
    let control = |what: &str| {
        let mut ssh = Command::new("ssh"); // no password: there is a connection
        ssh.arg("-F").arg(&ground.config);
        ground.dress(ssh, &["-S", socket, "-O", what, "box.orchard"])
    };
    wait::until("the master to be connected", LIMIT, || async {
        let checked = finish(control("check")).await;
        if checked.status.success() { Ok(()) } else { Err(told(&checked)) }
    })
    .await;
    let through = |command: &str| {
        let mut ssh = Command::new("ssh");
        ssh.arg("-F").arg(&ground.config);
        ground.dress(ssh, &["-S", socket, "-o", "ProxyCommand=false", "box.orchard", command])
    };
    for n in 0..5 {
        assert_eq!(succeed(through(&format!("echo {n}"))).await, format!("{n}\n"));
    }
    succeed(control("exit")).await;
}

/// The guest has no rsync: this machine's is copied there first.
async fn rsync_works(ground: &Ground<'_>) {
    let remote = format!("--rsync-path={}", carry_there(ground.cluster, "rsync").await);

    let (from, back) = (ground.file("tree"), ground.file("tree back"));
    std::fs::create_dir_all(from.join("sub dir")).unwrap();
    std::fs::write(from.join("sub dir/a"), vec![7; 100_000]).unwrap();
    std::fs::write(from.join("b"), "b").unwrap();
    let shell = format!("ssh -F '{}'", ground.config.display());
    let there = format!("{}/", from.display());
    let options = ["-rl", "--checksum", "-e", &shell, &remote];
    succeed(ground.stock("rsync", &[&options[..], &[&there, "box.orchard:tree/"]].concat())).await;
    std::fs::write(from.join("b"), "another").unwrap();
    let stats =
        succeed(ground.stock("rsync", &[&options[..], &["--stats", &there, "box.orchard:tree/"]].concat())).await;
    assert!(stats.contains("files transferred: 1\n"), "{stats}");
    succeed(ground.stock("rsync", &[&options[..], &["box.orchard:tree/", back.to_str().unwrap()]].concat())).await;
    for file in ["sub dir/a", "b"] {
        assert_eq!(hash(&back.join(file)), hash(&from.join(file)), "{file}");
    }
}

async fn a_changed_host_key_is_refused_until_it_is_forgotten(ground: &Ground<'_>) {
    let cluster = ground.cluster;
    let known = cluster.dir.path().join("home/known_hosts");
    let before = std::fs::read_to_string(&known).unwrap();
    assert_eq!(before.lines().count(), 1, "orchard and ssh share what they know: {before}");
    // The server alone, whose parent is init: not this very session, which is one of its children.
    let make = "rm /etc/dropbear/dropbear_ed25519_host_key; dropbearkey -t ed25519 -f /etc/dropbear/dropbear_ed25519_host_key; \
                for pid in $(pidof dropbear); do grep -q '^PPid:.1$' /proc/$pid/status && kill $pid && break; done";
    cluster.run(&["exec", "vm", "box", "--", "sudo", "sh", "-c", make]).await;
    // Between the two servers a login fails as well, with another text.
    let refused = wait::until("the guest to show its new key", LIMIT, || async {
        let output = finish(cluster.cli(&["ssh", "vm", "box", "true"])).await;
        if told(&output).contains("host key") { Ok(output) } else { Err(told(&output)) }
    })
    .await;
    let said = told(&refused);
    assert!(said.contains("host key") && said.contains("SHA256:") && said.contains("ssh-keygen -R"), "{said}");
    let stock = finish(ground.stock("ssh", &["box.orchard", "true"])).await;
    assert!(!stock.status.success() && told(&stock).contains("IDENTIFICATION HAS CHANGED"), "{}", told(&stock));
    let exec = finish(cluster.cli(&["exec", "vm", "box", "--", "true"])).await;
    assert!(told(&exec).contains("ssh-keygen -R"), "{}", told(&exec));

    // What it says to do helps.
    let advice = said.split("ssh-keygen").nth(1).unwrap().lines().next().unwrap();
    let mut forget = Command::new("sh");
    forget.args(["-c", &format!("ssh-keygen{advice}")]).stdin(Stdio::null());
    succeed(forget).await;
    cluster.run(&["ssh", "vm", "box", "true"]).await;
    succeed(ground.stock("ssh", &["box.orchard", "true"])).await;
}

async fn a_new_vm_of_the_name_is_no_change(ground: &Ground<'_>) {
    let cluster = ground.cluster;
    cluster.run(&["delete", "vm", "box"]).await;
    create(cluster).await;
    cluster.run(&["ssh", "vm", "box", "true"]).await;
    let stale = finish(ground.stock("ssh", &["box.orchard", "true"])).await;
    assert!(!stale.status.success() && told(&stale).contains("run `orchard ssh-config` again"), "{}", told(&stale));
    ground.configure().await;
    succeed(ground.stock("ssh", &["box.orchard", "true"])).await;
}
