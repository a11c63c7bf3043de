//! What was typed, read by clap: `main` calls [`parse`]. What clap refuses is told with what was probably meant, where that can be
//! known ([`tips`]), or with what there is instead of something that another Orchard has ([`instead`]); [`typed`] tells apart what
//! stands there.

mod instead;
mod tips;
mod typed;

use std::ffi::OsString;

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory as _, Error, FromArgMatches as _};

use self::typed::Typed;
use super::Arguments;

/// Reads the command line of this process; ends the process, with a text, when it is no command or asks for help.
pub fn parse() -> Arguments {
    let given: Vec<OsString> = std::env::args_os().collect();
    // Only read for tips: what is no text is told by clap.
    let typed: Vec<String> = given.iter().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    read(given, &typed).unwrap_or_else(|error| error.exit())
}

fn read(given: Vec<OsString>, typed: &[String]) -> Result<Arguments, Error> {
    let mut command = command();
    let refused = |error| advised(error, &Typed::of(typed));
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
fn advised(mut error: Error, typed: &Typed<'_>) -> Error {
    // Nobody who mistypes an option means it as the value of an argument.
    if error.kind() == ErrorKind::UnknownArgument {
        error.remove(ContextKind::Suggested);
    }
    let tip = match instead::hint(&error, typed) {
        Some(hint) => {
            // What clap takes for meant is something else.
            error.remove(ContextKind::SuggestedArg);
            Some(hint.to_owned())
        }
        None => tips::tip(&error, typed),
    };
    if let Some(tip) = tip {
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![StyledStr::from(tip)]));
    }
    error
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
            ("--context build-1 ssh build-1", "orchard --context build-1 ssh vm build-1"),
            ("list --context ssh execs build-1", "orchard list --context ssh execs vm build-1"),
        ] {
            let told = told(line);
            assert!(told.contains(&format!("tip: did you mean `{meant}`?")), "{told}");
        }
        assert!(!told("frobnicate").contains("did you mean"));
        assert!(!told("controller build-1").contains("did you mean"));
        for turned in ["vm get", "vm ssh build-1", "build-1 ssh", "build-1 ssh -p hunter2"] {
            assert!(!told(turned).contains("did you mean"), "{}", told(turned));
        }
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
        assert!(told("--context run get vm").contains("tip: `orchard list vms` shows which"));
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
