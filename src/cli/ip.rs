//! `orchard ip`: the address that a VM has in its own network.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::client::Client;
use super::connect::Place;
use super::output::{self, DataArgs};
use super::target::{Failure, Target};
use crate::bus::connect::{GetAddress, VmAddress};
use crate::config::duration;
use crate::model::VmName;
use crate::model::error::ErrorCode;

#[derive(Debug, Subcommand)]
pub(super) enum Ip {
    /// Print the address that a VM has in its own network, as its worker knows it
    #[command(after_help = "\
Examples:
  orchard ip vm build-1
  orchard ip vm build-1 --wait

It is the guest's address in the network that its worker's machine gives it. With Tart and Vetu that is
one which the worker's machine can reach, or with --net-bridged anybody in its network. With QEMU it is
the guest's own in a network of its own, 10.0.2.15 in all of them: good for what runs in the guest, and
to nobody else. `orchard port-forward`, `ssh` and `proxy` reach every VM from anywhere and need no address.")]
    Vm(IpArgs),
}

#[derive(Debug, Args)]
pub(super) struct IpArgs {
    /// Wait until it is known, 60s unless given [default: fail at once]
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true, default_missing_value = "60s",
          value_parser = duration::parse)]
    wait: Option<Duration>,
    #[command(flatten)]
    output: DataArgs,
    /// The VM's name
    name: VmName,
}

pub(super) async fn run(command: Ip, client: &Client) -> anyhow::Result<()> {
    let Ip::Vm(IpArgs { wait, output, name }) = command;
    let target = Target::find(client, Place::Vm(name.clone())).await?;
    let asked = async |_| {
        // The worker has its own deadline, and the bus one above that.
        client.call_within(&GetAddress { vm: name.clone() }, ANSWER).await.map_err(|error| match error.code {
            ErrorCode::UnknownVerb => Failure::Final(error.into()),
            _ => Failure::from(error),
        })
    };
    let VmAddress { ip, uid } = target.until("tell its address", wait.unwrap_or_default(), asked).await?;
    match output.format() {
        format if format.is_data() => format.data(&serde_json::json!({ "ip": ip, "uid": uid }))?,
        _ => output::line(&output::clean(&ip))?,
    }
    Ok(())
}

/// How long one answer may take: what the tunnel gives the worker, and the way there.
const ANSWER: Duration = Duration::from_secs(crate::tunnel::OPEN_DEADLINE.as_secs() + 3);
