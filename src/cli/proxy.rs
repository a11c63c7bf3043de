//! `orchard proxy`: this process's standard input and output as a connection to a TCP port of a VM, or of a worker's machine, as
//! OpenSSH's `ProxyCommand` wants one.
//!
//! Both ways end by themselves. The end of what the VM sends closes the standard output at once, although the process lives on
//! to send the rest: whoever reads a pipe learns of an end by nothing else.

use std::io;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use super::Interrupted;
use super::client::Client;
use super::connect::{End as Far, Opened, Place, Stream};
use super::serve::signals::{Signals, Stop};
use super::target::{Failure, SSH_PORT, Target};
use crate::config::duration;
use crate::model::{CopyId, VmName, WorkerName};
use crate::ssh::{banner, stdin};

#[derive(Debug, Subcommand)]
pub(super) enum Proxy {
    /// Connect standard input and output to a TCP port of a VM
    #[command(after_help = "\
Examples:
  orchard proxy vm build-1 5432
  ssh -o ProxyCommand='orchard proxy vm --wait %h %p' admin@build-1
  printf 'GET / HTTP/1.0\\r\\n\\r\\n' | orchard proxy vm build-1 80

Exits with 0 when both sides have ended in order, else with 1 and the reason on standard error. With
--wait, port 22 counts as open when an SSH server greets there. `orchard ssh-config` prints a
configuration for ssh that uses this.")]
    Vm(VmArgs),
    /// Connect standard input and output to a TCP port of a worker's own machine, with the role admin:write
    #[command(after_help = "\
Examples:
  ssh -o ProxyCommand='orchard proxy worker mini-1 %p' ops@mini-1
  orchard proxy worker mini-1 9100 < request

The port is one of the machine's loopback address (127.0.0.1). It takes the role admin:write; and a worker
that runs with --no-host-access lets nobody in. Exits as `orchard proxy vm` does.")]
    Worker(WorkerArgs),
}

#[derive(Debug, Args)]
pub(super) struct WorkerArgs {
    /// Wait until the machine accepts the connection, 60s unless given [default: fail at once]
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true, default_missing_value = "60s",
          value_parser = duration::parse)]
    wait: Option<Duration>,
    /// The worker's name
    name: WorkerName,
    /// TCP port of its machine
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
}

#[derive(Debug, Args)]
pub(super) struct VmArgs {
    /// Wait until the VM accepts the connection, 60s unless given [default: fail at once]
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true, default_missing_value = "60s",
          value_parser = duration::parse)]
    wait: Option<Duration>,
    /// Only this start of the VM, so that a configuration that was made for another one is not used
    #[arg(long, value_name = "UID/ATTEMPT", value_parser = super::delete::copy)]
    copy: Option<CopyId>,
    /// The VM's name
    name: VmName,
    /// TCP port in the guest
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
}

pub(super) async fn run(command: Proxy, client: &Client) -> anyhow::Result<()> {
    let (place, wanted) = match command {
        Proxy::Vm(VmArgs { wait, copy, name, port }) => (Place::Vm(name), Wanted { wait, copy, port }),
        Proxy::Worker(WorkerArgs { wait, name, port }) => (Place::Worker(name), Wanted { wait, copy: None, port }),
    };
    let mut signals = Signals::install()?;
    // `ssh` ends its proxy so.
    let mut hang_up = signal(SignalKind::hangup()).context("cannot take over SIGHUP")?;
    let target = Target::find(client, place).await?;
    let ended = tokio::select! {
        ended = proxy(&target, &wanted) => ended,
        error = client.shut_out() => Err(error.into()),
        _ = hang_up.recv() => Ok(()),
        stop = signals.wait() => match stop {
            Stop::Interrupted => Err(Interrupted.into()),
            Stop::Terminated => Ok(()),
        },
    };
    target.dialer.close().await;
    ended
}

/// What to connect to there, and how long to try.
struct Wanted {
    wait: Option<Duration>,
    /// Only to this start of the VM.
    copy: Option<CopyId>,
    port: u16,
}

async fn proxy(target: &Target, wanted: &Wanted) -> anyhow::Result<()> {
    let (name, port) = (target.place.name(), wanted.port);
    let opened = open(target, wanted).await?;
    let input = stdin::stdin().context("cannot read the standard input")?;
    let carried = carry(opened.stream, input, tokio::io::stdout(), || {
        // Also for whoever has inherited it from us.
        let nothing = std::fs::File::options().write(true).open("/dev/null")?;
        Ok(rustix::stdio::dup2_stdout(nothing)?)
    });
    // QEMU's network accepts a connection before it knows whether the guest will.
    let silent = format!("{name}:{port} closed without sending anything; does something listen on that port there?");
    match carried.await {
        Ok(End::Refused) => anyhow::bail!(silent),
        Ok(End::Silent) => {
            eprintln!("{silent}");
            Ok(())
        }
        Ok(End::Done) => Ok(()),
        Err(error) => Err(anyhow::Error::new(error).context(format!("the connection to {name}:{port} broke"))),
    }
}

/// Opens the stream; with `wait`, as often as it takes.
async fn open(target: &Target, Wanted { wait, copy, port }: &Wanted) -> anyhow::Result<Opened> {
    let (port, started) = (*port, Instant::now());
    let attempt = async |deadline: Instant| {
        let opened = target.open(port, deadline).await?;
        let other = |wanted: &CopyId| match opened.end {
            Far::Vm { uid, attempt } => wanted.uid != uid || attempt.is_some_and(|attempt| attempt != wanted.attempt),
            Far::Host { .. } => false,
        };
        if copy.as_ref().is_some_and(other) {
            return Err(Failure::Final(anyhow::anyhow!(
                "{} was made anew or started over since this configuration was printed; run `orchard ssh-config` again",
                target.place
            )));
        }
        if wait.is_none() || port != SSH_PORT {
            return Ok(opened);
        }
        // That one is used up by the question.
        let mut asked = opened.stream;
        let left = deadline.saturating_duration_since(Instant::now()).max(banner::PROBE_WAIT);
        let greeted = banner::probe(&mut asked, banner::patience(started.elapsed()).min(left)).await;
        let _ = asked.shutdown().await;
        greeted.map_err(|error| Failure::Passing(error.to_string()))?;
        target.open(port, deadline).await
    };
    target.until(&format!("accept a connection to port {port}"), wait.unwrap_or_default(), attempt).await
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Both ways have ended, or whoever read the output wants no more.
    Done,
    /// The VM took everything and sent nothing.
    Silent,
    /// The VM ended it before it had everything, or anything, and sent nothing.
    Refused,
}

/// Carries bytes both ways until both have ended; `close` ends the output for its readers. A reader that has gone ends it, and
/// so does a VM that hangs up without a word.
async fn carry(
    stream: Stream,
    mut input: impl AsyncRead + Unpin,
    mut output: impl AsyncWrite + Unpin,
    close: impl FnOnce() -> io::Result<()>,
) -> io::Result<End> {
    let (mut from_vm, mut to_vm) = tokio::io::split(stream);
    let up = async {
        match tokio::io::copy(&mut input, &mut to_vm).await {
            Ok(count) => to_vm.shutdown().await.map(|()| count),
            // The VM reads no more; what it has to say may still be worth hearing.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(0),
            Err(error) => Err(error),
        }
    };
    // Yields whether anything came; none when nobody wants it.
    let down = async {
        let mut came = false;
        let mut buffer = vec![0; BUFFER];
        loop {
            let read = from_vm.read(&mut buffer).await?;
            if read == 0 {
                close()?;
                return io::Result::Ok(Some(came));
            }
            came = true;
            let written = async {
                output.write_all(buffer.get(..read).unwrap_or_default()).await?;
                output.flush().await
            };
            match written.await {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(None),
                written => written?,
            }
        }
    };
    let (mut up, mut down) = (std::pin::pin!(up), std::pin::pin!(down));
    // Neither is dropped half-way, except when there is no reason left to go on.
    tokio::select! {
        sent = &mut up => {
            let sent = sent?;
            Ok(match down.await? {
                Some(false) if sent == 0 => End::Refused,
                Some(false) => End::Silent,
                Some(true) | None => End::Done,
            })
        }
        received = &mut down => match received? {
            Some(false) => Ok(End::Refused),
            None => Ok(End::Done),
            Some(true) => up.await.map(|_| End::Done),
        },
    }
}

/// Bytes read at a time.
const BUFFER: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn each_way_ends_by_itself() {
        let (near, mut far) = tokio::io::duplex(1024);
        let (input, mut keys) = tokio::io::duplex(1024);
        let mut shown = Vec::new();
        let closed = Cell::new(false);
        let close = || {
            closed.set(true);
            Ok(())
        };
        let guest = async {
            // The VM has said all it has to say, and still listens.
            far.write_all(b"hello").await.unwrap();
            far.shutdown().await.unwrap();
            keys.write_all(b"late").await.unwrap();
            keys.shutdown().await.unwrap();
            let mut heard = Vec::new();
            far.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard, b"late");
        };
        let (carried, ()) = tokio::join!(carry(Box::new(near), input, &mut shown, close), guest);
        assert_eq!((carried.unwrap(), closed.get()), (End::Done, true));
        assert_eq!(shown, b"hello");
    }

    #[tokio::test]
    async fn a_reader_that_has_gone_ends_it() {
        let (near, mut far) = tokio::io::duplex(1024);
        let (input, _keys) = tokio::io::duplex(16);
        let (output, reader) = tokio::io::duplex(4);
        drop(reader);
        far.write_all(&[7; 100]).await.unwrap();
        carry(Box::new(near), input, output, || Ok(())).await.unwrap();
    }

    #[tokio::test]
    async fn a_vm_that_hangs_up_without_a_word_is_told_from_one_that_only_listens() {
        let (near, far) = tokio::io::duplex(1024);
        let (input, _keys) = tokio::io::duplex(16);
        drop(far);
        assert_eq!(carry(Box::new(near), input, tokio::io::sink(), || Ok(())).await.unwrap(), End::Refused);

        let (near, mut far) = tokio::io::duplex(1024);
        let guest = async {
            far.read_to_end(&mut Vec::new()).await.unwrap();
            drop(far);
        };
        let (end, ()) = tokio::join!(carry(Box::new(near), &b"data"[..], tokio::io::sink(), || Ok(())), guest);
        assert_eq!(end.unwrap(), End::Silent);
    }
}
