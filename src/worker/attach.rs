//! Serves tunnel streams: connects each to the port of the copy that its header names. A session that can be resumed goes over
//! the session keeper, which holds its connection to the guest. Those to the worker's own machine go the same ways.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use async_trait::async_trait;
use tokio::net::TcpStream;

use super::execs::Execs;
use super::runtime::{GuestStream, Runtime, RuntimeError};
use super::sessions::Sessions;
use crate::duplex::BoxedStream;
use crate::model::error::{ApiError, ErrorCode};
use crate::model::{CopyId, VmUid};
use crate::tunnel::exec::Holder;
use crate::tunnel::header::Resume;
use crate::tunnel::resume::VERSION;
use crate::tunnel::worker::{Attach, Attached};

/// What the session keeper, which knows no difference, is told in place of a copy for sessions with the worker's own machine: no VM
/// has this uid.
const HOST: CopyId = CopyId { uid: VmUid(uuid::Uuid::nil()), attempt: 0 };

/// Reaches the VMs of one runtime, and the machine itself.
#[derive(Debug)]
pub(super) struct Attachments {
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) execs: Execs,
    pub(super) sessions: Arc<Sessions>,
    /// Whether its operator lets anybody onto the machine itself.
    pub(super) host_access: bool,
}

impl Attachments {
    async fn dial(&self, copy: CopyId, port: u16) -> Result<GuestStream, ApiError> {
        let dialled = self.runtime.dial(copy, port).await;
        dialled.map_err(|error| refusal(&format!("cannot reach port {port} of the VM"), &error))
    }

    /// Has the connection kept for a session that begins, if that can be done.
    async fn keep(&self, copy: CopyId, port: u16, resume: &Resume, far: GuestStream) -> Result<Attached, ApiError> {
        let socket = far.socket().map_err(|error| {
            ApiError::new(ErrorCode::Internal, format!("cannot hold the connection to port {port}: {error}"))
        })?;
        let kept = match socket {
            Some(socket) if resume.version == VERSION => self.sessions.begin((copy, port), resume, socket).await?,
            // A guest in this process, or a client of another release, which can do without.
            _ => None,
        };
        Ok(match kept {
            Some(stream) => Attached { stream: Box::new(stream), resumable: true },
            None => Attached { stream: Box::new(far), resumable: false },
        })
    }
}

#[async_trait]
impl Attach for Attachments {
    async fn attach(&self, copy: CopyId, port: u16) -> Result<BoxedStream, ApiError> {
        Ok(Box::new(self.dial(copy, port).await?))
    }

    async fn attach_resumable(&self, copy: CopyId, port: u16, resume: &Resume) -> Result<Attached, ApiError> {
        if resume.again {
            let stream = self.sessions.go_on((copy, port), resume).await?;
            return Ok(Attached { stream: Box::new(stream), resumable: true });
        }
        let guest = self.dial(copy, port).await?;
        self.keep(copy, port, resume, guest).await
    }

    async fn attach_host(&self, port: u16, resume: Option<&Resume>) -> Result<Attached, ApiError> {
        if !self.host_access {
            let why = "the worker's operator lets nobody onto its host: it runs with --no-host-access";
            return Err(ApiError::new(ErrorCode::Forbidden, why));
        }
        if let Some(resume) = resume.filter(|resume| resume.again) {
            let stream = self.sessions.go_on((HOST, port), resume).await?;
            return Ok(Attached { stream: Box::new(stream), resumable: true });
        }
        let far = GuestStream::from(dial_host(port).await.map_err(|error| {
            let why = match error.kind() {
                io::ErrorKind::ConnectionRefused => "nothing listens there".to_owned(),
                _ => error.to_string(),
            };
            ApiError::new(ErrorCode::Unavailable, format!("cannot reach port {port} of the worker's host: {why}"))
        })?);
        match resume {
            Some(resume) => self.keep(HOST, port, resume, far).await,
            None => Ok(Attached { stream: Box::new(far), resumable: false }),
        }
    }

    async fn forget(&self, resume: &Resume) {
        self.sessions.forget(resume).await;
    }

    async fn locate(&self, copy: CopyId) -> Result<IpAddr, ApiError> {
        self.runtime.address(copy).await.map_err(|error| refusal("the VM's address is not known", &error))
    }

    async fn serve(&self, copy: CopyId, holder: Holder) -> Result<BoxedStream, ApiError> {
        Ok(self.execs.serve(copy, holder))
    }

    fn holders(&self, after: Option<&Holder>) -> Vec<Holder> {
        self.execs.holders(after)
    }

    fn end_execs(&self, holder: &Holder) {
        self.execs.end_of(holder);
    }
}

/// The worker gives nobody a way further than its own machine.
async fn dial_host(port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// What the user is told of a runtime's failure.
pub(super) fn refusal(what: &str, error: &RuntimeError) -> ApiError {
    let code = match error {
        RuntimeError::NotFound => ErrorCode::NotFound,
        RuntimeError::Timeout(_) => ErrorCode::Timeout,
        RuntimeError::Refused(_) | RuntimeError::State(_) => ErrorCode::Unavailable,
        RuntimeError::Image(_) | RuntimeError::Tool(_) | RuntimeError::Io { .. } => ErrorCode::Internal,
    };
    ApiError::new(code, format!("{what}: {error}"))
}
