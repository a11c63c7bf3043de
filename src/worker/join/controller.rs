//! What joining needs of the controller: a login with a key, and the exchange of a bootstrap token. Used by
//! [`super::Candidate`], whose tests have a controller of their own.

use std::time::Duration;

use tokio::time::Instant;

use super::{JoinError, Member};
use crate::bus::access::{Join, Joined};
use crate::bus::client::{Bus, BusOptions, Login, REQUEST_TIMEOUT, Trust};
use crate::bus::subject;
use crate::config::join::BootstrapToken;
use crate::model::error::{ApiError, ErrorCode};

/// How long a controller that cannot be reached is waited for before joining is given up: it may be starting, too.
const JOIN_PATIENCE: Duration = Duration::from_secs(60);
/// The pause between two attempts.
const JOIN_PAUSE: Duration = Duration::from_secs(1);

/// The controller, as joining sees it.
pub(super) trait Controller {
    /// Whether the key of `member` is known there.
    ///
    /// # Errors
    /// [`ErrorCode::Unauthenticated`] if not; others when that cannot be found out.
    async fn knows(&self, member: &Member) -> Result<(), ApiError>;

    /// Logs in with the token's secret and asks to join. Asking again for the same key is answered the same.
    ///
    /// # Errors
    /// [`JoinError::TokenRefused`], or what the controller or the bus says.
    async fn join(&self, token: &BootstrapToken, request: &Join) -> Result<(), JoinError>;
}

/// The one on the bus.
pub(super) struct OnBus;

impl Controller for OnBus {
    async fn knows(&self, member: &Member) -> Result<(), ApiError> {
        Bus::connect(BusOptions { patient: false, ..member.bus() }).await.map(drop)
    }

    async fn join(&self, token: &BootstrapToken, request: &Join) -> Result<(), JoinError> {
        let deadline = Instant::now() + JOIN_PATIENCE;
        let mut told = false;
        loop {
            match ask(token, request).await {
                Ok(Joined {}) => return Ok(()),
                Err(error) if error.code == ErrorCode::Unauthenticated => {
                    return Err(JoinError::TokenRefused { url: token.url.clone() });
                }
                Err(error)
                    if matches!(error.code, ErrorCode::Unavailable | ErrorCode::Timeout)
                        && Instant::now() + JOIN_PAUSE < deadline =>
                {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!("{error}; trying again for {JOIN_PATIENCE:?}");
                    }
                    tokio::time::sleep(JOIN_PAUSE).await;
                }
                Err(error) => return Err(JoinError::Bus(error)),
            }
        }
    }
}

async fn ask(token: &BootstrapToken, request: &Join) -> Result<Joined, ApiError> {
    let bus = Bus::connect(BusOptions {
        url: token.url.clone(),
        trust: Trust::of(&token.url, token.fingerprint),
        user: subject::join_user(&token.id),
        login: Login::Password(token.secret.clone()),
        client_name: format!("orchard worker {} (joining)", request.worker),
        patient: false,
    })
    .await?;
    bus.request(subject::join(&token.id), request, REQUEST_TIMEOUT).await
}
