//! Requests that bear a key: one that comes again is answered with the VM that the first has made, so that whoever got no
//! answer may ask again without getting two.
//!
//! A key is its asker's own: another account's is another key. It is stored with the VM, and remembered for a day after that
//! is deleted: a request that comes again that late is told so, and makes no VM that nobody waits for.

use std::collections::HashMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use super::{Changes, Cluster};
use crate::bus::message::{self, CreateVm, MAX_KEY};
use crate::model::error::{ApiError, ErrorCode};
use crate::model::planted::{Bug, planted};
use crate::model::vm::Vm;
use crate::model::{AccountName, Now, Timestamp, VmName, VmUid};

/// How long keys of deleted VMs are remembered: no client tries one request for longer.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);

/// Whose key, and which.
pub type SpentKey = (Option<AccountName>, String);

/// The key of a VM that was deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spent {
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountName>,
    /// What he calls the request.
    pub key: String,
    /// What the VM was called.
    pub name: VmName,
    /// Which it was.
    pub uid: VmUid,
    /// When it was deleted.
    pub at: Timestamp,
}

impl Spent {
    pub(super) fn id(&self) -> SpentKey {
        (self.account.clone(), self.key.clone())
    }
}

/// The keys of the VMs that there are.
#[derive(Clone, Debug, Default)]
pub(super) struct Keys(HashMap<SpentKey, VmUid>);

impl Keys {
    pub(super) fn insert(&mut self, vm: &Vm) {
        if let Some(once) = &vm.once {
            self.0.insert((vm.created_by.clone(), once.key.clone()), vm.uid);
        }
    }
}

impl Cluster {
    /// The VM that an earlier try of `request` has made, if it bears a key that says so.
    ///
    /// # Errors
    /// [`ErrorCode::Conflict`] when the key was used for something else, or for a VM that is gone; [`ErrorCode::Invalid`]
    /// when it cannot be one.
    pub(super) fn made_before(&self, by: Option<&AccountName>, request: &CreateVm) -> Result<Option<Vm>, ApiError> {
        let Some(key) = &request.key else { return Ok(None) };
        if key.is_empty() || key.len() > MAX_KEY || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            let what = format!("an idempotency key has 1 to {MAX_KEY} printable ASCII characters without spaces");
            return Err(ApiError::new(ErrorCode::Invalid, what));
        }
        if planted(Bug::KeyIgnored) {
            return Ok(None);
        }
        let conflict = |what: String| Err(ApiError::new(ErrorCode::Conflict, what));
        let id = (by.cloned(), key.clone());
        if let Some(spent) = self.spent.get(&id) {
            return conflict(format!(
                "the request with this idempotency key has made VM {} ({}), which was deleted; for a new VM take a new key",
                spent.name, spent.uid
            ));
        }
        let Some(vm) = self.keys.0.get(&id).and_then(|uid| self.vm_record(*uid)) else { return Ok(None) };
        if vm.name != request.name {
            return conflict(format!(
                "this idempotency key was used to create VM {}, and not {}; take another key for another VM",
                vm.name, request.name
            ));
        }
        if vm.once.as_ref().is_none_or(|once| once.digest != digest_of(request)) {
            return conflict(format!(
                "this idempotency key was used to create VM {} with another specification; take another key, and another name",
                vm.name
            ));
        }
        Ok(Some(vm.clone().redacted()))
    }

    /// Notes that the VM which a request with a key has made is deleted.
    pub(super) fn spend_key(&mut self, vm: &Vm, now: Now, changes: &mut Changes) {
        let Some(once) = &vm.once else { return };
        let record = Spent {
            account: vm.created_by.clone(),
            key: once.key.clone(),
            name: vm.name.clone(),
            uid: vm.uid,
            at: now.wall,
        };
        self.keys.0.remove(&record.id());
        changes.spent.insert(record.id());
        self.spent.insert(record);
        while let Some(id) = self.spent.pop_excess() {
            changes.spent.insert(id);
        }
    }

    /// Forgets those that are too old.
    pub(super) fn forget_spent(&mut self, now: Now, changes: &mut Changes) {
        while let Some(id) = self.spent.pop_older(now.wall, REMEMBERED) {
            changes.spent.insert(id);
        }
    }

    /// The stored form of a key of a deleted VM; `None` once it is not remembered any more.
    pub fn spent_record(&self, id: &SpentKey) -> Option<&Spent> {
        self.spent.get(id)
    }

    /// All of them.
    #[cfg(test)]
    pub(super) fn spent_records(&self) -> impl Iterator<Item = &Spent> {
        self.spent.iter()
    }
}

/// A digest of the VM that is asked for.
pub(super) fn digest_of(request: &CreateVm) -> String {
    // Does not fail for these types; if it did, equal requests would still be equal.
    let asked = message::encode(&(&request.name, &request.spec)).unwrap_or_default();
    data_encoding::HEXLOWER.encode(&sha2::Sha256::digest(asked))
}
