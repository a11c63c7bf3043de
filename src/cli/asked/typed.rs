//! The words that were typed, told apart as clap does: commands, options with their values, and the rest. Pure.

use clap::{Arg, Command, CommandFactory as _};

use crate::cli::Arguments;

/// What was typed, without the program's name.
#[derive(Debug)]
pub(super) struct Typed<'a> {
    pub(super) words: &'a [String],
    /// The commands among them, by their own names where one was called by another.
    pub(super) path: Vec<String>,
    /// Where those words are that are no command, no option and no value of one.
    arguments: Vec<usize>,
    /// The innermost command.
    pub(super) command: Command,
}

impl<'a> Typed<'a> {
    pub(super) fn of(words: &'a [String]) -> Self {
        let mut tree = Arguments::command();
        // Hands the options of every command down.
        tree.build();
        let mut typed = Self { words, path: Vec::new(), arguments: Vec::new(), command: tree };
        let mut rest = words.iter().enumerate().peekable();
        while let Some((at, word)) = rest.next() {
            if word == "--" || typed.belongs_to_a_command_elsewhere() {
                typed.arguments.extend((at..words.len()).filter(|at| words.get(*at).is_some_and(|word| word != "--")));
                break;
            }
            if word.len() > 1 && word.starts_with('-') {
                let next = rest.peek().map(|(_, next)| next.as_str());
                if next.is_some_and(|next| takes_next(&typed.command, word, next)) {
                    rest.next();
                }
            } else if let Some(sub) = typed.command.find_subcommand(word).cloned() {
                typed.path.push(sub.get_name().to_owned());
                typed.command = sub;
            } else {
                typed.arguments.push(at);
            }
        }
        typed
    }

    /// The words before and behind the argument `argument`.
    pub(super) fn around(&self, argument: &str) -> Option<(&'a [String], &'a [String])> {
        let at = self.arguments.iter().find(|at| self.words.get(**at).is_some_and(|word| word == argument))?;
        self.words.split_at_checked(*at)
    }

    /// Whether what comes now is what a command in a VM is told, options and all.
    fn belongs_to_a_command_elsewhere(&self) -> bool {
        let before = self.arguments.len().checked_sub(1);
        let last = before.and_then(|at| self.command.get_positionals().nth(at));
        last.is_some_and(Arg::is_trailing_var_arg_set)
    }
}

/// Whether `next` is the value of the option, or of the last of several short ones, that `word` is.
fn takes_next(command: &Command, word: &str, next: &str) -> bool {
    let option = match word.strip_prefix("--") {
        Some(long) => command.get_arguments().find(|known| is_long(known, long)),
        None => {
            let mut letters = word.chars().skip(1);
            let known = |letter| command.get_arguments().find(|known| is_short(known, letter));
            let valued = letters.find_map(|letter| known(letter).filter(|option| option.get_action().takes_values()));
            // What stands behind its letter is its value.
            valued.filter(|_| letters.next().is_none())
        }
    };
    option.is_some_and(|option| {
        let least = option.get_num_args().map_or(1, |count| count.min_values());
        let is_valued = option.get_action().takes_values() && !option.is_require_equals_set();
        is_valued && (least > 0 || !next.starts_with('-'))
    })
}

fn is_long(option: &Arg, name: &str) -> bool {
    option.get_long() == Some(name) || option.get_all_aliases().is_some_and(|others| others.contains(&name))
}

fn is_short(option: &Arg, letter: char) -> bool {
    option.get_short() == Some(letter) || option.get_all_short_aliases().is_some_and(|all| all.contains(&letter))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The commands and the arguments of a line.
    fn read(line: &str) -> (String, String) {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let typed = Typed::of(&words);
        let arguments: Vec<&str> = typed.arguments.iter().map(|at| words[*at].as_str()).collect();
        (typed.path.join(" "), arguments.join(" "))
    }

    #[test]
    fn the_value_of_an_option_is_no_command() {
        for (line, path, arguments) in [
            ("--context run list vms", "list vms", ""),
            ("--context=run list vms", "list vms", ""),
            ("list --context worker vms", "list vms", ""),
            ("-v list vms", "list vms", ""),
            ("create vm --image login build-1", "create vm", "build-1"),
            ("create --context vm vm a", "create vm", "a"),
            ("controller run --data-dir backup", "controller run", ""),
            ("exec vm -e run -it build-1 top", "exec vm", "build-1 top"),
            ("exec vm -ite run build-1 top", "exec vm", "build-1 top"),
            ("exec vm -erun build-1 top", "exec vm", "build-1 top"),
            ("proxy vm --wait run 22", "proxy vm", "run 22"),
        ] {
            assert_eq!(read(line), (path.to_owned(), arguments.to_owned()), "{line}");
        }
    }

    #[test]
    fn what_a_command_in_a_vm_is_told_is_its_own() {
        for (line, arguments) in [
            ("exec vm a -- run --env x", "a run --env x"),
            ("exec vm a run --env x", "a run --env x"),
            ("ssh vm a run -L 1", "a run -L 1"),
        ] {
            assert_eq!(read(line).1, arguments, "{line}");
        }
    }

    #[test]
    fn a_command_goes_by_its_own_name() {
        assert_eq!(read("get vms a"), ("get vm".to_owned(), "a".to_owned()));
        assert_eq!(read("frobnicate vm"), (String::new(), "frobnicate vm".to_owned()));
    }
}
