//! `orchard cp`: files and folders into a VM and out of it, over the same SSH connection as `exec`.
//!
//! The guest needs a POSIX shell and `tar`, no SFTP server. What comes appears under its name only once it is there whole: it
//! is unpacked beside its place, in a folder that goes again if anything fails. `scripts` has what the guest runs, `pack`
//! the archive on its way there, `unpack` the distrustful end of it on its way back, `place` whose path is whose.

mod pack;
mod place;
mod scripts;
mod unpack;

use std::io::{self, IsTerminal as _};
use std::pin::Pin;
use std::task::{Context as Poller, Poll};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::io::AsyncWrite;
use tokio_util::io::SyncIoBridge;

use self::place::{Direction, InVm, Place};
use super::client::Client;
use super::connect;
use super::interrupt::{Farewell, Interrupt};
use super::login::LoginArgs;
use super::output::clean;
use super::target::{SSH_PORT, Target};
use super::{Interrupted, UsageError};
use crate::config::duration;
use crate::ssh::client::{Session, Stdio};
use crate::ssh::{ExitStatus, SshError};

/// Bytes between the archive and the connection.
const BUFFER: usize = 256 * 1024;
/// What is kept of what the guest says on standard error.
const MAX_SAID: usize = 16 * 1024;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  orchard cp report.txt build-1:
      # into the home of the guest user
  orchard cp -r src build-1:/srv/
      # as /srv/src
  orchard cp build-1:out/app.tar.gz .
  orchard cp -r build-1:/var/log logs
      # as logs, or logs/log if there is a folder logs

A path with a colon before its first slash is one in the VM of that name; ./a:b is a file here. In the
guest paths are taken as they are, without wildcards, from the user's home on. Modes are kept, owners
are not. A file appears under its name once it is there whole, in the place of one that was there; a
folder that is there is only replaced with --force. Out of a VM come files, folders and links that stay
within what is copied.")]
pub(super) struct CpArgs {
    /// Copy folders with all that is in them
    #[arg(long, short)]
    recursive: bool,
    /// Replace a folder that is there
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    login: LoginArgs,
    /// How long to wait for the VM to answer
    #[arg(long, default_value = "60s", value_parser = duration::parse)]
    wait: Duration,
    /// PATH or VM:PATH
    from: Place,
    /// VM:PATH or PATH
    to: Place,
}

pub(super) async fn run<F: Future<Output = anyhow::Result<Client>>>(
    arguments: CpArgs,
    connect: impl FnOnce() -> F,
    interrupt: &mut Interrupt,
) -> anyhow::Result<()> {
    let direction = place::direction(&arguments.from, &arguments.to).map_err(UsageError)?;
    let name = match &direction {
        Direction::Into { to, .. } => to.vm.clone(),
        Direction::OutOf { from, .. } => from.vm.clone(),
    };
    // Before the guest is asked for anything.
    let job = match direction {
        Direction::Into { from, to } => Job::Into { source: pack::Source::look(&from, arguments.recursive)?, to },
        Direction::OutOf { from, to } => {
            let target = unpack::Target::choose(&to, from.file_name(), arguments.force)?;
            Job::OutOf { from, target }
        }
    };
    let vm = connect::Place::Vm(name);
    let login = arguments.login.login(&vm)?;
    let found = async { Target::find(&connect().await?, vm).await };
    let target = tokio::select! {
        target = found => target?,
        () = interrupt.wait() => return Err(Interrupted.into()),
    };
    let work = async {
        let (session, silence) = target.connect(SSH_PORT, &login, arguments.wait).await?;
        let done = target.unless_hung(silence, job.run(&session, &arguments)).await;
        session.close().await;
        done
    };
    let mut farewell = Farewell::install()?;
    let done = tokio::select! {
        done = work => done,
        told = farewell.wait() => Err(told.into()),
        () = interrupt.wait() => Err(Interrupted.into()),
    };
    // However it came: what is only left alone goes on in the guest until its client is given up.
    target.dialer.close().await;
    done
}

enum Job {
    Into { source: pack::Source, to: InVm },
    OutOf { from: InVm, target: unpack::Target },
}

impl Job {
    async fn run(self, session: &Session, arguments: &CpArgs) -> anyhow::Result<()> {
        match self {
            Job::Into { source, to } => into(session, source, &to, arguments.force).await,
            Job::OutOf { from, target } => out_of(session, &from, target, arguments.recursive).await,
        }
    }
}

async fn into(session: &Session, source: pack::Source, to: &InVm, force: bool) -> anyhow::Result<()> {
    let script = scripts::receive(&scripts::Receive {
        to: &to.path,
        name: &source.name,
        size: source.single(),
        force,
        part: &uuid::Uuid::new_v4().simple().to_string(),
    })?;
    let bar = progress(Some(source.bytes), &source.name);
    let (near, far) = tokio::io::duplex(BUFFER);
    let packing = tokio::task::spawn_blocking({
        let bar = bar.clone();
        move || source.pack(SyncIoBridge::new(near), &bar)
    });
    let mut said = Vec::new();
    let stdio = Stdio { stdin: far, stdout: tokio::io::sink(), stderr: Said(&mut said) };
    let ended = session.exec(&script, stdio).await;
    // Its reader is gone by now, if it did not end by itself.
    let packed = packing.await.context("the packing was cut short")?;
    bar.finish_and_clear();
    judge(ended, &said, packed.map(drop), &format!("VM {}", to.vm))
}

async fn out_of(session: &Session, from: &InVm, target: unpack::Target, recursive: bool) -> anyhow::Result<()> {
    let script = scripts::send(&from.path, recursive)?;
    let bar = progress(None, &target.shown());
    let (near, far) = tokio::io::duplex(BUFFER);
    let unpacking = tokio::task::spawn_blocking({
        let bar = bar.clone();
        move || target.unpack(SyncIoBridge::new(far), &bar)
    });
    let mut said = Vec::new();
    let stdio = Stdio { stdin: tokio::io::empty(), stdout: near, stderr: Said(&mut said) };
    let ended = session.exec(&script, stdio).await;
    let unpacked = unpacking.await.context("the unpacking was cut short")?;
    bar.finish_and_clear();
    let done = match unpacked {
        // Nothing has its name before the guest has said that this was all.
        Ok(unpacked) if matches!(&ended, Ok(status) if status.success()) => match unpacked.put_in_place() {
            Ok(left_out) => {
                for why in left_out {
                    eprintln!("left out: {}", clean(&why));
                }
                Ok(())
            }
            Err(error) => Err(error),
        },
        Ok(_) => Ok(()),
        Err(error) => Err(error),
    };
    judge(ended, &said, done, &format!("VM {}", from.vm))
}

/// What came of it: the guest's own words are better than that its end of the pipe was closed.
fn judge(ended: Result<ExitStatus, SshError>, said: &[u8], here: anyhow::Result<()>, vm: &str) -> anyhow::Result<()> {
    let said = clean(String::from_utf8_lossy(said).trim());
    match (ended, here) {
        (Ok(status), here) if status.success() => here,
        (Ok(_), Err(error)) if said.is_empty() => Err(error),
        (Ok(status), _) if said.is_empty() => anyhow::bail!("{vm}: copying failed: {status}"),
        (Ok(_), _) => anyhow::bail!("{vm}: {said}"),
        // We stopped reading, which the guest noticed.
        (Err(SshError::Local { .. }), Err(error)) => Err(error),
        (Err(error), _) => Err(anyhow::Error::new(error).context(format!("{vm}: copying was interrupted"))),
    }
}

/// A bar on a terminal; nothing elsewhere.
fn progress(bytes: Option<u64>, what: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = match bytes {
        Some(bytes) => ProgressBar::new(bytes),
        None => ProgressBar::no_length(),
    };
    let form = match bytes {
        Some(_) => "{msg}  {bytes} of {total_bytes}  {binary_bytes_per_sec}  {eta} left",
        None => "{msg}  {bytes}  {binary_bytes_per_sec}",
    };
    if let Ok(style) = ProgressStyle::with_template(form) {
        bar.set_style(style);
    }
    bar.set_message(clean(what));
    bar
}

/// Keeps the beginning of what is written, so that a guest that talks on costs nothing.
struct Said<'a>(&'a mut Vec<u8>);

impl AsyncWrite for Said<'_> {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Poller<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let room = MAX_SAID.saturating_sub(self.0.len()).min(bytes.len());
        self.0.extend_from_slice(bytes.get(..room).unwrap_or_default());
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Poller<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Poller<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_own_words_are_told_and_else_how_it_ended() {
        let told =
            |status: ExitStatus, said: &str, here: anyhow::Result<()>| judge(Ok(status), said.as_bytes(), here, "VM a");
        let failed = ExitStatus::Code(2);
        let broken = || Err(anyhow::anyhow!("the pipe broke"));
        assert_eq!(
            told(failed.clone(), "", Ok(())).unwrap_err().to_string(),
            format!("VM a: copying failed: {failed}")
        );
        assert_eq!(told(failed.clone(), "no such file\n", broken()).unwrap_err().to_string(), "VM a: no such file");
        assert_eq!(told(failed, "", broken()).unwrap_err().to_string(), "the pipe broke");
        assert!(told(ExitStatus::Code(0), "a warning", Ok(())).is_ok());
    }
}
