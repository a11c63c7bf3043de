//! `orchard exec`: one command in a VM, or on a worker's machine, word for word, with its own input, output, variables and folder.
//! `exec_session` has the sessions that outlive their client, `ssh` the shell for people.
//!
//! Each call has an SSH connection of its own, as servers allow few sessions on one; only the guest's load bounds how many run at
//! once.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};

use super::client::Client;
use super::connect::Place;
use super::interrupt::{Farewell, Interrupt};
use super::login::LoginArgs;
use super::ssh::finish;
use super::target::{SSH_PORT, Target};
use super::{Interrupted, UsageError, exec_session};
use crate::config::duration;
use crate::model::secret::Secret;
use crate::model::{VmName, WorkerName};
use crate::ssh::client::{Program, Session, Stdio};
use crate::ssh::quote::{ScriptTextError, command_line};
use crate::ssh::{stdin, terminal};
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
  orchard exec vm --session nightly build-1 -- make all
      # goes on when this ends
  orchard exec vm --session nightly --attach build-1
      # all that it said, and then how it goes on

Unlike with `orchard ssh`, each word reaches the command as it stands: nothing in it is expanded, and for
a shell's own means there is `-- sh -c '…'`. Without -i the command's input is empty.

A session belongs to one start of one VM and to the account that opened it. Its worker holds it: it goes on
when its client, the network or the controller goes away, and ends with the VM, with the worker's process,
or by --end. The last 16 MiB of what it said are kept, and for ten minutes after its end; what had to go
before that is told. While somebody is attached the command waits for them and nothing goes.
`orchard list execs vm NAME` shows an account's sessions.")]
    Vm(Box<VmArgs>),
    /// Run a command on a worker's own machine, word for word, with the role admin:write; exits as the command did
    #[command(after_help = "\
Examples:
  orchard exec worker mini-1 -- df -h
  orchard exec worker -u ops -i mini-1 -- sh -s < upgrade.sh

It logs in to the machine's own SSH server, as `orchard ssh worker` does, which see.")]
    Worker(Box<WorkerArgs>),
}

#[derive(Debug, Args)]
pub(super) struct WorkerArgs {
    #[command(flatten)]
    options: Options,
    /// Where the machine's SSH server listens
    #[arg(long, default_value_t = SSH_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// How long to wait for the machine to answer
    #[arg(long, default_value = "0s", value_parser = duration::parse)]
    wait: Duration,
    /// The worker's name
    name: WorkerName,
    /// What to run there: a program and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND", required = true)]
    command: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct VmArgs {
    #[command(flatten)]
    options: Options,
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

/// What there is to say of a command, wherever it runs.
#[derive(Debug, Args)]
struct Options {
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
}

/// Yields the exit code.
pub(super) async fn run<F: Future<Output = anyhow::Result<Client>>>(
    command: Exec,
    connect: impl FnOnce() -> F,
    interrupt: &mut Interrupt,
) -> anyhow::Result<u8> {
    let (place, port, options, wait, session, words) = match command {
        Exec::Vm(arguments) => {
            let VmArgs { options, wait, session, attach: _, after, end, name, command } = *arguments;
            let session = session.map(|session| (session, after.unwrap_or(0), end));
            (Place::Vm(name), SSH_PORT, options, wait, session, command)
        }
        Exec::Worker(arguments) => {
            let WorkerArgs { options, port, wait, name, command } = *arguments;
            (Place::Worker(name), port, options, wait, None, command)
        }
    };
    if options.tty && !terminal::is_interactive() {
        return Err(
            UsageError("--tty needs a terminal, and the standard input is none; leave -t out".to_owned()).into()
        );
    }
    if session.is_some() && !options.login.identity.is_empty() {
        let why = "the worker logs in for a session, and has no key of yours; leave --identity or --session out";
        return Err(UsageError(why.to_owned()).into());
    }
    let line = match words.is_empty() {
        true => None,
        false => Some(line(&options, &words)?),
    };
    let login = options.login.login(&place)?;
    let found = async { Target::find(&connect().await?, place).await };
    let target = tokio::select! {
        target = found => target?,
        () = interrupt.wait() => return Err(Interrupted.into()),
    };
    let work = async {
        match (session, line) {
            (Some((session, after, end)), line) => {
                let wanted = exec_session::Wanted {
                    session,
                    line,
                    shown: words.join(" "),
                    interactive: options.interactive || options.tty,
                    tty: options.tty,
                    user: options.login.username.clone(),
                    password: options.login.password.clone().map(Secret::new),
                    after,
                    end,
                };
                exec_session::run(&target, &wanted, wait).await
            }
            (None, Some(line)) => {
                let (session, silence) = target.connect(port, &login, wait).await?;
                target.unless_hung(silence, execute(&session, &line, &options, target.dialer.lost())).await
            }
            (None, None) => Err(UsageError("there is no command to run".to_owned()).into()),
        }
    };
    let mut farewell = Farewell::install()?;
    let code = tokio::select! {
        code = work => code,
        told = farewell.wait() => Err(told.into()),
        () = interrupt.wait() => Err(Interrupted.into()),
    };
    // However it came: what is only left alone goes on in the guest until its client is given up.
    target.dialer.close().await;
    code
}

fn line(options: &Options, words: &[String]) -> anyhow::Result<String> {
    let wrong = |error: ScriptTextError| UsageError(error.to_string());
    let env = variables(&options.env, |name| std::env::var(name).ok())?;
    let line = command_line(words, &env, options.workdir.as_deref()).map_err(wrong)?;
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
async fn execute(session: &Session, line: &str, options: &Options, lost: watch::Receiver<bool>) -> anyhow::Result<u8> {
    let (stdout, stderr) = (tokio::io::stdout(), tokio::io::stderr());
    let ended = match (options.tty, options.interactive) {
        (true, _) => terminal::interactive(session, Program::Command(line), lost).await,
        (false, true) => {
            let stdin = stdin::stdin().context("cannot read the standard input")?;
            session.exec(line, Stdio { stdin, stdout, stderr }).await
        }
        (false, false) => session.exec(line, Stdio { stdin: tokio::io::empty(), stdout, stderr }).await,
    };
    finish(session, ended).await
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        exec: VmArgs,
    }

    fn parse(arguments: &[&str]) -> Result<VmArgs, clap::Error> {
        Only::try_parse_from(["exec"].iter().chain(arguments)).map(|only| only.exec)
    }

    #[test]
    fn options_stand_before_the_command_and_the_rest_is_its_own() {
        let exec = parse(&["-e", "A=1", "-i", "a", "--", "ls", "-la", "-t", "--env", "x"]).unwrap();
        assert_eq!(
            (exec.command, exec.options.tty, exec.options.interactive),
            (["ls", "-la", "-t", "--env", "x"].map(str::to_owned).into(), false, true)
        );
        assert!(parse(&["-it", "a", "top"]).unwrap().options.tty);
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
        let line_of = |arguments: &[&str]| {
            let exec = parse(arguments).unwrap();
            line(&exec.options, &exec.command)
        };
        let here = |name: &str| (name == "HERE").then(|| "it's".to_owned());
        let given = ["A=b=c", "HERE", "E=", "A=2"].map(str::to_owned);
        let read = variables(&given, here).unwrap();
        let shown: Vec<_> = read.iter().map(|(name, value)| format!("{name}={}", value.expose())).collect();
        assert_eq!(shown, ["A=2", "E=", "HERE=it's"]);
        assert!(variables(&["GONE".to_owned()], here).unwrap_err().to_string().contains("GONE=VALUE"));
        assert!(line_of(&["-e", "1A=x", "a", "ls"]).unwrap_err().is::<UsageError>());
        let long = "x".repeat(MAX_COMMAND);
        let refused = line_of(&["a", "echo", &long]).unwrap_err().to_string();
        for said in
            ["command and variables have ", " bytes, and at most ", " can be passed; pass more by standard input"]
        {
            assert!(refused.contains(said), "{refused}");
        }
    }
}
