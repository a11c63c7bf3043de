//! `orchard worker run --user NAME`, started as root: stays as the helper that connects to guests, and runs the worker below
//! it as that user. See `worker::local_network`.

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::UnixListener;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{FAILED, UsageError};
use crate::identity;
use crate::task;
use crate::worker::local_network::account::Account;
use crate::worker::local_network::{helper, is_local};

/// The option that says which user, and the one that tells the worker of the helper.
const USER: &str = "--user";
const HELPER: &str = "--local-network-helper";
/// Where processes of the system keep such things.
const RUN: &str = if cfg!(target_os = "macos") { "/var/run" } else { "/run" };

/// Runs the worker as `user` until it ends; its exit code.
pub(super) async fn run(user: &str) -> anyhow::Result<u8> {
    if !rustix::process::geteuid().is_root() {
        let what =
            format!("{USER} {user} is for a worker that root starts; start it with sudo, or as {user} without {USER}");
        return Err(UsageError(what).into());
    }
    let account = Account::of(user).await.map_err(UsageError)?;
    let folder = Folder::make(&account)?;
    let socket = folder.0.join("guests");
    let listener = UnixListener::bind(&socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
    chown(&socket, Some(account.uid), Some(account.gid))
        .with_context(|| format!("cannot give {} to {user}", socket.display()))?;
    let _helper = task::spawn(helper::serve(listener, is_local));
    let program =
        std::env::current_exe().context("cannot find the program that runs here, to start the worker with")?;
    let mut command = Command::new(program);
    // With another user, the standard library also leaves all of root's groups.
    command.args(arguments(std::env::args_os().skip(1), &socket)).uid(account.uid).gid(account.gid);
    command.env("HOME", &account.home).env("USER", &account.name).env("LOGNAME", &account.name);
    let child = command.kill_on_drop(true).spawn();
    let ended = wait(child.with_context(|| format!("cannot start the worker as {user}"))?).await?;
    Ok(ended.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(FAILED))
}

/// The folder of the socket, which goes with this process.
struct Folder(PathBuf);

impl Folder {
    fn make(account: &Account) -> anyhow::Result<Self> {
        let path = Path::new(RUN).join(format!("orchard-worker-{}", std::process::id()));
        let cannot = || format!("cannot make {} for {}", path.display(), account.name);
        // A process of the same number may have left one, which nobody but root could have made.
        if let Err(error) = std::fs::remove_dir_all(&path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(error).with_context(cannot);
        }
        identity::make_private_dir(&path).with_context(cannot)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).with_context(cannot)?;
        chown(&path, Some(account.uid), Some(account.gid)).with_context(cannot)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The same without the user, and with the helper.
fn arguments(given: impl Iterator<Item = OsString>, socket: &Path) -> Vec<OsString> {
    let mut kept = Vec::new();
    let mut given = given.peekable();
    while let Some(argument) = given.next() {
        if argument == OsStr::new(USER) {
            given.next();
        } else if !argument.as_encoded_bytes().starts_with(b"--user=") {
            kept.push(argument);
        }
    }
    kept.extend([HELPER.into(), socket.into()]);
    kept
}

/// Waits for the worker, and passes on what ends it. Ctrl-C in a terminal reaches it without that.
async fn wait(mut child: Child) -> anyhow::Result<ExitStatus> {
    let listen = |kind| signal(kind).context("cannot listen for signals");
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    loop {
        // Cancel safe: all three are waited for again.
        tokio::select! {
            ended = child.wait() => return ended.context("cannot wait for the worker"),
            Some(()) = terminate.recv() => {
                if let Some(pid) = pid {
                    let _ = kill_process(pid, Signal::TERM);
                }
            }
            Some(()) = interrupt.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worker_gets_all_arguments_but_the_user() {
        let passed = |given: &[&str]| {
            let passed = arguments(given.iter().map(OsString::from), Path::new("/run/s"));
            passed.iter().map(|argument| argument.to_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
        };
        let expected = "worker run --name w --local-network-helper /run/s";
        assert_eq!(passed(&["worker", "run", "--user", "ann", "--name", "w"]), expected);
        assert_eq!(passed(&["worker", "run", "--name", "w", "--user=ann"]), expected);
    }
}
