//! `--help` of every command there is.

use clap::Command;
use orchard::cli;

use super::golden;

/// Wide enough that no example is broken.
const WIDTH: usize = 120;

fn collect(command: &mut Command, texts: &mut String) {
    let help = command.render_long_help().to_string();
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name());
    texts.push_str(&format!("{0}\n$ {name} --help\n{0}\n{help}\n", "=".repeat(WIDTH)));
    let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    for name in names.iter().filter(|name| *name != "help") {
        collect(command.find_subcommand_mut(name).unwrap(), texts);
    }
}

#[test]
fn the_help_of_the_whole_tree_is_as_it_was_read_last() {
    let mut command = cli::command().term_width(WIDTH);
    command.build();
    let mut texts = String::new();
    collect(&mut command, &mut texts);
    golden::check("help.txt", &texts);
}

/// The columns of a terminal that nobody has made wider.
const TERMINAL: usize = 80;

/// The lines of a command's help, and of those below it, that such a terminal breaks.
fn too_wide(command: &mut Command, found: &mut Vec<String>) {
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name()).to_owned();
    for help in [command.render_long_help(), command.render_help()] {
        let help = help.to_string();
        let wide = help.lines().filter(|line| line.chars().count() > TERMINAL);
        found.extend(wide.map(|line| format!("{name}: {line}")));
    }
    // What is indented is meant to be copied, or stands in columns: clap would break it anywhere.
    let behind = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let broken = |line: &&str| line.starts_with(' ') && line.chars().count() > TERMINAL;
    found.extend(behind.lines().filter(broken).map(|line| format!("{name}: {line}")));
    // Pasted, it ends nothing and begins nothing; the shell of a Mac reads on behind a # that a person has typed.
    let acts = |line: &&str| {
        line.starts_with(' ') && line.split_once("# ").is_some_and(|(_, note)| note.contains(['\'', '`', ';']))
    };
    found.extend(behind.lines().filter(acts).map(|line| format!("{name}, a note that a shell would act on: {line}")));
    let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    for name in names.iter().filter(|name| *name != "help") {
        too_wide(command.find_subcommand_mut(name).unwrap(), found);
    }
}

#[test]
fn no_line_of_help_is_wider_than_a_terminal() {
    let mut command = cli::command().term_width(TERMINAL);
    command.build();
    let mut found = Vec::new();
    too_wide(&mut command, &mut found);
    found.dedup();
    assert!(found.is_empty(), "{} lines:\n{}", found.len(), found.join("\n"));
}

#[test]
fn lists_take_every_form_and_name_them() {
    let mut command = cli::command();
    command.build();
    let lists = command.find_subcommand("list").unwrap();
    for list in lists.get_subcommands().filter(|list| !matches!(list.get_name(), "help" | "execs")) {
        let output = list.get_arguments().find(|argument| argument.get_id() == "output").unwrap();
        let forms: Vec<String> = output.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
        assert_eq!(forms, ["table", "wide", "json", "yaml", "name"], "{}", list.get_name());
        assert!(list.get_arguments().any(|argument| argument.get_short() == Some('q')), "{}", list.get_name());
    }
}
