//! A guest behind the stand-in: an address of the loopback network where a synthetic guest's SSH server answers on port 22.

use std::net::Ipv4Addr;
use std::sync::Arc;

use orchard::model::vm::VmSpec;
use orchard::task::{self, Task};
use orchard::worker::runtime::synthetic::Synthetic;
use orchard::worker::runtime::{Progress, Runtime};
use tokio::net::TcpListener;

use super::host::{Host, copy};

/// Where guests listen for SSH.
const SSH_PORT: u16 = 22;

/// Answers for all guests of one host.
pub struct Guest {
    _task: Task,
}

impl Guest {
    /// Gives the host's guests an address at which they answer.
    pub async fn of(host: &Host) -> Self {
        let inner = Arc::new(Synthetic::new());
        let vm = copy(0, VmSpec::default());
        inner.create(&vm, &Progress::new().0).await.unwrap();
        inner.start(&vm).await.unwrap();
        // The whole of 127.0.0.0/8 is this machine; each test has an address of its own.
        let random = uuid::Uuid::new_v4().into_bytes();
        let address = Ipv4Addr::new(127, random[0] | 1, random[1], random[2] | 1);
        let listener = TcpListener::bind((address, SSH_PORT)).await.unwrap();
        std::fs::write(host.file("ip"), address.to_string()).unwrap();
        let task = task::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let (inner, id) = (inner.clone(), vm.id);
                connections.spawn(async move {
                    if let Ok(mut guest) = inner.dial(id, SSH_PORT).await {
                        let _ = tokio::io::copy_bidirectional(&mut stream, &mut guest).await;
                    }
                });
            }
        });
        Self { _task: task }
    }
}
