//! `orchard port-forward`: a local TCP port whose every connection goes to a port of a VM.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use futures_util::future::select_all;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::client::Client;
use super::connect::{Dialer, Opened};
use super::serve::signals::{Signals, Stop};
use super::ssh::standing;
use super::{Interrupted, output};
use crate::bus::message::OpenTunnel;
use crate::model::error::{ApiError, ErrorCode};
use crate::model::{VmName, VmUid};

/// Connections at once; a further one waits until one of them ends.
const MAX_CONNECTIONS: usize = 256;
/// Pause after a failed accept, which is mostly a lack of file descriptors: gives others time to free some.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, Subcommand)]
pub(super) enum PortForward {
    /// Reach TCP ports of a VM through ports of this machine, until Ctrl-C
    #[command(after_help = "\
Examples:
  orchard port-forward vm build-1 8080:80   127.0.0.1:8080 leads to port 80 of the VM
  orchard port-forward vm build-1 22        a free local port, printed, leads to port 22
  orchard port-forward vm build-1 8080:80 5432:5432
  orchard port-forward vm build-1 0.0.0.0:8080:80   for other machines, too: whoever reaches this port gets in")]
    Vm(ForwardArgs),
}

#[derive(Debug, Args)]
pub(super) struct ForwardArgs {
    /// The VM's name
    name: VmName,
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
    let remote = remote.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?;
    let local = match local.rsplit_once(':') {
        Some(_) => local.parse().map_err(|_| wrong())?,
        None => SocketAddr::from((Ipv4Addr::LOCALHOST, local.parse().map_err(|_| wrong())?)),
    };
    Ok(Ports { local, remote })
}

pub(super) async fn run(command: PortForward, client: &Client) -> anyhow::Result<()> {
    let PortForward::Vm(ForwardArgs { name, ports }) = command;
    let known = Arc::new(OnceLock::new());
    if let Some(vm) = client.vm_if_visible(&name).await? {
        standing(vm.uid, &vm).map_err(|why| anyhow::anyhow!(why))?;
        known.get_or_init(|| vm.uid);
    }
    // Who may not, or asks for a VM that is not there, is told so now and not at each connection. What may pass, such as a
    // worker that is away, is told then.
    if let Some(Ports { remote, .. }) = ports.first() {
        match client.call(&OpenTunnel { vm: name.clone(), port: *remote }).await {
            Err(refused) if matches!(refused.code, ErrorCode::Forbidden | ErrorCode::NotFound) => {
                return Err(refused.into());
            }
            _ => {}
        }
    }
    // All of them or none.
    let mut listeners = Vec::new();
    for Ports { local, remote } in ports {
        let listener = TcpListener::bind(local).await;
        let listener = listener.with_context(|| format!("cannot listen on {local}; another LOCAL port may be free"))?;
        listeners.push((listener, remote));
    }
    let mut signals = Signals::install()?;
    let dialer = Dialer::new(client.clone());
    let mut forwards = Vec::new();
    for (listener, remote) in listeners {
        output::line(&format!("forwarding {} -> {name}:{remote}", listener.local_addr()?))?;
        let (dialer, vm) = (dialer.clone(), name.clone());
        let open = move || {
            let (dialer, vm) = (dialer.clone(), vm.clone());
            async move { dialer.open(&vm, remote).await }
        };
        forwards.push(Box::pin(serve(listener, known.clone(), format!("{name}:{remote}"), open)));
    }
    let ending = dialer;
    let ended = tokio::select! {
        (never, ..) = select_all(forwards) => match never {},
        error = client.shut_out() => Err(error.into()),
        stop = signals.wait() => match stop {
            Stop::Interrupted => Err(Interrupted.into()),
            Stop::Terminated => Ok(()),
        },
    };
    ending.close().await;
    ended
}

/// Accepts connections for ever; each gets a stream of its own from `open`. One that fails is told of on standard error
/// and closed. Dropping the future closes all.
async fn serve<F>(
    listener: TcpListener,
    first: Arc<OnceLock<VmUid>>,
    target: String,
    open: impl Fn() -> F,
) -> std::convert::Infallible
where
    F: Future<Output = Result<Opened, ApiError>> + Send + 'static,
{
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let permit = Arc::clone(&permits).acquire_owned().await;
        let (socket, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                eprintln!("cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (opening, target, first) = (open(), target.clone(), first.clone());
        connections.spawn(async move {
            let _permit = permit;
            match opening.await {
                Ok(opened) => {
                    if opened.uid != *first.get_or_init(|| opened.uid) {
                        eprintln!("{target}: this is a new VM of the same name");
                    }
                    splice(socket, opened, &target, peer).await;
                }
                Err(error) => eprintln!("{target}: {error}"),
            }
        });
    }
}

/// Carries bytes both ways until both sides have said that they are done.
async fn splice(mut socket: TcpStream, mut opened: Opened, target: &str, peer: SocketAddr) {
    let _ = socket.set_nodelay(true);
    match tokio::io::copy_bidirectional(&mut socket, &mut opened.stream).await {
        // QEMU's network accepts a connection before it knows whether the guest will.
        Ok((_, 0)) => eprintln!("{target}: {peer} got nothing from the VM; does something listen on that port there?"),
        Ok((up, down)) => tracing::debug!("{target}: {peer} is done, {up} bytes up, {down} down"),
        Err(error) => eprintln!("{target}: the connection of {peer} broke: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

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

    /// The guest's side of a stream: sends back in reverse what came, once the other side has said that it is done.
    async fn guest(mut side: tokio::io::DuplexStream) {
        let mut bytes = Vec::new();
        side.read_to_end(&mut bytes).await.unwrap();
        bytes.reverse();
        side.write_all(&bytes).await.unwrap();
        side.shutdown().await.unwrap();
    }

    #[tokio::test]
    async fn each_connection_has_a_stream_and_a_failed_one_harms_no_other() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let uid: VmUid = "7f1c3f2e-6d0b-4b58-9d3e-3a3a4d0f2b11".parse().unwrap();
        let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let guests = Arc::new(tokio::sync::Mutex::new(JoinSet::new()));
        let open = move || {
            let turn = count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let guests = Arc::clone(&guests);
            async move {
                if turn == 0 {
                    return Err(ApiError::new(ErrorCode::Unavailable, "the guest refuses"));
                }
                let (near, far) = tokio::io::duplex(1024);
                guests.lock().await.spawn(guest(far));
                Ok(Opened { stream: Box::new(near), uid, attempt: None, silence: None })
            }
        };
        let _serving = crate::task::spawn(serve(listener, Arc::new(OnceLock::from(uid)), "vm:1".into(), open));
        let talk = |payload: Vec<u8>| async move {
            let mut socket = TcpStream::connect(address).await.unwrap();
            let (mut read, mut write) = socket.split();
            let mut answer = Vec::new();
            let (sent, got) = tokio::join!(
                async {
                    write.write_all(&payload).await?;
                    write.shutdown().await
                },
                read.read_to_end(&mut answer)
            );
            sent.and(got.map(drop)).map(|()| answer)
        };
        assert!(talk(Vec::new()).await.unwrap_or_default().is_empty(), "the first stream cannot be opened");
        let (a, b) = tokio::join!(talk(vec![1, 2, 3]), talk(vec![7; 100_000]));
        assert_eq!(a.unwrap(), [3, 2, 1]);
        assert_eq!(b.unwrap().len(), 100_000);
    }
}
