//! `orchard controller run`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::folder::{self, DataFolder};
use super::parts::{self, ControllerSetup, OutsideBus, RunningController};
use super::{host, until_stopped};
use crate::cli::{UsageError, output};
use crate::config::Home;
use crate::config::address::{normalise_bus_url, parse_listen};
use crate::config::context::{Context, ContextFile};
use crate::controller::auth::BOOTSTRAP_ADMIN;
use crate::model::secret::Secret;

/// The context of the first account, on the controller's own machine.
const CONTEXT: &str = "bootstrap-context";
/// The variable that may hold the password of an outside bus.
const BUS_PASSWORD: &str = "ORCHARD_BUS_PASSWORD";

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum ControllerCommand {
    /// Run a controller until Ctrl-C or SIGTERM
    #[command(after_help = "\
Examples:
  orchard controller run
  orchard controller run --data-dir /var/lib/orchard --tunnel-host ctl.example.com
  orchard controller run --bus-url nats://nats.example.com:4222 --bus-user orchard

The first start makes the token that workers join with, in the file `token` of the data folder.
Restarting or killing the controller stops no VM and forgets nothing.")]
    Run(RunArgs),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct RunArgs {
    /// Where the controller keeps its state [default: controller in the home folder]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// UDP address of the tunnels
    #[arg(long, default_value = "0.0.0.0:6120", value_name = "ADDR", value_parser = parse_listen)]
    listen: SocketAddr,
    /// TCP address of the bus
    #[arg(long, default_value = "0.0.0.0:4222", value_name = "ADDR", value_parser = parse_listen)]
    bus_listen: SocketAddr,
    /// Use this NATS server in place of the embedded broker
    #[arg(long, value_name = "URL", value_parser = normalise_bus_url, conflicts_with = "bus_listen")]
    bus_url: Option<String>,
    /// User at that server
    #[arg(long, value_name = "USER", requires = "bus_url")]
    bus_user: Option<String>,
    /// File with that user's password [default: what ORCHARD_BUS_PASSWORD holds]
    #[arg(long, value_name = "FILE", requires = "bus_url")]
    bus_password_file: Option<PathBuf>,
    /// Host that workers and users reach the tunnels by [default: the host they reach the bus by]
    #[arg(long, value_name = "HOST")]
    tunnel_host: Option<String>,
}

pub(in crate::cli) async fn run(command: ControllerCommand, home: Home) -> anyhow::Result<u8> {
    let ControllerCommand::Run(arguments) = command;
    let outside_bus = outside_bus(&arguments)?;
    home.prepare()?;
    let folder = DataFolder::claim(&arguments.data_dir.unwrap_or_else(|| home.path().join("controller")))?;
    let token = folder.token()?;
    let start = parts::start_controller(ControllerSetup {
        data_dir: folder.path().to_owned(),
        listen: arguments.listen,
        bus_listen: arguments.bus_listen,
        outside_bus,
        tunnel_host: arguments.tunnel_host,
        tls: true,
        bus_host: None,
        certificate: None,
        bootstrap_token: Some(token.clone()),
    });
    until_stopped(start, |controller| announce(controller, &folder, token, home)).await
}

fn outside_bus(arguments: &RunArgs) -> anyhow::Result<Option<OutsideBus>> {
    let Some(url) = arguments.bus_url.clone() else { return Ok(None) };
    let Some(user) = arguments.bus_user.clone() else {
        return Err(UsageError("--bus-url needs --bus-user: nobody is let in without a name".to_owned()).into());
    };
    let password = match &arguments.bus_password_file {
        Some(file) => folder::read_token(file)?,
        None => match std::env::var(BUS_PASSWORD) {
            Ok(password) if !password.is_empty() => Secret::new(password),
            _ => {
                let what = format!("--bus-url needs --bus-password-file, or the password in {BUS_PASSWORD}");
                return Err(UsageError(what).into());
            }
        },
    };
    Ok(Some(OutsideBus { url, user, password }))
}

fn announce(controller: &RunningController, folder: &DataFolder, token: Secret, home: Home) -> anyhow::Result<()> {
    let file = ContextFile::new(home);
    let context = Context {
        url: controller.bus_url.clone(),
        account: Some(BOOTSTRAP_ADMIN.parse()?),
        token: Some(token),
        fingerprint: None,
        other: Default::default(),
    };
    let mut is_default = false;
    file.update(|all| {
        all.put(CONTEXT, context, false);
        is_default = all.default.as_deref() == Some(CONTEXT);
    })?;
    tracing::info!(bus = %controller.bus_url, tunnels = %controller.tunnel_addr, "the controller is up");
    output::line(&format!(
        "\
orchard controller is ready
  bus      {bus}
  tunnels  {tunnels} (udp)
  data     {data}
  context  {CONTEXT}{default} in {file}
{outside}
To join a worker, copy {token_file} to it and run there:
  orchard worker run {join} --token-file FILE",
        bus = controller.bus_url,
        tunnels = controller.tunnel_addr,
        data = folder.path().display(),
        default = if is_default { ", the default" } else { ", to be named with --context" },
        file = file.path().display(),
        outside = match controller.bus_addr {
            Some(_) => String::new(),
            None => format!(
                "\nThe server at {} decides who gets in: give its users {BOOTSTRAP_ADMIN} and worker/NAME the password that\n\
                 stands in {}.\n",
                controller.bus_url,
                folder.token_path().display()
            ),
        },
        token_file = folder.token_path().display(),
        join = join_url(controller),
    ))?;
    Ok(())
}

/// How another machine most likely reaches the bus: a broker on all interfaces is found by this machine's name.
fn join_url(controller: &RunningController) -> String {
    match controller.bus_addr {
        Some(address) if address.ip().is_unspecified() => {
            let name = host::name().map_or_else(|| "THIS-HOST".to_owned(), String::from);
            format!("nats://{name}:{}", address.port())
        }
        Some(address) => format!("nats://{address}"),
        None => controller.bus_url.clone(),
    }
}
