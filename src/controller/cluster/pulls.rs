//! Requests to fetch an image before a VM needs it.
//!
//! A request is stored, sealed, as its image may hold who fetches it; and stands in the assignment of every worker that it
//! fits until it expires or is taken back, so nothing of it is lost with a message, a session or the controller. How far
//! each worker is, it tells anew in each session; that is kept in memory only.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;
use std::time::Duration;

use super::images::pull_message;
use super::spec::check_spec;
use super::{Changes, Cluster, WorkerEntry};
use crate::bus::images::{
    DesiredPull, MAX_PULL_TTL_S, MAX_PULLS, PULL_TTL_S, PullImage, PullOnWorker, PullProgress, PullReport, PullView,
};
use crate::model::error::{ApiError, ErrorCode};
use crate::model::image::{self, Pull, PullId, PullState};
use crate::model::vm::VmSpec;
use crate::model::worker::{WorkerInfo, WorkerState};
use crate::model::{AccountName, Now, Timestamp, WorkerName};

/// How far a worker is with requests.
pub(super) type OnWorker = BTreeMap<PullId, (PullState, Arc<str>)>;

impl Cluster {
    /// The stored form of a request; `None` once it is over.
    pub fn pull_record(&self, id: PullId) -> Option<&Pull> {
        self.pulls.get(&id)
    }

    /// Has workers fetch an image; those that register later, too. A request for the same image and workers is over by it.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`] when it cannot be an image or stand for so long, [`ErrorCode::NotFound`] when it fits no
    /// worker, [`ErrorCode::LimitExceeded`] when there are too many or the store is full.
    pub fn pull_image(
        &mut self,
        by: Option<AccountName>,
        request: PullImage,
        id: PullId,
        now: Now,
        changes: &mut Changes,
    ) -> Result<PullView, ApiError> {
        let PullImage { image, selector, ttl_s } = request;
        let (labels, runtime) = (selector.labels.clone(), selector.runtime);
        check_spec(&VmSpec { image: image.clone(), labels, runtime, ..VmSpec::default() })?;
        let ttl_s = if ttl_s == 0 { PULL_TTL_S } else { ttl_s };
        if ttl_s > MAX_PULL_TTL_S {
            let what = format!("a request cannot stand for {ttl_s} s; at most {MAX_PULL_TTL_S} s are allowed");
            return Err(ApiError::new(ErrorCode::Invalid, what));
        }
        if let Some(worker) = selector.worker.as_ref().filter(|worker| !self.workers.contains_key(worker)) {
            return Err(super::placing::unknown_worker(worker));
        }
        let fitting = self.workers.values().filter(|entry| selector.fits(&entry.record.info)).count();
        if fitting == 0 {
            let what = format!(
                "none of the {} workers fits what was asked for (labels, runtime or name), so nobody would fetch the image; \
                 `orchard list workers` and `orchard get worker NAME` show what they have",
                self.workers.len()
            );
            return Err(ApiError::new(ErrorCode::NotFound, what));
        }
        self.check_room()?;
        let same = |pull: &&Pull| pull.image == image && pull.selector == selector;
        let before = self.pulls.values().find(same).map(|pull| pull.id);
        if before.is_none() && self.pulls.len() >= MAX_PULLS {
            let what = format!(
                "there are {MAX_PULLS} requests to fetch images, and no more can be; take some back first (`orchard list \
                 pulls`, `orchard pull image --cancel IMAGE`)"
            );
            return Err(ApiError::new(ErrorCode::LimitExceeded, what));
        }
        if let Some(before) = before {
            self.end_pull(before, changes);
        }
        let ttl = i64::try_from(Duration::from_secs(ttl_s).as_millis()).unwrap_or(i64::MAX);
        let expires_at = Timestamp::from_millis(now.wall.as_millis().saturating_add(ttl));
        let pull = Pull { id, image, selector, created_at: now.wall, created_by: by, expires_at };
        changes.said.target = Some(image::shown(&pull.image));
        changes.say(format!("on {fitting} workers, until {expires_at}"));
        let view = self.view_of(&pull);
        self.tell_workers_of(&pull, changes);
        changes.pulls.insert(id);
        self.pulls.insert(id, pull);
        Ok(view)
    }

    /// Ends all requests for an image; what is being fetched is given up.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`] when there is none.
    pub fn cancel_pull(&mut self, text: &str, changes: &mut Changes) -> Result<(), ApiError> {
        let shown = image::shown(text);
        let same = |pull: &&Pull| image::shown(&pull.image) == shown;
        let ids: Vec<PullId> = self.pulls.values().filter(same).map(|pull| pull.id).collect();
        if ids.is_empty() {
            let what = format!("there is no request to fetch {shown}; `orchard list pulls` shows those there are");
            return Err(ApiError::new(ErrorCode::NotFound, what));
        }
        changes.said.target = Some(shown);
        changes.say(format!("{} requests", ids.len()));
        for id in ids {
            self.end_pull(id, changes);
        }
        Ok(())
    }

    /// Ends requests whose time is over.
    pub(super) fn expire_pulls(&mut self, now: Now, changes: &mut Changes) {
        let over = |pull: &&Pull| pull.expires_at <= now.wall;
        let over: Vec<PullId> = self.pulls.values().filter(over).map(|pull| pull.id).collect();
        for id in over {
            self.end_pull(id, changes);
        }
    }

    fn end_pull(&mut self, id: PullId, changes: &mut Changes) {
        let Some(pull) = self.pulls.remove(&id) else { return };
        changes.pulls.insert(id);
        self.tell_workers_of(&pull, changes);
        self.workers.values_mut().for_each(|entry| drop(entry.pulls.remove(&id)));
    }

    fn tell_workers_of(&mut self, pull: &Pull, changes: &mut Changes) {
        let meant = |(name, entry): (&WorkerName, &WorkerEntry)| {
            (entry.live.is_some() && pull.selector.fits(&entry.record.info)).then(|| name.clone())
        };
        let names: Vec<WorkerName> = self.workers.iter().filter_map(meant).collect();
        names.iter().for_each(|name| self.reassign(name, changes));
    }

    /// What a worker shall fetch.
    pub(super) fn pulls_for(&self, info: &WorkerInfo) -> Vec<DesiredPull> {
        let meant = self.pulls.values().filter(|pull| pull.selector.fits(info));
        meant.map(|pull| DesiredPull { id: pull.id, image: pull.image.clone() }).collect()
    }

    /// Takes in how far `worker` is. Of requests that are over, or are not for it, nothing is kept.
    pub(super) fn pulls_told(&mut self, worker: &WorkerName, told: Vec<PullReport>) {
        let Some(entry) = self.workers.get_mut(worker) else { return };
        let is_its =
            |report: &PullReport| self.pulls.get(&report.id).is_some_and(|pull| pull.selector.fits(&entry.record.info));
        let told: Vec<PullReport> = told.into_iter().filter(is_its).collect();
        entry.pulls =
            told.into_iter().map(|report| (report.id, (report.state, pull_message(&report.message)))).collect();
    }

    /// All requests, oldest first.
    pub fn pull_views(&self) -> Vec<PullView> {
        let mut views: Vec<PullView> = self.pulls.values().map(|pull| self.view_of(pull)).collect();
        views.sort_by_key(|view| (view.created_at, view.id));
        views
    }

    /// How far at most `limit` workers after `after` are with a request.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`] when it is over.
    pub fn pull_progress(
        &self,
        id: PullId,
        after: Option<&WorkerName>,
        limit: usize,
    ) -> Result<PullProgress, ApiError> {
        let Some(pull) = self.pulls.get(&id) else {
            let what = format!("the request {id} is over: it was taken back, asked for anew, or its time has passed");
            return Err(ApiError::new(ErrorCode::NotFound, what));
        };
        let from = after.map_or(Unbounded, |name| Excluded(name.clone()));
        let all = self.workers.range((from, Unbounded));
        let mut rest = all.filter(|(_, entry)| pull.selector.fits(&entry.record.info));
        let on_worker = |(name, entry): (&WorkerName, &WorkerEntry)| {
            let (state, message) = entry.pull(id);
            PullOnWorker { worker: name.clone(), online: entry.is_online(), state, message: message.to_string() }
        };
        let workers = rest.by_ref().take(limit).map(on_worker).collect();
        let more = rest.next().is_some();
        Ok(PullProgress { pull: self.view_of(pull), workers, more })
    }

    fn view_of(&self, pull: &Pull) -> PullView {
        let mut view = PullView {
            id: pull.id,
            image: image::shown(&pull.image),
            selector: pull.selector.clone(),
            created_at: pull.created_at,
            created_by: pull.created_by.clone(),
            expires_at: pull.expires_at,
            workers: 0,
            done: 0,
            failed: 0,
            offline: 0,
        };
        for entry in self.workers.values().filter(|entry| pull.selector.fits(&entry.record.info)) {
            view.workers = view.workers.saturating_add(1);
            let count = match entry.pull(pull.id).0 {
                PullState::Done => &mut view.done,
                PullState::Failed => &mut view.failed,
                // What a newer worker calls otherwise is neither done nor given up.
                PullState::Waiting | PullState::Pulling | PullState::Unknown if !entry.is_online() => &mut view.offline,
                PullState::Waiting | PullState::Pulling | PullState::Unknown => continue,
            };
            *count = count.saturating_add(1);
        }
        view
    }
}

impl WorkerEntry {
    fn pull(&self, id: PullId) -> (PullState, &str) {
        self.pulls.get(&id).map_or((PullState::Waiting, ""), |(state, message)| (*state, message))
    }

    fn is_online(&self) -> bool {
        self.state == WorkerState::Online && self.live.is_some()
    }
}
