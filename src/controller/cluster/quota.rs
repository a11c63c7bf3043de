//! How many VMs there may be, and how large they may be together: everything is held in memory and in one database, so
//! neither may grow for ever, and no account may take it all.

use std::collections::HashMap;

use crate::bus::measure::encoded_len;
use crate::model::AccountName;
use crate::model::error::{ApiError, ErrorCode};
use crate::model::vm::{Vm, VmSpec};

/// The bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Quota {
    /// VMs of all.
    pub(super) vms: u64,
    /// VMs that one account made.
    pub(super) vms_of_one: u64,
    /// Bytes of the specifications of all VMs, as they are sent.
    pub(super) bytes: u64,
    /// The same of the VMs that one account made.
    pub(super) bytes_of_one: u64,
}

impl Default for Quota {
    /// Ten times the ten thousand VMs that one controller is made for, with 100 KiB of script for each of those; half of
    /// it for one account.
    fn default() -> Self {
        Self { vms: 100_000, vms_of_one: 50_000, bytes: 1 << 30, bytes_of_one: 1 << 29 }
    }
}

/// What there is of both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    vms: u64,
    bytes: u64,
}

/// What is taken of the quota.
#[derive(Clone, Debug, Default)]
pub(super) struct Usage {
    pub(super) quota: Quota,
    all: Sum,
    by_account: HashMap<AccountName, Sum>,
}

impl Usage {
    /// Whether `by` may make a VM with `spec`.
    ///
    /// # Errors
    /// [`ErrorCode::LimitExceeded`].
    pub(super) fn check(&self, by: Option<&AccountName>, spec: &VmSpec) -> Result<(), ApiError> {
        let Quota { vms, vms_of_one, bytes, bytes_of_one } = self.quota;
        let size = size_of_spec(spec);
        check("there are", self.all, size, vms, bytes)?;
        let Some(by) = by else { return Ok(()) };
        let own = self.by_account.get(by).copied().unwrap_or_default();
        check(&format!("account {by} has made"), own, size, vms_of_one, bytes_of_one)
    }

    /// One more VM.
    pub(super) fn add(&mut self, vm: &Vm) {
        let size = size_of_spec(&vm.spec);
        let own = vm.created_by.clone().map(|by| self.by_account.entry(by).or_default());
        for sum in own.into_iter().chain([&mut self.all]) {
            sum.vms = sum.vms.saturating_add(1);
            sum.bytes = sum.bytes.saturating_add(size);
        }
    }

    /// One less.
    pub(super) fn remove(&mut self, vm: &Vm) {
        let size = size_of_spec(&vm.spec);
        let own = vm.created_by.as_ref().and_then(|by| self.by_account.get_mut(by));
        for sum in own.into_iter().chain([&mut self.all]) {
            sum.vms = sum.vms.saturating_sub(1);
            sum.bytes = sum.bytes.saturating_sub(size);
        }
        if let Some(by) = &vm.created_by
            && self.by_account.get(by).is_some_and(|sum| sum.vms == 0)
        {
            self.by_account.remove(by);
        }
    }
}

fn check(whose: &str, sum: Sum, size: u64, vms: u64, bytes: u64) -> Result<(), ApiError> {
    if sum.vms >= vms {
        let what = format!("{whose} {} VMs, and no more than {vms} can be; delete some first", sum.vms);
        return Err(ApiError::new(ErrorCode::LimitExceeded, what));
    }
    if sum.bytes.saturating_add(size) > bytes {
        let what = format!(
            "{whose} VMs whose specifications have {} bytes together, and with the {size} bytes of this one it would be more \
             than {bytes}; delete some first, or let startup scripts fetch what they need",
            sum.bytes
        );
        return Err(ApiError::new(ErrorCode::LimitExceeded, what));
    }
    Ok(())
}

fn size_of_spec(spec: &VmSpec) -> u64 {
    u64::try_from(encoded_len(spec)).unwrap_or(u64::MAX)
}
