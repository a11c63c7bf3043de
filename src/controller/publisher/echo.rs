//! Whether the bus has all that was published over a connection: a message to oneself comes back behind it. (async-nats's
//! `flush` only says that the socket has it.) Used by the publisher, and by the service, whose subscriptions must be there before
//! anybody is told that it answers.

use std::time::Duration;

use async_nats::Subscriber;
use bytes::Bytes;
use futures_util::StreamExt;

use crate::bus::client::Bus;
use crate::model::error::{ApiError, ErrorCode};

/// How long the echo may take before all is published once more.
const DEADLINE: Duration = Duration::from_secs(10);

/// An own subject, below the own inbox, where no right beyond those that answers need is asked for. Made anew after an error.
pub(in crate::controller) struct Echo {
    bus: Bus,
    subject: String,
    echoes: Subscriber,
    /// Of the connection when it was sound.
    disturbances: u64,
    sent: u64,
}

/// Tries of [`settled`].
const TRIES: usize = 5;

/// Returns once the bus has all that was published and subscribed over this connection. One that is made anew meanwhile brings its
/// subscriptions along, so it is only asked again; that it was made at all may be told late, too. Not cancel safe.
///
/// # Errors
/// As [`Echo::heard`].
pub(in crate::controller) async fn settled(bus: &Bus) -> Result<(), ApiError> {
    let mut tries = 1;
    loop {
        match async { Echo::over(bus).await?.heard().await }.await {
            Err(error) if error.code == ErrorCode::Unavailable && tries < TRIES => tries += 1,
            other => return other,
        }
    }
}

impl Echo {
    /// From here on nothing is lost unnoticed.
    ///
    /// # Errors
    /// When the bus takes no subscription.
    pub(in crate::controller) async fn over(bus: &Bus) -> Result<Self, ApiError> {
        let (subject, disturbances) = (bus.raw().new_inbox(), bus.disturbances());
        let echoes = bus.subscribe(&subject).await?;
        Ok(Self { bus: bus.clone(), subject, echoes, disturbances, sent: 0 })
    }

    /// Returns once the bus has everything that was published over this connection since this was made. Not cancel safe.
    ///
    /// # Errors
    /// [`ErrorCode::Timeout`] and [`ErrorCode::Unavailable`]: then some of it may be lost.
    pub(in crate::controller) async fn heard(&mut self) -> Result<(), ApiError> {
        self.sent += 1;
        let number = self.sent.to_be_bytes();
        self.bus.publish(self.subject.clone(), None, Bytes::copy_from_slice(&number)).await?;
        let back = async {
            while let Some(echo) = self.echoes.next().await {
                if echo.payload[..] == number {
                    return true;
                }
            }
            false
        };
        let lost = |why: &str| Err(ApiError::new(ErrorCode::Unavailable, why));
        match tokio::time::timeout(DEADLINE, back).await {
            Err(_) => Err(ApiError::new(ErrorCode::Timeout, "the bus does not confirm what was published")),
            Ok(false) => lost("the connection to the bus is over"),
            Ok(true) if self.bus.disturbances() != self.disturbances => lost("the connection to the bus was made anew"),
            Ok(true) => Ok(()),
        }
    }
}
