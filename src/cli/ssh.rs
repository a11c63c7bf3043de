//! `orchard ssh`: a command or a shell in a VM, or on a worker's machine, over the tunnel; and local ports that lead further from
//! there (`-L`). `target` connects, `login` has who to be there.

use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use tokio::sync::watch;

use super::Interrupted;
use super::client::Client;
use super::connect::{Place, Stream, tell};
use super::interrupt::{Farewell, Interrupt};
use super::listen::{self, LocalForward};
use super::login::LoginArgs;
use super::output::OutputError;
use super::target::{SSH_PORT, Target};
use crate::config::duration;
use crate::model::{VmName, WorkerName};
use crate::ssh::client::{Program, Session, Stdio};
use crate::ssh::{ExitStatus, SshError, stdin, terminal};

/// What reads a script that is piped in without a command.
const SCRIPT_SHELL: &str = "sh -s";

#[derive(Debug, Subcommand)]
pub(super) enum Ssh {
    /// Run a command or a shell in a VM; exits as the command did
    #[command(after_help = "\
Examples:
  orchard ssh vm build-1
  orchard ssh vm build-1 uname -a
  orchard ssh vm -u ci -p secret build-1 'cd src && make -j4'
  orchard ssh vm -u ci -i ~/.ssh/ci_ed25519 build-1
  orchard ssh vm -L 8080:localhost:80 build-1
      # 127.0.0.1:8080 leads to port 80 of the VM, as the VM sees it
  orchard ssh vm build-1 'sh -s' < script.sh

Options stand before NAME or directly after it; everything from COMMAND on is the command's own.

What proves who you are is tried in this order: the keys of -i, the password, the keys of the SSH agent
(SSH_AUTH_SOCK), and without -i the keys id_ed25519, id_ecdsa and id_rsa of ~/.ssh. A password of -p without
-i is all that is tried. A key with a passphrase asks for that, on a terminal, once the guest wants the key.

Ports of -L end with the command, and what goes over them, too; with -N there is no command.

The guest's host key is remembered at the first login, in the file known_hosts of Orchard's home folder;
another one of the same VM is refused from then on. A VM that was made anew, or that started over from
its image, is a new one. For ssh, scp, rsync and sftp themselves see `orchard ssh-config --help`.")]
    Vm(VmArgs),
    /// Run a command or a shell on a worker's own machine, with the role admin:write; exits as the command did
    #[command(after_help = "\
Examples:
  orchard ssh worker mini-1
  orchard ssh worker -u ops mini-1 df -h
  orchard ssh worker -N -L 5900:localhost:5900 mini-1

The machine's own SSH server (--port of its loopback address) decides who gets in: this only leads there.
Without -u you are who you are here. What proves it is tried as by `orchard ssh vm`, which see; on a terminal
a password is asked for last. The machine's host key is remembered for its worker's data folder.

It takes the role admin:write, as the machine is its operator's and not for those who use VMs. Where
nobody shall get in, `orchard worker run --no-host-access` says so.")]
    Worker(WorkerArgs),
}

#[derive(Debug, Args)]
pub(super) struct VmArgs {
    #[command(flatten)]
    options: Options,
    /// How long to wait for the VM to answer. For a terminal there is no option: a shell has one by itself, and a command
    /// by `orchard exec vm -it`
    #[arg(long, short = 't', default_value = "60s", value_parser = duration::parse)]
    wait: Duration,
    /// The VM's name
    name: VmName,
    /// What to run there [default: a shell]
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct WorkerArgs {
    #[command(flatten)]
    options: Options,
    /// How long to wait for the machine to answer
    #[arg(long, short = 't', default_value = "0s", value_parser = duration::parse)]
    wait: Duration,
    /// The worker's name
    name: WorkerName,
    /// What to run there [default: a shell]
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
}

#[derive(Debug, Args)]
struct Options {
    /// User there [default: admin in a VM, who you are here on a worker]
    #[arg(long, short, allow_hyphen_values = true)]
    username: Option<String>,
    /// That user's password [default: admin in a VM]
    #[arg(long, short, allow_hyphen_values = true)]
    password: Option<String>,
    /// A private key to log in with, or the public half of one that the SSH agent has; several are tried in turn
    #[arg(long, short, value_name = "FILE")]
    identity: Vec<PathBuf>,
    /// Where the SSH server listens
    #[arg(long, default_value_t = SSH_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// Have a local port lead to a port of HOST as seen from there; several may be given
    #[arg(short = 'L', long = "forward", value_name = "[ADDR:]PORT:HOST:HOSTPORT", value_parser = listen::parse_forward)]
    forwards: Vec<LocalForward>,
    /// Run nothing: only have the ports of -L open, until Ctrl-C
    #[arg(short = 'N', long, conflicts_with = "command")]
    no_command: bool,
}

/// Yields the exit code.
pub(super) async fn run(command: Ssh, client: &Client, interrupt: &mut Interrupt) -> anyhow::Result<u8> {
    let (place, options, wait, words) = match command {
        Ssh::Vm(VmArgs { options, wait, name, command }) => (Place::Vm(name), options, wait, command),
        Ssh::Worker(WorkerArgs { options, wait, name, command }) => (Place::Worker(name), options, wait, command),
    };
    let Options { username, password, identity, port, forwards, no_command } = options;
    let login = LoginArgs { username, password, identity }.login(&place)?;
    let target = Target::find(client, place).await?;
    // As `ssh` does: the words are joined, and the shell there takes them apart.
    let command = match (no_command, words.is_empty()) {
        (true, _) => Run::Nothing,
        (false, true) => Run::Shell,
        (false, false) => Run::Command(words.join(" ")),
    };
    let mut farewell = Farewell::install()?;
    let work = async {
        // All of them or none, and before anything is run.
        let mut listeners = Vec::new();
        for forward in forwards {
            listeners.push((listen::bind(forward.local).await?, forward));
        }
        let (session, silence) = target.connect(port, &login, wait).await?;
        let session = Arc::new(session);
        let ports = forward(&session, listeners)?;
        tokio::select! {
            ended = target.unless_hung(silence, execute(&session, &command, target.dialer.lost())) => ended,
            never = ports => match never {},
        }
    };
    let status = tokio::select! {
        status = work => status,
        () = interrupt.wait() => Err(Interrupted.into()),
        told = farewell.wait() => Err(told.into()),
    };
    // However it came: a session that is only left alone goes on in the guest until its client is given up.
    target.dialer.close().await;
    status
}

/// What is run there.
enum Run {
    Nothing,
    Shell,
    Command(String),
}

/// Serves the ports of `-L` for ever.
fn forward(
    session: &Arc<Session>,
    listeners: Vec<(tokio::net::TcpListener, LocalForward)>,
) -> anyhow::Result<impl Future<Output = Infallible>> {
    let mut ports = Vec::new();
    for (listener, LocalForward { local, host, port }) in listeners {
        let to = format!("{host}:{port}");
        if local.port() == 0 {
            // The standard output is the command's.
            tell(&format!("forwarding {} -> {to}", listener.local_addr()?));
        }
        let session = session.clone();
        let open = move |peer| {
            let (session, host) = (session.clone(), host.clone());
            async move {
                let opened = session.connect_on(&host, port, peer).await;
                opened.map(|stream| Box::new(stream) as Stream).map_err(|error| error.to_string())
            }
        };
        ports.push(listen::serve(listener, to, open));
    }
    Ok(listen::all(ports))
}

/// Runs `command`: a shell on a terminal is an interactive one, else one that reads its script from standard input. Yields the
/// exit code.
async fn execute(session: &Session, command: &Run, lost: watch::Receiver<bool>) -> anyhow::Result<u8> {
    let line = match command {
        Run::Nothing => return Err(session.ended().await.into()),
        Run::Shell if terminal::is_interactive() => {
            let ended = terminal::interactive(session, Program::LoginShell, lost).await;
            return finish(session, ended).await;
        }
        Run::Shell => SCRIPT_SHELL,
        Run::Command(line) => line,
    };
    let input = stdin::stdin().context("cannot read the standard input")?;
    let stdio = Stdio { stdin: input, stdout: tokio::io::stdout(), stderr: tokio::io::stderr() };
    let ended = session.exec(line, stdio).await;
    finish(session, ended).await
}

/// Says goodbye once a command has ended, and yields the code to exit with as it did.
pub(super) async fn finish(session: &Session, ended: Result<ExitStatus, SshError>) -> anyhow::Result<u8> {
    let status = ended.map_err(|error| match error {
        SshError::Local { what: "standard output", source } => OutputError::from(source).into(),
        // Ctrl-C on a terminal whose keys reach nobody.
        SshError::Local { source, .. } if source.kind() == io::ErrorKind::Interrupted => Interrupted.into(),
        error => anyhow::Error::new(error),
    })?;
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

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        ssh: VmArgs,
    }

    fn parse(arguments: &[&str]) -> Result<VmArgs, clap::Error> {
        Only::try_parse_from(["ssh"].iter().chain(arguments)).map(|only| only.ssh)
    }

    #[test]
    fn options_after_the_command_are_its_own() {
        let ssh = parse(&["-u", "ci", "a", "ls", "-la", "--wait", "5s", "-u", "x", "-L", "1"]).unwrap();
        assert_eq!((ssh.options.username.as_deref(), ssh.wait), (Some("ci"), Duration::from_secs(60)));
        assert_eq!(ssh.command, ["ls", "-la", "--wait", "5s", "-u", "x", "-L", "1"]);
        let ssh = parse(&["a", "-u", "ci", "-t", "5", "--", "-x", "--help"]).unwrap();
        assert_eq!((ssh.options.username.as_deref(), ssh.wait), (Some("ci"), Duration::from_secs(5)));
        assert_eq!(ssh.command, ["-x", "--help"]);
        assert!(parse(&["a"]).unwrap().command.is_empty());
        assert!(parse(&[]).is_err());
    }

    #[test]
    fn keys_and_ports_are_given_several_times() {
        let ssh = parse(&["-i", "a", "-i", "b", "-L", "1:h:2", "-L", "0:h:3", "-N", "a"]).unwrap();
        assert_eq!((ssh.options.identity.len(), ssh.options.forwards.len(), ssh.options.no_command), (2, 2, true));
        assert!(parse(&["-N", "a", "ls"]).is_err(), "nothing and something");
    }
}
