//! The settings of the whole cluster: kept, changed and put into effect.

use super::{Changes, Cluster};
use crate::bus::settings::SetSettings;
use crate::controller::scheduler::Policy;
use crate::model::error::ApiError;
use crate::model::settings::ClusterSettings;
use crate::model::vm::VmSpec;

impl Cluster {
    /// The settings in force.
    pub fn settings_record(&self) -> &ClusterSettings {
        &self.settings
    }

    /// Changes settings; from the next placement on they count.
    ///
    /// # Errors
    /// [`crate::model::error::ErrorCode::Invalid`] for what cannot be; nothing is changed then.
    pub fn set_settings(&mut self, request: SetSettings, changes: &mut Changes) -> Result<ClusterSettings, ApiError> {
        let mut settings = self.settings.clone();
        let SetSettings { profile, cpu_overcommit, host_dir_policies, add_host_dir_policies } = request;
        settings.profile = profile.unwrap_or(settings.profile);
        settings.cpu_overcommit = cpu_overcommit.unwrap_or(settings.cpu_overcommit);
        settings.host_dir_policies = host_dir_policies.unwrap_or(settings.host_dir_policies);
        for policy in add_host_dir_policies {
            if !settings.host_dir_policies.contains(&policy) {
                settings.host_dir_policies.push(policy);
            }
        }
        settings.check()?;
        let policies: Vec<String> = settings.host_dir_policies.iter().map(ToString::to_string).collect();
        changes.say(format!(
            "scheduler profile {}, virtual cores for each real one {}, host directory policies [{}]",
            settings.profile,
            settings.cpu_overcommit,
            policies.join(", ")
        ));
        if settings != self.settings {
            self.scheduler.set_policy(policy_of(&settings));
            self.settings = settings;
            changes.settings = true;
        }
        Ok(self.settings.clone())
    }

    /// Whether a VM may have the host directories that it asks for.
    pub(super) fn check_host_dirs(&self, spec: &VmSpec) -> Result<(), ApiError> {
        spec.host_dirs.iter().try_for_each(|dir| self.settings.check_host_dir(dir))
    }
}

/// What the scheduler goes by.
pub(super) fn policy_of(settings: &ClusterSettings) -> Policy {
    Policy { profile: settings.profile, cpu_overcommit: settings.cpu_overcommit, ..Policy::default() }
}
