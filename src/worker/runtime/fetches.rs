//! Fetches of images, for VMs and ahead of them: each image once at a time, and only so many images at a time, whoever asks.
//! Who waits is told how far the one is that does the work; if that is given up, the next takes it up. Used by every runtime
//! that has images. What is fetched ahead of need never takes the last place, nor makes a VM wait for its turn.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{OwnedMutexGuard, Semaphore, SemaphorePermit, watch};

use super::{Progress, RuntimeError};

/// Images at a time: one fills most networks, a small one should not wait for a huge one, and more would all be late.
const AT_A_TIME: usize = 2;

/// Of these, for what nobody waits for; it queues before it has any claim to an image.
const AHEAD: usize = 1;

/// Who waits for an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Urgency {
    /// A VM.
    Needed,
    /// Nobody yet.
    Ahead,
}

/// All fetches of a runtime.
#[derive(Debug)]
pub(super) struct Fetches {
    places: Semaphore,
    ahead: Semaphore,
    images: Mutex<Images>,
}

/// By name; those that nobody fetches or waits for go with the next call.
type Images = HashMap<String, Weak<Image>>;

/// One image that somebody fetches or waits for.
#[derive(Debug, Default)]
struct Image {
    turn: Arc<tokio::sync::Mutex<()>>,
    /// How often it was fetched since somebody came to wait.
    fetched: AtomicU64,
    told: watch::Sender<String>,
}

/// The right to fetch an image, which nobody else has while a clone of it lives: work that outlives a fetch that was given
/// up, such as a write under way, keeps one.
#[derive(Clone, Debug)]
pub(super) struct Turn(#[allow(dead_code)] Arc<(OwnedMutexGuard<()>, Arc<Image>)>); // held, never looked at

/// How an image came to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fetched<T> {
    /// By this call.
    Here(T),
    /// By another one, while this one waited.
    Elsewhere,
}

impl Default for Fetches {
    fn default() -> Self {
        Self { places: Semaphore::new(AT_A_TIME), ahead: Semaphore::new(AHEAD), images: Mutex::default() }
    }
}

impl Fetches {
    /// Has `fetch` done, which says how far it is through the [`Progress`] that it is given, unless another call fetches the
    /// same image while this one waits for it.
    ///
    /// Cancel safe: the next who waits takes over, once no clone of the [`Turn`] is left.
    ///
    /// # Errors
    /// Those of `fetch`.
    pub(super) async fn fetch<T: Send, F: Future<Output = Result<T, RuntimeError>> + Send>(
        &self,
        (name, urgency): (&str, Urgency),
        progress: &Progress,
        fetch: impl FnOnce(Progress, Turn) -> F + Send,
    ) -> Result<Fetched<T>, RuntimeError> {
        let _ahead = match urgency {
            Urgency::Needed => None,
            Urgency::Ahead => Some(wait_for(&self.ahead, progress).await),
        };
        let image = self.join(name);
        let before = image.fetched.load(Ordering::Acquire);
        let turn = image.turn.clone().lock_owned();
        let turn = wait_told(turn, &image, progress, "waiting for the image, which is on its way for another VM").await;
        if image.fetched.load(Ordering::Acquire) != before {
            return Ok(Fetched::Elsewhere);
        }
        let turn = Turn(Arc::new((turn, image.clone())));
        let _place = wait_for(&self.places, progress).await;
        let (own, mut told) = Progress::new();
        // Kept here, too: not every fetch has work that outlives it.
        let mut fetching = std::pin::pin!(fetch(own, turn.clone()));
        loop {
            // Cancel safe: the fetch is polled in place.
            tokio::select! {
                fetched = &mut fetching => {
                    let fetched = fetched?;
                    image.fetched.fetch_add(1, Ordering::AcqRel);
                    return Ok(Fetched::Here(fetched));
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
        // Nothing panics while it is held.
        let mut images: MutexGuard<'_, Images> = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        images.retain(|_, image| image.strong_count() > 0);
        if let Some(image) = images.get(name).and_then(Weak::upgrade) {
            return image;
        }
        let image = Arc::default();
        images.insert(name.to_owned(), Arc::downgrade(&image));
        image
    }
}

/// A place; says so if there is none yet. None is ever taken away, so there is no error.
async fn wait_for<'a>(places: &'a Semaphore, progress: &Progress) -> Option<SemaphorePermit<'a>> {
    match places.try_acquire() {
        Ok(place) => Some(place),
        Err(_) => {
            progress.say("waiting until another image has been fetched");
            places.acquire().await.ok()
        }
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use super::*;

    impl Fetches {
        fn is_idle(&self) -> bool {
            self.images.lock().unwrap().values().all(|image| image.strong_count() == 0)
        }
    }

    /// Fetches for a second; yields how often and how many at the same time at most.
    async fn all(images: &[&str]) -> (usize, usize) {
        let (fetches, count) = (Fetches::default(), AtomicUsize::new(0));
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let one = |image: &&str| {
            let image = (*image).to_owned();
            let (fetches, count, now, most) = (&fetches, &count, &now, &most);
            async move {
                let work = |progress: Progress, _turn: Turn| async move {
                    count.fetch_add(1, Ordering::SeqCst);
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    progress.say("half-way");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    now.fetch_sub(1, Ordering::SeqCst);
                    Ok(())
                };
                fetches.fetch((&image, Urgency::Needed), &Progress::new().0, work).await.unwrap()
            }
        };
        let fetched = futures_util::future::join_all(images.iter().map(one)).await;
        let here = fetched.iter().filter(|fetched| **fetched == Fetched::Here(())).count();
        assert_eq!(here, count.load(Ordering::SeqCst));
        assert!(fetches.is_idle(), "nothing is remembered");
        (here, most.load(Ordering::SeqCst))
    }

    #[tokio::test(start_paused = true)]
    async fn one_image_is_fetched_once_and_only_some_images_at_a_time() {
        assert_eq!(all(&["a", "a", "a", "a"]).await, (1, 1));
        assert_eq!(all(&["a", "b", "c", "d", "a"]).await, (4, AT_A_TIME));
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_waits_for_keeps_no_vm_waiting() {
        let (fetches, progress) = (Fetches::default(), Progress::new().0);
        let begun = tokio::sync::Mutex::new(Vec::new());
        let start = tokio::time::Instant::now();
        let fetch = |name: &'static str, urgency| {
            let (fetches, begun, progress) = (&fetches, &begun, &progress);
            let work = move |_, _turn| async move {
                begun.lock().await.push((start.elapsed().as_secs(), name));
                tokio::time::sleep(Duration::from_secs(10)).await;
                Ok(())
            };
            async move { fetches.fetch((name, urgency), progress, work).await.unwrap() }
        };
        let later = |name| async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            fetch(name, Urgency::Needed).await
        };
        tokio::join!(
            fetch("a", Urgency::Ahead),
            fetch("b", Urgency::Ahead),
            fetch("c", Urgency::Ahead),
            // One of them is wanted by a VM now, and the other place is free.
            later("c"),
        );
        assert_eq!(
            *begun.lock().await,
            [(0, "a"), (1, "c"), (10, "b"), (20, "c")],
            "the third finds it, and looks again"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_told_how_far_it_is_and_takes_over_what_is_given_up() {
        let fetches = Fetches::default();
        let (first, second) = (Progress::new(), Progress::new());
        let mut given_up = Box::pin(fetches.fetch(("a", Urgency::Needed), &first.0, |progress, _turn| async move {
            progress.say("half-way");
            std::future::pending::<Result<(), RuntimeError>>().await
        }));
        let mut waiting = Box::pin(fetches.fetch(("a", Urgency::Needed), &second.0, |_, _| std::future::ready(Ok(()))));
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
        assert_eq!(waiting.await.unwrap(), Fetched::Here(()));
        assert!(fetches.is_idle());
    }

    #[tokio::test(start_paused = true)]
    async fn what_outlives_a_fetch_that_was_given_up_keeps_the_turn() {
        let fetches = Fetches::default();
        let progress = Progress::new().0;
        let mut kept = None;
        {
            let given_up = fetches.fetch(("a", Urgency::Needed), &progress, |_, turn| {
                kept = Some(turn);
                std::future::pending::<Result<(), RuntimeError>>()
            });
            tokio::select! {
                biased;
                _ = given_up => panic!("it never ends"),
                () = tokio::task::yield_now() => {}
            }
        }
        let mut next = Box::pin(fetches.fetch(("a", Urgency::Needed), &progress, |_, _turn| async { Ok(()) }));
        tokio::select! {
            biased;
            _ = &mut next => panic!("the write of the first is still under way"),
            () = tokio::task::yield_now() => {}
        }
        drop(kept);
        assert_eq!(next.await.unwrap(), Fetched::Here(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_fetch_that_fails_is_tried_by_the_next() {
        let fetches = Fetches::default();
        let failed = || async { Err::<(), _>(RuntimeError::Image("gone".into())) };
        let progress = Progress::new().0;
        let (one, other) = tokio::join!(
            fetches.fetch(("a", Urgency::Needed), &progress, |_, _turn| async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                failed().await
            }),
            fetches.fetch(("a", Urgency::Needed), &progress, |_, _turn| async { Ok(()) }),
        );
        assert!(one.is_err());
        assert_eq!(other.unwrap(), Fetched::Here(()));
    }
}
