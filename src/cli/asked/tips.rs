//! What was probably meant by a command line that clap refuses: a noun that was left out, an option that is called otherwise
//! here. Pure.

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory as _, Error};

use super::typed::Typed;
use crate::cli::Arguments;
use crate::model::VmName;
use crate::ssh::quote::quote;

/// What commands are about, the likeliest first.
const NOUNS: [&str; 2] = ["vm", "worker"];
/// Options for what a VM is made with, and keeps.
const SIZES: [&str; 3] = ["--cpu", "--memory", "--disk-size"];

/// What to do instead of what `error` refuses, where that can be known.
pub(super) fn tip(error: &Error, typed: &Typed<'_>) -> Option<String> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    match error.kind() {
        ErrorKind::InvalidSubcommand => with_noun(typed, &text(ContextKind::InvalidSubcommand)?),
        ErrorKind::MissingRequiredArgument => {
            let [verb, noun] = typed.path.as_slice() else { return None };
            let many = ["get", "delete"].contains(&verb.as_str()).then(|| listed(noun))??;
            Some(format!("`orchard list {many}` shows which there are to {verb}"))
        }
        ErrorKind::ValueValidation => {
            let is_wait = text(ContextKind::InvalidArg).is_some_and(|option| option.starts_with("--wait"));
            let short = typed.words.iter().any(|word| word == "-t");
            let tip = "-t is --wait here; a shell gets a terminal by itself, and a command by `orchard exec vm -it`";
            (typed.path == ["ssh", "vm"] && is_wait && short).then(|| tip.to_owned())
        }
        ErrorKind::UnknownArgument => {
            let option = text(ContextKind::InvalidArg)?;
            let option = option.split([' ', '=']).next().unwrap_or_default();
            let tip = "a VM keeps the size that it was made with; delete it and create it anew, or see \
                       `orchard update vm --help` for what can be changed";
            (typed.path == ["update", "vm"] && SIZES.contains(&option)).then(|| tip.to_owned())
        }
        _ => None,
    }
}

/// The command with the noun that stands before a name, if there is one that `unknown` may be the name of.
fn with_noun(typed: &Typed<'_>, unknown: &str) -> Option<String> {
    unknown.parse::<VmName>().ok()?;
    let (before, behind) = typed.around(unknown)?;
    // What stands behind it may be called like a command, and is none.
    let verb = Typed::of(before);
    let takes_name = |noun: &&str| {
        verb.command.find_subcommand(noun).is_some_and(|command| command.get_positionals().next().is_some())
    };
    let noun = NOUNS.into_iter().find(takes_name)?;
    // What may hold a secret is not said again: errors stand in logs.
    let secret = |word: &String| word.starts_with("-p") || word.contains("token") || word.contains("password");
    if typed.words.iter().any(secret) {
        return Some(format!("did you mean `orchard {} {noun} {} …`?", verb.path.join(" "), word(unknown)));
    }
    let words = before.iter().map(String::as_str).chain([noun]).chain(behind.iter().map(String::as_str));
    Some(format!("did you mean `orchard {}`?", words.map(word).collect::<Vec<_>>().join(" ")))
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
