//! Commands in VMs that the VM's worker holds: they outlive whoever began them, and what they said is kept, numbered, for who
//! attaches again. What is said on the way is [`crate::tunnel::exec`].
//!
//! ```no_run
//! use orchard::client::Client;
//! use orchard::client::exec::Exec;
//! use orchard::tunnel::exec::{OpenExec, RunExec, Told};
//!
//! # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
//! let dialer = client.dialer();
//! let open = OpenExec { session: "nightly".into(), after: 0, run: Some(RunExec::shell("make -C /src check")) };
//! let mut exec = Exec::attach(&dialer, &"build-1".parse()?, open).await?;
//! let code = loop {
//!     match exec.next().await? {
//!         Told::Stdout { data, .. } => print!("{}", String::from_utf8_lossy(&data)),
//!         Told::Stderr { data, .. } => eprint!("{}", String::from_utf8_lossy(&data)),
//!         Told::Exited { code, .. } => break code,
//!         // After a lost link: attach again, with the number of the last record that was seen as `after`.
//!         other => eprintln!("{other:?}"),
//!     }
//! };
//! assert_eq!(code, 0);
//! dialer.close().await;
//! # Ok(()) }
//! ```

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{ReadHalf, WriteHalf};
use tokio::time::timeout;
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};

use super::tunnel::{Dialer, Place, Stream};
use crate::model::VmName;
use crate::model::error::{ApiError, ErrorCode};
use crate::tunnel::exec::{Asked, ExecView, OpenExec, Told, codec, decode, encode};
use crate::tunnel::header::EXEC_PORT;

/// How long the worker may take to let somebody in: as long as its own login into the guest, and the way.
pub const ATTACH_WAIT: Duration = Duration::from_secs(30);

/// A stream to the sessions that a VM's worker holds; or, once attached, to one of them. Dropping it leaves the session as it is.
#[derive(Debug)]
pub struct Exec {
    from: ExecOutput,
    to: ExecInput,
}

/// What comes from a session.
#[derive(Debug)]
pub struct ExecOutput(FramedRead<ReadHalf<Stream>, LengthDelimitedCodec>);

/// What goes to it.
#[derive(Debug)]
pub struct ExecInput(FramedWrite<WriteHalf<Stream>, LengthDelimitedCodec>);

impl Exec {
    /// Attaches to a session of this account in `vm`, which is begun if there is none and `open` says how.
    ///
    /// # Errors
    /// As for [`Dialer::open`]; [`ErrorCode::NotFound`] when there is no such session and it was not said how to begin one,
    /// [`ErrorCode::Conflict`] when it runs something else.
    pub async fn attach(dialer: &Dialer, vm: &VmName, open: OpenExec) -> Result<Self, ApiError> {
        let mut exec = Self::dial(dialer, vm).await?;
        match exec.ask(&Asked::Open(Box::new(open))).await? {
            Told::Attached { .. } => Ok(exec),
            _ => Err(unfit()),
        }
    }

    /// The sessions of this account in `vm`, those of the last ten minutes that have ended included.
    ///
    /// # Errors
    /// As for [`Dialer::open`].
    pub async fn list(dialer: &Dialer, vm: &VmName) -> Result<Vec<ExecView>, ApiError> {
        match Self::dial(dialer, vm).await?.ask(&Asked::List {}).await? {
            Told::Sessions { sessions } => Ok(sessions),
            _ => Err(unfit()),
        }
    }

    /// Ends the command of a session of this account in `vm`.
    ///
    /// # Errors
    /// As for [`Dialer::open`]; [`ErrorCode::NotFound`] when there is no such session.
    pub async fn end(dialer: &Dialer, vm: &VmName, session: &str) -> Result<(), ApiError> {
        Self::dial(dialer, vm).await?.ask(&Asked::End { session: session.to_owned() }).await.map(drop)
    }

    async fn dial(dialer: &Dialer, vm: &VmName) -> Result<Self, ApiError> {
        Ok(Self::over(dialer.open(&Place::Vm(vm.clone()), EXEC_PORT).await?.stream))
    }

    /// One over a stream that was opened to [`EXEC_PORT`].
    pub fn over(stream: Stream) -> Self {
        let (from, to) = tokio::io::split(stream);
        Self { from: ExecOutput(FramedRead::new(from, codec())), to: ExecInput(FramedWrite::new(to, codec())) }
    }

    /// Asks, and waits for the first answer, [`ATTACH_WAIT`] at most.
    ///
    /// # Errors
    /// What the worker refused; [`ErrorCode::Unavailable`] and [`ErrorCode::Timeout`] when it does not answer.
    pub async fn ask(&mut self, asked: &Asked) -> Result<Told, ApiError> {
        let answered = async {
            self.to.say(asked).await?;
            match self.from.next().await? {
                Told::Refused(refusal) => Err(refusal),
                told => Ok(told),
            }
        };
        timeout(ATTACH_WAIT, answered).await.unwrap_or_else(|_| {
            let why = format!("the worker did not answer within {} s", ATTACH_WAIT.as_secs());
            Err(ApiError::new(ErrorCode::Timeout, why))
        })
    }

    /// As [`ExecOutput::next`].
    ///
    /// # Errors
    /// As there.
    pub async fn next(&mut self) -> Result<Told, ApiError> {
        self.from.next().await
    }

    /// As [`ExecInput::say`].
    ///
    /// # Errors
    /// As there.
    pub async fn say(&mut self, asked: &Asked) -> Result<(), ApiError> {
        self.to.say(asked).await
    }

    /// Both ways apart, to read and write at a time.
    pub fn split(self) -> (ExecOutput, ExecInput) {
        (self.from, self.to)
    }
}

impl ExecOutput {
    /// The next that is said. The sender is held back while nobody asks. Cancel safe.
    ///
    /// # Errors
    /// [`ErrorCode::Unavailable`] when the link is lost or closed; the session goes on.
    pub async fn next(&mut self) -> Result<Told, ApiError> {
        let frame = match self.0.next().await {
            Some(frame) => frame.map_err(|error| lost(&error))?,
            None => return Err(lost(&"the worker closed the stream")),
        };
        decode(&frame).map_err(|error| lost(&error))
    }
}

impl ExecInput {
    /// Says something. Not cancel safe: it may be half said, and nothing can be said any more then.
    ///
    /// # Errors
    /// [`ErrorCode::Unavailable`] when the link is lost, also by something too long for it.
    pub async fn say(&mut self, asked: &Asked) -> Result<(), ApiError> {
        self.0.send(encode(asked)?).await.map_err(|error| lost(&error))
    }
}

fn lost(why: &dyn std::fmt::Display) -> ApiError {
    ApiError::new(ErrorCode::Unavailable, why.to_string())
}

fn unfit() -> ApiError {
    ApiError::new(ErrorCode::Internal, "the worker gave an answer that does not fit")
}
