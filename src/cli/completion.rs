//! `orchard completion`: a script for the user's shell, which asks this program itself whenever Tab is pressed; and what it answers
//! then ([`answer`], before anything else is done). Names that only the controller knows are asked of it, within [`PATIENCE`];
//! when it does not answer there are none, and nothing is said: the user is in the middle of a line.
//!
//! Which argument takes which names is told by its type, so that no command must say so.

use std::any::TypeId;
use std::ffi::{OsStr, OsString};
use std::time::Duration;

use clap::{Arg, Args, Command, CommandFactory as _, ValueEnum};
use clap_complete::CompleteEnv;
use clap_complete::engine::{
    ArgValueCandidates, ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter as _,
};
use clap_complete::env::Shells;

use super::client::Client;
use super::field::Named;
use super::{Arguments, output};
use crate::bus::access::ListAccounts;
use crate::bus::message::{ListVms, ListWorkers};
use crate::client::find_target;
use crate::config::Home;
use crate::config::file::ContextFile;
use crate::model::error::ApiError;
use crate::model::{AccountName, VmName, WorkerName};

/// By this variable the script says for which shell it asks.
const VARIABLE: &str = "ORCHARD_COMPLETE";
/// How long the user waits at most after Tab.
const PATIENCE: Duration = Duration::from_millis(900);

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  source <(orchard completion bash)                                    in ~/.bashrc
  source <(orchard completion zsh)                                     in ~/.zshrc, after compinit
  orchard completion fish > ~/.config/fish/completions/orchard.fish

Names of VMs, workers and service accounts are those that the controller knows at that moment, as far as the
account may see them; it is given a second to answer. Names of contexts are those of the saved ones.")]
pub(super) struct CompletionArgs {
    /// The shell
    shell: Shell,
}

/// A shell that is known.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Prints the script.
pub(super) fn run(arguments: &CompletionArgs) -> anyhow::Result<()> {
    let name = match arguments.shell {
        Shell::Bash => "bash",
        Shell::Zsh => "zsh",
        Shell::Fish => "fish",
    };
    let shells = Shells::builtins();
    let shell = shells.completer(name).ok_or_else(|| anyhow::anyhow!("{name} is not known to clap_complete"))?;
    let mut script = Vec::new();
    // By name, not by path: the script goes on when the program is put elsewhere.
    shell.write_registration(VARIABLE, "orchard", "orchard", "orchard", &mut script)?;
    output::line(String::from_utf8_lossy(&script).trim())?;
    Ok(())
}

/// Answers the script and ends the process, if that is what this process was started for.
pub fn answer() {
    CompleteEnv::with_factory(|| with_names(Arguments::command())).var(VARIABLE).bin("orchard").complete();
}

/// The command with a source of names for each argument that takes some.
fn with_names(command: Command) -> Command {
    let takes_new = command.get_name() == "create";
    let takes_contexts = command.get_name() == "context";
    command.mut_args(with_name).mut_subcommands(|sub| match (takes_new, sub.get_name()) {
        // What is made has a name that nobody knows yet.
        (true, _) => sub,
        (false, "default" | "delete") if takes_contexts => sub.mut_arg("name", |name| candidates(name, contexts)),
        (false, "cp") => sub.mut_args(|argument| match argument.is_positional() {
            true => argument.add(ArgValueCompleter::new(here_or_in_a_vm)),
            false => with_name(argument),
        }),
        (false, _) => with_names(sub),
    })
}

fn with_name(argument: Arg) -> Arg {
    if takes::<VmName>(&argument) {
        candidates(argument, || ask(vms))
    } else if takes::<WorkerName>(&argument) {
        candidates(argument, || ask(workers))
    } else if takes::<AccountName>(&argument) {
        candidates(argument, || ask(accounts))
    } else if argument.get_id() == "context" {
        candidates(argument, contexts)
    } else {
        argument
    }
}

/// Whether it is the name of such a thing, alone or with one of its fields behind it.
fn takes<N: 'static>(argument: &Arg) -> bool {
    let value = argument.get_value_parser().type_id();
    value == TypeId::of::<N>() || value == TypeId::of::<Named<N>>()
}

fn candidates(argument: Arg, names: impl Fn() -> Vec<String> + Send + Sync + 'static) -> Arg {
    argument.add(ArgValueCandidates::new(move || names().into_iter().map(CompletionCandidate::new).collect::<Vec<_>>()))
}

/// What `orchard cp` takes: a path here, or a VM and what is in it.
fn here_or_in_a_vm(current: &OsStr) -> Vec<CompletionCandidate> {
    let mut found = PathCompleter::any().complete(current);
    if let Some(begun) = current.to_str().filter(|text| !text.contains(['/', ':'])) {
        let names = ask(vms).into_iter().filter(|name| name.starts_with(begun));
        found.extend(names.map(|name| CompletionCandidate::new(format!("{name}:"))));
    }
    found
}

fn contexts() -> Vec<String> {
    let saved = Home::locate().ok().and_then(|home| ContextFile::new(home).load().ok());
    saved.map(|saved| saved.contexts.into_keys().collect()).unwrap_or_default()
}

/// What the controller knows, of the context that stands on the line, if one does; nothing when it does not say so in time.
fn ask<F: Future<Output = Result<Vec<String>, ApiError>>>(names: impl FnOnce(Client) -> F) -> Vec<String> {
    let asked = async {
        let home = Home::locate().ok()?;
        let target = find_target(&home, context_on(std::env::args_os()).as_deref()).ok()?;
        names(Client::log_in(target).await.ok()?).await.ok()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let answer = runtime.ok().and_then(|runtime| {
        let answer = runtime.block_on(async { tokio::time::timeout(PATIENCE, asked).await.ok().flatten() });
        // A thread that still looks up an address must not hold the shell back.
        runtime.shutdown_background();
        answer
    });
    answer.unwrap_or_default()
}

async fn vms(client: Client) -> Result<Vec<String>, ApiError> {
    every(async |after: Option<VmName>| {
        let page = client.call(&ListVms { after, limit: 0 }).await?;
        Ok((page.vms.into_iter().map(|vm| vm.name).collect(), page.more))
    })
    .await
}

async fn workers(client: Client) -> Result<Vec<String>, ApiError> {
    every(async |after: Option<WorkerName>| {
        let page = client.call(&ListWorkers { after, limit: 0 }).await?;
        Ok((page.workers.into_iter().map(|view| view.worker.info.name).collect(), page.more))
    })
    .await
}

async fn accounts(client: Client) -> Result<Vec<String>, ApiError> {
    every(async |after: Option<AccountName>| {
        let page = client.call(&ListAccounts { after, limit: 0 }).await?;
        Ok((page.accounts.into_iter().map(|account| account.name).collect(), page.more))
    })
    .await
}

/// The names of all pages; `page` yields those after a name, and whether there are more.
async fn every<N: Clone + Into<String>>(
    page: impl AsyncFn(Option<N>) -> Result<(Vec<N>, bool), ApiError>,
) -> Result<Vec<String>, ApiError> {
    let mut all: Vec<N> = Vec::new();
    loop {
        let (names, more) = page(all.last().cloned()).await?;
        let more = more && !names.is_empty();
        all.extend(names);
        if !more {
            return Ok(all.into_iter().map(Into::into).collect());
        }
    }
}

/// The value of `--context` on the line that is being completed, if it stands there.
fn context_on(words: impl Iterator<Item = OsString>) -> Option<String> {
    let words: Vec<String> = words.filter_map(|word| word.into_string().ok()).collect();
    let behind = words.iter().zip(words.iter().skip(1)).find(|(word, _)| *word == "--context");
    let joined = || words.iter().find_map(|word| word.strip_prefix("--context="));
    behind.map(|(_, name)| name.as_str()).or_else(joined).filter(|name| !name.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(line: &str) -> Option<String> {
        context_on(line.split(' ').map(OsString::from))
    }

    #[test]
    fn the_context_that_stands_on_the_line_is_asked() {
        assert_eq!(context("orchard -- orchard --context prod ssh vm h").as_deref(), Some("prod"));
        assert_eq!(context("orchard -- orchard ssh vm --context=prod h").as_deref(), Some("prod"));
        assert_eq!(context("orchard -- orchard ssh vm h"), None);
        assert_eq!(context("orchard -- orchard ssh vm h --context"), None);
    }

    #[test]
    fn every_argument_that_takes_a_name_of_something_that_is_there_has_names_to_choose_from() {
        fn check(command: &Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            for argument in command.get_arguments() {
                let has = argument.get::<ArgValueCandidates>().is_some();
                let new = path.starts_with(" orchard create") || path.starts_with(" orchard context create");
                match argument.get_value_names() {
                    Some(names) if names.iter().any(|name| *name == "NAME") && !new => {
                        assert!(has || is_told_here(&path), "{path}: {} has none", argument.get_id());
                    }
                    _ => {}
                }
            }
            command.get_subcommands().for_each(|sub| check(sub, &path));
        }
        /// What runs here and not elsewhere names itself.
        fn is_told_here(path: &str) -> bool {
            ["worker", "controller", "dev", "broker"].iter().any(|own| path.starts_with(&format!(" orchard {own}")))
        }
        let command = with_names(Arguments::command());
        check(&command, "");
        let ssh = command.find_subcommand("ssh").and_then(|ssh| ssh.find_subcommand("vm")).unwrap();
        assert!(ssh.get_arguments().any(|argument| argument.get::<ArgValueCandidates>().is_some()));
    }
}
