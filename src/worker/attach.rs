//! Serves tunnel streams: connects each to the port of the copy that its header names. A session that can be resumed goes over
//! the session keeper, which holds its connection to the guest.

use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;

use super::execs::Execs;
use super::runtime::{GuestStream, Runtime, RuntimeError};
use super::sessions::Sessions;
use crate::duplex::BoxedStream;
use crate::model::error::{ApiError, ErrorCode};
use crate::model::{AccountName, CopyId};
use crate::tunnel::header::Resume;
use crate::tunnel::resume::VERSION;
use crate::tunnel::worker::{Attach, Attached};

/// Reaches the VMs of one runtime.
#[derive(Debug)]
pub(super) struct Attachments {
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) execs: Execs,
    pub(super) sessions: Arc<Sessions>,
}

impl Attachments {
    async fn dial(&self, copy: CopyId, port: u16) -> Result<GuestStream, ApiError> {
        let dialled = self.runtime.dial(copy, port).await;
        dialled.map_err(|error| refusal(&format!("cannot reach port {port} of the VM"), &error))
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
        let socket = guest.socket().map_err(|error| {
            ApiError::new(ErrorCode::Internal, format!("cannot hold the connection to the VM: {error}"))
        })?;
        let kept = match socket {
            Some(socket) if resume.version == VERSION => self.sessions.begin((copy, port), resume, socket).await?,
            // A guest in this process, or a client of another release, which can do without.
            _ => None,
        };
        Ok(match kept {
            Some(stream) => Attached { stream: Box::new(stream), resumable: true },
            None => Attached { stream: Box::new(guest), resumable: false },
        })
    }

    async fn forget(&self, resume: &Resume) {
        self.sessions.forget(resume).await;
    }

    async fn locate(&self, copy: CopyId) -> Result<IpAddr, ApiError> {
        self.runtime.address(copy).await.map_err(|error| refusal("the VM's address is not known", &error))
    }

    async fn serve(&self, copy: CopyId, account: AccountName) -> Result<BoxedStream, ApiError> {
        Ok(self.execs.serve(copy, account))
    }
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
