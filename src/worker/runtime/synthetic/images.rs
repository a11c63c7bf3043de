//! The images of a synthetic host: fetched with a delay, kept in memory, removed by the rules of the real ones. Used by the
//! runtime (`super::Synthetic`).

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::super::fetches::{Fetches, Urgency};
use super::super::prune::{self, Cached};
use super::super::{CachedImage, Progress, RuntimeError};
use super::behaviour::Step;
use super::host::SyntheticHost;
use crate::identity;
use crate::model::vm::ImagePullPolicy;
use crate::model::{Clock, Timestamp, image};

/// What was fetched, by name; with when it was last used.
#[derive(Debug, Default)]
pub(super) struct Images {
    held: Mutex<BTreeMap<String, (u64, Timestamp)>>,
    fetches: Fetches,
}

impl Images {
    fn held(&self) -> MutexGuard<'_, BTreeMap<String, (u64, Timestamp)>> {
        // Nothing panics while it is held.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_use(&self, name: &str, bytes: Option<u64>) -> bool {
        let now = Clock::start().now().wall;
        let mut held = self.held();
        match (held.get_mut(name), bytes) {
            (Some((_, used)), _) => *used = now,
            (None, Some(bytes)) => drop(held.insert(name.to_owned(), (bytes, now))),
            (None, None) => return false,
        }
        true
    }

    fn cached(&self, host: &SyntheticHost) -> Vec<Cached> {
        let used = host.images_in_use();
        let cached = |(name, (bytes, last)): (&String, &(u64, Timestamp))| Cached {
            file: name.clone(),
            sources: Vec::new(),
            bytes: *bytes,
            last_used: u64::try_from(last.as_millis()).unwrap_or(0),
            in_use: used.contains(name),
        };
        self.held().iter().map(cached).collect()
    }

    pub(super) fn list(&self, host: &SyntheticHost) -> Vec<CachedImage> {
        let image = |cached: Cached| CachedImage {
            digest: Some(digest(&cached.file)),
            bytes: cached.bytes,
            last_used: i64::try_from(cached.last_used).ok().map(Timestamp::from_millis),
            in_use: cached.in_use,
            name: cached.file,
        };
        self.cached(host).into_iter().map(image).collect()
    }

    pub(super) fn prune(&self, host: &SyntheticHost, keep_free: u64) -> Vec<String> {
        let images = self.cached(host);
        let taken = images.iter().fold(0u64, |sum, image| sum.saturating_add(image.bytes));
        let free = host.behaviour().disk_bytes.saturating_sub(taken);
        let gone: Vec<String> =
            prune::choose_up_to(&images, free, keep_free).into_iter().map(|image| image.file.clone()).collect();
        let mut held = self.held();
        held.retain(|name, _| !gone.contains(name));
        gone
    }
}

/// Fetches an image if it is not there, or always; once at a time, as the real ones.
pub(super) async fn fetch(
    host: &SyntheticHost,
    (text, urgency): (&str, Urgency),
    policy: ImagePullPolicy,
    progress: &Progress,
) -> Result<(), RuntimeError> {
    let name = image::shown(text);
    if policy == ImagePullPolicy::IfNotPresent && host.images.note_use(&name, None) {
        return Ok(());
    }
    let pull = async |progress: Progress, _turn| {
        let bytes = host.behaviour().image_bytes;
        progress.say(format!("fetching the image: 0 % (0 of {bytes} bytes)"));
        host.images.prune(host, bytes);
        host.take(Step::Pull).await?;
        host.images.note_use(&name, Some(bytes));
        Ok(())
    };
    host.images.fetches.fetch((&name, urgency), progress, pull).await.map(drop)
}

/// What stands for the digest of an image's content: that of its name.
pub(super) fn digest(name: &str) -> String {
    format!("sha256:{}", data_encoding::HEXLOWER.encode(&identity::hash_of(name).0))
}

#[cfg(test)]
mod tests {
    use super::super::behaviour::Behaviour;
    use super::*;

    #[tokio::test]
    async fn images_are_kept_told_of_and_removed_when_the_room_is_short() {
        let host = SyntheticHost::new(
            Behaviour { image_bytes: 10, disk_bytes: 25, ..Behaviour::default() },
            0,
            Default::default(),
        );
        let progress = Progress::new().0;
        for name in ["https://u:p@h/a?token=t", "b", "b"] {
            fetch(&host, (name, Urgency::Needed), ImagePullPolicy::IfNotPresent, &progress).await.unwrap();
        }
        let names =
            |host: &SyntheticHost| host.images.list(host).into_iter().map(|image| image.name).collect::<Vec<_>>();
        assert_eq!(names(&host), ["b", "https://h/a"]);
        fetch(&host, ("c", Urgency::Needed), ImagePullPolicy::IfNotPresent, &progress).await.unwrap();
        assert_eq!(names(&host).len(), 2, "one had to go");
        assert_eq!(host.images.prune(&host, 25).len(), 2);
        host.fail_next(Step::Pull, 1, "no such image");
        assert!(fetch(&host, ("d", Urgency::Needed), ImagePullPolicy::Always, &progress).await.is_err());
    }
}
