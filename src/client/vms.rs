//! VMs, the workers that run them, and the accounts that may: the verbs that most programs use, as methods of [`Client`].

use std::time::Duration;

use tokio::time::Instant;

use super::{Client, is_passing};
use crate::bus::access::ListAccounts;
use crate::bus::life::{SpecChange, UpdateVm};
use crate::bus::message::{CreateVm, DeleteVm, GetVm, ListVms, ListWorkers};
use crate::model::VmName;
use crate::model::account::AccountView;
use crate::model::error::{ApiError, ErrorCode};
use crate::model::vm::{Vm, VmSpec};
use crate::model::worker::WorkerView;

/// For how long a create is tried again whose answer does not come.
const CREATE_WITHIN: Duration = Duration::from_secs(60);
/// The pause before that.
const CREATE_PAUSE: Duration = Duration::from_secs(1);

impl Client {
    /// The VM `name`.
    ///
    /// # Errors
    /// As for [`Client::call`]; [`ErrorCode::NotFound`] when there is none.
    pub async fn vm(&self, name: &VmName) -> Result<Vm, ApiError> {
        self.call(&GetVm { name: name.clone() }).await
    }

    /// The same for those who can do without: none when the account may connect to VMs but not see them.
    ///
    /// # Errors
    /// As for [`Client::vm`].
    pub async fn vm_if_visible(&self, name: &VmName) -> Result<Option<Vm>, ApiError> {
        match self.vm(name).await {
            Err(error) if error.code == ErrorCode::Forbidden => Ok(None),
            seen => seen.map(Some),
        }
    }

    /// All VMs, in name order. They are asked for in pages: one that is made or deleted meanwhile may or may not be here.
    ///
    /// # Errors
    /// As for [`Client::call`].
    pub async fn vms(&self) -> Result<Vec<Vm>, ApiError> {
        let mut all: Vec<Vm> = Vec::new();
        loop {
            let after = all.last().map(|vm| vm.name.clone());
            let page = self.call(&ListVms { after, limit: 0 }).await?;
            let more = page.more && !page.vms.is_empty();
            all.extend(page.vms);
            if !more {
                return Ok(all);
            }
        }
    }

    /// All workers, likewise.
    ///
    /// # Errors
    /// As for [`Client::call`].
    pub async fn workers(&self) -> Result<Vec<WorkerView>, ApiError> {
        let mut all: Vec<WorkerView> = Vec::new();
        loop {
            let after = all.last().map(|view| view.worker.info.name.clone());
            let page = self.call(&ListWorkers { after, limit: 0 }).await?;
            let more = page.more && !page.workers.is_empty();
            all.extend(page.workers);
            if !more {
                return Ok(all);
            }
        }
    }

    /// All service accounts, likewise.
    ///
    /// # Errors
    /// As for [`Client::call`].
    pub async fn accounts(&self) -> Result<Vec<AccountView>, ApiError> {
        let mut all: Vec<AccountView> = Vec::new();
        loop {
            let after = all.last().map(|account| account.name.clone());
            let page = self.call(&ListAccounts { after, limit: 0 }).await?;
            let more = page.more && !page.accounts.is_empty();
            all.extend(page.accounts);
            if !more {
                return Ok(all);
            }
        }
    }

    /// Makes a VM, which is durable then; a worker starts it in its own time, see [`super::wait`].
    ///
    /// # Errors
    /// As for [`Client::create_once`].
    pub async fn create_vm(&self, name: &VmName, spec: VmSpec) -> Result<Vm, ApiError> {
        let key = Some(uuid::Uuid::new_v4().to_string());
        self.create_once(&CreateVm { name: name.clone(), spec, key }, |_| ()).await
    }

    /// Makes the VM of `request`; tries again for a minute when it is not known whether the controller has done it, or when it
    /// cannot at the moment, and tells each time why. The key of the request sees to it that this makes one VM.
    ///
    /// # Errors
    /// As for [`Client::call`]; [`ErrorCode::Conflict`] when there is another VM of the name.
    pub async fn create_once(&self, request: &CreateVm, mut again: impl FnMut(&ApiError)) -> Result<Vm, ApiError> {
        let until = Instant::now() + CREATE_WITHIN;
        loop {
            match self.call(request).await {
                Err(error) if is_passing(&error) && Instant::now() + CREATE_PAUSE < until => {
                    again(&error);
                    tokio::time::sleep(CREATE_PAUSE).await;
                }
                answered => return answered,
            }
        }
    }

    /// Changes what a VM shall be: only what `change` names. Yields the VM as it then is.
    ///
    /// # Errors
    /// As for [`Client::call`].
    pub async fn update_vm(&self, name: &VmName, change: SpecChange) -> Result<Vm, ApiError> {
        self.call(&UpdateVm { name: name.clone(), if_generation: None, change }).await
    }

    /// Deletes a VM and its disk. Its name is free at once, its room once the worker has confirmed.
    ///
    /// # Errors
    /// As for [`Client::call`]; [`ErrorCode::NotFound`] when there is none.
    pub async fn delete_vm(&self, name: &VmName) -> Result<(), ApiError> {
        self.call(&DeleteVm { name: name.clone() }).await.map(drop)
    }
}
