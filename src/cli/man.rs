//! `orchard man`: manual pages, made of the same texts as `--help`. One page a command; what stands behind the options there,
//! examples above all, is set line for line.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Command, CommandFactory as _};
use clap_mangen::Man;
use roff::{Roff, roman};

use super::{Arguments, UsageError, output};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  orchard man ssh vm | man -l -
  orchard man --dir ~/.local/share/man/man1
      # then man orchard, man orchard-ssh-vm")]
pub(super) struct ManArgs {
    /// Write the pages of all commands into this folder, in place of printing one
    #[arg(long, value_name = "FOLDER", conflicts_with = "command")]
    dir: Option<PathBuf>,
    /// The command whose page to print [default: orchard itself]
    #[arg(value_name = "COMMAND")]
    command: Vec<String>,
}

pub(super) fn run(arguments: &ManArgs) -> anyhow::Result<()> {
    let mut root = Arguments::command().disable_help_subcommand(true);
    root.build();
    match &arguments.dir {
        Some(folder) => {
            let made = std::fs::create_dir_all(folder);
            made.with_context(|| format!("cannot make {}; choose another folder with --dir", folder.display()))?;
            write_all(&root, folder)
        }
        None => {
            let mut command = &root;
            for word in &arguments.command {
                let unknown = || UsageError(format!("there is no command {word:?}; `orchard man` names all of them"));
                command = command.find_subcommand(word).ok_or_else(unknown)?;
            }
            let page = page(command).context("cannot make the page")?;
            output::line(String::from_utf8_lossy(&page).trim_end())?;
            Ok(())
        }
    }
}

fn write_all(command: &Command, folder: &Path) -> anyhow::Result<()> {
    let file = folder.join(Man::new(command.clone()).get_filename());
    let page = page(command).context("cannot make the page")?;
    std::fs::write(&file, page).with_context(|| format!("cannot write {}", file.display()))?;
    command.get_subcommands().filter(|sub| !sub.is_hide_set()).try_for_each(|sub| write_all(sub, folder))
}

/// The page of one command.
fn page(command: &Command) -> std::io::Result<Vec<u8>> {
    let mut page = Vec::new();
    let man = Man::new(command.clone()).source(concat!("orchard ", env!("CARGO_PKG_VERSION"))).manual("Orchard");
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    let mut synopsis = Vec::new();
    man.render_synopsis_section(&mut synopsis)?;
    page.extend(breakable(&String::from_utf8_lossy(&synopsis)).into_bytes());
    man.render_description_section(&mut page)?;
    if command.get_arguments().any(|argument| !argument.is_hide_set()) {
        man.render_options_section(&mut page)?;
    }
    if command.get_subcommands().any(|sub| !sub.is_hide_set()) {
        man.render_subcommands_section(&mut page)?;
    }
    if let Some(text) = command.get_after_long_help().or(command.get_after_help()) {
        further(&text.to_string()).to_writer(&mut page)?;
    }
    Ok(page)
}

/// The most of a line that cannot be broken.
const LONG_WORD: usize = 60;

/// A synopsis that fits every page: long alternatives may go on in the next line, and no line is stretched.
fn breakable(synopsis: &str) -> String {
    let mut text = String::new();
    for line in synopsis.lines() {
        let words = line.split(' ').map(|word| match word.len() > LONG_WORD {
            true => word.replace('|', r"|\:"),
            false => word.to_owned(),
        });
        let line = words.collect::<Vec<_>>().join(" ");
        let stretched = line.starts_with('.');
        text.push_str(&if stretched { format!("{line}\n") } else { format!(".na\n{}\n.ad\n", line.trim_end()) });
    }
    text
}

/// What stands behind the options: a section for each part that has a title of its own, such as `Examples:`. Prose is set as such.
fn further(text: &str) -> Roff {
    let mut roff = Roff::new();
    let mut open = false;
    for part in text.split("\n\n") {
        let (first, rest) = part.split_once('\n').unwrap_or((part, ""));
        let title = first.strip_suffix(':').filter(|title| !title.contains(' ') && !rest.is_empty());
        match title {
            Some(title) => roff.control("SH", [title.to_uppercase().as_str()]),
            None if open => roff.control("PP", []),
            None => roff.control("SH", ["NOTES"]),
        };
        open = true;
        let body = if title.is_some() { rest } else { part };
        let is_prose = body.lines().all(|line| !line.starts_with(' ') && !line.contains("  "));
        if !is_prose {
            roff.control("nf", []);
        }
        for line in body.lines() {
            roff.text([roman(line)]);
        }
        if !is_prose {
            roff.control("fi", []);
        }
    }
    roff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_are_set_line_for_line_under_their_title() {
        let page = further("Examples:\n  orchard a\n  'b' \\c\n\nIn words,\n.and more.").to_roff();
        let lines: Vec<_> = page.lines().filter(|line| !line.is_empty()).collect();
        let set = [".SH EXAMPLES", ".nf", "  orchard a", "  'b' \\\\c", ".fi", ".PP", "In words,", "\\&.and more."];
        assert_eq!(lines, set, "prose is set as such");
    }

    #[test]
    fn a_long_choice_can_be_broken() {
        let long = "<--a|--b>".repeat(7);
        let broken = breakable(&format!(".SH SYNOPSIS\norchard [-v|--verbose] {long} "));
        let long = long.replace('|', "|\\:");
        assert_eq!(broken, format!(".SH SYNOPSIS\n.na\norchard [-v|--verbose] {long}\n.ad\n"));
    }
}
