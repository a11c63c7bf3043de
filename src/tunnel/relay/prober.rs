//! Sees whether connected workers answer, and has exec sessions end that nobody may hold any more: one task for all of them, as
//! a timer for each of thousands of connections took more than everything else that an idle fleet costs. Started by the relay.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, timeout};
use tracing::debug;

use super::{Shared, holders, reach, session};

/// Workers asked after one look; a fleet that has just come back is asked bit by bit.
const AT_ONCE: usize = 200;

/// How long one worker may take to tell who holds exec sessions on it.
const REVIEW: Duration = Duration::from_secs(50);

/// Looks and asks for as long as this is polled.
pub(super) async fn run(shared: Arc<Shared>) -> Infallible {
    let mut looks = tokio::time::interval(reach::LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // No more than one for each connection, as who is being asked is not asked again.
    let mut asking = JoinSet::new();
    loop {
        // Both are cancel safe.
        tokio::select! {
            _ = looks.tick() => {}
            () = shared.rights_changed.notified() => shared.links.ask_all(),
        }
        while asking.try_join_next().is_some() {}
        for (worker, connection) in shared.links.look(AT_ONCE) {
            let shared = shared.clone();
            asking.spawn(async move {
                let answer = session::ping(&shared, &connection, &worker, reach::ANSWER).await;
                let holds = answer.as_ref().is_ok_and(|holds| *holds);
                shared.links.answered(&worker, &connection, answer.map(drop).map_err(|why| why.message));
                if holds {
                    // A worker that answers slowly is asked on at the next look.
                    let review = timeout(REVIEW, holders::review(&shared, &connection, &worker)).await;
                    if !matches!(review, Ok(Ok(()))) {
                        debug!(%worker, "it is not known whose exec sessions are there");
                    }
                }
            });
        }
    }
}
