//! The client's side: a connection to the relay over which streams into VMs are opened, one ticket each.

use std::fmt;
use std::time::Duration;

use quinn::Connection;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};

use super::Address;
use super::dial::{DialError, Dialled, dial};
use super::endpoint::Transport;
use super::header::{Frame, Resume};
use super::reason::{self, Reason};
use super::stream::TunnelStream;
use crate::identity::ca::Fingerprint;
use crate::model::error::{ApiError, ErrorCode};
use crate::model::secret::Secret;

/// A client of the relay; share it behind an `Arc`. Connects again by itself when the relay was restarted or has closed
/// an idle connection. Streams keep the connection alive after the client is dropped.
pub struct Client {
    address: Address,
    fingerprint: Fingerprint,
    transport: Transport,
    /// The lock is held during a dial, so that many opens at once lead to one dial.
    dialled: Mutex<Dialled>,
}

impl Client {
    /// Connects to the relay at `address`, which must show the certificate `fingerprint`.
    ///
    /// # Errors
    /// See [`DialError`]; it takes no longer than [`DIAL_DEADLINE`](super::DIAL_DEADLINE) for each address of the host.
    pub async fn connect(
        address: impl Into<Address>,
        fingerprint: Fingerprint,
        transport: Transport,
    ) -> Result<Self, DialError> {
        let address = address.into();
        let dialled = dial(&address, fingerprint, transport).await?;
        Ok(Self { address, fingerprint, transport, dialled: Mutex::new(dialled) })
    }

    /// Opens the stream that `ticket` stands for; at the latest after `deadline` there is an answer.
    ///
    /// # Errors
    /// The refusal of relay or worker, with its reason; [`ErrorCode::Timeout`]; or why there is no connection.
    /// The ticket is used up unless the relay could not be reached at all.
    pub async fn open(&self, ticket: &Secret, deadline: Duration) -> Result<TunnelStream, ApiError> {
        Ok(self.open_with(ticket, None, deadline).await?.0)
    }

    /// The same for a session that shall be resumable, or goes on: the stream then carries the frames of
    /// [`resume`](super::resume). Yields whether it does; where relay or worker know nothing of it, or it cannot be done, the
    /// stream is a plain one.
    ///
    /// # Errors
    /// As for [`Client::open`].
    pub async fn open_resumable(
        &self,
        ticket: &Secret,
        resume: Resume,
        deadline: Duration,
    ) -> Result<(TunnelStream, bool), ApiError> {
        self.open_with(ticket, Some(resume), deadline).await
    }

    async fn open_with(
        &self,
        ticket: &Secret,
        resume: Option<Resume>,
        deadline: Duration,
    ) -> Result<(TunnelStream, bool), ApiError> {
        let late = |_| {
            ApiError::new(ErrorCode::Timeout, format!("the tunnel was not open after {} s", deadline.as_secs_f32()))
        };
        let until = Instant::now() + deadline;
        let connection = timeout_at(until, self.living()).await.map_err(late)??;
        let lost = |what: String| {
            ApiError::new(ErrorCode::Unavailable, format!("the connection to {} was lost: {what}", self.address))
        };
        let opened = timeout_at(until, connection.open_bi()).await.map_err(late)?;
        let halves = opened.map_err(|error| lost(reason::describe(&error)))?;
        let mut stream = TunnelStream::new(&connection, halves, self.transport.turns);
        let answer = timeout_at(until, async {
            stream.write_frame(&Frame::Open { ticket: ticket.clone(), resume }).await?;
            stream.read_frame().await
        })
        .await
        .map_err(late)?;
        match answer {
            Ok(Frame::Opened { resumable }) => Ok((stream, resumable)),
            Ok(Frame::Refused(refusal)) => Err(refusal),
            Ok(_) => Err(ApiError::new(ErrorCode::Internal, "the tunnel endpoint gave an answer that does not fit")),
            Err(error) => match connection.close_reason() {
                Some(closed) => Err(lost(reason::describe(&closed))),
                None => Err(error.into()),
            },
        }
    }

    /// Ends all streams and tells the relay. What a finished `shutdown` of a stream has sent is still delivered.
    pub async fn close(&self) {
        self.dialled.lock().await.close(Reason::Closed).await;
    }

    async fn living(&self) -> Result<Connection, DialError> {
        let mut dialled = self.dialled.lock().await;
        if dialled.connection.close_reason().is_some() {
            *dialled = dial(&self.address, self.fingerprint, self.transport).await?;
        }
        Ok(dialled.connection.clone())
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("address", &self.address).finish_non_exhaustive()
    }
}
