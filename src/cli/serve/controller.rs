//! `orchard controller …`, of which `run` is here.

use std::io::IsTerminal as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};

use super::backup::{BackupArgs, RestoreArgs};
use super::folder::{self, DataFolder};
use super::parts::{self, ControllerSetup, OutsideBus, RunningController};
use super::watched::WatchArgs;
use super::{backup, host, no_core_dumps, until_stopped};
use crate::cli::status::StatusArgs;
use crate::cli::{UsageError, files, output};
use crate::config::address::{DEFAULT_BUS_PORT, normalise_bus_url, parse_listen};
use crate::config::context::Context;
use crate::config::file::ContextFile;
use crate::config::{Home, duration, variable};
use crate::controller::JumpOptions;
use crate::controller::auth::BOOTSTRAP_ADMIN;
use crate::controller::cluster::{self, Timing};
use crate::controller::store::Retention;
use crate::controller::store::backup::restore::finish_interrupted;
use crate::model::AccountName;
use crate::model::secret::Secret;

/// The context of the first account, on the controller's own machine.
const CONTEXT: &str = "bootstrap-context";
/// The variable that may hold the password of an outside bus.
const BUS_PASSWORD: &str = "ORCHARD_BUS_PASSWORD";
/// The variable that may hold the first account's token.
const ADMIN_TOKEN: &str = "ORCHARD_BOOTSTRAP_ADMIN_TOKEN";
/// Where the bus listens if nobody says otherwise; without TLS on this machine only.
const BUS_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), DEFAULT_BUS_PORT);
const PLAIN_BUS_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), DEFAULT_BUS_PORT);

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum ControllerCommand {
    /// Run a controller until Ctrl-C or SIGTERM
    #[command(after_help = "\
Examples:
  orchard controller run
  orchard controller run --data-dir /var/lib/orchard \\
      --tunnel-host ctl.example.com
  orchard controller run --bus-url nats://nats.example.com:4222 \\
      --bus-user orchard

The first start makes the account bootstrap-admin, shows its token on the terminal once, and keeps
it in the context bootstrap-context of the user who runs this. With ORCHARD_BOOTSTRAP_ADMIN_TOKEN
set, that account has all roles and this token from then on: a way in when all others are lost.
Restarting or killing the controller stops no VM and forgets nothing.")]
    Run(Box<RunArgs>),
    /// Copy a controller, running or not, into one file
    Backup(BackupArgs),
    /// Bring a controller back from such a file
    Restore(RestoreArgs),
    /// Show how the controller is doing, and what deserves a look
    Status(StatusArgs),
}

impl ControllerCommand {
    /// Whether it asks a controller that runs, as other client commands do.
    pub(in crate::cli) fn asks(&self) -> bool {
        matches!(self, ControllerCommand::Status(_))
    }
}

#[derive(Debug, Args)]
pub(in crate::cli) struct RunArgs {
    /// Where the controller keeps its state [default: controller in the home folder]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// UDP address of the tunnels
    #[arg(long, default_value = "0.0.0.0:6120", value_name = "ADDR", value_parser = parse_listen)]
    listen: SocketAddr,
    /// TCP address of an SSH jump host, such as 0.0.0.0:6122: `ssh -J ACCOUNT@HOST:6122 USER@VM` with any client
    #[arg(long, value_name = "ADDR", value_parser = parse_listen)]
    listen_ssh: Option<SocketAddr>,
    /// Private key of the jump host, in OpenSSH's form [default: one made in the data folder]
    #[arg(long, value_name = "FILE", requires = "listen_ssh")]
    ssh_host_key: Option<PathBuf>,
    /// TCP address of the bus [default: 0.0.0.0:4222, or 127.0.0.1:4222 with --insecure-no-tls]
    #[arg(long, value_name = "ADDR", value_parser = parse_listen)]
    bus_listen: Option<SocketAddr>,
    /// Certificate (PEM, with those that lead to its CA behind it) to use in place of the controller's own
    #[arg(long, value_name = "FILE", requires = "controller_key")]
    controller_cert: Option<PathBuf>,
    /// Private key of that certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "controller_cert")]
    controller_key: Option<PathBuf>,
    /// Do not encrypt the bus: for a proxy on this machine that does. Tokens can be read by whoever listens in
    #[arg(long, conflicts_with = "bus_url")]
    insecure_no_tls: bool,
    /// Use this NATS server in place of the embedded broker
    #[arg(long, value_name = "URL", value_parser = normalise_bus_url, conflicts_with = "bus_listen")]
    bus_url: Option<String>,
    /// User at that server
    // The conflicts are those of `--bus-url`: where that cannot be, clap drops the requirement, and what was said with it.
    #[arg(long, value_name = "USER", requires = "bus_url", conflicts_with_all = ["bus_listen", "insecure_no_tls"])]
    bus_user: Option<String>,
    /// File with that user's password [default: what ORCHARD_BUS_PASSWORD holds]
    #[arg(long, value_name = "FILE", requires = "bus_url", conflicts_with_all = ["bus_listen", "insecure_no_tls"])]
    bus_password_file: Option<PathBuf>,
    /// Host that workers and users reach the tunnels by [default: the host they reach the bus by]
    #[arg(long, value_name = "HOST")]
    tunnel_host: Option<String>,
    /// How long a worker may be silent until it ends its VMs with --on-unseen replace and they start elsewhere, 5s to 1h
    /// [default: 1m]
    ///
    /// All other VMs are left alone however long that is. A short lease brings replacements sooner; a long one lets VMs go on
    /// through longer failures of the network. A worker that is cut off with a longer one is waited for as long.
    #[arg(long, value_name = "DURATION", value_parser = lease)]
    lease: Option<Duration>,
    /// Keep events for so many days
    #[arg(long, value_name = "DAYS", default_value_t = 90, value_parser = clap::value_parser!(u64).range(1..=36_500))]
    events_keep_days: u64,
    /// Keep at most so many events
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    events_keep_count: u64,
    /// Keep at most so many MiB of events
    #[arg(long, value_name = "MIB", default_value_t = 16_384, value_parser = clap::value_parser!(u64).range(1..=16_384))]
    events_keep_mib: u64,
    #[command(flatten)]
    watch: WatchArgs,
}

/// Shorter, and a busy moment ends VMs; longer, and nobody waits for a replacement.
const LEASES: RangeInclusive<Duration> = Duration::from_secs(5)..=Duration::from_secs(3600);

fn lease(text: &str) -> Result<Duration, String> {
    let lease = duration::parse(text)?;
    match LEASES.contains(&lease) {
        true => Ok(lease),
        false => Err(format!("{text:?} is no time for a lease; give 5s to 1h")),
    }
}

impl RunArgs {
    /// How long events are kept: all three hold.
    fn events_kept(&self) -> Retention {
        Retention {
            events: self.events_keep_count,
            bytes: self.events_keep_mib << 20,
            age: Duration::from_secs(self.events_keep_days * 24 * 3600),
        }
    }
}

pub(in crate::cli) async fn run(command: ControllerCommand, home: Home) -> anyhow::Result<u8> {
    let arguments = match command {
        ControllerCommand::Run(arguments) => *arguments,
        ControllerCommand::Backup(arguments) => return backup::backup(arguments, home).await.map(|()| 0),
        ControllerCommand::Restore(arguments) => return backup::restore(arguments, home).await.map(|()| 0),
        // Done by the caller, as a client.
        ControllerCommand::Status(_) => return Ok(0),
    };
    let named = [&arguments.controller_cert, &arguments.controller_key, &arguments.ssh_host_key];
    for file in named.into_iter().flatten() {
        files::look(file).with_context(|| format!("cannot read {}", file.display()))?;
    }
    let outside_bus = outside_bus(&arguments)?;
    let events_kept = arguments.events_kept();
    let bootstrap_token = bootstrap_token()?;
    let bus_listen = arguments.bus_listen.unwrap_or(match arguments.insecure_no_tls {
        true => PLAIN_BUS_LISTEN,
        false => BUS_LISTEN,
    });
    if arguments.insecure_no_tls {
        eprintln!(
            "WARNING: the bus at {bus_listen} is not encrypted: whoever can listen in reads tokens and guest passwords."
        );
        eprintln!("WARNING: put a proxy with TLS in front of it, and let nobody else reach it.");
    }
    no_core_dumps();
    home.prepare()?;
    let folder = DataFolder::make(&arguments.data_dir.unwrap_or_else(|| home.path().join("controller")))?;
    // Before anything in it is read.
    finish_interrupted(folder.path())?;
    // Whoever runs an outside bus wants to know what to let accounts and workers in with.
    let outside_token = outside_bus.is_some().then(|| folder.token()).transpose()?;
    let made_here = bootstrap_token.is_none();
    let bus_host = arguments.tunnel_host.clone().or_else(|| {
        let all_interfaces = bus_listen.ip().is_unspecified();
        host::name().filter(|_| all_interfaces).map(String::from)
    });
    let watch = arguments.watch;
    let start = parts::start_controller(ControllerSetup {
        events_kept,
        data_dir: folder.path().to_owned(),
        listen: arguments.listen,
        bus_listen,
        outside_bus,
        tunnel_host: arguments.tunnel_host,
        tls: !arguments.insecure_no_tls,
        bus_host,
        certificate: arguments.controller_cert.zip(arguments.controller_key),
        jump: arguments.listen_ssh.map(|listen| JumpOptions { listen, host_key: arguments.ssh_host_key }),
        bootstrap_token,
        timing: arguments.lease.map_or_else(Timing::default, Timing::with_lease),
    });
    until_stopped(watch.start(start), |watched| {
        announce((&watched.running, watched.url()), &folder, outside_token, made_here, home)
    })
    .await
}

/// The token that the environment gives the first account.
fn bootstrap_token() -> Result<Option<Secret>, UsageError> {
    let given = variable(ADMIN_TOKEN).map_err(|error| UsageError(error.to_string()))?.map(Secret::new);
    match given.as_ref().map(cluster::check_token) {
        Some(Err(why)) => Err(UsageError(format!("{ADMIN_TOKEN}: {why}"))),
        _ => Ok(given),
    }
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

fn announce(
    (controller, metrics): (&RunningController, Option<String>),
    folder: &DataFolder,
    outside_token: Option<Secret>,
    made_here: bool,
    home: Home,
) -> anyhow::Result<()> {
    let file = ContextFile::new(home);
    let context = remember(controller, outside_token.clone(), &file)?;
    controller.token_is_saved()?;
    tracing::info!(bus = %controller.bus_url, tunnels = %controller.tunnel_addr, "the controller is up");
    let mut text = format!(
        "\
orchard controller is ready
  bus          {bus}
  tunnels      {tunnels} (udp)",
        bus = controller.bus_url,
        tunnels = controller.tunnel_addr,
    );
    if let Some((address, key)) = &controller.jump_host {
        text += &format!("\n  ssh          {address} (jump host, key {key})");
    }
    if let Some(url) = &metrics {
        text += &format!("\n  metrics      {url}/metrics");
    }
    if let Some(fingerprint) = &controller.fingerprint {
        text += &format!("\n  certificate  {fingerprint} (SHA-256)");
    }
    text += &format!("\n  data         {}", folder.path().display());
    let named = match context {
        Remembered::Default(name) => {
            text += &format!("\n  context      {name}, the default, in {}", file.path().display());
            String::new()
        }
        Remembered::Named(name) => {
            text += &format!("\n  context      {name}, to be named with --context, in {}", file.path().display());
            format!(" --context {name}")
        }
        Remembered::No => String::new(),
    };
    // On a terminal a person sees it once; a pipe or a file would keep it.
    if let Some(token) = controller.bootstrap_token.as_ref().filter(|_| made_here && std::io::stdout().is_terminal()) {
        text += &format!("\n  account      {BOOTSTRAP_ADMIN}, with the token {} (shown this once)", token.expose());
    }
    text += &match outside_token {
        Some(_) => format!(
            "

The server at {} decides who gets in: give its user {BOOTSTRAP_ADMIN} the password that stands in
{token}, and each user worker/NAME a password of its own.
To run a worker, put its password into a file on its machine and run there:
  orchard worker run {} --token-file FILE",
            controller.bus_url,
            controller.bus_url,
            token = folder.token_path().display(),
        ),
        None => format!(
            "

To let another machine join as a worker:
  orchard get bootstrap-token{named} | ssh MACHINE orchard worker run --bootstrap-token-stdin"
        ),
    };
    output::line(&text)?;
    Ok(())
}

/// Whether this user has the context of the first account.
enum Remembered {
    Default(String),
    Named(String),
    No,
}

/// Saves how this user reaches the controller: with the first account's token if it is known, and otherwise where the
/// context that was saved when it was has to lead now. A context of another controller is left alone: its token is nowhere
/// else, and must not be shown to this one.
fn remember(
    controller: &RunningController,
    outside_token: Option<Secret>,
    file: &ContextFile,
) -> anyhow::Result<Remembered> {
    let account: AccountName = BOOTSTRAP_ADMIN.parse()?;
    let mut remembered = Remembered::No;
    file.update(|all| {
        let name = context_name(all.get(CONTEXT).ok(), controller);
        let same = |context: &&Context| context.fingerprint == controller.fingerprint;
        let known = all.get(&name).ok().filter(same).and_then(|context| context.token.clone());
        let Some(token) = outside_token.or_else(|| controller.bootstrap_token.clone()).or(known) else { return };
        let context = controller.context(account, token);
        all.put(&name, context, false);
        remembered = match all.default.as_deref() == Some(&name) {
            true => Remembered::Default(name),
            false => Remembered::Named(name),
        };
    })?;
    Ok(remembered)
}

/// [`CONTEXT`], unless that is another controller's: one with another certificate that is reached at another address.
fn context_name(saved: Option<&Context>, controller: &RunningController) -> String {
    match (saved, controller.fingerprint) {
        (Some(saved), Some(own)) if saved.fingerprint != Some(own) && saved.url != controller.bus_url => {
            let print: String = own.to_string().chars().take(8).collect();
            format!("{CONTEXT}-{print}")
        }
        _ => CONTEXT.to_owned(),
    }
}
