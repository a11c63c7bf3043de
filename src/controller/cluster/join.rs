//! How machines become workers: a join token is made, a machine that holds it names itself and its key, and from then on
//! that key is the worker.
//!
//! A name is one machine's: another one, or another key, gets it only after `orchard delete worker`, or with a token that
//! was made for this very name.

use std::ops::Bound::{Excluded, Unbounded};

use super::access::MAX_ACCOUNTS;
use super::{Changes, Cluster};
use crate::bus::access::{CreateJoinToken, Join, MAX_JOIN_TTL_S, MAX_JOIN_USES};
use crate::model::account::{JoinId, JoinToken, JoinTokenView, SecretHash, WorkerKey};
use crate::model::error::{ApiError, ErrorCode};
use crate::model::{AccountName, Now, Timestamp, WorkerName};

/// Join tokens at a time; they end by themselves.
const MAX_JOINS: usize = MAX_ACCOUNTS;
/// Workers that may be known by a key at a time: several times what one controller is made for.
const MAX_KEYS: usize = 10_000;
/// The longest machine id, in bytes.
const MAX_MACHINE_ID: usize = 256;

impl Cluster {
    /// The stored form of a join token; `None` once it is over.
    pub fn join_record(&self, id: &JoinId) -> Option<&JoinToken> {
        self.access.joins.get(id)
    }

    /// Every join token.
    pub fn join_records(&self) -> impl Iterator<Item = &JoinToken> {
        self.access.joins.values()
    }

    /// The key of a worker that has joined.
    pub fn key_record(&self, worker: &WorkerName) -> Option<&WorkerKey> {
        self.access.keys.get(worker)
    }

    /// The keys of all workers.
    pub fn key_records(&self) -> impl Iterator<Item = &WorkerKey> {
        self.access.keys.values()
    }

    /// A new join token with the secret that has `secret_hash`.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`] for a life or number of uses that cannot be, [`ErrorCode::LimitExceeded`] when there are
    /// too many.
    pub fn create_join_token(
        &mut self,
        by: AccountName,
        request: CreateJoinToken,
        (id, secret_hash): (JoinId, SecretHash),
        now: Now,
        changes: &mut Changes,
    ) -> Result<JoinToken, ApiError> {
        if !(1..=MAX_JOIN_TTL_S).contains(&request.ttl_s) || !(1..=MAX_JOIN_USES).contains(&request.uses) {
            let (ttl, uses) = (request.ttl_s, request.uses);
            let what = format!(
                "a token for {ttl} s and {uses} machines cannot be made; it may be good for 1 to {MAX_JOIN_TTL_S} s and 1 \
                 to {MAX_JOIN_USES} machines"
            );
            return Err(ApiError::new(ErrorCode::Invalid, what));
        }
        self.check_room()?;
        if self.access.joins.len() >= MAX_JOINS {
            let what = format!(
                "there are {MAX_JOINS} tokens to join with, and no more can be; delete some first (`orchard list bootstrap-tokens`)"
            );
            return Err(ApiError::new(ErrorCode::LimitExceeded, what));
        }
        if self.access.joins.contains_key(&id) {
            return Err(ApiError::new(ErrorCode::Internal, format!("there is a join token {id} already; try again")));
        }
        let ttl_ms = i64::try_from(request.ttl_s.saturating_mul(1_000)).unwrap_or(i64::MAX);
        let token = JoinToken {
            id: id.clone(),
            secret_hash,
            created_by: by,
            created_at: now.wall,
            expires_at: Timestamp::from_millis(now.wall.as_millis().saturating_add(ttl_ms)),
            uses_left: request.uses,
            worker: request.worker,
            used_up_at: None,
        };
        let worker =
            token.worker.as_ref().map_or_else(|| "any worker".to_owned(), |only| format!("worker {only} alone"));
        let (ttl, uses) = (request.ttl_s, request.uses);
        changes.say(format!("for {ttl} s until {}, {uses} uses, {worker}", token.expires_at));
        changes.said.target = Some(id.to_string());
        self.access.joins.insert(id.clone(), token.clone());
        changes.joins.insert(id);
        Ok(token)
    }

    /// Lets a machine that holds the token `id` be the worker `request.worker`, known by `request.public_key` from now on.
    /// Asking again with the same key is answered the same and is no further use.
    ///
    /// # Errors
    /// [`ErrorCode::Unauthenticated`] when the token is over, [`ErrorCode::Forbidden`] when it is for another name,
    /// [`ErrorCode::LimitExceeded`] when it is used up, [`ErrorCode::Conflict`] when the name or the key is taken.
    pub fn join(&mut self, id: &JoinId, request: Join, now: Now, changes: &mut Changes) -> Result<(), ApiError> {
        let worker = &request.worker;
        let refuse = |code, what: String| Err(ApiError::new(code, what));
        let Some(token) = self.access.joins.get(id).filter(|token| token.ends_at() > now.wall) else {
            return refuse(ErrorCode::Unauthenticated, format!("the bootstrap token is over; {NEW_TOKEN}"));
        };
        if self.access.keys.get(worker).is_some_and(|known| known.public_key == request.public_key) {
            return Ok(());
        }
        if let Some(only) = token.worker.as_ref().filter(|only| *only != worker) {
            let what =
                format!("this bootstrap token is for worker {only} alone, not for {worker}: start with --name {only}");
            return refuse(ErrorCode::Forbidden, format!("{what}, or {NEW_TOKEN}"));
        }
        if token.uses_left == 0 {
            return refuse(ErrorCode::LimitExceeded, format!("the bootstrap token is used up; {NEW_TOKEN}"));
        }
        if let Some(owner) = self.access.owners.get(&request.public_key) {
            return refuse(
                ErrorCode::Conflict,
                format!(
                    "this machine has the key of worker {owner} and cannot be {worker} too; use another --data-dir"
                ),
            );
        }
        if request.machine_id.len() > MAX_MACHINE_ID {
            let what =
                format!("the machine id has {} bytes; at most {MAX_MACHINE_ID} are allowed", request.machine_id.len());
            return refuse(ErrorCode::Invalid, what);
        }
        let record = self.workers.get(worker).map(|entry| &entry.record.info);
        let held = record.is_some() || self.access.keys.contains_key(worker);
        let moved = record.is_some_and(|info| info.machine_id != request.machine_id);
        if held && (token.worker.is_none() || moved) {
            return refuse(ErrorCode::Conflict, taken(worker, moved));
        }
        if !held && self.access.keys.len() >= MAX_KEYS {
            let what = format!("there are {MAX_KEYS} workers, and no more can be; delete some first");
            return refuse(ErrorCode::LimitExceeded, what);
        }
        if let Some(token) = self.access.joins.get_mut(id) {
            token.uses_left = token.uses_left.saturating_sub(1);
            token.used_up_at = (token.uses_left == 0).then_some(now.wall);
            changes.joins.insert(id.clone());
        }
        self.revoke(worker, changes);
        self.access.owners.insert(request.public_key.clone(), worker.clone());
        let key = WorkerKey {
            worker: worker.clone(),
            public_key: request.public_key,
            machine_id: request.machine_id,
            joined_at: now.wall,
            joined_with: id.clone(),
            place: String::new(),
        };
        self.access.keys.insert(worker.clone(), key);
        Ok(())
    }

    /// Takes a worker's key away, and ends its session with it.
    pub(super) fn revoke(&mut self, worker: &WorkerName, changes: &mut Changes) {
        if let Some(old) = self.access.keys.remove(worker) {
            self.access.owners.remove(&old.public_key);
        }
        if let Some(entry) = self.workers.get_mut(worker) {
            entry.live = None;
            entry.place.clear();
        }
        changes.keys.insert(worker.clone());
    }

    /// Ends the join tokens of which `over` says so; says how many there were.
    pub(super) fn end_joins(&mut self, over: impl Fn(&JoinToken) -> bool, changes: &mut Changes) -> usize {
        let before = self.access.joins.len();
        self.access.joins.retain(|id, token| {
            let ends = over(token);
            if ends {
                changes.joins.insert(id.clone());
            }
            !ends
        });
        before - self.access.joins.len()
    }

    /// Forgets join tokens that are over. One that is used up stays for a while (`JOIN_GRACE`): a machine whose answer was
    /// lost asks again.
    pub(super) fn drop_expired_joins(&mut self, now: Now, changes: &mut Changes) {
        self.end_joins(|token| token.ends_at() <= now.wall, changes);
    }

    /// At most `limit` join tokens after `after`, in the order of their ids, and whether there are more.
    pub fn join_tokens(&self, after: Option<&JoinId>, limit: usize) -> (Vec<JoinTokenView>, bool) {
        let from = after.map_or(Unbounded, |id| Excluded(id.clone()));
        let mut rest = self.access.joins.range((from, Unbounded));
        let page = rest.by_ref().take(limit).map(|(_, token)| token.view()).collect();
        (page, rest.next().is_some())
    }

    /// Takes a join token back. Workers that have joined with it stay.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`].
    pub fn delete_join_token(&mut self, id: &JoinId, changes: &mut Changes) -> Result<(), ApiError> {
        if self.access.joins.remove(id).is_none() {
            let hint = "`orchard list bootstrap-tokens` shows those there are";
            return Err(ApiError::new(ErrorCode::NotFound, format!("there is no bootstrap token {id}; {hint}")));
        }
        changes.joins.insert(id.clone());
        Ok(())
    }
}

const NEW_TOKEN: &str = "make a new one with `orchard get bootstrap-token`";

fn taken(worker: &WorkerName, moved: bool) -> String {
    if moved {
        return format!(
            "another machine is worker {worker}; start this one with another --name, or take the other out of the cluster \
             first (`orchard delete worker {worker}`)"
        );
    }
    format!(
        "there already is a worker {worker}, known by another key; start this one with another --name, or take the old one \
         out of the cluster (`orchard delete worker {worker}`), or, if this is the same machine and it has lost its key, \
         join with a token made for it (`orchard get bootstrap-token --worker {worker}`)"
    )
}
