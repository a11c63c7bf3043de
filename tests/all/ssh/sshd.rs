//! OpenSSH's server for tests, started anew for each connection, as inetd does; with users and passwords of its own and nothing of
//! the host changed, in a mount namespace. That needs root or sudo.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use orchard::task::{self, Task};
use tokio::net::TcpListener;

/// A server on a free port of the loopback interface, until it is dropped.
pub struct Sshd {
    pub port: u16,
    pub home: tempfile::TempDir,
    _accepting: Task,
}

/// Its user, who is root under another name.
pub const TESTER: &str = "tester";
pub const PASSWORD: &str = "let me in";
/// SHA-512 crypt of [`PASSWORD`].
const SHADOW: &str =
    "$6$4i3wr2Q4gYjVKjhY$8xRUvITNjCWtv2KET78vBhpmqYdxNAJNtchRYk3iax04RXeiolDTzkWvvQEXT2MG0g4UNQg3xpJfWb4q2U23z.";

/// A mount namespace in which [`TESTER`] is a user and nothing of the host is changed.
#[derive(Clone, Copy)]
pub struct Namespace {
    root: bool,
}

impl Namespace {
    /// None, loudly, where it cannot be had or one of `files` is missing; CI does not put up with that.
    pub fn available(what: &str, files: &[&str]) -> Option<Self> {
        let missing = files.iter().chain(&["/usr/bin/unshare"]).find(|file| !Path::new(file).exists());
        let root = Command::new("unshare").args(["--mount", "true"]).output().is_ok_and(|out| out.status.success());
        let sudo = ["-n", "unshare", "--mount", "true"];
        let able = root || Command::new("sudo").args(sudo).output().is_ok_and(|out| out.status.success());
        let why = match missing {
            Some(file) => format!("{file} is not there; install openssh-server, dropbear-bin and util-linux"),
            None if !able => "it needs root, or sudo without a password, for a mount namespace".to_owned(),
            None => return Some(Self { root }),
        };
        assert!(std::env::var_os("CI").is_none(), "CI must run the tests against {what}: {why}");
        eprintln!("SKIPPED: the test against {what} did not run: {why}");
        None
    }

    /// A shell line that runs there; its files of users lie in `home` from now on, which it sees as `$HOME_DIR`.
    pub fn shell(self, home: &Path, line: &str) -> Command {
        let dir = home.to_str().unwrap();
        let other = "root:x:0:0:root:/root:/bin/sh\nsshd:x:105:65534::/run/sshd:/usr/sbin/nologin\n";
        std::fs::write(home.join("passwd"), format!("{TESTER}:x:0:0::{dir}:/bin/sh\n{other}")).unwrap();
        let shadow = format!("{TESTER}:{SHADOW}:19000:0:99999:7:::\nroot:*:19000:0:99999:7:::\n");
        std::fs::write(home.join("shadow"), shadow).unwrap();
        let prepare = "mount --bind $HOME_DIR/passwd /etc/passwd && mount --bind $HOME_DIR/shadow /etc/shadow && \
            mount -t tmpfs -o mode=755 tmpfs /run && mkdir /run/sshd";
        let mut launch = Command::new(if self.root { "unshare" } else { "sudo" });
        if !self.root {
            launch.args(["-n", "unshare"]);
        }
        launch.args(["--mount", "sh", "-c", &format!("HOME_DIR={dir}; {prepare} && {line}")]);
        launch
    }
}

impl Sshd {
    /// Starts it; none, loudly, where it cannot run. `keys` may log in, as lines of `authorized_keys`; passwords if `passwords`.
    pub async fn start(keys: &str, passwords: bool) -> Option<Sshd> {
        Self::start_trusting("", keys, passwords).await
    }

    /// The same for one that lets in whom the `authority`, a public key, has certified.
    pub async fn start_trusting(authority: &str, keys: &str, passwords: bool) -> Option<Sshd> {
        let namespace = Namespace::available("OpenSSH", &["/usr/sbin/sshd", "/usr/bin/ssh-keygen"])?;
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().to_str().unwrap();
        let write = |name: &str, text: String| std::fs::write(home.path().join(name), text).unwrap();
        write("authorized_keys", keys.to_owned());
        write("authority", authority.to_owned());
        let passwords = if passwords { "yes" } else { "no" };
        let allow = format!(
            "UsePAM no\nPermitRootLogin yes\nPasswordAuthentication {passwords}\nKbdInteractiveAuthentication no\n"
        );
        let keys = format!("HostKey {dir}/host_key\nAuthorizedKeysFile {dir}/authorized_keys\n");
        let keys = format!("{keys}TrustedUserCAKeys {dir}/authority\n");
        write("sshd_config", format!("{keys}{allow}PidFile none\nStrictModes no\n"));
        make_key(&home.path().join("host_key"), "ed25519", "");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let folder = home.path().to_owned();
        let log = home.path().join("log");
        let accepting = task::spawn(async move {
            let mut running = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                let stream = stream.into_std().unwrap();
                stream.set_nonblocking(false).unwrap();
                let (input, output): (OwnedFd, OwnedFd) = (stream.try_clone().unwrap().into(), stream.into());
                let line = "exec /usr/sbin/sshd -i -e -f $HOME_DIR/sshd_config";
                let mut launch = tokio::process::Command::from(namespace.shell(&folder, line));
                let log = std::fs::File::options().create(true).append(true).open(&log).unwrap();
                launch.stdin(input).stdout(output).stderr(log);
                running.push(launch.kill_on_drop(true).spawn().unwrap());
            }
        });
        Some(Sshd { port, home, _accepting: accepting })
    }

    /// What it said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.home.path().join("log")).unwrap_or_default()
    }

    /// Gives it another host key.
    pub fn change_host_key(&self) {
        let path = self.home.path().join("host_key");
        std::fs::remove_file(&path).unwrap();
        make_key(&path, "ed25519", "");
    }
}

/// Makes a key pair at `path`, locked with `passphrase` unless that is empty, and yields its public half.
pub fn make_key(path: &Path, kind: &str, passphrase: &str) -> String {
    let mut make = Command::new("ssh-keygen");
    make.args(["-q", "-t", kind, "-N", passphrase, "-C", "made for a test", "-f"]).arg(path);
    let made = make.stdin(Stdio::null()).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    std::fs::read_to_string(path.with_extension("pub")).unwrap()
}

/// Has the `authority` certify the key at `path` for [`TESTER`], for `validity` as `ssh-keygen -V` takes it; the certificate
/// lies beside the key then.
pub fn certify(authority: &Path, path: &Path, validity: &str) {
    let mut sign = Command::new("ssh-keygen");
    sign.args(["-q", "-I", "a test", "-n", TESTER, "-V", validity, "-s"])
        .arg(authority)
        .arg(path.with_extension("pub"));
    let signed = sign.stdin(Stdio::null()).output().unwrap();
    assert!(signed.status.success(), "{signed:?}");
}

/// A real `ssh-agent`, ended when it is dropped.
pub struct Agent {
    pub socket: PathBuf,
    _dir: tempfile::TempDir,
    child: std::process::Child,
}

impl Agent {
    /// Starts it with these keys, none of which may be locked.
    pub async fn start(keys: &[&Path]) -> Agent {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent");
        let mut start = Command::new("ssh-agent");
        let child = start.arg("-D").arg("-a").arg(&socket).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let agent = Agent { socket, _dir: dir, child };
        crate::wait::until("the agent", crate::harness::LIMIT, || async {
            std::os::unix::net::UnixStream::connect(&agent.socket).map(drop)
        })
        .await;
        for key in keys {
            let mut add = Command::new("ssh-add");
            let added = add.arg(key).env("SSH_AUTH_SOCK", &agent.socket).stdin(Stdio::null()).output().unwrap();
            assert!(added.status.success(), "{added:?}");
        }
        agent
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
