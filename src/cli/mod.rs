//! The command line: what may be said, and which file does it. `main` parses [`Arguments`] and calls [`run`].
//!
//! Client commands talk to the controller over the bus and the tunnel only, as any other program could. Exit codes: a
//! remote command's own (`ssh`, `exec`), 0, [`FAILED`], [`USAGE`], [`INTERRUPTED`]. Commands that serve or watch a list end
//! orderly by Ctrl-C, which is how they are meant to end, and so with 0.

mod accounts;
mod asked;
mod audit;
mod bootstrap;
mod client;
mod completion;
mod connect;
mod context;
mod cp;
mod create;
mod delete;
mod drain;
mod events;
mod exec;
mod exec_session;
mod field;
mod files;
mod follow;
mod forward;
mod get;
mod host_keys;
mod images;
mod interrupt;
mod ip;
mod list;
mod listen;
mod login;
mod logs;
mod man;
mod output;
mod pairs;
mod placing;
mod power;
mod prompt;
mod proxy;
mod rows;
mod serve;
mod settings;
mod ssh;
mod ssh_config;
mod status;
mod target;
mod top;
mod version;
mod vnc;
mod wait;
mod watch;

use clap::{Args, Parser, Subcommand};

pub use self::output::{Log, colours_on_stderr};
use self::serve::controller::ControllerCommand;
use crate::config::Home;
use crate::trace;

pub use self::asked::{command, parse};
pub use self::completion::answer as answer_shell;

/// The exit code of a command that failed.
pub const FAILED: u8 = 1;
/// The exit code of a command that was asked for wrongly.
pub const USAGE: u8 = 2;
/// The exit code of a client command that was ended by Ctrl-C, as shells have it: 128 and the number of the signal.
pub const INTERRUPTED: u8 = 130;

const ENVIRONMENT: &str = "\
Environment:
  ORCHARD_HOME                   home folder, in place of ~/.orchard
  ORCHARD_URL                    controller, in place of the default context's
  ORCHARD_SERVICE_ACCOUNT_NAME   account, likewise
  ORCHARD_SERVICE_ACCOUNT_TOKEN  that account's token, likewise
  ORCHARD_FINGERPRINT            SHA-256 of the certificate to expect at
                                 ORCHARD_URL; without it, a saved context's
                                 for that address, or public CAs

Exit codes: 0 done, 1 failed, 2 asked for wrongly, 130 ended by Ctrl-C (0 for what serves or watches);
`orchard ssh` and `exec` exit as the remote command did.

Begin with `orchard dev` in one terminal and `orchard create vm --help` in another, or with
`orchard context create URL` where a controller runs already.";

/// Turns machines behind NATs into one pool of virtual machines
#[derive(Debug, Parser)]
#[command(name = "orchard", version, after_help = ENVIRONMENT, arg_required_else_help = true, infer_subcommands = false)]
pub struct Arguments {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// Use this saved context; variables of the environment do not change it
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
    /// Tell more in the log; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a VM or a service account
    #[command(subcommand)]
    Create(create::Create),
    /// List VMs, workers, images, requests to fetch them, stray copies, service accounts or bootstrap tokens
    #[command(subcommand)]
    List(list::List),
    /// Show one VM, worker or service account or the cluster's settings, or make a bootstrap token
    #[command(subcommand)]
    Get(get::Get),
    /// Delete VMs, workers, stray copies, service accounts or bootstrap tokens
    #[command(subcommand)]
    Delete(delete::Delete),
    /// Change a VM, or the roles or the end of a service account
    #[command(subcommand)]
    Update(accounts::Update),
    /// Switch a VM off
    #[command(subcommand)]
    Stop(power::Stop),
    /// Switch a VM on again
    #[command(subcommand)]
    Start(power::Start),
    /// Freeze a VM into a file on its worker
    #[command(subcommand)]
    Suspend(power::Suspend),
    /// Change the settings of the whole cluster
    #[command(subcommand)]
    Set(settings::Set),
    /// Give a service account a new token
    #[command(subcommand)]
    Rotate(accounts::Rotate),
    /// Say why a VM is on its worker, or what keeps it from being placed
    #[command(subcommand)]
    Explain(placing::Explain),
    /// Have a worker take no new VMs
    #[command(subcommand)]
    Pause(placing::Pause),
    /// Have a worker take VMs again
    #[command(subcommand)]
    Resume(placing::Resume),
    /// Have a worker get rid of its VMs
    #[command(subcommand)]
    Drain(drain::Drain),
    /// Show the output of a VM's startup script
    #[command(subcommand)]
    Logs(logs::Logs),
    /// Show what happened in the cluster, event by event
    Events(events::EventsArgs),
    /// Show workers, VMs and events on a whole screen, live
    Top(top::TopArgs),
    /// Show who asked for what and what came of it, record by record
    Audit(audit::AuditArgs),
    /// Run a command or a shell in a VM, or on a worker's machine
    #[command(subcommand)]
    Ssh(ssh::Ssh),
    /// Run a command in a VM, or on a worker's machine, word for word
    #[command(subcommand)]
    Exec(exec::Exec),
    /// Copy files into a VM or out of it
    Cp(cp::CpArgs),
    /// Print the address of a VM
    #[command(subcommand)]
    Ip(ip::Ip),
    /// Connect standard input and output to a TCP port of a VM, or of a worker's machine
    #[command(subcommand)]
    Proxy(proxy::Proxy),
    /// Print a configuration by which ssh, scp, sftp and rsync reach VMs
    SshConfig(ssh_config::SshConfigArgs),
    /// Have workers fetch an image before a VM needs it
    #[command(subcommand)]
    Pull(images::Pull),
    /// Reach a TCP port of a VM, or of a worker's machine, through a port of this machine
    #[command(subcommand)]
    PortForward(forward::PortForward),
    /// Look at the screen of a VM
    #[command(subcommand)]
    Vnc(vnc::Vnc),
    /// Make controllers known to this machine, and choose among them
    #[command(subcommand)]
    Context(context::ContextCommand),
    /// Run a whole cluster in this process, to try things out
    Dev(serve::dev::DevArgs),
    /// Run a controller, back it up, or see how it is doing
    #[command(subcommand)]
    Controller(serve::controller::ControllerCommand),
    /// Run a worker
    #[command(subcommand)]
    Worker(serve::worker::WorkerCommand),
    /// Run the NATS broker alone
    #[command(subcommand)]
    Broker(serve::broker::BrokerCommand),
    /// Print what has a shell complete commands, options and the names of VMs, workers and contexts
    Completion(completion::CompletionArgs),
    /// Print a manual page, or write all of them
    Man(man::ManArgs),
    /// Show the version of this program and of the controller
    Version(version::VersionArgs),
}

impl Arguments {
    /// Whether it serves until it is told to stop.
    fn serves(&self) -> bool {
        use Command::{Broker, Controller, Dev, Worker};
        match &self.command {
            Controller(command) => !command.asks(),
            other => matches!(other, Dev(_) | Worker(_) | Broker(_)),
        }
    }

    /// What it is called where traces are collected.
    pub fn service(&self) -> &'static str {
        match &self.command {
            Command::Controller(command) if !command.asks() => "orchard-controller",
            Command::Worker(_) => "orchard-worker",
            Command::Dev(_) => "orchard-dev",
            Command::Broker(_) => "orchard-broker",
            _ => "orchard",
        }
    }

    /// Whether the command as a whole is a part of a trace: of one that it is told of, or that is exported. What serves is
    /// not; the requests that it answers are.
    pub fn is_traced(&self) -> bool {
        !self.serves() && (trace::exports() || trace::of_environment().is_some())
    }

    /// What was asked for, as it is called in a trace.
    pub fn name(&self) -> String {
        let verb = std::env::args_os().nth(1).and_then(|verb| verb.into_string().ok());
        let verb = verb.filter(|verb| !verb.starts_with('-')).unwrap_or_default();
        format!("orchard {verb}").trim_end().to_owned()
    }

    /// What to log when `RUST_LOG` does not say: servers tell what they do, other commands only what is wrong.
    pub fn log_filter(&self) -> &'static str {
        match (self.serves(), self.global.verbose) {
            // Its screen has no room for a log: what is asked for goes to a file, or nowhere.
            _ if matches!(self.command, Command::Top(_)) && self.global.verbose == 0 => "off",
            // What the NATS library has to say, the errors and the bus's own lines say better.
            (false, 0) => "error,async_nats=off,orchard=warn",
            (true, 0) => "warn,async_nats=off,orchard=info",
            (_, 1) => "info,orchard=debug",
            _ => "debug,orchard=trace",
        }
    }
}

/// Does what was asked and yields the exit code.
///
/// # Errors
/// Whatever went wrong, said so that a person can act on it; [`UsageError`] inside when the command was asked for
/// wrongly.
pub async fn run(arguments: Arguments) -> anyhow::Result<u8> {
    let home = Home::locate().map_err(|error| UsageError(error.to_string()))?;
    let Arguments { global, command } = arguments;
    match command {
        Command::Dev(arguments) => serve::dev::run(arguments, home).await,
        Command::Controller(command) if !command.asks() => serve::controller::run(command, home).await,
        Command::Worker(command) => serve::worker::run(command, home).await,
        Command::Broker(command) => serve::broker::run(command).await,
        // These close their connections before they end.
        Command::PortForward(command) => {
            let (client, interrupt) = connect(&home, &global).await?;
            drop(interrupt);
            forward::run(command, &client).await?;
            Ok(0)
        }
        Command::Proxy(command) => {
            let (client, interrupt) = connect(&home, &global).await?;
            drop(interrupt);
            proxy::run(command, &client).await?;
            Ok(0)
        }
        Command::Vnc(command) => {
            let (client, interrupt) = connect(&home, &global).await?;
            drop(interrupt);
            vnc::run(command, &client).await?;
            Ok(0)
        }
        Command::Exec(command) => {
            let mut interrupt = interrupt::Interrupt::install()?;
            exec::run(command, || client::Client::connect(&home, &global), &mut interrupt).await
        }
        Command::Cp(arguments) => {
            let mut interrupt = interrupt::Interrupt::install()?;
            cp::run(arguments, || client::Client::connect(&home, &global), &mut interrupt).await?;
            Ok(0)
        }
        // It goes on until it is ended, and so that is a good end.
        Command::List(command) if command.watches() => {
            let (client, mut interrupt) = connect(&home, &global).await?;
            tokio::select! {
                done = list::run(command, &client) => done.map(|()| 0),
                () = interrupt.wait() => {
                    end_line();
                    Ok(0)
                }
            }
        }
        Command::Ssh(command) => {
            let (client, mut interrupt) = connect(&home, &global).await?;
            ssh::run(command, &client, &mut interrupt).await
        }
        Command::Top(arguments) => top::run(arguments, &home, &global).await,
        command => {
            let mut interrupt = interrupt::Interrupt::install()?;
            // Whoever is dropped leaves the terminal as it was: spinners go, questions are asked no more.
            tokio::select! {
                done = as_client(global, command, home) => done.map(|()| 0),
                () = interrupt.wait() => Err(Interrupted.into()),
            }
        }
    }
}

/// A connection, and Ctrl-C taken over.
async fn connect(home: &Home, global: &Global) -> anyhow::Result<(client::Client, interrupt::Interrupt)> {
    let mut interrupt = interrupt::Interrupt::install()?;
    let client = tokio::select! {
        client = client::Client::connect(home, global) => client?,
        () = interrupt.wait() => return Err(Interrupted.into()),
    };
    Ok((client, interrupt))
}

/// Does what a client of a controller does.
async fn as_client(global: Global, command: Command, home: Home) -> anyhow::Result<()> {
    let connect = || client::Client::connect(&home, &global);
    match command {
        Command::Create(command) => create::run(command, connect).await?,
        Command::List(command) => list::run(command, &connect().await?).await?,
        Command::Get(command) => get::run(command, &connect().await?).await?,
        Command::Delete(command) => delete::run(command, &connect().await?).await?,
        Command::Update(command) => accounts::update(command, connect).await?,
        Command::Stop(command) => power::stop(command, &connect().await?).await?,
        Command::Start(command) => power::start(command, &connect().await?).await?,
        Command::Suspend(command) => power::suspend(command, &connect().await?).await?,
        Command::Set(command) => settings::set(command, &connect().await?).await?,
        Command::Rotate(command) => accounts::rotate(command, &connect().await?).await?,
        Command::Explain(command) => placing::explain(command, &connect().await?).await?,
        Command::Pause(command) => placing::pause(command, &connect().await?).await?,
        Command::Resume(command) => placing::resume(command, &connect().await?).await?,
        Command::Pull(command) => images::pull(command, &connect().await?).await?,
        Command::Drain(command) => drain::drain(command, &connect().await?).await?,
        Command::Logs(command) => logs::run(command, &connect().await?).await?,
        Command::Events(arguments) => events::run(arguments, &connect().await?).await?,
        Command::Audit(arguments) => audit::run(arguments, &connect().await?).await?,
        Command::Context(command) => context::run(command, home.clone()).await?,
        Command::Ip(command) => ip::run(command, &connect().await?).await?,
        Command::SshConfig(arguments) => ssh_config::run(arguments, &home, &global, &connect().await?).await?,
        Command::Controller(ControllerCommand::Status(arguments)) => status::run(arguments, &connect().await?).await?,
        // Done by the caller.
        Command::Dev(_)
        | Command::Controller(_)
        | Command::Worker(_)
        | Command::Broker(_)
        | Command::PortForward(_)
        | Command::Proxy(_)
        | Command::Vnc(_)
        | Command::Exec(_)
        | Command::Cp(_)
        | Command::Ssh(_)
        | Command::Top(_) => {}
        Command::Completion(arguments) => completion::run(&arguments)?,
        Command::Man(arguments) => man::run(&arguments)?,
        Command::Version(arguments) => version::run(arguments, connect).await?,
    }
    Ok(())
}

/// Tells on standard error, in one line, why a command failed, and yields the exit code.
pub fn report(error: &anyhow::Error) -> u8 {
    if matches!(error.downcast_ref(), Some(output::OutputError::ReaderGone)) {
        return 0;
    }
    if error.is::<Interrupted>() {
        end_line();
        if let Some(word) = interrupt::word() {
            eprintln!("{word}");
        }
        return INTERRUPTED;
    }
    if let Some(ToldToEnd(signal)) = error.downcast_ref() {
        return 128 + u8::try_from(signal.as_raw_value()).unwrap_or_default();
    }
    eprintln!("error: {}", output::clean(&format!("{error:#}")));
    if error.is::<UsageError>() { USAGE } else { FAILED }
}

/// Begins a new line where Ctrl-C was pressed: a terminal has shown ^C in the middle of one.
fn end_line() {
    if std::io::IsTerminal::is_terminal(&std::io::stderr()) {
        eprintln!();
    }
}

/// The command was asked for wrongly, in a way that only shows when its parts are seen together.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// Somebody pressed Ctrl-C; nothing need be said of it.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// A signal told the command to end; nothing need be said of it, and the exit code is that of shells: 128 and its number.
#[derive(Debug, thiserror::Error)]
#[error("told to end")]
struct ToldToEnd(tokio::signal::unix::SignalKind);

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_tree_of_commands_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_says_what_it_is_for() {
        fn check(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            assert!(command.get_about().is_some(), "{path} says nothing");
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{path}: {} says nothing", argument.get_id());
            }
            if !command.has_subcommands() {
                assert!(command.get_after_help().is_some(), "{path} shows no example");
            }
            command.get_subcommands().for_each(|sub| check(sub, &path));
        }
        check(&Arguments::command(), "");
    }
}
