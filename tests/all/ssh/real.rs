//! The SSH client against OpenSSH and dropbear.

use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::Child;

use orchard::ssh::client::Session;
use orchard::ssh::{AcceptAny, ExitStatus, SshError, banner};

use super::sshd::{Namespace, PASSWORD, TESTER};
use super::*;

/// A real server in inetd mode: it talks over its standard input and output. It runs in a mount namespace of its own
/// with a user file of ours, so that a password is known and nothing of the host is changed. That needs root or sudo.
struct RealServer {
    child: Child,
    stream: Option<tokio::net::UnixStream>,
    home: tempfile::TempDir,
}

impl RealServer {
    /// Starts `command` (a shell line that sees `$HOME_DIR`); none, loudly, where it cannot run.
    fn start(what: &str, files: &[&str], command: &str) -> Option<RealServer> {
        let namespace = Namespace::available(what, files)?;
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().to_str().unwrap();
        let keys = format!("HostKey {dir}/host_key\nUsePAM no\nPermitRootLogin yes\nPasswordAuthentication yes\n");
        std::fs::write(home.path().join("sshd_config"), format!("{keys}PidFile none\nStrictModes no\n")).unwrap();
        let mut launch = namespace.shell(home.path(), command);
        let (near, far) = StdUnixStream::pair().unwrap();
        let far: std::os::fd::OwnedFd = far.into();
        launch.stdin(far.try_clone().unwrap()).stdout(far);
        let child = launch.stderr(std::fs::File::create(home.path().join("log")).unwrap()).spawn().unwrap();
        near.set_nonblocking(true).unwrap();
        Some(RealServer { child, stream: Some(tokio::net::UnixStream::from_std(near).unwrap()), home })
    }

    fn openssh() -> Option<RealServer> {
        let line = "ssh-keygen -q -t ed25519 -N '' -f $HOME_DIR/host_key >&2 </dev/null && \
            exec /usr/sbin/sshd -i -e -f $HOME_DIR/sshd_config";
        RealServer::start("OpenSSH", &["/usr/sbin/sshd", "/usr/bin/ssh-keygen"], line)
    }

    fn dropbear() -> Option<RealServer> {
        let line = "dropbearkey -t ed25519 -f $HOME_DIR/key >&2 </dev/null && \
            exec /usr/sbin/dropbear -i -r $HOME_DIR/key";
        RealServer::start("dropbear", &["/usr/sbin/dropbear", "/usr/bin/dropbearkey"], line)
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
    what_was_ended_before_it_began_does_not_begin(&session).await;
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
