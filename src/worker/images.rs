//! Images ahead of need: fetches what the controller asks for, keeps room on the disk, and tells the controller what is held
//! and how far each fetch is. Started by [`super::Worker`]; knows no runtime by name, and nothing else waits for it.
//!
//! Level-triggered both ways: what is to be fetched stands in the assignment, whole, each time; and what is told is all that
//! is the case, once in each session and whenever it has changed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::MissedTickBehavior;

use super::runtime::{CachedImage, Progress, Runtime};
use crate::bus::client::Bus;
use crate::bus::images::{
    DesiredPull, HeldImage, ImagesReport, MAX_DIGEST, MAX_IMAGE_NAME, MAX_IMAGES, MAX_PULL_MESSAGE, MAX_PULLS,
    PullReport,
};
use crate::bus::message::{Assignment, Done};
use crate::bus::subject::{self, WorkerVerb};
use crate::model::error::ErrorCode;
use crate::model::image::{self, PullId, PullState};
use crate::model::secret::redact_urls;
use crate::model::{SessionId, WorkerName};
use crate::task::{self, Task};

/// How often it is looked what is held: the controller only prefers a worker by it.
const LOOK_PERIOD: Duration = Duration::from_secs(30);
/// How often the room on the disk is looked at: faster than a download of gigabytes would use up what is kept free.
const PRUNE_PERIOD: Duration = Duration::from_secs(60);
/// The least pause between two messages: people read progress no faster.
const TELL_PAUSE: Duration = Duration::from_secs(1);
/// How long one message waits for its acknowledgement.
const ACK_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause after one that was not acknowledged.
const RETRY: Duration = Duration::from_secs(2);
/// The same where the controller does not know the message, being older.
const UNKNOWN_PAUSE: Duration = Duration::from_secs(300);

/// What the agent needs.
pub(super) struct ImageAgent {
    pub(super) bus: Bus,
    pub(super) worker: WorkerName,
    pub(super) runtime: Arc<dyn Runtime>,
    /// What is wished, as for VMs.
    pub(super) assignments: watch::Receiver<Option<Assignment>>,
    /// The session that is open, if there is one.
    pub(super) sessions: watch::Receiver<Option<SessionId>>,
    /// Bytes of the disk to keep free by removing images; 0 = only what a fetch needs.
    pub(super) keep_free: u64,
}

/// What was found and done so far.
#[derive(Default)]
struct Known {
    /// None until the first look, or while looking fails.
    images: watch::Sender<Option<Vec<CachedImage>>>,
    pulls: watch::Sender<BTreeMap<PullId, (PullState, String)>>,
    /// There may be more images than at the last look.
    look: Notify,
}

impl ImageAgent {
    /// Runs for the worker's life.
    pub(super) async fn run(self) {
        let Self { bus, worker, runtime, assignments, sessions, keep_free } = self;
        let known = Arc::new(Known::default());
        tokio::join!(
            fetch(runtime.clone(), assignments, known.clone()),
            look(&*runtime, &known),
            keep_room(&*runtime, keep_free, &known),
            tell(&bus, &worker, sessions, &known),
        );
    }
}

/// Fetches what the newest assignment asks for, and gives up what it does not name any more.
async fn fetch(runtime: Arc<dyn Runtime>, mut assignments: watch::Receiver<Option<Assignment>>, known: Arc<Known>) {
    let mut tasks: BTreeMap<PullId, Task> = BTreeMap::new();
    loop {
        // Before the first assignment nothing is known of what is wished.
        let wished = assignments.borrow_and_update().as_ref().map(|assignment| assignment.pulls.clone());
        if let Some(mut wished) = wished {
            wished.truncate(MAX_PULLS);
            let is_wished = |id: &PullId| wished.iter().any(|pull| pull.id == *id);
            tasks.retain(|id, _| is_wished(id));
            if known.pulls.borrow().keys().any(|id| !is_wished(id)) {
                known.pulls.send_modify(|pulls| pulls.retain(|id, _| is_wished(id)));
            }
            for pull in wished {
                // One that has ended is not begun again: whoever wants that asks anew.
                tasks.entry(pull.id).or_insert_with(|| begin(&runtime, pull, &known));
            }
        }
        if assignments.changed().await.is_err() {
            // The worker is being stopped.
            std::future::pending::<()>().await;
        }
    }
}

fn begin(runtime: &Arc<dyn Runtime>, pull: DesiredPull, known: &Arc<Known>) -> Task {
    let (runtime, known) = (runtime.clone(), known.clone());
    let DesiredPull { id, image } = pull;
    known.pulls.send_modify(|pulls| drop(pulls.insert(id, (PullState::Pulling, String::new()))));
    task::spawn(async move {
        let (progress, mut told) = Progress::new();
        let note = |state, message: &str| {
            let message = bounded(redact_urls(message), MAX_PULL_MESSAGE);
            known.pulls.send_if_modified(|pulls| match pulls.get_mut(&id) {
                Some(known) if *known != (state, message.clone()) => {
                    *known = (state, message);
                    true
                }
                _ => false,
            });
        };
        let pulling = runtime.pull(&image, &progress);
        tokio::pin!(pulling);
        loop {
            // Cancel safe: the fetch is polled in place.
            tokio::select! {
                pulled = &mut pulling => {
                    let shown = image::shown(&image);
                    match pulled {
                        Ok(()) => {
                            tracing::info!(image = shown, "fetched, as was asked for");
                            note(PullState::Done, "");
                        }
                        Err(error) => {
                            tracing::warn!(image = shown, "cannot be fetched, as was asked for: {error}");
                            note(PullState::Failed, &error.to_string());
                        }
                    }
                    known.look.notify_one();
                    return;
                }
                Ok(()) = told.changed() => {
                    let message = told.borrow_and_update().clone();
                    note(PullState::Pulling, &message);
                }
            }
        }
    })
}

/// Looks what is held, from time to time and when there may be more.
async fn look(runtime: &dyn Runtime, known: &Known) {
    let mut period = tokio::time::interval(LOOK_PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // Cancel safe: each is only a reason to look.
        tokio::select! {
            _ = period.tick() => {}
            () = known.look.notified() => {}
        }
        let images = match runtime.cached_images().await {
            Ok(images) => Some(images),
            Err(error) => {
                tracing::debug!("cannot list the images on this host: {error}");
                None
            }
        };
        known.images.send_if_modified(|held| {
            let changed = *held != images;
            *held = images;
            changed
        });
    }
}

/// Keeps `keep_free` bytes of the disk free, as far as that can be had by removing images.
async fn keep_room(runtime: &dyn Runtime, keep_free: u64, known: &Known) {
    if keep_free == 0 {
        return;
    }
    let mut period = tokio::time::interval(PRUNE_PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        period.tick().await;
        match runtime.prune_images(keep_free).await {
            Ok(removed) if removed.is_empty() => {}
            Ok(_) => known.look.notify_one(),
            Err(error) => tracing::warn!("the disk is short of room, and images cannot be removed: {error}"),
        }
    }
}

/// Tells the controller all that is known, once in each session and when it has changed.
async fn tell(bus: &Bus, worker: &WorkerName, mut sessions: watch::Receiver<Option<SessionId>>, known: &Known) {
    let (mut images, mut pulls) = (known.images.subscribe(), known.pulls.subscribe());
    let subject = subject::worker(worker, WorkerVerb::Images);
    let mut acknowledged = None;
    loop {
        let session = match sessions.wait_for(Option::is_some).await.map(|session| *session) {
            Ok(Some(session)) => session,
            Ok(None) => continue,
            // The worker is being stopped.
            Err(_) => return std::future::pending().await,
        };
        let report = report(session, images.borrow_and_update().as_deref(), &pulls.borrow_and_update());
        if acknowledged.as_ref() == Some(&report) {
            // Cancel safe: each is only a reason to compare again.
            tokio::select! {
                Ok(()) = images.changed() => {}
                Ok(()) = pulls.changed() => {}
                Ok(()) = sessions.changed() => {}
            }
            continue;
        }
        match bus.request::<_, Done>(subject.clone(), &report, ACK_TIMEOUT).await {
            Ok(Done {}) => {
                acknowledged = Some(report);
                tokio::time::sleep(TELL_PAUSE).await;
            }
            Err(error) if matches!(error.code, ErrorCode::Forbidden | ErrorCode::UnknownVerb | ErrorCode::Invalid) => {
                tracing::debug!("the controller does not take what images are here: {error}");
                tokio::time::sleep(UNKNOWN_PAUSE).await;
            }
            Err(error) => {
                tracing::debug!("what images are here was not acknowledged: {error}");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// What is told, within its bounds.
fn report(
    session: SessionId,
    images: Option<&[CachedImage]>,
    pulls: &BTreeMap<PullId, (PullState, String)>,
) -> ImagesReport {
    let mut named: Vec<&CachedImage> =
        images.unwrap_or_default().iter().filter(|image| image.name.len() <= MAX_IMAGE_NAME).collect();
    named.sort_by(|a, b| (b.last_used, &a.name).cmp(&(a.last_used, &b.name)));
    let left_out = images.map_or(0, <[_]>::len).saturating_sub(named.len().min(MAX_IMAGES));
    named.truncate(MAX_IMAGES);
    let held = |image: &CachedImage| HeldImage {
        image: redact_urls(&image.name),
        bytes: image.bytes,
        digest: image.digest.clone().filter(|digest| digest.len() <= MAX_DIGEST),
        last_used: image.last_used,
        in_use: image.in_use,
    };
    let pull = |(id, (state, message)): (&PullId, &(PullState, String))| PullReport {
        id: *id,
        state: *state,
        message: message.clone(),
    };
    ImagesReport {
        session,
        images: images.map(|_| named.into_iter().map(held).collect()),
        left_out: u64::try_from(left_out).unwrap_or(u64::MAX),
        pulls: pulls.iter().map(pull).collect(),
    }
}

fn bounded(mut text: String, most: usize) -> String {
    text.truncate(text.floor_char_boundary(most));
    text
}

#[cfg(test)]
mod tests {
    use super::super::runtime::synthetic::Synthetic;
    use super::super::runtime::synthetic::behaviour::{Delay, Step};
    use super::*;
    use crate::bus::measure::encoded_len;
    use crate::model::Timestamp;

    fn id(n: u128) -> PullId {
        PullId(uuid::Uuid::from_u128(n))
    }

    fn assignment(pulls: &[(u128, &str)]) -> Assignment {
        let session = SessionId(uuid::Uuid::nil());
        let pulls = pulls.iter().map(|(n, image)| DesiredPull { id: id(*n), image: (*image).into() }).collect();
        Assignment { session, revision: 1, copies: Vec::new(), pulls, part: 0, parts: 1 }
    }

    #[test]
    fn what_is_told_is_bounded_and_the_images_used_last_come_first() {
        let image = |n: usize| CachedImage {
            name: format!("{n:03}{}", "x".repeat(MAX_IMAGE_NAME - 3)),
            bytes: 1,
            digest: Some("d".repeat(MAX_DIGEST)),
            last_used: Some(Timestamp::from_millis(i64::try_from(n).unwrap())),
            in_use: false,
        };
        let mut images: Vec<_> = (0..MAX_IMAGES + 5).map(image).collect();
        images.push(CachedImage { name: "y".repeat(MAX_IMAGE_NAME + 1), ..image(1) });
        let pulls =
            (0..MAX_PULLS).map(|n| (id(n as u128), (PullState::Failed, "z".repeat(MAX_PULL_MESSAGE)))).collect();
        let told = report(SessionId(uuid::Uuid::nil()), Some(&images), &pulls);
        let held = told.images.as_ref().unwrap();
        assert_eq!((held.len(), told.left_out), (MAX_IMAGES, 6));
        assert!(held[0].image.starts_with("068") && held[MAX_IMAGES - 1].image.starts_with("005"));
        assert!(encoded_len(&told) < 256 * 1024, "it fits into any broker's message");
        assert_eq!(report(told.session, None, &BTreeMap::new()).images, None, "not known is not none");
    }

    #[tokio::test(start_paused = true)]
    async fn room_is_kept_and_what_went_for_it_is_noticed_at_once() {
        let runtime = Synthetic::new();
        runtime.host().adjust(|behaviour| (behaviour.image_bytes, behaviour.disk_bytes) = (10, 100));
        let known = Arc::new(Known::default());
        let (host, noted) = (runtime.clone(), known.clone());
        let _task = task::spawn(async move { tokio::join!(look(&host, &noted), keep_room(&host, 85, &noted)) });
        let mut images = known.images.subscribe();
        images.wait_for(|images| images.as_ref().is_some_and(Vec::is_empty)).await.unwrap();
        for image in ["a", "b", "c"] {
            runtime.pull(image, &Progress::new().0).await.unwrap();
        }
        known.look.notify_one();
        images.wait_for(|images| images.as_ref().is_some_and(|images| images.len() == 3)).await.unwrap();
        let began = tokio::time::Instant::now();
        images.wait_for(|images| images.as_ref().is_some_and(|images| images.len() == 1)).await.unwrap();
        assert!(began.elapsed() <= PRUNE_PERIOD);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_asked_for_is_fetched_once_and_what_is_no_longer_is_given_up() {
        let runtime = Synthetic::new();
        runtime.host().adjust(|behaviour| behaviour.pull = Delay::Fixed(Duration::from_secs(10)));
        let known = Arc::new(Known::default());
        let (wishes, assignments) = watch::channel(None);
        let _task = task::spawn(fetch(Arc::new(runtime.clone()), assignments, known.clone()));
        let mut pulls = known.pulls.subscribe();
        wishes.send_replace(Some(assignment(&[(1, "a"), (2, "b")])));
        let far = |(state, message): &(PullState, String)| *state == PullState::Pulling && message.contains('%');
        let waits = |(_, message): &(PullState, String)| message.contains("another image");
        let one_by_one = |pulls: &BTreeMap<PullId, (PullState, String)>| {
            pulls.len() == 2 && pulls.values().any(far) && pulls.values().any(waits)
        };
        pulls.wait_for(one_by_one).await.unwrap();
        wishes.send_replace(Some(assignment(&[(1, "a"), (3, "c")])));
        let done = |pulls: &BTreeMap<_, _>| pulls.values().all(|(state, _)| *state == PullState::Done);
        pulls.wait_for(|pulls| !pulls.contains_key(&id(2)) && pulls.len() == 2 && done(pulls)).await.unwrap();
        let names =
            async || runtime.cached_images().await.unwrap().into_iter().map(|image| image.name).collect::<Vec<_>>();
        assert_eq!(names().await, ["a", "c"], "what was given up is not there");
        runtime.host().fail_next(Step::Pull, 1, "no https://u:p@h/d");
        wishes.send_replace(Some(assignment(&[(1, "a"), (4, "https://u:p@h/d")])));
        let failed = (PullState::Failed, "no https://***@h/d".to_owned());
        pulls.wait_for(|pulls| pulls.get(&id(4)) == Some(&failed)).await.unwrap();
        assert_eq!(pulls.borrow()[&id(1)].0, PullState::Done, "what was done is not done again");
    }
}
