//! How long a user has not been let in, and when that is taken to be for good. Used by [`super::client::Bus`].

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// Refusals in a row after which a user may be taken to be shut out for good. One may be an accident, such as of an attempt
/// in the instant in which the rights are changed; so many are none.
const ENOUGH: u32 = 3;

/// Refusals in a row: how many, and from when to when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    times: u32,
    first: Instant,
    last: Instant,
}

impl Row {
    /// The row after one more refusal.
    pub(super) fn and(row: Option<Self>, now: Instant) -> Self {
        match row {
            Some(row) => Self { times: row.times.saturating_add(1), last: now, ..row },
            None => Self { times: 1, first: now, last: now },
        }
    }

    fn is_no_accident(self) -> bool {
        self.times >= ENOUGH
    }

    /// Whether there were enough, over no less than `after`. Time alone does not do it: in an outage nobody refuses anything.
    fn is_for_good(self, after: Duration) -> bool {
        self.is_no_accident() && self.last.saturating_duration_since(self.first) >= after
    }
}

/// Returns once the row is one for good. Once in each row that goes on but is not yet, calls `tell` with the time that is
/// left. Never returns when nothing is told of the row any more. Cancel safe.
pub(super) async fn for_good(mut rows: watch::Receiver<Option<Row>>, after: Duration, mut tell: impl FnMut(Duration)) {
    let mut told = None;
    loop {
        match *rows.borrow_and_update() {
            Some(row) if row.is_for_good(after) => return,
            Some(row) if row.is_no_accident() && told != Some(row.first) => {
                told = Some(row.first);
                tell(after.saturating_sub(row.first.elapsed()));
            }
            Some(_) | None => {}
        }
        if rows.changed().await.is_err() {
            // The connection is over, and with it all that could be said.
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    struct World {
        rows: watch::Sender<Option<Row>>,
    }

    impl World {
        fn new() -> Self {
            Self { rows: watch::channel(None).0 }
        }

        fn refuse(&self) {
            self.rows.send_modify(|row| *row = Some(Row::and(*row, Instant::now())));
        }

        fn is_for_good(&self, after: Duration) -> bool {
            for_good(self.rows.subscribe(), after, |_| ()).now_or_never().is_some()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_time_so_many_refusals_are_enough() {
        let world = World::new();
        for refusals in 0..5 {
            assert_eq!(world.is_for_good(Duration::ZERO), refusals >= ENOUGH);
            world.refuse();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn with_a_time_they_must_go_on_for_as_long() {
        let world = World::new();
        for _ in 0..60 {
            world.refuse();
            assert!(!world.is_for_good(60 * SECOND));
            tokio::time::advance(SECOND).await;
        }
        assert!(!world.is_for_good(60 * SECOND), "no refusal has come since");
        world.refuse();
        assert!(world.is_for_good(60 * SECOND));
    }

    #[tokio::test(start_paused = true)]
    async fn few_refusals_are_never_enough_however_long_it_takes() {
        let world = World::new();
        for _ in 1..ENOUGH {
            assert!(!world.is_for_good(SECOND));
            world.refuse();
            tokio::time::advance(3600 * SECOND).await;
        }
        assert!(!world.is_for_good(SECOND));
    }

    #[tokio::test(start_paused = true)]
    async fn once_let_in_the_time_begins_anew_and_each_row_is_told_of_once() {
        let world = World::new();
        let mut told = Vec::new();
        let mut waits = Box::pin(for_good(world.rows.subscribe(), 60 * SECOND, |left| told.push(left)));
        for _ in 0..2 {
            for _ in 0..50 {
                world.refuse();
                assert!(waits.as_mut().now_or_never().is_none());
                tokio::time::advance(SECOND).await;
            }
            world.rows.send_replace(None);
            assert!(waits.as_mut().now_or_never().is_none());
        }
        drop(waits);
        assert_eq!(told, [58 * SECOND; 2]);
    }
}
