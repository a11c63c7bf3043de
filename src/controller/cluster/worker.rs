//! Workers: registration, sessions, heartbeats. What silence means stands in `liveness`.

use std::time::Duration;

use super::inventory::Agreement;
use super::spec::check_words;
use super::{Changes, Cluster, Live, WorkerEntry};
use crate::bus::measure::encoded_len;
use crate::bus::message::{Assignment, Heartbeat, HeartbeatAck, Hello};
use crate::model::error::{ApiError, ErrorCode};
use crate::model::event::EventType;
use crate::model::planted::{Bug, planted};
use crate::model::worker::Worker;
use crate::model::{Now, SessionId, WorkerName};

/// What a worker says of itself, all of it: a page of workers must fit into one message, and people wrote these labels.
const MAX_INFO: usize = 32 * 1024;
/// The longest name of a place, in bytes: more than its hashes.
const MAX_PLACE: usize = 128;

impl Cluster {
    /// Registers a worker and opens its session; yields what it shall run.
    ///
    /// # Errors
    /// [`ErrorCode::Forbidden`] when it speaks for another worker, [`ErrorCode::Conflict`] when another machine has its name
    /// or its key, or this is another place than where its VMs may run, [`ErrorCode::Unavailable`] while another process is
    /// this worker, [`ErrorCode::Invalid`] when it says too much.
    pub fn hello(
        &mut self,
        from: &WorkerName,
        hello: Hello,
        now: Now,
        changes: &mut Changes,
    ) -> Result<Assignment, ApiError> {
        let name = hello.info.name.clone();
        if *from != name {
            return Err(ApiError::new(ErrorCode::Forbidden, format!("{from} cannot register as {name}")));
        }
        let size = encoded_len(&hello.info);
        if size > MAX_INFO {
            let what = format!(
                "what worker {name} says of itself has {size} bytes; at most {MAX_INFO} are allowed: give it fewer labels and \
                 resources, or shorter ones"
            );
            return Err(ApiError::new(ErrorCode::Invalid, what));
        }
        check_words(Some(hello.info.os), Some(hello.info.arch), Some(hello.info.runtime))?;
        if hello.place.len() > MAX_PLACE {
            let what = format!("the worker's place has {} bytes; at most {MAX_PLACE} are allowed", hello.place.len());
            return Err(ApiError::new(ErrorCode::Invalid, what));
        }
        self.check_machine(&name, &hello, now)?;
        self.check_not_closed(&name, hello.session)?;
        let known = self.workers.get(&name);
        if known.is_some_and(|entry| entry.record.info.machine_id != hello.info.machine_id) {
            return Err(ApiError::new(
                ErrorCode::Conflict,
                format!(
                    "another machine is registered as {name}; start this worker with another --name, or delete the old one first"
                ),
            ));
        }
        match self.workers.get_mut(&name) {
            None => {
                let record = Worker {
                    info: hello.info,
                    created_at: now.wall,
                    scheduling_paused: false,
                    drain: None,
                    lease_ms: 0,
                };
                self.workers.insert(name.clone(), WorkerEntry::new(record, now));
                changes.workers.insert(name.clone());
                changes.worker_event(&mut self.last_event, now, &name, EventType::Registered, String::new());
            }
            Some(entry) if entry.record.info != hello.info => {
                entry.record.info = hello.info;
                changes.workers.insert(name.clone());
            }
            Some(_) => {}
        }
        if planted(Bug::PauseUndone)
            && let Some(entry) = self.workers.get_mut(&name)
        {
            entry.record.scheduling_paused = false;
            changes.workers.insert(name.clone());
        }
        if let Some(entry) = self.workers.get_mut(&name) {
            entry.place.clone_from(&hello.place);
            // The same hello may come twice. Numbers that began anew would be below those that the worker has.
            let again = entry.live.take().filter(|live| live.session == hello.session);
            let revision = again.map_or(0, |live| live.revision) + 1;
            let delete_unknown = hello.delete_unknown_s.map(Duration::from_secs);
            let agreement = Agreement::default();
            entry.live = Some(Live { session: hello.session, revision, agreement, delete_unknown });
        }
        if let Some(key) = self.access.keys.get_mut(&name).filter(|key| key.place != hello.place) {
            // Kept, so that a copy of the worker's data folder does not come first after a restart of the controller.
            key.place = hello.place;
            changes.keys.insert(name.clone());
        }
        self.grant_lease(&name, changes);
        self.heard_of(&name, now, changes);
        self.note_standing(&name);
        self.reclaim(&name, now, changes);
        self.place(now, changes);
        // The answer carries the assignment, so none needs to be sent besides.
        changes.assign.remove(&name);
        self.assignment(&name).ok_or_else(|| ApiError::new(ErrorCode::Internal, "a session just opened is not there"))
    }

    /// Renews a lease. Done without a change, as it mostly is ([`Changes::is_empty`]), it rests on nothing that is not stored, and
    /// what it brings about outlives a commit that failed ([`Cluster::keep_liveness_of`]): the answer holds even if what others
    /// wanted at the same moment could not be stored. A refusal may rest on just that, and does not.
    ///
    /// # Errors
    /// [`ErrorCode::Unauthenticated`] when the session is over: the worker must say hello again.
    pub fn heartbeat(
        &mut self,
        worker: &WorkerName,
        beat: &Heartbeat,
        now: Now,
        changes: &mut Changes,
    ) -> Result<HeartbeatAck, ApiError> {
        self.check_session(worker, beat.session)?;
        self.heard_of(worker, now, changes);
        self.has_lease(worker, changes);
        self.has_told(worker, beat.session, beat.told, now, changes);
        if let Some(entry) = self.workers.get_mut(worker) {
            entry.load = beat.load.or(entry.load);
        }
        let revision = self.workers.get(worker).and_then(|entry| entry.live.as_ref()).map_or(0, |live| live.revision);
        if beat.revision < revision && !planted(Bug::NotResent) {
            // The message that told it was lost, or is on its way: once more does no harm.
            changes.assign.insert(worker.clone());
        }
        Ok(HeartbeatAck { revision, tell_all: self.disagrees(worker, beat) })
    }

    /// Lets time pass: leases run out, pauses and drains end.
    pub fn tick(&mut self, now: Now, changes: &mut Changes) {
        #[cfg(test)]
        self.presume_dead(now, changes);
        let _silent = self.notice_silence(now, changes);
        #[cfg(test)]
        self.replace_at_once(&_silent, now, changes);
        self.replace_on_gone(now, changes);
        self.drop_expired_joins(now, changes);
        self.expire_pulls(now, changes);
        self.end_of_time(now, changes);
        self.end_pauses(now, changes);
        self.forget_spent(now, changes);
        self.forget_given_up(now, changes);
        self.go_on_draining(now, changes);
        self.end_hold(now, changes);
        self.delete_unknown(now, changes);
        #[cfg(test)]
        self.check_watched();
    }

    /// Whether a session of `worker` is open.
    pub fn has_session(&self, worker: &WorkerName) -> bool {
        self.workers.get(worker).is_some_and(|entry| entry.live.is_some())
    }

    pub(super) fn check_session(&self, worker: &WorkerName, session: SessionId) -> Result<(), ApiError> {
        match self.workers.get(worker).and_then(|entry| entry.live.as_ref()) {
            Some(live) if live.session == session => Ok(()),
            _ if planted(Bug::StaleSession) && self.workers.contains_key(worker) => Ok(()),
            _ => Err(ApiError::new(
                ErrorCode::Unauthenticated,
                format!("session {session} of worker {worker} is not open here: register again"),
            )),
        }
    }
}
