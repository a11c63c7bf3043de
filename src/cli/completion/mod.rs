//! `orchard completion`: a script for the user's shell, which asks this program itself whenever Tab is pressed; and what it answers
//! then ([`answer`], before anything else is done). Names that only the controller knows are asked of it ([`live`]); when it does
//! not answer there are none, and nothing is said: the user is in the middle of a line.
//!
//! Which argument takes which names or words is told by its type, so that no command must say so; what has no type of its own is
//! named in [`with_values`].

mod bash;
mod line;
mod live;

use std::any::TypeId;
use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use clap::{Arg, Args, Command, CommandFactory as _, ValueEnum};
use clap_complete::CompleteEnv;
use clap_complete::engine::{
    ArgValueCandidates, ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter as _,
};
use clap_complete::env::{EnvCompleter, Fish, Shells, Zsh};
use schemars::JsonSchema;

use self::line::Line;
use self::live::What;
use super::field::{self, Named};
use super::serve::runtime::RuntimeChoice;
use super::{Arguments, output};
use crate::config::Home;
use crate::config::file::ContextFile;
use crate::model::access::Role;
use crate::model::account::AccountView;
use crate::model::settings::Profile;
use crate::model::vm::{Arch, Firmware, ImagePullPolicy, OnUnseen, Os, RestartPolicy, RuntimeKind, Vm};
use crate::model::worker::WorkerView;
use crate::model::{AccountName, VmName, WorkerName};

/// By this variable the script says for which shell it asks.
const VARIABLE: &str = "ORCHARD_COMPLETE";

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  source <(orchard completion bash)
      # in ~/.bashrc
  source <(orchard completion zsh)
      # in ~/.zshrc, after compinit
  orchard completion fish > ~/.config/fish/completions/orchard.fish

Names of VMs, workers, service accounts and the like are those that the controller knows at that moment, as far
as the account may see them; it is given a second to answer. Names of contexts are those of the saved ones.")]
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
    let bash = bash::Bash(Arc::default());
    let shells: [&dyn EnvCompleter; 3] = [&bash, &Zsh, &Fish];
    let shell = Shells(&shells).completer(name).map(|shell| {
        let mut script = Vec::new();
        // By name, not by path: the script goes on when the program is put elsewhere.
        shell.write_registration(VARIABLE, "orchard", "orchard", "orchard", &mut script).map(|()| script)
    });
    let script = shell.ok_or_else(|| anyhow::anyhow!("{name} is not known to clap_complete"))??;
    output::line(String::from_utf8_lossy(&script).trim())?;
    Ok(())
}

/// Answers the script and ends the process, if that is what this process was started for.
pub fn answer() {
    let Some(shell) = std::env::var_os(VARIABLE).filter(|shell| !shell.is_empty()) else { return };
    let mut arguments = std::env::args_os();
    let program = arguments.next().unwrap_or_default();
    let separator = arguments.find(|word| word == "--");
    let words: Vec<OsString> = arguments.collect();
    let line = Arc::new(match shell == "bash" {
        true => bash::asked(words),
        false => {
            let last = words.len().saturating_sub(1);
            Line::of(words, last)
        }
    });
    let bash = bash::Bash(line.clone());
    let shells: [&dyn EnvCompleter; 3] = [&bash, &Zsh, &Fish];
    let words = std::iter::once(program).chain(separator).chain(line.words.iter().cloned());
    let here = std::env::current_dir().ok();
    let env = CompleteEnv::with_factory(|| with_names(Arguments::command(), &line)).var(VARIABLE).bin("orchard");
    if env.shells(Shells(&shells)).try_complete(words, here.as_deref()).unwrap_or_else(|error| error.exit()) {
        std::process::exit(0);
    }
}

/// The command with a source of names or words for each argument that takes some.
fn with_names(command: Command, line: &Arc<Line>) -> Command {
    with_names_at(command, "", line)
}

fn with_names_at(command: Command, path: &str, line: &Arc<Line>) -> Command {
    command.mut_args(|argument| with_values(argument, path, line)).mut_subcommands(|sub| {
        let path = format!("{path} {}", sub.get_name());
        with_names_at(sub, path.trim_start(), line)
    })
}

/// `path` is that of the command which has the argument, without the program's name.
fn with_values(argument: Arg, path: &str, line: &Arc<Line>) -> Arg {
    let asked = |argument: Arg, what: What| {
        let line = line.clone();
        candidates(argument, move || live::names(what, &line))
    };
    let id = argument.get_id().as_str().to_owned();
    match (path, id.as_str()) {
        // What is made has a name that nobody knows yet.
        ("create vm" | "create service-account" | "worker run", "name") => argument,
        ("context default" | "context delete", "name") | (_, "context") => candidates(argument, contexts),
        ("cp", _) if argument.is_positional() => {
            let line = line.clone();
            argument.add(ArgValueCompleter::new(move |current: &OsStr| here_or_in_a_vm(current, &line)))
        }
        ("delete bootstrap-token", "ids") => asked(argument, What::Tokens),
        ("delete stray", "copies") => asked(argument, What::Strays),
        ("exec vm", "session") => asked(argument, What::Sessions),
        ("pull image", "image") if line.texts().any(|word| word == "--cancel") => asked(argument, What::Pulls),
        _ if takes::<VmName>(&argument) => asked(argument, What::Vms),
        _ if takes::<WorkerName>(&argument) => asked(argument, What::Workers),
        _ if takes::<AccountName>(&argument) => asked(argument, What::Accounts),
        _ if takes::<Named<VmName>>(&argument) => named::<Vm>(argument, What::Vms, line),
        _ if takes::<Named<WorkerName>>(&argument) => named::<WorkerView>(argument, What::Workers, line),
        _ if takes::<Named<AccountName>>(&argument) => named::<AccountView>(argument, What::Accounts, line),
        _ => match words(&argument) {
            Some(words) => candidates(argument, move || words.clone()),
            None => argument,
        },
    }
}

/// The words that it takes, if these are fixed and clap does not know them.
fn words(argument: &Arg) -> Option<Vec<String>> {
    fn of<T: Copy + ToString + 'static>(argument: &Arg, all: &'static [T]) -> Option<Vec<String>> {
        takes::<T>(argument).then(|| all.iter().map(ToString::to_string).collect())
    }
    let runtimes = || {
        let known = RuntimeKind::ALL.iter().map(ToString::to_string);
        takes::<RuntimeChoice>(argument).then(|| std::iter::once("auto".to_owned()).chain(known).collect())
    };
    of(argument, Firmware::ALL)
        .or_else(|| of(argument, Os::ALL))
        .or_else(|| of(argument, Arch::ALL))
        .or_else(|| of(argument, RuntimeKind::ALL))
        .or_else(|| of(argument, ImagePullPolicy::ALL))
        .or_else(|| of(argument, RestartPolicy::ALL))
        .or_else(|| of(argument, OnUnseen::ALL))
        .or_else(|| of(argument, Role::ALL))
        .or_else(|| of(argument, Profile::ALL))
        .or_else(runtimes)
}

/// Whether its value is of this type.
fn takes<T: 'static>(argument: &Arg) -> bool {
    argument.get_value_parser().type_id() == TypeId::of::<T>()
}

fn candidates(argument: Arg, names: impl Fn() -> Vec<String> + Send + Sync + 'static) -> Arg {
    argument.add(ArgValueCandidates::new(move || names().into_iter().map(CompletionCandidate::new).collect::<Vec<_>>()))
}

/// A name; behind a slash, one of the fields of what bears it.
fn named<T: JsonSchema>(argument: Arg, what: What, line: &Arc<Line>) -> Arg {
    let line = line.clone();
    argument.add(ArgValueCompleter::new(move |current: &OsStr| {
        let Some(begun) = current.to_str() else { return Vec::new() };
        let all = match begun.split_once('/') {
            Some((name, _)) => field::names::<T>().into_iter().map(|field| format!("{name}/{field}")).collect(),
            None => live::names(what, &line),
        };
        all.into_iter().filter(|one| one.starts_with(begun)).map(CompletionCandidate::new).collect()
    }))
}

/// What `orchard cp` takes: a path here, or a VM and what is in it.
fn here_or_in_a_vm(current: &OsStr, line: &Line) -> Vec<CompletionCandidate> {
    let mut found = PathCompleter::any().complete(current);
    if let Some(begun) = current.to_str().filter(|text| !text.contains(['/', ':'])) {
        let names = live::names(What::Vms, line).into_iter().filter(|name| name.starts_with(begun));
        found.extend(names.map(|name| CompletionCandidate::new(format!("{name}:"))));
    }
    found
}

fn contexts() -> Vec<String> {
    let saved = Home::locate().ok().and_then(|home| ContextFile::new(home).load().ok());
    saved.map(|saved| saved.contexts.into_keys().collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Command {
        with_names(Arguments::command(), &Arc::default())
    }

    fn offers(argument: &Arg) -> bool {
        argument.get::<ArgValueCandidates>().is_some()
            || argument.get::<ArgValueCompleter>().is_some()
            || argument.get_value_parser().possible_values().is_some()
    }

    #[test]
    fn every_argument_that_takes_a_name_of_something_that_is_there_has_names_to_choose_from() {
        /// What is made here or runs here is named by its user.
        const NEW: [(&str, &str); 6] = [
            ("create vm", "name"),
            ("create service-account", "name"),
            ("context create", "name"),
            ("worker run", "name"),
            // The context is not there yet, and so nobody who could be asked.
            ("context create", "service_account_name"),
            // Nobody writes it: `orchard ssh-config` does.
            ("proxy vm", "copy"),
        ];
        const NAMES: [&str; 8] =
            ["NAME", "NAME[/FIELD]", "WORKER", "ID", "UID/ATTEMPT", "SESSION", "POLICY", "PROFILE"];
        fn check(command: &Command, path: &str) {
            for argument in command.get_arguments() {
                let names = argument.get_value_names().unwrap_or_default();
                let id = argument.get_id().as_str();
                let own = ["worker run", "worker guard", "dev", "broker"].iter().any(|own| path.starts_with(own));
                if names.iter().any(|name| NAMES.contains(&name.as_str())) && !NEW.contains(&(path, id)) && !own {
                    assert!(offers(argument), "{path}: {id} has none");
                }
            }
            for sub in command.get_subcommands() {
                check(sub, format!("{path} {}", sub.get_name()).trim_start());
            }
        }
        check(&all(), "");
    }

    #[test]
    fn fixed_words_are_offered() {
        for (path, id, first) in [
            ("create vm", "restart_policy", "Never"),
            ("create vm", "runtime", "tart"),
            ("create vm", "os", "darwin"),
            ("create vm", "arch", "arm64"),
            ("create vm", "firmware", "default"),
            ("create vm", "image_pull_policy", "IfNotPresent"),
            ("create vm", "on_unseen", "keep"),
            ("update vm", "restart_policy", "Never"),
            ("update vm", "on_unseen", "keep"),
            ("pull image", "runtime", "tart"),
            ("create service-account", "roles", "compute:read"),
            ("update service-account", "roles", "compute:read"),
            ("set cluster-settings", "scheduler_profile", "optimize-utilization"),
            ("worker run", "runtime", "auto"),
            ("dev", "runtime", "auto"),
        ] {
            let all = all();
            let command = path.split(' ').fold(&all, |command, name| command.find_subcommand(name).unwrap());
            let argument = command.get_arguments().find(|argument| argument.get_id() == id).unwrap();
            assert!(offers(argument), "{path} {id}");
            assert_eq!(words(argument).unwrap()[0], first, "{path} {id}");
        }
        assert!(offers(all().get_arguments().find(|argument| argument.get_id() == "context").unwrap()));
    }
}
