//! A worker's connection to the bus, which can be cut, or fall silent without a word.

use std::net::SocketAddr;
use std::sync::Arc;

use orchard::task::{self, Task};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::harness::any_port;

/// How it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Open,
    /// Connections are closed, new ones, too.
    Cut,
    /// They stay, and nothing gets through.
    Silent,
}

/// A listener that passes on to the controller.
pub struct Link {
    pub addr: SocketAddr,
    mode: Arc<watch::Sender<Mode>>,
    _task: Task,
}

impl Link {
    pub async fn to(controller: String) -> Self {
        let listener = TcpListener::bind(any_port()).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mode = Arc::new(watch::Sender::new(Mode::Open));
        let modes = mode.clone();
        let task = task::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let (controller, modes) = (controller.clone(), modes.clone());
                connections.spawn(async move { pass(near, &controller, &modes).await });
                while connections.try_join_next().is_some() {}
            }
        });
        Self { addr, mode, _task: task }
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

async fn pass(near: TcpStream, controller: &str, modes: &watch::Sender<Mode>) {
    let mut cut = modes.subscribe();
    let work = async {
        open(modes).await;
        let Ok(far) = TcpStream::connect(controller).await else { return };
        let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
        tokio::join!(one_way(near_in, far_out, modes), one_way(far_in, near_out, modes));
    };
    // Cancel safe: what is dropped here are the connections, as is meant.
    tokio::select! {
        () = work => {}
        _ = cut.wait_for(|mode| *mode == Mode::Cut) => {}
    }
}

async fn one_way(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, modes: &watch::Sender<Mode>) {
    let mut bytes = vec![0; 16 * 1024];
    while let Ok(count) = from.read(&mut bytes).await
        && count > 0
    {
        open(modes).await;
        if to.write_all(&bytes[..count]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}

async fn open(modes: &watch::Sender<Mode>) {
    let _ = modes.subscribe().wait_for(|mode| *mode == Mode::Open).await;
}
