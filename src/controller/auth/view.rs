//! Who may do what, for reading from anywhere: what the core holds of accounts, join tokens and workers' keys, as far as it
//! is durable. The writer renews it after each commit and before any answer goes out, so whoever has been told "done"
//! finds it here.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};

use tokio::sync::Notify;

use crate::bus::subject;
use crate::controller::cluster::{Changes, Cluster};
use crate::model::access::{self, Needs, Verb};
use crate::model::account::{Account, JoinId, JoinToken, SecretHash, WorkerKey};
use crate::model::error::{ApiError, ErrorCode};
use crate::model::{AccountName, Timestamp, WorkerName};

/// The shared view.
#[derive(Debug, Default)]
pub struct AccessView {
    known: RwLock<Known>,
    /// Users of the bus whose rights may have changed since somebody last looked.
    changed: Mutex<BTreeSet<String>>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Known {
    accounts: HashMap<AccountName, Account>,
    joins: HashMap<JoinId, JoinToken>,
    keys: HashMap<WorkerName, WorkerKey>,
    owners: HashMap<String, WorkerName>,
}

impl AccessView {
    /// What `cluster` holds.
    pub(in crate::controller) fn of(cluster: &Cluster) -> Self {
        let mut known = Known::default();
        for account in cluster.account_records() {
            known.accounts.insert(account.view.name.clone(), account.clone());
        }
        for token in cluster.join_records() {
            known.joins.insert(token.id.clone(), token.clone());
        }
        for key in cluster.key_records() {
            known.set_key(&key.worker, Some(key));
        }
        Self { known: RwLock::new(known), ..Self::default() }
    }

    /// Takes over the newest form of what `changes` names; for the writer, once that is durable.
    pub(in crate::controller) fn renew(&self, cluster: &Cluster, changes: &Changes) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        for name in &changes.accounts {
            put_or_remove(&mut known.accounts, name, cluster.account_record(name));
        }
        for id in &changes.joins {
            put_or_remove(&mut known.joins, id, cluster.join_record(id));
        }
        for worker in &changes.keys {
            known.set_key(worker, cluster.key_record(worker));
        }
        drop(known);
        self.changed.lock().unwrap_or_else(PoisonError::into_inner).extend(users_of(changes));
        self.news.notify_one();
    }

    /// Users of the bus whose rights may have changed since the last call; waits until there are some. For one caller, which
    /// then sees to connections and streams that are open. Cancel safe.
    pub(in crate::controller) async fn changed(&self) -> BTreeSet<String> {
        loop {
            let users = std::mem::take(&mut *self.changed.lock().unwrap_or_else(PoisonError::into_inner));
            if !users.is_empty() {
                return users;
            }
            self.news.notified().await;
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Known> {
        // Each change is one insertion or removal: a panic between two leaves nobody with more than he had.
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// An account.
    pub fn account(&self, name: &AccountName) -> Option<Account> {
        self.read().accounts.get(name).cloned()
    }

    /// A join token.
    pub fn join_token(&self, id: &JoinId) -> Option<JoinToken> {
        self.read().joins.get(id).cloned()
    }

    /// The public key of a worker that has joined.
    pub fn worker_key(&self, worker: &WorkerName) -> Option<String> {
        self.read().keys.get(worker).map(|key| key.public_key.clone())
    }

    /// The token of each account, by its hash.
    pub(in crate::controller) fn tokens(&self) -> HashMap<AccountName, SecretHash> {
        self.read().accounts.iter().map(|(name, account)| (name.clone(), account.token_hash)).collect()
    }

    /// Whose key that is.
    pub fn owner_of(&self, public_key: &str) -> Option<WorkerName> {
        self.read().owners.get(public_key).cloned()
    }

    /// Whether `name` may do what has `needs` at `now`; `what` names it in the refusal. The second check, whatever the
    /// broker has let through.
    ///
    /// # Errors
    /// [`ErrorCode::Unauthenticated`] when there is no such account, or it is over; [`ErrorCode::Forbidden`] when it lacks
    /// the role.
    pub fn authorise(&self, name: &AccountName, needs: Needs, what: &str, now: Timestamp) -> Result<(), ApiError> {
        let known = self.read();
        let Some(account) = known.accounts.get(name).filter(|account| !account.view.is_expired(now)) else {
            let what = format!("there is no service account {name}, or it has ended");
            return Err(ApiError::new(ErrorCode::Unauthenticated, what));
        };
        if account.view.roles.satisfy(needs) {
            return Ok(());
        }
        let has = match account.view.roles.to_string() {
            none if none.is_empty() => "no role".to_owned(),
            some => some,
        };
        let grant = access::grant_command(name, &account.view.roles, needs)
            .map(|grant| format!("; somebody with admin:write can grant it with `{grant}`"));
        let what = format!("{what} needs {needs}, and {name} has {has}{}", grant.unwrap_or_default());
        Err(ApiError::new(ErrorCode::Forbidden, what))
    }

    /// The same for a verb of the API.
    ///
    /// # Errors
    /// As for [`AccessView::authorise`].
    pub fn authorise_verb(&self, name: &AccountName, verb: &Verb, now: Timestamp) -> Result<(), ApiError> {
        self.authorise(name, verb.needs, &format!("{}.{}", verb.resource, verb.verb), now)
    }
}

impl Known {
    fn set_key(&mut self, worker: &WorkerName, key: Option<&WorkerKey>) {
        if let Some(old) = self.keys.get(worker)
            && self.owners.get(&old.public_key) == Some(worker)
        {
            let old = old.public_key.clone();
            self.owners.remove(&old);
        }
        if let Some(key) = key {
            self.owners.insert(key.public_key.clone(), worker.clone());
        }
        put_or_remove(&mut self.keys, worker, key);
    }
}

fn put_or_remove<K: Clone + Eq + std::hash::Hash, V: Clone>(map: &mut HashMap<K, V>, key: &K, value: Option<&V>) {
    match value {
        Some(value) => drop(map.insert(key.clone(), value.clone())),
        None => drop(map.remove(key)),
    }
}

/// Users of the bus whose rights `changes` may have changed.
fn users_of(changes: &Changes) -> impl Iterator<Item = String> {
    let accounts = changes.accounts.iter().map(ToString::to_string);
    let workers = changes.keys.iter().map(subject::worker_user);
    let joins = changes.joins.iter().map(subject::join_user);
    accounts.chain(workers).chain(joins)
}
