//! `orchard ssh`: a command or a shell in a VM, over the tunnel.
//!
//! The guest may still be booting, so connecting is tried until `--wait` has passed; what runs then does so once.

use std::io;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::Instant;

use super::Interrupted;
use super::client::Client;
use super::connect::{Dialer, Opened};
use super::host_keys::HostKeys;
use super::interrupt::Interrupt;
use super::output::{OutputError, Progress};
use crate::config::duration;
use crate::model::error::{ApiError, ErrorCode};
use crate::model::secret::Secret;
use crate::model::vm::{DEFAULT_GUEST_PASSWORD, DEFAULT_GUEST_USER, RestartPolicy, Vm, VmStatus};
use crate::model::{VmName, VmUid};
use crate::ssh::client::{Program, SILENCE, Session, Stdio};
use crate::ssh::{ExitStatus, HostKeyCheck, Login, SshError, stdin, terminal};
use crate::tunnel::resume::GIVE_UP_AFTER;
use crate::tunnel::resume::client::Silence;

/// The guest's SSH port.
pub(super) const SSH_PORT: u16 = 22;
/// Pause before the second try; doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause between tries: what a user hardly notices after a boot.
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// The least time for an attempt, even when `--wait` has nearly run out: what one takes over a slow line.
const MIN_ATTEMPT: Duration = Duration::from_secs(5);
/// The most time for a handshake: one that hangs because the guest rebooted is better tried anew.
const MAX_LOGIN: Duration = Duration::from_secs(20);
/// How long a guest may be silent where a lost connection comes back by itself: as long as that may take, and what is allowed
/// anyhow. One that hangs while the connection is there is noticed earlier, see [`hung`].
const BRIDGED: Duration = Duration::from_secs(GIVE_UP_AFTER.as_secs() + SILENCE.as_secs());
/// How often it is looked for that.
const LOOK: Duration = Duration::from_secs(5);
/// The exit code after SIGTERM, as shells have it.
const TERMINATED: u8 = 128 + 15;
/// What reads a script that is piped in without a command.
const SCRIPT_SHELL: &str = "sh -s";
/// How soon the waiting is told of: a guest that is up answers faster.
const QUIET: Duration = Duration::from_secs(2);

#[derive(Debug, Subcommand)]
pub(super) enum Ssh {
    /// Run a command or a shell in a VM; exits as the command did
    #[command(after_help = "\
Examples:
  orchard ssh vm build-1
  orchard ssh vm build-1 uname -a
  orchard ssh vm -u ci -p secret build-1 'cd src && make -j4'
  orchard ssh vm build-1 'sh -s' < script.sh

Options stand before NAME or directly after it; everything from COMMAND on is the command's own.

The guest's host key is remembered at the first login, in the file known_hosts of Orchard's home folder;
another one of the same VM is refused from then on. A VM that was made anew, or that started over from
its image, is a new one. For ssh, scp, rsync and sftp themselves see `orchard ssh-config --help`.")]
    Vm(SshArgs),
}

#[derive(Debug, Args)]
pub(super) struct SshArgs {
    /// Guest user [default: admin]
    #[arg(long, short, allow_hyphen_values = true)]
    username: Option<String>,
    /// That user's password [default: admin]
    #[arg(long, short, allow_hyphen_values = true)]
    password: Option<String>,
    /// How long to wait for the VM to answer
    #[arg(long, short = 't', default_value = "60s", value_parser = duration::parse)]
    wait: Duration,
    /// The VM's name
    name: VmName,
    /// What to run there [default: a shell]
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Yields the exit code.
pub(super) async fn run(command: Ssh, client: &Client, interrupt: &mut Interrupt) -> anyhow::Result<u8> {
    let Ssh::Vm(arguments) = command;
    let login = Login {
        user: arguments.username.unwrap_or_else(|| DEFAULT_GUEST_USER.to_owned()),
        password: Secret::new(arguments.password.unwrap_or_else(|| DEFAULT_GUEST_PASSWORD.to_owned())),
    };
    let target = Target::find(client, arguments.name).await?;
    // As `ssh` does: the words are joined, and the guest's shell takes them apart.
    let command = (!arguments.command.is_empty()).then(|| arguments.command.join(" "));
    let mut terminate = signal(SignalKind::terminate()).context("cannot take over SIGTERM")?;
    let work = async {
        let (session, silence) = target.connect(&login, arguments.wait).await?;
        target.unless_hung(silence, execute(session, command.as_deref(), target.dialer.lost())).await
    };
    let status = tokio::select! {
        status = work => status,
        () = interrupt.wait() => Err(Interrupted.into()),
        _ = terminate.recv() => Ok(TERMINATED),
    };
    // However it came: a session that is only left alone goes on in the guest until its client is given up.
    target.dialer.close().await;
    status
}

/// Why an attempt failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// It may succeed later.
    Passing(String),
    /// It will not.
    Final(anyhow::Error),
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        match error.code {
            // A VM that does not run yet is a conflict with its state.
            ErrorCode::Unavailable | ErrorCode::Timeout | ErrorCode::Conflict => Failure::Passing(error.message),
            _ => Failure::Final(error.into()),
        }
    }
}

/// A VM that is connected to.
pub(super) struct Target {
    pub(super) client: Client,
    pub(super) dialer: Dialer,
    pub(super) name: VmName,
    /// Which VM of that name it is; for an account that may not see VMs, only known once the first ticket says so.
    uid: OnceLock<VmUid>,
    host_keys: HostKeys,
}

impl Target {
    /// The VM `name`, as far as it can be seen.
    pub(super) async fn find(client: &Client, name: VmName) -> anyhow::Result<Self> {
        let uid = match client.vm_if_visible(&name).await? {
            Some(vm) => OnceLock::from(vm.uid),
            None => OnceLock::new(),
        };
        let host_keys = HostKeys::locate()?;
        Ok(Self { client: client.clone(), dialer: Dialer::new(client.clone()), name, uid, host_keys })
    }

    /// Logs in, however often that takes within `wait`. Beside the session stands for how long nothing has come of it, if it
    /// may stand still: see [`hung`].
    pub(super) async fn connect(&self, login: &Login, wait: Duration) -> anyhow::Result<(Session, Option<Silence>)> {
        self.until("answer SSH", wait, async |deadline| self.attempt(login, deadline).await).await
    }

    /// Does `work` on a session; ends it when the guest is hung, which a session that may stand still does not notice.
    pub(super) async fn unless_hung<T>(
        &self,
        silence: Option<Silence>,
        work: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        tokio::select! {
            done = work => done,
            () = hung(silence, self.dialer.lost()) => Err(anyhow::anyhow!(
                "the guest has not answered for {} s, while the connection to it is up", SILENCE.as_secs()
            )),
        }
    }

    /// Tries until it succeeds, it cannot any more, or `wait` has passed; `what` the VM was to do is for the error then. An
    /// attempt gets its deadline.
    pub(super) async fn until<T>(
        &self,
        what: &str,
        wait: Duration,
        attempt: impl AsyncFn(Instant) -> Result<T, Failure>,
    ) -> anyhow::Result<T> {
        let started = Instant::now();
        let deadline = started + wait;
        let mut pause = FIRST_PAUSE;
        let mut progress: Option<Progress> = None;
        loop {
            let reason = match attempt(deadline.max(Instant::now() + MIN_ATTEMPT)).await {
                Ok(done) => return Ok(done),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(reason)) => reason,
            };
            let why = match self.client.vm_if_visible(&self.name).await {
                Ok(Some(vm)) => {
                    let uid = *self.uid.get_or_init(|| vm.uid);
                    join(&reason, &standing(uid, &vm).map_err(|why| anyhow::anyhow!(why))?)
                }
                Ok(None) => reason,
                Err(error) if error.code == ErrorCode::NotFound => return Err(error.into()),
                Err(error) => join(&reason, &error.message),
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let name = &self.name;
                match wait.is_zero() {
                    true => anyhow::bail!("VM {name} did not {what}: {why}; --wait gives it time"),
                    false => anyhow::bail!(
                        "VM {name} did not {what} within {}: {why}; --wait gives it more time",
                        duration::show(wait)
                    ),
                }
            }
            if started.elapsed() > QUIET {
                progress.get_or_insert_with(Progress::start).say(&format!("waiting for VM {}: {why}", self.name));
            }
            tokio::time::sleep(pause.min(left)).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    /// Opens a stream to a port of the same VM as before.
    pub(super) async fn open(&self, port: u16, deadline: Instant) -> Result<Opened, Failure> {
        let opened = tokio::time::timeout_at(deadline, self.dialer.open(&self.name, port))
            .await
            .map_err(|_| Failure::Passing("no way into it was open in time".to_owned()))??;
        if opened.uid != *self.uid.get_or_init(|| opened.uid) {
            return Err(Failure::Final(anyhow::anyhow!(replaced(&self.name))));
        }
        Ok(opened)
    }

    async fn attempt(&self, login: &Login, deadline: Instant) -> Result<(Session, Option<Silence>), Failure> {
        let opened = self.open(SSH_PORT, deadline).await?;
        let left = deadline.saturating_duration_since(Instant::now()).min(MAX_LOGIN);
        let check = self.host_keys.check_of(&self.name, opened.uid, opened.attempt);
        let silence = opened.silence.clone();
        Ok((log_in(opened, login, check, left).await?, silence))
    }
}

fn replaced(name: &VmName) -> String {
    format!("VM {name} was deleted and made anew by somebody; run the command again for the new one")
}

/// How the VM stands, in words; an error when waiting for it is in vain.
pub(super) fn standing(waited_for: VmUid, vm: &Vm) -> Result<String, String> {
    if vm.uid != waited_for {
        return Err(replaced(&vm.name));
    }
    let why = if vm.status_message.is_empty() { String::new() } else { format!(": {}", vm.status_message) };
    match (vm.status, vm.spec.restart_policy) {
        (VmStatus::Failed, RestartPolicy::Never) => Err(format!("VM {} has failed{why}", vm.name)),
        _ => Ok(format!("the VM is {}{why}", vm.status)),
    }
}

/// The reason with the VM's state behind it, unless it tells as much itself.
fn join(reason: &str, state: &str) -> String {
    let told = state.split_once(": ").is_some_and(|(_, message)| reason.contains(message));
    if told { reason.to_owned() } else { format!("{reason} ({state})") }
}

/// Logs in over `opened`.
async fn log_in(
    opened: Opened,
    login: &Login,
    check: impl HostKeyCheck,
    deadline: Duration,
) -> Result<Session, Failure> {
    let silence = if opened.silence.is_some() { BRIDGED } else { SILENCE };
    let connected = Session::connect_bearing(silence, opened.stream, login.clone(), check, deadline).await;
    connected.map_err(|error| match error {
        SshError::AuthRefused { user, .. } => Failure::Final(anyhow::anyhow!(
            "the guest refused user {user:?} with the given password; give the ones that it knows with -u and -p"
        )),
        SshError::HostKeyRefused { .. } => Failure::Final(error.into()),
        // A guest that boots accepts connections and closes them.
        error => Failure::Passing(format!("{:#}", anyhow::Error::new(error))),
    })
}

/// Returns when the guest has said nothing for [`SILENCE`] although it was asked ([`Session`] does so all the time) and the
/// connection was there; never where the SSH connection notices that itself.
async fn hung(silence: Option<Silence>, lost: watch::Receiver<bool>) {
    let Some(silence) = silence else { return std::future::pending().await };
    let mut there = Instant::now();
    loop {
        tokio::time::sleep(LOOK).await;
        if *lost.borrow() {
            there = Instant::now();
        } else if silence.since().is_some_and(|since| since.max(there).elapsed() > SILENCE) {
            return;
        }
    }
}

/// Runs `command`, or a shell: on a terminal an interactive one, else one that reads its script from standard input.
/// Yields the exit code.
async fn execute(session: Session, command: Option<&str>, lost: watch::Receiver<bool>) -> anyhow::Result<u8> {
    let status = match command {
        None if terminal::is_interactive() => {
            terminal::interactive(&session, Program::LoginShell, lost).await.map_err(|error| match error {
                SshError::Local { source, .. } if source.kind() == io::ErrorKind::Interrupted => Interrupted.into(),
                error => anyhow::Error::new(error),
            })?
        }
        command => {
            let input = stdin::stdin().context("cannot read the standard input")?;
            let stdio = Stdio { stdin: input, stdout: tokio::io::stdout(), stderr: tokio::io::stderr() };
            session.exec(command.unwrap_or(SCRIPT_SHELL), stdio).await.map_err(|error| match error {
                SshError::Local { what: "standard output", source } => OutputError::from(source).into(),
                error => anyhow::Error::new(error),
            })?
        }
    };
    session.close().await;
    Ok(exit_code(&status))
}

/// The code to exit with as the remote command did; tells what it cannot say.
pub(super) fn exit_code(status: &ExitStatus) -> u8 {
    if let ExitStatus::Signal(_) | ExitStatus::Unknown = status {
        eprintln!("the remote command {}", describe(status));
    }
    u8::try_from(status.code()).unwrap_or(u8::MAX)
}

fn describe(status: &ExitStatus) -> String {
    match status {
        ExitStatus::Signal(_) => format!("was {status}"),
        _ => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::list::tests::vm;
    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        ssh: SshArgs,
    }

    fn parse(arguments: &[&str]) -> Result<SshArgs, clap::Error> {
        Only::try_parse_from(["ssh"].iter().chain(arguments)).map(|only| only.ssh)
    }

    #[test]
    fn options_after_the_command_are_its_own() {
        let ssh = parse(&["-u", "ci", "a", "ls", "-la", "--wait", "5s", "-u", "x"]).unwrap();
        assert_eq!((ssh.username.as_deref(), ssh.wait), (Some("ci"), Duration::from_secs(60)));
        assert_eq!(ssh.command, ["ls", "-la", "--wait", "5s", "-u", "x"]);
        let ssh = parse(&["a", "-u", "ci", "-t", "5", "--", "-x", "--help"]).unwrap();
        assert_eq!((ssh.username.as_deref(), ssh.wait), (Some("ci"), Duration::from_secs(5)));
        assert_eq!(ssh.command, ["-x", "--help"]);
        assert!(parse(&["a"]).unwrap().command.is_empty());
        assert!(parse(&[]).is_err());
    }

    #[test]
    fn waiting_ends_when_it_is_in_vain() {
        let mut seen = vm("a", VmStatus::Pending);
        seen.status_message = "no worker fits".into();
        assert_eq!(standing(seen.uid, &seen).as_deref(), Ok("the VM is pending: no worker fits"));
        let other = "00000000-0000-0000-0000-000000000001".parse().unwrap();
        assert!(standing(other, &seen).unwrap_err().contains("anew"));
        seen.status = VmStatus::Failed;
        assert!(standing(seen.uid, &seen).unwrap_err().contains("has failed: no worker fits"));
        seen.spec.restart_policy = RestartPolicy::OnFailure;
        assert!(standing(seen.uid, &seen).is_ok());
    }

    #[test]
    fn nothing_is_told_twice() {
        assert_eq!(
            join("not running yet: no worker fits", "the VM is pending: no worker fits"),
            "not running yet: no worker fits"
        );
        assert_eq!(
            join("the guest refused", "the VM is running: booting"),
            "the guest refused (the VM is running: booting)"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_counts_as_hung_only_while_the_connection_to_it_is_there() {
        let (lost, seen) = watch::channel(true);
        let mut hung = std::pin::pin!(hung(Some(Silence::for_test(Instant::now())), seen));
        assert!(tokio::time::timeout(Duration::from_secs(300), &mut hung).await.is_err());
        lost.send_replace(false);
        let there = Instant::now();
        hung.await;
        assert!((SILENCE - LOOK..=SILENCE + LOOK).contains(&there.elapsed()), "{:?}", there.elapsed());
    }

    #[test]
    fn a_refusal_is_final_and_an_absence_is_not() {
        let failure = |code| Failure::from(ApiError::new(code, "x"));
        assert!(matches!(failure(ErrorCode::Unavailable), Failure::Passing(_)));
        assert!(matches!(failure(ErrorCode::Conflict), Failure::Passing(_)));
        assert!(matches!(failure(ErrorCode::NotFound), Failure::Final(_)));
        assert!(matches!(failure(ErrorCode::Forbidden), Failure::Final(_)));
    }
}
