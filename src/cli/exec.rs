//! `orchard exec`: one command in a VM, word for word, with its own input, output, variables and folder. `exec_session` has the
//! sessions that outlive their client, `ssh` the shell for people.
//!
//! Each call has an SSH connection of its own, as servers allow few sessions on one; only the guest's load bounds how many run at
//! once.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};

use super::client::Client;
use super::interrupt::Interrupt;
use super::output::OutputError;
use super::ssh::{Target, exit_code};
use super::{Interrupted, UsageError, exec_session};
use crate::config::duration;
use crate::model::VmName;
use crate::model::secret::Secret;
use crate::model::vm::{DEFAULT_GUEST_PASSWORD, DEFAULT_GUEST_USER};
use crate::ssh::client::{Program, Session, Stdio};
use crate::ssh::quote::{ScriptTextError, command_line};
use crate::ssh::{Login, SshError, stdin, terminal};
use crate::tunnel::exec::MAX_COMMAND;
use tokio::sync::watch;

#[derive(Debug, Subcommand)]
pub(super) enum Exec {
    /// Run a command in a VM, word for word; exits as the command did
    #[command(after_help = "\
Examples:
  orchard exec vm build-1 -- uname -a
  orchard exec vm -e CC=clang -w src build-1 -- sh -c 'make -j4 && make test'
  tar -c . | orchard exec vm -i build-1 -- tar -x -C /tmp
  orchard exec vm -it build-1 -- top
  orchard exec vm --session nightly build-1 -- make all       goes on when this ends
  orchard exec vm --session nightly --attach build-1          all that it said, and then how it goes on

Unlike with `orchard ssh`, each word reaches the command as it stands: nothing in it is expanded, and for
a shell's own means there is `-- sh -c '…'`. Without -i the command's input is empty.

A session belongs to one start of one VM and to the account that opened it. Its worker holds it: it goes on
when its client, the network or the controller goes away, and ends with the VM, with the worker's process,
or by --end. The last 16 MiB of what it said are kept, and for ten minutes after its end; what had to go
before that is told. While somebody is attached the command waits for them and nothing goes.
`orchard list execs vm NAME` shows an account's sessions.")]
    Vm(Box<ExecArgs>),
}

#[derive(Debug, Args)]
pub(super) struct ExecArgs {
    /// Pass this command's standard input on
    #[arg(long, short)]
    interactive: bool,
    /// Run it in a terminal, which is this one; implies --interactive
    #[arg(long, short)]
    tty: bool,
    /// A variable for the command; without a value, this environment's
    #[arg(long, short, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// The folder to run it in [default: the user's home]
    #[arg(long, short, value_name = "DIR")]
    workdir: Option<String>,
    #[command(flatten)]
    login: LoginArgs,
    /// How long to wait for the VM to answer
    #[arg(long, default_value = "60s", value_parser = duration::parse)]
    wait: Duration,
    /// Run it in a session of this name, which outlives this command, or attach to the one there is
    #[arg(long, value_name = "SESSION", value_parser = exec_session::name)]
    session: Option<String>,
    /// Only attach to the session; it must be there
    #[arg(long, requires = "session", conflicts_with_all = ["command", "env", "workdir", "tty"])]
    attach: bool,
    /// Tell only what the session said after this number [default: all that is kept]
    #[arg(long, requires = "session", value_name = "NUMBER")]
    after: Option<u64>,
    /// End the session's command
    #[arg(long, requires = "session", conflicts_with_all = ["command", "attach", "after", "interactive", "tty", "env", "workdir"])]
    end: bool,
    /// The VM's name
    name: VmName,
    /// What to run there: a program and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND",
          required_unless_present_any = ["attach", "end"])]
    command: Vec<String>,
}

/// Who to log in to the guest as.
#[derive(Debug, Args)]
pub(super) struct LoginArgs {
    /// Guest user [default: admin; in a session, the VM's]
    #[arg(long, short, alias = "user", allow_hyphen_values = true)]
    username: Option<String>,
    /// That user's password [default: admin; in a session, the VM's]
    #[arg(long, short, allow_hyphen_values = true)]
    password: Option<String>,
}

impl LoginArgs {
    /// What is given, or the default.
    pub(super) fn login(&self) -> Login {
        Login {
            user: self.username.clone().unwrap_or_else(|| DEFAULT_GUEST_USER.to_owned()),
            password: Secret::new(self.password.as_deref().unwrap_or(DEFAULT_GUEST_PASSWORD)),
        }
    }
}

/// Yields the exit code.
pub(super) async fn run<F: Future<Output = anyhow::Result<Client>>>(
    command: Exec,
    connect: impl FnOnce() -> F,
    interrupt: &mut Interrupt,
) -> anyhow::Result<u8> {
    let Exec::Vm(arguments) = command;
    if arguments.tty && !terminal::is_interactive() {
        return Err(
            UsageError("--tty needs a terminal, and the standard input is none; leave -t out".to_owned()).into()
        );
    }
    let line = match arguments.command.is_empty() {
        true => None,
        false => Some(line(&arguments)?),
    };
    let found = async { Target::find(&connect().await?, arguments.name.clone()).await };
    let target = tokio::select! {
        target = found => target?,
        () = interrupt.wait() => return Err(Interrupted.into()),
    };
    let work = async {
        match (&arguments.session, line) {
            (Some(session), line) => {
                let wanted = exec_session::Wanted {
                    session: session.clone(),
                    line,
                    shown: arguments.command.join(" "),
                    interactive: arguments.interactive || arguments.tty,
                    tty: arguments.tty,
                    user: arguments.login.username.clone(),
                    password: arguments.login.password.clone().map(Secret::new),
                    after: arguments.after.unwrap_or(0),
                    end: arguments.end,
                };
                exec_session::run(&target, &wanted, arguments.wait).await
            }
            (None, Some(line)) => match target.connect(&arguments.login.login(), arguments.wait).await {
                Ok((session, silence)) => {
                    target.unless_hung(silence, execute(session, &line, &arguments, target.dialer.lost())).await
                }
                Err(error) => Err(error),
            },
            (None, None) => Err(UsageError("there is no command to run".to_owned()).into()),
        }
    };
    let code = tokio::select! {
        code = work => code,
        () = interrupt.wait() => Err(Interrupted.into()),
    };
    // However it came: what is only left alone goes on in the guest until its client is given up.
    target.dialer.close().await;
    code
}

fn line(arguments: &ExecArgs) -> anyhow::Result<String> {
    let wrong = |error: ScriptTextError| UsageError(error.to_string());
    let env = variables(&arguments.env, |name| std::env::var(name).ok())?;
    let line = command_line(&arguments.command, &env, arguments.workdir.as_deref()).map_err(wrong)?;
    match line.len() {
        // A guest's kernel takes no longer argument, and says so less clearly.
        len if len > MAX_COMMAND => Err(UsageError(format!(
            "command and variables have {len} bytes, and at most {MAX_COMMAND} can be passed; pass more by standard input"
        ))
        .into()),
        _ => Ok(line),
    }
}

/// The variables of `--env`; the last of one name counts.
fn variables(
    given: &[String],
    environment: impl Fn(&str) -> Option<String>,
) -> Result<BTreeMap<String, Secret>, UsageError> {
    let read = |text: &String| match text.split_once('=') {
        Some((name, value)) => Ok((name.to_owned(), Secret::new(value))),
        None => match environment(text) {
            Some(value) => Ok((text.clone(), Secret::new(value))),
            None => Err(UsageError(format!("--env {text}: there is no such variable here; write {text}=VALUE"))),
        },
    };
    given.iter().map(read).collect()
}

/// `lost`: whether the session stands still, as what carried it was lost.
async fn execute(
    session: Session,
    line: &str,
    arguments: &ExecArgs,
    lost: watch::Receiver<bool>,
) -> anyhow::Result<u8> {
    let status = if arguments.tty {
        terminal::interactive(&session, Program::Command(line), lost).await?
    } else {
        let (stdout, stderr) = (tokio::io::stdout(), tokio::io::stderr());
        let ended = match arguments.interactive {
            true => {
                let stdin = stdin::stdin().context("cannot read the standard input")?;
                session.exec(line, Stdio { stdin, stdout, stderr }).await
            }
            false => session.exec(line, Stdio { stdin: tokio::io::empty(), stdout, stderr }).await,
        };
        ended.map_err(|error| match error {
            SshError::Local { what: "standard output", source } => OutputError::from(source).into(),
            error => anyhow::Error::new(error),
        })?
    };
    session.close().await;
    Ok(exit_code(&status))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        exec: ExecArgs,
    }

    fn parse(arguments: &[&str]) -> Result<ExecArgs, clap::Error> {
        Only::try_parse_from(["exec"].iter().chain(arguments)).map(|only| only.exec)
    }

    #[test]
    fn options_stand_before_the_command_and_the_rest_is_its_own() {
        let exec = parse(&["-e", "A=1", "-i", "a", "--", "ls", "-la", "-t", "--env", "x"]).unwrap();
        assert_eq!(
            (exec.command, exec.tty, exec.interactive),
            (["ls", "-la", "-t", "--env", "x"].map(str::to_owned).into(), false, true)
        );
        assert!(parse(&["-it", "a", "top"]).unwrap().tty);
        assert!(parse(&["a"]).is_err(), "no command");
        assert!(parse(&["--session", "s", "--attach", "a"]).unwrap().command.is_empty());
        for wrong in [
            &["--attach", "a"][..],
            &["--session", "s", "--attach", "a", "ls"],
            &["--session", "s", "a"],
            &["--session", "a b", "a", "ls"],
            &["--session", "s", "--end", "a", "ls"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn variables_are_given_or_taken_from_here() {
        let here = |name: &str| (name == "HERE").then(|| "it's".to_owned());
        let given = ["A=b=c", "HERE", "E=", "A=2"].map(str::to_owned);
        let read = variables(&given, here).unwrap();
        let shown: Vec<_> = read.iter().map(|(name, value)| format!("{name}={}", value.expose())).collect();
        assert_eq!(shown, ["A=2", "E=", "HERE=it's"]);
        assert!(variables(&["GONE".to_owned()], here).unwrap_err().to_string().contains("GONE=VALUE"));
        assert!(line(&parse(&["-e", "1A=x", "a", "ls"]).unwrap()).unwrap_err().is::<UsageError>());
        let long = "x".repeat(MAX_COMMAND);
        assert!(line(&parse(&["a", "echo", &long]).unwrap()).unwrap_err().to_string().contains("standard input"));
    }
}
