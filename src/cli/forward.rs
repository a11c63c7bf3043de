//! `orchard port-forward`: local TCP ports whose every connection goes to a port of a VM, or of a worker's machine.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use tokio::net::TcpListener;
use tokio::time::Instant;

use super::client::Client;
use super::connect::{Opened, Place, tell};
use super::serve::signals::{Signals, Stop};
use super::target::{Failure, Target};
use super::{Interrupted, listen, output};
use crate::config::duration;
use crate::model::error::ErrorCode;
use crate::model::{VmName, WorkerName};

/// How soon a connection that waits is tried anew: what a user hardly notices after a boot.
const AGAIN: Duration = Duration::from_millis(500);
/// How long it is asked whether waiting is in vain: where the controller is away, the connection is told that and nothing else.
const SEEN_WITHIN: Duration = Duration::from_secs(2);

#[derive(Debug, Subcommand)]
pub(super) enum PortForward {
    /// Reach TCP ports of a VM through ports of this machine, until Ctrl-C
    #[command(after_help = "\
Examples:
  orchard port-forward vm build-1 8080:80
      # 127.0.0.1:8080 leads to port 80 of the VM
  orchard port-forward vm build-1 22
      # a free local port, printed, leads to port 22
  orchard port-forward vm build-1 8080:80 5432:5432
  orchard port-forward vm --wait 60s build-1 8080:80
      # connections wait for a VM that is not running yet
  orchard port-forward vm build-1 0.0.0.0:8080:80
      # for other machines, too: whoever reaches this port gets in")]
    Vm(VmArgs),
    /// Reach TCP ports of a worker's own machine through ports of this one, with the role admin:write, until Ctrl-C
    #[command(after_help = "\
Examples:
  orchard port-forward worker mini-1 5900
      # a free local port, printed, leads to the screen of the machine
  orchard port-forward worker mini-1 9100:9100 2222:22

The ports are those of the machine's loopback address (127.0.0.1). It takes the role admin:write; and a worker
that runs with --no-host-access lets nobody in.")]
    Worker(WorkerArgs),
}

#[derive(Debug, Args)]
pub(super) struct VmArgs {
    /// How long each connection waits for the VM to run
    #[arg(long, short = 't', default_value = "0s", value_parser = duration::parse)]
    wait: Duration,
    /// The VM's name
    name: VmName,
    /// The ports; without LOCAL or with 0, a free one is taken; without ADDR, only this machine gets in
    #[arg(value_name = "[[ADDR:]LOCAL:]REMOTE", value_parser = parse_ports, required = true)]
    ports: Vec<Ports>,
}

#[derive(Debug, Args)]
pub(super) struct WorkerArgs {
    /// How long each connection waits for the machine to be within reach
    #[arg(long, short = 't', default_value = "0s", value_parser = duration::parse)]
    wait: Duration,
    /// The worker's name
    name: WorkerName,
    /// The ports; without LOCAL or with 0, a free one is taken; without ADDR, only this machine gets in
    #[arg(value_name = "[[ADDR:]LOCAL:]REMOTE", value_parser = parse_ports, required = true)]
    ports: Vec<Ports>,
}

/// The two ends of a forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ports {
    /// On this machine.
    local: SocketAddr,
    remote: u16,
}

fn parse_ports(text: &str) -> Result<Ports, String> {
    let wrong = || format!("{text:?} is not [[ADDR:]LOCAL:]REMOTE, such as 8080:80, 22 or 0.0.0.0:8080:80");
    let (local, remote) = text.rsplit_once(':').unwrap_or(("0", text));
    let remote = listen::parse_port(remote).ok_or_else(wrong)?;
    Ok(Ports { local: listen::parse_local(local).ok_or_else(wrong)?, remote })
}

pub(super) async fn run(command: PortForward, client: &Client) -> anyhow::Result<()> {
    let (place, ports, wait) = match command {
        PortForward::Vm(VmArgs { wait, name, ports }) => (Place::Vm(name), ports, wait),
        PortForward::Worker(WorkerArgs { wait, name, ports }) => (Place::Worker(name), ports, wait),
    };
    let target = Arc::new(Target::find(client, place).await?);
    if let Some(why) = target.in_vain().await? {
        anyhow::bail!(why);
    }
    // Who may not, or asks for what is not there, is told so now and not at each connection. What may pass, such as a
    // worker that is away, is told then.
    if let Some(Ports { remote, .. }) = ports.first() {
        match target.dialer.ask(&target.place, *remote).await {
            Err(refused)
                if matches!(refused.code, ErrorCode::Forbidden | ErrorCode::NotFound | ErrorCode::UnknownVerb) =>
            {
                return Err(refused.into());
            }
            _ => {}
        }
    }
    // All of them or none.
    let mut listeners = Vec::new();
    for Ports { local, remote } in ports {
        listeners.push((listen::bind(local).await?, remote));
    }
    let mut signals = Signals::install()?;
    let mut forwards = Vec::new();
    for (listener, remote) in listeners {
        let name = target.place.name();
        output::line(&format!("forwarding {} -> {name}:{remote}", listener.local_addr()?))?;
        forwards.push(forward(listener, target.clone(), remote, wait));
    }
    let ended = tokio::select! {
        never = listen::all(forwards) => match never {},
        error = client.shut_out() => Err(error.into()),
        stop = signals.wait() => match stop {
            Stop::Interrupted => Err(Interrupted.into()),
            Stop::Terminated => Ok(()),
        },
    };
    target.dialer.close().await;
    ended
}

/// Leads the connections that come to `listener` to a port of `target`, for ever; each waits for it as long as `wait`, unless that
/// is in vain. Dropping the future closes them all, but for what [`Dialer::close`](super::connect::Dialer::close) does.
pub(super) async fn forward(listener: TcpListener, target: Arc<Target>, remote: u16, wait: Duration) -> Infallible {
    let shown = format!("{}:{remote}", target.place.name());
    let open = {
        let shown = shown.clone();
        move |_| {
            let (target, shown) = (target.clone(), shown.clone());
            async move {
                let opened = open_within(&target, remote, wait).await?;
                if !target.is_known(&opened.end) {
                    tell(&format!("{shown}: this is a new one of the same name"));
                }
                Ok(opened.stream)
            }
        }
    };
    listen::serve(listener, shown, open).await
}

/// Opens a stream; while what is in the way may pass, again until `wait` is over.
async fn open_within(target: &Target, remote: u16, wait: Duration) -> Result<Opened, String> {
    let deadline = Instant::now() + wait;
    loop {
        let reason = match target.dialer.open(&target.place, remote).await.map_err(Failure::from) {
            Ok(opened) => return Ok(opened),
            Err(Failure::Final(error)) => return Err(format!("{error:#}")),
            Err(Failure::Passing(reason)) => reason,
        };
        // Whether it can be seen how the VM stands is not what the connection fails of.
        if let Ok(Ok(Some(why))) = tokio::time::timeout(SEEN_WITHIN, target.in_vain()).await {
            return Err(why);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(reason);
        }
        tokio::time::sleep(AGAIN.min(left)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read() {
        let ports = |local: &str, remote| Ok(Ports { local: local.parse().unwrap(), remote });
        assert_eq!(parse_ports("22"), ports("127.0.0.1:0", 22));
        assert_eq!(parse_ports("8080:80"), ports("127.0.0.1:8080", 80));
        assert_eq!(parse_ports("0:80"), ports("127.0.0.1:0", 80));
        assert_eq!(parse_ports("0.0.0.0:8080:80"), ports("0.0.0.0:8080", 80));
        assert_eq!(parse_ports("[::1]:0:80"), ports("[::1]:0", 80));
        for bad in ["", "0", ":80", "80:", "1:2:3", "80:0", "70000", "http", "::1:8080:80", "localhost:8080:80"] {
            assert!(parse_ports(bad).is_err(), "{bad:?}");
        }
    }
}
