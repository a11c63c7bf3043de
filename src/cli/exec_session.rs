//! `orchard exec --session`: attaches to a command that the VM's worker holds, and to it again when the link breaks; and
//! `orchard list execs`. The worker's half is `worker::execs`, what is said `tunnel::exec`.

use std::time::Duration;

use anyhow::Context as _;
use bytes::BytesMut;
use clap::Subcommand;
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use super::client::Client;
use super::connect::Place;
use super::output::{self, OutputArgs, OutputError, Table, ago};
use super::target::{Failure, Target};
use crate::client::exec::{Exec, ExecInput, ExecOutput};
use crate::model::error::{ApiError, ErrorCode};
use crate::model::secret::Secret;
use crate::model::{Timestamp, VmName};
use crate::ssh::terminal::{self, Size};
use crate::ssh::{stdin, terminal::RawMode};
use crate::tunnel::exec::{Asked, ExecView, MAX_DATA, OpenExec, RunExec, Told, Tty, check_name, shown};
use crate::tunnel::header::EXEC_PORT;

/// For how long a broken link is tried anew before this gives up; the session goes on meanwhile.
const AGAIN: Duration = Duration::from_secs(120);
/// The exit code when it is not known how the command ended, as `ssh` has it.
const UNKNOWN: u8 = 255;

/// Reads a session's name.
pub(super) fn name(text: &str) -> Result<String, String> {
    check_name(text).map(|()| text.to_owned())
}

/// What to attach to, and how.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) session: String,
    /// What it is to run; none = it must be there.
    pub(super) line: Option<String>,
    /// The command without its variables, whose values are for no list.
    pub(super) shown: String,
    pub(super) interactive: bool,
    pub(super) tty: bool,
    pub(super) user: Option<String>,
    pub(super) password: Option<Secret>,
    pub(super) after: u64,
    pub(super) end: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum ListExecs {
    /// List the exec sessions of this account in a VM, those of the last ten minutes that have ended included
    #[command(after_help = "Example:\n  orchard list execs vm build-1")]
    Vm {
        /// The VM's name
        name: VmName,
        #[command(flatten)]
        output: OutputArgs,
    },
}

async fn open(target: &Target, deadline: Instant) -> Result<Exec, Failure> {
    Ok(Exec::over(target.open(EXEC_PORT, deadline).await?.stream))
}

/// Asks, and waits for the first answer.
async fn ask(exec: &mut Exec, asked: &Asked) -> Result<Told, Failure> {
    exec.ask(asked).await.map_err(|error| match error.code {
        // That the session runs something else does not pass.
        ErrorCode::Conflict => Failure::Final(error.into()),
        _ => Failure::from(error),
    })
}

/// Attaches, begins or ends a session; yields the exit code.
pub(super) async fn run(target: &Target, wanted: &Wanted, wait: Duration) -> anyhow::Result<u8> {
    if wanted.end {
        let asked = Asked::End { session: wanted.session.clone() };
        let end = async |deadline| ask(&mut open(target, deadline).await?, &asked).await;
        target.until("answer", wait, end).await?;
        return Ok(0);
    }
    let mut shown = Shown { hint: Hint::new(target, wanted), last: wanted.after };
    let mut run = wanted.line.as_ref().map(|line| of(wanted, line));
    let mut input = Input::new(wanted)?;
    let mut wait = wait;
    loop {
        let asked =
            Asked::Open(Box::new(OpenExec { session: wanted.session.clone(), after: shown.last, run: run.clone() }));
        let attach = async |deadline| {
            let mut link = open(target, deadline).await?;
            match ask(&mut link, &asked).await? {
                Told::Attached { next, .. } => Ok((link, next)),
                _ => Err(Failure::Final(anyhow::anyhow!("the worker gave an answer that does not fit"))),
            }
        };
        let (link, next) = target.until("let anybody into its exec sessions", wait, attach).await?;
        if shown.last >= next {
            eprintln!("session {} has not said that much yet; its next record is {next}", wanted.session);
        }
        shown.hint.is_there = true;
        match attached(link, &mut shown, &mut input).await {
            Ok(code) => {
                shown.hint.is_there = false;
                return Ok(code);
            }
            Err(Broken::Here(error)) => return Err(error),
            // What was typed last may be lost on the way, which must not go unnoticed.
            Err(Broken::Link(why)) if input.is_used() => {
                anyhow::bail!("the link to session {} was lost: {why}", wanted.session)
            }
            Err(Broken::Link(why)) => {
                eprintln!("the link to session {} was lost ({why}); attaching again", wanted.session);
            }
        }
        // From now on it must be there: were it begun anew, its command would run twice.
        (run, wait) = (None, AGAIN);
    }
}

fn of(wanted: &Wanted, line: &str) -> RunExec {
    let size = Size::current();
    let term =
        || std::env::var("TERM").ok().filter(|term| !term.is_empty()).unwrap_or_else(|| "xterm-256color".to_owned());
    RunExec {
        line: Secret::new(line),
        shown: shown(&wanted.shown),
        interactive: wanted.interactive,
        tty: wanted.tty.then(|| Tty { term: term(), columns: size.columns, rows: size.rows }),
        user: wanted.user.clone(),
        password: wanted.password.clone(),
    }
}

/// Says how to attach again, whenever this ends before the session does.
struct Hint {
    is_there: bool,
    command: String,
}

impl Hint {
    fn new(target: &Target, wanted: &Wanted) -> Self {
        let command = format!("orchard exec vm {} --session {} --attach", target.place.name(), wanted.session);
        Self { is_there: false, command }
    }
}

/// What was shown so far.
struct Shown {
    hint: Hint,
    last: u64,
}

impl Drop for Shown {
    fn drop(&mut self) {
        if self.hint.is_there {
            terminal::restore();
            eprintln!("\nthe session goes on; attach to it again with: {} --after {}", self.hint.command, self.last);
        }
    }
}

/// What goes into the session, if anything does.
struct Input {
    stdin: Option<stdin::Stdin>,
    raw: Option<RawMode>,
    tty: bool,
}

impl Input {
    fn new(wanted: &Wanted) -> anyhow::Result<Self> {
        let stdin = match wanted.interactive {
            true => Some(stdin::stdin().context("cannot read the standard input")?),
            false => None,
        };
        Ok(Self { stdin, raw: None, tty: wanted.tty })
    }

    fn is_used(&self) -> bool {
        self.stdin.is_some()
    }
}

/// Why an attachment ended before the session did.
enum Broken {
    /// By something on this side.
    Here(anyhow::Error),
    /// The link.
    Link(String),
}

impl From<std::io::Error> for Broken {
    fn from(error: std::io::Error) -> Self {
        Broken::Here(OutputError::from(error).into())
    }
}

/// Shows what the session says until it ends; yields the exit code.
async fn attached(link: Exec, shown: &mut Shown, input: &mut Input) -> Result<u8, Broken> {
    let (mut from, mut to) = link.split();
    if input.tty && input.raw.is_none() {
        input.raw = Some(RawMode::enter()?);
    }
    let feeding = feed(&mut to, input);
    let told = tell(&mut from, shown);
    let (mut feeding, mut told) = (std::pin::pin!(feeding), std::pin::pin!(told));
    tokio::select! {
        code = &mut told => code,
        fed = &mut feeding => match fed {
            // The worker's own word is better than that nothing can be sent.
            Err(Broken::Link(_)) | Ok(()) => told.await,
            Err(broken) => Err(broken),
        },
    }
}

/// Passes input and the terminal's size on; returns only when that has become impossible.
async fn feed(to: &mut ExecInput, input: &mut Input) -> Result<(), Broken> {
    let link = |error: ApiError| Broken::Link(error.to_string());
    let Some(stdin) = &mut input.stdin else { return std::future::pending().await };
    let mut resizes = signal(SignalKind::window_change())?;
    if input.tty {
        to.say(&resize()).await.map_err(link)?;
    }
    let mut open = true;
    loop {
        let mut data = BytesMut::with_capacity(MAX_DATA);
        // Cancel safe: what was read is in `data` only once the branch is taken.
        tokio::select! {
            read = stdin.read_buf(&mut data), if open => {
                if read? == 0 {
                    open = false;
                    to.say(&Asked::Eof {}).await.map_err(link)?;
                } else {
                    to.say(&Asked::Stdin { data: data.freeze() }).await.map_err(link)?;
                }
            }
            Some(()) = resizes.recv(), if input.tty => to.say(&resize()).await.map_err(link)?,
            else => return std::future::pending().await,
        }
    }
}

fn resize() -> Asked {
    let Size { columns, rows } = Size::current();
    Asked::Resize { columns, rows }
}

/// Writes what the session says.
async fn tell(from: &mut ExecOutput, shown: &mut Shown) -> Result<u8, Broken> {
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    loop {
        match from.next().await.map_err(|error| Broken::Link(error.to_string()))? {
            Told::Stdout { number, data } => {
                write(&mut stdout, &data).await?;
                shown.last = number;
            }
            Told::Stderr { number, data } => {
                write(&mut stderr, &data).await?;
                shown.last = number;
            }
            Told::Lost { from, to } => {
                eprintln!("records {from} to {to} of the session are not kept any more: it said more than fits");
                shown.last = to;
            }
            Told::Exited { code, how, .. } => {
                if !(0..=i32::from(u8::MAX)).contains(&code) || how.contains("signal") {
                    eprintln!("the remote command was {how}");
                }
                return Ok(u8::try_from(code).unwrap_or(UNKNOWN));
            }
            Told::Failed { why, .. } => {
                shown.hint.is_there = false;
                return Err(Broken::Here(anyhow::anyhow!("it is not known how the session's command ended: {why}")));
            }
            Told::Refused(refusal) => return Err(Broken::Here(refusal.into())),
            Told::Attached { .. } | Told::Sessions { .. } | Told::Ended {} => {}
        }
    }
}

async fn write(to: &mut (impl AsyncWrite + Unpin), data: &[u8]) -> std::io::Result<()> {
    to.write_all(data).await?;
    to.flush().await
}

/// Prints the sessions of this account.
pub(super) async fn list(command: ListExecs, client: &Client, now: Timestamp) -> anyhow::Result<()> {
    let ListExecs::Vm { name, output } = command;
    let sessions = sessions(client, name).await?;
    Ok(output.items(&sessions, |session| output::clean(&session.session), |all, _| table(all, now))?)
}

/// The account's sessions in a VM.
pub(super) async fn sessions(client: &Client, vm: VmName) -> anyhow::Result<Vec<ExecView>> {
    let target = Target::find(client, Place::Vm(vm)).await?;
    let listed = async |deadline| match ask(&mut open(&target, deadline).await?, &Asked::List {}).await? {
        Told::Sessions { sessions } => Ok(sessions),
        _ => Err(Failure::from(ApiError::new(ErrorCode::Internal, "the worker gave an answer that does not fit"))),
    };
    let sessions = target.until("tell its exec sessions", Duration::ZERO, listed).await;
    target.dialer.close().await;
    sessions
}

fn table(sessions: &[ExecView], now: Timestamp) -> Table {
    let mut table = Table::with_titles(["Session", "Begun", "State", "Attached", "Records", "Command"]);
    for session in sessions {
        table.row([
            session.session.clone(),
            ago(session.started_at, now),
            session.ended.clone().unwrap_or_else(|| "running".to_owned()),
            session.attached.to_string(),
            match session.next {
                1 => "none".to_owned(),
                next => format!("{} to {}", session.first, next - 1),
            },
            session.command.clone(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_shows_the_command_and_no_variable() {
        let wanted = Wanted {
            session: "s".into(),
            line: None,
            shown: "make all\n".into(),
            interactive: true,
            tty: false,
            user: None,
            password: None,
            after: 0,
            end: false,
        };
        let run = of(&wanted, "export TOKEN='hunter2'\n'make' 'all'");
        assert_eq!(run.shown, "make all");
        assert!(!format!("{run:?}").contains("hunter2"));
        assert!(of(&Wanted { shown: "ä".repeat(500), ..wanted }, "x").shown.len() <= 200);
    }
}
