//! The SSH client against OpenSSH and dropbear.

use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::process::{Child, Command};

use orchard::ssh::client::Session;
use orchard::ssh::{AcceptAny, ExitStatus, SshError, banner};

use super::*;

/// A real server in inetd mode: it talks over its standard input and output. It runs in a mount namespace of its own
/// with a user file of ours, so that a password is known and nothing of the host is changed. That needs root or sudo.
struct RealServer {
    child: Child,
    stream: Option<tokio::net::UnixStream>,
    home: tempfile::TempDir,
}

const TESTER: &str = "tester";
const PASSWORD: &str = "let me in";
/// SHA-512 crypt of [`PASSWORD`].
const SHADOW: &str =
    "$6$4i3wr2Q4gYjVKjhY$8xRUvITNjCWtv2KET78vBhpmqYdxNAJNtchRYk3iax04RXeiolDTzkWvvQEXT2MG0g4UNQg3xpJfWb4q2U23z.";

impl RealServer {
    /// Starts `command` (a shell line that sees `$HOME_DIR`); none, loudly, where it cannot run.
    fn start(what: &str, files: &[&str], command: &str) -> Option<RealServer> {
        let skip = |why: String| eprintln!("SKIPPED: the test against {what} did not run: {why}");
        if let Some(missing) = files.iter().find(|file| !Path::new(file).exists()) {
            skip(format!("{missing} is not there; install openssh-server, dropbear-bin and util-linux"));
            return None;
        }
        let root = Command::new("unshare").args(["--mount", "true"]).output().is_ok_and(|out| out.status.success());
        let sudo = ["-n", "unshare", "--mount", "true"];
        if !root && !Command::new("sudo").args(sudo).output().is_ok_and(|out| out.status.success()) {
            skip("it needs root, or sudo without a password, for a mount namespace".to_owned());
            return None;
        }
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().to_str().unwrap();
        let write = |name: &str, text: String| std::fs::write(home.path().join(name), text).unwrap();
        let other = "root:x:0:0:root:/root:/bin/sh\nsshd:x:105:65534::/run/sshd:/usr/sbin/nologin\n";
        write("passwd", format!("{TESTER}:x:0:0::{dir}:/bin/sh\n{other}"));
        write("shadow", format!("{TESTER}:{SHADOW}:19000:0:99999:7:::\nroot:*:19000:0:99999:7:::\n"));
        let keys = format!("HostKey {dir}/host_key\nUsePAM no\nPermitRootLogin yes\nPasswordAuthentication yes\n");
        write("sshd_config", format!("{keys}PidFile none\nStrictModes no\n"));
        let prepare = "mount --bind $HOME_DIR/passwd /etc/passwd && mount --bind $HOME_DIR/shadow /etc/shadow && \
            mount -t tmpfs -o mode=755 tmpfs /run && mkdir /run/sshd";
        let line = format!("HOME_DIR={dir}; {prepare} && {command}");
        let mut launch = Command::new(if root { "unshare" } else { "sudo" });
        if !root {
            launch.args(["-n", "unshare"]);
        }
        let (near, far) = StdUnixStream::pair().unwrap();
        let far: std::os::fd::OwnedFd = far.into();
        launch.args(["--mount", "sh", "-c", &line]).stdin(far.try_clone().unwrap()).stdout(far);
        let child = launch.stderr(std::fs::File::create(home.path().join("log")).unwrap()).spawn().unwrap();
        near.set_nonblocking(true).unwrap();
        Some(RealServer { child, stream: Some(tokio::net::UnixStream::from_std(near).unwrap()), home })
    }

    fn openssh() -> Option<RealServer> {
        let line = "ssh-keygen -q -t ed25519 -N '' -f $HOME_DIR/host_key >&2 </dev/null && \
            exec /usr/sbin/sshd -i -e -f $HOME_DIR/sshd_config";
        RealServer::start("OpenSSH", &["/usr/sbin/sshd", "/usr/bin/unshare", "/usr/bin/ssh-keygen"], line)
    }

    fn dropbear() -> Option<RealServer> {
        let line = "dropbearkey -t ed25519 -f $HOME_DIR/key >&2 </dev/null && \
            exec /usr/sbin/dropbear -i -r $HOME_DIR/key";
        RealServer::start("dropbear", &["/usr/sbin/dropbear", "/usr/bin/unshare", "/usr/bin/dropbearkey"], line)
    }

    async fn connect(&mut self, password: &str) -> Result<Session, SshError> {
        let connected =
            Session::connect(self.stream.take().unwrap(), login(TESTER, password), AcceptAny, DEADLINE).await;
        if connected.is_err() {
            eprintln!("the server's log:\n{}", std::fs::read_to_string(self.home.path().join("log")).unwrap());
        }
        connected
    }
}

impl Drop for RealServer {
    fn drop(&mut self) {
        drop(self.stream.take()); // ends it where killing is not allowed, behind sudo
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn all_works_with(server: Option<RealServer>) {
    let Some(mut server) = server else { return };
    let session = server.connect(PASSWORD).await.unwrap();
    commands_work(&session).await;
    a_command_ends_though_its_input_is_open(&session).await;
    a_closed_output_ends_the_command(&session).await;
    assert_eq!(exec(&session, "kill -TERM $$", b"").await.0, ExitStatus::Signal("TERM".to_owned()));
    scripts_work(&session).await;
    let background = startup_script("sleep 600 &\necho left one behind", &[]);
    let (status, lines) = run_script(&session, &background).await;
    assert_eq!((status.unwrap(), lines.len()), (code(0), 1));
    terminals_work(&session).await;
    session.close().await;
}

#[tokio::test]
async fn openssh_is_understood() {
    all_works_with(RealServer::openssh()).await;
}

#[tokio::test]
async fn dropbear_is_understood() {
    all_works_with(RealServer::dropbear()).await;
}

#[tokio::test]
async fn real_servers_refuse_a_wrong_password_and_greet_a_probe() {
    for start in [RealServer::openssh, RealServer::dropbear] {
        let Some(mut server) = start() else { continue };
        let refused = server.connect("wrong").await.unwrap_err();
        assert!(matches!(refused, SshError::AuthRefused { .. }), "{refused:?}");
        let mut server = start().unwrap();
        banner::probe(server.stream.as_mut().unwrap(), DEADLINE).await.unwrap();
    }
}
