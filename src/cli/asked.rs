//! What was typed, read by clap: `main` calls [`parse`]. What clap refuses is told with what was probably meant, where that can be
//! known: a noun that was left out, an option that is called otherwise here.

use std::ffi::OsString;

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory as _, Error, FromArgMatches as _};

use super::{Arguments, hints};
use crate::model::VmName;
use crate::ssh::quote::quote;

/// What commands are about, the likeliest first.
const NOUNS: [&str; 2] = ["vm", "worker"];
/// Options for what a VM is made with, and keeps.
const SIZES: [&str; 3] = ["--cpu", "--memory", "--disk-size"];

/// Reads the command line of this process; ends the process, with a text, when it is no command or asks for help.
pub fn parse() -> Arguments {
    let given: Vec<OsString> = std::env::args_os().collect();
    // Only read for tips: what is no text is told by clap.
    let typed: Vec<String> = given.iter().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    read(given, &typed).unwrap_or_else(|error| error.exit())
}

fn read(given: Vec<OsString>, typed: &[String]) -> Result<Arguments, Error> {
    let mut command = command();
    let refused = |error| hints::with_hint(advised(error, typed), typed);
    let matches = command.try_get_matches_from_mut(given).map_err(refused)?;
    Arguments::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

/// The tree of commands as it is shown: paragraphs are as wide as the terminal.
pub fn command() -> clap::Command {
    flowing(Arguments::command())
}

fn flowing(command: clap::Command) -> clap::Command {
    let text = command.get_after_help().map(|text| paragraphs(&text.to_string()));
    let command = command.mut_subcommands(flowing);
    match text {
        Some(text) => command.after_help(text),
        None => command,
    }
}

/// The text with each paragraph on one line. What is indented, such as examples, stays as it is.
fn paragraphs(text: &str) -> String {
    let is_prose = |line: &str| !line.is_empty() && !line.starts_with(' ');
    let mut shown = String::with_capacity(text.len());
    let mut before = "";
    for line in text.lines() {
        match (shown.is_empty(), is_prose(before) && is_prose(line)) {
            (true, _) => {}
            (false, true) => shown.push(' '),
            (false, false) => shown.push('\n'),
        }
        shown.push_str(line);
        before = line;
    }
    shown
}

/// The error with a tip, instead of one that leads nowhere.
fn advised(mut error: Error, typed: &[String]) -> Error {
    // Nobody who mistypes an option means it as the value of an argument.
    if error.kind() == ErrorKind::UnknownArgument {
        error.remove(ContextKind::Suggested);
    }
    if let Some(tip) = tip(&error, typed) {
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![StyledStr::from(tip)]));
    }
    error
}

fn tip(error: &Error, typed: &[String]) -> Option<String> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    let asked = typed.iter().filter(|word| !word.starts_with('-')).take(2).map(String::as_str).collect::<Vec<_>>();
    match error.kind() {
        ErrorKind::InvalidSubcommand => with_noun(typed, &text(ContextKind::InvalidSubcommand)?),
        ErrorKind::MissingRequiredArgument => {
            let [verb @ ("get" | "delete"), noun] = asked.as_slice() else { return None };
            let many = listed(noun)?;
            Some(format!("`orchard list {many}` shows which there are to {verb}"))
        }
        ErrorKind::ValueValidation => {
            let is_wait = text(ContextKind::InvalidArg).is_some_and(|option| option.starts_with("--wait"));
            let short = typed.iter().any(|word| word == "-t");
            let tip = "-t is --wait here; a shell gets a terminal by itself, and a command by `orchard exec vm -it`";
            (asked == ["ssh", "vm"] && is_wait && short).then(|| tip.to_owned())
        }
        ErrorKind::UnknownArgument => {
            let option = text(ContextKind::InvalidArg)?;
            let option = option.split([' ', '=']).next().unwrap_or_default();
            let tip = "a VM keeps the size that it was made with; delete it and create it anew, or see \
                       `orchard update vm --help` for what can be changed";
            (asked == ["update", "vm"] && SIZES.contains(&option)).then(|| tip.to_owned())
        }
        _ => None,
    }
}

/// The command with the noun that stands before a name, if there is one that `unknown` may be the name of.
fn with_noun(typed: &[String], unknown: &str) -> Option<String> {
    unknown.parse::<VmName>().ok()?;
    let at = typed.iter().position(|word| word == unknown)?;
    let (before, behind) = typed.split_at_checked(at)?;
    let verb = before.iter().rev().find(|word| !word.starts_with('-'))?;
    let tree = Arguments::command();
    let verb = tree.find_subcommand(verb)?;
    let noun = NOUNS.into_iter().find(|noun| verb.find_subcommand(noun).is_some_and(takes_name))?;
    // What may hold a secret is not said again: errors stand in logs.
    let secret = |word: &String| word.starts_with("-p") || word.contains("token") || word.contains("password");
    if typed.iter().any(secret) {
        return Some(format!("did you mean `orchard {} {noun} {} …`?", verb.get_name(), word(unknown)));
    }
    let words = before.iter().map(String::as_str).chain([noun]).chain(behind.iter().map(String::as_str));
    Some(format!("did you mean `orchard {}`?", words.map(word).collect::<Vec<_>>().join(" ")))
}

fn takes_name(command: &clap::Command) -> bool {
    command.get_positionals().next().is_some()
}

/// What lists those of which `noun` names one.
fn listed(noun: &str) -> Option<String> {
    let tree = Arguments::command();
    let list = tree.find_subcommand("list")?;
    let found = list
        .get_subcommands()
        .find(|many| many.get_name() == noun || many.get_all_aliases().any(|alias| alias == noun));
    found.map(|many| many.get_name().to_owned())
}

/// A word as a shell takes it.
fn word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@,%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.to_owned() } else { quote(word) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told of `line`, taken apart at blanks.
    fn told(line: &str) -> String {
        let typed: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let given = ["orchard"].into_iter().chain(line.split(' ')).map(Into::into).collect();
        read(given, &typed).expect_err("this is a command").render().to_string()
    }

    #[test]
    fn a_noun_that_was_left_out_is_offered() {
        for (line, meant) in [
            ("ssh build-1", "orchard ssh vm build-1"),
            ("exec build-1 -- sh -c $HOME", "orchard exec vm build-1 -- sh -c '$HOME'"),
            ("--context work logs foo", "orchard --context work logs vm foo"),
            ("drain mini-1", "orchard drain worker mini-1"),
            ("ssh build-1 -p hunter2", "orchard ssh vm build-1 …"),
        ] {
            let told = told(line);
            assert!(told.contains(&format!("tip: did you mean `{meant}`?")), "{told}");
        }
        assert!(!told("frobnicate").contains("did you mean"));
        assert!(!told("controller build-1").contains("did you mean"));
    }

    #[test]
    fn paragraphs_of_help_flow_and_examples_stand() {
        let text = "Examples:\n  orchard a\n  orchard b\n\nOne\nand the same.\n\nAnother.";
        assert_eq!(paragraphs(text), "Examples:\n  orchard a\n  orchard b\n\nOne and the same.\n\nAnother.");
        let wrapped = command().find_subcommand("ssh-config").unwrap().get_after_help().unwrap().to_string();
        assert!(wrapped.lines().any(|line| line.starts_with("Each VM's") && line.ends_with("of yours.")), "{wrapped}");
    }

    #[test]
    fn plurals_lead_to_the_list() {
        assert!(told("get vms").contains("tip: `orchard list vms` shows which"), "{}", told("get vms"));
        assert!(told("delete worker").contains("tip: `orchard list workers` shows which"));
    }

    #[test]
    fn options_that_are_others_here_are_told() {
        assert!(told("ssh vm -t build-1 tty").contains("tip: -t is --wait here"), "{}", told("ssh vm -t build-1 tty"));
        assert!(!told("ssh vm --wait soon build-1").contains("tip:"));
        let told_of_size = told("update vm build-1 --cpu 4");
        assert!(told_of_size.contains("keeps the size"), "{told_of_size}");
        for line in ["update vm build-1 --cpu 4", "cp --colour a b", "get vm --frob"] {
            assert!(!told(line).contains("as a value"), "{}", told(line));
        }
    }
}
