//! `orchard worker run`.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Subcommand};

use super::folder::{self, DataFolder};
use super::host::{self, Capacity};
use super::parts::{self, WorkerSetup};
use super::runtime::{self, RuntimeChoice};
use super::until_stopped;
use crate::cli::{UsageError, output, pairs};
use crate::config::Home;
use crate::config::address::normalise_bus_url;
use crate::model::WorkerName;
use crate::model::secret::Secret;
use crate::model::vm::RuntimeKind;

/// The variable that may hold the token.
const TOKEN: &str = "ORCHARD_TOKEN";

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum WorkerCommand {
    /// Run a worker until Ctrl-C or SIGTERM; its VMs go on without it
    #[command(after_help = "\
Examples:
  orchard worker run nats://ctl.example.com:4222 --token-file token
  ssh ctl cat /var/lib/orchard/token | orchard worker run ctl.example.com --token-stdin

The worker only dials out: it needs no open port. Stopping it stops no VM; the next start finds
them again.")]
    Run(RunArgs),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct RunArgs {
    /// Where the controller's bus is
    #[arg(value_name = "CONTROLLER_URL", value_parser = normalise_bus_url)]
    url: String,
    /// The worker's name in the cluster [default: this machine's name]
    #[arg(long)]
    name: Option<WorkerName>,
    /// Where the worker keeps its VMs [default: worker in the home folder]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// File with the token that lets workers in [default: what ORCHARD_TOKEN holds]
    #[arg(long, value_name = "FILE", conflicts_with = "token_stdin")]
    token_file: Option<PathBuf>,
    /// Read the token from standard input
    #[arg(long)]
    token_stdin: bool,
    /// What runs VMs: auto, qemu, tart, vetu or synthetic
    #[arg(long, default_value = "auto", value_parser = runtime::parse)]
    runtime: RuntimeChoice,
    /// Labels that VMs may ask for
    #[arg(long, value_name = "K=V,…", value_delimiter = ',', value_parser = pairs::label)]
    labels: Vec<(String, String)>,
    /// What the worker offers, over what it finds out by itself
    #[arg(long, value_name = "K=N,…", value_delimiter = ',', value_parser = pairs::resource)]
    resources: Vec<(String, u64)>,
    /// CPU cores of a VM that asks for none [default: 4, or what the machine has]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    default_cpu: Option<u64>,
    /// Memory in MiB of a VM that asks for none [default: 8192, or what the machine has]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..))]
    default_memory: Option<u64>,
}

pub(in crate::cli) async fn run(command: WorkerCommand, home: Home) -> anyhow::Result<u8> {
    let WorkerCommand::Run(arguments) = command;
    let token = token(&arguments)?;
    let data_dir = match arguments.data_dir.clone() {
        Some(given) => given,
        None => {
            home.prepare()?;
            home.path().join("worker")
        }
    };
    let kind = kind(arguments.runtime)?;
    let mut setup = setup(arguments, kind, token)?;
    let folder = DataFolder::claim(&data_dir)?;
    setup.data_dir = folder.path().to_owned();
    let (name, url) = (setup.name.clone(), setup.bus_url.clone());
    let start = parts::start_worker(setup);
    until_stopped(start, |_| {
        output::line(&format!("orchard worker {name} ({kind}) runs and keeps itself joined to {url}"))?;
        Ok(())
    })
    .await
}

/// Unlike `dev`, a worker never pretends by itself: a cluster with guests that are none helps nobody.
fn kind(choice: RuntimeChoice) -> anyhow::Result<RuntimeKind> {
    match choice {
        RuntimeChoice::Kind(kind) => Ok(kind),
        RuntimeChoice::Auto => runtime::detect().with_context(|| {
            format!("{}; --runtime names another one, such as synthetic for tests", runtime::NOTHING_FOUND)
        }),
    }
}

fn setup(arguments: RunArgs, kind: RuntimeKind, token: Secret) -> anyhow::Result<WorkerSetup> {
    let name = match arguments.name {
        Some(name) => name,
        None => host::name().context("this machine's name cannot be a worker's; give one with --name")?,
    };
    let capacity = Capacity::of(kind);
    let defaults = capacity.defaults();
    let mut resources = capacity.resources(kind);
    resources.0.extend(pairs::resources(arguments.resources).map_err(UsageError)?.0);
    Ok(WorkerSetup {
        name,
        bus_url: arguments.url,
        token,
        data_dir: PathBuf::new(),
        runtime: kind,
        resources,
        labels: pairs::labels(arguments.labels).map_err(UsageError)?,
        default_cpu: arguments.default_cpu.unwrap_or(defaults.cores),
        default_memory: arguments.default_memory.unwrap_or(defaults.memory),
    })
}

fn token(arguments: &RunArgs) -> anyhow::Result<Secret> {
    if let Some(file) = &arguments.token_file {
        return folder::read_token(file);
    }
    if arguments.token_stdin {
        return folder::token_from(std::io::stdin().lock()).context("cannot read the token from standard input");
    }
    match std::env::var(TOKEN) {
        Ok(token) if !token.trim().is_empty() => Ok(Secret::new(token.trim())),
        _ => Err(UsageError(format!(
            "no token is given: use --token-file with a copy of the controller's file `token`, --token-stdin, or {TOKEN}"
        ))
        .into()),
    }
}
