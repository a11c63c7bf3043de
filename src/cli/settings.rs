//! `orchard get cluster-settings` and `orchard set cluster-settings`: what operators decide for the whole cluster.

use clap::Subcommand;

use super::client::Client;
use super::output::{DataArgs, OutputError, Table};
use super::{UsageError, pairs};
use crate::bus::settings::SetSettings;
use crate::model::settings::{ClusterSettings, HostDirPolicy, Profile};

#[derive(Debug, Subcommand)]
pub(super) enum Set {
    /// Change where VMs go, how many cores are given out, and which folders of hosts VMs may be given
    #[command(after_help = "\
Examples:
  orchard set cluster-settings --scheduler-profile distribute-load
  orchard set cluster-settings --host-dir-policies /srv/builds,/srv/cache:ro
  orchard set cluster-settings --replace-host-dir-policies
      # none is allowed any more

VMs that are placed already stay where they are, with what they have.")]
    ClusterSettings {
        /// optimize-utilization (the fullest worker first) or distribute-load (the emptiest)
        #[arg(long, value_name = "PROFILE", value_parser = pairs::one_of::<Profile>)]
        scheduler_profile: Option<Profile>,
        /// Virtual CPU cores given out for each real one
        #[arg(long, value_name = "N", value_parser = pairs::amount)]
        cpu_overcommit: Option<u64>,
        /// Folders below which VMs may be given folders, only to read with :ro; added to those there are
        #[arg(long, value_name = "PREFIX[:ro],…", value_delimiter = ',', value_parser = pairs::one_of::<HostDirPolicy>)]
        host_dir_policies: Vec<HostDirPolicy>,
        /// In place of those there are
        #[arg(long)]
        replace_host_dir_policies: bool,
        #[command(flatten)]
        output: DataArgs,
    },
}

pub(super) async fn set(command: Set, client: &Client) -> anyhow::Result<()> {
    let Set::ClusterSettings {
        scheduler_profile,
        cpu_overcommit,
        host_dir_policies,
        replace_host_dir_policies,
        output,
    } = command;
    let mut request = SetSettings { profile: scheduler_profile, cpu_overcommit, ..SetSettings::default() };
    if replace_host_dir_policies {
        request.host_dir_policies = Some(host_dir_policies);
    } else {
        request.add_host_dir_policies = host_dir_policies;
    }
    if request == SetSettings::default() {
        let what = "nothing to change; give --scheduler-profile, --cpu-overcommit or --host-dir-policies";
        return Err(UsageError(what.to_owned()).into());
    }
    let settings = client.call(&request).await?;
    Ok(show(&settings, output)?)
}

/// Prints settings.
pub(super) fn show(settings: &ClusterSettings, output: DataArgs) -> Result<(), OutputError> {
    output.item(settings, |settings, _| table(settings))
}

fn table(settings: &ClusterSettings) -> Table {
    let mut table = Table::with_titles(["Key", "Value"]).whole();
    let policies: Vec<String> = settings.host_dir_policies.iter().map(ToString::to_string).collect();
    let policies = if policies.is_empty() { "none".to_owned() } else { policies.join(",") };
    table.row(["Host directory policies".to_owned(), policies]);
    table.row(["Scheduler profile".to_owned(), settings.profile.to_string()]);
    table.row(["CPU over-commit".to_owned(), settings.cpu_overcommit.to_string()]);
    table
}
