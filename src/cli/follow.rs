//! Following what the controller stores, page by page: what `events`, `audit` and `logs` have in common. What the bus
//! delivers is a signal to ask; so nothing is missed, printed twice or out of order.

use async_nats::Subscriber;
use futures_util::{FutureExt as _, StreamExt as _};

use crate::client::events::SILENCE;
use crate::client::is_passing;

/// Whether the controller answered when it was last asked.
#[derive(Debug, Default)]
pub(super) struct Outage {
    told: bool,
}

impl Outage {
    /// What came of asking; none when it failed in a way that may be over at the next try, of which the first is told.
    pub(super) fn bear<T>(&mut self, asked: anyhow::Result<T>) -> anyhow::Result<Option<T>> {
        match asked {
            Ok(answer) => {
                self.told = false;
                Ok(Some(answer))
            }
            Err(error) if error.downcast_ref().is_some_and(is_passing) => {
                if !std::mem::replace(&mut self.told, true) {
                    eprintln!("waiting for the controller: {error}");
                }
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// Calls `show_rest` at each signal, and after each [`SILENCE`], until it says that no more will come.
pub(super) async fn follow(
    signals: &mut Subscriber,
    mut show_rest: impl AsyncFnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let mut outage = Outage::default();
    loop {
        match tokio::time::timeout(SILENCE, signals.next()).await {
            // One look answers all that are here already.
            Ok(Some(_)) => while let Some(Some(_)) = signals.next().now_or_never() {},
            // The subscription is over: go on by asking alone.
            Ok(None) => tokio::time::sleep(SILENCE).await,
            Err(_) => {}
        }
        if let Some(false) = outage.bear(show_rest().await)? {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::error::{ApiError, ErrorCode};

    #[test]
    fn a_controller_that_is_away_is_waited_for_and_a_refusal_is_not() {
        let mut outage = Outage::default();
        let mut asked = |code| outage.bear::<()>(Err(ApiError::new(code, "x").into()));
        assert!(matches!(asked(ErrorCode::Unavailable), Ok(None)) && matches!(asked(ErrorCode::Timeout), Ok(None)));
        assert!(asked(ErrorCode::Unauthenticated).is_err() && asked(ErrorCode::Forbidden).is_err());
        assert!(outage.told);
        assert!(matches!(outage.bear(Ok(1)), Ok(Some(1))) && !outage.told);
    }
}
