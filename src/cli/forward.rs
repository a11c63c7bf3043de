//! `orchard port-forward`: a local TCP port whose every connection goes to a port of a VM.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
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
    /// Reach a TCP port of a VM through a port of this machine, until Ctrl-C
    #[command(after_help = "\
Examples:
  orchard port-forward vm build-1 8080:80   127.0.0.1:8080 leads to port 80 of the VM
  orchard port-forward vm build-1 22        a free local port, printed, leads to port 22")]
    Vm(ForwardArgs),
}

#[derive(Debug, Args)]
pub(super) struct ForwardArgs {
    /// The VM's name
    name: VmName,
    /// The ports; without LOCAL or with 0, a free one is taken
    #[arg(value_name = "[LOCAL:]REMOTE", value_parser = parse_ports)]
    ports: Ports,
}

/// The two ends of a forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ports {
    local: u16,
    remote: u16,
}

fn parse_ports(text: &str) -> Result<Ports, String> {
    let wrong = || format!("{text:?} is not [LOCAL:]REMOTE, such as 8080:80 or 22");
    let (local, remote) = text.split_once(':').unwrap_or(("0", text));
    let ports = Ports { local: local.parse().map_err(|_| wrong())?, remote: remote.parse().map_err(|_| wrong())? };
    if ports.remote == 0 { Err(wrong()) } else { Ok(ports) }
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
    match client.call(&OpenTunnel { vm: name.clone(), port: ports.remote }).await {
        Err(refused) if matches!(refused.code, ErrorCode::Forbidden | ErrorCode::NotFound) => {
            return Err(refused.into());
        }
        _ => {}
    }
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, ports.local)))
        .await
        .with_context(|| format!("cannot listen on 127.0.0.1:{}; another LOCAL port may be free", ports.local))?;
    let mut signals = Signals::install()?;
    output::line(&format!("forwarding {} -> {name}:{}", listener.local_addr()?, ports.remote))?;
    let dialer = Dialer::new(client.clone());
    let target = format!("{name}:{}", ports.remote);
    let (ending, name) = (dialer.clone(), name.clone());
    let open = move || {
        let (dialer, name) = (dialer.clone(), name.clone());
        async move { dialer.open(&name, ports.remote).await }
    };
    let ended = tokio::select! {
        never = serve(listener, known, target, open) => match never {},
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
        assert_eq!(parse_ports("22"), Ok(Ports { local: 0, remote: 22 }));
        assert_eq!(parse_ports("8080:80"), Ok(Ports { local: 8080, remote: 80 }));
        assert_eq!(parse_ports("0:80"), Ok(Ports { local: 0, remote: 80 }));
        for bad in ["", "0", ":80", "80:", "1:2:3", "80:0", "70000", "http"] {
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
