//! What images workers hold, as they tell it: shown to people, and reason to prefer a worker.
//!
//! In memory only: every worker tells it anew in each session, and nothing but a preference rests on it. Names and digests
//! are kept once for all workers, so that thousands that hold the same images cost some words each.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Included, Unbounded};
use std::sync::Arc;

use super::Cluster;
use crate::bus::images::{
    HeldImage, HeldView, ImageView, ImagesReport, MAX_DIGEST, MAX_IMAGE_NAME, MAX_IMAGES, MAX_PULL_MESSAGE,
};
use crate::model::error::{ApiError, ErrorCode};
use crate::model::image;
use crate::model::secret::redact_urls;
use crate::model::{Timestamp, WorkerName};

/// Every name and digest once.
#[derive(Clone, Debug, Default)]
pub(super) struct Names(BTreeSet<Arc<str>>);

/// An image on a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    bytes: u64,
    digest: Option<Arc<str>>,
    last_used: Option<Timestamp>,
    in_use: bool,
}

/// Those of a worker, by name.
pub(super) type HeldImages = BTreeMap<Arc<str>, Held>;

impl Names {
    /// `text`, kept once.
    fn of(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.0.get(text) {
            return known.clone();
        }
        let new: Arc<str> = text.into();
        self.0.insert(new.clone());
        new
    }

    /// Forgets those that nobody else has any more.
    fn forget(&mut self, names: impl IntoIterator<Item = Arc<str>>) {
        for name in names {
            // This one, the set's and no other.
            if Arc::strong_count(&name) == 2 {
                self.0.remove(&name);
            }
        }
    }
}

impl Cluster {
    /// Takes in what `worker` says that it holds, and how far it is with what it shall fetch.
    ///
    /// # Errors
    /// [`ErrorCode::Unauthenticated`] when the session is over, [`ErrorCode::LimitExceeded`] when it says too much.
    pub fn images_told(&mut self, worker: &WorkerName, report: ImagesReport) -> Result<(), ApiError> {
        self.check_session(worker, report.session)?;
        check(&report)?;
        let ImagesReport { images, pulls, .. } = report;
        self.pulls_told(worker, pulls);
        let Some(images) = images else { return Ok(()) };
        let mut held = HeldImages::new();
        for HeldImage { image, bytes, digest, last_used, in_use } in images {
            // Whatever the worker calls it, nothing secret is shown.
            let name = self.image_names.of(&image::shown(&image));
            let digest = digest.map(|digest| self.image_names.of(&digest));
            if let Some(first) = held.insert(name.clone(), Held { bytes, digest, last_used, in_use }) {
                self.image_names.forget([name].into_iter().chain(first.digest));
            }
        }
        let Some(entry) = self.workers.get_mut(worker) else { return Ok(()) };
        let before = std::mem::replace(&mut entry.images, held);
        let same = before.keys().eq(entry.images.keys());
        if !same || !entry.told_images {
            entry.told_images = true;
            self.scheduler.set_images(worker, entry.images.keys().cloned().collect());
        }
        self.forget_names(before);
        Ok(())
    }

    /// A worker is taken out, and what it held with it.
    pub(super) fn forget_images_of(&mut self, worker: &WorkerName) {
        let held = self.workers.get_mut(worker).map(|entry| std::mem::take(&mut entry.images)).unwrap_or_default();
        self.forget_names(held);
    }

    fn forget_names(&mut self, held: HeldImages) {
        for (name, Held { digest, .. }) in held {
            self.image_names.forget([name].into_iter().chain(digest));
        }
    }

    /// How many names and digests are kept.
    #[cfg(test)]
    pub(super) fn image_names_kept(&self) -> usize {
        self.image_names.0.len()
    }

    /// At most `limit` images that workers hold after `after`, in name order, and whether there are more.
    pub fn images(&self, after: Option<&str>, limit: usize) -> (Vec<ImageView>, bool) {
        let mut all: BTreeMap<&str, ImageView> = BTreeMap::new();
        let held = self.workers.values().flat_map(|entry| &entry.images);
        for (name, held) in held.filter(|(name, _)| after.is_none_or(|after| ***name > *after)) {
            let empty = || ImageView { image: name.to_string(), bytes: 0, workers: 0, in_use: 0, last_used: None };
            let view = all.entry(name).or_insert_with(empty);
            view.bytes = view.bytes.max(held.bytes);
            view.workers = view.workers.saturating_add(1);
            view.in_use = view.in_use.saturating_add(u64::from(held.in_use));
            view.last_used = view.last_used.max(held.last_used);
        }
        let more = all.len() > limit;
        (all.into_values().take(limit).collect(), more)
    }

    /// At most `limit` images on workers, of `worker` or of all, of the name `image` or of any, after `after`, and whether
    /// there are more.
    pub fn held_images(
        &self,
        (worker, image): (Option<&WorkerName>, Option<&str>),
        after: Option<&(WorkerName, String)>,
        limit: usize,
    ) -> (Vec<HeldView>, bool) {
        let from = worker.or(after.map(|(name, _)| name)).map_or(Unbounded, |name| Included(name.clone()));
        let workers =
            self.workers.range((from, Unbounded)).take_while(|(name, _)| worker.is_none_or(|only| only == *name));
        let wanted = image.map(image::shown);
        let mut rest = workers.flat_map(|(name, entry)| {
            let last = after.filter(|(last, _)| last == name).map(|(_, image)| Excluded(Arc::from(image.as_str())));
            let wanted = wanted.as_deref();
            let held = entry.images.range::<Arc<str>, _>((last.unwrap_or(Unbounded), Unbounded));
            let held = held.filter(move |(image, _)| wanted.is_none_or(|wanted| wanted == &***image));
            held.map(move |(image, held)| (name, image, held))
        });
        let view = |(worker, image, held): (&WorkerName, &Arc<str>, &Held)| HeldView {
            worker: worker.clone(),
            held: HeldImage {
                image: image.to_string(),
                bytes: held.bytes,
                digest: held.digest.as_ref().map(ToString::to_string),
                last_used: held.last_used,
                in_use: held.in_use,
            },
        };
        let page = rest.by_ref().take(limit).map(view).collect();
        (page, rest.next().is_some())
    }
}

/// Workers keep to these bounds; whoever does not is not listened to.
fn check(report: &ImagesReport) -> Result<(), ApiError> {
    let images = report.images.as_deref().unwrap_or_default();
    let long = images.iter().any(|held| {
        held.image.len() > MAX_IMAGE_NAME || held.digest.as_ref().is_some_and(|digest| digest.len() > MAX_DIGEST)
    });
    if images.len() > MAX_IMAGES || long {
        let what = format!(
            "{} images were told of, or one has a name or a digest that is too long; at most {MAX_IMAGES} are taken, with names \
             of {MAX_IMAGE_NAME} and digests of {MAX_DIGEST} bytes",
            images.len()
        );
        return Err(ApiError::new(ErrorCode::LimitExceeded, what));
    }
    Ok(())
}

/// A text of a worker on a request, within its bound and without anything secret.
pub(super) fn pull_message(text: &str) -> Arc<str> {
    let clean = redact_urls(text);
    clean.get(..clean.floor_char_boundary(MAX_PULL_MESSAGE)).unwrap_or_default().into()
}
