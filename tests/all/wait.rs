//! Waiting for conditions: the one place in the tests that sleeps.

use std::fmt::Debug;
use std::future::Future;
use std::time::{Duration, Instant};

/// Within this a change of rights must have reached connections that are open. Promised is a second; these tests run beside
/// all others, on machines where a second says nothing, and most count from before the request for the change, with its login.
/// What is not told of a change goes on for ever, and silence is noticed after 20 s only.
pub const PROMPT: Duration = Duration::from_secs(15);

/// Asks `probe` every 20 ms until it yields `Ok`; panics with its last `Err` after `limit`.
pub async fn until<T, E: Debug, F: Future<Output = Result<T, E>>>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> F,
) -> T {
    let started = Instant::now();
    loop {
        match probe().await {
            Ok(value) => return value,
            Err(last) if started.elapsed() > limit => panic!("waited {limit:?} for {what}; last: {last:?}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}
