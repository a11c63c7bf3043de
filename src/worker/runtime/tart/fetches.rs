//! Fetches of images by several VMs: each image once at a time, and only so many images at a time, whoever asks. Who waits
//! is told how far the one is that does the work; if that is given up, the next takes it up.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Semaphore, watch};

use crate::worker::runtime::{Progress, RuntimeError};

/// Images at a time: one fills most networks, and a small one should not wait for a huge one.
const AT_A_TIME: usize = 2;

/// All fetches of a runtime.
#[derive(Debug)]
pub(super) struct Fetches {
    places: Semaphore,
    images: Mutex<Images>,
}

/// By name; with how many calls have to do with each.
type Images = HashMap<String, (Arc<Image>, usize)>;

/// One image that somebody fetches or waits for.
#[derive(Debug)]
struct Image {
    turn: tokio::sync::Mutex<()>,
    /// How often it was fetched since somebody came to wait.
    fetched: AtomicU64,
    told: watch::Sender<String>,
}

/// How an image came to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fetched {
    /// By this call.
    Here,
    /// By another one, while this one waited.
    Elsewhere,
}

impl Default for Fetches {
    fn default() -> Self {
        Self { places: Semaphore::new(AT_A_TIME), images: Mutex::default() }
    }
}

impl Fetches {
    /// Has `fetch` done, which says how far it is through the [`Progress`] that it is given, unless another call fetches the
    /// same image while this one waits for it.
    ///
    /// Cancel safe: the next who waits takes over.
    ///
    /// # Errors
    /// Those of `fetch`.
    pub(super) async fn fetch<F: Future<Output = Result<(), RuntimeError>> + Send>(
        &self,
        name: &str,
        progress: &Progress,
        fetch: impl FnOnce(Progress) -> F + Send,
    ) -> Result<Fetched, RuntimeError> {
        let image = self.join(name);
        let _leaving = Leaving { fetches: self, name };
        let before = image.fetched.load(Ordering::Acquire);
        let _turn = wait_told(image.turn.lock(), &image, progress, "waiting for another VM that needs it, too").await;
        if image.fetched.load(Ordering::Acquire) != before {
            return Ok(Fetched::Elsewhere);
        }
        let _place = match self.places.try_acquire() {
            Ok(place) => Ok(place),
            Err(_) => {
                progress.say("waiting until another image has been pulled");
                self.places.acquire().await
            }
        };
        let (own, mut told) = Progress::new();
        let mut fetching = std::pin::pin!(fetch(own));
        loop {
            // Cancel safe: the fetch is polled in place.
            tokio::select! {
                fetched = &mut fetching => {
                    fetched?;
                    image.fetched.fetch_add(1, Ordering::AcqRel);
                    return Ok(Fetched::Here);
                }
                Ok(()) = told.changed() => {
                    let text = told.borrow_and_update().clone();
                    image.told.send_replace(text.clone());
                    progress.say(text);
                }
            }
        }
    }

    fn join(&self, name: &str) -> Arc<Image> {
        let new = || {
            let (turn, fetched) = (tokio::sync::Mutex::default(), AtomicU64::new(0));
            (Arc::new(Image { turn, fetched, told: watch::Sender::default() }), 0)
        };
        let mut images = self.images();
        let (image, users) = images.entry(name.to_owned()).or_insert_with(new);
        *users += 1;
        image.clone()
    }

    fn images(&self) -> MutexGuard<'_, Images> {
        // Nothing panics while it is held.
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for `turn`; says meanwhile how far the one is that has it.
async fn wait_told<T>(turn: impl Future<Output = T>, image: &Image, progress: &Progress, why: &str) -> T {
    let mut turn = std::pin::pin!(turn);
    let mut told = image.told.subscribe();
    loop {
        // Cancel safe; and a turn that can be had at once is taken without a word.
        tokio::select! {
            biased;
            turn = &mut turn => return turn,
            () = std::future::ready(()) => {}
        }
        let far = told.borrow_and_update().clone();
        progress.say(if far.is_empty() { why.to_owned() } else { format!("{far}, for another VM, too") });
        tokio::select! {
            turn = &mut turn => return turn,
            Ok(()) = told.changed() => {}
        }
    }
}

/// Forgets an image that nobody fetches or waits for any more.
struct Leaving<'a> {
    fetches: &'a Fetches,
    name: &'a str,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        let mut images = self.fetches.images();
        if let Some((_, users)) = images.get_mut(self.name) {
            *users -= 1;
            if *users == 0 {
                images.remove(self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use super::*;

    /// Fetches for a second; yields how often and how many at the same time at most.
    async fn all(images: &[&str]) -> (usize, usize) {
        let (fetches, count) = (Fetches::default(), AtomicUsize::new(0));
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let one = |image: &&str| {
            let image = (*image).to_owned();
            let (fetches, count, now, most) = (&fetches, &count, &now, &most);
            async move {
                let work = |progress: Progress| async move {
                    count.fetch_add(1, Ordering::SeqCst);
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    progress.say("half-way");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    now.fetch_sub(1, Ordering::SeqCst);
                    Ok(())
                };
                fetches.fetch(&image, &Progress::new().0, work).await.unwrap()
            }
        };
        let fetched = futures_util::future::join_all(images.iter().map(one)).await;
        let here = fetched.iter().filter(|fetched| **fetched == Fetched::Here).count();
        assert_eq!(here, count.load(Ordering::SeqCst));
        assert!(fetches.images().is_empty(), "nothing is remembered");
        (here, most.load(Ordering::SeqCst))
    }

    #[tokio::test(start_paused = true)]
    async fn one_image_is_fetched_once_and_only_some_images_at_a_time() {
        assert_eq!(all(&["a", "a", "a", "a"]).await, (1, 1));
        assert_eq!(all(&["a", "b", "c", "d", "a"]).await, (4, AT_A_TIME));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_told_how_far_it_is_and_takes_over_what_is_given_up() {
        let fetches = Fetches::default();
        let (first, second) = (Progress::new(), Progress::new());
        let mut given_up = Box::pin(fetches.fetch("a", &first.0, |progress| async move {
            progress.say("half-way");
            std::future::pending().await
        }));
        let mut waiting = Box::pin(fetches.fetch("a", &second.0, |_| std::future::ready(Ok(()))));
        for _ in 0..3 {
            tokio::select! {
                biased;
                _ = &mut given_up => panic!("it never ends"),
                _ = &mut waiting => panic!("it waits"),
                () = tokio::task::yield_now() => {}
            }
        }
        assert_eq!(*first.1.borrow(), "half-way");
        assert_eq!(*second.1.borrow(), "half-way, for another VM, too");
        drop(given_up);
        assert_eq!(waiting.await.unwrap(), Fetched::Here);
        assert!(fetches.images().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_fetch_that_fails_is_tried_by_the_next() {
        let fetches = Fetches::default();
        let failed = || async { Err(RuntimeError::Image("gone".into())) };
        let progress = Progress::new().0;
        let (one, other) = tokio::join!(
            fetches.fetch("a", &progress, |_| async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                failed().await
            }),
            fetches.fetch("a", &progress, |_| async { Ok(()) }),
        );
        assert!(one.is_err());
        assert_eq!(other.unwrap(), Fetched::Here);
    }
}
