//! What the pages for people say holds: each command line is one that the program takes, each block of commands is run
//! somewhere as it stands, what they link to is there, and the dashboard asks for metrics that there are.

mod dashboard;
mod pages;
mod shell;
mod table;

use std::collections::BTreeSet;
use std::path::Path;

use clap::error::ErrorKind;
use orchard::cli::Arguments;

use self::table::{BLOCKS, Runs, script_of};

/// A file of the repository.
fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Why the program does not take these words, if it does not. In prose a command may be named without all that it needs.
fn refusal(words: &[String], prose: bool) -> Option<String> {
    use ErrorKind::{
        DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion, MissingRequiredArgument,
        MissingSubcommand,
    };
    let cut_short = [DisplayHelpOnMissingArgumentOrSubcommand, MissingRequiredArgument, MissingSubcommand];
    let given = std::iter::once("orchard").chain(words.iter().map(String::as_str));
    match <Arguments as clap::Parser>::try_parse_from(given) {
        Ok(_) => None,
        Err(error) if matches!(error.kind(), DisplayHelp | DisplayVersion) => None,
        Err(error) if prose && cut_short.contains(&error.kind()) => None,
        Err(error) => Some(format!("orchard {}\n{error}", words.join(" "))),
    }
}

#[test]
fn every_command_line_of_the_pages_is_one_that_the_program_takes() {
    let mut wrong = Vec::new();
    let mut known = 0;
    for page in pages::all() {
        for block in &page.blocks {
            for words in shell::orchards(&block.text) {
                known += 1;
                wrong.extend(refusal(&words, false).map(|why| format!("{} below {:?}: {why}", page.path, block.title)));
            }
        }
        for span in &page.spans {
            let Some(words) = shell::written(span) else { continue };
            known += 1;
            wrong.extend(refusal(&words, true).map(|why| format!("{}: `{span}`: {why}", page.path)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(known > 100, "only {known} command lines were found: are they still looked for where they are?");
}

/// Whether this line of a script in deploy/check runs that block: `as_written 'Title' 2`, with more words behind it if each line
/// of the block is run on its own. The first block may go without its number.
fn runs_block(line: &str, title: &str, number: usize) -> bool {
    let Some(rest) = line.trim_start().strip_prefix(&format!("as_written '{title}'")) else { return false };
    rest.split_whitespace().next().map_or(number == 1, |word| word == number.to_string())
}

#[test]
fn every_block_of_commands_is_run_somewhere_as_it_stands_or_says_why_not() {
    let mut listed: BTreeSet<_> = BLOCKS.iter().map(|(path, title, number, _)| (*path, *title, *number)).collect();
    assert_eq!(listed.len(), BLOCKS.len(), "a block is listed twice");
    let pages = pages::all();
    for page in &pages {
        for block in &page.blocks {
            let named = (page.path, block.title.as_str(), block.number);
            assert!(listed.remove(&named), "{named:?} is new: have it run somewhere, and say in table.rs where");
        }
    }
    assert!(listed.is_empty(), "these are no more: {listed:?}");
    for (path, title, number, runs) in BLOCKS {
        match runs {
            Runs::OnItsMachine => {
                let script = script_of(path);
                let text = read(script);
                assert!(text.contains(&format!("PAGE={path}\n")), "{script} does not go through {path}");
                assert!(
                    text.lines().any(|line| runs_block(line, title, *number)),
                    "{script} does not run block {number} below {title:?} of {path}"
                );
            }
            Runs::By(file, how) => {
                assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(file).exists(), "{file}");
                assert!(!how.is_empty(), "{title:?} {number}: say how it is run there");
            }
        }
    }
}

#[test]
fn what_the_pages_link_to_is_there() {
    for page in pages::all() {
        let folder = Path::new(page.path).parent().unwrap();
        for link in &page.links {
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            if file.starts_with("http") {
                continue;
            }
            if file.is_empty() {
                assert!(page.anchors.contains(heading), "{}: there is no heading {heading:?}", page.path);
            } else {
                let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(file);
                assert!(path.exists(), "{}: {link} leads nowhere", page.path);
            }
        }
    }
}
